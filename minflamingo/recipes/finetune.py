"""`python -m minflamingo finetune`: fine-tuning on one task with a search of hyperparameters (paper section 3.2 and its table).

    python -m minflamingo finetune --model openflamingo-3b --task vqav2 --data data/vqav2 --image-size 448 --steps 2000 8000

    <BOS><image>Question: How many? Answer: 3<EOC>       no shots; loss on " 3" and <EOC> alone

The LM stays frozen; everything else learns, the vision encoder too. Images may be larger than in pretraining (--image-size).

    training set  ->  three quarters: candidates are trained on them  ->  one quarter: which candidate is best?
                  ->  all of it: the best candidate is trained again  ->  the test set, evaluated once

Candidates are drawn from the grid of all hyperparameters. Successive halving (Jamieson and Talwalkar 2016) saves time: all
candidates train for a quarter of their steps, and the best quarter of them in full. So 16 candidates cost 8 full trainings.

    OUT/results.json, OUT/grid.png       few-shot, fine-tuned and from-scratch scores with 95% intervals; the search
    OUT/models/vqav2/                    the fine-tuned model, for minflamingo.load; predictions.json: its answers
    OUT/stages/                          results of finished trainings, state of the current one: the same command resumes
"""

import argparse
import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from torch import nn

from .. import __version__
from ..config import require_choice
from ..data.images import as_frames
from ..data.sample import EOC, NoLoss, Sample
from ..evaluation.features import fingerprint
from ..evaluation.metrics import METRICS
from ..evaluation.runner import Protocol, evaluate, outcomes_of
from ..evaluation.task import Example, Task, task_fingerprint
from ..flamingo import Flamingo
from ..pipeline import Pipeline
from ..plots import plot_grid
from ..training import optim
from ..training.batching import micro_batches
from ..training.checkpoint import save_json
from ..training.stage import Stage
from ..vision import resize_vit
from .benchmarks import BENCHMARKS, add_task_options, load_tasks, submission

HALVING = ((1 / 4, 1.0), (1.0, 1 / 4))  # of each round: share of the steps, share of the candidates
AXES = {
    "lr": (1e-5, 3e-5, 1e-4), "schedule": ("constant", "linear", "cosine"), "steps": (1000, 4000), "batch_size": (32, 64),
    "augment": ("none", "light"),
}  # fmt: skip
TOY_AXES = AXES | {"lr": (6e-5, 2e-4, 6e-4, 2e-3), "steps": (80, 240), "batch_size": (8, 16)}


@dataclass(frozen=True)
class Hyperparameters:
    """What the paper searches."""

    lr: float
    schedule: str
    steps: int
    batch_size: int
    augment: str

    def __post_init__(self):
        require_choice("Hyperparameters", "schedule", self.schedule, AXES["schedule"])
        require_choice("Hyperparameters", "augment", self.augment, AXES["augment"])
        if not (self.lr > 0 and self.steps >= 1 and self.batch_size >= 1):
            raise ValueError(f"learning rate, steps and batch size must be positive: {self}")


@dataclass(frozen=True)
class FinetuneConfig:
    """What is the same for all candidates."""

    weight_decay: float = 0.1
    warmup: float = 0.1  # share of the steps
    clip: float = 1.0
    micro_batch: int = 64  # samples in memory at a time
    seed: int = 0


def schedule_factor(schedule: str, step: int, total: int) -> float:
    """Share of the learning rate: after 25 of 100 steps 1 (constant), 0.75 (linear) or 0.854 (cosine)."""
    return {"constant": 1.0, "linear": 1 - step / total, "cosine": (1 + math.cos(math.pi * step / total)) / 2}[schedule]


def augment_lightly(frames: np.ndarray, rng: random.Random) -> np.ndarray:
    """uint8 (T, H, W, 3), shifted by up to 1/16 of the size and up to 15% lighter or darker, all frames of a video alike.

    No mirroring: it would change text in images, and answers about left and right.
    """
    _, H, W, _ = frames.shape
    y, x = H // 16, W // 16
    top, left = rng.randint(0, 2 * y), rng.randint(0, 2 * x)
    padded = np.pad(frames, ((0, 0), (y, y), (x, x), (0, 0)), mode="edge")
    return (padded[:, top : top + H, left : left + W] * rng.uniform(0.85, 1.15)).clip(0, 255).round().astype(np.uint8)


