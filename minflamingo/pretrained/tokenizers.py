"""The tokenizers of published language models, behind the interface of `minflamingo/tokenizer.py`.

The work is done by the `tokenizers` library (`pip install minflamingo[real]`); ours are the ids that are not text:

    base = read_base("RedPajama-INCITE-Base-3B-v1")    # a folder with tokenizer.json, or with vocab.json and merges.txt
    tokenizer = openflamingo_tokenizer(base)           # 50277 tokens, so <|endofchunk|> is 50277, <image> 50278, <PAD> 50279
    tokenizer.encode("<image> a cat<|endoftext|>")     # words about angle brackets: no id of these is special

Text is only text. The library would turn the letters "<|endoftext|>" into the end of the text, and put a <BOS> before it
where the file says so; here neither happens, whatever the file says. Whoever wants a special token writes its id.

What comes back from `decode(encode(text))`:

    byte-level BPE (GPT-2, OPT, SmolLM)    any text, to the letter
    the same behind NFC (GPT-NeoX, MPT)    any text, with e + ´ composed to é
    Llama (SentencePiece)                  any text, but "▁" (U+2581) is a space. A space is put before each text (in newer
                                           files only where there is none) and the first one is taken away again: a
                                           continuation " a dog" reads "a dog"

A lone surrogate (half a character; no file of text can hold one) is read as U+FFFD.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers

SPECIAL = ("pad_id", "bos_id", "eoc_id", "image_id", "around_image_id")
SURROGATE = re.compile("[\ud800-\udfff]")


def library():
    """The `tokenizers` package, imported when it is needed and not before: the toy world does without it."""
    try:
        import tokenizers
    except ImportError:
        raise ImportError("a published tokenizer needs the tokenizers library: pip install minflamingo[real]") from None
    return tokenizers


class PretrainedTokenizer:
    """A published tokenizer, with Flamingo's special tokens beside it.

    Args:
        base: what `read_base` or `base_from_gguf` returns; it is copied, and stays as it is.
        pad_id, bos_id, eoc_id: may be tokens of the base, even the same one (GPT-2 has only `<|endoftext|>`). bos_id None:
            texts have no sign of their beginning (OpenFlamingo around MPT or GPT-NeoX).
        image_id: no other token's; mostly behind the vocabulary.
        around_image_id: a token that the model wants on both sides of an image (IDEFICS), or None.
        vocab_size: rows of the language model's table, which is often longer than the list of tokens.
            None: up to the largest id there is, leaving out `<image>` if that is the last.
    Raises:
        ValueError: ids that cannot be.
    """

    def __init__(
        self,
        base: tokenizers.Tokenizer,
        *,
        pad_id: int,
        bos_id: int | None,
        eoc_id: int,
        image_id: int,
        around_image_id: int | None = None,
        vocab_size: int | None = None,
    ):
        self.pad_id, self.bos_id, self.eoc_id, self.image_id = pad_id, bos_id, eoc_id, image_id
        self.around_image_id = around_image_id
        optional = [name for name in ("bos_id", "around_image_id") if getattr(self, name) is None]
        given = {name: getattr(self, name) for name in SPECIAL if name not in optional}
        for name, i in given.items():
            if type(i) is not int or i < 0:
                raise ValueError(f"tokenizer: {name} is {i!r}; it must be a whole number, 0 or more")
            if i == image_id and name != "image_id":
                raise ValueError(f"tokenizer: image_id and {name} are both {i}; <image> needs an id of its own")

        content = json.loads(base.to_str())
        content.update(truncation=None, padding=None, post_processor=None)  # what would cut, fill or add by itself
        for token in content["added_tokens"]:
            token["special"] |= token["id"] in given.values()
        self._base = _parse(json.dumps(content))
        self._base.encode_special_tokens = True  # their letters are letters

        self._silent = {*given.values(), *(t["id"] for t in content["added_tokens"] if t["special"])}
        model = content["model"]
        self._unknown = model.get("unk_id", self._base.token_to_id(model.get("unk_token") or ""))
        known = self._base.get_vocab(with_added_tokens=True).values()
        least = max((i for i in known if i not in given.values()), default=-1) + 1
        self.vocab_size = max({least - 1, *given.values()} - {image_id}) + 1 if vocab_size is None else vocab_size
        if type(self.vocab_size) is not int or self.vocab_size < least:
            raise ValueError(f"tokenizer: vocab_size is {self.vocab_size!r}, but there are tokens up to id {least - 1}")

    def encode(self, text: str) -> list[int]:
        """Text → ids. No special token is ever produced.

        Raises:
            ValueError: a character that the vocabulary cannot spell (never with bytes in it, as in all named above).
        """
        if not isinstance(text, str):
            raise TypeError(f"encode: expected str, got {type(text).__name__}")
        ids = self._base.encode(SURROGATE.sub("\ufffd", text)).ids
        if self._silent.isdisjoint(ids):
            return ids
        return [j for i in ids for j in (self._spelled(i) if i in self._silent else [i])]

    def _spelled(self, special: int) -> list[int]:
        """Some files of Llama join the letters of "</s>" like those of a word. Then its letters, one by one."""
        name = self._base.id_to_token(special)
        letters = [self._base.token_to_id(letter) for letter in name]
        if special == self._unknown or special in letters or None in letters:
            raise ValueError(f"encode: the text has letters that only {name!r} stands for, and that is a special token")
        return letters

    def decode(self, ids: Iterable[int]) -> str:
        """Ids → text. Special tokens and unused rows leave nothing; bytes that are no UTF-8 become U+FFFD."""
        ids = [int(i) for i in ids]
        last = max(self.vocab_size - 1, self.image_id)
        for i in ids:
            if not 0 <= i <= last:
                raise ValueError(f"decode: id {i} is outside 0…{last}")
        return self._base.decode([i for i in ids if i not in self._silent], skip_special_tokens=False)

    # ------------------------------------------------------------------------------------------------------- on disk

    def to_dict(self) -> dict:
        ids = {name: getattr(self, name) for name in (*SPECIAL, "vocab_size")}
        return {"kind": "pretrained", **ids, "tokenizer": json.loads(self._base.to_str())}

    @classmethod
    def from_dict(cls, content: Mapping) -> PretrainedTokenizer:
        if content["kind"] != "pretrained":
            raise ValueError(f"kind is {content['kind']!r}, not 'pretrained'")
        return cls(_parse(json.dumps(content["tokenizer"])), **{name: content[name] for name in (*SPECIAL, "vocab_size")})

    def __reduce__(self):  # for workers and copies: the library's own pickle forgets that letters are letters
        return PretrainedTokenizer.from_dict, (self.to_dict(),)

    def save(self, path: str | Path) -> None:
        """Write everything as one JSON file: the library's `tokenizer.json`, and our ids beside it."""
        Path(path).write_text(json.dumps(self.to_dict(), ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> PretrainedTokenizer:
        """Read what `save` wrote; nothing in it is run.

        Raises:
            ValueError: the file is damaged or something else.
        """
        text = Path(path).read_bytes()
        library()  # that it is missing is not the file's fault
        try:
            return cls.from_dict(json.loads(text))
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{path}: not a tokenizer that PretrainedTokenizer.save wrote ({_short(error)})") from None


# ------------------------------------------------------------------------------------------------------- published files


def read_base(path: str | Path) -> tokenizers.Tokenizer:
    """A `tokenizer.json`, or a folder with it, or with `vocab.json` and `merges.txt` (byte-level BPE: GPT-2, OPT).

    Raises:
        FileNotFoundError: none of them is there. ValueError: a file is damaged, or a folder has more to it.
    """
    path = Path(path)
    whole = path / "tokenizer.json" if path.is_dir() else path
    vocab, merges, added = (path / name for name in ("vocab.json", "merges.txt", "added_tokens.json"))
    if whole.is_file():
        return _read(whole, lambda: _parse(whole.read_text(encoding="utf-8")))
    if not (vocab.is_file() and merges.is_file()):
        raise FileNotFoundError(f"{path}: no tokenizer.json there, nor vocab.json and merges.txt")
    if added.is_file():
        raise ValueError(f"{added}: added tokens are read from a tokenizer.json only; write one, or take these away")
    return _read(path, lambda: byte_level(library().models.BPE.from_file(str(vocab), str(merges))))


def _parse(text: str) -> tokenizers.Tokenizer:
    """The content of a `tokenizer.json`. The library counts added tokens anew and says nothing when the file has other ids."""
    base = library().Tokenizer.from_str(text)
    for token in json.loads(text)["added_tokens"]:
        if (i := base.token_to_id(token["content"])) != token["id"]:
            raise ValueError(f"{token['content']!r} has id {token['id']} in the file, where {i} is the next that is free")
    return base


def byte_level(bpe: tokenizers.models.BPE, single_digits: bool = False) -> tokenizers.Tokenizer:
    """GPT-2's manner: text is cut into words with the space before them, words into bytes, and pairs of these merged.

    `single_digits`: each digit is a word of its own, so 1234 is read as 1, 2, 3, 4 (SmolLM).
    """
    lib = library()
    base = lib.Tokenizer(bpe)
    words = lib.pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = lib.pre_tokenizers.Digits(individual_digits=True)
    base.pre_tokenizer = lib.pre_tokenizers.Sequence([digits, words]) if single_digits else words
    base.decoder = lib.decoders.ByteLevel()
    return base


# `tokenizer.ggml.pre` → is each digit a word of its own? (The names are those of llama.cpp.)
GGUF_WORDS = {"gpt-2": False, "mpt": False, "olmo": False, "phi-2": False, "smollm": True, "starcoder": True, "refact": True}
GGUF_CONTROL, GGUF_USER_DEFINED = 3, 4  # sorts of token in `tokenizer.ggml.token_type`


def base_from_gguf(metadata: Mapping[str, object]) -> tokenizers.Tokenizer:
    """The tokenizer that a GGUF file describes, from its metadata as {key: value}.

    Of SmolLM2-135M: "tokenizer.ggml.model" gpt2, ".pre" smollm, ".tokens" 49152 strings, ".merges" 48900 strings "Ġ t",
    ".token_type" 49152 numbers, 17 of them control tokens such as <|im_start|>.

    Raises:
        ValueError: a key is missing, or this manner of cutting words is not one of `GGUF_WORDS`.
    """

    def value(key: str):
        if f"tokenizer.ggml.{key}" not in metadata:
            raise ValueError(f"GGUF metadata: tokenizer.ggml.{key} is missing; without it texts would be cut by guesswork")
        return metadata[f"tokenizer.ggml.{key}"]

    if value("model") != "gpt2":
        raise ValueError(f"GGUF metadata: tokenizer.ggml.model is {value('model')!r}; only 'gpt2' (byte-level BPE) is read")
    if value("pre") not in GGUF_WORDS:
        raise ValueError(f"GGUF metadata: tokenizer.ggml.pre is {value('pre')!r}; known are {', '.join(GGUF_WORDS)}")
    tokens, sorts = list(value("tokens")), list(value("token_type"))
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) != len(tokens) or len(sorts) != len(tokens):
        raise ValueError(f"GGUF metadata: {len(tokens)} tokens, {len(vocab)} of them different, and {len(sorts)} sorts")
    merges = [tuple(merge.split(" ", 1)) for merge in value("merges")]
    base = _read("GGUF metadata", lambda: byte_level(library().models.BPE(vocab, merges), GGUF_WORDS[value("pre")]))
    for token, sort in zip(tokens, sorts):
        if sort in (GGUF_CONTROL, GGUF_USER_DEFINED):
            special = sort == GGUF_CONTROL
            base.add_tokens([library().AddedToken(token, special=special, normalized=False)])
    return base


def _read(where: str | Path, read):
    library()
    try:
        return read()
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{where}: not a tokenizer, or a damaged one ({_short(error)})") from None


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0][:200]


