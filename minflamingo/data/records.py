"""What the files of a shard mean: which of them are one sample together, and how that sample is read.

    Pairs       cats/7.jpg + cats/7.txt                      (or 7.json with a "caption")     [N=1, T=1]
    Videos      run/0.jpg … run/9.jpg + run.txt              (or run/text.txt, run.0.jpg …)   [N=1, T>1]
                run.json {"caption": …, "frames": ["a.jpg", …]}
                run.mp4 + run.txt                         (or run.json; one frame a second; needs PyAV)
    Documents   7.json in the form of MMC4 or OBELICS        (images inside as base64, or as files beside it)  [N>1, T=1]

A reader has two methods. `group(names)` says which files belong together: key → {ending: name}. Called with such a record and
the dice of its turn, it gives a `Sample`, or None where there is nothing to learn from (a page without images, an empty
caption), or raises ValueError: the record is broken. What becomes of those is the business of `shards.py`.

    pairs = Pairs()
    pairs.group(["cats/7.jpg", "cats/7.txt"])                # {"cats/7": {"jpg": "cats/7.jpg", "txt": "cats/7.txt"}}
    pairs(record, rng).pieces                                # [uint8 (1, 48, 48, 3), 'a cat', EOC]
"""

from __future__ import annotations

import io
import json
import posixpath
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from ..tokenizer import Tokenizer
from .documents import THRESHOLD, Picture, cut, mmc4, obelics, picture, text_of, window
from .films import VIDEOS, by_number, decode, spread
from .images import as_frames
from .sample import EOC, Sample

IMAGES = ("jpg", "jpeg", "png", "webp")
NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")  # cats/7 . jpg: the first dot parts them, as in WebDataset


class Files(Protocol):
    """Where a record's files are: a shard."""

    def __contains__(self, name: str) -> bool: ...

    def read(self, name: str) -> bytes: ...


