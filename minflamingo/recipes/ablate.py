"""`python -m minflamingo ablate`: the paper's table 3 on the toy world. Each row is Flamingo with one thing changed.

    python -m minflamingo ablate --model runs/tiny --rows baseline,mlp --seeds 3 --steps 1400

    OUT/results.json, OUT/ablations.png      all scores, next to those of the paper
    OUT/rows/mlp-0.pt                        row "mlp", seed 0: its result, or its training so far. The same command resumes.

All rows have the vision encoder and the LM of --model. All rows of a seed have the same data and the same number of steps. Data
and evaluation are in the module --recipe.

A row's score is 100 times the mean accuracy over tasks, then over seeds. Example: 60.0 and 64.0 with two seeds are printed as
"62.0 [60.0, 64.0]". If the baseline had 70.0 and 72.0 with the same seeds, the difference is -9.0.
"""

import argparse
import random
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from statistics import mean

import torch

from .. import Flamingo, Pipeline, __version__, collate
from ..data.options import COUNT, FEW, check_output, filled, import_option, names, output_folder
from ..evaluation.features import fingerprint
from ..plots import plot_ablations
from ..training import optim
from ..training.checkpoint import save_json
from ..training.parallel import worker_threads
from ..training.stage import Stage
from .benchmarks import text_table
from .variants import BASELINE, VARIANTS, Variant, build


def add_parser(commands, add_model_options: Callable) -> None:
    rows = "\n".join(f"    {name:15} {variant.changed}: {variant.to}" for name, variant in VARIANTS.items())
    text = f"{__doc__}\nrows:\n{rows.replace('-: ', '')}"
    parser = commands.add_parser("ablate", help="the paper's ablations on the toy world", description=text)
    add = parser.add_argument
    add("--rows", type=names, default=",".join(VARIANTS), help="rows to compute, separated by commas; default: all")
    add("--seeds", type=FEW, default=2, help="how often each row is trained, with seeds 0, 1, ...; default: %(default)s")
    # Fewer steps than train_tiny.py takes with these modules, because there are many rows.
    add("--steps", type=COUNT, default=350, help="training steps of each row; default: %(default)s")
    add("--recipe", type=filled, default="data_toy.ablations", help="Python module with its data; default: %(default)s")
    add("--out", type=output_folder, default="runs/ablations", help="folder for the results; default: %(default)s")
    add_model_options(parser)


def run(args: argparse.Namespace, load: Callable[[], Pipeline]) -> dict:
    """Train and evaluate all rows that are not finished, print the table. Raises ValueError if an option is invalid."""
    if unknown := [name for name in args.rows if name not in VARIANTS]:
        raise ValueError(f"--rows: unknown row {unknown[0]!r}; choose from {', '.join(VARIANTS)}")
    check_output(args.out, args.model)
    args.recipe = import_option("--recipe", args.recipe, "RECIPE", "LAMBDAS", "media_pool", "draw_batches", "evaluate")
    pipeline, accuracies = load(), {name: [] for name in args.rows}
    with worker_threads(args.device) as threads:
        for seed in range(args.seeds):  # the table of the first seed is complete before the second begins
            for name in args.rows:
                accuracies[name].append(run_row(args, pipeline, seed, name, threads))
    results = {"rows": summarize(accuracies)}
    save_json(results, args.out / "results.json")
    plot_ablations(results, args.out / "ablations.png")
    print(f"\n{table(results)}\n\nresults.json and the figure are in {args.out}/")
    return results


