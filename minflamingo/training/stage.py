"""A loop that can be stopped at any time and resumed: a training, an evaluation, one training of a grid search.

    stage = Stage("vision", folder, 800, state={"model": model, "optimizer": optimizer}, settings={"seed": 0})
    for step in stage.steps():                           # a progress bar; starts after the last checkpoint
        rng = random.Random(f"{seed} vision {step}")     # data depends on seed and step alone: no random state to save
        ...
        stage.log(step, loss=loss)

State and rows are written to `folder/vision.pt` every few seconds. A run that was killed and resumed takes the same steps with
the same data as a run that was never stopped, and ends with the same weights, bit for bit on the same machine. The checkpoint
before the last one is kept as `vision.pt.previous`. It is used if the last one is damaged or missing.

Ctrl-C and SIGTERM end the loop after the current step, with a checkpoint: `steps` raises KeyboardInterrupt. A second Ctrl-C
ends it at once. Weights that are not finite are not written.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from ..data.readers import remove_leftovers
from ..flamingo import Batch
from .checkpoint import errors_of, load_tensors, save_tensors
from .parallel import handle_stop_signals

SAVED = ("settings", "step", "seconds", "rows", "result")
ADVICE = "The last checkpoint is kept. Start again in another folder, with a lower learning rate or a longer warm-up"


class CannotResume(ValueError):
    """The checkpoint is damaged, or belongs to a run with other settings."""


class Diverged(ValueError):
    """Losses, gradients or weights are NaN or infinite."""


def as_dicts(x: object) -> object:
    """Each `Batch` in dicts, lists and tuples becomes a dict. So `torch.load` can read it without running any code."""
    x = vars(x) if isinstance(x, Batch) else x
    if isinstance(x, dict):
        return {key: as_dicts(value) for key, value in x.items()}
    return [as_dicts(value) for value in x] if isinstance(x, list | tuple) else x


class Stage:
    """The state of a loop, on disk.

    Args:
        name: the file is `folder/name.pt`.
        total: number of steps, or of queries.
        state: objects with `state_dict` and `load_state_dict`: modules, optimizers, data.
        settings: JSON values that must be the same to resume. If not: CannotResume, or a new start with `restart`.
        save_every: seconds between checkpoints: the most that a kill can lose.
        writes: False for all but one of several processes that take the same steps. These only read.
        extendable: a resumed run may have another `total`, not below the steps that are done. No step may depend on it.
        agree: a function: was this process told to stop? -> was any process told so? Then all stop after the same step.
    """

    def __init__(
        self, name: str, folder: str | Path, total: int, *, state: Mapping[str, object] | None = None,
        settings: Mapping[str, object] | None = None, save_every: float = 5.0, writes: bool = True, restart: bool = False,
        extendable: bool = False, agree: Callable[[bool], bool] = bool,
    ):  # fmt: skip
        self.name, self.path, self.total, self.state = name, Path(folder) / f"{name}.pt", total, state or {}
        self.settings = json.loads(json.dumps({"total": total, **(settings or {})}))  # as they are read: lists, not tuples
        self.save_every, self.writes, self.extendable, self.agree = save_every, writes, extendable, agree
        self.step, self.seconds, self.rows, self.result = 0, 0.0, [], None
        self.previous, self.restart = self.path.with_name(f"{self.path.name}.previous"), restart
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if writes:
            remove_leftovers(self.path.parent)
        if saved := self._read():
            self._resume(saved)

    def _read(self) -> dict | None:
        """The last checkpoint, or the one before it if the last one is damaged or missing. None: a new start."""
        paths = [path for path in (self.path, self.previous) if path.exists()]
        problems = [f"{self.path}: the file is missing"] if paths == [self.previous] else []
        for path in paths:
            try:
                saved = load_tensors(path)
                if not isinstance(saved, dict) or {*SAVED, "state"} - saved.keys():
                    raise ValueError(f"{path}: not a checkpoint of a training stage")
            except (ValueError, FileNotFoundError) as error:
                problems.append(str(error))
                continue
            if problems:
                print(f"{problems[0]}. The checkpoint before it is used, from step {saved['step']}.", file=sys.stderr)
                if self.writes:
                    self.path.unlink(missing_ok=True)  # otherwise the next `save` would keep it and lose the good one
            return saved
        if problems:
            self._start_again("; ".join(problems) + ".", f"No checkpoint is left. To start again, remove {self.path}*")
        return None

    def _start_again(self, reason: str, advice: str) -> None:
        if not self.restart:
            raise CannotResume(f"{reason} {advice}")
        print(f"{reason} Starting again.", file=sys.stderr)

    def _resume(self, saved: dict) -> None:
        old, new = saved["settings"], self.settings
        if self.extendable and saved["step"] <= self.total:
            old = {**old, "total": self.total}
        if old != new:
            different = [f"{k} {old.get(k)!r}, now {new.get(k)!r}" for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
            message = f"{self.path} was made with other settings: {'; '.join(different)}."
            return self._start_again(message, "Use the same settings, or another folder.")
        self.step, self.seconds, self.rows, self.result = (saved[key] for key in ("step", "seconds", "rows", "result"))
        for key, item in self.state.items() if self.result is None else ():
            with errors_of(self.path, "checkpoint of this model and data"):
                item.load_state_dict(saved["state"][key])
        self._check_weights()

    def _check_weights(self) -> None:
        modules = [item for item in self.state.values() if isinstance(item, nn.Module)]
        if not all(parameter.isfinite().all() for module in modules for parameter in module.parameters()):
            raise Diverged(f"{self.name}: after step {self.step - 1}, a weight is not finite. {ADVICE}")

    def save(self) -> None:
        if self.writes:
            self._check_weights()
            content = {key: getattr(self, key) for key in SAVED}
            content["state"] = {key: item.state_dict() for key, item in self.state.items()}
            save_tensors(content, self.path, self.previous)

    def finish(self, result: object) -> object:
        """Save a JSON-able result, and drop the state from the file. A later stage with these settings has `result` at once."""
        self.result, self.step, self.state = json.loads(json.dumps(result)), self.total, {}
        self.save()
        self.save()  # twice, because the checkpoint before the last one has the state too
        return self.result

    @property
    def finished(self) -> bool:
        return self.step >= self.total

    def log(self, step: int, **values: torch.Tensor) -> None:
        """Append a row for metrics.csv. It waits for the GPU, so a training with short steps calls it in a few of them."""
        if step not in self.skipped[-1:]:
            numbers = {key: round(value.item(), 5) for key, value in values.items()}
            self.rows.append({"stage": self.name, "step": step, **numbers})

    @property
    def skipped(self) -> list[int]:
        """The steps without an update, because a loss or the gradient was not finite."""
        return [row["step"] for row in self.rows if "skipped" in row]

    def first(self, key: str) -> float:
        """The first value of `key` that was logged; 0 if there is none."""
        return next((row[key] for row in self.rows if key in row), 0.0)

    def skip_if(self, infinite: str, step: int, batch: object) -> None:
        """Note in the log that this step was skipped, if `infinite` (from `clip_gradients`) names what is not finite.

        After five such steps one after the other (fewer in a short training) the batch is saved, and this raises Diverged.
        """
        if infinite:
            self.rows.append({"stage": self.name, "step": step, "skipped": infinite})
            most = max(1, min(5, self.total // 2))
            if self.skipped[-most:] == list(range(step - most + 1, step + 1)):
                # Each of several processes has its own batch.
                path = self.path.with_name(f"{self.name}-step-{step}{'' if self.writes else f'-{os.getpid()}'}.batch")
                save_tensors(as_dicts(batch), path)
                problem = f"{infinite} is not finite, {most} times in a row"
                raise Diverged(f"{self.name}, step {step}: {problem}. {ADVICE}. The batch is in {path}: torch.load opens it")

    def steps(self, by: int = 1, *, line: int | None = None) -> Iterator[int]:
        """The first number of each group of `by` steps that remain. A step counts when the loop asks for the next one.

        `line`: the line of the progress bar on the screen, if there are several bars.
        """
        before, start = self.seconds, time.monotonic()
        saved, told = start, []
        with handle_stop_signals(lambda: told.append("to stop")), tqdm(
            total=self.total, initial=self.step, desc=f"{self.name:>10}", position=line, leave=line is None, file=sys.stderr,
            dynamic_ncols=True, disable=self.finished or not self.writes,
        ) as bar:  # fmt: skip
            while not self.finished:
                yield self.step
                bar.update(min(by, self.total - self.step))
                self.step = min(self.step + by, self.total)
                self.seconds = before + time.monotonic() - start
                stop = self.agree(len(told) > 0)
                if stop or self.finished or time.monotonic() - saved > self.save_every:
                    last = self.rows[-1] if self.rows else {}
                    bar.set_postfix({key: f"{last[key]:.3g}" for key in ("loss", "accuracy") if key in last}, refresh=False)
                    self.save()
                    saved = time.monotonic()
                    if stop:
                        raise KeyboardInterrupt(f"{self.name}: stopped after step {self.step - 1}")
        if self.writes and self.skipped:
            what = f"{len(self.skipped)} updates were skipped, because a loss or gradient was not finite"
            print(f"{self.name}: {what}; the first in step {self.skipped[0]}", file=sys.stderr)
