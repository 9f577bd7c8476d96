"""`python -m minflamingo ablate`: the paper's table 3, on the toy world. Each row is Flamingo with one thing changed.

    python -m minflamingo ablate --model runs/tiny                                all rows, two seeds, two rows at a time
    python -m minflamingo ablate --model runs/tiny --rows baseline,no-pages,middle --seeds 3 --steps 1400

    OUT/results.json            scores of all rows and seeds, the paper's beside them
    OUT/ablations.png           the same as bars
    OUT/rows/mlp-0.json         row "mlp", seed 0: what was built, accuracies, seconds
    OUT/stages/mlp-0/           a row under way; it goes when the row is done

All rows of a seed have the same eye and the same tongue (those of --model; of several folders seed i takes the i-th, and then
the first again), see the same data and get the same number of steps; only the bridge is taught anew. What is taught, and how it
is examined, is in the module --world. It can be stopped at any time; the same command goes on where it was.

A row's score is 100 times the mean accuracy over tasks, and then over seeds. Example: 60.0 and 64.0 with two seeds are
"62.0 [60.0, 64.0]"; the baseline had 70.0 and 72.0 with these seeds, so the difference is −9.0.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from types import ModuleType

import torch
from tqdm import tqdm

from .. import __version__
from ..saving import load
from ..training.checkpoint import load_json, save_json
from .ablation_figure import plot_ablations
from .eye import fingerprint
from .variants import BASELINE, ROWS, build, describe

STEPS = 700


def add_parser(commands) -> None:
    """The subcommand's options."""
    rows = "\n".join(f"    {name:15} {row.changed}: {row.to}" for name, row in ROWS.items())
    one = commands.add_parser(
        "ablate", help="the paper's ablations on the toy world", formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__, epilog=f"rows:\n\n{rows}",
    )  # fmt: skip
    one.add_argument("--model", nargs="+", type=Path, default=[Path("runs/tiny")], help="folders with an eye and a tongue")
    one.add_argument("--rows", default=",".join(ROWS), help="by commas; default: all")
    one.add_argument("--seeds", type=int, default=2, help="how many, from 0")
    one.add_argument("--steps", type=int, default=STEPS)
    one.add_argument("--jobs", type=int, default=2, help="rows at a time; they share the cores")
    one.add_argument("--world", default="data_toy.ablations", help="the module with RECIPE, teach() and examine()")
    one.add_argument("--device", default="cpu")
    one.add_argument("--out", type=Path, default=Path("runs/ablations"))


@dataclass(frozen=True)
class Job:
    """One row with one seed; all that a process needs to do it."""

    name: str
    seed: int
    model: str
    world: str
    steps: int
    device: str
    out: str
    settings: dict  # what must be the same for a result on disk to be this one's

    @property
    def path(self) -> Path:
        return Path(self.out) / "rows" / f"{self.name}-{self.seed}.json"

    @property
    def under_way(self) -> Path:
        return Path(self.out) / "stages" / f"{self.name}-{self.seed}"

    def result(self) -> dict | None:
        """What is on disk, if it is of these settings."""
        found = load_json(self.path) if self.path.is_file() else {}
        return found if found.get("settings") == self.settings else None


def run(given: argparse.Namespace) -> dict:
    """Do all rows that are not done yet, write, print.

    Raises:
        ValueError, OSError, ImportError: an option makes no sense, or a folder or the world is missing; says which.
    """
    for name in ("seeds", "steps", "jobs"):
        if getattr(given, name) < 1:
            raise ValueError(f"--{name} is {getattr(given, name)}; it must be at least 1")
    names = list(dict.fromkeys(given.rows.split(",")))
    if unknown := [name for name in names if name not in ROWS]:
        raise ValueError(f"there is no row {unknown[0]!r}; choose among {', '.join(ROWS)}")
    jobs = jobs_of(given, names, world_of(given.world))
    waiting = [job for job in jobs if job.result() is None]
    with tqdm(
        total=len(jobs), initial=len(jobs) - len(waiting), desc="ablate", unit="row", position=given.jobs, file=sys.stderr,
        dynamic_ncols=True,
    ) as bar:  # fmt: skip
        for job, found in work_all(waiting, given.jobs):
            said = ", ".join(f"{score(of_shots):.1f} with {shots} shots" for shots, of_shots in found["shots"].items())
            bar.write(f"{job.name}, seed {job.seed}: {said}; {found['seconds'] / 60:.1f} minutes of training", file=sys.stderr)
            bar.update()
    results = collect(names, {(job.name, job.seed): job.result() for job in jobs})
    save_json(results, given.out / "results.json")
    print(table(results))
    plot_ablations(results, given.out / "ablations.png")
    print(f"\nresults.json and the figure are in {given.out}/")
    return results


def world_of(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"what is taught is in the module {name}, which cannot be imported ({error}). "
            "Run this in the repository's folder, or name another one with --world"
        ) from None


def jobs_of(given: argparse.Namespace, names: Sequence[str], world: ModuleType) -> list[Job]:
    """Seed by seed: so the first seed's table is whole before the second begins."""
    prints = {str(folder): fingerprint(load(folder).model) for folder in dict.fromkeys(given.model[: given.seeds])}
    jobs = []
    for seed in range(given.seeds):
        model = str(given.model[seed % len(given.model)])
        common = {"version": __version__, "model": prints[model], "seed": seed, "steps": given.steps}
        for name in names:
            settings = {**common, "row": repr(ROWS[name]), "recipe": repr(world.RECIPE)}
            jobs.append(Job(name, seed, model, given.world, given.steps, given.device, str(given.out), settings))
    return jobs


