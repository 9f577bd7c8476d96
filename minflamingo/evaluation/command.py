"""`python -m minflamingo eval`: few-shot scores of a model on benchmarks, as a table, a figure and files.

    python -m minflamingo eval --model runs/tiny --task toy
    python -m minflamingo eval --model openflamingo-3b --vision … --language … --flamingo … \\
        --task vqav2 --data data/vqav2 --template openflamingo --shots 0_text,4,8,16,32 --limit 2048

    OUT/results.json                       scores with 95% intervals, how many were asked, what could not be opened
    OUT/shots.png                          score against shots, a panel a task
    OUT/predictions/vqav2-8-0.json         what was answered with 8 shots in trial 0, in the benchmark's official format
    OUT/cells/vqav2-8-0.jsonl              the same as it came, batch after batch

It can be stopped at any time; the same command goes on where it was. A cell (task, shots, trial) is taken up again only if
model, task, seed and protocol are what they were; otherwise it starts over, and says so.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from tqdm import tqdm

from .. import __version__
from ..complete import LoadedFlamingo
from ..training.checkpoint import save_json
from .benchmarks import BENCHMARKS, PUBLISHED, TEMPLATES, files_expected, load_benchmark
from .cells import Cell, task_fingerprint
from .eye import Eye, fingerprint
from .figure import plot_scores
from .rices import rices
from .runner import Protocol, answers, count_of, mark
from .task import Task

SHOTS = "0_text,4,8,16,32"
TOY_SHOTS = "0," + SHOTS
TOY_QUERIES = 128


def add_parser(commands, add_parts: Callable[[argparse.ArgumentParser], None]) -> None:
    """The subcommand's options. `add_parts` adds those that say where a published model's parts are."""
    one = commands.add_parser(
        "eval", help="few-shot scores on benchmarks", formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__, epilog=f"What is looked for in --data, by the name of the benchmark:\n\n{files_expected()}",
    )  # fmt: skip
    one.add_argument("--model", required=True, help="a folder, or the name of a published model with its parts")
    one.add_argument("--task", required=True, help="benchmarks or toy tasks, by commas; toy: all nine")
    one.add_argument("--data", type=Path, help="the benchmark's folder (of several: the folder that holds theirs, by name)")
    one.add_argument("--split", help="of the queries; default: the benchmark's usual one")
    one.add_argument("--template", choices=tuple(TEMPLATES), default="paper", help="whose wording of prompts")
    one.add_argument("--suite", default="data_toy.suite", help="the module of the toy tasks")
    one.add_argument("--shots", help=f"0_text is the paper's zero-shot, 0 the query alone; default {SHOTS}, toy: also 0")
    one.add_argument("--trials", type=int, default=1, help="with other random shots each; scores are their mean")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--rices", action="store_true", help="the shots most like the query, not random ones")
    one.add_argument("--ensemble", action="store_true", help="close-ended: average over 6 orders of the shots")
    one.add_argument("--beams", type=int, default=3, help="1 is greedy")
    one.add_argument("--batch-size", type=int, default=16)
    one.add_argument("--limit", type=int, help=f"so many queries, drawn by the seed; default: all (toy: {TOY_QUERIES})")
    one.add_argument("--out", type=Path, default=Path("runs/eval"))
    add_parts(one)


def run(given: argparse.Namespace, load: Callable[[], LoadedFlamingo]) -> dict:
    """Evaluate, write, print. `load` is called once the tasks are there.

    Raises:
        ValueError, OSError: an option makes no sense, or the benchmark's files are missing; says which.
    """
    for name in ("trials", "beams", "batch_size", "limit"):
        if (value := getattr(given, name)) is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
    tasks = load_tasks(given)
    toy = all(task.name not in BENCHMARKS for task in tasks)
    shots = list(dict.fromkeys((given.shots or (TOY_SHOTS if toy else SHOTS)).split(",")))
    for s in shots:
        count_of(s)  # refuses what is no number of shots
    protocol = Protocol(given.seed, given.rices, given.ensemble, beams=given.beams)
    for task in tasks:
        if task.problems:
            print(f"{task.name}: passed over {len(task.problems)} records, e.g. {task.problems[0]}")
    flamingo = load()
    whose = {"version": __version__, "model": fingerprint(flamingo.model), "image": flamingo.prepare.to_dict()}
    cells = {}
    for task in tasks:
        settings = {**whose, **asdict(protocol), "task": task_fingerprint(task)}
        for s in shots:
            for trial in range(trials_of(s, given)):
                cells[task.name, s, trial] = Cell(given.out, task, s, trial, settings)
    results: dict = {"settings": {**whose, **asdict(protocol), "template": given.template}, "tasks": {}}
    with tqdm(
        total=sum(len(c.task.queries) for c in cells.values()), initial=sum(len(c.records) for c in cells.values()),
        desc="eval", unit="query", file=sys.stderr, dynamic_ncols=True,
    ) as bar:  # fmt: skip
        for task in tasks:
            mine = {s: [cells[task.name, s, t] for t in range(trials_of(s, given))] for s in shots}
            answer(flamingo, task, list(itertools.chain(*mine.values())), protocol, given, bar)
            marked = {s: combined([mark(task, c.records, given.seed) for c in of_shots], task) for s, of_shots in mine.items()}
            results["tasks"][task.name] = {"metric": task.metric, "passed_over": len(task.problems), "shots": marked}
    results["mean"] = means(results["tasks"], shots)
    save_json(results, given.out / "results.json")
    print(table(results, shots))
    if any("score" in cell for task in results["tasks"].values() for cell in task["shots"].values()):
        plot_scores(results, given.out / "shots.png")
    print(f"\nresults.json, predictions and the figure are in {given.out}/")
    return results


def trials_of(shots: str, given: argparse.Namespace) -> int:
    """Where nothing is left to chance, one trial is all there is."""
    return 1 if shots == "0" or (given.rices and shots != "0_text") else given.trials


# ------------------------------------------------------------------------------------------------------------- the tasks


def load_tasks(given: argparse.Namespace) -> list[Task]:
    """The tasks that `--task` names, their queries cut to `--limit`."""
    tasks: list[Task] = []
    for name in given.task.split(","):
        if name in BENCHMARKS:
            if given.data is None:
                raise ValueError(f"{name} is a benchmark on disk: say with --data where its files are")
            folder = given.data / name if (given.data / name).is_dir() else given.data
            task = load_benchmark(name, folder, given.split, template=given.template)
            if given.limit is not None and given.limit < len(task.queries):
                drawn = random.Random(f"limit {given.seed}").sample(range(len(task.queries)), given.limit)
                task = replace(task, queries=[task.queries[i] for i in sorted(drawn)])
            tasks.append(task)
            continue
        suite = toy_suite(given)
        if name != "toy" and name not in suite:
            raise ValueError(f"there is no task {name!r}; choose toy, {', '.join(suite)}, or one of {', '.join(BENCHMARKS)}")
        tasks += suite.values() if name == "toy" else [suite[name]]
    for task in tasks:
        if not task.queries:
            raise ValueError(f"{task.name}: there is nothing to ask. {'; '.join(task.problems[:3])}")
    return tasks


def toy_suite(given: argparse.Namespace) -> dict[str, Task]:
    try:
        module = importlib.import_module(given.suite)
    except ImportError as error:
        raise ImportError(
            f"the toy tasks are in the module {given.suite}, which cannot be imported ({error}). "
            "Run this in the repository's folder, or name another one with --suite"
        ) from None
    training = getattr(given, "training", None)  # of `finetune`: how many examples may be learned from
    more = {} if training is None else {"support": training}
    return module.suite(given.split or "test", queries=given.limit or TOY_QUERIES, **more)


def answer(flamingo: LoadedFlamingo, task: Task, cells: Sequence[Cell], protocol: Protocol, given, bar: tqdm) -> None:
    """Finish the cells of one task. Its media are looked at once, by one eye."""
    eye = index = None
    for cell in cells:
        bar.set_postfix_str(f"{task.name}, {cell.shots} shots", refresh=False)
        if not cell.finished:
            eye = eye or Eye(flamingo)
            if protocol.rices and index is None:
                index = rices(eye, task.support, given.out / "cells")
                if lost := int(index.broken.sum()):
                    bar.write(f"{task.name}: {lost} support examples could not be opened, and RICES does without them")
            cell.begin()
            how = dict(start=len(cell.records), batch_size=given.batch_size)
            for records in answers(flamingo, task, cell.shots, cell.trial, protocol, eye, index, **how):
                cell.add(records)
                bar.update(len(records))
        cell.write_predictions()


# ----------------------------------------------------------------------------------------------------------- the numbers


def combined(marks: Sequence[dict], task: Task) -> dict:
    """Several trials of one cell: the mean of score, share and both ends of the interval, and each trial's score."""
    first = dict(marks[0])
    if len(marks) > 1 and all("score" in m for m in marks):
        for name in ("score", "share"):
            first[name] = round(sum(m[name] for m in marks) / len(marks), 4)
        first["interval"] = [round(sum(m["interval"][end] for m in marks) / len(marks), 2) for end in (0, 1)]
        first["trials"] = [m["score"] for m in marks]
    return first


