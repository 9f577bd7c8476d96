"""AdamW as in the paper: which weights decay, the learning rate, and one update from the losses of several datasets.

    L = sum_m lambda_m * L_m            L_m: mean negative log-likelihood of dataset m (section 2.4)

Gradients are ACCUMULATED over all datasets before one update.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..flamingo import Flamingo

# Weight decay pulls weights towards zero. It must not close the gates (OpenFlamingo decays them) nor shrink norms, biases and
# embeddings. The paper's appendix also leaves out the resampler.
NO_DECAY = ("resampler", "embed", "latents", "positions", "conv.")


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], lr: float, weight_decay: float = 0.1, gate_lr: float | None = None
) -> list[dict]:
    """Groups for `torch.optim.AdamW`: matrices that decay, other parameters, and the gates with their own learning rate.

    Each group has `peak_lr`, which `set_learning_rate` scales.
    """
    decaying, others, gates = [], [], []
    for name, p in named:
        if not p.requires_grad:
            continue
        if "alpha_" in name:
            gates.append(p)
        elif p.dim() >= 2 and not any(part in name for part in NO_DECAY):
            decaying.append(p)
        else:
            others.append(p)
    groups = (decaying, lr, weight_decay), (others, lr, 0.0), (gates, lr if gate_lr is None else gate_lr, 0.0)
    return [{"params": ps, "lr": rate, "peak_lr": rate, "weight_decay": decay} for ps, rate, decay in groups if ps]


def learning_rate_factor(step: int, warmup: int, total: int = 0, cooldown: float = 0.0) -> float:
    """Linear warm-up, then constant (the paper). With `cooldown`, the last share of `total` steps falls linearly towards 0.

    >>> [round(learning_rate_factor(s, 4, 20, cooldown=0.25), 2) for s in (0, 1, 3, 10, 15, 19)]
    [0.25, 0.5, 1.0, 1.0, 1.0, 0.2]
    """
    factor = min(1.0, (step + 1) / max(warmup, 1))
    if cooldown > 0:
        factor *= min(1.0, max(0.05, (total - step) / (cooldown * total)))
    return factor


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def accumulate_gradients(
    losses: Mapping[str, Callable[[], Tensor]], weights: Mapping[str, float], parameters: Sequence[nn.Parameter],
    pool: Executor | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Set every parameter's `.grad` to sum_m lambda_m * gradient of L_m, and return the losses.

    `losses` has for each dataset m a function that computes L_m, `weights` has lambda_m. The threads of `pool` compute several
    losses at once. Without it they are computed one after the other.
    """

    def loss_and_gradients(name: str) -> tuple[Tensor, tuple[Tensor, ...]]:
        loss = losses[name]()
        gradients = torch.autograd.grad(weights[name] * loss, parameters, allow_unused=True, materialize_grads=True)
        return loss.detach(), gradients

    # `map` keeps the order of `losses`, so the sums are the same, bit for bit, with any number of threads.
    values, gradients = zip(*(pool.map if pool else map)(loss_and_gradients, losses))
    for parameter, of_all in zip(parameters, zip(*gradients)):
        parameter.grad = torch.stack(of_all).sum(0)
    return dict(zip(losses, values))


def checkpoint_activations(flamingo: Flamingo) -> None:
    """Keep only the input of each LM block and gated layer, and compute the rest again in the backward pass.

    This needs less memory and a third more time. The gradients are the same. It wraps the `forward` of these modules, in place.
    """
    for module in [*flamingo.lm.blocks, *flamingo.xattn_layers.values()]:
        module.forward = partial(checkpoint, module.forward, use_reentrant=False)
