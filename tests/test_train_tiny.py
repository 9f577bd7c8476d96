"""The whole training script, as a smoke test: all stages run, nothing is learned. It can be stopped and resumed anywhere."""

import csv
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import minflamingo
import train_tiny
from data_toy.ablations import initialize
from data_toy.evaluation_tasks import CHANCE, queries
from data_toy.media_pool import draw_media_pool, encode_media_pool
from data_toy.words import toy_tokenizer
from minflamingo.data.sample import is_medium
from minflamingo.evaluation.fewshot import few_shot_prompt, predict
from minflamingo.training.checkpoint import load_tensors
from minflamingo.training.stage import Stage

ROOT = Path(train_tiny.__file__).parent
QUICK = ["--quick", "--device", "cpu"]
SHOTS = ["0", "0_text", "1", "2", "4", "8", "16", "32"]
TASKS = ["task", "binding_2way", "binding_4way", "naming", "naming_fact", "vqa", "ocr", "arithmetic", "video", "caption"]
FIGURES = ["shots", "loss", "gates", "prompts", "attention", "world"]
STAGES = ["vision", "language", "flamingo"]


def python(*arguments: str) -> subprocess.CompletedProcess:
    """A new process with as many threads as this one, so that sums are rounded alike."""
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=500)


def run_here(*arguments: object) -> dict:
    return train_tiny.main([*QUICK, *map(str, arguments)])


@pytest.fixture(scope="session")
def quick(tmp_path_factory) -> tuple[Path, str]:
    """One run without a stop, as a person starts it: its folder, and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "deep" / "quick"
    done = python("train_tiny.py", *QUICK, "--out", str(out))
    assert done.returncode == 0, done.stderr
    return out, done.stdout


@pytest.fixture
def no_figures(monkeypatch):
    """Drawing takes seconds, and one test of the figures is enough."""
    monkeypatch.setattr(train_tiny, "draw_figures", lambda *_: None)


def results_of(out: Path) -> dict:
    """results.json without the times."""
    results = json.loads((out / "results.json").read_text())
    del results["seconds"]
    return results


def equal(a, b) -> bool:
    """Equal to the last bit, however deep."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def assert_same_run(out: Path, other: Path) -> None:
    """Weights, optimizer, logged rows and results are equal; only the times differ."""
    for stage in STAGES:
        one, two = (load_tensors(folder / "stages" / f"{stage}.pt") for folder in (out, other))
        assert one.pop("seconds") > 0 and two.pop("seconds") > 0
        assert equal(one, two), stage
    assert equal(load_tensors(out / "model.pt"), load_tensors(other / "model.pt"))
    assert (out / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()
    assert results_of(out) == results_of(other)


# ---------------------------------------------------------------------------------------------------- what a run writes


def test_results_json_has_the_documented_fields(quick):
    results = json.loads((quick[0] / "results.json").read_text())
    assert set(results) == {"seed", "device", "versions", "seconds", "tasks"}
    assert results["seed"] == 0 and results["device"] == f"cpu, {os.cpu_count()} cores"
    assert results["versions"] == {"python": platform.python_version(), "torch": torch.__version__}
    assert list(results["seconds"]) == [*STAGES, "evaluation", "total"]
    assert list(results["tasks"]) == TASKS
    for task, entry in results["tasks"].items():
        assert entry["chance"] == (None if CHANCE[task] is None else 100 * CHANCE[task]) and list(entry["shots"]) == SHOTS
        for cell in entry["shots"].values():
            assert cell["n"] == train_tiny.RECIPES["quick"].queries
            assert cell["interval"][0] <= cell["score"] <= cell["interval"][1]


def test_the_printed_table_is_that_of_the_results(quick):
    out, printed = quick
    lines = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line.strip()}
    for task, entry in results_of(out)["tasks"].items():
        assert lines[task] == [f"{cell['score']:.1f}" for cell in entry["shots"].values()]
    assert str(out) in printed


