"""Videos: the frames of a video file or a folder, one per second as in the paper (8 in training, 30 in evaluation).

    frames = decode_video(Path("run.mp4"), "run.mp4", max_frames=8)      a longer video gives 8 evenly spaced frames

Video files need PyAV: pip install 'minflamingo[video]'. Folders of frames need nothing.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from .files import open_file
from .images import IMAGES, OTHER_IMAGES, read_image

VIDEOS = (".mp4", ".m4v", ".mkv", ".webm", ".avi", ".mov", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ogv")  # endings
FORMATS = {"format_whitelist": "mov,matroska,avi,mpeg,mpegts,mpegvideo,m4v,asf,flv,ogg"}  # of FFmpeg, for these endings


def read_video(path: Path, *, start: float = 0.0, end: float = float("inf"), max_frames: int = 30) -> list[Image.Image]:
    """Frames of a video file, or of a folder with one image per second (if it is shorter than `start`: the last image).

    Raises FileNotFoundError, ValueError (no frame, or a damaged file) or ImportError (a video file without PyAV).
    """
    if not path.is_dir():
        return decode_video(path, str(path), start=start, end=end, max_frames=max_frames)
    # Hidden files are not frames: macOS writes "._1.png" next to "1.png".
    frames = (f for f in path.iterdir() if f.suffix.lower() in (*IMAGES, *OTHER_IMAGES) and f.name[0] != ".")
    files = sorted(frames, key=lambda f: by_number(f.stem))
    if not files:
        raise ValueError(f"{path}: this folder contains no frames ({', '.join(IMAGES)})")
    return [read_image(f) for f in spread([f for t, f in enumerate(files) if start <= t < end] or files[-1:], max_frames)]


def decode_video(
    file: Path | BinaryIO, name: str, *, start: float = 0.0, end: float = float("inf"), max_frames: int = 30
) -> list[Image.Image]:
    """One frame per second of a video file: the first at or after `start`, `start` + 1, ..., before `end`."""
    try:
        import av
    except ImportError:
        raise ImportError(f"{name} is a video file. Reading it needs PyAV: pip install 'minflamingo[video]'") from None
    seconds, step = {}, 1  # second since `start` -> its first frame; of a long video only every `step`-th, to need less memory
    try:
        # Without a list of formats, a text file could make FFmpeg read other files and addresses.
        with open_file(file) if isinstance(file, Path) else file as content, av.open(content, options=FORMATS) as container:
            stream = container.streams.video[0]
            offset = float((stream.start_time or 0) * stream.time_base)  # the time stamps of a file need not begin at 0
            if start > 0:  # jump to the last key frame before `start`
                container.seek(int((start + offset) / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                now = frame.time - offset
                if now >= end:
                    break
                second = int(now - start + 1e-3)  # time stamps are rounded
                if now >= start - 1e-3 and second % step == 0:
                    seconds.setdefault(second, frame)
                    if len(seconds) > 8 * max_frames:
                        step *= 2
                        seconds = {t: frame for t, frame in seconds.items() if t % step == 0}
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged files raise FFmpegError, IndexError, OverflowError, ...
        raise ValueError(f"{name}: not a video, or damaged: {error}"[:600]) from None
    if not seconds:
        raise ValueError(f"{name}: no frame could be decoded from second {start:g} on")
    return [frame.to_image() for frame in spread(list(seconds.values()), max_frames)]


def spread(frames: Sequence, most: int) -> list:
    """All frames, or of more than `most`, those in the middles of `most` equal parts: 30 of 75 are 1, 3, 6, 8, 11, ..."""
    n = min(most, len(frames))
    return [frames[(2 * t + 1) * len(frames) // (2 * n)] for t in range(n)]


def by_number(name: str) -> list:
    """A sorting key for names of frames: 2 comes before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
