"""IDEFICS (Laurençon et al. 2023), an open Flamingo: CLIP ViT-H/14, Llama, a gated layer before every 4th LM block.

The differences from the paper are fields of our config. Resampler: ReLU, a LayerNorm on the queries and keys of each head, no
time embeddings. Gated layers: RMSNorm (also on queries and keys), SwiGLU. Vision encoder: class token, but not its last norm.
After Llama's 32,000 tokens come `<fake_token_around_image>`, `<image>` and, in the instruct models, `<end_of_utterance>`. Their
rows of embedding and output layer are stored separately, as ours are.

Their text processing has one more rule, which is not implemented: text after a `</s>` does not attend to earlier images.
"""

from collections.abc import Mapping

import torch

from ..config import FlamingoConfig, ResamplerConfig
from . import clip
from .language_models import LLAMA_TABLE, llama_config
from .tables import Table, foreign, joined, prefixed


def config(content: Mapping) -> FlamingoConfig:
    """From the content of its config.json."""
    with foreign(content) as theirs:
        lm, vision, perceiver = llama_config(theirs), theirs.part("vision_config"), theirs.part("perceiver_config")
        if not any([theirs.get("use_resampler", False), perceiver.get("use_resampler", False)]):
            raise ValueError("use_resampler=False; only True is implemented")
        theirs.only(alpha_type=("float", "vector"), cross_layer_activation_function="swiglu")
        # Fields such as "vision_image_size" are those of an older form; they are also in `vision_config`.
        theirs.known.append("alphas?_initializer.* freeze_.* vision_(model|embed|image|intermediate|patch)_.* ffn_dim")
        theirs.known.append("word_embed_proj_dim")
        perceiver.known.append("tie_word_embeddings")
        renamed = {"hidden_size" if key == "embed_dim" else key: value for key, value in vision.content.items()}
        vision.content = {"hidden_act": "gelu", **renamed}
        vision = clip.vision_config(vision, keep_class_token=True)
        resampler = ResamplerConfig(
            vision.d, perceiver.get("resampler_n_latents"), perceiver.get("resampler_depth"),
            perceiver.get("resampler_n_heads"), perceiver.get("resampler_head_dim"), n_time_embeddings=0, activation="relu",
            qk_norm=perceiver.get("qk_layer_norms_perceiver", False),
        )  # fmt: skip
        return FlamingoConfig(
            vision=vision, resampler=resampler, lm=lm, xattn_every=theirs.get("cross_layer_interval"), xattn_n_heads=lm.n_heads,
            xattn_d_head=lm.d_head, xattn_d_ff=lm.d_ff, xattn_activation=lm.activation, xattn_gated_mlp=True,
            xattn_norm="rmsnorm", xattn_norm_eps=lm.norm_eps, xattn_qk_norm=theirs.get("qk_layer_norms", False),
            xattn_vector_gate=content.get("alpha_type") == "vector", n_added_tokens=theirs.get("additional_vocab_size"),
            image_token=1, added_head="tied" if lm.tied_head else "own",
        )  # fmt: skip


XATTN = {  # a gate with one value per channel is stored as (1, 1, D)
    "alpha_xattn": ("alpha_cross_attn", torch.flatten), "alpha_dense": ("alpha_dense", torch.flatten),
    "xattn.norm": "input_layernorm", "xattn.to_q": "cross_attn.q_proj", "xattn.to_out": "cross_attn.o_proj",
    "xattn.to_kv": ("cross_attn.k_proj", "cross_attn.v_proj", joined),
    "xattn.q_norm": "cross_attn.q_layer_norm", "xattn.k_norm": "cross_attn.k_layer_norm",
    "ff_norm": "post_attention_layernorm", "ff.gate": "mlp.gate_proj", "ff.up": "mlp.up_proj", "ff.out": "mlp.down_proj",
}  # fmt: skip
RESAMPLER_LAYER = {
    "norm_features": "0.context_layer_norm", "norm_latents": "0.latents_layer_norm", "to_q": "0.q_proj",
    "to_kv": ("0.k_proj", "0.v_proj", joined), "to_out": "0.output_proj", "q_norm": "0.q_layer_norm",
    "k_norm": "0.k_layer_norm", "ff_norm": "1.ln", "ff.up": "1.fc", "ff.out": "1.c_proj",
}  # fmt: skip


def table(c: FlamingoConfig) -> Table:
    """The table for a whole IDEFICS."""
    whole = {
        **prefixed(clip.HUGGING_FACE, "vision.", "model.vision_model."),
        **prefixed(LLAMA_TABLE, "lm.", "model."),
        **prefixed({"latents": "latents", "final_norm": "layer_norm"}, "resampler.", "model.perceiver_resampler."),
        **prefixed(RESAMPLER_LAYER, "resampler.layers.*.", "model.perceiver_resampler.blocks.*."),
        "added_embed": "model.embed_tokens.additional_embedding",
        "lm.head": "lm_head", "added_head": "lm_head.additional_fc",
    }  # fmt: skip
    # Their gated layers are numbered 0, 1, 2, ...; ours by the LM block that follows.
    for number, block in enumerate(c.xattn_layers):
        whole |= prefixed(XATTN, f"xattn_layers.{block}.", f"model.gated_cross_attn_layers.{number}.")
    return whole
