"""Several processes train one bridge: each on its share of the data, all with the mean of their gradients."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import stopped_at
from test_main import place, shard  # noqa: F401

import minflamingo
from minflamingo.train import Settings, mixture_of, train
from minflamingo.training.checkpoint import load_tensors
from minflamingo.training.optim import accumulate_gradients, learning_rate_factor, parameter_groups, set_learning_rate
from minflamingo.training.ranks import Ranks, ranks_of_environment
from minflamingo.training.stage import SettingsDiffer, Stage

SETTINGS = Settings(steps=4, pairs_batch=4, warmup=2, lr=0.01, save_every=0.0)
PAIRS = {"pairs": "pairs/{0..3}.tar"}


class Threads:
    """Ranks that are threads of this process: what torch.distributed does, written out."""

    def __init__(self, rank: int, world: int, barrier: threading.Barrier, board: list):
        self.rank, self.world, self.barrier, self.board = rank, world, barrier, board

    def everyones(self, tensor: torch.Tensor) -> torch.Tensor:
        self.board[self.rank] = tensor.clone()
        self.barrier.wait()
        rows = torch.stack(self.board)
        self.barrier.wait()
        return rows

    def average(self, tensors) -> None:
        for tensor in tensors:
            tensor.copy_(self.everyones(tensor).sum(0) / self.world)

    def gather(self, state, device) -> dict:
        return {name: self.everyones(mine) for name, mine in state.items()}


@pytest.fixture
def pairs(place):  # noqa: F811
    """Four shards beside the model."""
    (place / "pairs").mkdir()
    for i in range(4):
        shard(place / f"pairs/{i}.tar", 9)
    return place


def by_two_ranks(out: str) -> dict:
    """The weights that two ranks end with."""
    barrier, board = threading.Barrier(2, timeout=60), [None, None]

    def one(rank: int) -> Stage:
        return train(minflamingo.load("model"), PAIRS, out, SETTINGS, Threads(rank, 2, barrier, board))

    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(one, rank) for rank in range(2)]
    first, second = [job.result().modules["bridge"].state_dict() for job in jobs]
    assert all(torch.equal(first[name], second[name]) for name in first)
    return load_tensors(f"{out}/model.pt")


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_torchrun_starts_processes_that_take_the_mean_of_their_gradients(pairs):
    """Each on its own share of the data: against the same written as one loop over both ranks' batches. One of them writes."""
    s = SETTINGS
    how = f"--steps {s.steps} --pairs-batch {s.pairs_batch} --warmup {s.warmup} --lr {s.lr} --device cpu --out two"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "minflamingo"]
    where = {**os.environ, "PYTHONPATH": str(Path(minflamingo.__file__).parents[1])}
    command = [*torchrun, "train", "--config", "model", "--pairs", PAIRS["pairs"], *how.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=where)
    assert done.returncode == 0, done.stderr
    after = load_tensors("two/model.pt")

    loaded = minflamingo.load("model")
    named = dict(loaded.model.bridge_parameters())
    optimizer = torch.optim.AdamW(parameter_groups(named.items(), s.lr, s.weight_decay), betas=(0.9, 0.95))
    mixtures = [mixture_of(PAIRS, loaded, s, Ranks(rank, 2)) for rank in range(2)]
    for step, both in zip(range(s.steps), zip(*mixtures)):
        losses = {rank: lambda b=batches["pairs"]: loaded.model.loss(b) for rank, batches in enumerate(both)}
        accumulate_gradients(losses, dict.fromkeys(losses, s.pairs_lambda / 2), list(named.values()))
        torch.nn.utils.clip_grad_norm_(named.values(), s.clip)
        set_learning_rate(optimizer, learning_rate_factor(step, s.warmup))
        optimizer.step()
    for name, parameter in named.items():
        assert torch.allclose(after[name], parameter, rtol=1e-4, atol=1e-5), name


def test_two_ranks_that_were_stopped_go_on_each_at_its_exact_sample(pairs):
    """The first rank's checkpoint knows where both are in their data; another number of processes is refused."""
    whole = by_two_ranks("whole")
    with stopped_at(2), pytest.raises(KeyboardInterrupt):
        by_two_ranks("parts")
    with pytest.raises(SettingsDiffer, match="'processes': 2"):
        train(minflamingo.load("model"), PAIRS, "parts", SETTINGS)
    assert same(by_two_ranks("parts"), whole)


def test_a_device_with_a_number_cannot_be_that_of_several_processes(monkeypatch):
    """Each takes the GPU of its own number."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="--device cuda:1 is one for 2 processes: say cuda"), ranks_of_environment("cuda:1"):
        pass
