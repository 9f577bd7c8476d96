"""Small layers that several parts share: norms, the feed-forward block, positions for the LM, a causal convolution.

    LayerNorm    (x - mean) / sqrt(var + eps) * w + b        GPT-2, OPT, GPT-NeoX, MPT, ViT, resampler, gated layers
    RMSNorm       x / sqrt(mean(x^2) + eps) * w              Llama
    FeedForward  out( act( up(x) ) )     or, gated,          out( act( gate(x) ) * up(x) )   (SwiGLU when act = SiLU)

Example: FeedForward(128, 512, "sq_relu") maps (B, L, 128) -> (B, L, 512) -> (B, L, 128). Squared ReLU of 3 is 9, of -3 it is 0.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),  # GPT-2
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),  # OpenAI's CLIP; with plain GELU its features would shift
    "relu": F.relu,
    "sq_relu": lambda x: F.relu(x).square(),  # the paper's choice for the resampler and the gated layers
    "silu": F.silu,
}


class RMSNorm(nn.Module):
    """Llama's norm: no mean, no bias. Computed in fp32 because squares overflow easily in half precision."""

    def __init__(self, d: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))  # one scale per channel
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.eps)  # (..., 1)
        return self.weight * (x.float() * scale).to(x.dtype)


def make_norm(kind: str, d: int, eps: float, bias: bool = True) -> nn.Module:
    """The norm called `kind`: "layernorm" or "rmsnorm" (which never has a bias)."""
    return RMSNorm(d, eps) if kind == "rmsnorm" else nn.LayerNorm(d, eps=eps, bias=bias)


# With hidden = 4 d this has two thirds of the weights of a Transformer block. It is the "dense" in GATED XATTN-DENSE.
class FeedForward(nn.Module):
    """(B, L, d) -> (B, L, d) through `hidden` channels. It acts on each token alone. Only attention mixes tokens."""

    def __init__(self, d: int, hidden: int, activation: str, bias: bool = False, gated: bool = False):
        super().__init__()
        self.gate = nn.Linear(d, hidden, bias=bias) if gated else None
        self.up = nn.Linear(d, hidden, bias=bias)
        self.out = nn.Linear(hidden, d, bias=bias)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        ### BEGIN SOLUTION feed_forward
        if self.gate is None:
            x = self.activation(self.up(x))  # (B, L, hidden)
        else:
            x = self.activation(self.gate(x)) * self.up(x)  # (B, L, hidden)
        return self.out(x)
        ### END SOLUTION


def rotary_angles(positions: Tensor, channels: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions (RoPE): channel pair i turns by the angle position * theta^(-2i / channels).

    Low i turn fast and tell neighbours apart; high i turn slowly and measure long distances. The product of a rotated query and
    a rotated key depends only on the difference of their positions.

    Args:
        positions: (B, L).
        channels: how many channels of each head are rotated; even.
    Returns:
        cos and sin, (B, 1, L, channels) each, in fp32; the head axis has size 1 because all heads use the same angles.
    """
    ### BEGIN SOLUTION rotary
    frequencies = theta ** (-torch.arange(0, channels, 2, device=positions.device).float() / channels)  # (channels/2,)
    angles = positions[:, None, :, None].float() * frequencies  # (B, 1, L, channels/2)
    # Pair (a, b) becomes (a cos - b sin, b cos + a sin). The minus sign is stored with the sines of the first half.
    return torch.cat([angles.cos()] * 2, dim=-1), torch.cat([-angles.sin(), angles.sin()], dim=-1)
    ### END SOLUTION


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first channels of each head of x (B, h, L, d_head) and leave the others (GPT-NeoX: only a quarter rotates)."""
    ### BEGIN SOLUTION rotary
    channels = cos.shape[-1]  # how many channels of the head rotate
    turned, rest = x[..., :channels], x[..., channels:]
    # Channel i is paired with channel i + half (the layout of published weights), so rolling by half brings every channel's
    # partner to its place.
    partner = turned.roll(channels // 2, dims=-1)
    turned = turned * cos.to(x.dtype) + partner * sin.to(x.dtype)
    return torch.cat([turned, rest], dim=-1)
    ### END SOLUTION


def alibi_slopes(n_heads: int, alibi_max: float) -> Tensor:
    """(h,) slopes of ALiBi in MPT: head i subtracts slope_i * distance from its scores, slope_i = 2^(-alibi_max * i / n).

    n is the next power of two. If h is smaller, MPT takes the slopes with even i (2, 4, ...) first, then those with odd i.
    """
    n = 2 ** math.ceil(math.log2(n_heads))
    # a geometric series: 1/2, 1/4, ..., 1/256 for 8 heads
    slopes = 2.0 ** (-alibi_max * torch.arange(1, n + 1).float() / n)  # (n,)
    return slopes if n == n_heads else torch.cat([slopes[1::2], slopes[::2]])[:n_heads]


class CausalConv(nn.Module):
    """x + a depthwise convolution over the last `width` tokens: out_l = x_l + sum_i weight_i * x_(l-i), each channel alone.

    Only the toy LM has it ("canon layers", Allen-Zhu 2025). Example: `circle dax ... circle ?`. The answer is `dax`, a made-up
    name that came after the first `circle`. To find it, the position of `dax` must know that the token before it was `circle`.
    Attention learns slowly to attend to the previous token; a convolution can do it at once. From random weights, lookups are
    learned several times sooner than from zeros: each channel shows attention another mixture of the last tokens.
    """

    def __init__(self, d: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, d) * 0.5)

    def forward(self, x: Tensor, state: Tensor | None, end: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, L, d) -> output (B, L, d) and the state for the next call (B, width - 1, d).

        Args:
            state: (B, width - 1, d), the inputs before x. None: x is the beginning, and zeros come before it.
            end: (B,), the index after the last real token of x. The new state is the last width - 1 inputs before it.
        """
        width, d = self.weight.shape
        if state is None:
            state = x.new_zeros(x.shape[0], width - 1, d)
        inputs = torch.cat([state, x], dim=1)  # (B, width - 1 + L, d)
        # PyTorch's convolution multiplies weight j with input l + j, oldest first. Ours count backwards, hence the flip.
        kernel = self.weight.flip(0).T[:, None, None]  # (d, 1, 1, width): one row of `width` weights per channel
        row = inputs.transpose(1, 2)[:, :, None]  # (B, d, 1, width - 1 + L): an image of height 1 (2-D is faster on CPUs)
        out = x + F.conv2d(row, kernel, groups=d)[:, :, 0].transpose(1, 2)
        # `inputs` has width - 1 extra columns on the left, so x[end] is inputs[end + width - 1]. The new state is
        # inputs[end : end + width - 1], for each row its own `end`.
        index = end[:, None] + torch.arange(width - 1, device=x.device)  # (B, width - 1)
        return out, inputs.gather(1, index[..., None].expand(-1, -1, d))
