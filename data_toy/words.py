"""The texts of the toy world: captions, answers, questions, and the vocabulary of the tokenizer.

    things   "three red circles at the left"        pair   "a red circle left of a blue star"
    sign     "a blue sign at the top says taxi"     row    "a red circle, a blue star and a green ring"
    sum      "3x6=18 in green at the top"           video  "the red circle moves left"
    animal   "a flamingo"

Inside a prompt, a word includes the space before it (" red").
"""

from functools import cache

from minflamingo.tokenizer import ToyTokenizer, split_pieces

from . import world
from .world import ANIMALS, COLOURS, SHAPES, Scene

NUMBER_WORDS = {2: "two", 3: "three", 4: "four"}
# The attributes that the task "task" can ask for, by kind of image. An image alone does not show which one is asked for.
ATTRIBUTES = {
    "things": ("colour", "shape", "count", "place"), "sign": ("colour", "word", "place"), "sum": ("colour", "sum", "place"),
}  # fmt: skip


def plural(shape: str, count: int = 2) -> str:
    return shape if count == 1 else shape + ("es" if shape.endswith("s") else "s")


def with_article(colour: str) -> str:
    """ "a red", "an orange"."""
    return f"an {colour}" if colour[0] in "aeiou" else f"a {colour}"


def sum_text(operands: tuple[int, str, int]) -> str:
    """(3, "x", 6) -> "3x6=18"."""
    a, operator, b = operands
    return f"{a}{operator}{b}={a + b if operator == '+' else a * b}"


def caption(scene: Scene) -> str:
    """A complete description."""
    if scene.kind == "video":
        return f"the {' '.join(scene.things[0])} moves {scene.direction}"
    if scene.kind == "things":
        how_many = with_article(scene.colour) if scene.count == 1 else f"{NUMBER_WORDS[scene.count]} {scene.colour}"
        return f"{how_many} {plural(scene.shape, scene.count)} at the {scene.place}"
    if scene.kind == "sign":
        return f"{with_article(scene.colour)} sign at the {scene.place} says {scene.word}"
    if scene.kind == "sum":
        return f"{sum_text(scene.operands)} in {scene.colour} at the {scene.place}"
    if scene.kind == "animal":
        return f"a {scene.name}"
    named = [f"{with_article(colour)} {shape}" for colour, shape in scene.things]
    return f"{named[0]} {scene.relation} {named[1]}" if scene.kind == "pair" else f"{named[0]}, {named[1]} and {named[2]}"


def attributes(scene: Scene) -> dict[str, str]:
    """Attribute -> answer."""
    names = ATTRIBUTES.get(scene.kind, ())
    return {name: sum_text(scene.operands) if name == "sum" else str(getattr(scene, name)) for name in names}


def questions(scene: Scene) -> list[tuple[str, str]]:
    """Questions about an image, with their answers."""
    if scene.kind == "things":
        shapes = plural(scene.shape)
        return [(f"How many {shapes}?", str(scene.count)), (f"What colour are the {shapes}?", scene.colour),
                (f"Where are the {shapes}?", scene.place), ("What shape?", scene.shape)]  # fmt: skip
    if scene.kind == "pair":
        (c1, s1), (c2, s2) = scene.things
        return [(f"What colour is the {s1}?", c1), (f"What colour is the {s2}?", c2),
                (f"What is {scene.relation} the {s2}?", f"{c1} {s1}")]  # fmt: skip
    if scene.kind == "sign":
        return [("What does the sign say?", scene.word), ("What colour is the sign?", scene.colour)]
    return []


def fact(name: str) -> str:
    """ " They are mainly found in Cuba." for "flamingo"."""
    return f" They are mainly found in {(world.COUNTRIES | world.TEXT_ONLY_ANIMALS)[name]}."


@cache
def vocabulary() -> tuple[str, ...]:
    """All words of the toy world, in the order of their ids. The tokenizer spells all other text (made-up names) in bytes."""
    lines = ["Output:", "Question:", " Answer:", "This is a", ".", ",", "?", " sign", " says", " at the", " in", " and"]
    lines += [f" {word}" for word in (*COLOURS, *SHAPES, *map(plural, SHAPES), *world.PLACES, *world.DIRECTIONS)]
    lines += [f" {word}" for word in (*world.SIGN_WORDS, *ANIMALS, *world.TEXT_ONLY_ANIMALS)]
    lines += [f" {word}" for word in ("a", "an", *NUMBER_WORDS.values(), *world.RELATIONS, "the", "moves")]
    lines += [*COLOURS, *SHAPES, *ANIMALS, *world.SIGN_WORDS]  # without a space: at the start of a text
    lines += [f" {n}" for n in range(10)] + [str(n) for n in range(1, 82)] + ["+", "x", "="]
    lines += [fact(name) for name in ANIMALS]
    things = Scene("things", colour="red", shape="cross", count=2, place="left")
    pair = Scene("pair", things=(("red", "cross"), ("blue", "star")), relation="above")
    sign = Scene("sign", colour="red", word="taxi", place="top")
    lines += [" " + question for scene in (things, pair, sign) for question, _ in questions(scene)]
    return tuple(dict.fromkeys(piece for line in lines for piece in split_pieces(line)))


def toy_tokenizer() -> ToyTokenizer:
    return ToyTokenizer(vocabulary())
