"""A sample is an interleaved list of text and media; `collate` turns samples into one `Batch`.

    Sample([cat, " a cat", EOC, dog, " a dog", EOC])      cat, dog: pixels (T, H, W, C) uint8, or features (T, S, D)

    ids     <BOS> <image> ␣a ␣cat <EOC> <image> ␣a ␣dog <EOC>
    labels    -     -     ␣a ␣cat <EOC>    -    ␣a ␣dog <EOC>        loss on text only (paper section 2.4)
    phi       0     1      1   1    1      2     2   2    2          the image that each token attends to (`gated_xattn.py`)

The paper's dataset types differ in shape only: image-text pairs have N=1, T=1; video-text pairs N=1, T>1; interleaved documents
N>1, T=1. Features are media that the frozen vision encoder has encoded before. A batch holds pixels or features, never both.
Text is only text: the string "<image>" is seven characters. Only an image makes an `<image>` token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..flamingo import Batch
from ..shapes import check_batch
from ..tokenizer import Tokenizer


class _EndOfChunk:
    def __repr__(self) -> str:
        return "EOC"


EOC = _EndOfChunk()  # the end of a chunk in a sample or a prompt


@dataclass(frozen=True)
class NoLoss:
    """Text (or EOC) that carries no loss: it is only input, and the model is not trained to predict it. Example: a question."""

    text: str | _EndOfChunk


@dataclass(frozen=True)
class Sample:
    """An interleaved list of `str` or its token ids, `NoLoss`, `EOC` and media (uint8 pixels or float features).

    `attend_next`: text attends to the NEXT image instead of the last one (the paper's p_next; training only).
    `bos=False`: the sequence starts in the middle of a document.
    """

    pieces: list
    attend_next: bool = False
    bos: bool = True

    @property
    def media(self) -> list:
        return [piece for piece in self.pieces if is_medium(piece)]


def is_medium(piece: object) -> bool:
    return isinstance(piece, np.ndarray | Tensor)


def input_only(tokenizer: Tokenizer) -> list[int]:
    """Ids that a model gets but never generates: `<PAD>`, `<BOS>`, `<image>`, and IDEFICS' token around images."""
    names = ("pad_id", "bos_id", "image_id", "around_image_id")
    return sorted({getattr(tokenizer, name, None) for name in names} - {None, tokenizer.eoc_id})


@dataclass
class TokenizedSample:
    """Token ids, labels and media of one sample: one row of a batch."""

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    media: list[Tensor] = field(default_factory=list)
    attend_next: bool = False

    def add(self, ids: Sequence[int], loss: bool) -> None:
        self.ids.extend(ids)
        self.labels.extend(ids if loss else [-100] * len(ids))  # -100: torch's cross-entropy ignores this label

    def cut(self, length: int, image_id: int) -> None:
        """Keep the first `length` tokens and the media of their `<image>` tokens."""
        self.ids, self.labels = self.ids[:length], self.labels[:length]
        self.media = self.media[: self.ids.count(image_id)]


def tokenize_sample(
    sample: Sample, tokenizer: Tokenizer, preprocess: Callable | None = None, where: str = "sample"
) -> TokenizedSample:
    """One sample -> ids, labels and media. `preprocess` maps pixels (T, H, W, C) uint8 to model input (T, C, H, W) float.

    An invalid piece raises TypeError or ValueError. The message begins with `where` and names the piece.
    """
    flags = (getattr(sample, "attend_next", None), getattr(sample, "bos", None))
    if not all(isinstance(flag, bool) for flag in flags) or not isinstance(sample.pieces, list | tuple):
        raise TypeError(f"{where}: expected a Sample: a list of pieces, attend_next and bos True or False; got {sample!r:.60}")
    row = TokenizedSample(attend_next=sample.attend_next)
    last_id = max(tokenizer.vocab_size - 1, tokenizer.eoc_id, *input_only(tokenizer))
    if sample.bos and tokenizer.bos_id is not None:
        row.add([tokenizer.bos_id], loss=False)
    # IDEFICS puts a special token before and after each image, and only one between two images.
    around = [] if getattr(tokenizer, "around_image_id", None) is None else [tokenizer.around_image_id]
    for i, piece in enumerate(sample.pieces):
        loss = not isinstance(piece, NoLoss)
        piece = piece if loss else piece.text
        if isinstance(piece, str):
            row.add(tokenizer.encode(piece), loss)
        elif isinstance(piece, list) and all(isinstance(token, int) for token in piece):
            if wrong := [token for token in piece if isinstance(token, bool) or not 0 <= token <= last_id]:
                raise ValueError(f"{where}, piece {i}: {wrong[0]} is not a token id; ids are 0 ... {last_id}")
            row.add(piece, loss)
        elif piece is EOC:
            row.add([tokenizer.eoc_id], loss)
        elif is_medium(piece) and loss:
            before = [] if row.ids[-1:] == around else around
            row.add([*before, tokenizer.image_id, *around], loss=False)
            row.media.append(_model_input(piece, preprocess, f"{where}, piece {i}"))
        else:
            noun = "text, EOC or media" if loss else "text or EOC in NoLoss"
            raise TypeError(f"{where}, piece {i}: expected {noun}, got {type(piece).__name__}")
    return row


def _model_input(piece: np.ndarray | Tensor, preprocess: Callable | None, where: str) -> Tensor:
    if piece.ndim == 4 and piece.dtype in (np.uint8, torch.uint8) and 0 not in piece.shape:
        if preprocess is None:
            raise ValueError(f"{where}: pixels need image preprocessing; pass preprocess=")
        return preprocess(piece)
    if piece.ndim == 3 and isinstance(piece, Tensor) and piece.is_floating_point():
        return piece
    expected = "uint8 pixels (T, H, W, C) or a float tensor of features (T, S, D)"
    raise ValueError(f"{where}: media must be {expected}; got {piece.dtype} of shape {tuple(piece.shape)}")


def collate(
    samples: Sequence[Sample | TokenizedSample], tokenizer: Tokenizer, preprocess: Callable | None = None, *, pad: str = "right"
) -> Batch:
    """Samples of any lengths and numbers of media -> one rectangular batch. `pad`: "right" for training, "left" for prompts.

    Raises ValueError, with the sample, for media of different sizes and for values that are not finite or above 65504.
    """
    if not samples or pad not in ("left", "right"):
        raise ValueError(f"collate: {len(samples)} samples, pad {pad!r}; need at least one sample and 'left' or 'right'")
    rows = list(samples)
    for b, sample in enumerate(samples):
        if not isinstance(sample, TokenizedSample):
            rows[b] = tokenize_sample(sample, tokenizer, preprocess, f"sample {b}")
        elif len(sample.ids) != len(sample.labels):
            raise ValueError(f"sample {b}: {len(sample.ids)} ids, but {len(sample.labels)} labels")
    L = max(len(row.ids) for row in rows)

    def padded(values: list[list], fill: int, dtype: torch.dtype) -> Tensor:
        fills = [[fill] * (L - len(row)) for row in values]
        return torch.tensor([f + v if pad == "left" else v + f for v, f in zip(values, fills)], dtype=dtype)  # (B, L)

    ids = padded([row.ids for row in rows], tokenizer.pad_id, torch.long)
    labels = padded([row.labels for row in rows], -100, torch.long)
    mask = padded([[True] * len(row.ids) for row in rows], False, torch.bool)
    media, frames = stack_media([row.media for row in rows])
    batch = Batch(ids, labels, mask, media, frames, attend_next=torch.tensor([row.attend_next for row in rows]))
    check_batch(batch, tokenizer.image_id)  # here too, because on a GPU `forward` does not read values
    return batch


def stack_media(rows: Sequence[Sequence[Tensor]]) -> tuple[Tensor | None, Tensor | None]:
    """Media (T, ...) of each row -> one tensor (B, N, T, ...), padded with zeros, and the numbers of frames (B, N)."""
    N = max((len(row) for row in rows), default=0)
    if N == 0:
        return None, None
    first, T = next(m for row in rows for m in row), max(len(m) for row in rows for m in row)
    media = torch.zeros(len(rows), N, T, *first.shape[1:], dtype=first.dtype, device=first.device)
    for b, row in enumerate(rows):
        for n, m in enumerate(row):
            if m.shape[1:] != first.shape[1:] or len(m) == 0:
                expected = f"T > 0 frames, and {tuple(first.shape[1:])} as in the first image of this batch"
                raise ValueError(f"sample {b}, image {n}: shape {tuple(m.shape)}; expected {expected}")
            media[b, n, : len(m)] = m
    return media, torch.tensor([[len(m) for m in row] + [0] * (N - len(row)) for row in rows])


def pack(draw: Callable[[], Sample], rows: int, length: int, tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    """Text samples one after the other, without padding, in `rows` rows of `length` tokens: ids and labels, (rows, length).

    Each row begins with a new sample.
    """
    packed = torch.empty(2, rows, length, dtype=torch.long)
    for r in range(rows):
        ids, labels = [], []
        while len(ids) < length:
            sample = tokenize_sample(draw(), tokenizer)
            ids, labels = ids + sample.ids, labels + sample.labels
        packed[:, r] = torch.tensor([ids[:length], labels[:length]])
    return packed[0], packed[1]