@dataclass(frozen=True)
class Record:
    """One sample on disk. `files`: ending → name in the shard."""

    key: str
    files: Mapping[str, str]
    shard: Files

    def read(self, ending: str) -> bytes:
        return self.shard.read(self.files[ending])

    def find(self, name: str) -> bytes:
        """A file that the record names: `dog.jpg` is cats/7/dog.jpg, or cats/dog.jpg, cats/7.dog.jpg or dog.jpg."""
        folder = posixpath.dirname(self.key)
        for place in (f"{self.key}/{name}", posixpath.join(folder, name), f"{self.key}.{name}", name):
            if posixpath.normpath(place) in self.shard:
                return self.shard.read(posixpath.normpath(place))
        raise ValueError("there is no such file in the shard; if it could not be had, let its name be null")

    def json(self) -> dict:
        try:
            content = json.loads(self.read("json"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the json is broken: {error}") from None
        if not isinstance(content, dict):
            raise ValueError(f"the json must be one object, found {content!r:.60}")
        return content

    def caption(self) -> str:
        """The text of a pair or a video, on one line of its own or in the json."""
        if "txt" in self.files:
            return text_of(self.read("txt").decode("utf-8"), "txt").strip()
        if "json" in self.files:
            return text_of(self.json().get("caption"), "caption").strip()
        raise ValueError(f"there is neither a txt nor a json beside {', '.join(sorted(self.files))[:100]}")


def by_stem(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """cats/7.jpg and cats/7.txt are {"cats/7": {"jpg": …, "txt": …}}. Hidden files and files without an ending are none."""
    groups: dict[str, dict[str, str]] = {}
    for name in names:
        if parts := NAME.fullmatch(name):
            groups.setdefault(parts[1], {})[parts[2].lower()] = name
    return groups


def captioned(medium: object, text: str, tokenizer: Tokenizer | None, max_tokens: int | None) -> Sample | None:
    """`<BOS><image>text<EOC>`: too long a text is cut, its EOC is not (OpenFlamingo's captions of 32 tokens lose it)."""
    if max_tokens is not None:
        ids, room = tokenizer.encode(text), max_tokens - 3
        text = cut(ids, 0, room, tokenizer).rstrip() if len(ids) > room else text
    return Sample([medium, text, EOC]) if text else None


@dataclass(frozen=True)
class Pairs:
    """Image-text pairs. `max_tokens` counts `<BOS>`, `<image>` and `<EOC>` too, and needs the tokenizer."""

    tokenizer: Tokenizer | None = None
    max_tokens: int | None = None

    def __post_init__(self):
        _check_room(self)

    def group(self, names: Iterable[str]) -> dict[str, dict[str, str]]:
        return by_stem(names)

    def __call__(self, record: Record, rng: random.Random) -> Sample | None:
        found = [ending for ending in record.files if ending in IMAGES]
        if len(found) != 1:
            raise ValueError(f"a pair has one image ({', '.join(IMAGES)}); here are {', '.join(sorted(record.files))[:100]}")
        text = record.caption()  # first, as it costs less than an image
        image = Picture(record.files[found[0]], lambda: record.read(found[0]))
        return captioned(image.pixels(), text, self.tokenizer, self.max_tokens) if text else None


@dataclass(frozen=True)
class Videos:
    """Video-text pairs: a text and a video file, or a folder or row of frames. Of more than `frames`, as many spread ones.

    Raises (when called):
        ImportError: it is a video file and PyAV is not installed.
    """

    tokenizer: Tokenizer | None = None
    max_tokens: int | None = None
    frames: int = 8

    def __post_init__(self):
        _check_room(self)

    def group(self, names: Iterable[str]) -> dict[str, dict[str, str]]:
        groups: dict[str, dict[str, str]] = {}
        texts = []
        for name in names:
            if not (parts := NAME.fullmatch(name)):
                continue
            stem, ending = parts[1], parts[2].lower()
            if ending.split(".")[-1] in IMAGES:  # run.0.jpg belongs to run, and so does run/0.jpg
                groups.setdefault(stem if "." in ending else posixpath.dirname(name) or stem, {})[name] = name
            elif f".{ending}" in VIDEOS:
                groups.setdefault(stem, {})[ending] = name
            elif ending in ("txt", "json"):
                texts.append((stem, ending, name))
        folders = set(groups)
        for stem, ending, name in texts:
            inside = stem not in folders and posixpath.dirname(name) in folders  # run/text.txt
            groups.setdefault(posixpath.dirname(name) if inside else stem, {})[ending] = name
        return groups

    def __call__(self, record: Record, rng: random.Random) -> Sample | None:
        text = record.caption()
        if not text:
            return None
        files = [f for f in record.files if f".{f}" in VIDEOS]
        if len(files) > 1:
            raise ValueError(f"one film in several files: {', '.join(files)}")
        if files:
            frames = decode(io.BytesIO(record.read(files[0])), record.files[files[0]], most=self.frames)
        else:
            frames = [frame.pixels()[0] for frame in spread(self._pictures(record), self.frames)]
        return captioned(as_frames(frames), text, self.tokenizer, self.max_tokens)

    def _pictures(self, record: Record) -> list[Picture]:
        listed = record.json().get("frames") if "json" in record.files else None
        if listed is None:  # in the order of their numbers: 2.jpg before 10.jpg
            names = sorted((f for f in record.files if f not in ("txt", "json")), key=by_number)
            film = [Picture(name, lambda name=name: record.read(name)) for name in names]
        elif isinstance(listed, list):
            film = [picture(frame, record.find, f"frames[{t}]") for t, frame in enumerate(listed)]
        else:
            raise ValueError(f"frames must be a list, found {listed!r:.60}")
        if not film or None in film:
            raise ValueError("there are no frames" if not film else f"frames[{film.index(None)}] is null")
        return film


@dataclass(frozen=True)
class Documents:
    """Interleaved pages in the form of MMC4 or OBELICS: each json is one, its window is drawn anew each time it comes."""

    tokenizer: Tokenizer
    length: int = 256
    max_images: int = 5
    p_next: float = 0.5
    threshold: float = THRESHOLD

    def group(self, names: Iterable[str]) -> dict[str, dict[str, str]]:
        """Every json; what lies beside it is found by its name."""
        found = [name for name in names if name.lower().endswith(".json") and NAME.fullmatch(name)]
        return {name[: -len(".json")]: {"json": name} for name in found}

    def __call__(self, record: Record, rng: random.Random) -> Sample | None:
        document = record.json()
        if "text_list" in document:
            pieces = mmc4(document, record.find, self.threshold)
        elif "texts" in document:
            pieces = obelics(document, record.find)
        else:
            raise ValueError(f"neither text_list (MMC4) nor texts (OBELICS) among {', '.join(document)[:100]}")
        if all(isinstance(piece, str) or piece is EOC for piece in pieces) or EOC not in pieces:
            return None  # no image, or no text
        return window(pieces, self.tokenizer, rng, self.length, self.max_images, self.p_next)


def _check_room(reader: Pairs | Videos) -> None:
    if reader.max_tokens is not None and (reader.tokenizer is None or reader.max_tokens < 4):
        raise ValueError(f"{type(reader).__name__}: max_tokens needs a tokenizer, and room for a text: 4 or more")
