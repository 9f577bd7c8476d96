"""CLIP's vision towers (Radford et al. 2021), in both layouts in which they are published.

    open_clip / OpenAI     visual.transformer.resblocks.0.attn.in_proj_weight       q, k, v one below the other
    Hugging Face           vision_model.encoder.layers.0.self_attn.q_proj.weight    each alone; and `pre_layrnorm` (sic)

The weights published as "openai" were trained with QuickGELU and need it: with GELU the features are a little wrong, without
any error. Flamingos read the tokens BEFORE the last norm: OpenFlamingo the patches alone, IDEFICS the class token too.
Projection and last norm, which serve the comparison with texts, are knowingly not used then.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ..config import VisionConfig
from .tables import Table, activation, numbered, prefixed, third, with_bias

# What serves the comparison with texts: the projection, the last norm; and, in a file of the whole CLIP, its text tower.
OPEN_CLIP_IGNORED = (r"proj", r"ln_post\..*", r"attn_mask")
OPEN_CLIP_TEXT = (r"transformer\..*", r"token_embedding\.weight", r"positional_embedding", r"ln_final\..*", r"text_projection",
                  r"logit_scale", r"attn_mask", r"input_resolution", r"context_length", r"vocab_size")  # fmt: skip
HUGGING_FACE_IGNORED = (r"post_layernorm\..*", r"embeddings\.position_ids")
HUGGING_FACE_TEXT = (r"text_model\..*", r"text_projection\.weight", r"visual_projection\.weight", r"logit_scale")


def config(theirs: Mapping, keep_class_token: bool = False) -> VisionConfig:
    """From a Hugging Face config.json of a CLIP, or of its vision tower alone."""
    theirs = theirs.get("vision_config") or theirs
    return VisionConfig(
        image_size=theirs["image_size"], patch_size=theirs["patch_size"], d=theirs["hidden_size"],
        layers=theirs["num_hidden_layers"], heads=theirs["num_attention_heads"], d_ff=theirs["intermediate_size"],
        activation=activation(theirs, "hidden_act", "quick_gelu"), norm_eps=theirs.get("layer_norm_eps", 1e-5),
        keep_class_token=keep_class_token,
    )  # fmt: skip


def named_config(name: str, quick_gelu: bool = True, keep_class_token: bool = False) -> VisionConfig:
    """The towers by their names: "ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14" (never with QuickGELU)."""
    sizes = {  # d, layers, heads, patch, pixels
        "ViT-B-32": (768, 12, 12, 32, 224), "ViT-B-16": (768, 12, 12, 16, 224), "ViT-L-14": (1024, 24, 16, 14, 224),
        "ViT-L-14-336": (1024, 24, 16, 14, 336), "ViT-H-14": (1280, 32, 16, 14, 224),
    }  # fmt: skip
    if name not in sizes:
        raise ValueError(f"unknown vision tower {name!r}; there are {', '.join(sizes)}")
    d, layers, heads, patch, pixels = sizes[name]
    act = "quick_gelu" if quick_gelu and name != "ViT-H-14" else "gelu"
    return VisionConfig(pixels, patch, d, layers, heads, activation=act, keep_class_token=keep_class_token)


def table(c: VisionConfig, names: Iterable[str]) -> tuple[Table, tuple[str, ...]]:
    """The table for the layout that the names of a checkpoint show, and what is knowingly not used of it."""
    names = set(names)
    for prefix, layout, ignored, others in (
        ("visual.", open_clip, OPEN_CLIP_IGNORED, OPEN_CLIP_TEXT),
        ("", open_clip, OPEN_CLIP_IGNORED, ()),
        ("vision_model.", hugging_face, HUGGING_FACE_IGNORED, HUGGING_FACE_TEXT),
        ("", hugging_face, HUGGING_FACE_IGNORED, ()),
    ):
        first = "conv1.weight" if layout is open_clip else "embeddings.patch_embedding.weight"
        if prefix + first in names:
            return prefixed(layout(c), theirs=prefix), (*(re.escape(prefix) + pattern for pattern in ignored), *others)
    raise ValueError(f"no CLIP vision tower among these names: {', '.join(sorted(names)[:5])} …")


def open_clip(c: VisionConfig) -> Table:
    kinds = ("weight", "bias")
    fused = {f"to_{name}.{kind}": (f"attn.in_proj_{kind}", third(i)) for i, name in enumerate("qkv") for kind in kinds}
    plain = {"attn_norm": "ln_1", "to_out": "attn.out_proj", "mlp_norm": "ln_2", "mlp.up": "mlp.c_fc", "mlp.out": "mlp.c_proj"}
    return {
        "class_token": "class_embedding",
        "positions": "positional_embedding",
        "patches.weight": "conv1.weight",
        **with_bias({"pre_norm": "ln_pre", **({"post_norm": "ln_post"} if c.post_norm else {})}, True),
        **numbered(c.layers, {**fused, **with_bias(plain, True)}, "blocks.*.", "transformer.resblocks.*."),
    }


def hugging_face(c: VisionConfig) -> Table:
    rows = {
        "attn_norm": "layer_norm1", "to_q": "self_attn.q_proj", "to_k": "self_attn.k_proj", "to_v": "self_attn.v_proj",
        "to_out": "self_attn.out_proj", "mlp_norm": "layer_norm2", "mlp.up": "mlp.fc1", "mlp.out": "mlp.fc2",
    }  # fmt: skip
    return {
        "class_token": "embeddings.class_embedding",
        "positions": "embeddings.position_embedding.weight",
        "patches.weight": "embeddings.patch_embedding.weight",
        **with_bias({"pre_norm": "pre_layrnorm", **({"post_norm": "post_layernorm"} if c.post_norm else {})}, True),
        **numbered(c.layers, with_bias(rows, True), "blocks.*.", "encoder.layers.*."),
    }

