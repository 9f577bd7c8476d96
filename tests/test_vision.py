"""The eye: patches, positions and blocks against formulas and PyTorch's own layers, and the sizes of CLIP's."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import batch_of, close, enliven, picture, random, tiny_config
from torch import nn

from minflamingo.config import VisionConfig
from minflamingo.flamingo import Flamingo
from minflamingo.vision import EncoderBlock, ViT, conv_stem, prime_factors


def tiny_vit(**changes) -> ViT:
    return enliven(ViT(VisionConfig(**{**dict(image_size=12, patch_size=4, d=16, layers=2, heads=2), **changes})))


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_an_encoder_block_is_pytorchs_pre_norm_transformer_layer(activation):
    """x + attention(norm x), x + mlp(norm x): `nn.TransformerEncoderLayer` with the same weights."""
    ours = enliven(EncoderBlock(16, 4, 48, activation))
    theirs = nn.TransformerEncoderLayer(16, 4, 48, 0.0, activation, batch_first=True, norm_first=True)
    with torch.no_grad():
        parts = (ours.to_q, ours.to_k, ours.to_v)
        theirs.self_attn.in_proj_weight.copy_(torch.cat([p.weight for p in parts]))
        theirs.self_attn.in_proj_bias.copy_(torch.cat([p.bias for p in parts]))
    for a, b in (
        (theirs.self_attn.out_proj, ours.to_out), (theirs.norm1, ours.attn_norm), (theirs.norm2, ours.mlp_norm),
        (theirs.linear1, ours.mlp.up), (theirs.linear2, ours.mlp.out),
    ):  # fmt: skip
        a.load_state_dict(b.state_dict())
    x = random(2, 5, 16)
    assert close(ours(x), theirs(x))
    real = torch.tensor([[True] * 5, [True, True, False, True, False]])
    masked, expected = ours(x, real[:, None, None]), theirs(x, src_key_padding_mask=~real)
    assert close(masked[real], expected[real])


def test_quick_gelu_is_its_formula():
    """OpenAI's CLIP: x · σ(1.702 x), not GELU; by hand at 1 and −2."""
    block = EncoderBlock(4, 1, 4, "quick_gelu")
    with torch.no_grad():
        for linear in (block.mlp.up, block.mlp.out):
            linear.weight.copy_(torch.eye(4))
            linear.bias.zero_()
    out = block.mlp(torch.tensor([1.0, -2.0, 0.0, 3.0]))
    assert close(out, torch.tensor([0.8458, -0.0643, 0.0, 2.9819]), 1e-4)


def test_the_patch_stem_is_one_matrix_applied_to_each_patch():
    """A convolution with stride = kernel size is unfold and matmul; patches in reading order."""
    vit, pixels = tiny_vit(), random(2, 3, 12, 12)
    features = vit.patches(pixels).flatten(2).transpose(1, 2)
    matrix = vit.patches.weight.flatten(1)  # (D, 3·4·4)
    assert close(features, F.unfold(pixels, 4, stride=4).transpose(1, 2) @ matrix.T)
    assert close(features[1, 5], matrix @ pixels[1, :, 4:8, 8:12].flatten()), "patch 5 of 3×3 is row 1, column 2"


def test_the_whole_eye_is_stem_class_token_positions_norms_and_blocks():
    """CLIP's order: [class, patches] + positions → LayerNorm → blocks; LayerNorm behind only if asked for."""
    vit, pixels = tiny_vit(post_norm=True), random(2, 3, 12, 12)
    x = F.unfold(pixels, 4, stride=4).transpose(1, 2) @ vit.patches.weight.flatten(1).T
    x = torch.stack([torch.cat([vit.class_token[None], row]) for row in x]) + vit.positions
    x = F.layer_norm(x, (16,), vit.pre_norm.weight, vit.pre_norm.bias)
    for block in vit.blocks:
        x = block(x)
    before = x
    assert close(vit(pixels), F.layer_norm(x, (16,), vit.post_norm.weight, vit.post_norm.bias))
    vit.post_norm = nn.Identity()
    assert close(vit(pixels), before)


def test_the_class_token_comes_first():
    """Of S + 1 features the first is the class's: before the blocks it knows nothing of the picture, all others do."""
    vit = tiny_vit(layers=0)
    assert vit.config.n_patches == 9
    a, b = vit(random(1, 3, 12, 12, seed=1)), vit(random(1, 3, 12, 12, seed=2))
    assert a.shape == (1, 10, 16)
    assert torch.equal(a[:, 0], b[:, 0])
    assert (a[:, 1:] - b[:, 1:]).abs().amax(-1).min() > 0
    assert tiny_vit(class_token=False)(random(1, 3, 12, 12)).shape == (1, 9, 16)


def permuted(pixels: torch.Tensor, order: list[int]) -> torch.Tensor:
    """The 4×4 patches of (B, 3, 12, 12) pixels in another order."""
    return F.fold(F.unfold(pixels, 4, stride=4)[..., order], (12, 12), 4, stride=4)


def test_only_the_positions_tell_the_eye_where_a_patch_lies():
    """Without them a picture of permuted patches has permuted features; with them it is another picture."""
    vit, pixels, order = tiny_vit(class_token=False), random(1, 3, 12, 12), [4, 2, 7, 0, 8, 1, 3, 6, 5]
    assert not close(vit(permuted(pixels, order)), vit(pixels)[:, order], 1e-2)
    with torch.no_grad():
        vit.positions.zero_()
    assert close(vit(permuted(pixels, order)), vit(pixels)[:, order])


