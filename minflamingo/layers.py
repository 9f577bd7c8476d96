"""The small layers that stand in every tower: the normalisation, the feed-forward block, and the product with a matrix.

    LayerNorm   (x − mean) / √(var + ε) · w + b          GPT-2, OPT, GPT-NeoX, MPT, ViT, both parts of the bridge
    RMSNorm      x / √(mean x² + ε) · w                  Llama
    FeedForward  out( act( up(x) ) )     or, gated,      out( act( gate(x) ) · up(x) )   (SwiGLU with act = SiLU)
    Linear      x Wᵀ + b                                 `nn.Linear`, quicker when few tokens pass; LinearInTwo: k and v

Example: FeedForward(128, 512, "sq_relu") maps (B, L, 128) → (B, L, 512) → (B, L, 128). Squared ReLU of 3 is 9, of −3 zero.
"""

from __future__ import annotations

import time
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _SquaredReLU(torch.autograd.Function):
    """What `squared_relu` does where a gradient is wanted: ∇x = 2 relu(x) ∇y, two passes in the place of four."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        relu = x.relu_()
        ctx.save_for_backward(relu)
        return relu.square()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        (relu,) = ctx.saved_tensors
        return (gradient * relu).mul_(2)


def squared_relu(x: Tensor) -> Tensor:
    """relu(x)², the paper's choice for resampler and bridge. `x` is written over."""
    if x.requires_grad:
        return _SquaredReLU.apply(x)
    x.relu_()
    return x.mul_(x)


# Those that write over `x` may: it is nobody else's, `up` or `gate` has just made it
ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),  # OpenAI's CLIP was trained with this; gelu shifts its features
    "relu": lambda x: x.relu_(),
    "sq_relu": squared_relu,
    "silu": F.silu,
}


class RMSNorm(nn.Module):
    """Llama's normalisation: no mean, no bias. Computed in fp32 whatever the model's dtype, as Llama does."""

    def __init__(self, d: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.eps)
        return self.weight * (x.float() * scale).to(x.dtype)


def _find_onednn():
    """PyTorch's fp32 product through oneDNN, which has no public name; None where it is missing or wants other arguments."""
    try:
        one = torch.ones(1, 1)
        torch.ops.mkldnn._linear_pointwise(one, one, None, "none", [], "")
    except (AttributeError, RuntimeError, NotImplementedError):
        return None
    return torch.ops.mkldnn._linear_pointwise


_ONEDNN = _find_onednn()


def transposed(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """X Wᵀ + b as (W Xᵀ)ᵀ + b, with at least two columns: one would be another kernel."""
    rows = x.reshape(-1, x.shape[-1])
    columns = torch.cat((rows, rows)) if len(rows) == 1 else rows
    out = torch.mm(weight, columns.T).T[: len(rows)].reshape(*x.shape[:-1], -1)
    return out if bias is None else out + bias


@cache
def reads_slowly() -> bool:
    """Does `F.linear` with one row read weights slowly on this machine? Tried once, in 20 ms.

    To generate is to read weights and little else. On one processor `F.linear` reads them at all of the memory's speed and
    W Xᵀ at half of it; on another at a third, and W Xᵀ at nearly all. So far apart are the two that chance does not decide.
    """
    weights, x = [torch.ones(2048, 512) for _ in range(8)], torch.ones(1, 512)  # 32 MiB: more than a core keeps near
    taken = {F.linear: float("inf"), transposed: float("inf")}
    for _ in range(4):
        for way in taken:
            began = time.perf_counter()
            for weight in weights:
                way(x, weight, None)
            taken[way] = min(taken[way], time.perf_counter() - began)
    return taken[F.linear] > 1.25 * taken[transposed]


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` to the letter: x (…, n), weight (m, n) → (…, m); on a CPU, without a gradient, by the quickest way.

    One row (generation, one token at a time) to eight (beams) go as `F.linear` goes, or, where that reads weights slowly, as
    W Xᵀ, and a narrow matrix through oneDNN. So do more rows: 16 to 100 of them everywhere, where it takes half to all of the
    time; others where `F.linear` is slow. `python -m minflamingo bench` shows it.
    """
    if torch.is_grad_enabled() or not x.is_cpu:
        return F.linear(x, weight, bias)
    m, n = weight.shape
    rows = x.numel() // n
    if (rows < 16 or rows > 100) and not reads_slowly():
        return F.linear(x, weight, bias)
    plain = x.dtype == weight.dtype == torch.float32 and x.shape[-1] == n and rows > 0
    if not plain or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    if rows <= 8 and m >= n:
        return transposed(x, weight, bias)
    if _ONEDNN is None:
        return F.linear(x, weight, bias)
    return _ONEDNN(x, weight, bias, "none", [], "")


class Linear(nn.Linear):
    """`nn.Linear` through `product`."""

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight, self.bias)


class LinearInTwo(Linear):
    """One matrix without bias that holds two, as published weights have keys and values: x (…, n) → two of (…, m / 2).

    Made one after the other, each lies in one piece, and attention reads it a sixth quicker than every second half of a row.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = self.weight.chunk(2)
        return product(x, first), product(x, second)


def make_norm(kind: str, d: int, eps: float, bias: bool = True) -> nn.Module:
    """The norm called `kind`: "layernorm" or "rmsnorm"."""
    return RMSNorm(d, eps) if kind == "rmsnorm" else nn.LayerNorm(d, eps=eps, bias=bias)


class FeedForward(nn.Module):
    """(B, L, d) → (B, L, d) through `hidden` channels, each token alone."""

    def __init__(self, d: int, hidden: int, activation: str, bias: bool = False, gated: bool = False):
        super().__init__()
        self.gate = Linear(d, hidden, bias=bias) if gated else None
        self.up = Linear(d, hidden, bias=bias)
        self.out = Linear(hidden, d, bias=bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        act = ACTIVATIONS[self.activation]
        x = act(self.up(x)) if self.gate is None else act(self.gate(x)) * self.up(x)
        return self.out(x)
