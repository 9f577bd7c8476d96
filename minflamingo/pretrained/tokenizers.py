"""The tokenizers of published language models, with the interface of `minflamingo/tokenizer.py`.

The `tokenizers` library does the work. We add the ids that are not text:

    base = read_base("RedPajama-INCITE-Base-3B-v1")    # a folder with tokenizer.json
    tokenizer = openflamingo_tokenizer(base)           # 50277 tokens, so <|endofchunk|> is 50277, <image> 50278, <PAD> 50279
    tokenizer.encode("<image> a cat<|endoftext|>")     # angle brackets and letters; no id of these is special

Text is only text. The library would turn the characters "<|endoftext|>" into the id that ends a text, and put a <BOS> before
each text if the file says so. Neither happens here: special tokens are given by their ids. decode(encode(text)) is the same
text, with three exceptions. GPT-NeoX and MPT (NFC): e + ´ become é. Llama: "▁" (U+2581) becomes a space, and newer files lose
one space at the start. Everywhere half a character (a lone surrogate, which no text file can contain) becomes U+FFFD.
"""

import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..training.checkpoint import errors_of, extra
from .files import beside

tokenizers = extra("tokenizers")
SPECIAL = ("pad_id", "bos_id", "eoc_id", "image_id", "around_image_id")


class PretrainedTokenizer:
    """A published tokenizer, with the special tokens of a Flamingo.

    Args:
        base: from `read_base` or `base_from_gguf`; it is copied.
        pad_id, bos_id, eoc_id: may be the same token of the base. bos_id None: texts have no first token.
        image_id: different from all others, and usually after the vocabulary.
        around_image_id: a token that comes before and after each image (IDEFICS), or None.
    """

    def __init__(
        self, base: tokenizers.Tokenizer, *, pad_id: int, bos_id: int | None, eoc_id: int, image_id: int,
        around_image_id: int | None = None,
    ):  # fmt: skip
        self.pad_id, self.bos_id, self.eoc_id, self.image_id = pad_id, bos_id, eoc_id, image_id
        self.around_image_id = around_image_id
        ids = [pad_id, eoc_id, image_id, *(i for i in (bos_id, around_image_id) if i is not None)]
        if not all(isinstance(i, int) for i in ids) or ids.count(image_id) > 1:
            raise ValueError(f"tokenizer: special ids must be integers, and image_id unlike the others; got {ids}")
        self.vocab_size = min(base.get_vocab_size(), image_id)  # without the tokens that come after the base
        self._base = tokenizers.Tokenizer.from_str(base.to_str())
        self._base.no_truncation()  # a file may say that texts are cut or padded
        self._base.no_padding()
        # The characters of special tokens are ordinary text. Our special tokens may be ordinary added words in the file.
        self._base.encode_special_tokens = True
        added = self._base.get_added_tokens_decoder()
        self._base.add_special_tokens([token for i, token in added.items() if i in ids])
        self._hidden = {*ids, *(i for i, token in added.items() if token.special)}  # never in a text

    def encode(self, text: str) -> list[int]:
        """Text -> ids, never a special one. Raises ValueError if the vocabulary has no token for a character."""
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        ids = self._base.encode(text, add_special_tokens=False).ids
        return [j for i in ids for j in (self._spelled(i) if i in self._hidden else [i])]

    def _spelled(self, special: int) -> list[int]:
        """Some files of Llama merge the characters of "</s>" like those of a word. Then return them one by one."""
        name = self._base.id_to_token(special)
        letters = [self._base.token_to_id(letter) for letter in name]
        if name == self._base.model.unk_token or special in letters or None in letters:
            raise ValueError(f"encode: a part of the text has no token but {name!r}, which is a special token")
        return letters

    def decode(self, ids: Iterable[int]) -> str:
        """Ids -> text. Special tokens and unused rows give no text; bytes that are not valid UTF-8 become U+FFFD."""
        return self._base.decode([i for i in map(int, ids) if i not in self._hidden])

    def to_dict(self) -> dict:
        ids = {name: getattr(self, name) for name in (*SPECIAL, "vocab_size")}
        return {"kind": "pretrained", **ids, "tokenizer": json.loads(self._base.to_str())}

    @classmethod
    def from_dict(cls, content: Mapping) -> "PretrainedTokenizer":
        return cls(tokenizers.Tokenizer.from_str(json.dumps(content["tokenizer"])), **{name: content[name] for name in SPECIAL})

    def __reduce__(self):  # the library's own pickle forgets `encode_special_tokens`
        return PretrainedTokenizer.from_dict, (self.to_dict(),)

    def save(self, path: str | Path) -> None:
        """Write one JSON file: the library's `tokenizer.json` and our ids."""
        Path(path).write_text(json.dumps(self.to_dict(), ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "PretrainedTokenizer":
        """Read the file of `save`. Raises ValueError if it is damaged or another file."""
        with errors_of(path, "tokenizer, or damaged"):
            return cls.from_dict(json.loads(Path(path).read_bytes()))


def read_base(path: str | Path) -> tokenizers.Tokenizer:
    """The `tokenizer.json` in a folder, or next to a checkpoint.

    Raises:
        FileNotFoundError: there is none. ValueError: it is damaged, or the library would read other ids than those in the file.
    """
    path = beside(path, "tokenizer.json")
    text = path.read_text(encoding="utf-8-sig")
    with errors_of(path, "tokenizer, or damaged"):
        base = tokenizers.Tokenizer.from_str(text)
        for token in json.loads(text)["added_tokens"]:  # the library gives them new ids if those in the file have a gap
            if (i := base.token_to_id(token["content"])) != token["id"]:
                raise ValueError(f"the token {token['content']!r} has id {token['id']}, but the next free id is {i}")
    return base


# `tokenizer.ggml.pre` -> is each digit a word? (The names are those of llama.cpp.)
GGUF_WORDS = {"gpt-2": False, "mpt": False, "olmo": False, "phi-2": False, "smollm": True, "starcoder": True, "refact": True}
GGUF_CONTROL, GGUF_USER_DEFINED = 3, 4  # types of tokens in `tokenizer.ggml.token_type`


def base_from_gguf(metadata: Mapping[str, object]) -> tokenizers.Tokenizer:
    """The tokenizer in the metadata of a GGUF file, if it is a byte-level BPE as in GPT-2.

    The method: words with the space before them -> bytes -> merged pairs. Raises ValueError for other kinds.
    """
    keys = ("model", "pre", "tokens", "token_type", "merges")
    model, pre, tokens, types, merges = (metadata.get(f"tokenizer.ggml.{key}") for key in keys)
    if model != "gpt2" or pre not in GGUF_WORDS:
        known = f"'gpt2' (byte-level BPE) with pre one of {', '.join(GGUF_WORDS)}"
        raise ValueError(f"GGUF metadata: tokenizer.ggml.model is {model!r} and pre {pre!r}; only {known} is implemented")
    vocab = {token: i for i, token in enumerate(tokens)}
    base = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [tuple(merge.split(" ", 1)) for merge in merges]))
    words = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
    base.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([digits, words]) if GGUF_WORDS[pre] else words
    base.decoder = tokenizers.decoders.ByteLevel()
    base.add_special_tokens([token for token, kind in zip(tokens, types) if kind == GGUF_CONTROL])
    base.add_tokens([token for token, kind in zip(tokens, types) if kind == GGUF_USER_DEFINED])
    return base


