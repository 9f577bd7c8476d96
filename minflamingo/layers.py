"""The two small layers that stand in every tower: the normalisation and the feed-forward block.

    LayerNorm   (x − mean) / √(var + ε) · w + b          GPT-2, OPT, GPT-NeoX, MPT, ViT, both parts of the bridge
    RMSNorm      x / √(mean x² + ε) · w                  Llama
    FeedForward  out( act( up(x) ) )     or, gated,      out( act( gate(x) ) · up(x) )   (SwiGLU with act = SiLU)

Example: FeedForward(128, 512, "sq_relu") maps (B, L, 128) → (B, L, 512) → (B, L, 128). Squared ReLU of 3 is 9, of −3 zero.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),  # OpenAI's CLIP was trained with this; gelu shifts its features
    "relu": F.relu,
    "sq_relu": lambda x: F.relu(x).square(),  # the paper's choice for resampler and bridge
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


def make_norm(kind: str, d: int, eps: float, bias: bool = True) -> nn.Module:
    """The norm called `kind`: "layernorm" or "rmsnorm"."""
    return RMSNorm(d, eps) if kind == "rmsnorm" else nn.LayerNorm(d, eps=eps, bias=bias)


class FeedForward(nn.Module):
    """(B, L, d) → (B, L, d) through `hidden` channels, each token alone."""

    def __init__(self, d: int, hidden: int, activation: str, bias: bool = False, gated: bool = False):
        super().__init__()
        self.gate = nn.Linear(d, hidden, bias=bias) if gated else None
        self.up = nn.Linear(d, hidden, bias=bias)
        self.out = nn.Linear(hidden, d, bias=bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        act = ACTIVATIONS[self.activation]
        x = act(self.up(x)) if self.gate is None else act(self.gate(x)) * self.up(x)
        return self.out(x)
