"""`python -m minflamingo finetune`: fine-tune on a task, with a grid search of hyperparameters (paper section 3.2, table 2).

    python -m minflamingo finetune --model runs/tiny --task memes --lr 2e-4 6e-4 --steps 240 480
    python -m minflamingo finetune --model openflamingo-3b --task vqav2 --data data/vqav2 --image-size 448 --lr 1e-5

    <BOS><image>Question: How many? Answer: 3<EOC>       no shots; loss on " 3" and <EOC> alone

The LM stays frozen; everything else learns, the vision encoder too. Images may be larger than in pretraining (--image-size).

    training set  ->  three quarters: one training for each setting of the grid  ->  one quarter: which setting is best?
                  ->  all of it: one more training with the best setting         ->  the test set, evaluated once

    OUT/results.json, OUT/grid.png       few-shot and fine-tuned scores with 95% intervals; the search
    OUT/models/vqav2/                    the fine-tuned model, for minflamingo.load; predictions.json: its answers
    OUT/stages/                          results of finished trainings, state of the current one: the same command resumes
"""

import argparse
import itertools
import math
import random
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import EOC, Flamingo, NoLoss, Pipeline, Sample, __version__
from ..data.images import as_frames
from ..data.options import BATCH, COUNT, RATE, Number, check, check_output, output_folder
from ..data.sample import tokenize_sample
from ..evaluation.features import fingerprint
from ..evaluation.metrics import METRICS
from ..evaluation.runner import Protocol, check_task, evaluate
from ..evaluation.task import Example, Task, task_fingerprint
from ..plots import plot_grid
from ..training import optim
from ..training.batching import micro_batches
from ..training.checkpoint import save_json
from ..training.stage import Diverged, Stage
from ..vision import ViT
from .benchmarks import add_task_options, load_tasks, score_text, shots_option, text_table

# Learning-rate schedules: share of the training that is done, 0 to 1 -> share of the learning rate.
SCHEDULES = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
}


@dataclass(frozen=True)
class Hyperparameters:
    """One setting of the grid. The paper also searches augmentations of the images; on the toy tasks they did not help."""

    lr: float
    schedule: str
    steps: int
    batch_size: int

    def __post_init__(self):
        check({"lr": RATE, "steps": COUNT, "batch_size": BATCH}, **vars(self))
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule is {self.schedule!r}; choose one of {', '.join(SCHEDULES)}")


def training_sample(task: Task, example: Example, rng: random.Random) -> Sample:
    """[frames, prompt, answer, EOC] with loss on answer and EOC. One of several answers is drawn."""
    answer = task.template.answered(rng.choice(example.answers))
    return Sample([as_frames(example.media()), NoLoss(task.template.asked(example)), answer, EOC])


def samples_of_step(
    task: Task, h: Hyperparameters, seed: int, step: int, left_out: dict[str, str], fits: Callable = lambda sample: None
) -> list[Sample]:
    """A random batch that depends on seed and step alone. `fits` raises ValueError for a sample that is too long for the LM.

    Such examples, and those whose image cannot be opened, are left out. `left_out` gets their keys and the reasons.
    """
    rng, samples = random.Random(f"{seed} finetune {step}"), []
    for example in rng.sample(task.support, min(h.batch_size, len(task.support))):
        try:
            sample = training_sample(task, example, rng)
            fits(sample)
            samples.append(sample)
        except (OSError, ValueError) as error:
            left_out[example.key] = f"{example.key}: {error}"
    if not samples:
        raise ValueError(f"{task.name}, step {step}: no training example can be used, e.g. {[*left_out.values()][-1:]}")
    return samples


