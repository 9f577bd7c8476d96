"""OPT (Zhang et al. 2022): GPT-2 with ReLU, and a table of positions that starts with two rows that no text uses."""

from __future__ import annotations

from collections.abc import Mapping

from ..config import LMConfig
from .tables import Table, activation, expect, numbered, with_bias

PREFIX = "model.decoder."
IGNORED = ()


def config(theirs: Mapping) -> LMConfig:
    """From the content of its config.json. OPT-350m alone is built otherwise (norms behind, narrower embeddings)."""
    d = theirs["hidden_size"]
    expect(theirs, do_layer_norm_before=True, word_embed_proj_dim=d, enable_bias=True, layer_norm_elementwise_affine=True)
    expect(theirs, _remove_final_layer_norm=False)
    return LMConfig(
        vocab_size=theirs["vocab_size"], d=d, layers=theirs["num_hidden_layers"], heads=theirs["num_attention_heads"],
        d_ff=theirs["ffn_dim"], max_length=theirs["max_position_embeddings"], position="learned", position_offset=2,
        attention_bias=True, output_bias=True, mlp_bias=True, activation=activation(theirs, "activation_function", "relu"),
        tied_head=theirs.get("tie_word_embeddings", True),
    )  # fmt: skip


def table(c: LMConfig) -> Table:
    rows = {
        "attn_norm": "self_attn_layer_norm", "attn.to_q": "self_attn.q_proj", "attn.to_k": "self_attn.k_proj",
        "attn.to_v": "self_attn.v_proj", "attn.to_out": "self_attn.out_proj", "mlp_norm": "final_layer_norm",
        "mlp.up": "fc1", "mlp.out": "fc2",
    }  # fmt: skip
    return {
        "embed.weight": "embed_tokens.weight",
        "position_embed.weight": "embed_positions.weight",
        **with_bias({"final_norm": "final_layer_norm"}, True),
        **numbered(c.layers, with_bias(rows, True), "blocks.*.", "layers.*."),
    }
