"""What Flamingo trains on at each step: samples of the paper's three kinds of datasets (section 2.4).

    samples = draw_step(pool, rng, size)
    samples["documents"], samples["pairs"], samples["videos"]       # N images > 1; N = 1; T frames > 1

Every step has all of them. Documents are rows of shots (shot_rows.py), so their last shot is a few-shot query like any other.
"""

import random
from dataclasses import dataclass
from functools import partial

from minflamingo.data.sample import Sample

from . import shot_rows
from .media_pool import MediaPool
from .shot_rows import binding_row, caption_row, to_sample, video_row, vqa_row


@dataclass(frozen=True)
class StepData:
    """How much data one step has. Larger steps would take too long on a laptop."""

    shots: int = 160  # in all documents together
    pairs: int = 64
    videos: int = 20


LAMBDAS = {"documents": 1.0, "pairs": 1.0, "videos": 1.0}  # weight of each dataset in the loss: the paper's lambda_m
MICRO_BATCHES = {"documents": 2, "pairs": 1, "videos": 1}  # more of them have less padding but more overhead

QUESTION_KINDS = ("things", "pair", "pair", "pair", "sign")
# The rows of shots that documents consist of, with weights found by trial. task_row also asks for words and sums.
DOCUMENTS = {
    shot_rows.task_row: 2, binding_row: 2, partial(binding_row, in_rounds=False): 1, partial(binding_row, shown="drawing"): 3.5,
    shot_rows.noisy_row: 0.7, shot_rows.rule_row: 1.5, shot_rows.naming_row: 2, partial(vqa_row, kinds=QUESTION_KINDS): 4,
    shot_rows.arithmetic_row: 1.5, shot_rows.sums_row: 1, shot_rows.ocr_row: 0.3, caption_row: 2,
}  # fmt: skip
# What image-text pairs show. Digits, and two things that could be mixed up, are the most difficult, so they are frequent.
PAIR_KINDS = ("things", "pair", "pair", "row", "row", "sign", "sum", "sum", "sum")
# Shots per document, and per document of videos. All documents of a step have the same number: less padding.
LENGTHS, VIDEO_LENGTHS = (4, 6, 8, 8, 16, 32), (1, 2, 4, 8, 24)
P_NEXT = 0.1  # share of documents in which each text comes before its image; paper: 1/2, but no prompt has this order
P_NAMED_VIDEOS = 0.2  # share of steps whose videos name the moving thing, as `video_questions` asks; the others have captions


def draw_step(pool: MediaPool, rng: random.Random, size: StepData, p_next: float = P_NEXT) -> dict[str, list[Sample]]:
    """Samples of all three datasets."""
    n = rng.choice(LENGTHS)
    kinds = rng.choices(list(DOCUMENTS), weights=list(DOCUMENTS.values()), k=max(2, size.shots // n))
    documents = [to_sample(draw_row(pool, rng, n), pool, rng.random() < p_next) for draw_row in kinds]
    pairs = [caption_row(pool, rng, 1, PAIR_KINDS) for _ in range(size.pairs - size.pairs // 4)]
    pairs += [vqa_row(pool, rng, 1, QUESTION_KINDS) for _ in range(size.pairs // 4)]
    n, draw_row = rng.choice(VIDEO_LENGTHS), video_row
    if rng.random() < P_NAMED_VIDEOS:
        n, draw_row = max(4, n), partial(binding_row, shown="mover")
    videos = [draw_row(pool, rng, n) for _ in range(max(1, size.videos // n))]
    return {
        "documents": documents,
        "pairs": [to_sample(row, pool) for row in pairs],
        "videos": [to_sample(row, pool) for row in videos],
    }
