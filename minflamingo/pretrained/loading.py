"""Published weights into our models. A model is made on the meta device and filled tensor by tensor, so its weights are in
memory only once, in the wanted dtype.

    lm = from_state_dict(their_config, their_state_dict)                     an LM, a ViT or a Flamingo, as the config says
    flamingo = from_state_dict(openflamingo.config(lm.config, every=4), state_dict)
    lm = load_lm("SmolLM2-135M.gguf")                                        an LM from its file or folder
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from ..config import FlamingoConfig, LMConfig, VisionConfig
from ..flamingo import Flamingo
from ..lm import LM
from ..vision import ViT
from . import clip, idefics, openflamingo
from .files import Tensors, find_checkpoint, open_tensors, read_config, renamed
from .language_models import FAMILIES, canonical_name, read_lm_config, recognise
from .tables import fill


def from_state_dict(
    config: object, tensors: Tensors, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu",
    where: str = "the state dict",
) -> LM | ViT | Flamingo:  # fmt: skip
    """Weights of a published architecture -> our model, in evaluation mode. Their names say which architecture it is.

    Args:
        config: our LMConfig, VisionConfig or FlamingoConfig; or the content of their config.json, or an object with `to_dict`.
        tensors: a state dict, or a checkpoint from `open_tensors`.
        dtype, device: of the new weights; dtype None: as they are.
        where: the name of the checkpoint in errors.
    Raises:
        ValueError: a name is missing or left over, a shape is wrong, or the config has a setting that is not implemented.
    """
    if not isinstance(config, LMConfig | VisionConfig | FlamingoConfig):
        theirs = config if isinstance(config, Mapping) else config.to_dict()
        read = {"idefics": idefics.config, "clip": clip.config, "clip_vision_model": clip.config}
        config = read.get(theirs.get("model_type"), read_lm_config)(theirs)
    if isinstance(config, VisionConfig):
        kind, tensors = ViT, clip.vision_tensors(tensors)
        table = clip.table(tensors)
    elif isinstance(config, LMConfig):
        kind, table = LM, FAMILIES[recognise(tensors)].table(config)
        tensors = renamed(tensors, canonical_name)
    elif "model.perceiver_resampler.latents" in tensors:
        kind, table = Flamingo, idefics.table(config)
    else:
        kind, (config, tensors, table) = Flamingo, openflamingo.layout(config, tensors)
    with torch.device("meta"):
        model = kind(config)
    fill(model, tensors, table, where, dtype=dtype, device=device)
    return model.eval()


def load_lm(path: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> LM:
    """A language model from its folder (config.json and weights), or from a GGUF file of the architecture "llama"."""
    path = find_checkpoint(Path(path))
    tensors = open_tensors(path)  # first, because it checks the file
    return from_state_dict(read_config(path), tensors, dtype=dtype, device=device, where=str(path))
