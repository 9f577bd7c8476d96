"""What a token looks at: attention followed from a word through the latents to the patches of its image."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import EOC, batch_of, close, picture, tiny_flamingo

from minflamingo.evaluation.looking import patch_attention
from minflamingo.flamingo import Batch

ROWS = (["ab", picture(1), "cd", EOC, picture(2), "e", EOC], ["a", picture(3), "bcdef", EOC])
N_PATCHES = 5  # of 8×8 pixels: 4 patches and the class token


def softmax(scores: list[float]) -> list[float]:
    high = [math.exp(s - max(scores)) for s in scores]
    return [h / sum(high) for h in high]


def head(x: torch.Tensor, h: int, width: int) -> list[list[float]]:
    return x[:, h * width : (h + 1) * width].tolist()


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b))


@torch.no_grad()
def loop(flamingo, batch: Batch, layer: str = "0") -> torch.Tensor:
    """(B, L, N, S) by explicit loops over images, heads, latents and patches, for one bridge and what it really reads."""
    c = flamingo.config
    B, N = batch.media.shape[:2]
    L, R, heads, d = batch.ids.shape[1], c.resampler.n_latents, c.resampler.heads, c.resampler.d_head
    out = torch.zeros(B, L, N, N_PATCHES)
    bridge, texts = flamingo.xattn_layers[layer].xattn, []
    handle = bridge.register_forward_pre_hook(lambda _, given: texts.append(given[0]))
    flamingo(batch)
    handle.remove()
    for b in range(B):
        onto_patches, visual = [], []
        for n in range(N):
            features = flamingo.vision(batch.media[b, n]) + flamingo.resampler.time_embeddings[0]  # (1, S, D)
            latents, weights = flamingo.resampler.latents[None], torch.zeros(R, N_PATCHES)
            for block in flamingo.resampler.layers:
                normed = block.norm_latents(latents)[0]
                q = block.to_q(normed)
                k, _ = block.to_kv(torch.cat([block.norm_media(features)[0], normed]))
                for h in range(heads):
                    keys = head(k, h, d)
                    for r, query in enumerate(head(q, h, d)):
                        looks = softmax([dot(query, key) / math.sqrt(d) for key in keys])
                        assert len(looks) == N_PATCHES + R  # latents look at each other too; that is left out
                        weights[r] += torch.tensor(looks[:N_PATCHES]) / heads / len(flamingo.resampler.layers)
                latents = block(latents, features)
            onto_patches.append(weights)
            visual.append(flamingo.resampler.final_norm(latents)[0])
        q = bridge.to_q(bridge.norm(texts[0]))[b]
        phi = 0
        for l in range(L):
            phi += int(batch.ids[b, l] == flamingo.image_id)
            if phi == 0:
                continue
            k, _ = bridge.to_kv(visual[phi - 1])
            for h in range(c.xattn_heads):
                query = head(q, h, c.xattn_d_head)[l]
                looks = softmax([dot(query, key) / math.sqrt(c.xattn_d_head) for key in head(k, h, c.xattn_d_head)])
                for r in range(R):
                    out[b, l, phi - 1] += looks[r] * onto_patches[phi - 1][r] / c.xattn_heads
    return out


def test_the_map_is_that_of_an_explicit_loop():
    """map[l, s] = Σ_r xattn[l, r] · resampler[r, s], averaged over heads and over the resampler's layers; one bridge."""
    flamingo, batch = tiny_flamingo(xattn_every=3), batch_of(*ROWS)
    maps = patch_attention(flamingo, batch)
    assert maps.shape == (2, batch.ids.shape[1], 2, N_PATCHES)
    assert close(maps, loop(flamingo, batch))
    assert maps[0, 4].std() > 1e-3  # not a flat map


