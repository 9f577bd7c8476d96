"""Attention from a text token through the visual tokens to the patches of its image.

    token l --cross-attention--> visual token r --resampler--> patch s         map[l, s] = sum_r xattn[l, r] * resampler[r, s]

Mean over heads and over the resampler's layers. Gated layers have the weight |tanh alpha_xattn|, because a layer whose gate is
closed contributes nothing. Attention between latents is left out, so a map sums to less than 1.
"""

import torch
from torch import Tensor, nn

from .. import Batch, Flamingo, PerceiverResampler
from ..attention import attention_written_out
from ..gated_xattn import media_index, xattn_mask


@torch.no_grad()
def patch_attention(flamingo: Flamingo, batch: Batch) -> Tensor:
    """(B, L, N, S): how much token l attends to patch s of image n. Zero if n is not phi(l).

    Raises ValueError: the batch has no image, or it has a video; or the resampler is not a PerceiverResampler.
    """
    if batch.media is None or batch.media.shape[2] != 1 or not isinstance(flamingo.resampler, PerceiverResampler):
        raise ValueError("attention maps need a PerceiverResampler and a batch of still images (T = 1), without videos")
    resampler_layers, gated = list(flamingo.resampler.layers), list(flamingo.xattn_layers.values())
    # In all these layers the queries and keys of all heads pass through the modules q_norm and k_norm (often the identity).
    # Hooks on these modules record them during one ordinary forward pass.
    recorded: dict[nn.Module, Tensor] = {}
    norms = [norm for layer in [*resampler_layers, *(g.xattn for g in gated)] for norm in (layer.q_norm, layer.k_norm)]
    hooks = [n.register_forward_hook(lambda module, _, output: recorded.update({module: output})) for n in norms]
    try:
        flamingo(batch, head=lambda hidden: hidden)
    finally:
        for hook in hooks:
            hook.remove()

    def weights(layer: nn.Module, mask: Tensor | None = None) -> Tensor:
        q, k = recorded[layer.q_norm], recorded[layer.k_norm]
        return attention_written_out(q, k, k, mask)[1].mean(1)  # mean over heads

    (B, N), R = batch.media.shape[:2], flamingo.config.resampler.n_latents
    to_patches = torch.stack([weights(layer) for layer in resampler_layers]).mean(0)[..., :-R]  # (B*N, R, S)
    phi = media_index((batch.ids == flamingo.image_id) & batch.attention_mask, batch.attend_next)  # (B, L)
    gates = [layer.alpha_xattn.tanh().abs().mean() for layer in gated]
    to_latents = sum(gate * weights(layer.xattn, xattn_mask(phi, N, R)) for gate, layer in zip(gates, gated))  # (B, L, N*R)
    to_latents = (to_latents / sum(gates).clamp_min(1e-9)).unflatten(-1, (N, R))  # (B, L, N, R)
    return torch.einsum("blnr,bnrs->blns", to_latents, to_patches.unflatten(0, (B, N)))
