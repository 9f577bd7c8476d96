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

from minflamingo.data.sample import EOC, NoLoss, Sample

from .media_pool import MediaPool
from .words import ATTRIBUTES, attributes, caption, fact, questions
from .world import ANIMALS, COUNTRIES, HELD_OUT_ANIMALS, TEXT_ONLY_ANIMALS, VALUES, made_up_names


@dataclass(frozen=True)
class Shot:
    """One image or video with its text: <image>prompt answer fact<EOC>. `medium` is its index in the media pool."""

    medium: int
    prompt: str
    answer: str
    choices: tuple[str, ...] | None = None  # close-ended: the possible answers
    fact: str = ""  # of `naming`: a sentence after the answer
    # What carries loss in training. The prompt never does: the image does not determine the question.
    loss: tuple[str, ...] = ("answer", "fact", "eoc")


def task_row(pool: MediaPool, rng: random.Random, n: int, attribute: str | None = None) -> list[Shot]:
    """One attribute, for example colour, of all images. Only the answers of the shots show which attribute it is."""
    attribute = attribute or rng.choice(ATTRIBUTES[rng.choice(list(ATTRIBUTES))])
    ids = rng.choices(pool.having("attribute", attribute), k=n)
    return [Shot(i, "Output:", " " + attributes(pool.scenes[i])[attribute]) for i in ids]


ocr_row = partial(task_row, attribute="word")
arithmetic_row = partial(task_row, attribute="sum")


def caption_row(pool: MediaPool, rng: random.Random, n: int, kinds: Sequence[str] = ("things", "pair", "row")) -> list[Shot]:
    """Captions of one to three things and their arrangement. Image-text pairs for training also have signs and sums."""
    ids = [rng.choice(pool.having("kind", rng.choice(kinds))) for _ in range(n)]
    return [Shot(i, "Output:", " " + caption(pool.scenes[i])) for i in ids]


video_row = partial(caption_row, kinds=("video",))


def vqa_row(pool: MediaPool, rng: random.Random, n: int, kinds: Sequence[str] = ("things", "things", "pair", "sign")):
    shots = []
    for _ in range(n):
        i = rng.choice(pool.having("kind", rng.choice(kinds)))
        question, answer = rng.choice(questions(pool.scenes[i]))
        shots.append(Shot(i, f"Question: {question} Answer:", " " + answer))
    return shots


def named_row(rng: random.Random, media: Sequence[int], labels: Sequence[int], split: str) -> list[Shot]:
    """Shots with made-up names: media[i] has the name number labels[i].

    In half of the rows the text is "This is a dak.", in the others only the name. The first mention of a name carries no loss:
    it is not predictable.
    """
    names = made_up_names(rng, max(labels) + 1, split)
    prompt, answer = ("", " {}") if rng.random() < 0.5 else ("This is a", " {}.")
    choices = tuple(answer.format(name) for name in names)
    shots = [Shot(medium, prompt, choices[k], choices) for medium, k in zip(media, labels)]
    return [shot if k in labels[:i] else replace(shot, loss=("eoc",)) for i, (shot, k) in enumerate(zip(shots, labels))]


