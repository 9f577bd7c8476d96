"""Images and videos that are damaged, huge, of other kinds or not images at all."""

import io
import os
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from minflamingo.data.images import ImagePreprocessor, as_frames, read_image, read_pixels
from minflamingo.data.videos import decode_video, read_video

from . import Case

FORMS, MODES = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"), ("1", "L", "P", "RGB", "RGBA", "LA", "I", "I;16")
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8))
CAT = Path("cat.png")
SPECIAL: dict[str, Callable[[Path], object]] = {  # make(path): what is not a file, but has the name of one
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a socket": lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
    "a device without end": lambda path: path.symlink_to("/dev/zero"),
    "a link to a pipe": lambda path: (os.mkfifo(path.parent / "pipe"), path.symlink_to("pipe")),
    "a link to itself": lambda path: path.symlink_to(path.name),
}
NO_FILE = "(no such file|not a file, but a folder)"


def refused(name: str, message: str, use: Callable, *arguments: object) -> Case:
    return Case(name, lambda folder: use(*arguments), refused=message)


def works(name: str, value: object, use: Callable, *arguments: object) -> Case:
    return Case(name, lambda folder: use(*arguments), gives=value)


def encoded(form: str = "PNG", image: Image.Image = PHOTO, **options) -> bytes:
    image.save(file := io.BytesIO(), form, **options)
    return file.getvalue()


def flipped(content: bytes, seed: int) -> bytes:
    """Three bytes have another value; with an odd seed, three of the first 60."""
    rng, damaged = np.random.default_rng(seed), bytearray(content)
    for i in rng.integers(0, 60 if seed % 2 else len(content), 3):
        damaged[i] ^= int(rng.integers(1, 256))
    return bytes(damaged)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, *chunks: bytes, content: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")


def tiff(following: int = 0, **changes: int) -> bytes:
    """8 x 8 grey pixels. `changes`: other values of entries; `following`: where the next directory is."""
    entries = dict(t256=8, t257=8, t258=8, t259=1, t262=1, t273=200, t277=1, t278=8, t279=64) | changes
    lines = [struct.pack("<HHII", int(tag[1:]), 4, 1, value) for tag, value in entries.items()]
    return b"II*\0" + struct.pack("<IH", 8, len(lines)) + b"".join(lines) + struct.pack("<I", following) + bytes(300)


def sized(form: str, width: int, height: int) -> bytes:
    """The photo with another size in its header."""
    content = bytearray(encoded(form))
    if form == "BMP":
        struct.pack_into("<ii", content, 18, width, height)
    else:
        struct.pack_into(">HH", content, content.index(b"\xff\xc0") + 5, height, width)
    return bytes(content)


def read(content: bytes) -> list[tuple]:
    """Shapes, as a prompt and as training data, through the preprocessing."""
    CAT.write_bytes(content)
    frames = [as_frames(read_image(CAT)), read_pixels(CAT, "cat.png")]
    assert all(ImagePreprocessor(4, resize=resize)(f).shape == (1, 3, 4, 4) for f in frames for resize in ("crop", "squash"))
    return [len(f) for f in frames]


def read_flipped(content: bytes, seeds: range) -> None:
    """Damage of pixels cannot be noticed. But each content gives an image, or an error with the name of the file."""
    for seed in seeds:
        try:
            read(flipped(content, seed))
        except ValueError as error:
            assert str(error).startswith("'cat.png': not an image"), error


