"""The language model (LM): one decoder-only Transformer. Its config covers GPT-2, OPT, GPT-NeoX, MPT and Llama (`LMConfig`).

    x = embed(ids) [+ positions]
    x = x + attention(norm(x));  x = x + mlp(norm(x))        for each block
    logits = head(norm(x))

It is pretrained on text alone and then frozen. `Flamingo.forward` runs its blocks with gated layers before them, so this file
knows nothing about images.

The KV cache keeps the keys and values of earlier tokens, so that the LM processes each token only once.
Example, two tokens and then one more:
    logits, cache = lm(lm.embed(ids[:, :2]))                   # (B, 2, V)
    logits, cache = lm(lm.embed(ids[:, 2:]), cache=cache)      # (B, 1, V), equal to the third position of lm(lm.embed(ids))
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attention, merge_heads, split_heads
from .config import LMConfig
from .fast import has_fast_version
from .layers import CausalConv, FeedForward, alibi_slopes, make_norm, rotary_angles, rotate
from .shapes import check_shape


@dataclass(frozen=True)
class KVCache:
    """Keys and values of one block, (B, h_kv, n, d_head) each, k already rotated. Never changed in place."""

    k: Tensor
    v: Tensor

    def append(self, k: Tensor, v: Tensor) -> KVCache:
        return KVCache(torch.cat([self.k, k], dim=2), torch.cat([self.v, v], dim=2))

    @has_fast_version
    def repeat(self, times: int) -> KVCache:
        """Each row `times` times, one after the other: a b -> a a a b b b. The version in `fast.py` does not copy them."""
        return KVCache(self.k.repeat_interleave(times, 0), self.v.repeat_interleave(times, 0))

    def reorder(self, rows: Tensor) -> KVCache:
        return KVCache(self.k[rows], self.v[rows])

    def attend(self, q: Tensor, bias: Tensor) -> Tensor:
        """q (B, h, L, d_head), bias (B, 1 or h, L, n) -> (B, h, L, d_head)."""
        return attention(q, self.k, self.v, bias=bias)


@dataclass(frozen=True)
class LMCache:
    """Everything the LM keeps of earlier tokens."""

    blocks: tuple[tuple[KVCache, Tensor | None], ...]  # of each block: keys and values, state of the convolution
    mask: Tensor  # (B, n) bool, False at padding

    def repeat(self, times: int) -> LMCache:
        blocks = ((kv.repeat(times), None if conv is None else conv.repeat_interleave(times, 0)) for kv, conv in self.blocks)
        return LMCache(tuple(blocks), self.mask.repeat_interleave(times, 0))

    def reorder(self, rows: Tensor) -> LMCache:
        """New row i continues old row rows[i]. Both must come from the same prompt (fast.py stores it once for its rows)."""
        blocks = ((kv.reorder(rows), None if conv is None else conv[rows]) for kv, conv in self.blocks)
        return LMCache(tuple(blocks), self.mask[rows])


@dataclass(frozen=True)
class SequenceInfo:
    """What every block must know of the sequence. `LM.prepare` computes it once. L new tokens come after n cached ones."""

    bias: Tensor  # (B, 1 or h, L, n + L), added to the attention scores: -inf where a token may not attend, and ALiBi
    angles: tuple[Tensor, Tensor] | None  # cosines and sines of rotary positions
    mask: Tensor  # (B, n + L) bool, False at padding
    end: Tensor  # (B,), how many of the L tokens come before the padding on the right


class SelfAttention(nn.Module):
    """Causal self-attention with the variants of the families: rotary, QK norm, grouped-query heads."""

    def __init__(self, config: LMConfig):
        super().__init__()
        c = self.config = config
        self.to_q = nn.Linear(c.d, c.n_heads * c.d_head, bias=c.attention_bias)
        self.to_k = nn.Linear(c.d, c.kv_heads * c.d_head, bias=c.attention_bias)
        self.to_v = nn.Linear(c.d, c.kv_heads * c.d_head, bias=c.attention_bias)
        self.to_out = nn.Linear(c.n_heads * c.d_head, c.d, bias=c.output_bias)
        if c.qk_norm:
            widths = (c.d, c.kv_heads * c.d_head) if c.qk_norm == "full" else (c.d_head, c.d_head)  # "head": each alone
            self.q_norm, self.k_norm = (make_norm(c.norm, w, c.norm_eps, c.norm_bias) for w in widths)

    def forward(self, x: Tensor, info: SequenceInfo, cache: KVCache | None) -> tuple[Tensor, KVCache]:
        """x (B, L, D) -> (B, L, D), and the cache with these tokens appended. Keys are rotated before they enter the cache."""
        ### BEGIN SOLUTION self_attention
        c = self.config
        q, k, v = self.to_q(x), self.to_k(x), self.to_v(x)  # (B, L, h*d_head)
        if c.qk_norm == "full":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = split_heads(q, c.n_heads), split_heads(k, c.kv_heads), split_heads(v, c.kv_heads)  # (B, h or h_kv, L, d_head)
        if c.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        if info.angles is not None:
            q, k = rotate(q, *info.angles), rotate(k, *info.angles)
        cache = KVCache(k, v) if cache is None else cache.append(k, v)
        return self.to_out(merge_heads(cache.attend(q, info.bias))), cache
        ### END SOLUTION


class Block(nn.Module):
    """One pre-norm decoder block."""

    def __init__(self, config: LMConfig):
        super().__init__()
        c = self.config = config
        self.attn_norm = make_norm(c.norm, c.d, c.norm_eps, c.norm_bias)
        self.conv = CausalConv(c.d, c.conv_width) if c.conv_width else None
        self.attn = SelfAttention(c)
        self.mlp_norm = make_norm(c.norm, c.d, c.norm_eps, c.norm_bias)
        self.mlp = FeedForward(c.d, c.d_ff or 4 * c.d, c.activation, c.mlp_bias, c.gated_mlp)
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, x: Tensor, info: SequenceInfo, cache: tuple[KVCache, Tensor | None] | None = None):
        """x (B, L, D) -> (B, L, D), and the block's new cache: (KVCache, convolution state)."""
        ### BEGIN SOLUTION lm_block
        kv, conv = cache or (None, None)
        y = self.attn_norm(x)
        if self.conv is not None:
            # Padding must not leak into the tokens next to it. The attention is masked; the convolution needs zeros.
            real = info.mask[:, -x.shape[1] :, None].to(x.dtype)  # (B, L, 1)
            y, conv = self.conv(y * real, conv, info.end)
        attended, kv = self.attn(y, info, kv)
        attended = self.dropout(attended)
        if self.config.parallel_residual:  # GPT-NeoX: both branches read the same x
            return x + attended + self.dropout(self.mlp(self.mlp_norm(x))), (kv, conv)
        x = x + attended
        return x + self.dropout(self.mlp(self.mlp_norm(x))), (kv, conv)
        ### END SOLUTION


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Language modelling: position l predicts token l + 1, and only labelled tokens count (paper section 2.4).

        loss = - mean over labelled l of  log softmax(logits_(l-1))[label_l]

    logits: (B, L, V). labels: (B, L), -100 where no loss is counted. Example [-100, 5, 7, -100]: position 0 predicts 5,
    position 1 predicts 7. Without any label the loss is 0, not NaN.
    """
    ### BEGIN SOLUTION next_token_loss
    # Shift the labels to the left: the target of position l is token l + 1. The target of the last position is not known.
    targets = F.pad(labels[:, 1:], (0, 1), value=-100)  # (B, L)
    # Softmax in fp32: in half precision the sum over a large vocabulary is inaccurate.
    total = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100, reduction="sum")
    return total / (targets != -100).sum().clamp_min(1)
    ### END SOLUTION


class LM(nn.Module):
    """A decoder-only language model."""

    def __init__(self, config: LMConfig):
        super().__init__()
        c = self.config = config
        self.embed = nn.Embedding(c.vocab_size, c.d)
        if c.position == "learned":
            self.position_embed = nn.Embedding(c.max_length + c.position_offset, c.d)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.n_layers))
        self.final_norm = make_norm(c.norm, c.d, c.norm_eps, c.norm_bias)
        self.head = nn.Linear(c.d, c.vocab_size, bias=c.head_bias)
        # GPT-2's initialisation: small normal weights, zero biases.
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if c.tied_head:
            self.head.weight = self.embed.weight
        # Each block adds twice to the residual stream. Smaller output weights keep the sum from growing with the depth.
        for block in self.blocks:
            for linear in (block.attn.to_out, block.mlp.out):
                nn.init.normal_(linear.weight, std=0.02 / math.sqrt(2 * c.n_layers))

    def remaining_context(self, n_tokens: int) -> float:
        """How many more tokens fit after `n_tokens`. Infinite if `max_length` is None."""
        return math.inf if self.config.max_length is None else self.config.max_length - n_tokens

    def prepare(self, x: Tensor, attention_mask: Tensor | None, cache: LMCache | None) -> tuple[Tensor, SequenceInfo]:
        """Token embeddings (B, L, D) -> the input of the first block, and what all blocks share.

        Raises:
            ValueError: the embeddings have another width, or the sequence is longer than `max_length`.
        """
        ### BEGIN SOLUTION causal_mask
        c, device = self.config, x.device
        check_shape(x, "B L D", "embeddings", D=c.d)
        B, L, _ = x.shape
        new = torch.ones(B, L, dtype=torch.bool, device=device) if attention_mask is None else attention_mask
        real = new if cache is None else torch.cat([cache.mask, new], dim=1)  # (B, n + L): earlier tokens, then these
        total = real.shape[1]
        if c.max_length is not None and total > c.max_length:
            raise ValueError(f"the sequence has {total} tokens, but the LM's context is {c.max_length}: use a shorter prompt")

        # A token's position is the number of real tokens before it. So padding shifts nothing, wherever it is.
        key_positions = (real.long().cumsum(1) - 1).clamp_min(0)  # (B, n + L)
        query_positions = key_positions[:, -L:]  # (B, L)

        # The mask: token l attends to real tokens up to itself. Query l is the same token as key n + l, with n = total - L.
        up_to_itself = torch.ones(L, total, dtype=torch.bool, device=device).tril(total - L)  # (L, n + L)
        itself = up_to_itself.triu(total - L)  # only the diagonal
        # Padding attends at least to itself: a row without any key would be 0/0 in the softmax.
        allowed = (up_to_itself & real[:, None, None, :]) | itself  # (B, 1, L, n + L)
        bias = torch.zeros(allowed.shape, dtype=x.dtype, device=device).masked_fill(~allowed, -math.inf)
        if c.position == "alibi":
            distance = (key_positions[:, None, :] - query_positions[:, :, None])[:, None]  # (B, 1, L, n + L)
            bias = bias + (alibi_slopes(c.n_heads, c.alibi_max).to(device)[:, None, None] * distance).to(x.dtype)

        angles = None
        if c.position == "learned":
            x = x + self.position_embed(query_positions + c.position_offset)
        if c.position == "rotary":
            angles = rotary_angles(query_positions, int(c.d_head * c.rotary_pct), c.rotary_theta)
        # The index after the last real token: l + 1 at real tokens, 0 at padding, and then the largest.
        end = (new * torch.arange(1, L + 1, device=device)).amax(1)  # (B,)
        return x, SequenceInfo(bias, angles, real, end)
        ### END SOLUTION

    def forward(self, embeddings: Tensor, attention_mask: Tensor | None = None, cache: LMCache | None = None):
        """Text alone: logits (B, L, V), and the cache that includes these tokens.

        Args:
            embeddings: (B, L, D), from `lm.embed(ids)`. Positions are added here.
            attention_mask: (B, L) bool, False at padding. None: no padding.
            cache: from an earlier call; these tokens come after it.
        """
        x, info = self.prepare(embeddings, attention_mask, cache)
        blocks = [None] * len(self.blocks)
        for i, block in enumerate(self.blocks):
            x, blocks[i] = block(x, info, cache and cache.blocks[i])
        return self.head(self.final_norm(x)), LMCache(tuple(blocks), info.mask)

    def loss(self, ids: Tensor, labels: Tensor) -> Tensor:
        """The mean negative log-likelihood of the labelled tokens; ids, labels (B, L). Padding: on the right, label -100."""
        check_shape(labels, "B L", "labels", (torch.long,), **check_shape(ids, "B L", "ids", (torch.long,)))
        valid = (ids >= 0) & (ids < (V := self.config.vocab_size)) & ((labels == -100) | (labels == ids))
        if ids.device.type == "cpu" and not torch.compiler.is_compiling() and not valid.all():
            raise ValueError(f"sample, token {(~valid).nonzero()[0].tolist()}: ids must be 0 ... {V - 1}, labels equal or -100")
        return next_token_loss(self(self.embed(ids))[0], labels)
