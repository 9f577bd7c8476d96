"""The toy world: what exists in it, what can be seen in one picture, and what is kept back for the examination.

A `Scene` says what a picture shows, as plain facts; `draw.py` paints it, `words.py` describes it. Seven kinds:

    things    Scene("things",   colour="red", shape="circle", count=3, place="left")      three red circles at the left
    pair      Scene("pair",     things=(("red", "circle"), ("blue", "star")), relation="left of")
    row       Scene("row",      things=(three of them))                                  from left to right
    sign      Scene("sign",     colour="blue", word="taxi", place="top")                  a blue sign that says taxi
    sum       Scene("sum",      colour="green", operands=(3, "x", 6), place="top")        the figures 3x6 in green
    number    Scene("number",   colour="green", operands=(8, 3, 6), place="top")          836, or 83, or 8: reading practice
    creature  Scene("creature", name="flamingo")                                         an animal, drawn by rule

**What is held out.** `held_out…` below are the only places where it is decided. A picture of a held-out case is seen
neither by the eye in its contrastive lessons nor by the bridge; evaluation shows nothing else. Held out are an eighth of all
combinations of facts, eight pairs of figures in any sum, a fifth of the made-up names, and the facts of four creatures.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass

COLOURS = {
    "red": (222, 45, 45), "orange": (245, 140, 25), "yellow": (250, 230, 60), "green": (45, 170, 75),
    "cyan": (70, 210, 230), "blue": (55, 85, 225), "purple": (155, 65, 195), "white": (245, 245, 245),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond", "heart", "star")
PLACES = ("left", "right", "top", "bottom")
COUNTS = (1, 2, 3, 4)
RELATIONS = ("left of", "above")
DIRECTIONS = ("left", "right", "up", "down")
REVERSED = {"left": "right", "right": "left", "up": "down", "down": "up"}
SIGN_WORDS = (
    "stop", "open", "exit", "taxi", "cafe", "bank", "sale", "food",
    "park", "shop", "bus", "zoo", "book", "milk", "tea", "jazz",
)  # fmt: skip
DIGITS = tuple(range(1, 10))
OPERATORS = ("+", "x")
HELD_OUT_OPERANDS = ({1, 5}, {2, 7}, {3, 4}, {3, 6}, {4, 9}, {5, 8}, {6, 8}, {7, 9})

# What the frozen LM reads about in its library. Beside a picture, the fact stands only for creatures not held out.
HOMES = {
    "flamingo": "Cuba", "chinchilla": "Chile", "shiba": "Japan", "panda": "China", "koala": "Australia",
    "camel": "Egypt", "penguin": "Antarctica", "tiger": "India", "moose": "Canada", "llama": "Peru",
    "lemur": "Madagascar", "zebra": "Kenya", "yak": "Nepal", "toucan": "Brazil", "hedgehog": "England", "bear": "Russia",
}  # fmt: skip
CREATURES = tuple(HOMES)
HELD_OUT_CREATURES = ("flamingo", "koala", "tiger", "zebra")
# Animals that no picture shows. Texts speak of them: in the library, and on training pages beside pictures of something else.
# Many: from few the bridge would learn to keep silent beside these names, and not beside those of the held-out four.
LIVE_IN = {
    "Cuba": "turtle parrot trogon hutia iguana",
    "Chile": "condor puma pudu degu huemul",
    "Japan": "crane macaque serow tanuki heron",
    "China": "pheasant carp pangolin gibbon sturgeon",
    "Australia": "dingo wombat kangaroo emu platypus",
    "Egypt": "jackal cobra ibis vulture fennec",
    "Antarctica": "seal skua orca petrel krill",
    "India": "peacock mongoose gharial sambar dhole",
    "Canada": "beaver wolf elk loon caribou",
    "Peru": "guanaco tapir vicuna caiman tamarin",
    "Madagascar": "fossa gecko tenrec sifaka indri",
    "Kenya": "lion rhino giraffe gnu eland",
    "Nepal": "takin leopard monal tahr goral",
    "Brazil": "jaguar sloth anaconda piranha macaw",
    "England": "badger fox otter mole robin",
    "Russia": "sable lynx reindeer wolverine saiga",
}
UNPICTURED = {animal: home for home, animals in LIVE_IN.items() for animal in animals.split()}

CONSONANTS, VOWELS = "bdfgklmnprstvwz", "aeiou"


@dataclass(frozen=True)
class Scene:
    """The facts of one picture. Fields that do not apply to its `kind` stay None."""

    kind: str
    colour: str | None = None
    shape: str | None = None
    count: int | None = None
    place: str | None = None
    things: tuple[tuple[str, str], ...] | None = None  # ((colour, shape), …) of a pair or a row
    relation: str | None = None
    word: str | None = None
    operands: tuple[int | str, ...] | None = None
    name: str | None = None


@dataclass(frozen=True)
class Video:
    """One thing moves, another stays where it is: `mover` and `still` are (colour, shape)."""

    mover: tuple[str, str]
    still: tuple[str, str]
    direction: str


def held_out(scene: Scene | Video) -> bool:
    """Is this combination of facts kept back? One in eight, by a hash of all of them: "two red circles at the left" may be
    held out while "two red circles at the top" is not. Sums are held out by their figures alone; creatures never are."""
    if isinstance(scene, Scene) and scene.kind == "creature":
        return False
    if isinstance(scene, Scene) and scene.kind in ("sum", "number"):
        return held_out_operands(scene.operands[0], scene.operands[-1])
    return zlib.crc32(repr(scene).encode()) % 8 == 0


def held_out_operands(a: int, b: int) -> bool:
    """Pairs of figures, in either order, added or multiplied (32 of 162 sums)."""
    return {a, b} in HELD_OUT_OPERANDS


def held_out_name(name: str) -> bool:
    """Made-up names that no training page uses, about a fifth of them."""
    return sum(map(ord, name)) % 5 == 0


REAL_WORDS = {*COLOURS, *SHAPES, *PLACES, *DIRECTIONS, *SIGN_WORDS, *CREATURES, *UNPICTURED}  # not made up
MADE_UP_NAMES = {
    split: [
        name
        for name in (first + vowel + last for first in CONSONANTS for vowel in VOWELS for last in CONSONANTS)
        if name not in REAL_WORDS and held_out_name(name) == (split == "test")
    ]
    for split in ("train", "test")
}


def made_up_names(rng: random.Random, n: int) -> list[str]:
    """n different names of training; half of the time all begin with one letter, so that only later ones tell them apart."""
    names = MADE_UP_NAMES["train"]
    if rng.random() < 0.5:
        first = rng.choice(CONSONANTS)
        names = [name for name in names if name[0] == first]
    return rng.sample(names, n)
