"""Made-up names: their form, and that the test uses no name of the training."""

from random import Random

import pytest

from data_toy.world import ACCENTED, CONSONANTS, VOWELS, made_up_names

NAMES = {split: made_up_names(Random(0), 10_000, split) for split in ("train", "test")}


def test_train_and_test_names_are_disjoint_in_any_case():
    """This holds for all names because each letter has one capital, and the capital has one small letter."""
    assert not {name.lower() for name in NAMES["train"]} & {name.lower() for name in NAMES["test"]}
    assert [letter for letter in ACCENTED if letter.upper().lower() != letter or len(letter.upper()) > 1] == []


@pytest.mark.parametrize("split", NAMES)
def test_names_have_2_to_8_letters_and_all_forms_occur(split):
    names = NAMES[split]
    assert {len(name) for name in names} == set(range(2, 9)) and all(map(str.isalpha, names))
    assert {letter.lower() for name in names for letter in name} == {*CONSONANTS, *VOWELS, *ACCENTED}
    forms = {str.islower: 0.4, str.istitle: 0.3, str.isupper: 0.03, lambda name: not name.isascii(): 0.1}
    assert all(sum(map(form, names)) > least * len(names) for form, least in forms.items())
    assert len({name.lower() for name in names}) > 8000


def test_the_names_of_one_document_are_different_and_depend_on_the_seed():
    assert len(set(made_up_names(Random(0), 500, "test"))) == 500
    assert made_up_names(Random(1), 5, "train") == made_up_names(Random(1), 5, "train") != made_up_names(Random(2), 5, "train")
