"""Datasets on disk: a folder with one `.jsonl` file per dataset, a sample a line, and the images as files beside it.

    {"id": "7", "kind": "pair", "pieces": [{"image": "images/7.png"}, {"text": " a cat"}, {"eoc": true}]}
    {"id": "8", "kind": "video", "pieces": [{"video": ["images/8_0.png", "images/8_1.png"]}, {"text": " a cat runs"}]}
    {"id": "9", "kind": "page", "pieces": [{"text": " a cat"}, {"image": "images/7.png"}], "attend_next": true}
    {"id": "10", "kind": "text", "pieces": [{"text": "Cats", "unscored": true}, {"text": " purr"}, {"eoc": true}]}

The kinds are the paper's (§2.4): image-text pairs, N=1 and T=1; video-text pairs, N=1 and T>1; pages of interleaved
images and text; and text alone, for the language model. Each line is checked against its kind. `unscored` text is read
but carries no loss, `"bos": false` starts in mid-document (see `sample.py`). Keys not named here are ignored. Whoever
reads a dataset may not have written it: images are looked for inside its folder and nowhere else.

    pairs = JsonlDataset("cats/pairs.jsonl")
    pairs[0].pieces                # [uint8 (1, 48, 48, 3), ' a cat', EOC]; the image is read now, not before
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..training.checkpoint import write_atomically
from .images import as_frames
from .sample import EOC, Sample, NoLoss, is_medium

FORMATS = ("PNG", "JPEG", "WEBP")
# piece → (is this its content?, in words)
PIECES = {
    "text": (lambda c: isinstance(c, str), "a string"),
    "eoc": (lambda c: c is True, "true"),
    "image": (lambda c: isinstance(c, str), "the name of a file"),
    "video": (lambda c: isinstance(c, list) and c and all(isinstance(f, str) for f in c), "a list of names of files"),
}
# kind → (do media of T[0], T[1], … frames fit it?, in words). The first that fits is the kind of a sample.
KINDS = {
    "pair": (lambda T: T == [1], "exactly one image"),
    "video": (lambda T: len(T) == 1 and T[0] > 1, "exactly one video, of two frames or more"),
    "page": (lambda T: len(T) > 0, "at least one image or video"),
    "text": (lambda T: not T, "no image and no video"),
}


class JsonlDataset:
    """A list of samples on disk: `len(dataset)`, `dataset[i]`, `for sample in dataset`.

    Args:
        path: the `.jsonl` file. Images are named in it relative to its folder.
        lazily: read a sample when it is asked for. False reads, and so checks, everything now and keeps it.
        on_error: "raise", or "skip": pass over broken samples and note (line, reason) in `skipped`, anew each pass.
            A lazy dataset cannot know before: len counts broken samples too, and asking for one by number raises.
    Raises:
        FileNotFoundError: no such file. ValueError: a broken sample; says file, line and piece, and what to do.
    """

    def __init__(self, path: str | Path, lazily: bool = True, on_error: str = "raise"):
        self.path, self.on_error = Path(path), on_error
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error is {on_error!r}; choose 'raise' or 'skip'")
        if not self.path.is_file():
            raise FileNotFoundError(f"{path}: no such file. A dataset is one .jsonl file with its images beside it")
        self.folder = self.path.parent.resolve()
        self.skipped: list[tuple[int, str]] = []
        self._lines: list[tuple[int, int]] = []  # (number of a line, where it begins in the file), no blank ones
        with open(self.path, "rb") as file:
            begin = 0
            for number, line in enumerate(file, start=1):
                if line.strip():
                    self._lines.append((number, begin))
                begin += len(line)
        self._kept: list[Sample] | None = None
        self._kept = None if lazily else list(self)

    def __len__(self) -> int:
        return len(self._lines if self._kept is None else self._kept)

    def __getitem__(self, i: int) -> Sample:
        if self._kept is not None:
            return self._kept[i]
        number, begin = self._lines[i]
        try:
            return self._sample(begin)
        except ValueError as error:
            raise ValueError(f"{self.path}, line {number}: {error}") from error

    def __iter__(self) -> Iterator[Sample]:
        if self._kept is None:
            self.skipped = []
        for i in range(len(self)):
            try:
                yield self[i]
            except ValueError as error:
                if self.on_error == "raise":
                    raise
                self.skipped.append((self._lines[i][0], str(error.__cause__)))

    def _sample(self, begin: int) -> Sample:
        try:
            with open(self.path, "rb") as file:  # opened each time: a dataset may be shared by many processes
                file.seek(begin)
                record = json.loads(file.readline())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"this is not JSON: {error}. A line holds one object, with no line break in it") from None
        kind, pieces = (record.get("kind"), record.get("pieces")) if isinstance(record, dict) else (None, None)
        if kind not in list(KINDS) or not isinstance(pieces, list):
            raise ValueError(f"expected {{kind: {' or '.join(KINDS)}, pieces: [a list]}}, found {record!r:.80}")
        content = [self._piece(piece, f"piece {k}") for k, piece in enumerate(pieces)]
        sample = Sample(content, _flag(record, "attend_next", False), _flag(record, "bos", True))
        T, (fits, wanted) = [len(medium) for medium in sample.media], KINDS[kind]
        if not fits(T):
            raise ValueError(f"a {kind!r} has {wanted}; this has media of {T} frames. Is it a {_kind(T)!r}?")
        return sample

    def _piece(self, piece: object, where: str) -> object:
        found = [sort for sort in PIECES if sort in piece] if isinstance(piece, dict) else []
        if len(found) != 1:
            raise ValueError(f"{where}: unknown piece {piece!r:.60}; write an object with one of {', '.join(PIECES)}")
        sort, content = found[0], piece[found[0]]
        fits, wanted = PIECES[sort]
        if not fits(content):
            raise ValueError(f"{where}: {sort} must be {wanted}, not {content!r:.60}")
        if sort == "image":
            return self._image(content, where)
        if sort == "video":
            return as_frames([self._image(name, f"{where}, frame {t}")[0] for t, name in enumerate(content)], where)
        said = content if sort == "text" else EOC
        return NoLoss(said) if _flag(piece, "unscored", False) else said

    def _image(self, name: str, where: str) -> np.ndarray:
        """One image file → uint8 (1, H, W, 3)."""
        where = f"{where}: {name!r:.200}"
        try:
            path = (self.folder / name).resolve()
            if not Path(name).is_absolute() and path.is_relative_to(self.folder):
                with Image.open(path, formats=FORMATS) as image:
                    return as_frames(image)
        except FileNotFoundError:
            raise ValueError(f"{where} is missing in {self.folder}. Copy it there, or take this line out") from None
        except Exception as error:  # damaged files end in OSError, SyntaxError, struct.error, "decompression bomb" …
            raise ValueError(f"{where} is not an image, or damaged: {error}. Save it anew as {FORMATS[0]}") from None
        raise ValueError(f"{where} is outside the dataset's folder. Copy it into {self.folder}, name it from there")


def _kind(T: list[int]) -> str:
    return next(kind for kind, (fits, _) in KINDS.items() if fits(T))


def _flag(record: dict, name: str, default: bool) -> bool:
    if not isinstance(record.get(name, default), bool):
        raise ValueError(f"{name} must be true or false, not {record[name]!r:.60}")
    return record.get(name, default)


def write_jsonl(samples: Iterable[Sample], path: str | Path, ids: Iterable[str] | None = None) -> None:
    """Write samples (media: uint8 pixels) as a `.jsonl` file, and PNGs in `images/` beside it. Nothing is lost.

    An image is named after its pixels: the same picture is stored once, and no file ever changes its content. So an
    older dataset of this name stays whole until the new one, with all its images in place, takes the name.

    Raises:
        TypeError, ValueError: a piece that no line can hold, or not as many `ids` as samples. `path` is untouched then.
    """
    path = Path(path)
    names = (f"{path.stem}-{i}" for i in count()) if ids is None else ids

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            for i, (sample, name) in enumerate(zip(samples, names, strict=ids is not None)):
                pieces = [_line(p, path.parent, f"{path}, sample {i}, piece {k}") for k, p in enumerate(sample.pieces)]
                record = {"id": name, "kind": _kind([len(medium) for medium in sample.media]), "pieces": pieces}
                record |= {"attend_next": True} if sample.attend_next else {}
                record |= {} if sample.bos else {"bos": False}
                file.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, write)


def _line(piece: object, folder: Path, where: str) -> dict:
    """A piece as it stands in a line. The images of a medium are written here."""
    if isinstance(piece, NoLoss):
        return {**_line(piece.text, folder, where), "unscored": True}
    if isinstance(piece, str):
        return {"text": piece}
    if piece is EOC:
        return {"eoc": True}
    if not is_medium(piece) or piece.ndim != 4 or piece.dtype not in (np.uint8, torch.uint8):
        raise TypeError(f"{where}: expected text, EOC or uint8 pixels (T, H, W, C), got {piece!r:.60}")
    (folder / "images").mkdir(exist_ok=True)
    names = []
    for frame in as_frames(piece, where):
        names.append(f"images/{hashlib.sha256(repr(frame.shape).encode() + frame.tobytes()).hexdigest()[:16]}.png")
        write_atomically(folder / names[-1], lambda p, f=frame: Image.fromarray(f).save(p, format="PNG", optimize=True))
    return {"image": names[0]} if len(names) == 1 else {"video": names}
