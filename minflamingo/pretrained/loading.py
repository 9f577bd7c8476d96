"""Published weights into our models. A model is made on the meta device and filled tensor by tensor, so its weights are in
memory only once, in the wanted dtype.

    lm = from_state_dict(their_config, their_state_dict)                     an LM, a ViT or a Flamingo, as the config says
    flamingo = from_state_dict(openflamingo.config(lm.config, every=4), state_dict)
    lm = load_lm("SmolLM2-135M.gguf")                                        an LM from its file or folder
    load_published("openflamingo-3b")                                        from the hub, also tokenizer and preprocessing
    load_published("openflamingo-3b", language="mpt-1b/", device="cuda")     with the LM and its tokenizer in a local folder
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from ..config import FlamingoConfig, LMConfig, VisionConfig
from ..data.images import ImagePreprocessor, clip_preprocessor
from ..flamingo import Flamingo
from ..lm import LM
from ..tokenizer import Tokenizer
from ..vision import ViT
from . import clip, idefics, openflamingo
from .files import Tensors, as_tensors, fetch, find_checkpoint, open_tensors, read_config, renamed
from .language_models import FAMILIES, canonical_name, read_lm_config, recognise
from .presets import PRESETS
from .tables import FLOATS, fill

# The repositories on huggingface.co. OpenFlamingo: language model with its tokenizer, and checkpoint. IDEFICS: all in one.
CLIP_L14 = "openai/clip-vit-large-patch14"
REPOSITORIES = {
    "openflamingo-3b": ("anas-awadalla/mpt-1b-redpajama-200b", "openflamingo/OpenFlamingo-3B-vitl-mpt1b"),
    "openflamingo-3b-instruct":
        ("anas-awadalla/mpt-1b-redpajama-200b-dolly", "openflamingo/OpenFlamingo-3B-vitl-mpt1b-langinstruct"),
    "openflamingo-4b": ("togethercomputer/RedPajama-INCITE-Base-3B-v1", "openflamingo/OpenFlamingo-4B-vitl-rpj3b"),
    "openflamingo-4b-instruct":
        ("togethercomputer/RedPajama-INCITE-Instruct-3B-v1", "openflamingo/OpenFlamingo-4B-vitl-rpj3b-langinstruct"),
    "openflamingo-9b": ("anas-awadalla/mpt-7b", "openflamingo/OpenFlamingo-9B-vitl-mpt7b"),
    **{f"idefics-{size}": f"HuggingFaceM4/idefics-{size}" for size in ("9b", "9b-instruct", "80b", "80b-instruct")},
}  # fmt: skip


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
    Raises ValueError: a name is missing or left over, a shape is wrong, or the config has a setting that is not implemented.
    """
    tensors = as_tensors(tensors, where)
    if not isinstance(config, LMConfig | VisionConfig | FlamingoConfig):
        theirs = config.to_dict() if hasattr(config, "to_dict") else config
        read = {"idefics": idefics.config, "clip": clip.config, "clip_vision_model": clip.config}
        kind = theirs.get("model_type") if isinstance(theirs, Mapping) else None
        config = read.get(str(kind), read_lm_config)(theirs)
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


def load_published(
    name: str, *, vision: str | Path | None = None, language: str | Path | None = None, flamingo: str | Path | None = None,
    dtype: torch.dtype | None = None, device: torch.device | str = "cpu",
) -> tuple[Flamingo, Tokenizer, ImagePreprocessor]:  # fmt: skip
    """The published model `name`, its tokenizer and its image preprocessing. `minflamingo.load` explains the arguments."""
    # This import is here because it needs a package, which others do not, and first because downloads take long.
    from .tokenizers import idefics_tokenizer, openflamingo_tokenizer, read_base

    if name.startswith("idefics"):
        if vision or language:
            raise ValueError(f"{name} has all its parts in one place: use flamingo=, not vision= or language=")
        path = fetch(flamingo or REPOSITORIES[name])
        model = from_state_dict(read_config(path), open_tensors(path), dtype=dtype, device=device, where=str(path))
        tokenizer = idefics_tokenizer(read_base(path), instruct=model.config.n_added_tokens == 3)
        return model, tokenizer, clip_preprocessor(model.config.vision.image_size, "squash")
    given = zip((vision, language, flamingo), (CLIP_L14, *REPOSITORIES[name]))
    vision, language, flamingo = (fetch(own or default) for own, default in given)
    tokenizer = openflamingo_tokenizer(read_base(language))
    # Published LMs often have more rows than their tokenizer has tokens. The first added token comes after the last token.
    lm = replace(read_lm_config(read_config(language)), vocab_size=tokenizer.eoc_id)
    config = openflamingo.config(lm, PRESETS[name.removesuffix("-instruct")].xattn_every, clip.config(read_config(vision)))
    parts = {f"vision_encoder.{n}": tensor for n, tensor in clip.vision_tensors(open_tensors(vision)).items()}
    parts |= {f"lang_encoder.{n}": tensor for n, tensor in open_tensors(language).items()}
    # The token embeddings of the checkpoint replace those of the LM.
    whole = {**openflamingo.canonical(parts), **openflamingo.canonical(open_tensors(flamingo))}
    if dtype is None:  # the parts are published in several types: take one that can hold all their values
        dtypes = {t.dtype for t in whole.values() if isinstance(t, Tensor) and t.dtype in FLOATS}
        dtype = reduce(torch.promote_types, dtypes) if dtypes else None
    model = from_state_dict(config, whole, dtype=dtype, device=device, where=f"{vision}, {language}, {flamingo}")
    return model, tokenizer, clip_preprocessor(config.vision.image_size)
