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
    """One image or video (its index in the pool) with its text, divided into prompt and answer."""

    medium: int | None  # None, in training: another text about the previous medium
    prompt: str
    answer: str
    known: bool = True  # False: the answer is not predictable yet (first mention of a name), so it carries no loss
    ends: bool = True  # False: a sentence could follow, so the <EOC> carries no loss
    extra: tuple[int | None, str] | None = None  # training: another medium (or None) and a text that follows the answer
    choices: tuple[str, ...] | None = None  # close-ended: the possible answers


def task_row(pool: MediaPool, rng: random.Random, n: int, attribute: str | None = None) -> list[Shot]:
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
    """per_image: in training, up to this many questions about one image, each in its own chunk."""
    shots = []
    for _ in range(n):
        i = rng.choice(pool.having("question", rng.choice(kinds)))
        possible = questions(pool.scenes[i])
        for k, (question, answer) in enumerate(rng.sample(possible, min(per_image, len(possible)))):
            shots.append(Shot(None if k else i, f"Question: {question} Answer:", " " + answer))
    return shots


def binding_row(
    pool: MediaPool, rng: random.Random, n: int, ways: int | None = None, split: str = "train", shown: str = "single"
) -> list[Shot]:
    """Each round of shots shows each of the `ways` things once. shown: "single" (alone in an image), "mover" (of a video)."""
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
        shots.append(Shot(medium, prompt, choices[k], known=k in order[:i], choices=choices))
    if split == "test":  # the support does not contain the image of the query: a name belongs to a thing, not to one image
        query = shots[-1].medium
        others = [i for i in pool.having(shown, things[order[-1]]) if i != query] or [query]
        shots[:-1] = [replace(shot, medium=rng.choice(others)) if shot.medium == query else shot for shot in shots[:-1]]
    return shots


def unrelated_medium(pool: MediaPool, rng: random.Random, country: str | None = None) -> int:
    """An image of something else, often an animal, but none of `country`. It must not change the LM's prediction."""
    while True:
        kind = rng.choice(("things", "sign", "pair", "sum", "animal", "animal", "animal"))
        i = rng.choice(pool.having("kind", kind))
        if kind != "animal" or COUNTRIES[pool.scenes[i].name] != country:
            return i


def sums_text_row(pool: MediaPool, rng: random.Random, n: int) -> list[Shot]:
    """Training only: "3x6=" -> "18" as text next to an image of something else. Only sums that training images may show."""
    ids = rng.choices(pool.having("kind", "sum"), k=n)
    sums = [attributes(pool.scenes[i])["sum"].partition("=") for i in ids]
    return [Shot(unrelated_medium(pool, rng), f"Output: {left}=", result) for left, _, result in sums]


def naming_row(pool: MediaPool, rng: random.Random, n: int, split: str = "train") -> list[Shot]:
    """Names of animals and their facts. Facts of held-out animals never occur; in the test, the QUERY is a held-out animal.

    Training shows held-out animals with their names. Their <EOC> carries no loss (`ends=False`), otherwise Flamingo learns that
    no fact follows these names. The LM must recall a fact from the name; Flamingo must not predict it from the image. So a fact
    carries loss only after an unrelated image: in half of the training rows one separates name and fact, and a third of all
    shots is about an animal that no image shows (its name is not predictable, its country is).
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
            shots.append(Shot(medium, "This is a", f" {name}.", known=False, extra=(None, fact(name))))
            continue
        has_fact = split == "test" or name not in HELD_OUT_ANIMALS
        shot = Shot(rng.choice(pool.having("animal", name)), "This is a", f" {name}.", ends=has_fact)
        if has_fact and separate:
            shot = replace(shot, extra=(unrelated_medium(pool, rng, COUNTRIES[name]), fact(name)))
        elif has_fact:
            shot = replace(shot, answer=shot.answer + fact(name))
        shots.append(shot)
    return shots


def to_sample(row: list[Shot], pool: MediaPool, attend_next: bool = False, markers: Sequence[str] = ()) -> Sample:
    """A row of shots as an interleaved document: <image>text<EOC><image>text<EOC>…

    attend_next: each text comes BEFORE its image, text<EOC><image>…: on the web either order occurs (the paper's p_next).
    markers: the first shots have these list markers instead of their images. So a document is as long as a 32-shot prompt, with
        few images. Only images define a made-up name, so its first mention after the markers is not predictable.
    """
    pieces, mentioned = [], set()
    for marker, shot in zip(markers, row):
        pieces += [NoLoss(marker), NoLoss(shot.prompt + shot.answer + (shot.extra[1] if shot.extra else "")), NoLoss(EOC)]
    for shot in row[len(markers) :]:
        if shot.medium is None and (attend_next or not any(map(is_medium, pieces))):
            continue  # its text would attend to an image that it is not about
        # The prompt carries no loss: the image does not determine the question.
        text = [NoLoss(shot.prompt)] if shot.prompt else []
        known = shot.known and (not markers or shot.choices is None or shot.answer in mentioned)
        mentioned.add(shot.answer)
        # The fact about an animal carries no loss next to its own image: Flamingo would memorise image -> country, and fail
        # for the held-out animals. It must learn to leave the fact to the LM.
        answer, they, country = shot.answer.partition(" They are ")
        text.append(answer if known else NoLoss(shot.answer))
        if they and known:
            text.append(NoLoss(they + country))
        if shot.extra:
            medium, more = shot.extra
            if medium is not None and not attend_next:  # with attend_next the text would attend to the wrong image
                text.append(pool.media[medium])
            text.append(more)
        text.append(EOC if shot.ends else NoLoss(EOC))
        image = [] if shot.medium is None else [pool.media[shot.medium]]
        pieces += text + image if attend_next else image + text
    return Sample(pieces, attend_next=attend_next)
