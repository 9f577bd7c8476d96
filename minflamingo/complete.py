"""A trained Flamingo with all it needs to be used, and `complete`, which continues an interleaved prompt.

    flamingo = minflamingo.load("runs/tiny")
    complete(flamingo, [cat, "Output: a cat", EOC, dog, "Output:"])            →   " a dog"

A prompt is a list of text (`str`), images (PIL, arrays), videos (lists of frames) and `EOC`. Shots that stand before many
queries are read once, and so are their images:

    shots = remember(flamingo, [cat, "Output: a cat", EOC])
    complete(flamingo, [dog, "Output:"], after=shots)                          →   " a dog", as above
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from .data.images import ImagePreparation, as_frames
from .data.sample import EOC, Sample, collate
from .flamingo import Batch, Cache, Flamingo
from .generate import beam_search, generate, read_prompt
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


@torch.inference_mode()
def remember(flamingo: LoadedFlamingo, shots: Sequence[object]) -> Cache:
    """Read an interleaved list once, for any number of `complete(flamingo, query, after=…)`; none of them changes it.

    Args:
        shots: text, images, videos and `EOC`, as in `complete`, from the sequence's beginning (`<BOS>`).
    Returns:
        The cache behind them: one row of keys and values, and of all images only the last one, which text goes on seeing.
    Raises:
        TypeError, ValueError: as in `complete`.
    """
    return read_prompt(flamingo.model, _batch(flamingo, shots, "remember"))[1]


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
    after: Cache | None = None,
) -> str:
    """Continue an interleaved prompt with text, up to `<EOC>`.

    Args:
        prompt: text, images, videos (lists of frames) and `EOC`, in order. Text is only text, whatever it contains.
        beams: > 1 searches for the most likely continuation; then temperature must be 0.
        temperature: 0 takes the likeliest token each time; above, tokens are drawn (top_k, top_p narrow the choice).
        on_text: is called with each new piece of the text as soon as it is there (not with beams).
        after: what `remember` has read. The prompt goes on from there, without a `<BOS>` of its own.
    Raises:
        TypeError, ValueError: something in the prompt is no text and no image; says which piece and why.
    """
    if beams < 1:
        raise ValueError(f"complete: beams is {beams}; it must be at least 1")
    if beams > 1 and temperature > 0:
        raise ValueError("complete: beam search does not sample; use beams=1 or temperature=0")
    batch = _batch(flamingo, prompt, "complete", bos=after is None)
    if beams > 1:
        ids = beam_search(flamingo.model, batch, flamingo.tokenizer.eoc_id, beams, max_new_tokens, after=after)
    else:
        generator = None if seed is None else torch.Generator(flamingo.device).manual_seed(seed)
        on_token = on_text and _pieces_of_text(flamingo.tokenizer, on_text)
        how = (max_new_tokens, temperature, top_k, top_p, generator, on_token, after)
        ids = generate(flamingo.model, batch, flamingo.tokenizer.eoc_id, *how)
    return flamingo.tokenizer.decode(ids[0])


def _batch(flamingo: LoadedFlamingo, prompt: Sequence[object], caller: str, bos: bool = True) -> Batch:
    """A prompt as a batch of one row; `caller` is named in errors."""
    if isinstance(prompt, str) or not isinstance(prompt, Sequence):
        raise TypeError(f"{caller}: the prompt is a list, such as [image, 'Output: a cat', EOC, image, 'Output:']")
    if not prompt:
        raise ValueError(f"{caller}: the prompt is empty")
    pieces = [p if isinstance(p, str) or p is EOC else as_frames(p, f"prompt, piece {i}") for i, p in enumerate(prompt)]
    return collate([Sample(pieces, bos=bos)], flamingo.tokenizer, flamingo.prepare).to(flamingo.device)


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
