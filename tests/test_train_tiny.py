"""The whole training script, as a smoke test: all stages run, nothing is learned. It can be stopped and resumed anywhere."""

import csv
import json
import os
import platform
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import QUICK, STAGES, equal, python
from PIL import Image

import minflamingo
import train_tiny
from data_toy.evaluation_tasks import TASKS, queries
from data_toy.media_pool import draw_media_pool, encode_media_pool
from data_toy.words import toy_tokenizer
from minflamingo.data.sample import is_medium
from minflamingo.evaluation.fewshot import few_shot_prompt, predict
from minflamingo.training.checkpoint import load_tensors

# ---------------------------------------------------------------------------------------------------- what a run writes


def test_results_json_has_the_documented_fields_and_is_printed_as_a_table(quick):
    out, printed = quick
    results = json.loads((out / "results.json").read_text())
    assert set(results) == {"seed", "device", "versions", "seconds", "tasks"}
    assert results["seed"] == 0 and results["device"] == f"cpu, {os.cpu_count()} cores"
    assert results["versions"] == {"python": platform.python_version(), "torch": torch.__version__}
    assert list(results["seconds"]) == [*STAGES, "evaluation", "total"]
    assert list(results["tasks"]) == [n for task in TASKS for n in (task, *(["naming_fact"] if task == "naming" else []))]
    for name, entry in results["tasks"].items():
        task = TASKS["naming" if name == "naming_fact" else name]
        assert entry["chance"] == task.chance and tuple(entry["shots"]) == task.shots
        for cell in entry["shots"].values():
            assert cell["n"] == train_tiny.RECIPES["quick"].queries
            assert cell["interval"][0] <= cell["score"] <= cell["interval"][1]
    header, rule, *lines = [line for line in printed.splitlines() if line.startswith("|")]
    columns = ["0", "0_text", "1", "2", "4", "5", "8", "10", "16", "20", "32"]
    assert [cell.strip().replace(" ", "_") for cell in header.split("|")[2:-1]] == columns and str(out) in printed
    assert set(rule) <= set("|-: ")
    for line, (name, entry) in zip(lines, results["tasks"].items(), strict=True):
        cells = [f"{entry['shots'][shots]['score']:.1f}" if shots in entry["shots"] else "" for shots in columns]
        assert [cell.strip() for cell in line.split("|")[1:-1]] == [f"`{name}`", *cells]


def test_metrics_csv_has_the_rows_of_all_stages(quick):
    """The loss is the sum of the datasets' losses weighted with lambda (section 2.4)."""
    with open(quick[0] / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["stage"] for row in rows} == set(STAGES)
    for row in (row for row in rows if row["stage"] == "flamingo"):
        parts = [train_tiny.LAMBDAS[name] * float(row[f"loss_{name}"]) for name in ("documents", "pairs", "videos")]
        assert float(row["loss"]) == pytest.approx(sum(parts), abs=1e-4)
        assert {k for k in row if k.startswith("alpha")} == {f"alpha_{p}_{i}" for p in ("xattn", "dense") for i in range(3)}


def test_figures_are_not_blank_and_no_unfinished_file_is_left(quick):
    files = {str(p.relative_to(quick[0])) for p in quick[0].rglob("*") if p.is_file() and p.suffix != ".previous"}
    figures = {f"{name}.png" for name in ("shots", "loss", "gates", "prompts", "attention", "world")}
    model = {"config.json", "tokenizer.json", "model.pt"}
    assert files == {*model, "results.json", "metrics.csv", *figures, ".lock", *(f"stages/{name}.pt" for name in STAGES)}
    for name in figures:
        pixels = np.asarray(Image.open(quick[0] / name).convert("L"))
        assert min(pixels.shape) >= 150 and max(pixels.shape) >= 400 and pixels.std() > 2, name


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


# -------------------------------------------------------------------------------------------------------- stop, resume

STOPPED = """
import os, signal, sys
import train_tiny
from minflamingo.training.stage import Stage
all_steps, (name, at, number) = Stage.steps, sys.argv[1:4]
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores Ctrl-C in background jobs

def steps(stage, *args, **kwargs):
    stage.save_every = 0.0  # a checkpoint after each step
    for step in all_steps(stage, *args, **kwargs):
        if (stage.name, step) == (name, int(at)):
            os.kill(os.getpid(), int(number))
        yield step

Stage.steps = steps
train_tiny.main(sys.argv[4:])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_run_that_was_stopped_twice_ends_like_one_that_was_never_stopped(quick, tmp_path, monkeypatch):
    """Ctrl-C, then SIGKILL, in the process that trains Flamingo: the same weights, rows and results, bit for bit."""
    out = tmp_path / "stopped"
    command = [*QUICK, "--out", str(out)]

    def read_stages(folder: Path) -> dict[str, dict]:
        return {path.stem: load_tensors(path) for path in (folder / "stages").glob("*.pt")}

    for name, step, number in (("flamingo", 2, signal.SIGINT), ("flamingo", 5, signal.SIGKILL)):
        done = python("-c", STOPPED, name, str(step), str(int(number)), *command)
        taken = step + (number == signal.SIGINT)  # Ctrl-C waits for the end of the step
        assert done.returncode == (1 if number == signal.SIGINT else -number), done.stderr
        assert read_stages(out)[name]["step"] == taken
    assert not (out / "results.json").exists() and not (out / "model.pt").exists()

    finished = [out / "stages" / name for name in ("vision.pt", "language.pt")]
    times = [path.stat().st_mtime_ns for path in finished]
    monkeypatch.setattr(train_tiny, "run_in_parallel", lambda *_: None)  # both stages are finished
    monkeypatch.setattr(train_tiny, "draw_figures", lambda *_: None)  # takes seconds, and has a test above
    monkeypatch.setattr(train_tiny, "TASKS", {task: TASKS[task] for task in ("naming", "rule")})  # a part is enough
    results = train_tiny.main(command)
    assert times == [path.stat().st_mtime_ns for path in finished]  # finished stages are only read
    stages, expected = read_stages(out), read_stages(quick[0])
    assert all(saved.pop("seconds") > 0 for saved in [*stages.values(), *expected.values()])  # only the times differ
    assert equal(stages, expected)
    assert equal(load_tensors(out / "model.pt"), load_tensors(quick[0] / "model.pt"))
    assert (out / "metrics.csv").read_bytes() == (quick[0] / "metrics.csv").read_bytes()
    whole = json.loads((quick[0] / "results.json").read_text())["tasks"]
    assert results["tasks"] == {task: whole[task] for task in ("naming", "naming_fact", "rule")}


def test_another_seed_needs_another_folder_or_a_fresh_start(quick, tmp_path, monkeypatch):
    out = tmp_path / "seeds"
    shutil.copytree(quick[0], out)
    command = [*QUICK, "--seed", "1", "--out", str(out)]
    with pytest.raises(SystemExit, match=r"(?s)other settings: seed 0, now 1.*--fresh.*--out"):
        train_tiny.main(command)
    assert (out / "model.pt").read_bytes() == (quick[0] / "model.pt").read_bytes() and len(list(out.glob("stages/*.pt"))) == 3
    # The training itself is that of the fixture.
    monkeypatch.setattr(train_tiny, "train_and_evaluate", lambda run: {"seed": run.seed, "tasks": {}, "seconds": {"total": 0}})
    assert train_tiny.main([*command, "--fresh"])["seed"] == 1 and not (out / "stages").exists()
