"""IDEFICS (Laurençon et al. 2023), the open Flamingo at 9B and 80B: CLIP ViT-H/14, Llama, a bridge before every 4th layer.

It differs from the paper in details, all of them fields of our config: the resampler has ReLU and a LayerNorm on each head's
queries and keys; the bridge is built like Llama (RMSNorm, also on queries and keys; SwiGLU); the eye's class token is kept, its
last norm is not used; there are no time embeddings. Ids behind Llama's 32,000: `<fake_token_around_image>`, `<image>` and, in
the instruct models, `<end_of_utterance>`; their embeddings and their rows of the head are stored apart, as ours are.

One rule of theirs stands in the preparation of texts, not in the model, and is not kept here: their processor hides the image
from text between a `</s>` and the next image. Here such text goes on to see the last image before it, as everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..config import FlamingoConfig, ResamplerConfig, VisionConfig
from . import llama
from .clip import hugging_face
from .tables import Table, activation, expect, joined, numbered, prefixed, with_bias

VISION_IGNORED = (r"model\.vision_model\.post_layernorm\..*", r"model\.vision_model\.embeddings\.position_ids")
IGNORED = (*VISION_IGNORED, r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"model\.rotary_emb\.inv_freq")


def config(theirs: Mapping) -> FlamingoConfig:
    """From the content of its config.json."""
    eye, perceiver = theirs["vision_config"], theirs["perceiver_config"]
    expect({"use_resampler": theirs.get("use_resampler") or perceiver.get("use_resampler", False)}, use_resampler=True)
    d = eye.get("embed_dim", eye.get("hidden_size"))
    vision = VisionConfig(
        image_size=eye["image_size"], patch_size=eye["patch_size"], d=d, layers=eye["num_hidden_layers"],
        heads=eye["num_attention_heads"], d_ff=eye["intermediate_size"], activation=activation(eye, "hidden_act", "gelu"),
        norm_eps=eye.get("layer_norm_eps", 1e-5),
    )  # fmt: skip
    resampler = ResamplerConfig(
        d=d, n_latents=perceiver["resampler_n_latents"], layers=perceiver["resampler_depth"],
        heads=perceiver["resampler_n_heads"], d_head=perceiver["resampler_head_dim"], n_time_embeddings=0, activation="relu",
        qk_norm=perceiver.get("qk_layer_norms_perceiver", False),
    )  # fmt: skip
    lm = llama.config(theirs)
    return FlamingoConfig(
        vision=vision, resampler=resampler, lm=lm, xattn_every=theirs["cross_layer_interval"], xattn_heads=lm.heads,
        xattn_d_head=lm.d_head, xattn_d_ff=lm.d_ff, xattn_activation=lm.activation, xattn_gated_mlp=True,
        xattn_norm="rmsnorm", xattn_norm_eps=lm.norm_eps, xattn_qk_norm=theirs.get("qk_layer_norms", False),
        xattn_gate="vector" if theirs.get("alpha_type") == "vector" else "scalar",
        n_new_tokens=theirs["additional_vocab_size"], image_token=1, new_head="tied" if lm.tied_head else "own",
    )  # fmt: skip


def table(c: FlamingoConfig) -> tuple[Table, tuple[str, ...]]:
    """The whole, and what is knowingly not used."""
    resampler = {
        **with_bias({"norm_media": "0.context_layer_norm", "norm_latents": "0.latents_layer_norm", "ff_norm": "1.ln"}, True),
        **with_bias({"to_q": "0.q_proj", "to_out": "0.output_proj", "ff.up": "1.fc", "ff.out": "1.c_proj"}, False),
        "to_kv.weight": (("0.k_proj.weight", "0.v_proj.weight"), joined),
    }
    if c.resampler.qk_norm:
        resampler |= with_bias({"q_norm": "0.q_layer_norm", "k_norm": "0.k_layer_norm"}, True)
    rows = {
        "xattn.norm": "input_layernorm", "xattn.to_q": "cross_attn.q_proj", "xattn.to_out": "cross_attn.o_proj",
        "ff_norm": "post_attention_layernorm", "ff.gate": "mlp.gate_proj", "ff.up": "mlp.up_proj", "ff.out": "mlp.down_proj",
    }  # fmt: skip
    if c.xattn_qk_norm:
        rows |= {"xattn.q_norm": "cross_attn.q_layer_norm", "xattn.k_norm": "cross_attn.k_layer_norm"}
    layer = {
        **with_bias(rows, False),
        "xattn.to_kv.weight": (("cross_attn.k_proj.weight", "cross_attn.v_proj.weight"), joined),
        "alpha_xattn": ("alpha_cross_attn", lambda alpha: alpha.flatten()),  # (1, 1, D), where it is a vector
        "alpha_dense": ("alpha_dense", lambda alpha: alpha.flatten()),
    }
    whole = {
        **prefixed(hugging_face(c.vision), "vision.", "model.vision_model."),
        **prefixed(llama.table(replace(c.lm, tied_head=True)), "lm.", "model."),
        "resampler.latents": "model.perceiver_resampler.latents",
        **with_bias({"resampler.final_norm": "model.perceiver_resampler.layer_norm"}, True),
        **numbered(c.resampler.layers, resampler, "resampler.layers.*.", "model.perceiver_resampler.blocks.*."),
        "new_embed.weight": "model.embed_tokens.additional_embedding.weight",
    }
    for k, i in enumerate(c.xattn_layers):  # theirs are numbered one after the other, ours by the layer behind them
        whole |= prefixed(layer, f"xattn_layers.{i}.", f"model.gated_cross_attn_layers.{k}.")
    heads = {"lm.head.weight": "lm_head.weight", "new_head.weight": "lm_head.additional_fc.weight"}
    if c.lm.tied_head:
        return whole, (*IGNORED, *heads.values())
    return whole | heads, IGNORED
