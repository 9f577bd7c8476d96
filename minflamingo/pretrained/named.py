"""Published Flamingos by name: their parts, from files or hub repositories, with tokenizer and image preparation.

    flamingo = load_named("openflamingo-3b", vision="clip-vit-large-patch14/", language="mpt-1b-redpajama-200b/",
                          flamingo="OpenFlamingo-3B-vitl-mpt1b/checkpoint.pt", dtype=torch.bfloat16, device="cuda")
    complete(flamingo, [cat, "Output: a cat", EOC, dog, "Output:"])

Nothing is downloaded by itself: whoever wants a part from the hub says its name, for example one of `HUB`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from ..pipeline import Pipeline
from ..config import preset
from ..data.images import clip_preprocessor, idefics_preprocessor
from . import clip, families, idefics, openflamingo
from .files import Tensors, fetch, open_tensors, read_config
from .loading import from_state_dict
from .tokenizers import idefics_tokenizer, openflamingo_tokenizer, read_base

CLIP_L14 = "openai/clip-vit-large-patch14"
# What the authors published, and of which parts it is made: (vision, language, flamingo)
HUB = {
    "openflamingo-3b": (CLIP_L14, "anas-awadalla/mpt-1b-redpajama-200b", "openflamingo/OpenFlamingo-3B-vitl-mpt1b"),
    "openflamingo-3b-instruct": (
        CLIP_L14, "anas-awadalla/mpt-1b-redpajama-200b-dolly", "openflamingo/OpenFlamingo-3B-vitl-mpt1b-langinstruct",
    ),
    "openflamingo-4b": (CLIP_L14, "togethercomputer/RedPajama-INCITE-Base-3B-v1", "openflamingo/OpenFlamingo-4B-vitl-rpj3b"),
    "openflamingo-4b-instruct": (
        CLIP_L14, "togethercomputer/RedPajama-INCITE-Instruct-3B-v1", "openflamingo/OpenFlamingo-4B-vitl-rpj3b-langinstruct",
    ),
    "openflamingo-9b": (CLIP_L14, "anas-awadalla/mpt-7b", "openflamingo/OpenFlamingo-9B-vitl-mpt7b"),
    "idefics-9b": (None, None, "HuggingFaceM4/idefics-9b"),
    "idefics-9b-instruct": (None, None, "HuggingFaceM4/idefics-9b-instruct"),
    "idefics-80b": (None, None, "HuggingFaceM4/idefics-80b"),
    "idefics-80b-instruct": (None, None, "HuggingFaceM4/idefics-80b-instruct"),
}  # fmt: skip


def load_named(
    name: str,
    vision: str | Path | None = None,
    language: str | Path | None = None,
    flamingo: str | Path | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Pipeline:
    """A published Flamingo, ready for `complete`.

    Args:
        name: one of `HUB`.
        vision, language, flamingo: file, folder, or name of a hub repository of each part. IDEFICS has all in `flamingo`.
        dtype, device: where the weights go; dtype None: as they are stored.
    Raises:
        ValueError: unknown name, a part not given, or weights that do not fit. FileNotFoundError: a part is not there.
    """
    if name not in HUB:
        raise ValueError(f"unknown model {name!r}; there are {', '.join(HUB)}, and the folders that `save` writes")
    given = {"vision": vision, "language": language, "flamingo": flamingo}
    needed = {part: hub for part, hub in zip(given, HUB[name]) if hub and given[part] is None}
    if needed:
        said = ", ".join(f"{part}= (published as {hub})" for part, hub in needed.items())
        raise ValueError(f"{name}: say where its parts are: {said}")
    paths = {part: fetch(where) for part, where in given.items() if where is not None}
    if name.startswith("idefics"):
        folder = paths["flamingo"]
        theirs = read_config(folder)
        model = from_state_dict(idefics.config(theirs), open_tensors(folder), "idefics", dtype, device, str(folder))
        base = read_base(folder if folder.is_dir() else folder.parent)
        tokenizer = idefics_tokenizer(base, instruct=model.config.n_new_tokens == 3)
        return Pipeline(model, tokenizer, idefics_preprocessor(model.config.vision.image_size))
    model = openflamingo_from_parts(name, paths, dtype, device)
    folder = paths["language"]
    base = read_base(folder if folder.is_dir() else folder.parent)
    tokenizer = openflamingo_tokenizer(base, vocab_size=model.config.lm.vocab_size + model.config.n_new_tokens)
    return Pipeline(model, tokenizer, clip_preprocessor(model.config.vision.image_size))


def openflamingo_from_parts(name: str, paths: dict[str, Path], dtype, device):
    """Eye, language model and checkpoint as if they were one state dict; the checkpoint's table of tokens counts."""
    theirs = read_config(paths["language"])
    family = theirs["model_type"]
    lm_tensors, checkpoint = open_tensors(paths["language"]), open_tensors(paths["flamingo"])
    prefix = families.family(family).PREFIX
    prefix = "" if any(n.startswith(prefix) for n in lm_tensors) else prefix
    bare = {n.removeprefix("module."): entry for n, entry in checkpoint.entries.items()}
    whole = Tensors({
        **{f"vision_encoder.{n}": entry for n, entry in open_tensors(paths["vision"]).entries.items()},
        **{f"lang_encoder.{'' if n in families.HEADS else prefix}{n}": entry for n, entry in lm_tensors.entries.items()},
        **bare,
    })  # fmt: skip
    lm, every, n_new = families.config(family, theirs), preset(name).xattn_every, preset(name).n_new_tokens
    embed = openflamingo.embedding_of(whole)
    lm = replace(lm, vocab_size=whole.meta(embed).shape[0] - n_new)
    eye = clip.config(read_config(paths["vision"])) if (paths["vision"] / "config.json").is_file() else preset(name).vision
    config = openflamingo.config(lm, every, eye, n_new)
    return from_state_dict(config, whole, "openflamingo", dtype, device, f"{name} ({', '.join(map(str, paths.values()))})")
