"""The whole story, quickly: everything happens, nothing is learnt; and it may be stopped and gone on with anywhere."""

from __future__ import annotations

import csv
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import minflamingo
import train_tiny
from data_toy import worlds
from data_toy.album import draw_album
from data_toy.tasks import CHANCE, queries
from data_toy.words import toy_tokenizer
from data_toy.world import MADE_UP_NAMES
from minflamingo.data.sample import EOC, Unscored, collate, is_medium
from minflamingo.evaluation.fewshot import few_shot_prompt, predict, wilson_interval
from minflamingo.training.checkpoint import load_tensors
from minflamingo.training.stage import Stage

ROOT = Path(train_tiny.__file__).parent
QUICK = ["--quick", "--device", "cpu"]
SHOTS = ["0", "0_text", "1", "2", "4", "8", "16", "32"]
TASKS = ["task", "binding_2way", "binding_4way", "naming", "naming_fact", "vqa", "ocr", "arithmetic", "video", "caption"]
FIGURES = ["shots", "loss", "gates", "prompts", "attention", "world"]
STAGES = ["vision", "language", "flamingo"]


def python(*arguments: str) -> subprocess.CompletedProcess:
    """A process of its own, with as many threads as this one: then sums are rounded alike."""
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=500)


def here(*arguments: object) -> dict:
    """The same in this process; the script sets the number of threads, which is put back."""
    threads = torch.get_num_threads()
    try:
        return train_tiny.main([*QUICK, *map(str, arguments)])
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def quick(tmp_path_factory) -> tuple[Path, str]:
    """One run without a stop, as a person starts it: its folder, and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "deep" / "quick"
    done = python("train_tiny.py", *QUICK, "--out", str(out))
    assert done.returncode == 0, done.stderr
    return out, done.stdout


@pytest.fixture
def no_figures(monkeypatch):
    """They have been seen once; drawing them takes seconds."""
    monkeypatch.setattr(train_tiny, "draw_figures", lambda *_: None)


@pytest.fixture
def no_exam(monkeypatch, no_figures):
    monkeypatch.setattr(train_tiny, "examine", lambda *_: {})


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
    """Weights, optimiser, logged rows and results, all but the times."""
    for stage in STAGES:
        one, two = (load_tensors(folder / "stages" / f"{stage}.pt") for folder in (out, other))
        assert one.pop("seconds") > 0 and two.pop("seconds") > 0
        assert equal(one, two), stage
    assert equal(load_tensors(out / "model.pt"), load_tensors(other / "model.pt"))
    assert (out / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()
    assert results_of(out) == results_of(other)


# -------------------------------------------------------------------------------------------------- what a run leaves


def test_results_json_has_exactly_the_documented_fields(quick):
    """Whoever reads results finds the same names in every run, small or large."""
    results = json.loads((quick[0] / "results.json").read_text())
    assert set(results) == {"seed", "device", "versions", "seconds", "tasks"}
    assert results["seed"] == 0 and results["device"] == f"cpu, {os.cpu_count()} cores"
    assert results["versions"] == {
        "python": platform.python_version(), "torch": torch.__version__, "minflamingo": minflamingo.__version__,
    }  # fmt: skip
    assert list(results["tasks"]) == TASKS
    for task, entry in results["tasks"].items():
        assert set(entry) == {"chance", "shots"} and entry["chance"] == CHANCE[task]
        assert list(entry["shots"]) == SHOTS
        for numbers in entry["shots"].values():
            assert set(numbers) == {"accuracy", "ci95", "n"} and numbers["n"] == train_tiny.RECIPES["quick"].exam
            right = numbers["accuracy"] * numbers["n"]
            assert right == round(right)
            assert numbers["ci95"] == pytest.approx(wilson_interval(round(right), numbers["n"]), abs=1e-4)


def test_the_times_of_the_stages_and_of_the_whole_are_told(quick):
    """In seconds; the whole is not less than its parts."""
    seconds = json.loads((quick[0] / "results.json").read_text())["seconds"]
    assert list(seconds) == ["vision", "language", "flamingo", "evaluation", "total"]
    *parts, total = seconds.values()
    assert all(part >= 0 for part in parts) and 0 < sum(parts) <= total + 0.5


def test_the_table_that_is_printed_is_that_of_the_results(quick):
    """A row a task, a column a number of shots."""
    out, printed = quick
    lines = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line.strip()}
    assert lines["0"] == [*SHOTS[1:], "shots"]
    for task, entry in results_of(out)["tasks"].items():
        assert lines[task] == [f"{numbers['accuracy']:.2f}" for numbers in entry["shots"].values()]
    assert str(out) in printed


def test_metrics_csv_holds_the_rows_of_all_stages(quick):
    """As each stage logged them, in order, no step twice; what a stage does not measure is empty."""
    with open(quick[0] / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    logged = [row for stage in STAGES for row in load_tensors(quick[0] / "stages" / f"{stage}.pt")["rows"]]
    assert [{k: v for k, v in row.items() if v} for row in rows] == [{k: str(v) for k, v in row.items()} for row in logged]
    steps = [(row["stage"], row["step"]) for row in rows]
    assert len(set(steps)) == len(steps) and {stage for stage, _ in steps} == set(STAGES)
    first, flamingo = (row for row in rows if row["stage"] == "flamingo")
    parts = [train_tiny.LAMBDA[kind] * float(flamingo[f"loss_{kind}"]) for kind in ("pages", "pairs", "videos")]
    assert float(flamingo["loss"]) == pytest.approx(sum(parts), abs=1e-4)  # §2.4: the weighted sum
    assert first["loss_pages"] == first["loss_videos"] == "" and first["loss"] == first["loss_pairs"]  # one picture at a time
    assert {k for k in flamingo if k.startswith("alpha")} == {f"alpha_{p}_{i}" for p in ("xattn", "dense") for i in range(3)}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_a_whole_picture(quick, name):
    """PNG to the end, large enough to read, and not blank."""
    path = quick[0] / f"{name}.png"
    with Image.open(path) as image:
        image.verify()
    pixels = np.asarray(Image.open(path).convert("L"))
    assert min(pixels.shape) >= 150 and max(pixels.shape) >= 400 and pixels.std() > 2


def test_nothing_unfinished_is_left_in_the_folder(quick):
    """The model, the results, the figures and the stages."""
    files = {str(p.relative_to(quick[0])) for p in quick[0].rglob("*") if p.is_file()}
    assert files == {
        "config.json", "tokenizer.json", "model.pt", "results.json", "metrics.csv",
        *(f"{name}.png" for name in FIGURES), *(f"stages/{name}.pt" for name in STAGES),
    }  # fmt: skip


def test_eye_and_tongue_left_the_bridges_lessons_as_they_entered_them(quick):
    """§2, figure 3: frozen, bit for bit; while everything that is Flamingo's own has moved."""
    model = load_tensors(quick[0] / "model.pt")
    pair = load_tensors(quick[0] / "stages/vision.pt")["modules"]["pair"]
    lm = load_tensors(quick[0] / "stages/language.pt")["modules"]["lm"]
    frozen = {k: v for k, v in pair.items() if k.startswith("vision.")} | {f"lm.{k}": v for k, v in lm.items()}
    assert set(frozen) == {k for k in model if k.startswith(("vision.", "lm."))} and len(frozen) > 40
    assert all(torch.equal(model[k], v) for k, v in frozen.items())
    gates = [v for k, v in model.items() if "alpha_" in k]
    assert len(gates) == 6 and all(gate != 0 for gate in gates)