def training_sample(task: Task, example: Example, rng: random.Random, augment: str) -> Sample:
    """[frames, prompt, answer, EOC] with loss on answer and EOC. One of several answers is drawn."""
    media = example.media()
    if isinstance(media, torch.Tensor) and media.is_floating_point():
        raise TypeError(f"{task.name}, {example.key}: fine-tuning trains the vision encoder, so it needs pixels, not features")
    if not example.answers:
        raise ValueError("there is no answer to learn")
    frames = as_frames(media, f"{task.name}, {example.key}")
    frames = augment_lightly(frames, rng) if augment == "light" else frames
    return Sample([frames, NoLoss(task.template.asked(example)), task.template.answered(rng.choice(example.answers)), EOC])


def samples_of_step(task: Task, h: Hyperparameters, seed: int, step: int) -> list[Sample]:
    """A random batch that depends on seed and step alone. Examples whose image cannot be opened are left out."""
    rng, samples, problem = random.Random(f"{seed} finetune {step}"), [], "there are no examples"
    for example in rng.sample(task.support, min(h.batch_size, len(task.support))):
        try:
            samples.append(training_sample(task, example, rng, h.augment))
        except (OSError, ValueError) as error:
            problem = f"{example.key}: {error}"
    if not samples:
        raise ValueError(f"{task.name}, step {step}: no training example can be opened, e.g. {problem}")
    return samples


def unfreeze(model: Flamingo, everything: bool = False) -> dict[str, nn.Parameter]:
    """Prepare for fine-tuning -> the trained parameters: all but those of the LM, or `everything`."""
    model.freeze()
    model.vision.requires_grad_(True)
    model.lm.requires_grad_(everything)
    model.train()
    for module in model.vision.modules():
        # BatchNorm keeps the statistics of pretraining: a small batch of one task has others than the test set. A model that is
        # trained from scratch has no statistics yet, so it collects them.
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not everything:
            module.eval()
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def train(
    pipeline: Pipeline, task: Task, h: Hyperparameters, config: FinetuneConfig, *, name: str, folder: Path,
    settings: dict | None = None, everything: bool = False,
) -> Stage:  # fmt: skip
    """Fine-tune in place on `task.support`. Afterwards the model is frozen and in evaluation mode, in its own dtype."""
    model, device, dtype = pipeline.model, pipeline.device, next(pipeline.model.parameters()).dtype
    trained = unfreeze(model, everything)
    for p in trained.values():
        p.data = p.data.float()  # in bfloat16, small updates would be lost
    optimizer = torch.optim.AdamW(optim.parameter_groups(trained.items(), h.lr, config.weight_decay), betas=(0.9, 0.95))
    # The frozen LM is not stored.
    state = {n: module for n, module in model.named_children() if n != "lm" or everything} | {"optimizer": optimizer}
    stage = Stage(name, folder, h.steps, state=state, settings=settings, save_every=60.0, restart=True)

    def loss_of(batch) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype != torch.float32):
            return model.loss(batch.to(device))

    for step in stage.steps() if stage.result is None else ():
        samples = samples_of_step(task, h, config.seed, step)
        parts = micro_batches(samples, 1, pipeline.tokenizer, pipeline.preprocess, max_samples=config.micro_batch)
        shares = {i: share for i, (share, _) in enumerate(parts)}
        losses = {i: partial(loss_of, batch) for i, (_, batch) in enumerate(parts)}
        losses = optim.accumulate_gradients(losses, shares, list(trained.values()))
        torch.nn.utils.clip_grad_norm_(trained.values(), config.clip)
        warmup = optim.learning_rate_factor(step, round(config.warmup * h.steps))
        optim.set_learning_rate(optimizer, warmup * schedule_factor(h.schedule, step, h.steps))
        optimizer.step()
        stage.log(step, loss=sum(shares[i] * loss for i, loss in losses.items()))
    model.zero_grad()
    model.to(dtype).freeze().eval()
    return stage


def resize(pipeline: Pipeline, image_size: int) -> Pipeline:
    """The same model, in place, for images of `image_size` pixels: the resampler takes any number of patches."""
    model = pipeline.model
    model.config = replace(model.config, vision=resize_vit(model.vision, image_size).config)
    return Pipeline(model, pipeline.tokenizer, replace(pipeline.preprocess, size=image_size))


def from_scratch_baseline(pipeline: Pipeline, seed: int = 0) -> Pipeline:
    """A model of the same config with random weights."""
    torch.manual_seed(seed)
    model = Flamingo(pipeline.model.config).to(pipeline.device).eval()
    return Pipeline(model, pipeline.tokenizer, pipeline.preprocess)


