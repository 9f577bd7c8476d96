"""Published Flamingo models by name, with tokenizer and image preprocessing. `minflamingo.load(name)` calls `load_published`.

    load_published("openflamingo-3b")                                     downloads all parts from the hub, once
    load_published("openflamingo-3b", language="mpt-1b/", device="cuda")  takes the LM and its tokenizer from a local folder
"""

from dataclasses import replace
from pathlib import Path

import torch

from ..data.images import ImagePreprocessor, clip_preprocessor
from ..flamingo import Flamingo
from ..tokenizer import Tokenizer
from . import clip, openflamingo
from .files import fetch, open_tensors, read_config
from .language_models import read_lm_config
from .loading import from_state_dict
from .presets import PRESETS

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


def load_published(
    name: str, *, vision: str | Path | None = None, language: str | Path | None = None, flamingo: str | Path | None = None,
    dtype: torch.dtype | None = None, device: torch.device | str = "cpu",
) -> tuple[Flamingo, Tokenizer, ImagePreprocessor]:  # fmt: skip
    """The published model `name`, its tokenizer and its image preprocessing. For the arguments see `minflamingo.load`."""
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
    model = from_state_dict(config, whole, dtype=dtype, device=device, where=f"{vision}, {language}, {flamingo}")
    return model, tokenizer, clip_preprocessor(config.vision.image_size)
