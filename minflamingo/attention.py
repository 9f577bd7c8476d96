"""One attention for everybody: the eye, the resampler, the bridge and the LM all call `attention`.

    attention(q, k, v)_l = Σ_m softmax_m( q_l · k_m / √d + bias_lm ) v_m          over those m that token l may look at

It is written twice. `attention_written_out` is the equation, for reading; `attention` calls PyTorch's fused
`scaled_dot_product_attention`, for speed; a test holds the two equal. One rule that libraries disagree on is fixed here:
**a token that may look at nothing receives exactly zero** (paper §2.3: text before the first image), where a plain softmax
over −∞ would give NaN, and over a large negative number the mean of everything it must not see.

Example: 3 text tokens, 2 visual tokens, the first text token may not look.
    q (1, 1, 3, 4)   k, v (1, 1, 2, 4)   mask [[[[0, 0], [1, 0], [1, 1]]]]   →   output (1, 1, 3, 4), first row zero
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def attention_written_out(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention, step by step. Also returns the weights, which is what a figure draws.

    Args:
        q: (B, h, Lq, d) queries.
        k, v: (B, h_kv, Lk, d) keys and values. h_kv divides h: each key head serves h / h_kv query heads in a row.
        mask: bool, broadcastable to (B, h, Lq, Lk). True = may look. None = everything.
        bias: float, same shape, added to the scores (ALiBi).
    Returns:
        output (B, h, Lq, d) and weights (B, h, Lq, Lk); a row that may look at nothing is zero in both.
    """
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, h, Lq, Lk)
    if bias is not None:
        scores = scores + bias
    if mask is None:
        weights = scores.softmax(-1)
    else:
        may_look = mask.expand_as(scores)
        sees_nothing = ~may_look.any(-1, keepdim=True)
        # Rows that see nothing are given a harmless softmax first and zeroed after: −∞ everywhere would be NaN,
        # and a NaN survives a multiplication with zero, in the gradient too.
        weights = scores.masked_fill(~may_look & ~sees_nothing, -math.inf).softmax(-1)
        weights = weights.masked_fill(sees_nothing, 0.0)
    return weights @ v, weights


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, bias: Tensor | None = None, causal: bool = False
) -> Tensor:
    """The same result as `attention_written_out` (without the weights), through PyTorch's fused kernels.

    `causal=True` says that query l may look at keys ≤ l and needs no mask tensor; then mask and bias must be None.
    """
    grouped = q.shape[1] != k.shape[1]
    if causal or mask is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal, enable_gqa=grouped)
    sees_nothing = ~mask.any(-1, keepdim=True)
    mask = mask | sees_nothing  # kernels differ on rows without a key: none is left to them
    if bias is not None:
        mask = bias.masked_fill(~mask, -math.inf)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
    return out.masked_fill(sees_nothing, 0.0)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, h*d) → (B, h, L, d). Head 1 is the first d channels, and so on (the layout "(h d)" of published weights)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, h, L, d) → (B, L, h*d), the way back."""
    return x.transpose(1, 2).flatten(2)


def causal_mask(query_positions: int, key_positions: int, device: torch.device | None = None) -> Tensor:
    """(Lq, Lk) bool: the queries are the LAST Lq of Lk positions (those before them lie in a cache); each sees up to itself.

    >>> causal_mask(2, 4).int()
    tensor([[1, 1, 1, 0],
            [1, 1, 1, 1]])
    """
    return torch.ones(query_positions, key_positions, dtype=torch.bool, device=device).tril(key_positions - query_positions)
