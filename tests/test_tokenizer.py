"""The toy tokenizer: words are single tokens, everything else is bytes, and no text can become a special token."""

from __future__ import annotations

import random
import sys

import pytest

from minflamingo.tokenizer import ToyTokenizer, pieces_of

WORDS = ["This", " is", " a", " red", " circle", ".", "Output", ":", " 42", "é"]
STRINGS = [
    "", " ", "This is a red circle.", "This is a dax", "<image>", "<EOC>", "<BOS><PAD><image>", "a<b and <image>s",
    "  two  spaces ", "tab\tnew\nline\r\n", "naïve façade", "日本語",
    "🦩 flamingo 👩‍👩‍👧", "\x00\x7f", "\ud800", "\udc00\ud800 x", "é", "3x6=18",
]  # fmt: skip


@pytest.fixture
def tokenizer() -> ToyTokenizer:
    return ToyTokenizer(WORDS)


def strings_at_random(n: int):
    """Strings of arbitrary code points, surrogates included, mixed with words of the list."""
    dice = random.Random(0)
    for _ in range(n):
        parts = [chr(dice.randrange(sys.maxunicode + 1)) for _ in range(dice.randrange(12))]
        yield "".join(dice.choice([part, dice.choice(WORDS), chr(dice.randrange(128))]) for part in parts)


def test_any_string_survives_the_round_trip(tokenizer):
    """Emoji, lone surrogates, the empty string, the letters of special tokens, code points at random."""
    for text in [*STRINGS, *strings_at_random(500)]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_no_text_ever_becomes_a_special_token(tokenizer):
    """ "<image>" in a caption is seven letters. (flamingo-mini counts every "<" as an image.)"""
    special = {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eoc_id, tokenizer.image_id}
    for text in [*STRINGS, *strings_at_random(500)]:
        ids = tokenizer.encode(text)
        assert not special & set(ids)
        assert all(3 <= i < tokenizer.vocab_size for i in ids)
    assert len(tokenizer.encode("<image>")) == 7


def test_the_words_of_the_list_are_single_tokens_with_their_space(tokenizer):
    """Words carry the space before them, as in GPT-2; the docstring's example spells the made-up word."""
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode("This is a dax")]
    assert pieces == ["This", " is", " a", " ", "d", "a", "x"]
    for i, word in enumerate(WORDS):
        assert tokenizer.encode(word) == [259 + i]


def test_a_word_inside_another_is_not_found(tokenizer):
    """A piece is a word as a whole or bytes: " redder" is not " red" + "der"."""
    assert tokenizer.encode(" redder") == [3 + byte for byte in b" redder"]


def test_the_layout_of_ids_leaves_image_behind_the_vocabulary(tokenizer):
    """0 <PAD>, 1 <BOS>, 2 <EOC>, 256 bytes, the words; <image> is the first id the language model does not have."""
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eoc_id) == (0, 1, 2)
    assert tokenizer.vocab_size == 3 + 256 + len(WORDS)
    assert tokenizer.image_id == tokenizer.vocab_size


def test_special_tokens_leave_nothing_in_the_text(tokenizer):
    """They exist only as ids."""
    red = tokenizer.encode(" red")
    ids = [tokenizer.bos_id, tokenizer.image_id, *red, tokenizer.eoc_id, tokenizer.pad_id]
    assert tokenizer.decode(ids) == " red"


def test_bytes_that_are_no_text_become_the_replacement_character(tokenizer):
    """A model may stop in the middle of a character; that must not raise."""
    assert tokenizer.decode(tokenizer.encode("🦩")[:2]) == "\ufffd"
    assert tokenizer.decode([3 + 0xFF, *tokenizer.encode(" red")]) == "\ufffd red"


def test_an_id_outside_the_vocabulary_is_refused(tokenizer):
    """<image> is the last id there is."""
    for i in (-1, tokenizer.image_id + 1):
        with pytest.raises(ValueError, match=f"id {i} is outside"):
            tokenizer.decode([i])


def test_pieces_joined_are_the_text():
    """Every character is in exactly one piece."""
    for text in [*STRINGS, *strings_at_random(200)]:
        assert "".join(pieces_of(text)) == text
    assert pieces_of("Output: 12 cats\n") == ["Output", ":", " 12", " cats", "\n"]


@pytest.mark.parametrize(
    "words, sentence", [(["two words"], "not a single piece"), ([""], "not a single piece"), (["a", "a"], "twice")]
)
def test_a_list_of_words_that_cannot_work_is_refused(words, sentence):
    """A word that `encode` could never find, or one with two ids."""
    with pytest.raises(ValueError, match=sentence):
        ToyTokenizer(words)


def test_only_text_is_encoded(tokenizer):
    """An id list by mistake is named as such."""
    with pytest.raises(TypeError, match="expected str, got list"):
        tokenizer.encode([1, 2])


def test_what_is_saved_is_what_is_loaded(tokenizer, tmp_path):
    """The same ids for the same text, and the same special ids."""
    tokenizer.save(tmp_path / "words.json")
    loaded = ToyTokenizer.load(tmp_path / "words.json")
    assert loaded.words == tokenizer.words and loaded.image_id == tokenizer.image_id
    assert [loaded.encode(text) for text in STRINGS] == [tokenizer.encode(text) for text in STRINGS]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"not json", b"[1, 2]", b'{"words": ["a"]}', b'{"kind": "bpe", "words": ["a"]}',
        b'{"kind": "toy", "words": [1]}', b"\xff\xfe\x00",
    ],
)  # fmt: skip
def test_a_file_that_is_no_toy_tokenizer_is_refused_by_name(content, tmp_path):
    """The error names the file."""
    path = tmp_path / "other.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.json: not the word list"):
        ToyTokenizer.load(path)
