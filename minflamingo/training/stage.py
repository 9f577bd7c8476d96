"""A loop that can be stopped at any time and resumed: a training, an evaluation, one training of a grid search.

    stage = Stage("vision", folder, 800, state={"model": model, "optimizer": optimizer}, settings={"seed": 0})
    for step in stage.steps():                           # a progress bar; starts after the last checkpoint
        rng = random.Random(f"{seed} vision {step}")     # data depends on seed and step alone: no random state to save
        ...
        stage.log(step, loss=loss)

State and rows are written to `folder/vision.pt` every few seconds. A run that was killed and resumed takes the same steps with
the same data as a run that was never stopped, and ends with the same weights, bit for bit on the same machine.
"""

import json
import multiprocessing
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from tqdm import tqdm

from .checkpoint import load_tensors, save_tensors


class SettingsDiffer(ValueError):
    """The checkpoint belongs to a run with other settings."""


class Stage:
    """The state of a loop, on disk.

    Args:
        name: the file is `folder/name.pt`.
        total: number of steps, or of queries.
        state: objects with `state_dict` and `load_state_dict`: modules, optimizers, data.
        settings: JSON values that must be the same to resume. If not: SettingsDiffer, or a new start with `restart`.
        save_every: seconds between checkpoints: the most that a kill can lose.
        writes: False for all but one of several processes that take the same steps. These only read.
    """

    def __init__(
        self, name: str, folder: str | Path, total: int, *, state: Mapping[str, object] | None = None,
        settings: Mapping[str, object] | None = None, save_every: float = 5.0, writes: bool = True, restart: bool = False,
    ):  # fmt: skip
        self.name, self.path, self.total, self.state = name, Path(folder) / f"{name}.pt", total, state or {}
        self.settings = json.loads(json.dumps({"total": total, **(settings or {})}))  # as they are read: lists, not tuples
        self.save_every, self.writes = save_every, writes
        self.step, self.seconds, self.result = 0, 0.0, None
        self._rows: list[dict] = []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._resume(restart)

    def _resume(self, restart: bool) -> None:
        saved = load_tensors(self.path)
        old, new = saved.get("settings", {}), self.settings
        if old != new:
            different = [f"{k} {old.get(k)!r}, now {new.get(k)!r}" for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
            message = f"{self.path} was made with other settings: {'; '.join(different)}."
            if not restart:
                raise SettingsDiffer(f"{message} Use the same settings, or another folder.")
            print(f"{message} Starting again.", file=sys.stderr)
            return
        self.step, self.seconds, self._rows, self.result = (saved[key] for key in ("step", "seconds", "rows", "result"))
        for key, item in self.state.items() if self.result is None else ():
            item.load_state_dict(saved["state"][key])

    def save(self) -> None:
        state = {key: item.state_dict() for key, item in self.state.items()} if self.result is None else {}
        content = {"settings": self.settings, "step": self.step, "seconds": self.seconds, "rows": self.rows}
        save_tensors({**content, "state": state, "result": self.result}, self.path)

    def finish(self, result: object) -> object:
        """Save a JSON-able result, and drop the state from the file. A later stage with these settings has `result` at once."""
        self.result, self.step = json.loads(json.dumps(result)), self.total
        self.save()
        return self.result

    @property
    def finished(self) -> bool:
        return self.step >= self.total

    @property
    def rows(self) -> list[dict]:
        """One dict per `log`; an evaluation appends its own. Logged tensors become numbers here, where they are needed."""
        for row in self._rows:
            row.update({key: round(float(value), 5) for key, value in row.items() if isinstance(value, torch.Tensor)})
        return self._rows

    def log(self, step: int, **values: float | torch.Tensor) -> None:
        """Append a row for metrics.csv. It does not wait for the GPU: tensors are only stored."""
        row = {"stage": self.name, "step": step}
        for key, value in values.items():
            # A copy, because a parameter changes in the next step.
            row[key] = value.detach().clone() if isinstance(value, torch.Tensor) else round(float(value), 5)
        self._rows.append(row)

    def steps(self, by: int = 1, *, line: int | None = None, show: bool = True) -> Iterator[int]:
        """The first number of each group of `by` steps that remain. A step counts when the loop asks for the next one.

        Args:
            line: of the progress bar, if there are several. show=False: no bar.
        """
        parent, before, start = multiprocessing.parent_process(), self.seconds, time.monotonic()
        bar = tqdm(
            total=self.total, initial=self.step, desc=f"{self.name:>10}", position=line, leave=line is None, file=sys.stderr,
            mininterval=0.5, dynamic_ncols=True, disable=self.finished or not (self.writes and show),
        )  # fmt: skip
        with bar:
            saved = start
            while not self.finished:
                yield self.step
                bar.update(min(by, self.total - self.step))
                self.step = min(self.step + by, self.total)
                self.seconds = before + time.monotonic() - start
                if time.monotonic() - saved <= self.save_every and not self.finished:
                    continue
                last = self.rows[-1] if self._rows else {}
                bar.set_postfix({key: f"{last[key]:.3g}" for key in ("loss", "accuracy") if key in last}, refresh=False)
                if self.writes:
                    self.save()
                saved = time.monotonic()
                if parent is not None and not parent.is_alive():
                    raise SystemExit(f"{self.name}: the process that started this stage has ended")
