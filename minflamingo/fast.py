"""Faster versions of core functions: same arguments, same results. `with fast.disabled():` runs the plain code everywhere.

A core function with a faster version is marked with `@has_fast_version`; the version here has the same name. Tests compare each
pair in values and gradients. Each one makes a real use at least 10% faster (`python -m minflamingo bench`):

    function           how                                          what becomes faster
    attend_to_media    scores with a token's own image only         long prompts, training on many images
    KVCache.repeat     a shared prompt is stored once               many queries after the same shots, beams

Which version runs depends on shapes alone, never on measured time, so the same input always gives the same result.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import attention

if TYPE_CHECKING:  # lm.py imports this file
    from .lm import KVCache

_enabled = True


def has_fast_version(plain: Callable) -> Callable:
    """Mark a core function: the function of the same name in this file runs instead, unless `disabled()` is active."""

    @functools.wraps(plain)
    def choose(*args, **kwargs):
        chosen = FAST_VERSIONS[plain.__name__] if _enabled else plain
        return chosen(*args, **kwargs)

    choose.plain = plain
    return choose


@contextmanager
def disabled() -> Iterator[None]:
    """Run the plain code everywhere inside this context. Applies to all threads of the process."""
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before


# ------------------------------------------------------------------------------------ cross-attention per image

MIN_IMAGES, MIN_KEYS = 4, 512  # with fewer images or visual tokens, sorting the text costs more than the masked scores


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """x (B, n, ...), index (B, m) -> (B*m, ...): row index[b, i] of each x[b]. One flat index: its gradient is fast, too."""
    B, n = x.shape[:2]
    flat = index + n * torch.arange(B, device=x.device)[:, None]  # row i of x[b] is row b*n + i of all
    return x.flatten(0, 1).index_select(0, flat.flatten())


def attend_to_media(q: Tensor, k: Tensor, v: Tensor, phi: Tensor, n_latents: int) -> Tensor:
    """`gated_xattn.attend_to_media` without the scores that the mask throws away.

    The tokens of each image are sorted into blocks of equal size. A block belongs to one image and attends to its R visual
    tokens, without a mask. Example with 2 images and blocks of 2; a dot is padding:

        phi  0 1 1 1 2        blocks  [1 1] [1 .] [2 .]        images of the blocks  0 0 1

    The number of blocks is fixed by the shapes: at most one block of each image is not full. So no size depends on the data,
    and the function needs no synchronisation with a GPU and can be compiled.
    """
    (B, h, L, d), N = q.shape, k.shape[2] // n_latents
    if N < MIN_IMAGES or N * n_latents < MIN_KEYS:  # there is little to save
        number = torch.arange(1, N + 1, device=q.device).repeat_interleave(n_latents)
        return attention(q, k, v, (number == phi[..., None])[:, None])
    size = math.ceil(L / N)  # tokens per block: about the text of one image
    n_max = (L + N * (size - 1)) // size  # the most blocks that a sequence can need, about 2 N
    # Where each token goes: after the blocks of earlier images, at its rank among the tokens of its own image.
    belongs = phi[..., None] == torch.arange(1, N + 1, device=q.device)  # (B, L, N) bool, all False where phi is 0
    image = (phi - 1).clamp(0, N - 1)  # (B, L)
    rank = belongs.long().cumsum(1).gather(2, image[..., None])[..., 0] - 1  # (B, L)
    n_blocks = (belongs.sum(1) + size - 1) // size  # (B, N)
    end = n_blocks.cumsum(1)  # (B, N) the blocks of image n end before this number
    slot = (end - n_blocks).gather(1, image) * size + rank  # (B, L)
    slot = slot.where(belongs.any(-1), n_max * size)  # tokens without an image share one extra slot, whose result is zero
    # The inverse: which token is in each slot. Padding slots hold token 0; their results are not used.
    tokens = torch.arange(L, device=q.device).expand(B, L)
    token = slot.new_zeros(B, n_max * size + 1).scatter(1, slot, tokens)[:, :-1]  # (B, n_max*size)
    blocks = torch.arange(n_max, device=q.device).expand(B, n_max).contiguous()
    block_image = torch.searchsorted(end, blocks, right=True).clamp_max(N - 1)  # (B, n_max) in 0 ... N - 1
    # (B, h, L, d) -> the tokens of each block (B*n_max, h, size, d)
    q = gather_rows(q.transpose(1, 2), token).unflatten(0, (B * n_max, size)).transpose(1, 2)
    # (B, h, N*R, d) -> (B, N, R, h, d) -> the image of each block (B*n_max, h, R, d)
    k, v = (gather_rows(x.transpose(1, 2).unflatten(1, (N, n_latents)), block_image).transpose(1, 2) for x in (k, v))
    out = attention(q, k, v).transpose(1, 2).reshape(B, n_max * size, h, d)
    out = F.pad(out, (0, 0, 0, 0, 0, 1))  # the extra slot: zero
    return gather_rows(out, slot).unflatten(0, (B, L)).transpose(1, 2)  # (B, h, L, d)


# ---------------------------------------------------------------------------------- key-value cache: shared prefixes


@dataclass(frozen=True)
class SharedKVCache:
    """`lm.KVCache` of several rows that begin with the same tokens. These are stored once, as the prefix.

    So 32 shots exist once for all queries, beams or candidate answers that continue them.

    prefix: keys and values (B0, h_kv, Lp, d_head), each used by B / B0 consecutive rows.
    k, v: (B, h_kv, n, d_head), the tokens after it, which each row has for itself.
    """

    prefix: tuple[Tensor, Tensor]
    k: Tensor
    v: Tensor

    def append(self, k: Tensor, v: Tensor) -> SharedKVCache:
        return SharedKVCache(self.prefix, torch.cat([self.k, k], dim=2), torch.cat([self.v, v], dim=2))

    def repeat(self, times: int) -> SharedKVCache:
        return SharedKVCache(self.prefix, self.k.repeat_interleave(times, 0), self.v.repeat_interleave(times, 0))

    def reorder(self, rows: Tensor) -> SharedKVCache:
        return SharedKVCache(self.prefix, self.k[rows], self.v[rows])

    def attend(self, q: Tensor, bias: Tensor) -> Tensor:
        """q (B, h, L, d) attends to the prefix and to the row's own keys; bias (B, 1 or h, L, Lp + n) -> (B, h, L, d)."""
        (B, h, L, d), (B0, h_kv, Lp, _) = q.shape, self.prefix[0].shape
        rows, groups = B // B0, h // h_kv  # rows that share a prefix; query heads that share a key head

        def merge(x: Tensor) -> Tensor:
            """(B, h, L, n) -> (B0, h_kv, rows*groups*L, n): queries of the same keys become rows of one matrix."""
            return x.reshape(B0, rows, h_kv, groups * L, -1).transpose(1, 2).flatten(2, 3)

        def split(x: Tensor) -> Tensor:
            """The inverse of `merge`."""
            return x.unflatten(2, (rows, groups * L)).transpose(1, 2).reshape(B, h, L, -1)

        q = q / math.sqrt(d)
        own = q.reshape(B, h_kv, groups * L, d) @ self.k.transpose(-2, -1)  # (B, h_kv, groups*L, n)
        scores = torch.cat([split(merge(q) @ self.prefix[0].transpose(-2, -1)), own.reshape(B, h, L, -1)], dim=-1)
        weights = (scores + bias).softmax(-1)  # (B, h, L, Lp + n)
        own = weights[..., Lp:].reshape(B, h_kv, groups * L, -1) @ self.v
        return split(merge(weights[..., :Lp]) @ self.prefix[1]) + own.reshape(B, h, L, d)


def repeat(cache: KVCache, times: int) -> SharedKVCache:
    """`lm.KVCache.repeat` without copies: the tokens so far become the prefix, and no row has tokens of its own yet."""
    empty = cache.k[:, :, :0].repeat_interleave(times, 0)  # (B, h_kv, 0, d_head)
    return SharedKVCache((cache.k, cache.v), empty, empty)


FAST_VERSIONS = {f.__name__: f for f in (attend_to_media, repeat)}
