"""Llama (Touvron et al. 2023) and what is built like it, SmolLM2 for one: RMSNorm, rotary, SwiGLU, grouped key heads.

In GGUF files the rows of q and k stand in another order: there channel 2i turns with 2i + 1, here i with i + half.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..config import LMConfig
from .tables import Table, activation, expect, numbered, with_bias

PREFIX = "model."
IGNORED = (r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)


def config(theirs: Mapping) -> LMConfig:
    """From the content of its config.json."""
    rope = theirs.get("rope_parameters") or {}
    expect(rope, rope_type="default")
    expect(theirs, rope_scaling=None, head_dim=theirs["hidden_size"] // theirs["num_attention_heads"], pretraining_tp=1)
    return LMConfig(
        vocab_size=theirs["vocab_size"], d=theirs["hidden_size"], layers=theirs["num_hidden_layers"],
        heads=theirs["num_attention_heads"], kv_heads=theirs.get("num_key_value_heads"), d_ff=theirs["intermediate_size"],
        max_length=None, norm="rmsnorm", norm_eps=theirs.get("rms_norm_eps", 1e-6), position="rotary",
        rotary_theta=rope.get("rope_theta", theirs.get("rope_theta", 10_000.0)),
        attention_bias=theirs.get("attention_bias", False), output_bias=theirs.get("attention_bias", False),
        mlp_bias=theirs.get("mlp_bias", False), activation=activation(theirs, "hidden_act", "silu"), gated_mlp=True,
        tied_head=theirs.get("tie_word_embeddings", False),
    )  # fmt: skip


def table(c: LMConfig) -> Table:
    attn = {f"attn.to_{name}": f"self_attn.{name}_proj" for name in "qkv"}
    rows = {
        "attn_norm.weight": "input_layernorm.weight",
        "mlp_norm.weight": "post_attention_layernorm.weight",
        **with_bias(attn, c.attention_bias),
        **with_bias({"attn.to_out": "self_attn.o_proj"}, c.output_bias),
        **with_bias({"mlp.gate": "mlp.gate_proj", "mlp.up": "mlp.up_proj", "mlp.out": "mlp.down_proj"}, c.mlp_bias),
    }
    return {
        "embed.weight": "embed_tokens.weight",
        "final_norm.weight": "norm.weight",
        **numbered(c.layers, rows, "blocks.*.", "layers.*."),
    }


GGUF_IGNORED = (r"rope_freqs\.weight",)


def gguf_config(theirs: Mapping, embeddings: Tensor) -> LMConfig:
    """From the metadata of a GGUF file of the architecture "llama", and its table of embeddings (its shape alone counts)."""
    own = {key.removeprefix("llama."): value for key, value in theirs.items() if key.startswith("llama.")}
    d, heads = own["embedding_length"], own["attention.head_count"]
    expect(own, **{"rope.dimension_count": d // heads, "rope.scaling.type": "none"})
    return LMConfig(
        vocab_size=len(embeddings), d=d, layers=own["block_count"], heads=heads, kv_heads=own["attention.head_count_kv"],
        d_ff=own["feed_forward_length"], max_length=None, norm="rmsnorm", norm_eps=own["attention.layer_norm_rms_epsilon"],
        position="rotary", rotary_theta=own.get("rope.freq_base", 10_000.0), activation="silu", gated_mlp=True,
        tied_head=theirs["tied_head"],
    )  # fmt: skip


def gguf_table(c: LMConfig) -> Table:
    def halves(heads: int):
        def reorder(weight: Tensor) -> Tensor:
            return weight.unflatten(0, (heads, c.d_head // 2, 2)).transpose(1, 2).flatten(0, 2).contiguous()

        return reorder

    rows = {
        "attn_norm.weight": "attn_norm.weight", "attn.to_q.weight": ("attn_q.weight", halves(c.heads)),
        "attn.to_k.weight": ("attn_k.weight", halves(c.n_kv_heads)), "attn.to_v.weight": "attn_v.weight",
        "attn.to_out.weight": "attn_output.weight", "mlp_norm.weight": "ffn_norm.weight", "mlp.gate.weight": "ffn_gate.weight",
        "mlp.up.weight": "ffn_up.weight", "mlp.out.weight": "ffn_down.weight",
    }  # fmt: skip
    return {
        "embed.weight": "token_embd.weight",
        "final_norm.weight": "output_norm.weight",
        **({} if c.tied_head else {"head.weight": "output.weight"}),
        **numbered(c.layers, rows, "blocks.*.", "blk.*."),
    }
