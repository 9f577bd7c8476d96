"""Nine toy benchmarks, one for each column of the paper's fine-tuning table: the same sort of task, the same metric.

    captions          COCO           cider   "Output:" → " a red circle left of a blue star"
    questions         VQAv2          vqa     "Question: How many circles? Answer:" → " 3"
    video_captions    VATEX          cider   "Output:" → " the red circle moves left"
    poor_pictures     VizWiz         vqa     "This is a" → " dak.", or " nul." (unanswerable) where nothing can be made out
    video_questions   MSRVTTQA       top1    "This is a" → " dak.": who is it that moves?
    dialogue          VisDial        ndcg    " left.This is a" → a ranking of eight names, two of them relevant
    steps             YouCook2       cider   "Output:" → " the red circle moves left, the red circle moves up"
    reading           TextVQA        vqa     "Output:" → " taxi"
    clashes           HatefulMemes   auc     "This is a" → " yes." where word and board agree, else " no."

    tasks = suite("test")               # {"captions": Task(…), …}, for minflamingo.evaluation; or: python -m minflamingo eval

Each has three splits. Shots are drawn from the training split, which shows nothing that is held out (`world.py`); the test
split shows nothing else. Names are made up for the benchmark, stand on no training page of `train_tiny.py`, and mean the same
thing all over it. Everything is drawn when it is asked for: an example is its number.

In four of the nine ("This is a") what the answer is, and not only how it is put, can be learned from the shots alone. In
`clashes` neither word nor board alone can tell: for every meme that agrees there are others with the same word, or the same
board, that do not (the "benign confounders" of HatefulMemes).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial

import numpy as np
from PIL import Image, ImageFilter

from minflamingo.evaluation.task import Example, Task, Template

from .album import any_scene, distinct_things
from .draw import draw, draw_video
from .words import caption, questions
from .world import COLOURS, DIRECTIONS, MADE_UP_NAMES, PLACES, SHAPES, Scene, Video, held_out

SPLITS = ("train", "validation", "test")
# The colours of boards that go with a word, in `clashes`: warm ones or cold ones. With these six words the held-out boards are
# spread: at top and bottom, among those that agree and those that do not.
WARM, COLD = ("red", "orange", "yellow"), ("green", "cyan", "blue")
FITTING = {"stop": WARM, "cafe": WARM, "food": WARM, "park": COLD, "bus": COLD, "zoo": COLD}
# VizWiz's "unanswerable". That long a word is spelled in letters, as none on any page: the task would become one of spelling.
UNANSWERABLE = "nul"
PEOPLE = 10  # who answer each question, as in VQAv2; in the toy world they agree
OUTPUT, QUESTION, NAMED = Template("Output:"), Template("Question: {question} Answer:"), Template("This is a", " {answer}.")


def scene_of(split: str, rng: random.Random, make: Callable[[], Scene | Video]) -> Scene | Video:
    """What `make` makes, once it may be shown in this split: held-out cases in the test, and only there."""
    while True:
        scene = make()
        if held_out(scene) == (split == "test"):
            return scene


@cache
def things_and_names(task: str) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    """Three single things (colour, shape), of which some pictures are held out and some are not; and eight names.

    The names are easy to tell apart: no two, nor one and UNANSWERABLE, have a consonant in the same place.
    """
    rng = random.Random(f"names {task}")

    def pictures(thing: tuple[str, str]) -> set[bool]:
        return {held_out(Scene("things", colour=thing[0], shape=thing[1], count=1, place=place)) for place in PLACES}

    while True:
        things = distinct_things(rng, 3)
        if all(len(pictures(thing)) == 2 for thing in things):
            break
    while True:
        names = tuple(rng.sample(MADE_UP_NAMES["test"], 8))
        if all(len({name[place] for name in (UNANSWERABLE, *names)}) == 9 for place in (0, 2)):
            return things, names


def single(split: str, rng: random.Random, thing: tuple[str, str]) -> Scene:
    make = partial(any_place, rng, thing)
    return scene_of(split, rng, make)


def any_place(rng: random.Random, thing: tuple[str, str]) -> Scene:
    return Scene("things", colour=thing[0], shape=thing[1], count=1, place=rng.choice(PLACES))


# --------------------------------------------------------------------------------------------------- one example of each


@dataclass(frozen=True)
class Item:
    """An example before it has a number: `picture(rng)` paints it."""

    picture: Callable[[random.Random], np.ndarray]
    answers: tuple[str, ...]
    fields: dict[str, str] = field(default_factory=dict)
    choices: tuple[str, ...] | None = None
    gains: tuple[float, ...] | None = None


def captions(split: str, rng: random.Random) -> Item:
    kind = rng.choice(("things", "pair", "row"))
    scene = scene_of(split, rng, lambda: any_scene(rng, kind))
    return Item(partial(draw, scene), (caption(scene),))


def vqa(split: str, rng: random.Random) -> Item:
    kind = rng.choice(("things", "things", "pair", "sign"))
    scene = scene_of(split, rng, lambda: any_scene(rng, kind))
    question, answer = rng.choice(questions(scene))
    return Item(partial(draw, scene), (answer,) * PEOPLE, {"question": question})


def video_captions(split: str, rng: random.Random) -> Item:
    film = scene_of(split, rng, lambda: any_scene(rng, "video"))
    return Item(partial(draw_video, film), (caption(film),))


def poor_pictures(split: str, rng: random.Random) -> Item:
    """People who cannot see ask "what is this?", and photograph as well as they can. Three in ten pictures show nothing."""
    things, names = things_and_names("poor_pictures")
    k = rng.randrange(len(things))
    scene, lost = single(split, rng, things[k]), rng.random() < 0.3
    return Item(lambda dice: spoiled(draw(scene, dice), dice, lost), (UNANSWERABLE if lost else names[k],) * PEOPLE)


def spoiled(picture: np.ndarray, rng: random.Random, lost: bool) -> np.ndarray:
    """A little out of focus, noisy or cropped; or, `lost`, so dark, blurred or noisy that nothing can be made out."""
    noise = np.random.default_rng(rng.randrange(2**32)).uniform(-1, 1, picture.shape)
    image, way = Image.fromarray(picture), rng.randrange(3)
    if way == 0:
        return np.asarray(image.filter(ImageFilter.GaussianBlur(9 if lost else 0.5)))
    if way == 1:
        return (0.05 * picture + 110 * (1 + noise) if lost else picture + 12 * noise).clip(0, 255).astype(np.uint8)
    if lost:
        return (0.04 * picture).astype(np.uint8)
    cut = rng.randrange(3)
    return np.asarray(image.crop((cut, cut, image.width - 2 + cut, image.height - 2 + cut)).resize(image.size))


def video_questions(split: str, rng: random.Random) -> Item:
    """Who is it that moves? In the film stands another thing, which may be anything of another colour and shape."""
    things, names = things_and_names("video_questions")
    k = rng.randrange(len(things))
    colour, shape = things[k]

    def film() -> Video:
        still = rng.choice([c for c in COLOURS if c != colour]), rng.choice([s for s in SHAPES if s != shape])
        return Video(things[k], still, rng.choice(DIRECTIONS))

    return Item(partial(draw_video, scene_of(split, rng, film)), (names[k],))


def dialogue(split: str, rng: random.Random) -> Item:
    """Where it is has been said; what is it called? Each thing has two names: the one that was given is relevant, and the
    other half as much. Two of the eight candidates are names of nothing."""
    things, names = things_and_names("dialogue")
    k, given = rng.randrange(len(things)), rng.randrange(2)
    scene = single(split, rng, things[k])
    name, other = names[2 * k + given], names[2 * k + 1 - given]
    choices, gains = rng.sample(names, len(names)), {name: 1.0, other: 0.5}
    fields = {"history": f" {scene.place}."}
    return Item(partial(draw, scene), (name,), fields, tuple(choices), tuple(gains.get(c, 0.0) for c in choices))


def steps(split: str, rng: random.Random) -> Item:
    """A film of eight frames in which a thing moves, and then turns."""
    first = scene_of(split, rng, lambda: any_scene(rng, "video"))
    sideways = first.direction in ("left", "right")
    turned = rng.choice(("up", "down") if sideways else ("left", "right"))
    then = Video(first.mover, first.still, turned)

    def paint(dice: random.Random) -> np.ndarray:
        return np.concatenate([draw_video(first, dice), draw_video(then, dice)])

    return Item(paint, (f"{caption(first)}, {caption(then)}",))


def reading(split: str, rng: random.Random) -> Item:
    scene = scene_of(split, rng, lambda: any_scene(rng, "sign"))
    return Item(partial(draw, scene), (scene.word,) * PEOPLE)


def clashes(split: str, rng: random.Random) -> Item:
    """A word on a board. Half of the boards have a colour that goes with their word; neither word nor board alone tells."""
    agree = rng.random() < 0.5

    def board() -> Scene:
        word = rng.choice(list(FITTING))
        colour = rng.choice([c for c in (*WARM, *COLD) if (c in FITTING[word]) == agree])
        return Scene("sign", colour=colour, word=word, place=rng.choice(("top", "bottom")))

    return Item(partial(draw, scene_of(split, rng, board)), ("yes" if agree else "no",), choices=("yes", "no"))


# ------------------------------------------------------------------------------------------------------------- the suite

SUITE: dict[str, tuple[Callable[[str, random.Random], Item], Template, str]] = {
    "captions": (captions, OUTPUT, "cider"),
    "questions": (vqa, QUESTION, "vqa"),
    "video_captions": (video_captions, OUTPUT, "cider"),
    "poor_pictures": (poor_pictures, NAMED, "vqa"),
    "video_questions": (video_questions, NAMED, "top1"),
    "dialogue": (dialogue, Template("{history}This is a", " {answer}."), "ndcg"),
    "steps": (steps, OUTPUT, "cider"),
    "reading": (reading, OUTPUT, "vqa"),
    "clashes": (clashes, NAMED, "auc"),
}
LIKE = dict(zip(SUITE, ("COCO", "VQAv2", "VATEX", "VizWiz", "MSRVTTQA", "VisDial", "YouCook2", "TextVQA", "HatefulMemes")))


def clean(text: str) -> str:
    """ " dak. They are mainly found in …" → "dak": the first sentence, without the stop."""
    return text.split(".")[0].strip()


def example(task: str, split: str, number: int, seed: int = 0) -> Example:
    """Example `number` of a split: always the same one, painted when its medium is asked for."""
    words = f"suite {seed} {task} {split} {number}"
    item = SUITE[task][0](split, random.Random(words))

    def media() -> object:
        pixels = item.picture(random.Random(f"paint {words}"))
        return list(pixels) if pixels.ndim == 4 else pixels

    return Example(f"{split}-{number}", media, item.answers, item.fields, item.choices, item.gains)


def suite(split: str = "test", queries: int = 128, support: int = 512, seed: int = 0) -> dict[str, Task]:
    """The nine tasks. `queries` examples of `split` are asked; shots come from `support` examples of the training split.

    Raises:
        ValueError: there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"the toy suite has no split {split!r}; choose one of {', '.join(SPLITS)}")
    tasks = {}
    for name, (_, template, metric) in SUITE.items():
        shots = [example(name, "train", i, seed) for i in range(support)]
        asked = [example(name, split, i, seed) for i in range(queries)]
        tasks[name] = Task(name, shots, asked, template, metric, clean, 20 if metric == "cider" else 16)
    return tasks
