"""MMC4 and OBELICS documents become pieces and windows, with images in the order of the text."""

import base64
import copy
import random
from collections import Counter

import pytest
from conftest import EOC, LETTERS, image
from test_records import encoded

from minflamingo.data.documents import chunks, cut_text, document_pieces, window
from minflamingo.data.images import LazyImage
from minflamingo.data.sample import Sample, is_medium, tokenize_sample
from minflamingo.tokenizer import ToyTokenizer

WORDS = ToyTokenizer(["Cats", " purr", "Dogs", " bark"])


FILES = {f"{i}.png": encoded(i) for i in range(10)}


def find(name: str) -> bytes:
    if name not in FILES:
        raise ValueError("there is no such file")
    return FILES[name]


def shown(pieces: list) -> list:
    """The pieces with images as their numbers."""
    numbers = {image(i).tobytes(): i for i in range(10)}
    pixels = [p.pixels() if isinstance(p, LazyImage) else p for p in pieces]
    return [numbers[p.tobytes()] if is_medium(p) else p for p in pixels]


def matched(*sentences: int, **changes) -> list[dict]:
    """image_info of the images 0.png, 1.png, ... that match these sentences."""
    info = [{"image_name": f"{i}.png", "matched_text_index": s, "matched_sim": 0.3} for i, s in enumerate(sentences)]
    return [{**entry, **changes} for entry in info]


def mmc4(texts: list, info: list, threshold: float = 0.24, **other) -> list:
    return shown(document_pieces({"text_list": texts, "image_info": info, **other}, find, threshold))


def ids_of(sample: Sample, tokenizer=LETTERS) -> list[int]:
    return tokenize_sample(sample, tokenizer, lambda pixels: pixels).ids


def test_the_documents_of_the_docstring():
    """MMC4 and OBELICS with the same content give the same pieces."""
    expected = ["Cats purr.", EOC, 1, "Dogs bark.", EOC]
    info = [{"image_name": "1.png", "matched_text_index": 1, "matched_sim": 0.5}]
    assert mmc4(["Cats purr.", "Dogs bark."], info) == expected
    obelics = {"texts": ["Cats purr.", None, "Dogs bark."], "images": [None, "1.png", None]}
    assert shown(document_pieces(obelics, find)) == expected


def test_images_follow_the_order_of_the_sentences_not_of_the_image_list():
    """OpenFlamingo passes images in the order of their list while <image> tokens follow the sentences."""
    assert mmc4(["a", "b", "c", "d"], matched(3, 0, 2)) == [1, "a b", EOC, 2, "c", EOC, 0, "d", EOC]
    assert mmc4(["a", "b"], matched(1, 0, 1, 1)) == [1, "a", EOC, 0, 2, 3, "b", EOC]  # several images of one sentence


def test_images_below_the_similarity_threshold_or_without_file_are_left_out():
    info = [{"image_name": f"{i}.png", "matched_text_index": 0, "matched_sim": s} for i, s in enumerate((0.23, 0.24, 0.9))]
    assert mmc4(["a"], info) == [1, 2, "a", EOC]
    assert mmc4(["a"], info, threshold=0.5) == [2, "a", EOC]
    info = [{"image_name": f"{i}.png", "matched_text_index": 1} for i in range(2)]
    assert mmc4(["a", "b"], info, similarity_matrix=[[0.3, 0.1], [0.3, 0.4]]) == ["a", EOC, 1, "b", EOC]
    assert mmc4(["a"], [*matched(0), *matched(0, image_name=None)]) == [0, "a", EOC]  # null: the download failed
    with pytest.raises(ValueError, match=r"'z\.png': there is no such file"):
        mmc4(["a"], matched(0, image_name="z.png"))


def test_eoc_follows_each_chunk_of_text():
    """Section 2.4: before the next image and at the end of the document, and not between two images."""
    a, b = LazyImage("a", bytes), LazyImage("b", bytes)
    assert chunks(["x", a, b, "y", "  ", " z\n", a], "|") == ["x", EOC, a, b, "y|z", EOC, a]
    assert chunks([], " ") == [] and chunks([" "], " ") == [] and chunks([a], " ") == [a]


