"""The letters that every shape in this package is written with, and one function that checks them.

    B  batch                             S  spatial tokens (patches) of one frame
    N  images or videos in a sequence    R  latents = visual tokens of one image or video
    T  frames of a video (image: 1)      L  text tokens
    C, H, W  channels, height, width     D  width of a model       h  heads       V  vocabulary

Comments behind a line give the shape of what it makes: `x = to_q(x)  # (B, L, h*d)`.

Example:
    >>> check_shape(torch.zeros(2, 8, 96), "B R D", "latents", D=96)
    {'B': 2, 'R': 8, 'D': 96}
    >>> check_shape(torch.zeros(2, 8, 96), "B R D", "latents", D=64)
    ValueError: latents: expected shape (B, R, D=64), got (2, 8, 96)
"""

from __future__ import annotations

from torch import Tensor


def check_shape(x: Tensor, letters: str, name: str, **sizes: int) -> dict[str, int]:
    """Check that `x` has one axis per letter, and the given `sizes` where they are given; return all sizes by letter.

    A letter that appears twice must have the same size both times.

    Raises:
        ValueError: names the tensor, what was expected and what came.
    """
    axes = letters.split()
    found = dict(sizes)
    fits = x.dim() == len(axes)
    if fits:
        for letter, size in zip(axes, x.shape):
            fits &= found.setdefault(letter, size) == size
    if not fits:
        expected = ", ".join(f"{a}={sizes[a]}" if a in sizes else a for a in axes)
        raise ValueError(f"{name}: expected shape ({expected}), got {tuple(x.shape)}")
    return found
