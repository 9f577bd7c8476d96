"""Specification of `vision.py`: a Vision Transformer against PyTorch's layers, and the sizes of CLIP."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import batch_of, close, enliven, image, random, tiny_config
from torch import nn

from minflamingo.config import VisionConfig
from minflamingo.flamingo import Flamingo
from minflamingo.vision import EncoderBlock, ViT, conv_stem, prime_factors, resize_positions, resize_vit


def tiny_vit(**changes) -> ViT:
    """12 x 12 pixels in 3 x 3 patches."""
    return enliven(ViT(VisionConfig(**{**dict(image_size=12, patch_size=4, d=16, n_layers=2, n_heads=2), **changes})))


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_an_encoder_block_is_a_pre_norm_transformer_layer(activation):
    """x + attention(norm(x)), then x + mlp(norm(x)): `nn.TransformerEncoderLayer` with the same weights."""
    ours = enliven(EncoderBlock(VisionConfig(d=16, n_heads=4, d_ff=48, activation=activation)))
    theirs = nn.TransformerEncoderLayer(16, 4, 48, 0.0, activation, batch_first=True, norm_first=True)
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(torch.cat([p.weight for p in (ours.to_q, ours.to_k, ours.to_v)]))
        theirs.self_attn.in_proj_bias.copy_(torch.cat([p.bias for p in (ours.to_q, ours.to_k, ours.to_v)]))
    for a, b in (
        (theirs.self_attn.out_proj, ours.to_out), (theirs.norm1, ours.attn_norm), (theirs.norm2, ours.mlp_norm),
        (theirs.linear1, ours.mlp.up), (theirs.linear2, ours.mlp.out),
    ):  # fmt: skip
        a.load_state_dict(b.state_dict())
    x = random(2, 5, 16)
    assert close(ours(x), theirs(x))


def test_the_encoder_is_patches_class_token_positions_norms_and_blocks():
    """CLIP's order: [class token, patches row by row] + positions, LayerNorm, blocks, a LayerNorm at the end if asked for."""
    vit, pixels = tiny_vit(post_norm=True), random(2, 3, 12, 12)
    x = [pixels[:, :, i : i + 4, j : j + 4].flatten(1) @ vit.patches.weight.flatten(1).T for i in (0, 4, 8) for j in (0, 4, 8)]
    x = torch.stack([vit.class_token.expand(2, -1), *x], dim=1) + vit.positions
    x = F.layer_norm(x, (16,), vit.pre_norm.weight, vit.pre_norm.bias)
    for block in vit.blocks:
        x = block(x)
    assert close(vit(pixels), F.layer_norm(x, (16,), vit.post_norm.weight, vit.post_norm.bias))
    vit.post_norm = nn.Identity()
    assert close(vit(pixels), x) and close(vit(pixels[1:]), x[1:])


def test_the_class_token_comes_first_and_can_be_left_out_of_the_output():
    """S + 1 features; before the blocks the first does not depend on the image. Images must have the size of the config."""
    vit = tiny_vit(n_layers=0)
    a, b = vit(random(1, 3, 12, 12, seed=1)), vit(random(1, 3, 12, 12, seed=2))
    assert a.shape == (1, 10, 16) and (a - b).abs().amax(-1).gt(0).tolist() == [[False] + [True] * 9]
    pixels = random(1, 3, 12, 12)
    assert torch.equal(tiny_vit(keep_class_token=False)(pixels), tiny_vit()(pixels)[:, 1:])
    assert tiny_vit(class_token=False)(pixels).shape == (1, 9, 16)
    for shape in ((1, 3, 12, 16), (1, 3, 24, 24), (1, 1, 12, 12), (3, 12, 12)):
        with pytest.raises(ValueError, match=r"pixels: expected shape \(B, C=3, H=12, W=12\), got"):
            vit(torch.zeros(shape))


def test_only_the_positions_tell_where_a_patch_is():
    """Section 2.1: features carry their spatial position. Without positions, permuted patches have permuted features."""
    vit, pixels, order = tiny_vit(class_token=False), random(1, 3, 12, 12), [4, 2, 7, 0, 8, 1, 3, 6, 5]
    permuted = F.fold(F.unfold(pixels, 4, stride=4)[..., order], (12, 12), 4, stride=4)
    assert not close(vit(permuted), vit(pixels)[:, order], 1e-2)
    with torch.no_grad():
        vit.positions.zero_()
    assert close(vit(permuted), vit(pixels)[:, order])