def run_row(args: argparse.Namespace, pipeline: Pipeline, seed: int, name: str, threads: Executor) -> dict[str, dict]:
    """Build, train and evaluate one row with one seed -> {shots: {task: accuracy}}."""
    variant, recipe = VARIANTS[name], args.recipe
    settings = {"version": __version__, "model": fingerprint(pipeline.model), "seed": seed, "steps": args.steps,
                "variant": repr(variant), "recipe": repr(recipe.RECIPE)}  # fmt: skip
    torch.manual_seed(seed)
    flamingo = build(variant, pipeline.model.config, pipeline.model.vision, pipeline.model.lm)
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
    for update in stage.steps():
        samples = recipe.draw_batches(media, random.Random(f"ablation {seed} {update // per_step}"), variant.p_next)
        used = datasets if variant.accumulate else [datasets[update % per_step]]
        batches = {kind: collate(samples[kind], pipeline.tokenizer).to(args.device) for kind in used}
        losses = {kind: partial(flamingo.loss, batch) for kind, batch in batches.items()}
        losses = optim.accumulate_gradients(losses, recipe.LAMBDAS, parameters, threads)
        stage.skip_if(optim.clip_gradients(parameters, losses), update, batches)
        # The shape of train_tiny.py's schedule: a short warm-up, and a linear fall during the last 40% of the updates.
        optim.set_learning_rate(optimizer, optim.learning_rate_factor(update, total // 20, total, cooldown=0.4))
        optimizer.step()
        if update % 10 == 0:
            stage.log(update, **losses)
    flamingo.eval()
    return stage.finish({shots: recipe.evaluate(flamingo, seed, shots) for shots in variant.shots})


def make_optimizer(flamingo: Flamingo, variant: Variant, recipe) -> optim.Muon:
    """Muon, as in train_tiny.py, with the numbers of the recipe. An LM that is trained keeps its own weight decay."""
    trained = {n: p for n, p in flamingo.named_parameters() if p.requires_grad}
    lm = {n: p for n, p in trained.items() if n.startswith("lm.") and variant.lm != "frozen"}
    new = {n: p for n, p in trained.items() if n not in lm}
    groups = optim.parameter_groups(new.items(), recipe.lr, recipe.weight_decay, gate_lr=recipe.gate_lr)
    return optim.Muon(groups + optim.parameter_groups(lm.items(), recipe.lr, recipe.lm_weight_decay), betas=(0.9, 0.98))


def summarize(accuracies: dict[str, list[dict]]) -> dict[str, dict]:
    """{row: one {shots: {task: accuracy}} per seed} -> the rows of results.json."""

    def scores(name: str, shots: str) -> list[float]:
        return [100 * mean(of_seed[shots].values()) for of_seed in accuracies[name]]

    rows = {}
    for name, of_seeds in accuracies.items():
        v, other = VARIANTS[name], name != BASELINE
        paper_difference = round(v.paper - VARIANTS[BASELINE].paper, 1) if other and v.paper else None
        rows[name] = {"changed": v.changed, "to": v.to, "paper": v.paper, "paper_difference": paper_difference, "shots": {}}
        for shots in v.shots:
            seeds, compare = scores(name, shots), other and BASELINE in accuracies
            difference = round(mean(seeds) - mean(scores(BASELINE, shots)), 2) if compare else None
            tasks = {task: round(mean(one[shots][task] for one in of_seeds), 4) for task in of_seeds[0][shots]}
            rows[name]["shots"][shots] = {"score": round(mean(seeds), 2), "seeds": [round(score, 2) for score in seeds],
                                          "difference": difference, "tasks": tasks}  # fmt: skip
    return rows


def table(results: dict) -> str:
    """The rows as text: score with 4 shots [lowest, highest seed], difference; the same of the paper; score with 32 shots."""
    rows = [["", "4 shots", "difference", "paper (~)", "difference", "32 shots"]]
    for row in results["rows"].values():
        four, many = row["shots"]["4"], row["shots"].get("32")
        score = f"{four['score']:.1f} [{min(four['seeds']):.1f}, {max(four['seeds']):.1f}]"
        ours, paper = ("" if d is None else f"{d:+.1f}" for d in (four["difference"], row["paper_difference"]))
        name = f"{row['changed']}: {row['to']}".removeprefix("-: ")
        rows.append([name, score, ours, str(row["paper"] or "-"), paper, f"{many['score']:.1f}" if many else ""])
    return text_table(rows)
