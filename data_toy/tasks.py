"""The examination: ten few-shot tasks on held-out cases. Which cases those are, and what chance would score:

    task          all pictures: held-out combinations; six possible wishes          open-ended
    binding_2way  held-out things, names of no training page, fresh assignments     close-ended, chance 1/2
    binding_4way  the same with four names                                          close-ended, chance 1/4
    naming        name of a creature no fact was ever shown beside                  open-ended
    naming_fact   … and its home, which stands only in the LM's library             open-ended
    vqa           held-out combinations of colour and shape, or colour and word     open-ended
    ocr           held-out combinations of word and colour of the board             open-ended
    arithmetic    operand pairs of no training picture                              open-ended
    video         held-out things; which of two moves, and where                    open-ended
    caption       held-out things; the whole caption to the letter                  open-ended

Support examples are held-out cases too (naming's are other creatures: their facts must have been shown somewhere).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial

from minflamingo.evaluation.fewshot import Query

from . import worlds
from .album import Album
from .world import SIGN_WORDS
from .worlds import Shot

# A row of shots of each examined world. naming and naming_fact share theirs: one answer, marked twice.
ROWS: dict[str, Callable[[Album, random.Random, int], list[Shot]]] = {
    "task": worlds.task,
    "binding_2way": partial(worlds.binding, ways=2, split="test"),
    "binding_4way": partial(worlds.binding, ways=4, split="test"),
    "naming": partial(worlds.naming, split="test"),
    "vqa": worlds.vqa,
    "ocr": worlds.ocr,
    "arithmetic": worlds.arithmetic,
    "video": worlds.video,
    "caption": worlds.captions,
}  # fmt: skip
# A model that guesses among the right sort of answer, without looking. None: the sort is too wide for a number.
CHANCE = {
    "task": None, "binding_2way": 1 / 2, "binding_4way": 1 / 4, "naming": 1 / 16, "naming_fact": 1 / 16, "vqa": None,
    "ocr": 1 / len(SIGN_WORDS), "arithmetic": 1 / 162, "video": 1 / 256, "caption": None,
}  # fmt: skip
# There are so few held-out words and sums that the answer would often stand in the support already; there it is left out.
NOT_TO_BE_COPIED = ("ocr", "arithmetic")


def queries(task: str, album: Album, n: int, seed: int, support: int = 32) -> list[Query]:
    """`n` cases of a task. The album should be a test album, `draw_album(…, split="test")`. Same seed, same cases."""
    made = []
    for i in range(n):
        *shots, query = ROWS[task](album, random.Random(f"exam {seed} {task} {i}"), 2 * support + 1)
        if query.choices is None:  # never the very picture that is asked about (`worlds.binding` sees to that itself)
            shots = [shot for shot in shots if shot.medium != query.medium]
        if task in NOT_TO_BE_COPIED:
            shots = [shot for shot in shots if shot.answer != query.answer]
        shown = tuple((album.media[shot.medium], shot.text) for shot in shots[:support])
        made.append(Query(shown, album.media[query.medium], query.prompt, query.answer, query.choices))
    return made


def mark(task: str, predictions: Sequence[str], cases: Sequence[Query]) -> dict[str, list[bool]]:
    """Which answers are right, per marked task: to the letter; for `naming` the name, for `naming_fact` all of it."""
    exact = [p == q.answer for p, q in zip(predictions, cases)]
    if task != "naming":
        return {task: exact}
    first_sentence = [p.split(".")[0] == q.answer.split(".")[0] for p, q in zip(predictions, cases)]
    return {"naming": first_sentence, "naming_fact": exact}
