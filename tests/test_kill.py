"""A run that is killed at any moment leaves no process behind, and the same command ends as if it was never killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import QUICK, ROOT, STAGES, equal, python

from minflamingo.training.checkpoint import load_tensors

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the processes of a run from /proc")
KILLS = [(number, target) for number in ("SIGKILL", "SIGTERM") for target in ("parent", "child", "group")]


def start(out: Path) -> subprocess.Popen:
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "train_tiny.py", *QUICK, "--out", str(out)]
    output = open(f"{out}.txt", "w")  # noqa: SIM115
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=output, stderr=output, start_new_session=True)


def processes(group: int) -> list[int]:
    """The processes of a group that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = path.read_text().rsplit(")", 1)[1].split()[:3]
        except OSError:  # it has just ended
            continue
        if int(its_group) == group and state != "Z":
            found.append(int(path.parent.name))
    return found


def is_training(process: int) -> bool:
    """Whether this is a training process, and not the helper of Python that counts shared resources."""
    return b"spawn_main" in Path(f"/proc/{process}/cmdline").read_bytes()


def kill(out: Path, wait: float, number: int, target: str, seconds: float = 2) -> bool:
    """Start, kill after some seconds. True: the run had ended before. Within `seconds` more, no process may be left."""
    process = start(out)
    try:
        if target == "child":  # the moment when the first one starts, and then `wait`
            while process.poll() is None and not any(map(is_training, processes(process.pid)[1:])):
                if (out / "stages/flamingo.pt").exists():
                    break
                time.sleep(0.05)
        time.sleep(wait)
        children = [p for p in processes(process.pid) if p != process.pid and is_training(p)]
        if process.poll() is not None:
            return True
        if target == "group":
            os.killpg(process.pid, number)
        else:
            os.kill(children[0] if target == "child" and children else process.pid, number)
        end = time.monotonic() + seconds
        while (left := processes(process.pid)) and time.monotonic() < end:
            time.sleep(0.02)
            process.poll()
        assert left == [], (wait, number, target)
    finally:
        if processes(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    printed = Path(f"{out}.txt").read_text()
    # Python's own start of a process complains if the parent is killed at this moment.
    assert "Traceback" not in printed or "in spawn_main" in printed, printed
    if target == "child" and children:
        assert "the same command resumes" in printed
    return False


def finish_and_compare(out: Path, expected: Path) -> None:
    """The same command, to the end. Meanwhile a second start is refused."""
    process = start(out)
    while not (out / "stages/flamingo.pt").exists() and process.poll() is None:
        time.sleep(0.1)
    second = python("train_tiny.py", *QUICK, "--out", str(out))
    # If the stages were finished before, both begin at the same time, and either of them may be the one that is refused.
    printed = [Path(f"{out}.txt").read_text(), second.stderr]
    assert sorted([process.wait(500), second.returncode]) == [0, 1], printed
    assert f"{out}: another run is writing to this folder" in printed[second.returncode]
    assert "leaked" not in "".join(printed)  # Python's message about semaphores that a process has left
    for name in STAGES:
        ours, theirs = load_tensors(out / f"stages/{name}.pt"), load_tensors(expected / f"stages/{name}.pt")
        assert equal(ours | {"seconds": 0}, theirs | {"seconds": 0}), name
    assert equal(load_tensors(out / "model.pt"), load_tensors(expected / "model.pt"))
    results, whole = (json.loads((folder / "results.json").read_text()) for folder in (out, expected))
    assert results | {"seconds": 0} == whole | {"seconds": 0}


def test_a_killed_run_leaves_no_process_and_ends_like_one_that_was_never_killed(quick, tmp_path):
    for wait, number, target in ((2.0, signal.SIGKILL, "child"), (8.0, signal.SIGKILL, "parent")):
        kill(tmp_path / "out", wait, number, target, seconds=30)  # 2 on a machine that is not busy: see the test below
    finish_and_compare(tmp_path / "out", quick[0])


@pytest.mark.slow
@pytest.mark.parametrize("number, target", KILLS)
def test_kills_at_30_random_moments(quick, tmp_path, number, target):
    """A run that ends before a kill is compared, and the next one starts from nothing."""
    rng, longest, runs = random.Random(f"{number} {target}"), float(os.environ.get("KILL_WITHIN", 15)), 0
    for _ in range(int(os.environ.get("KILLS", 30))):
        if kill(tmp_path / str(runs), rng.uniform(0, longest), getattr(signal, number), target):
            finish_and_compare(tmp_path / str(runs), quick[0])
            runs += 1
    finish_and_compare(tmp_path / str(runs), quick[0])
