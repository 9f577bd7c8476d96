"""The tongue: one decoder-only language model, whose config speaks GPT-2, OPT, GPT-NeoX, MPT and Llama (`LMConfig`).

    x = embed(ids) [+ position]
    x = x + attention(norm(x));  x = x + mlp(norm(x))        for each block
    logits = head(norm(x))

Flamingo needs two things of it beyond text. It takes *embeddings* (the rows of new tokens are not in its table), and it
calls `before_block(i, x)` in front of each block: that is where GATED XATTN-DENSE is inserted (paper §2.2, fig. 4). With no
hook it is an ordinary language model; it stores nothing about images.

The toy LM has one organ that is not in those families: a **causal depthwise convolution** over the last tokens before
each attention (`conv_width`, cf. "canon layers", Allen-Zhu 2025). "circle dax … circle →?" is solved by finding the token that
FOLLOWED the last "circle"; so each position must know its predecessor. Attention learns that slowly, a convolution has it.

Example, two tokens ahead of one in a cache:
    logits, cache = lm(embeddings[:, :2], use_cache=True)      # (B, 2, V)
    logits, cache = lm(embeddings[:, 2:], cache=cache)         # (B, 1, V), equal to position 2 of the whole
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import attention, attention_with_shared, causal_mask, merge_heads, split_heads
from .cache import LMCache, first_kept
from .config import LMConfig
from .layers import FeedForward, Linear, make_norm
from .loss import head_loss, labelled
from .shapes import check_shape


def rotary_angles(positions: Tensor, channels: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and ±sin, each (B, 1, L, channels): channel pair i turns by position · theta^(−2i/channels). In fp32.

    A turned pair is (a cos − b sin, b cos + a sin), so the sines of the first half have the minus already.
    """
    frequencies = theta ** (-torch.arange(0, channels, 2, device=positions.device).float() / channels)
    angles = positions[:, None, :, None].float() * frequencies  # (B, 1, L, channels/2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first channels of each head (GPT-NeoX layout: channel i is paired with i + half); leave the others."""
    channels = cos.shape[-1]
    turned, rest = x[..., :channels], x[..., channels:]
    turned = turned * cos.to(x.dtype) + turned.roll(channels // 2, dims=-1) * sin.to(x.dtype)
    return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned


def alibi_slopes(heads: int, alibi_max: float) -> Tensor:
    """(h,) MPT's slopes 2^(−alibi_max·i/n), n the next power of two; for other h every second one comes first."""
    n = 2 ** math.ceil(math.log2(heads))
    slopes = 2.0 ** (-alibi_max * torch.arange(1, n + 1).float() / n)
    return slopes if n == heads else torch.cat([slopes[1::2], slopes[::2]])[:heads]


class SelfAttention(nn.Module):
    """Causal self-attention with the families' variants: rotary, ALiBi, QK norm, grouped key heads."""

    def __init__(self, c: LMConfig):
        super().__init__()
        self.config = c
        self.to_q = Linear(c.d, c.heads * c.d_head, bias=c.attention_bias)
        self.to_k = Linear(c.d, c.n_kv_heads * c.d_head, bias=c.attention_bias)
        self.to_v = Linear(c.d, c.n_kv_heads * c.d_head, bias=c.attention_bias)
        self.to_out = Linear(c.heads * c.d_head, c.d, bias=c.output_bias)
        if c.qk_norm:
            widths = (c.d, c.n_kv_heads * c.d_head) if c.qk_norm == "full" else (c.d_head, c.d_head)
            self.q_norm, self.k_norm = (make_norm(c.norm, w, c.norm_eps, c.norm_bias) for w in widths)

    def forward(self, x: Tensor, angles: tuple | None, mask: Tensor | None, bias: Tensor | None, past: tuple | None):
        """x (B, L, D) → (B, L, D), and keys and values of these tokens: `past` is `LMCache.past`, and they come behind the
        row's own, as `Kept`; without a past, as they are.

        `angles`: what rotary turns queries and keys by (`rotary_angles`); None: it does not.
        """
        c = self.config
        q, k, v = self.to_q(x), self.to_k(x), self.to_v(x)
        if c.qk_norm == "full":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = split_heads(q, c.heads), split_heads(k, c.n_kv_heads), split_heads(v, c.n_kv_heads)
        if c.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        if angles is not None:
            q, k = rotate(q, *angles), rotate(k, *angles)
        if past is None:
            return self.to_out(merge_heads(attention(q, k, v, mask, bias, causal=mask is None))), (k, v)
        shared, own = past
        kept = first_kept(k, v) if own is None else own.append(k, v)
        if shared is None:
            out = attention(q, kept.k, kept.v, mask, bias)
        else:
            out = attention_with_shared(q, shared.k, shared.v, kept.k, kept.v, mask, bias)
        return self.to_out(merge_heads(out)), kept


class CausalConv(nn.Module):
    """x + depthwise convolution over the last `width` tokens, each channel alone. Starts at zero: at first it does nothing."""

    def __init__(self, d: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, d))

    def forward(self, x: Tensor, tail: Tensor | None, end: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (B, L, D); `tail` (B, width - 1, D) the inputs before it (None: zeros). Returns output and the new tail.

        `end` (B,) long: behind so many tokens a row's text ends, and there its tail is taken; None: behind all.
        """
        width = self.weight.shape[0]
        if tail is None:
            tail = x.new_zeros(x.shape[0], width - 1, x.shape[2])
        longer = torch.cat([tail, x], dim=1)  # (B, width - 1 + L, D)
        L = x.shape[1]
        # out_l = x_l + Σ_i weight_i · x_(l−i): weight_0 is for the token itself, weight_1 for the one before it, … As a picture
        # of one row, because two-dimensional convolutions are the quick ones.
        kernel = self.weight.flip(0).T[:, None, None]  # (D, 1, 1, width)
        row = longer.transpose(1, 2)[:, :, None]  # (B, D, 1, width - 1 + L)
        out = x + F.conv2d(row, kernel, groups=x.shape[2])[:, :, 0].transpose(1, 2)
        if end is None:
            return out, longer[:, L:].clone()  # not a view, which would keep the whole text in memory
        rows, last = torch.arange(len(x), device=x.device), torch.arange(width - 1, device=x.device)
        return out, longer[rows[:, None], end[:, None] + last]


class Block(nn.Module):
    """One pre-norm decoder block."""

    def __init__(self, c: LMConfig):
        super().__init__()
        self.parallel = c.parallel_residual
        self.attn_norm = make_norm(c.norm, c.d, c.norm_eps, c.norm_bias)
        self.conv = CausalConv(c.d, c.conv_width) if c.conv_width else None
        self.attn = SelfAttention(c)
        self.mlp_norm = make_norm(c.norm, c.d, c.norm_eps, c.norm_bias)
        self.mlp = FeedForward(c.d, c.d_ff or 4 * c.d, c.activation, c.mlp_bias, c.gated_mlp)
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, x, angles, mask, bias, keep, end, past, tail, at=None):
        """`keep` (B, L, 1) is 0 at padding: what the convolution must not carry into the text beside it.

        `at` (B, L) bool: the result is that of these positions alone, (number of True, D); None: of all, (B, L, D).
        """
        y = self.attn_norm(x)
        if self.conv is not None:
            y, tail = self.conv(y if keep is None else y * keep, tail, end)
        attended, kv = self.attn(y, angles, mask, bias, past)
        if at is not None:  # in the last block: what nobody reads need not be thought to its end
            x, attended = x[at], attended[at]
        drop = self.dropout if self.training else lambda x: x
        if self.parallel:
            return x + drop(attended) + drop(self.mlp(self.mlp_norm(x))), kv, tail
        x = x + drop(attended)
        return x + drop(self.mlp(self.mlp_norm(x))), kv, tail


class LM(nn.Module):
    """A decoder-only language model.

    Args of `forward`:
        embeddings: (B, L, D), from `lm.embed(ids)`; positions are added here, never by the caller.
        attention_mask: (B, L) bool, False at padding, left or right; None: no padding.
        cache: what came before these tokens, from an earlier call.
        before_block: `x = before_block(i, x)` is applied in front of block i.
        use_cache: return a cache that includes these tokens (always so when one was given).
        at: (B, L) bool, the positions whose logits are wanted; None: all of them.
    Returns:
        logits (B, L, V), with `at` (number of True, V), and the cache or None.
    Raises:
        ValueError: more tokens than `max_length`, or shapes that do not fit.
    """

    def __init__(self, config: LMConfig):
        super().__init__()
        c = self.config = config
        self.embed = nn.Embedding(c.vocab_size, c.d)
        if c.position == "learned":
            self.position_embed = nn.Embedding(c.max_length + c.position_offset, c.d)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.final_norm = make_norm(c.norm, c.d, c.norm_eps, c.norm_bias)
        self.head = Linear(c.d, c.vocab_size, bias=c.head_bias)
        self.apply(self._init)
        if c.tied_head:
            self.head.weight = self.embed.weight
        for block in self.blocks:  # GPT-2: what is added to the residual stream shrinks with the number of additions
            for linear in (block.attn.to_out, block.mlp.out):
                nn.init.normal_(linear.weight, std=0.02 / math.sqrt(2 * c.layers))

    @staticmethod
    def _init(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(
        self,
        embeddings: Tensor,
        attention_mask: Tensor | None = None,
        cache: LMCache | None = None,
        before_block: Callable[[int, Tensor], Tensor] | None = None,
        use_cache: bool = False,
        at: Tensor | None = None,
    ) -> tuple[Tensor, LMCache | None]:
        hidden, cache = self.read(embeddings, attention_mask, cache, before_block, use_cache, at)
        return self.head(hidden), cache

    def read(
        self,
        embeddings: Tensor,
        attention_mask: Tensor | None = None,
        cache: LMCache | None = None,
        before_block: Callable[[int, Tensor], Tensor] | None = None,
        use_cache: bool = False,
        at: Tensor | None = None,
        recompute: bool = False,
    ) -> tuple[Tensor, LMCache | None]:
        """All of `forward` but the head: (B, L, D), or (number of True in `at`, D), normed.

        recompute: in training, keep only what enters each block and compute the rest once more in the backward pass
        (activation checkpointing): a fraction of the memory for a third more time. The gradients are the same.
        """
        c, x = self.config, embeddings
        sizes = check_shape(x, "B L D", "embeddings", D=c.d)
        B, L = sizes["B"], sizes["L"]
        past = cache.length if cache else 0
        if self.room(past) < L:
            raise ValueError(f"{past + L} tokens, but the language model's context is {c.max_length}: use fewer shots")

        new = torch.ones(B, L, dtype=torch.bool, device=x.device) if attention_mask is None else attention_mask.bool()
        padded = attention_mask is not None and not bool(new.all())
        real = torch.cat([cache.mask, new], dim=1) if cache else new
        check_shape(real, "B L", "attention_mask (with cache)", B=B, L=past + L)
        if cache and padded and c.conv_width and bool(((new[:, 1:] & ~new[:, :-1]).any(1) & cache.mask.any(1)).any()):
            raise ValueError("behind a cache, padding stands on the right: the convolution must see what came just before")
        # Position = number of real tokens before; so padding moves nothing, wherever it stands.
        everywhere = (real.long().cumsum(1) - 1).clamp_min(0)  # (B, past + L)
        positions = everywhere[:, past:]

        # Padding behind a text is seen by no token of it: then plain causal attention is the same, and needs no mask.
        if padded and not past and c.position != "alibi" and bool(new[:, 0].all() and (new[:, 1:] <= new[:, :-1]).all()):
            padded = False
        mask = None  # None: plain causal, which the fused kernel knows by itself
        if padded or c.position == "alibi" or (past and (L > 1 or not bool(real.all()))):
            mask = causal_mask(L, past + L, x.device) & real[:, None, None, :]  # (B, 1, L, past + L)
        bias = None
        if c.position == "alibi":
            distance = (everywhere[:, None, :] - positions[:, :, None])[:, None]  # (B, 1, L, past + L)
            distance = distance if padded or past else distance[:1]
            bias = (alibi_slopes(c.heads, c.alibi_max).to(x.device)[:, None, None] * distance).to(x.dtype)
        keep = new[..., None].to(x.dtype) if padded else None
        end = last_real(new) + 1 if c.conv_width and attention_mask is not None and (use_cache or cache) else None

        if c.position == "learned":
            x = x + self.position_embed(positions + c.position_offset)
        rotary = c.position == "rotary"  # the same angles in every block
        angles = rotary_angles(positions, int(c.d_head * c.rotary_pct), c.rotary_theta) if rotary else None
        kvs, tails = [], []

        def one(i: int, x: Tensor):
            layer_past, tail = (cache.past(i), cache.tails[i]) if cache else (None, None)
            x = x if before_block is None else before_block(i, x)
            last = i == len(self.blocks) - 1
            return self.blocks[i](x, angles, mask, bias, keep, end, layer_past, tail, at if last else None)

        for i in range(len(self.blocks)):
            x, kv, tail = checkpoint(one, i, x, use_reentrant=False) if recompute else one(i, x)
            kvs.append(kv)
            tails.append(tail)
        hidden = self.final_norm(x)
        if cache:
            return hidden, LMCache(cache.shared, tuple(kvs), tuple(tails), real)
        if not use_cache:
            return hidden, None
        return hidden, LMCache(None, tuple(first_kept(*kv) for kv in kvs), tuple(tails), real)

    def room(self, tokens: int) -> float:
        """How many more tokens its context holds behind that many. Infinite where `max_length` is None."""
        return math.inf if self.config.max_length is None else self.config.max_length - tokens

    def loss(self, ids: Tensor, labels: Tensor) -> Tensor:
        """Mean negative log-likelihood per labelled token. ids, labels (B, L); labels[l] is of ids[l]; −100: not counted."""
        at, targets = labelled(labels)
        trained = [p for p in self.head.parameters() if p.requires_grad]
        return head_loss(self.head, trained, self.read(self.embed(ids), at=at)[0], targets)


def last_real(mask: Tensor) -> Tensor:
    """mask (B, L) bool → (B,) long, the place of the last True of each row; −1 if there is none."""
    places = torch.arange(mask.shape[1], device=mask.device)
    return places.where(mask, places.new_tensor(-1)).amax(1)
