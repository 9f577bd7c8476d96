"""The Perceiver Resampler: any number of frames and patches in, R visual tokens out (paper §2.1, fig. 5)."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import close, enliven, random

from minflamingo.config import ResamplerConfig
from minflamingo.resampler import PerceiverResampler


def tiny_resampler(seed: int = 0, **changes) -> PerceiverResampler:
    """Width 16, 3 latents, 2 layers, 2 heads of 8, 4 time embeddings."""
    sizes = dict(d=16, n_latents=3, layers=2, heads=2, d_head=8, n_time_embeddings=4)
    return enliven(PerceiverResampler(ResamplerConfig(**{**sizes, **changes})), seed)


def written_out(r: PerceiverResampler, features: torch.Tensor) -> torch.Tensor:
    """The paper's figure for one video (T, S, D) of at most 4 frames, head by head and with a plain softmax."""
    x = torch.cat([frame + r.time_embeddings[t] for t, frame in enumerate(features)])  # (T·S, D)
    latents, width = r.latents, r.config.d_head

    def norm(layer, y):
        return F.layer_norm(y, y.shape[-1:], layer.weight, layer.bias)

    for layer in r.layers:
        asked = norm(layer.norm_latents, latents)
        both = torch.cat([norm(layer.norm_media, x), asked])
        q, (k, v) = asked @ layer.to_q.weight.T, (both @ layer.to_kv.weight.T).chunk(2, dim=-1)
        heads = []
        for h in range(r.config.heads):
            part = slice(h * width, (h + 1) * width)
            heads.append((q[:, part] @ k[:, part].T / math.sqrt(width)).softmax(-1) @ v[:, part])
        latents = latents + torch.cat(heads, dim=-1) @ layer.to_out.weight.T
        hidden = (norm(layer.ff_norm, latents) @ layer.ff.up.weight.T).clamp_min(0) ** 2
        latents = latents + hidden @ layer.ff.out.weight.T
    return norm(r.final_norm, latents)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("T", [1, 3])
def test_the_resampler_is_the_papers_equations(layers, T):
    """Fig. 5: latents += attention(q = latents, kv = [features, latents]); latents += ffw(latents), squared ReLU."""
    resampler = tiny_resampler(layers=layers)
    features = random(2, T, 5, 16)
    assert close(resampler(features), torch.stack([written_out(resampler, video) for video in features]))


def test_keys_and_values_include_the_latents():
    """Fig. 5: latents hear each other. In one layer, latent 2 changes what latent 0 becomes; only attention can."""
    resampler = tiny_resampler(layers=1)
    tokens = resampler(random(1, 1, 5, 16))
    (grad,) = torch.autograd.grad(tokens[0, 0].square().sum(), resampler.latents)
    assert grad[2].abs().max() > 1e-4 and grad[1].abs().max() > 1e-4


def test_without_any_feature_the_latents_have_themselves_to_look_at():
    """A medium of no frames: attention over the latents alone."""
    resampler = tiny_resampler()
    nothing = resampler(random(1, 2, 5, 16), frames=torch.tensor([0]))
    no_features = torch.zeros(1, 0, 16)  # one frame of no patches at all
    assert close(nothing[0], written_out(resampler, no_features))


def test_any_number_of_frames_and_patches_becomes_r_tokens_and_all_of_them_count():
    """T × S → R (§2.1): from 1 frame to more than twice those of training, each feature has an influence."""
    resampler = tiny_resampler()
    for T, S in ((1, 1), (1, 7), (2, 5), (4, 5), (5, 5), (30, 2)):
        features = random(1, T, S, 16).requires_grad_()
        tokens = resampler(features)
        assert tokens.shape == (1, 3, 16)
        (grad,) = torch.autograd.grad((tokens * random(1, 3, 16, seed=3)).sum(), features)
        assert grad.abs().amax(-1).min() > 0


def test_an_image_is_a_video_of_one_frame():
    """[N=1, T=1]: the first time embedding is added to it, whether it stands alone or beside a longer video."""
    resampler = tiny_resampler()
    image, video = random(1, 1, 5, 16, seed=1), random(1, 3, 5, 16, seed=2)
    together = resampler(torch.cat([F.pad(image, (0, 0, 0, 0, 0, 2)), video]), frames=torch.tensor([1, 3]))
    assert close(together[:1], resampler(image)) and close(together[1:], resampler(video))