def test_an_image_may_be_a_name_or_base64():
    code = base64.b64encode(FILES["3.png"]).decode()
    both = {"image_base64": code, "image_name": "nowhere.png"}
    images = ["3.png", {"image_base64": code}, {"image_name": "3.png"}, both]
    pieces = document_pieces({"texts": [None] * len(images), "images": images}, find)
    assert shown(pieces) == [3] * len(images)


GOOD = {"text_list": ["a", "b"], "image_info": matched(1, 0), "similarity_matrix": [[0.3, 0.3]] * 2}
PARALLEL = {"texts": ["a", None, "b"], "images": [None, {"image_base64": "AAAA"}, None]}
BROKEN = {
    "neither format": ({"caption": "a"}, "need the lists text_list"),
    "no images": ({"text_list": []}, "need the lists text_list"),
    "a sentence that is a number": ({**GOOD, "text_list": ["a", 3]}, r"text_list\[1\] must be a string, not 3"),
    "a match after the last sentence": ({**GOOD, "image_info": matched(2)}, r"image_info\[0\].*in 0...1"),
    "a match before the first": ({**GOOD, "image_info": matched(-1)}, "matched_text_index must be in"),
    "a match that is true": ({**GOOD, "image_info": matched(True)}, "matched_text_index must be in"),
    "an image that is a list": ({**GOOD, "image_info": [[]]}, "matched_text_index"),
    "a similarity that is a word": ({**GOOD, "image_info": matched(0, matched_sim="high")}, "is a number"),
    "base64 that is a number": ({**GOOD, "image_info": matched(0, image_base64=3)}, "expected the name of an image"),
    "a name that is a number": ({**GOOD, "image_info": matched(0, image_name=3)}, "expected the name of an image"),
    "lists of two lengths": ({"texts": ["a"], "images": []}, "1 texts but 0 images"),
    "both": ({"texts": ["a"], "images": ["b.png"]}, r"texts\[0\] and images\[0\]: exactly one"),
    "neither": ({"texts": [None], "images": [None]}, "exactly one must be null"),
    "a text that is a number": ({"texts": [3], "images": [None]}, r"texts\[0\] must be a string, not 3"),
}  # fmt: skip


@pytest.mark.parametrize("document, message", BROKEN.values(), ids=BROKEN)
def test_a_broken_document_raises_an_error_that_names_the_part(document, message):
    with pytest.raises(ValueError, match=message):
        document_pieces(document, find)


def test_any_invalid_value_in_a_document_raises_only_value_errors():
    """Hundreds of documents, each with one value replaced: a stream counts ValueErrors and stops at any other error."""

    def places(value: object, here: tuple = ()) -> list[tuple]:
        inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        return [here] * bool(here) + [place for key, v in inside for place in places(v, (*here, key))]

    foreign = [None, True, -1, 10**30, 0.5, float("nan"), "", "ä", "\ud83d", [], [[]], {}, {"image_base64": "é"}]
    n_errors = 0
    for whole in (GOOD, PARALLEL):
        for place in places(whole):
            for value in foreign:
                document = part = copy.deepcopy(whole)
                for key in place[:-1]:
                    part = part[key]
                part[place[-1]] = value
                try:
                    window(document_pieces(document, find), ToyTokenizer([]), random.Random(0))
                except ValueError:
                    n_errors += 1
    assert n_errors > 100


def test_special_letters_in_a_document_are_text():
    """ "<image>" in a text is not an image; half a character from JSON becomes U+FFFD, because tokenizers need UTF-8."""
    tokenizer = ToyTokenizer([])
    document = {"text_list": ["<image><EOC> <BOS>"], "image_info": matched(0)}
    ids = ids_of(window(document_pieces(document, find), tokenizer, random.Random(0)), tokenizer)
    assert ids.count(tokenizer.image_id) == 1 and ids.count(tokenizer.eoc_id) == 1
    assert tokenizer.decode(ids) == "<image><EOC> <BOS>"
    assert mmc4(["a\ud83d"], []) == ["a\ufffd\ufffd\ufffd", EOC]


# ------------------------------------------------------------------------------------------------------------- windows

DOCUMENT = ["abc", EOC, image(0), "de", EOC, image(1), image(2), "fgh", EOC, "aaaaaaaa", EOC]
WHOLE = ids_of(Sample(DOCUMENT))  # with <BOS>, 24 tokens


