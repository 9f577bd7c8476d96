"""Where data files are read. Only regular files are opened: a pipe can wait for ever, and /dev/zero has no end."""

import json
import os
from pathlib import Path
from typing import BinaryIO

MOST_BYTES = 2**31  # of one file, or of one file in a tar
MOST_TEXT = 5_000_000  # characters of one text: the tokenizer needs minutes for more


def open_file(path: str | Path) -> BinaryIO:
    """Raises FileNotFoundError, or OSError if it is a folder, a pipe or a device."""
    if not os.path.exists(path):  # also false for an impossible name
        raise FileNotFoundError(f"{str(path)[:400]}: no such file")
    if not os.path.isfile(path):
        raise OSError(f"{path}: not a file, but a folder, a pipe or a device")
    return open(path, "rb")


def read_file(path: str | Path, offset: int = 0, size: int = -1) -> bytes:
    """`size` bytes from `offset` on, or all (-1)."""
    with open_file(path) as file:
        size = file.seek(0, os.SEEK_END) - offset if size < 0 else size
        if size > MOST_BYTES:
            raise ValueError(f"{path}: {size:,} bytes are too many; at most {MOST_BYTES:,} are read")
        file.seek(offset)
        return file.read(size)


def parse_json(content: bytes) -> object:
    """Raises ValueError if it is not valid JSON, or if a key occurs twice: one of its values would be lost."""

    def unique(pairs: list[tuple[str, object]]) -> dict:
        if len(dict(pairs)) < len(pairs):
            raise ValueError(f"a key occurs twice: {', '.join(key for key, _ in pairs):.100}")
        return dict(pairs)

    try:
        return json.loads(content, object_pairs_hook=unique)
    except RecursionError:
        raise ValueError("not valid JSON: too many levels of brackets") from None


def problem_of(name: str, error: Exception) -> str:
    """One line that says which record is broken, and why. `error` is of any type: broken data causes many."""
    text = str(error) if str(error).startswith(name) else f"{name}: {type(error).__name__}: {error}"
    return " ".join(text.encode("utf-8", "surrogatepass").decode("utf-8", "replace").split())[:600]