def test_a_video_played_backwards_gives_other_tokens():
    """Time embeddings are the only thing that orders frames…"""
    resampler = tiny_resampler()
    video = random(1, 4, 5, 16)
    assert not close(resampler(video), resampler(video.flip(1)), 1e-2)


def test_without_time_embeddings_the_order_of_frames_and_patches_is_lost():
    """… and no spatial position is added: the eye's features carry it (§2.1)."""
    resampler = tiny_resampler()
    video, order = random(1, 4, 5, 16), [3, 0, 4, 2, 1]
    assert close(resampler(video), resampler(video[:, :, order])), "patches within a frame have no order, ever"
    with torch.no_grad():
        resampler.time_embeddings.zero_()
    assert close(resampler(video), resampler(video.flip(1)))


def test_time_embeddings_of_a_longer_video_are_interpolated():
    """4 learned for 8 frames, the docstring's table: frame f lies at place 3f/7. (Paper: 8, later 30.)"""
    resampler = tiny_resampler()
    e = resampler.time_embeddings
    places = [0, 0.43, 0.86, 1.29, 1.71, 2.14, 2.57, 3]
    rows = resampler.time_embedding(8)
    for f, place in enumerate(places):
        left = min(int(place), 2)
        assert close(rows[f], e[left] + (3 * f / 7 - left) * (e[left + 1] - e[left]))
        assert abs(3 * f / 7 - place) < 0.005
    assert close(rows[1], 0.57 * e[0] + 0.43 * e[1], 0.01)
    assert torch.equal(rows[[0, -1]], e[[0, -1]])


def test_a_video_no_longer_than_those_of_training_takes_the_first_embeddings():
    """Up to `n_time_embeddings` frames nothing is interpolated. (flamingo-mini crashes at 5 frames.)"""
    resampler = tiny_resampler()
    for T in (1, 2, 4):
        assert torch.equal(resampler.time_embedding(T), resampler.time_embeddings[:T])


def test_time_embeddings_learn_from_short_and_long_videos():
    """A gradient reaches all those that were used, with and without interpolation."""
    for T, used in ((2, 2), (4, 4), (9, 4)):
        resampler = tiny_resampler()
        tokens = resampler(random(1, T, 5, 16))
        (grad,) = torch.autograd.grad((tokens * random(1, 3, 16, seed=3)).sum(), resampler.time_embeddings)
        assert grad[:used].abs().amax(-1).min() > 0 and not grad[used:].any()


def test_padded_frames_change_nothing():
    """Videos of 1, 3, 6 and 7 frames in one batch, loud nonsense behind each end: each as if alone."""
    resampler = tiny_resampler()
    lengths = [1, 3, 6, 7]
    videos = [random(1, T, 5, 16, seed=T) for T in lengths]
    features = 50 * random(4, 7, 5, 16, seed=99)
    for m, video in enumerate(videos):
        features[m, : lengths[m]] = video[0]
    features.requires_grad_()
    tokens = resampler(features, frames=torch.tensor(lengths))
    for m, video in enumerate(videos):
        assert close(tokens[m : m + 1], resampler(video))
    (grad,) = torch.autograd.grad(tokens.square().sum(), features)
    for m, T in enumerate(lengths):
        assert not grad[m, T:].any()


def test_media_do_not_see_each_other():
    """Each image or video of the batch becomes its own visual tokens."""
    resampler = tiny_resampler()
    features = random(3, 2, 5, 16)
    together = resampler(features)
    for m in range(3):
        assert close(together[m : m + 1], resampler(features[m : m + 1]))


def test_there_is_one_time_embedding_a_frame_and_no_bias_in_a_linear():
    """The parameters that exist, by name: what published weights fill."""
    names = dict(tiny_resampler(layers=1).named_parameters())
    assert names["time_embeddings"].shape == (4, 16) and names["latents"].shape == (3, 16)
    assert {n for n in names if n.endswith("bias")} == {n for n in names if "norm" in n and n.endswith("bias")}


def test_features_of_another_width_are_refused():
    """The resampler's width is the eye's."""
    with pytest.raises(ValueError, match=r"features: expected shape \(M, T, S, D=16\), got \(1, 1, 5, 8\)"):
        tiny_resampler()(random(1, 1, 5, 8))