# -------------------------------------------------------------------------------------------------- published conventions


def openflamingo_tokenizer(
    base: tokenizers.Tokenizer, bos: str | None = None, pad: str | None = None, vocab_size: int | None = None
) -> PretrainedTokenizer:
    """OpenFlamingo's ids, behind a base of n tokens: `<|endofchunk|>` n, `<image>` n + 1 and, without a `pad`, `<PAD>` n + 2.

    Texts begin as the tokenizer of the language model lets them begin. GPT-NeoX and MPT: as it stands, with nothing before.
    OPT: bos="</s>", pad="<pad>". Llama: bos="<s>".
    """
    eoc_id, image_id, pad_id = _behind(base, "<|endofchunk|>", "<image>", "<PAD>")
    return PretrainedTokenizer(
        base,
        pad_id=pad_id if pad is None else _id(base, pad),
        bos_id=None if bos is None else _id(base, bos), eoc_id=eoc_id, image_id=image_id, vocab_size=vocab_size,
    )  # fmt: skip


def idefics_tokenizer(
    base: tokenizers.Tokenizer, instruct: bool = False, vocab_size: int | None = None
) -> PretrainedTokenizer:
    """IDEFICS' ids, behind Llama's 32000: `<fake_token_around_image>` 32000, `<image>` 32001.

    A chunk ends with Llama's `</s>` (2), in the instruct models with `<end_of_utterance>` (32002). `<PAD>` is `<unk>` (0).
    """
    around, image_id, utterance = _behind(base, "<fake_token_around_image>", "<image>", "<end_of_utterance>")
    return PretrainedTokenizer(
        base,
        pad_id=_id(base, "<unk>"), bos_id=_id(base, "<s>"), eoc_id=utterance if instruct else _id(base, "</s>"),
        image_id=image_id, around_image_id=around, vocab_size=vocab_size,
    )  # fmt: skip


def _behind(base: tokenizers.Tokenizer, *names: str) -> list[int]:
    """The ids of `names`: where the file has them already, and else the next ones free, in this order."""
    free = iter(range(base.get_vocab_size(), base.get_vocab_size() + len(names)))
    return [next(free) if base.token_to_id(name) is None else base.token_to_id(name) for name in names]


def _id(base: tokenizers.Tokenizer, name: str) -> int:
    i = base.token_to_id(name)
    if i is None:
        raise ValueError(f"tokenizer: there is no token {name!r} among its {base.get_vocab_size()}")
    return i
