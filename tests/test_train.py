"""`python -m minflamingo train`: on shards, resumed at the exact sample, with one process or several."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import equal, image, stopped_at, tiny_flamingo
from test_shards import pairs, tar

import minflamingo
from minflamingo.__main__ import main
from minflamingo.data.images import ImagePreprocessor
from minflamingo.recipes.train import TrainConfig, open_mixture, train
from minflamingo.training.checkpoint import load_tensors
from minflamingo.training.optim import accumulate_gradients, learning_rate_factor, parameter_groups, set_learning_rate
from minflamingo.training.parallel import Processes, distributed_processes
from minflamingo.training.stage import SettingsDiffer

CONFIG = TrainConfig(steps=4, pairs_batch=4, warmup=2, lr=0.01, save_every=0.0)
PAIRS = {"pairs": "pairs/{0..3}.tar"}
COMMAND = ["train", "--model", "model", "--pairs", PAIRS["pairs"], "--pairs-batch", "4", "--warmup", "2", "--lr", "0.01"]
COMMAND += ["--save-every", "0", "--device", "cpu"]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder, with a small model and four shards of pairs. In each, one image is broken."""
    tokenizer = minflamingo.ToyTokenizer([" a"])
    flamingo = tiny_flamingo(lm={"vocab_size": tokenizer.vocab_size, "max_length": 512})
    minflamingo.Pipeline(flamingo, tokenizer, ImagePreprocessor(8)).save(tmp_path / "model")
    for i in range(4):
        tar(tmp_path / f"pairs/{i}.tar", pairs(*range(9)) | {"003.png": b"broken"})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_command(out: str, steps: int, *more: str) -> dict:
    """The weights after `python -m minflamingo train`."""
    main([*COMMAND, "--out", out, "--steps", str(steps), *more])
    return load_tensors(f"{out}/model.pt")


def test_the_added_modules_are_trained_and_the_rest_is_frozen(folder, capsys):
    """Broken samples are skipped and counted. The saved folder can be loaded."""
    before, after = load_tensors("model/model.pt"), run_command("out", 12)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"resampler", "xattn_layers", "added_embed"}
    assert "pairs: skipped" in capsys.readouterr().out
    losses = [row["loss"] for row in load_tensors("out/stages/flamingo.pt")["rows"]]
    assert losses[-1] < losses[0]
    assert equal(minflamingo.load("out").model.state_dict(), after)


def test_a_stopped_training_resumes_at_the_exact_sample(folder):
    """Bit for bit. Readers in other processes and activation checkpointing do not change the result."""
    whole = run_command("whole", 8)
    with stopped_at(5), pytest.raises(SystemExit, match="the same command resumes"):
        run_command("parts", 8)
    assert equal(run_command("parts", 8, "--workers", "1", "--recompute"), whole)


def test_a_model_in_half_precision_is_trained_in_fp32_and_saved_as_it_was(folder):
    """A step of 1e-4 would be lost in bf16."""
    assert {t.dtype for t in run_command("out", 3, "--dtype", "bfloat16").values()} == {torch.bfloat16}
    assert {t.dtype for t in load_tensors("out/stages/flamingo.pt")["state"]["trained"].values()} == {torch.float32}
    assert isinstance(minflamingo.load("out").complete([image(1)[0], " a"], max_new_tokens=3), str)


# ------------------------------------------------------------------------------------------------------ several processes


class Threads:
    """`Processes` as threads of one process, written out."""

    def __init__(self, rank: int, barrier: threading.Barrier, tensors: list):
        self.rank, self.world, self.barrier, self.tensors = rank, 2, barrier, tensors

    def exchange(self, tensor: torch.Tensor) -> torch.Tensor:
        self.tensors[self.rank] = tensor.clone()
        self.barrier.wait()
        rows = torch.stack(self.tensors)
        self.barrier.wait()
        return rows

    def average(self, tensors) -> None:
        for tensor in tensors:
            tensor.copy_(self.exchange(tensor).sum(0) / self.world)

    def gather(self, state) -> dict:
        return {name: self.exchange(mine) for name, mine in state.items()}


def train_with_two(out: str) -> dict:
    """The weights with which two processes end."""
    barrier, tensors = threading.Barrier(2, timeout=60), [None, None]

    def one(rank: int) -> dict:
        stage = train(minflamingo.load("model"), PAIRS, out, CONFIG, Threads(rank, barrier, tensors))
        return stage.state["trained"].state_dict()

    with ThreadPoolExecutor(2) as pool:
        first, second = [job.result() for job in [pool.submit(one, rank) for rank in range(2)]]
    assert equal(first, second)
    return load_tensors(f"{out}/model.pt")


def test_processes_of_torchrun_average_their_gradients(folder):
    """Each has its own share of the data. Compared with one loop over the batches of both. One of them writes."""
    c = CONFIG
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "minflamingo"]
    command = [*torchrun, *COMMAND, "--steps", str(c.steps), "--out", "two"]
    env = {**os.environ, "PYTHONPATH": str(Path(minflamingo.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=env)
    assert done.returncode == 0, done.stderr
    after = load_tensors("two/model.pt")
    pipeline = minflamingo.load("model")
    named = dict(pipeline.model.trainable_parameters())
    before = torch.cat([parameter.detach().flatten() for parameter in named.values()])
    optimizer = torch.optim.AdamW(parameter_groups(named.items(), c.lr, c.weight_decay), betas=(0.9, 0.95))
    mixtures = [open_mixture(PAIRS, pipeline, c, Processes(rank, 2)) for rank in range(2)]
    for step, both in zip(range(c.steps), zip(*mixtures)):
        losses = {rank: lambda b=batches["pairs"]: pipeline.model.loss(b) for rank, batches in enumerate(both)}
        accumulate_gradients(losses, dict.fromkeys(losses, c.pairs_lambda / 2), list(named.values()))
        torch.nn.utils.clip_grad_norm_(named.values(), 1.0)
        set_learning_rate(optimizer, learning_rate_factor(step, c.warmup))
        optimizer.step()
    # Processes round differently, and AdamW enlarges this where a gradient is almost 0. So the whole update is compared.
    ours, expected = (torch.cat([state[name].detach().flatten() for name in named]) for state in (after, named))
    assert (ours - expected).norm() < 0.05 * (expected - before).norm()


def test_stopped_processes_resume_each_at_its_exact_sample(folder):
    """The checkpoint of the first process has the places of both. Another number of processes is refused."""
    whole = train_with_two("whole")
    with stopped_at(2), pytest.raises(KeyboardInterrupt):
        train_with_two("parts")
    with pytest.raises(SettingsDiffer, match="processes 2, now 1"):
        train(minflamingo.load("model"), PAIRS, "parts", CONFIG)
    assert equal(train_with_two("parts"), whole)


def test_a_device_with_a_number_cannot_be_that_of_several_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="--device cuda:1 is a single device"), distributed_processes("cuda:1"):
        pass
