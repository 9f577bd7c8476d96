"""Checks of what enters the model: batches, labels and answers that may be made by hand. Errors name the field and the sample.

Types, shapes and devices are checked whenever a `Batch` is made. Values are checked where a batch is built (`data.collate`) and
where a prompt is read (`prefill`). `forward` checks the values of a new sequence on the CPU only: on a GPU, reading a value
waits until the GPU has computed it, and a training step should not wait.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .shapes import check_shape

if TYPE_CHECKING:  # flamingo.py imports this file
    from .flamingo import Batch, Flamingo

FIELDS = {"ids": ("B L", torch.long), "labels": ("B L", torch.long), "attention_mask": ("B L", torch.bool),
          "media": ("B N T S D", None), "frames": ("B N", torch.long), "attend_next": ("B", torch.bool)}  # fmt: skip
OPTIONAL = ("media", "frames", "attend_next")


def check_fields(batch: Batch) -> None:
    """Type, shape and device of each field."""
    sizes: dict[str, int] = {}
    for name, (axes, dtype) in FIELDS.items():
        x = getattr(batch, name)
        if x is None and name in OPTIONAL:
            continue
        if not isinstance(x, Tensor):
            raise TypeError(f"batch: {name} must be a tensor, got {type(x).__name__}")
        if x.layout != torch.strided or (x.dtype != dtype if dtype else not x.is_floating_point()):
            raise TypeError(f"batch: {name} must be a dense {dtype or 'float'} tensor, got {x.dtype} ({x.layout})")
        axes = "B N T C H W" if name == "media" and x.dim() == 6 else axes  # pixels
        sizes |= check_shape(x, axes, f"batch: {name}", **{a: sizes[a] for a in axes.split() if a in sizes})
        if 0 in x.shape:
            raise ValueError(f"batch: {name} is empty, its shape is {tuple(x.shape)}")
        if x.device != batch.ids.device:
            raise ValueError(f"batch: {name} is on {x.device}, but ids are on {batch.ids.device}: use batch.to(device)")
    if batch.media is None and batch.frames is not None:
        raise ValueError("batch: frames without media; pass both or neither")


def check_batch(batch: Batch, image_id: int, n_ids: float = math.inf) -> None:
    """The values of a batch: each sample has as many images as `<image>` tokens, and each value is in its range."""
    ids, labels, real = _values(batch.ids), _values(batch.labels), _values(batch.attention_mask)
    N, T = (0, 0) if batch.media is None else batch.media.shape[1:3]
    frames = np.full((len(ids), N), T) if batch.frames is None else _values(batch.frames)
    n_tokens, n_media = ((ids == image_id) & real).sum(1).tolist(), (frames > 0).sum(1).tolist()
    for b, (tokens, images) in enumerate(zip(n_tokens, n_media)):
        if tokens != images:
            raise ValueError(f"sample {b}: {tokens} <image> tokens but {images} images; pass one image per <image> token")
    _refuse((ids < 0) | (ids >= n_ids), "ids", ids, f"0 ... {n_ids - 1}")
    _refuse((labels != -100) & (labels != ids), "labels", labels, "the id of the same token, or -100 (no loss)")
    _refuse((frames < 0) | (frames > T), "frames", frames, f"0 ... {T}")
    _refuse((frames[:, 1:] > 0) & (frames[:, :-1] == 0), "frames", frames, "above 0 before another image: no holes")
    # One NaN or infinite value makes the sum NaN or infinite, and a sum is fast. Find its position only then.
    if batch.media is not None and not np.isfinite(_values(batch.media.sum(dtype=torch.float32))):
        for b, n in (~batch.media.isfinite()).flatten(2).any(-1).nonzero()[:1].tolist():
            raise ValueError(f"sample {b}, image {n}: pixels or features are not finite (NaN or infinite)")


def _values(x: Tensor) -> np.ndarray:
    return x.detach().cpu().numpy()


def _refuse(wrong: np.ndarray, name: str, x: np.ndarray, expected: str) -> None:
    """An error for the first True in `wrong`, (B, L) or (B, N) as `x`."""
    for b, i in np.argwhere(wrong)[:1].tolist():
        raise ValueError(f"sample {b}: {name}[{i}] is {x[b, i]}; it must be {expected}")


def check_input(flamingo: Flamingo, batch: Batch, *, on_gpu: bool = False) -> None:
    """A batch for this model. on_gpu: check values on a GPU too."""
    if not hasattr(batch, "attention_mask"):
        raise TypeError(f"the input must be a Batch (see data.collate), got {type(batch).__name__}")
    table = flamingo.lm.embed.weight
    if batch.ids.device != table.device:
        raise ValueError(f"batch: ids are on {batch.ids.device}, but the model is on {table.device}: use batch.to(device)")
    if (on_gpu or table.device.type == "cpu") and not torch.compiler.is_compiling():
        check_batch(batch, flamingo.image_id, len(table) + flamingo.config.n_added_tokens)


def check_labels(ids: Tensor, labels: Tensor, n_ids: int, n_labels: int, real: Tensor | None = None) -> None:
    """Ids and labels (B, L) of a loss, and the attention mask `real`. Values only on the CPU."""
    for name, x in (("ids", ids), ("labels", labels)):
        if not isinstance(x, Tensor) or x.dtype != torch.long:
            raise TypeError(f"loss: {name} must be a torch.int64 tensor, got {getattr(x, 'dtype', type(x).__name__)}")
        check_shape(x, "B L", f"loss: {name}", **({} if x is ids else {"B": len(ids), "L": ids.shape[1]}))
    if ids.device.type == "cpu" and not torch.compiler.is_compiling():
        ids, labels = _values(ids), _values(labels)
        _refuse((ids < 0) | (ids >= n_ids), "ids", ids, f"0 ... {n_ids - 1}")
        wrong = (labels < 0) | (labels >= n_labels) | (False if real is None else ~_values(real))
        expected = f"0 ... {n_labels - 1}, for which the model has an output, or -100 (no loss; always at padding)"
        _refuse(wrong & (labels != -100), "labels", labels, expected)


def check_answers(answers: Sequence[Sequence[Sequence[int]]], n_prompts: int, n_outputs: int) -> None:
    """Candidates of `score_answers`: equally many for each prompt, none empty, of ids that the model can generate."""
    if len(answers) != n_prompts:
        raise ValueError(f"score_answers: candidates for {len(answers)} prompts, but the batch has {n_prompts} prompts")
    if any(len(a) != len(answers[0]) or not a or not all(len(ids) for ids in a) for a in answers):
        needs = "every prompt needs the same number of candidates, at least one, and no candidate may be empty"
        raise ValueError(f"score_answers: {needs}")
    for b, several in enumerate(answers):
        for a, ids in enumerate(several):
            for i in ids:
                if not isinstance(i, int) or isinstance(i, bool) or not 0 <= i < n_outputs:
                    where, last = f"score_answers: prompt {b}, candidate {a}", n_outputs - 1
                    raise ValueError(f"{where}: {i!r:.60} is not an id in 0 ... {last}")
