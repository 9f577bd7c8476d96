"""flamingo-mini (Hansmair 2022): CLIP ViT-B/32 or L/14, GPT-2 or OPT, a bridge before layers 0, every, 2·every, …

Here an image has no token of its own: its place is the "<" of the text "<image>". So our `<image>` token takes the embedding of
that "<" (and its row of the head), and a prompt goes on with the text "image>". `<EOC>` is the one token behind the LM's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..config import FlamingoConfig, LMConfig, ResamplerConfig, VisionConfig
from . import clip, families
from .tables import Table, first, joined, numbered, prefixed, with_bias

ACTIVATIONS = {"gelu": "gelu", "sqrelu": "sq_relu", "relu": "relu"}
EYE = "flamingo.vision_encoder."
PREFIXES = {"gpt2": ("flamingo.lm.", "h"), "opt": ("flamingo.lm.decoder.", "layers")}


def config(theirs: Mapping, lm: LMConfig, vision: VisionConfig) -> FlamingoConfig:
    """From the content of its config.json and the configs of its parts; `vision` keeps the class token."""
    return FlamingoConfig(
        vision=vision, lm=lm, xattn_every=theirs["xattn_every"], xattn_heads=theirs["xattn_heads"],
        xattn_d_head=theirs["xattn_dim_head"], xattn_ff_mult=theirs["xattn_ff_mult"],
        xattn_activation=ACTIVATIONS[theirs["xattn_act"]],
        resampler=ResamplerConfig(
            d=theirs["dim_visual"], n_latents=theirs["resampler_num_latents"], layers=theirs["resampler_depth"],
            heads=theirs["resampler_heads"], d_head=theirs["resampler_dim_head"],
            n_time_embeddings=theirs["resampler_num_time_embeds"], ff_mult=theirs["resampler_ff_mult"],
            activation=ACTIVATIONS[theirs["resampler_act"]],
        ),
        n_new_tokens=2, image_token=1, new_head="own",
    )  # fmt: skip


def table(c: FlamingoConfig, names: Iterable[str], less_than: int = 27) -> tuple[Table, tuple[str, ...]]:
    """The whole, and what is knowingly not used. `less_than`: the id of "<" in the LM's tokenizer (27 is GPT-2's)."""
    names = set(names)
    eye, unused = clip.table(c.vision, {name.removeprefix(EYE) for name in names if name.startswith(EYE)})
    found = [f for f, (start, blocks) in PREFIXES.items() if any(n.startswith(f"{start}{blocks}.") for n in names)]
    if not found:
        raise ValueError(f"no language model of a flamingo-mini among these names: {', '.join(sorted(names)[:5])} …")
    family, V = found[0], c.lm.vocab_size
    start, blocks = PREFIXES[family]
    dense = {"ff.up.weight": "1.weight", "ff.out.weight": "3.weight", **with_bias({"ff_norm": "0"}, True)}
    resampler = {
        **with_bias({"norm_media": "0.norm_media", "norm_latents": "0.norm_latents"}, True),
        **with_bias({"to_q": "0.to_q", "to_out": "0.to_out"}, False),
        "to_kv.weight": (("0.to_k.weight", "0.to_v.weight"), joined),
        **prefixed(dense, theirs="1."),
    }
    layer = {
        "alpha_xattn": "alpha_attn",
        "alpha_dense": "alpha_ffw",
        **with_bias({"xattn.norm": "attn.norm"}, True),
        **with_bias({f"xattn.{to}": f"attn.{to}" for to in ("to_q", "to_kv", "to_out")}, False),
        **prefixed(dense, theirs="ffw."),
    }
    whole: Table = {
        **prefixed(eye, "vision.", EYE),
        "resampler.latents": "flamingo.resampler.latents",
        "resampler.time_embeddings": ("flamingo.resampler.time_pos_emb", lambda t: t.flatten(1)),  # (4, 1, D)
        **with_bias({"resampler.final_norm": "flamingo.resampler.norm"}, True),
        **numbered(c.resampler.layers, resampler, "resampler.layers.*.", "flamingo.resampler.layers.*."),
    }
    module = families.family(family)
    embed = {"gpt2": "wte.weight", "opt": "embed_tokens.weight"}[family]
    for ours, source in prefixed(module.table(c.lm), "lm.", start).items():
        whole[ours] = _inside(source, {f"{start}{blocks}.{i}." for i in c.xattn_layers})
    for i in c.xattn_layers:
        whole |= prefixed(layer, f"xattn_layers.{i}.", f"{start}{blocks}.{i}.xattn_block.")

    def new_rows(t: Tensor) -> Tensor:
        return torch.stack([t[V], t[less_than]])

    whole |= {"lm.embed.weight": (start + embed, first(V)), "new_embed.weight": (start + embed, new_rows)}
    whole |= {"lm.head.weight": ("flamingo.lm_head.weight", first(V)), "new_head.weight": ("flamingo.lm_head.weight", new_rows)}
    return whole, (*(re.escape(EYE) + p for p in unused), *(re.escape(start) + p for p in module.IGNORED))


def _inside(source, wrapped: set[str]):
    """A block that has a bridge in front is stored one level deeper: "h.0.ln_1.weight" is "h.0.lm_block.ln_1.weight"."""
    if not isinstance(source, str):
        return _inside(source[0], wrapped), source[1]
    for start in wrapped:
        if source.startswith(start):
            return start + "lm_block." + source.removeprefix(start)
    return source
