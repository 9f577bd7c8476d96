"""minFlamingo from nothing: `python train_tiny.py` trains every part of Flamingo on a laptop, without any download.

    1  data              synthetic images, videos and text, drawn when they are needed (data_toy/)
    2  vision encoder    a ViT, by contrastive pretraining on images with captions              then frozen
    3  language model    a small Transformer, on text alone                                     then frozen
    4  Flamingo          Perceiver Resampler and gated cross-attention, on interleaved samples  trained between both
    5  evaluation        few-shot tasks on held-out cases with 0 ... 32 shots, without any gradient
    6  figures           shots, losses, gates, prompts, attention

Results in `runs/tiny/`: the model, results.json, metrics.csv, figures. Stop at any time: the same command resumes.
"""

import ctypes
import os
import sys

if __name__ == "__mp_main__" and sys.platform == "linux":  # a training process ends with its parent, also while it imports
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL; elsewhere, `run_in_parallel` does this after the imports
    if os.getppid() != int(os.environ["PARENT_PROCESS"]):
        os._exit(1)  # it has ended before

import argparse
import csv
import platform
import random
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data_toy.contrastive_data import contrastive_batch
from data_toy.drawings import draw_views, view_bank
from data_toy.evaluation_tasks import TASKS, correct, format_table, queries
from data_toy.figures import draw_figures
from data_toy.media_pool import PREPROCESS, draw_media_pool, encode_media_pool
from data_toy.mixture import LAMBDAS, MICRO_BATCHES, StepData, draw_step
from data_toy.text_corpus import corpus_text, lookup_practice
from data_toy.words import toy_tokenizer
from minflamingo import LM, Flamingo, FlamingoConfig, Pipeline, Sample, ViT, preset
from minflamingo.contrastive import ContrastiveModel, TextEncoder
from minflamingo.data.options import SEED, known_device, output_folder
from minflamingo.data.sample import pack
from minflamingo.evaluation.fewshot import accuracy, count_shots, predict
from minflamingo.training import optim
from minflamingo.training.batching import micro_batches
from minflamingo.training.checkpoint import save_json, write_atomically
from minflamingo.training.command import errors_as_messages, only_run_in
from minflamingo.training.parallel import run_in_parallel, worker_threads
from minflamingo.training.stage import CannotResume, Diverged, Stage

TOKENIZER = toy_tokenizer()


@dataclass(frozen=True)
class Recipe:
    """Length of the three training stages and amount of data per step."""

    vision_steps: int = 420
    vision_batch: int = 224  # images with captions
    vision_drawings: int = 96  # drawings of which the encoder compares two views
    vision_bank: int = 4000  # different drawings
    vision_lr: float = 6e-3
    language_steps: int = 1100
    language_practice_steps: int = 150  # the first of these steps: only lookup practice
    language_tokens: int = 2048  # per step
    language_lr: float = 4e-3
    media: int = 20_000  # images and videos from which Flamingo's samples are made
    flamingo_steps: int = 900
    flamingo_data: StepData = field(default_factory=StepData)  # per step
    flamingo_lr: float = 4e-3
    flamingo_decay: float = 0.3  # the paper has 0.1 and many more steps
    queries: int = 128  # per task and number of shots in the evaluation
    optimizer: str = "Muon"


