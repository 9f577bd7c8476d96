"""Few-shot tasks as rows of shots. All shots of a row follow the same rule, and the model must infer it from them.
README.md lists the tasks with examples.

A training document is a row of shots. A few-shot prompt is the same row without the last answer. So there is one generator per
task; the evaluation uses another media pool (`split="test"`), other names and other seeds.

    >>> shots = vqa_row(pool, random.Random(0), n=3)
    >>> shots[0].prompt, shots[0].answer
    ('Question: How many circles? Answer:', ' 3')
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from minflamingo.data.sample import EOC, NoLoss, Sample, is_medium

from .media_pool import MediaPool, distinct_things
from .words import ATTRIBUTES, attributes, caption, fact, questions
from .world import ANIMALS, COUNTRIES, HELD_OUT_ANIMALS, MADE_UP_NAMES, TEXT_ONLY_ANIMALS


@dataclass(frozen=True)
class Shot:
    """One image or video with its text: <image>prompt answer fact<EOC>. `medium` is its index in the media pool."""

    medium: int | None  # None, in training: another text about the previous medium
    prompt: str
    answer: str
    choices: tuple[str, ...] | None = None  # close-ended: the possible answers
    fact: str = ""  # of `naming`: a sentence after the answer
    fact_medium: int | None = None  # of `naming`, in training: an image between answer and fact
    # What carries loss in training. The prompt never does: the image does not determine the question.
    answer_loss: bool = True
    fact_loss: bool = True
    eoc_loss: bool = True


def task_row(pool: MediaPool, rng: random.Random, n: int, attribute: str | None = None) -> list[Shot]:
    """One attribute, for example colour, of all images. Only the answers of the shots show which attribute it is."""
    attribute = attribute or rng.choice(ATTRIBUTES[rng.choice(list(ATTRIBUTES))])
    ids = rng.choices(pool.having("attribute", attribute), k=n)
    return [Shot(i, "Output:", " " + attributes(pool.scenes[i])[attribute]) for i in ids]


ocr_row = partial(task_row, attribute="word")
arithmetic_row = partial(task_row, attribute="sum")


def video_row(pool: MediaPool, rng: random.Random, n: int) -> list[Shot]:
    return [Shot(i, "Output:", " " + caption(pool.scenes[i])) for i in rng.choices(pool.having("kind", "video"), k=n)]


def caption_row(pool: MediaPool, rng: random.Random, n: int, kinds: Sequence[str] = ("things", "pair", "row")) -> list[Shot]:
    """Captions of one to three things and their arrangement. Image-text pairs for training also have signs and sums."""
    ids = [rng.choice(pool.having("kind", rng.choice(kinds))) for _ in range(n)]
    return [Shot(i, "Output:", " " + caption(pool.scenes[i])) for i in ids]


def vqa_row(
    pool: MediaPool, rng: random.Random, n: int, kinds: Sequence[str] = ("things", "things", "pair", "sign"), per_image: int = 1
) -> list[Shot]:
    """Questions about `n` images. per_image: in training, up to this many questions about each, one chunk per question."""
    shots = []
    for _ in range(n):
        i = rng.choice(pool.having("kind", rng.choice(kinds)))
        possible = questions(pool.scenes[i])
        for k, (question, answer) in enumerate(rng.sample(possible, min(per_image, len(possible)))):
            shots.append(Shot(None if k else i, f"Question: {question} Answer:", " " + answer))
    return shots


def binding_row(
    pool: MediaPool, rng: random.Random, n: int, ways: int | None = None, split: str = "train", shown: str = "single"
) -> list[Shot]:
    """Made-up names of `ways` things. Each round of shots shows every thing once, in random order; the last shot is the query.

    shown: "single" (the thing is alone in an image) or "mover" (it is the moving thing of a video).
    """
    ways = ways or rng.choice((2, 3, 4))
    for _ in range(10_000):  # a small pool, or one for evaluation, does not contain every thing
        things = distinct_things(rng, ways)
        if all((shown, thing) in pool.ids for thing in things):
            break
    else:
        raise ValueError(f"this media pool of {len(pool.scenes)} has no {ways} different {shown} things; draw a larger pool")
    names = rng.sample(MADE_UP_NAMES[split], ways)
    prompt, answer = ("", "{}") if rng.random() < 0.5 else ("This is a", " {}.")
    choices = tuple(answer.format(name) for name in names)
    rounds = -(-(n - 1) // ways)  # rounded up
    order = [k for _ in range(rounds) for k in rng.sample(range(ways), ways)][: n - 1] + [rng.randrange(ways)]
    shots = []
    for i, k in enumerate(order):
        medium = rng.choice(pool.having(shown, things[k]))
        # The first mention of a name carries no loss: it is not predictable.
        shots.append(Shot(medium, prompt, choices[k], choices, answer_loss=k in order[:i]))
    if split == "test":  # the support does not contain the image of the query: a name belongs to a thing, not to one image
        query = shots[-1].medium
        others = [i for i in pool.having(shown, things[order[-1]]) if i != query] or [query]
        shots[:-1] = [replace(shot, medium=rng.choice(others)) if shot.medium == query else shot for shot in shots[:-1]]
    return shots


def unrelated_medium(pool: MediaPool, rng: random.Random, country: str | None = None) -> int:
    """An image that must not change the LM's prediction. Often an animal, but none of `country`: it would be a hint."""
    while True:
        kind = rng.choice(("things", "sign", "pair", "sum", "animal", "animal", "animal"))
        i = rng.choice(pool.having("kind", kind))
        if kind != "animal" or COUNTRIES[pool.scenes[i].name] != country:
            return i


