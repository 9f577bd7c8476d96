"""The gated cross-attention layers through which text attends to images (paper sections 2.2 and 2.3, figures 4 and 7).

One GATED XATTN-DENSE is inserted before a frozen LM block:

    y = y + tanh(alpha_xattn) * attention(queries = y, keys and values = visual tokens of image phi)
    y = y + tanh(alpha_dense) * feed_forward(y)
    y = frozen LM block(y)

Both alphas start at 0, and tanh(0) = 0. So at initialisation the model's output is exactly that of the frozen LM.

phi(l), the media index of token l, is the number of the last image at or before token l, or 0 if there is none:

    tokens                 <BOS>  a  <image>  cat  <EOC>  <image>  dog
    phi                      0    0     1      1     1       2      2
    phi with attend_next     1    1     1      2     2       2      0      text attends to the NEXT image (training only)

Token l attends to the R visual tokens of image phi(l) and to no others. A token with phi = 0 gets exactly zero from the
cross-attention. Earlier images still reach the token through the LM's own self-attention. This helps a model that was trained
with at most 5 images per sequence to work with 32: no token ever cross-attends to more than one image.

"DENSE" is the paper's word for the feed-forward block. `<EOC>` ends a chunk: the text that belongs to one image.
"""

import torch
from torch import Tensor, nn

from .attention import attention, merge_heads, split_heads
from .config import FlamingoConfig
from .fast import has_fast_version
from .layers import FeedForward, make_norm
from .shapes import check_shape


def media_index(is_image: Tensor, attend_next: Tensor | None = None) -> Tensor:
    """phi: (B, L) long, from is_image (B, L) bool, which is True at the `<image>` tokens.

    Args:
        attend_next: (B,) bool. In these rows each text token attends to the next image instead of the last one. In web pages
            a text may belong to the image before or after it, so the paper trains with both (section 2.4, p_next). After the
            last image of the row there is no next one: 0.
    """
    ### BEGIN SOLUTION media_index
    check_shape(is_image, "B L", "is_image", (torch.bool,))
    # an image token belongs to its own image: phi at <image> number n is n
    # Counting the images up to each token gives the number of the last one: 0 1 0 0 1 0 -> 0 1 1 1 2 2.
    last = is_image.long().cumsum(1)  # (B, L)
    if attend_next is None:
        return last
    following = last + (~is_image).long()  # an <image> token itself still belongs to its own image
    following = following.masked_fill(following > last[:, -1:], 0)
    return torch.where(attend_next[:, None], following, last)
    ### END SOLUTION


def xattn_mask(phi: Tensor, n_media: int, n_latents: int) -> Tensor:
    """(B, 1, L, N*R) bool: may text token l attend to visual token n*R + r? Only if it belongs to image phi(l).

    >>> xattn_mask(torch.tensor([[0, 1, 2]]), n_media=2, n_latents=2)[0, 0].int()
    tensor([[0, 0, 0, 0],
            [1, 1, 0, 0],
            [0, 0, 1, 1]])
    """
    ### BEGIN SOLUTION xattn_mask
    # The image number of each visual token, from 1: for N = 2 and R = 2 this is 1 1 2 2.
    number = torch.arange(1, n_media + 1, device=phi.device).repeat_interleave(n_latents)  # (N*R,)
    return (number == phi[..., None])[:, None]  # (B, L, N*R) -> (B, 1, L, N*R): the same for all heads
    ### END SOLUTION


@has_fast_version
def attend_to_media(q: Tensor, k: Tensor, v: Tensor, phi: Tensor, n_latents: int) -> Tensor:
    """Each text token attends to the visual tokens of its image phi.

    This computes the scores of every token with the visual tokens of ALL images and masks most of them: L * N*R scores. The
    version in `fast.py` computes only about 2 * L * R, if there are many images. Read this one first.

    Args:
        q: (B, h, L, d_head) from text.
        k, v: (B, h, N*R, d_head) from the visual tokens.
        phi: (B, L).
    Returns:
        (B, h, L, d_head), zero where phi is 0.
    """
    n_media = k.shape[2] // n_latents  # N*R visual tokens of N images
    return attention(q, k, v, xattn_mask(phi, n_media, n_latents))


