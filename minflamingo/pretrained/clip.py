"""CLIP's vision encoders (Radford et al. 2021), in the two layouts in which they are published.

    open_clip, OpenAI     visual.transformer.resblocks.0.attn.in_proj_weight       q, k and v in one matrix
    Hugging Face          vision_model.encoder.layers.0.self_attn.q_proj.weight    one matrix each; and `pre_layrnorm` (sic)

The weights published as "openai" were trained with QuickGELU. With GELU the features are slightly wrong, without any error.
OpenFlamingo uses the patches before the last norm, IDEFICS the class token too. The last norm and the projection are not used.
"""

from collections.abc import Mapping

from ..config import VisionConfig
from .files import Tensors, renamed
from .tables import Table, Theirs, foreign, thirds

CLIP_L14 = VisionConfig(224, 14, 1024, 24, 16, activation="quick_gelu", keep_class_token=False)
OPEN_CLIP = {
    "class_token": "class_embedding", "positions": "positional_embedding", "patches": "conv1",
    "pre_norm": "ln_pre", "post_norm": "ln_post",
    **thirds("blocks.*.to_{}.weight", "transformer.resblocks.*.attn.in_proj_weight"),
    **thirds("blocks.*.to_{}.bias", "transformer.resblocks.*.attn.in_proj_bias"),
    "blocks.*.attn_norm": "transformer.resblocks.*.ln_1", "blocks.*.to_out": "transformer.resblocks.*.attn.out_proj",
    "blocks.*.mlp_norm": "transformer.resblocks.*.ln_2", "blocks.*.mlp.up": "transformer.resblocks.*.mlp.c_fc",
    "blocks.*.mlp.out": "transformer.resblocks.*.mlp.c_proj",
}  # fmt: skip
HUGGING_FACE = {
    "class_token": "embeddings.class_embedding", "positions": "embeddings.position_embedding.weight",
    "patches": "embeddings.patch_embedding", "pre_norm": "pre_layrnorm", "post_norm": "post_layernorm",
    "blocks.*.attn_norm": "encoder.layers.*.layer_norm1", "blocks.*.mlp_norm": "encoder.layers.*.layer_norm2",
    **{f"blocks.*.to_{x}": f"encoder.layers.*.self_attn.{x}_proj" for x in "qkv"},
    "blocks.*.to_out": "encoder.layers.*.self_attn.out_proj",
    "blocks.*.mlp.up": "encoder.layers.*.mlp.fc1", "blocks.*.mlp.out": "encoder.layers.*.mlp.fc2",
}  # fmt: skip


def config(content: Mapping, *, keep_class_token: bool = False) -> VisionConfig:
    """From the config.json of a CLIP on Hugging Face, or of its vision encoder alone."""
    with foreign(content) as theirs:
        if content.get("model_type") != "clip" and "vision_config" not in content:
            return vision_config(theirs, keep_class_token=keep_class_token)
        theirs.known.append("text_config text_config_dict logit_scale_init_value projection_dim tie_word_embeddings")
        vision, newer = theirs.part("vision_config"), theirs.part("vision_config_dict", {})
        vision.content, newer.content = {**vision.content, **newer.content}, {}  # of two values transformers uses the second
        return vision_config(vision, keep_class_token=keep_class_token)


def vision_config(theirs: Theirs, *, keep_class_token: bool) -> VisionConfig:
    theirs.only(num_channels=3, image_num_channels=3)
    theirs.known.append("projection_dim tie_word_embeddings vision_model_name")
    return VisionConfig(
        image_size=theirs.get("image_size"), patch_size=theirs.get("patch_size"), d=theirs.get("hidden_size"),
        n_layers=theirs.get("num_hidden_layers"), n_heads=theirs.get("num_attention_heads"),
        d_ff=theirs.get("intermediate_size"), activation=theirs.activation("hidden_act", "quick_gelu"),
        norm_eps=theirs.get("layer_norm_eps", 1e-5), keep_class_token=keep_class_token,
    )  # fmt: skip


def vision_tensors(tensors: Tensors) -> Tensors:
    """The vision encoder in a file of a whole CLIP, without the prefix of its names."""
    prefix = next((p for p in ("visual.", "vision_model.") if any(name.startswith(p) for name in tensors)), "")
    return renamed(tensors, lambda name: name.removeprefix(prefix) if name.startswith(prefix) else None)


def table(names: Tensors, prefix: str = "") -> Table:
    """The table for the layout with these names."""
    return OPEN_CLIP if f"{prefix}conv1.weight" in names else HUGGING_FACE
