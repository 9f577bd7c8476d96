"""`python -m minflamingo ablate`: the paper's table 3 on the toy world. Each row is Flamingo with one thing changed.

    python -m minflamingo ablate --model runs/tiny --rows baseline,mlp --seeds 3 --steps 1400

    OUT/results.json, OUT/ablations.png      all scores, next to those of the paper
    OUT/rows/mlp-0.pt                        row "mlp", seed 0: its result, or its training so far. The same command resumes.

All rows of a seed have the vision encoder and LM of --model (of several folders in turn), the same data and the same number of
steps. Data and evaluation are in the module --recipe.

A row's score is 100 times the mean accuracy over tasks, then over seeds. Example: 60.0 and 64.0 with two seeds are printed as
"62.0 [60.0, 64.0]". If the baseline had 70.0 and 72.0 with the same seeds, the difference is -9.0.
"""

import argparse
import importlib
import random
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean

import torch

from .. import __version__
from ..data.mixture import datasets_of_step
from ..data.sample import collate
from ..evaluation.features import fingerprint
from ..flamingo import Flamingo
from ..pipeline import load
from ..plots import plot_ablations
from ..training.checkpoint import save_json
from ..training.optim import accumulate_gradients, learning_rate_factor, parameter_groups, set_learning_rate
from ..training.parallel import run_in_parallel
from ..training.stage import Stage
from .variants import BASELINE, VARIANTS, Variant, build


def add_parser(commands, add_model_options) -> None:
    rows = "\n".join(f"    {name:15} {variant.changed}: {variant.to}" for name, variant in VARIANTS.items())
    parser = commands.add_parser(
        "ablate", help="the paper's ablations on the toy world", formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__, epilog=f"rows:\n\n{rows}",
    )  # fmt: skip
    parser.add_argument("--model", nargs="+", default=["runs/tiny"], help="folders with a trained vision encoder and LM")
    parser.add_argument("--rows", default=",".join(VARIANTS), help="separated by commas; default: all")
    parser.add_argument("--seeds", type=int, default=2, help="number of seeds, from 0")
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--jobs", type=int, default=2, help="rows at a time; they share the cores")
    parser.add_argument("--recipe", default="data_toy.ablations", help="module with the data and the evaluation")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))


def run(args: argparse.Namespace, load_model=None) -> dict:
    """Train and evaluate all rows that are not finished, print the table.

    Raises:
        ValueError, OSError, ImportError: an option is invalid, or a folder or module is missing; the message says which.
    """
    names = list(dict.fromkeys(args.rows.split(",")))
    if unknown := [name for name in names if name not in VARIANTS]:
        raise ValueError(f"--rows: unknown row {unknown[0]!r}; choose from {', '.join(VARIANTS)}")
    if min(args.seeds, args.steps, args.jobs) < 1:
        raise ValueError("--seeds, --steps and --jobs must be at least 1")
    jobs = list(product(range(args.seeds), names))  # the table of the first seed is complete before the second begins
    if args.jobs > 1:
        run_in_parallel([partial(run_rows, args, jobs[i :: args.jobs]) for i in range(args.jobs)])
    found = run_rows(args, jobs)  # reads the results of finished rows
    results = {"rows": summarize({name: [found[seed, name] for seed in range(args.seeds)] for name in names})}
    save_json(results, args.out / "results.json")
    plot_ablations(results, args.out / "ablations.png")
    print(f"{table(results)}\n\nresults.json and the figure are in {args.out}/")
    return results


def run_rows(args: argparse.Namespace, jobs: list[tuple[int, str]], line: int | None = None) -> dict[tuple[int, str], dict]:
    return {job: run_row(args, *job, line) for job in jobs}


