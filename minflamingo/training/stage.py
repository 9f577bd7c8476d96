"""A stage of training that may be stopped at any moment and goes on where it was.

    stage = Stage("vision", folder, total=800, modules={"eye": eye}, optimizer=optimizer)
    for step in stage.steps():                       # a progress bar; after a stop, begins behind the last checkpoint
        rng = random.Random(f"{seed} vision {step}")     # the data of a step depends on nothing but seed and step,
        ...                                              # so there is no state of a random generator to keep
        stage.log(step, loss=loss)

Every few seconds weights, optimiser and logged rows are written, atomically, to `folder/vision.pt`. A run that was killed
and one that never was take the same steps on the same data, and end with the same weights, bit for bit on the same machine.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from .checkpoint import load_tensors, load_weights, save_tensors


class SettingsDiffer(ValueError):
    """The checkpoint of a stage belongs to a run with other settings."""


class Stage:
    """Bookkeeping around a training loop; the loop itself stays with whoever trains.

    Args:
        name: also the file's: `folder/name.pt`.
        total: number of steps.
        modules: what is trained (buffers and frozen parts included, if they are in the module).
        optimizer: whose state is kept too.
        settings: numbers and strings that must be the same when a run goes on (sizes, seed).
        save_every: seconds between checkpoints: what a stop can lose.
        line: the row of the progress bar, when several stages run side by side.
        writes: False for all but one of several processes that take the same steps: these read the checkpoint, and no more.
    """

    def __init__(
        self,
        name: str,
        folder: str | Path,
        total: int,
        modules: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        settings: Mapping[str, object] | None = None,
        save_every: float = 5.0,
        line: int | None = None,
        writes: bool = True,
    ):
        self.name, self.total, self.modules, self.optimizer = name, total, dict(modules), optimizer
        self.path = Path(folder) / f"{name}.pt"
        self.settings = {"total": total, **(settings or {})}
        self.save_every, self.line, self.writes = save_every, line, writes
        self.step, self.seconds, self.rows = 0, 0.0, []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._resume()

    @property
    def finished(self) -> bool:
        return self.step >= self.total

    def _resume(self) -> None:
        state = load_tensors(self.path)
        if state.get("settings") != self.settings:
            raise SettingsDiffer(
                f"{self.path} was made with other settings ({state.get('settings')}, now {self.settings}): "
                "start over with --fresh, or write to another folder with --out"
            )
        for key, module in self.modules.items():
            load_weights(module, state["modules"][key], f"{self.path}, {key}")
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.rows = state["step"], state["seconds"], state["rows"]

    def save(self) -> None:
        save_tensors(
            {
                "settings": self.settings, "step": self.step, "seconds": self.seconds, "rows": self.rows,
                "modules": {key: module.state_dict() for key, module in self.modules.items()},
                "optimizer": self.optimizer.state_dict(),
            },
            self.path,
        )  # fmt: skip

    def steps(self) -> Iterator[int]:
        """The steps that are still to be taken. The optimiser's step must be done when the loop asks for the next."""
        if self.finished:
            return
        parent = multiprocessing.parent_process()
        self.bar = tqdm(
            total=self.total, initial=self.step, desc=f"{self.name:>10}", position=self.line, leave=self.line is None,
            file=sys.stderr, mininterval=0.5, dynamic_ncols=True,
            disable=not self.writes,
        )  # fmt: skip
        began = saved = time.monotonic()
        before = self.seconds
        with self.bar:
            while not self.finished:
                yield self.step
                self.step += 1
                self.bar.update()
                now = time.monotonic()
                self.seconds = before + now - began
                if now - saved > self.save_every or self.finished:
                    if self.writes:
                        self.save()
                    saved = time.monotonic()
                    if parent is not None and not parent.is_alive():
                        raise SystemExit(f"{self.name}: the process that started this stage is gone")

    def log(self, step: int, **numbers: float | torch.Tensor) -> None:
        """A row for metrics.csv, and the numbers beside the progress bar."""
        row = {k: round(float(v.detach() if isinstance(v, torch.Tensor) else v), 5) for k, v in numbers.items()}
        self.rows.append({"stage": self.name, "step": step, **row})
        self.bar.set_postfix({k: f"{v:.3g}" for k, v in row.items() if k in ("loss", "accuracy")}, refresh=False)
