"""AdamW as the paper sets it: who decays, how the learning rate moves, how the losses of several datasets become one step.

    L = Σ_m lambda_m · mean NLL of dataset m            gradients ACCUMULATED over all m into each update (paper §2.4)

Decay pulls weights towards zero; it must not pull the gates shut nor shrink norms, biases, embeddings or the resampler
(OpenFlamingo's decays its gates). Going round-robin over the datasets, one a step, is the alternative that the paper's
table 3 finds worse: `accumulate=False` in `datasets_of_step`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor

import torch
from torch import Tensor, nn


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Only matrices decay, and no matrix of the resampler (paper, appendix), of an embedding or of the convolution does."""
    kept_out = ("resampler", "embed", "latents", "positions", "conv.")
    return parameter.dim() >= 2 and not any(word in name for word in kept_out)


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], lr: float, weight_decay: float = 0.1, gate_lr: float | None = None
) -> list[dict]:
    """Groups for `torch.optim.AdamW`: with decay, without, and the gates (`alpha_…`) with their own learning rate.

    Each group carries `peak_lr`, which `set_learning_rate` scales.
    """
    named = [(n, p) for n, p in named if p.requires_grad]
    gates = [p for n, p in named if "alpha_" in n]
    matrices = [p for n, p in named if "alpha_" not in n and decays(n, p)]
    others = [p for n, p in named if "alpha_" not in n and not decays(n, p)]
    groups = [(matrices, lr, weight_decay), (others, lr, 0.0), (gates, lr if gate_lr is None else gate_lr, 0.0)]
    return [{"params": ps, "lr": rate, "peak_lr": rate, "weight_decay": wd} for ps, rate, wd in groups if ps]


def learning_rate_factor(step: int, warmup: int, total: int | None = None, cooldown: float = 0.0) -> float:
    """Linear warm-up, then constant (the paper); with `cooldown`, linear to a twentieth over that last share of `total`.

    >>> [round(learning_rate_factor(s, 4, 20, cooldown=0.25), 2) for s in (0, 1, 3, 10, 15, 19)]
    [0.25, 0.5, 1.0, 1.0, 1.0, 0.2]
    """
    factor = min(1.0, (step + 1) / max(warmup, 1))
    if total is not None and cooldown > 0:
        factor *= min(1.0, max(0.05, (total - step) / (cooldown * total)))
    return factor


def set_learning_rate(optimizer, factor: float) -> None:
    """lr = peak_lr · factor in every group."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def accumulate_gradients(
    losses: Mapping[str, Callable[[], Tensor]],
    weights: Mapping[str, float],
    parameters: Sequence[nn.Parameter],
    pool: Executor | None = None,
) -> dict[str, Tensor]:
    """Set every parameter's `.grad` to Σ_m lambda_m ∇ L_m, and return the losses.

    Args:
        losses: per dataset m a function that computes its loss (and so need not be computed before its turn).
        weights: lambda_m.
        pool: threads that work on several datasets at once (None: one after the other). Small models do not fill the cores
            of a CPU with one batch; two batches do. The sum is taken in the order of `losses`: it is the same every time.
    """

    def one(name: str) -> tuple[Tensor, tuple[Tensor, ...]]:
        loss = losses[name]()
        gradients = torch.autograd.grad(weights[name] * loss, parameters, allow_unused=True, materialize_grads=True)
        return loss.detach(), gradients

    done = list((pool.map if pool else map)(one, losses))
    for i, parameter in enumerate(parameters):
        parameter.grad = torch.stack([gradients[i] for _, gradients in done]).sum(0)
    return {name: loss for name, (loss, _) in zip(losses, done)}