@pytest.mark.parametrize("size, patch", [(48, 12), (28, 14), (96, 16), (40, 20)])
def test_the_convolutional_stem_ends_on_the_grid_of_patches(size, patch):
    """Its strides multiply to the patch size, and each output depends on every pixel of its patch (gradient probe)."""
    stem, side = enliven(conv_stem(patch, 16)), size // patch
    assert math.prod(prime_factors(patch)) == patch
    assert math.prod(layer.stride[0] for layer in stem if isinstance(layer, nn.Conv2d)) == patch
    pixels = random(20, 3, size, size).requires_grad_()
    out = stem(pixels)
    assert out.shape == (20, 16, side, side)
    for i in range(side):
        (grad,) = torch.autograd.grad(out[:, :, i, i].square().sum(), pixels, retain_graph=True)
        inside = slice(i * patch, (i + 1) * patch)
        assert (grad.abs().sum((0, 1)) > 0)[inside, inside].all()
    assert tiny_vit(stem="conv", image_size=size, patch_size=patch)(torch.zeros(1, 3, size, size)).shape == (1, side**2 + 1, 16)


def test_any_module_that_returns_feature_vectors_can_be_the_vision_encoder():
    """Flamingo needs (M, C, H, W) -> (M, S, D_v) and nothing more; the paper's encoder is a convolutional network."""

    class Grid(nn.Conv2d):
        def forward(self, pixels):
            return super().forward(pixels).flatten(2).transpose(1, 2)

    flamingo = enliven(Flamingo(tiny_config(), vision=Grid(3, 16, 3, stride=2)))
    media = batch_of([image(1), "ab", image(2), "c"]).media
    assert close(flamingo.encode_media(media), flamingo.resampler(flamingo.vision(media.flatten(0, 2))[:, None])[None])
    assert not any(p.requires_grad for p in flamingo.vision.parameters())


def test_positions_of_a_larger_grid_are_interpolated_between_patch_centres():
    """Section 3.2: fine-tuning uses larger images. The values 0 and 1 become 0, 1/4, 3/4, 1."""
    by_hand = torch.tensor([0, 0.25, 0.75, 1])
    columns, rows = resize_positions(torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 1]]), 4).unbind(-1)
    assert close(columns, by_hand.repeat(4)) and close(rows, by_hand.repeat_interleave(4))
    assert torch.equal(resize_positions(random(9, 5), 3), random(9, 5))
    with pytest.raises(ValueError, match="cannot resize 8 positions"):
        resize_positions(random(8, 5), 4)


def test_resizing_keeps_the_patch_size_and_the_class_token_and_accepts_larger_images():
    """Only the positions change: the class token's position stays, and the new ones are those of `resize_positions`."""
    vit = tiny_vit()
    before = {name: p.clone() for name, p in vit.state_dict().items()}
    resize_vit(vit, 20)
    assert vit(random(1, 3, 20, 20)).shape == (1, 26, 16) and vit.config.image_size == 20
    expected = torch.cat([before["positions"][:1], resize_positions(before["positions"][1:], 5)])
    assert torch.equal(vit.positions, expected)
    assert all(torch.equal(p, before[name]) for name, p in vit.state_dict().items() if name != "positions")
    with pytest.raises(ValueError, match="image size 22 is not a multiple of the patch size 4: choose 20 or 24"):
        resize_vit(vit, 22)
    with pytest.raises(TypeError, match="only a ViT can be resized, not a Identity"):
        resize_vit(nn.Identity(), 8)


@pytest.mark.parametrize(
    "patch, d, n_layers, published",
    [(32, 768, 12, 87_849_216), (16, 768, 12, 86_192_640), (14, 1024, 24, 303_966_208), (14, 1280, 32, 632_076_800)],
)
def test_the_config_covers_the_sizes_of_clip(patch, d, n_layers, published):
    """ViT-B/32, B/16, L/14, H/14: published numbers of parameters, without CLIP's projection to its shared space."""
    with torch.device("meta"):
        vit = ViT(VisionConfig(224, patch, d, n_layers, n_heads=16, post_norm=True))
    shared = {768: 512, 1024: 768, 1280: 1024}[d]
    assert sum(p.numel() for p in vit.parameters()) == published - d * shared
