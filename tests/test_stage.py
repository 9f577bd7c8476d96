"""Stages: a run that was stopped and resumed ends with the same weights, bit for bit. Their files: complete, or not there."""

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import CreatesFile, equal
from torch import nn

from minflamingo.training.checkpoint import load_json, load_tensors, save_json, save_tensors, write_atomically
from minflamingo.training.command import only_run_in
from minflamingo.training.parallel import Processes, run_in_parallel
from minflamingo.training.stage import CannotResume, Diverged, Stage

TOTAL = 8


def make_stage(folder, total: int = TOTAL, name: str = "vision", restart: bool = False, **settings) -> Stage:
    """A stage with a small model, the same at every call. It writes a checkpoint after each step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))  # BatchNorm has buffers
    state = {"model": model, "optimizer": torch.optim.AdamW(model.parameters(), lr=0.05)}
    return Stage(name, folder, total, state=state, settings={"seed": 0, **settings}, save_every=0.0, restart=restart)


def train_step(stage: Stage, step: int) -> None:
    """One step, whose data depends on the step alone."""
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
    loss = (stage.state["model"](x) - x.sum(1, keepdim=True)).square().mean()
    stage.state["optimizer"].zero_grad()
    loss.backward()
    stage.state["optimizer"].step()
    stage.log(step, loss=loss)


def train(folder, before=lambda stage, step: None, after=lambda stage, step: None, line=None, **options) -> Stage:
    """All steps that remain. `before` and `after` are called around each."""
    stage = make_stage(folder, **options)
    for step in stage.steps(line=line):
        before(stage, step)
        train_step(stage, step)
        after(stage, step)
        assert stage.step == step  # it counts when the next one begins
    return stage


def saved(folder, name: str = "vision") -> dict:
    """The content of the checkpoint, except the seconds."""
    content = load_tensors(Path(folder) / f"{name}.pt")
    assert content.pop("seconds") > 0
    return content


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict:
    """The checkpoint of a run that was never stopped."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(folder)
    return saved(folder)


def test_a_stage_takes_every_step_once_and_saves_weights_optimizer_and_rows(tmp_path):
    """Compared with the same loop without a stage."""
    stage, other = train(tmp_path), make_stage(tmp_path / "other")
    for step in range(TOTAL):
        train_step(other, step)
    content = saved(tmp_path)
    assert equal(content["state"], {key: dict(item.state_dict()) for key, item in other.state.items()})
    assert content["rows"] == stage.rows == other.rows and [row["step"] for row in stage.rows] == list(range(TOTAL))
    assert set(stage.rows[0]) == {"stage", "step", "loss"} and isinstance(stage.rows[0]["loss"], float)
    assert content["step"] == TOTAL and stage.finished and not other.path.exists()
    time = stage.path.stat().st_mtime_ns
    assert list(make_stage(tmp_path).steps()) == [] and stage.path.stat().st_mtime_ns == time  # nothing remains


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_stop_after_the_current_step_with_a_checkpoint(tmp_path, uninterrupted, number):
    """Although the next checkpoint is due much later. A second Ctrl-C stops at once. Afterwards the signals are as before."""
    before = signal.getsignal(number)

    def tell(stage, step, times=1):
        stage.save_every = 1e9
        for _ in range(times if step == 3 else 0):
            os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt, match="vision: stopped after step 3"):
        train(tmp_path, tell)
    assert make_stage(tmp_path).step == 4 and signal.getsignal(number) == before
    train(tmp_path)
    assert equal(saved(tmp_path), uninterrupted)
    if number == signal.SIGINT:
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "twice", partial(tell, times=2))
        assert not (tmp_path / "twice/vision.pt").exists()


def wait_for_ever(folder, line):
    for step in make_stage(folder, 10**6, f"stage{line}").steps(line=line):
        if step == 3:
            (folder / f"{line}.ready").write_text("")


