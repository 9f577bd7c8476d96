"""Documents become pieces and windows: images in the order of the text, for `minflamingo/data/documents.py`."""

from __future__ import annotations

import base64
import copy
import io
import random
from collections import Counter

import numpy as np
import pytest
from conftest import EOC, LETTERS, picture
from PIL import Image

from minflamingo.data.documents import Picture, cut, in_chunks, mmc4, obelics, window
from minflamingo.data.sample import Sample, is_medium, lay_out
from minflamingo.tokenizer import ToyTokenizer

WORDS = ToyTokenizer(["Cats", " purr", "Dogs", " bark"])


def png(pixels: np.ndarray) -> bytes:
    """(1, H, W, 3) → the bytes of a PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels[0]).save(file, format="PNG")
    return file.getvalue()


FILES = {f"{i}.png": png(picture(i)) for i in range(10)}


def find(name: str) -> bytes:
    if name not in FILES:
        raise ValueError("there is no such file")
    return FILES[name]


def seen(pieces: list) -> list:
    """Pictures as their numbers, so that a page can be read at a glance."""
    numbers = {picture(i).tobytes(): i for i in range(10)}
    pixels = [p.pixels() if isinstance(p, Picture) else p for p in pieces]
    return [numbers[p.tobytes()] if is_medium(p) else p for p in pixels]


def matched(*at: int, **changes) -> list[dict]:
    """image_info of images 0.png, 1.png, … that match sentences `at`."""
    return [{"image_name": f"{i}.png", "matched_text_index": s, "matched_sim": 0.3, **changes} for i, s in enumerate(at)]


def test_the_docstrings_documents_are_read_as_it_says():
    """MMC4 and OBELICS with the same content give the same page."""
    info = [{"image_name": "1.png", "matched_text_index": 1, "matched_sim": 0.5}]
    page = mmc4({"text_list": ["Cats purr.", "Dogs bark."], "image_info": info}, find)
    assert seen(page) == ["Cats purr.", EOC, 1, "Dogs bark.", EOC]
    page = obelics({"texts": ["Cats purr.", None, "Dogs bark."], "images": [None, "1.png", None]}, find)
    assert seen(page) == ["Cats purr.", EOC, 1, "Dogs bark.", EOC]


def test_images_follow_the_order_of_the_sentences_not_their_own():
    """OpenFlamingo feeds images in the order of their list while tags follow the sentences: each text gets another's image."""
    document = {"text_list": ["a", "b", "c", "d"], "image_info": matched(3, 0, 2)}
    assert seen(mmc4(document, find)) == [1, "a b", EOC, 2, "c", EOC, 0, "d", EOC]


def test_images_of_one_sentence_keep_their_order_and_none_is_lost():
    """Many to one: MMC4's own matching allows it, and OpenFlamingo once kept only the last."""
    document = {"text_list": ["a", "b"], "image_info": matched(1, 0, 1, 1)}
    assert seen(mmc4(document, find)) == [1, "a", EOC, 0, 2, 3, "b", EOC]


def test_images_that_are_not_similar_enough_are_left_out():
    """0.24 by default, the recipe of OpenFlamingo (whose own default of 30 lets nothing pass)."""
    info = [{"image_name": f"{i}.png", "matched_text_index": 0, "matched_sim": s} for i, s in enumerate((0.23, 0.24, 0.9))]
    document = {"text_list": ["a"], "image_info": info}
    assert seen(mmc4(document, find)) == [1, 2, "a", EOC]
    assert seen(mmc4(document, find, threshold=0.5)) == [2, "a", EOC]
    matrix = {"similarity_matrix": [[0.3, 0.1], [0.3, 0.4]]}  # image × sentence
    info = [{"image_name": f"{i}.png", "matched_text_index": 1} for i in range(2)]
    assert seen(mmc4({"text_list": ["a", "b"], "image_info": info, **matrix}, find)) == ["a", EOC, 1, "b", EOC]


def test_an_image_that_could_not_be_had_is_left_out():
    """Links rot. A document says so with a null; a name that leads nowhere is a broken document."""
    document = {"text_list": ["a"], "image_info": [*matched(0), *matched(0, image_name=None)]}
    assert seen(mmc4(document, find)) == [0, "a", EOC]
    (image, *_) = mmc4({"text_list": ["a"], "image_info": matched(0, image_name="z.png")}, find)
    with pytest.raises(ValueError, match=r"'z\.png': there is no such file"):
        image.pixels()


