"""Media pools: thousands of images and videos, rendered once. Training documents and prompts are composed from them.

The vision encoder is frozen while Flamingo trains, so the features of a pool are computed once and replace its pixels.

    pool = draw_media_pool(2000, seed=1)              # training scenes; with split="test" all scenes are held out
    pool.media[7]                                     # (1, 48, 48, 3) uint8; of a video (4, 48, 48, 3)
    rng.choice(pool.having("attribute", "colour"))    # the index of an image that has a colour to ask about
    pool = encode_media_pool(flamingo, pool)          # pool.media[7] is now (1, S, D), float
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from minflamingo.data.images import ImagePreprocessor
from minflamingo.flamingo import Flamingo

from .draw import draw
from .drawings import draw_drawing, random_design
from .words import ATTRIBUTES, attributes
from .world import COLOURS, DIGITS, OPERATORS, SHAPES, VALUES, Scene, held_out

PREPROCESS = ImagePreprocessor(size=48)
# Relative frequency of each kind in a pool; difficult kinds are frequent. "single": "things" with count 1, for made-up names.
FREQUENCIES = {
    "single": 3, "things": 3, "pair": 4, "row": 4, "sign": 3, "sum": 5, "animal": 2, "drawing": 8, "video": 5,
}  # fmt: skip


def distinct_things(rng: random.Random, n: int) -> tuple[tuple[str, str], ...]:
    """n things (colour, shape). No two have the same colour or the same shape."""
    return tuple(zip(rng.sample(list(COLOURS), n), rng.sample(SHAPES, n)))


def draw_until_allowed(make: Callable[[], Scene], split: str | None) -> Scene:
    """Repeat `make()` until this split may show the scene. None: any; "test": held out (or an animal); else not held out."""
    while True:
        scene = make()
        if split is None or scene.kind == "animal" or held_out(scene) == (split == "test"):
            return scene


def random_scene(rng: random.Random, kind: str, split: str | None = None) -> Scene:
    """A random scene of this kind that may be in this split."""
    if kind not in FREQUENCIES:
        raise ValueError(f"unknown kind of scene {kind!r}; choose one of {', '.join(FREQUENCIES)}")

    def any_scene() -> Scene:
        name = "things" if kind == "single" else kind
        facts: dict = {fact: rng.choice(list(values)) for fact, values in VALUES.get(name, {}).items()}
        if kind == "single":
            facts["count"] = 1
        elif kind in ("pair", "row", "video"):
            facts["things"] = distinct_things(rng, 3 if kind == "row" else 2)
        elif kind == "sum":
            facts["operands"] = rng.choice(DIGITS), rng.choice(OPERATORS), rng.choice(DIGITS)
        elif kind == "drawing":
            facts["name"] = random_design(rng, split)
        return Scene(name, **facts)

    return draw_until_allowed(any_scene, split)


@dataclass
class MediaPool:
    """`media[i]` shows `scenes[i]`: uint8 pixels (T, H, W, C), or features of the vision encoder (T, S, D).

    `ids` maps a key to the indices of all media with it. The keys are ("kind", kind), ("attribute", name), ("animal", name),
    ("single", (colour, shape)), ("mover", (colour, shape)), ("drawing", design), and of things ("colour", colour) and so on.
    """

    scenes: list[Scene]
    media: Sequence

    def __post_init__(self):
        self.ids: dict[tuple, list[int]] = {}
        for i, scene in enumerate(self.scenes):
            keys = [("kind", scene.kind), *(("attribute", name) for name in attributes(scene))]
            if scene.kind == "video":
                keys.append(("mover", scene.things[0]))
            if scene.name:
                keys.append((scene.kind, scene.name))
            if scene.kind == "things":
                keys += [(name, getattr(scene, name)) for name in ATTRIBUTES["things"]]
                if scene.count == 1:
                    keys.append(("single", (scene.colour, scene.shape)))
            for key in keys:
                self.ids.setdefault(key, []).append(i)

    def having(self, *key: object) -> list[int]:
        """Indices of the media with this key. Raises ValueError if there are none."""
        if key not in self.ids:
            raise ValueError(f"this media pool of {len(self.scenes)} has nothing with the key {key}; draw a larger pool")
        return self.ids[key]

    def values(self, kind: str) -> list:
        """All values v for which the pool has media with the key (kind, v), for example all movers."""
        return [key[1] for key in self.ids if key[0] == kind and len(key) == 2]


def draw_media_pool(size: int, seed: int, split: str = "train") -> MediaPool:
    """A pool of `size` images and videos. The same seed gives the same pool."""
    rng = random.Random(f"album {seed} {split}")  # do not change this string: it seeds the data
    kinds = rng.choices(list(FREQUENCIES), weights=list(FREQUENCIES.values()), k=size)
    scenes = [random_scene(rng, kind, split) for kind in kinds]
    # Several views of each design: every fourth drawing has a new one.
    designs = [scene for scene in scenes if scene.kind == "drawing"]
    shown = iter(designs[: len(designs) // 4 + 1] * 4)
    scenes = [next(shown) if scene.kind == "drawing" else scene for scene in scenes]
    return MediaPool(scenes, [render(scene, rng) for scene in scenes])


def render(scene: Scene, rng: random.Random) -> np.ndarray:
    """The pixels (T, 48, 48, 3) of any scene; T is 4 for a video, else 1."""
    pixels = draw_drawing(scene.name, rng) if scene.kind == "drawing" else draw(scene, rng)
    return pixels if scene.kind == "video" else pixels[None]


@torch.no_grad()
def encode_media_pool(flamingo: Flamingo, pool: MediaPool) -> MediaPool:
    """The same pool with features of the frozen vision encoder (on the CPU) instead of pixels."""
    device = next(flamingo.parameters()).device
    pixels = np.concatenate(list(pool.media))  # (all frames, H, W, C)
    chunks = (PREPROCESS(pixels[i : i + 256]).to(device) for i in range(0, len(pixels), 256))
    features = torch.cat([flamingo.vision(chunk).cpu() for chunk in chunks])  # (all frames, S, D)
    return MediaPool(pool.scenes, features.split([len(medium) for medium in pool.media]))
