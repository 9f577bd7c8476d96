"""The letters that describe tensor shapes in this package, and the checks of shapes and of batches.

    B  batch size                        S  spatial tokens of one frame: patches, and the class token if it is kept
    N  images or videos in a sequence    R  latents = visual tokens of one image or video
    T  frames of a video (image: 1)      L  text tokens
    C, H, W  channels, height, width     D  width of a model       h  attention heads       V  vocabulary size

A comment at the end of a line gives the shape of the result: `q = to_q(x)  # (B, L, h*d_head)`.
M is a merged batch: B*N images or videos, or (in the vision encoder) B*N*T frames. D_v is the width of the vision features, n a
number of earlier tokens, A a number of candidate answers. `d` is the width of a module, `d_head` that of one attention head.
In attention.py and fast.py `d` is that of a head. `h_kv` is the number of heads of keys and values, if it differs from h.

Example:
    >>> check_shape(torch.zeros(2, 8, 96), "B R D", "latents", D=96)
    {'D': 96, 'B': 2, 'R': 8}
    >>> check_shape(torch.zeros(2, 8, 96), "B R D", "latents", D=64)
    ValueError: latents: expected shape (B, R, D=64), got (2, 8, 96)
"""

import numpy as np
import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_shape(x: Tensor, letters: str, name: str, dtypes: tuple[torch.dtype, ...] = FLOATS, **sizes: int) -> dict[str, int]:
    """Check that `x` is a tensor of one of the `dtypes`, with one axis per letter and the given `sizes`.

    A letter that appears twice must have the same size both times. Returns the size of every letter.
    Raises TypeError or ValueError, which name the tensor, the expected type or shape and the actual one.
    """
    if not isinstance(x, Tensor) or x.layout != torch.strided or x.dtype not in dtypes:
        actual = (x.dtype, x.layout) if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name}: expected a dense tensor of type {' or '.join(map(str, dtypes))}, got {actual}")
    axes = letters.split()  # "B R D" -> ["B", "R", "D"]
    found = dict(sizes)  # the sizes that the caller requires; the others are found below
    # setdefault stores the size of a new letter and returns the known size of an old one
    if x.dim() != len(axes) or any(found.setdefault(letter, size) != size for letter, size in zip(axes, x.shape)):
        expected = ", ".join(f"{a}={sizes[a]}" if a in sizes else a for a in axes)  # "B, R, D=64": required sizes
        raise ValueError(f"{name}: expected shape ({expected}), got {tuple(x.shape)}")
    return found


def check_batch(batch, image_id: int, n_ids: float = torch.inf, weight: Tensor | None = None) -> None:
    """Raise an error unless a `Batch` (flamingo.py) has one image per `<image>` token, and each number is in its range.

    Called where a batch is built and where a prompt is read. `forward` calls it for new sequences, with a `weight` of its
    model; if that is on a GPU, no values are read, because a training step would have to wait for them.
    """
    if not hasattr(batch, "attention_mask"):
        raise TypeError(f"expected a Batch, as data.collate returns it; got {type(batch).__name__}")
    if weight is not None and weight.device != batch.ids.device:
        raise ValueError(f"the batch is on {batch.ids.device}, but the model is on {weight.device}: use batch.to(device)")
    if weight is not None and weight.device.type != "cpu":
        return
    ids, labels, real = (x.cpu().numpy() for x in (batch.ids, batch.labels, batch.attention_mask))  # (B, L) each
    N, T = (0, 0) if batch.media is None else batch.media.shape[1:3]
    frames = np.full((len(ids), N), T) if batch.frames is None else batch.frames.cpu().numpy()  # (B, N), 0: no such image
    for b, (tokens, images) in enumerate(zip(((ids == image_id) & real).sum(1), (frames > 0).sum(1))):
        if tokens != images:
            raise ValueError(f"sample {b}: {tokens} <image> tokens but {images} images; pass one image per <image> token")
    hole = (frames == 0) & (frames[:, ::-1].cumsum(1)[:, ::-1] > 0)  # no image here, but another one after it
    rules = [
        ("ids", ids, (ids < 0) | (ids >= n_ids), f"0 ... {n_ids - 1}"),
        ("labels", labels, (labels != -100) & (labels != ids), "the id of the same token, or -100 (no loss)"),
        ("frames", frames, (frames < 0) | (frames > T) | hole, f"0 ... {T}, and 0 only after the last image"),
    ]
    if batch.media is not None:
        largest = batch.media.detach().flatten(2).norm(torch.inf, 2).float().cpu().numpy()  # (B, N), NaN if a value is NaN
        rules.append(("the largest |value| of media", largest, ~(largest <= 65504), "finite, at most 65504 (limit of fp16)"))
    for name, x, wrong, rule in rules:
        for b, i in np.argwhere(wrong)[:1]:
            raise ValueError(f"sample {b}: {name}[{i}] is {x[b, i]}; it must be {rule}")
