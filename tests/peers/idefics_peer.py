"""IDEFICS of a current transformers for the bench; the protocol is in `serve.py`. ENV needs torch and transformers."""

import sys
from pathlib import Path

import torch
from serve import serve
from torch import nn
from transformers import IdeficsConfig, IdeficsForVisionText2Text


def changes(d: int, heads: int, **sizes) -> dict:
    """Cross-attention has as many heads as the LM."""
    return {
        "vision": {"image_size": 28, "patch_size": 14, "n_layers": 1, "n_heads": 4, "d_ff": 64},
        "lm": {"position": "rotary", "position_offset": 0, "attention_bias": False, "output_bias": False, "mlp_bias": False,
               "norm": "rmsnorm", "norm_eps": 1e-6, "activation": "silu", "gated_mlp": True, "tied_head": False},
        "resampler": {"activation": "relu"},
        "flamingo": {"xattn_activation": "silu", "xattn_gated_mlp": True, "xattn_norm": "rmsnorm", "xattn_norm_eps": 1e-6,
                     "xattn_n_heads": heads, "xattn_d_head": d // heads, "n_added_tokens": 2, "added_head": "own"},
    }  # fmt: skip


def build(vocabulary: int, d: int, layers: int, heads: int, length: int, d_vision: int, latents: int) -> nn.Module:
    """A random model with open gates. Token V is <fake_token_around_image>, V + 1 is <image>."""
    torch.manual_seed(0)
    vision = {"embed_dim": d_vision, "image_size": 28, "patch_size": 14, "intermediate_size": 64, "num_hidden_layers": 1,
              "num_attention_heads": 4}  # fmt: skip
    perceiver = {"use_resampler": True, "resampler_n_latents": latents, "resampler_depth": 6, "resampler_n_heads": 8,
                 "resampler_head_dim": 64}  # fmt: skip
    config = IdeficsConfig(
        vocab_size=vocabulary, additional_vocab_size=2, hidden_size=d, intermediate_size=4 * d, num_hidden_layers=layers,
        num_attention_heads=heads, cross_layer_interval=1, max_position_embeddings=length, use_resampler=True, dropout=0.0,
        alpha_initializer="ones", pad_token_id=0, bos_token_id=1, eos_token_id=2, vision_config=vision,
        perceiver_config=perceiver,
    )  # fmt: skip
    return IdeficsForVisionText2Text(config).eval()


def trained(model: IdeficsForVisionText2Text) -> list[nn.Module]:
    inner = model.model
    return [inner.perceiver_resampler, inner.gated_cross_attn_layers, inner.embed_tokens.additional_embedding]


def media_mask(model: IdeficsForVisionText2Text, ids: torch.Tensor, n_media: int) -> torch.Tensor:
    """(B, L, N): the last image before each token, as the processor of IDEFICS builds it."""
    image_id = model.config.vocab_size + 1
    return nn.functional.one_hot((ids == image_id).cumsum(1), n_media + 1)[..., 1:]


def logits(model: IdeficsForVisionText2Text, ids: torch.Tensor, media: torch.Tensor) -> torch.Tensor:
    mask = media_mask(model, ids, media.shape[1])
    features = media[:, :, 0]  # (B, N, S, D)
    return model(ids, attention_mask=torch.ones_like(ids), image_encoder_embeddings=features, image_attention_mask=mask).logits


def generate(model: IdeficsForVisionText2Text, ids: torch.Tensor, media: torch.Tensor, n: int) -> torch.Tensor:
    how = {"max_new_tokens": n, "min_new_tokens": n, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    mask, features = media_mask(model, ids, media.shape[1]), media[:, :, 0]  # (B, N, S, D)
    visual = model.model.perceiver_resampler(features.flatten(0, 1)).unflatten(0, features.shape[:2])  # (B, N, R, D)
    return model.generate(ids, image_hidden_states=visual, image_attention_mask=mask, **how)


def loss(model: IdeficsForVisionText2Text, ids: torch.Tensor, labels: torch.Tensor, media: torch.Tensor) -> torch.Tensor:
    """Computed here: the model's own loss fails if there are additional tokens."""
    predicted = logits(model, ids, media)[:, :-1].flatten(0, 1).float()
    return nn.functional.cross_entropy(predicted, labels[:, 1:].flatten())


if __name__ == "__main__":
    serve(sys.modules[__name__], Path(sys.argv[1]))
