"""A sample is an interleaved list of text and media; `collate` turns samples into one `Batch`.

    Sample([cat, " a cat", EOC, dog, " a dog", EOC])      cat, dog: pixels (T, H, W, C) uint8, or features (T, S, D)

    ids     <BOS> <image> ␣a ␣cat <EOC> <image> ␣a ␣dog <EOC>
    labels    -     -     ␣a ␣cat <EOC>    -    ␣a ␣dog <EOC>        loss on text only (paper §2.4)
    phi       0     1      1   1    1      2     2   2    2          which medium a token looks at (`gated_xattn.py`)

The kinds of dataset of the paper differ in shape only: image-text pairs have N=1, T=1; video-text pairs N=1, T>1; pages of
interleaved images and text N>1, T=1. A medium may also be the frozen eye's *features* of it, computed once beforehand:
a batch holds pixels or features, never both, and the number of axes says which.

Text pieces are only text: a string "<image>" is seven characters (see `tokenizer.py`). The one way to `<image>` is a medium.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..flamingo import Batch, check_batch
from ..tokenizer import Tokenizer


class _EndOfChunk:
    """The one object `EOC`: an end of chunk inside a sample or a prompt."""

    def __repr__(self) -> str:
        return "EOC"


EOC = _EndOfChunk()


@dataclass(frozen=True)
class NoLoss:
    """Text (or EOC) that is read but carries no loss, for example what nobody could know yet."""

    text: str | _EndOfChunk


@dataclass(frozen=True)
class Sample:
    """An interleaved list of `str`, `NoLoss`, `EOC` and media.

    A medium is an array or tensor: pixels (T, H, W, C) uint8, or (T, S, D) floating-point features.
    `attend_next`: each text looks at the NEXT medium instead of the last (the paper's p_next layout; training only).
    `bos=False`: the sequence starts in the middle of a document.
    """

    pieces: list
    attend_next: bool = False
    bos: bool = True

    @property
    def media(self) -> list:
        return [p for p in self.pieces if is_medium(p)]


def is_medium(piece: object) -> bool:
    return isinstance(piece, np.ndarray | Tensor)


@dataclass
class TokenizedSample:
    """A sample laid out: what becomes one row of a batch."""

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    media: list[Tensor] = field(default_factory=list)
    attend_next: bool = False


def tokenize_sample(sample: Sample, tokenizer: Tokenizer, preprocess=None, where: str = "sample") -> TokenizedSample:
    """One sample → its ids, labels and media. `preprocess` maps pixels (T, H, W, C) to model input (T, C, H, W)."""
    row = TokenizedSample(attend_next=sample.attend_next)

    def add(ids: Sequence[int], scored: bool) -> None:
        row.ids.extend(ids)
        row.labels.extend(ids if scored else [-100] * len(ids))

    if sample.bos and tokenizer.bos_id is not None:
        add([tokenizer.bos_id], scored=False)
    around = getattr(tokenizer, "around_image_id", None)  # IDEFICS puts a token on both sides of an image, one between two
    for i, piece in enumerate(sample.pieces):
        scored = not isinstance(piece, NoLoss)
        piece = piece if scored else piece.text
        if isinstance(piece, str):
            add(tokenizer.encode(piece), scored)
        elif piece is EOC:
            add([tokenizer.eoc_id], scored)
        elif is_medium(piece):
            before = [around] if around is not None and row.ids[-1:] != [around] else []
            add([*before, tokenizer.image_id, *([around] if around is not None else [])], scored=False)
            row.media.append(_medium(piece, preprocess, f"{where}, piece {i}"))
        else:
            raise TypeError(f"{where}, piece {i}: expected text, EOC or a medium, got {type(piece).__name__}")
    return row


def _medium(piece: np.ndarray | Tensor, preprocess, where: str) -> Tensor:
    if piece.ndim == 4 and piece.dtype in (np.uint8, torch.uint8):
        if preprocess is None:
            raise ValueError(f"{where}: pixels need an image preparation (`preprocess=`)")
        return preprocess(piece)
    if piece.ndim == 3 and isinstance(piece, Tensor) and piece.is_floating_point():
        return piece
    raise ValueError(
        f"{where}: a medium is uint8 pixels (T, H, W, C) or a float tensor of features (T, S, D); "
        f"got {piece.dtype} of shape {tuple(piece.shape)}"
    )


def collate(samples: Sequence[Sample], tokenizer: Tokenizer, preprocess=None, *, pad: str = "right") -> Batch:
    """Samples of different lengths and numbers of media → one rectangular batch, padded on the `pad` side.

    Raises:
        ValueError: no samples, an unknown side, or media of different sizes; the message names the sample.
    """
    if not samples:
        raise ValueError("collate: no samples")
    if pad not in ("left", "right"):
        raise ValueError(f"collate: pad is {pad!r}; choose 'left' or 'right'")
    rows = [s if isinstance(s, TokenizedSample) else tokenize_sample(s, tokenizer, preprocess, f"sample {b}") for b, s in enumerate(samples)]
    pad_id = tokenizer.pad_id
    L = max(len(row.ids) for row in rows)

    def padded(values: list[list], fill: int, dtype: torch.dtype) -> Tensor:
        fills = [[fill] * (L - len(row)) for row in values]
        return torch.tensor([f + v if pad == "left" else v + f for v, f in zip(values, fills)], dtype=dtype)

    ids = padded([row.ids for row in rows], pad_id, torch.long)
    labels = padded([row.labels for row in rows], -100, torch.long)
    mask = padded([[True] * len(row.ids) for row in rows], False, torch.bool)
    attend_next = torch.tensor([r.attend_next for r in rows])
    batch = Batch(ids, labels, mask, *stack_media([r.media for r in rows]), attend_next=attend_next)
    check_batch(batch, tokenizer.image_id)
    return batch


def stack_media(rows: Sequence[Sequence[Tensor]]) -> tuple[Tensor | None, Tensor | None]:
    """Media of each row, (T, …) each → (B, N, T, …), zeros where a row has fewer media or frames, and frames (B, N)."""
    N = max((len(r) for r in rows), default=0)
    if N == 0:
        return None, None
    size = next(m.shape[1:] for r in rows for m in r)
    for b, row in enumerate(rows):
        for n, m in enumerate(row):
            if m.shape[1:] != size:
                raise ValueError(f"sample {b}, medium {n}: size {tuple(m.shape[1:])} beside {tuple(size)} in the same batch")
            if m.shape[0] == 0:
                raise ValueError(f"sample {b}, medium {n}: a video of no frames")
    T = max(m.shape[0] for r in rows for m in r)
    if all(len(r) == N and all(m.shape[0] == T for m in r) for r in rows):
        media = torch.stack([m for r in rows for m in r]).unflatten(0, (len(rows), N))
    else:
        media = torch.zeros(len(rows), N, T, *size, dtype=next(m.dtype for r in rows for m in r))
        for b, row in enumerate(rows):
            for n, m in enumerate(row):
                media[b, n, : m.shape[0]] = m
    frames = torch.tensor([[m.shape[0] for m in r] + [0] * (N - len(r)) for r in rows])
    return media, frames


def pack(draw: Callable[[], Sample], rows: int, length: int, tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    """Text samples, one behind the other, cut to `rows` rows of exactly `length` tokens: ids and labels, (rows, length).

    No padding, so no work is lost; each row begins with a new sample.
    """
    ids, labels = [], []
    for _ in range(rows):
        row = TokenizedSample()
        while len(row.ids) < length:
            more = tokenize_sample(draw(), tokenizer)
            row.ids += more.ids
            row.labels += more.labels
        ids.append(row.ids[:length])
        labels.append(row.labels[:length])
    return torch.tensor(ids), torch.tensor(labels)
