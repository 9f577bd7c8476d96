"""Films: the frames of a video file, and which of a long film are shown.

    film = decode(Path("run.mp4"), "run.mp4", most=8)      one frame a second; of more than 8 seconds, 8 evenly spread ones

One frame a second, as in the paper (8 of them in training, 30 in evaluation). Folders of frames need nothing; video files need
PyAV: pip install 'minflamingo[video]'.

Worked example: of 75 frames 30 are shown, the middles of 30 equal parts: numbers 1, 3, 6, 8, 11, … 73.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

from PIL import Image

VIDEOS = (".mp4", ".mkv", ".webm", ".avi", ".mov")
T = TypeVar("T")


def decode(
    file: Path | BinaryIO, name: str, start: float = 0.0, end: float = float("inf"), most: int | None = None
) -> list[Image.Image]:
    """One frame a second of a video file: the first at or after `start`, `start` + 1, … before `end`; at most `most`, spread.

    Args:
        file: a path, or an open file. name: how errors call it.
    Raises:
        ImportError: PyAV is not installed. ValueError: this is no video, or damaged, or has no frame there.
    """
    try:
        import av
    except ImportError:
        raise ImportError(f"{name} is a video file: reading it needs PyAV (pip install 'minflamingo[video]')") from None
    chosen, wanted = [], start
    try:
        with av.open(str(file) if isinstance(file, Path) else file) as container:
            stream = container.streams.video[0]
            begin = float((stream.start_time or 0) * stream.time_base)
            if start > 0:  # to the key frame before it
                container.seek(int((start + begin) / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                now = frame.time - begin
                if now >= end:
                    break
                if now >= wanted - 1e-3:
                    chosen.append(frame)
                    wanted = max(wanted + 1, start + int(now - start) + 1)
    except (av.error.FFmpegError, IndexError, TypeError) as error:
        raise ValueError(f"{name} is no video, or damaged: {error}") from None
    if not chosen:
        raise ValueError(f"{name}: no frame could be decoded from {start:g} s on")
    return [frame.to_image() for frame in (chosen if most is None else spread(chosen, most))]


def spread(frames: Sequence[T], most: int) -> list[T]:
    """All frames, or of more than `most` the middles of as many equal parts."""
    n = min(most, len(frames))
    return [frames[(2 * t + 1) * len(frames) // (2 * n)] for t in range(n)]


def by_number(name: str) -> list:
    """The order of frames by their names: 2 before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
