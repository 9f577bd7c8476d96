"""Published tokenizers: the library's ids for text, our ids for what is no text, and never one for the other.

The tokenizers here are made in memory, in the manner of the published ones; the oracle is transformers on the same file.
"""

from __future__ import annotations

import copy
import json
import pickle
import random
import sys
import unicodedata

import pytest
import torch
from conftest import picture, tiny_flamingo

from minflamingo import LoadedFlamingo, complete, load, save
from minflamingo.data.images import clip_preparation
from minflamingo.data.sample import EOC, Sample, Unscored, lay_out
from minflamingo.pretrained.tokenizers import (
    PretrainedTokenizer,
    base_from_gguf,
    idefics_tokenizer,
    openflamingo_tokenizer,
    read_base,
)

lib = pytest.importorskip("tokenizers")

SENTENCES = [
    "This is a red circle, and this is a blue one.", "The dog's house isn't here; it's 1234 miles away.",
    "def f(x):\n    return x + 42\n", "naïve façade, über", "What colour is the circle? Answer: red.",
] * 3  # fmt: skip
TEXTS = [
    "", " ", "This is a red circle.", " leading and trailing  ", "two\n\nlines\tand a tab", "    return 42", "it's 2026",
    "naïve façade", "日本語 テキスト", "🦩 flamingo 👩‍👩‍👧", "\x00\x7f", "a\u0300 e\u0301", "x" * 300,
]  # fmt: skip
SPECIAL_LOOKING = [
    "<image>", "<|endofchunk|>", "<|endoftext|>", "</s>", "<s>", "<unk>", "<pad>", "<PAD>", "<|padding|>",
    "<fake_token_around_image>", "<end_of_utterance>", "a </s> b", "a<image>b <image> c", " <|endoftext|>\n", "<0x0A>",
    "</s></s>", "x</s>y",
]  # fmt: skip


