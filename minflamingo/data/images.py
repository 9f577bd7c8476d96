"""Any image -> the pixels that a vision encoder was trained on: size, crop, mean and standard deviation.

    file -> read_image -> as_frames: RGB uint8 (T, H, W, 3) -> resize -> (x / 255 - mean) / std -> float (T, 3, H, W)

`as_frames` accepts PIL images of any mode (palette, alpha, CMYK, 16 bit; the EXIF rotation is applied), arrays and tensors
(H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8 in 0...255 or float in 0...1, and for a video a list of these. An animation
(GIF, APNG, WebP) is its current frame, which is the first one after opening.

A published vision encoder needs images exactly as in its training. There are two ways to make an image square:

    squash    640x480 -> 224x224                          the whole image, distorted              ours, IDEFICS
    crop      640x480 -> 298x224 -> center 224x224        not distorted, the ends are cut off     CLIP, OpenFlamingo
"""

import io
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..config import check_fields
from .files import MOST_BYTES, open_file, read_file

# Formats of training data, and the endings of their files. Decoders of rare formats are a risk for files from the web.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
IMAGES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
# Other formats that a user may pass in a prompt.
OTHER_IMAGES = (".apng", ".avif", ".heic", ".heif", ".jp2", ".j2k", ".jxl", ".mpo", ".ppm", ".pgm", ".pbm", ".pnm",
                ".tga", ".ico", ".psd", ".svg", ".eps", ".pdf", ".dng", ".cr2", ".nef")  # fmt: skip
MOST_PIXELS = 210_000_000  # photos of phones have up to 200 million


def read_image(file: str | Path | bytes, name: str | None = None, formats: Sequence[str] | None = None) -> Image.Image:
    """Decode an image file, given as a path or as its content. `formats` None: all that Pillow knows, without EPS and FITS.

    An image of more than 90 million pixels is reduced to at most 9000 x 9000, so that it needs little memory.
    Raises FileNotFoundError, or ValueError for a damaged file. The message begins with `name` (default: the path).
    """
    with io.BytesIO(file) if isinstance(file, bytes) else open_file(file) as content:
        try:
            with _open(content, formats) as image:
                if image.width * image.height > 90_000_000:
                    image.thumbnail((9000, 9000), Image.Resampling.NEAREST)  # fast, and good enough for so many pixels
                image.load()  # decode now, so that a truncated file raises here
                return image
        except Exception as error:  # damaged files raise OSError, SyntaxError, struct.error, MemoryError, ...
            reason = str(error) or type(error).__name__
    if not isinstance(file, bytes):
        file, name = read_file(file), name or str(file)
    if file.startswith(b"\xff\xd8") and b"Exif\0\0" in file:  # a JPEG: perhaps only its EXIF data are damaged
        return read_image(file.replace(b"Exif\0\0", bytes(6)), name, formats)
    expected = f"an image ({', '.join(formats)})" if formats else "an image"
    raise ValueError(f"{name or 'image'!r:.200}: not {expected}, or damaged: {reason}"[:600])


def _open(file: BinaryIO, formats: Sequence[str] | None) -> Image.Image:
    """As Image.open, with our limit of pixels. Pillow's is lower, and changing it would change the whole process."""
    Image.init()
    # An EPS is a program for Ghostscript, and a small FITS file can need all memory.
    start, others = file.read(16), sorted({*Image.ID} - {*FORMATS, "EPS", "FITS"})
    for factory, accepts in map(Image.OPEN.get, formats or (*FORMATS, *others)):
        if accepts is None or accepts(start) is True:
            file.seek(0)
            with suppress(SyntaxError, IndexError, TypeError, struct.error):  # it has another format
                image = factory(file, "")
                if image.width * image.height > MOST_PIXELS:
                    raise ValueError(f"{image.width * image.height} pixels are too many; at most {MOST_PIXELS} are read")
                if image.info.get("progressive"):  # a JPEG in several scans: usually ten, but a file may have thousands
                    file.seek(0)
                    if (n := sum(block.count(b"\xff\xda\0") for block in iter(partial(file.read, 2**20), b""))) > 100:
                        raise ValueError(f"a progressive JPEG with {n} scans, which would take very long; convert it to PNG")
                return image
    raise ValueError("unknown content; convert it to PNG or JPEG")


def read_pixels(file: Path | bytes, name: str) -> np.ndarray:
    """An image of training data -> uint8 (1, H, W, 3). Raises errors as `read_image`."""
    return as_frames(read_image(file, name, FORMATS), name)