def test_an_end_of_chunk_follows_each_text_and_nothing_else():
    """§2.4: before the next image and at the document's end; two images in a row have no empty chunk between them."""
    a, b = Picture("a", bytes), Picture("b", bytes)
    assert in_chunks(["x", a, b, "y", "  ", " z\n", a], "|") == ["x", EOC, a, b, "y|z", EOC, a]
    assert in_chunks([], " ") == [] and in_chunks([" "], " ") == [] and in_chunks([a], " ") == [a]


def test_an_image_may_be_a_name_bytes_base64_or_pixels():
    """They all come to the same pixels."""
    code = base64.b64encode(FILES["3.png"]).decode()
    pil = Image.fromarray(picture(3)[0])
    images = ["3.png", FILES["3.png"], {"image_base64": code}, {"image_name": "3.png"}, picture(3), pil]
    page = obelics({"texts": [None] * len(images), "images": images}, find)
    assert seen(page) == [3] * len(images)
    both = {"image_base64": code, "image_name": "nowhere.png"}  # what lies inside need not be looked for
    assert seen(obelics({"texts": [None], "images": [both]}, find)) == [3]


GOOD = {
    "text_list": ["a", "b"], "image_info": matched(1, 0), "similarity_matrix": [[0.3, 0.3]] * 2,
}  # fmt: skip
PARALLEL = {"texts": ["a", None, "b"], "images": [None, {"image_base64": "AAAA"}, None]}
BROKEN = {
    "no sentences": (mmc4, {"image_info": []}, "text_list must be a list, found None"),
    "no images": (mmc4, {"text_list": []}, "image_info must be a list"),
    "a sentence that is a number": (mmc4, {**GOOD, "text_list": ["a", 3]}, r"text_list\[1\] must be a string, not 3"),
    "a match behind the last sentence": (mmc4, {**GOOD, "image_info": matched(2)}, r"image_info\[0\].*one of 0 … 1"),
    "a match before the first": (mmc4, {**GOOD, "image_info": matched(-1)}, "matched_text_index must be one of"),
    "a match that is true": (mmc4, {**GOOD, "image_info": matched(True)}, "matched_text_index must be one of"),
    "no match": (mmc4, {**GOOD, "image_info": [{"image_name": "1.png"}]}, "matched_text_index"),
    "an image that is a list": (mmc4, {**GOOD, "image_info": [[]]}, "matched_text_index"),
    "no similarity": (mmc4, {**GOOD, "image_info": matched(0, matched_sim=None)}, "matched_sim"),
    "a similarity in words": (mmc4, {**GOOD, "image_info": matched(0, matched_sim="high")}, "is a number"),
    "base64 that is a number": (mmc4, {**GOOD, "image_info": matched(0, image_base64=3)}, "image_base64 must be a string"),
    "a name that is a number": (mmc4, {**GOOD, "image_info": matched(0, image_name=3)}, "expected the name of an image"),
    "lists of two lengths": (obelics, {"texts": ["a"], "images": []}, "1 texts but 0 images"),
    "both": (obelics, {"texts": ["a"], "images": ["b.png"]}, r"texts\[0\] and images\[0\]: exactly one"),
    "neither": (obelics, {"texts": [None], "images": [None]}, "exactly one of them is null"),
    "a text that is a number": (obelics, {"texts": [3], "images": [None]}, r"texts\[0\] must be a string, not 3"),
    "texts that are a string": (obelics, {"texts": "ab", "images": [None] * 2}, "texts must be a list"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_document_says_what_is_broken(name):
    """With a ValueError, which is what a stream counts."""
    read, document, complaint = BROKEN[name]
    with pytest.raises(ValueError, match=complaint):
        read(document, find)


def test_whatever_is_wrong_with_a_document_is_a_value_error():
    """A thousand documents, each with one value replaced by something foreign: they are read, or refused in one way."""

    def places(value: object, here: tuple = ()) -> list[tuple]:
        inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        return [here] * bool(here) + [place for key, v in inside for place in places(v, (*here, key))]

    foreign = [None, True, -1, 10**30, 0.5, float("nan"), "", "ä", "\ud83d", [], [[]], {}, {"image_base64": "é"}]
    refused = 0
    for read, whole in ((mmc4, GOOD), (obelics, PARALLEL)):
        for place in places(whole):
            for value in foreign:
                document = at = copy.deepcopy(whole)
                for key in place[:-1]:
                    at = at[key]
                at[place[-1]] = value
                try:
                    window(read(document, find), ToyTokenizer([]), random.Random(0))
                except ValueError:
                    refused += 1
    assert refused > 100


def test_half_a_letter_is_read_as_an_unknown_one():
    """JSON can hold a lone surrogate, which no real tokenizer takes."""
    assert mmc4({"text_list": ["a\ud83d"], "image_info": []}, find) == ["a\ufffd\ufffd\ufffd", EOC]


def test_the_letters_of_a_special_token_are_text_in_a_document_too():
    """A page about HTML has no more images than it has images."""
    document = {"text_list": ["<image><EOC> <BOS>"], "image_info": matched(0)}
    tokenizer = ToyTokenizer([])
    row = lay_out(window(mmc4(document, find), tokenizer, random.Random(0)), tokenizer, lambda pixels: pixels)
    assert row.ids.count(tokenizer.image_id) == 1 and row.ids.count(tokenizer.eoc_id) == 1
    assert tokenizer.decode(row.ids) == "<image><EOC> <BOS>"


# ------------------------------------------------------------------------------------------------------------- windows

PAGE = ["abc", EOC, picture(0), "de", EOC, picture(1), picture(2), "fgh", EOC, "aaaaaaaa", EOC]
WHOLE = lay_out(Sample(PAGE), LETTERS, lambda pixels: pixels).ids  # with <BOS>, 24 tokens


def windows(pieces: list = PAGE, n: int = 2000, tokenizer=LETTERS, **options) -> list[Sample]:
    return [window(pieces, tokenizer, random.Random(i), **options) for i in range(n)]


def ids_of(sample: Sample, tokenizer=LETTERS) -> list[int]:
    return lay_out(sample, tokenizer, lambda pixels: pixels).ids


def test_the_docstrings_window_token_by_token():
    """Six tokens from the middle of the page."""
    page = ["Cats purr.", EOC, picture(1), "Dogs bark.", EOC]
    found = [s.pieces for s in windows(page, 100, WORDS, length=6) if s.pieces[0] == "."]
    assert found and all(seen(pieces) == [".", EOC, 1, "Dogs bark."] for pieces in found)


@pytest.mark.parametrize("length", [1, 2, 5, 9, 23, 24, 256])
def test_a_window_is_a_stretch_of_the_document(length):
    """The oracle is the whole document's tokens: every stretch of L with an image comes, equally often, and no other."""
    image = LETTERS.image_id
    n = min(length, len(WHOLE))
    stretches = [WHOLE[i : i + n] for i in range(len(WHOLE) - n + 1)]
    wanted = Counter(tuple(s) for s in stretches if image in s)
    found = Counter(tuple(ids_of(sample)) for sample in windows(length=length))
    assert found.keys() == wanted.keys()
    each = 2000 / wanted.total()
    assert all(abs(found[s] - wanted[s] * each) < 5 * (wanted[s] * each) ** 0.5 + 1 for s in wanted)


def test_only_the_documents_first_window_begins_a_sequence():
    """`<BOS>` counts as the first token; what starts behind it has `bos=False`."""
    samples = windows(length=8)
    assert {sample.bos for sample in samples} == {True, False}
    for sample in samples:
        assert sample.bos == (ids_of(sample)[0] == LETTERS.bos_id)
        assert not sample.bos or sample.pieces[:2] == ["abc", EOC]  # text before the first image is kept


def test_a_window_that_ends_in_the_middle_ends_no_chunk():
    """EOC is the document's own; a text that goes on has none."""
    page = [picture(1), "abcdefgh", EOC]
    assert {tuple(s.pieces[1:]) for s in windows(page, length=4)} == {("ab",), ("abc",)}
    assert {tuple(s.pieces[1:]) for s in windows(page, n=5)} == {("abcdefgh", EOC)}


def test_the_first_five_images_of_a_window_are_shown_and_none_but_those_is_read():
    """N = 5 (appendix); images beyond are dropped, their text stays. (OpenFlamingo's ChatGPT pages keep one less.)"""
    reads: list[int] = []

    def image(i: int) -> Picture:
        return Picture(f"{i}.png", lambda: reads.append(i) or FILES[f"{i}.png"])

    page = [p for i in range(8) for p in (image(i), "abcdefgh"[i], EOC)]
    (sample,) = windows(page, 1)
    shown = [p for i in range(5) for p in (i, "abcdefgh"[i], EOC)]
    assert seen(sample.pieces) == [*shown, "f", EOC, "g", EOC, "h", EOC]
    assert reads == [0, 1, 2, 3, 4]
    reads.clear()
    (sample,) = windows(page, 1, max_images=2, length=7)
    shown = [p for p in seen(sample.pieces) if isinstance(p, int)]
    assert reads == shown and shown in [[i, i + 1] for i in range(7)]


def test_half_of_the_windows_look_at_the_next_image():
    """p_next = 1/2, for the whole sequence (appendix)."""
    assert abs(sum(sample.attend_next for sample in windows()) - 1000) < 100
    assert not any(sample.attend_next for sample in windows(p_next=0, n=100))
    assert all(sample.attend_next for sample in windows(p_next=1, n=100))


def test_the_same_dice_give_the_same_window():
    """That is what an exact resumption rests on."""
    for i in range(20):
        a, b = (window(PAGE, LETTERS, random.Random(i), length=8) for _ in range(2))
        assert ids_of(a) == ids_of(b) and a.attend_next == b.attend_next


class SpacedTokenizer:
    """As SentencePiece does for Llama: a space is put before every text and taken away again, so a text never begins with
    the second half of a word."""

    pieces = (" abc", " ab", " a", " b", " c", " ä", "abc", "bc", "a", "b", "c", "ä", " ")

    def encode(self, text: str) -> list[int]:
        ids, text = [], text and " " + text
        while text:
            piece = next(p for p in self.pieces if text.startswith(p))
            ids, text = [*ids, self.pieces.index(piece)], text[len(piece) :]
        return ids

    def decode(self, ids) -> str:
        return "".join(self.pieces[i] for i in ids)[1 if list(ids[:1]) and self.pieces[ids[0]][0] == " " else 0 :]


@pytest.mark.parametrize("tokenizer", [SpacedTokenizer(), ToyTokenizer([" a", "ab"])], ids=["spaced", "bytes"])
def test_a_cut_text_gives_the_documents_own_tokens(tokenizer):
    """Whatever the cut, the text that is left reads as a stretch of the whole text's tokens, as long a one as there is."""
    dice = random.Random(0)
    shorter = 0
    for _ in range(300):
        ids = tokenizer.encode("".join(dice.choices(["a", "b", "c", " a", "ä"], k=12)))
        a, b = sorted(dice.sample(range(len(ids) + 1), 2))
        text = cut(ids, a, b, tokenizer)
        exact = [
            (i, j) for i in range(a, b + 1) for j in range(i, b + 1)
            if (i == a or a > 0) and (j == b or b < len(ids)) and tokenizer.encode(tokenizer.decode(ids[i:j])) == ids[i:j]
        ]  # fmt: skip
        longest = max(j - i for i, j in exact)
        assert tokenizer.encode(text) in [ids[i:j] for i, j in exact if j - i == longest]
        shorter += longest < b - a
    assert shorter > 20  # else the test would prove nothing


def test_a_window_never_shows_half_a_letter():
    """ "ä" is two bytes and two tokens; a window through its middle leaves it out."""
    tokenizer = ToyTokenizer([])
    page = ["ääää", EOC, picture(1), "猫猫", EOC]
    samples = windows(page, 300, tokenizer, length=6)
    texts = {piece for sample in samples for piece in sample.pieces if isinstance(piece, str)}
    assert texts <= {"ä", "ää", "猫", "猫猫"} and len(texts) > 2
    assert all(len(ids_of(sample, tokenizer)) <= 6 for sample in samples)
