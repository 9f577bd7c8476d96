"""`python -m minflamingo eval`: few-shot scores of a model on benchmarks, as a table, a figure and files.

    python -m minflamingo eval --model runs/tiny --task toy
    python -m minflamingo eval --model openflamingo-3b --task vqav2 --data data/vqav2 --template openflamingo --limit 2048

    OUT/results.json                       scores with 95% intervals, number of queries, files that could not be opened
    OUT/shots.png                          score against shots, one panel per task
    OUT/predictions/vqav2-8-0.json         the answers with 8 shots in trial 0, as a results file of the benchmark
    OUT/cells/                             the answers so far: the same command resumes after an interruption
"""

import argparse
import importlib
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..evaluation.benchmarks import BENCHMARKS, TEMPLATES, load_benchmark
from ..evaluation.features import FeatureCache
from ..evaluation.fewshot import count_shots
from ..evaluation.metrics import METRICS, Outcome, log_odds
from ..evaluation.runner import Protocol, evaluate, outcomes_of
from ..evaluation.task import Task
from ..pipeline import Pipeline
from ..plots import plot_shots
from ..training.checkpoint import save_json


def add_task_options(parser: argparse.ArgumentParser) -> None:
    """Options of `load_tasks`, shared with finetune."""
    parser.add_argument("--task", required=True, help=f"comma-separated: toy, names of toy tasks, {', '.join(BENCHMARKS)}")
    parser.add_argument("--data", type=Path, help="folder of the benchmark, or folder that holds vqav2/, coco/, …")
    parser.add_argument("--split", help="of the queries; default: the benchmark's usual one")
    parser.add_argument("--template", choices=tuple(TEMPLATES), default="paper", help="wording of the prompts")
    parser.add_argument("--suite", default="data_toy.suite", help="module of the toy tasks")
    parser.add_argument("--limit", type=int, help="number of queries, drawn by the seed; default: all (toy: 128)")
    parser.add_argument("--seed", type=int, default=0)


def add_parser(commands, add_model_options: Callable[[argparse.ArgumentParser], None]) -> None:
    style = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser("eval", help="few-shot scores on benchmarks", description=__doc__, formatter_class=style)
    add_task_options(parser)
    parser.add_argument("--shots", default="0,0_text,4,8,16,32", help="0: the query alone; 0_text: two examples without images")
    parser.add_argument("--trials", type=int, default=1, help="each trial draws other random shots; the score is the mean")
    parser.add_argument("--rices", action="store_true", help="shots most similar to the query instead of random ones")
    parser.add_argument("--ensemble", action="store_true", help="close-ended tasks: mean over 6 orders of the shots")
    parser.add_argument("--beams", type=int, default=3, help="1: greedy")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("runs/eval"))
    add_model_options(parser)


def load_tasks(args: argparse.Namespace, support: int | None = None) -> list[Task]:
    """The tasks of `--task`, with `--limit` queries each. support: number of toy examples to draw shots from."""
    tasks: list[Task] = []
    for name in args.task.split(","):
        if name in BENCHMARKS:
            if args.data is None:
                raise ValueError(f"{name} is a benchmark on disk: pass its folder with --data")
            folder = args.data / name if (args.data / name).is_dir() else args.data
            task = load_benchmark(name, folder, split=args.split, template=args.template)
            drawn = range(len(task.queries))
            if args.limit is not None and args.limit < len(drawn):  # not the first ones: files are often sorted
                drawn = sorted(random.Random(f"limit {args.seed}").sample(drawn, args.limit))
            tasks.append(replace(task, queries=[task.queries[i] for i in drawn]))
            continue
        try:
            module = importlib.import_module(args.suite)
        except ImportError as error:
            raise ImportError(f"cannot import the toy tasks ({error}); pass another module with --suite") from None
        suite = module.suite(args.split or "test", queries=args.limit or 128, **({"support": support} if support else {}))
        if name != "toy" and name not in suite:
            raise ValueError(f"unknown task {name!r}; choose toy, {', '.join(suite)}, or one of {', '.join(BENCHMARKS)}")
        tasks += suite.values() if name == "toy" else [suite[name]]
    return tasks


