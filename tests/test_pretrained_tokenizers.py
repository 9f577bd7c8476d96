"""Published tokenizers: the ids of the library for text, our ids for special tokens, and text never becomes a special token.

The tokenizers here are trained in memory, of the same kinds as the published ones. The oracle is transformers on the same file.
"""

import copy
import json
import pickle
import random
import sys
import unicodedata
from functools import partial

import pytest
import torch

from minflamingo import load
from minflamingo.data.sample import EOC, NoLoss, Sample, tokenize_sample

lib = pytest.importorskip("tokenizers")

from minflamingo.pretrained.tokenizers import (  # noqa: E402
    PretrainedTokenizer,
    base_from_gguf,
    idefics_tokenizer,
    openflamingo_tokenizer,
    read_base,
)

SENTENCES = [
    "This is a red circle, and this is a blue one.", "The dog's house isn't here; it's 1234 miles away.",
    "def f(x):\n    return x + 42\n", "naïve façade, über", "What colour is the circle? Answer: red.",
] * 3  # fmt: skip
TEXTS = [
    "", " ", "This is a red circle.", " leading and trailing  ", "two\n\nlines\tand a tab", "    return 42", "it's 2026",
    "naïve façade", "日本語 テキスト", "🦩 flamingo 👩‍👩‍👧", "\x00\x7f", "a\u0300 e\u0301", "x" * 300,
]  # fmt: skip
LIKE_SPECIAL = [
    "<image>", "<|endofchunk|>", "<|endoftext|>", "</s>", "<s>", "<unk>", "<pad>", "<PAD>", "<|padding|>",
    "<fake_token_around_image>", "<end_of_utterance>", "a </s> b", "a<image>b <image> c", " <|endoftext|>\n", "<0x0A>",
    "</s></s>", "x</s>y",
]  # fmt: skip


def random_strings(n: int) -> list[str]:
    """Strings of arbitrary code points, without lone surrogates."""
    rng = random.Random(0)
    codes = [[rng.randrange(rng.choice([128, 0x3000, 0x110000])) for _ in range(rng.randrange(12))] for _ in range(n)]
    return ["".join("?" if 0xD800 <= code < 0xE000 else chr(code) for code in word) for word in codes]


ALL_TEXTS = [*TEXTS, *LIKE_SPECIAL, *SENTENCES, *random_strings(200)]


def trained(*special: str, words=None, alphabet=None) -> lib.Tokenizer:
    """A byte-level BPE, trained on SENTENCES."""
    base = lib.Tokenizer(lib.models.BPE())
    base.pre_tokenizer = words or lib.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = lib.pre_tokenizers.ByteLevel.alphabet() if alphabet is None else alphabet
    options = dict(vocab_size=420, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False)
    base.train_from_iterator(SENTENCES, lib.trainers.BpeTrainer(**options))
    base.decoder = lib.decoders.ByteLevel()
    return base


gpt2 = partial(trained, "<|endoftext|>")


def neox() -> lib.Tokenizer:
    """As GPT-NeoX and MPT: NFC, and runs of spaces as added tokens that are ordinary text."""
    base = trained("<|endoftext|>", "<|padding|>")
    base.normalizer = lib.normalizers.NFC()
    base.add_tokens([lib.AddedToken(" " * n, normalized=True, special=False) for n in (8, 4, 3, 2)])
    return base


