"""OpenFlamingo (Awadalla et al. 2023): CLIP ViT-L/14, an open language model, 64 latents, and a bridge before layers
every − 1, 2·every − 1, …  Published as 3B, 3B-instruct, 4B, 4B-instruct and 9B.

A published `checkpoint.pt` holds resampler, bridge and the table of token embeddings; eye and language model come from their
own files. The same weights have had several names: with or without `module.` and `model_state_dict` around them, the bridge
under `gated_cross_attn_layers.N` or inside the LM's layers. `canonical` gives each tensor one name.

Three tokens stand behind the LM's own: `<|endofchunk|>`, `<image>` and, unless the tokenizer had one, `<PAD>`. Their rows are
the last ones of the embedding table, which is therefore cut: what is above them is the LM's, as it was.

Numerics: exact GELU; patches without the class token, before CLIP's last norm; text before the first image receives zero from
the attention, and goes through the dense half all the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import Tensor

from ..config import FlamingoConfig, LMConfig, ResamplerConfig, VisionConfig
from . import clip, families
from .tables import Table, behind, first, numbered, prefixed, with_bias

# How the names inside `lang_encoder.` begin → which language model this is, and where its blocks stand
BLOCKS = {
    "transformer.blocks.": ("mpt", "transformer.blocks"), "gpt_neox.": ("gpt_neox", "gpt_neox.layers"),
    "model.decoder.": ("opt", "model.decoder.layers"), "model.layers.": ("llama", "model.layers"),
}  # fmt: skip


def config(lm: LMConfig, every: int, vision: VisionConfig | None = None, n_new_tokens: int = 3) -> FlamingoConfig:
    """An OpenFlamingo around an LM (whose `vocab_size` is that of its tokenizer, without the new tokens)."""
    vision = clip.named_config("ViT-L-14") if vision is None else vision
    return FlamingoConfig(
        vision=vision, lm=lm, xattn_every=every, xattn_first=every - 1, xattn_activation="gelu",
        resampler=ResamplerConfig(d=vision.d, n_time_embeddings=0, activation="gelu"),
        n_new_tokens=n_new_tokens, image_token=1, new_head="tied" if lm.tied_head else "own",
    )  # fmt: skip


def canonical(names: Iterable[str], blocks: str) -> dict[str, str]:
    """Our one name for each tensor → its name in this checkpoint. Where a tensor has several names, the first is taken."""
    inside = r"^lang_encoder\.(?:" + re.escape(blocks) + r")\.(\d+)\."
    found: dict[str, str] = {}
    for name in names:
        one = re.sub(r"^module\.", "", name)
        one = re.sub(inside + r"gated_cross_attn_layer\.", r"lang_encoder.gated_cross_attn_layers.\1.", one)
        one = re.sub(inside + r"decoder_layer\.", rf"lang_encoder.{blocks}.\1.", one)
        one = re.sub(r"^lang_encoder\.old_decoder_blocks\.", f"lang_encoder.{blocks}.", one)
        found.setdefault(one, name)
    return found


def bridge_table(c: FlamingoConfig) -> Table:
    """Resampler and GATED XATTN-DENSE."""
    attention = {"to_q": "to_q", "to_kv": "to_kv", "to_out": "to_out"}
    dense = {"ff.up.weight": "1.weight", "ff.out.weight": "3.weight", **with_bias({"ff_norm": "0"}, True)}
    resampler = {
        **with_bias({"norm_media": "0.norm_media", "norm_latents": "0.norm_latents"}, True),
        **with_bias({ours: f"0.{theirs}" for ours, theirs in attention.items()}, False),
        **prefixed(dense, theirs="1."),
    }
    layer = {
        "alpha_xattn": "attn_gate",
        "alpha_dense": "ff_gate",
        **with_bias({"xattn.norm": "attn.norm"}, True),
        **with_bias({f"xattn.{ours}": f"attn.{theirs}" for ours, theirs in attention.items()}, False),
        **prefixed(dense, theirs="ff."),
    }
    table = {"resampler.latents": "perceiver.latents", **with_bias({"resampler.final_norm": "perceiver.norm"}, True)}
    table |= numbered(c.resampler.layers, resampler, "resampler.layers.*.", "perceiver.layers.*.")
    for i in c.xattn_layers:
        table |= prefixed(layer, f"xattn_layers.{i}.", f"lang_encoder.gated_cross_attn_layers.{i}.")
    return table


def table(c: FlamingoConfig, names: Iterable[str]) -> tuple[Table, tuple[str, ...]]:
    """The whole: eye, language model, bridge; and what is knowingly not used. `names`: canonical ones."""
    names, V = set(names), c.lm.vocab_size
    family, _ = family_of(names)
    eye, ignored = clip.table(c.vision, {name.removeprefix("vision_encoder.") for name in names if "vision_encoder." in name})
    tongue, more = families.table(family, c.lm, {name.removeprefix("lang_encoder.") for name in names})
    whole = {
        **prefixed(eye, "vision.", "vision_encoder."),
        **prefixed(tongue, "lm.", "lang_encoder."),
        **bridge_table(c),
    }
    # Tables of tokens are cut in two: the LM's own rows, as they were, and those of the new tokens.
    embed, head = whole["lm.embed.weight"], whole.get("lm.head.weight")
    whole |= {"lm.embed.weight": (embed, first(V)), "new_embed.weight": (embed, behind(V))}
    if head:
        whole["lm.head.weight"] = (head, first(V))
    if c.new_head == "own":
        whole["new_head.weight"] = (head, behind(V))
    return whole, (*(rf"vision_encoder\.{p}" for p in ignored), *(rf"lang_encoder\.{p}" for p in more))


def embedding_of(names: Iterable[str]) -> str:
    """The name of the table of token embeddings. Raises ValueError unless there is exactly one."""
    found = [name for name in names if re.fullmatch(r"lang_encoder\..*(wte|embed_in|embed_tokens)\.weight", name)]
    if len(found) != 1:
        raise ValueError(f"expected one table of token embeddings inside lang_encoder, found {found}")
    return found[0]


def heads_as_stored(c: FlamingoConfig, tensors: Mapping[str, Tensor]) -> FlamingoConfig:
    """Where the head is not tied, a file may have rows for the new tokens in it, or not: then they cannot be said."""
    if c.new_head != "own":
        return c
    name = next((f"lang_encoder.{head}" for head in families.HEADS if f"lang_encoder.{head}" in tensors), None)
    rows = c.lm.vocab_size if name is None else tensors.meta(name).shape[0]
    return c if rows == c.lm.vocab_size + c.n_new_tokens else replace(c, new_head=None)


def family_of(names: Iterable[str]) -> tuple[str, str]:
    """Which language model stands inside `lang_encoder.`, and where its blocks are.

    Raises:
        ValueError: none that we know.
    """
    names = list(names)
    for start, found in BLOCKS.items():
        if any(re.match(rf"(module\.)?lang_encoder\.{re.escape(start)}", name) for name in names):
            return found
    raise ValueError(f"no language model of an OpenFlamingo among these names: {', '.join(sorted(names)[:5])} …")
