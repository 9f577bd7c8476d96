"""The families of published language models: how their config.json and their names of weights translate into ours.

    GPT-2       learned positions; q, k and v in one matrix; matrices stored transposed               (Radford et al. 2019)
    OPT         GPT-2 with ReLU; its table of positions begins with two unused rows                   (Zhang et al. 2022)
    GPT-NeoX    also Pythia, RedPajama: rotary positions on a share of each head                      (Black et al. 2022)
    MPT         ALiBi; no biases, not even in the norms                                               (MosaicML 2023)
    MosaicGPT   an older MPT with a norm over all queries and keys; the LM of OpenFlamingo-3B
    Llama       also SmolLM2: RMSNorm, rotary positions, SwiGLU, grouped key heads; also as GGUF      (Touvron et al. 2023)
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from ..config import LMConfig
from .tables import Table, Theirs, foreign, thirds, transposed


class Family(NamedTuple):
    config: Callable[[Theirs], LMConfig]  # the content of their config.json -> our config
    table: Callable[[LMConfig], Table]  # for the names of `canonical_name`
    sign: str  # a part of a name that no other family has


GPT2_TABLE = {
    "embed": "wte", "position_embed": "wpe", "final_norm": "ln_f", "head": "lm_head",
    "blocks.*.attn_norm": "h.*.ln_1", "blocks.*.mlp_norm": "h.*.ln_2",
    **thirds("blocks.*.attn.to_{}", "h.*.attn.c_attn", lambda fused: transposed(fused).chunk(3)),
    "blocks.*.attn.to_out": ("h.*.attn.c_proj", transposed),
    "blocks.*.mlp.up": ("h.*.mlp.c_fc", transposed), "blocks.*.mlp.out": ("h.*.mlp.c_proj", transposed),
}  # fmt: skip
OPT_TABLE = {
    "embed": "embed_tokens", "position_embed": "embed_positions", "final_norm": "final_layer_norm", "head": "lm_head",
    "blocks.*.attn_norm": "layers.*.self_attn_layer_norm", "blocks.*.mlp_norm": "layers.*.final_layer_norm",
    **{f"blocks.*.attn.to_{x}": f"layers.*.self_attn.{x}_proj" for x in "qkv"},
    "blocks.*.attn.to_out": "layers.*.self_attn.out_proj",
    "blocks.*.mlp.up": "layers.*.fc1", "blocks.*.mlp.out": "layers.*.fc2",
}  # fmt: skip
LLAMA_TABLE = {
    "embed": "embed_tokens", "final_norm": "norm", "head": "lm_head",
    "blocks.*.attn_norm": "layers.*.input_layernorm", "blocks.*.mlp_norm": "layers.*.post_attention_layernorm",
    **{f"blocks.*.attn.to_{x}": f"layers.*.self_attn.{x}_proj" for x in "qkv"},
    "blocks.*.attn.to_out": "layers.*.self_attn.o_proj", "blocks.*.mlp.gate": "layers.*.mlp.gate_proj",
    "blocks.*.mlp.up": "layers.*.mlp.up_proj", "blocks.*.mlp.out": "layers.*.mlp.down_proj",
}  # fmt: skip


def gpt2_config(theirs: Theirs) -> LMConfig:
    theirs.only(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
    theirs.known.append("n_ctx n_special predict_special_tokens summary_.* reorder_and_upcast_attn")
    return LMConfig(
        theirs.get("vocab_size"), theirs.get("n_embd"), theirs.get("n_layer"), theirs.get("n_head"),
        d_ff=theirs.get("n_inner", None), max_length=theirs.get("n_positions"), position="learned",
        norm_eps=theirs.get("layer_norm_epsilon", 1e-5), attention_bias=True, output_bias=True, mlp_bias=True,
        activation=theirs.activation("activation_function", "gelu_new"), tied_head=theirs.get("tie_word_embeddings", True),
    )  # fmt: skip


def opt_config(theirs: Theirs) -> LMConfig:
    d = theirs.get("hidden_size")
    # OPT-350m is refused: its norms come after the layers, and its embeddings are narrower.
    theirs.only(do_layer_norm_before=True, word_embed_proj_dim=d, _remove_final_layer_norm=False)
    theirs.only(enable_bias=True, layer_norm_elementwise_affine=True)
    return LMConfig(
        theirs.get("vocab_size"), d, theirs.get("num_hidden_layers"), theirs.get("num_attention_heads"),
        d_ff=theirs.get("ffn_dim"), max_length=theirs.get("max_position_embeddings"), position="learned", position_offset=2,
        attention_bias=True, output_bias=True, mlp_bias=True, activation=theirs.activation("activation_function", "relu"),
        tied_head=theirs.get("tie_word_embeddings", True),
    )  # fmt: skip


def neox_config(theirs: Theirs) -> LMConfig:
    rope, bias = theirs.part("rope_parameters", {}), theirs.get("attention_bias", True)
    rope.only(rope_type="default")
    theirs.only(rope_scaling=None)
    theirs.known.append("max_position_embeddings")
    # the settings of the rotary positions have had several names
    share = theirs.get("partial_rotary_factor", float(theirs.get("rotary_pct", 0.25)))
    theta = theirs.get("rope_theta", float(theirs.get("rotary_emb_base", 10_000.0)))
    return LMConfig(
        theirs.get("vocab_size"), theirs.get("hidden_size"), theirs.get("num_hidden_layers"), theirs.get("num_attention_heads"),
        d_ff=theirs.get("intermediate_size"), max_length=None, norm_eps=theirs.get("layer_norm_eps", 1e-5), position="rotary",
        rotary_pct=rope.get("partial_rotary_factor", float(share)), rotary_theta=rope.get("rope_theta", float(theta)),
        parallel_residual=theirs.get("use_parallel_residual", True), attention_bias=bias, output_bias=bias, mlp_bias=True,
        activation=theirs.activation("hidden_act", "gelu"), tied_head=theirs.get("tie_word_embeddings", False),
    )  # fmt: skip


def neox_table(c: LMConfig) -> Table:
    def split(fused: Tensor) -> list[Tensor]:
        # The rows are q, k and v of the first head, then those of the second: (h * 3 * d_head, ...), not (3 * h * d_head, ...).
        return [part.flatten(0, 1) for part in fused.unflatten(0, (c.n_heads, 3, c.d_head)).unbind(1)]

    return {
        "embed": "embed_in", "final_norm": "final_layer_norm", "head": "lm_head",
        "blocks.*.attn_norm": "layers.*.input_layernorm", "blocks.*.mlp_norm": "layers.*.post_attention_layernorm",
        **thirds("blocks.*.attn.to_{}", "layers.*.attention.query_key_value", split),
        "blocks.*.attn.to_out": "layers.*.attention.dense",
        "blocks.*.mlp.up": "layers.*.mlp.dense_h_to_4h", "blocks.*.mlp.out": "layers.*.mlp.dense_4h_to_h",
    }  # fmt: skip


def mpt_config(theirs: Theirs) -> LMConfig:
    # MosaicGPT has the settings of the attention in the config itself. Everywhere some have the prefix "attn_".
    parts = [theirs.content, theirs.part("attn_config", {}).content, theirs.part("ffn_config", {}).content]
    theirs.content = {key.removeprefix("attn_"): value for part in parts for key, value in part.items()}
    theirs.parts.clear()
    d, n_heads = theirs.get("d_model"), theirs.get("n_heads")
    theirs.only(
        alibi=True, type="multihead_attention", clip_qkv=None, softmax_scale=None, prefix_lm=False, qk_gn=False, rope=False,
        uses_sequence_id=False, kv_n_heads=(None, n_heads), sliding_window_size=-1, logit_softcapping=None, fused_qkv=True,
        norm_type=("low_precision_layernorm", "layernorm"), ffn_type="mptmlp", fc_type=("torch", {"name": "torch"}),
        logit_scale=None, no_bias=True, embedding_fraction=1.0, final_logit_softcapping=None,
    )  # fmt: skip
    theirs.known.append("config init_.* param_init_fn fan_mode emb_init_.* impl low_precision_layernorm rope_.*")
    theirs.known.append("max_seq_len learned_pos_emb use_pad_tok_in_ffn")
    return LMConfig(
        theirs.get("vocab_size"), d, theirs.get("n_layers"), n_heads, max_length=None, norm_bias=False, position="alibi",
        d_ff=int(theirs.get("expansion_ratio", float(theirs.get("mlp_ratio", 4.0))) * d),
        norm_eps=theirs.get("layer_norm_epsilon", float(theirs.get("norm_eps", 1e-5))),
        alibi_max=float(theirs.get("alibi_bias_max", 8.0)), qk_norm="full" if theirs.get("qk_ln", False) else None,
        tied_head=theirs.get("tie_word_embeddings", True),
    )  # fmt: skip


def mpt_table(c: LMConfig) -> Table:
    mosaic_gpt = c.qk_norm is not None
    norm, up, down = ("ln_", "mlp.mlp_up", "mlp.mlp_down") if mosaic_gpt else ("norm_", "ffn.up_proj", "ffn.down_proj")
    return {
        "embed": "wte", "final_norm": f"{norm}f", "head": "lm_head",
        "blocks.*.attn_norm": f"blocks.*.{norm}1", "blocks.*.mlp_norm": f"blocks.*.{norm}2",
        **thirds("blocks.*.attn.to_{}", "blocks.*.attn.Wqkv"), "blocks.*.attn.to_out": "blocks.*.attn.out_proj",
        "blocks.*.attn.q_norm": "blocks.*.attn.q_ln", "blocks.*.attn.k_norm": "blocks.*.attn.k_ln",
        "blocks.*.mlp.up": f"blocks.*.{up}", "blocks.*.mlp.out": f"blocks.*.{down}",
    }  # fmt: skip


def llama_config(theirs: Theirs) -> LMConfig:
    rope, bias = theirs.part("rope_parameters", {}), theirs.get("attention_bias", False)
    d, n_heads = theirs.get("hidden_size"), theirs.get("num_attention_heads")
    rope.only(rope_type="default", partial_rotary_factor=1.0)
    theirs.only(rope_scaling=None, rope_interleaved=False, partial_rotary_factor=1.0)
    theirs.only(pretraining_tp=1, head_dim=(d // n_heads, None))
    theirs.known.append("max_position_embeddings max_sequence_length is_llama_config")
    return LMConfig(
        theirs.get("vocab_size"), d, theirs.get("num_hidden_layers"), n_heads,
        n_kv_heads=theirs.get("num_key_value_heads", None), d_ff=theirs.get("intermediate_size"), max_length=None,
        norm="rmsnorm", norm_eps=theirs.get("rms_norm_eps", 1e-6), position="rotary",
        rotary_theta=rope.get("rope_theta", float(theirs.get("rope_theta", 10_000.0))), attention_bias=bias, output_bias=bias,
        mlp_bias=theirs.get("mlp_bias", False), activation=theirs.activation("hidden_act", "silu"), gated_mlp=True,
        tied_head=theirs.get("tie_word_embeddings", False),
    )  # fmt: skip


def gguf_config(theirs: Theirs) -> LMConfig:
    """From the metadata of a GGUF file of the architecture "llama", with `vocab_size` and `tie_word_embeddings`."""
    names = {
        "embedding_length": "hidden_size", "block_count": "num_hidden_layers", "attention.head_count": "num_attention_heads",
        "attention.head_count_kv": "num_key_value_heads", "feed_forward_length": "intermediate_size",
        "attention.layer_norm_rms_epsilon": "rms_norm_eps", "rope.dimension_count": "head_dim", "rope.freq_base": "rope_theta",
    }  # fmt: skip
    short = {key.removeprefix("llama."): value for key, value in theirs.content.items()}
    size = {"vocab_size": theirs.content.get("vocab_size")}  # of the embedding table; the file's own is optional
    theirs.content = {names.get(key, key): value for key, value in short.items()} | size
    config = llama_config(theirs)
    theirs.only(**{"rope.scaling.type": "none", "attention.key_length": config.d_head, "attention.value_length": config.d_head})
    theirs.known.append(r"(general|tokenizer|GGUF|quantize)\..* context_length")
    return config


def gguf_table(c: LMConfig) -> Table:
    def reorder(weight: Tensor) -> Tensor:
        # In GGUF rotary positions rotate channel 2i with 2i + 1, here channel i with i + d_head/2.
        return weight.unflatten(0, (-1, c.d_head // 2, 2)).transpose(1, 2).flatten(0, 2)

    return {
        "embed": "token_embd", "final_norm": "output_norm", "head": "output",
        "blocks.*.attn_norm": "blk.*.attn_norm", "blocks.*.mlp_norm": "blk.*.ffn_norm",
        "blocks.*.attn.to_q": ("blk.*.attn_q", reorder), "blocks.*.attn.to_k": ("blk.*.attn_k", reorder),
        "blocks.*.attn.to_v": "blk.*.attn_v", "blocks.*.attn.to_out": "blk.*.attn_output",
        "blocks.*.mlp.gate": "blk.*.ffn_gate", "blocks.*.mlp.up": "blk.*.ffn_up", "blocks.*.mlp.out": "blk.*.ffn_down",
    }  # fmt: skip


FAMILIES = {  # by the model_type in their config.json
    "gpt2": Family(gpt2_config, lambda c: GPT2_TABLE, "attn.c_attn."),
    "opt": Family(opt_config, lambda c: OPT_TABLE, ".fc1."),
    "gpt_neox": Family(neox_config, neox_table, ".query_key_value."),
    "mpt": Family(mpt_config, mpt_table, ".Wqkv."),
    "mosaic_gpt": Family(mpt_config, mpt_table, ".Wqkv."),
    "llama": Family(llama_config, lambda c: LLAMA_TABLE, "mlp.gate_proj."),
    "llama.gguf": Family(gguf_config, gguf_table, ".attn_q."),
}


def recognise(names: Iterable[str]) -> str:
    """The family that has these names of weights. Raises ValueError if none has."""
    names = list(names)
    for family, entry in FAMILIES.items():
        if any(entry.sign in name for name in names):
            return family
    raise ValueError(f"no known family of language models has these names: {', '.join(sorted(names)[:5])} ...")


def read_lm_config(content: Mapping) -> LMConfig:
    """Our config from the content of their config.json. Raises ValueError if a field is missing, invalid or not implemented."""
    with foreign(content) as theirs:
        family = theirs.content.get("model_type")
        if not isinstance(family, str) or family not in FAMILIES:
            raise ValueError(f"unknown family of language models {family!r:.80}; choose one of {', '.join(FAMILIES)}")
        return FAMILIES[family].config(theirs)


def canonical_name(name: str) -> str:
    """Their name without the optional prefix. The output layer of GPT-NeoX was renamed from embed_out to lm_head."""
    name = re.sub(r"^(transformer|gpt_neox|(model\.)?decoder|model)\.", "", name)
    return re.sub(r"^embed_out\.", "lm_head.", name)