def as_frames(media: object, where: str = "image") -> np.ndarray:
    """One image, or a list of frames, -> uint8 (T, H, W, 3).

    Raises TypeError if it is not an image, ValueError for a wrong shape or invalid values. The message begins with `where`.
    """
    if isinstance(media, list | tuple):
        if any(isinstance(frame, list | tuple) for frame in media):
            raise TypeError(f"{where}: a video is a list of images, but this list contains another list")
        frames = [as_frames(frame, f"{where}, frame {t}") for t, frame in enumerate(media)]
        if len({frame.shape for frame in frames}) != 1 or len(frames[0]) != 1 or sum(f.size for f in frames) > MOST_BYTES:
            expected = f"one or more frames of equal size, and at most {MOST_BYTES:,} values"
            raise ValueError(f"{where}: a video needs {expected}; got {len(frames)} frames {[f.shape for f in frames]}"[:600])
        return np.concatenate(frames)
    try:
        if isinstance(media, Image.Image):
            media = _pil_as_array(media)
        if isinstance(media, Tensor):
            media = media.detach().cpu()
            media = (media.float() if media.is_floating_point() else media).numpy()  # numpy has no bfloat16
    except Exception as error:  # Pillow decodes lazily; a sparse tensor is no image
        raise ValueError(f"{where}: the image is damaged, or of an unknown kind: {error}"[:600]) from None
    if not isinstance(media, np.ndarray):
        raise TypeError(f"{where}: expected an image (PIL, array or tensor) or a list of frames, got {type(media).__name__}")
    array = np.asarray(media)[..., None] if media.ndim == 2 else np.asarray(media)  # asarray: a np.matrix has always two axes
    array = array[None] if array.ndim == 3 else array
    if array.ndim != 4 or array.shape[-1] not in (1, 3, 4) or 0 in array.shape:
        raise ValueError(f"{where}: expected shape (H, W), (H, W, 1|3|4) or (T, H, W, 1|3|4), not empty; got {media.shape}")
    if array.size > MOST_BYTES:
        raise ValueError(f"{where}: {array.size:,} values are too many; at most {MOST_BYTES:,} are used")
    if np.issubdtype(array.dtype, np.floating):
        if not (array.min() >= 0 and array.max() <= 1):  # also false for NaN
            raise ValueError(f"{where}: float pixels must be in 0...1, found {array.min():.3g}...{array.max():.3g}")
        array = np.round(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise ValueError(f"{where}: pixels must be uint8 (0...255) or float (0...1), got {array.dtype}")
    if array.shape[-1] == 4:  # transparent pixels become white
        alpha = array[..., 3:].astype(np.uint16)  # floats of a large image would need several gigabytes
        array = ((array[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)  # + 127: rounded
    return array if array.shape[-1] == 3 else array.repeat(3, axis=-1)


TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF orientation -> Image.Transpose


def turned(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation. PIL's `exif_transpose` also writes the other entries, which fails if one is damaged."""
    image.load()  # a PNG may have its EXIF data at the end
    try:
        turn = TURNS.get(image.getexif().get(0x0112))
    except Exception:  # unreadable: the photo is used as it is stored
        turn = None
    return image if turn is None else image.transpose(turn)


def _pil_as_array(image: Image.Image) -> np.ndarray:
    image = turned(image)
    if image.mode.startswith("I") or image.mode == "F":  # 16 or 32 bit grey: PIL's own conversion would clip it to 255
        pixels = np.array(image, dtype=np.float32)
        return pixels / max(pixels.max(), 65535 if image.mode.startswith("I") else 1)
    return np.array(image.convert("RGBA" if image.has_transparency_data else "RGB"))


CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the 400 million images that CLIP was trained on
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ImagePreprocessor:
    """`size` in pixels, `mean` and `std` per channel of values in 0...1, `resize` "squash" or "crop" (see above)."""

    size: int
    mean: Sequence = (0.5, 0.5, 0.5)
    std: Sequence = (0.5, 0.5, 0.5)
    resize: Literal["squash", "crop"] = "squash"

    def __post_init__(self):
        check_fields(self)
        for name, low in (("mean", -1000), ("std", 1e-6)):
            values = tuple(getattr(self, name))  # JSON gives lists; as tuples, equal preprocessors compare equal
            if len(values) != 3 or not all(isinstance(x, float | int) and low <= x <= 1000 for x in values):
                raise ValueError(f"ImagePreprocessor.{name} is {values!r:.200}; it must be three numbers from {low} to 1000")
            object.__setattr__(self, name, values)

    def __call__(self, media: object, where: str = "image") -> Tensor:
        """One image or video, in any form that `as_frames` accepts -> (T, 3, size, size) float32."""
        frames = as_frames(media, where)
        if frames.shape[1:3] != (self.size, self.size):
            squash = partial(Image.Image.resize, size=(self.size, self.size), resample=Image.Resampling.BICUBIC)
            resize = squash if self.resize == "squash" else partial(shrink_and_crop, size=self.size)
            frames = np.stack([np.asarray(resize(Image.fromarray(frame))) for frame in frames])
        x = torch.tensor(frames).permute(0, 3, 1, 2).float().div_(255)  # (T, H, W, 3) -> (T, 3, H, W)
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return x.sub_(mean).div_(std)


def shrink_and_crop(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to `size` in proportion (a small image grows), then take the center size x size.

    Two roundings decide which pixels are used. They are those of torchvision, with which CLIP and OpenFlamingo were trained:
    the longer side is int(size * long / short), and the margin is rounded to even, round(margin / 2):

        333 x 500 at 224   ->   224 x int(336.3) = 224 x 336   ->   112 rows too many, 56 removed at the top
        224 x 227          ->   not resized                    ->     3 rows too many, round(1.5) = 2 removed at the top

    (transformers rounds the margin down: 1 row at the top of 224 x 227, so all pixels are shifted by one.)
    """
    if max(image.size) > 100 * min(image.size):  # the ends of a long strip could need gigabytes, and are cut off anyway
        left, top = (max(0, side - 100 * min(image.size)) // 2 for side in image.size)
        image = image.crop((left, top, image.width - left, image.height - top))
    short, long = sorted(image.size)
    image = image.resize([size if side == short else int(size * long / short) for side in image.size], Image.Resampling.BICUBIC)
    left, top = (round((side - size) / 2) for side in image.size)
    return image.crop((left, top, left + size, top + size))


def clip_preprocessor(size: int = 224, resize: str = "crop") -> ImagePreprocessor:
    """CLIP's preprocessing at evaluation, also used by OpenFlamingo; with "squash" that of IDEFICS, which cuts nothing off."""
    return ImagePreprocessor(size, CLIP_MEAN, CLIP_STD, resize)
