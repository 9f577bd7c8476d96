"""Fine-tuning (paper §3.2): what learns and what does not, larger pictures, the grid, and the test that is asked once."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from conftest import close, picture, tiny_flamingo
from conftest import random as normal
from PIL import Image
from torch import nn

import minflamingo
from minflamingo import LoadedFlamingo, ToyTokenizer, save
from minflamingo.__main__ import main
from minflamingo.config import VisionConfig
from minflamingo.data.images import ImagePreparation
from minflamingo.data.sample import EOC, Unscored, collate
from minflamingo.evaluation import finetune_command, grid
from minflamingo.evaluation.figure import cells_of, grid_figure
from minflamingo.evaluation.finetune import (
    Habits,
    Point,
    answer_loss,
    larger_pictures,
    lightly_changed,
    rounds,
    schedule_factor,
    specialist,
    training_sample,
    tune,
)  # fmt: skip
from minflamingo.evaluation.grid import HALVING, Grid, Start, search, split, sum_of
from minflamingo.evaluation.task import Example, Task, Template
from minflamingo.vision import ViT, enlarge, stretch

TOKENIZER = ToyTokenizer([" a", " cat", " dog", "Output", ":", "Question", " Answer"])
SUITE = '''
import numpy as np
from minflamingo.evaluation.task import Example, Task, Template

LOOKED = []

def suite(split, queries, support=16):
    """Bright pictures are dogs, dark ones cats."""
    def example(split, i):
        def media():
            LOOKED.append((split, i))
            dice = np.random.default_rng(i + 1000 * (split == "test"))
            return dice.integers(128 * (i % 2), 128 * (i % 2) + 128, (8, 8, 3), dtype=np.uint8)
        return Example(f"{split}-{i}", media, (("cat", "dog")[i % 2],))
    def of(split, n):
        return [example(split, i) for i in range(n)]
    chosen = [Example(e.key, e.media, (("yes", "no")[i % 2],), {}, ("yes", "no")) for i, e in enumerate(of(split, queries))]
    shown = [Example(e.key, e.media, (("yes", "no")[i % 2],), {}, ("yes", "no")) for i, e in enumerate(of("train", support))]
    return {
        "named": Task("named", of("train", support), of(split, queries), Template("Output:"), "top1", max_new_tokens=4),
        "chosen": Task("chosen", shown, chosen, Template("Output:"), "auc"),
    }
'''
POINT = Point(lr=3e-3, schedule="linear", steps=3, batch_size=4)


def little_task(n: int = 12, queries: int = 4, per_picture: int = 1) -> Task:
    def of(split: str, n: int) -> list[Example]:
        pictures = [lambda i=i: picture(i + 100 * (split == "test"))[0] for i in range(n)]
        answers = ((" cat", "cat")[i % 2] for i in range(n * per_picture))
        return [Example(f"{split}-{k}", pictures[k // per_picture], (next(answers),)) for k in range(n * per_picture)]

    return Task("little", of("train", n), of("test", queries), Template("Output:", "{answer}"), "top1", max_new_tokens=3)


def little_flamingo(stem: str = "patch", **changes) -> LoadedFlamingo:
    vision = VisionConfig(image_size=8, patch_size=4, d=16, layers=1, heads=2, stem=stem)
    lm = {"vocab_size": TOKENIZER.vocab_size, "max_length": 256}
    return LoadedFlamingo(tiny_flamingo(lm=lm, vision=vision, **changes), TOKENIZER, ImagePreparation(8))


# ------------------------------------------------------------------------------------------------------ larger pictures


def by_a_loop(positions: torch.Tensor, side: int) -> torch.Tensor:
    """Each patch of the new grid between the four middles of the old one, row by row, column by column."""
    old = math.isqrt(len(positions))
    rows = []
    for i in range(side):
        for j in range(side):
            y, x = ((k + 0.5) * old / side - 0.5 for k in (i, j))
            y, x = min(max(y, 0), old - 1), min(max(x, 0), old - 1)
            top, left = min(int(y), max(old - 2, 0)), min(int(x), max(old - 2, 0))
            below, right = min(top + 1, old - 1), min(left + 1, old - 1)
            a, b = y - top, x - left
            upper = (1 - b) * positions[top * old + left] + b * positions[top * old + right]
            lower = (1 - b) * positions[below * old + left] + b * positions[below * old + right]
            rows.append((1 - a) * upper + a * lower)
    return torch.stack(rows)


@pytest.mark.parametrize("old, new", [(2, 4), (3, 5), (4, 6), (4, 3), (1, 3), (5, 8)])
def test_positions_are_stretched_bilinearly_over_the_finer_grid(old, new):
    """§3.2, a higher resolution: an explicit loop over rows and columns; rows and columns are not confused."""
    positions = normal(old * old, 6, seed=old)
    assert close(stretch(positions, new), by_a_loop(positions, new))
    by_hand = stretch(torch.tensor([[0.0], [1.0], [0.0], [1.0]]), 4)
    assert by_hand.flatten().tolist() == [0.0, 0.25, 0.75, 1.0] * 4


def test_at_its_own_size_an_eye_stays_what_it_is():
    """Bit for bit; the class token's position at every size."""
    positions = normal(9, 5)
    assert torch.equal(stretch(positions, 3), positions)
    vit = ViT(VisionConfig(image_size=12, patch_size=4, d=16, layers=1, heads=2)).eval()
    pixels, before, first = normal(2, 3, 12, 12), vit(normal(2, 3, 12, 12)), vit.positions[0].clone()
    assert torch.equal(enlarge(vit, 12)(pixels), before)
    assert torch.equal(enlarge(vit, 20).positions[0], first) and vit.positions.shape == (26, 16)
    assert vit(normal(1, 3, 20, 20)).shape == (1, 26, 16) and vit.config.image_size == 20


