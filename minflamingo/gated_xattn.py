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
from .layers import FeedForward
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

    def __init__(self, d: int, d_visual: int, heads: int, d_head: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(d)
        self.to_q = nn.Linear(d, heads * d_head, bias=False)
        self.to_kv = nn.Linear(d_visual, 2 * heads * d_head, bias=False)  # rows of k, then rows of v
        self.to_out = nn.Linear(heads * d_head, d, bias=False)

    def project_media(self, visual: Tensor) -> tuple[Tensor, Tensor]:
        """visual (B, N·R, D_visual) → keys and values, (B, h, N·R, d_head) each."""
        k, v = self.to_kv(visual).chunk(2, dim=-1)
        return split_heads(k, self.heads), split_heads(v, self.heads)

    def forward(self, y: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """y (B, L, D), mask (B, 1, L, N·R) → (B, L, D). Rows of `mask` without a True give exactly zero."""
        q = split_heads(self.to_q(self.norm(y)), self.heads)
        return self.to_out(merge_heads(attention(q, k, v, mask)))

    def weights(self, y: Tensor, k: Tensor, mask: Tensor) -> Tensor:
        """(B, h, L, N·R): how much each token looks at each visual token. For figures."""
        q = split_heads(self.to_q(self.norm(y)), self.heads)
        return attention_written_out(q, k, k, mask)[1]


class GatedCrossAttentionDense(nn.Module):
    """GATED XATTN-DENSE, in front of a frozen LM layer: y (B, L, D) → y (B, L, D)."""

    def __init__(self, d: int, d_visual: int, heads: int, d_head: int, ff_mult: int = 4, activation: str = "sq_relu"):
        super().__init__()
        self.xattn = MaskedCrossAttention(d, d_visual, heads, d_head)
        self.ff_norm = nn.LayerNorm(d)
        self.ff = FeedForward(d, ff_mult * d, activation)
        self.alpha_xattn = nn.Parameter(torch.zeros(1))
        self.alpha_dense = nn.Parameter(torch.zeros(1))

    def forward(self, y: Tensor, k: Tensor | None, v: Tensor | None, mask: Tensor | None) -> Tensor:
        """k, v None: there is no image at all, and cross-attention gives zero as it does before the first one."""
        if k is not None:
            y = y + self.alpha_xattn.tanh() * self.xattn(y, k, v, mask)
        return y + self.alpha_dense.tanh() * self.ff(self.ff_norm(y))
