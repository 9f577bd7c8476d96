"""The bridge: which image a token looks at, and the gated cross-attention through which it looks (paper §2.2–2.3, fig. 4, 7).

    y = y + tanh(alpha_xattn) · attention(q = y, kv = visual tokens of image phi)
    y = y + tanh(alpha_dense) · ffw(y)
    y = frozen LM layer(y)

Both alphas start at 0, and tanh(0) = 0: at initialisation the output IS the frozen LM's, bit for bit.

phi(l), the media index, is the number of the last image at or before token l, 0 if there is none:

    <BOS> a  <image> cat <EOC> <image> dog         attend_next, the p_next layout: the image that follows
      0   0     1     1    1      2     2            1   1     1     2    2      2    0

Token l sees the R visual tokens of image phi(l) and no others. A token with phi = 0 receives exactly zero. Earlier images
reach it all the same, through the LM's own self-attention; that is what lets 5 images of training become 32 shots.

That is written twice. `xattn_mask` is the rule, for reading: every token against the tokens of all images, O(L·N·R), most of
it masked. `Segments` cuts the text where phi changes, and each piece meets its own image alone, O(L·R), as `segment_attention`
does it; a test holds the two equal. 32 shots of 16 tokens, R = 64: 528 × 2112 scores a head, or 528 × 64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .attention import attention, attention_written_out, merge_heads, split_heads
from .config import FlamingoConfig
from .layers import FeedForward, Linear, LinearInTwo, make_norm
from .shapes import check_shape


def media_index(is_image: Tensor, attend_next: Tensor | None = None, before: Tensor | None = None) -> Tensor:
    """phi: (B, L) long, 1-based, from is_image (B, L) bool.

    Args:
        attend_next: (B,) bool; in those rows text looks at the next image instead (training only, paper §2.4).
        before: (B,) long, how many images came earlier (in a cache); counting goes on from there.
    """
    check_shape(is_image, "B L", "is_image")
    last = is_image.long().cumsum(1)
    if before is not None:
        last = last + before[:, None]
    if attend_next is None or not bool(attend_next.any()):
        return last
    following = last + (~is_image).long()  # an <image> token still means itself
    following = following.masked_fill(following > last[:, -1:], 0)  # behind the last image there is no next
    return torch.where(attend_next[:, None], following, last)


def xattn_mask(phi: Tensor, n_media: int, n_latents: int, attend: str = "last") -> Tensor:
    """(B, 1, L, N·R) bool: may token l look at visual token n·R + r? Images are numbered from 1, in order.

    attend="all" lets a token look at every image up to phi (the ablation; what most re-implementations offer as an option).

    >>> xattn_mask(torch.tensor([[0, 1, 2]]), n_media=2, n_latents=2)[0, 0].int()
    tensor([[0, 0, 0, 0],
            [1, 1, 0, 0],
            [0, 0, 1, 1]])
    """
    number = torch.arange(1, n_media + 1, device=phi.device).repeat_interleave(n_latents)  # (N·R,)
    if attend == "all":
        may_look = number <= phi[..., None]
    else:
        may_look = number == phi[..., None]
    return may_look[:, None]


@dataclass(frozen=True)
class Segments:
    """Text cut where phi changes, and long pieces cut again: M blocks of c tokens, each of which looks at one image.

    phi  0 1 1 1 1 2 2      c = ⌈6 tokens / 2 pieces⌉ = 3      blocks  [1 2 3] [4 · ·] [5 6 ·]      images 0 0 1

    c is the pieces' mean length, so that at most as much is padding (·) as is text, however uneven the pieces are; shots of
    one length need none. Made once for all layers.

    token: (M, c) which of the B·L tokens stands there (at padding, the first: what it sees is not used).
    image: (M,) which of the B·N images the block looks at; None: block m looks at image m.
    place: (B·L,) where each token went. blind: (B·L, 1, 1) bool, it looks at nothing.
    """

    n_media: int
    token: Tensor
    image: Tensor | None
    place: Tensor
    blind: Tensor


def cut_into_segments(phi: Tensor, n_media: int) -> Segments:
    """phi (B, L) as from `media_index`, at most n_media."""
    B, L = phi.shape
    image = (phi - 1 + n_media * torch.arange(B, device=phi.device)[:, None]).flatten()  # (B·L,)
    blind = (phi == 0).flatten()
    token = (~blind).nonzero()[:, 0]  # (n,) the tokens that see
    image = image[token]
    first = torch.ones_like(image, dtype=torch.bool)
    first[1:] = image[1:] != image[:-1]
    start = first.nonzero()[:, 0]  # (pieces,)
    pieces, n = len(start), len(token)
    length = torch.diff(start, append=start.new_tensor([n]))
    c = max(1, -(-n // max(pieces, 1)))
    blocks = -(-length // c)  # (pieces,) how many blocks each piece takes
    piece = first.cumsum(0) - 1  # (n,) the piece of each token
    # Its place: the blocks of earlier pieces, then as far in as it stands in its own piece.
    slot = ((blocks.cumsum(0) - blocks) * c - start)[piece] + torch.arange(n, device=phi.device)
    M = int(blocks.sum())
    tokens = token.new_zeros(M * c).scatter(0, slot, token)
    images = image[start].repeat_interleave(blocks)
    place = token.new_zeros(B * L).scatter(0, token, slot)
    in_order = B * n_media == M and bool((images == torch.arange(M, device=phi.device)).all())
    return Segments(n_media, tokens.view(M, c), None if in_order else images, place, blind[:, None, None])


def segment_attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    """`attention(q, k, v, xattn_mask(phi, …))`, without what the mask throws away.

    q (B, h, L, d), k and v (B, h, N·R, d) → (B, h, L, d).
    """
    (B, L), (M, c) = (q.shape[0], q.shape[2]), segments.token.shape
    if M == 0:
        return torch.zeros_like(q)
    # (B, h, L, d) → (B·L, h, d) → the tokens of each block (M, h, c, d)
    q = q.transpose(1, 2).flatten(0, 1).index_select(0, segments.token.flatten()).unflatten(0, (M, c)).transpose(1, 2)
    # (B, h, N·R, d) → (B·N, h, R, d) → the image of each block (M, h, R, d)
    k, v = (x.unflatten(2, (segments.n_media, -1)).transpose(1, 2).flatten(0, 1) for x in (k, v))
    if segments.image is not None:
        k, v = k.index_select(0, segments.image), v.index_select(0, segments.image)
    out = attention(q, k, v).transpose(1, 2).flatten(0, 1)  # (M·c, h, d), no mask: all may look at all
    out = out.index_select(0, segments.place).masked_fill(segments.blind, 0.0)  # (B·L, h, d)
    return out.unflatten(0, (B, L)).transpose(1, 2)


class MaskedCrossAttention(nn.Module):
    """Text asks, visual tokens answer. Keys and values are made once per image (`project_media`) and may be kept."""

    def __init__(self, c: FlamingoConfig):
        super().__init__()
        inner = c.xattn_heads * c.xattn_d_head
        self.heads = c.xattn_heads
        self.norm = make_norm(c.xattn_norm, c.lm.d, c.xattn_norm_eps)
        self.to_q = Linear(c.lm.d, inner, bias=False)
        self.to_kv = LinearInTwo(c.resampler.d, 2 * inner, bias=False)  # rows of k, then rows of v
        self.to_out = Linear(inner, c.lm.d, bias=False)
        self.q_norm, self.k_norm = (
            make_norm(c.xattn_norm, c.xattn_d_head, c.xattn_norm_eps) if c.xattn_qk_norm else nn.Identity() for _ in range(2)
        )

    def project_media(self, visual: Tensor) -> tuple[Tensor, Tensor]:
        """visual (B, N·R, D_visual) → keys and values, (B, h, N·R, d_head) each."""
        k, v = (split_heads(x, self.heads) for x in self.to_kv(visual))
        return self.k_norm(k), v

    def queries(self, y: Tensor) -> Tensor:
        """y (B, L, D) → (B, h, L, d_head)."""
        return self.q_norm(split_heads(self.to_q(self.norm(y)), self.heads))

    def forward(self, y: Tensor, k: Tensor, v: Tensor, mask: Tensor | Segments | None) -> Tensor:
        """y (B, L, D), mask (B, 1, L, N·R) or the same as segments → (B, L, D). Whoever sees nothing receives exactly zero."""
        attend = segment_attention if isinstance(mask, Segments) else attention
        return self.to_out(merge_heads(attend(self.queries(y), k, v, mask)))

    def weights(self, y: Tensor, k: Tensor, mask: Tensor) -> Tensor:
        """(B, h, L, N·R): how much each token looks at each visual token. For figures."""
        return attention_written_out(self.queries(y), k, k, mask)[1]


def openness(alpha: Tensor | None) -> Tensor | float:
    """tanh alpha, how far a gate is open. None: there is no gate (xattn_gate="none"), which is one that stands open."""
    return 1.0 if alpha is None else alpha.tanh()


def through_gate(y: Tensor, alpha: Tensor | None, x: Tensor) -> Tensor:
    """y + tanh(alpha) · x"""
    return y + x if alpha is None else torch.addcmul(y, openness(alpha), x)


class GatedCrossAttentionDense(nn.Module):
    """GATED XATTN-DENSE, in front of a frozen LM layer: y (B, L, D) → y (B, L, D)."""

    def __init__(self, c: FlamingoConfig):
        super().__init__()
        d = c.lm.d
        self.xattn = MaskedCrossAttention(c)
        d_ff = c.xattn_d_ff or c.xattn_ff_mult * d
        self.ff_norm = make_norm(c.xattn_norm, d, c.xattn_norm_eps) if d_ff else None
        self.ff = FeedForward(d, d_ff, c.xattn_activation, gated=c.xattn_gated_mlp) if d_ff else None
        channels = {"scalar": 1, "vector": d, "none": None}[c.xattn_gate]
        for alpha in ("alpha_xattn", "alpha_dense"):
            self.register_parameter(alpha, None if channels is None else nn.Parameter(torch.zeros(channels)))

    def forward(self, y: Tensor, k: Tensor | None, v: Tensor | None, mask: Tensor | Segments | None) -> Tensor:
        """k, v None: there is no image at all, and cross-attention gives zero as it does before the first one."""
        if k is not None:
            y = through_gate(y, self.alpha_xattn, self.xattn(y, k, v, mask))
        return y if self.ff is None else through_gate(y, self.alpha_dense, self.ff(self.ff_norm(y)))