def llama(new: bool = False, rows: int = 0) -> lib.Tokenizer:
    """As Llama: ▁ for spaces and before each text, bytes for rare characters, and a <s> that the file puts before a text.

    Its merges join the characters of "</s>", as in some published files. `rows`: fill the vocabulary up to this number.
    """
    words = trained(words=lib.pre_tokenizers.Metaspace(), alphabet=list("<>/sunk"))
    model = json.loads(words.to_str())["model"]
    merges = [*map(tuple, model["merges"]), ("<", "/"), ("s", ">"), ("</", "s>"), ("<s", ">"), ("<", "s")]
    vocab = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"], "<unk"]
    vocab = list(dict.fromkeys([*vocab, *("".join(m) for m in merges)]))
    vocab += [f"filler{i}" for i in range(rows - len(vocab))]
    ids = {v: i for i, v in enumerate(vocab)}
    base = lib.Tokenizer(lib.models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if new:
        base.pre_tokenizer = lib.pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        base.normalizer = lib.normalizers.Sequence([lib.normalizers.Prepend("▁"), lib.normalizers.Replace(" ", "▁")])
    d = lib.decoders
    base.decoder = d.Sequence([d.Replace("▁", " "), d.ByteFallback(), d.Fuse(), d.Strip(" ", 1, 0)])
    base.add_special_tokens([lib.AddedToken(name, normalized=False) for name in ("<unk>", "<s>", "</s>")])
    base.post_processor = lib.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return base


def own(base: lib.Tokenizer) -> PretrainedTokenizer:
    """One token for begin, end and padding, and <image> after the vocabulary."""
    end = base.token_to_id("<|endoftext|>")
    return PretrainedTokenizer(base, pad_id=end, bos_id=end, eoc_id=end, image_id=base.get_vocab_size())


FAMILIES = {  # its base, our tokenizer, and what remains of a text after encode and decode
    "gpt2": (gpt2, own, lambda text: text),
    "neox": (neox, openflamingo_tokenizer, lambda text: unicodedata.normalize("NFC", text)),
    "llama": (llama, idefics_tokenizer, lambda text: text.replace("▁", " ")),
    "new llama": (lambda: llama(new=True), lambda base: idefics_tokenizer(base, instruct=True),
                  lambda text: text.replace("▁", " ").removeprefix(" ")),
}  # fmt: skip


@pytest.fixture(params=FAMILIES, scope="module")
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def tokenizer(family) -> PretrainedTokenizer:
    base, wrap, _ = FAMILIES[family]
    return wrap(base())


def equal(a: PretrainedTokenizer, b: PretrainedTokenizer) -> bool:
    return a.to_dict() == b.to_dict() and [a.encode(t) for t in ALL_TEXTS] == [b.encode(t) for t in ALL_TEXTS]


# ------------------------------------------------------------------------------------------------------ text is only text


def test_ordinary_text_has_the_ids_of_transformers(family, tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    FAMILIES[family][0]().save(str(tmp_path / "tokenizer.json"))
    oracle = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    for text in [*TEXTS, *SENTENCES, *random_strings(200)]:
        assert tokenizer.encode(text) == oracle.encode(text, add_special_tokens=False)


def test_text_never_becomes_a_special_token_and_comes_back(family, tokenizer):
    """Neither our special tokens nor those of the file. The first page of the module says what may change."""
    content = tokenizer.to_dict()
    special = {token["id"] for token in content["tokenizer"]["added_tokens"] if token["special"]}
    special |= {i for name, i in content.items() if name.endswith("_id")} - {None}
    for text in [*ALL_TEXTS, "▁", " ▁a"]:
        ids = tokenizer.encode(text)
        assert not special & set(ids) and all(0 <= i < tokenizer.vocab_size for i in ids), text
        assert tokenizer.decode(ids) == FAMILIES[family][2](text)
    assert tokenizer.decode(tokenizer.encode("a\ud800b\udc00")) == "a\ufffdb\ufffd"


def test_special_tokens_are_hidden_from_merges_and_words_of_the_file():
    """A file whose merges join the characters of "</s>"; and one in which "<image>" is an ordinary added word."""
    base = llama()
    base.encode_special_tokens = True
    assert 2 in base.encode("</s>").ids  # the library alone
    ids = idefics_tokenizer(base).encode("</s>")
    assert [base.id_to_token(i) for i in ids] == ["▁", "<", "/", "s", ">"]
    base = gpt2()
    base.add_tokens([lib.AddedToken("<image>", special=False, lstrip=True, rstrip=True)])
    tokenizer = PretrainedTokenizer(base, pad_id=0, bos_id=0, eoc_id=0, image_id=base.token_to_id("<image>"))
    ids = tokenizer.encode("a <image> b")
    assert tokenizer.image_id not in ids and tokenizer.decode(ids) == "a <image> b"


def test_text_that_only_a_special_token_can_express_is_refused():
    """A newline that ends chunks; and a character that a vocabulary without bytes does not have."""
    base = gpt2()
    tokenizer = PretrainedTokenizer(base, pad_id=0, bos_id=0, eoc_id=base.token_to_id("Ċ"), image_id=base.get_vocab_size())
    with pytest.raises(ValueError, match="no token but 'Ċ', which is a special token"):
        tokenizer.encode("a line\n")
    content = json.loads(llama().to_str())
    content["model"]["byte_fallback"] = False
    tokenizer = idefics_tokenizer(lib.Tokenizer.from_str(json.dumps(content)))
    assert tokenizer.decode(tokenizer.encode("red <unk>")) == "red <unk>"
    with pytest.raises(ValueError, match="no token but '<unk>'"):
        tokenizer.encode("red 日")


def test_nothing_is_added_cut_off_or_padded():
    """A file that was saved with a limit of 4 tokens does not cut texts here. The base stays as it was."""
    base = llama()
    expected = base.encode("This is a red circle.").ids
    base.enable_truncation(4)
    base.enable_padding(length=50)
    assert [1, *idefics_tokenizer(base).encode("This is a red circle.")] == expected and len(expected) > 5
    assert base.truncation["max_length"] == 4


# ------------------------------------------------------------------------------------------------------------------ decode


def test_special_tokens_unused_rows_and_parts_of_a_character(tokenizer):
    """The first two give no text. A text that ends inside of a character (🦩 is four tokens here) ends with U+FFFD."""
    ids, special = tokenizer.encode("red circle"), [tokenizer.pad_id, tokenizer.eoc_id, tokenizer.image_id]
    assert tokenizer.decode([*special, *ids, tokenizer.image_id + 30, *special]) == "red circle"
    n, ids = len(tokenizer.encode("red")), tokenizer.encode("red🦩")
    for more in (1, 2, 3):
        shown = tokenizer.decode(ids[: n + more])
        assert shown.startswith("red\ufffd") and set(shown[3:]) == {"\ufffd"}
    assert tokenizer.decode(ids) == "red🦩"


# ------------------------------------------------------------------------------------------------------ the published ids


def test_openflamingos_ids_come_after_the_base_as_in_transformers(tmp_path):
    """<|endofchunk|> n, <image> n + 1 and <PAD> n + 2."""
    base = neox()
    n, tokenizer = base.get_vocab_size(), openflamingo_tokenizer(base)
    assert (tokenizer.eoc_id, tokenizer.image_id, tokenizer.pad_id) == (n, n + 1, n + 2)
    assert (tokenizer.bos_id, tokenizer.vocab_size) == (None, n)

    transformers = pytest.importorskip("transformers")
    base.save(str(tmp_path / "tokenizer.json"))
    oracle = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    oracle.add_tokens(["<|endofchunk|>", "<image>"], special_tokens=True)
    oracle.add_special_tokens({"pad_token": "<PAD>"})
    ids = oracle.convert_tokens_to_ids(["<|endofchunk|>", "<image>", "<PAD>"])
    oracle.save_pretrained(tmp_path / "saved")  # a file that has them already
    for same in (tokenizer, openflamingo_tokenizer(read_base(tmp_path / "saved"))):
        assert [same.eoc_id, same.image_id, same.pad_id] == ids


def test_idefics_ids_come_after_those_of_llama():
    """32000 around images, 32001 <image>, 32002 the end of an utterance (instruct); <unk> is the padding, </s> the end."""
    base, names = llama(rows=32000), ("pad_id", "bos_id", "eoc_id", "around_image_id", "image_id")
    for instruct, ids in ((False, (0, 1, 2, 32000, 32001)), (True, (0, 1, 32002, 32000, 32001))):
        assert tuple(getattr(idefics_tokenizer(base, instruct=instruct), name) for name in names) == ids
    base.add_special_tokens([lib.AddedToken(name) for name in ("<fake_token_around_image>", "<image>", "<end_of_utterance>")])
    assert tuple(getattr(idefics_tokenizer(base, instruct=True), name) for name in names) == ids  # as in published files


def test_samples_are_tokenized_with_it():
    """GPT-NeoX has no <BOS>. IDEFICS has a token before and after each image, and one between two."""
    media = torch.zeros(1, 2, 3)
    tokenizer = own(gpt2())
    question, text = tokenizer.encode("<image>"), tokenizer.encode(" a circle")
    row = tokenize_sample(Sample([media, NoLoss("<image>"), " a circle", EOC]), tokenizer)
    assert row.ids == [tokenizer.bos_id, tokenizer.image_id, *question, *text, tokenizer.eoc_id]
    assert row.labels == [-100] * (2 + len(question)) + [*text, tokenizer.eoc_id]
    of_neox = openflamingo_tokenizer(neox())
    row = tokenize_sample(Sample([media, " a circle"]), of_neox)
    assert row.ids == [of_neox.image_id, *of_neox.encode(" a circle")]
    idefics = idefics_tokenizer(llama())
    around, i, a = idefics.around_image_id, idefics.image_id, idefics.encode("a")
    row = tokenize_sample(Sample([media, media, "a", media]), idefics)
    assert row.ids == [idefics.bos_id, around, i, around, i, around, *a, around, i, around]


@pytest.mark.parametrize("changes", [{"pad_id": "0"}, {"eoc_id": None}, {"pad_id": 500}, {"around_image_id": 500}])
def test_invalid_ids_are_refused(changes):
    with pytest.raises(ValueError, match="must be integers, and image_id unlike the others"):
        PretrainedTokenizer(gpt2(), **{"pad_id": 0, "bos_id": 0, "eoc_id": 0, "image_id": 500, **changes})


# -------------------------------------------------------------------------------------------------------------------- files


def test_a_saved_tokenizer_and_a_copy_for_a_worker_are_equal(tokenizer, tmp_path):
    """The library's own pickle would make special tokens of text again."""
    tokenizer.save(tmp_path / "tokenizer.json")
    assert equal(PretrainedTokenizer.load(tmp_path / "tokenizer.json"), tokenizer)
    assert equal(pickle.loads(pickle.dumps(tokenizer)), tokenizer) and equal(copy.deepcopy(tokenizer), tokenizer)


def test_a_damaged_file_is_refused_by_name(tmp_path):
    """Ours and the library's; and one whose added tokens have other ids, which the library would silently number anew."""
    whole, base = json.dumps(own(gpt2()).to_dict()), json.loads(neox().to_str())
    base["added_tokens"][-1]["id"] += 5
    path = tmp_path / "tokenizer.json"
    for text in ("", whole[: len(whole) // 2], "[1, 2]", '{"kind": "toy"}', whole.replace('"pad_id": 0', '"pad_id": "</s>"')):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"tokenizer\.json: not a valid tokenizer"):
            PretrainedTokenizer.load(path)
    for text, reason in (("", ""), ("{}", ""), (json.dumps(base), r".*'  ' has id \d+, but the next free id is \d+")):
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"tokenizer\.json: not a valid tokenizer, or damaged: {reason}"):
            read_base(tmp_path)


def gguf(base: lib.Tokenizer, pre: str, user_defined: tuple[str, ...] = ()) -> dict:
    """The metadata of a GGUF file with this vocabulary."""
    content = json.loads(base.to_str())
    tokens = sorted(base.get_vocab(), key=base.get_vocab().get)
    control = {t["content"] for t in content["added_tokens"] if t["special"]}
    types = [3 if t in control else 4 if t in user_defined else 1 for t in tokens]
    merges = [" ".join(merge) for merge in content["model"]["merges"]]
    described = {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": types, "merges": merges}
    return {f"tokenizer.ggml.{key}": value for key, value in described.items()}


def test_a_gguf_file_describes_the_same_tokenizer():
    """Control tokens are special, tokens that a user defined are text. In SmolLM each digit is a word."""
    base, p = trained("<|endoftext|>", "<|padding|>"), lib.pre_tokenizers
    base.add_tokens([lib.AddedToken("    ", normalized=False)])
    for pre in ("gpt-2", "smollm"):
        read = own(base_from_gguf(gguf(base, pre, user_defined=("    ",))))
        if pre == "smollm":
            assert base.encode(" 1234").tokens == ["Ġ1234"]
            base.pre_tokenizer = p.Sequence([p.Digits(individual_digits=True), p.ByteLevel(add_prefix_space=False)])
            assert base.encode(" 1234").tokens == ["Ġ", "1", "2", "3", "4"]
        assert [read.encode(text) for text in ALL_TEXTS] == [own(base).encode(text) for text in ALL_TEXTS]
        assert read.decode([0, 1, *read.encode("a    b")]) == "a    b"


@pytest.mark.parametrize("changes", [{"model": "llama"}, {"pre": "tekken"}, {"pre": None}])
def test_a_gguf_tokenizer_that_is_not_implemented_is_refused(changes):
    changes = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    with pytest.raises(ValueError, match="ggml.model is '.*' and pre .*; only 'gpt2' .* with pre one of gpt-2, "):
        base_from_gguf({**gguf(gpt2(), "gpt-2"), **changes})


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    monkeypatch.delitem(sys.modules, "minflamingo.pretrained.tokenizers")
    with pytest.raises(ImportError, match=r"pip install 'minflamingo\[real\]'"):
        load("openflamingo-3b")
