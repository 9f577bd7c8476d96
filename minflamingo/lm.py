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
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attention, causal_mask, merge_heads, split_heads
from .config import LMConfig
from .layers import FeedForward, make_norm
from .shapes import check_shape


@dataclass(frozen=True)
class LMCache:
    """What the LM remembers of the tokens so far. Never changed in place: each step returns a new one."""

    keys: tuple[Tensor, ...]  # per layer (B, h_kv, Lk, d_head), already turned by rotary
    values: tuple[Tensor, ...]
    tails: tuple[Tensor | None, ...]  # per layer (B, conv_width - 1, D): the convolution's last inputs
    mask: Tensor  # (B, Lk) bool, False at padding

    @property
    def length(self) -> int:
        return self.mask.shape[1]

    def select(self, rows: Tensor) -> LMCache:
        """The cache of other rows of the batch: `rows` may repeat or reorder them (beam search)."""
        pick = tuple
        return LMCache(
            pick(k[rows] for k in self.keys), pick(v[rows] for v in self.values),
            pick(None if t is None else t[rows] for t in self.tails), self.mask[rows],
        )  # fmt: skip


def rotary_angles(positions: Tensor, channels: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin, each (B, 1, L, channels): channel pair i turns by position · theta^(−2i/channels). In fp32."""
    frequencies = theta ** (-torch.arange(0, channels, 2, device=positions.device).float() / channels)
    angles = positions[:, None, :, None].float() * frequencies  # (B, 1, L, channels/2)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first channels of each head (GPT-NeoX layout: channel i is paired with i + half); leave the others."""
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    a, b = turned.chunk(2, dim=-1)
    turned = turned * cos.to(x.dtype) + torch.cat([-b, a], dim=-1) * sin.to(x.dtype)
    return torch.cat([turned, rest], dim=-1)


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
        self.to_q = nn.Linear(c.d, c.heads * c.d_head, bias=c.attention_bias)
        self.to_k = nn.Linear(c.d, c.n_kv_heads * c.d_head, bias=c.attention_bias)
        self.to_v = nn.Linear(c.d, c.n_kv_heads * c.d_head, bias=c.attention_bias)
        self.to_out = nn.Linear(c.heads * c.d_head, c.d, bias=c.output_bias)
        if c.qk_norm:
            widths = (c.d, c.n_kv_heads * c.d_head) if c.qk_norm == "full" else (c.d_head, c.d_head)
            self.q_norm, self.k_norm = (make_norm(c.norm, w, c.norm_eps, c.norm_bias) for w in widths)

    def forward(
        self, x: Tensor, positions: Tensor, mask: Tensor | None, bias: Tensor | None, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        c = self.config
        q, k, v = self.to_q(x), self.to_k(x), self.to_v(x)
        if c.qk_norm == "full":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = split_heads(q, c.heads), split_heads(k, c.n_kv_heads), split_heads(v, c.n_kv_heads)
        if c.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        if c.position == "rotary":
            cos, sin = rotary_angles(positions, int(c.d_head * c.rotary_pct), c.rotary_theta)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        out = attention(q, k, v, mask, bias, causal=mask is None)
        return self.to_out(merge_heads(out)), (k, v)


class CausalConv(nn.Module):
    """x + depthwise convolution over the last `width` tokens, each channel alone. Starts at zero: at first it does nothing."""

    def __init__(self, d: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, d))

    def forward(self, x: Tensor, tail: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, L, D); `tail` (B, width - 1, D) the inputs before it (None: zeros). Returns output and the new tail."""
        width = self.weight.shape[0]
        if tail is None:
            tail = x.new_zeros(x.shape[0], width - 1, x.shape[2])
        longer = torch.cat([tail, x], dim=1)  # (B, width - 1 + L, D)
        L = x.shape[1]
        out = x
        for back in range(width):  # weight[0] is for the token itself, weight[1] for the one before it, …
            out = out + self.weight[back] * longer[:, width - 1 - back : width - 1 - back + L]
        return out, longer[:, L:]


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

    def forward(self, x, positions, mask, bias, keep, past, tail):
        """`keep` (B, L, 1) is 0 at padding: what the convolution must not carry into the text beside it."""
        y = self.attn_norm(x)
        if self.conv is not None:
            y, tail = self.conv(y if keep is None else y * keep, tail)
        attended, kv = self.attn(y, positions, mask, bias, past)
        attended = self.dropout(attended)
        if self.parallel:
            return x + attended + self.dropout(self.mlp(self.mlp_norm(x))), kv, tail
        x = x + attended
        return x + self.dropout(self.mlp(self.mlp_norm(x))), kv, tail


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
        self.head = nn.Linear(c.d, c.vocab_size, bias=c.head_bias)
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
    ) -> tuple[Tensor, LMCache | None]:
        """All of `forward` but the head: (B, L, D), or (number of True in `at`, D), normed."""
        c, x = self.config, embeddings
        sizes = check_shape(x, "B L D", "embeddings", D=c.d)
        B, L = sizes["B"], sizes["L"]
        past = cache.length if cache else 0
        if self.room(past) < L:
            raise ValueError(f"{past + L} tokens, but the language model's context is {c.max_length}: use fewer shots")

        padded = attention_mask is not None and not bool(attention_mask.all())
        real = torch.ones(B, L, dtype=torch.bool, device=x.device) if attention_mask is None else attention_mask.bool()
        if cache:
            padded |= not bool(cache.mask.all())
            real = torch.cat([cache.mask, real], dim=1)
        check_shape(real, "B L", "attention_mask (with cache)", B=B, L=past + L)
        # Position = number of real tokens before; so left padding moves nothing.
        positions = (real.long().cumsum(1) - 1).clamp_min(0)[:, past:]  # (B, L)

        mask = None  # None: plain causal, which the fused kernel knows by itself
        if padded or past or c.position == "alibi":
            mask = causal_mask(L, past + L, x.device) & real[:, None, None, :]  # (B, 1, L, past + L)
        bias = None
        if c.position == "alibi":
            distance = torch.arange(past + L, device=x.device) - torch.arange(past, past + L, device=x.device)[:, None]
            bias = (alibi_slopes(c.heads, c.alibi_max).to(x.device)[:, None, None] * distance)[None].to(x.dtype)
        keep = real[:, past:, None].to(x.dtype) if padded else None

        if c.position == "learned":
            x = x + self.position_embed(positions + c.position_offset)
        kvs, tails = [], []
        for i, block in enumerate(self.blocks):
            if before_block is not None:
                x = before_block(i, x)
            layer_past = (cache.keys[i], cache.values[i]) if cache else None
            x, kv, tail = block(x, positions, mask, bias, keep, layer_past, cache.tails[i] if cache else None)
            kvs.append(kv)
            tails.append(tail)
        hidden = self.final_norm(x if at is None else x[at])
        if not (use_cache or cache):
            return hidden, None
        return hidden, LMCache(tuple(k for k, _ in kvs), tuple(v for _, v in kvs), tuple(tails), real)

    def room(self, tokens: int) -> float:
        """How many more tokens its context holds behind that many. Infinite where `max_length` is None."""
        return math.inf if self.config.max_length is None else self.config.max_length - tokens

    def loss(self, ids: Tensor, labels: Tensor) -> Tensor:
        """Mean negative log-likelihood per labelled token. ids, labels (B, L); labels[l] is of ids[l]; −100: not counted."""
        at, targets = labelled(labels)
        return labelled_loss(self(self.embed(ids), at=at)[0], targets)


def labelled(labels: Tensor) -> tuple[Tensor, Tensor]:
    """labels (B, L) → where something is to be predicted, (B, L) bool, and what, (n,): the fast way to `next_token_loss`.

    The head is the widest layer of all, and most positions carry no label: they need no logits.
    """
    following = F.pad(labels[:, 1:], (0, 1), value=-100)
    at = following != -100
    return at, following[at]


def labelled_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean negative log-likelihood of targets (n,) under logits (n, V). None at all: 0, not NaN."""
    return F.cross_entropy(logits.float(), targets, reduction="sum") / max(len(targets), 1)


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Position l predicts label l + 1. logits (B, L, V), labels (B, L), −100 = not counted. No label at all: 0, not NaN."""
    targets = labels[:, 1:].flatten()
    total = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets, ignore_index=-100, reduction="sum")
    return total / (targets != -100).sum().clamp_min(1)
