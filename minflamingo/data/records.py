"""Readers: which files of a shard form one sample, and how it is read.

    Pairs       cats/7.jpg + cats/7.txt                      (or 7.json with a "caption")     [N=1, T=1]
    Videos      run/0.jpg ... run/9.jpg + run.txt            (or run/text.txt, run.0.jpg, ...)   [N=1, T>1]
                run.json {"caption": ..., "frames": ["a.jpg", ...]}
                run.mp4 + run.txt                            (or run.json; one frame per second; needs PyAV)
    Documents   7.json in the format MMC4 or OBELICS         (images inside as base64, or as files next to it)  [N>1, T=1]

`reader.group(names)` returns the files of each record: key -> {extension: name}. `reader(record, rng)` returns a `Sample`, or
None if it is not useful for training (an empty caption, a document without images). A broken record raises ValueError.
"""

import io
import json
import posixpath
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..tokenizer import Tokenizer
from .documents import THRESHOLD, cut_text, document_pieces, lazy_image, valid_text, window
from .images import LazyImage, as_frames
from .sample import EOC, Sample
from .videos import IMAGES, VIDEOS, by_number, decode_video, spread

NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")  # key and extension, separated by the first dot as in WebDataset
Groups = dict[str, dict[str, str]]  # key -> {extension: name}


@dataclass(frozen=True)
class Record:
    """The files of one sample. `files`: extension -> name in the shard. `shard`: has `name in shard` and `shard.read(name)`."""

    key: str
    files: dict[str, str]
    shard: object

    def read(self, extension: str) -> bytes:
        return self.shard.read(self.files[extension])

    def find(self, name: str) -> bytes:
        """A file that the JSON names. For record cats/7, dog.jpg is cats/7/dog.jpg, cats/dog.jpg, cats/7.dog.jpg or dog.jpg."""
        folder = posixpath.dirname(self.key)
        for path in (f"{self.key}/{name}", posixpath.join(folder, name), f"{self.key}.{name}", name):
            if posixpath.normpath(path) in self.shard:
                return self.shard.read(posixpath.normpath(path))
        raise ValueError("there is no such file in the shard; for a failed download, write null instead of the name")

    def json(self) -> dict:
        try:
            content = json.loads(self.read("json"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the json is not valid: {error}") from None
        if not isinstance(content, dict):
            raise ValueError(f"the json must be one object, found {content!r:.60}")
        return content

    def caption(self) -> str:
        """The text of the txt file, or "caption" in the json."""
        if not {"txt", "json"} & set(self.files):
            raise ValueError(f"neither a txt nor a json next to {', '.join(sorted(self.files))[:100]}")
        text = self.read("txt").decode("utf-8") if "txt" in self.files else self.json().get("caption")
        return valid_text(text, "caption").strip()


@dataclass(frozen=True)
class Captioned:
    """The common part of `Pairs` and `Videos`. `max_tokens` includes `<BOS>`, `<image>`, `<EOC>` and needs the tokenizer."""

    tokenizer: Tokenizer | None = None
    max_tokens: int | None = None

    def __post_init__(self):
        if self.max_tokens is not None and (self.tokenizer is None or self.max_tokens < 4):
            raise ValueError(f"{type(self).__name__}: max_tokens needs a tokenizer and must be at least 4")

    def __call__(self, record: Record, rng: random.Random) -> Sample | None:
        """`<BOS><image>text<EOC>`. A long text is cut but keeps its EOC (OpenFlamingo's captions of 32 tokens lose it)."""
        if not (text := record.caption()):  # before the media, which cost more to read
            return None
        media = self.media(record)
        if self.max_tokens is not None and len(ids := self.tokenizer.encode(text)) > self.max_tokens - 3:
            text = cut_text(ids, 0, self.max_tokens - 3, self.tokenizer).rstrip()
        return Sample([media, text, EOC]) if text else None


@dataclass(frozen=True)
class Pairs(Captioned):
    """Image-text pairs."""

    def group(self, names: Iterable[str]) -> Groups:
        groups: Groups = {}
        for match in filter(None, map(NAME.fullmatch, names)):  # hidden files and files without extension do not match
            groups.setdefault(match[1], {})[match[2].lower()] = match[0]
        return groups

    def media(self, record: Record) -> np.ndarray:
        images = [extension for extension in record.files if f".{extension}" in IMAGES]
        if len(images) != 1:
            raise ValueError(f"a pair needs one image ({', '.join(IMAGES)}), found {', '.join(sorted(record.files))[:100]}")
        return LazyImage(record.files[images[0]], lambda: record.read(images[0])).pixels()


@dataclass(frozen=True)
class Videos(Captioned):
    """Video-text pairs: a text and a video file, or a text and frames. Of more than `frames` frames, `frames` are used."""

    frames: int = 8

    def group(self, names: Iterable[str]) -> Groups:
        groups: Groups = {}
        texts = []
        for match in filter(None, map(NAME.fullmatch, names)):
            name, key, extension = match[0], match[1], match[2].lower()
            if f".{extension.split('.')[-1]}" in IMAGES:  # run.0.jpg belongs to run, and so does run/0.jpg
                groups.setdefault(key if "." in extension else posixpath.dirname(name) or key, {})[name] = name
            elif f".{extension}" in VIDEOS:
                groups.setdefault(key, {})[extension] = name
            elif extension in ("txt", "json"):
                texts.append((key, extension, name))
        with_frames = set(groups)
        for key, extension, name in texts:
            inside = key not in with_frames and posixpath.dirname(name) in with_frames  # run/text.txt
            groups.setdefault(posixpath.dirname(name) if inside else key, {})[extension] = name
        return groups

    def media(self, record: Record) -> np.ndarray:
        files = [f for f in record.files if f".{f}" in VIDEOS]
        if len(files) > 1:
            raise ValueError(f"one video in several files: {', '.join(files)}")
        if files:
            return as_frames(decode_video(io.BytesIO(record.read(files[0])), record.files[files[0]], max_frames=self.frames))
        listed = record.json().get("frames") if "json" in record.files else None
        if listed is None:  # sorted by number: 2.jpg before 10.jpg
            names = sorted((f for f in record.files if f not in ("txt", "json")), key=by_number)
            images = [LazyImage(name, lambda name=name: record.read(name)) for name in names]
        else:
            listed = listed if isinstance(listed, list) else [None]
            images = [lazy_image(frame, record.find, f"frames[{t}]") for t, frame in enumerate(listed)]
        if not images or None in images:
            raise ValueError(f"a video needs image files or a list of frames without null, found {listed!r:.60}")
        return as_frames([image.pixels() for image in spread(images, self.frames)])


@dataclass(frozen=True)
class Documents:
    """Interleaved documents in the format MMC4 or OBELICS: each json is one, with a new random window each time it is read."""

    tokenizer: Tokenizer
    length: int = 256
    max_images: int = 5
    p_next: float = 0.5
    threshold: float = THRESHOLD

    def group(self, names: Iterable[str]) -> Groups:
        """All json files; `Record.find` finds the images next to them."""
        found = [name for name in names if name.lower().endswith(".json") and NAME.fullmatch(name)]
        return {name[: -len(".json")]: {"json": name} for name in found}

    def __call__(self, record: Record, rng: random.Random) -> Sample | None:
        pieces = document_pieces(record.json(), record.find, self.threshold)
        if all(isinstance(piece, str) or piece is EOC for piece in pieces) or EOC not in pieces:
            return None  # no image, or no text
        return window(pieces, self.tokenizer, rng, length=self.length, max_images=self.max_images, p_next=self.p_next)