def binding_row(
    pool: MediaPool, rng: random.Random, n: int, ways: int | None = None, split: str = "train", shown: str = "single",
    in_rounds: bool = True, noise: float = 0.0,
) -> list[Shot]:  # fmt: skip
    """Made-up names of `ways` things. The last shot is the query.

    shown: what has names. "single": things that are alone in an image; "mover": moving things of videos; "drawing": designs.
    in_rounds: each round of shots shows every thing once, in random order, so after one round all names are known. Without it
        each shot shows a random thing.
    noise: this share of the shots (never the query) has the name of another thing.
    """
    ways = ways or rng.choice((2, 3, 4, 5))
    for _ in range(10_000):  # until no two have the same colour or shape; a small pool may not have such things
        things = rng.sample(pool.values(shown), ways)
        if shown == "drawing" or all(len(set(part)) == ways for part in zip(*things)):
            break
    else:
        raise ValueError(f"this media pool of {len(pool.scenes)} has no {ways} different {shown} things; draw a larger pool")
    rounds = [rng.sample(range(ways), ways) for _ in range(n // ways + 1)]
    order = [k for one in rounds for k in one][: n - 1] if in_rounds else rng.choices(range(ways), k=n - 1)
    order.append(rng.randrange(ways))
    query = rng.choice(pool.having(shown, things[order[-1]]))
    media = [rng.choice(pool.having(shown, things[k])) for k in order[:-1]] + [query]
    # The support does not contain the image of the query: a name belongs to a thing, not to one image.
    others = [i for i in pool.having(shown, things[order[-1]]) if i != query] or [query]
    media[:-1] = [rng.choice(others) if i == query else i for i in media[:-1]]
    labels = [(k + rng.randrange(1, ways)) % ways if rng.random() < noise else k for k in order[:-1]] + order[-1:]
    return named_row(rng, media, labels, split)


noisy_row = partial(binding_row, ways=2, noise=0.25)


def rule_row(pool: MediaPool, rng: random.Random, n: int, split: str = "train") -> list[Shot]:
    """Two names for two values of one attribute: for example, whatever is red is a dak, whatever is blue is a fep.

    Images differ in four attributes. A few shots do not show which of them decides.
    """
    attribute = rng.choice(ATTRIBUTES["things"])
    values = rng.sample(list(VALUES["things"][attribute]), 2)
    labels = [rng.randrange(2) for _ in range(n)]
    return named_row(rng, [rng.choice(pool.having(attribute, values[k])) for k in labels], labels, split)


def unrelated_medium(pool: MediaPool, rng: random.Random, country: str | None = None) -> int:
    """An image that must not change the LM's prediction. Often an animal, but none of `country`: it would be a hint."""
    while True:
        i = rng.choice(pool.having("kind", rng.choice(("things", "sign", "pair", "sum", "animal", "animal", "animal"))))
        if country is None or COUNTRIES.get(pool.scenes[i].name) != country:
            return i


def sums_row(pool: MediaPool, rng: random.Random, n: int) -> list[Shot]:
    """Training only: "3x6=" -> "18" next to an unrelated image. Flamingo must leave results to the LM, as it must leave facts.

    Only sums that training images may show. Without these documents, results of other sums are often wrong by one.
    """
    ids = rng.choices(pool.having("kind", "sum"), k=n)
    sums = [attributes(pool.scenes[i])["sum"].partition("=") for i in ids]
    return [Shot(unrelated_medium(pool, rng), f"Output: {left}=", result) for left, _, result in sums]


def naming_row(pool: MediaPool, rng: random.Random, n: int, split: str = "train") -> list[Shot]:
    """The name of an animal and the fact about it. In the test, the query shows a held-out animal, the support the others.

    Flamingo must recognise the animal and leave the fact to the LM. If it learned to predict facts from images, it would fail
    for held-out animals. So a fact carries loss only next to an unrelated image `*`. Training has three kinds of shots (text in
    brackets carries no loss):

        <image> yak. [They are …]<EOC>    animals that are not held out
        <image> koala.[<EOC>]             held-out animals. With loss, Flamingo would learn that no fact follows their names.
        * [sloth.] They are …<EOC>        animals that only texts mention: no image shows this name
    """
    shots = []
    for i in range(n):
        if split == "train" and rng.random() < 0.4:
            name = rng.choice(list(TEXT_ONLY_ANIMALS))
            medium = unrelated_medium(pool, rng, TEXT_ONLY_ANIMALS[name])
            shots.append(Shot(medium, "This is a", f" {name}.", fact=fact(name), loss=("fact", "eoc")))
            continue
        known = ANIMALS if split == "train" else HELD_OUT_ANIMALS if i == n - 1 else sorted({*ANIMALS} - {*HELD_OUT_ANIMALS})
        shot = Shot(rng.choice(pool.having("animal", name := rng.choice(known))), "This is a", f" {name}.", fact=fact(name))
        hidden = split == "train" and name in HELD_OUT_ANIMALS
        shots.append(replace(shot, fact="", loss=("answer",)) if hidden else replace(shot, loss=("answer", "eoc")))
    return shots


def to_sample(row: list[Shot], pool: MediaPool, attend_next: bool = False) -> Sample:
    """A row of shots as an interleaved document: <image>text<EOC><image>text<EOC>…

    attend_next: each text comes BEFORE its image, text<EOC><image>…: on the web either order occurs (the paper's p_next).
    """
    pieces = []
    for shot in row:
        parts = {"prompt": shot.prompt, "answer": shot.answer, "fact": shot.fact, "eoc": EOC}
        text = [part if name in shot.loss else NoLoss(part) for name, part in parts.items() if part != ""]
        image = [pool.media[shot.medium]]
        pieces += text + image if attend_next else image + text
    return Sample(pieces, attend_next=attend_next)