def test_a_token_looks_at_its_own_image_and_at_no_other():
    """§2.3: zero before the first image, zero at all images but phi(l), something at phi(l)."""
    maps = patch_attention(tiny_flamingo(), batch_of(*ROWS))
    phi = [0, 0, 0, 1, 1, 1, 1, 2, 2, 2]  # <BOS> a b <image> c d <EOC> <image> e <EOC>
    for l, seen in enumerate(phi):
        for n in (1, 2):
            assert (maps[0, l, n - 1] > 0).all() if n == seen else (maps[0, l, n - 1] == 0).all(), (l, n)
    assert (maps[1, 2:, 0] > 0).all() and (maps[1, :2] == 0).all() and (maps[1, :, 1] == 0).all()


def test_what_reaches_the_patches_is_at_most_everything():
    """A row sums to less than 1: the rest is latents looking at latents."""
    total = patch_attention(tiny_flamingo(), batch_of(*ROWS)).sum((2, 3))
    assert (total >= 0).all() and (total < 1).all() and (total[0, 3:] > 0.1).all()


def test_a_layer_counts_as_far_as_its_gate_is_open():
    """Weight |tanh alpha_xattn|: a shut layer looks in vain, a negative gate is as open as a positive one."""
    flamingo, batch = tiny_flamingo(), batch_of(*ROWS)  # bridges before LM layers 0 and 2
    with torch.no_grad():
        flamingo.xattn_layers["2"].alpha_xattn.zero_()
        assert close(patch_attention(flamingo, batch), loop(flamingo, batch, "0"))
        both = {}
        for name, alphas in {"0": (1.0, 0.0), "both": (1.0, 1e-4), "negative": (1.0, -1e-4)}.items():
            for layer, alpha in zip(("0", "2"), alphas):
                flamingo.xattn_layers[layer].alpha_xattn.fill_(alpha)
            both[name] = patch_attention(flamingo, batch)
        assert close(both["0"], both["both"], 1e-3) and close(both["both"], both["negative"], 1e-4)
        for layer in ("0", "2"):
            flamingo.xattn_layers[layer].alpha_xattn.zero_()
        assert (patch_attention(flamingo, batch) == 0).all()


def test_two_layers_are_averaged_with_the_weights_of_their_gates():
    """(t0 · map0 + t2 · map2) / (t0 + t2), t = |tanh alpha|; the second reads what the first and an LM layer have made."""
    flamingo, batch = tiny_flamingo(), batch_of(*ROWS)
    with torch.no_grad():
        flamingo.xattn_layers["2"].alpha_xattn.neg_()
    one, other = (loop(flamingo, batch, layer) for layer in ("0", "2"))
    t0, t2 = (math.tanh(abs(flamingo.xattn_layers[layer].alpha_xattn.item())) for layer in ("0", "2"))
    assert (one - other).abs().max() > 1e-3
    assert close(patch_attention(flamingo, batch), (t0 * one + t2 * other) / (t0 + t2))


def test_features_made_before_give_the_same_map_as_pixels():
    """The eye is frozen: what it saw once may be kept."""
    flamingo, batch = tiny_flamingo(), batch_of(*ROWS)
    with torch.no_grad():
        features = flamingo.vision(batch.media.flatten(0, 2)).unflatten(0, batch.media.shape[:3])
    kept = Batch(batch.ids, batch.labels, batch.attention_mask, features, batch.frames, batch.attend_next)
    assert close(patch_attention(flamingo, kept), patch_attention(flamingo, batch))


def test_looking_changes_nothing():
    """No gradient, no state: the same map twice, and a batch is no matter to its rows."""
    flamingo = tiny_flamingo()
    maps = patch_attention(flamingo, batch_of(*ROWS))
    assert torch.equal(maps, patch_attention(flamingo, batch_of(*ROWS))) and not maps.requires_grad
    alone = patch_attention(flamingo, batch_of(ROWS[1]))
    assert close(maps[1, : alone.shape[1], :1], alone[0])
    assert all(p.grad is None for p in flamingo.parameters())


def test_without_an_image_or_with_a_video_there_is_no_map():
    """Said plainly."""
    for row in (["ab"], [picture(1, frames=2), "ab"]):
        with pytest.raises(ValueError, match="still images"):
            patch_attention(tiny_flamingo(), batch_of(row))
