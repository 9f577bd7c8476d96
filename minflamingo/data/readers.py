"""Datasets on disk: a folder with one `.jsonl` file per dataset, one sample per line, and its images as files.

    {"id": "7", "kind": "pair", "pieces": [{"image": "images/7.png"}, {"text": " a cat"}, {"eoc": true}]}
    {"id": "8", "kind": "video", "pieces": [{"video": ["images/8_0.png", "images/8_1.png"]}, {"text": " a cat runs"}]}
    {"id": "9", "kind": "document", "pieces": [{"text": " a cat"}, {"image": "images/7.png"}], "attend_next": true}
    {"id": "10", "kind": "text", "pieces": [{"text": "Cats", "no_loss": true}, {"text": " purr"}, {"eoc": true}]}

The kinds are those of the paper (section 2.4), and text alone for the language model; each line is checked against its kind.
`no_loss` text carries no loss, `"bos": false` starts in the middle of a document. Other keys are ignored. A dataset may come
from someone else, so images outside its folder are not read.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .images import FORMATS, as_frames, read_image
from .sample import EOC, NoLoss, Sample, is_medium

# piece -> (test of its content, the test in words)
PIECES = {
    "text": (lambda c: isinstance(c, str), "a string"),
    "eoc": (lambda c: c is True, "true"),
    "image": (lambda c: isinstance(c, str), "a file name"),
    "video": (lambda c: isinstance(c, list) and c and all(isinstance(f, str) for f in c), "a list of file names"),
}


def kind_of(sample: Sample) -> str:
    """ "pair" (one image), "video" (one video of two frames or more), "document" (other media) or "text" (none)."""
    if len(sample.media) != 1:
        return "document" if sample.media else "text"
    return "pair" if len(sample.media[0]) == 1 else "video"


class JsonlDataset:
    """A sequence of samples on disk: `len(dataset)`, `dataset[i]`, `for sample in dataset`. A sample is read when it is used.

    A broken sample raises ValueError with file, line and piece. on_error="skip": iteration leaves broken samples out and lists
    (line, reason) in `skipped`; `len` includes them, and `dataset[i]` raises.
    """

    def __init__(self, path: str | Path, on_error: str = "raise"):
        self.path, self.on_error, self.folder = Path(path), on_error, Path(path).parent.resolve()
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error is {on_error!r}; choose 'raise' or 'skip'")
        if not self.path.is_file():
            raise FileNotFoundError(f"{path}: no such file. A dataset is one .jsonl file with its images in the same folder")
        self.skipped: list[tuple[int, str]] = []
        self._lines: list[tuple[int, int]] = []  # (line number, position in the file) of all lines that are not empty
        with open(self.path, "rb") as file:
            position = 0
            for number, line in enumerate(file, start=1):
                self._lines += [(number, position)] if line.strip() else []
                position += len(line)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, i: int) -> Sample:
        number, position = self._lines[i]
        try:
            with open(self.path, "rb") as file:  # opened each time, so that several processes can share a dataset
                file.seek(position)
                return self._sample(file.readline())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.path}, line {number}: {error}") from error

    def __iter__(self) -> Iterator[Sample]:
        self.skipped = []
        for i, (number, _) in enumerate(self._lines):
            try:
                yield self[i]
            except ValueError as error:
                if self.on_error == "raise":
                    raise
                self.skipped.append((number, str(error.__cause__)))

    def _sample(self, line: bytes) -> Sample:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not valid JSON: {error}. Write each sample as one object on one line") from None
        if not isinstance(record, dict) or not isinstance(record.get("pieces"), list):
            raise ValueError(f"expected an object with kind and pieces (a list), found {record!r:.80}")
        pieces = [self._piece(piece, f"piece {k}") for k, piece in enumerate(record["pieces"])]
        sample = Sample(pieces, _flag(record, "attend_next"), _flag(record, "bos", default=True))
        # A document may also have one image or one video.
        if record.get("kind") not in ([kind_of(sample), "document"] if sample.media else ["text"]):
            raise ValueError(f"kind is {record.get('kind')!r}, but the media of this sample make it a {kind_of(sample)!r}")
        return sample

    def _piece(self, piece: object, where: str) -> object:
        keys = [key for key in PIECES if key in piece] if isinstance(piece, dict) else []
        if len(keys) != 1:
            raise ValueError(f"{where}: unknown piece {piece!r:.60}; write an object with one of {', '.join(PIECES)}")
        key, content = keys[0], piece[keys[0]]
        valid, expected = PIECES[key]
        if not valid(content):
            raise ValueError(f"{where}: {key} must be {expected}, not {content!r:.60}")
        if key in ("image", "video"):
            return as_frames([self._image(name, where) for name in ([content] if key == "image" else content)], where)
        text = content if key == "text" else EOC
        return NoLoss(text) if _flag(piece, "no_loss") else text

    def _image(self, name: str, where: str) -> Image.Image:
        try:
            path = (self.folder / name).resolve()
            if Path(name).is_absolute() or not path.is_relative_to(self.folder):
                raise ValueError(f"{name!r:.200} is outside the dataset's folder; copy the file into {self.folder}")
            return read_image(path, name, FORMATS)
        except FileNotFoundError:
            raise ValueError(f"{where}: {name!r:.200} is missing in {self.folder}; copy it there or delete this line") from None
        except (ValueError, OSError) as error:  # OSError: the name is too long
            raise ValueError(f"{where}: {error}"[:600]) from None


def _flag(record: dict, name: str, default: bool = False) -> bool:
    if not isinstance(record.get(name, default), bool):
        raise ValueError(f"{name} must be true or false, not {record[name]!r:.60}")
    return record.get(name, default)


def write_jsonl(samples: Iterable[Sample], path: str | Path, ids: Iterable[str] | None = None) -> None:
    """Write samples (media: uint8 pixels) as a `.jsonl` file, and their images as PNG files in `images/`. Nothing is lost.

    Images are named by a hash of their pixels: equal images are stored once, and no file changes its content. So an existing
    dataset stays intact until the new one is complete, also if a piece cannot be written (TypeError).
    """
    path, lines = Path(path), []
    (path.parent / "images").mkdir(parents=True, exist_ok=True)
    names = (f"{path.stem}-{i}" for i in count()) if ids is None else ids
    for i, (sample, name) in enumerate(zip(samples, names, strict=ids is not None)):
        pieces = [_to_json(p, path.parent, f"{path}, sample {i}, piece {k}") for k, p in enumerate(sample.pieces)]
        record = {"id": name, "kind": kind_of(sample), "pieces": pieces}
        record |= {"attend_next": True} if sample.attend_next else {}
        record |= {} if sample.bos else {"bos": False}
        lines.append(json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
    _replace(path, lambda temporary: temporary.write_bytes(b"".join(lines)))


def _to_json(piece: object, folder: Path, where: str) -> dict:
    """A piece as it is written in a line. Writes the images of media."""
    if isinstance(piece, NoLoss):
        return {**_to_json(piece.text, folder, where), "no_loss": True}
    if isinstance(piece, str) or piece is EOC:
        return {"eoc": True} if piece is EOC else {"text": piece}
    if not is_medium(piece) or piece.ndim != 4 or piece.dtype not in (np.uint8, torch.uint8):
        raise TypeError(f"{where}: expected text, EOC or uint8 pixels (T, H, W, C), got {piece!r:.60}")
    names = []
    for frame in as_frames(piece, where):
        names.append(f"images/{hashlib.sha256(repr(frame.shape).encode() + frame.tobytes()).hexdigest()[:16]}.png")
        _replace(folder / names[-1], lambda p, f=frame: Image.fromarray(f).save(p, format="PNG", optimize=True))
    return {"image": names[0]} if len(names) == 1 else {"video": names}


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a temporary file and rename it: at any moment, `path` is the old file or the complete new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
