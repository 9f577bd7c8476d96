"""Nine toy benchmarks, one for each column of the paper's table on fine-tuning (section 3.2); README.md lists them.

    tasks = suite("test")               # {"captions": Task(…), …}; or: python -m minflamingo eval --task toy

Training and validation splits show no held-out scene, the test split only held-out scenes (world.py). Shots are from the
training split. A made-up name has one meaning in the whole benchmark, and `train_tiny.py` never trains on it. Only the shots
define these names, and the rule of `memes`. In the other tasks, shots only show the format of the answers.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import numpy as np
from PIL import Image, ImageFilter

from minflamingo.evaluation.task import Example, Task, Template

from .draw import draw
from .media_pool import distinct_things, draw_until_allowed, random_scene
from .words import caption, questions
from .world import COLOURS, DIRECTIONS, HALVES, PLACES, SHAPES, Scene, held_out, made_up_names

SPLITS = ("train", "validation", "test")
# `memes`: the colours that fit each word. With these six words, held-out signs occur in both places and with both answers.
WARM, COLD = ("red", "orange", "yellow"), ("green", "cyan", "blue")
FITTING = {"stop": WARM, "food": WARM, "shop": WARM, "taxi": COLD, "bus": COLD, "tea": COLD}
UNANSWERABLE = "nah"  # short, because the tokenizer spells it: the task is not about spelling
N_ANSWERS = 10  # per question, as in VQAv2; here they are all equal


@cache
def things_and_names(task: str) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    """Three things (colour, shape), each with held-out and other images, and eight names.

    No two names (nor one and UNANSWERABLE) have the same consonant in the same place, so they are easy to distinguish.
    """
    rng = random.Random(f"names {task}")
    while True:
        things = distinct_things(rng, 3)
        splits = [{held_out(Scene("things", colour=c, shape=s, count=1, place=p)) for p in PLACES} for c, s in things]
        if all(len(both) == 2 for both in splits):
            break
    while True:
        names = made_up_names(rng, 8, "test")
        if all(len({name[place : place + 1].lower() for name in (UNANSWERABLE, *names)}) == 9 for place in (0, 2)):
            return things, names


def single_thing(split: str, rng: random.Random, thing: tuple[str, str]) -> Scene:
    colour, shape = thing
    return draw_until_allowed(lambda: Scene("things", colour=colour, shape=shape, count=1, place=rng.choice(PLACES)), split)


# Each generator returns what follows the key of an `Example`: a function rng -> pixels, answers, perhaps fields and choices.
def captions(split: str, rng: random.Random) -> tuple:
    scene = random_scene(rng, rng.choice(("things", "pair", "row")), split)
    return partial(draw, scene), (caption(scene),)


def video_captions(split: str, rng: random.Random) -> tuple:
    video = random_scene(rng, "video", split)
    return partial(draw, video), (caption(video),)


def vqa(split: str, rng: random.Random) -> tuple:
    scene = random_scene(rng, rng.choice(("things", "things", "pair", "sign")), split)
    question, answer = rng.choice(questions(scene))
    return partial(draw, scene), (answer,) * N_ANSWERS, {"question": question}


def poor_images(split: str, rng: random.Random) -> tuple:
    """Blurred, noisy or dark images, as VizWiz has them. In three of ten nothing can be recognised."""
    things, names = things_and_names("poor_images")
    k = rng.randrange(len(things))
    scene, lost = single_thing(split, rng, things[k]), rng.random() < 0.3
    answers = (UNANSWERABLE if lost else names[k],) * N_ANSWERS
    return lambda image_rng: degrade(draw(scene, image_rng), image_rng, lost), answers


def degrade(pixels: np.ndarray, rng: random.Random, lost: bool) -> np.ndarray:
    """Blur, add noise or darken; with `lost`, so much that nothing can be recognised."""
    noise = np.random.default_rng(rng.randrange(2**32)).uniform(-1, 1, pixels.shape)
    method = rng.randrange(3)
    if method == 0:
        return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(9 if lost else 0.5)))
    if method == 1:
        return (0.05 * pixels + 110 * (1 + noise) if lost else pixels + 12 * noise).clip(0, 255).astype(np.uint8)
    return ((0.04 if lost else 0.9) * pixels).astype(np.uint8)


def video_questions(split: str, rng: random.Random) -> tuple:
    """Which of three named things moves? The still thing is any thing of another colour and shape."""
    things, names = things_and_names("video_questions")
    k = rng.randrange(len(things))
    colour, shape = things[k]

    def make() -> Scene:
        still = rng.choice([c for c in COLOURS if c != colour]), rng.choice([s for s in SHAPES if s != shape])
        return Scene("video", things=(things[k], still), direction=rng.choice(DIRECTIONS))

    return partial(draw, draw_until_allowed(make, split)), (names[k],)


def dialogue(split: str, rng: random.Random) -> tuple:
    """The previous turn said where the thing is. What is its name? Each thing has two names; two candidates name nothing."""
    things, names = things_and_names("dialogue")
    k, first = rng.randrange(len(things)), rng.randrange(2)
    scene = single_thing(split, rng, things[k])
    answers = names[2 * k + first], names[2 * k + 1 - first]
    return partial(draw, scene), answers, {"history": f" {scene.place}."}, tuple(rng.sample(names, len(names)))


def steps(split: str, rng: random.Random) -> tuple:
    """A video of eight frames: a thing moves, then turns and moves on. Training videos have four frames and one direction."""
    first = random_scene(rng, "video", split)
    turned = rng.choice(("up", "down") if first.direction in ("left", "right") else ("left", "right"))
    second = replace(first, direction=turned)
    answers = (f"{caption(first)}, {caption(second)}",)
    return lambda image_rng: np.concatenate([draw(video, image_rng) for video in (first, second)]), answers


def reading(split: str, rng: random.Random) -> tuple:
    scene = random_scene(rng, "sign", split)
    return partial(draw, scene), (scene.word,) * N_ANSWERS


def memes(split: str, rng: random.Random) -> tuple:
    """Does the colour of the sign fit its word? Neither alone decides. HatefulMemes calls such images "benign confounders"."""
    fits = rng.random() < 0.5

    def make() -> Scene:
        word = rng.choice(list(FITTING))
        colour = rng.choice([c for c in (*WARM, *COLD) if (c in FITTING[word]) == fits])
        return Scene("sign", colour=colour, word=word, place=rng.choice(HALVES))

    return partial(draw, draw_until_allowed(make, split)), ("yes" if fits else "no",), {}, ("yes", "no")


OUTPUT, QUESTION, NAME = Template("Output:"), Template("Question: {question} Answer:"), Template("This is a", " {answer}.")
# Name -> generator, prompt and answer, metric, the published benchmark that it resembles.
SUITE: dict[str, tuple[Callable[[str, random.Random], tuple], Template, str, str]] = {
    "captions": (captions, OUTPUT, "exact_match", "COCO"),
    "questions": (vqa, QUESTION, "vqa", "VQAv2"),
    "video_captions": (video_captions, OUTPUT, "exact_match", "VATEX"),
    "poor_images": (poor_images, NAME, "vqa", "VizWiz"),
    "video_questions": (video_questions, NAME, "exact_match", "MSRVTTQA"),
    "dialogue": (dialogue, Template("{history}This is a", " {answer}."), "accuracy", "VisDial"),
    "steps": (steps, OUTPUT, "exact_match", "YouCook2"),
    "reading": (reading, OUTPUT, "vqa", "TextVQA"),
    "memes": (memes, NAME, "accuracy", "HatefulMemes"),
}


def clean(text: str) -> str:
    """The first sentence without the full stop: " dak. They are mainly found in …" -> "dak"."""
    return text.split(".")[0].strip()


def example(task: str, split: str, number: int) -> Example:
    """Example `number` of a split, always the same one. Its pixels are rendered when `media()` is called."""
    stream = f"suite 0 {task} {split} {number}"
    render, *answers_fields_choices = SUITE[task][0](split, random.Random(stream))

    def media() -> object:
        pixels = render(random.Random(f"paint {stream}"))
        return list(pixels) if pixels.ndim == 4 else pixels

    return Example(f"{split}-{number}", media, *answers_fields_choices)


def suite(split: str = "test", queries: int = 128, support: int = 512) -> dict[str, Task]:
    """The nine tasks: `queries` examples of `split`, and `support` examples of the training split for the shots."""
    if split not in SPLITS:
        raise ValueError(f"the toy suite has no split {split!r}; choose one of {', '.join(SPLITS)}")
    tasks = {}
    for name, (_, template, metric, _) in SUITE.items():
        shots = [example(name, "train", i) for i in range(support)]
        asked = [example(name, split, i) for i in range(queries)]
        tasks[name] = Task(name, shots, asked, template, metric, clean, max_new_tokens=20 if template is OUTPUT else 16)
    return tasks
