"""How the eye learns to see: two-way InfoNCE, against loops (paper §2.1 and appendix)."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import close, enliven, random

from minflamingo.config import VisionConfig
from minflamingo.training.contrastive import ContrastivePair, TextTower, info_nce
from minflamingo.vision import ViT

CAPTIONS = torch.tensor([[3, 4, 5, 0], [6, 7, 0, 0], [3, 4, 5, 0], [8, 0, 0, 0]])  # 0 and 2 are alike


def pair() -> ContrastivePair:
    eye = ViT(VisionConfig(image_size=8, patch_size=4, d=16, layers=1, heads=2, class_token=False))
    return enliven(ContrastivePair(eye, 16, TextTower(12, 24, max_length=6), 24, d_shared=8))


def by_hand(image, text, scale, same) -> float:
    """−log softmax of the own caption among captions and of the own image among images, over those that count."""
    B, total = len(image), 0.0
    for i in range(B):
        rivals = [j for j in range(B) if j == i or not same[i, j]]
        captions = [math.exp(scale * (image[i] @ text[j]).item()) for j in rivals]
        images = [math.exp(scale * (image[j] @ text[i]).item()) for j in rivals]
        own = math.exp(scale * (image[i] @ text[i]).item())
        total -= (math.log(own / sum(captions)) + math.log(own / sum(images))) / 2
    return total / B


@pytest.mark.parametrize("alike", [False, True], ids=["all different", "some captions alike"])
def test_the_loss_is_two_way_info_nce(alike):
    """Half the cross-entropy of rows, half that of columns, of exp(t)·cosine; identical captions are no negatives."""
    image, text = F.normalize(random(5, 8, seed=1), dim=-1), F.normalize(random(5, 8, seed=2), dim=-1)
    same = torch.eye(5, dtype=torch.bool)
    if alike:
        for i, j in ((0, 2), (2, 0), (1, 3), (3, 1), (1, 4), (4, 1), (3, 4), (4, 3)):
            same[i, j] = True
    loss, _ = info_nce(image, text, 7.0, same)
    assert abs(float(loss) - by_hand(image, text, 7.0, same)) < 1e-5


def test_pictures_of_the_same_caption_are_not_pushed_apart():
    """Pairs 0 and 2 share their caption: no gradient from one's image to the other's text, in either direction."""
    image, text = (F.normalize(random(3, 8, seed=s), dim=-1).requires_grad_() for s in (1, 2))
    same = torch.tensor([[True, False, True], [False, True, False], [True, False, True]])
    alone = torch.eye(3, dtype=torch.bool)
    for matrix, linked in ((same, False), (alone, True)):
        (grad,) = torch.autograd.grad(info_nce(image, text, 5.0, matrix)[0], image)
        moved = text.detach().clone()
        moved[2] = -moved[2]
        (other,) = torch.autograd.grad(info_nce(image, moved, 5.0, matrix)[0], image)
        assert close(grad[0], other[0]) != linked, "the text of pair 2 pulls at image 0 only if it is a negative"


def test_a_batch_of_one_caption_has_nothing_to_learn():
    """All alike: everyone wins, the loss is zero and not NaN."""
    x = F.normalize(random(4, 8), dim=-1).requires_grad_()
    loss, wins = info_nce(x, x, 10.0, torch.ones(4, 4, dtype=torch.bool))
    loss.backward()
    assert close(loss, torch.tensor(0.0)) and wins == 1 and torch.isfinite(x.grad).all()


def test_the_share_of_own_captions_that_win_is_counted():
    """By hand: images 0 and 1 are nearest to their own caption, 2 to that of 1."""
    image = torch.eye(3)
    text = torch.stack([image[0], image[1], 0.1 * image[2]])
    text[1, 2] = 0.5
    assert abs(float(info_nce(image, text, 3.0, torch.eye(3, dtype=torch.bool))[1]) - 2 / 3) < 1e-6


def test_the_pair_compares_mean_features_and_mean_words_on_the_unit_sphere():
    """Paper: both towers mean-pooled; then projections, unit length and the learned scale."""
    model, pixels = pair(), random(4, 3, 8, 8)
    with torch.no_grad():
        model.log_scale.fill_(1.3)
    image = torch.stack([model.image_projection(features.mean(0)) for features in model.vision(pixels)])
    text = model.text_projection(model.text(CAPTIONS))
    image, text = image / image.norm(dim=1, keepdim=True), text / text.norm(dim=1, keepdim=True)
    same = torch.tensor([[i == j or {i, j} == {0, 2} for j in range(4)] for i in range(4)])
    assert abs(model(pixels, CAPTIONS)[0] - by_hand(image, text, math.exp(1.3), same)) < 1e-5


def test_the_scale_starts_at_clips_temperature_and_never_passes_a_hundred():
    """1 / 0.07 at first; beyond 100 it is cut, as in CLIP."""
    fresh = ContrastivePair(torch.nn.Identity(), 4, TextTower(12, 8), 8)
    assert abs(fresh.log_scale.exp() - 1 / 0.07) < 1e-4
    model, pixels = pair(), random(4, 3, 8, 8)
    losses = []
    for scale in (100.0, 5000.0):
        with torch.no_grad():
            model.log_scale.fill_(math.log(scale))
        losses.append(model(pixels, CAPTIONS)[0])
    assert close(*losses, 1e-4)


def test_a_caption_is_a_sum_of_its_words_each_in_its_place():
    """The term of a last word is the same behind any other words; at another place it is another."""
    tower = enliven(TextTower(12, 24, max_length=6))

    def total(*ids: int) -> torch.Tensor:  # the mean times the number of words
        return len(ids) * tower(torch.tensor([[*ids, 0]]))[0]

    term = total(3, 4, 5) - total(3, 4)
    assert close(term, total(9, 7, 5) - total(9, 7), 1e-5)
    assert not close(term, total(3, 5) - total(3), 1e-2)
    assert not close(total(3, 4), total(4, 3), 1e-2)


def test_the_gradient_reaches_both_towers():
    """Every parameter of both towers, projections and scale learns, except words and places no caption uses."""
    model = pair()
    model(random(4, 3, 8, 8), CAPTIONS)[0].backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    used = model.text.embed.weight.grad.abs().amax(-1) > 0
    assert used.tolist() == [i in (3, 4, 5, 6, 7, 8) for i in range(12)]
    assert (model.text.positions.grad.abs().amax(-1) > 0).tolist() == [True, True, True, False, False, False]


def test_padding_of_captions_is_ignored():
    """A caption has the same vector alone, padded, and beside longer ones."""
    tower = pair().text
    padded = tower(CAPTIONS)
    for b, caption in enumerate(CAPTIONS):
        assert close(padded[b], tower(caption[caption != 0][None])[0])


def test_the_vector_of_a_caption_is_the_mean_over_its_words():
    """A feed-forward block, a norm, the mean: written out for a caption without padding."""
    tower, ids = pair().text, torch.tensor([[3, 9, 4]])
    x = tower.embed.weight[ids] + tower.positions[:3]
    hidden = F.gelu(F.linear(F.layer_norm(x, (24,), tower.norm.weight, tower.norm.bias), tower.ff.up.weight, tower.ff.up.bias))
    x = x + F.linear(hidden, tower.ff.out.weight, tower.ff.out.bias)
    assert close(tower(ids), F.layer_norm(x, (24,), tower.final_norm.weight, tower.final_norm.bias).mean(1))
    assert not close(tower(ids), tower(ids.flip(1)), 1e-2), "the order of words matters"


def test_an_empty_caption_does_not_poison_the_batch():
    """Nothing but padding: loss and gradients stay finite."""
    model, captions = pair(), CAPTIONS.clone()
    captions[3] = 0
    model(random(4, 3, 8, 8), captions)[0].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
