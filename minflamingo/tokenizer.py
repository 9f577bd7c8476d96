"""Text to token ids and back: whole words for the toy world, bytes for everything else.

Four ids are not text: `<PAD>`, `<BOS>` (begin of sequence), `<EOC>` (end of chunk) and `<image>`. They exist only as ids.
`encode` never returns them, so a caption that contains the letters "<image>" is a caption about these letters. Code that needs
a special token writes its id.

A word includes the space before it, as in GPT-2: " red" is one token. Everything that is not in the word list becomes UTF-8
bytes, so every string can be encoded, and an unknown word is spelled:

    >>> tokenizer = ToyTokenizer(["This", " is", " a", " red"])
    >>> [tokenizer.decode([i]) for i in tokenizer.encode("This is a dax")]
    ['This', ' is', ' a', ' ', 'd', 'a', 'x']

Ids: 0 <PAD>, 1 <BOS>, 2 <EOC>, then 256 bytes, then the words. `<image>` comes last, after the vocabulary of the LM. The LM has
never seen it: its embedding belongs to Flamingo (`flamingo.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol


class Tokenizer(Protocol):
    """What the rest of the package needs of a tokenizer, toy or real."""

    vocab_size: int  # of the LM, without <image>
    pad_id: int
    bos_id: int | None  # None: texts have no <BOS>
    eoc_id: int
    image_id: int

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Iterable[int]) -> str: ...


# A word or a number with at most one space before it, or else a single character. Each character is in exactly one piece, so
# the pieces can be joined to the text again. DOTALL: a line break is a character too.
PIECES = re.compile(r" ?[A-Za-z]+| ?[0-9]+|.", re.DOTALL)


def split_pieces(text: str) -> list[str]:
    """Cut text into the pieces that can be tokens. `"".join(split_pieces(text)) == text`."""
    return PIECES.findall(text)


class ToyTokenizer:
    """The words of a fixed list are single tokens; everything else is spelled in bytes."""

    N_SPECIAL, N_BYTES = 3, 256  # <PAD>, <BOS>, <EOC>; and every possible byte

    def __init__(self, words: Iterable[str]):
        self.words = list(words)
        for word in self.words:
            # a word that `split_pieces` would cut could never be found in a text
            if split_pieces(word) != [word]:
                raise ValueError(f"word list: {word!r} is not a single piece; its pieces are {split_pieces(word)}")
        self.first_word = self.N_SPECIAL + self.N_BYTES
        self.word_id = {word: self.first_word + i for i, word in enumerate(self.words)}
        # two ids for one word: `encode` could never return the first
        if len(self.word_id) != len(self.words):
            raise ValueError("word list: a word appears twice")
        self.pad_id, self.bos_id, self.eoc_id = 0, 1, 2
        self.vocab_size = self.first_word + len(self.words)
        self.image_id = self.vocab_size  # the first id that the LM does not have

    def encode(self, text: str) -> list[int]:
        """Text -> ids, never a special token."""
        if not isinstance(text, str):
            raise TypeError(f"encode: expected str, got {type(text).__name__}")
        ids: list[int] = []
        for piece in split_pieces(text):
            if piece in self.word_id:
                ids.append(self.word_id[piece])
            else:
                # "surrogatepass": half of a character (in broken input) survives the round trip instead of raising an error
                ids += [self.N_SPECIAL + byte for byte in piece.encode("utf-8", "surrogatepass")]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Ids -> text. Special tokens are left out; bytes that are not valid UTF-8 become U+FFFD."""
        # collect bytes first: a character may consist of several byte tokens
        out = bytearray()
        for i in map(int, ids):
            if not 0 <= i <= self.image_id:
                raise ValueError(f"decode: id {i} is outside 0 ... {self.image_id}")
            if self.first_word <= i < self.vocab_size:
                out += self.words[i - self.first_word].encode()
            elif self.N_SPECIAL <= i < self.first_word:
                out.append(i - self.N_SPECIAL)
        try:
            return out.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:  # generation may stop in the middle of a character
            return out.decode("utf-8", "replace")

    def save(self, path: str | Path) -> None:
        """Write the word list as JSON."""
        Path(path).write_text(json.dumps({"kind": "toy", "words": self.words}, indent=0), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> ToyTokenizer:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is not a toy tokenizer.
        """
        try:
            content = json.loads(Path(path).read_bytes())
            if content["kind"] != "toy" or not isinstance(content["words"], list):
                raise ValueError('expected "kind": "toy" and a list of "words"')
            return cls(content["words"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}: not the word list of a toy tokenizer: {error!r:.200}") from None
