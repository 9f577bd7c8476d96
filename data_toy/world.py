"""The toy world: everything that images can show, and which cases are held out for evaluation.

A `Scene` holds the facts of one image or video. draw.py renders it, words.py describes it. There are eight kinds:

    things   Scene("things", colour="red", shape="circle", count=3, place="left")      three red circles at the left
    pair     Scene("pair",   things=(("red", "circle"), ("blue", "star")), relation="left of")
    row      Scene("row",    things=(three of them))                                   from left to right
    sign     Scene("sign",   colour="blue", word="taxi", place="top")                  a blue sign that says taxi
    sum      Scene("sum",    colour="green", operands=(3, "x", 6), place="top")        the characters 3x6 in green
    animal   Scene("animal", name="flamingo")                                          an animal
    video    Scene("video",  things=(mover, still), direction="up")                    of two things, the first moves
    drawing  Scene("drawing", name="glyph ж")                                          see drawings.py

No training image shows a held-out scene. All queries of the evaluation show held-out scenes, except images of animals.
"""

import random
import unicodedata
import zlib
from dataclasses import dataclass

COLOURS = {
    "red": (222, 45, 45), "orange": (245, 140, 25), "yellow": (250, 230, 60), "green": (45, 170, 75),
    "cyan": (70, 210, 230), "blue": (55, 85, 225), "purple": (155, 65, 195), "white": (245, 245, 245),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond", "heart", "star")
PLACES = ("left", "right", "top", "bottom")  # of things
HALVES = ("top", "bottom")  # places of signs and sums
COUNTS = (1, 2, 3, 4)
RELATIONS = ("left of", "above")
DIRECTIONS = ("left", "right", "up", "down")
SIGN_WORDS = (
    "stop", "open", "exit", "taxi", "cafe", "bank", "sale", "food",
    "park", "shop", "bus", "zoo", "book", "milk", "tea", "jazz",
)  # fmt: skip
DIGITS = tuple(range(1, 10))
OPERATORS = ("+", "x")
HELD_OUT_OPERANDS = ({1, 5}, {2, 7}, {3, 4}, {3, 6}, {4, 9}, {5, 8}, {6, 8}, {7, 9})

# Facts: the country of each animal. The LM reads all of them in its text corpus. Next to images, training data states the facts
# of twelve animals. The other four are held out.
COUNTRIES = {
    "flamingo": "Cuba", "chinchilla": "Chile", "shiba": "Japan", "panda": "China", "koala": "Australia",
    "camel": "Egypt", "penguin": "Antarctica", "tiger": "India", "moose": "Canada", "llama": "Peru",
    "lemur": "Madagascar", "zebra": "Kenya", "yak": "Nepal", "toucan": "Brazil", "hedgehog": "England", "bear": "Russia",
}  # fmt: skip
ANIMALS = tuple(COUNTRIES)
HELD_OUT_ANIMALS = ("flamingo", "koala", "tiger", "zebra")
# Animals that only texts mention: the text corpus, and training documents next to unrelated images. There are 80, because with
# few names Flamingo can memorise these and still corrupt the facts about the four held-out animals.
TEXT_ONLY_BY_COUNTRY = {
    "Cuba": "turtle parrot trogon hutia iguana",             "Chile": "condor puma pudu degu huemul",
    "Japan": "crane macaque serow tanuki heron",             "China": "pheasant carp pangolin gibbon sturgeon",
    "Australia": "dingo wombat kangaroo emu platypus",       "Egypt": "jackal cobra ibis vulture fennec",
    "Antarctica": "seal skua orca petrel krill",             "India": "peacock mongoose gharial sambar dhole",
    "Canada": "beaver wolf elk loon caribou",                "Peru": "guanaco tapir vicuna caiman tamarin",
    "Madagascar": "fossa gecko tenrec sifaka indri",         "Kenya": "lion rhino giraffe gnu eland",
    "Nepal": "takin leopard monal tahr goral",               "Brazil": "jaguar sloth anaconda piranha macaw",
    "England": "badger fox otter mole robin",                "Russia": "sable lynx reindeer wolverine saiga",
}  # fmt: skip
TEXT_ONLY_ANIMALS = {animal: country for country, animals in TEXT_ONLY_BY_COUNTRY.items() for animal in animals.split()}

# Kind of scene -> its fields and the values that they can have (without things and operands).
VALUES = {
    "things": {"colour": COLOURS, "shape": SHAPES, "count": COUNTS, "place": PLACES},
    "pair": {"relation": RELATIONS}, "row": {}, "animal": {"name": ANIMALS}, "video": {"direction": DIRECTIONS},
    "sign": {"colour": COLOURS, "word": SIGN_WORDS, "place": HALVES},
    "sum": {"colour": COLOURS, "place": HALVES},
}  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """The facts of one image or video. Fields that do not apply to its `kind` are None. `held_out` hashes names and values."""

    kind: str
    colour: str | None = None
    shape: str | None = None
    count: int | None = None
    place: str | None = None
    things: tuple[tuple[str, str], ...] | None = None  # ((colour, shape), …) of a pair, row or video
    relation: str | None = None
    word: str | None = None
    operands: tuple[int | str, ...] | None = None
    direction: str | None = None
    name: str | None = None


def held_out(scene: Scene) -> bool:
    """Is this scene reserved for evaluation? One in eight is, by a hash of all facts.

    So "two red circles at the left" can be held out while "two red circles at the top" is not. For sums, only the two digits
    decide. Animals are never held out.
    """
    if scene.kind == "animal":
        return False
    if scene.kind == "drawing":
        return scene.name.startswith("glyph ") and is_held_out_script(scene.name[-1])
    if scene.kind == "sum":
        return {scene.operands[0], scene.operands[-1]} in HELD_OUT_OPERANDS
    return zlib.crc32(repr(scene).encode()) % 8 == 0


HELD_OUT_SCRIPTS = ("GEORGIAN", "ARMENIAN", "LAO")


def is_held_out_script(character: str) -> bool:
    return any(script in unicodedata.name(character, "").split() for script in HELD_OUT_SCRIPTS)


CONSONANTS, VOWELS = "bcdfghjklmnpqrstvwxyz", "aeiou"
ACCENTED = "àáâãäåæçèéêëìíîïñòóôõöøùúûüýœšžłğ"


def made_up_names(rng: random.Random, n: int, split: str) -> tuple[str, ...]:
    """`n` different names of 2 to 8 letters, such as "dak", "Mirola", "xqzt" or "Zoë".

    Half of them have syllables. The others have random letters, of which there may be few: then names are similar. One in five
    names is held out, by a hash of its letters in lower case.
    """
    names: dict[str, None] = {}
    few = rng.sample(CONSONANTS + VOWELS, rng.choice((4, 8, 26)))
    while len(names) < n:
        length = rng.randint(2, 8)
        if rng.random() < 0.5:
            start = rng.randrange(2)
            letters = [rng.choice((CONSONANTS, VOWELS)[(start + k) % 2]) for k in range(length)]
        else:
            letters = rng.choices(few, k=length)
        if rng.random() < 0.2:
            letters[rng.randrange(length)] = rng.choice(ACCENTED)
        name = "".join(letters)
        if (zlib.crc32(name.encode()) % 5 == 0) == (split == "test"):
            names[name.capitalize() if rng.random() < 0.4 else name.upper() if rng.random() < 0.1 else name] = None
    return tuple(names)
