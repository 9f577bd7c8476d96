"""The letters that describe tensor shapes in this package, and one function that checks shapes.

    B  batch size                        S  spatial tokens of one frame: patches, and the class token if it is kept
    N  images or videos in a sequence    R  latents = visual tokens of one image or video
    T  frames of a video (image: 1)      L  text tokens
    C, H, W  channels, height, width     D  width of a model       h  attention heads       V  vocabulary size

A comment at the end of a line gives the shape of the result: `q = to_q(x)  # (B, L, h*d_head)`.
M is a merged batch: M = B*N images are encoded as if they were one batch. D_v is the width of the vision features, n a number
of earlier tokens, A a number of candidate answers. `d` is the width of a module, `d_head` that of one attention head (in
attention.py and fast.py just d). `h_kv` is the number of heads of keys and values, if it differs from h.

Example:
    >>> check_shape(torch.zeros(2, 8, 96), "B R D", "latents", D=96)
    {'D': 96, 'B': 2, 'R': 8}
    >>> check_shape(torch.zeros(2, 8, 96), "B R D", "latents", D=64)
    ValueError: latents: expected shape (B, R, D=64), got (2, 8, 96)
"""

from torch import Tensor


def check_shape(x: Tensor, letters: str, name: str, **sizes: int) -> dict[str, int]:
    """Check that `x` has one axis per letter and the given `sizes`.

    A letter that appears twice must have the same size both times.

    Returns:
        The size of every letter.
    Raises:
        ValueError: names the tensor, the expected shape and the actual shape.
    """
    axes = letters.split()  # "B R D" -> ["B", "R", "D"]
    found = dict(sizes)  # the sizes that the caller requires; the others are found below
    fits = x.dim() == len(axes)
    if fits:
        for letter, size in zip(axes, x.shape):
            # setdefault stores the size of a new letter and returns the known size of an old one
            known = found.setdefault(letter, size)
            fits = fits and known == size
    if not fits:
        # the message shows which sizes were required: (B, R, D=64)
        expected = ", ".join(f"{a}={sizes[a]}" if a in sizes else a for a in axes)
        raise ValueError(f"{name}: expected shape ({expected}), got {tuple(x.shape)}")
    return found