def test_the_trained_flamingo_loads_and_completes(quick):
    """From pixels it answers what the exam's way, through features of the eye, answers."""
    flamingo = minflamingo.load(quick[0])
    assert flamingo.model.config == minflamingo.preset("tiny", toy_tokenizer().vocab_size)
    album = draw_album(600, seed=5, split="test")
    cases = queries("vqa", album, 3, seed=0, support=4)
    encoded = queries("vqa", train_tiny.encode_album(flamingo.model, album), 3, seed=0, support=4)
    expected = predict(flamingo.model, flamingo.tokenizer, encoded, "4")
    for case, answer in zip(cases, expected, strict=True):
        prompt = [Image.fromarray(p[0]) if is_medium(p) else p for p in few_shot_prompt(case, "4").pieces]
        assert minflamingo.complete(flamingo, prompt, max_new_tokens=24) == answer


# ---------------------------------------------------------------------------------------------- stopping and going on


def test_a_second_run_learns_nothing_again_and_comes_to_the_same_results(quick, tmp_path, no_figures):
    """Finished stages are only read: their files are not touched. The exam is the same for the same weights."""
    out = tmp_path / "again"
    shutil.copytree(quick[0], out)
    (out / "results.json").unlink()
    times = {name: (out / "stages" / f"{name}.pt").stat().st_mtime_ns for name in STAGES}
    before = json.loads((quick[0] / "results.json").read_text())["seconds"]
    seconds = here("--out", out)["seconds"]
    assert times == {name: (out / "stages" / f"{name}.pt").stat().st_mtime_ns for name in STAGES}
    assert_same_run(out, quick[0])
    assert [seconds[s] for s in STAGES] == [before[s] for s in STAGES]  # what the lessons took, not what reading took


