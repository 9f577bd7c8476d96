"""The toy world: what exists in it, what can be seen in one picture, and what is kept back for the examination.

A `Scene` says what a picture shows, as plain facts; `draw.py` paints it, `words.py` describes it. Six kinds:

    things    Scene("things",   colour="red", shape="circle", count=3, place="left")      three red circles at the left
    pair      Scene("pair",     things=(("red", "circle"), ("blue", "star")), relation="left of")
    row       Scene("row",      things=(three of them))                                  from left to right
    sign      Scene("sign",     colour="blue", word="taxi", place="top")                  a blue sign that says taxi
    sum       Scene("sum",      colour="green", operands=(3, "x", 6), place="top")        the figures 3x6 in green
    creature  Scene("creature", name="flamingo")                                         an animal, drawn by rule

**What is held out.** `held_out_*` below are the only places where it is decided. A picture of a held-out case is seen
neither by the eye in its contrastive lessons nor by the bridge; evaluation shows nothing else (where the idea applies).
"""

from __future__ import annotations

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
    operands: tuple[int, str, int] | None = None
    name: str | None = None


@dataclass(frozen=True)
class Video:
    """One thing moves, another stays where it is: `mover` and `still` are (colour, shape)."""

    mover: tuple[str, str]
    still: tuple[str, str]
    direction: str


def held_out_thing(colour: str, shape: str) -> bool:
    """One shape in each colour is never seen in training (8 of 64 combinations)."""
    return (3 * list(COLOURS).index(colour) + SHAPES.index(shape)) % 8 == 0


def held_out_sign(colour: str, word: str) -> bool:
    """Two words in each colour (16 of 128 combinations)."""
    return (list(COLOURS).index(colour) + SIGN_WORDS.index(word)) % 8 == 0


def held_out_operands(a: int, b: int) -> bool:
    """Pairs of figures, in either order, added or multiplied (32 of 162 sums)."""
    return {a, b} in HELD_OUT_OPERANDS


def held_out_name(name: str) -> bool:
    """Made-up names that no training page uses, about a fifth of them."""
    return sum(map(ord, name)) % 5 == 0


THINGS = {
    split: [(c, s) for c in COLOURS for s in SHAPES if held_out_thing(c, s) == (split == "test")]
    for split in ("train", "test")
}
SIGNS = {
    split: [(c, w) for c in COLOURS for w in SIGN_WORDS if held_out_sign(c, w) == (split == "test")]
    for split in ("train", "test")
}
SUMS = {
    split: [(a, op, b) for a in DIGITS for b in DIGITS for op in OPERATORS if held_out_operands(a, b) == (split == "test")]
    for split in ("train", "test")
}
MADE_UP_NAMES = {
    split: [n for n in (a + v + b for a in CONSONANTS for v in VOWELS for b in CONSONANTS) if held_out_name(n) == (split == "test")]
    for split in ("train", "test")
}
