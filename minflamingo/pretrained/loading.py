"""Published weights into our models: from a state dict in memory, or from files.

    lm = from_state_dict(their_config, their_state_dict)                 LM, ViT or Flamingo, whatever the config says
    flamingo = from_state_dict(openflamingo.config(lm.config, every=4), state_dict)
    lm = load_lm("SmolLM2-135M.gguf")                                    an LM from its file or folder

Models are made on the meta device and filled tensor by tensor, so the weights are in memory once, in the wanted dtype.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..config import FlamingoConfig, LMConfig, VisionConfig
from ..flamingo import Flamingo
from ..lm import LM
from ..vision import ViT
from . import clip, families, flamingo_mini, idefics, llama, openflamingo
from .files import as_tensors, open_tensors, read_config
from .tables import fill


def from_state_dict(
    config: object,
    state_dict: Mapping[str, Tensor],
    family: str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    where: str = "the state dict",
) -> LM | ViT | Flamingo:
    """Weights of a published architecture → our model, in evaluation mode.

    Args:
        config: our LMConfig, VisionConfig or FlamingoConfig; or theirs, as a config.json's content or an object with `to_dict`
            (`model_type` names the family).
        family: one of `families.FAMILIES` (LM), "openflamingo", "idefics" or "flamingo_mini"; None: the names say which.
        dtype, device: where the weights go; dtype None: as they are.
    Raises:
        ValueError: a name is missing, left over or of another shape, or the config asks for what we do not have.
    """
    tensors = as_tensors(state_dict)
    if not isinstance(config, LMConfig | VisionConfig | FlamingoConfig):
        theirs = dict(config) if isinstance(config, Mapping) else config.to_dict()
        family = family or theirs.get("model_type")
        if family == "idefics":
            config = idefics.config(theirs)
        elif family in ("clip", "clip_vision_model"):
            config = clip.config(theirs)
        else:
            config = families.config(family, theirs)
    if isinstance(config, VisionConfig):
        table, ignored = clip.table(config, tensors)
    elif isinstance(config, LMConfig):
        table, ignored = families.table(family or families.recognise(tensors), config, tensors)
    elif (family := family or recognise(tensors)) == "idefics":
        table, ignored = idefics.table(config)
    elif family == "flamingo_mini":
        table, ignored = flamingo_mini.table(config, tensors)
    elif family == "openflamingo":
        tensors = tensors.renamed(openflamingo.canonical(tensors, openflamingo.family_of(tensors)[1]))
        config = openflamingo.heads_as_stored(config, tensors)
        table, ignored = openflamingo.table(config, tensors)
    else:
        raise ValueError(f"family is {family!r}; for a FlamingoConfig say 'openflamingo', 'idefics' or 'flamingo_mini'")
    kinds = {VisionConfig: ViT, LMConfig: LM, FlamingoConfig: Flamingo}
    with torch.device("meta"):
        model = kinds[type(config)](config)
    fill(model, tensors, table, where, ignored, dtype=dtype, device=device)
    return model.eval()


def recognise(names: Iterable[str]) -> str | None:
    """Which Flamingo's names these are."""
    signs = {
        "idefics": "model.perceiver_resampler.", "flamingo_mini": "flamingo.resampler.", "openflamingo": "perceiver.latents",
    }  # fmt: skip
    names = list(names)
    return next((family for family, sign in signs.items() if any(sign in name for name in names)), None)


def load_lm(path: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> LM:
    """A language model from its folder (config.json and weights), or from a GGUF file of the architecture "llama"."""
    tensors = open_tensors(path)
    if not tensors.metadata:
        return from_state_dict(read_config(path), tensors, dtype=dtype, device=device, where=str(path))
    name = tensors.metadata.get("general.architecture")
    if name != "llama":
        raise ValueError(f"{path} holds a {name!r}; of GGUF files only the architecture 'llama' is read")
    tied = "output.weight" not in tensors
    config = llama.gguf_config({**tensors.metadata, "tied_head": tied}, tensors.meta("token_embd.weight"))
    with torch.device("meta"):
        lm = LM(config)
    fill(lm, tensors, llama.gguf_table(config), str(path), llama.GGUF_IGNORED, dtype=dtype, device=device)
    return lm.eval()