def test_metrics_csv_has_the_rows_of_all_stages(quick):
    """The loss is the sum of the datasets' losses weighted with lambda (section 2.4); the first stage has only pairs."""
    with open(quick[0] / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["stage"] for row in rows} == set(STAGES)
    first, last = (row for row in rows if row["stage"] == "flamingo")
    parts = [train_tiny.LAMBDAS[name] * float(last[f"loss_{name}"]) for name in ("documents", "pairs", "videos")]
    assert float(last["loss"]) == pytest.approx(sum(parts), abs=1e-4)
    assert first["loss_documents"] == first["loss_videos"] == "" and first["loss"] == first["loss_pairs"]
    assert {k for k in last if k.startswith("alpha")} == {f"alpha_{p}_{i}" for p in ("xattn", "dense") for i in range(3)}


def test_every_figure_is_a_complete_image_that_is_not_blank(quick):
    for name in FIGURES:
        with Image.open(quick[0] / f"{name}.png") as image:
            image.verify()
        pixels = np.asarray(Image.open(quick[0] / f"{name}.png").convert("L"))
        assert min(pixels.shape) >= 150 and max(pixels.shape) >= 400 and pixels.std() > 2, name


def test_no_unfinished_file_is_left(quick):
    files = {str(p.relative_to(quick[0])) for p in quick[0].rglob("*") if p.is_file()}
    assert files == {
        "config.json", "tokenizer.json", "model.pt", "results.json", "metrics.csv",
        *(f"{name}.png" for name in FIGURES), *(f"stages/{name}.pt" for name in STAGES),
    }  # fmt: skip


def test_vision_encoder_and_lm_are_frozen_while_flamingo_trains(quick):
    """Section 2, figure 3: equal to the last bit, while everything that Flamingo adds has changed."""
    model = load_tensors(quick[0] / "model.pt")
    vision = load_tensors(quick[0] / "stages/vision.pt")["state"]["model"]
    lm = load_tensors(quick[0] / "stages/language.pt")["state"]["lm"]
    frozen = {k: v for k, v in vision.items() if k.startswith("vision.")} | {f"lm.{k}": v for k, v in lm.items()}
    assert set(frozen) == {k for k in model if k.startswith(("vision.", "lm."))} and len(frozen) > 40
    assert all(torch.equal(model[k], v) for k, v in frozen.items())
    gates = [v for k, v in model.items() if "alpha_" in k]
    assert len(gates) == 6 and all(gate != 0 for gate in gates)


def test_the_saved_model_answers_from_pixels_as_from_features(quick):
    flamingo = minflamingo.load(quick[0])
    assert flamingo.model.config == minflamingo.preset("tiny", toy_tokenizer().vocab_size)
    pool = draw_media_pool(600, seed=5, split="test")
    encoded = queries("vqa", encode_media_pool(flamingo.model, pool), 3, seed=0, support=4)
    expected = predict(flamingo.model, flamingo.tokenizer, encoded, "4")
    for query, answer in zip(queries("vqa", pool, 3, seed=0, support=4), expected, strict=True):
        prompt = [Image.fromarray(p[0]) if is_medium(p) else p for p in few_shot_prompt(query, "4").pieces]
        assert flamingo.complete(prompt, max_new_tokens=24) == answer


def test_the_embedding_of_image_starts_as_that_of_the_list_marker():
    tokenizer = toy_tokenizer()
    flamingo = minflamingo.Flamingo(minflamingo.preset("tiny", tokenizer.vocab_size))
    table = flamingo.lm.embed.weight.clone()
    initialize(flamingo)
    assert torch.equal(flamingo.added_embed.weight[0], table[tokenizer.encode("-")[0]])
    assert flamingo.added_embed.weight.requires_grad and torch.equal(flamingo.lm.embed.weight, table)


# -------------------------------------------------------------------------------------------------------- stop, resume