def test_a_size_that_does_not_fit_the_patches_is_refused():
    """The error says which sizes do; an eye of one's own has no positions that we know of."""
    vit = ViT(VisionConfig(image_size=12, patch_size=4, d=16, layers=1, heads=2))
    with pytest.raises(ValueError, match="of 14 pixels cannot be cut into patches of 4: take a multiple, such as 12 or 16"):
        enlarge(vit, 14)
    with pytest.raises(TypeError, match="only a ViT can be given pictures of another size, not a Conv2d"):
        enlarge(nn.Conv2d(3, 8, 3), 16)
    with pytest.raises(ValueError, match="7 positions on a grid of side 4: both grids must be squares"):
        stretch(normal(7, 2), 4)


def test_a_model_for_larger_pictures_is_saved_and_loaded_as_such(tmp_path):
    """The config on disk has the new size; the same picture gives the same logits."""
    flamingo = larger_pictures(little_flamingo(), 16)
    save(flamingo, tmp_path)
    again = minflamingo.load(tmp_path)
    assert again.prepare.size == again.model.config.vision.image_size == 16
    sample = training_sample(little_task(), little_task().support[0], random.Random(0))
    logits = [f.model(collate([sample], TOKENIZER, f.prepare))[0] for f in (flamingo, again)]
    assert torch.equal(*logits)


# ------------------------------------------------------------------------------------------------ what learns, from what


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_the_language_model_stays_and_the_eye_learns(stem):
    """§3.2: bit for bit the one, every weight of the other; BatchNorm's statistics are those of pretraining."""
    flamingo = little_flamingo(stem)
    before = {n: t.clone() for n, t in flamingo.model.state_dict().items()}
    losses = tune(flamingo, little_task(), little_task().support, replace(POINT, steps=5))
    after, moved = flamingo.model.state_dict(), {n for n, p in flamingo.model.named_parameters() if not n.startswith("lm.")}
    assert len(losses) == 5 and losses[-1] < losses[0]
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) == (name not in moved), name
    assert any("running_mean" in n for n in before) == (stem == "conv")
    assert not flamingo.model.training and not any(p.requires_grad for p in flamingo.model.vision.parameters())
    assert all(p.grad is None for p in flamingo.model.parameters())


def test_the_loss_is_on_answer_and_end_of_chunk_alone():
    """<BOS><image>Output: cat<EOC>: the prompt carries no label, and no shot stands before it."""
    sample = training_sample(little_task(), little_task().support[0], random.Random(0))
    assert sample.pieces[1:] == [Unscored("Output:"), " cat", EOC] and sample.pieces[0].shape == (1, 8, 8, 3)
    batch = collate([sample], TOKENIZER, ImagePreparation(8))
    assert batch.labels[batch.labels >= 0].tolist() == [*TOKENIZER.encode(" cat"), TOKENIZER.eoc_id]
    several = replace(little_task().support[0], answers=("cat", " dog"))
    drawn = Counter(training_sample(little_task(), several, random.Random(i)).pieces[2] for i in range(100))
    assert set(drawn) == {"cat", " dog"} and min(drawn.values()) > 25