def run_row(args: argparse.Namespace, seed: int, name: str, line: int | None) -> dict[str, dict[str, float]]:
    """Build, train and evaluate one row with one seed -> {shots: {task: accuracy}}."""
    variant, recipe = VARIANTS[name], importlib.import_module(args.recipe)
    pipeline = load(args.model[seed % len(args.model)], device=args.device)
    settings = {"version": __version__, "model": fingerprint(pipeline.model), "seed": seed, "steps": args.steps,
                "variant": repr(variant), "recipe": repr(recipe.RECIPE)}  # fmt: skip
    torch.manual_seed(seed)
    flamingo = build(variant, pipeline.model.config, pipeline.model.vision, pipeline.model.lm)
    recipe.initialize(flamingo)
    parameters = [p for p in flamingo.parameters() if p.requires_grad]
    optimizer = make_optimizer(flamingo, variant, recipe.RECIPE)
    datasets = [kind for kind in recipe.LAMBDAS if kind != variant.without]
    # Round-robin makes several updates with the data of one step, so all rows process the same data.
    per_step = 1 if variant.accumulate else len(datasets)
    total = per_step * args.steps
    state = {"flamingo": flamingo, "optimizer": optimizer}
    stage = Stage(f"{name}-{seed}", args.out / "rows", total, state=state, settings=settings, save_every=20.0, restart=True)
    if stage.result is not None:
        return stage.result
    media = recipe.media_pool(flamingo.eval(), seed)
    flamingo.train()
    for update in stage.steps(line=line):
        samples = recipe.draw_batches(media, random.Random(f"ablation {seed} {update // per_step}"), variant.p_next)
        batches = {
            kind: collate(samples[kind], pipeline.tokenizer).to(args.device)
            for kind in datasets_of_step(datasets, update, variant.accumulate)
        }
        losses = {kind: partial(flamingo.loss, batch) for kind, batch in batches.items()}
        stage.log(update, **accumulate_gradients(losses, recipe.LAMBDAS, parameters))
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        set_learning_rate(optimizer, learning_rate_factor(update, total // 20, total, cooldown=0.4))
        optimizer.step()
    flamingo.eval()
    return stage.finish({shots: recipe.evaluate(flamingo, seed, shots) for shots in variant.shots})


def make_optimizer(flamingo: Flamingo, variant: Variant, recipe) -> torch.optim.AdamW:
    """AdamW with the numbers of the recipe. An LM that is trained keeps the weight decay of its pretraining."""
    trained = {n: p for n, p in flamingo.named_parameters() if p.requires_grad}
    lm = {n: p for n, p in trained.items() if n.startswith("lm.") and variant.lm != "frozen"}
    new = {n: p for n, p in trained.items() if n not in lm}
    groups = parameter_groups(new.items(), recipe.lr, recipe.weight_decay, gate_lr=recipe.gate_lr)
    return torch.optim.AdamW(groups + parameter_groups(lm.items(), recipe.lr, recipe.lm_weight_decay), betas=(0.9, 0.98))


def summarize(accuracies: dict[str, list[dict]]) -> dict[str, dict]:
    """{row: one {shots: {task: accuracy}} per seed} -> the rows of results.json."""
    scores = {
        name: {shots: [100 * mean(of_seed[shots].values()) for of_seed in seeds] for shots in seeds[0]}
        for name, seeds in accuracies.items()
    }
    rows = {}
    for name, by_shots in scores.items():
        v, other = VARIANTS[name], name != BASELINE
        paper_difference = round(v.paper - VARIANTS[BASELINE].paper, 1) if other and v.paper else None
        rows[name] = {"changed": v.changed, "to": v.to, "paper": v.paper, "paper_difference": paper_difference, "shots": {}}
        for shots, seeds in by_shots.items():
            difference = round(mean(seeds) - mean(scores[BASELINE][shots]), 2) if other and BASELINE in scores else None
            tasks = {task: round(mean(one[shots][task] for one in accuracies[name]), 4) for task in accuracies[name][0][shots]}
            rows[name]["shots"][shots] = {"score": round(mean(seeds), 2), "seeds": [round(score, 2) for score in seeds],
                                          "difference": difference, "tasks": tasks}  # fmt: skip
    return rows


def table(results: dict) -> str:
    """The rows as text: score with 4 shots [lowest, highest seed], difference; the same of the paper; score with 32 shots."""
    lines = ["", f"{'':18}{'':25}{'4 shots':>20}{'':>8}   {'paper (~)':>9}{'':>8}   32 shots"]
    for row in results["rows"].values():
        four, many = row["shots"]["4"], row["shots"].get("32")
        score = f"{four['score']:.1f} [{min(four['seeds']):.1f}, {max(four['seeds']):.1f}]"
        ours, paper = ("" if d is None else f"{d:+.1f}" for d in (four["difference"], row["paper_difference"]))
        text = f"{row['changed']:18}{row['to']:25}{score:>20}{ours:>8}   {row['paper'] or '-':>9}{paper:>8}"
        lines.append(text + (f"   {many['score']:8.1f}" if many else ""))
    return "\n".join(lines)
