"""Published weights into our models. A model is made on the meta device and filled tensor by tensor, so its weights are in
memory only once, in the wanted dtype.

    lm = from_state_dict(their_config, their_state_dict)                     an LM, a ViT or a Flamingo, as the config says
    flamingo = from_state_dict(openflamingo.config(lm.config, every=4), state_dict)
    lm = load_lm("SmolLM2-135M.gguf")                                        an LM from its file or folder
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..config import FlamingoConfig, LMConfig, VisionConfig
from ..flamingo import Flamingo
from ..lm import LM
from ..vision import ViT
from . import clip, idefics, openflamingo
from .files import as_tensors, find_checkpoint, open_tensors, read_config, read_gguf, renamed
from .language_models import FAMILIES, canonical_name, gguf_config, gguf_table, read_lm_config, recognise
from .tables import fill


def from_state_dict(
    config: object, state_dict: Mapping[str, Tensor], layout: str | None = None, *, dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu", where: str = "the state dict",
) -> LM | ViT | Flamingo:  # fmt: skip
    """Weights of a published architecture -> our model, in evaluation mode.

    Args:
        config: our LMConfig, VisionConfig or FlamingoConfig; or the content of their config.json, or an object with `to_dict`.
        layout: whose names these are: a family of `language_models.FAMILIES`, "openflamingo" or "idefics". None: find out.
        dtype, device: of the new weights; dtype None: as they are.
    Raises:
        ValueError: a name is missing or left over, a shape is wrong, or the config has a setting that is not implemented.
    """
    tensors = as_tensors(state_dict)
    if not isinstance(config, LMConfig | VisionConfig | FlamingoConfig):
        theirs = dict(config) if isinstance(config, Mapping) else config.to_dict()
        layout = layout or theirs.get("model_type")
        if layout == "idefics":
            config = idefics.config(theirs)
        else:
            config = clip.config(theirs) if layout in ("clip", "clip_vision_model") else read_lm_config(layout, theirs)
    if isinstance(config, VisionConfig):
        tensors = clip.vision_tensors(tensors)
        table, ignored = clip.table(tensors), clip.IGNORED
    elif isinstance(config, LMConfig):
        family = layout or recognise(tensors)
        tensors = renamed(tensors, lambda name: canonical_name(name, family))
        table, ignored = FAMILIES[family].table(config), FAMILIES[family].ignored
    elif layout == "idefics" or (layout is None and "model.perceiver_resampler.latents" in tensors):
        table, ignored = idefics.table(config), idefics.IGNORED
    elif layout in (None, "openflamingo"):
        family = openflamingo.lm_family(tensors)
        tensors = openflamingo.canonical(tensors, family)
        config = openflamingo.with_stored_head(config, tensors)
        table = openflamingo.table(config, tensors, family)
        ignored = [*(rf"vision_encoder\.{p}" for p in clip.IGNORED), *(rf"lang_encoder\.{p}" for p in FAMILIES[family].ignored)]
    else:
        raise ValueError(f"layout is {layout!r}; for a FlamingoConfig it is 'openflamingo' or 'idefics'")
    kinds = {VisionConfig: ViT, LMConfig: LM, FlamingoConfig: Flamingo}
    with torch.device("meta"):
        model = kinds[type(config)](config)
    fill(model, tensors, table, where, ignored=ignored, dtype=dtype, device=device)
    return model.eval()


def load_lm(path: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> LM:
    """A language model from its folder (config.json and weights), or from a GGUF file of the architecture "llama"."""
    path = find_checkpoint(Path(path)) if Path(path).is_dir() else Path(path)
    tensors = open_tensors(path)
    if path.suffix != ".gguf":
        return from_state_dict(read_config(path), tensors, dtype=dtype, device=device, where=str(path))
    metadata = read_gguf(path)[1]
    if metadata.get("general.architecture") != "llama":
        raise ValueError(f"{path}: the architecture is {metadata.get('general.architecture')!r}; only 'llama' is implemented")
    config = gguf_config(metadata, tensors["token_embd.weight"].shape[0], tied_head="output.weight" not in tensors)
    with torch.device("meta"):
        lm = LM(config)
    fill(lm, tensors, gguf_table(config), str(path), ignored=[r"rope_freqs\.weight"], dtype=dtype, device=device)
    return lm.eval()
