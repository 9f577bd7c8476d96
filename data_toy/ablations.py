"""Data and hyperparameters of `python -m minflamingo ablate` on the toy world. The loop is in minflamingo/recipes/ablate.py.

Flamingo trains as in `train_tiny.py`, but with smaller steps, so that the whole table takes only a few hours. All rows of a
seed train on the same samples. The score is the mean accuracy over six tasks:
`caption` (in the paper COCO), `vqa` (VQAv2), `naming_fact` (OKVQA), `video` (VATEX, MSVDQA), `task`, `binding_2way`.
"""

import random
from types import SimpleNamespace

from minflamingo.data.sample import Sample
from minflamingo.evaluation.fewshot import predict
from minflamingo.flamingo import Flamingo

from .evaluation_tasks import correct, queries
from .media_pool import MediaPool, draw_media_pool, encode_media_pool
from .mixture import LAMBDAS as LAMBDAS  # part of the interface, like RECIPE and the functions below
from .mixture import P_NEXT, StepData, draw_step
from .words import toy_tokenizer

TASKS = ("caption", "vqa", "naming", "video", "task", "binding_2way")


# Hyperparameters of every row
RECIPE = SimpleNamespace(
    lr=4e-3, gate_lr=12e-3, weight_decay=0.3,  # of Muon, as in train_tiny.py
    lm_weight_decay=0.3,  # of an LM that is trained too; the value of its pretraining
    media=8000, step=StepData(64, 24, 9),
    queries=200,  # of each task
)  # fmt: skip


def media_pool(flamingo: Flamingo, seed: int) -> MediaPool:
    """The training pool, encoded by the frozen vision encoder."""
    return encode_media_pool(flamingo, draw_media_pool(RECIPE.media, seed))


def draw_batches(pool: MediaPool, rng: random.Random, p_next: float | None = None) -> dict[str, list[Sample]]:
    """{"documents", "pairs", "videos"}: the samples of one step. p_next: share of documents with each text before its image."""
    return draw_step(pool, rng, RECIPE.step, P_NEXT if p_next is None else p_next)


def evaluate(flamingo: Flamingo, seed: int, shots: str) -> dict[str, float]:
    """Accuracy of each task, from 0 to 1, on held-out cases. All rows of a seed have the same queries."""
    pool, accuracies = encode_media_pool(flamingo, draw_media_pool(3000, seed, split="test")), {}
    for task in TASKS:
        asked = queries(task, pool, RECIPE.queries, seed)
        name, right = correct(task, predict(flamingo, toy_tokenizer(), asked, shots), asked).popitem()  # of naming: naming_fact
        accuracies[name] = sum(right) / len(right)
    return accuracies