KILLED = """
import os, signal, sys
import train_tiny
from minflamingo.training.stage import Stage
take_steps = Stage.steps

def steps(stage):
    stage.save_every = 0.0  # a checkpoint after each step
    for step in take_steps(stage):
        if (stage.name, step) == ("language", 4):
            os.kill(os.getpid(), signal.SIGKILL)
        yield step

Stage.steps = steps
train_tiny.main(sys.argv[1:])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_run_that_is_stopped_in_every_stage_ends_like_one_that_never_was(quick, tmp_path, no_figures, monkeypatch):
    """Ctrl-C at the eye, SIGKILL at the tongue, Ctrl-C at the bridge: then weights and results, bit for bit."""
    out = tmp_path / "stopped"
    take_steps = Stage.steps

    def stop_at(name: str, at: int):
        def steps(stage):
            stage.save_every = 0.0
            for step in take_steps(stage):
                if (stage.name, step) == (name, at):
                    raise KeyboardInterrupt
                yield step

        monkeypatch.setattr(Stage, "steps", steps)

    def reached() -> dict[str, int]:
        return {p.stem: load_tensors(p)["step"] for p in (out / "stages").glob("*.pt")}

    stop_at("vision", 2)
    with pytest.raises(KeyboardInterrupt):
        here("--out", out)
    assert reached() == {"vision": 2}
    done = python("-c", KILLED, *QUICK, "--out", str(out))
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert reached() == {"vision": 6, "language": 4}
    stop_at("flamingo", 3)
    with pytest.raises(KeyboardInterrupt):
        here("--out", out)
    assert reached() == {"vision": 6, "language": 6, "flamingo": 3}
    assert not (out / "results.json").exists() and not (out / "model.pt").exists()
    monkeypatch.setattr(Stage, "steps", take_steps)
    here("--out", out)
    assert_same_run(out, quick[0])


def test_another_seed_needs_another_folder_or_a_fresh_start(quick, tmp_path, no_exam):
    """Going on with another seed would be a run of neither; nothing of the old one is harmed by asking."""
    out = tmp_path / "seeds"
    shutil.copytree(quick[0], out)
    with pytest.raises(SystemExit, match=r"other settings .*--fresh, .*--out"):
        here("--seed", 1, "--out", out)
    assert equal(load_tensors(out / "model.pt"), load_tensors(quick[0] / "model.pt"))
    assert here("--seed", 1, "--fresh", "--out", out)["seed"] == 1
    for stage in STAGES:
        old, new = (load_tensors(folder / "stages" / f"{stage}.pt")["modules"] for folder in (quick[0], out))
        assert not equal(old, new)


# ------------------------------------------------------------------------------------------------- what may go wrong


@pytest.mark.parametrize("more", [[], ["--fresh"]], ids=["going on", "fresh"])
def test_a_folder_that_cannot_be_written_to_is_told_at_once(tmp_path, more):
    """Before anything is learnt, in one line, with what to do."""
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file" / "runs", tmp_path / "file"):
        with pytest.raises(SystemExit, match=r"^cannot write to .*file.*: .*\. Choose another folder with --out$"):
            here("--out", out, *more)
    assert (tmp_path / "file").read_text() == "in the way"


def test_an_unknown_size_is_answered_with_those_there_are(capsys):
    """And nothing is started."""
    with pytest.raises(SystemExit) as error:
        train_tiny.main(["--size", "huge"])
    assert error.value.code == 2
    said = capsys.readouterr().err
    assert "--size" in said and "tiny" in said and "small" in said


# ------------------------------------------------------------------------------------------------------- the mixture


def test_the_three_kinds_of_dataset_have_the_papers_shapes():
    """§2.4: pages [N > 1, T = 1], image-text pairs [N = 1, T = 1], video-text pairs [T > 1]; the loss has a weight for each."""
    album, recipe = draw_album(1200, seed=1), train_tiny.RECIPES["quick"]
    before_its_image = pages = 0
    for step in range(40):
        batches = train_tiny.draw_batches(album, random.Random(step), recipe)
        assert list(batches) == list(train_tiny.LAMBDA)
        assert all(len(s.media) > 1 and all(len(m) == 1 for m in s.media) for s in batches["pages"])
        assert all([len(m) for m in s.media] == [1] for s in batches["pairs"])
        assert all(len(m) > 1 for s in batches["videos"] for m in s.media)
        pages += len(batches["pages"])
        before_its_image += sum(s.attend_next for s in batches["pages"])
        assert not any(s.attend_next for kind in ("pairs", "videos") for s in batches[kind])
    assert 0 < before_its_image / pages < 3 * train_tiny.P_NEXT


def test_the_first_lessons_show_one_picture_at_a_time_mostly_of_two_things():
    """Five in seven ask, three questions at once; nothing else is among them."""
    album, recipe = draw_album(1200, seed=1), train_tiny.RECIPES["tiny"]
    kind_of = {id(medium): getattr(scene, "kind", "video") for scene, medium in zip(album.scenes, album.media)}
    seen = Counter()
    for step in range(10):
        lesson = train_tiny.draw_first_lesson(album, random.Random(step), recipe)
        assert list(lesson) == ["pairs"] and all(len(s.media) == 1 for s in lesson["pairs"])
        for s in lesson["pairs"]:
            said = [p.text if isinstance(p, Unscored) else p for p in s.pieces if not is_medium(p)]
            asked = sum(isinstance(p, str) and p.startswith("Question:") for p in said)
            assert asked in (0, 3) and (not asked or kind_of[id(s.media[0])] == "pair")
            seen["asked" if asked else "told"] += 1
            seen[kind_of[id(s.media[0])]] += 1
    assert 5 * seen["told"] == 2 * seen["asked"] > 0
    assert set(seen) == {"told", "asked", "things", "pair", "row"} and seen["pair"] > seen["things"] + seen["row"]


def test_the_second_lessons_show_short_pages_of_made_up_names_beside_the_first():
    """Half as many shots as on the pages of a later step, and every page names things; none is long, none has text before."""
    album, recipe = draw_album(1200, seed=1), train_tiny.RECIPES["tiny"]
    names = set(MADE_UP_NAMES["train"])
    for step in range(10):
        lesson = train_tiny.draw_second_lesson(album, random.Random(step), recipe)
        assert list(lesson) == ["pages", "pairs"] and all(len(s.media) == 1 for s in lesson["pairs"])
        (n,) = {len(s.media) for s in lesson["pages"]}
        assert 4 <= n <= 8 and 80 - 8 < n * len(lesson["pages"]) <= 80
        for s in lesson["pages"]:
            said = " ".join(p.text if isinstance(p, Unscored) else p for p in s.pieces if isinstance(p, str | Unscored))
            assert not s.attend_next and is_medium(s.pieces[0])
            assert names & {word.rstrip(".") for word in said.split()}


def test_a_page_has_at_most_8_images_and_a_long_page_has_text_alone_before_them(monkeypatch):
    """What one step shows is the same in either case: so many shots, on few long pages or on more short ones."""
    for mixture in ("PAGES", "LONG"):
        monkeypatch.setattr(train_tiny, mixture, {worlds.task: 1})
    monkeypatch.setattr(train_tiny, "P_NEXT", 0.0)
    album, long_ones = draw_album(1200, seed=1), 0
    for step in range(40):
        pages = train_tiny.draw_pages(album, random.Random(step), shots=160)
        ends = [sum(p is EOC or p == Unscored(EOC) for p in s.pieces if not is_medium(p)) for s in pages]
        assert 160 - 8 < sum(ends) <= 160 and len({len(s.media) for s in pages}) == 1
        if len(pages[0].media) == ends[0]:
            assert 3 <= ends[0] <= 8
            continue
        long_ones += 1
        for s in pages:
            text, shown = s.pieces[: 2 * 24], s.pieces[2 * 24 :]
            assert all(isinstance(p, Unscored) for p in text) and len(s.media) == sum(map(is_medium, shown)) == 8
    assert 0 < long_ones / 40 < 2 * train_tiny.LONG_PAGES


def test_the_row_of_the_image_token_begins_as_a_dash():
    """It has the dash's row and may move on from it; the language model's own table is as it was."""
    tokenizer = toy_tokenizer()
    flamingo = minflamingo.Flamingo(minflamingo.preset("tiny", tokenizer.vocab_size))
    table = flamingo.lm.embed.weight.clone()
    train_tiny.begin_as_a_dash(flamingo)
    assert torch.equal(flamingo.new_embed.weight[0], table[tokenizer.encode("-")[0]])
    assert flamingo.new_embed.weight.requires_grad and torch.equal(flamingo.lm.embed.weight, table)


def test_micro_batches_have_the_loss_of_the_one_large_batch():
    """Pages of like length together: the shares add up to 1, and Σ share · loss is the mean over all labelled tokens."""
    tokenizer, album = toy_tokenizer(), draw_album(1200, seed=1)
    flamingo = minflamingo.Flamingo(minflamingo.preset("tiny", tokenizer.vocab_size)).eval()
    album = train_tiny.encode_album(flamingo, album)
    pages = train_tiny.draw_pages(album, random.Random(3), 40)
    _, expected = flamingo(collate(pages, tokenizer))
    for parts in (1, 2, 3, 100):
        shares, batches = zip(*train_tiny.micro_batches(pages, parts, tokenizer), strict=True)
        assert sum(len(batch.ids) for batch in batches) == len(pages) and len(batches) == min(parts, len(pages))
        assert sum(shares) == pytest.approx(1)
        total = sum(share * flamingo(batch)[1].item() for share, batch in zip(shares, batches, strict=True))
        assert total == pytest.approx(expected.item(), rel=1e-5)
        lengths = [batch.ids.shape[1] for batch in batches]
        assert lengths == sorted(lengths)


def test_no_other_cuts_leave_less_padding():
    """Beside all the ways there are to cut a few samples."""

    def size(lengths, cuts):
        return sum(lengths[b - 1] * (b - a) for a, b in pairwise(cuts))

    assert train_tiny.least_padding([2, 2, 3, 9, 9], parts=2) == [0, 3, 5]
    dice = random.Random(0)
    for _ in range(100):
        n, parts = dice.randint(1, 8), dice.randint(1, 4)
        lengths = sorted(dice.choices(range(1, 20), k=n))
        ways = [[0, *cuts, n] for k in range(parts) for cuts in combinations(range(1, n), k)]
        found = train_tiny.least_padding(lengths, parts)
        assert found in ways and size(lengths, found) == min(size(lengths, cuts) for cuts in ways)


def test_the_same_place_in_the_story_has_the_same_dice():
    """A step's data depends on seed, stage and step alone: that is what lets a run go on where it was."""

    def dice(seed: int, *words: object) -> float:
        return train_tiny.Run("quick", seed, "cpu", Path("."), train_tiny.RECIPES["quick"]).rng(*words).random()

    assert dice(0, "vision", 3) == dice(0, "vision", 3)
    assert len({dice(s, stage, step) for s in (0, 1) for stage in STAGES for step in range(5)}) == 30