def test_a_second_run_reads_finished_stages_and_gets_the_same_results(quick, tmp_path, no_figures):
    out = tmp_path / "again"
    shutil.copytree(quick[0], out)
    (out / "results.json").unlink()
    times = {name: (out / "stages" / f"{name}.pt").stat().st_mtime_ns for name in STAGES}
    run_here("--out", out)
    assert times == {name: (out / "stages" / f"{name}.pt").stat().st_mtime_ns for name in STAGES}
    assert_same_run(out, quick[0])


KILLED = """
import os, signal, sys
import train_tiny
from minflamingo.training.stage import Stage
all_steps = Stage.steps

def steps(stage, *args, **kwargs):
    stage.save_every = 0.0  # a checkpoint after each step
    for step in all_steps(stage, *args, **kwargs):
        if (stage.name, step) == ("language", 4):
            os.kill(os.getpid(), signal.SIGKILL)
        yield step

Stage.steps = steps
train_tiny.main(sys.argv[1:])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_run_stopped_in_every_stage_ends_like_one_that_was_never_stopped(quick, tmp_path, no_figures, monkeypatch):
    """Ctrl-C in the first stage, SIGKILL in the second, Ctrl-C in the third: the same weights and results, bit for bit."""
    out, all_steps = tmp_path / "stopped", Stage.steps

    def stop_at(name: str, at: int):
        def steps(stage, *args, **kwargs):
            stage.save_every = 0.0
            for step in all_steps(stage, *args, **kwargs):
                if (stage.name, step) == (name, at):
                    raise KeyboardInterrupt
                yield step

        monkeypatch.setattr(Stage, "steps", steps)

    def reached() -> dict[str, int]:
        return {p.stem: load_tensors(p)["step"] for p in (out / "stages").glob("*.pt")}

    stop_at("vision", 2)
    with pytest.raises(KeyboardInterrupt):
        run_here("--out", out)
    assert reached() == {"vision": 2}
    done = python("-c", KILLED, *QUICK, "--out", str(out))
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert reached() == {"vision": 6, "language": 4}
    stop_at("flamingo", 3)
    with pytest.raises(KeyboardInterrupt):
        run_here("--out", out)
    assert reached() == {"vision": 6, "language": 6, "flamingo": 3}
    assert not (out / "results.json").exists() and not (out / "model.pt").exists()
    monkeypatch.setattr(Stage, "steps", all_steps)
    run_here("--out", out)
    assert_same_run(out, quick[0])


def test_another_seed_needs_another_folder_or_a_fresh_start(quick, tmp_path, no_figures, monkeypatch):
    monkeypatch.setattr(train_tiny, "evaluate", lambda *_: {})
    out = tmp_path / "seeds"
    shutil.copytree(quick[0], out)
    with pytest.raises(SystemExit, match=r"(?s)other settings: seed 0, now 1.*--fresh.*--out"):
        run_here("--seed", 1, "--out", out)
    assert equal(load_tensors(out / "model.pt"), load_tensors(quick[0] / "model.pt"))
    assert run_here("--seed", 1, "--fresh", "--out", out)["seed"] == 1


@pytest.mark.parametrize("more", [[], ["--fresh"]], ids=["resume", "fresh"])
def test_a_folder_that_cannot_be_written_is_reported_at_once(tmp_path, more):
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file" / "runs", tmp_path / "file"):
        with pytest.raises(SystemExit, match=r"^cannot write to .*file.*Choose another folder with --out"):
            run_here("--out", out, *more)
    assert (tmp_path / "file").read_text() == "in the way"


def test_an_unknown_size_is_answered_with_the_known_ones(capsys):
    with pytest.raises(SystemExit) as error:
        train_tiny.main(["--size", "huge"])
    assert error.value.code == 2 and "tiny" in capsys.readouterr().err


def test_the_random_numbers_of_a_step_depend_on_seed_stage_and_step_alone():
    def number(seed: int, *words: object) -> float:
        return train_tiny.Run("quick", seed, "cpu", Path(".")).rng(*words).random()

    assert number(0, "vision", 3) == number(0, "vision", 3)
    assert len({number(s, stage, step) for s in (0, 1) for stage in STAGES for step in range(5)}) == 30