def unfreeze(model: Flamingo) -> dict[str, nn.Parameter]:
    """Prepare for fine-tuning -> the parameters to train: all but those of the LM."""
    model.freeze().vision.requires_grad_(True)
    model.train()
    for module in model.vision.modules():
        # BatchNorm keeps the statistics of pretraining: a small batch of one task has others than the test set.
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def train(
    pipeline: Pipeline, task: Task, h: Hyperparameters, *, name: str, folder: Path, seed: int = 0, micro_batch: int = 64
) -> Stage:
    """Fine-tune in place on `task.support`. Afterwards the model is frozen and in evaluation mode, in its own dtype.

    A training of this name that was stopped resumes. If its result is on disk, `stage.result` has it, and nothing is trained.
    At most `micro_batch` samples are in memory at a time; the gradients of a step are added up.
    """
    check({"micro_batch": BATCH}, micro_batch=micro_batch)
    pipeline.check_end_of_answers()
    model, device, dtype = pipeline.model, pipeline.device, next(pipeline.model.parameters()).dtype
    settings = {"version": __version__, "model": fingerprint(model), "image": str(pipeline.preprocess),
                "task": task_fingerprint(task), "seed": seed, "micro_batch": micro_batch, **asdict(h)}  # fmt: skip
    trained = unfreeze(model)
    for p in trained.values():
        p.data = p.data.float()  # in bfloat16, small updates would be lost
    # Weight decay, betas and clipping are those of pretraining (train.py).
    optimizer = torch.optim.AdamW(optim.parameter_groups(trained.items(), h.lr, weight_decay=0.1), betas=(0.9, 0.95))
    state = {n: module for n, module in model.named_children() if n != "lm"} | {"optimizer": optimizer}  # the LM is frozen
    stage = Stage(name, folder, h.steps, state=state, settings=settings, save_every=60.0, restart=True)
    left_out: dict[str, str] = {}  # key of an example -> the reason

    def fits(sample: Sample) -> None:
        if model.lm.remaining_context(n := len(tokenize_sample(sample, pipeline.tokenizer, lambda pixels: pixels).ids)) < 0:
            raise ValueError(f"{n} tokens are more than the LM's context of {model.config.lm.max_length}")

    def loss_of(batch) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype != torch.float32):
            return model.loss(batch.to(device))

    try:
        for step in stage.steps():
            samples = samples_of_step(task, h, seed, step, left_out, fits)
            parts = micro_batches(samples, 1, pipeline.tokenizer, pipeline.preprocess, max_samples=micro_batch)
            shares = {i: share for i, (share, _) in enumerate(parts)}
            losses = {i: partial(loss_of, batch) for i, (_, batch) in enumerate(parts)}
            losses = optim.accumulate_gradients(losses, shares, list(trained.values()))
            stage.skip_if(optim.clip_gradients(trained.values(), {task.name: sum(losses.values())}), step, parts)
            # Warm-up in the first tenth: AdamW's averages are inaccurate in the first steps.
            warmup = optim.learning_rate_factor(step, round(0.1 * h.steps))
            optim.set_learning_rate(optimizer, warmup * SCHEDULES[h.schedule](step / h.steps))
            optimizer.step()
            stage.log(step, loss=sum(shares[i] * loss for i, loss in losses.items()))
        if stage.result is None:
            samples = samples_of_step(task, h, seed, h.steps, left_out, fits)[:micro_batch]
            ((_, batch),) = micro_batches(samples, 1, pipeline.tokenizer, pipeline.preprocess)
            with torch.no_grad():
                optim.check_final_loss(task.name, stage.first("loss"), loss_of(batch).item(), model.config.lm.vocab_size)
    finally:
        model.zero_grad()
        model.to(dtype).freeze().eval()
        if left_out:
            print(f"{name}: {len(left_out)} examples were left out, such as {next(iter(left_out.values()))}")
    return stage


def resize_positions(positions: Tensor, side: int) -> Tensor:
    """Positions of a square grid (S, D) -> positions of a grid of side x side, (side*side, D), by bilinear interpolation.

    A patch is located at its centre. Two patches have their centres at 1/4 and 3/4 of the image, four patches at 1/8, 3/8, 5/8
    and 7/8. So from 2 to 4 patches the values 0 and 8 become 0, 2, 6, 8: interpolated between centres, constant outside.
    """
    old = round(len(positions) ** 0.5)
    if old * old != len(positions):
        raise ValueError(f"cannot resize {len(positions)} positions: they must form a square grid")
    # interpolate() expects an image, so D takes the place of the colour channels
    grid = positions.unflatten(0, (old, old)).permute(2, 0, 1)[None].float()  # (S, D) -> (1, D, old, old)
    grid = F.interpolate(grid, (side, side), mode="bilinear", align_corners=False)  # (1, D, side, side)
    return grid[0].permute(1, 2, 0).flatten(0, 1).to(positions.dtype)


