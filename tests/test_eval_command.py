"""`python -m minflamingo eval`: tables and files, a run that stops and goes on, broken pictures counted."""

from __future__ import annotations

import json
import random
import re

import numpy as np
import pytest
import torch
from conftest import picture, tiny_flamingo
from PIL import Image

import minflamingo
from minflamingo import LoadedFlamingo, ToyTokenizer, save
from minflamingo.__main__ import main
from minflamingo.data.images import ImagePreparation
from minflamingo.evaluation import command
from minflamingo.evaluation.benchmarks import load_benchmark
from minflamingo.evaluation.cells import Cell
from minflamingo.evaluation.figure import scores_figure
from minflamingo.evaluation.runner import Protocol, evaluate

TOKENIZER = ToyTokenizer([" a", " cat", " dog", "Output", ":", "Question", " Answer"])
SUITE = '''
import numpy as np
from minflamingo.evaluation.task import Example, Task, Template

def suite(split, queries):
    def example(split, i):
        pixels = np.random.default_rng(i + 100 * (split == "test")).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        return Example(f"{split}-{i}", lambda: pixels, (("cat", "dog")[i % 2],))
    shots, asked = ([example(s, i) for i in range(n)] for s, n in (("train", 12), (split, queries)))
    asked_of = [Example(e.key, e.media, (("yes", "no")[i % 2],), {}, ("yes", "no")) for i, e in enumerate(asked)]
    return {
        "named": Task("named", shots, asked, Template("Output:"), "top1", max_new_tokens=4),
        "chosen": Task("chosen", shots, asked_of, Template("Output:"), "auc"),
    }
'''


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a small Flamingo, a suite of two toy tasks, and VQAv2 with five questions, two pictures broken."""
    model = tiny_flamingo(lm={"vocab_size": TOKENIZER.vocab_size, "max_length": 4096})
    save(LoadedFlamingo(model, TOKENIZER, ImagePreparation(8)), tmp_path / "model")
    (tmp_path / "little_suite.py").write_text(SUITE)
    for split, n in (("val", 5), ("train", 9)):
        folder = tmp_path / "vqa" / f"{split}2014"
        folder.mkdir(parents=True)
        questions = [{"image_id": i, "question": f"What is {i}?", "question_id": 10 * i} for i in range(1, n + 1)]
        given = [{"question_id": 10 * i, "answers": [{"answer": f"{i}"}] * 10, "image_id": i} for i in range(1, n + 1)]
        (tmp_path / f"vqa/v2_OpenEnded_mscoco_{split}2014_questions.json").write_text(json.dumps({"questions": questions}))
        (tmp_path / f"vqa/v2_mscoco_{split}2014_annotations.json").write_text(json.dumps({"annotations": given}))
        for i in range(1, n + 1):
            Image.fromarray(picture(i)[0]).save(folder / f"COCO_{split}2014_{i:012}.jpg")
    (tmp_path / "vqa/val2014/COCO_val2014_000000000003.jpg").write_bytes(b"no image")
    (tmp_path / "vqa/train2014/COCO_train2014_000000000004.jpg").unlink()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


HOW = ["--device", "cpu", "--beams", "1", "--batch-size", "2"]
TOY = ["eval", "--model", "model", "--suite", "little_suite", "--limit", "7", *HOW]
VQA = ["eval", "--model", "model", "--task", "vqav2", "--data", "vqa", "--shots", "0_text,4", *HOW]


def results(place, out: str = "out") -> dict:
    return json.loads((place / out / "results.json").read_text())


def test_all_tasks_of_a_suite_end_in_one_table_one_figure_and_files(place, capsys):
    """Scores are those of the runner; the mean is that of their shares."""
    main([*TOY, "--task", "toy", "--shots", "0,0_text,2", "--out", "out"])
    found, printed = results(place), capsys.readouterr().out
    assert list(found["tasks"]) == ["named", "chosen"]
    import little_suite

    flamingo = minflamingo.load("model")
    for task in little_suite.suite("test", 7).values():
        for shots in ("0", "0_text", "2"):
            expected = evaluate(flamingo, task, shots, protocol=Protocol(beams=1))
            cell = found["tasks"][task.name]["shots"][shots]
            assert (cell["score"], cell["interval"], cell["n"]) == (expected["score"], expected["interval"], 7)
            assert f"{cell['score']:.1f} [{cell['interval'][0]:.0f}, {cell['interval'][1]:.0f}]" in printed
            said = json.loads((place / f"out/predictions/{task.name}-{shots}-0.json").read_text())
            assert [s["key"] for s in said] == [f"test-{i}" for i in range(7)]
    shares = [found["tasks"][name]["shots"]["2"]["share"] for name in ("named", "chosen")]
    assert found["mean"]["2"] == pytest.approx(sum(shares) / 2, abs=1e-4) and "mean, 1 = all right" in printed
    assert Image.open(place / "out/shots.png").size[0] > 500


def test_a_benchmark_on_disk_is_evaluated_beside_what_others_published(place, capsys):
    """Official submission files; broken queries and shots are counted and named; the paper's numbers stand below ours."""
    main([*VQA, "--out", "out"])
    found, printed = results(place)["tasks"]["vqav2"]["shots"], capsys.readouterr().out
    assert found["4"]["n"] == 4 and list(found["4"]["broken"]) == ["30"] and found["4"]["replaced"] == ["40"]  # of train
    assert "vqav2: 1 queries could not be opened and were left out, e.g. 30: " in printed
    assert "vqav2: 1 shots could not be opened and were replaced, e.g. 40" in printed
    said = json.loads((place / "out/predictions/vqav2-4-0.json").read_text())
    assert [(set(s), type(s["question_id"])) for s in said] == [({"question_id", "answer"}, int)] * 4
    assert [s["question_id"] for s in said] == [10, 20, 40, 50]
    assert re.search(r"Flamingo-80B +~56.3 +~63.1", printed) and re.search(r"OpenFlamingo-9B +54.8", printed)
    task = load_benchmark("vqav2", "vqa")
    expected = evaluate(minflamingo.load("model"), task, "4", protocol=Protocol(beams=1))
    assert found["4"]["score"] == expected["score"]


