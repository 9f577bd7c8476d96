"""OpenFlamingo (Awadalla et al. 2023): CLIP ViT-L/14, an open LM, gated layers before the LM blocks every - 1, 2 every - 1, ...

A published `checkpoint.pt` holds the resampler, the gated layers and the token embeddings. The vision encoder and the LM have
their own files. The same weights have had several names: with or without `module.`, and with the gated layers under
`gated_cross_attn_layers.N` or inside the LM's blocks. `canonical` gives each tensor one name.

The embeddings of `<|endofchunk|>`, `<image>` and, unless the tokenizer had one, `<PAD>` are the last rows of the embedding
table. The rows before them are those of the LM, unchanged. The activation is exact GELU; the features are CLIP's patches before
its last norm, without the class token.
"""

import re
from dataclasses import replace

from ..config import FlamingoConfig, LMConfig, ResamplerConfig, VisionConfig
from . import clip
from .files import Tensors, renamed
from .language_models import FAMILIES, canonical_name, recognise
from .tables import Table, prefixed

XATTN = {
    "alpha_xattn": "attn_gate", "alpha_dense": "ff_gate", "xattn.norm": "attn.norm", "xattn.to_q": "attn.to_q",
    "xattn.to_kv": "attn.to_kv", "xattn.to_out": "attn.to_out", "ff_norm": "ff.0", "ff.up": "ff.1", "ff.out": "ff.3",
}  # fmt: skip
RESAMPLER_LAYER = {
    "norm_features": "0.norm_media", "norm_latents": "0.norm_latents", "to_q": "0.to_q", "to_kv": "0.to_kv",
    "to_out": "0.to_out", "ff_norm": "1.0", "ff.up": "1.1", "ff.out": "1.3",
}  # fmt: skip


def config(lm: LMConfig, every: int, vision: VisionConfig = clip.CLIP_L14, *, n_added_tokens: int = 3) -> FlamingoConfig:
    """An OpenFlamingo around an LM, whose `vocab_size` is that of its tokenizer, without the added tokens."""
    return FlamingoConfig(
        vision=vision, lm=lm, xattn_every=every, xattn_first=every - 1, xattn_activation="gelu",
        resampler=ResamplerConfig(d=vision.d, n_time_embeddings=0, activation="gelu"),
        n_added_tokens=n_added_tokens, image_token=1, added_head="tied" if lm.tied_head else "own",
    )  # fmt: skip


def canonical(tensors: Tensors) -> Tensors:
    """One name for each tensor: vision_encoder.*, perceiver.*, lang_encoder.gated_cross_attn_layers.N.*, lang_encoder.*."""

    def rename(name: str) -> str | None:
        name = re.sub(r"^vision_encoder\.(visual|vision_model)\.", "vision_encoder.", name.removeprefix("module."))
        if not name.startswith("lang_encoder."):
            return name
        name = canonical_name(name.removeprefix("lang_encoder."))
        if name.startswith("old_decoder_blocks."):
            return None  # the blocks of the LM, which also have their usual names
        name = re.sub(r"^\w+\.(\d+)\.gated_cross_attn_layer\.", r"gated_cross_attn_layers.\1.", name)
        return "lang_encoder." + re.sub(r"^(\w+\.\d+)\.decoder_layer\.", r"\1.", name)

    return renamed(tensors, rename)


def layout(c: FlamingoConfig, tensors: Tensors) -> tuple[FlamingoConfig, Tensors, Table]:
    """The config, with the output layer that is stored; all tensors of an OpenFlamingo under one name each; their table."""
    family = recognise(name for name in tensors if "lang_encoder." in name)
    tensors, V = canonical(tensors), c.lm.vocab_size
    # Can the added tokens be generated? If the output layer is not tied, only if it has rows for them in this checkpoint.
    head = tensors.get("lang_encoder.lm_head.weight")
    if c.added_head == "own" and (head is None or head.shape[0] != V + c.n_added_tokens):
        c = replace(c, added_head=None)
    lm = prefixed(FAMILIES[family].table(c.lm), "lm.", "lang_encoder.")
    embed, head = lm["lm.embed"], lm["lm.head"]
    table = {
        **prefixed(clip.table(tensors, "vision_encoder."), "vision.", "vision_encoder."),
        **lm,
        "resampler.latents": "perceiver.latents", "resampler.final_norm": "perceiver.norm",
        **prefixed(RESAMPLER_LAYER, "resampler.layers.*.", "perceiver.layers.*."),
        **prefixed(XATTN, "xattn_layers.*.", "lang_encoder.gated_cross_attn_layers.*."),
        "lm.embed": (embed, lambda rows: rows[:V]), "added_embed": (embed, lambda rows: rows[V:]),
        "lm.head": (head, lambda rows: rows[:V]), "added_head": (head, lambda rows: rows[V:]),
    }  # fmt: skip
    return c, tensors, table
