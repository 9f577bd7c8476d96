"""The toy recipe of one row of the ablations (`python -m minflamingo ablate`): how a bridge is taught, and how it is examined.

    stage = teach(flamingo, row, seed=0, steps=700, folder="runs/ablations/stages/mlp-0")
    examine(flamingo, seed=0, shots="4")              {"caption": {"accuracy": 0.61, "ci95": […], "n": 200}, …}

It is the bridge's lesson of `train_tiny.py`, its mixture, learning rate and decay, with smaller batches and fewer steps, and
without the lessons before it (single pictures, names), so that all rows together take an hour and not a night. Every row of
a seed sees the same pages, pairs and films at the same step. Going round-robin, too: three updates, one with each kind, take
the place of the one with all of them, at the same cost.

The score is the mean over six tasks, after the five of the paper's ablations: `caption` (COCO), `vqa` (VQAv2), `naming_fact`
(OKVQA: one must know), `video` (VATEX and MSVDQA), and two that cannot be done without shots, `task` and `binding_2way`.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import train_tiny
from minflamingo.data.sample import collate
from minflamingo.evaluation.fewshot import accuracy, predict
from minflamingo.evaluation.variants import Row, trained_parameters
from minflamingo.flamingo import Flamingo
from minflamingo.training.optim import (
    accumulate_gradients,
    datasets_of_step,
    learning_rate_factor,
    parameter_groups,
    set_learning_rate,
)
from minflamingo.training.stage import Stage

from .album import draw_album
from .tasks import mark, queries
from .words import toy_tokenizer

RECIPE = replace(train_tiny.RECIPES["tiny"], album=8000, bridge_shots=64, bridge_pairs=24, bridge_videos=9, exam=200)
TASKS = {"caption": "caption", "vqa": "vqa", "naming": "naming_fact", "video": "video", "task": "task",
         "binding_2way": "binding_2way"}  # fmt: skip
TONGUE_DECAY = 0.01  # what the tongue was taught with; it need not bear the bridge's


def kinds_of(row: Row) -> list[str]:
    """The datasets that a row is taught with."""
    return [kind for kind in train_tiny.LAMBDA if kind != row.without]


def plan(row: Row, steps: int) -> list[tuple[int, list[str]]]:
    """For each update the step whose data it takes, and which kinds of it. Round-robin makes several updates of a step.

    >>> plan(Row("optimisation", "round-robin", accumulate=False), steps=1)
    [(0, ['pages']), (0, ['pairs']), (0, ['videos'])]
    """
    kinds = kinds_of(row)
    each = 1 if row.accumulate else len(kinds)
    return [(update // each, datasets_of_step(kinds, update, row.accumulate)) for update in range(each * steps)]


def groups(named: dict[str, nn.Parameter], row: Row) -> list[dict]:
    """For AdamW. A tongue that is not frozen keeps its own decay."""
    lr, free = RECIPE.bridge_lr, row.lm != "frozen"
    tongue = {n: p for n, p in named.items() if free and n.startswith("lm.")}
    bridge = {n: p for n, p in named.items() if n not in tongue}
    of_tongue = parameter_groups(tongue.items(), lr, TONGUE_DECAY)
    return [*parameter_groups(bridge.items(), lr, RECIPE.bridge_decay, gate_lr=3 * lr), *of_tongue]


def teach(flamingo: Flamingo, row: Row, seed: int, steps: int, folder: str | Path, line: int | None = None) -> Stage:
    """Train what `row` trains, in place. What has been done is in `folder`; the same call goes on from there."""
    tokenizer, device, named = toy_tokenizer(), next(flamingo.parameters()).device, trained_parameters(flamingo)
    train_tiny.begin_as_a_dash(flamingo)
    parameters, updates = list(named.values()), plan(row, steps)
    optimizer = torch.optim.AdamW(groups(named, row), betas=(0.9, 0.98))
    settings = {"seed": seed, "row": repr(row), "config": repr(flamingo.config), "recipe": repr(RECIPE)}
    stage = Stage("row", folder, len(updates), {"flamingo": flamingo}, optimizer, settings, save_every=20.0, line=line)
    if stage.finished:
        return stage
    album = train_tiny.encode_album(flamingo, draw_album(RECIPE.album, seed))
    flamingo.train()
    for update in stage.steps():
        step, kinds = updates[update]
        drawn = train_tiny.draw_batches(album, random.Random(f"ablation {seed} {step}"), RECIPE, row.p_next)
        batches = {kind: collate(drawn[kind], tokenizer).to(device) for kind in kinds}
        losses = accumulate_gradients(
            {kind: lambda batch=batch: flamingo.loss(batch) for kind, batch in batches.items()}, train_tiny.LAMBDA, parameters
        )
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        set_learning_rate(optimizer, learning_rate_factor(update, len(updates) // 20, len(updates), cooldown=0.4))
        optimizer.step()
        if update % 10 == 0:
            stage.log(update, loss=sum(train_tiny.LAMBDA[k] * v for k, v in losses.items()), **losses)
    return stage


def examine(flamingo: Flamingo, seed: int, shots: str) -> dict[str, dict]:
    """Accuracy per task on held-out cases, the same for all rows of a seed."""
    flamingo.eval()
    album = train_tiny.encode_album(flamingo, draw_album(3000, seed, split="test"))
    found = {}
    for asked, marked in TASKS.items():
        cases = queries(asked, album, RECIPE.exam, seed)
        said = predict(flamingo, toy_tokenizer(), cases, shots)
        found[marked] = accuracy(mark(asked, said, cases)[marked])
    return found
