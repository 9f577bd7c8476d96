"""The configs of published models: the paper's sizes (table 1), OpenFlamingo and IDEFICS."""

from dataclasses import replace

from ..config import FlamingoConfig, LMConfig, ResamplerConfig, VisionConfig
from . import openflamingo


def _paper(lm_layers: int, d: int, n_heads: int, every: int, xattn_n_heads: int, xattn_d_head: int) -> FlamingoConfig:
    """The paper's sizes, around a Chinchilla-like LM.

    The paper does not give the inner widths of resampler and gated layers. They are chosen to give the numbers of parameters in
    table 1. The vision encoder is an NFNet-F6 there, and a CLIP ViT of the same width here.
    """
    return FlamingoConfig(
        vision=VisionConfig(d=1536, n_layers=32, n_heads=16, keep_class_token=False),
        resampler=ResamplerConfig(d=1536, n_heads=16, d_head=128),
        lm=LMConfig(32_000, d, lm_layers, n_heads, max_length=2048, norm="rmsnorm", tied_head=False),
        xattn_every=every, xattn_n_heads=xattn_n_heads, xattn_d_head=xattn_d_head,
    )  # fmt: skip


def _idefics(d: int, n_layers: int, n_heads: int, d_ff: int, norm_eps: float, n_added_tokens: int) -> FlamingoConfig:
    llama = dict(norm="rmsnorm", norm_eps=norm_eps, activation="silu", gated_mlp=True)
    return FlamingoConfig(
        vision=VisionConfig(d=1280, n_layers=32, n_heads=16),
        resampler=ResamplerConfig(d=1280, n_heads=16, d_head=96, n_time_embeddings=0, activation="relu", qk_norm=True),
        lm=LMConfig(32_000, d, n_layers, n_heads, d_ff=d_ff, max_length=None, tied_head=False, **llama),
        xattn_every=4, xattn_n_heads=n_heads, xattn_d_head=d // n_heads, xattn_d_ff=d_ff, xattn_qk_norm=True,
        n_added_tokens=n_added_tokens, image_token=1, added_head="own", **{f"xattn_{name}": x for name, x in llama.items()},
    )  # fmt: skip


_MPT = dict(max_length=None, norm_bias=False, position="alibi")
_OPENFLAMINGO_3B = openflamingo.config(LMConfig(50_277, 2048, 24, 16, qk_norm="full", **_MPT), every=1)
_BIASES = dict(attention_bias=True, output_bias=True, mlp_bias=True)
_REDPAJAMA = LMConfig(50_277, 2560, 32, 32, max_length=None, tied_head=False, **_BIASES)
# The output layer of RedPajama is not tied, and the published checkpoints have no rows for the added tokens in it.
_OPENFLAMINGO_4B = replace(openflamingo.config(_REDPAJAMA, every=2), added_head=None)
PRESETS = {
    "flamingo-3b": _paper(24, 2048, 16, every=1, xattn_n_heads=16, xattn_d_head=128),
    "flamingo-9b": _paper(40, 4096, 32, every=4, xattn_n_heads=16, xattn_d_head=128),
    "flamingo-80b": _paper(80, 8192, 64, every=7, xattn_n_heads=64, xattn_d_head=256),
    "openflamingo-3b": _OPENFLAMINGO_3B,
    "openflamingo-3b-instruct": _OPENFLAMINGO_3B,
    "openflamingo-4b": _OPENFLAMINGO_4B,
    "openflamingo-4b-instruct": _OPENFLAMINGO_4B,
    "openflamingo-9b": openflamingo.config(LMConfig(50_277, 4096, 32, 32, **_MPT), every=4),
    "idefics-9b": _idefics(4096, 32, 32, 11_008, 1e-6, n_added_tokens=2),
    "idefics-9b-instruct": _idefics(4096, 32, 32, 11_008, 1e-6, n_added_tokens=3),
    "idefics-80b": _idefics(8192, 80, 64, 22_016, 1e-5, n_added_tokens=2),
    "idefics-80b-instruct": _idefics(8192, 80, 64, 22_016, 1e-5, n_added_tokens=3),
}


def published(name: str, vocab_size: int | None = None) -> FlamingoConfig:
    """The config called `name`, with the vocabulary size of a tokenizer if given. Raises ValueError if there is none."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
    config = PRESETS[name]
    return config if vocab_size is None else replace(config, lm=replace(config.lm, vocab_size=vocab_size))
