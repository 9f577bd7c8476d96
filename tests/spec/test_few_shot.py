"""Specification of the few-shot protocol (section 3.1 and appendix): the prompt, and RICES, which selects its shots."""

from dataclasses import replace

import pytest
import torch
from conftest import close, equal, random

from minflamingo import ToyTokenizer, collate
from minflamingo.evaluation.fewshot import Query, count_shots, few_shot_prompt
from minflamingo.evaluation.rices import most_similar, pool_features

TOKENIZER = ToyTokenizer(["Output", " red", " blue", " green"])
SUPPORT = [(random(1, 4, 16, seed=i), f"Output: {word}") for i, word in enumerate(["red", "blue", "green", "red", "green"])]
QUERY = Query(SUPPORT, random(1, 4, 16, seed=9), "Output:", " blue")


def written(batch) -> str:
    """The tokens of the first row, with the special ones in brackets."""
    special = {TOKENIZER.bos_id: "<BOS>", TOKENIZER.eoc_id: "<EOC>", TOKENIZER.image_id: "<image>"}
    ids = batch.ids[0][batch.attention_mask[0]].tolist()
    return "".join(special.get(i) or TOKENIZER.decode([i]) for i in ids)


PROMPTS = {
    "0": "<BOS><image>Output:",
    "0_text": "<BOS>Output: red<EOC>Output: blue<EOC><image>Output:",
    "1": "<BOS><image>Output: red<EOC><image>Output:",
    "4": "<BOS><image>Output: red<EOC><image>Output: blue<EOC><image>Output: green<EOC><image>Output: red<EOC><image>Output:",
}


@pytest.mark.few_shot_prompt(points=3)
@pytest.mark.parametrize("shots", PROMPTS)
def test_the_prompt_is_that_of_the_paper_token_by_token(shots):
    """Section 3.1 and appendix: zero-shot ("0_text") shows two examples without their images. Each image is before its text."""
    batch = collate([few_shot_prompt(QUERY, shots)], TOKENIZER, pad="left")
    assert written(batch) == PROMPTS[shots]
    shown = [medium for medium, _ in SUPPORT[: 0 if shots == "0_text" else int(shots)]] + [QUERY.medium]
    assert torch.equal(batch.media[0], torch.stack(shown)), "the images of the prompt"


@pytest.mark.few_shot_prompt(points=1)
def test_the_answer_and_the_choices_of_the_query_are_not_in_its_prompt():
    """Section 3.1: the model must find them."""
    other = replace(QUERY, answer=" taxi", choices=(" taxi", " bus"))
    for shots in PROMPTS:
        assert equal(few_shot_prompt(QUERY, shots).pieces, few_shot_prompt(other, shots).pieces), shots


@pytest.mark.few_shot_prompt(points=2)
def test_an_order_permutes_the_shots_and_nothing_else():
    """Appendix, prompt ensembling: each image stays with its text, and the query stays last."""
    batch = collate([few_shot_prompt(QUERY, "3", (2, 0, 1))], TOKENIZER)
    assert written(batch) == "<BOS><image>Output: green<EOC><image>Output: red<EOC><image>Output: blue<EOC><image>Output:"
    assert torch.equal(batch.media[0], torch.stack([SUPPORT[2][0], SUPPORT[0][0], SUPPORT[1][0], QUERY.medium]))


@pytest.mark.few_shot_prompt(points=1)
def test_texts_may_be_empty_and_never_contain_special_tokens():
    """Section 3.1: a query without a prompt ends with its image. The letters "<EOC>" do not end an example."""
    bare = Query([(random(1, 4, 16), "<EOC>")], random(1, 4, 16), "", "wug", between="\n")
    batch = collate([few_shot_prompt(bare, "1")], TOKENIZER)
    assert written(batch) == "<BOS><image><EOC><EOC>\n<image>" and batch.ids[0].tolist().count(TOKENIZER.eoc_id) == 1


def test_wrong_shots_are_an_error():
    """Section 3.1: too many for the support, or not a number."""
    assert [count_shots(shots) for shots in ("0", "0_text", "1", "32")] == [0, 2, 1, 32]
    with pytest.raises(ValueError, match="8 shots need 8 support examples, but this query has 5"):
        few_shot_prompt(QUERY, "8")
    with pytest.raises(ValueError, match="0_text shots need 2 support examples, but this query has 1"):
        few_shot_prompt(replace(QUERY, support=SUPPORT[:1]), "0_text")
    for wrong in ("-1", "four", "4_text", ""):
        with pytest.raises(ValueError, match="choose a number, such as '4', or '0_text'"):
            few_shot_prompt(QUERY, wrong)


@pytest.mark.rices(points=2)
def test_pooled_features_are_the_mean_over_frames_and_patches_with_length_1():
    """Appendix, RICES: one unit vector per image or video."""
    features = random(3, 5, 16)
    mean = sum(features[t, s] for t in range(3) for s in range(5)) / 15
    assert close(pool_features(features), mean / mean.norm())


@pytest.mark.rices(points=2)
def test_the_most_similar_row_is_first_and_of_equal_rows_the_earlier_one():
    """Appendix, RICES. Cosines by hand: 0.6, 1, 0, 1, and the same again 50 times."""
    support = torch.tensor([[0.6, 0.8], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]).repeat(50, 1)
    expected = [i for equal in ((1, 3), (0,), (2,)) for i in range(200) if i % 4 in equal]
    assert most_similar(torch.tensor([1.0, 0.0]), support) == expected


@pytest.mark.rices(points=2)
def test_similarity_is_the_cosine_of_pooled_features():
    """Appendix, RICES: all examples, sorted by their cosine with the query, whatever the size of their features."""
    query, *support = (random(2, 4, 16, seed=i) * (i + 1) for i in range(9))
    cosines = [float(torch.cosine_similarity(query.mean((0, 1)), f.mean((0, 1)), dim=0)) for f in support]
    found = most_similar(pool_features(query), torch.stack([pool_features(f) for f in support]))
    assert found == sorted(range(8), key=lambda i: -cosines[i])
