"""Specification of `resampler.py`: any number of frames and patches in, R visual tokens out (section 2.1, figure 5)."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import close, enliven, random

from minflamingo.config import ResamplerConfig
from minflamingo.resampler import PerceiverResampler

S, D, R, K = 5, 16, 3, 4  # patches, width, latents, time embeddings


def tiny_resampler(**changes) -> PerceiverResampler:
    sizes = dict(d=D, n_latents=R, n_layers=2, n_heads=2, d_head=6, n_time_embeddings=K)
    return enliven(PerceiverResampler(ResamplerConfig(**{**sizes, **changes})))


def written_out(r: PerceiverResampler, features: torch.Tensor) -> torch.Tensor:
    """Figure 5 for one video (T, S, D) of at most K frames, head by head, with a plain softmax."""
    c, latents = r.config, r.latents
    time = r.time_embeddings if c.n_time_embeddings else torch.zeros(len(features), D)
    x = torch.cat([frame + time[t] for t, frame in enumerate(features)])  # (T*S, D)

    def norm(layer, y):
        return F.layer_norm(y, y.shape[-1:], layer.weight, layer.bias)

    for layer in r.layers:
        queries = norm(layer.norm_latents, latents)
        context = torch.cat([norm(layer.norm_features, x), queries])
        q, (k, v) = queries @ layer.to_q.weight.T, (context @ layer.to_kv.weight.T).chunk(2, dim=-1)
        heads = []
        for h in range(c.n_heads):
            qh, kh, vh = (t[:, h * c.d_head : (h + 1) * c.d_head] for t in (q, k, v))
            if c.qk_norm:
                qh, kh = norm(layer.q_norm, qh), norm(layer.k_norm, kh)
            heads.append((qh @ kh.T / math.sqrt(c.d_head)).softmax(-1) @ vh)
        latents = latents + torch.cat(heads, dim=-1) @ layer.to_out.weight.T
        hidden = (norm(layer.ff_norm, latents) @ layer.ff.up.weight.T).clamp_min(0) ** 2
        latents = latents + hidden @ layer.ff.out.weight.T
    return norm(r.final_norm, latents)


@pytest.mark.resampler_layer(points=3)
@pytest.mark.resampler(points=3)
@pytest.mark.parametrize("changes", [{}, {"n_layers": 1}, {"qk_norm": True}, {"n_time_embeddings": 0}], ids=str)
@pytest.mark.parametrize("T", [1, 3])
def test_the_resampler_is_the_papers_equations(T, changes):
    """Figure 5: latents += attention(q = latents, kv = [features, latents]); latents += feed-forward, squared ReLU."""
    resampler, features = tiny_resampler(**changes), random(2, T, S, D)
    assert close(resampler(features), torch.stack([written_out(resampler, video) for video in features]))


@pytest.mark.resampler_layer(points=2)
def test_keys_and_values_include_the_latents():
    """Figure 5: latents 1 and 2 change latent 0 (gradient probe). Only attention can do this, without a causal mask."""
    layer, latents = tiny_resampler().layers[0], random(1, R, D, seed=1).requires_grad_()
    (grad,) = torch.autograd.grad(layer(latents, random(1, S, D))[0, 0].square().sum(), latents)
    assert grad.abs().amax(-1).min() > 1e-4, "latent 0 does not attend to all latents"


@pytest.mark.resampler(points=2)
@pytest.mark.parametrize("T, patches", [(1, 1), (1, 7), (2, 5), (4, 5), (5, 5), (30, 2)])
def test_any_number_of_frames_and_patches_becomes_r_visual_tokens(T, patches):
    """Section 2.1: and each of the T x S features has an influence."""
    features = random(1, T, patches, D).requires_grad_()
    tokens = tiny_resampler()(features)
    assert tokens.shape == (1, R, D)
    (grad,) = torch.autograd.grad((tokens * random(1, R, D, seed=3)).sum(), features)
    assert grad.abs().amax(-1).min() > 0, "a feature has no influence"


@pytest.mark.time_embedding(points=1)
@pytest.mark.resampler(points=2)
def test_time_embeddings_give_frames_an_order_and_patches_have_none():
    """Section 2.1: no spatial position is added. A reversed video has other tokens, unless the time embeddings are zero."""
    resampler, video = tiny_resampler(), random(1, 4, S, D)
    assert close(resampler(video), resampler(video[:, :, [3, 0, 4, 2, 1]])), "the patches of each frame were permuted"
    assert not close(resampler(video), resampler(video.flip(1)), 1e-2), "the video was reversed"
    with torch.no_grad():
        resampler.time_embeddings.zero_()
    assert close(resampler(video), resampler(video.flip(1))), "the video was reversed, and all time embeddings are zero"


@pytest.mark.time_embedding(points=3)
@pytest.mark.parametrize("T", [1, 2, 4, 5, 7, 8, 30])
def test_time_embeddings_of_a_longer_video_are_interpolated(T):
    """Section 2.1: up to K frames the first embeddings; beyond, linear interpolation as in `F.interpolate`."""
    resampler = tiny_resampler()
    learned = resampler.time_embeddings
    batch = (T, 2, K + 1) if T > K else (T, 2)  # videos of other lengths do not change a video
    found = resampler.time_embedding(torch.tensor(batch), max(batch))
    for row, n in zip(found, batch):
        interpolated = F.interpolate(learned.T[None], size=n, mode="linear", align_corners=True)[0].T
        assert close(row[:n], interpolated if n > K else learned[:n]), f"{n} frames in a batch with {T}"


@pytest.mark.time_embedding(points=2)
def test_time_embeddings_learn_from_short_and_long_videos():
    """Section 2.1: they are learned. A gradient reaches exactly the embeddings that were used."""
    for T, used in ((2, 2), (4, 4), (9, 4)):
        resampler = tiny_resampler()
        embedding = resampler.time_embedding(torch.tensor([T]), T)
        (grad,) = torch.autograd.grad((embedding * random(1, T, D, seed=3)).sum(), resampler.time_embeddings)
        assert (grad.abs().amax(-1) > 0).tolist() == [k < used for k in range(K)], f"{T} frames"


@pytest.mark.resampler_layer(points=2)
@pytest.mark.resampler(points=3)
def test_images_and_videos_share_a_batch_and_padded_frames_change_nothing():
    """Section 2.4: an image is a video of one frame. Each is as if alone; with 0 frames the latents attend to themselves."""
    resampler, lengths, features = tiny_resampler(), [1, 3, 6, 7, 0], random(5, 7, S, D)
    padding = torch.arange(7) >= torch.tensor(lengths)[:, None]  # (M, T)
    padded = (features + 50 * padding[..., None, None]).requires_grad_()
    tokens = resampler(padded, frames=torch.tensor(lengths))
    (grad,) = torch.autograd.grad(tokens.square().sum(), padded)
    assert not grad[padding].any(), "a padded frame has a gradient"
    for m, T in enumerate(lengths[:-1]):
        assert close(tokens[m : m + 1], resampler(features[m : m + 1, :T])), f"{T} frames, padded to 7"
    assert close(tokens[-1], written_out(resampler, torch.zeros(1, 0, D))), "0 frames"


def test_features_of_another_width_are_an_error():
    """Section 2.1: it has the width of the vision encoder. Published weights have no bias except in the norms."""
    assert all("norm" in name for name, _ in tiny_resampler().named_parameters() if name.endswith("bias"))
    with pytest.raises(ValueError, match=r"features: expected shape \(M, T, S, D=16\), got \(1, 1, 5, 8\)"):
        tiny_resampler()(random(1, 1, 5, 8))