def run(args: argparse.Namespace, load: Callable[[], Pipeline]) -> dict:
    """Evaluate, write the files, print the table. `load` is called after the options and tasks are checked.

    Raises:
        ValueError, OSError: an invalid option, or a missing file; the message says which.
    """
    for name in ("trials", "beams", "batch_size", "limit"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
    tasks, shots = load_tasks(args), args.shots.split(",")
    for n in shots:
        count_shots(n)  # raises ValueError for an invalid number
    protocol = Protocol(args.seed, args.rices, args.ensemble, args.beams, args.batch_size)
    pipeline, results = load(), {"tasks": {}, "mean": {}}
    features, folder = FeatureCache(pipeline, folder=args.out / "cells"), args.out / "predictions"
    folder.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        results["tasks"][task.name] = {"metric": task.metric, "unit": METRICS[task.metric].unit, "shots": (cells := {})}
        for n in shots:
            repeated = args.trials if n == "0_text" or (n != "0" and not args.rices) else 1  # 1: nothing is random
            trials = []
            for trial in range(repeated):
                found = evaluate(
                    pipeline, task, n, trial=trial, protocol=protocol, features=features, folder=args.out / "cells"
                )  # fmt: skip
                answers = submission(task.name, outcomes_of(task, found.pop("records")))
                save_json(answers, folder / f"{task.name}-{n}-{trial}.json")
                trials.append(found)
            cells[n] = trials[0]
            if "score" in trials[0]:
                low_high = np.mean([t["interval"] for t in trials], axis=0).round(2).tolist()
                scores = [t["score"] for t in trials]
                cells[n] |= {"score": round(float(np.mean(scores)), 2), "interval": low_high, "trials": scores}
    for n in shots:  # the mean over tasks, if all scores are between 0 and 100
        scores = [task["shots"][n].get("score") for task in results["tasks"].values() if task["metric"] != "cider"]
        if len(scores) == len(tasks) > 1 and None not in scores:
            results["mean"][n] = round(sum(scores) / len(scores), 2)
    save_json(results, args.out / "results.json")
    if any("score" in cell for task in results["tasks"].values() for cell in task["shots"].values()):
        plot_shots(results, args.out / "shots.png")
    print(f"{table(results, shots)}\n\nresults.json, predictions and the figure are in {args.out}/")
    return results


def submission(name: str, outcomes: Sequence[Outcome]) -> list[dict]:
    """Predictions as in the official results file (COCO, VQAv2, OK-VQA, VizWiz, TextVQA, VisDial), the others alike."""
    ids, kind = (BENCHMARKS[name].ids, BENCHMARKS[name].kind) if name in BENCHMARKS else ((), "")
    rows = []
    for outcome in outcomes:
        row = {field: outcome.example.fields[field] for field in ids} or {"key": outcome.example.key}
        if kind == "dialogue":  # the rank of each candidate, counted from 1
            row["ranks"] = (1 + np.argsort(np.argsort(-np.array(outcome.scores), kind="stable"))).tolist()
        elif kind == "meme":  # the softmax over "yes" and "no"
            row["proba"] = round(float(1 / (1 + np.exp(-log_odds(outcome)))), 6)
        else:
            row["caption" if kind == "caption" else "answer"] = outcome.prediction
        rows.append(row)
    return rows


def table(results: dict, shots: Sequence[str]) -> str:
    """Tasks x shots, with intervals; then files that could not be opened."""
    width = max(30, *(len(name) + 16 for name in results["tasks"]))
    lines, notes = ["", " " * width + "".join(f"{n:>18}" for n in shots) + "   shots"], []
    for name, task in results["tasks"].items():
        cells = [task["shots"][n] for n in shots]
        texts = [f"{c['score']:.1f} [{c['interval'][0]:.0f}, {c['interval'][1]:.0f}]" if "score" in c else "-" for c in cells]
        lines.append(f"{name + ', ' + task['metric']:{width}}" + "".join(f"{text:>18}" for text in texts))
        broken = [f"{key}: {why}" for key, why in {key: why for c in cells for key, why in c["broken"].items()}.items()]
        replaced = sorted({key for c in cells for key in c["replaced"]})
        for listed, text in ((broken, "skipped {} queries"), (replaced, "replaced {} shots")):
            if listed:
                notes.append(f"{name}: {text.format(len(listed))} that could not be opened, for example {listed[0]}")
        notes += dict.fromkeys(f"{name}: no score, {c['problem']}" for c in cells if "problem" in c)
    if results["mean"]:
        lines.append(f"{'mean':{width}}" + "".join(f"{results['mean'].get(n, float('nan')):>18.1f}" for n in shots))
    return "\n".join([*lines, *notes])
