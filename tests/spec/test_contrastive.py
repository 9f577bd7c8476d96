"""Specification of `contrastive.py`: two-way InfoNCE (section 2.1 and appendix), against loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import close, enliven, random

from minflamingo.config import VisionConfig
from minflamingo.contrastive import ContrastiveModel, TextEncoder, contrastive_loss
from minflamingo.vision import ViT

CAPTIONS = torch.tensor([[3, 4, 5, 0], [6, 7, 0, 0], [3, 4, 5, 0], [8, 0, 0, 0]])  # 0 and 2 are equal


def tiny_model() -> ContrastiveModel:
    vit = ViT(VisionConfig(image_size=8, patch_size=4, d=16, n_layers=1, n_heads=2, class_token=False))
    return enliven(ContrastiveModel(vit, 16, TextEncoder(12, 24, max_length=6), 24, d_shared=8))


def unit(*shape: int, seed: int) -> torch.Tensor:
    return F.normalize(random(*shape, seed=seed), dim=-1)


def equal_captions(n: int, *pairs: tuple[int, int]) -> torch.Tensor:
    """(n, n) bool: the diagonal and the given pairs."""
    return torch.tensor([[i == j or (i, j) in pairs or (j, i) in pairs for j in range(n)] for i in range(n)])


@torch.no_grad()
def by_hand(image, text, scale: float, same) -> float:
    """Mean of -log softmax of the own caption among captions and of the own image among images."""
    total = 0.0
    for i in range(len(image)):
        candidates = [j for j in range(len(image)) if j == i or not same[i, j]]
        own = math.exp(scale * float(image[i] @ text[i]))
        texts = sum(math.exp(scale * float(image[i] @ text[j])) for j in candidates)
        images = sum(math.exp(scale * float(image[j] @ text[i])) for j in candidates)
        total -= (math.log(own / texts) + math.log(own / images)) / 2
    return total / len(image)


@pytest.mark.contrastive_loss(points=3)
@pytest.mark.parametrize("pairs", [(), ((0, 2), (1, 3), (1, 4), (3, 4))], ids=["all different", "some captions equal"])
def test_the_contrastive_loss_is_two_way_info_nce(pairs):
    """Section 2.1: half the cross-entropy of rows plus half that of columns. Equal captions are not negatives."""
    image, text, same = unit(5, 8, seed=1), unit(5, 8, seed=2), equal_captions(5, *pairs)
    loss, _ = contrastive_loss(image, text, 7.0, same)
    assert abs(float(loss) - by_hand(image, text, 7.0, same)) < 1e-5


@pytest.mark.contrastive_loss(points=1)
def test_the_accuracy_is_the_share_of_images_whose_own_caption_wins():
    """Appendix, by hand: images 0 and 1 are nearest to their own caption, image 2 is not. With equal captions only, all win."""
    image, text = torch.diag(torch.ones(3)), torch.diag(torch.tensor([1.0, 1, 0.1]))
    text[1, 2] = 0.5
    assert abs(float(contrastive_loss(image, text, 3.0, equal_captions(3))[1]) - 2 / 3) < 1e-6
    loss, accuracy = contrastive_loss(image, text, 3.0, torch.ones(3, 3, dtype=torch.bool))
    assert loss == 0 and accuracy == 1, "no caption is a wrong answer"


@pytest.mark.contrastive_loss(points=2)
def test_the_scale_multiplies_the_cosines():
    """Appendix. By hand: with 5 orthogonal pairs and scale 3 each softmax gives the partner e^3 / (e^3 + 4)."""
    loss, _ = contrastive_loss(*[torch.diag(torch.ones(5))] * 2, 3.0, equal_captions(5))
    assert abs(float(loss) - math.log(1 + 4 * math.exp(-3))) < 1e-6


@pytest.mark.parametrize("drawings", [0, 3])
def test_the_model_compares_mean_features_as_unit_vectors(drawings):
    """Section 2.1: mean pooling; then projections, unit length and the learned scale. Two views of a drawing are partners."""
    model, pixels = tiny_model(), random(4 + 2 * drawings, 3, 8, 8)
    model.log_scale.data.fill_(1.3)
    image = torch.stack([model.image_projection(features.mean(0)) for features in model.vision(pixels)])
    text = model.text_projection(model.text(CAPTIONS))
    image, text = image / image.norm(dim=1, keepdim=True), text / text.norm(dim=1, keepdim=True)
    image, partners = image[: 4 + drawings], torch.cat([text, image[4 + drawings :]])
    expected = by_hand(image, partners, math.exp(1.3), equal_captions(4 + drawings, (0, 2)))
    assert abs(model(pixels, CAPTIONS)[0].item() - expected) < 1e-5


def test_the_scale_starts_at_clips_temperature_and_is_at_most_100():
    """CLIP (Radford et al. 2021): 1 / 0.07 at first; a learned scale above 100 counts as 100."""
    new = ContrastiveModel(torch.nn.Identity(), 4, TextEncoder(12, 8), 8)
    assert abs(new.log_scale.exp().item() - 1 / 0.07) < 1e-4
    model, losses = tiny_model(), []
    for scale in (100.0, 5000.0):
        with torch.no_grad():
            model.log_scale.fill_(math.log(scale))
        losses.append(model(random(4, 3, 8, 8), CAPTIONS)[0])
    assert close(*losses, 1e-4)


def test_every_parameter_learns_except_words_and_positions_that_no_caption_uses():
    """Section 2.1: both encoders, both projections and the scale have a gradient."""
    model = tiny_model()
    model(random(4, 3, 8, 8), CAPTIONS)[0].backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    assert (model.text.embed.weight.grad.abs().amax(-1) > 0).tolist() == [3 <= i <= 8 for i in range(12)]
    assert (model.text.positions.grad.abs().amax(-1) > 0).tolist() == [i < 3 for i in range(6)]


def test_a_caption_vector_is_the_mean_over_its_words_each_with_its_position():
    """Appendix, text encoder, written out: embedding + position, feed-forward block with a residual connection, norm, mean."""
    text, ids = tiny_model().text, torch.tensor([[3, 9, 4]])
    x = text.embed.weight[ids] + text.positions[:3]
    hidden = F.gelu(F.linear(F.layer_norm(x, (24,), text.norm.weight, text.norm.bias), text.ff.up.weight, text.ff.up.bias))
    x = x + F.linear(hidden, text.ff.out.weight, text.ff.out.bias)
    assert close(text(ids), F.layer_norm(x, (24,), text.final_norm.weight, text.final_norm.bias).mean(1))
    assert not close(text(ids), text(ids.flip(1)), 1e-2)


def test_padding_of_captions_changes_nothing_and_an_empty_caption_is_not_nan():
    """Appendix: a caption has the same vector alone and next to longer ones."""
    model, captions = tiny_model(), CAPTIONS.clone()
    for b, caption in enumerate(captions):
        assert close(model.text(captions)[b], model.text(caption[caption != 0][None])[0])
    captions[3] = 0
    model(random(4, 3, 8, 8), captions)[0].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
