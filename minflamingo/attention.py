"""Scaled dot-product attention: one function for the vision encoder, the resampler, the gated layers and the LM.

    attention(q, k, v)_l = sum_m softmax_m( q_l . k_m / sqrt(d) + bias[l,m] ) v_m        over the keys m that the mask allows

There are two versions. `attention_written_out` is the equation, for reading and for figures. `attention` calls PyTorch's
`scaled_dot_product_attention`, which computes the same without storing the score matrix. A test compares the two.

If the mask allows no key for a query, libraries return different results. Here it is **exactly zero**. The paper needs this
for text before the first image (section 2.3). A softmax over minus infinity alone would be NaN. With -1e9 instead of minus
infinity, all weights of such a row would be equal, so the text would attend to all images.

Example: 3 text tokens, 2 visual tokens; the first text token may attend to nothing.
    q (1, 1, 3, 4)   k, v (1, 1, 2, 4)   mask [[[[0, 0], [1, 0], [1, 1]]]]   ->   output (1, 1, 3, 4), first row zero
"""

import math

import torch.nn.functional as F
from torch import Tensor


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """(B, L, h*d) -> (B, h, L, d). Head 0 is the first d channels, head 1 the next d, as in published weights."""
    # (B, L, h*d) -> (B, L, h, d) -> (B, h, L, d): attention treats the head axis like a batch axis
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, h, L, d) -> (B, L, h*d), the inverse of `split_heads`."""
    # (B, h, L, d) -> (B, L, h, d) -> (B, L, h*d)
    return x.transpose(1, 2).flatten(2)


def attention_written_out(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention step by step.

    Args:
        q: (B, h, Lq, d) queries.
        k, v: (B, h_kv, Lk, d) keys and values. With h_kv < h, h / h_kv query heads share a key head (grouped-query attention).
        mask: bool, broadcastable to (B, h, Lq, Lk). True: may attend. None: every query attends to every key.
        bias: float, same shape, added to the scores (positions of ALiBi, or minus infinity as a mask).
    Returns:
        The output (B, h, Lq, d) and the attention weights (B, h, Lq, Lk), which figures show.
    """
    ### BEGIN SOLUTION attention
    # Grouped-query attention saves memory: fewer heads of keys and values are kept than there are heads of queries.
    # Repeat each key head for the query heads that share it: heads 0 0 0 1 1 1 for h = 6, h_kv = 2.
    n_repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(n_repeats, dim=1), v.repeat_interleave(n_repeats, dim=1)

    # A sum of d products of independent unit normals has variance d. The division brings it back to 1.
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, h, Lq, Lk)
    if bias is not None:
        scores = scores + bias
    if mask is None:
        weights = scores.softmax(-1)  # each row sums to 1
    else:
        # A row without any allowed key would be 0/0 in the softmax. Allow all its keys first, then set its weights to zero.
        empty = ~mask.any(-1, keepdim=True)  # (B, 1 or h, Lq, 1)
        weights = scores.masked_fill(~(mask | empty), -math.inf).softmax(-1).masked_fill(empty, 0.0)
    return weights @ v, weights
    ### END SOLUTION


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """The output of `attention_written_out`, computed by PyTorch's fused kernel.

    Same arguments. With a bias there must be no mask: the LM puts its causal mask into the bias, as minus infinity.
    """
    if mask is not None and bias is not None:
        raise ValueError("attention: got a mask and a bias; put the mask into the bias, as minus infinity")
    gqa = q.shape[1] != k.shape[1]  # grouped-query attention
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=gqa)
    # Kernels differ in what they return for a row without any allowed key, so no such row is given to them.
    empty = ~mask.any(-1, keepdim=True)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask | empty, enable_gqa=gqa)  # (B, h, Lq, d)
    return out.masked_fill(empty, 0.0)
