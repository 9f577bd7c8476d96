"""The loss of language modelling: position l predicts token l + 1, and only labelled tokens count (paper §2.4).

    L = − mean over labelled l of log softmax(logits_l−1)[label_l]          label −100: not counted

`next_token_loss` is the equation, for reading: it takes all logits (B, L, V). The head is the widest layer of all, most
positions carry no label, and 4,000 tokens of a real vocabulary (V = 50,000) are 800 MB of fp32, several times over with their
gradients. So training takes `labelled` and `head_loss`: logits are made where there are labels and nowhere else, a chunk at a
time, and each chunk's gradient is taken at once, while its logits are there. A test holds values and gradients equal.

Example: labels [−100, 5, 7, −100] → predicted are 5 (from position 0) and 7 (from position 1).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CHUNK = 2**24  # logits at a time: 64 MB in fp32


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Position l predicts label l + 1. logits (B, L, V), labels (B, L), −100 = not counted. No label at all: 0, not NaN."""
    targets = labels[:, 1:].flatten()
    total = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets, ignore_index=-100, reduction="sum")
    return total / (targets != -100).sum().clamp_min(1)


def labelled(labels: Tensor) -> tuple[Tensor, Tensor]:
    """labels (B, L) → where something is to be predicted, (B, L) bool, and what, (n,)."""
    following = F.pad(labels[:, 1:], (0, 1), value=-100)
    at = following != -100
    return at, following[at]


def head_loss(head: Callable[[Tensor], Tensor], trained: list[nn.Parameter], hidden: Tensor, targets: Tensor) -> Tensor:
    """Mean negative log-likelihood of targets (n,) under head(hidden) (n, V), hidden (n, D). None at all: 0, not NaN.

    Args:
        head: hidden → logits, in whatever precision; the softmax is taken in fp32.
        trained: its parameters that want a gradient. A frozen LM's head has none.
    """
    if not torch.is_grad_enabled():  # an evaluation: no chunk needs to find gradients that nobody asks for
        hidden, trained = hidden.detach(), []
    vocabulary = head(hidden[:1].detach()).shape[-1] if len(hidden) else 1
    rows = max(1, CHUNK // vocabulary)
    if len(hidden) <= rows:  # all of it is one chunk
        total = F.cross_entropy(head(hidden).float(), targets, reduction="sum")
    else:
        total = _ChunkedLoss.apply(head, rows, targets, hidden, *trained)
    return total / max(len(targets), 1)


class _ChunkedLoss(torch.autograd.Function):
    """Sum of the negative log-likelihoods. Forward computes the gradients too; backward hands them out."""

    @staticmethod
    def forward(ctx, head, rows, targets, hidden, *trained):
        wanted = [x for x, needs in zip((hidden, *trained), ctx.needs_input_grad[3:]) if needs]
        total, of_hidden, of_trained = hidden.new_zeros((), dtype=torch.float32), [], [torch.zeros_like(p) for p in trained]
        for h, t in zip(hidden.split(rows), targets.split(rows)):
            with torch.set_grad_enabled(bool(wanted)):
                if wanted:
                    h = h.detach().requires_grad_()
                loss = F.cross_entropy(head(h).float(), t, reduction="sum")
                if wanted:
                    gradient, *gradients = torch.autograd.grad(loss, [h, *trained])
                    of_hidden.append(gradient)
                    for sum_, more in zip(of_trained, gradients):
                        sum_ += more
            total += loss.detach()
        if wanted:
            ctx.save_for_backward(torch.cat(of_hidden), *of_trained)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return None, None, None, *(gradient * saved for saved in ctx.saved_tensors)