def sums_text_row(pool: MediaPool, rng: random.Random, n: int) -> list[Shot]:
    """Training only: "3x6=" -> "18" as text next to an unrelated image. Only sums that training images may show."""
    ids = rng.choices(pool.having("kind", "sum"), k=n)
    sums = [attributes(pool.scenes[i])["sum"].partition("=") for i in ids]
    return [Shot(unrelated_medium(pool, rng), f"Output: {left}=", result) for left, _, result in sums]


def naming_row(pool: MediaPool, rng: random.Random, n: int, split: str = "train") -> list[Shot]:
    """The name of an animal and the fact about it. In the test, the query shows a held-out animal, the support the others.

    Flamingo must recognise the animal and leave the fact to the LM. If it learned to predict facts from images, it would fail
    for held-out animals. So a fact carries loss only next to an unrelated image, `*`. In training there are four kinds of shots
    (text in brackets carries no loss):

        <image> yak. [They are …]<EOC>    animals that are not held out
        <image> yak. * They are …<EOC>    the same, in half of the rows
        <image> koala.[<EOC>]             held-out animals. With loss, Flamingo would learn that no fact follows their names.
        * [sloth.] They are …<EOC>        animals that only texts mention: a third of all shots. No image shows this name.
    """
    separate = split == "train" and rng.random() < 0.5
    names = rng.choices(ANIMALS if split == "train" else sorted(set(ANIMALS) - set(HELD_OUT_ANIMALS)), k=n)
    if split == "test":
        names[-1] = rng.choice(HELD_OUT_ANIMALS)
    shots = []
    for name in names:
        if split == "train" and rng.random() < 1 / 3:
            name = rng.choice(list(TEXT_ONLY_ANIMALS))
            medium = unrelated_medium(pool, rng, TEXT_ONLY_ANIMALS[name])
            shots.append(Shot(medium, "This is a", f" {name}.", fact=fact(name), answer_loss=False))
            continue
        shot = Shot(rng.choice(pool.having("animal", name)), "This is a", f" {name}.", fact=fact(name), fact_loss=False)
        if split == "train" and name in HELD_OUT_ANIMALS:
            shot = replace(shot, fact="", eoc_loss=False)
        elif separate:
            shot = replace(shot, fact_medium=unrelated_medium(pool, rng, COUNTRIES[name]), fact_loss=True)
        shots.append(shot)
    return shots


def to_sample(row: list[Shot], pool: MediaPool, attend_next: bool = False, markers: Sequence[str] = ()) -> Sample:
    """A row of shots as an interleaved document: <image>text<EOC><image>text<EOC>…

    attend_next: each text comes BEFORE its image, text<EOC><image>…: on the web either order occurs (the paper's p_next).
    markers: the first shots have these list markers instead of their images, and carry no loss. So a document is as long as a
        32-shot prompt, with few images. Only images define a made-up name: its first mention after the markers has no loss.
    """
    pieces, mentioned = [], set()
    for marker, shot in zip(markers, row):
        pieces += [NoLoss(marker), NoLoss(shot.prompt + shot.answer + shot.fact), NoLoss(EOC)]
    for shot in row[len(markers) :]:
        if shot.medium is None and (attend_next or not any(map(is_medium, pieces))):
            continue  # its text would attend to an image that it is not about
        image = [] if shot.medium is None else [pool.media[shot.medium]]
        text = [NoLoss(shot.prompt)] if shot.prompt else []
        predictable = not markers or shot.choices is None or shot.answer in mentioned
        text.append(shot.answer if shot.answer_loss and predictable else NoLoss(shot.answer))
        mentioned.add(shot.answer)
        separated = shot.fact_medium is not None
        if separated and not attend_next:  # with attend_next, the name would attend to this image
            text.append(pool.media[shot.fact_medium])
        if shot.fact:  # with attend_next, a fact that should be separated is next to the animal's own image: no loss
            text.append(shot.fact if shot.fact_loss and not (separated and attend_next) else NoLoss(shot.fact))
        text.append(EOC if shot.eoc_loss else NoLoss(EOC))
        pieces += text + image if attend_next else image + text
    return Sample(pieces, attend_next=attend_next)
