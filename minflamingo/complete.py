"""A trained Flamingo with all it needs to be used, and `complete`, which continues an interleaved prompt.

    flamingo = minflamingo.load("runs/tiny")
    complete(flamingo, [cat, "Output: a cat", EOC, dog, "Output:"])            →   " a dog"

A prompt is a list of text (`str`), images (PIL, arrays), videos (lists of frames) and `EOC`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from .data.images import ImagePreparation, as_frames
from .data.sample import EOC, Sample, collate
from .flamingo import Flamingo
from .generate import beam_search, generate
from .tokenizer import Tokenizer


@dataclass
class LoadedFlamingo:
    """A model together with its tokenizer and its image preparation."""

    model: Flamingo
    tokenizer: Tokenizer
    prepare: ImagePreparation

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def complete(
    flamingo: LoadedFlamingo,
    prompt: Sequence[object],
    max_new_tokens: int = 32,
    beams: int = 1,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    on_text: Callable[[str], None] | None = None,
) -> str:
    """Continue an interleaved prompt with text, up to `<EOC>`.

    Args:
        prompt: text, images, videos (lists of frames) and `EOC`, in order. Text is only text, whatever it contains.
        beams: > 1 searches for the most likely continuation; then temperature must be 0.
        temperature: 0 takes the likeliest token each time; above, tokens are drawn (top_k, top_p narrow the choice).
        on_text: is called with each new piece of the text as soon as it is there (not with beams).
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
        on_token = on_text and _pieces_of_text(flamingo.tokenizer, on_text)
        ids = generate(
            flamingo.model, batch, flamingo.tokenizer.eoc_id, max_new_tokens, temperature, top_k, top_p, generator, on_token
        )
    return flamingo.tokenizer.decode(ids[0])


def _pieces_of_text(tokenizer: Tokenizer, on_text: Callable[[str], None]) -> Callable[[torch.Tensor], None]:
    """Token after token → text. A letter of several bytes is shown when its last one is there."""
    ids: list[int] = []
    shown = 0

    def on_token(token: torch.Tensor) -> None:
        nonlocal shown
        if int(token[0]) == tokenizer.eoc_id:
            return
        ids.append(int(token[0]))
        text = tokenizer.decode(ids)
        if not text.endswith("\ufffd"):
            on_text(text[shown:])
            shown = len(text)

    return on_token
