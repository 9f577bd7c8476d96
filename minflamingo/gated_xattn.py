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
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import attention, attention_written_out, merge_heads, split_heads
from .config import FlamingoConfig
from .layers import FeedForward, make_norm
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


class MaskedCrossAttention(nn.Module):
    """Text asks, visual tokens answer. Keys and values are made once per image (`project_media`) and may be kept."""

    def __init__(self, c: FlamingoConfig):
        super().__init__()
        inner = c.xattn_heads * c.xattn_d_head
        self.heads = c.xattn_heads
        self.norm = make_norm(c.xattn_norm, c.lm.d, c.xattn_norm_eps)
        self.to_q = nn.Linear(c.lm.d, inner, bias=False)
        self.to_kv = nn.Linear(c.resampler.d, 2 * inner, bias=False)  # rows of k, then rows of v
        self.to_out = nn.Linear(inner, c.lm.d, bias=False)
        self.q_norm, self.k_norm = (
            make_norm(c.xattn_norm, c.xattn_d_head, c.xattn_norm_eps) if c.xattn_qk_norm else nn.Identity() for _ in range(2)
        )

    def project_media(self, visual: Tensor) -> tuple[Tensor, Tensor]:
        """visual (B, N·R, D_visual) → keys and values, (B, h, N·R, d_head) each."""
        k, v = self.to_kv(visual).chunk(2, dim=-1)
        return self.k_norm(split_heads(k, self.heads)), split_heads(v, self.heads)

    def queries(self, y: Tensor) -> Tensor:
        """y (B, L, D) → (B, h, L, d_head)."""
        return self.q_norm(split_heads(self.to_q(self.norm(y)), self.heads))

    def forward(self, y: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """y (B, L, D), mask (B, 1, L, N·R) → (B, L, D). Rows of `mask` without a True give exactly zero."""
        return self.to_out(merge_heads(attention(self.queries(y), k, v, mask)))

    def weights(self, y: Tensor, k: Tensor, mask: Tensor) -> Tensor:
        """(B, h, L, N·R): how much each token looks at each visual token. For figures."""
        return attention_written_out(self.queries(y), k, k, mask)[1]


class GatedCrossAttentionDense(nn.Module):
    """GATED XATTN-DENSE, in front of a frozen LM layer: y (B, L, D) → y (B, L, D)."""

    def __init__(self, c: FlamingoConfig):
        super().__init__()
        d = c.lm.d
        self.xattn = MaskedCrossAttention(c)
        self.ff_norm = make_norm(c.xattn_norm, d, c.xattn_norm_eps)
        self.ff = FeedForward(d, c.xattn_d_ff or c.xattn_ff_mult * d, c.xattn_activation, gated=c.xattn_gated_mlp)
        channels = d if c.xattn_gate == "vector" else 1
        self.alpha_xattn = nn.Parameter(torch.zeros(channels))
        self.alpha_dense = nn.Parameter(torch.zeros(channels))

    def forward(self, y: Tensor, k: Tensor | None, v: Tensor | None, mask: Tensor | None) -> Tensor:
        """k, v None: there is no image at all, and cross-attention gives zero as it does before the first one."""
        if k is not None:
            y = y + self.alpha_xattn.tanh() * self.xattn(y, k, v, mask)
        return y + self.alpha_dense.tanh() * self.ff(self.ff_norm(y))
