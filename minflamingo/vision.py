"""The eye: a Vision Transformer that turns one picture into S feature vectors, one per patch.

    pixels (B, C, H, W) → patches → + positions → blocks → features (B, S, D)

The paper's eye is an NFNet-F6 whose last 2-D grid of features is flattened to S vectors (§2.1); every open Flamingo uses a
CLIP ViT instead, and so do we. The config covers CLIP's ViT-B/32 … ViT-H/14 (class token, LayerNorm before the blocks,
QuickGELU or GELU). Any other `nn.Module` that returns (B, S, D) can take its place: Flamingo asks for nothing more.

For pictures of 48 pixels there is the convolutional stem (`stem="conv"`): patch 12 = 3·2·2 becomes small
convolutions of these strides, which learn strokes and corners much sooner than one 12×12 matrix does (Xiao et al. 2021).

Example: 48×48 pixels, patch 12 → a grid of 4×4 → features (B, 16, 128). With a class token the first of 17 is the class.

An eye can be given larger pictures than it was trained on (`enlarge`; the paper's fine-tuning does so, §3.2): the patches stay
as they are, there are more of them, and the positions are stretched over the finer grid.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attention, merge_heads, split_heads
from .config import VisionConfig
from .layers import FeedForward
from .shapes import check_shape


class EncoderBlock(nn.Module):
    """A pre-norm block in which everyone sees everyone (or, with `mask`, whatever is not padding)."""

    def __init__(self, d: int, heads: int, d_ff: int, activation: str, eps: float = 1e-5):
        super().__init__()
        self.heads = heads
        self.attn_norm = nn.LayerNorm(d, eps=eps)
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(d, d) for _ in range(4))
        self.mlp_norm = nn.LayerNorm(d, eps=eps)
        self.mlp = FeedForward(d, d_ff, activation, bias=True)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, S, D); mask bool, broadcastable to (B, h, S, S)."""
        y = self.attn_norm(x)
        q, k, v = (split_heads(to(y), self.heads) for to in (self.to_q, self.to_k, self.to_v))
        x = x + self.to_out(merge_heads(attention(q, k, v, mask)))
        return x + self.mlp(self.mlp_norm(x))


def prime_factors(n: int) -> list[int]:
    """12 → [3, 2, 2], the largest first."""
    for p in range(2, n + 1):
        if n % p == 0:
            return [*prime_factors(n // p), p]
    return []


def conv_stem(patch_size: int, d: int) -> nn.Sequential:
    """Convolutions whose strides multiply to `patch_size`: (B, 3, H, W) → (B, d, H/patch, W/patch).

    Patch 12 = 3·2·2: channels 3 → d/3 → 2d/3 → 2d/3 → d, the third without a stride, so that letters are looked at once more
    before the picture becomes a coarse grid. BatchNorm is what makes this quick: with it small figures are read after 200
    steps, without any norm after thousands. The eye is frozen later, and its statistics with it.
    """
    strides = prime_factors(patch_size)
    widths = [d // 3, *[2 * d // 3] * (len(strides) - 2), d][-len(strides) :]
    plan = list(zip(widths, strides))
    plan.insert(-1, (2 * d // 3, 1))
    layers, channels = [], 3
    for i, (width, stride) in enumerate(plan):
        kernel = max(5 if i == 0 else 3, stride)
        conv = nn.Conv2d(channels, width, kernel, stride, padding=(kernel - stride + 1) // 2, bias=False)
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.Conv2d(d, d, kernel_size=1))


class ViT(nn.Module):
    """pixels (B, 3, H, W), prepared (see `data/images.py`) → features (B, S, D), the class token first where it is kept.

    Raises:
        ValueError: pixels of another size.
    """

    def __init__(self, config: VisionConfig):
        super().__init__()
        c = self.config = config
        if c.stem == "conv":
            self.patches = conv_stem(c.patch_size, c.d)
        else:
            self.patches = nn.Conv2d(3, c.d, kernel_size=c.patch_size, stride=c.patch_size, bias=False)
        if c.class_token:
            self.class_token = nn.Parameter(torch.randn(c.d) * c.d**-0.5)
        self.positions = nn.Parameter(torch.randn(c.n_patches + c.class_token, c.d) * c.d**-0.5)
        self.pre_norm = nn.LayerNorm(c.d, eps=c.norm_eps) if c.pre_norm else nn.Identity()
        d_ff = c.d_ff or 4 * c.d
        self.blocks = nn.ModuleList(EncoderBlock(c.d, c.heads, d_ff, c.activation, c.norm_eps) for _ in range(c.layers))
        self.post_norm = nn.LayerNorm(c.d, eps=c.norm_eps) if c.post_norm else nn.Identity()

    def forward(self, pixels: Tensor) -> Tensor:
        size = self.config.image_size
        check_shape(pixels, "B C H W", "pixels", C=3, H=size, W=size)
        x = self.patches(pixels).flatten(2).transpose(1, 2)  # (B, D, H/p, W/p) → (B, S, D)
        if self.config.class_token:
            x = torch.cat([self.class_token.expand(x.shape[0], 1, -1), x], dim=1)  # (B, 1 + S, D)
        x = self.pre_norm(x + self.positions)
        for block in self.blocks:
            x = block(x)
        x = self.post_norm(x)
        return x if self.config.keep_class_token or not self.config.class_token else x[:, 1:]


def stretch(positions: Tensor, side: int) -> Tensor:
    """Learned positions of a square grid in reading order (S, D) → those of a grid of side × side, (side², D), bilinearly.

    A patch is where its middle is: of 2 patches the middles lie at 1/4 and 3/4 of the picture, of 4 at 1/8, 3/8, 5/8, 7/8. So
    from values 0 and 1 come 0, 1/4, 3/4, 1: between two middles what lies between, outside of them the nearest.
    """
    old = round(len(positions) ** 0.5)
    if old * old != len(positions) or side < 1:
        raise ValueError(f"{len(positions)} positions on a grid of side {side}: both grids must be squares, not empty")
    if side == old:
        return positions.clone()
    grid = positions.unflatten(0, (old, old)).permute(2, 0, 1)[None].float()  # (S, D) → (1, D, old, old)
    grid = F.interpolate(grid, (side, side), mode="bilinear", align_corners=False)
    return grid[0].permute(1, 2, 0).flatten(0, 1).to(positions.dtype)


@torch.no_grad()
def enlarge(vit: ViT, image_size: int) -> ViT:
    """Make `vit`, in place, an eye for pictures of `image_size` pixels. At its own size nothing changes.

    Raises:
        ValueError: the patches do not fit; says which sizes do. TypeError: the eye is no ViT.
    """
    if not isinstance(vit, ViT):
        raise TypeError(f"only a ViT can be given pictures of another size, not a {type(vit).__name__}")
    c, p = vit.config, vit.config.patch_size
    if image_size < p or image_size % p:
        below = max(p, image_size // p * p)
        raise ValueError(
            f"pictures of {image_size} pixels cannot be cut into patches of {p}: "
            f"take a multiple, such as {below} or {below + p}"
        )
    first = int(c.class_token)  # the class stands nowhere in the picture: its position stays
    positions = torch.cat([vit.positions[:first], stretch(vit.positions[first:], image_size // p)])
    vit.positions = nn.Parameter(positions, vit.positions.requires_grad)
    vit.config = replace(c, image_size=image_size)
    return vit
