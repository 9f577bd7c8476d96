"""A trained Flamingo with all it needs to be used: `load` it, and `complete` an interleaved prompt.

    flamingo = minflamingo.load("runs/tiny")
    complete(flamingo, [cat, "Output: a cat", EOC, dog, "Output:"])            →   " a dog"

A prompt is a list of text (`str`), images (PIL, arrays), videos (lists of frames) and `EOC`. On disk a Flamingo is a folder:
`config.json` (sizes, image preparation), `tokenizer.json` (words, or all of a published tokenizer) and `model.pt` (tensors,
read without running code).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .config import FlamingoConfig
from .data.images import ImagePreparation, as_frames
from .data.sample import EOC, Sample, collate
from .flamingo import Flamingo
from .generate import beam_search, generate
from .pretrained.tokenizers import PretrainedTokenizer
from .tokenizer import Tokenizer, ToyTokenizer
from .training.checkpoint import load_json, load_tensors, load_weights, save_json, save_tensors, write_atomically


@dataclass
class LoadedFlamingo:
    """A model together with its tokenizer and its image preparation."""

    model: Flamingo
    tokenizer: Tokenizer
    prepare: ImagePreparation

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def save(flamingo: LoadedFlamingo, folder: str | Path) -> None:
    """Write the folder that `load` reads; each file atomically, the weights last."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_json({"flamingo": flamingo.model.config.to_dict(), "image": flamingo.prepare.to_dict()}, folder / "config.json")
    write_atomically(folder / "tokenizer.json", flamingo.tokenizer.save)
    save_tensors(flamingo.model.state_dict(), folder / "model.pt")


def load(folder: str | Path, device: torch.device | str = "cpu") -> LoadedFlamingo:
    """Read what `save` (or `train_tiny.py`) wrote; the model is in evaluation mode.

    Raises:
        FileNotFoundError: the folder or one of its files is missing. ValueError: a file is damaged or does not fit.
    """
    folder = Path(folder)
    for name in ("config.json", "tokenizer.json", "model.pt"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing: no folder of a trained Flamingo (train_tiny.py writes one)")
    content = load_json(folder / "config.json")
    try:
        config = FlamingoConfig.from_dict(content["flamingo"])
        prepare = ImagePreparation(**content["image"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'} is not the config of a Flamingo: {error!r}") from None
    of_its_kind = {"pretrained": PretrainedTokenizer}.get(load_json(folder / "tokenizer.json").get("kind"), ToyTokenizer)
    tokenizer = of_its_kind.load(folder / "tokenizer.json")
    if tokenizer.vocab_size != config.lm.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the language model {config.lm.vocab_size}; "
            "these files are not of one model"
        )
    model = Flamingo(config)
    load_weights(model, load_tensors(folder / "model.pt"), str(folder / "model.pt"))
    return LoadedFlamingo(model.to(device).eval(), tokenizer, prepare)


def complete(
    flamingo: LoadedFlamingo,
    prompt: Sequence[object],
    max_new_tokens: int = 32,
    beams: int = 1,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
) -> str:
    """Continue an interleaved prompt with text, up to `<EOC>`.

    Args:
        prompt: text, images, videos (lists of frames) and `EOC`, in order. Text is only text, whatever it contains.
        beams: > 1 searches for the most likely continuation; then temperature must be 0.
        temperature: 0 takes the likeliest token each time; above, tokens are drawn (top_k, top_p narrow the choice).
    Raises:
        TypeError, ValueError: something in the prompt is no text and no image; says which piece and why.
    """
    if isinstance(prompt, str) or not isinstance(prompt, Sequence):
        raise TypeError("complete: the prompt is a list, such as [image, 'Output: a cat', EOC, image, 'Output:']")
    if not prompt:
        raise ValueError("complete: the prompt is empty")
    if beams < 1:
        raise ValueError(f"complete: beams is {beams}; it must be at least 1")
    if beams > 1 and temperature > 0:
        raise ValueError("complete: beam search does not sample; use beams=1 or temperature=0")
    pieces = [
        p if isinstance(p, str) or p is EOC else as_frames(p, f"prompt, piece {i}") for i, p in enumerate(prompt)
    ]
    batch = collate([Sample(pieces)], flamingo.tokenizer, flamingo.prepare, pad="left").to(flamingo.device)
    if beams > 1:
        ids = beam_search(flamingo.model, batch, flamingo.tokenizer.eoc_id, beams, max_new_tokens)
    else:
        generator = None if seed is None else torch.Generator(flamingo.device).manual_seed(seed)
        ids = generate(
            flamingo.model, batch, flamingo.tokenizer.eoc_id, max_new_tokens, temperature, top_k, top_p, generator
        )
    return flamingo.tokenizer.decode(ids[0])