@pytest.mark.skipif(sys.platform == "win32", reason="signals of another process")
def test_parallel_stages_save_and_stop_when_their_parent_is_told_to(tmp_path):
    def tell():
        while len(list(tmp_path.glob("*.ready"))) < 2:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_in_parallel([wait_for_ever, wait_for_ever], tmp_path)
    assert all(make_stage(tmp_path, 10**6, f"stage{line}").step > 3 for line in range(2))


def ends_or_waits(folder, number, line):
    if line == 0:
        os.kill(os.getpid(), number)
    wait_for_ever(folder, line)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of another process")
def test_a_process_that_is_killed_is_named_and_the_others_stop(tmp_path):
    with pytest.raises(ChildProcessError, match="training process 1 of 2 was killed; the same command resumes"):
        run_in_parallel([ends_or_waits] * 2, tmp_path, signal.SIGKILL)


def test_a_folder_is_locked_for_other_processes_until_the_run_ends(tmp_path):
    lock = f"from minflamingo.training.command import only_run_in\nwith only_run_in({str(tmp_path)!r}):\n    print('locked')"

    def other() -> str:
        done = subprocess.run([sys.executable, "-c", lock], cwd=Path(__file__).parents[1], capture_output=True, text=True)
        return done.stdout + done.stderr

    with only_run_in(tmp_path):
        assert f"{tmp_path}: another run is writing to this folder. Wait until it ends." in other()
    assert other() == "locked\n"


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    def explode(stage, step):
        if step == 2:
            next(stage.state["model"].parameters()).data[0] = float("inf")

    with pytest.raises(Diverged, match=r"vision: after step 2, a weight is not finite\. The last checkpoint is kept"):
        train(tmp_path, after=explode)
    assert make_stage(tmp_path).step == 2


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("k", [0, 1, 7])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_stopped_run_resumes_to_the_same_end(tmp_path, uninterrupted, k, place, error):
    """Stopped in step k, before or after its weights have changed: step k is taken again, from the weights before it."""

    def stop(stage, step):
        if step == k:
            raise error

    with pytest.raises(error):
        train(tmp_path, **{place: stop})
    assert make_stage(tmp_path).step == k
    train(tmp_path)
    assert equal(saved(tmp_path), uninterrupted)


def test_a_stop_loses_the_steps_since_the_last_checkpoint_and_no_more(tmp_path, uninterrupted):
    """Checkpoints are rare here: one after step 2, and an error in step 6. Steps 3, 4 and 5 are taken again."""

    def fail(stage, step):
        stage.save_every = 0.0 if step == 2 else 1e9
        if step == 6:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        train(tmp_path, fail)
    assert saved(tmp_path)["step"] == 3
    train(tmp_path)
    assert equal(saved(tmp_path), uninterrupted)


@pytest.mark.parametrize("change, message", [({"seed": 1}, "seed 0, now 1"), ({"total": 9}, "total 8, now 9"),
                                             ({"size": "small"}, "size None, now 'small'")])  # fmt: skip
def test_a_run_with_other_settings_is_refused_or_starts_again(tmp_path, capsys, change, message):
    train(tmp_path)
    with pytest.raises(CannotResume, match=rf"vision\.pt was made with other settings: {message}\. Use the same"):
        make_stage(tmp_path, **change)
    assert make_stage(tmp_path).finished  # nothing was lost
    stage = make_stage(tmp_path, restart=True, **change)
    assert (stage.step, stage.rows) == (0, []) and f"{message}. Starting again" in capsys.readouterr().err


def test_an_evaluation_resumes_after_its_last_batch_with_any_batch_size(tmp_path):
    """No state, only rows: one record per query."""

    def evaluate(by: int, stop: int | None = None) -> list[dict]:
        stage = Stage("task-8", tmp_path, 10, settings={"shape": (8, 8)}, save_every=0.0)
        for start in stage.steps(by=by):
            if start == stop:
                break
            stage.rows.extend({"key": str(i), "scores": [0.1 * i]} for i in range(start, min(start + by, 10)))
        return stage.rows

    assert len(evaluate(3, stop=6)) == 6 and [r["key"] for r in evaluate(4)] == [str(i) for i in range(10)]
    assert evaluate(1) == saved(tmp_path, "task-8")["rows"]


