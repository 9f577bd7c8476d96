"""The few-shot tasks that `train_tiny.py` evaluates. All images are held-out cases, those of the support too.

`binding`, `any_name`, `noisy` and `rule` need shots with images: nothing else defines a name. `task`, `ocr` and `arithmetic`
need the texts of two shots: with 0 shots their prompt is only "Output:", and the model writes a caption. The others need none.
`naming` asks about the four held-out animals; its support shows the other twelve.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from minflamingo.evaluation.fewshot import Query

from . import shot_rows
from .media_pool import MediaPool
from .world import ANIMALS, COLOURS, DIGITS, DIRECTIONS, OPERATORS, SHAPES, SIGN_WORDS

SHOTS = ("0", "0_text", "1", "2", "4", "8", "32")  # 0_text, 4, 8 and 32 are in the paper


@dataclass(frozen=True)
class FewShotTask:
    draw_row: Callable[..., list[shot_rows.Shot]]
    shots: tuple[str, ...] = SHOTS
    # Accuracy (%) of guessing an answer of the right type without an image. None: there are too many answers to count.
    chance: float | None = None
    open_ended: bool = True  # generate the answer. False: choose among the names of the prompt


def binding(ways: int, shots: tuple[str, ...] = SHOTS, open_ended: bool = False, **options) -> FewShotTask:
    return FewShotTask(partial(shot_rows.binding_row, ways=ways, split="test", **options), shots, 100 / ways, open_ended)


MANY = ("2", "4", "8", "16")  # tasks in which a few shots do not settle the answer
TASKS = {
    "task": FewShotTask(shot_rows.task_row),
    "binding_2way": binding(2),
    "binding_4way": binding(4),
    "binding_novel_2way": binding(2, ("0", "2", "4", "8"), shown="drawing"),  # 1, 2 and 4 shots of each drawing
    "binding_novel_5way": binding(5, ("0", "5", "10", "20"), shown="drawing"),
    # The name must be generated, letter by letter.
    "any_name_2way": binding(2, ("2", "4"), open_ended=True),
    "any_name_4way": binding(4, ("4", "8"), open_ended=True),
    "any_name_novel_2way": binding(2, ("2", "4"), open_ended=True, shown="drawing"),
    "any_name_novel_4way": binding(4, ("4", "8"), open_ended=True, shown="drawing"),
    "binding_random": binding(5, MANY, in_rounds=False),
    "noisy": binding(2, MANY, noise=0.25),
    "rule": FewShotTask(partial(shot_rows.rule_row, split="test"), MANY, 50, open_ended=False),
    "naming": FewShotTask(partial(shot_rows.naming_row, split="test"), chance=100 / len(ANIMALS)),  # also gives naming_fact
    "vqa": FewShotTask(shot_rows.vqa_row),
    "ocr": FewShotTask(shot_rows.ocr_row, chance=100 / len(SIGN_WORDS)),
    "arithmetic": FewShotTask(shot_rows.arithmetic_row, chance=100 / (len(DIGITS) ** 2 * len(OPERATORS))),
    "video": FewShotTask(shot_rows.video_row, chance=100 / (len(COLOURS) * len(SHAPES) * len(DIRECTIONS))),
    "caption": FewShotTask(shot_rows.caption_row),
}


def queries(task: str, pool: MediaPool, n: int, seed: int, support: int = 32) -> list[Query]:
    """`n` queries of a task from a pool with `split="test"`. The same seed gives the same queries."""
    made = []
    for i in range(n):
        rng = random.Random(f"exam {seed} {task} {i}")  # do not change this string: it seeds the data
        *shots, query = TASKS[task].draw_row(pool, rng, 2 * support + 1)  # twice as many shots: some are removed below
        shots = [shot for shot in shots if shot.medium != query.medium]  # the support never contains the image of the query
        if task in ("ocr", "arithmetic"):  # 16 words, 32 held-out sums: a shot would often have the same answer
            shots = [shot for shot in shots if shot.answer != query.answer]
        shown = tuple((pool.media[shot.medium], shot.prompt + shot.answer + shot.fact) for shot in shots[:support])
        choices = None if TASKS[task].open_ended else query.choices
        made.append(Query(shown, pool.media[query.medium], query.prompt, query.answer + query.fact, choices))
    return made


def correct(task: str, predictions: Sequence[str], queries: Sequence[Query]) -> dict[str, list[bool]]:
    """Exact match of each prediction, by task. "naming" compares only the name, "naming_fact" the complete answer."""
    exact = [prediction == query.answer for prediction, query in zip(predictions, queries)]
    if task != "naming":
        return {task: exact}
    name = [p.split(".")[0] == query.answer.split(".")[0] for p, query in zip(predictions, queries)]
    return {"naming": name, "naming_fact": exact}


def format_table(tasks: dict[str, dict]) -> str:
    """The accuracies of results.json as a Markdown table: one row per task, one column per number of shots."""
    columns = sorted({shots for entry in tasks.values() for shots in entry["shots"]}, key=lambda s: (int(s.split("_")[0]), s))
    rows = [["task", *(shots.replace("_", " ") for shots in columns)], ["---", *("---:" for _ in columns)]]
    for task, entry in tasks.items():
        rows.append([f"`{task}`", *(f"{entry['shots'][s]['score']:.1f}" if s in entry["shots"] else "" for s in columns)])
    return "\n".join(f"| {name:21} |" + "".join(f"{cell:>6} |" for cell in cells) for name, *cells in rows)
