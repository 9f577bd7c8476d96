"""`python -m minflamingo finetune`: one task, a grid of settings, the best of them tested once (paper §3.2 and its table).

    python -m minflamingo finetune --model runs/tiny --task toy
    python -m minflamingo finetune --model openflamingo-3b --vision … --language … --flamingo … \\
        --task vqav2 --data data/vqav2 --image-size 448 --lr 1e-5,3e-5 --steps 2000,8000

    OUT/results.json           32 shots, fine-tuned and (toy tasks) a specialist, with 95% intervals; the grid; what was chosen
    OUT/grid.png               the grid on the validation subset: learning rate × steps, best over the rest
    OUT/models/vqav2/          the fine-tuned model: minflamingo.load reads it
    OUT/points/                what came of each training. OUT/cells, OUT/predictions: the test's answers, as of `eval`

It can be stopped at any time; the same command goes on with the next training. The test is asked when the choice has been made
and the chosen point has been trained on all of the training set, and at no other time.

The specialist has the same architecture, random weights, and everything of it is trained: on the same examples, with the chosen
point's schedule, steps, batch size and augmentation, and a learning rate of its own.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from tqdm import tqdm

from .. import __version__
from ..complete import LoadedFlamingo
from ..data.images import as_frames
from ..saving import load as load_folder
from ..saving import save
from ..training.checkpoint import load_json, save_json
from .benchmarks import BENCHMARKS, TEMPLATES
from .cells import Cell, task_fingerprint
from .command import TOY_QUERIES, load_tasks
from .eye import fingerprint
from .figure import plot_grid
from .finetune import AUGMENTATIONS, SCHEDULES, Habits, Point, larger_pictures, specialist, tune
from .grid import HALVING, IN_FULL, Grid, Job, Start, search, split
from .runner import Protocol, answers, mark
from .task import Task

TOY_GRID = Grid(lr=(6e-5, 2e-4, 6e-4, 2e-3), steps=(80, 240), batch_size=(8, 16))
SPECIALIST_LR = 3e-3  # what `train_tiny.py` teaches with from nothing
COLUMNS = {"shots": "{} shots", "tuned": "fine-tuned", "specialist": "specialist"}


def add_parser(commands, add_parts: Callable[[argparse.ArgumentParser], None]) -> None:
    """The subcommand's options. `add_parts` adds those that say where a published model's parts are."""
    one = commands.add_parser(
        "finetune", help="fine-tune on a task, with a grid search", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    one.add_argument("--model", required=True, help="a folder, or the name of a published model with its parts")
    one.add_argument("--task", required=True, help="benchmarks or toy tasks, by commas; toy: all nine")
    one.add_argument("--data", type=Path, help="the benchmark's folder (of several: the folder that holds theirs, by name)")
    one.add_argument("--split", help="that is tested on; default: the benchmark's usual one")
    one.add_argument("--template", choices=tuple(TEMPLATES), default="paper", help="whose wording of prompts")
    one.add_argument("--suite", default="data_toy.suite", help="the module of the toy tasks")
    one.add_argument("--training", type=int, help="so many training examples, validation included; default: all (toy: 512)")
    one.add_argument("--validation", type=int, help="so many of these choose the point; default: a quarter, at most 2048")
    one.add_argument("--limit", type=int, help=f"so many test queries, drawn by the seed; default: all (toy: {TOY_QUERIES})")
    one.add_argument("--image-size", type=int, help="larger pictures than in pretraining, a multiple of the patch size")
    for name, kind in (("lr", "numbers"), ("schedule", ", ".join(SCHEDULES)), ("steps", "numbers"), ("batch-size", "numbers"),
                       ("augment", ", ".join(AUGMENTATIONS))):  # fmt: skip
        values = [",".join(f"{v:g}" if isinstance(v, float) else str(v) for v in getattr(g, name.replace("-", "_")))
                  for g in (Grid(), TOY_GRID)]  # fmt: skip
        said = values[0] + (f" (toy: {values[1]})" if values[0] != values[1] else "")
        one.add_argument(f"--{name}", help=f"an axis of the grid, by commas: {kind}; default {said}")
    one.add_argument("--per-cell", type=int, default=2, help="draws of the other axes for each learning rate × steps; 0: all")
    one.add_argument("--in-full", action="store_true", help="no successive halving: every point runs all of its steps")
    one.add_argument("--shots", default="32", help="what fine-tuning is compared with")
    one.add_argument("--eval", type=Path, help="results.json of `eval` with this model and these tasks, for its shots")
    one.add_argument("--specialist", action=argparse.BooleanOptionalAction, help="default: for toy tasks")
    one.add_argument("--specialist-lr", type=float, default=SPECIALIST_LR)
    one.add_argument("--weight-decay", type=float, default=Habits().weight_decay)
    one.add_argument("--at-once", type=int, default=Habits().at_once, help="samples in memory; a batch of more is accumulated")
    one.add_argument("--beams", type=int, default=3, help="at the test; the grid is searched greedily")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--out", type=Path, default=Path("runs/finetune"))
    add_parts(one)


def grid_of(given: argparse.Namespace, toy: bool) -> Grid:
    """The axes as given, the others by default.

    Raises:
        ValueError: a value is not a number where one is needed.
    """
    axes = {}
    for name, kind in (("lr", float), ("schedule", str), ("steps", int), ("batch_size", int), ("augment", str)):
        if (text := getattr(given, name)) is not None:
            try:
                axes[name] = tuple(dict.fromkeys(kind(value) for value in text.split(",")))
            except ValueError:
                raise ValueError(f"--{name.replace('_', '-')} takes numbers by commas, not {text!r}") from None
    return replace(TOY_GRID if toy else Grid(), **axes)


def run(given: argparse.Namespace, load: Callable[[], LoadedFlamingo]) -> dict:
    """Search, train, test, write, print. `load` is called once the tasks and the grid are there.

    Raises:
        ValueError, TypeError, OSError: an option makes no sense, or files are missing; says which.
    """
    for name, least in (("training", 2), ("validation", 1), ("limit", 1), ("per_cell", 0), ("at_once", 1), ("beams", 1)):
        if (value := getattr(given, name)) is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}")
    tasks = [cut(task, given) for task in load_tasks(given)]
    toy = all(task.name not in BENCHMARKS for task in tasks)
    given.specialist = toy if given.specialist is None else given.specialist
    points = grid_of(given, toy).points(given.per_cell or None, given.seed)
    parts = {task.name: split(task, given.validation, given.seed) for task in tasks}
    earlier = load_json(given.eval) if given.eval else None
    flamingo = load()
    compared = {task.name: shots_from(earlier, task, flamingo, given) for task in tasks}
    began = time.monotonic()
    results: dict = {"settings": {"model": fingerprint(flamingo.model), "shots": given.shots}, "tasks": {}}
    with Progress(tasks, points, given) as bar:
        for task in tasks:  # first what needs the model as it is, at its own image size
            compared[task.name] = compared[task.name] or tested(flamingo, task, given.shots, given.shots, {}, given)
        if given.image_size is not None:
            flamingo = larger_pictures(flamingo, given.image_size)
        start = Start(flamingo)
        for task in tasks:
            found = finetune(start, task, *parts[task.name], points, given, bar)
            results["tasks"][task.name] = {"metric": task.metric, "shots": compared[task.name], **found}
    results["seconds"] = round(time.monotonic() - began, 1)
    save_json(results, given.out / "results.json")
    plot_grid(results, given.out / "grid.png")
    print(table(results))
    print(f"\nmodels, results.json and the figure of the grid are in {given.out}/")
    return results


def cut(task: Task, given: argparse.Namespace) -> Task:
    """The training set cut to `--training`, by the seed (a toy suite has made so many already)."""
    if given.training is None or given.training >= len(task.support):
        return task
    drawn = sorted(random.Random(f"training {given.seed}").sample(range(len(task.support)), given.training))
    return replace(task, support=[task.support[i] for i in drawn])


def finetune(start: Start, task: Task, training, validation, points: list[Point], given, bar: Progress) -> dict:
    """Search the grid, train the chosen point on everything, test; then the specialist."""
    habits = Habits(given.weight_decay, at_once=given.at_once, seed=given.seed)
    image = start.flamingo.prepare.to_dict()
    whose = {"version": __version__, "model": [start.lm, fingerprint(start.flamingo.model)], "image": image}
    settings = {**whose, "task": task_fingerprint(task), "validation": sorted(e.key for e in validation)}
    rounds = IN_FULL if given.in_full else HALVING
    bar.says(f"{task.name}, grid")
    chosen, grid = search(start, task, training, validation, points, given.out, settings, rounds, habits, bar.step, bar.kept)
    everything = [*training, *validation]
    found = {"point": asdict(chosen), "trained_on": len(everything), "validation": len(validation), "grid": grid}
    for kind in ("tuned", "specialist") if given.specialist else ("tuned",):
        bar.says(f"{task.name}, {'chosen point' if kind == 'tuned' else kind}")
        point = chosen if kind == "tuned" else replace(chosen, lr=given.specialist_lr)
        job = Job(given.out, f"{task.name}-{kind}", {**settings, **asdict(habits), **asdict(point)})
        folder = given.out / ("models" if kind == "tuned" else "specialists") / task.name
        if job.result is None or not (folder / "model.pt").is_file():
            model = start.again() if kind == "tuned" else specialist(start.flamingo, given.seed)
            losses = tune(model, task, everything, point, habits, kind == "specialist", lambda loss: bar.step(point))  # noqa: B023
            save(model, folder)
            changed = start.changed() if kind == "tuned" else {}
            if changed.get("language model"):
                raise RuntimeError(f"{task.name}: the frozen language model has changed in fine-tuning, which must not be")
            job.finish({"losses": [round(loss, 4) for loss in losses[:: max(1, len(losses) // 20)]], "changed": changed})
        else:
            bar.kept(point)
            model = load_folder(folder, given.device)
        settings_of_test = {**settings, **asdict(habits), **asdict(point)}
        found[kind] = tested(model, task, kind, "0", settings_of_test, given) | job.result
    start.again()
    bar.task_done()
    return found


def tested(flamingo: LoadedFlamingo, task: Task, name: str, shots: str, settings: dict, given) -> dict:
    """The test's queries, each asked once and kept; the benchmark's metric with its interval."""
    protocol = Protocol(given.seed, beams=given.beams)
    whose = {"version": __version__, "model": fingerprint(flamingo.model), "image": flamingo.prepare.to_dict()}
    cell = Cell(given.out, task, name, 0, {**whose, **asdict(protocol), "task": task_fingerprint(task), **settings})
    if not cell.finished:
        cell.begin()
        for records in answers(flamingo, task, shots, 0, protocol, start=len(cell.records)):
            cell.add(records)
    cell.write_predictions()
    return mark(task, cell.records, given.seed)


def shots_from(earlier: dict | None, task: Task, flamingo: LoadedFlamingo, given) -> dict | None:
    """The score with shots out of an evaluation's results, if they are of this model and of as many queries.

    Raises:
        ValueError: they are not, or this task or number of shots is not among them.
    """
    if earlier is None:
        return None
    try:
        model, cell = earlier["settings"]["model"], earlier["tasks"][task.name]["shots"][given.shots]
    except (KeyError, TypeError):
        raise ValueError(f"{given.eval} has no result of {task.name} with {given.shots} shots") from None
    if model != fingerprint(flamingo.model):
        raise ValueError(f"{given.eval} is of another model ({model}, here {fingerprint(flamingo.model)})")
    if cell["n"] + len(cell["broken"]) != len(task.queries):
        raise ValueError(f"{given.eval} asked {cell['n']} queries of {task.name}, here there are {len(task.queries)}")
    return cell


class Progress:
    """A bar over all trainings, counted in frames that pass the eye, with the time left."""

    def __init__(self, tasks: list[Task], points: list[Point], given: argparse.Namespace):
        one = sum(p.steps * p.batch_size for p in points) / len(points)
        rounds = IN_FULL if given.in_full else HALVING
        jobs = sum(share * max(1, round(part * len(points))) for share, part in rounds) + 1 + given.specialist
        self.frames = {}
        for task in tasks:
            try:
                self.frames[task.name] = len(as_frames(task.support[0].media()))
            except (OSError, ValueError):
                self.frames[task.name] = 1
        self.expected = {task.name: one * jobs * self.frames[task.name] for task in tasks}
        self.names, self.done = [task.name for task in tasks], 0.0
        self.bar = tqdm(
            total=round(sum(self.expected.values())), desc="finetune", unit="frame", unit_scale=True, file=sys.stderr,
            dynamic_ncols=True, mininterval=0.5,
        )  # fmt: skip

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error) -> None:
        self.bar.close()

    def says(self, text: str) -> None:
        self.bar.set_postfix_str(text, refresh=False)

    def step(self, point: Point) -> None:
        n = point.batch_size * self.frames[self.names[0]]
        self.done += n
        self.bar.update(n)

    def kept(self, point: Point) -> None:
        """This training had been done before: there is so much less to do."""
        n = point.steps * point.batch_size * self.frames[self.names[0]]
        self.done += n
        self.bar.total -= n

    def task_done(self) -> None:
        """What was expected of this task and what it took are not the same."""
        self.bar.total += round(self.done - self.expected[self.names.pop(0)])
        self.done = 0.0


def table(results: dict) -> str:
    """Tasks × (shots, fine-tuned, specialist), with intervals, and the chosen point."""
    tasks = results["tasks"]
    columns = [kind for kind in COLUMNS if any(kind in task for task in tasks.values())]
    wide = max(30, *(len(name) + 10 for name in tasks))
    heads = [COLUMNS[kind].format(results["settings"]["shots"]) for kind in columns]
    lines = ["", f"{'':{wide}}" + "".join(f"{head:>18}" for head in heads) + "   the chosen point"]
    for name, task in tasks.items():
        said = [f"{c['score']:.1f} [{c['interval'][0]:.0f}, {c['interval'][1]:.0f}]" if "score" in c else "-"
                for c in (task[kind] for kind in columns)]  # fmt: skip
        label = f"{name} ({task['metric']})"
        lines.append(f"{label:{wide}}" + "".join(f"{text:>18}" for text in said) + f"   {Point(**task['point'])}")
    scored = [task for task in tasks.values() if "score" in task["shots"] and "score" in task["tuned"]]
    better = sum(task["tuned"]["score"] > task["shots"]["score"] for task in scored)
    eye = sum(task["tuned"]["changed"]["eye"] for task in tasks.values())
    n = ", ".join(sorted({str(task["trained_on"]) for task in tasks.values()}))
    lines += [
        "",
        f"fine-tuning on {n} examples beats {results['settings']['shots']} shots on {better} of {len(scored)} tasks",
        f"the language model's weights are the same to the last bit; the eye's have changed in {eye} of {len(tasks)} tasks",
    ]
    if "specialist" in columns:
        lines.append("specialist: the same sizes, random weights, everything trained, on the same examples for as many steps")
    return "\n".join(lines)