def test_a_batch_in_parts_makes_the_steps_of_a_whole_one():
    """Gradients are accumulated, each part with its share of the labels."""
    point = replace(POINT, batch_size=8, steps=6)
    whole, parts = (
        tune(little_flamingo(), little_task(), little_task().support, point, Habits(at_once=at_once)) for at_once in (64, 3)
    )
    assert parts == pytest.approx(whole, rel=1e-4) and whole[-1] < 0.9 * whole[0]


def test_every_example_is_seen_once_before_one_is_seen_twice():
    """Rounds in other orders, which depend on the seed alone."""
    drawn = [i for i, _ in zip(rounds(7, 3), range(21))]
    assert all(sorted(drawn[k : k + 7]) == list(range(7)) for k in (0, 7, 14))
    assert drawn[:7] != drawn[7:14] and drawn == [i for i, _ in zip(rounds(7, 3), range(21))]
    assert drawn != [i for i, _ in zip(rounds(7, 4), range(21))]


def test_schedules_fall_as_their_names_say():
    """A straight line and half a wave, from 1 to nothing."""
    assert [schedule_factor("linear", s, 4) for s in range(4)] == [1, 0.75, 0.5, 0.25]
    assert [schedule_factor("constant", s, 4) for s in range(4)] == [1] * 4
    assert [schedule_factor("cosine", s, 4) for s in range(4)] == pytest.approx([1, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5])


def test_light_augmentation_shifts_and_lights_each_sample_and_mirrors_none():
    """48 pixels: at most 3 in each direction, the same for all frames of a film; brightness within 15%."""
    film = np.zeros((3, 48, 48, 3), np.uint8)
    film[:, 20:24, 10:30] = 100
    film[:, 20:24, 10:14] = 200  # its left end is lighter: a mirrored one would have it at the right
    places, lights = set(), []
    for seed in range(200):
        changed = lightly_changed(film, random.Random(seed))
        assert changed.shape == film.shape and changed.dtype == np.uint8
        assert all(np.array_equal(changed[0], frame) for frame in changed)
        rows, columns = np.nonzero(changed[0, :, :, 0])
        places.add((int(rows.min()) - 20, int(columns.min()) - 10))
        assert np.ptp(rows) == 3 and np.ptp(columns) == 19
        line = changed[0, rows.min(), columns.min() : columns.max() + 1, 0].astype(float)
        assert line[0] > 1.8 * line[-1]
        lights.append(line[-1] / 100)
    assert {y for y, _ in places} == {x for _, x in places} == set(range(-3, 4)) and len(places) > 40
    assert 0.85 <= min(lights) < 0.88 and 1.12 < max(lights) <= 1.15


def test_what_cannot_be_opened_is_passed_over_unless_it_is_all():
    """As in training on shards."""
    task, flamingo = little_task(), little_flamingo()

    def lost():
        raise FileNotFoundError("no such picture")

    broken = [replace(e, media=lost) for e in task.support]
    assert len(tune(flamingo, task, [*broken[:6], *task.support[6:]], POINT)) == 3
    with pytest.raises(ValueError, match="little: none of its examples can be opened, e.g. train-.*no such picture"):
        tune(flamingo, task, broken, POINT)
    features = [replace(e, media=lambda: torch.zeros(1, 5, 16)) for e in task.support]
    with pytest.raises(ValueError, match="trains the eye, so it needs pixels, not its old features"):
        tune(flamingo, task, features, POINT)


def test_a_specialist_is_of_the_same_sizes_and_knows_nothing():
    """And all of it is trained, the language model too."""
    flamingo = little_flamingo()
    fresh = specialist(flamingo)
    assert fresh.model.config == flamingo.model.config
    lm = sum_of(fresh.model.lm)
    assert lm == sum_of(specialist(flamingo).model.lm)
    assert lm not in (sum_of(flamingo.model.lm), sum_of(specialist(flamingo, 1).model.lm))
    tune(fresh, little_task(), little_task().support, POINT, everything=True)
    assert sum_of(fresh.model.lm) != lm


# ------------------------------------------------------------------------------------------------------------- the grid


