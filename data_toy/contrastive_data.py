"""Images and captions for the contrastive pretraining of the vision encoder.

    pixels (B, 48, 48, 3) uint8        captions (B, L) token ids, 0 = padding

Digits are the most difficult to learn, so besides sums there are plain numbers such as 7 or 836, which occur only here. The
caption of a sum does not contain its result: the vision encoder learns to recognise "3 x 6", and the LM knows that this is 18.
"""

import random
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from minflamingo.tokenizer import Tokenizer

from .draw import draw
from .media_pool import random_scene
from .words import caption
from .world import COLOURS, DIGITS, OPERATORS, RELATIONS, SHAPES, VALUES, Scene, held_out

# Relative frequency of each kind of image. Kinds with several different things or digits are the most difficult.
FREQUENCIES = {"single": 2, "things": 4, "pair": 6, "row": 3, "sign": 4, "sum": 6, "number": 4, "animal": 1}
DIFFICULT = ("shape", "count", "word")  # hard negatives change these facts twice as often as other facts


def visible_caption(scene: Scene) -> str:
    """A caption of what is visible. "3 x 6 in red at the top": each digit is a token, the same one at every position."""
    if scene.kind in ("sum", "number"):
        return f"{' '.join(map(str, scene.operands))} in {scene.colour} at the {scene.place}"
    return caption(scene)


def other_value(rng: random.Random, values, *excluded):
    return rng.choice([value for value in values if value not in excluded])


def hard_negative(rng: random.Random, scene: Scene) -> Scene:
    """The scene with one fact changed, or with two facts exchanged. The result may be held out.

    Examples: a red circle left of a blue star -> a blue circle left of a red star, or a red ring …; 3x6 -> 6x3, or 3x8.
    Shapes change more often than colours, and the relation of a pair rarely: colours and places are easy to see.
    """
    if scene.kind in ("things", "sign", "animal"):
        values = VALUES[scene.kind]
        name = rng.choice([*values, *(name for name in values if name in DIFFICULT)])
        return replace(scene, **{name: other_value(rng, values[name], getattr(scene, name))})
    if scene.kind in ("sum", "number"):
        operands = list(scene.operands)
        if rng.random() < 0.3 and operands != operands[::-1]:
            return replace(scene, operands=tuple(operands[::-1]))
        i = rng.randrange(len(operands))
        operands[i] = other_value(rng, OPERATORS if operands[i] in OPERATORS else DIGITS, operands[i])
        return replace(scene, operands=tuple(operands))
    if scene.kind == "pair" and rng.random() < 0.1:
        return replace(scene, relation=other_value(rng, RELATIONS, scene.relation))
    things = [list(thing) for thing in scene.things]
    i, j = rng.sample(range(len(things)), 2)
    if rng.random() < 0.5:  # two things exchange their colours (0), their shapes (1), or both
        for part in rng.choice(((0,), (1,), (1,), (0, 1))):
            things[i][part], things[j][part] = things[j][part], things[i][part]
    else:
        part = rng.choice((0, 1, 1, 1))
        things[i][part] = other_value(rng, (COLOURS, SHAPES)[part], *(thing[part] for thing in things))
    return replace(scene, things=tuple(map(tuple, things)))


def contrastive_batch(rng: random.Random, size: int, tokenizer: Tokenizer, hard: bool = False) -> tuple[np.ndarray, Tensor]:
    """Images of all kinds and the ids of their captions.

    hard: 90% are hard negatives of the previous scene of their kind. To distinguish these, the model must know which colour
    belongs to which shape, and the order of digits.
    """
    scenes: list[Scene] = []
    last: dict[str, Scene] = {}
    for kind in rng.choices(list(FREQUENCIES), weights=list(FREQUENCIES.values()), k=size):
        scene = None
        if hard and kind in last and rng.random() < 0.9:
            candidates = (hard_negative(rng, last[kind]) for _ in range(10))
            scene = next((candidate for candidate in candidates if not held_out(candidate)), None)
        last[kind] = scene or random_scene(rng, kind, "train")
        scenes.append(last[kind])
    ids = [torch.tensor(tokenizer.encode(" " + visible_caption(scene))) for scene in scenes]
    return np.stack([draw(scene, rng) for scene in scenes]), pad_sequence(ids, batch_first=True)