OPTIMIZERS = {"Muon": optim.Muon, "AdamW": torch.optim.AdamW}
RECIPES = {
    "tiny": Recipe(),
    # for comparison: the paper's optimizer, with the learning rates and decay of an earlier recipe
    "tiny-adamw": Recipe(optimizer="AdamW", vision_lr=2.5e-3, language_lr=3e-3, flamingo_lr=3e-3, flamingo_decay=1.0),
    "small": Recipe(4000, language_steps=6000, language_practice_steps=600, media=120_000, flamingo_steps=6000, queries=500),
    # A smoke test: everything runs, nothing is learned.
    "quick": Recipe(
        vision_steps=6, vision_batch=32, vision_drawings=8, vision_bank=20, language_steps=6, language_practice_steps=3,
        language_tokens=512, media=2400, flamingo_steps=12, flamingo_data=StepData(24, 4, 4), queries=4,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """What every stage needs to know."""

    size: str
    seed: int
    device: str
    out: Path

    @property
    def recipe(self) -> Recipe:
        return RECIPES[self.size]

    @property
    def config(self) -> FlamingoConfig:
        return preset("small" if self.size == "small" else "tiny", TOKENIZER.vocab_size)

    def rng(self, *words: object) -> random.Random:
        """The random numbers of one step. They depend on the seed and the step alone, so a resumed run draws the same data."""
        return random.Random(" ".join(map(str, (self.seed, *words))))

    def stage(self, name: str, total: int, **state) -> Stage:
        """A resumable training loop. A stage does not depend on the recipe of later stages."""
        recipe = {k: v for k, v in asdict(self.recipe).items() if k != "queries" and (name == "flamingo" or k.startswith(name))}
        return Stage(name, self.out / "stages", total, state=state, settings={"seed": self.seed, "size": self.size, **recipe})


# ------------------------------------------------------------------------------------------------- 2 vision encoder


def train_vision_encoder(run: Run, *, line: int | None = None) -> Stage:
    """Contrastive pretraining: which caption belongs to which image?"""
    recipe, d = run.recipe, run.config.vision.d
    torch.manual_seed(run.seed)
    text = TextEncoder(TOKENIZER.vocab_size, d=96)
    # channels_last: on a CPU, convolutions are faster if the channels of a pixel are neighbours in memory.
    model = ContrastiveModel(ViT(run.config.vision), d, text, d_text=96).to(run.device, memory_format=torch.channels_last)
    groups = optim.parameter_groups(model.named_parameters(), recipe.vision_lr, 0.05)
    optimizer = OPTIMIZERS[recipe.optimizer](groups, betas=(0.9, 0.98), fused=True)
    stage = run.stage("vision", recipe.vision_steps, model=model, optimizer=optimizer)
    bank = None if stage.finished else view_bank(recipe.vision_bank, 4, run.seed)
    for step in stage.steps(line=line):
        # After a while most images are easy to tell apart. Then each batch contains pairs that differ in one detail.
        rng, hard = run.rng("vision", step), step > 0.2 * recipe.vision_steps
        images, captions = contrastive_batch(rng, recipe.vision_batch, TOKENIZER, hard)
        pixels = PREPROCESS(np.concatenate([images, draw_views(rng, recipe.vision_drawings, bank)])).to(run.device)
        loss, right = model(pixels.to(memory_format=torch.channels_last), captions.to(run.device))
        optimizer.zero_grad()
        loss.backward()
        stage.skip_if(optim.clip_gradients(model.parameters(), {"images and captions": loss}), step, (pixels, captions))
        optim.set_learning_rate(optimizer, optim.learning_rate_factor(step, 50, recipe.vision_steps, cooldown=0.5))
        optimizer.step()
        if step % 10 == 0:
            stage.log(step, loss=loss, accuracy=right)
    return stage


# ------------------------------------------------------------------------------------------------- 3 language model


def draw_text(rng: random.Random, step: int, recipe: Recipe) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Token ids and labels (rows, length) of one step, and whether they are lookup practice.

    Lookup practice: find an earlier copy of this word, and predict what followed it there. In-context learning needs this. It
    is learned fastest alone, so the first steps have nothing else. Later a quarter of the steps repeat it.
    """
    practice = step < recipe.language_practice_steps or rng.random() < 0.25
    length = rng.choice((64, 128, 256) if practice else (64, 128, 256, 512))
    words = [*TOKENIZER.words, *"abcdefghijklmnopqrstuvwxyz "]

    def document() -> Sample:
        return lookup_practice(rng, words, length) if practice else corpus_text(rng, length // 5)

    return *pack(document, recipe.language_tokens // length, length, TOKENIZER), practice


def train_language_model(run: Run, *, line: int | None = None) -> Stage:
    """Language modelling on text alone: each token is predicted from the tokens before it."""
    recipe = run.recipe
    torch.manual_seed(run.seed)
    lm = LM(run.config.lm).to(run.device)
    groups = optim.parameter_groups(lm.named_parameters(), recipe.language_lr, 0.3)
    optimizer = OPTIMIZERS[recipe.optimizer](groups, betas=(0.9, 0.98), fused=True)
    stage = run.stage("language", recipe.language_steps, lm=lm, optimizer=optimizer)
    for step in stage.steps(line=line):
        ids, labels, practice = draw_text(run.rng("language", step), step, recipe)
        loss = lm.loss(ids.to(run.device), labels.to(run.device))
        optimizer.zero_grad()
        loss.backward()
        stage.skip_if(optim.clip_gradients(lm.parameters(), {"text": loss}), step, (ids, labels))
        optim.set_learning_rate(optimizer, optim.learning_rate_factor(step, 30, recipe.language_steps, cooldown=0.3))
        optimizer.step()
        if step % 10 == 0 and (step < recipe.language_practice_steps or not practice):
            stage.log(step, loss=loss)
    return stage


# ----------------------------------------------------------------------------------------- 4 freeze both, train Flamingo


def train_flamingo(run: Run, vision: ViT, lm: LM) -> tuple[Stage, Flamingo]:
    """Flamingo proper: the vision encoder and the LM are frozen, the modules between them are trained."""
    recipe = run.recipe
    torch.manual_seed(run.seed)
    flamingo = Flamingo(run.config, vision, lm).to(run.device)
    parameters = [parameter for _, parameter in flamingo.trainable_parameters()]
    # The gates have a higher learning rate: they start at 0, and nothing reaches the LM until they open.
    lr = recipe.flamingo_lr
    groups = optim.parameter_groups(flamingo.trainable_parameters(), lr, recipe.flamingo_decay, gate_lr=3 * lr)
    optimizer = OPTIMIZERS[recipe.optimizer](groups, betas=(0.9, 0.98), fused=True)
    stage = run.stage("flamingo", recipe.flamingo_steps, flamingo=flamingo, optimizer=optimizer)
    if stage.finished:
        return stage, flamingo
    # The vision encoder is frozen, so each image is encoded once. From here on, samples contain features instead of pixels.
    pool = encode_media_pool(flamingo, draw_media_pool(recipe.media, run.seed))
    threads = worker_threads(run.device)
    flamingo.train()
    for step in stage.steps():
        # One batch of each dataset, cut into smaller batches of samples of similar length: less padding, same gradient.
        samples = draw_step(pool, run.rng("flamingo", step), recipe.flamingo_data)
        parts = [
            (name, share, batch)
            for name in samples
            for share, batch in micro_batches(samples[name], MICRO_BATCHES[name], TOKENIZER)
        ]
        # The longest first, so that none of the worker threads waits long at the end.
        parts = sorted(parts, key=lambda part: -part[2].ids.numel())
        # The gradients of all datasets, each weighted with its lambda, are added before one update (paper section 2.4).
        losses = optim.accumulate_gradients(
            {i: lambda batch=batch: flamingo.loss(batch.to(run.device)) for i, (_, _, batch) in enumerate(parts)},
            {i: LAMBDAS[name] * share for i, (name, share, _) in enumerate(parts)},
            parameters,
            threads,
        )
        stage.skip_if(optim.clip_gradients(parameters, {parts[i][0]: loss for i, loss in losses.items()}), step, parts)
        optim.set_learning_rate(optimizer, optim.learning_rate_factor(step, 50, recipe.flamingo_steps, cooldown=0.4))
        optimizer.step()
        if step % 10 == 0:
            loss = {name: sum(parts[i][1] * losses[i] for i in losses if parts[i][0] == name) for name in samples}
            gates = {
                f"{name}_{i}": getattr(layer, name).detach().tanh().abs()
                for i, layer in flamingo.xattn_layers.items()
                for name in ("alpha_xattn", "alpha_dense")
            }
            total = sum(LAMBDAS[name] * loss[name] for name in loss)
            stage.log(step, loss=total, **{f"loss_{name}": value for name, value in loss.items()}, **gates)
    return stage, flamingo


# ------------------------------------------------------------------------------------------------------ 5 evaluation


def evaluate(run: Run, flamingo: Flamingo) -> dict[str, dict]:
    """Few-shot accuracy on held-out cases: {task: {"chance": ..., "shots": {"8": {"score", "interval", "n"}}}}."""
    flamingo.eval()
    pool = encode_media_pool(flamingo, draw_media_pool(3000, run.seed, split="test"))
    cases = {task: queries(task, pool, run.recipe.queries, run.seed) for task in TASKS}
    tasks: dict[str, dict] = {}
    with worker_threads(run.device) as threads:
        # The longest prompts first, so that no thread waits long at the end.
        cells = sorted(((task, shots) for task in TASKS for shots in TASKS[task].shots), key=lambda cell: -count_shots(cell[1]))
        answers = threads.map(lambda cell: predict(flamingo, TOKENIZER, cases[cell[0]], cell[1]), cells)
        found = dict(tqdm(zip(cells, answers), total=len(cells), desc="evaluation", file=sys.stderr, dynamic_ncols=True))
    for task in TASKS:
        for shots in TASKS[task].shots:
            for name, right in correct(task, found[task, shots], cases[task]).items():
                tasks.setdefault(name, {"chance": TASKS[task].chance, "shots": {}})["shots"][shots] = accuracy(right)
    return tasks


# ------------------------------------------------------------------------------------------------------- the whole run


def save_metrics(rows: list[dict], path: Path) -> None:
    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), restval="")
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(path, write)


def train_and_evaluate(run: Run) -> dict:
    """All stages. Returns what results.json holds."""
    # On a CPU, two processes with half of the cores each are faster than one with all. The vision encoder and the LM do not
    # depend on each other. Afterwards both stages are finished, and the two calls below only read the results.
    in_parallel = run.device == "cpu" and (os.cpu_count() or 1) > 1
    if in_parallel:
        run_in_parallel([train_vision_encoder, train_language_model], run)
    vision, language = train_vision_encoder(run), train_language_model(run)
    stage, flamingo = train_flamingo(run, vision.state["model"].vision, language.state["lm"])
    Pipeline(flamingo, TOKENIZER, PREPROCESS).save(run.out)
    rows = vision.rows + language.rows + stage.rows
    save_metrics(rows, run.out / "metrics.csv")

    began = time.monotonic()
    results = {"seed": run.seed, "tasks": evaluate(run, flamingo)}
    seconds = {s.name: s.seconds for s in (vision, language, stage)} | {"evaluation": time.monotonic() - began}
    # Seconds of earlier calls of a resumed run are included. Two stages that ran at the same time count once.
    seconds["total"] = (max if in_parallel else sum)([vision.seconds, language.seconds]) + stage.seconds + seconds["evaluation"]
    results["seconds"] = {name: round(value, 1) for name, value in seconds.items()}
    results["device"] = torch.cuda.get_device_name() if "cuda" in run.device else f"{run.device}, {os.cpu_count()} cores"
    results["versions"] = {"python": platform.python_version(), "torch": torch.__version__}
    save_json(results, run.out / "results.json")
    draw_figures(flamingo, results, rows, run.out, run.seed)  # stage 6
    return results


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=("tiny", "tiny-adamw", "small"), default="tiny", help="small needs a GPU")
    parser.add_argument("--device", type=known_device, help="cpu, cuda or mps; default: the best one of this machine")
    parser.add_argument("--seed", type=SEED, default=0)
    parser.add_argument("--out", type=output_folder, help="default: runs/SIZE")
    parser.add_argument("--fresh", action="store_true", help="start again instead of resuming")
    parser.add_argument("--quick", action="store_true", help="a smoke test: everything runs, nothing is learned")
    with errors_as_messages("stopped; the same command resumes here"):
        args = parser.parse_args(arguments)
        size = "quick" if args.quick else args.size
        best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        run = Run(size, args.seed, args.device or best, args.out or Path("runs") / size)
        try:
            with only_run_in(run.out):
                if args.fresh:
                    shutil.rmtree(run.out / "stages", ignore_errors=True)
                results = train_and_evaluate(run)
        except (CannotResume, Diverged) as error:
            raise SystemExit(f"{error}\nStart again with --fresh, or choose another folder with --out.") from None
        print(f"\nAccuracy (%) against the number of shots:\n\n{format_table(results['tasks'])}")
        print(f"\n{results['seconds']['total'] / 60:.1f} minutes. The model, results.json and the figures are in {run.out}/")
    return results


if __name__ == "__main__":
    main()
