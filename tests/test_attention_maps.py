"""Attention maps: from a text token through the latents to the patches of its image."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import EOC, batch_of, close, image, tiny_flamingo

from minflamingo.evaluation.attention_maps import patch_attention
from minflamingo.flamingo import Batch

ROWS = (["ab", image(1), "cd", EOC, image(2), "e", EOC], ["a", image(3), "bcdef", EOC])
S = 5  # 8 x 8 pixels: 4 patches and the class token


@torch.no_grad()
def loop(flamingo, batch: Batch, layer: str = "0") -> torch.Tensor:
    """(B, L, N, S) by explicit loops over images, heads and tokens, for one gated layer and its real input."""
    c, xattn, texts = flamingo.config, flamingo.xattn_layers[layer].xattn, []
    handle = xattn.register_forward_pre_hook(lambda _, inputs: texts.append(inputs[0]))
    flamingo(batch)
    handle.remove()
    out = torch.zeros(*batch.ids.shape, batch.media.shape[1], S)

    def weights(q: torch.Tensor, kv: torch.Tensor, n_heads: int) -> torch.Tensor:
        """Mean over the heads. The keys are the first half of kv."""
        heads = zip(q.chunk(n_heads, -1), kv.chunk(2, -1)[0].chunk(n_heads, -1))
        return sum((q_h @ k_h.T / math.sqrt(q_h.shape[1])).softmax(-1) for q_h, k_h in heads) / n_heads

    for b in range(len(batch.ids)):
        to_patches, visual = [], []
        for n in range(batch.media.shape[1]):
            features = flamingo.vision(batch.media[b, n]) + flamingo.resampler.time_embeddings[0]  # (1, S, D)
            latents, of_layers = flamingo.resampler.latents[None], []
            for block in flamingo.resampler.layers:
                x = block.norm_latents(latents)[0]
                context = torch.cat([block.norm_features(features)[0], x])
                of_layers.append(weights(block.to_q(x), block.to_kv(context), c.resampler.n_heads)[:, :S])
                latents = block(latents, features)
            to_patches.append(sum(of_layers) / len(of_layers))
            visual.append(flamingo.resampler.final_norm(latents)[0])
        q, phi = xattn.to_q(xattn.norm(texts[0]))[b], 0
        for l in range(len(q)):
            phi += int(batch.ids[b, l] == flamingo.image_id)
            if phi:
                to_latents = weights(q[l : l + 1], xattn.to_kv(visual[phi - 1]), c.xattn_n_heads)
                out[b, l, phi - 1] = (to_latents @ to_patches[phi - 1])[0]
    return out


def test_the_map_is_that_of_an_explicit_loop():
    """A token attends to its own image only (section 2.3). Its weights sum to less than 1: latents also attend to latents."""
    flamingo, batch = tiny_flamingo(xattn_every=3), batch_of(*ROWS)  # one gated layer
    maps = patch_attention(flamingo, batch)
    assert maps.shape == (2, batch.ids.shape[1], 2, S) and close(maps, loop(flamingo, batch))
    assert maps[0, 4].std() > 1e-3  # not a flat map
    for l, phi in enumerate([0, 0, 0, 1, 1, 1, 1, 2, 2, 2]):  # <BOS> a b <image> c d <EOC> <image> e <EOC>
        for n in (1, 2):
            assert (maps[0, l, n - 1] > 0).all() if n == phi else (maps[0, l, n - 1] == 0).all(), (l, n)
    total = maps.sum((2, 3))
    assert (total < 1).all() and (total[0, 3:] > 0.1).all()


def test_gated_layers_are_averaged_with_the_weights_of_their_gates():
    """(t0 * map0 + t2 * map2) / (t0 + t2) with t = |tanh alpha|, also for a negative alpha. Closed gates give zero."""
    flamingo, batch = tiny_flamingo(), batch_of(*ROWS)  # gated layers before LM blocks 0 and 2
    with torch.no_grad():
        flamingo.xattn_layers["2"].alpha_xattn.neg_()
    one, two = (loop(flamingo, batch, layer) for layer in ("0", "2"))
    t0, t2 = (math.tanh(abs(flamingo.xattn_layers[layer].alpha_xattn.item())) for layer in ("0", "2"))
    assert (one - two).abs().max() > 1e-3
    assert close(patch_attention(flamingo, batch), (t0 * one + t2 * two) / (t0 + t2))
    with torch.no_grad():
        flamingo.xattn_layers["2"].alpha_xattn.zero_()
        assert close(patch_attention(flamingo, batch), loop(flamingo, batch, "0"))
        flamingo.xattn_layers["0"].alpha_xattn.zero_()
    assert (patch_attention(flamingo, batch) == 0).all()


def test_features_give_the_same_map_as_pixels_and_no_state_is_left():
    flamingo, batch = tiny_flamingo(), batch_of(*ROWS)
    with torch.no_grad():
        features = flamingo.vision(batch.media.flatten(0, 2)).unflatten(0, batch.media.shape[:3])
    maps = patch_attention(flamingo, batch)
    assert close(patch_attention(flamingo, replace(batch, media=features)), maps)
    alone = patch_attention(flamingo, batch_of(ROWS[1]))
    assert close(maps[1, : alone.shape[1], :1], alone[0]) and not maps.requires_grad
    assert not any(module._forward_hooks for module in flamingo.modules())


def test_a_batch_without_images_or_with_a_video_is_an_error():
    for row in (["ab"], [image(1, frames=2), "ab"]):
        with pytest.raises(ValueError, match="a batch of still images"):
            patch_attention(tiny_flamingo(), batch_of(row))
