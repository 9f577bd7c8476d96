"""Images and captions for the contrastive pretraining of the vision encoder.

    pixels (B, 48, 48, 3) uint8        captions (B, L) token ids, 0 = padding

The caption of a sum does not contain its result: the vision encoder learns to recognise 3 x 6; the LM knows that this is 18.
"""

import random
import re
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from minflamingo.tokenizer import Tokenizer

from .draw import draw
from .media_pool import random_scene
from .words import caption
from .world import VALUES, Scene, held_out

# Relative frequency of each kind of image. Kinds with several different things or digits are the most difficult.
FREQUENCIES = {"single": 2, "things": 4, "pair": 6, "row": 4, "sign": 5, "sum": 8, "animal": 1}
DIFFICULT = ("shape", "count", "word")  # hard negatives change these more often: colours and places are easy to see


def hard_negative(rng: random.Random, scene: Scene) -> Scene:
    """The scene with one fact changed, or with two facts exchanged. Examples: 3x6 -> 6x3, or 3x8; "left" -> "top"."""
    other = random_scene(rng, scene.kind)  # the new fact is one of this scene
    if scene.things is None and scene.operands is None:
        name = rng.choice([*VALUES[scene.kind], *(name for name in DIFFICULT if name in VALUES[scene.kind])])
        changed = replace(scene, **{name: getattr(other, name)})
    elif scene.operands is not None:
        changed = replace(scene, operands=exchanged(rng, scene.operands, other.operands))
    else:
        columns, new = list(zip(*scene.things)), list(zip(*other.things))
        part = rng.choice((0, 1, 1, 1))  # only colours change (0) or, more often, only shapes (1)
        columns[part] = exchanged(rng, columns[part], new[part])
        changed = replace(scene, things=tuple(zip(*columns)))
    equal_things = any(len(set(column)) < len(column) for column in zip(*changed.things or ()))
    return hard_negative(rng, scene) if changed == scene or held_out(changed) or equal_things else changed


def exchanged(rng: random.Random, old: tuple, new: tuple) -> tuple:
    """The old values in reversed order, or one of them replaced by a new one."""
    i = rng.randrange(len(old))
    return old[::-1] if rng.random() < 0.4 else (*old[:i], new[i], *old[i + 1 :])


def contrastive_batch(rng: random.Random, size: int, tokenizer: Tokenizer, hard: bool = False) -> tuple[np.ndarray, Tensor]:
    """Images of all kinds and the ids of their captions. hard: 90% are hard negatives of the previous scene of their kind.

    To distinguish these, the model must know which colour belongs to which shape, and the order of digits.
    """
    scenes, last = [], {}  # last: kind -> the previous scene of this kind
    for kind in rng.choices(list(FREQUENCIES), weights=list(FREQUENCIES.values()), k=size):
        similar = hard and kind in last and rng.random() < 0.9
        last[kind] = hard_negative(rng, last[kind]) if similar else random_scene(rng, kind, "train")
        scenes.append(last[kind])
    captions = [re.sub(r"(\d)(.)(\d)=\d+", r"\1 \2 \3", caption(scene)) for scene in scenes]  # no result; one token per digit
    ids = [torch.tensor(tokenizer.encode(f" {text}")) for text in captions]
    return np.stack([draw(scene, rng) for scene in scenes]), pad_sequence(ids, batch_first=True)