# --------------------------------------------------------------------------------------------------------------- search


def split_validation(task: Task, n: int | None = None, seed: int = 0) -> tuple[list[Example], list[Example]]:
    """Training set -> (training part, about `n` examples for validation; None: a quarter, at most 2048).

    Examples of one image stay together: a question about an image of the training part would be too easy.
    """
    n = min(len(task.support) // 4, 2048) if n is None else n
    by_image: dict[Callable, list[Example]] = {}
    for example in task.support:
        by_image.setdefault(example.media, []).append(example)
    groups, validation = list(by_image.values()), []
    random.Random(f"validation {seed} {task.name}").shuffle(groups)
    while groups and len(validation) < n:
        validation += groups.pop()
    if not validation or not groups:
        raise ValueError(f"{task.name}: {len(task.support)} training examples are too few for {n} validation examples")
    if shared := [query.key for query in task.queries if query.media in by_image]:
        raise ValueError(f"{task.name}: test query {shared[0]} has an image of the training set; choose another --split")
    return list(itertools.chain(*groups)), validation


def successive_halving(
    candidates: Sequence[Hyperparameters], measure: Callable[[Hyperparameters, int], dict]
) -> tuple[Hyperparameters, list[dict]]:
    """The best candidate, and a record of each training. `measure(hyperparameters, round)` -> {"score", "loss", ...}."""
    left, records = list(candidates), []
    for number, (share, n_left) in enumerate(HALVING):
        left, ranks = left[: max(1, round(n_left * len(candidates)))], {}
        for h in left:
            found = measure(replace(h, steps=max(1, round(share * h.steps))), number)
            records.append({"hyperparameters": asdict(h), "round": number, **found})
            ranks[h] = (-found["score"], found["loss"])  # after few steps many scores are 0: then the loss decides
        left.sort(key=ranks.get)
    return left[0], records


# -------------------------------------------------------------------------------------------------------------- command


def add_parser(commands, add_model_options) -> None:
    parser = commands.add_parser(
        "finetune", help="fine-tune on a task, with a search of hyperparameters", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_task_options(parser)
    parser.add_argument("--training", type=int, help="number of training examples; default: all (toy: 512)")
    parser.add_argument("--validation", type=int, help="how many of them are for validation; default: a quarter, at most 2048")
    parser.add_argument("--image-size", type=int, help="in pixels, larger than in pretraining; default: as in pretraining")
    for axis, values in AXES.items():
        option, toy = f"--{axis.replace('_', '-')}", "" if values == TOY_AXES[axis] else f" (toy: {TOY_AXES[axis]})"
        parser.add_argument(option, nargs="+", type=type(values[0]), help=f"values to try; default: {values}{toy}")
    parser.add_argument("--candidates", type=int, default=16, help="how many hyperparameters to try; 0: the whole grid")
    parser.add_argument("--shots", default="32", help="of the few-shot score for comparison")
    parser.add_argument("--baseline-lr", type=float, help="also train a model of the same size from scratch; toy: 3e-3")
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--micro-batch", type=int, default=64, help="samples in memory at a time")
    parser.add_argument("--beams", type=int, default=3, help="in the test")
    parser.add_argument("--out", type=Path, default=Path("runs/finetune"))
    add_model_options(parser)


def run(args: argparse.Namespace, load: Callable[[], Pipeline]) -> dict:
    """Search, train, test, print the table.

    Raises:
        ValueError, TypeError, OSError: an option is invalid or a file is missing; the message says which.
    """
    tasks = load_tasks(args, support=args.training)
    if args.training:
        rng = random.Random(f"training {args.seed}")
        tasks = [replace(t, support=rng.sample(list(t.support), min(args.training, len(t.support)))) for t in tasks]
    defaults = AXES if any(task.name in BENCHMARKS for task in tasks) else TOY_AXES
    grid = itertools.product(*(getattr(args, axis) or values for axis, values in defaults.items()))
    candidates = [Hyperparameters(*values) for values in grid]
    if args.candidates:
        candidates = random.Random(f"grid {args.seed}").sample(candidates, min(args.candidates, len(candidates)))
    pipeline, results = load(), {"shots": args.shots, "tasks": {}}
    for task in tasks:  # few-shot scores first, at the image size of pretraining
        protocol = Protocol(args.seed, beams=args.beams)
        few_shot = evaluate(pipeline, task, args.shots, protocol=protocol, folder=args.out / "cells")
        del few_shot["records"]
        results["tasks"][task.name] = {"metric": task.metric, "unit": METRICS[task.metric].unit, "few_shot": few_shot}
    if args.image_size:
        pipeline = resize(pipeline, args.image_size)
    for task in tasks:
        results["tasks"][task.name] |= finetune(pipeline, task, candidates, args)
    save_json(results, args.out / "results.json")
    plot_grid(results, args.out / "grid.png")
    print(f"{table(results)}\n\nmodels, results.json and the figure of the search are in {args.out}/")
    return results


def finetune(pipeline: Pipeline, task: Task, candidates: list[Hyperparameters], args: argparse.Namespace) -> dict:
    """Search, then train the best candidate on the whole training set and test it; then the baseline."""
    training, validation = split_validation(task, args.validation, args.seed)
    part = replace(task, support=training, queries=validation)

    def measure(h: Hyperparameters, number: int) -> dict:
        name = f"{task.name}-{number}-" + "-".join(map(str, asdict(h).values()))
        return train_and_evaluate(pipeline, part, h, args, name=name)

    best, grid = successive_halving(candidates, measure)
    found = {"hyperparameters": asdict(best), "grid": grid}
    found["fine_tuned"] = train_and_evaluate(pipeline, task, best, args, name=f"{task.name}-best", save="models")
    if args.baseline_lr:
        scratch, h = from_scratch_baseline(pipeline, args.seed), replace(best, lr=args.baseline_lr)
        found["from_scratch"] = train_and_evaluate(scratch, task, h, args, name=f"{task.name}-scratch", save="from_scratch")
    return found


def train_and_evaluate(
    pipeline: Pipeline, task: Task, h: Hyperparameters, args: argparse.Namespace, *, name: str, save: str | None = None
) -> dict:
    """Train on `task.support`, evaluate on `task.queries` without shots -> {"score", "interval", "n", "loss", ...}.

    Afterwards `pipeline` has its weights again. A result that is on disk is not computed again.

    Args:
        save: folder in OUT for the trained model: "models", or "from_scratch", where the LM is trained too.
    """
    config = FinetuneConfig(args.weight_decay, micro_batch=args.micro_batch, seed=args.seed)
    settings = {"version": __version__, "model": fingerprint(pipeline.model), "image": str(pipeline.preprocess),
                "task": task_fingerprint(task), "beams": args.beams, **asdict(config), **asdict(h)}  # fmt: skip
    start = {n: t.clone() for n, t in pipeline.model.state_dict().items() if not n.startswith("lm.")}
    how = dict(name=name, folder=args.out / "stages", settings=settings, everything=save == "from_scratch")
    stage = train(pipeline, task, h, config, **how)
    if stage.result is None:
        if save:
            pipeline.save(args.out / save / task.name)
        found = evaluate(pipeline, task, "0", protocol=Protocol(args.seed, beams=args.beams if save else 1))
        outcomes = outcomes_of(task, found.pop("records"))
        if save:
            save_json(submission(task.name, outcomes), args.out / save / task.name / "predictions.json")
        elif "score" not in found:
            raise ValueError(f"{task.name}: no score on the validation examples: {found['problem']}")
        stage.finish({**found, "loss": mean(row["loss"] for row in stage.rows[-10:])})
    pipeline.model.load_state_dict(start, strict=False)
    return stage.result


def table(results: dict) -> str:
    """Tasks x (few-shot, fine-tuned, from scratch) with intervals, and the chosen hyperparameters."""
    columns = {"few_shot": f"{results['shots']} shots", "fine_tuned": "fine-tuned", "from_scratch": "from scratch"}
    lines = ["", f"{'':30}" + "".join(f"{head:>18}" for head in columns.values()) + "   hyperparameters"]
    for name, task in results["tasks"].items():
        cells = [task.get(column, {}) for column in columns]
        texts = [f"{c['score']:.1f} [{c['interval'][0]:.0f}, {c['interval'][1]:.0f}]" if "score" in c else "-" for c in cells]
        chosen = ", ".join(f"{key} {value}" for key, value in task["hyperparameters"].items())
        lines.append(f"{name + ', ' + task['metric']:30}" + "".join(f"{text:>18}" for text in texts) + f"   {chosen}")
    return "\n".join(lines)