def openflamingo_tokenizer(base: tokenizers.Tokenizer) -> PretrainedTokenizer:
    """OpenFlamingo's ids: after the n tokens of the base `<|endofchunk|>` n, `<image>` n + 1 and `<PAD>` n + 2.

    This is for GPT-NeoX and MPT. An OPT or Llama has a token before each text, and OPT its own padding: pass their ids to
    `PretrainedTokenizer`.
    """
    eoc_id, image_id, pad_id = added_ids(base, "<|endofchunk|>", "<image>", "<PAD>")
    return PretrainedTokenizer(base, pad_id=pad_id, bos_id=None, eoc_id=eoc_id, image_id=image_id)


def idefics_tokenizer(base: tokenizers.Tokenizer, *, instruct: bool = False) -> PretrainedTokenizer:
    """IDEFICS' ids: after the 32000 tokens of Llama `<fake_token_around_image>` 32000, `<image>` 32001.

    A chunk ends with Llama's `</s>` (2), in the instruct models with `<end_of_utterance>` (32002). `<PAD>` is `<unk>` (0).
    """
    around, image_id, utterance = added_ids(base, "<fake_token_around_image>", "<image>", "<end_of_utterance>")
    pad_id, bos_id, eos_id = (base.token_to_id(name) for name in ("<unk>", "<s>", "</s>"))
    eoc_id = utterance if instruct else eos_id
    return PretrainedTokenizer(base, pad_id=pad_id, bos_id=bos_id, eoc_id=eoc_id, image_id=image_id, around_image_id=around)


def added_ids(base: tokenizers.Tokenizer, *names: str) -> list[int]:
    """The ids of `names`: those in the file, or else the next free ones, in this order."""
    free = itertools.count(base.get_vocab_size())
    return [next(free) if (i := base.token_to_id(name)) is None else i for name in names]
