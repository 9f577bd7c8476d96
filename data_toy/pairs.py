"""Lessons for the eye: batches of pictures with their whole captions, for contrastive learning.

A batch holds three kinds of pictures only, drawn anew each time: 85 sums that differ in a figure teach to read figures; among
pictures of all kinds the sum would be told from the rest by being a sum (hard negatives).

    pixels (B, 48, 48, 3) uint8    captions (B, L) ids, 0 = padding
"""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor

from minflamingo.tokenizer import Tokenizer

from .album import SHARES, picture_scene
from .draw import draw
from .words import caption
from .world import Scene


def seen_caption(scene: Scene) -> str:
    """What the eye can know: of a sum the figures, not its value. 3x6=18 in red → "3x6 in red": working it out is the LM's."""
    text = caption(scene)
    if scene.kind == "sum":
        figures, _, rest = text.partition("=")
        text = f"{figures} {rest.split(' ', 1)[1]}"
    return text


def contrastive_batch(rng: random.Random, size: int, tokenizer: Tokenizer, split: str = "train") -> tuple[np.ndarray, Tensor]:
    """Pictures and the ids of their captions."""
    kinds = [kind for kind in SHARES if kind != "video"]
    kinds = rng.sample(kinds, k=3, counts=[SHARES[kind] for kind in kinds])
    scenes = [picture_scene(rng, rng.choice(kinds), split) for _ in range(size)]
    ids = [tokenizer.encode(" " + seen_caption(scene)) for scene in scenes]
    captions = torch.zeros(size, max(map(len, ids)), dtype=torch.long)
    for row, caption_ids in zip(captions, ids):
        row[: len(caption_ids)] = torch.tensor(caption_ids)
    return np.stack([draw(scene, rng) for scene in scenes]), captions
