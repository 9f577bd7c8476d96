"""The families of language models by the names of their config.json, and what they have in common: a prefix and a head.

Published files call the same tensor `transformer.wte.weight` (a model with a head) or `wte.weight` (one without). A head that
is tied to the embeddings may be stored or not.

    config("gpt2", {"n_embd": 768, …}) → LMConfig        table("gpt2", config, names) → our name → their name
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ..config import LMConfig
from . import gpt2, llama, mpt, neox, opt
from .tables import Table, prefixed

FAMILIES = {"gpt2": gpt2, "opt": opt, "gpt_neox": neox, "mpt": mpt, "mosaic_gpt": mpt, "llama": llama}
HEADS = ("lm_head.weight", "embed_out.weight")  # GPT-NeoX's was renamed in new releases of its library


# What stands in the names of a family and of no other
SIGNS = {"attn.c_attn.": "gpt2", ".fc1.": "opt", ".query_key_value.": "gpt_neox", ".Wqkv.": "mpt", "mlp.gate_proj.": "llama"}


def recognise(names: Iterable[str]) -> str:
    """The family whose names these are.

    Raises:
        ValueError: none that we know.
    """
    names = list(names)
    for sign, found in SIGNS.items():
        if any(sign in name for name in names):
            return found
    raise ValueError(f"no family of language models has these names: {', '.join(sorted(names)[:5])} …")


def family(name: str):
    """The module of a family.

    Raises:
        ValueError: it is none of ours.
    """
    if name not in FAMILIES:
        raise ValueError(f"unknown family of language models {name!r}; there are {', '.join(FAMILIES)}")
    return FAMILIES[name]


def config(name: str, theirs: Mapping) -> LMConfig:
    """The config of a model from the content of its config.json.

    Raises:
        ValueError: it asks for what our classes do not have, or a field is missing.
    """
    try:
        return family(name).config(theirs)
    except KeyError as error:
        raise ValueError(f"the config of this {name} has no field {error}") from None


def table(name: str, c: LMConfig, names: Iterable[str]) -> tuple[Table, tuple[str, ...]]:
    """Our names → the names of this checkpoint, and regular expressions of those that are knowingly not used."""
    names, module = set(names), family(name)
    prefix = module.PREFIX if any(n.startswith(module.PREFIX) for n in names) else ""
    ignored = [re.escape(prefix) + pattern for pattern in module.IGNORED]
    own = prefixed(module.table(c), theirs=prefix)
    if c.tied_head:
        ignored += map(re.escape, HEADS)
    else:
        own["head.weight"] = next((head for head in HEADS if head in names), HEADS[0])
    return own, tuple(ignored)
