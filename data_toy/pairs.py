"""Lessons for the eye: pictures with their whole captions, for contrastive learning.

    pixels (B, 48, 48, 3) uint8    captions (B, L) ids, 0 = padding

Figures are the hardest to learn, so besides sums there are plain numbers, 7 or 836: reading practice that is used here only.
What a sum comes to is not in its caption. To see "3 x 6" is the eye's task; to know that it is 18 is the tongue's.
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

from .album import picture_scene
from .draw import draw
from .words import caption
from .world import COLOURS, COUNTS, CREATURES, DIGITS, OPERATORS, PLACES, RELATIONS, SHAPES, SIGN_WORDS, Scene, held_out

KINDS = {"single": 2, "things": 4, "pair": 6, "row": 3, "sign": 4, "sum": 6, "number": 4, "creature": 1}
# What may be said differently of a picture of one sort of thing. What is hard to see comes twice.
FACTS = {
    "things": {"colour": list(COLOURS), "shape": SHAPES, "count": COUNTS, "place": PLACES},
    "sign": {"colour": list(COLOURS), "word": SIGN_WORDS, "place": ("top", "bottom")},
    "creature": {"name": CREATURES},
}  # fmt: skip
HARD_TO_SEE = ("shape", "count", "word")


def seen_caption(scene: Scene) -> str:
    """What there is to see. 3x6 in red → "3 x 6 in red at the top": every figure is a token of its own, wherever it stands."""
    if scene.kind in ("sum", "number"):
        return f"{' '.join(map(str, scene.operands))} in {scene.colour} at the {scene.place}"
    return caption(scene)


def another(rng: random.Random, options, *taken):
    """One of the options that is not taken."""
    return rng.choice([option for option in options if option not in taken])


def one_step_away(rng: random.Random, scene: Scene) -> Scene:
    """The scene with one fact changed, or with two facts exchanged, held out or not.

    a red circle left of a blue star → a blue circle left of a red star, or a red ring …; 3x6 → 6x3, or 3x8
    """
    if scene.kind in FACTS:
        facts = FACTS[scene.kind]
        name = rng.choice([*facts, *(fact for fact in facts if fact in HARD_TO_SEE)])
        return replace(scene, **{name: another(rng, facts[name], getattr(scene, name))})
    if scene.kind in ("sum", "number"):
        operands = list(scene.operands)
        if rng.random() < 0.3:
            return replace(scene, operands=tuple(operands[::-1]))
        i = rng.randrange(len(operands))
        operands[i] = another(rng, OPERATORS if operands[i] in OPERATORS else DIGITS, operands[i])
        return replace(scene, operands=tuple(operands))
    if scene.kind == "pair" and rng.random() < 0.1:
        return replace(scene, relation=another(rng, RELATIONS, scene.relation))
    things = [list(thing) for thing in scene.things]
    i, j = rng.sample(range(len(things)), 2)
    if rng.random() < 0.5:  # exchanged: their colours, their shapes, or the two altogether
        for part in rng.choice(((0,), (1,), (1,), (0, 1))):
            things[i][part], things[j][part] = things[j][part], things[i][part]
    else:
        part = rng.choice((0, 1, 1, 1))
        things[i][part] = another(rng, (COLOURS, SHAPES)[part], *(thing[part] for thing in things))
    return replace(scene, things=tuple(map(tuple, things)))


def look_alikes(rng: random.Random, share: float = 0.9) -> Callable[[str], Scene]:
    """A maker of scenes, most of which are one step away from the last of their kind: hard negatives for each other.

    An eye that only has to tell pictures apart needs no more of them than a few words; to tell look-alikes apart it must
    know which colour goes with which shape and which figure stands where.
    """
    last: dict[str, Scene] = {}

    def make(kind: str) -> Scene:
        tries = (one_step_away(rng, last[kind]) for _ in range(10)) if kind in last and rng.random() < share else ()
        last[kind] = next((scene for scene in tries if not held_out(scene)), None) or picture_scene(rng, kind)
        return last[kind]

    return make


def contrastive_batch(rng: random.Random, size: int, tokenizer: Tokenizer, hard: bool = False) -> tuple[np.ndarray, Tensor]:
    """Pictures of all kinds and the ids of their captions. `hard`: look-alikes, for an eye that already tells the rest."""
    make = look_alikes(rng) if hard else partial(picture_scene, rng)
    scenes = [make(kind) for kind in rng.choices(list(KINDS), weights=list(KINDS.values()), k=size)]
    ids = [tokenizer.encode(" " + seen_caption(scene)) for scene in scenes]
    longest = max(map(len, ids))
    captions = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
    return np.stack([draw(scene, rng) for scene in scenes]), captions