class MaskedCrossAttention(nn.Module):
    """Queries from text, keys and values from visual tokens. They may have different widths."""

    def __init__(self, config: FlamingoConfig):
        super().__init__()
        c, d_head = config, config.xattn_d_head
        inner = c.xattn_n_heads * d_head  # may be smaller than the LM's width: OpenFlamingo has 8 heads of 64 for all sizes
        self.n_heads = c.xattn_n_heads
        self.norm = make_norm(c.xattn_norm, c.lm.d, c.xattn_norm_eps)
        # No norm for the visual tokens here: the resampler ends with one.
        self.to_q = nn.Linear(c.lm.d, inner, bias=False)
        self.to_kv = nn.Linear(c.resampler.d, 2 * inner, bias=False)  # first half keys, second half values
        self.to_out = nn.Linear(inner, c.lm.d, bias=False)
        self.q_norm = make_norm(c.xattn_norm, d_head, c.xattn_norm_eps) if c.xattn_qk_norm else nn.Identity()  # IDEFICS
        self.k_norm = make_norm(c.xattn_norm, d_head, c.xattn_norm_eps) if c.xattn_qk_norm else nn.Identity()

    def project_media(self, visual: Tensor) -> tuple[Tensor, Tensor]:
        """Visual tokens (B, N, R, D_v) -> keys and values, (B, h, N*R, d_head) each.

        Computed once per image. Generation keeps them in its cache, because they do not depend on the text.
        """
        ### BEGIN SOLUTION cross_attention
        k, v = self.to_kv(visual.flatten(1, 2)).chunk(2, dim=-1)  # (B, N*R, h*d_head) each
        return self.k_norm(split_heads(k, self.n_heads)), split_heads(v, self.n_heads)
        ### END SOLUTION

    def forward(self, y: Tensor, media_kv: tuple[Tensor, Tensor], phi: Tensor, n_latents: int) -> Tensor:
        """Text y (B, L, D) attends to `media_kv` = (keys, values) from `project_media` -> (B, L, D)."""
        ### BEGIN SOLUTION cross_attention
        k, v = media_kv
        q = self.q_norm(split_heads(self.to_q(self.norm(y)), self.n_heads))  # (B, h, L, d_head)
        # to_out has no bias, so a token with phi = 0 still gets exactly zero.
        return self.to_out(merge_heads(attend_to_media(q, k, v, phi, n_latents)))
        ### END SOLUTION


class GatedCrossAttentionDense(nn.Module):
    """GATED XATTN-DENSE (figure 4), inserted before a frozen LM block: y (B, L, D) -> y (B, L, D)."""

    def __init__(self, config: FlamingoConfig):
        super().__init__()
        c, d = config, config.lm.d
        self.xattn = MaskedCrossAttention(c)
        # pre-norm, as in the LM: the residual stream itself is never normalised
        self.ff_norm = make_norm(c.xattn_norm, d, c.xattn_norm_eps)
        self.ff = FeedForward(d, c.xattn_d_ff or 4 * d, c.xattn_activation, gated=c.xattn_gated_mlp)
        # The gates. Zero at the start: without them, random new layers would disturb the pretrained LM at the first step.
        # At zero only the alphas have a gradient (tanh'(0) = 1). They move first. After that,
        # the cross-attention, the feed-forward block and the resampler get gradients, too.
        n_alphas = d if c.xattn_vector_gate else 1
        self.alpha_xattn = nn.Parameter(torch.zeros(n_alphas))
        self.alpha_dense = nn.Parameter(torch.zeros(n_alphas))

    def forward(self, y: Tensor, media_kv: tuple[Tensor, Tensor] | None, phi: Tensor, n_latents: int) -> Tensor:
        """media_kv None: there is no image at all. Then the attention adds zero, as it does before the first image."""
        ### BEGIN SOLUTION gated_layer
        if media_kv is not None:
            # (1,) * (B, L, D), or (D,) * (B, L, D) with one alpha per channel
            y = y + self.alpha_xattn.tanh() * self.xattn(y, media_kv, phi, n_latents)
        # The feed-forward block acts on every token, with or without an image before it.
        return y + self.alpha_dense.tanh() * self.ff(self.ff_norm(y))
        ### END SOLUTION
