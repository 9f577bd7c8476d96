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
    weights = masked_softmax(scores, mask)
    return weights @ v, weights


def masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over the keys where `mask` is True, zero elsewhere; a row without any is all zero."""
    if mask is None:
        return scores.softmax(-1)
    sees_nothing = ~mask.any(-1, keepdim=True)
    # Rows that see nothing are given a harmless softmax first and zeroed after: −∞ everywhere would be NaN,
    # and a NaN survives a multiplication with zero, in the gradient too.
    return scores.masked_fill(~mask & ~sees_nothing, -math.inf).softmax(-1).masked_fill(sees_nothing, 0.0)


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, bias: Tensor | None = None, causal: bool = False
) -> Tensor:
    """The same result as `attention_written_out` (without the weights), through PyTorch's fused kernels.

    `causal=True` says that query l may look at keys ≤ l and needs no mask tensor; then mask and bias must be None.
    """
    groups = q.shape[1] // k.shape[1]
    if groups > 1 and q.shape[2] == 1 and not causal:  # the queries of one key head become its rows: no key is copied

        def regroup(x: Tensor | None) -> Tensor | None:
            return x if x is None or x.shape[1] == 1 else x.reshape(x.shape[0], -1, groups, x.shape[3])

        return attention(regroup(q), k, v, regroup(mask), regroup(bias)).reshape(q.shape)
    if causal or mask is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal, enable_gqa=groups > 1)
    sees_nothing = ~mask.any(-1, keepdim=True)
    mask = mask | sees_nothing  # kernels differ on rows without a key: none is left to them
    if bias is not None:
        mask = bias.masked_fill(~mask, -math.inf)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=groups > 1)
    return out.masked_fill(sees_nothing, 0.0)


def attention_with_shared(
    q: Tensor, shared_k: Tensor, shared_v: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """`attention` over keys of which the first Lp stand there ONCE for several rows of the batch; the other Lk are a row's own.

    So a few-shot prompt is kept once under all its queries, beams and candidate answers; and since a new token's keys are
    appended to the short own part only, a step of generation copies nothing of the prompt.

    Args:
        q: (B, h, Lq, d). shared_k, shared_v: (B0, h_kv, Lp, d), read by B / B0 rows in a row each.
        k, v: (B, h_kv, Lk, d).
        mask, bias: as in `attention`, over Lp + Lk keys.
    Returns:
        (B, h, Lq, d), equal to `attention` with the shared keys repeated for each row and put before its own.
    """
    B, h, Lq, d = q.shape
    B0, h_kv, Lp, _ = shared_k.shape
    if B == B0 and Lq > 32:  # nothing is shared, and there are many queries: the fused kernel needs no (Lq, Lp + Lk) scores
        return attention(q, torch.cat([shared_k, k], dim=2), torch.cat([shared_v, v], dim=2), mask, bias)
    rows, groups = B // B0, h // h_kv

    def together(x: Tensor) -> Tensor:
        """(B, h, Lq, n) → (B0, h_kv, rows·groups·Lq, n): what reads the same keys becomes one matrix. 1 head stays 1."""
        x = x.expand(B, max(x.shape[1], groups), Lq, -1)
        return x.reshape(B0, rows, x.shape[1] // groups, groups * Lq, -1).transpose(1, 2).flatten(2, 3)

    def apart(x: Tensor) -> Tensor:
        """The way back."""
        return x.unflatten(2, (rows, groups * Lq)).transpose(1, 2).reshape(B, h, Lq, -1)

    q = q / math.sqrt(d)
    to_shared = together(q) @ shared_k.transpose(-2, -1)  # (B0, h_kv, rows·groups·Lq, Lp)
    to_own = (q.reshape(B, h_kv, groups * Lq, d) @ k.transpose(-2, -1)).view(B, h, Lq, -1)
    scores = torch.cat([to_shared, together(to_own)], dim=-1)
    if bias is not None:
        scores = scores + together(bias)
    if mask is not None:
        sees_nothing = ~mask.any(-1, keepdim=True)
        scores.masked_fill_(together(~(mask | sees_nothing)), -math.inf)
    weights = scores.softmax(-1)
    own = (apart(weights[..., Lp:]).reshape(B, h_kv, groups * Lq, -1) @ v).view(B, h, Lq, d)
    out = apart(weights[..., :Lp] @ shared_v) + own
    return out if mask is None else out.masked_fill(sees_nothing, 0.0)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, h*d) → (B, h, L, d). Head 1 is the first d channels, and so on (the layout "(h d)" of published weights)."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


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
