"""The ten few-shot tasks that `train_tiny.py` evaluates. All images are held-out cases, those of the support too.

`binding` needs shots with images: nothing else defines a name. `task`, `ocr` and `arithmetic` need the texts of two shots:
they show the question. With 0 shots, the prompt is only "Output:". In training, the answer to this prompt is usually a caption.
So the model writes a caption, and accuracy is about 0. The other tasks need no shots. `naming` asks about the four held-out
animals; its support shows the other twelve.
"""

import random
from collections.abc import Sequence
from functools import partial

from minflamingo.evaluation.fewshot import Query

from . import shot_rows
from .media_pool import MediaPool
from .world import ANIMALS, COLOURS, DIGITS, DIRECTIONS, OPERATORS, SHAPES, SIGN_WORDS

# The generator of each task. naming and naming_fact have the same queries: one answer, judged twice.
TASKS = {
    "task": shot_rows.task_row,
    "binding_2way": partial(shot_rows.binding_row, ways=2, split="test"),
    "binding_4way": partial(shot_rows.binding_row, ways=4, split="test"),
    "naming": partial(shot_rows.naming_row, split="test"),
    **{name: getattr(shot_rows, f"{name}_row") for name in ("vqa", "ocr", "arithmetic", "video", "caption")},
}
# Accuracy (0 to 1) of guessing an answer of the right type without an image. None: there are too many answers to count.
CHANCE = {
    "task": None, "binding_2way": 1 / 2, "binding_4way": 1 / 4, "naming": 1 / len(ANIMALS), "naming_fact": 1 / len(ANIMALS),
    "vqa": None, "ocr": 1 / len(SIGN_WORDS), "arithmetic": 1 / (len(DIGITS) ** 2 * len(OPERATORS)),
    "video": 1 / (len(COLOURS) * len(SHAPES) * len(DIRECTIONS)), "caption": None,
}  # fmt: skip


def queries(task: str, pool: MediaPool, n: int, seed: int, support: int = 32) -> list[Query]:
    """`n` queries of a task from a pool with `split="test"`. The same seed gives the same queries."""
    made = []
    for i in range(n):
        rng = random.Random(f"exam {seed} {task} {i}")  # do not change this string: it seeds the data
        *shots, query = TASKS[task](pool, rng, 2 * support + 1)  # twice as many shots: some are removed below
        if query.choices is None:  # the support never contains the image of the query; `binding_row` takes care of that itself
            shots = [shot for shot in shots if shot.medium != query.medium]
        if task in ("ocr", "arithmetic"):  # 16 words, 32 held-out sums: a shot would often have the same answer
            shots = [shot for shot in shots if shot.answer != query.answer]
        shown = tuple((pool.media[shot.medium], shot.prompt + shot.answer + shot.fact) for shot in shots[:support])
        made.append(Query(shown, pool.media[query.medium], query.prompt, query.answer + query.fact, query.choices))
    return made


def correct(task: str, predictions: Sequence[str], queries: Sequence[Query]) -> dict[str, list[bool]]:
    """Exact match of each prediction, by task. "naming" compares only the name, "naming_fact" the complete answer."""
    exact = [prediction == query.answer for prediction, query in zip(predictions, queries)]
    if task != "naming":
        return {task: exact}
    name = [p.split(".")[0] == query.answer.split(".")[0] for p, query in zip(predictions, queries)]
    return {"naming": name, "naming_fact": exact}
