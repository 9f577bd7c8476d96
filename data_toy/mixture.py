"""What Flamingo trains on at each step: samples of the paper's three kinds of datasets (section 2.4), in a curriculum.

    samples = draw_step(pool, rng, step, size)
    samples["documents"], samples["pairs"], samples["videos"]       # N images > 1; N = 1; T frames > 1

The curriculum divides this training stage into three phases (numbers for the size "tiny"):

    steps 0 to 299      single images      only pairs, mostly questions about images of two things
    steps 300 to 419    made-up names      the same pairs, and documents that give names to things
    from step 420       everything         all datasets

Why not everything from the start? To answer "What colour is the star?" about two things, the model must find the colour of the
thing with that shape. In a mixture of all datasets, some seeds never learn this and guess one of the two colours until the end.
On single images Flamingo learns it soon, and does not forget it later. The second phase has the same reason: Flamingo learns to
use an image as a key, for which the LM looks up what followed the same key earlier (text_corpus.py). Alone, this takes about a
hundred steps; in a mixture, some seeds learn it late or never.
"""

import random
from dataclasses import dataclass
from functools import partial

from minflamingo.data.sample import Sample

from . import shot_rows
from .media_pool import MediaPool
from .shot_rows import Shot, binding_row, caption_row, to_sample, video_row, vqa_row
from .words import list_markers


@dataclass(frozen=True)
class StepData:
    """How much data one step has, and how long the first two phases are. Larger steps would take too long on a laptop."""

    shots: int = 160  # in all documents together
    pairs: int = 64
    videos: int = 24
    single_image_steps: int = 300
    name_steps: int = 120


LAMBDAS = {"documents": 1.0, "pairs": 1.0, "videos": 1.0}  # weight of each dataset in the loss: the paper's lambda_m
MICRO_BATCHES = {"documents": 3, "pairs": 2, "videos": 1}  # more of them have less padding but more overhead

# The rows of shots that documents consist of. The weights were found by trial; those of ocr_row and arithmetic_row are small,
# because task_row also asks for words and sums.
DOCUMENTS = {
    shot_rows.task_row: 2, binding_row: 3.5, shot_rows.naming_row: 3,
    partial(vqa_row, kinds=("things", "pair", "pair", "pair", "sign"), per_image=3): 3,
    shot_rows.arithmetic_row: 1, shot_rows.sums_text_row: 0.7, shot_rows.ocr_row: 0.3, caption_row: 2.5,
}  # fmt: skip
LONG_DOCUMENTS = {**DOCUMENTS, caption_row: 4}  # more captions: among many complete sentences the LM is likely to copy one
# What image-text pairs show. Digits, and two things that could be mixed up, are the most difficult, so they are frequent.
PAIR_KINDS = ("things", "pair", "pair", "row", "sign", "sum", "sum", "sum")
P_NEXT = 0.1  # share of documents in which each text comes before its image; paper: 1/2, but no prompt has this order
P_LONG = 0.35  # share of steps with long documents, and of steps with long videos: practice for prompts with 32 shots
P_NAMED_VIDEOS = 0.2  # share of steps whose videos name the moving thing, as `video_questions` asks; the others have captions


def draw_step(pool: MediaPool, rng: random.Random, step: int, size: StepData) -> dict[str, list[Sample]]:
    """The samples of training step `step`: {"documents": …, "pairs": …, "videos": …}, fewer keys in the first two phases."""
    if step < size.single_image_steps:
        return {"pairs": draw_single_images(pool, rng, size.pairs)}
    if step < size.single_image_steps + size.name_steps:
        n = rng.randint(4, 8)
        rows = [binding_row(pool, rng, n) for _ in range(max(2, size.shots // 2 // n))]
        return {"documents": [to_sample(row, pool) for row in rows], "pairs": draw_single_images(pool, rng, size.pairs)}
    return draw_everything(pool, rng, size)


def draw_single_images(pool: MediaPool, rng: random.Random, n: int) -> list[Sample]:
    """n // 4 captions, and n * 5 // 8 images of two things with three questions each. If n is 64: 16 and 40."""
    rows = [caption_row(pool, rng, 1, ("things", "pair", "pair", "row")) for _ in range(n // 4)]
    rows += [vqa_row(pool, rng, 1, ("pair",), per_image=3) for _ in range(n * 5 // 8)]
    return [to_sample(row, pool) for row in rows]


def draw_everything(pool: MediaPool, rng: random.Random, size: StepData, p_next: float = P_NEXT) -> dict[str, list[Sample]]:
    """Samples of all three datasets. Each call takes the next random numbers, so another order of them gives other data."""
    n_text, video_rows = draw_video_rows(pool, rng, size.videos)
    n_questions = size.pairs * 3 // 16  # 12 of 64 pairs are questions as in the first phase, so that they are not forgotten
    pair_rows = [caption_row(pool, rng, 1, PAIR_KINDS) for _ in range(size.pairs - n_questions)]
    pair_rows += [vqa_row(pool, rng, 1, ("pair",), per_image=3) for _ in range(n_questions)]
    return {
        "documents": draw_documents(pool, rng, size.shots, p_next),
        "pairs": [to_sample(row, pool) for row in pair_rows],
        "videos": [to_sample(row, pool, markers=list_markers(rng, n_text)) for row in video_rows],
    }


def draw_documents(pool: MediaPool, rng: random.Random, shots: int, p_next: float) -> list[Sample]:
    """Documents with `shots` shots together: of 3 to 8 shots each, or long ones of 24 shots without images, then 8 with images.

    A long document has the length of a 32-shot prompt, but only 8 images to process. All documents of a step have the same
    number of shots (rows of questions have more: up to three per image), so that they need little padding.
    """
    n_text, n = (24, 8) if rng.random() < P_LONG else (0, rng.randint(3, 8))
    weights = LONG_DOCUMENTS if n_text else DOCUMENTS
    kinds = rng.choices(list(weights), weights=list(weights.values()), k=max(2, shots // (n_text + n)))
    rows = [draw_row(pool, rng, n_text + n) for draw_row in kinds]
    rows = [row[: n_text + n] if n_text else row for row in rows]  # several questions per image make a row longer
    return [to_sample(row, pool, rng.random() < p_next, list_markers(rng, n_text)) for row in rows]


def draw_video_rows(pool: MediaPool, rng: random.Random, n_videos: int) -> tuple[int, list[list[Shot]]]:
    """Rows with `n_videos` videos together, and the number of shots at the start of each row that are only text."""
    long, named = rng.random() < P_LONG, rng.random() < P_NAMED_VIDEOS
    if named:
        n_text, n = (24, 8) if long else (0, rng.randint(4, 8))
        draw_row = partial(binding_row, shown="mover")
    else:
        n_text, n = (28, 3) if long else (0, rng.choice((1, 2, 3)))
        draw_row = video_row
    return n_text, [draw_row(pool, rng, n_text + n) for _ in range(max(1, n_videos // n))]