@torch.no_grad()
def resize_vit(vit: ViT, image_size: int) -> None:
    """Change `vit` in place so that it takes images of `image_size` pixels. The patch size stays, so there are more patches.

    Raises ValueError: `image_size` is not a multiple of the patch size; TypeError: the module is not a ViT.
    """
    if not isinstance(vit, ViT):
        raise TypeError(f"only a ViT can be resized, not a {type(vit).__name__}")
    p = vit.config.patch_size
    if image_size < p or image_size % p:
        below = max(p, image_size // p * p)
        raise ValueError(f"image size {image_size} is not a multiple of the patch size {p}: choose {below} or {below + p}")
    n_class = int(vit.config.class_token)  # the class token has no place in the image, so its position stays
    positions = torch.cat([vit.positions[:n_class], resize_positions(vit.positions[n_class:], image_size // p)])
    vit.positions = nn.Parameter(positions, vit.positions.requires_grad)
    # the config is what tells the next forward pass which size to expect
    vit.config = replace(vit.config, image_size=image_size)


def split_validation(task: Task, seed: int = 0) -> tuple[list[Example], list[Example]]:
    """Training set -> (training part, validation part: the examples of a quarter of the images, at most 1024 images).

    Examples of one image stay together: a question about an image of the training part would be too easy.
    """
    images = dict.fromkeys(example.media for example in task.support)
    if (n := min(len(images) // 4, 1024)) == 0:
        raise ValueError(f"{task.name}: the training set has {len(images)} images; the search needs at least 4")
    if shared := [query.key for query in task.queries if query.media in images]:
        raise ValueError(f"{task.name}: test query {shared[0]} has an image of the training set; choose another --split")
    held_out = set(random.Random(f"validation {seed} {task.name}").sample(list(images), n))
    training = [example for example in task.support if example.media not in held_out]
    return training, [example for example in task.support if example.media in held_out]


def add_parser(commands, add_model_options: Callable) -> None:
    parser = commands.add_parser("finetune", help="fine-tune on a task, with a grid search", description=__doc__)
    add_task_options(parser)
    add = partial(parser.add_argument, nargs="+")  # options with several values: the grid
    # The defaults are for the toy tasks. Where the model knows the task already, a low learning rate and few steps were best;
    # for new names, a high one and many steps. Schedule and batch size mattered less.
    add("--lr", type=RATE, default=[6e-5, 2e-4, 6e-4], help="learning rates to try; default: 6e-5 2e-4 6e-4")
    add("--steps", type=COUNT, default=[80, 240], help="numbers of training steps to try; default: 80 240")
    add("--batch-size", type=BATCH, default=[8], help="numbers of examples per step to try; default: 8")
    add("--schedule", choices=tuple(SCHEDULES), default=["linear"], help="how the learning rate falls; default: linear")
    add = parser.add_argument
    add("--image-size", type=Number(1, 1024, whole=True), help="size of the images in pixels; default: as in pretraining")
    add("--micro-batch", type=BATCH, default=64, help="examples in memory at a time; fewer need less memory; default: 64")
    add("--shots", type=shots_option, default="32", help="shots of the few-shot score, for comparison; default: 32")
    add("--out", type=output_folder, default="runs/finetune", help="folder for the results; default: %(default)s")
    add_model_options(parser)


def run(args: argparse.Namespace, load: Callable[[], Pipeline]) -> dict:
    """Few-shot scores, search, training, test, table. Raises ValueError or OSError: an option is invalid, a file is missing."""
    tasks = load_tasks(args)
    check_output(args.out, args.model, *args.task)
    for task in tasks:
        check_output(args.out / "models" / task.name, args.model)
        check_task(task, args.shots)
    settings = list(itertools.starmap(Hyperparameters, itertools.product(args.lr, args.schedule, args.steps, args.batch_size)))
    pipeline, results = load(), {"shots": args.shots, "tasks": {}}
    if args.image_size:
        resize_vit(deepcopy(pipeline.model.vision), args.image_size)  # raises an error now, and not after the evaluation
    for task in tasks:  # few-shot scores first, at the image size of pretraining
        few_shot = evaluate(pipeline, task, args.shots, protocol=Protocol(args.seed), folder=args.out / "cells")
        del few_shot["records"]
        results["tasks"][task.name] = {"metric": task.metric, "unit": METRICS[task.metric].unit, "few_shot": few_shot}
    if args.image_size:  # the resampler takes any number of patches
        model = pipeline.model
        resize_vit(model.vision, args.image_size)
        model.config = replace(model.config, vision=model.vision.config)
        pipeline = replace(pipeline, preprocess=replace(pipeline.preprocess, size=args.image_size))
    for task in tasks:
        results["tasks"][task.name] |= finetune(pipeline, task, settings, args)
    save_json(results, args.out / "results.json")
    plot_grid(results, args.out / "grid.png")
    rows = [["task, metric", f"{args.shots} shots", "fine-tuned", "hyperparameters"]]
    for name, task in results["tasks"].items():
        chosen = ", ".join(f"{key} {value}" for key, value in task["hyperparameters"].items())
        rows.append([f"{name}, {task['metric']}", score_text(task["few_shot"]), score_text(task["fine_tuned"]), chosen])
    print(f"\n{text_table(rows)}\n\nmodels, results.json and the figure of the search are in {args.out}/")
    return results


def finetune(pipeline: Pipeline, task: Task, settings: list[Hyperparameters], args: argparse.Namespace) -> dict:
    """Try all settings on the validation part, train with the best one on the whole training set, and test."""
    training, validation = split_validation(task, args.seed)
    part, grid = replace(task, support=training, queries=validation), []
    for h in settings:
        name = "-".join(map(str, (task.name, *asdict(h).values())))
        try:
            grid.append({"hyperparameters": asdict(h), **train_and_evaluate(pipeline, part, h, args, name=name)})
        except Diverged as error:  # the learning rate is too high, which the search is to find out
            print(f"{name} is left out: {error}")
    if not grid:
        raise ValueError(f"{task.name}: all settings were left out (see above); try a lower --lr")
    best = max(grid, key=lambda trial: trial["score"])["hyperparameters"]
    save = args.out / "models" / task.name
    tested = train_and_evaluate(pipeline, task, Hyperparameters(**best), args, name=f"{task.name}-best", save=save)
    return {"hyperparameters": best, "grid": grid, "fine_tuned": tested}


def train_and_evaluate(
    pipeline: Pipeline, task: Task, h: Hyperparameters, args: argparse.Namespace, *, name: str, save: Path | None = None
) -> dict:
    """Train on `task.support`, evaluate on `task.queries` without shots -> {"score", "interval", "n", ...}.

    The trained model and its answers are saved in the folder `save`. Afterwards `pipeline` has its earlier weights again. A
    result that is on disk is not computed again.
    """
    start = {n: t.clone() for n, t in pipeline.model.state_dict().items() if not n.startswith("lm.")}
    try:
        stage = train(pipeline, task, h, name=name, folder=args.out / "stages", seed=args.seed, micro_batch=args.micro_batch)
        if stage.result is None:
            found = evaluate(pipeline, task, "0", protocol=Protocol(args.seed))
            records = found.pop("records")
            if save:
                pipeline.save(save)
                save_json(records, save / "predictions.json")
            elif "score" not in found:
                raise ValueError(f"{task.name}: no score on the validation examples: {found['problem']}")
            stage.finish(found)
    finally:
        pipeline.model.load_state_dict(start, strict=False)
    return stage.result
