"""The vision encoder: a Vision Transformer (ViT) that turns one image into S feature vectors, one per patch.

    pixels (B, 3, H, W)  ->  patches  ->  + positions  ->  blocks  ->  features (B, S, D)

The paper uses an NFNet-F6 and flattens its final 2-D grid of features to S vectors (section 2.1). Every open Flamingo uses a
CLIP ViT instead, and so do we. The config covers CLIP's ViT-B/32 ... ViT-H/14. Any other module that returns (B, S, D) can
take its place, because Flamingo needs nothing else from it.

Example: 48 x 48 pixels, patches of 12 -> a grid of 4 x 4 -> features (B, 16, 96).
With a class token there are 17 features; the first is the class token.
"""

import torch
from torch import Tensor, nn

from .attention import attention, merge_heads, split_heads
from .config import VisionConfig
from .layers import FeedForward
from .shapes import check_shape


class EncoderBlock(nn.Module):
    """A pre-norm Transformer block in which every patch attends to every patch."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        d = config.d
        self.n_heads = config.n_heads
        self.attn_norm = nn.LayerNorm(d, eps=config.norm_eps)
        # unlike in the resampler, all projections have biases, as in CLIP
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(d, d) for _ in range(4))
        self.mlp_norm = nn.LayerNorm(d, eps=config.norm_eps)
        self.mlp = FeedForward(d, config.d_ff or 4 * d, config.activation, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        ### BEGIN SOLUTION encoder_block
        y = self.attn_norm(x)
        q, k, v = (split_heads(to(y), self.n_heads) for to in (self.to_q, self.to_k, self.to_v))  # (B, h, S, d_head)
        x = x + self.to_out(merge_heads(attention(q, k, v)))  # no mask: each patch attends to all patches
        return x + self.mlp(self.mlp_norm(x))
        ### END SOLUTION


def prime_factors(n: int) -> list[int]:
    """The prime factors of n, largest first: 12 -> [3, 2, 2]."""
    # the smallest divisor above 1 is always a prime
    for p in range(2, n + 1):
        if n % p == 0:
            return [*prime_factors(n // p), p]
    return []


def conv_stem(patch_size: int, d: int) -> nn.Sequential:
    """Small convolutions whose strides multiply to `patch_size`: (B, 3, H, W) -> (B, d, H/patch, W/patch).

    One large convolution learns strokes and corners slowly; a few small ones learn them early (Xiao et al. 2021). For patch 12
    = 3 * 2 * 2 the channels are 3 -> d/3 -> 2d/3 -> 2d/3 -> d. The third convolution has stride 1: it sees details, such as
    letters, before the grid becomes coarse. With BatchNorm this learns in hundreds of steps instead of thousands. The vision
    encoder is frozen later and stays in evaluation mode, so its batch statistics are frozen too.
    """
    # The product of the strides is the patch size. The largest comes first, so later convolutions are cheap.
    strides = prime_factors(patch_size)
    widths = [d // 3, *[2 * d // 3] * (len(strides) - 2), d][-len(strides) :]
    plan = list(zip(widths, strides))
    # One more convolution of stride 1 before the last one. The toy images contain letters, and here they still have detail.
    plan.insert(-1, (2 * d // 3, 1))
    layers, channels = [], 3  # the first convolution takes red, green and blue
    for i, (width, stride) in enumerate(plan):
        kernel = max(5 if i == 0 else 3, stride)
        # This padding makes the output exactly `stride` times smaller than the input.
        conv = nn.Conv2d(channels, width, kernel, stride, padding=(kernel - stride + 1) // 2, bias=False)
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    # The last 1 x 1 convolution is linear, so that features can be negative after the ReLU.
    return nn.Sequential(*layers, nn.Conv2d(d, d, kernel_size=1))


class ViT(nn.Module):
    """Preprocessed pixels (B, 3, H, W) -> features (B, S, D), the class token first if it is kept."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        c = self.config = config
        if c.stem == "conv":
            self.patches = conv_stem(c.patch_size, c.d)
        else:
            # Stride = kernel size, so the patches do not overlap: each is one linear map of its pixels.
            self.patches = nn.Conv2d(3, c.d, kernel_size=c.patch_size, stride=c.patch_size, bias=False)
        if c.class_token:
            self.class_token = nn.Parameter(torch.randn(c.d) * c.d**-0.5)
        # One learned position per patch. Without it the image would be an unordered set of patches for the attention.
        self.positions = nn.Parameter(torch.randn(c.n_patches + int(c.class_token), c.d) * c.d**-0.5)
        self.pre_norm = nn.LayerNorm(c.d, eps=c.norm_eps) if c.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(EncoderBlock(c) for _ in range(c.n_layers))
        self.post_norm = nn.LayerNorm(c.d, eps=c.norm_eps) if c.post_norm else nn.Identity()

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode a batch of images.

        Raises:
            ValueError: the pixels do not have the size of the config.
        """
        ### BEGIN SOLUTION vit
        c = self.config
        # another size would have another number of patches than positions (recipes/finetune.py can change both)
        check_shape(pixels, "B C H W", "pixels", C=3, H=c.image_size, W=c.image_size)
        # The grid is flattened row by row: patch (row, column) becomes feature row * grid + column.
        x = self.patches(pixels).flatten(2).transpose(1, 2)  # (B, D, H/p, W/p) -> (B, D, n_patches) -> (B, n_patches, D)
        if c.class_token:
            # an extra vector that belongs to no patch; CLIP summarises the whole image in it
            x = torch.cat([self.class_token.expand(x.shape[0], 1, -1), x], dim=1)  # (B, 1 + n_patches, D)
        # added, not appended: the width stays D. (S, D) is broadcast over the batch.
        x = self.pre_norm(x + self.positions)
        for block in self.blocks:
            x = block(x)
        x = self.post_norm(x)
        return x[:, 1:] if c.class_token and not c.keep_class_token else x
        ### END SOLUTION
