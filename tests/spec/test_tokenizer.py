"""Specification of `tokenizer.py`: words are single tokens, everything else is bytes, no text becomes a special token."""

import random
import sys

import pytest

from minflamingo.tokenizer import ToyTokenizer, split_pieces

WORDS = ["This", " is", " a", " red", " circle", ".", "Output", ":", " 42", "é"]
STRINGS = [
    "", " ", "This is a red circle.", "This is a dax", "<image>", "<EOC>", "<BOS><PAD><image>", "a<b and <image>s",
    "  two  spaces ", "tab\tnew\nline\r\n", "naïve façade", "日本語", "🦩 flamingo", "\x00\x7f", "\ud800", "\udc00\ud800 x",
]  # fmt: skip


def random_strings(n: int):
    """Strings of arbitrary code points, surrogates included, mixed with words of the list."""
    source = random.Random(0)
    for _ in range(n):
        points = [chr(source.randrange(sys.maxunicode + 1)) for _ in range(source.randrange(12))]
        yield "".join(source.choice([point, source.choice(WORDS), chr(source.randrange(128))]) for point in points)


@pytest.fixture
def tokenizer() -> ToyTokenizer:
    return ToyTokenizer(WORDS)


def test_decoding_inverts_encoding_for_any_string(tokenizer):
    """Emoji, lone surrogates, the empty string, random code points."""
    for text in [*STRINGS, *random_strings(300)]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert "".join(split_pieces(text)) == text


def test_no_text_becomes_a_special_token(tokenizer):
    """The string "<image>" is seven tokens; only an image makes an `<image>` token (section 2.4)."""
    for text in [*STRINGS, *random_strings(300)]:
        assert all(3 <= i < tokenizer.vocab_size for i in tokenizer.encode(text))
    assert len(tokenizer.encode("<image>")) == 7


def test_a_word_of_the_list_is_one_token_with_the_space_before_it(tokenizer):
    """The example of the module: an unknown word is spelled, and " redder" is not " red" + "der"."""
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode("This is a dax")]
    assert pieces == ["This", " is", " a", " ", "d", "a", "x"]
    assert [tokenizer.encode(word) for word in WORDS] == [[259 + i] for i in range(len(WORDS))]
    assert tokenizer.encode(" redder") == [3 + byte for byte in b" redder"]
    assert split_pieces("Output: 12 cats\n") == ["Output", ":", " 12", " cats", "\n"]


def test_special_tokens_exist_only_as_ids_and_the_image_token_comes_after_the_vocabulary_of_the_lm(tokenizer):
    """0 <PAD>, 1 <BOS>, 2 <EOC>, 256 bytes, the words, <image>. Decoding leaves them out."""
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eoc_id) == (0, 1, 2)
    assert tokenizer.image_id == tokenizer.vocab_size == 3 + 256 + len(WORDS)
    red = tokenizer.encode(" red")
    assert tokenizer.decode([tokenizer.bos_id, tokenizer.image_id, *red, tokenizer.eoc_id, tokenizer.pad_id]) == " red"
    # Bytes that are not UTF-8 become the replacement character: a model may stop in the middle of a character.
    assert tokenizer.decode(tokenizer.encode("🦩")[:2]) == "\ufffd"
    assert tokenizer.decode([3 + 0xFF, *tokenizer.encode(" red")]) == "\ufffd red"


def test_wrong_ids_inputs_and_word_lists_are_errors(tokenizer):
    """<image> is the last id; a word must be one that `encode` can find, with one id."""
    for i in (-1, tokenizer.image_id + 1):
        with pytest.raises(ValueError, match=f"id {i} is outside"):
            tokenizer.decode([i])
    with pytest.raises(TypeError, match="expected str, got list"):
        tokenizer.encode([1, 2])
    for words, message in ((["two words"], "not a single piece"), ([""], "not a single piece"), (["a", "a"], "twice")):
        with pytest.raises(ValueError, match=message):
            ToyTokenizer(words)


def test_a_saved_tokenizer_can_be_loaded_and_another_file_is_an_error_that_names_it(tokenizer, tmp_path):
    """The same text has the same ids."""
    path = tmp_path / "words.json"
    tokenizer.save(path)
    assert ToyTokenizer.load(path).words == tokenizer.words and ToyTokenizer.load(path).image_id == tokenizer.image_id
    for content in (b"", b"[1, 2]", b'{"words": ["a"]}', b'{"kind": "toy", "words": [1]}', b"\xff\xfe\x00"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"words\.json: not the word list"):
            ToyTokenizer.load(path)
