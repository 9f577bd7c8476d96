"""What a token looks at: attention weights, followed from a text token through the latents to the patches of its image.

    token l ──cross-attention──> visual token r ──resampler──> patch s          map[l, s] = Σ_r xattn[l, r] · resampler[r, s]

Averaged over heads; over layers with the weight |tanh alpha_xattn|, since a layer with a shut gate looks in vain. Weights
between latents inside the resampler are left out, so a map's sum tells how much of the looking ends at patches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..attention import attention_written_out
from ..flamingo import Batch, Flamingo
from ..gated_xattn import media_index, openness, xattn_mask


@torch.no_grad()
def patch_attention(flamingo: Flamingo, batch: Batch) -> Tensor:
    """For a batch of still images: (B, L, N, S), how much token l looks at patch s of image n. Zero but at n = phi(l).

    Raises:
        ValueError: there is no image, or a video among them; or the resampler is no Perceiver.
    """
    if (kind := flamingo.config.resampler.kind) != "perceiver":
        raise ValueError(f"patch_attention follows the looks of a Perceiver's latents; this resampler is of kind {kind!r}")
    media = batch.media
    if media is None or media.shape[2] != 1:
        raise ValueError("patch_attention follows the looks to still images: this batch has none, or it has videos (T > 1)")
    B, N = media.shape[:2]
    features = flamingo.vision(media.flatten(0, 2)) if media.dim() == 6 else media.flatten(0, 2)  # (B·N, S, D)
    S, R = features.shape[1], flamingo.config.resampler.n_latents

    resampler = flamingo.resampler
    keys = features + resampler.time_embedding(1)
    latents, onto_patches = resampler.latents.expand(B * N, -1, -1), []
    for layer in resampler.layers:
        q, k, v = layer.project(latents, keys)
        onto_patches.append(attention_written_out(q, k, v)[1].mean(1)[..., :S])  # (B·N, R, S)
        latents = layer(latents, keys)
    onto_patches = torch.stack(onto_patches).mean(0).unflatten(0, (B, N))  # (B, N, R, S)

    phi = media_index((batch.ids == flamingo.image_id) & batch.attention_mask, batch.attend_next)
    mask = xattn_mask(phi, N, R, flamingo.config.attend)
    projected = flamingo.project_media(resampler.final_norm(latents).unflatten(0, (B, N)))
    total, weight = 0.0, 0.0

    def before_block(i: int, x: Tensor) -> Tensor:
        nonlocal total, weight
        if projected[i] is None:
            return x
        layer, (k, v) = flamingo.xattn_layers[str(i)], projected[i]
        opened = abs(float(openness(layer.alpha_xattn)))
        total = total + opened * layer.xattn.weights(x, k, mask).mean(1)  # (B, L, N·R)
        weight += opened
        return layer(x, k, v, mask)

    flamingo.lm(flamingo.embed(batch.ids), batch.attention_mask, None, before_block)
    onto_latents = (total / max(weight, 1e-9)).unflatten(-1, (N, R))  # (B, L, N, R)
    return torch.einsum("blnr,bnrs->blns", onto_latents, onto_patches)
