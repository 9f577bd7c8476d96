"""Images and videos that are damaged, huge, of other kinds or not images at all."""

import io
import os
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from minflamingo.data.images import ImagePreprocessor, as_frames, read_image, read_pixels
from minflamingo.data.videos import decode_video, read_video

from . import Case

FORMS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8))
SPECIAL: dict[str, Callable[[Path], object]] = {  # make(path): what is not a file, but has the name of one
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a socket": lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
    "a device without end": lambda path: path.symlink_to("/dev/zero"),
    "a device without content": lambda path: path.symlink_to("/dev/null"),
    "a link to a pipe": lambda path: (os.mkfifo(path.parent / "pipe"), path.symlink_to("pipe")),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to a missing file": lambda path: path.symlink_to("missing"),
}


def encoded(form: str = "PNG", image: Image.Image = PHOTO, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def flipped(content: bytes, seed: int, first: int = 0, last: int | None = None) -> bytes:
    """Three bytes have another value."""
    rng, damaged = np.random.default_rng(seed), bytearray(content)
    for i in rng.integers(first, last or len(content), 3):
        damaged[i] ^= int(rng.integers(1, 256))
    return bytes(damaged)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, *chunks: bytes, content: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")


def tiff(following: int = 0, more: tuple = (), **changes: int) -> bytes:
    """8 x 8 grey pixels. `changes`: other values of entries; `following`: where the next directory is."""
    entries = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: 200, 277: 1, 278: 8, 279: 64}
    entries = [(tag, changes.get(f"t{tag}", value)) for tag, value in entries.items()] + list(more)
    lines = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries]
    return b"II*\0" + struct.pack("<IH", 8, len(lines)) + b"".join(lines) + struct.pack("<I", following) + bytes(300)


def sized(form: str, width: int, height: int) -> bytes:
    """The photo with another size in its header."""
    content = bytearray(encoded(form))
    kind, place, values = {
        "BMP": ("<ii", 18, (width, height)), "GIF": ("<HH", 6, (width % 2**16, height % 2**16)),
        "JPEG": (">HH", content.find(b"\xff\xc0") + 5, (height % 2**16, width % 2**16)),
    }[form]  # fmt: skip
    struct.pack_into(kind, content, place, *values)
    return bytes(content)


def read(content: bytes) -> list[tuple]:
    """Shapes, as a prompt and as training data, through the preprocessing."""
    Path("cat.png").write_bytes(content)
    frames = [as_frames(read_image(Path("cat.png"))), read_pixels(Path("cat.png"), "cat.png")]
    assert all(ImagePreprocessor(4, resize=resize)(f).shape == (1, 3, 4, 4) for f in frames for resize in ("crop", "squash"))
    return [f.shape for f in frames]


def works_or_is_named(contents: list[bytes]) -> str:
    """Damage in the pixels cannot be noticed. But each content gives an image, or an error with the name of the file."""
    for content in contents:
        try:
            read(content)
        except ValueError as error:
            if not str(error).startswith("'cat.png': not an image"):
                return str(error)
    return "all are"


