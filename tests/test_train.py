"""`python -m minflamingo train`: on shards, resumed at the exact sample, with one process or several."""

import os
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest
import torch
from conftest import EOC, equal, image, stopped_at, tiny_flamingo
from test_records import encoded
from test_shards import pairs, tar

import minflamingo
from minflamingo.__main__ import main
from minflamingo.data.images import ImagePreprocessor
from minflamingo.data.readers import write_jsonl
from minflamingo.data.sample import Sample
from minflamingo.recipes.train import TrainConfig, open_mixture, train
from minflamingo.training.checkpoint import load_tensors
from minflamingo.training.optim import accumulate_gradients, learning_rate_factor, parameter_groups, set_learning_rate
from minflamingo.training.parallel import Processes, distributed_processes
from minflamingo.training.stage import CannotResume

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
    assert re.search(r"pairs: \d+ times, a sample was skipped or cut. .*\n    pairs.\d.tar, 003: ", capsys.readouterr().out)
    losses = [row["loss"] for row in load_tensors("out/stages/flamingo.pt")["rows"]]
    assert losses[-1] < losses[0]
    assert equal(minflamingo.load("out").model.state_dict(), after)


def test_a_stopped_training_resumes_at_the_exact_sample(folder):
    """Bit for bit, with other workers and activation checkpointing. A finished run can have more steps, and not fewer."""
    whole = run_command("whole", 8)
    with stopped_at(5), pytest.raises(SystemExit, match="the same command resumes"):
        run_command("parts", 6)
    run_command("parts", 6, "--workers", "3", "--recompute")
    assert equal(run_command("parts", 8), whole)  # steps 6 and 7
    for other, difference in ((["--steps", "7"], "total 8, now 7"), (["--lr", "0.1"], "lr 0.01, now 0.1")):
        with pytest.raises(SystemExit, match=rf"other settings: {difference}\. Use the same settings, or another folder\.$"):
            run_command("parts", 8, *other)


TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]


@pytest.mark.parametrize("number, launcher, workers", [(signal.SIGINT, [], 2), (signal.SIGTERM, TORCHRUN, 1)])
def test_ctrl_c_and_sigterm_save_the_current_step_and_stop(folder, number, launcher, workers):
    """All processes of the group receive the signal, also readers and those of torchrun. Nothing is lost: it resumes there."""
    options = ["--steps", "100000", "--save-every", "1e9", "--workers", str(workers), "--out", "out"]
    command = [sys.executable, "-m", *launcher, "minflamingo", *COMMAND, *options]
    env = {**os.environ, "PYTHONPATH": str(Path(minflamingo.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True)
    read = ""
    while not re.search(r" [1-9]\d*/100000", read):  # the progress bar: at least one step is done
        read += process.stderr.read(1)
        assert process.poll() is None, read
    os.killpg(process.pid, number)
    read = process.communicate(timeout=60)[1]
    assert process.returncode != 0 and "Traceback" not in read[: read.rindex("the same command resumes here")]
    saved = load_tensors("out/stages/flamingo.pt")
    assert saved["step"] >= 1 and saved["rows"]


def test_losses_that_are_not_finite_stop_the_training_and_the_last_checkpoint_is_kept(folder):
    """The message names step and dataset. Weights that are not finite are not saved, although the loss before them was."""
    run_command("out", 2)
    good = load_tensors("out/stages/flamingo.pt")["state"]["trained"]
    loss = minflamingo.Flamingo.loss
    infinite = mock.patch.object(minflamingo.Flamingo, "loss", lambda self, batch: loss(self, batch) * float("nan"))
    with infinite, pytest.raises(SystemExit, match=r"step 6: the loss of pairs is not finite, 5 times.*lower learning rate"):
        run_command("out", 12)
    assert torch.load("out/stages/flamingo-step-6.batch", weights_only=True)["pairs"]["ids"].shape[0] == 4
    assert equal(load_tensors("out/stages/flamingo.pt")["state"]["trained"], good)  # as after step 1
    with pytest.raises(SystemExit, match=r"after step 0, a weight is not finite|step 1: the loss of pairs is not finite"):
        run_command("wild", 3, "--lr", "1e38", "--warmup", "0")
    assert not Path("wild/model.pt").exists()


def test_photos_with_texts_and_json_lines_are_datasets(folder, capsys):
    """Folders and .jsonl files for each kind of dataset. A text that is longer than the context is cut and named."""
    for i in range(3):
        Path("photos/sub").mkdir(parents=True, exist_ok=True)
        Path(f"photos/sub/{i}.png").write_bytes(encoded(i))
        Path(f"photos/sub/{i}.txt").write_text("a" if i else "a" * 1200)
    samples = [Sample([image(i), " a", EOC, image(i), " a", EOC]) for i in range(3)]
    write_jsonl(samples, "documents.jsonl")
    write_jsonl([Sample([image(1, frames=2), " a", EOC])], "videos.jsonl")
    data = ["--pairs", "photos", "--videos", "videos.jsonl", "--documents", "documents.jsonl"]
    run_command("out", 2, *data)
    assert "photos, sub/0: cut from 1203 tokens to the 512 of the LM's context" in capsys.readouterr().out
    assert {"loss_pairs", "loss_videos", "loss_documents"} < set(load_tensors("out/stages/flamingo.pt")["rows"][0])


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

    def any(self, flag: bool) -> bool:
        return bool(self.exchange(torch.tensor(flag)).any())


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
    command = [sys.executable, "-m", *TORCHRUN, "minflamingo", *COMMAND, "--steps", str(c.steps), "--out", "two"]
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
    with pytest.raises(CannotResume, match="processes 2, now 1"):
        train(minflamingo.load("model"), PAIRS, "parts", CONFIG)
    assert equal(train_with_two("parts"), whole)


def test_a_model_that_cannot_generate_eoc_is_not_trained(folder):
    (pipeline := minflamingo.load("model")).tokenizer.eoc_id = 10**6
    with pytest.raises(ValueError, match="no output for <EOC>"):
        train(pipeline, PAIRS, "out", CONFIG)


def test_a_device_with_a_number_cannot_be_that_of_several_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="--device cuda:1 is a single device"), distributed_processes("cuda:1"):
        pass