def means(tasks: dict, shots: Sequence[str]) -> dict[str, float]:
    """Mean over tasks of the share of what right answers would score, 0…1, where all tasks have one."""
    shares = {s: [task["shots"][s].get("share") for task in tasks.values()] for s in shots}
    return {s: round(sum(row) / len(row), 4) for s, row in shares.items() if None not in row}


def table(results: dict, shots: Sequence[str]) -> str:
    """Tasks × shots, with intervals; beside real benchmarks what others published; what was left out."""
    wide = max(30, *(len(name) + 2 for name in results["tasks"]))
    lines = ["", f"{'':{wide}}" + "".join(f"{s:>18}" for s in shots) + "   shots"]
    notes: list[str] = []
    for name, task in results["tasks"].items():
        cells = [task["shots"][s] for s in shots]
        said = [f"{c['score']:.1f} [{c['interval'][0]:.0f}, {c['interval'][1]:.0f}]" if "score" in c else "-" for c in cells]
        label = f"{name} ({task['metric']})"
        lines.append(f"{label:{wide}}" + "".join(f"{text:>18}" for text in said))
        published = PUBLISHED.get(name, [])
        for model in dict.fromkeys(p.model for p in published):
            theirs = {p.shots: str(p) for p in published if p.model == model}
            if any(s in theirs for s in shots):
                lines.append(f"{'  ' + model:{wide}}" + "".join(f"{theirs.get(s, ''):>18}" for s in shots))
        broken = {key: why for c in cells for key, why in c["broken"].items()}
        replaced = {key for c in cells for key in c["replaced"]}
        if broken:
            key, why = next(iter(broken.items()))
            notes.append(f"{name}: {len(broken)} queries could not be opened and were left out, e.g. {key}: {why}")
        if replaced:
            notes.append(f"{name}: {len(replaced)} shots could not be opened and were replaced, e.g. {min(replaced)}")
        notes += dict.fromkeys(f"{name}: no score, {c['problem']}" for c in cells if "problem" in c)
    if len(results["tasks"]) > 1 and results["mean"]:
        row = [f"{results['mean'][s]:.3f}" if s in results["mean"] else "-" for s in shots]
        lines.append(f"{'mean, 1 = all right':{wide}}" + "".join(f"{text:>18}" for text in row))
    return "\n".join([*lines, *notes])
