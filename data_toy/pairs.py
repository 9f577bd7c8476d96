"""Lessons for the eye: pictures with their whole captions, for contrastive learning.

    pixels (B, 48, 48, 3) uint8    captions (B, L) ids, 0 = padding

Figures are the hardest to learn, so besides sums there are plain numbers, 836: reading practice that is used here only. What
a sum comes to is not in its caption. To see "3 x 6" is the eye's task; to know that it is 18 is the tongue's.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from minflamingo.tokenizer import Tokenizer

from .album import SHARES, any_scene, picture_scene
from .draw import draw
from .words import caption
from .world import Scene, held_out

KINDS = {**{kind: share for kind, share in SHARES.items() if kind != "video"}, "number": 6}


def seen_caption(scene: Scene) -> str:
    """What there is to see. 3x6 in red → "3 x 6 in red at the top": every figure is a token of its own, wherever it stands."""
    if scene.kind in ("sum", "number"):
        return f"{' '.join(map(str, scene.operands))} in {scene.colour} at the {scene.place}"
    return caption(scene)


def look_alikes(rng: random.Random, share: float = 0.6) -> Callable[[str], Scene]:
    """A maker of scenes that agree, kind by kind, in a random part of their facts: hard negatives.

    In a batch whose sums are all red and at the top, only the figures are left to tell them apart.
    """
    common: dict[str, dict] = {}

    def make(kind: str) -> Scene:
        if kind not in common:
            model = any_scene(rng, kind)
            facts = [fact for fact in ("colour", "count", "place", "relation") if getattr(model, fact) is not None]
            common[kind] = {fact: getattr(model, fact) for fact in facts if rng.random() < share}
        for _ in range(30):
            scene = replace(any_scene(rng, kind), **common[kind])
            if not held_out(scene):
                return scene
        return picture_scene(rng, kind)  # these facts leave hardly anything that is not held out

    return make


def contrastive_batch(rng: random.Random, size: int, tokenizer: Tokenizer, hard: bool = False) -> tuple[np.ndarray, Tensor]:
    """Pictures of all kinds and the ids of their captions. `hard`: look-alikes, for an eye that already tells the rest."""
    make = look_alikes(rng) if hard else partial(picture_scene, rng)
    scenes = [make(kind) for kind in rng.choices(list(KINDS), weights=list(KINDS.values()), k=size)]
    ids = [tokenizer.encode(" " + seen_caption(scene)) for scene in scenes]
    captions = torch.zeros(size, max(map(len, ids)), dtype=torch.long)
    for row, caption_ids in zip(captions, ids):
        row[: len(caption_ids)] = torch.tensor(caption_ids)
    return np.stack([draw(scene, rng) for scene in scenes]), captions
