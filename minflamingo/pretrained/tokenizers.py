"""The tokenizers of published language models, with the interface of `minflamingo/tokenizer.py`.

The `tokenizers` library does the work. We add the ids that are not text:

    base = read_base("RedPajama-INCITE-Base-3B-v1")    # a folder with tokenizer.json, or with vocab.json and merges.txt
    tokenizer = openflamingo_tokenizer(base)           # 50277 tokens, so <|endofchunk|> is 50277, <image> 50278, <PAD> 50279
    tokenizer.encode("<image> a cat<|endoftext|>")     # angle brackets and letters; no id of these is special

Text is only text. The library would turn the characters "<|endoftext|>" into the id that ends a text, and put a <BOS> before
each text if the file says so. Neither happens here: special tokens are given by their ids. decode(encode(text)) is the same
text, with three exceptions. GPT-NeoX and MPT (NFC): e + ´ become é. Llama: "▁" (U+2581) becomes a space, and newer files lose
one space at the start. Everywhere half a character (a lone surrogate, which no text file can contain) becomes U+FFFD.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

try:
    import tokenizers
except ImportError:
    raise ImportError("a published tokenizer needs the tokenizers library: pip install 'minflamingo[real]'") from None

SPECIAL = ("pad_id", "bos_id", "eoc_id", "image_id", "around_image_id")
SURROGATE = re.compile("[\ud800-\udfff]")


class PretrainedTokenizer:
    """A published tokenizer, with the special tokens of a Flamingo.

    Args:
        base: from `read_base` or `base_from_gguf`; it is copied.
        pad_id, bos_id, eoc_id: may be the same token of the base. bos_id None: texts have no first token.
        image_id: different from all others, and usually after the vocabulary.
        around_image_id: a token that comes before and after each image (IDEFICS), or None.
        vocab_size: rows of the LM's embedding table, which is often longer than the list of tokens. None: up to the largest id,
            without `<image>` if that is the last one.
    """

    def __init__(
        self, base: tokenizers.Tokenizer, *, pad_id: int, bos_id: int | None, eoc_id: int, image_id: int,
        around_image_id: int | None = None, vocab_size: int | None = None,
    ):  # fmt: skip
        self.pad_id, self.bos_id, self.eoc_id, self.image_id = pad_id, bos_id, eoc_id, image_id
        self.around_image_id = around_image_id
        given = {name: getattr(self, name) for name in SPECIAL}
        given = {name: i for name, i in given.items() if i is not None or name not in ("bos_id", "around_image_id")}
        for name, i in given.items():
            if type(i) is not int or i < 0 or (i == image_id and name != "image_id"):
                raise ValueError(f"tokenizer: {name} is {i!r}; expected an integer, 0 or more, unlike image_id ({image_id!r})")
        content = json.loads(base.to_str())
        content.update(truncation=None, padding=None, post_processor=None)  # these would cut texts or add tokens
        for token in content["added_tokens"]:
            token["special"] |= token["id"] in given.values()
        self._base = parse(json.dumps(content))
        self._base.encode_special_tokens = True  # their characters are ordinary text
        self._hidden = {*given.values(), *(t["id"] for t in content["added_tokens"] if t["special"])}  # not shown by decode
        model = content["model"]
        self._unknown = model.get("unk_id", self._base.token_to_id(model.get("unk_token") or ""))
        known = self._base.get_vocab(with_added_tokens=True).values()
        least = max((i for i in known if i not in given.values()), default=-1) + 1
        self.vocab_size = max({least - 1, *given.values()} - {image_id}) + 1 if vocab_size is None else vocab_size
        if type(self.vocab_size) is not int or self.vocab_size < least:
            raise ValueError(f"tokenizer: vocab_size is {self.vocab_size!r}, but there are tokens up to id {least - 1}")

    def encode(self, text: str) -> list[int]:
        """Text -> ids, never a special one. Raises ValueError if the vocabulary has no token for a character."""
        if not isinstance(text, str):
            raise TypeError(f"encode: expected str, got {type(text).__name__}")
        ids = self._base.encode(SURROGATE.sub("\ufffd", text)).ids
        return [j for i in ids for j in (self._spelled(i) if i in self._hidden else [i])]

    def _spelled(self, special: int) -> list[int]:
        """Some files of Llama merge the characters of "</s>" like those of a word. Then return them one by one."""
        name = self._base.id_to_token(special)
        letters = [self._base.token_to_id(letter) for letter in name]
        if special == self._unknown or special in letters or None in letters:
            raise ValueError(f"encode: a part of the text has no token but {name!r}, which is a special token")
        return letters

    def decode(self, ids: Iterable[int]) -> str:
        """Ids -> text. Special tokens and unused rows give no text; bytes that are not valid UTF-8 become U+FFFD."""
        ids, last = [int(i) for i in ids], max(self.vocab_size - 1, self.image_id)
        for i in ids:
            if not 0 <= i <= last:
                raise ValueError(f"decode: id {i} is outside 0...{last}")
        return self._base.decode([i for i in ids if i not in self._hidden], skip_special_tokens=False)

    def to_dict(self) -> dict:
        ids = {name: getattr(self, name) for name in (*SPECIAL, "vocab_size")}
        return {"kind": "pretrained", **ids, "tokenizer": json.loads(self._base.to_str())}

    @classmethod
    def from_dict(cls, content: Mapping) -> PretrainedTokenizer:
        if content["kind"] != "pretrained":
            raise ValueError(f"kind is {content['kind']!r}, not 'pretrained'")
        return cls(parse(json.dumps(content["tokenizer"])), **{name: content[name] for name in (*SPECIAL, "vocab_size")})

    def __reduce__(self):  # the library's own pickle forgets `encode_special_tokens`
        return PretrainedTokenizer.from_dict, (self.to_dict(),)

    def save(self, path: str | Path) -> None:
        """Write one JSON file: the library's `tokenizer.json` and our ids."""
        Path(path).write_text(json.dumps(self.to_dict(), ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> PretrainedTokenizer:
        """Read the file of `save`. Raises ValueError if it is damaged or another file."""
        return reading(path, lambda: cls.from_dict(json.loads(Path(path).read_bytes())))


def reading(where: str | Path, read):
    """read(), with the name of the file in the error."""
    try:
        return read()
    except Exception as error:  # the library raises nothing narrower
        reason = f"{type(error).__name__}: {error}".split("\n")[0][:200]
        raise ValueError(f"{where}: not a valid tokenizer, or damaged: {reason}") from None


def parse(text: str) -> tokenizers.Tokenizer:
    """The content of a `tokenizer.json`. The library numbers added tokens itself, and is silent if the file has other ids."""
    base = tokenizers.Tokenizer.from_str(text)
    for token in json.loads(text)["added_tokens"]:
        if (i := base.token_to_id(token["content"])) != token["id"]:
            raise ValueError(f"the token {token['content']!r} has id {token['id']} in the file, but the next free id is {i}")
    return base


def read_base(path: str | Path) -> tokenizers.Tokenizer:
    """A `tokenizer.json`, or a folder that contains it, or `vocab.json` and `merges.txt` (byte-level BPE: GPT-2, OPT).

    Raises:
        FileNotFoundError: these files are missing. ValueError: a file is damaged, or added_tokens.json would be ignored.
    """
    folder, whole = Path(path), Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
    vocab, merges, added = (folder / name for name in ("vocab.json", "merges.txt", "added_tokens.json"))
    if whole.is_file():
        return reading(whole, lambda: parse(whole.read_text(encoding="utf-8")))
    if not (vocab.is_file() and merges.is_file()):
        raise FileNotFoundError(f"{path}: neither tokenizer.json nor vocab.json and merges.txt exist there")
    if added.is_file():
        raise ValueError(f"{added}: added tokens are only read from a tokenizer.json; write one, or remove this file")
    return reading(path, lambda: byte_level(tokenizers.models.BPE.from_file(str(vocab), str(merges))))


def byte_level(bpe: tokenizers.models.BPE, single_digits: bool = False) -> tokenizers.Tokenizer:
    """GPT-2's method: words with the space before them -> bytes -> merged pairs. `single_digits`: each digit is a word."""
    base = tokenizers.Tokenizer(bpe)
    words = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
    base.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([digits, words]) if single_digits else words
    base.decoder = tokenizers.decoders.ByteLevel()
    return base


# `tokenizer.ggml.pre` -> is each digit a word? (The names are those of llama.cpp.)
GGUF_WORDS = {"gpt-2": False, "mpt": False, "olmo": False, "phi-2": False, "smollm": True, "starcoder": True, "refact": True}
GGUF_CONTROL, GGUF_USER_DEFINED = 3, 4  # types of tokens in `tokenizer.ggml.token_type`


def base_from_gguf(metadata: Mapping[str, object]) -> tokenizers.Tokenizer:
    """The tokenizer in the metadata of a GGUF file. Raises ValueError if keys are missing, or its kind is not implemented."""
    keys = ("model", "pre", "tokens", "token_type", "merges")
    model, pre, tokens, types, merges = (metadata.get(f"tokenizer.ggml.{key}") for key in keys)
    if model != "gpt2" or pre not in GGUF_WORDS:
        known = f"'gpt2' (byte-level BPE) with pre one of {', '.join(GGUF_WORDS)}"
        raise ValueError(f"GGUF metadata: tokenizer.ggml.model is {model!r} and pre {pre!r}; only {known} is implemented")
    if not (tokens and types and merges) or not len(set(tokens)) == len(tokens) == len(types):
        raise ValueError("GGUF metadata: tokens, token_type or merges are missing, repeated, or of different lengths")
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    vocab = {token: i for i, token in enumerate(tokens)}
    base = reading("GGUF metadata", lambda: byte_level(tokenizers.models.BPE(vocab, pairs), GGUF_WORDS[pre]))
    for token, kind in zip(tokens, types):
        if kind in (GGUF_CONTROL, GGUF_USER_DEFINED):
            base.add_tokens([tokenizers.AddedToken(token, special=kind == GGUF_CONTROL, normalized=False)])
    return base


def openflamingo_tokenizer(
    base: tokenizers.Tokenizer, *, bos: str | None = None, pad: str | None = None, vocab_size: int | None = None
) -> PretrainedTokenizer:
    """OpenFlamingo's ids: after the n tokens of the base `<|endofchunk|>` n, `<image>` n + 1 and, without `pad`, `<PAD>` n + 2.

    bos is what comes before a text: None for GPT-NeoX and MPT, "</s>" for OPT (with pad="<pad>"), "<s>" for Llama.
    """
    eoc_id, image_id, pad_id = added_ids(base, "<|endofchunk|>", "<image>", "<PAD>")
    return PretrainedTokenizer(
        base, pad_id=pad_id if pad is None else id_of(base, pad), bos_id=None if bos is None else id_of(base, bos),
        eoc_id=eoc_id, image_id=image_id, vocab_size=vocab_size,
    )  # fmt: skip


def idefics_tokenizer(base: tokenizers.Tokenizer, *, instruct: bool = False) -> PretrainedTokenizer:
    """IDEFICS' ids: after the 32000 tokens of Llama `<fake_token_around_image>` 32000, `<image>` 32001.

    A chunk ends with Llama's `</s>` (2), in the instruct models with `<end_of_utterance>` (32002). `<PAD>` is `<unk>` (0).
    """
    around, image_id, utterance = added_ids(base, "<fake_token_around_image>", "<image>", "<end_of_utterance>")
    pad_id, bos_id, eos_id = (id_of(base, name) for name in ("<unk>", "<s>", "</s>"))
    eoc_id = utterance if instruct else eos_id
    return PretrainedTokenizer(base, pad_id=pad_id, bos_id=bos_id, eoc_id=eoc_id, image_id=image_id, around_image_id=around)


def added_ids(base: tokenizers.Tokenizer, *names: str) -> list[int]:
    """The ids of `names`: those in the file, or else the next free ones, in this order."""
    free = itertools.count(base.get_vocab_size())
    return [next(free) if (i := base.token_to_id(name)) is None else i for name in names]


def id_of(base: tokenizers.Tokenizer, name: str) -> int:
    if (i := base.token_to_id(name)) is None:
        raise ValueError(f"tokenizer: there is no token {name!r} among its {base.get_vocab_size()} tokens")
    return i
