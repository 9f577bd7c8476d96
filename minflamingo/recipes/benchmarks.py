"""`python -m minflamingo eval`: few-shot scores of a model on benchmarks, as a table, a figure and files.

    python -m minflamingo eval --model runs/tiny --task toy
    python -m minflamingo eval --model openflamingo-3b --task vqav2 --data data/vqav2 --template openflamingo --limit 2048

    OUT/results.json                       scores with 95% intervals, number of queries, queries that were skipped
    OUT/shots.png                          score against shots, one panel per task
    OUT/predictions/vqav2-8-0.json         the answers with 8 shots in trial 0, by key (here the question_id)
    OUT/cells/                             the answers so far: the same command resumes after an interruption
"""

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..data.options import BATCH, BEAMS, COUNT, FEW, SEED, check_output, filled, import_option, names, output_folder
from ..evaluation.benchmarks import BENCHMARKS, TEMPLATES, load_benchmark, load_folder
from ..evaluation.features import FeatureCache
from ..evaluation.fewshot import count_shots
from ..evaluation.metrics import METRICS
from ..evaluation.runner import Protocol, check_task, evaluate
from ..evaluation.task import Task
from ..pipeline import Pipeline
from ..plots import plot_shots
from ..training.checkpoint import save_json


def add_task_options(parser: argparse.ArgumentParser) -> None:
    """Options of `load_tasks`, shared with finetune."""
    add = parser.add_argument
    add("--task", type=names, required=True, help="tasks, separated by commas: toy (all toy tasks), one toy task, a folder "
        f"with your own images and texts (cat.png with cat.txt), {', '.join(BENCHMARKS)}")  # fmt: skip
    add("--metric", choices=tuple(METRICS), default="exact_match", help="for a folder of your own; default: exact_match")
    add("--data", type=filled, help="folder with the files of the benchmark, or a folder with one folder per benchmark")
    add("--split", type=filled, help="the part of the data that the queries are from; default: the usual one of each benchmark")
    add("--template", choices=tuple(TEMPLATES), default="paper", help="wording of benchmark prompts; default: paper")
    add("--suite", type=filled, default="data_toy.suite", help="Python module that defines the toy tasks; default: %(default)s")
    add("--limit", type=COUNT, help="evaluate at most this many queries per task, drawn at random; default: all (toy: 128)")
    add("--seed", type=SEED, default=0, help="another seed gives other random choices, for example of shots; default: 0")


def add_parser(commands, add_model_options: Callable[[argparse.ArgumentParser], None]) -> None:
    parser = commands.add_parser("eval", help="few-shot scores on benchmarks", description=__doc__)
    add_task_options(parser)
    add = parser.add_argument
    add("--shots", type=lambda word: [*map(shots_option, names(word))], default="0,0_text,4,8,16,32", help="numbers of "
        "examples in the prompt. 0: only the query; 0_text: two examples without their images; default: %(default)s")
    add("--trials", type=FEW, default=1, help="repeat with other random shots, and report the mean score; default: 1")
    add("--rices", action="store_true", help="use the examples most similar to the query as shots (not in 0_text)")
    add("--ensemble", action="store_true", help="if an answer is chosen from a list: average over 6 orders of the shots")
    add("--beams", type=BEAMS, default=3, help="beams in the search for an answer; 1: greedy; default: 3, as in the paper")
    add("--batch-size", type=BATCH, default=16, help="queries that are processed together; default: 16")
    add("--out", type=output_folder, default="runs/eval", help="folder for the results; default: %(default)s")
    add_model_options(parser)


def shots_option(word: str) -> str:
    count_shots(word)  # or it raises an error
    return word


def load_tasks(args: argparse.Namespace) -> list[Task]:
    """The tasks of `--task`, with `--limit` queries each."""
    tasks: list[Task] = []
    for name in args.task:
        if name in BENCHMARKS:
            if args.data is None:
                raise ValueError(f"{name} is a benchmark on disk: pass its folder with --data")
            folder = Path(args.data, name) if Path(args.data, name).is_dir() else Path(args.data)
            task = load_benchmark(name, folder, split=args.split, template=args.template)
        elif name != "toy" and Path(name).is_dir():
            task = load_folder(Path(name), args.metric, args.seed)
        else:
            tasks += toy_tasks(name, args)
            continue
        drawn = range(len(task.queries))
        if args.limit is not None and args.limit < len(drawn):  # not the first ones: files are often sorted
            drawn = sorted(random.Random(f"limit {args.seed}").sample(drawn, args.limit))
        tasks.append(replace(task, queries=[task.queries[i] for i in drawn]))
    if len({task.name for task in tasks}) < len(tasks):
        raise ValueError(f"--task {','.join(args.task)}: two tasks have one name: {', '.join(task.name for task in tasks)}")
    return tasks