def stop_after(monkeypatch, batches: int) -> None:
    """Control-C while the cell's next lines are being written."""
    add, left = Cell.add, [batches]

    def stops(self, records):
        add(self, records)
        left[0] -= 1
        if left[0] == 0:
            with open(self.path, "a") as file:
                file.write('{"key": "test-3", "predic')
            raise KeyboardInterrupt

    monkeypatch.setattr(Cell, "add", stops)


def test_a_run_that_was_stopped_goes_on_with_the_next_batch(place, monkeypatch, capsys):
    """Killed in the middle of a line: that line is asked again, what is before it is not; the end is the same."""
    arguments = [*TOY, "--task", "toy", "--shots", "0_text,2", "--trials", "2"]
    main([*arguments, "--out", "whole"])
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        with pytest.raises(SystemExit, match="the same command goes on from here"):
            main([*arguments, "--out", "parts"])
    asked: list[str] = []
    add = Cell.add
    monkeypatch.setattr(Cell, "add", lambda self, records: asked.extend(r["key"] for r in records) or add(self, records))
    main([*arguments, "--out", "parts"])
    cells = 2 * 2 * 2
    assert len(asked) == cells * 7 - (7 + 2 * 2)  # the first cell has four batches; of the second, two were done
    for out in ("results.json", "cells/named-2-1.jsonl", "predictions/chosen-2-0.json"):
        assert (place / "parts" / out).read_text() == (place / "whole" / out).read_text()
    asked.clear()
    main([*arguments, "--out", "parts"])
    assert asked == [] and results(place, "parts") == results(place, "whole")


@pytest.mark.parametrize("change", ["seed", "beams", "model", "task"])
def test_what_was_answered_under_other_settings_is_not_reused(place, capsys, change):
    """Seed, protocol, weights, texts: the cell starts over, and says so. Nothing is mixed."""
    arguments = [*TOY, "--task", "named", "--shots", "2", "--out", "out"]
    main(arguments)
    if change == "model":
        flamingo = minflamingo.load("model")
        with torch.no_grad():
            flamingo.model.resampler.latents += 0.5
        save(flamingo, "model")
    elif change == "task":
        import sys

        (place / "little_suite.py").write_text(SUITE.replace('Template("Output:")', 'Template("Question:")'))
        (place / "other_suite.py").write_text((place / "little_suite.py").read_text())
        sys.modules.pop("little_suite")
        arguments[arguments.index("little_suite")] = "other_suite"
    else:
        arguments += {"seed": ["--seed", "1"], "beams": ["--beams", "2"]}[change]
    capsys.readouterr()
    main(arguments)
    assert "named-2-0: the settings are not those of" in capsys.readouterr().err
    fresh = [*arguments]
    fresh[fresh.index("out")] = "fresh"
    main(fresh)
    assert (place / "out/cells/named-2-0.jsonl").read_text() == (place / "fresh/cells/named-2-0.jsonl").read_text()


