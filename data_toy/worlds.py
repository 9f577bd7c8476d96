"""The eight worlds of few-shot learning: each draws a row of `Shot`s that share one secret.

    task      "Output:" alone; the shots show whether colour, shape, count, place, word or sum is wanted
    binding   made-up names for things, new on every page: "This is a dax." or the bare "dax"; 2- and 4-way
    naming    "This is a" → " flamingo. They are mainly found in Cuba."  (the fact stands in the LM's library alone)
    vqa       "Question: How many circles? Answer:" → " 3"
    ocr       "Output:" → the word on the sign
    arithmetic "Output:" → "3x6=18"; the picture shows 3x6, the LM knows its tables
    video     "Output:" → " the red circle moves left"
    caption   "Output:" → " a red circle left of a blue star"

A training page is a row of shots; a few-shot prompt is the same row with the last answer missing. So there is one generator
per world, and evaluation differs in the album it draws from (`split="test"`), its names and its seeds.

    >>> shots = vqa(album, random.Random(0), n=3)
    >>> shots[0].prompt, shots[0].answer
    ('Question: How many circles? Answer:', ' 3')
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from minflamingo.data.sample import EOC, Sample, Unscored, is_medium

from .album import Album, distinct_things
from .words import attributes, caption, fact, questions
from .world import CREATURES, HELD_OUT_CREATURES, HOMES, MADE_UP_NAMES, UNPICTURED

# What `task` may ask of each kind of picture. The kind is drawn first and then the attribute: so a single picture never
# betrays what is wanted of it, and a guess without shots is right about three times in ten.
ASKED = {
    "things": ("colour", "shape", "count", "place"),
    "sign": ("colour", "word", "place"),
    "sum": ("colour", "sum", "place"),
}


@dataclass(frozen=True)
class Shot:
    """One medium (by its number in the album) with its text, cut into what is given and what is wanted."""

    medium: int | None  # None, in training: one more text about the medium before
    prompt: str
    answer: str
    known: bool = True  # False: nobody could know this answer yet (a name's first mention)
    ends: bool = True  # False: more could follow here, so no loss on the <EOC>
    aside: tuple[int | None, str] | None = None  # training: another medium (or none), and more text behind it
    choices: tuple[str, ...] | None = None  # close-ended: the answers to choose from

    @property
    def text(self) -> str:
        return self.prompt + self.answer


def task(album: Album, rng: random.Random, n: int, attribute: str | None = None) -> list[Shot]:
    attribute = attribute or rng.choice(ASKED[rng.choice(list(ASKED))])
    ids = rng.choices(album.having("attribute", attribute), k=n)
    return [Shot(i, "Output:", " " + attributes(album.scenes[i])[attribute]) for i in ids]


def sums_beside(album: Album, rng: random.Random, n: int) -> list[Shot]:
    """Training only: "3x6=" → "18" in a text beside another picture. Only sums that pictures may show."""
    ids = rng.choices(album.having("kind", "sum"), k=n)
    cut = [attributes(album.scenes[i])["sum"].partition("=") for i in ids]
    return [Shot(unrelated(album, rng), f"Output: {asked}=", result) for asked, _, result in cut]


def binding(
    album: Album, rng: random.Random, n: int, ways: int | None = None, split: str = "train", shown: str = "single"
) -> list[Shot]:
    """Shots come in rounds: each round shows every one of the `ways` things once, in a new order.

    `shown`: "single", a thing alone in a picture; "mover", the one that moves in a film.
    """
    ways = ways or rng.choice((2, 3, 4))
    for _ in range(10_000):  # a small or a held-out album does not show every thing
        things = distinct_things(rng, ways)
        if all((shown, thing) in album.ids for thing in things):
            break
    else:
        raise ValueError(f"this album of {len(album.scenes)} has no {ways} different {shown} things: draw a larger one")
    names = rng.sample(MADE_UP_NAMES[split], ways)
    bare = rng.random() < 0.5
    order = [k for _ in range(-(-(n - 1) // ways)) for k in rng.sample(range(ways), ways)][: n - 1] + [rng.randrange(ways)]
    shots, mentioned = [], set()
    end = "" if bare else "."
    for k in order:
        medium = rng.choice(album.having(shown, things[k]))
        prompt, space = ("", "") if bare else ("This is a", " ")
        choices = tuple(f"{space}{name}{end}" for name in names)
        shots.append(Shot(medium, prompt, choices[k], k in mentioned, choices=choices))
        mentioned.add(k)
    if split == "test":  # never the very picture that is asked about: a name is bound to a thing, not to a picture
        asked = shots[-1].medium
        others = [i for i in album.having(shown, things[order[-1]]) if i != asked] or [asked]
        shots[:-1] = [replace(shot, medium=rng.choice(others)) if shot.medium == asked else shot for shot in shots[:-1]]
    return shots


def unrelated(album: Album, rng: random.Random, home: str | None = None) -> int:
    """Some picture to stand beside a text about something else, three in seven of a creature: but of none that lives in `home`.

    From these the bridge learns to keep silent where the picture has nothing to say. So it should have seen every sort there.
    """
    while True:
        kind = rng.choice(("things", "sign", "pair", "sum", "creature", "creature", "creature"))
        i = rng.choice(album.having("kind", kind))
        if kind != "creature" or HOMES[album.scenes[i].name] != home:
            return i


def naming(album: Album, rng: random.Random, n: int, split: str = "train") -> list[Shot]:
    """Facts are told of creatures that are not held out. In the test the QUERY is a held-out one.

    The held-out ones do appear in training, by name, and beside facts about other animals that live elsewhere. What comes
    after their name is left open there (`ends=False`: no loss on the <EOC>), lest the bridge learn that these have nothing
    more to say. And a fact is to be remembered from the name, not read off the animal. So it is scored where the picture
    beside it is another: on half of the training pages one stands between the two, and a third of what is said on any is
    about an animal that no picture shows (nobody could guess its name; its home is in the library).
    """
    interrupted = split == "train" and rng.random() < 0.5
    names = rng.choices(CREATURES if split == "train" else sorted(set(CREATURES) - set(HELD_OUT_CREATURES)), k=n)
    if split == "test":
        names[-1] = rng.choice(HELD_OUT_CREATURES)
    shots = []
    for name in names:
        if split == "train" and rng.random() < 1 / 3:
            name = rng.choice(list(UNPICTURED))
            other = unrelated(album, rng, UNPICTURED[name])
            shots.append(Shot(other, "This is a", f" {name}.", known=False, aside=(None, fact(name))))
            continue
        told = split == "test" or name not in HELD_OUT_CREATURES
        medium, answer, aside = rng.choice(album.having("creature", name)), f" {name}.", None
        if told and interrupted:
            aside = unrelated(album, rng, HOMES[name]), fact(name)
        elif told:
            answer += fact(name)
        shots.append(Shot(medium, "This is a", answer, ends=told, aside=aside))
    return shots


def vqa(
    album: Album, rng: random.Random, n: int, kinds: tuple[str, ...] = ("things", "things", "pair", "sign"), at_once: int = 1
) -> list[Shot]:
    """`at_once`: training asks several questions about one picture, each in a chunk of its own."""
    shots = []
    for _ in range(n):
        i = rng.choice(album.having("question", rng.choice(kinds)))
        known = questions(album.scenes[i])
        for k, (question, answer) in enumerate(rng.sample(known, min(at_once, len(known)))):
            shots.append(Shot(None if k else i, f"Question: {question} Answer:", " " + answer))
    return shots


def ocr(album: Album, rng: random.Random, n: int) -> list[Shot]:
    return task(album, rng, n, "word")


def arithmetic(album: Album, rng: random.Random, n: int) -> list[Shot]:
    return task(album, rng, n, "sum")


def video(album: Album, rng: random.Random, n: int) -> list[Shot]:
    ids = rng.choices(album.having("kind", "video"), k=n)
    return [Shot(i, "Output:", " " + caption(album.scenes[i])) for i in ids]


def captions(album: Album, rng: random.Random, n: int, kinds: tuple[str, ...] = ("things", "pair", "row")) -> list[Shot]:
    """One to three things and how they stand; as image-text pairs for training, `kinds` may have signs and sums as well."""
    ids = [rng.choice(album.having("kind", rng.choice(kinds))) for _ in range(n)]
    return [Shot(i, "Output:", " " + caption(album.scenes[i])) for i in ids]


def left_to_the_tongue(answer: str) -> list[str | Unscored]:
    """An answer with its fact unscored: " yak. They are mainly found in Nepal." → " yak." and the rest.

    The tongue knows the rest. A bridge that is trained on it beside the animal's own picture learns a shortcut from picture to
    home by heart, and is wrong about the animals it was not trained on: what it shall learn is to let the tongue speak.
    """
    name, they, home = answer.partition(" They are ")
    return [name, Unscored(they + home)] if they else [name]


def page(shots: list[Shot], album: Album, attend_next: bool = False, lost: Sequence[str] = ()) -> Sample:
    """A row of shots as an interleaved page: <image>text<EOC><image>text<EOC>…

    `attend_next`: the layout in which each text stands BEFORE its image, text<EOC><image>…: on the web nobody says which
    image a text belongs to (the paper's p_next).
    `lost`: so many of the first shots are without their images: a long page, of whose images only some are kept. These marks
    (`words.marks`) hold the places of the others, so the page is as long as a prompt of so many shots. What a made-up name
    means must have been seen, so there the name's first mention beside an image is the first one.
    """
    pieces, shown = [], set()
    for mark, shot in zip(lost, shots):
        pieces += [Unscored(mark), Unscored(shot.text + (shot.aside[1] if shot.aside else "")), Unscored(EOC)]
    for shot in shots[len(lost) :]:
        if shot.medium is None and (attend_next or not any(map(is_medium, pieces))):
            continue  # it would look at a picture that it does not speak of
        # What is asked is not scored: no picture tells what somebody wants to know of it.
        said = [Unscored(shot.prompt)] if shot.prompt else []
        known = shot.known and (not lost or shot.choices is None or shot.answer in shown)
        shown.add(shot.answer)
        said += left_to_the_tongue(shot.answer) if known else [Unscored(shot.answer)]
        if shot.aside:
            other, more = shot.aside
            if other is not None and not attend_next:  # beside the next image there is no room for another one
                said.append(album.media[other])
            said.append(more)
        said.append(EOC if shot.ends else Unscored(EOC))
        medium = [] if shot.medium is None else [album.media[shot.medium]]
        pieces += said + medium if attend_next else medium + said
    return Sample(pieces, attend_next=attend_next)
