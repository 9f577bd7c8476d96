"""Specification of `vision.py`: a Vision Transformer against PyTorch's layers, and the sizes of CLIP."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import batch_of, close, enliven, image, random, tiny_config
from torch import nn

from minflamingo.config import VisionConfig
from minflamingo.flamingo import Flamingo
from minflamingo.vision import EncoderBlock, ViT, conv_stem, prime_factors


def tiny_vit(**changes) -> ViT:
    """12 x 12 pixels in 3 x 3 patches."""
    return enliven(ViT(VisionConfig(**{**dict(image_size=12, patch_size=4, d=16, n_layers=2, n_heads=2), **changes})))


@pytest.mark.encoder_block(points=3)
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_an_encoder_block_is_a_pre_norm_transformer_layer(activation):
    """ViT (Dosovitskiy et al. 2021): x + attention(norm(x)), then x + mlp(norm(x)), against `nn.TransformerEncoderLayer`."""
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


@pytest.mark.encoder_block(points=2)
def test_attention_and_mlp_are_added_to_the_residual_stream():
    """Dosovitskiy et al. 2021: if both add zero, the input comes out unchanged, not normalised."""
    block, x = enliven(EncoderBlock(VisionConfig(d=16, n_heads=4))), random(2, 5, 16)
    for p in (*block.to_out.parameters(), *block.mlp.out.parameters()):
        nn.init.zeros_(p)
    assert torch.equal(block(x), x)


@pytest.mark.vit(points=3)
def test_the_encoder_is_patches_class_token_positions_norms_and_blocks():
    """Section 2.1, in CLIP's order: [class token, patches row by row] + positions, LayerNorm, blocks, perhaps a LayerNorm."""
    vit, pixels = tiny_vit(post_norm=True), random(2, 3, 12, 12)
    x = [pixels[:, :, i : i + 4, j : j + 4].flatten(1) @ vit.patches.weight.flatten(1).T for i in (0, 4, 8) for j in (0, 4, 8)]
    x = torch.stack([vit.class_token.expand(2, -1), *x], dim=1) + vit.positions
    x = F.layer_norm(x, (16,), vit.pre_norm.weight, vit.pre_norm.bias)
    for block in vit.blocks:
        x = block(x)
    assert close(vit(pixels), F.layer_norm(x, (16,), vit.post_norm.weight, vit.post_norm.bias))
    vit.post_norm = nn.Identity()
    assert close(vit(pixels), x) and close(vit(pixels[1:]), x[1:])


@pytest.mark.vit(points=2)
def test_the_class_token_comes_first_and_can_be_left_out_of_the_output():
    """Section 2.1: S + 1 features; before the blocks the first does not depend on the image. The size is that of the config."""
    vit = tiny_vit(n_layers=0)
    a, b = vit(random(1, 3, 12, 12, seed=1)), vit(random(1, 3, 12, 12, seed=2))
    assert a.shape == (1, 10, 16)
    assert (a - b).abs().amax(-1).gt(0).tolist() == [[False] + [True] * 9], "the features that depend on the image"
    pixels = random(1, 3, 12, 12)
    assert torch.equal(tiny_vit(keep_class_token=False)(pixels), tiny_vit()(pixels)[:, 1:])
    assert tiny_vit(class_token=False)(pixels).shape == (1, 9, 16)
    for shape in ((1, 3, 12, 16), (1, 3, 24, 24), (1, 1, 12, 12), (3, 12, 12)):
        with pytest.raises(ValueError, match=r"pixels: expected shape \(B, C=3, H=12, W=12\), got"):
            vit(torch.zeros(shape))


@pytest.mark.encoder_block(points=2)
@pytest.mark.vit(points=2)
def test_only_the_positions_tell_where_a_patch_is():
    """Section 2.1: features carry their spatial position. Without positions, permuted patches have permuted features."""
    vit, pixels, order = tiny_vit(class_token=False), random(1, 3, 12, 12), [4, 2, 7, 0, 8, 1, 3, 6, 5]
    permuted = F.fold(F.unfold(pixels, 4, stride=4)[..., order], (12, 12), 4, stride=4)
    assert not close(vit(permuted), vit(pixels)[:, order], 1e-2), "the features do not carry the positions of their patches"
    with torch.no_grad():
        vit.positions.zero_()
    assert close(vit(permuted), vit(pixels)[:, order]), "positions come from something else than `vit.positions`"


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
    """Section 2.1: Flamingo needs (M, C, H, W) -> (M, S, D_v) and nothing more; the paper's encoder is convolutional."""

    class Grid(nn.Conv2d):
        def forward(self, pixels):
            return super().forward(pixels).flatten(2).transpose(1, 2)

    flamingo = enliven(Flamingo(tiny_config(), vision=Grid(3, 16, 3, stride=2)))
    media = batch_of([image(1), "ab", image(2), "c"]).media
    assert close(flamingo.encode_media(media), flamingo.resampler(flamingo.vision(media.flatten(0, 2))[:, None])[None])
    assert not any(p.requires_grad for p in flamingo.vision.parameters())


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
