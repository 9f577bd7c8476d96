"""What is said about the toy world: captions, answers, questions, and the words it takes.

    things   "three red circles at the left"        pair   "a red circle left of a blue star"
    sign     "a blue sign at the top says taxi"     row    "a red circle, a blue star and a green ring"
    sum      "3x6=18 in green at the top"           video  "the red circle moves left"
    creature "a flamingo"

Everything is written as it stands in prompts, so words carry their leading space (" red").
"""

from __future__ import annotations

import random
from functools import cache

from minflamingo.tokenizer import ToyTokenizer, pieces_of

from .world import (
    COLOURS,
    CREATURES,
    DIRECTIONS,
    HOMES,
    PLACES,
    RELATIONS,
    SHAPES,
    SIGN_WORDS,
    UNPICTURED,
    Scene,
    Video,
)

NUMBER_WORDS = {2: "two", 3: "three", 4: "four"}
COLOUR_NAMES = tuple(COLOURS)


def plural(shape: str, count: int = 2) -> str:
    return shape if count == 1 else shape + ("es" if shape.endswith("s") else "s")


def one(colour: str) -> str:
    """The article that fits: "a red", "an orange"."""
    return f"an {colour}" if colour[0] in "aeiou" else f"a {colour}"


def sum_text(operands: tuple[int, str, int]) -> str:
    """(3, "x", 6) → "3x6=18"."""
    a, op, b = operands
    return f"{a}{op}{b}={a + b if op == '+' else a * b}"


def caption(scene: Scene | Video) -> str:
    """A whole description."""
    s = scene
    if isinstance(s, Video):
        return f"the {s.mover[0]} {s.mover[1]} moves {s.direction}"
    if s.kind == "things":
        how_many = one(s.colour) if s.count == 1 else f"{NUMBER_WORDS[s.count]} {s.colour}"
        return f"{how_many} {plural(s.shape, s.count)} at the {s.place}"
    if s.kind == "sign":
        return f"{one(s.colour)} sign at the {s.place} says {s.word}"
    if s.kind == "sum":
        return f"{sum_text(s.operands)} in {s.colour} at the {s.place}"
    if s.kind == "creature":
        return f"a {s.name}"
    named = [f"{one(colour)} {shape}" for colour, shape in s.things]
    if s.kind == "pair":
        return f"{named[0]} {s.relation} {named[1]}"
    return f"{named[0]}, {named[1]} and {named[2]}"


def attributes(scene: Scene) -> dict[str, str]:
    """What can be asked of a picture by examples alone (the `task` world): attribute → answer."""
    s = scene
    if s.kind == "things":
        return {"colour": s.colour, "shape": s.shape, "count": str(s.count), "place": s.place}
    if s.kind == "sign":
        return {"colour": s.colour, "word": s.word, "place": s.place}
    if s.kind == "sum":
        return {"colour": s.colour, "sum": sum_text(s.operands), "place": s.place}
    return {}


def questions(scene: Scene) -> list[tuple[str, str]]:
    """Questions that the picture answers, with their answers."""
    s = scene
    if s.kind == "things":
        several = plural(s.shape)
        return [
            (f"How many {several}?", str(s.count)),
            (f"What colour are the {several}?", s.colour),
            (f"Where are the {several}?", s.place),
            ("What shape?", s.shape),
        ]
    if s.kind == "pair":
        (c1, s1), (c2, s2) = s.things
        asked = [(f"What colour is the {s1}?", c1), (f"What colour is the {s2}?", c2)]
        return [*asked, (f"What is {s.relation} the {s2}?", f"{c1} {s1}")]
    if s.kind == "sign":
        return [("What does the sign say?", s.word), ("What colour is the sign?", s.colour)]
    return []


def fact(name: str) -> str:
    return f" They are mainly found in {(HOMES | UNPICTURED)[name]}."


# Begins an entry of a list in the library. On a training page it stands where a text has lost its picture.
DASH = "-"


def marks(rng: random.Random, n: int) -> list[str]:
    """What stands before the `n` entries of a list: dashes; on every second list each second one is any word of this world."""
    scribbled = rng.choice((0.0, 0.5))
    return [rng.choice(vocabulary()) if rng.random() < scribbled else DASH for _ in range(n)]


@cache
def vocabulary() -> tuple[str, ...]:
    """Every piece of text that the toy world can say, made-up names apart (those are spelled in bytes)."""
    lines = ["Output:", "Question:", " Answer:", "This is a", ".", ",", "?", " sign", " says", " at the", " in", " and"]
    things = (*COLOURS, *SHAPES, *map(plural, SHAPES), *PLACES, *DIRECTIONS, *SIGN_WORDS, *CREATURES, *UNPICTURED)
    lines += [f" {w}" for w in things]
    lines += [f" {w}" for w in ("a", "an", *NUMBER_WORDS.values(), *RELATIONS, "the", "moves")]
    lines += [*COLOURS, *SHAPES, *CREATURES, *SIGN_WORDS]  # without a space: at the beginning of a text
    lines += [f" {n}" for n in range(10)] + [str(n) for n in range(1, 82)] + ["+", "x", "="]
    lines += [fact(name) for name in CREATURES]
    things = Scene("things", colour="red", shape="cross", count=2, place="left")
    pair = Scene("pair", things=(("red", "cross"), ("blue", "star")), relation="above")
    sign = Scene("sign", colour="red", word="taxi", place="top")
    lines += [" " + q for scene in (things, pair, sign) for q, _ in questions(scene)]
    return tuple(dict.fromkeys(piece for line in lines for piece in pieces_of(line)))


def toy_tokenizer() -> ToyTokenizer:
    return ToyTokenizer(vocabulary())
