"""Images and videos that are damaged, huge, of other kinds or not images at all."""

from collections.abc import Iterator
from pathlib import Path

from minflamingo.data.images import read_image

from . import Case


def cases() -> Iterator[Case]:
    def empty(folder: Path) -> object:
        (folder / "cat.png").touch()
        return read_image(folder / "cat.png")

    yield Case("an empty PNG", empty, refused=r"cat\.png.*not an image")
