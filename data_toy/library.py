"""The library: what the language model reads before it ever meets a picture. Text alone, no `<image>` anywhere.

Two shelves, read one after the other:

1. `nonsense`   lamb?<EOC>  A page chooses a few random words as keys and gives each a random answer:
                    " taxi" " two" <EOC> " red" "k" <EOC> " taxi" → " two"
   Nothing can be known by heart here, so the only way to a lower loss is to look up what followed the same word before:
   the **induction circuit** (Olsson et al. 2022). In-context learning with pictures later uses this very circuit, so it must
   exist in the frozen LM first. Lengths vary; pages of fixed period would teach to copy by position instead.
2. `reading`    pages about the toy world in the forms in which it is later asked: with a description where the picture will be
   (" a red circle" "Output: red"), or without; the creatures' facts, which stand nowhere else; the tables of sums. Half of the
   pages are lists, with a mark before each entry, where later an `<image>` will be.

Held-out cases are held out of PICTURES. Text knows all colours, sums and facts; only the names of the test are kept from it.
"""

from __future__ import annotations

import random

from minflamingo.data.sample import EOC, Sample, Unscored

from .album import any_scene, distinct_things
from .words import attributes, caption, fact, marks, questions, sum_text
from .world import CREATURES, DIGITS, OPERATORS, UNPICTURED, made_up_names
from .worlds import ASKED


def nonsense(rng: random.Random, words: list[str], longest_filler: int, length: int) -> Sample:
    """One page of key–answer pairs, about `length` tokens: only answers whose key came before are scored.

    Between key and answer stand up to `longest_filler` words that are the same all over the page: later, "This is a".
    """
    ways, width = rng.randint(3, 7), rng.choice((1, 1, 2, 3))
    filler = [Unscored(w) for w in rng.sample(words, rng.randint(0, longest_filler))]
    keys = rng.sample(words, ways)
    answers = [rng.sample(words, width) for _ in keys]
    pieces, seen = [], set()
    for _ in range(length // (width + len(filler) + 2)):
        k = rng.randrange(ways)
        pieces += [Unscored(keys[k]), *filler, *(w if k in seen else Unscored(w) for w in answers[k]), Unscored(EOC)]
        seen.add(k)
    return Sample(pieces)


def naming_page(rng: random.Random, chunks: int) -> Sample:
    """ "This is a yak. They are mainly found in Nepal." — or, on other pages, the names alone.

    A fact is scored where its name comes for the first time: what could be looked up on the page would not be remembered. On
    half of the pages names come again, as they do in a prompt of 32 shots: there, too, a new one's home must be remembered.
    """
    animals = (*CREATURES, *UNPICTURED)
    names = rng.sample(animals, min(chunks, len(animals)))
    if rng.random() < 0.2:
        return Sample([p for n in names for p in (f"This is a {n}.", EOC)])
    if rng.random() < 0.5:
        names = rng.choices(names[: max(2, chunks // 2)], k=chunks)
    pieces, told = [], set()
    for n in names:  # which one comes next is no fact
        pieces += [Unscored(f"This is a {n}."), Unscored(fact(n)) if n in told else fact(n), EOC]
        told.add(n)
    return Sample(pieces)


def binding_page(rng: random.Random, chunks: int) -> Sample:
    """ "a red circle" "This is a dax.": a description where the picture will be, then a name made up for this page."""
    ways = rng.randint(2, 6)
    names = made_up_names(rng, ways)
    things = distinct_things(rng, ways)
    bare, by_shape = rng.random() < 0.6, rng.random() < 0.5
    pieces, seen = [], set()
    for _ in range(chunks):
        k = rng.randrange(ways)
        answer = names[k] if bare else f" {names[k]}."
        pieces += [
            Unscored(f" {things[k][1]}" if by_shape else f" {things[k][0]} {things[k][1]}"),
            *([] if bare else ["This is a"]),
            answer if k in seen else Unscored(answer),
            EOC,
        ]
        seen.add(k)
    return Sample(pieces)


def output_page(rng: random.Random, chunks: int) -> Sample:
    """ "Output: red<EOC>Output: blue<EOC>": all answers of one sort; on half of the pages a description stands before each."""
    kind = rng.choice(("things", "sign", "sum", "pair", "row", "video"))
    attribute = rng.choice(ASKED.get(kind, ("caption",)))
    described = rng.random() < 0.5 and attribute != "caption"
    pieces = []
    for _ in range(chunks):
        fitting = [k for k in ASKED if attribute in ASKED[k]] or [kind]
        scene = any_scene(rng, rng.choice(fitting))
        answer = caption(scene) if attribute == "caption" else attributes(scene)[attribute]
        pieces += [*([Unscored(" " + caption(scene))] if described else []), f"Output: {answer}", EOC]
    return Sample(pieces)


def question_page(rng: random.Random, chunks: int) -> Sample:
    """ "Question: How many circles? Answer: 3", with or without a description before it."""
    described = rng.random() < 0.5
    pieces = []
    for _ in range(chunks):
        scene = any_scene(rng, rng.choice(("things", "pair", "sign")))
        question, answer = rng.choice(questions(scene))
        pieces += [*([Unscored(" " + caption(scene))] if described else []), f"Question: {question} Answer: {answer}", EOC]
    return Sample(pieces)


def sums_page(rng: random.Random, chunks: int) -> Sample:
    """The tables: "Output: 3x6=18". What is scored is what it comes to."""
    sums = [sum_text((rng.choice(DIGITS), rng.choice(OPERATORS), rng.choice(DIGITS))) for _ in range(chunks)]
    cut = [(text.index("=") + 1, text) for text in sums]
    return Sample([p for i, text in cut for p in (Unscored("Output: " + text[:i]), text[i:], EOC)])


SHELVES = {binding_page: 4, output_page: 3, question_page: 3, naming_page: 5, sums_page: 6}


def reading(rng: random.Random, chunks: int) -> Sample:
    """One page of `chunks` chunks about the toy world; half of the pages are lists."""
    page = rng.choices(list(SHELVES), weights=list(SHELVES.values()))[0](rng, chunks)
    return listed(page, rng) if rng.random() < 0.5 else page


def listed(page: Sample, rng: random.Random) -> Sample:
    """With a mark before each entry: "-Output: red<EOC>-Output: blue<EOC>", or "-Output: red<EOC> zooOutput: blue<EOC>".

    A prompt of 32 shots has 32 `<image>` tokens, and to the frozen LM each is one more token that it may look at. One that
    has read lists knows that such a mark at the beginning of an entry says nothing, however many there are. No two pictures
    are alike, and so are the marks of some lists: any word.
    """
    pieces, before = [], EOC
    mark = iter(marks(rng, page.pieces.count(EOC) + 1))  # one more: the last entry may lack its end
    for piece in page.pieces:
        pieces += [Unscored(next(mark)), piece] if before is EOC else [piece]
        before = piece
    return Sample(pieces)