MODES = ("1", "L", "P", "RGB", "RGBA", "LA", "I", "I;16")
WORKS = {
    **{f"{form} of {w} x 1": encoded(form, Image.new("RGB", (w, 1))) for form, w in product(FORMS, (1, 16_000))},
    **{f"a TIFF of mode {m}": encoded("TIFF", Image.new(m, (5, 4))) for m in (*MODES, "CMYK", "LAB", "F")},
    **{f"a PNG of mode {m}": encoded("PNG", Image.new(m, (5, 4))) for m in MODES},
    **{f"{f} with a damaged color profile": encoded(f, icc_profile=b"?") for f in ("PNG", "JPEG", "WEBP", "TIFF")},
    **{f"{f} with damaged EXIF data {i}": encoded(f, exif=b"Exif\0\0" + exif) for f in ("PNG", "JPEG", "WEBP")
       for i, exif in enumerate((b"garbage", b"MM\0*\0\0\0\x08" + b"\xff" * 99, b"II*\0\x08\0\0\0\1\0\x12\1\3\0\xff\xff"))},
    "an animation of 200,000 frames": encoded("GIF", save_all=True, append_images=[PHOTO.rotate(90)])[:-1]
    + (b"\x2c" + struct.pack("<HHHH", 0, 0, 4, 4) + b"\0\2\2\x8c\x53\0") * 200_000 + b";",
    "a TIFF whose directory is the next one": tiff(8),
    "a TIFF whose EXIF data are its directory": tiff(more=((34665, 8),)),
    "a TIFF with an unknown orientation": tiff(more=((274, 99),)),
    "a strip of 1 x 60,000": png(1, 60_000, content=bytes(120_000)),
}  # fmt: skip
SIZES = ((60_000, 60_000), (2**31 - 1, 2**31 - 1), (0, 5), (5, 0), (2**32 - 1, 5), (60_000, 1), (14_000, 14_000))
REFUSED = {
    **{f"a PNG of {w} x {h}": png(w, h) for w, h in SIZES},
    **{f"a {form} whose header says {w} x {h}": sized(form, w, h) for form, (w, h) in product(
        ("BMP", "JPEG", "GIF"), ((0, 0), (65_535, 65_535), (-1, -1), (60_000, 50_000))) if form != "GIF" or w},
    **{f"a BMP whose header says {w} x {h}": sized("BMP", w, h) for w, h in ((2**31 - 1, 5), (5, -(2**31)), (32, 60_000))},
    "a text chunk that becomes 200 MB": png(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200_000_000)))),
    "a color profile that becomes 200 MB": png(8, 8, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(200_000_000)))),
    "a TIFF of 60,000 x 60,000": tiff(t256=60_000, t257=60_000), "a TIFF of 0 x 8": tiff(t256=0),
    "a TIFF of 200 million pixels without data": tiff(t256=14_000, t257=14_000, t259=5, t278=14_000, t279=2**31),
    "a TIFF whose pixels are outside": tiff(t273=2**31), "a TIFF with 60,000 channels": tiff(t277=60_000),
    "a TIFF of 64 bits": tiff(t258=64), "a TIFF whose directory is outside": b"II*\0" + struct.pack("<I", 2**31),
    "a TIFF without a directory": b"II*\0" + bytes(4),
    "a QOI of 15,000 x 15,000": b"qoif" + struct.pack(">IIH", 15_000, 15_000, 768),
    "an EPS, which is a program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n{} loop\n",
    **{f"the text {text[:9]!r}": text for text in (b"", b"a cat", b"<html></html>", b"\0" * 999, bytes(range(256)), b"\xff\xd8",
       b"P5\n100000 100000\n255\n", b"P3\n14000 14000\n255\n1 2 3", b"P6 0 0 255 ", b"P6 -1 5 255 ", b"P6 " + b"9" * 5000)},
    **{f"{10 * i}% of a {form}": encoded(form)[: len(encoded(form)) * i // 10] for form, i in product(FORMS, range(1, 10))},
}  # fmt: skip
IMAGE = np.zeros((4, 5, 3), dtype=np.uint8)
INVALID = {
    "a string": ("cat.png", "got str"),
    "no frames": ([], "a video needs one or more frames"),
    "numbers in a list": ([[0, 1], [2, 3]], "frame 0, frame 0: .* got int"),
    "an empty array": (IMAGE[:0], r"not empty; got \(0, 5, 3\)"),
    "an empty image": (Image.new("RGB", (0, 5)), "not empty"),
    "NaN": (np.array([[0.5, np.nan]]), "found nan"),
    "infinite": (torch.tensor([[0.5, torch.inf]]), "found 0.5...inf"),
    "too bright": (np.array([[0.0, 1.5]]), "must be in 0...1, found 0...1.5"),
    "channels first": (np.zeros((3, 8, 9), dtype=np.uint8), r"expected shape .* got \(3, 8, 9\)"),
    "two channels": (IMAGE[..., :2], r"expected shape .* got \(4, 5, 2\)"),
    "int64": (IMAGE.astype(np.int64), "must be uint8 .* or float .*, got int64"),
    "objects": (IMAGE.astype(object), "must be uint8 .* or float .*, got object"),
    "frames of two sizes": ([IMAGE, IMAGE[:3]], "frames of equal size"),
    "a video as a frame": ([IMAGE, np.stack([IMAGE, IMAGE])], "frames of equal size"),
    "a truncated file": (Image.open(io.BytesIO(encoded()[:1500])), "damaged"),
    "a sparse tensor": (torch.zeros(4, 5).to_sparse(), "Sparse"),
}


CAT = Path("cat.png")


def frames(*images: Image.Image | bytes) -> Path:
    """A folder with these frames."""
    Path("run").mkdir()
    for i, image in enumerate(images):
        Path(f"run/{i}.png").write_bytes(image if isinstance(image, bytes) else encoded(image=image))
    return Path("run")


def named(name: str, content: bytes) -> Path:
    Path(name).write_bytes(content)
    return Path(name)


OTHERS = [
    ("the content of a bomb", lambda _: read_image(png(60_000, 60_000), "bomb"), "^'bomb': .*3600000000 pixels"),
    ("a GIF as PNG", lambda _: read_image(encoded("GIF"), "name", ["PNG"]), r"^'name': not an image \(PNG\)"),
    ("a huge file", lambda _: (os.truncate(named("cat.png", b""), 2**40), read_image(CAT)), r"^cat\.png: .* are too many"),
    ("no frames", lambda _: read_video(frames()), "^run: this folder contains no frames"),
    ("two sizes", lambda _: read_video(frames(PHOTO, PHOTO.resize((5, 5)))), "^run: the frames have several sizes"),
    ("a damaged frame", lambda _: read_video(frames(PHOTO, encoded()[:45])), r"^'run/1\.png': not an image, or damaged"),
]  # fmt: skip


def cases() -> Iterator[Case]:
    for name, content in WORKS.items():
        yield Case(name, lambda _, c=content: len({shape[0] for shape in read(c)}), gives=1)
    for name, content in REFUSED.items():
        yield Case(name, lambda _, c=content: read(c), refused=r"^'cat\.png': not an image, or damaged: .")
    for form, part in product(FORMS, range(5)):
        contents = [flipped(encoded(form), seed, last=60 if seed % 2 else None) for seed in range(10 * part, 10 * part + 10)]
        yield Case(f"{form}, flipped bytes {part}", lambda _, c=contents: works_or_is_named(c), gives="all are")
    for kind, make in SPECIAL.items():
        reason = "no such file" if "itself" in kind or "missing" in kind else "not a file, but a folder"
        yield Case(f"{kind} as image", lambda _, m=make: (m(CAT), read_image(CAT)), refused=rf"^cat\.png: {reason}")
        if kind != "a folder":
            made = rf"^run\.mp4.*(PyAV|{reason})"
            yield Case(f"{kind} as video", lambda _, m=make: (m(Path("run.mp4")), read_video(Path("run.mp4"))), refused=made)
            made = lambda _, m=make: (m(frames(PHOTO) / "1.png"), read_video(Path("run")))  # noqa: E731
            yield Case(f"{kind} as frame", made, refused=rf"^run/1\.png: {reason}")
    for name in ("missing.png", "a" * 5000, "\0.png"):
        yield Case(f"an image named {name:.9}", lambda _, n=name: read_image(Path(n)), refused=f"^{name:.9}.*: no such file")
    for form in ("PNG", "JPEG"):
        photo = partial(encoded, form, Image.new("L", (13_400, 13_500), 255))
        yield Case(f"a {form} of 181 million pixels", lambda _, p=photo: max(read_image(p(), "photo").size), gives=9000)
    for name, run, refused in OTHERS:
        yield Case(name, run, refused=refused)
    for (name, (media, message)), use in product(INVALID.items(), (as_frames, ImagePreprocessor(4))):
        refused = rf"^prompt, piece 3[,:].*{message}"
        yield Case(f"{name} as media", lambda _, m=media, u=use: u(m, "prompt, piece 3"), refused=refused)
    both = (PHOTO, PHOTO.convert("L"))
    yield Case("frames of two modes", lambda _: as_frames(read_video(frames(*both))).shape, gives=(2, 24, 32, 3))
    yield Case("another ending", lambda _: read_image(named("cat.png", encoded("JPEG"))).size, gives=(32, 24))
    yield Case("Pillow's own limit stays", lambda _: (read(encoded())[0][0], Image.MAX_IMAGE_PIXELS), gives=(1, 89_478_485))
    for name, content in {"nothing": b"", "text": b"a cat", "a list": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"}.items():
        bad = r"^run\.mp4.*(PyAV|not a video, or damaged)"
        yield Case(f"a video that is {name}", lambda _, c=content: read_video(named("run.mp4", c)), refused=bad)
        yield Case(f"a content that is {name}", lambda _, c=content: decode_video(io.BytesIO(c), "run.mp4"), refused=bad)
