"""GPT-2 (Radford et al. 2019): learned positions, biases everywhere, q, k and v in one matrix, matrices stored transposed."""

from __future__ import annotations

from collections.abc import Mapping

from ..config import LMConfig
from .tables import Table, activation, expect, numbered, third, transposed, with_bias

PREFIX = "transformer."
IGNORED = (r"h\.\d+\.attn\.(masked_)?bias",)  # causal masks that old files carry along


def config(theirs: Mapping) -> LMConfig:
    """From the content of its config.json."""
    expect(theirs, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    return LMConfig(
        vocab_size=theirs["vocab_size"], d=theirs["n_embd"], layers=theirs["n_layer"], heads=theirs["n_head"],
        d_ff=theirs.get("n_inner"), max_length=theirs["n_positions"], norm_eps=theirs.get("layer_norm_epsilon", 1e-5),
        position="learned", attention_bias=True, output_bias=True, mlp_bias=True,
        activation=activation(theirs, "activation_function", "gelu_new"),
        tied_head=theirs.get("tie_word_embeddings", True),
    )  # fmt: skip


def table(c: LMConfig) -> Table:
    fused = {
        f"attn.to_{name}.{kind}": (f"attn.c_attn.{kind}", lambda t, i=i, kind=kind: third(i)(t if kind == "bias" else t.T))
        for i, name in enumerate("qkv")
        for kind in ("weight", "bias")
    }
    turned = {"attn.to_out": "attn.c_proj", "mlp.up": "mlp.c_fc", "mlp.out": "mlp.c_proj"}
    rows = {
        **with_bias({"attn_norm": "ln_1", "mlp_norm": "ln_2"}, True),
        **fused,
        **{f"{ours}.weight": (f"{theirs}.weight", transposed) for ours, theirs in turned.items()},
        **{f"{ours}.bias": f"{theirs}.bias" for ours, theirs in turned.items()},
    }
    return {
        "embed.weight": "wte.weight",
        "position_embed.weight": "wpe.weight",
        **with_bias({"final_norm": "ln_f"}, True),
        **numbered(c.layers, rows, "blocks.*.", "h.*."),
    }
