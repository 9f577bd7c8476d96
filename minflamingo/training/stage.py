"""A piece of work in steps that can be stopped at any time and resumed: training, an evaluation, a point of a grid search.

    stage = Stage("vision", folder, 800, state={"model": model, "optimizer": optimizer}, settings={"seed": 0})
    for step in stage.steps():                           # a progress bar; resumes after the last checkpoint
        rng = random.Random(f"{seed} vision {step}")     # data depends on seed and step alone: no random state to save
        ...
        stage.log(step, loss=loss)

Every few seconds the state and the rows are written to `folder/vision.pt`. A run that was killed and resumed takes the same steps
on the same data as one that was never stopped, and ends with the same weights, bit for bit on the same machine.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from tqdm import tqdm

from .checkpoint import load_tensors, load_weights, save_tensors


class SettingsDiffer(ValueError):
    """The checkpoint of a stage belongs to a run with other settings."""


class Stage:
    """The state of a loop, on disk.

    Args:
        name: the file is `folder/name.pt`.
        total: number of steps (or of queries).
        state: objects with `state_dict` and `load_state_dict`: modules, optimizers, data streams.
        settings: JSON values that must be the same to resume.
        save_every: seconds between checkpoints: the most that a kill can lose.
        writes: False for all but one of several processes that take the same steps; these only read.
        restart: after a change of settings start again, with a message, instead of raising an error.
    Raises:
        SettingsDiffer: names the settings that differ.
    """

    def __init__(
        self, name: str, folder: str | Path, total: int, *, state: Mapping[str, object] | None = None,
        settings: Mapping[str, object] | None = None, save_every: float = 5.0, writes: bool = True, restart: bool = False,
    ):  # fmt: skip
        self.name, self.total, self.state = name, total, dict(state or {})
        self.path = Path(folder) / f"{name}.pt"
        self.settings = json.loads(json.dumps({"total": total, **(settings or {})}))
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
            message = f"{self.path} was made with other settings: {'; '.join(different)}"
            if not restart:
                raise SettingsDiffer(message)
            print(f"{message}. Starting again.", file=sys.stderr)
            return
        if saved["result"] is None:
            for key, item in self.state.items():
                if isinstance(item, torch.nn.Module):
                    load_weights(item, saved["state"][key], f"{self.path}, {key}")
                else:
                    item.load_state_dict(saved["state"][key])
        self.step, self.seconds, self._rows, self.result = (saved[k] for k in ("step", "seconds", "rows", "result"))

    @staticmethod
    def stored_result(name: str, folder: str | Path, total: int, settings: Mapping[str, object]) -> object:
        """The result of a finished stage with these settings, or None. Needs no state."""
        path = Path(folder) / f"{name}.pt"
        if not path.exists():
            return None
        saved = load_tensors(path)
        return saved["result"] if saved["settings"] == json.loads(json.dumps({"total": total, **settings})) else None

    @property
    def finished(self) -> bool:
        return self.step >= self.total

    @property
    def rows(self) -> list[dict]:
        """What was logged or appended. Tensors of `log` become numbers here, so that logging does not wait for a GPU."""
        for row in self._rows:
            for key, value in row.items():
                if isinstance(value, torch.Tensor):
                    row[key] = round(float(value), 5)
        return self._rows

    def log(self, step: int, **values: float | torch.Tensor) -> None:
        """Append a row of numbers for metrics.csv."""
        values = {k: v.detach() if isinstance(v, torch.Tensor) else round(float(v), 5) for k, v in values.items()}
        self._rows.append({"stage": self.name, "step": step, **values})

    def save(self) -> None:
        state = {} if self.result is not None else {key: item.state_dict() for key, item in self.state.items()}
        content = {"settings": self.settings, "step": self.step, "seconds": self.seconds, "rows": self.rows}
        save_tensors({**content, "state": state, "result": self.result}, self.path)

    def finish(self, result: object) -> object:
        """Store a JSON-able result and drop the state from the file."""
        self.result, self.step = json.loads(json.dumps(result)), self.total
        self.save()
        return self.result

    def steps(self, by: int = 1, *, line: int | None = None, show: bool = True) -> Iterator[int]:
        """The steps that remain: the first number of each group of `by` steps. A step counts when the next one is asked for."""
        parent = multiprocessing.parent_process()
        if self.finished:
            return
        bar = tqdm(
            total=self.total, initial=self.step, desc=f"{self.name:>10}", position=line, leave=line is None,
            file=sys.stderr, mininterval=0.5, dynamic_ncols=True, disable=not (self.writes and show),
        )  # fmt: skip
        began = saved = time.monotonic()
        before = self.seconds
        with bar:
            while not self.finished:
                yield self.step
                bar.update(min(by, self.total - self.step))
                self.step = min(self.step + by, self.total)
                now = time.monotonic()
                self.seconds = before + now - began
                if now - saved > self.save_every or self.finished:
                    if self.writes:
                        self.save()
                    saved = time.monotonic()
                    shown = self._rows[-1] if self._rows else {}
                    bar.set_postfix({k: f"{shown[k]:.3g}" for k in ("loss", "accuracy") if k in shown}, refresh=False)
                    if parent is not None and not parent.is_alive():
                        raise SystemExit(f"{self.name}: the process that started this stage has ended")
