"""The text corpus of the language model. It contains no images and no `<image>` token. The LM trains on two parts:

1. `lookup_practice`: random words. A few words are keys, and each has a random answer: in `taxi two <EOC> red k <EOC> taxi ?`
   the answer is `two`. To lower the loss, the LM must look up the answer after the same key: the induction circuit (Olsson et
   al. 2022). In-context learning with images uses it later. Keys are in random order, so copying from a fixed distance fails.
2. `corpus_text`: texts about the toy world in the formats of the tasks, sometimes with a description where an image will be
   (" a red circle" "Output: red"); facts about animals; sums.

Only IMAGES of held-out cases are held out. The corpus has all colours, sums and facts, but no made-up name of the test.
"""

import random

from minflamingo.data.sample import EOC, NoLoss, Sample

from .media_pool import distinct_things, random_scene
from .words import ATTRIBUTES, attributes, caption, fact, questions, sum_text
from .world import ANIMALS, DIGITS, OPERATORS, TEXT_ONLY_ANIMALS, made_up_names


def lookup_practice(rng: random.Random, words: list[str], length: int) -> Sample:
    """A document of keys and answers, about `length` tokens long. Only answers whose key occurred before carry loss.

    In half of the documents, answers are one to three words. In the others they are made-up names: the LM learns to copy any
    name that a person may type.
    """
    n_keys, width = rng.randint(2, 7), rng.choice((1, 1, 2, 3))
    keys = rng.sample(words, n_keys)
    if rng.random() < 0.5:
        answers = [rng.sample(words, width) for _ in keys]
    else:
        answers = [[" " + name, *rng.choice((["."], []))] for name in made_up_names(rng, n_keys, "train")]
        width = 7
    pieces, seen = [], set()
    for _ in range(max(2 * n_keys, length // (width + 2))):
        k = rng.randrange(n_keys)
        answer = answers[k] if k in seen else map(NoLoss, answers[k])
        pieces += [NoLoss(keys[k]), *answer, NoLoss(EOC)]
        seen.add(k)
    return Sample(pieces)


def naming_text(rng: random.Random, chunks: int) -> Sample:
    """ "This is a yak. They are mainly found in Nepal.", or in one of five documents only the names.

    A fact carries loss where its animal occurs first: later it could be copied. In half of the documents with facts, animals
    repeat, as in a prompt with 32 shots. There, too, the LM must recall the fact about a new animal.
    """
    names = rng.sample([*ANIMALS, *TEXT_ONLY_ANIMALS], min(chunks, 96))
    if rng.random() < 0.2:
        return Sample([piece for name in names for piece in (f"This is a {name}.", EOC)])
    if rng.random() < 0.5:
        names = rng.choices(names[: max(2, chunks // 2)], k=chunks)
    pieces, seen = [], set()
    for name in names:  # the names carry no loss: the next name is random
        pieces += [NoLoss(f"This is a {name}."), NoLoss(fact(name)) if name in seen else fact(name), EOC]
        seen.add(name)
    return Sample(pieces)


def binding_text(rng: random.Random, chunks: int) -> Sample:
    """ "a red circle" "This is a dak.": a description instead of the image, then a name made up for this document."""
    ways = rng.randint(2, 6)
    names, things = made_up_names(rng, ways, "train"), distinct_things(rng, ways)
    bare, only_shape = rng.random() < 0.6, rng.random() < 0.5
    pieces, seen = [], set()
    for _ in range(chunks):
        k = rng.randrange(ways)
        (colour, shape), answer = things[k], f" {names[k]}" if bare else f" {names[k]}."
        pieces += [NoLoss(f" {shape}" if only_shape else f" {colour} {shape}"), *([] if bare else ["This is a"])]
        pieces += [answer if k in seen else NoLoss(answer), EOC]
        seen.add(k)
    return Sample(pieces)


def output_text(rng: random.Random, chunks: int) -> Sample:
    """ "Output: red<EOC>Output: blue<EOC>": answers of one type; half of the documents have a description before each."""
    kind = rng.choice(("things", "sign", "sum", "pair", "row", "video"))
    attribute = rng.choice(ATTRIBUTES.get(kind, ("caption",)))
    described = rng.random() < 0.5 and attribute != "caption"
    kinds = [k for k in ATTRIBUTES if attribute in ATTRIBUTES[k]] or [kind]
    pieces = []
    for _ in range(chunks):
        scene = random_scene(rng, rng.choice(kinds))
        answer = caption(scene) if attribute == "caption" else attributes(scene)[attribute]
        pieces += [*([NoLoss(" " + caption(scene))] if described else []), f"Output: {answer}", EOC]
    return Sample(pieces)


def question_text(rng: random.Random, chunks: int) -> Sample:
    """ "Question: How many circles? Answer: 3", with or without a description before it."""
    described = rng.random() < 0.5
    pieces = []
    for _ in range(chunks):
        scene = random_scene(rng, rng.choice(("things", "pair", "sign")))
        question, answer = rng.choice(questions(scene))
        pieces += [*([NoLoss(" " + caption(scene))] if described else []), f"Question: {question} Answer: {answer}", EOC]
    return Sample(pieces)


def sums_text(rng: random.Random, chunks: int) -> Sample:
    """ "Output: 3x6=18". Only the result carries loss."""
    pieces = []
    for _ in range(chunks):
        left, _, result = sum_text((rng.choice(DIGITS), rng.choice(OPERATORS), rng.choice(DIGITS))).partition("=")
        pieces += [NoLoss(f"Output: {left}="), result, EOC]
    return Sample(pieces)


# The kinds of documents and their weights. Facts and sums are frequent, because the LM must memorise each of them.
TEXT_KINDS = {binding_text: 4, output_text: 3, question_text: 3, naming_text: 5, sums_text: 6}


def corpus_text(rng: random.Random, chunks: int) -> Sample:
    """A document of `chunks` chunks about the toy world."""
    return rng.choices(list(TEXT_KINDS), weights=list(TEXT_KINDS.values()))[0](rng, chunks)