def windows(pieces: list = DOCUMENT, n: int = 2000, tokenizer=LETTERS, **options) -> list[Sample]:
    return [window(pieces, tokenizer, random.Random(i), **options) for i in range(n)]


def test_the_window_of_the_docstring():
    document = ["Cats purr.", EOC, image(1), "Dogs bark.", EOC]
    found = [s.pieces for s in windows(document, 100, WORDS, length=6) if s.pieces[0] == "."]
    assert found and all(shown(pieces) == [".", EOC, 1, "Dogs bark."] for pieces in found)


@pytest.mark.parametrize("length", [1, 2, 5, 9, 23, 24, 256])
def test_all_windows_with_an_image_are_equally_likely_stretches_of_the_document(length):
    """Oracle: the tokens of the whole document. Only the first window has <BOS>; a cut chunk has no EOC."""
    n = min(length, len(WHOLE))
    stretches = [WHOLE[i : i + n] for i in range(len(WHOLE) - n + 1)]
    expected = Counter(tuple(s) for s in stretches if LETTERS.image_id in s)
    samples = windows(length=length)
    found = Counter(tuple(ids_of(sample)) for sample in samples)
    assert found.keys() == expected.keys()
    each = 2000 / expected.total()
    assert all(abs(found[s] - expected[s] * each) < 5 * (expected[s] * each) ** 0.5 + 1 for s in expected)
    assert all(sample.bos == (ids_of(sample)[0] == LETTERS.bos_id) for sample in samples)


def test_only_the_first_images_of_a_window_are_kept_and_read():
    """N = 5 (appendix); the text of later images stays. (OpenFlamingo's ChatGPT documents keep one image fewer.)"""
    reads: list[int] = []

    def lazy(i: int) -> LazyImage:
        return LazyImage(f"{i}.png", lambda: reads.append(i) or FILES[f"{i}.png"])

    document = [p for i in range(8) for p in (lazy(i), "abcdefgh"[i], EOC)]
    (sample,) = windows(document, 1)
    assert shown(sample.pieces) == [*(p for i in range(5) for p in (i, "abcdefgh"[i], EOC)), "f", EOC, "g", EOC, "h", EOC]
    assert reads == [0, 1, 2, 3, 4]
    reads.clear()
    (sample,) = windows(document, 1, max_images=2, length=7)
    assert reads == [p for p in shown(sample.pieces) if isinstance(p, int)] and len(reads) == 2


def test_half_of_the_windows_attend_to_the_next_image():
    """p_next = 1/2, for the whole window (appendix); equal seeds give equal windows."""
    first, second = windows(), windows()
    assert abs(sum(sample.attend_next for sample in first) - 1000) < 100
    assert [(s.attend_next, ids_of(s)) for s in first] == [(s.attend_next, ids_of(s)) for s in second]
    assert [s.attend_next for p in (0, 1) for s in windows(p_next=p, n=50)] == [False] * 50 + [True] * 50


class SpacedTokenizer:
    """As SentencePiece for LLaMA: a space is added before each text, so a text cannot begin with the second half of a word."""

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
def test_a_cut_text_has_the_longest_stretch_of_the_documents_tokens(tokenizer):
    """Oracle: all stretches that reproduce their tokens. So a window never contains half a character."""
    rng, n_shorter = random.Random(0), 0
    for _ in range(300):
        ids = tokenizer.encode("".join(rng.choices(["a", "b", "c", " a", "ä"], k=12)))
        a, b = sorted(rng.sample(range(len(ids) + 1), 2))
        text = cut_text(ids, a, b, tokenizer)
        exact = [
            (i, j) for i in range(a, b + 1) for j in range(i, b + 1)
            if (i == a or a > 0) and (j == b or b < len(ids)) and tokenizer.encode(tokenizer.decode(ids[i:j])) == ids[i:j]
        ]  # fmt: skip
        longest = max(j - i for i, j in exact)
        assert tokenizer.encode(text) in [ids[i:j] for i, j in exact if j - i == longest]
        n_shorter += longest < b - a
    assert n_shorter > 20  # otherwise the test would not test anything