def test_a_point_that_makes_no_sense_is_refused():
    """It says what is to be chosen from."""
    with pytest.raises(ValueError, match="Point.schedule is 'step'; choose one of 'constant', 'linear', 'cosine'"):
        Point(schedule="step")
    with pytest.raises(ValueError, match="Point.augment is 'flip'; choose one of 'none', 'light'"):
        Point(augment="flip")
    for wrong in ({"lr": 0.0}, {"steps": 0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match="must be above 0"):
            Point(**wrong)
    with pytest.raises(ValueError, match="nothing to try for steps"):
        Grid(steps=()).points()


def test_the_grid_is_every_learning_rate_with_every_number_of_steps():
    """Two draws of the other axes for each, dealt out evenly; None is the whole product."""
    axes = Grid(lr=(1.0, 2.0, 3.0), steps=(10, 20))
    points = axes.points(2)
    assert Counter((p.lr, p.steps) for p in points) == {(lr, n): 2 for lr in axes.lr for n in axes.steps}
    assert len({(p.schedule, p.batch_size, p.augment) for p in points}) == 12, "each of 3 × 2 × 2 combinations once"
    assert len(set(axes.points(None))) == 3 * 3 * 2 * 2 * 2 and axes.points(2) != axes.points(2, seed=1)


def test_validation_is_a_part_of_the_training_set_and_shares_no_picture_with_what_is_trained_on():
    """§3.2: a validation subset of the training set. Three questions about one picture stay together."""
    task = little_task(12, per_picture=3)
    training, validation = split(task, seed=3)
    assert sorted(e.key for e in [*training, *validation]) == sorted(e.key for e in task.support)
    assert 9 <= len(validation) < 12 and not {e.media for e in training} & {e.media for e in validation}
    assert [e.key for e in split(task, seed=3)[1]] == [e.key for e in validation] != [e.key for e in split(task, seed=4)[1]]
    assert len(split(little_task(12), 5)[1]) == 5
    with pytest.raises(ValueError, match="12 training examples cannot be split into some to train on and 12 for validation"):
        split(little_task(12), 12)
    with pytest.raises(ValueError, match="little: 1 queries are about pictures of the training set, e.g. q"):
        split(replace(task, queries=[replace(task.support[0], key="q")]))
    with pytest.raises(ValueError, match="training example x has no answer to learn"):
        split(replace(task, support=[Example("x", task.support[0].media, ())]))


def counted(monkeypatch) -> list[tuple[Point, list[str]]]:
    """The points that are trained from here on, and on which examples."""
    done: list = []

    def counts(flamingo, task, examples, point, *rest, **more):
        done.append((point, [e.key for e in examples]))
        return tune(flamingo, task, examples, point, *rest, **more)

    for module in (grid, finetune_command):
        monkeypatch.setattr(module, "tune", counts)
    return done


def test_halving_runs_all_points_for_a_quarter_and_the_best_quarter_in_full(tmp_path, monkeypatch):
    """Every job begins where the first began. Those go on that hold the right answers to be likeliest."""
    trained, task, start = counted(monkeypatch), little_task(), Start(little_flamingo())
    training, validation = split(task, 4)
    points = [replace(POINT, lr=lr, steps=8) for lr in (1e-4, 3e-4, 1e-3, 3e-3)]
    chosen, records = search(start, task, training, validation, points, tmp_path, {})
    assert [p.steps for p, _ in trained] == [2, 2, 2, 2, 8] and [r["round"] for r in records] == [0, 0, 0, 0, 1]
    best = min(records[:4], key=lambda r: r["answer_loss"])
    assert asdict(chosen) == records[-1]["point"] == best["point"]
    assert all(set(keys) == {e.key for e in training} for _, keys in trained)
    alone = Start(little_flamingo())
    tune(alone.flamingo, task, training, replace(points[2], steps=2))
    assert records[2]["answer_loss"] == pytest.approx(answer_loss(alone.flamingo, task, validation), abs=2e-5)
    assert start.changed()["language model"] is False and HALVING[0] == (1 / 4, 1.0)


def test_the_score_decides_between_points_that_ran_in_full_and_only_between_them(tmp_path, monkeypatch):
    """Half-taught, all score 0 or by chance, so the likelihood decides; at the end, of equal scores, the likelier answers."""
    losses = iter([0.9, 0.3, 0.5, 0.4, 0.3, 0.2, 0.1])  # of four points, and of the three that go on: the 2nd, 4th and 3rd
    scores = iter([99.0, 0.0, 0.0, 0.0, 80.0, 90.0, 90.0])
    monkeypatch.setattr(grid, "answer_loss", lambda *_: next(losses))
    monkeypatch.setattr(grid, "evaluate", lambda *_, **__: {"score": next(scores), "interval": [0.0, 100.0], "n": 4})
    monkeypatch.setattr(grid, "tune", lambda *_, **__: [0.0])
    task, points = little_task(), [replace(POINT, lr=lr) for lr in (1e-4, 2e-4, 3e-4, 4e-4)]
    chosen, records = search(
        Start(little_flamingo()), task, *split(task, 4), points, tmp_path, {}, rounds=((1 / 4, 1.0), (1.0, 3 / 4))
    )
    assert [r["point"]["lr"] for r in records[4:]] == [2e-4, 4e-4, 3e-4] and chosen.lr == 3e-4


# ---------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A suite of two toy tasks that says which pictures were looked at; the model is made, which is quicker than reading it."""
    monkeypatch.setattr("minflamingo.__main__.load", lambda *_: little_flamingo())
    (tmp_path / "dark_suite.py").write_text(SUITE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "dark_suite", raising=False)
    return tmp_path


COMMAND = ["finetune", "--model", "made", "--suite", "dark_suite", "--limit", "6", "--shots", "2", "--device", "cpu"]
COMMAND += ["--lr", "1e-3,1e-2", "--steps", "4,8", "--batch-size", "4", "--beams", "1", "--per-cell", "1"]


def test_the_command_ends_in_a_table_a_figure_and_models_that_can_be_loaded(place, capsys):
    """§3.2's table: shots, fine-tuned, specialist, with intervals; the eye changed, the language model did not."""
    main([*COMMAND, "--task", "toy", "--out", "out"])
    found, printed = json.loads((place / "out/results.json").read_text()), capsys.readouterr().out
    assert list(found["tasks"]) == ["named", "chosen"]
    for name, task in found["tasks"].items():
        assert (task["trained_on"], task["validation"], task["tuned"]["n"]) == (16, 4, 6)
        assert task["tuned"]["changed"] == {"language model": False, "eye": True}
        for kind in ("shots", "tuned", "specialist"):
            low, high = task[kind]["interval"]
            assert f"{task[kind]['score']:.1f} [{low:.0f}, {high:.0f}]" in printed
        model, before = minflamingo.load(place / "out/models" / name).model, little_flamingo().model
        assert sum_of(model.lm) == sum_of(before.lm) and sum_of(model.vision) != sum_of(before.vision)
    assert "fine-tuning on 16 examples beats 2 shots on" in printed
    assert str(Point(**found["tasks"]["named"]["point"])) in printed
    assert Image.open(place / "out/grid.png").size[0] > 500


def test_a_grid_that_was_stopped_goes_on_and_asks_the_test_once(place, monkeypatch):
    """What was trained is not trained again; the test's pictures are seen after the last choice, one time each."""
    import dark_suite

    trained, arguments = counted(monkeypatch), [*COMMAND, "--task", "named", "--no-specialist", "--out", "out"]
    finish = grid.Job.finish

    def stops(self, result):
        finish(self, result)
        if len(trained) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(grid.Job, "finish", stops)
        with pytest.raises(SystemExit, match="the same command goes on from here"):
            main(arguments)
    first = len(trained)
    shots = [at for at in dark_suite.LOOKED if at[0] == "test"]
    assert Counter(shots) == {("test", i): 1 for i in range(6)}, "the few-shot baseline alone has asked"
    dark_suite.LOOKED.clear()
    main(arguments)
    assert (first, len(trained)) == (3, 4 + 1 + 1), "four short, one in full, the chosen one on all of the training set"
    assert [len(keys) for _, keys in trained] == [12] * 5 + [16]
    assert not any(key.startswith("test") for _, keys in trained for key in keys)
    assert Counter(at for at in dark_suite.LOOKED if at[0] == "test") == {("test", i): 1 for i in range(6)}
    assert [at[0] for at in dark_suite.LOOKED[-6:]] == ["test"] * 6, "nothing is trained or chosen behind it"
    results = (place / "out/results.json").read_text()
    dark_suite.LOOKED.clear()
    main(arguments)
    assert len(trained) == 6 and not [at for at in dark_suite.LOOKED if at[0] == "test"]
    again = json.loads((place / "out/results.json").read_text())
    assert again["tasks"] == json.loads(results)["tasks"]
    main([*arguments, "--seed", "1"])
    assert len(trained) == 12, "another seed is another validation subset: nothing of it is reused"


def test_shots_of_an_earlier_evaluation_are_taken_over_and_larger_pictures_looked_at(place, monkeypatch):
    """`--eval`; a result of another model or another number of queries is refused. `--image-size` reaches the saved model."""
    main(["eval", *COMMAND[1:11], "--beams", "1", "--task", "named", "--out", "eval"])
    earlier = json.loads((place / "eval/results.json").read_text())["tasks"]["named"]["shots"]["2"]
    arguments = [*COMMAND, "--task", "named", "--no-specialist", "--in-full", "--eval", "eval/results.json"]
    main([*arguments, "--image-size", "16", "--out", "out"])
    task = json.loads((place / "out/results.json").read_text())["tasks"]["named"]
    assert task["shots"] == earlier and {job["round"] for job in task["grid"]} == {0} and len(task["grid"]) == 4
    assert minflamingo.load(place / "out/models/named").prepare.size == 16
    for change, said in (
        (["--shots", "4"], "has no result of named with 4 shots"),
        (["--limit", "5"], "asked 6 queries of named, here there are 5"),
        (["--image-size", "10"], "10 pixels cannot be cut into patches of 4"),
        (["--lr", "fast"], "--lr takes numbers by commas"),
        (["--validation", "99"], "cannot be split into some to train on and 99"),
        (["--per-cell", "-1"], "--per-cell is -1"),
    ):  # fmt: skip
        with pytest.raises(SystemExit, match=said):
            main([*arguments, *change, "--out", "no"])
    monkeypatch.setattr("minflamingo.__main__.load", lambda *_: little_flamingo(xattn_every=1))
    with pytest.raises(SystemExit, match="is of another model"):
        main([*arguments, "--out", "no"])


# ----------------------------------------------------------------------------------------------------------- the figure


def some_grid(tasks: int = 2) -> dict:
    """Points whose score is 10·row + column, the second round 50 higher; one cell has two points."""
    def job(lr: float, steps: int, score: float, number: int = 0, batch_size: int = 8) -> dict:
        return {"point": asdict(Point(lr, "linear", steps, batch_size)), "round": number, "score": score}

    jobs = [job(lr, n, 10 * r + c) for r, lr in enumerate((1e-4, 1e-3, 1e-2)) for c, n in enumerate((10, 20))]
    jobs += [job(1e-3, 20, 99.0, batch_size=16), job(1e-3, 20, 61.0, 1), job(1e-4, 10, 50.0, 1)]
    return {"tasks": {f"task_{i}": {"metric": "vqa", "grid": jobs, "point": jobs[-2]["point"]} for i in range(tasks)}}


def test_a_cell_of_the_heat_map_is_the_best_of_the_furthest_round():
    """A score after a quarter of the steps never hides one after all of them."""
    cells = cells_of(some_grid()["tasks"]["task_0"]["grid"])
    assert cells == {
        (1e-4, 10): (50.0, True), (1e-4, 20): (1, False), (1e-3, 10): (10, False), (1e-3, 20): (61.0, True),
        (1e-2, 10): (20, False), (1e-2, 20): (21, False),
    }  # fmt: skip


def test_the_heat_map_has_learning_rates_up_steps_to_the_right_and_a_frame_around_the_choice():
    """A panel a task; the numbers of the cells are written in them."""
    axes = grid_figure(some_grid(9)).axes
    assert len(axes) == 9
    (image,) = axes[0].images
    assert image.get_array().tolist() == [[50, 1], [10, 61], [20, 21]] and image.origin == "lower"
    assert [t.get_text() for t in axes[0].get_yticklabels()] == ["0.0001", "0.001", "0.01"]
    assert [t.get_text() for t in axes[0].get_xticklabels()] == ["10", "20"]
    assert {"50.0", "1.0*", "61.0"} < {t.get_text() for t in axes[0].texts}
    (frame,) = axes[0].patches
    assert frame.get_xy() == (0.5, 0.5)
    with pytest.raises(ValueError, match="no task to plot"):
        grid_figure({"tasks": {}})
