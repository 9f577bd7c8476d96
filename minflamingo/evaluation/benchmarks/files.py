"""A benchmark on disk: its annotation files are found and read whole, its images and films only when somebody looks at one.

    source = Source(Path("coco"))
    source.json("captions_val2014.json")              found in coco/, coco/*/ or coco/*/*/
    image = Picture(source.places("val2014"), ("COCO_val2014_000000391895.jpg",))
    image()                                           only now is the file opened: coco/val2014/COCO_val2014_000000391895.jpg

A film is a folder of frames, one frame a second in the order of their numbers, or a video file, of which one frame a second is
decoded (paper, appendix: 1 frame per second, 30 frames at evaluation; of longer films 30 evenly spread ones). Video files need
PyAV: pip install '.[video]'.

Worked example: of a film of 75 seconds, cut to the seconds 10 to 70, the frames at 10, 11, … 69 s are 60; shown are the middles
of 30 equal parts, the frames at 11, 13, … 69 s.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ...data.films import VIDEOS, by_number, decode, spread
from ..task import Example

IMAGES = (".jpg", ".jpeg", ".png", ".webp")
MAX_FRAMES = 30


@dataclass
class Source:
    """A benchmark's folder. `media`: where images or films are, if elsewhere. `problems`: the records that were passed over."""

    folder: Path
    media: Path | None = None
    problems: list[str] = field(default_factory=list)
    stems: dict[str, str] = field(default_factory=dict)  # OK-VQA: what became of an answer that somebody gave

    def find(self, *names: str) -> Path:
        """The first of these files that is in the folder, or up to two folders deeper.

        Raises:
            FileNotFoundError: there is none; says where and what was looked for.
        """
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder}: there is no such folder")
        for name in names:
            for pattern in (name, f"*/{name}", f"*/*/{name}"):
                if found := sorted(self.folder.glob(pattern)):
                    return found[0]
        raise FileNotFoundError(f"{self.folder}: found none of {', '.join(names)}, there or up to two folders deeper")

    def json(self, *names: str) -> tuple[object, str]:
        """The content of the first of these files, and the file's name.

        Raises:
            FileNotFoundError: as in `find`. ValueError: this is no JSON.
        """
        path = self.find(*names)
        try:
            return json.loads(path.read_bytes()), path.name
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON: {error}") from None

    def examples(self, records: Iterable[object], make: Callable[[dict], Example | None], where: str) -> list[Example]:
        """What `make` makes of the records; None is left out (another split). One that it cannot read is noted and left out."""
        if not isinstance(records, list | tuple):
            raise ValueError(f"{where}: expected a list of records, found {type(records).__name__}")
        made: dict[str, Example] = {}
        for i, record in enumerate(records):
            try:
                if not isinstance(record, dict):
                    raise ValueError(f"a record is an object, found {record!r:.60}")
                example = make(record)
                if example is None:
                    continue
                if example.key in made:
                    raise ValueError(f"{example.key} came before")
            except (ValueError, TypeError, LookupError, AttributeError) as error:
                reason = f"there is no {error}" if isinstance(error, KeyError) else str(error)
                self.problems.append(f"{where}, record {i}{_named(record)}: {reason}")
            else:
                made[example.key] = example
        return list(made.values())

    def places(self, *below: str) -> tuple[Path, ...]:
        """Folders in which media may be: those named, if they exist, and the benchmark's own."""
        root = self.media or self.folder
        return tuple(p for p in (root / b for b in (*below, "images", "videos", "frames")) if p.is_dir()) + (root,)


def _named(record: object) -> str:
    names = ("question_id", "image_id", "cocoid", "videoID", "video_id", "image", "filename", "id")
    return "".join(f", {n} {record[n]!r:.60}" for n in names if n in record) if isinstance(record, dict) else ""


def part(content: object, name: str, where: str, kind: type = list) -> list | dict:
    """A list, or object, inside the object that a file holds."""
    if not isinstance(content, dict) or not isinstance(content.get(name), kind):
        raise ValueError(f"{where}: expected an object in which {name!r} is a {'list' if kind is list else 'object'}")
    return content[name]


def text(record: dict, name: str) -> str:
    """A field that must be text, without the spaces around it."""
    if not isinstance(record[name], str) or not record[name].strip():
        raise ValueError(f"{name!r} must be text, found {record[name]!r:.60}")
    return record[name].strip()


def identity(record: dict, name: str) -> int | str:
    """A field that must be a number or a name, kept as it is: results are handed in with it."""
    if isinstance(record[name], bool) or not isinstance(record[name], int | str) or record[name] == "":
        raise ValueError(f"{name!r} must be a number or a name, found {record[name]!r:.60}")
    return record[name]


def texts(values: object, name: str) -> tuple[str, ...]:
    """A list of texts, of which there must be one that is not empty."""
    if not isinstance(values, list | tuple) or not all(isinstance(v, str) for v in values):
        raise ValueError(f"{name!r} must be a list of texts, found {values!r:.60}")
    if not (kept := tuple(v.strip() for v in values if v.strip())):
        raise ValueError(f"{name!r} is empty")
    return kept


# --------------------------------------------------------------------------------------------------------------- media


@dataclass(frozen=True)
class Picture:
    """An image file of one of these `names`. Calling it reads it.

    Raises (when called):
        FileNotFoundError: it is in none of the places. ValueError: it is no image, or damaged.
    """

    places: tuple[Path, ...]
    names: tuple[str, ...]

    def __call__(self) -> Image.Image:
        for path in (place / name for place in self.places for name in self.names):
            if path.is_file():
                return read_image(path)
        raise FileNotFoundError(f"{' or '.join(self.names)} is in none of {', '.join(map(str, self.places))}")


@dataclass(frozen=True)
class Film:
    """A folder of frames or a video file of one of these `names`, from second `start` to `end`. Calling it reads it.

    Raises (when called):
        FileNotFoundError: there is no such folder or file. ValueError: it is empty, or damaged.
        ImportError: it is a video file and PyAV is not installed.
    """

    places: tuple[Path, ...]
    names: tuple[str, ...]
    start: float = 0.0
    end: float = float("inf")
    max_frames: int = MAX_FRAMES

    def __call__(self) -> list[Image.Image]:
        for path in (place / name for place in self.places for name in self.names):
            if path.is_dir():
                return self._of_folder(path)
            for ending in VIDEOS:
                if (file := path.with_name(path.name + ending)).is_file():
                    return decode(file, str(file), self.start, self.end, self.max_frames)
        looked = ", ".join(map(str, self.places))
        raise FileNotFoundError(f"{self.names[0]}: neither a folder of frames nor a video file in {looked}")

    def _of_folder(self, folder: Path) -> list[Image.Image]:
        frames = sorted((f for f in folder.iterdir() if f.suffix.lower() in IMAGES), key=lambda f: by_number(f.stem))
        frames = [f for second, f in enumerate(frames) if self.start <= second < self.end] or frames[-1:]
        if not frames:
            raise ValueError(f"{folder}: there are no frames in it ({', '.join(IMAGES)})")
        return [read_image(f) for f in spread(frames, self.max_frames)]


def read_image(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise
    except Exception as error:  # of a damaged file may come anything: OSError, SyntaxError, DecompressionBombError …
        raise ValueError(f"{path} is no image, or damaged: {error}") from None
