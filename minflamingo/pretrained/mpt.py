"""MPT (MosaicML 2023): ALiBi instead of positions, no biases at all, not even in the norms; and its older form MosaicGPT.

`mpt-1b-redpajama-200b`, the language model of OpenFlamingo-3B, is a MosaicGPT: other names, and LayerNorm over the whole
width of q and k (QK norm). The config.json tells them apart by `attn_qk_ln`.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..config import LMConfig
from .tables import Table, expect, numbered, third

PREFIX = "transformer."
IGNORED = ()


def config(theirs: Mapping) -> LMConfig:
    """From the content of its config.json."""
    attn = theirs.get("attn_config") or {}
    if not isinstance(attn, Mapping):
        attn = attn.to_dict()
    older = ("attn_qk_ln", "attn_clip_qkv", "attn_softmax_scale", "alibi", "alibi_bias_max", "prefix_lm")
    attn = {**attn, **{key.removeprefix("attn_"): theirs[key] for key in older if key in theirs}}
    expect(attn, alibi=True, clip_qkv=None, softmax_scale=None, prefix_lm=False)
    expect(theirs, logit_scale=None, no_bias=True, embedding_fraction=1.0)
    d = theirs["d_model"]
    ratio = theirs.get("expansion_ratio", theirs.get("mlp_ratio", 4))
    return LMConfig(
        vocab_size=theirs["vocab_size"], d=d, layers=theirs["n_layers"], heads=theirs["n_heads"], d_ff=int(ratio * d),
        max_length=None, norm_bias=False, norm_eps=theirs.get("layer_norm_epsilon", 1e-5), position="alibi",
        alibi_max=float(attn.get("alibi_bias_max", 8)), qk_norm="full" if attn.get("qk_ln") else None, activation="gelu",
        tied_head=theirs.get("tie_word_embeddings", True),
    )  # fmt: skip


def table(c: LMConfig) -> Table:
    if c.qk_norm:  # MosaicGPT
        names = {"attn_norm": "ln_1", "mlp_norm": "ln_2", "attn.to_out": "attn.out_proj", "mlp.up": "mlp.mlp_up",
                 "mlp.out": "mlp.mlp_down", "attn.q_norm": "attn.q_ln", "attn.k_norm": "attn.k_ln"}  # fmt: skip
        final = "ln_f"
    else:
        names = {"attn_norm": "norm_1", "mlp_norm": "norm_2", "attn.to_out": "attn.out_proj", "mlp.up": "ffn.up_proj",
                 "mlp.out": "ffn.down_proj"}  # fmt: skip
        final = "norm_f"
    rows = {f"{ours}.weight": f"{theirs}.weight" for ours, theirs in names.items()}
    rows |= {f"attn.to_{name}.weight": ("attn.Wqkv.weight", third(i)) for i, name in enumerate("qkv")}
    return {
        "embed.weight": "wte.weight",
        "final_norm.weight": f"{final}.weight",
        **numbered(c.layers, rows, "blocks.*.", "blocks.*."),
    }
