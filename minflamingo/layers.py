"""The small layers that stand in every tower: the normalisation, the feed-forward block, and the product with a matrix.

    LayerNorm   (x − mean) / √(var + ε) · w + b          GPT-2, OPT, GPT-NeoX, MPT, ViT, both parts of the bridge
    RMSNorm      x / √(mean x² + ε) · w                  Llama
    FeedForward  out( act( up(x) ) )     or, gated,      out( act( gate(x) ) · up(x) )   (SwiGLU with act = SiLU)
    Linear      x Wᵀ + b                                 `nn.Linear`, quicker when few tokens pass

Example: FeedForward(128, 512, "sq_relu") maps (B, L, 128) → (B, L, 512) → (B, L, 128). Squared ReLU of 3 is 9, of −3 zero.
"""

from __future__ import annotations

import time
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),  # OpenAI's CLIP was trained with this; gelu shifts its features
    "relu": lambda x: F.relu(x, inplace=True),  # `x` is nobody else's: it has just been made by `up` or `gate`
    "sq_relu": lambda x: F.relu(x, inplace=True).square(),  # the paper's choice for resampler and bridge
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


class Linear(nn.Linear):
    """`nn.Linear` to the letter; on a CPU, without a gradient, by the quickest way to the same product.

    One row (generation, one token at a time) to eight (beams) go as `F.linear` goes, or, where that reads weights slowly, as
    W Xᵀ, and a narrow matrix through oneDNN. So do many rows: as quick as `nn.Linear`'s kernel, or a sixth quicker.
    `python -m minflamingo bench` shows it.
    """

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // self.in_features
        plain = x.is_cpu and x.dtype == self.weight.dtype == torch.float32 and x.shape[-1] == self.in_features and rows > 0
        if not plain or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        if rows <= 8 and not reads_slowly():
            return super().forward(x)
        if rows <= 8 and self.out_features >= self.in_features:
            return transposed(x, self.weight, self.bias)
        if _ONEDNN is None:
            return super().forward(x)
        return _ONEDNN(x, self.weight, self.bias, "none", [], "")


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