def toy_tasks(name: str, args: argparse.Namespace) -> list[Task]:
    """The toy task of this name, or all of them ("toy")."""
    if args.limit is not None and args.limit > 10_000:
        raise ValueError(f"--limit is {args.limit}; at most 10,000 queries of a toy task can be drawn")
    suite = import_option("--suite", args.suite, "suite").suite(args.split or "test", queries=args.limit or 128)
    if not isinstance(suite, dict) or not all(isinstance(task, Task) for task in suite.values()):
        raise TypeError(f"--suite {args.suite}: its function suite() must return a dict of tasks")
    if name != "toy" and name not in suite:
        choices = f"choose toy, {', '.join(suite)}, or one of {', '.join(BENCHMARKS)}, or a folder"
        raise ValueError(f"unknown task {name!r}; {choices}")
    return list(suite.values()) if name == "toy" else [suite[name]]


def run(args: argparse.Namespace, load: Callable[[], Pipeline]) -> dict:
    """Evaluate, write the files, print the table. `load` is called after the options and tasks are checked.

    Raises ValueError, OSError: an invalid option, or a missing file; the message says which.
    """
    check_output(args.out, args.model, *args.task)
    tasks, shots = load_tasks(args), args.shots
    for task in tasks:
        check_task(task, *shots)
    features, results = FeatureCache(load()), {"tasks": {}, "mean": {}}
    (args.out / "predictions").mkdir(parents=True, exist_ok=True)
    for task in tasks:
        cells = {n: evaluate_trials(task, n, features, args) for n in shots}
        results["tasks"][task.name] = {"metric": task.metric, "unit": METRICS[task.metric].unit, "shots": cells}
    for n in shots:  # the mean over tasks, if all scores are between 0 and 100
        scores = [task["shots"][n].get("score") for task in results["tasks"].values() if task["metric"] != "cider"]
        if len(scores) == len(tasks) > 1 and None not in scores:
            results["mean"][n] = round(sum(scores) / len(scores), 2)
    save_json(results, args.out / "results.json")
    if any("score" in cell for task in results["tasks"].values() for cell in task["shots"].values()):
        plot_shots(results, args.out / "shots.png")
    print(f"\n{report(results, shots)}\n\nresults.json, predictions and the figure are in {args.out}/")
    return results


def evaluate_trials(task: Task, shots: str, features: FeatureCache, args: argparse.Namespace) -> dict:
    """The result of the first trial, with the mean score and the mean interval of all trials. Writes the predictions."""
    protocol = Protocol(args.seed, args.rices, args.ensemble, args.beams, args.batch_size)
    options = {"protocol": protocol, "features": features, "folder": args.out / "cells"}
    # Without shots and with RICES nothing is random. RICES needs images, so the shots of 0_text are always random.
    random_shots = shots == "0_text" or (shots != "0" and not args.rices)
    trials = []
    for trial in range(args.trials if random_shots else 1):
        found = evaluate(features.pipeline, task, shots, trial=trial, **options)
        save_json(found.pop("records"), args.out / "predictions" / f"{task.name}-{shots}-{trial}.json")
        trials.append(found)
    if "score" not in trials[0]:
        return trials[0]
    scores, intervals = [found["score"] for found in trials], [found["interval"] for found in trials]
    mean_interval = np.mean(intervals, axis=0).round(2).tolist()
    return trials[0] | {"score": round(float(np.mean(scores)), 2), "interval": mean_interval, "trials": scores}


def score_text(cell: dict) -> str:
    """{"score": 62.04, "interval": [60.2, 64.1]} -> "62.0 [60, 64]"."""
    return f"{cell['score']:.1f} [{cell['interval'][0]:.0f}, {cell['interval'][1]:.0f}]" if "score" in cell else "-"


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their longest text: the first is left-aligned, the others are right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
    return "\n".join("   ".join(line) for line in lines)


def report(results: dict, shots: Sequence[str]) -> str:
    """The table of tasks x shots with intervals. Below it, what was skipped or not scored."""
    rows, notes = [["task, metric   \\   shots", *shots]], []
    for name, task in results["tasks"].items():
        cells = [task["shots"][n] for n in shots]
        rows.append([f"{name}, {task['metric']}", *map(score_text, cells)])
        broken = {f"{key}: {why}" for cell in cells for key, why in cell["broken"].items()}
        replaced = {key for cell in cells for key in cell["replaced"]}
        for keys, text in ((broken, "skipped {} queries"), (replaced, "replaced {} shots")):
            if keys:
                notes.append(f"{name}: {text.format(len(keys))} that are broken or too long, for example {min(keys)}")
        notes += dict.fromkeys(f"{name}: no score, {cell['problem']}" for cell in cells if "problem" in cell)
    if results["mean"]:
        rows.append(["mean", *(f"{results['mean'][n]:.1f}" if n in results["mean"] else "-" for n in shots)])
    return "\n".join([text_table(rows), *notes])