WORKS = {
    **{f"{form} of {w} x 1": encoded(form, Image.new("RGB", (w, 1))) for form, w in product(FORMS, (1, 16_000))},
    **{f"a TIFF of mode {m}": encoded("TIFF", Image.new(m, (5, 4))) for m in (*MODES, "CMYK", "LAB", "F")},
    **{f"a PNG of mode {m}": encoded("PNG", Image.new(m, (5, 4))) for m in MODES},
    **{f"{f} with a damaged color profile": encoded(f, icc_profile=b"?") for f in ("PNG", "JPEG", "WEBP", "TIFF")},
    **{f"{f} with EXIF {e[:4]}": encoded(f, exif=b"Exif\0\0" + e) for f, e in product(FORMS[:3], (b"?", b"MM\0*\0\0\0\x08"))},
    "an animation of 200,000 frames": encoded("GIF", save_all=True, append_images=[PHOTO.rotate(90)])[:-1]
    + (b"\x2c" + struct.pack("<HHHH", 0, 0, 4, 4) + b"\0\2\2\x8c\x53\0") * 200_000 + b";",
    "a TIFF whose directory is the next one": tiff(8), "a TIFF whose EXIF data are its directory": tiff(t34665=8),
    "a strip of 1 x 60,000": png(1, 60_000, content=bytes(120_000)),
}  # fmt: skip
SIZES = ((60_000, 60_000), (2**31 - 1, 2**31 - 1), (0, 5), (5, 0), (2**32 - 1, 5), (60_000, 1), (14_000, 14_000))
TEXTS = (b"", b"a cat", b"<html></html>", b"\0" * 999, b"\xff\xd8", b"P5\n100000 100000\n255\n", b"P3 14000 14000 255 1 2",
         b"P6 -1 5 255 ", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")  # fmt: skip
REFUSED = {
    **{f"a PNG of {w} x {h}": png(w, h) for w, h in SIZES},
    **{f"a BMP of {w} x {h}": sized("BMP", w, h) for w, h in ((0, 5), (-1, -1), (2**31 - 1, 5), (5, -(2**31)), (32, 60_000))},
    **{f"a JPEG of {w} x {h}": sized("JPEG", w, h) for w, h in ((0, 5), (65_535, 65_535), (1, 65_535))},
    **{f"a {name.decode()} chunk that becomes 200 MB": png(8, 8, chunk(name, b"a\0\0" + zlib.compress(bytes(200_000_000))))
       for name in (b"zTXt", b"iCCP")},
    **{f"a TIFF with {c}": tiff(**c) for c in (dict(t256=60_000, t257=60_000), dict(t256=0), dict(t273=2**31),
       dict(t277=60_000), dict(t258=64), dict(t256=14_000, t257=14_000, t259=5, t278=14_000, t279=2**31))},
    "a TIFF whose directory is outside": b"II*\0" + struct.pack("<I", 2**31), "a TIFF without a directory": b"II*\0" + bytes(4),
    **{f"the text {text[:9]!r}": text for text in TEXTS},
    **{f"{10 * i}% of a {form}": encoded(form)[: len(encoded(form)) * i // 10] for form, i in product(FORMS, range(1, 10))},
}  # fmt: skip
IMAGE = np.zeros((4, 5, 3), dtype=np.uint8)
INVALID = {
    "a string": ("cat.png", "got str"), "no frames": ([], "a video needs one or more frames"),
    "numbers in a list": ([[0, 1], [2, 3]], "this list contains another list"),
    "an empty array": (IMAGE[:0], r"not empty; got \(0, 5, 3\)"), "an empty image": (Image.new("RGB", (0, 5)), "not empty"),
    "NaN": (np.array([[0.5, np.nan]]), "found nan"), "infinite": (torch.tensor([[0.5, torch.inf]]), "found 0.5...inf"),
    "too bright": (np.array([[0.0, 1.5]]), "must be in 0...1, found 0...1.5"),
    "channels first": (np.zeros((3, 8, 9), dtype=np.uint8), r"expected shape .* got \(3, 8, 9\)"),
    "two channels": (IMAGE[..., :2], r"expected shape .* got \(4, 5, 2\)"),
    "int64": (IMAGE.astype(np.int64), "must be uint8 .* or float .*, got int64"),
    "frames of two sizes": ([IMAGE, IMAGE[:3]], "frames of equal size"),
    "a video as a frame": ([IMAGE, np.stack([IMAGE, IMAGE])], "frames of equal size"),
    "a truncated file": (Image.open(io.BytesIO(encoded()[:1500])), "damaged"),
    "a sparse tensor": (torch.zeros(4, 5).to_sparse(), "Sparse"),
    "one pixel, repeated": (np.broadcast_to(IMAGE[:1, :1], (90_000, 90_000, 3)), "24,300,000,000 values are too many"),
}  # fmt: skip


def read_made(make: Callable[[Path], object], read: Callable, name: str, *arguments: object) -> object:
    Path(name).parent.mkdir(exist_ok=True)
    make(Path(name))
    return read(Path(arguments[0] if arguments else name))


def cases() -> Iterator[Case]:
    yield from (works(name, [1, 1], read, content) for name, content in WORKS.items())
    yield from (refused(name, r"^'cat\.png': not an image, or damaged: .", read, content) for name, content in REFUSED.items())
    for form, n in product(FORMS, range(0, 50, 10)):
        yield works(f"{form}, flipped bytes {n}", None, read_flipped, encoded(form), range(n, n + 10))
    for kind, make in SPECIAL.items():
        yield refused(f"{kind} as image", rf"^cat\.png: {NO_FILE}", read_made, make, read_image, "cat.png")
        if kind != "a folder":  # folders with these names can be videos and frames
            yield refused(f"{kind} as video", rf"^run\.mp4.*(PyAV|{NO_FILE})", read_made, make, read_video, "run.mp4")
            yield refused(f"{kind} as frame", rf"^run/1\.png: {NO_FILE}", read_made, make, read_video, "run/1.png", "run")
    for name in ("missing.png", "a" * 5000, "\0.png"):
        yield refused(f"an image named {name:.9}", f"^{name:.9}.*: no such file", read_image, Path(name))
    huge = lambda path: os.truncate(path.touch() or path, 2**40)  # noqa: E731
    yield refused("a huge file", r"^cat\.png: .* are too many", read_made, huge, read_image, "cat.png")
    yield refused("a GIF as PNG", r"^'name': not an image \(PNG\)", read_image, encoded("GIF"), "name", ["PNG"])
    scans = encoded("JPEG", Image.new("L", (1000, 1000)), progressive=True)
    scans = scans[:-2] + scans[scans.rindex(b"\xff\xda") : -2] * 5000
    yield refused("a JPEG with many scans", "^'photo': .*with 500. scans", read_image, scans, "photo")
    appended = encoded("JPEG", progressive=True) + b"\xff\xda\1" * 500  # as a phone appends a video
    yield works("a JPEG with data after the image", PHOTO.size, lambda: read_image(appended, "photo").size)
    yield refused("a large video", "at most 2,147,483,648 values", as_frames, [np.zeros((9000, 9000, 3), np.uint8)] * 9)
    yield works("a matrix", (1, 4, 5, 3), lambda: as_frames(np.matrix(np.ones((4, 5)) / 2)).shape)
    yield refused("a bomb", "^'bomb': .*3600000000 pixels", read_image, png(60_000, 60_000), "bomb")
    for form in ("PNG", "JPEG"):
        photo = lambda form: max(read_image(encoded(form, Image.new("L", (13_400, 13_500), 255)), "photo").size)  # noqa: E731
        yield works(f"a {form} of 181 million pixels", 9000, photo, form)
    yield works("Pillow's own limit", ([1, 1], 89_478_485), lambda: (read(encoded()), Image.MAX_IMAGE_PIXELS))
    for (name, (media, message)), use in product(INVALID.items(), (as_frames, ImagePreprocessor(4))):
        yield refused(f"{name} as media", rf"^prompt, piece 3[,:].*{message}", use, media, "prompt, piece 3")
    yield refused("no frames", "^run: this folder contains no frames", read_made, Path.mkdir, read_video, "run")
    half = lambda path: path.write_bytes(encoded()[:45])  # noqa: E731
    yield refused("half a frame", r"^'run/1.png': not an image", read_made, half, read_video, "run/1.png", "run")
    for name, content in {"nothing": b"", "text": b"a cat", "a list": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"}.items():
        message = r"^run\.mp4.*(PyAV|not a video, or damaged)"
        yield refused(f"a video that is {name}", message, decode_video, io.BytesIO(content), "run.mp4")