def test_a_result_replaces_the_state(tmp_path):
    """Of a finished training in a search only the result is needed."""
    stage = train(tmp_path)
    assert stage.result is None and make_stage(tmp_path).result is None
    size = stage.path.stat().st_size
    assert stage.finish({"score": 95.0, "shots": (0, 4)}) == {"score": 95.0, "shots": [0, 4]}  # as it is read again
    again = make_stage(tmp_path)
    assert again.result == stage.result and again.finished and again.rows == stage.rows
    assert saved(tmp_path)["state"] == {} and stage.path.stat().st_size < size / 2


def test_a_process_that_does_not_write_only_reads(tmp_path):
    train(tmp_path)
    content = saved(tmp_path)
    stage = Stage("vision", tmp_path, TOTAL, settings={"seed": 0}, writes=False)
    assert stage.finished and len(stage.rows) == TOTAL
    stage = Stage("other", tmp_path, 3, save_every=0.0, writes=False)
    assert list(stage.steps()) == [0, 1, 2] and not stage.path.exists()
    assert equal(saved(tmp_path), content)


def average_one_and_three(line, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=line, world_size=2)
    gradient = torch.tensor([1.0 + 2 * line])
    Processes(line, 2).average([gradient])
    save_json({"mean": gradient.item()}, folder / f"{line}.json")
    torch.distributed.destroy_process_group()


def test_gradients_of_two_processes_are_averaged(tmp_path):
    torch.multiprocessing.spawn(average_one_and_three, (tmp_path,), nprocs=2)
    assert [load_json(tmp_path / f"{rank}.json")["mean"] for rank in (0, 1)] == [2, 2]


def test_two_stages_in_parallel_processes_both_finish(tmp_path, uninterrupted):
    """Not compared bit for bit: each process has half of the threads, so its sums may be rounded differently."""
    run_in_parallel([train, partial(train, name="language", total=3)], tmp_path)
    assert saved(tmp_path)["step"] == uninterrupted["step"] and saved(tmp_path, "language")["step"] == 3


# ------------------------------------------------------------------------------------------------------- files on disk


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["disk full", "Ctrl-C"])
def test_readers_see_the_old_file_until_the_new_one_is_complete(tmp_path, error):
    """A failed write leaves the old file and no other."""
    old, path = {"w": torch.ones(2), "half": torch.ones(2, dtype=torch.bfloat16), "name": "é"}, tmp_path / "model.pt"
    save_tensors(old, path)

    def write(temporary):
        temporary.write_bytes(b"half of")
        assert equal(load_tensors(path), old)
        raise error

    for name in ("model.pt", "other.pt"):
        with pytest.raises(type(error)):
            write_atomically(tmp_path / name, write)
    with pytest.raises(TypeError):
        save_json({"accuracy": torch.ones(1)}, path)  # JSON has no tensors
    assert equal(load_tensors(path), old)
    save_json({"name": "é\ud83d", "loss": 0.1 + 0.2}, path)  # half of a character is replaced
    assert load_json(path) == {"name": "é?", "loss": 0.1 + 0.2} and os.listdir(tmp_path) == ["model.pt"]


@pytest.mark.parametrize("zipped", [True, False], ids=["torch", "old torch"])
def test_a_pickle_with_code_is_refused_and_none_of_it_runs(tmp_path, zipped):
    """The same file does run its code without `weights_only`, so the test is not empty."""
    created, path = tmp_path / "created", tmp_path / "model.pt"
    torch.save({"w": torch.ones(2), "code": CreatesFile(created)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"model\.pt: not a valid checkpoint .*unsafe pickle"):
        load_tensors(path)
    assert not created.exists()
    torch.load(path, weights_only=False)
    assert created.exists()
