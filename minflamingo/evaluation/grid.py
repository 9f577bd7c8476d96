"""Grid search on a validation subset of the training set (paper §3.2), in jobs that are kept on disk.

    training set  ──►  three quarters: every point of the grid is trained on them    ──►  one quarter: which point is best?
                  ──►  all of it: the chosen point is trained once more              ──►  the test, asked once, by that model

**Which points.** The axes are learning rate × steps × schedule × batch size × augmentation. Each pair of a learning rate and a
number of steps is tried with `per_cell` draws of the other three, dealt from one shuffled pack, so that all combinations of
these are used about equally often. `per_cell=None` is the whole product.

**Successive halving** (Jamieson and Talwalkar 2016) makes it cheaper: all points run for a quarter of their steps, their
schedule compressed to these, and only the best quarter of the points run in full. Half-taught, many score 0 alike; so there
the likelihood of the right answers decides, and the metric only at the end. That errs in favour of the quick learners;
`rounds=IN_FULL` does without.

Example: 3 learning rates × 2 numbers of steps × 2 draws are 12 points; 12 · 1/4 + 3 are 6 trainings in length, not 12.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from ..complete import LoadedFlamingo
from ..training.checkpoint import load_json, save_json
from .finetune import Habits, Point, answer_loss, tune
from .runner import Protocol, evaluate
from .task import Example, Task

HABITS = Habits()
HALVING = ((1 / 4, 1.0), (1.0, 1 / 4))  # a round: share of a point's steps, share of the points that take part
IN_FULL = ((1.0, 1.0),)


@dataclass(frozen=True)
class Grid:
    """The values to try on each axis."""

    lr: tuple[float, ...] = (1e-5, 3e-5, 1e-4)
    schedule: tuple[str, ...] = ("constant", "linear", "cosine")
    steps: tuple[int, ...] = (1000, 4000)
    batch_size: tuple[int, ...] = (32, 64)
    augment: tuple[str, ...] = ("none", "light")

    def points(self, per_cell: int | None = 2, seed: int = 0) -> list[Point]:
        """Every learning rate with every number of steps, each with `per_cell` draws of the rest, or (None) with all of it.

        Raises:
            ValueError: an axis is empty, or a value makes no sense.
        """
        if empty := [name for name, values in asdict(self).items() if not values]:
            raise ValueError(f"the grid has nothing to try for {', '.join(empty)}")
        rest = list(itertools.product(self.schedule, self.batch_size, self.augment))
        random.Random(f"grid {seed}").shuffle(rest)
        pack = itertools.cycle(rest)
        n = len(rest) if per_cell is None else min(per_cell, len(rest))
        cells = itertools.product(self.lr, self.steps)
        return [Point(lr, s, steps, b, a) for lr, steps in cells for s, b, a in itertools.islice(pack, n)]


def split(task: Task, validation: int | None = None, seed: int = 0) -> tuple[list[Example], list[Example]]:
    """The task's training set → what is trained on, and about `validation` examples that choose the point.

    Examples of one picture stay together: a question about a picture that was trained on would be too easy.

    Args:
        validation: how many; None: a quarter, at most 2048.
    Raises:
        ValueError: too few examples, some without an answer, or the test asks about a picture of the training set.
    """
    examples = list(task.support)
    if nameless := [e.key for e in examples if not e.answers]:
        raise ValueError(f"{task.name}: training example {nameless[0]} has no answer to learn")
    by_picture: dict[Callable, list[Example]] = {}
    for e in examples:
        by_picture.setdefault(e.media, []).append(e)
    if shared := [q.key for q in task.queries if q.media in by_picture]:
        raise ValueError(
            f"{task.name}: {len(shared)} queries are about pictures of the training set, e.g. {shared[0]}; "
            "choose another --split"
        )
    wanted = min(len(examples) // 4, 2048) if validation is None else validation
    groups = list(by_picture.values())
    random.Random(f"validation {seed} {task.name}").shuffle(groups)
    kept: list[Example] = []
    while groups and len(kept) < wanted:
        kept += groups.pop()
    training = list(itertools.chain(*groups))
    if not kept or not training:
        raise ValueError(
            f"{task.name}: {len(examples)} training examples cannot be split into some to train on and {wanted} for validation"
        )
    return training, kept


class Job:
    """One training and what came of it, in OUT/points/NAME.json; made again unless `settings` are what they were."""

    def __init__(self, out: Path, name: str, settings: dict):
        self.name, self.path = name, Path(out) / "points" / f"{name}.json"
        self.settings = json.loads(json.dumps(settings))  # as it will be read: lists, no tuples
        self.result: dict | None = None
        if self.path.is_file():
            try:
                kept = load_json(self.path)
            except ValueError:
                kept = {}
            if kept.get("settings") == self.settings:
                self.result = kept["result"]
            else:
                print(f"{name}: the settings are not those of {self.path}; it starts over", file=sys.stderr)

    def finish(self, result: dict) -> dict:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        save_json({"settings": self.settings, "result": result}, self.path)
        self.result = json.loads(json.dumps(result))
        return self.result


def sum_of(module: nn.Module) -> str:
    """Eight letters over every bit of every weight and buffer: equal sums, equal weights."""
    total = 0
    for name, tensor in sorted(module.state_dict().items()):
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        total = zlib.crc32(data, zlib.crc32(name.encode(), total))
    return f"{total:08x}"


class Start:
    """Where each job begins: eye and bridge as they were loaded. The language model is never touched, and this is checked."""

    def __init__(self, flamingo: LoadedFlamingo):
        self.flamingo = flamingo
        self.kept = {n: t.clone() for n, t in flamingo.model.state_dict().items() if not n.startswith("lm.")}
        self.lm, self.vision = sum_of(flamingo.model.lm), sum_of(flamingo.model.vision)

    @torch.no_grad()
    def again(self) -> LoadedFlamingo:
        own = self.flamingo.model.state_dict()
        for name, tensor in self.kept.items():
            own[name].copy_(tensor)
        return self.flamingo

    def changed(self) -> dict[str, bool]:
        """{"language model": …, "eye": …}: has a bit of it changed since?"""
        model = self.flamingo.model
        return {"language model": sum_of(model.lm) != self.lm, "eye": sum_of(model.vision) != self.vision}


def search(
    start: Start,
    task: Task,
    training: Sequence[Example],
    validation: Sequence[Example],
    points: Sequence[Point],
    out: Path,
    settings: dict,
    rounds: Sequence[tuple[float, float]] = HALVING,
    habits: Habits = HABITS,
    on_step: Callable[[Point], object] = lambda point: None,
    on_kept: Callable[[Point], object] = lambda point: None,
) -> tuple[Point, list[dict]]:
    """The best of `points` for `task`, and one record a job: its point, round, score on `validation`, losses, seconds.

    In the last round a point is better if its score is, or, of equal scores, if it holds the right answers to be likelier; in
    the rounds before, if the latter is so.

    Args:
        settings: what must be the same for a job's result to be taken up again (weights, task, examples).
        on_step: called after each step of training, with the point. on_kept: instead, for a job that was done before.
    Raises:
        ValueError: the metric cannot be had from these validation examples.
    """
    left, records = list(points), []
    for number, (share, take_part) in enumerate(rounds):
        left = left[: max(1, round(take_part * len(points)))]
        ranked = []
        for point in left:
            short = replace(point, steps=max(1, round(share * point.steps)))
            name = f"{task.name}-{number}-{point.lr:g}-{point.steps}-{point.schedule}-{point.batch_size}-{point.augment}"
            job = Job(out, name, {**settings, **asdict(habits), **asdict(point), "steps run": short.steps})
            if job.result is None:
                began = time.monotonic()
                losses = tune(start.again(), task, training, short, habits, on_step=lambda loss, p=short: on_step(p))
                marked = evaluate(start.flamingo, replace(task, queries=validation), "0", 0, Protocol(beams=1), batch_size=64)
                if "score" not in marked:
                    raise ValueError(f"{task.name}: no score on the validation subset: {marked['problem']}")
                found = {name: marked[name] for name in ("score", "interval", "n")}
                found["loss"] = round(sum(losses[-10:]) / len(losses[-10:]), 5)
                found["answer_loss"] = round(answer_loss(start.flamingo, task, validation, habits.at_once), 5)
                job.finish({"point": asdict(point), "round": number, **found, "seconds": round(time.monotonic() - began, 2)})
            else:
                on_kept(short)
            records.append(job.result)
            score = job.result["score"] if number == len(rounds) - 1 else 0.0
            ranked.append((-score, job.result["answer_loss"], point))
        left = [point for *_, point in sorted(ranked, key=lambda row: row[:2])]
    return left[0], records
