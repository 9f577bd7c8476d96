"""Stages: a run that was stopped and one that never was end with the same weights, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from minflamingo.training import checkpoint
from minflamingo.training.checkpoint import load_tensors
from minflamingo.training.stage import Stage

TOTAL = 8


def make_stage(folder, total: int = TOTAL, save_every: float = 0.0, name: str = "eye", **settings) -> tuple[Stage, nn.Module]:
    """A stage around a tiny model, the same at every call; by default there is a checkpoint after each step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))  # a norm with running statistics: buffers
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    return Stage(name, folder, total, {"net": model}, optimizer, {"seed": 0, **settings}, save_every), model


def learn(stage: Stage, model: nn.Module, step: int) -> None:
    """One step, whose data depends on the step alone."""
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
    loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
    stage.optimizer.zero_grad()
    loss.backward()
    stage.optimizer.step()
    stage.log(step, loss=loss)


def train(folder, before=lambda stage, step: None, after=lambda stage, step: None, **options) -> Stage:
    """All steps that are left; `before` and `after` are called around each."""
    stage, model = make_stage(folder, **options)
    for step in stage.steps():
        before(stage, step)
        learn(stage, model, step)
        after(stage, step)
    return stage


def equal(a, b) -> bool:
    """Equal to the last bit, however deep."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def saved(folder, name: str = "eye") -> dict:
    """All that is in the checkpoint but the time it took."""
    content = load_tensors(Path(folder) / f"{name}.pt")
    assert content.pop("seconds") >= 0
    return content


@pytest.fixture
def straight(tmp_path) -> dict:
    """The checkpoint of a run that was never stopped."""
    train(tmp_path / "straight")
    return saved(tmp_path / "straight")


def test_a_stage_takes_every_step_once_and_keeps_weights_optimizer_and_rows(tmp_path):
    """Against the same loop without any Stage."""
    stage = train(tmp_path)
    twin, model = make_stage(tmp_path / "other")
    rows = []
    twin.log = lambda step, loss: rows.append({"stage": "eye", "step": step, "loss": round(loss.item(), 5)})
    for step in range(TOTAL):
        learn(twin, model, step)
    content = saved(tmp_path)
    assert equal(content["modules"]["net"], dict(model.state_dict()))
    assert equal(content["optimizer"], twin.optimizer.state_dict())
    assert content["rows"] == stage.rows == rows and content["step"] == stage.step == TOTAL
    assert stage.finished and not (tmp_path / "other/eye.pt").exists()


@pytest.mark.parametrize("k", range(TOTAL))
def test_a_loop_that_is_left_after_k_steps_goes_on_to_the_same_end(tmp_path, straight, k):
    """The generator is closed in the middle of step k, its weights already moved."""
    stage, model = make_stage(tmp_path)
    for step in stage.steps():
        learn(stage, model, step)
        if step == k:
            break
    resumed, model = make_stage(tmp_path)
    assert (resumed.step, len(resumed.rows)) == (k, k)
    assert list(_steps(resumed, model)) == list(range(k, TOTAL))
    assert equal(saved(tmp_path), straight)


def _steps(stage, model):
    for step in stage.steps():
        learn(stage, model, step)
        yield step


def test_a_checkpoint_in_the_middle_of_a_step_takes_that_step_again(tmp_path, straight):
    """A step counts when the loop asks for the next one, not before."""

    def save_and_stop(stage, step):
        assert stage.step == step
        if step == 4:
            stage.save()
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        train(tmp_path, before=save_and_stop)
    assert saved(tmp_path)["step"] == 4
    train(tmp_path)
    assert equal(saved(tmp_path), straight)


@pytest.mark.parametrize("place", ["before", "after"])
def test_an_error_in_the_loop_costs_the_steps_since_the_last_checkpoint_and_no_more(tmp_path, straight, place):
    """Checkpoints are rare here: one behind step 2, the error in step 6; steps 3, 4 and 5 are taken again."""

    def fail(stage, step):
        stage.save_every = 0.0 if step == 2 else 1e9
        if step == 6:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        train(tmp_path, **{place: fail})
    assert saved(tmp_path)["step"] == 3
    stage = train(tmp_path)
    assert [row["step"] for row in stage.rows] == list(range(TOTAL))  # no step twice
    assert equal(saved(tmp_path), straight)


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from minflamingo.training import checkpoint
from test_stage import train

def half_a_file(content, path):
    path.write_bytes(b"half of a checkpoint")
    os.kill(os.getpid(), signal.SIGKILL)

def before(stage, step):
    if step == 5:
        checkpoint.torch.save = half_a_file

train({folder!r}, before)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_process_that_is_killed_while_it_writes_goes_on_to_the_same_end(tmp_path, straight):
    """SIGKILL runs no `finally`: in the middle of the checkpoint of step 5, that of step 4 is still whole."""
    script = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    root = Path(checkpoint.__file__).parents[2]
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert saved(tmp_path)["step"] == 5
    stage = train(tmp_path)
    assert [row["step"] for row in stage.rows] == list(range(TOTAL))
    assert equal(saved(tmp_path), straight)


def test_a_finished_stage_has_nothing_left_to_do(tmp_path, straight):
    """It is only read: no step, no writing, the same weights."""
    train(tmp_path)
    time = (tmp_path / "eye.pt").stat().st_mtime_ns
    stage, model = make_stage(tmp_path)
    assert stage.finished and list(stage.steps()) == [] and len(stage.rows) == TOTAL
    assert equal(dict(model.state_dict()), straight["modules"]["net"])
    assert (tmp_path / "eye.pt").stat().st_mtime_ns == time


@pytest.mark.parametrize("change", [{"seed": 1}, {"total": 9}, {"size": "small"}], ids=["seed", "total", "new setting"])
def test_a_run_with_other_settings_is_refused_with_a_way_out(tmp_path, change):
    """Going on with another seed or size would be a run of neither."""
    train(tmp_path)
    with pytest.raises(ValueError, match=r"eye\.pt was made with other settings .*--fresh.*--out"):
        make_stage(tmp_path, **change)
    assert make_stage(tmp_path)[0].finished  # and nothing was lost


def test_a_checkpoint_of_another_model_or_of_none_is_refused_by_name(tmp_path):
    """Same settings, other layers; then a file cut short."""
    train(tmp_path)
    other = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(ValueError, match=r"eye\.pt, net does not fit this model\. left over: 1\."):
        Stage("eye", tmp_path, TOTAL, {"net": other}, torch.optim.AdamW(other.parameters()), {"seed": 0})
    (tmp_path / "eye.pt").write_bytes((tmp_path / "eye.pt").read_bytes()[:700])
    with pytest.raises(ValueError, match=r"eye\.pt is no checkpoint"):
        make_stage(tmp_path)


def test_two_stages_in_one_folder_do_not_meet(tmp_path):
    """Each has its own file and its own rows."""
    train(tmp_path, name="eye")
    train(tmp_path, name="tongue", total=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["eye.pt", "tongue.pt"]
    assert [saved(tmp_path, n)["rows"][-1] | {"loss": 0} for n in ("eye", "tongue")] == [
        {"stage": "eye", "step": 7, "loss": 0}, {"stage": "tongue", "step": 2, "loss": 0},
    ]  # fmt: skip


def test_time_adds_up_over_interruptions(tmp_path):
    """`seconds` counts those of all calls."""

    def stop(stage, step):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, before=stop)
    before = load_tensors(tmp_path / "eye.pt")["seconds"]
    stage = train(tmp_path)
    assert 0 < before < stage.seconds == load_tensors(tmp_path / "eye.pt")["seconds"]
