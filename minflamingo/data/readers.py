"""Datasets on disk: a folder with one `.jsonl` file per dataset, one sample per line, and its images as files.

    {"id": "7", "kind": "pair", "pieces": [{"image": "images/7.png"}, {"text": " a cat"}, {"eoc": true}]}
    {"id": "8", "kind": "video", "pieces": [{"video": ["images/8_0.png", "images/8_1.png"]}, {"text": " a cat runs"}]}
    {"id": "9", "kind": "document", "pieces": [{"text": " a cat"}, {"image": "images/7.png"}], "attend_next": true}
    {"id": "10", "kind": "text", "pieces": [{"text": "Cats", "no_loss": true}, {"text": " purr"}, {"eoc": true}]}

The kinds are those of the paper (section 2.4), and text alone for the language model. `no_loss` text carries no loss,
`"bos": false` starts in the middle of a document. Only `pieces` is required. Other keys of a record are ignored, those of a
piece are an error. A dataset may come from someone else, so images outside its folder are not read.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .files import MOST_BYTES, MOST_TEXT, open_file, parse_json, problem_of
from .images import as_frames, read_pixels
from .sample import EOC, NoLoss, Sample, is_medium


class JsonlDataset:
    """A sequence of samples on disk: `len(dataset)`, `dataset[i]`, `for sample in dataset`.

    A sample is read when it is used. If it is broken, this raises ValueError with file, line and reason.
    """

    def __init__(self, path: str | Path):
        self.path, self.folder = Path(path), Path(path).parent.resolve()
        self.lines = [(name, line) for name, _, line in read_lines(path)]

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, i: int) -> Sample:
        name, line = self.lines[i]
        try:
            return read_line(line, self.folder)
        except Exception as error:  # invalid JSON and damaged images raise many types
            raise ValueError(problem_of(f"{self.path}, {name}", error)) from None


def read_lines(path: str | Path) -> Iterator[tuple[str, int, bytes]]:
    """Name ("line 7"), place and content of each line that is not empty."""
    offset, longest = 0, MOST_BYTES // 8
    with open_file(path) as file:
        for number, line in enumerate(iter(partial(file.readline, longest), b""), start=1):
            if line.strip():
                yield f"line {number}", offset, line
            offset += len(line)
            if len(line) == longest:  # this is not text: the rest is not read
                return


def read_line(line: bytes, folder: Path) -> Sample:
    """One line -> its sample. `folder` has its images; links are resolved. A broken line raises an error of any type."""
    if b"\0" in line or len(line) > MOST_TEXT:
        raise ValueError(f"not UTF-8 text but UTF-16, which must be saved as UTF-8; or more than {MOST_TEXT:,} characters")
    record = parse_json(line)
    if not isinstance(record, dict) or not isinstance(record.get("pieces"), list):
        raise ValueError(f"expected an object with pieces (a list), found {record!r:.80}")
    pieces = [_piece(piece, folder) for piece in record["pieces"]]
    return Sample(pieces, _flag(record, "attend_next"), _flag(record, "bos", default=True))


def _piece(piece: object, folder: Path) -> object:
    match [item for item in piece.items() if item[0] != "no_loss"] if isinstance(piece, dict) else piece:
        case [("text", str(text))]:
            return NoLoss(text) if _flag(piece, "no_loss") else text
        case [("eoc", True)]:
            return NoLoss(EOC) if _flag(piece, "no_loss") else EOC
        case [("image", str(name))]:
            return _pixels(name, folder)
        case [("video", [_, *_] as names)]:
            return as_frames([_pixels(name, folder) for name in names], "video")
    expected = '{"text": STRING}, {"eoc": true}, {"image": FILE NAME} or {"video": [FILE NAMES]}'
    raise ValueError(f"expected {expected}, found {piece!r:.60}")


def _pixels(name: object, folder: Path) -> np.ndarray:
    path = (folder / str(name)).resolve()
    if not path.is_relative_to(folder):
        raise ValueError(f"{name!r:.200} is outside the dataset's folder; copy the file into {folder}")
    return read_pixels(path, str(name))


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
        frames = [len(medium) for medium in sample.media]
        kind = {0: "text", 1: "pair" if frames == [1] else "video"}.get(len(frames), "document")
        pieces = [_to_json(p, path.parent, f"{path}, sample {i}, piece {k}") for k, p in enumerate(sample.pieces)]
        record = {"id": name, "kind": kind, "pieces": pieces}
        record |= ({"attend_next": True} if sample.attend_next else {}) | ({} if sample.bos else {"bos": False})
        lines.append(json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
    write_atomically(path, lambda temporary: temporary.write_bytes(b"".join(lines)))


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
        write_atomically(folder / names[-1], lambda p, f=frame: Image.fromarray(f).save(p, format="PNG", optimize=True))
    return {"image": names[0]} if len(names) == 1 else {"video": names}


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary path)` and rename the result to `path`. After a failure nothing is left behind.

    So a reader finds the old file or the complete new one, never half of one.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
