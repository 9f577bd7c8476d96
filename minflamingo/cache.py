"""What the language model remembers of the tokens so far: the keys and values of its self-attention.

    Kept        of one layer: (B, h, n, d) each, with room behind them, so that a new token is written and nothing is copied
    LMCache     of all layers, in two parts: what was read first may be shared by many rows, what came later is a row's own

Example: a prompt of 500 tokens read once, and three beams that go on from it, each with two tokens of its own.
    shared  (1, h, 500, d)     own  (3, h, 2, d)     mask  (3, 502)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROOM = 32  # tokens: one copy in so many


@dataclass(frozen=True)
class Kept:
    """Keys and values (B, h, n, d) of one layer. Never changed: `append` gives another, which may stand in the same memory.

    k, v: already turned by rotary.
    memory: the two tensors (B, h, n + room, d) whose beginnings they are. None: there is no room.
    written: one number that all who stand in this memory share, how much of it is taken.
    """

    k: Tensor
    v: Tensor
    memory: tuple[Tensor, Tensor] | None = None
    written: list[int] | None = None

    @property
    def length(self) -> int:
        return self.k.shape[2]

    def append(self, k: Tensor, v: Tensor) -> Kept:
        """With more behind. Who comes first writes into the room; who goes on from the same place again (not at the same
        moment, in another thread) takes a copy.
        """
        if torch.is_grad_enabled():  # the plain twin; and what a gradient needs must not be written over
            return Kept(torch.cat((self.k, k), dim=2), torch.cat((self.v, v), dim=2))
        start, new = self.length, k.shape[2]
        memory, written = self.memory, self.written
        fits = memory is not None and memory[0].shape[2] >= start + new and written[0] == start
        if not fits or memory[0].is_inference() > torch.is_inference_mode_enabled():
            memory = tuple(x.new_empty(*x.shape[:2], start + new + ROOM, x.shape[3]) for x in (k, v))
            written = [0]
            for place, old in zip(memory, (self.k, self.v)):
                place.narrow(2, 0, start).copy_(old)
        for place, more in zip(memory, (k, v)):
            place.narrow(2, start, new).copy_(more)
        written[0] = start + new
        return Kept(memory[0].narrow(2, 0, start + new), memory[1].narrow(2, 0, start + new), memory, written)

    def select(self, rows: Tensor) -> Kept:
        return Kept(self.k[rows], self.v[rows])


def first_kept(k: Tensor, v: Tensor) -> Kept:
    """The first keys and values of a layer: in one piece per head, which is several times quicker to read, and with room."""
    return Kept(k[:, :, :0], v[:, :, :0]).append(k, v)


@dataclass(frozen=True)
class LMCache:
    """Never changed: each step returns a new one.

    It has two parts, so that a long prompt is kept once and never copied: what was read first is *shared* by B / B0 rows of
    the batch (queries after the same shots, beams, candidate answers); what came later is each row's own.

    shared: per layer B0 rows; None: nothing is shared, all is own.
    own: per layer B rows; None: nothing has come since.
    tails: per layer (B, conv_width - 1, D), the convolution's last inputs, or None.
    mask: (B, Lp + Lk) bool, False at padding.
    """

    shared: tuple[Kept, ...] | None
    own: tuple[Kept, ...] | None
    tails: tuple[Tensor | None, ...]
    mask: Tensor

    @property
    def length(self) -> int:
        return self.mask.shape[1]

    def past(self, layer: int) -> tuple[Kept | None, Kept | None]:
        return self.shared and self.shared[layer], self.own and self.own[layer]

    def select(self, rows: Tensor) -> LMCache:
        """The cache of other rows of the batch: `rows` may repeat or reorder them (beams, several answers to a prompt).

        What all had alone becomes the shared part. That stays as it is while each row goes on from its own prompt, and is
        copied only when one does not.
        """
        shared, own = (self.own, None) if self.shared is None else (self.shared, self.own)
        B0 = len(shared[0].k)
        prompt = rows // (len(self.mask) // B0)  # whose shared part each new row reads
        in_order = torch.arange(B0, device=rows.device).repeat_interleave(-(-len(rows) // B0))
        if len(rows) % B0 or not torch.equal(prompt, in_order):
            shared = tuple(kept.select(prompt) for kept in shared)
        own = own and tuple(kept.select(rows) for kept in own)
        return LMCache(shared, own, tuple(None if t is None else t[rows] for t in self.tails), self.mask[rows])