# ------------------------------------------------------------------------------------------------------------ the work


def work_all(jobs: Sequence[Job], at_once: int) -> Iterator[tuple[Job, dict]]:
    """The results as they come, from `at_once` processes with their share of the cores (from this process, if it is one)."""
    if at_once == 1:
        for job in jobs:
            yield job, work(job)
        return
    with ProcessPoolExecutor(at_once, mp_context=multiprocessing.get_context("spawn")) as pool:
        threads = max(1, (os.cpu_count() or 1) // at_once)
        doing = {pool.submit(work, job, threads, at_once): job for job in jobs}
        try:
            for done in as_completed(doing):
                yield doing[done], done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # what has not begun shall not begin
            raise


def work(job: Job, threads: int | None = None, at_once: int = 1) -> dict:
    """Build the row's Flamingo, teach it, examine it, and write what came of it."""
    if threads is not None:
        torch.set_num_threads(threads)
    number = "".join(filter(str.isdigit, multiprocessing.current_process().name)) or "1"  # "SpawnProcess-2"
    if not _is(job.under_way / "settings.json", job.settings):  # an unfinished row of other settings is of no use
        shutil.rmtree(job.under_way, ignore_errors=True)
        job.under_way.mkdir(parents=True)
        save_json(job.settings, job.under_way / "settings.json")
    whole, row, world = load(job.model, job.device).model, ROWS[job.name], world_of(job.world)
    torch.manual_seed(job.seed)
    flamingo = build(row, whole.config, whole.vision, whole.lm)
    stage = world.teach(flamingo, row, job.seed, job.steps, job.under_way, (int(number) - 1) % at_once)
    examined = {shots: world.examine(flamingo, job.seed, shots) for shots in row.shots}
    found = {"settings": job.settings, **describe(flamingo), "seconds": round(stage.seconds, 1), "shots": examined}
    job.path.parent.mkdir(parents=True, exist_ok=True)
    save_json(found, job.path)
    shutil.rmtree(job.under_way)
    return found


def _is(path: Path, content: dict) -> bool:
    return path.is_file() and load_json(path) == json.loads(json.dumps(content))


# --------------------------------------------------------------------------------------------------------- the numbers


def score(tasks: dict[str, dict]) -> float:
    """100 times the mean accuracy over tasks."""
    return 100 * mean(task["accuracy"] for task in tasks.values())


def collect(names: Sequence[str], found: dict[tuple[str, int], dict]) -> dict:
    """{"rows": {name: {"changed", "to", "paper", "paper_difference", "shots": {"4": {…}}}}} from the results by (name, seed).

    Per number of shots: the mean "score", that of each of the "seeds", the "tasks" of which it is the mean, and the
    "difference" from the baseline of the same seeds; None: of the baseline itself, or where there is none.
    """
    seeds = sorted({seed for _, seed in found})
    rows = {}
    for name in names:
        row = ROWS[name]
        of_row: dict = {key: asdict(row)[key] for key in ("changed", "to", "paper")}
        others = name != BASELINE
        of_row["paper_difference"] = round(row.paper - ROWS[BASELINE].paper, 1) if others and row.paper is not None else None
        of_row |= {key: found[name, 0][key] for key in ("bridges_before", "trained_parameters", "all_parameters")}
        of_row["shots"] = {}
        for shots in row.shots:
            scores = [score(found[name, seed]["shots"][shots]) for seed in seeds]
            tasks = {task: round(mean(found[name, seed]["shots"][shots][task]["accuracy"] for seed in seeds), 4)
                     for task in found[name, 0]["shots"][shots]}  # fmt: skip
            difference = None
            if others and BASELINE in names:
                before = [score(found[BASELINE, seed]["shots"][shots]) for seed in seeds]
                difference = round(mean(s - b for s, b in zip(scores, before)), 2)
            of_row["shots"][shots] = {
                "score": round(mean(scores), 2), "seeds": [round(s, 2) for s in scores], "difference": difference,
                "tasks": tasks,
            }  # fmt: skip
        rows[name] = of_row
    return {"settings": found[names[0], 0]["settings"], "seeds": seeds, "rows": rows}


def table(results: dict) -> str:
    """For people. In brackets the lowest and the highest seed."""
    lines = ["", f"{'':18}{'':25}{'4 shots':>20}{'':>8}   {'paper (~)':>9}{'':>8}   32 shots"]
    for row in results["rows"].values():
        four, more = row["shots"]["4"], row["shots"].get("32")
        said = f"{four['score']:.1f} [{min(four['seeds']):.1f}, {max(four['seeds']):.1f}]"
        paper = "-" if row["paper"] is None else f"{row['paper']:.1f}"
        lines.append(
            f"{row['changed']:18}{row['to']:25}{said:>20}{_signed(four['difference'])}   {paper:>9}"
            f"{_signed(row['paper_difference'])}   {'' if more is None else format(more['score'], '8.1f')}".rstrip()
        )
    lines.append("\n[lowest, highest seed]; then the difference from the baseline of the same seed, and from the paper's.")
    few = results["rows"].get("every-4th")
    if few and len(few["bridges_before"]) == 1:
        lines.append("So small a tongue has no fourth layer: every 4th layer is the first alone.")
    return "\n".join(lines)


def _signed(difference: float | None) -> str:
    return f"{'':8}" if difference is None else f"{difference:+8.1f}"
