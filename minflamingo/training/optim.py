"""AdamW (the paper) and Muon: which weights decay, the learning rate, one update from the losses of several datasets.

    L = sum_m lambda_m * L_m            L_m: mean negative log-likelihood of dataset m (section 2.4)

Gradients are ACCUMULATED over all datasets before one update.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..flamingo import Flamingo
from .stage import ADVICE, Diverged

# Weight decay pulls weights towards zero. It must not close the gates (OpenFlamingo decays them) nor shrink norms, biases and
# embeddings. The paper's appendix also leaves out the resampler.
NO_DECAY = ("resampler", "embed", "latents", "positions", "conv.")
NO_MUON = ("embed", "latents", "positions", "conv.", "head")  # weights that do not map one hidden layer to the next


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], lr: float, weight_decay: float = 0.1, gate_lr: float | None = None
) -> list[dict]:
    """Groups for AdamW and Muon: parameters with the same learning rate and weight decay. The gates can have another rate.

    Each group has `peak_lr`, which `set_learning_rate` scales, and `hidden`: weights of hidden layers, for Muon.
    """
    groups: dict[tuple, dict] = {}
    for name, p in named:
        if p.requires_grad:
            rate = gate_lr if "alpha_" in name and gate_lr is not None else lr
            decay = weight_decay if p.dim() >= 2 and not any(part in name for part in NO_DECAY) else 0.0
            hidden = p.dim() in (2, 4) and not any(part in name for part in NO_MUON)
            group = {"params": [], "lr": rate, "peak_lr": rate, "weight_decay": decay, "hidden": hidden}
            groups.setdefault((rate, decay, hidden), group)["params"].append(p)
    return list(groups.values())


def orthogonalize(matrices: Tensor) -> Tensor:
    """The nearest (semi-)orthogonal matrix to each of (n, a, b), approximately: all singular values become about 1.

    Newton-Schulz iteration: each step replaces every singular value s by 3.4445 s - 4.775 s^3 + 2.0315 s^5, which raises small
    values. Five steps bring all but tiny ones to 0.7 ... 1.2 (Jordan et al. 2024).
    """
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)  # all singular values are at most 1
    wide = x.shape[1] <= x.shape[2]
    x = x if wide else x.mT  # the products below are smaller for a wide matrix
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
    return x if wide else x.mT


class Muon(torch.optim.AdamW):
    """Muon for the weight matrices of hidden layers (groups with `hidden`), AdamW for everything else.

    The step of a matrix is its momentum, orthogonalised: all directions change equally, also those that have a small gradient.
    With the factor 0.2 sqrt(longer side), entries change as much as in AdamW, so both have one learning rate.
    """

    @torch.no_grad()
    def step(self) -> None:
        for group in (group for group in self.param_groups if group["hidden"]):
            updates: dict[tuple, list] = {}  # shape -> matrices and their momentum: equal shapes are orthogonalised together
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                if not state:
                    state |= {"step": torch.zeros(()), "momentum": torch.zeros_like(p)}  # torch wants a "step" in every state
                momentum = state["momentum"].lerp_(p.grad, 0.05)
                update = p.grad.lerp(momentum, 0.95).flatten(1)  # Nesterov: one step ahead; a convolution is a matrix too
                updates.setdefault(update.shape, []).append((p, update))
                p.grad = None  # AdamW leaves out parameters without a gradient
            for shape, pairs in updates.items():
                for (p, _), update in zip(pairs, orthogonalize(torch.stack([update for _, update in pairs]))):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.sub_(update.view_as(p), alpha=0.2 * max(shape) ** 0.5 * group["lr"])
        super().step()


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
        return loss.detach(), torch.autograd.grad(weights[name] * loss, parameters, allow_unused=True, materialize_grads=True)

    # `map` keeps the order of `losses`, so the sums are the same, bit for bit, with any number of threads.
    values, gradients = zip(*(pool.map if pool else map)(loss_and_gradients, losses))
    for parameter, of_all in zip(parameters, zip(*gradients)):
        parameter.grad = torch.stack(of_all).sum(0)
    return dict(zip(losses, values))


def clip_gradients(parameters: Iterable[nn.Parameter], losses: Mapping[object, Tensor]) -> str:
    """Scale the gradients down to a norm of 1, if it is larger (as in the paper).

    If a loss or the gradient is NaN or infinite, this returns its name, for `Stage.skip_if`, and removes all gradients. An
    optimizer leaves out weights without a gradient, so its step changes nothing. Otherwise returns "".
    """
    parameters = list(parameters)
    norm = nn.utils.clip_grad_norm_(parameters, 1.0)
    if (norm + sum(losses.values())).isfinite():
        return ""
    for parameter in parameters:
        parameter.grad = None
    infinite = dict.fromkeys(f"the loss of {name}" for name, loss in losses.items() if not loss.isfinite())
    return " and ".join(infinite) or "the gradient"


def check_final_loss(name: str, first: float, last: float, vocab_size: int) -> None:
    """Raises Diverged if the last loss is twice the first one, and twice log V, the loss of V equally likely tokens."""
    if not last <= 2 * max(first, math.log(vocab_size)):  # twice: each batch has another loss. Also true for NaN
        raise Diverged(f"the loss of {name} was {first:.3g} at first and is {last:.3g} at the end. {ADVICE}")


def checkpoint_activations(flamingo: Flamingo) -> None:
    """Keep only the input of each LM block and gated layer, and compute the rest again in the backward pass.

    This needs less memory and a third more time. The gradients are the same. It wraps the `forward` of these modules, in place.
    """
    for module in [*flamingo.lm.blocks, *flamingo.xattn_layers.values()]:
        module.forward = partial(checkpoint, module.forward, use_reentrant=False)
