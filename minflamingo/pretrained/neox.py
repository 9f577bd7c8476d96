"""GPT-NeoX (Black et al. 2022), also Pythia and RedPajama-INCITE: rotary on a share of each head, attention beside the MLP.

Its fused projection holds q, k and v of the first head, then those of the second, and so on: (h 3 d_head), not (3 h d_head).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..config import LMConfig
from .tables import Table, activation, expect, numbered, with_bias

PREFIX = "gpt_neox."
IGNORED = (r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",)


def config(theirs: Mapping) -> LMConfig:
    """From the content of its config.json."""
    expect(theirs, rope_scaling=None)
    rope = theirs.get("rope_parameters") or {}
    expect(rope, rope_type="default")
    return LMConfig(
        vocab_size=theirs["vocab_size"], d=theirs["hidden_size"], layers=theirs["num_hidden_layers"],
        heads=theirs["num_attention_heads"], d_ff=theirs["intermediate_size"], max_length=None,
        norm_eps=theirs.get("layer_norm_eps", 1e-5), position="rotary",
        rotary_pct=rope.get("partial_rotary_factor", theirs.get("rotary_pct", 0.25)),
        rotary_theta=rope.get("rope_theta", theirs.get("rotary_emb_base", 10_000)),
        parallel_residual=theirs.get("use_parallel_residual", True), attention_bias=theirs.get("attention_bias", True),
        output_bias=theirs.get("attention_bias", True), mlp_bias=True, activation=activation(theirs, "hidden_act", "gelu"),
        tied_head=theirs.get("tie_word_embeddings", False),
    )  # fmt: skip


def table(c: LMConfig) -> Table:
    def part(i: int):
        return lambda fused: fused.unflatten(0, (c.heads, 3, c.d_head))[:, i].flatten(0, 1).clone()

    kinds = ("weight", "bias") if c.attention_bias else ("weight",)
    fused = {
        f"attn.to_{name}.{kind}": (f"attention.query_key_value.{kind}", part(i))
        for i, name in enumerate("qkv")
        for kind in kinds
    }
    plain = {
        "attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm", "mlp.up": "mlp.dense_h_to_4h",
        "mlp.out": "mlp.dense_4h_to_h",
    }  # fmt: skip
    rows = {**fused, **with_bias(plain, True), **with_bias({"attn.to_out": "attention.dense"}, c.output_bias)}
    return {
        "embed.weight": "embed_in.weight",
        **with_bias({"final_norm": "final_layer_norm"}, True),
        **numbered(c.layers, rows, "blocks.*.", "layers.*."),
    }
