"""From any picture to the pixels an eye was trained on: size, crop, mean and deviation.

    anything → RGB uint8 (T, H, W, 3) → resize → (x / 255 − mean) / std → float (T, 3, H, W)

Accepted: PIL images of any mode (palette, alpha, CMYK, 16 bit; the camera's EXIF rotation is applied), numpy arrays or
tensors (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8 in 0…255 or float in 0…1, and for a video a list of these. An
animation given as one image (GIF, APNG, WebP) is the frame it stands at: the first, unless someone has moved it on.

Example: a 640×480 photograph → `as_frames` (1, 480, 640, 3) uint8 → `ImagePreprocessor(48)` → (1, 3, 48, 48), values in −1…1.

A published eye must see pictures exactly as in its training. There are two ways to make a square of one:

    squash    640×480 → 224×224                          all of it, out of shape        ours, IDEFICS
    crop      640×480 → 298×224 → the middle 224×224     in shape, the ends cut off     CLIP, OpenFlamingo
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


def as_frames(medium: object, where: str = "image") -> np.ndarray:
    """One image, or a list of frames, → uint8 (T, H, W, 3).

    Raises:
        TypeError: this is no image. ValueError: it is one, but empty, of a wrong shape or with values that make no sense.
    """
    if isinstance(medium, list | tuple):
        if not medium:
            raise ValueError(f"{where}: a video of no frames")
        frames = [_one_frame(f, f"{where}, frame {t}") for t, f in enumerate(medium)]
        if len({f.shape for f in frames}) > 1:
            raise ValueError(f"{where}: frames of different sizes {sorted({f.shape[:2] for f in frames})}")
        return np.stack(frames)
    if isinstance(medium, Image.Image):
        if 0 in medium.size:
            raise ValueError(f"{where}: an empty image of {medium.width}×{medium.height} pixels")
        try:
            image = ImageOps.exif_transpose(medium)
        except (OSError, SyntaxError) as error:  # Pillow reads the file only now
            raise ValueError(f"{where}: the image file is damaged ({error})") from None
        if image.mode.startswith("I") or image.mode == "F":  # 16 or 32 bit grey: PIL's own conversion would clip it
            grey = np.asarray(image, dtype=np.float64)
            return as_frames((grey / max(grey.max(), 65535 if image.mode.startswith("I") else 1)), where)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)  # see-through becomes white
        return np.array(image.convert("RGB"))[None]  # a copy: Pillow's own array is read-only
    if isinstance(medium, Tensor):
        medium = medium.detach().cpu()
        medium = (medium.float() if medium.is_floating_point() else medium).numpy()  # numpy has no bfloat16
    if not isinstance(medium, np.ndarray):
        raise TypeError(f"{where}: expected an image (PIL, array or tensor) or a list of frames, got {type(medium).__name__}")
    return _array_as_frames(medium, where)


def _one_frame(frame: object, where: str) -> np.ndarray:
    frames = as_frames(frame, where)
    if len(frames) > 1:
        raise ValueError(f"{where}: a frame is one image, this is a video of {len(frames)} frames")
    return frames[0]


def _array_as_frames(array: np.ndarray, where: str) -> np.ndarray:
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim == 3:
        array = array[None]
    if array.ndim != 4 or array.shape[-1] not in (1, 3, 4) or 0 in array.shape:
        raise ValueError(f"{where}: expected shape (H, W), (H, W, 1|3|4) or (T, H, W, 1|3|4), not empty; got {array.shape}")
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all():
            raise ValueError(f"{where}: pixels are not finite (NaN or infinite)")
        if array.min() < 0 or array.max() > 1:
            raise ValueError(f"{where}: float pixels must lie in 0…1, these lie in {array.min():.3g}…{array.max():.3g}")
        array = np.round(array * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ValueError(f"{where}: pixels must be uint8 (0…255) or float (0…1), got {array.dtype}")
    if array.shape[-1] == 4:  # alpha: over white, as for PIL images
        alpha = array[..., 3:] / 255.0
        array = np.round(array[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return array if array.shape[-1] == 3 else array.repeat(3, axis=-1)


CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the 400 million pictures that CLIP was trained on
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
LONGEST = 100  # times as long as wide: beyond, a strip loses its ends before `crop` makes it larger, to save memory


@dataclass(frozen=True)
class ImagePreprocessor:
    """What an eye was trained on. `size` in pixels; `mean` and `std` per channel of values in 0…1; `resize` "squash" or "crop".

    Raises:
        ValueError: another `resize`, or a `size` below 1.
    """

    size: int
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    resize: str = "squash"

    def __post_init__(self):
        if self.resize not in ("squash", "crop"):
            raise ValueError(f"image preparation: resize is {self.resize!r}; choose 'squash' or 'crop'")
        if self.size < 1:
            raise ValueError(f"image preparation: size is {self.size}; it must be at least 1 pixel")
        for name in ("mean", "std"):  # lists, when they come from JSON: equal preparations are to be equal
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def __call__(self, medium: object, where: str = "image") -> Tensor:
        """One image or video, anything that `as_frames` takes → (T, 3, size, size) float32."""
        frames = as_frames(medium, where)
        if frames.shape[1:3] != (self.size, self.size):
            fit = squash if self.resize == "squash" else shrink_and_crop
            frames = np.stack([np.asarray(fit(Image.fromarray(f), self.size)) for f in frames])
        x = torch.tensor(frames).permute(0, 3, 1, 2).float().div_(255)  # (T, H, W, 3) → (T, 3, H, W)
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return x.sub_(mean).div_(std)

    def to_dict(self) -> dict:
        return asdict(self)


def squash(image: Image.Image, size: int) -> Image.Image:
    """All of the image, whatever its shape, → size × size."""
    return image.resize((size, size), Image.Resampling.BICUBIC)


def shrink_and_crop(image: Image.Image, size: int) -> Image.Image:
    """The shorter side → `size` in proportion (a small image grows), and of that the middle size × size.

    Two roundings decide which pixels the eye gets, and these are torchvision's, with which CLIP and OpenFlamingo were
    trained: the longer side is cut off, int(size · long / short), and the margin is rounded to even, round(margin / 2):

        333 × 500 at 224   →   224 × int(336.3) = 224 × 336   →   112 rows too many, 56 off the top
        224 × 227          →   as it is                       →     3 rows too many, round(1.5) = 2 off the top

    (transformers cuts the margin off instead: 1 row off the top of 224 × 227, everything shifted by a pixel.)
    """
    short, long = sorted(image.size)
    if long > LONGEST * short:
        image, long = middle(image, [min(side, LONGEST * short) for side in image.size]), LONGEST * short
    image = image.resize([size if side == short else int(size * long / short) for side in image.size], Image.Resampling.BICUBIC)
    return middle(image, (size, size))


def middle(image: Image.Image, size: Sequence[int]) -> Image.Image:
    """The middle (width, height) pixels of a larger image."""
    left, top = (round((have - want) / 2) for have, want in zip(image.size, size))
    return image.crop((left, top, left + size[0], top + size[1]))


def clip_preprocessor(size: int = 224) -> ImagePreprocessor:
    """CLIP's own, at evaluation; OpenFlamingo sees with CLIP's eye. Transparent parts are white here, as everywhere."""
    return ImagePreprocessor(size, CLIP_MEAN, CLIP_STD, resize="crop")


def idefics_preprocessor(size: int = 224) -> ImagePreprocessor:
    """IDEFICS': CLIP's colours, but the image is squashed and nothing cut off."""
    return ImagePreprocessor(size, CLIP_MEAN, CLIP_STD, resize="squash")
