"""Published Flamingo models by name, with tokenizer and image preprocessing. `minflamingo.load(name)` calls `load_published`.

    load_published("openflamingo-3b")                                     downloads all parts from the hub, once
    load_published("openflamingo-3b", language="mpt-1b/", device="cuda")  takes the LM and its tokenizer from a local folder
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from ..data.images import ImagePreprocessor, clip_preprocessor, idefics_preprocessor
from ..flamingo import Flamingo
from ..tokenizer import Tokenizer
from . import clip, idefics, openflamingo
from .files import fetch, open_tensors, read_config, renamed
from .language_models import FAMILIES, canonical_name, read_lm_config
from .loading import from_state_dict
from .presets import published

CLIP_L14 = "openai/clip-vit-large-patch14"
# The repositories on huggingface.co: vision encoder, language model (with the tokenizer), checkpoint. IDEFICS has all in one.
REPOSITORIES = {
    "openflamingo-3b": (CLIP_L14, "anas-awadalla/mpt-1b-redpajama-200b", "openflamingo/OpenFlamingo-3B-vitl-mpt1b"),
    "openflamingo-3b-instruct": (
        CLIP_L14, "anas-awadalla/mpt-1b-redpajama-200b-dolly", "openflamingo/OpenFlamingo-3B-vitl-mpt1b-langinstruct",
    ),
    "openflamingo-4b": (CLIP_L14, "togethercomputer/RedPajama-INCITE-Base-3B-v1", "openflamingo/OpenFlamingo-4B-vitl-rpj3b"),
    "openflamingo-4b-instruct": (
        CLIP_L14, "togethercomputer/RedPajama-INCITE-Instruct-3B-v1", "openflamingo/OpenFlamingo-4B-vitl-rpj3b-langinstruct",
    ),
    "openflamingo-9b": (CLIP_L14, "anas-awadalla/mpt-7b", "openflamingo/OpenFlamingo-9B-vitl-mpt7b"),
    **{name: (None, None, f"HuggingFaceM4/{name}") for name in
       ("idefics-9b", "idefics-9b-instruct", "idefics-80b", "idefics-80b-instruct")},
}  # fmt: skip
NAMES = tuple(REPOSITORIES)


def load_published(
    name: str, *, vision: str | Path | None = None, language: str | Path | None = None, flamingo: str | Path | None = None,
    dtype: torch.dtype | None = None, device: torch.device | str = "cpu",
) -> tuple[Flamingo, Tokenizer, ImagePreprocessor]:  # fmt: skip
    """A published model, its tokenizer and its image preprocessing.

    Args:
        name: one of `NAMES`.
        vision, language, flamingo: a file, a folder or a hub repository that replaces the default of this part.
        dtype, device: of the weights; dtype None: as stored.
    Raises:
        ValueError: an unknown name, or weights that do not fit. FileNotFoundError: a part is missing or cannot be downloaded.
        ImportError: a package of the extra [real] is missing.
    """
    from .tokenizers import idefics_tokenizer, openflamingo_tokenizer, read_base  # needs a package, others in this file do not

    if name not in REPOSITORIES:
        raise ValueError(f"unknown model {name!r}; choose one of {', '.join(NAMES)}")
    if name.startswith("idefics") and (vision or language):
        raise ValueError(f"{name} has all its parts in one place: use flamingo=, not vision= or language=")
    given = zip((vision, language, flamingo), REPOSITORIES[name])
    vision, language, flamingo = (fetch(own or repository) if repository else None for own, repository in given)
    with_tokenizer = language or flamingo
    base = read_base(with_tokenizer if with_tokenizer.is_dir() else with_tokenizer.parent)
    if language is None:
        config, tensors = idefics.config(read_config(flamingo)), open_tensors(flamingo)
        model = from_state_dict(config, tensors, "idefics", dtype=dtype, device=device, where=str(flamingo))
        tokenizer = idefics_tokenizer(base, instruct=config.n_added_tokens == 3)
        return model, tokenizer, idefics_preprocessor(config.vision.image_size)
    config, tensors = openflamingo_parts(name, vision, language, flamingo)
    where = f"{name} ({vision}, {language}, {flamingo})"
    model = from_state_dict(config, tensors, "openflamingo", dtype=dtype, device=device, where=where)
    tokenizer = openflamingo_tokenizer(base, vocab_size=config.lm.vocab_size + config.n_added_tokens)
    return model, tokenizer, clip_preprocessor(config.vision.image_size)


def openflamingo_parts(name: str, vision: Path, language: Path, flamingo: Path) -> tuple:
    """Config, and vision encoder, LM and checkpoint as one state dict. The checkpoint's token embeddings replace the LM's."""
    theirs, default = read_config(language), published(name)
    family = theirs.get("model_type")
    lm = read_lm_config(family, theirs)
    whole = {
        **renamed(clip.vision_tensors(open_tensors(vision)), lambda n: f"vision_encoder.{n}"),
        **renamed(open_tensors(language), lambda n: f"lang_encoder.{canonical_name(n, family)}"),
        **openflamingo.canonical(open_tensors(flamingo), family),
    }
    # The checkpoint says how many tokens there are: published LMs often have more rows than their tokenizer has tokens.
    rows = whole[f"lang_encoder.{FAMILIES[family].table(lm)['embed']}.weight"].shape[0]
    lm = replace(lm, vocab_size=rows - default.n_added_tokens)
    has_config = ((vision if vision.is_dir() else vision.parent) / "config.json").is_file()  # not with open_clip's files
    encoder = clip.config(read_config(vision)) if has_config else default.vision
    return openflamingo.config(lm, default.xattn_every, encoder), whole
