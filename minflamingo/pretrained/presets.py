"""The sizes of the paper's models (table 1) and of OpenFlamingo, as configs. IDEFICS has a config.json (`idefics.config`)."""

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


_MPT = dict(max_length=None, norm_bias=False, position="alibi")
_BIASES = dict(attention_bias=True, output_bias=True, mlp_bias=True)
_REDPAJAMA = LMConfig(50_277, 2560, 32, 32, max_length=None, tied_head=False, **_BIASES)
PRESETS = {
    "flamingo-3b": _paper(24, 2048, 16, every=1, xattn_n_heads=16, xattn_d_head=128),
    "flamingo-9b": _paper(40, 4096, 32, every=4, xattn_n_heads=16, xattn_d_head=128),
    "flamingo-80b": _paper(80, 8192, 64, every=7, xattn_n_heads=64, xattn_d_head=256),
    "openflamingo-3b": openflamingo.config(LMConfig(50_277, 2048, 24, 16, qk_norm="full", **_MPT), every=1),
    # The output layer of RedPajama is not tied, and the published checkpoints have no rows for the added tokens in it.
    "openflamingo-4b": replace(openflamingo.config(_REDPAJAMA, every=2), added_head=None),
    "openflamingo-9b": openflamingo.config(LMConfig(50_277, 4096, 32, 32, **_MPT), every=4),
}
