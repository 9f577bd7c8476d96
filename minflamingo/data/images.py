"""From any picture to the pixels an eye was trained on: size, crop, mean and deviation.

    anything → RGB uint8 (T, H, W, 3) → resize → (x / 255 − mean) / std → float (T, 3, H, W)

Accepted: PIL images of any mode (palette, alpha, CMYK, 16 bit; the camera's EXIF rotation is applied), numpy arrays or
tensors (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8 in 0…255 or float in 0…1, and for a video a list of these.

Example: a 640×480 photograph → `as_frames` (1, 480, 640, 3) uint8 → `ImagePreparation(48)` → (1, 3, 48, 48), values in −1…1.
"""

from __future__ import annotations

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
        if "A" in image.getbands() or "transparency" in image.info:
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


@dataclass(frozen=True)
class ImagePreparation:
    """What an eye was trained on. `size` in pixels; `mean` and `std` per channel of values in 0…1."""

    size: int
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __call__(self, medium: object, where: str = "image") -> Tensor:
        """One image or video, anything that `as_frames` takes → (T, 3, size, size) float32."""
        frames = as_frames(medium, where)
        if frames.shape[1:3] != (self.size, self.size):
            resized = [Image.fromarray(f).resize((self.size, self.size), Image.Resampling.BICUBIC) for f in frames]
            frames = np.stack([np.asarray(f) for f in resized])
        x = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255  # (T, H, W, 3) → (T, 3, H, W)
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (x - mean) / std

    def to_dict(self) -> dict:
        return asdict(self)
