"""Fine-tuning on one task (paper §3.2): the bridge goes on learning, the eye learns too, the language model stays frozen.

    <BOS><image>Question: How many? Answer: 3<EOC>        loss on " 3" and <EOC> alone, no shots
    tune(flamingo, task, examples, Point(lr=1e-3, schedule="linear", steps=100, batch_size=16, augment="light"))

The paper chooses learning rate, decay schedule, number of steps, batch size and augmentation by grid search on a validation
subset of the training set (`grid.py`), and looks at larger pictures than in pretraining (`larger_pictures`).

**Augmentation** is drawn for each sample anew, not once a batch. "light" moves the picture by up to a sixteenth of its size and
makes it up to 15% lighter or darker; of a film all frames alike, since a shift between two would be a movement. Nothing is
mirrored: a mirrored picture has other words on its signs, and other answers to "what is on the left?".

**BatchNorm** (the toy eye's stem has it): weights are trained, but the statistics stay those of pretraining. A batch of
fine-tuning is small and of one task; with its statistics the eye would see one thing in training and another at the test.
A `specialist`, trained from nothing, has no statistics yet, and gathers them.

Example: with lr 1e-3, "linear", 100 steps, of which 10 warm up: step 0 has 1e-4, step 10 has 9e-4, step 50 5e-4, step 99 1e-5.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from ..complete import LoadedFlamingo
from ..config import one_of
from ..data.images import as_frames
from ..data.sample import EOC, Sample, Unscored, collate
from ..flamingo import Batch, Flamingo
from ..lm import LM
from ..training.optim import accumulate_gradients, learning_rate_factor, parameter_groups, set_learning_rate
from ..vision import ViT, enlarge
from .task import Example, Task

SCHEDULES = ("constant", "linear", "cosine")
AUGMENTATIONS = ("none", "light")


@dataclass(frozen=True)
class Point:
    """One point of the grid: the five numbers that the paper searches.

    Raises:
        ValueError: one of them makes no sense.
    """

    lr: float = 1e-3
    schedule: str = "linear"
    steps: int = 100
    batch_size: int = 16
    augment: str = "none"

    def __post_init__(self):
        one_of("Point", "schedule", self.schedule, SCHEDULES)
        one_of("Point", "augment", self.augment, AUGMENTATIONS)
        if not (self.lr > 0 and self.steps >= 1 and self.batch_size >= 1):
            raise ValueError(f"learning rate, steps and batch size must be above 0, not {self}")

    def __str__(self) -> str:
        return f"lr {self.lr:g}, {self.schedule}, {self.steps} steps of {self.batch_size}, augmentation {self.augment}"


@dataclass(frozen=True)
class Habits:
    """What is the same for all points. warmup: share of the steps. at_once: samples in memory at a time."""

    weight_decay: float = 0.1
    warmup: float = 0.1
    clip: float = 1.0
    at_once: int = 64
    seed: int = 0


def schedule_factor(schedule: str, step: int, total: int) -> float:
    """What is left of the learning rate at `step` of `total`: all; a straight line to 0; half a wave to 0.

    >>> [round(schedule_factor(s, 25, 100), 3) for s in SCHEDULES]
    [1.0, 0.75, 0.854]
    """
    one_of("schedule_factor", "schedule", schedule, SCHEDULES)
    done = step / total
    return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[schedule]


# ------------------------------------------------------------------------------------------------------------ the data


def lightly_changed(frames: np.ndarray, rng: random.Random) -> np.ndarray:
    """uint8 (T, H, W, 3) → moved by up to a sixteenth of its height and width, edges repeated; lighter or darker by 15%."""
    _, H, W, _ = frames.shape
    y, x = H // 16, W // 16
    top, left = rng.randint(0, 2 * y), rng.randint(0, 2 * x)
    padded = np.pad(frames, ((0, 0), (y, y), (x, x), (0, 0)), mode="edge")
    moved = padded[:, top : top + H, left : left + W] * rng.uniform(0.85, 1.15)
    return moved.clip(0, 255).round().astype(np.uint8)


def training_sample(task: Task, example: Example, rng: random.Random, augment: str = "none") -> Sample:
    """[frames, prompt, answer, EOC], of which answer and EOC carry loss. Of several answers one is drawn.

    Raises:
        ValueError, OSError: the medium cannot be opened, or is features: an eye that is trained must see pixels.
    """
    medium = example.media()
    if isinstance(medium, Tensor) and medium.is_floating_point():
        raise ValueError(f"{task.name}, {example.key}: fine-tuning trains the eye, so it needs pixels, not its old features")
    frames = as_frames(medium, f"{task.name}, {example.key}")
    if augment == "light":
        frames = lightly_changed(frames, rng)
    prompt = task.template.asked(example)
    answer = task.template.answered(rng.choice(example.answers))
    return Sample([frames, *([Unscored(prompt)] if prompt else []), answer, EOC])


def rounds(n: int, seed: int) -> Iterator[int]:
    """0 … n−1 in a random order, then in another one, without end."""
    for epoch in range(2**63):
        yield from random.Random(f"{seed} round {epoch}").sample(range(n), n)


class Samples:
    """Batches of an endless training set. `broken`: what could not be opened and was passed over, and why."""

    def __init__(self, flamingo: LoadedFlamingo, task: Task, examples: Sequence[Example], point: Point, seed: int):
        self.flamingo, self.task, self.examples, self.point, self.seed = flamingo, task, list(examples), point, seed
        self.broken: dict[str, str] = {}
        if not self.examples:
            raise ValueError(f"{task.name}: there is nothing to fine-tune on")

    def __iter__(self) -> Iterator[Sample]:
        for n, i in enumerate(rounds(len(self.examples), self.seed)):
            example = self.examples[i]
            if len(self.broken) == len({e.key for e in self.examples}):
                key, why = next(iter(self.broken.items()))
                raise ValueError(f"{self.task.name}: none of its examples can be opened, e.g. {key}: {why}")
            if example.key in self.broken:
                continue
            try:
                yield training_sample(self.task, example, random.Random(f"{self.seed} sample {n}"), self.point.augment)
            except (OSError, ValueError) as error:
                self.broken[example.key] = str(error)

    def parts(self, samples: list[Sample], at_once: int) -> list[tuple[float, Batch]]:
        """Samples in batches of at most `at_once`, each with its share of all labels: Σ share · loss is the loss of all."""
        parts = [samples[i : i + at_once] for i in range(0, len(samples), at_once)]
        batches = [collate(part, self.flamingo.tokenizer, self.flamingo.prepare) for part in parts]
        labels = [int((batch.labels >= 0).sum()) for batch in batches]
        return [(n / max(sum(labels), 1), batch) for n, batch in zip(labels, batches)]


# ------------------------------------------------------------------------------------------------------------ training


def wake(model: Flamingo, everything: bool = False) -> list[tuple[str, nn.Parameter]]:
    """Training mode for fine-tuning: bridge and eye have gradients; with `everything` the language model too."""
    model.freeze()
    model.vision.requires_grad_(True)
    model.lm.requires_grad_(everything)
    model.train()
    if not everything:
        for module in model.vision.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def tune(
    flamingo: LoadedFlamingo,
    task: Task,
    examples: Sequence[Example],
    point: Point,
    habits: Habits = Habits(),
    everything: bool = False,
    on_step: Callable[[float], object] | None = None,
) -> list[float]:
    """Fine-tune `flamingo` in place on `examples` of `task`, and leave it frozen, in evaluation mode, in its dtype.

    Args:
        everything: train the language model too (for a `specialist` from nothing).
        on_step: called with the loss of each step.
    Returns:
        The loss of each step.
    Raises:
        ValueError: no examples, or none that can be opened.
    """
    model, device = flamingo.model, flamingo.device
    stored = {name: p.dtype for name, p in model.named_parameters()}
    named = wake(model, everything)
    for p in (p for _, p in named) if device.type == "cuda" else model.parameters():
        p.data = p.data.float()
    autocast = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()
    parameters = [p for _, p in named]
    optimizer = torch.optim.AdamW(parameter_groups(named, point.lr, habits.weight_decay), betas=(0.9, 0.95))
    source = Samples(flamingo, task, examples, point, habits.seed)
    stream, losses = iter(source), []

    def loss_of(batch: Batch) -> Tensor:
        with autocast:
            return model.loss(batch.to(device))

    for step in range(point.steps):
        parts = source.parts(list(islice(stream, point.batch_size)), habits.at_once)
        weights = {i: share for i, (share, _) in enumerate(parts)}
        found = accumulate_gradients({i: lambda b=b: loss_of(b) for i, (_, b) in enumerate(parts)}, weights, parameters)
        torch.nn.utils.clip_grad_norm_(parameters, habits.clip)
        warm = learning_rate_factor(step, round(habits.warmup * point.steps))
        set_learning_rate(optimizer, warm * schedule_factor(point.schedule, step, point.steps))
        optimizer.step()
        losses.append(float(sum(weights[i] * loss for i, loss in found.items())))
        if on_step is not None:
            on_step(losses[-1])
    for name, p in model.named_parameters():
        p.data, p.grad = p.data.to(stored[name]), None
    model.freeze().eval()
    return losses


@torch.no_grad()
def answer_loss(flamingo: LoadedFlamingo, task: Task, examples: Sequence[Example], at_once: int = 64) -> float:
    """Mean negative log-likelihood per token of the right answers: what tells apart points that all answer well."""
    source = Samples(flamingo, task, examples, Point(), 0)
    samples = []
    for example in examples:
        try:
            samples.append(training_sample(task, replace(example, answers=example.answers[:1]), random.Random(0)))
        except (OSError, ValueError):
            continue  # the metric counts and names it
    return sum(share * float(flamingo.model.loss(b.to(flamingo.device))) for share, b in source.parts(samples, at_once))


def larger_pictures(flamingo: LoadedFlamingo, image_size: int) -> LoadedFlamingo:
    """The same Flamingo, in place, for pictures of `image_size` pixels: the resampler takes any number of patches.

    Raises:
        ValueError: the size does not fit the patches. TypeError: the eye is no ViT.
    """
    model = flamingo.model
    enlarge(model.vision, image_size)
    model.config = replace(model.config, vision=model.vision.config)
    return LoadedFlamingo(model, flamingo.tokenizer, replace(flamingo.prepare, size=image_size))


def specialist(flamingo: LoadedFlamingo, seed: int = 0) -> LoadedFlamingo:
    """A model of the same architecture that knows nothing: random eye, random language model, random bridge.

    Raises:
        TypeError: the eye is a module of one's own, of which no fresh one can be made.
    """
    if not isinstance(flamingo.model.vision, ViT):
        raise TypeError(f"there is no way to a fresh {type(flamingo.model.vision).__name__}: do without --specialist")
    config = flamingo.model.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Flamingo(config, ViT(config.vision), LM(config.lm)).to(flamingo.device)
    return LoadedFlamingo(model.eval(), flamingo.tokenizer, flamingo.prepare)