def trained(*special: str, words=None, alphabet=None) -> lib.Tokenizer:
    """A byte-level BPE that has read SENTENCES."""
    base = lib.Tokenizer(lib.models.BPE())
    base.pre_tokenizer = words or lib.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = lib.pre_tokenizers.ByteLevel.alphabet() if alphabet is None else alphabet
    trainer = lib.trainers.BpeTrainer(
        vocab_size=420, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    base.train_from_iterator(SENTENCES, trainer)
    base.decoder = lib.decoders.ByteLevel()
    return base


def gpt2() -> lib.Tokenizer:
    return trained("<|endoftext|>")


def neox() -> lib.Tokenizer:
    """GPT-NeoX's manner, which MPT shares: NFC, and runs of spaces as added tokens that are ordinary text."""
    base = trained("<|endoftext|>", "<|padding|>")
    base.normalizer = lib.normalizers.NFC()
    base.add_tokens([lib.AddedToken(" " * n, normalized=True, special=False) for n in (8, 4, 3, 2)])
    return base


def llama(legacy: bool = True, rows: int = 0) -> lib.Tokenizer:
    """Llama's manner: ▁ for spaces and before each text, bytes for strange letters, and a <s> that the file puts in front.

    Its merges join the letters of "</s>", as in some published files. `rows`: fill the vocabulary up to so many.
    """
    metaspace = lib.pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    words = trained(words=lib.pre_tokenizers.Metaspace(), alphabet=list("<>/sunk"))
    model = json.loads(words.to_str())["model"]
    vocab = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"], "</", "s>", "<s", "<unk"]
    merges = [*map(tuple, model["merges"]), ("<", "/"), ("s", ">"), ("</", "s>"), ("<s", ">"), ("<", "s")]
    vocab = list(dict.fromkeys([*vocab, *("".join(m) for m in merges)]))
    vocab += [f"filler{i}" for i in range(rows - len(vocab))]
    base = lib.Tokenizer(
        lib.models.BPE({v: i for i, v in enumerate(vocab)}, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if legacy:
        base.normalizer = lib.normalizers.Sequence([lib.normalizers.Prepend("▁"), lib.normalizers.Replace(" ", "▁")])
    else:
        base.pre_tokenizer = metaspace
    d = lib.decoders
    base.decoder = d.Sequence([d.Replace("▁", " "), d.ByteFallback(), d.Fuse(), d.Strip(" ", 1, 0)])
    base.add_special_tokens([lib.AddedToken(name, normalized=False) for name in ("<unk>", "<s>", "</s>")])
    base.post_processor = lib.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return base


def own(base: lib.Tokenizer, name: str = "<|endoftext|>") -> PretrainedTokenizer:
    """For a Flamingo of one's own: one token for begin, end and padding, <image> behind the vocabulary."""
    end, n = base.token_to_id(name), base.get_vocab_size()
    return PretrainedTokenizer(base, pad_id=end, bos_id=end, eoc_id=end, image_id=n)


FAMILIES = {
    "gpt2": lambda: own(gpt2()),
    "neox": lambda: openflamingo_tokenizer(neox()),
    "llama": lambda: idefics_tokenizer(llama()),
    "llama, new manner": lambda: idefics_tokenizer(llama(legacy=False), instruct=True),
}


@pytest.fixture(params=FAMILIES, scope="module")
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def tokenizer(family) -> PretrainedTokenizer:
    return FAMILIES[family]()


def strings_at_random(n: int) -> list[str]:
    """Strings of arbitrary code points, without halves of characters."""
    dice = random.Random(0)

    def letter() -> str:
        code = dice.choice([dice.randrange(128), dice.randrange(0x3000), dice.randrange(sys.maxunicode + 1)])
        return "?" if 0xD800 <= code < 0xE000 else chr(code)

    return ["".join(letter() for _ in range(dice.randrange(12))) for _ in range(n)]


def specials(tokenizer: PretrainedTokenizer) -> set[int]:
    ids = {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eoc_id, tokenizer.image_id, tokenizer.around_image_id}
    return ids - {None}


# ------------------------------------------------------------------------------------------------------------ text is text


BASES = {"gpt2": gpt2, "neox": neox, "llama": llama, "llama, new manner": lambda: llama(legacy=False)}


def test_ordinary_text_has_the_ids_that_transformers_gives_it(family, tokenizer, tmp_path):
    """Oracle: PreTrainedTokenizerFast around the same tokenizer.json."""
    transformers = pytest.importorskip("transformers")
    BASES[family]().save(str(tmp_path / "tokenizer.json"))
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    for text in [*TEXTS, *SENTENCES, *strings_at_random(200)]:
        assert tokenizer.encode(text) == theirs.encode(text, add_special_tokens=False)


def test_no_text_ever_becomes_a_special_token(tokenizer):
    """Neither ours nor those of the file: "<|endoftext|>" in a caption is thirteen letters."""
    of_the_file = {token["id"] for token in tokenizer.to_dict()["tokenizer"]["added_tokens"] if token["special"]}
    for text in [*SPECIAL_LOOKING, *TEXTS, *strings_at_random(200)]:
        ids = tokenizer.encode(text)
        assert not (specials(tokenizer) | of_the_file) & set(ids), text
        assert all(0 <= i < tokenizer.vocab_size for i in ids)


def test_merges_that_join_the_letters_of_a_special_token_are_undone():
    """As in some files of Llama: there the library makes one id of "</s>", and it is the end of the text."""
    base = llama()
    base.encode_special_tokens = True
    assert 2 in base.encode("</s>").ids
    ids = idefics_tokenizer(base).encode("</s>")
    assert [base.id_to_token(i) for i in ids] == ["▁", "<", "/", "s", ">"]


def test_a_special_token_that_the_file_calls_ordinary_is_special_all_the_same():
    """As in files to which somebody added "<image>" as a word. A word that swallows spaces must not swallow them here."""
    base = gpt2()
    base.add_tokens([lib.AddedToken("<image>", special=False, lstrip=True, rstrip=True)])
    image = base.token_to_id("<image>")
    tokenizer = PretrainedTokenizer(base, pad_id=0, bos_id=0, eoc_id=0, image_id=image)
    for text in ("<image>", "a <image> b", "<image><image>"):
        assert image not in tokenizer.encode(text) and tokenizer.decode(tokenizer.encode(text)) == text


def test_letters_that_only_a_special_token_stands_for_are_refused():
    """Whoever ends chunks with the newline of the vocabulary cannot have newlines in texts."""
    base = gpt2()
    newline = base.token_to_id("Ċ")
    tokenizer = PretrainedTokenizer(base, pad_id=0, bos_id=0, eoc_id=newline, image_id=base.get_vocab_size())
    assert tokenizer.decode(tokenizer.encode("no such letter")) == "no such letter"
    with pytest.raises(ValueError, match="only 'Ċ' stands for, and that is a special token"):
        tokenizer.encode("a line\n")


def test_a_character_that_no_token_spells_is_refused():
    """A vocabulary without bytes has <unk> for it, which pads in IDEFICS; its letters would be another text."""
    content = json.loads(llama().to_str())
    content["model"]["byte_fallback"] = False
    tokenizer = idefics_tokenizer(lib.Tokenizer.from_str(json.dumps(content)))
    assert tokenizer.decode(tokenizer.encode("red <unk>")) == "red <unk>"
    with pytest.raises(ValueError, match="only '<unk>' stands for"):
        tokenizer.encode("red 日")


def test_nothing_is_added_cut_off_or_filled_up():
    """<BOS> is the sample's own business. A file that was saved while it cut texts at 4 tokens does not do so here."""
    base = llama()
    assert base.encode("This is a red circle.").ids[0] == 1  # the library's own manner
    expected = base.encode("This is a red circle.").ids[1:]
    base.enable_truncation(4)
    base.enable_padding(length=50)
    assert idefics_tokenizer(base).encode("This is a red circle.") == expected and len(expected) > 4
    assert base.truncation["max_length"] == 4  # the base stays as it was


def test_runs_of_spaces_that_were_added_to_a_vocabulary_are_text():
    """GPT-NeoX and MPT: four spaces are one token."""
    base = neox()
    tokenizer = openflamingo_tokenizer(base)
    four = base.token_to_id("    ")
    assert tokenizer.encode("    return") == [four, *tokenizer.encode("return")]
    assert tokenizer.decode([four]) == "    "


def test_only_text_is_encoded(tokenizer):
    """An id list by mistake is named as such."""
    with pytest.raises(TypeError, match="expected str, got list"):
        tokenizer.encode([1, 2])


# ---------------------------------------------------------------------------------------------------------- and comes back


def test_any_text_survives_the_round_trip_as_the_first_page_says(family, tokenizer):
    """To the letter; NFC composes; Llama's ▁ is a space, and in newer files a first space is the one that is always there."""
    as_read = {
        "gpt2": lambda text: text,
        "neox": lambda text: unicodedata.normalize("NFC", text),
        "llama": lambda text: text.replace("▁", " "),
        "llama, new manner": lambda text: text.replace("▁", " ").removeprefix(" "),
    }[family]
    for text in [*TEXTS, *SPECIAL_LOOKING, *strings_at_random(300), "▁", " ▁a"]:
        assert tokenizer.decode(tokenizer.encode(text)) == as_read(text)


def test_half_a_character_is_read_as_the_replacement_character(tokenizer):
    """A lone surrogate; the library would raise. A whole character is none of that."""
    assert tokenizer.decode(tokenizer.encode("a\ud800b\udc00")) == "a\ufffdb\ufffd"
    assert tokenizer.decode(tokenizer.encode("\U0001f9a9")) == "🦩"


def test_a_continuation_of_llama_loses_its_first_space():
    """The first page says so: the space before each text is taken away again, whoever put it there."""
    tokenizer = idefics_tokenizer(llama())
    both, first = tokenizer.encode("red circle"), tokenizer.encode("red")
    assert both[: len(first)] == first
    assert tokenizer.decode(both[len(first) :]) == "circle"


def test_special_tokens_and_unused_rows_leave_nothing_in_the_text(tokenizer):
    """They exist only as ids. A published table is often longer than its vocabulary; an untrained model may say those rows."""
    ids = tokenizer.encode("red circle")
    assert tokenizer.decode([*sorted(specials(tokenizer)), *ids, *sorted(specials(tokenizer))]) == "red circle"
    content = {**tokenizer.to_dict(), "vocab_size": tokenizer.vocab_size + 30}
    longer = PretrainedTokenizer.from_dict(content)
    assert longer.decode([longer.vocab_size - 1, *ids, longer.vocab_size - 30]) == "red circle"


def test_an_id_outside_the_vocabulary_is_refused(tokenizer):
    """The last is <image> or the language model's last row."""
    last = max(tokenizer.image_id, tokenizer.vocab_size - 1)
    tokenizer.decode([last])
    for i in (-1, last + 1):
        with pytest.raises(ValueError, match=f"id {i} is outside 0…{last}"):
            tokenizer.decode([i])


def test_a_text_that_stops_in_the_middle_of_a_character_ends_in_the_replacement_character(tokenizer):
    """🦩 is four bytes, and four tokens here: whoever streams sees U+FFFD until the last one is there."""
    before = tokenizer.encode("red")
    ids = tokenizer.encode("red🦩")
    assert len(ids) == len(before) + 4
    for n in (1, 2, 3):
        shown = tokenizer.decode(ids[: len(before) + n])
        assert shown.startswith("red\ufffd") and set(shown[3:]) == {"\ufffd"}
    assert tokenizer.decode(ids) == "red🦩"
    assert tokenizer.decode(ids[len(before) + 1 :]).strip("\ufffd") == ""


# --------------------------------------------------------------------------------------------------- the published ids


def test_openflamingos_ids_stand_behind_the_base():
    """<|endofchunk|>, <image>, and <PAD> where the base has none: n, n + 1, n + 2. <image> is then inside the table."""
    base = neox()
    n = base.get_vocab_size()
    tokenizer = openflamingo_tokenizer(base)
    assert (tokenizer.eoc_id, tokenizer.image_id, tokenizer.pad_id) == (n, n + 1, n + 2)
    assert (tokenizer.bos_id, tokenizer.vocab_size) == (None, n + 3)
    assert openflamingo_tokenizer(base, vocab_size=n + 100).vocab_size == n + 100


def test_openflamingo_takes_the_padding_token_of_a_base_that_has_one():
    """OPT: <pad> is 1 and </s> begins. Then <image> is the last, behind the table."""
    base = trained("<s>", "<pad>", "</s>", "<unk>")
    n = base.get_vocab_size()
    tokenizer = openflamingo_tokenizer(base, bos="</s>", pad="<pad>")
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eoc_id, tokenizer.image_id) == (1, 2, n, n + 1)
    assert tokenizer.vocab_size == n + 1
    with pytest.raises(ValueError, match=r"no token '<\|endoftext\|>' among its"):
        openflamingo_tokenizer(base, bos="<|endoftext|>")


def test_openflamingos_ids_are_those_that_transformers_gives(tmp_path):
    """Oracle: the calls by which OpenFlamingo adds them."""
    transformers = pytest.importorskip("transformers")
    neox().save(str(tmp_path / "tokenizer.json"))
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    theirs.add_tokens(["<|endofchunk|>", "<image>"], special_tokens=True)
    theirs.add_special_tokens({"pad_token": "<PAD>"})
    ours = openflamingo_tokenizer(read_base(tmp_path))
    names = ["<|endofchunk|>", "<image>", "<PAD>"]
    assert [ours.eoc_id, ours.image_id, ours.pad_id] == theirs.convert_tokens_to_ids(names)
    assert ours.vocab_size == len(theirs)
    # and a file that has them already says the same
    theirs.save_pretrained(tmp_path / "saved")
    again = openflamingo_tokenizer(read_base(tmp_path / "saved"))
    assert (again.eoc_id, again.image_id, again.pad_id) == (ours.eoc_id, ours.image_id, ours.pad_id)
    assert again.encode("a <image> b<|endofchunk|>") == ours.encode("a <image> b<|endofchunk|>")


def test_idefics_ids_stand_behind_llamas_32000():
    """32000 around images, 32001 <image>, 32002 the end of an utterance in the instruct models; <unk> pads, </s> ends."""
    base = llama(rows=32000)
    tokenizer = idefics_tokenizer(base)
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eoc_id) == (0, 1, 2)
    assert (tokenizer.around_image_id, tokenizer.image_id, tokenizer.vocab_size) == (32000, 32001, 32001)
    instruct = idefics_tokenizer(base, instruct=True)
    assert (instruct.pad_id, instruct.bos_id, instruct.eoc_id) == (0, 1, 32002)
    assert (instruct.around_image_id, instruct.image_id, instruct.vocab_size) == (32000, 32001, 32003)
    # the published folders have them in the file already
    base.add_special_tokens([lib.AddedToken(name) for name in ("<fake_token_around_image>", "<image>", "<end_of_utterance>")])
    assert {**idefics_tokenizer(base, instruct=True).to_dict(), "tokenizer": 0} == {**instruct.to_dict(), "tokenizer": 0}
    with pytest.raises(ValueError, match="no token '<unk>'"):
        idefics_tokenizer(gpt2())


def test_a_sample_is_laid_out_with_it():
    """The interface is that of the toy tokenizer (`data/sample.py`): <BOS> <image> ␣a ␣circle <EOC>."""
    tokenizer = openflamingo_tokenizer(neox(), bos="<|endoftext|>")
    row = lay_out(Sample([torch.zeros(1, 2, 3), Unscored("<image>"), " a circle", EOC]), tokenizer)
    letters, text = tokenizer.encode("<image>"), tokenizer.encode(" a circle")
    assert row.ids == [tokenizer.bos_id, tokenizer.image_id, *letters, *text, tokenizer.eoc_id]
    assert row.labels == [-100] * (2 + len(letters)) + [*text, tokenizer.eoc_id]
    without = openflamingo_tokenizer(neox())  # MPT and GPT-NeoX put nothing before a text
    row = lay_out(Sample([torch.zeros(1, 2, 3), " a circle", EOC]), without)
    assert row.ids == [tokenizer.image_id, *text, tokenizer.eoc_id]


def test_idefics_has_a_token_on_both_sides_of_an_image_and_one_between_two():
    """<s> <fake> <image> <fake> <image> <fake> ␣a: as its own processor writes it."""
    tokenizer = idefics_tokenizer(llama(rows=32000))
    image, text = torch.zeros(1, 2, 3), tokenizer.encode("a")
    row = lay_out(Sample([image, image, "a", image]), tokenizer)
    around, i = tokenizer.around_image_id, tokenizer.image_id
    assert row.ids == [tokenizer.bos_id, around, i, around, i, around, *text, around, i, around]
    assert [label for label in row.labels if label != -100] == text


def test_a_flamingo_with_it_is_saved_loaded_and_completes(tmp_path):
    """`load` sees from the file which tokenizer it is."""
    tokenizer = own(gpt2())
    flamingo = LoadedFlamingo(tiny_flamingo(lm={"vocab_size": tokenizer.vocab_size}), tokenizer, clip_preparation(8))
    save(flamingo, tmp_path)
    loaded = load(tmp_path)
    assert same(loaded.tokenizer, tokenizer) and loaded.prepare == flamingo.prepare
    prompt = [picture(1)[0], " a circle<|endoftext|>", EOC, picture(2)[0], " a"]
    assert complete(loaded, prompt, max_new_tokens=5) == complete(flamingo, prompt, max_new_tokens=5) != ""


WRONG_IDS = {
    "no number": ({"pad_id": "0"}, "pad_id is '0'"),
    "below zero": ({"bos_id": -1}, "bos_id is -1"),
    "nothing": ({"eoc_id": None}, "eoc_id is None"),
    "image and pad": ({"pad_id": 500}, "image_id and pad_id are both 500"),
    "image and around": ({"around_image_id": 500}, "image_id and around_image_id are both 500"),
    "too few rows": ({"vocab_size": 5}, "vocab_size is 5, but there are tokens up to id"),
}


@pytest.mark.parametrize("changes, said", WRONG_IDS.values(), ids=WRONG_IDS)
def test_ids_that_cannot_be_are_refused(changes, said):
    """When the tokenizer is made."""
    with pytest.raises(ValueError, match=said):
        PretrainedTokenizer(gpt2(), **{"pad_id": 0, "bos_id": 0, "eoc_id": 0, "image_id": 500, **changes})


# ----------------------------------------------------------------------------------------------------------------- on disk


def same(a: PretrainedTokenizer, b: PretrainedTokenizer) -> bool:
    texts = [*TEXTS, *SPECIAL_LOOKING]
    return a.to_dict() == b.to_dict() and [a.encode(t) for t in texts] == [b.encode(t) for t in texts]


def test_what_is_saved_is_what_is_loaded(tokenizer, tmp_path):
    """The same ids for the same text, special-looking text too, and the same special ids."""
    tokenizer.save(tmp_path / "tokenizer.json")
    assert same(PretrainedTokenizer.load(tmp_path / "tokenizer.json"), tokenizer)


def test_a_copy_for_a_worker_knows_that_letters_are_letters(tokenizer):
    """The library's own pickle forgets it: there "<|endoftext|>" would end the text."""
    assert same(pickle.loads(pickle.dumps(tokenizer)), tokenizer)
    assert same(copy.deepcopy(tokenizer), tokenizer)


def damaged(content: dict) -> dict[str, bytes]:
    def changed(**changes) -> bytes:
        return json.dumps({**content, **changes}).encode()

    whole = changed()
    without_ids = {k: v for k, v in content.items() if k != "eoc_id"}
    model = {**content["tokenizer"]["model"], "merges": [["no such", "tokens"]]}
    added = [{**content["tokenizer"]["added_tokens"][0], "id": 10**6}]
    return {
        "empty": b"", "half": whole[: len(whole) // 2], "not text": b"\xff\xfe\x00", "a list": b"[1, 2]",
        "a toy's": changed(kind="toy"), "no kind": b"{}", "no ids": json.dumps(without_ids).encode(),
        "a word for an id": changed(pad_id="</s>"), "no tokenizer": changed(tokenizer=None),
        "nothing in it": changed(tokenizer={}),
        "merges of nothing": changed(tokenizer={**content["tokenizer"], "model": model}),
        "an id it cannot have": changed(tokenizer={**content["tokenizer"], "added_tokens": added}),
    }  # fmt: skip


@pytest.mark.parametrize("what", damaged(own(gpt2()).to_dict()))
def test_a_file_that_is_no_tokenizer_is_refused_by_name(what, tmp_path):
    """The error names the file."""
    path = tmp_path / "other.json"
    path.write_bytes(damaged(own(gpt2()).to_dict())[what])
    with pytest.raises(ValueError, match=r"other\.json: not a tokenizer that PretrainedTokenizer\.save wrote"):
        PretrainedTokenizer.load(path)


def test_an_added_token_that_would_silently_get_another_id_is_refused(tmp_path):
    """The library numbers added tokens anew; a file with a gap would mean other rows of the table."""
    content = json.loads(neox().to_str())
    content["added_tokens"][-1]["id"] += 5
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"tokenizer\.json: .*'  ' has id \d+ in the file, where \d+ is the next that is free"):
        read_base(tmp_path)


# --------------------------------------------------------------------------------------------------------- published files


def test_a_folder_with_vocab_and_merges_is_read_like_one_with_a_whole_tokenizer(tmp_path):
    """GPT-2 and OPT were published so. The same ids from both, and from the file itself."""
    base = gpt2()
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    base.save(str(tmp_path / "whole" / "tokenizer.json"))
    base.model.save(str(tmp_path / "parts"))
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == ["merges.txt", "vocab.json"]
    whole, file, parts = (read_base(tmp_path / name) for name in ("whole", "whole/tokenizer.json", "parts"))
    expected = own(base)
    for read in (whole, file, parts):
        tokenizer = own(read)
        for text in [*TEXTS, *SPECIAL_LOOKING]:
            assert tokenizer.encode(text) == expected.encode(text)
        assert tokenizer.decode([tokenizer.eoc_id, *tokenizer.encode(" red")]) == " red"


def test_files_that_are_missing_damaged_or_not_read_are_named(tmp_path):
    """Which file, and what to do."""
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json there, nor vocab\.json and merges\.txt"):
        read_base(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere: no tokenizer\.json"):
        read_base(tmp_path / "nowhere")
    gpt2().model.save(str(tmp_path))
    (tmp_path / "added_tokens.json").write_text('{"<image>": 420}')
    with pytest.raises(ValueError, match=r"added_tokens\.json: added tokens are read from a tokenizer\.json only"):
        read_base(tmp_path)
    (tmp_path / "added_tokens.json").unlink()
    (tmp_path / "merges.txt").write_text("no such\nsuch merge\n")
    with pytest.raises(ValueError, match=f"{tmp_path.name}: not a tokenizer, or a damaged one"):
        read_base(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer, or a damaged one"):
        read_base(tmp_path)


def gguf(base: lib.Tokenizer, pre: str, user_defined: tuple[str, ...] = ()) -> dict:
    """The metadata of a GGUF file with this vocabulary."""
    content = json.loads(base.to_str())
    tokens = sorted(base.get_vocab(), key=base.get_vocab().get)
    control = {t["content"] for t in content["added_tokens"] if t["special"]}
    sorts = [3 if t in control else 4 if t in user_defined else 1 for t in tokens]
    merges = [" ".join(merge) for merge in content["model"]["merges"]]
    described = {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": sorts, "merges": merges}
    return {f"tokenizer.ggml.{key}": value for key, value in described.items()}


def test_a_gguf_file_describes_the_same_tokenizer():
    """The same ids; control tokens are special, tokens that a user defined are text."""
    base = trained("<|endoftext|>", "<|padding|>")
    base.add_tokens([lib.AddedToken("    ", normalized=False)])
    ours, read = own(base), own(base_from_gguf(gguf(base, "gpt-2", user_defined=("    ",))))
    for text in [*TEXTS, *SPECIAL_LOOKING, *SENTENCES, *strings_at_random(100)]:
        assert read.encode(text) == ours.encode(text)
    assert read.decode([0, 1, *read.encode("a    b")]) == "a    b"
    assert base.token_to_id("    ") in read.encode("a    b")


def test_a_gguf_file_says_whether_digits_are_words_of_their_own():
    """SmolLM reads 1234 as 1, 2, 3, 4 and no space before; GPT-2 reads it as learned. Oracle: that cutter of the library."""
    p = lib.pre_tokenizers
    base = gpt2()
    assert base.encode(" 1234").tokens == ["Ġ1234"]
    smollm = own(base_from_gguf(gguf(base, "smollm")))
    base.pre_tokenizer = p.Sequence([p.Digits(individual_digits=True), p.ByteLevel(add_prefix_space=False)])
    assert base.encode(" 1234").tokens == ["Ġ", "1", "2", "3", "4"]
    for text in [*TEXTS, *SENTENCES, *strings_at_random(100)]:
        assert smollm.encode(text) == base.encode(text).ids


WRONG_GGUF = {
    "another model": ({"model": "llama"}, "ggml.model is 'llama'; only 'gpt2'"),
    "unknown words": ({"pre": "tekken"}, "ggml.pre is 'tekken'; known are gpt-2, "),
    "no words": ({"pre": None}, "ggml.pre is missing"),
    "no merges": ({"merges": None}, "ggml.merges is missing"),
    "a token twice": ({"tokens": ["a", "b", "a"], "token_type": [1, 1, 1]}, "3 tokens, 2 of them different"),
    "sorts too few": ({"token_type": [1]}, "and 1 sorts"),
    "merges of nothing": ({"merges": ["no such"]}, "GGUF metadata: not a tokenizer, or a damaged one"),
}


@pytest.mark.parametrize("changes, said", WRONG_GGUF.values(), ids=WRONG_GGUF)
def test_a_gguf_file_that_cannot_be_followed_is_refused(changes, said):
    """Not read by guesswork."""
    changes = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    metadata = {k: v for k, v in {**gguf(gpt2(), "gpt-2"), **changes}.items() if v is not None}
    with pytest.raises(ValueError, match=said):
        base_from_gguf(metadata)


def test_without_the_library_the_error_says_what_to_install(monkeypatch, tmp_path):
    """The default install has no `tokenizers`; importing this module needs none."""
    own(gpt2()).save(tmp_path / "tokenizer.json")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for read in (read_base, PretrainedTokenizer.load):
        with pytest.raises(ImportError, match=r"pip install minflamingo\[real\]"):
            read(tmp_path / "tokenizer.json")
    metadata = gguf_of_nothing()
    with pytest.raises(ImportError, match=r"pip install minflamingo\[real\]"):
        base_from_gguf(metadata)


def gguf_of_nothing() -> dict:
    described = {"model": "gpt2", "pre": "gpt-2", "tokens": [], "token_type": [], "merges": []}
    return {f"tokenizer.ggml.{key}": value for key, value in described.items()}
