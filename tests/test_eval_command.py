"""`python -m minflamingo eval`: table, figure and files; interruption and resume; broken files; invalid options."""

import json
from pathlib import Path

import pytest
from conftest import image, stopped_at, tiny_flamingo
from little_suite import suite
from PIL import Image
from test_benchmarks import coco_questions

from minflamingo import Pipeline, ToyTokenizer, load
from minflamingo.__main__ import main
from minflamingo.data.images import ImagePreprocessor
from minflamingo.evaluation.runner import Protocol, evaluate
from minflamingo.recipes.benchmarks import load_tasks

TOKENIZER = ToyTokenizer([" a", " cat", " dog", "Output", ":", "Question", " Answer"])

@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A small model, and VQAv2 with five questions. One query image and one shot image are broken."""
    model = tiny_flamingo(lm={"vocab_size": TOKENIZER.vocab_size, "max_length": 4096})
    Pipeline(model, TOKENIZER, ImagePreprocessor(8)).save(tmp_path / "model")
    for split, n in (("val", 5), ("train", 9)):
        images = tmp_path / "vqa" / f"{split}2014"
        images.mkdir(parents=True)
        rows = [(10 * i, i, f"What is {i}?", [{"answer": f"{i}"}] * 10) for i in range(1, n + 1)]
        for name, content in coco_questions("v2_", {f"{split}2014": rows}).items():
            (tmp_path / "vqa" / name).write_text(json.dumps(content))
        for i in range(1, n + 1):
            Image.fromarray(image(i)[0]).save(images / f"COCO_{split}2014_{i:012}.jpg")
    (tmp_path / "vqa/val2014/COCO_val2014_000000000003.jpg").write_bytes(b"not an image")
    (tmp_path / "vqa/train2014/COCO_train2014_000000000004.jpg").unlink()
    monkeypatch.chdir(tmp_path)
    return tmp_path


OPTIONS = ["--device", "cpu", "--beams", "1", "--batch-size", "2"]
TOY = ["eval", "--model", "model", "--suite", "little_suite", "--limit", "7", *OPTIONS]
VQA = ["eval", "--model", "model", "--task", "vqav2", "--data", "vqa", "--shots", "0_text,4", "--out", "out", *OPTIONS]


def results(out: str = "out") -> dict:
    return json.loads(Path(out, "results.json").read_text())


def test_all_tasks_of_a_suite_give_a_table_a_figure_and_files(folder, capsys):
    """Scores are those of the runner. The mean over tasks is in percent."""
    main([*TOY, "--task", "toy", "--shots", "0,0_text,2", "--out", "out"])
    found, printed = results(), capsys.readouterr().out
    pipeline = load("model")
    for task in suite("test", 7).values():
        for shots in ("0", "0_text", "2"):
            expected = evaluate(pipeline, task, shots, protocol=Protocol(beams=1))
            cell = found["tasks"][task.name]["shots"][shots]
            assert (cell["score"], cell["interval"], cell["n"]) == (expected["score"], expected["interval"], 7)
            assert f"{cell['score']:.1f} [{cell['interval'][0]:.0f}, {cell['interval'][1]:.0f}]" in printed
            predictions = json.loads((folder / f"out/predictions/{task.name}-{shots}-0.json").read_text())
            assert [p["key"] for p in predictions] == [f"test-{i}" for i in range(7)]
    scores = [found["tasks"][name]["shots"]["2"]["score"] for name in ("named", "chosen")]
    assert found["mean"]["2"] == pytest.approx(sum(scores) / 2, abs=0.01) and "mean" in printed
    assert Image.open("out/shots.png").size[0] > 500


@pytest.mark.parametrize("rices", [False, True])
def test_broken_files_are_counted_named_and_left_out(folder, capsys, rices):
    """A broken query has no prediction. A broken shot is replaced by another one; RICES never finds it."""
    main([*VQA, *["--rices"] * rices])
    cell, printed = results()["tasks"]["vqav2"]["shots"]["4"], capsys.readouterr().out
    assert cell["n"] == 4 and list(cell["broken"]) == ["30"] and cell["replaced"] == ([] if rices else ["40"])
    assert "vqav2: skipped 1 queries that could not be opened, for example 30: " in printed
    assert rices or "vqav2: replaced 1 shots that could not be opened, for example 40" in printed
    predictions = json.loads((folder / "out/predictions/vqav2-4-0.json").read_text())
    assert [p["key"] for p in predictions if "prediction" in p] == ["10", "20", "40", "50"]
    assert [p["key"] for p in predictions if "broken" in p] == ["30"]


def test_an_interrupted_evaluation_resumes_with_the_same_result(folder):
    arguments = [*TOY, "--task", "toy", "--shots", "0_text,2", "--trials", "2"]
    main([*arguments, "--out", "whole"])
    with stopped_at(4), pytest.raises(SystemExit, match="resume"):
        main([*arguments, "--out", "parts"])
    main([*arguments, "--out", "parts"])
    for file in ("results.json", "predictions/named-2-1.json"):
        assert Path("parts", file).read_text() == Path("whole", file).read_text()
    chosen = [json.loads(Path(out, "predictions/chosen-2-0.json").read_text()) for out in ("parts", "whole")]
    assert len({tuple((p["key"], p["prediction"]) for p in predictions) for predictions in chosen}) == 1


def test_trials_draw_other_shots_and_the_score_is_their_mean(folder):
    """Where nothing is random there is one trial: without shots, and with RICES."""
    main([*TOY, "--task", "named", "--shots", "0,4", "--trials", "3", "--out", "out"])
    shots = results()["tasks"]["named"]["shots"]
    assert len({Path(f"out/predictions/named-4-{trial}.json").read_text() for trial in range(3)}) == 3
    assert len(shots["4"]["trials"]) == 3 and len(shots["0"]["trials"]) == 1
    assert shots["4"]["score"] == pytest.approx(sum(shots["4"]["trials"]) / 3, abs=0.01)
    main([*TOY, "--task", "chosen", "--shots", "0_text,4", "--trials", "2", "--rices", "--ensemble", "--out", "rices"])
    shots = results("rices")["tasks"]["chosen"]["shots"]
    assert len(shots["4"]["trials"]) == 1 and len(shots["0_text"]["trials"]) == 2
    (task,) = load_tasks(given(task="chosen"))
    expected = evaluate(load("model"), task, "4", protocol=Protocol(rices=True, ensemble=True, beams=1))
    assert shots["4"]["score"] == expected["score"]


def given(**options):
    defaults = {"task": "vqav2", "data": Path("vqa"), "split": None, "template": "paper", "limit": 7, "suite": "little_suite"}
    return type("Arguments", (), {**defaults, "seed": 0, **options})


def test_a_limit_draws_queries_by_the_seed(folder):
    """They are not the first ones, because files are often sorted."""
    keys = [[query.key for query in load_tasks(given(limit=3, seed=seed))[0].queries] for seed in range(8)]
    assert keys[0] == [query.key for query in load_tasks(given(limit=3))[0].queries]
    assert {len(k) for k in keys} == {3} and len(set(map(tuple, keys))) > 2


@pytest.mark.parametrize("options, message", [
    (["--task", "vqav2"], "vqav2 is a benchmark on disk: pass its folder with --data"),
    (["--task", "vqav2", "--data", "nowhere"], "nowhere"),
    (["--task", "nothing"], "unknown task 'nothing'; choose toy, named, chosen, or one of coco, "),
    (["--task", "toy", "--suite", "absent_suite"], "No module named 'absent_suite'.*; pass another module with --suite"),
    (["--task", "toy", "--shots", "4,four"], "four"),
    (["--task", "toy", "--shots", "64"], "named: 64 shots"),
    (["--task", "toy", "--trials", "0"], "--trials is 0; it must be at least 1"),
])  # fmt: skip
def test_an_invalid_option_ends_with_one_sentence(folder, options, message):
    with pytest.raises(SystemExit, match=message):
        main([*TOY, *options, "--out", "out"])