def test_several_trials_show_other_shots_and_their_mean_is_the_score(place):
    """Where nothing is drawn there is one trial: with no shots, or with RICES."""
    main([*TOY, "--task", "chosen", "--shots", "0,0_text,4", "--trials", "3", "--out", "out"])
    shots = results(place)["tasks"]["chosen"]["shots"]
    assert len(set(shots["4"]["trials"])) > 1 and "trials" not in shots["0"]
    assert shots["4"]["score"] == pytest.approx(np.mean(shots["4"]["trials"]), abs=0.01)
    main([*TOY, "--task", "chosen", "--shots", "0_text,4", "--trials", "2", "--rices", "--out", "rices"])
    shots = results(place, "rices")["tasks"]["chosen"]["shots"]
    assert "trials" not in shots["4"] and len(shots["0_text"]["trials"]) == 2
    assert len(list((place / "rices/cells").glob("rices-*.pt"))) == 1


def test_rices_and_ensembling_are_those_of_the_runner(place):
    """The options reach the protocol."""
    main([*TOY, "--task", "chosen", "--shots", "4", "--rices", "--ensemble", "--out", "out"])
    import little_suite

    expected = evaluate(
        minflamingo.load("model"), little_suite.suite("test", 7)["chosen"], "4",
        protocol=Protocol(rices=True, ensemble=True, beams=1),
    )  # fmt: skip
    assert results(place)["tasks"]["chosen"]["shots"]["4"]["score"] == expected["score"]
    lines = (place / "out/cells/chosen-4-0.jsonl").read_text().splitlines()
    scores = [json.loads(line)["scores"] for line in lines[1:]]
    assert np.allclose(scores, [r["scores"] for r in expected["records"]], atol=1e-5)


def test_what_rices_does_without_is_counted(place, capsys):
    """A support picture that is not there is in no search."""
    main([*VQA, "--rices", "--out", "out"])
    assert "vqav2: 1 support examples could not be opened, and RICES does without them" in capsys.readouterr().out
    assert results(place)["tasks"]["vqav2"]["shots"]["4"]["replaced"] == []


def test_a_limit_draws_queries_by_the_seed(place):
    """Not the first ones: files are often in order."""
    given = dict(task="vqav2", data=place / "vqa", split=None, template="paper", limit=3, suite="little_suite")

    def keys(seed: int) -> list[str]:
        (task,) = command.load_tasks(type("Given", (), {**given, "seed": seed}))
        return [q.key for q in task.queries]

    assert keys(0) == keys(0) and len(keys(0)) == 3 and len({tuple(keys(s)) for s in range(8)}) > 2


@pytest.mark.parametrize(
    "change, said",
    [
        (["--task", "vqav2"], "vqav2 is a benchmark on disk: say with --data where its files are"),
        (["--task", "vqav2", "--data", "nowhere"], "nowhere"),
        (["--task", "nothing"], "there is no task 'nothing'; choose toy, named, chosen, or one of coco, "),
        (["--task", "toy", "--suite", "absent_suite"], "module absent_suite, which cannot be imported .* repository's folder"),
        (["--task", "toy", "--shots", "4,four"], "shots are a number, or 0_text for the paper's zero-shot; not 'four'"),
        (["--task", "toy", "--shots", "64"], "named: 64 shots asked for, but the support has 12 examples"),
        (["--task", "toy", "--trials", "0"], "--trials is 0; it must be at least 1"),
        (["--task", "toy", "--model", "nowhere"], "nowhere/config.json is missing"),
    ],
)
def test_what_cannot_be_evaluated_ends_with_one_sentence(place, change, said):
    """What, where, and what to do; no traceback."""
    with pytest.raises(SystemExit, match=said):
        main([*TOY, *change, "--out", "out"])


def some_results(n: int) -> dict:
    rng = random.Random(0)
    shots = ("0", "0_text", "4", "8")

    def cell():
        score = 100 * rng.random()
        return {"score": score, "interval": [score - 3, score + 4], "share": score / 100}

    return {
        "tasks": {f"task_{i}": {"metric": "vqa", "shots": {s: cell() for s in shots}} for i in range(n)},
        "mean": {s: 0.1 * k for k, s in enumerate(shots)},
    }


@pytest.mark.parametrize("n", [1, 2, 9])
def test_the_figure_shows_a_curve_a_task_and_their_mean(n):
    """Lines carry the numbers; one task alone has no mean."""
    content = some_results(n)
    axes = scores_figure(content).axes
    assert len(axes) == (n + 1 if n > 1 else 1)
    lines = {line.get_gid(): line.get_ydata().tolist() for a in axes for line in a.lines}
    for name, task in content["tasks"].items():
        assert lines[name.replace("_", " ")] == [c["score"] for c in task["shots"].values()]
    assert n == 1 or lines["mean"] == list(content["mean"].values())


def test_a_figure_without_any_score_is_refused():
    """Hidden test sets have none."""
    with pytest.raises(ValueError, match="no scores to plot"):
        scores_figure({"tasks": {"t": {"metric": "vqa", "shots": {"4": {"n": 3}}}}})
