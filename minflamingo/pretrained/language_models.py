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
from .tables import Table, activation, expect, thirds, transposed


class Family(NamedTuple):
    config: Callable[[Mapping], LMConfig]  # the content of their config.json -> our config
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


def gpt2_config(theirs: Mapping) -> LMConfig:
    expect(theirs, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    return LMConfig(
        theirs["vocab_size"], theirs["n_embd"], theirs["n_layer"], theirs["n_head"], d_ff=theirs.get("n_inner"),
        max_length=theirs["n_positions"], norm_eps=theirs.get("layer_norm_epsilon", 1e-5), position="learned",
        attention_bias=True, output_bias=True, mlp_bias=True, activation=activation(theirs, "activation_function", "gelu_new"),
        tied_head=theirs.get("tie_word_embeddings", True),
    )  # fmt: skip


def opt_config(theirs: Mapping) -> LMConfig:
    # OPT-350m is refused: its norms come after the layers, and its embeddings are narrower.
    expect(theirs, do_layer_norm_before=True, word_embed_proj_dim=theirs["hidden_size"], _remove_final_layer_norm=False)
    expect(theirs, enable_bias=True, layer_norm_elementwise_affine=True)
    return LMConfig(
        theirs["vocab_size"], theirs["hidden_size"], theirs["num_hidden_layers"], theirs["num_attention_heads"],
        d_ff=theirs["ffn_dim"], max_length=theirs["max_position_embeddings"], position="learned", position_offset=2,
        attention_bias=True, output_bias=True, mlp_bias=True, activation=activation(theirs, "activation_function", "relu"),
        tied_head=theirs.get("tie_word_embeddings", True),
    )  # fmt: skip


def neox_config(theirs: Mapping) -> LMConfig:
    rope, bias = theirs.get("rope_parameters") or {}, theirs.get("attention_bias", True)
    expect(theirs, rope_scaling=None)
    expect(rope, rope_type="default")
    return LMConfig(
        theirs["vocab_size"], theirs["hidden_size"], theirs["num_hidden_layers"], theirs["num_attention_heads"],
        d_ff=theirs["intermediate_size"], max_length=None, norm_eps=theirs.get("layer_norm_eps", 1e-5),
        position="rotary", rotary_pct=rope.get("partial_rotary_factor", theirs.get("rotary_pct", 0.25)),
        rotary_theta=rope.get("rope_theta", theirs.get("rotary_emb_base", 10_000)),
        parallel_residual=theirs.get("use_parallel_residual", True), attention_bias=bias, output_bias=bias, mlp_bias=True,
        activation=activation(theirs, "hidden_act", "gelu"), tied_head=theirs.get("tie_word_embeddings", False),
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


def mpt_config(theirs: Mapping) -> LMConfig:
    # MosaicGPT has the settings of the attention in the config itself, with or without the prefix "attn_".
    attn = {key.removeprefix("attn_"): value for key, value in theirs.items()} | (theirs.get("attn_config") or {})
    expect(attn, alibi=True, clip_qkv=None, softmax_scale=None, prefix_lm=False)
    expect(theirs, logit_scale=None, no_bias=True, embedding_fraction=1.0)
    return LMConfig(
        theirs["vocab_size"], theirs["d_model"], theirs["n_layers"], theirs["n_heads"],
        d_ff=int(theirs.get("expansion_ratio", theirs.get("mlp_ratio", 4)) * theirs["d_model"]), max_length=None,
        norm_bias=False, norm_eps=theirs.get("layer_norm_epsilon", 1e-5), position="alibi",
        alibi_max=float(attn.get("alibi_bias_max", 8)), qk_norm="full" if attn.get("qk_ln") else None,
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


def llama_config(theirs: Mapping) -> LMConfig:
    rope, bias = theirs.get("rope_parameters") or {}, theirs.get("attention_bias", False)
    expect(rope, rope_type="default")
    expect(theirs, rope_scaling=None, head_dim=theirs["hidden_size"] // theirs["num_attention_heads"], pretraining_tp=1)
    return LMConfig(
        theirs["vocab_size"], theirs["hidden_size"], theirs["num_hidden_layers"], theirs["num_attention_heads"],
        n_kv_heads=theirs.get("num_key_value_heads"), d_ff=theirs["intermediate_size"], max_length=None, norm="rmsnorm",
        norm_eps=theirs.get("rms_norm_eps", 1e-6), position="rotary",
        rotary_theta=rope.get("rope_theta", theirs.get("rope_theta", 10_000.0)), attention_bias=bias, output_bias=bias,
        mlp_bias=theirs.get("mlp_bias", False), activation=activation(theirs, "hidden_act", "silu"), gated_mlp=True,
        tied_head=theirs.get("tie_word_embeddings", False),
    )  # fmt: skip


def gguf_config(metadata: Mapping) -> LMConfig:
    """From the metadata of a GGUF file of the architecture "llama", with `vocab_size` and `tie_word_embeddings`."""
    expect(metadata, **{"llama.rope.scaling.type": "none"})
    names = {
        "hidden_size": "embedding_length", "num_hidden_layers": "block_count", "num_attention_heads": "attention.head_count",
        "num_key_value_heads": "attention.head_count_kv", "intermediate_size": "feed_forward_length",
        "rms_norm_eps": "attention.layer_norm_rms_epsilon", "head_dim": "rope.dimension_count", "rope_theta": "rope.freq_base",
    }  # fmt: skip
    known = {theirs: metadata[f"llama.{key}"] for theirs, key in names.items() if f"llama.{key}" in metadata}
    return llama_config({**metadata, **known})


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


def read_lm_config(theirs: Mapping) -> LMConfig:
    """Our config from the content of their config.json. Raises ValueError if a field is missing or not implemented."""
    family = theirs.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"unknown family of language models {family!r}; choose one of {', '.join(FAMILIES)}")
    try:
        return FAMILIES[family].config(theirs)
    except KeyError as error:
        raise ValueError(f"the config of this {family} has no field {error}") from None


def canonical_name(name: str) -> str:
    """Their name without the optional prefix. The output layer of GPT-NeoX was renamed from embed_out to lm_head."""
    name = re.sub(r"^(transformer|gpt_neox|(model\.)?decoder|model)\.", "", name)
    return re.sub(r"^embed_out\.", "lm_head.", name)
