"""From text to token ids and back: whole words for the toy world, bytes for everything else.

Four ids are not text: `<PAD>`, `<BOS>` (begin of sequence), `<EOC>` (end of chunk) and `<image>`. They exist only as ids.
`encode` can never produce them, so a caption that happens to contain the letters "<image>" is a caption about those letters.
(flamingo-mini counts every "<" in a text as an image.) Whoever wants a special token writes its id.

Words carry the space before them, as in GPT-2: " red" is one token. What is not in the list of words becomes UTF-8 bytes,
so any string survives the round trip, and a made-up word is spelled:

    >>> tokenizer = ToyTokenizer(["This", " is", " a", " red"])
    >>> [tokenizer.decode([i]) for i in tokenizer.encode("This is a dax")]
    ['This', ' is', ' a', ' ', 'd', 'a', 'x']

Layout of ids: 0 <PAD>, 1 <BOS>, 2 <EOC>, then 256 bytes, then the words; `<image>` comes last, BEHIND the vocabulary of
the language model, which has never seen it: its embedding row belongs to Flamingo (see `flamingo.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol


class Tokenizer(Protocol):
    """What the rest of the package asks of a tokenizer, a toy or a real one."""

    vocab_size: int  # of the language model, without <image>
    pad_id: int
    bos_id: int
    eoc_id: int
    image_id: int

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Iterable[int]) -> str: ...


# A word or a number with at most one space before it; else a single character. Every character is in exactly one piece.
PIECES = re.compile(r" ?[A-Za-z]+| ?[0-9]+|.", re.DOTALL)


def pieces_of(text: str) -> list[str]:
    """Cut text into the pieces that may be tokens. `"".join(pieces_of(text)) == text`, always."""
    return PIECES.findall(text)


class ToyTokenizer:
    """Words of a fixed list as single tokens, bytes for the rest."""

    N_SPECIAL, N_BYTES = 3, 256

    def __init__(self, words: Iterable[str]):
        self.words = list(words)
        for word in self.words:
            if pieces_of(word) != [word]:
                raise ValueError(f"word list: {word!r} is not a single piece; pieces are {pieces_of(word)}")
        first = self.N_SPECIAL + self.N_BYTES
        self.word_id = {word: first + i for i, word in enumerate(self.words)}
        if len(self.word_id) != len(self.words):
            raise ValueError("word list: some words stand in it twice")
        self.pad_id, self.bos_id, self.eoc_id = 0, 1, 2
        self.vocab_size = first + len(self.words)
        self.image_id = self.vocab_size

    def encode(self, text: str) -> list[int]:
        """Text → ids. No special token is ever produced."""
        if not isinstance(text, str):
            raise TypeError(f"encode: expected str, got {type(text).__name__}")
        pieces = pieces_of(text)
        try:
            return [self.word_id[piece] for piece in pieces]  # words alone, as nearly all texts of the toy world
        except KeyError:
            spelt = [[self.word_id[p]] if p in self.word_id else self._bytes(p) for p in pieces]
            return [i for ids in spelt for i in ids]

    def _bytes(self, piece: str) -> list[int]:
        return [self.N_SPECIAL + byte for byte in piece.encode("utf-8", "surrogatepass")]

    def decode(self, ids: Iterable[int]) -> str:
        """Ids → text. Special tokens are not text and leave nothing; bytes that are no UTF-8 become U+FFFD."""
        out = bytearray()
        first_word = self.N_SPECIAL + self.N_BYTES
        for i in map(int, ids):
            if not 0 <= i <= self.image_id:
                raise ValueError(f"decode: id {i} is outside 0…{self.image_id}")
            if first_word <= i < self.vocab_size:
                out += self.words[i - first_word].encode()
            elif self.N_SPECIAL <= i < first_word:
                out.append(i - self.N_SPECIAL)
        try:
            return out.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return out.decode("utf-8", "replace")

    def save(self, path: str | Path) -> None:
        """Write the word list as JSON."""
        Path(path).write_text(json.dumps({"kind": "toy", "words": self.words}, indent=0))

    @classmethod
    def load(cls, path: str | Path) -> ToyTokenizer:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is not a toy tokenizer.
        """
        try:
            content = json.loads(Path(path).read_text())
            words = content["words"] if content["kind"] == "toy" else None
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
            words = None
        if not isinstance(words, list) or not all(isinstance(w, str) for w in words):
            raise ValueError(f"{path}: not the word list of a toy tokenizer")
        return cls(words)
