"""An evaluation that can be stopped: what has been answered is on disk, batch after batch, and is taken up again.

    runs/eval/cells/vqav2-8-0.jsonl          8 shots, trial 0

    {"version": "0.1.0", "model": "8d77fbfe", "seed": 0, "shots": "8", "trial": 0, …}       the settings, in the first line
    {"key": "262148000", "prediction": "down"}                                              then a line per query, in order
    {"key": "393225000", "broken": "no such file: …"}

The lines are reused if the first one is the same in all that matters: the model's weights, the task's texts and examples, seed
and protocol. Then lines 1 … n are what a run without a stop would have written, and the next query is number n. Example: killed
in the middle of a line, a run loses that line alone.
"""

from __future__ import annotations

import json
import sys
import zlib
from dataclasses import asdict
from pathlib import Path

from ..training.checkpoint import write_atomically
from .benchmarks import BENCHMARKS, write_submission
from .runner import outcomes_of
from .task import Task


class Cell:
    """What has been answered so far for one (task, shots, trial); one line of a file per query, below a line of settings.

    settings: what must be the same for the lines to be taken up again, `task_fingerprint` among it.
    """

    def __init__(self, out: Path, task: Task, shots: str, trial: int, settings: dict):
        self.out, self.task, self.shots, self.trial = out, task, shots, trial
        self.name = f"{task.name}-{shots}-{trial}"
        self.path = out / "cells" / f"{self.name}.jsonl"
        content = {**settings, "shots": shots, "trial": trial}
        self.settings = json.loads(json.dumps(content))  # as it will be read: lists, no tuples
        self.records = self._read()

    def _read(self) -> list[dict]:
        if not self.path.is_file():
            return []
        lines = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                break  # the last line of a run that was killed while it wrote
        if not lines or lines[0] != self.settings:
            print(f"{self.name}: the settings are not those of {self.path}; it starts over", file=sys.stderr)
            return []
        return lines[1:]

    @property
    def finished(self) -> bool:
        return len(self.records) >= len(self.task.queries)

    def begin(self) -> None:
        """The file as far as it is whole."""
        lines = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in [self.settings, *self.records])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, lambda path: path.write_text(lines, encoding="utf-8"))

    def add(self, records: list[dict]) -> None:
        self.records += records
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records))

    def write_predictions(self) -> None:
        """In the official format of a benchmark; a toy task's are a list of what was said, by key."""
        folder, outcomes = self.out / "predictions", outcomes_of(self.task, self.records)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.{'csv' if self.task.name == 'hatefulmemes' else 'json'}"
        if self.task.name in BENCHMARKS:
            if outcomes:
                write_submission(self.task.name, outcomes, path)
            return
        said = [{"key": o.example.key, "prediction": o.prediction} for o in outcomes]
        write_atomically(path, lambda beside: beside.write_text(json.dumps(said, ensure_ascii=False), encoding="utf-8"))


def task_fingerprint(task: Task) -> dict:
    """What makes a task another one: its texts, its metric, and which examples it holds."""
    sums = {
        part: zlib.crc32("\n".join(f"{e.key} {e.answers} {sorted(e.fields.items())} {e.choices}" for e in examples).encode())
        for part, examples in (("support", task.support), ("queries", task.queries))
    }
    how = {"metric": task.metric, "max_new_tokens": task.max_new_tokens, "scoring": task.scoring}
    return {"name": task.name, **asdict(task.template), **how, **sums}