def test_the_convolutional_stem_ends_on_the_grid_of_patches():
    """Strides multiply to the patch size: 12 = 3·2·2, and 48 pixels become 4×4 of d channels."""
    assert prime_factors(12) == [3, 2, 2] and prime_factors(14) == [7, 2] and prime_factors(32) == [2] * 5
    for size, patch in ((48, 12), (224, 14), (96, 16)):
        strides = [layer.stride[0] for layer in conv_stem(patch, 16) if isinstance(layer, nn.Conv2d)]
        assert math.prod(strides) == patch
        assert conv_stem(patch, 16)(torch.zeros(2, 3, size, size)).shape == (2, 16, size // patch, size // patch)
    assert tiny_vit(stem="conv", image_size=48, patch_size=12)(torch.zeros(1, 3, 48, 48)).shape == (1, 17, 16)


def pixels_seen(patch: int, size: int, row: int, column: int) -> torch.Tensor:
    """(H, W) bool: which pixels one place of the convolutional grid depends on, by gradients over 20 pictures."""
    stem, pixels = enliven(conv_stem(patch, 16)), random(20, 3, size, size).requires_grad_()
    stem(pixels)[:, :, row, column].square().sum().backward()
    return pixels.grad.abs().sum((0, 1)) > 0


def test_a_place_of_the_convolutional_grid_looks_at_its_own_neighbourhood():
    """Place (1, 2) of 4×4 sees its patch, nothing a patch below it, nothing more than 16 pixels left of it."""
    seen = pixels_seen(12, 48, 1, 2)
    assert seen[12:24, 24:36].all()
    assert not seen[36:].any() and not seen[:, :8].any()


@pytest.mark.parametrize("patch, size", [(12, 48), (14, 28), (20, 40), (8, 16)])
def test_the_convolutional_stem_looks_at_every_pixel_of_every_patch(patch, size):
    """As the one big patch convolution does: the last rows and columns of the picture included."""
    for place in range(size // patch):
        patch_of = slice(place * patch, (place + 1) * patch)
        assert pixels_seen(patch, size, place, place)[patch_of, patch_of].all()


def test_the_statistics_of_a_frozen_eye_do_not_move():
    """The convolutional stem has BatchNorm; frozen, it reads each picture as in evaluation."""
    config = tiny_config()
    config = replace(config, vision=replace(config.vision, stem="conv"))
    flamingo = enliven(Flamingo(config)).train()
    before = {n: p.clone() for n, p in flamingo.vision.state_dict().items()}
    alone, together = batch_of([picture(1), "a"]), batch_of([picture(1), "a"], [picture(2), "b"])
    assert close(flamingo(alone)[0], flamingo(together)[0][:1])
    flamingo(together)[1].backward()
    assert all(torch.equal(p, before[n]) for n, p in flamingo.vision.state_dict().items())


@pytest.mark.parametrize("shape", [(1, 3, 12, 16), (1, 3, 24, 24), (1, 1, 12, 12), (3, 12, 12)])
def test_pixels_of_another_size_are_refused(shape):
    """The error names the tensor, what was expected and what came."""
    with pytest.raises(ValueError, match=r"pixels: expected shape \(B, C=3, H=12, W=12\), got"):
        tiny_vit()(torch.zeros(shape))


def test_pictures_of_a_batch_do_not_see_each_other():
    """Each is encoded as if alone."""
    vit, pixels = tiny_vit(), random(3, 3, 12, 12)
    together = vit(pixels)
    for b in range(3):
        assert close(together[b], vit(pixels[b : b + 1])[0])


def test_any_module_that_gives_feature_vectors_can_be_the_eye():
    """Flamingo asks for (M, C, H, W) → (M, S, D_v) and nothing more; the paper's eye is a convolutional network."""

    class Grid(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 16, 3, stride=2)

        def forward(self, pixels):
            return self.conv(pixels).flatten(2).transpose(1, 2)

    flamingo = enliven(Flamingo(tiny_config(), vision=Grid()))
    batch = batch_of([picture(1), "ab", picture(2), "c"])
    logits, _ = flamingo(batch)
    features = flamingo.vision.conv(batch.media.flatten(0, 2)).flatten(2).transpose(1, 2)[None, :, None]
    visual = flamingo.resampler(features[0])[None]
    assert close(flamingo.see(batch.media), visual)
    assert not close(logits, flamingo(batch_of([picture(3), "ab", picture(2), "c"]))[0], 1e-3)
    assert not any(p.requires_grad for p in flamingo.vision.parameters())


@pytest.mark.parametrize(
    "name, patch, d, layers, heads, activation, published",
    [
        ("B/32", 32, 768, 12, 12, "quick_gelu", 87_849_216 - 768 * 512),
        ("B/16", 16, 768, 12, 12, "quick_gelu", 86_192_640 - 768 * 512),
        ("L/14", 14, 1024, 24, 16, "quick_gelu", 303_966_208 - 1024 * 768),
        ("H/14", 14, 1280, 32, 16, "gelu", 632_076_800 - 1280 * 1024),
    ],
)
def test_the_config_covers_clips_sizes(name, patch, d, layers, heads, activation, published):
    """Parameters of CLIP's vision towers without their projection: counted here by hand and as published."""
    with torch.device("meta"):
        vit = ViT(VisionConfig(224, patch, d, layers, heads, activation=activation, post_norm=True))
    attention, mlp, norms = 4 * (d * d + d), (d * 4 * d + 4 * d) + (4 * d * d + d), 2 * 2 * d
    tokens = (224 // patch) ** 2 + 1
    by_hand = 3 * patch**2 * d + d + tokens * d + 2 * 2 * d + layers * (attention + mlp + norms)
    assert sum(p.numel() for p in vit.parameters()) == by_hand == published
