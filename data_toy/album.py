"""Albums: a few thousand pictures and films, drawn once, that pages are then composed of.

A page of eight shots is a matter of choosing eight pictures, so it costs microseconds; and since the eye is frozen when
pages are read, its features of an album are computed once (`encode`) and stand in the place of the pixels.

    album = draw_album(2000, seed=1)                  # training scenes; split="test" shows held-out cases only
    album.media[7]                                    # (1, 48, 48, 3) uint8; a film: (4, 48, 48, 3)
    rng.choice(album.having("attribute", "colour"))   # some picture whose colour may be asked for
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from .draw import draw, draw_video
from .words import attributes, questions
from .world import (
    COLOURS,
    COUNTS,
    CREATURES,
    DIGITS,
    DIRECTIONS,
    OPERATORS,
    PLACES,
    RELATIONS,
    SHAPES,
    SIGN_WORDS,
    Scene,
    Video,
    held_out,
)

# How often each kind comes in an album. "single" are things of count 1, which binding gives names to.
SHARES = {"single": 4, "things": 4, "pair": 4, "row": 1, "sign": 3, "sum": 5, "creature": 2, "video": 6}


def distinct_things(rng: random.Random, n: int) -> tuple[tuple[str, str], ...]:
    """n (colour, shape) of which no two share a colour or a shape."""
    return tuple(zip(rng.sample(list(COLOURS), n), rng.sample(SHAPES, n)))


def any_scene(rng: random.Random, kind: str) -> Scene | Video:
    """Any scene of this kind, held out or not."""
    colour, place = rng.choice(list(COLOURS)), rng.choice(PLACES)
    if kind in ("single", "things"):
        count = 1 if kind == "single" else rng.choice(COUNTS)
        return Scene("things", colour=colour, shape=rng.choice(SHAPES), count=count, place=place)
    if kind == "sign":
        return Scene(kind, colour=colour, word=rng.choice(SIGN_WORDS), place=rng.choice(("top", "bottom")))
    if kind == "sum":
        operands = (rng.choice(DIGITS), rng.choice(OPERATORS), rng.choice(DIGITS))
        return Scene(kind, colour=colour, operands=operands, place=rng.choice(("top", "bottom")))
    if kind == "number":
        operands = tuple(rng.choices(DIGITS, k=rng.choice((1, 2, 3, 3))))
        return Scene(kind, colour=colour, operands=operands, place=rng.choice(("top", "bottom")))
    if kind == "creature":
        return Scene(kind, name=rng.choice(CREATURES))
    if kind == "pair":
        return Scene(kind, things=distinct_things(rng, 2), relation=rng.choice(RELATIONS))
    if kind == "row":
        return Scene(kind, things=distinct_things(rng, 3))
    if kind == "video":
        return Video(*distinct_things(rng, 2), rng.choice(DIRECTIONS))
    raise ValueError(f"unknown kind of picture {kind!r}; there are: {', '.join(SHARES)}")


def picture_scene(rng: random.Random, kind: str, split: str = "train") -> Scene | Video:
    """A scene that may be drawn: never held out in training, always in the test (creatures apart: they are never)."""
    while True:
        scene = any_scene(rng, kind)
        if kind == "creature" or held_out(scene) == (split == "test"):
            return scene


@dataclass
class Album:
    """`media[i]` shows `scenes[i]`: uint8 pixels (T, H, W, C), or the eye's features (T, S, D). `ids[key]` finds pictures.

    Keys: ("kind", kind), ("attribute", name), ("question", kind), ("single", (colour, shape)), ("creature", name),
    ("mover", (colour, shape)).
    """

    scenes: list[Scene | Video]
    media: Sequence
    ids: dict[tuple, list[int]] = field(default_factory=dict)

    def __post_init__(self):
        if self.ids:
            return
        found = defaultdict(list)
        for i, scene in enumerate(self.scenes):
            if isinstance(scene, Video):
                found["kind", "video"].append(i)
                found["mover", scene.mover].append(i)
                continue
            found["kind", scene.kind].append(i)
            for name in attributes(scene):
                found["attribute", name].append(i)
            if questions(scene):
                found["question", scene.kind].append(i)
            if scene.kind == "creature":
                found["creature", scene.name].append(i)
            if scene.kind == "things" and scene.count == 1:
                found["single", (scene.colour, scene.shape)].append(i)
        self.ids = dict(found)

    def having(self, *key: object) -> list[int]:
        """Numbers of the pictures under a key. Raises ValueError where there is none."""
        if key not in self.ids:
            raise ValueError(f"this album of {len(self.scenes)} has no picture for {key}: draw a larger one")
        return self.ids[key]

    def encode(self, eye: Callable) -> Album:
        """The same album with `eye(pixels (M, H, W, C) uint8) → (M, S, D)` in the place of the pixels, 256 frames at a time."""
        flat = np.concatenate(list(self.media))
        features = torch.cat([eye(flat[i : i + 256]) for i in range(0, len(flat), 256)])
        media = features.split([len(m) for m in self.media])
        return Album(self.scenes, media, self.ids)


def draw_album(size: int, seed: int, split: str = "train", frames: int = 4) -> Album:
    """An album of `size` pictures and films. Same seed, same album."""
    rng = random.Random(f"album {seed} {split}")
    kinds = rng.choices(list(SHARES), weights=list(SHARES.values()), k=size)
    scenes = [picture_scene(rng, kind, split) for kind in kinds]
    media = [draw_video(s, rng, frames) if isinstance(s, Video) else draw(s, rng)[None] for s in scenes]
    return Album(scenes, media)
