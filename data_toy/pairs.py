"""Lessons for the eye: pictures with their whole captions, for contrastive learning.

    pixels (B, 48, 48, 3) uint8    captions (B, L) ids, 0 = padding

Figures are the hardest to learn, so besides sums there are plain numbers, 836: reading practice that is used here only. What
a sum comes to is not in its caption. To see "3 x 6" is the eye's task; to know that it is 18 is the tongue's.
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

KINDS = {**{kind: share for kind, share in SHARES.items() if kind != "video"}, "number": 4}


def seen_caption(scene: Scene) -> str:
    """What there is to see. 3x6 in red → "3 x 6 in red at the top": every figure is a token of its own, wherever it stands."""
    if scene.kind in ("sum", "number"):
        return f"{' '.join(map(str, scene.operands))} in {scene.colour} at the {scene.place}"
    return caption(scene)


def contrastive_batch(rng: random.Random, size: int, tokenizer: Tokenizer, split: str = "train") -> tuple[np.ndarray, Tensor]:
    """Pictures of all kinds and the ids of their captions."""
    kinds = rng.choices(list(KINDS), weights=list(KINDS.values()), k=size)
    scenes = [picture_scene(rng, kind, split) for kind in kinds]
    ids = [tokenizer.encode(" " + seen_caption(scene)) for scene in scenes]
    captions = torch.zeros(size, max(map(len, ids)), dtype=torch.long)
    for row, caption_ids in zip(captions, ids):
        row[: len(caption_ids)] = torch.tensor(caption_ids)
    return np.stack([draw(scene, rng) for scene in scenes]), captions
