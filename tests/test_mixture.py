"""One batch of each dataset per step, whoever reads it and however often the run was stopped: `minflamingo/data/mixture.py`."""

from __future__ import annotations

import random
from itertools import islice

import pytest
import torch
from conftest import LETTERS, close, prepare, tiny_flamingo
from test_shards import Numbers, encoded, pairs, shards, tar

from minflamingo.data.mixture import Mixture, Part
from minflamingo.data.records import Documents, Pairs
from minflamingo.data.shards import ShardStream, Skipped
from minflamingo.flamingo import Batch
from minflamingo.tokenizer import ToyTokenizer
from minflamingo.training.checkpoint import load_tensors, save_tensors
from minflamingo.training.optim import accumulate_gradients
from minflamingo.training.stage import Stage

BYTES = ToyTokenizer([])


def mixture(folder, seed: int = 3, sizes: tuple = (3, 5), workers: int = 0, mix: int = 2, lanes: int = 4, **options) -> Mixture:
    """Two datasets of numbered pairs: "a" of 23 in batches of 3, "b" of 10 in batches of 5."""
    if not (folder / "a").exists():
        shards(folder / "a", 7, 5, 1, 10), shards(folder / "b", 6, 4)
    a, b = (ShardStream(f"{folder}/{name}/*.tar", Numbers(), seed, mix=mix, lanes=lanes) for name in "ab")
    return Mixture({"a": Part(a, sizes[0], 1.0), "b": Part(b, sizes[1], 0.2)}, BYTES, workers=workers, **options)


def texts(batch: Batch) -> list[str]:
    return [BYTES.decode(row) for row in batch.ids]


def steps(mixture: Mixture, n: int) -> list[dict[str, list[str]]]:
    """The texts of the next n steps."""
    return [{name: texts(batch) for name, batch in batches.items()} for batches in islice(mixture, n)]


def test_each_step_has_one_batch_of_each_dataset_with_its_size_and_weight(tmp_path):
    """§2.4: the gradients of all datasets go into each update, each times its lambda_m."""
    mixed = mixture(tmp_path)
    for batches in islice(mixed, 10):
        assert {name: len(batch.ids) for name, batch in batches.items()} == {"a": 3, "b": 5}
    assert mixed.weights == {"a": 1.0, "b": 0.2} and mixed.step == 10


def test_round_robin_gives_one_dataset_in_turn(tmp_path):
    """The alternative of table 3; the batches of a dataset are the same as without it."""
    alone, together = (mixture(tmp_path, accumulate=accumulate) for accumulate in (False, True))
    turns, both = steps(alone, 8), steps(together, 4)
    assert [list(step) for step in turns] == [["a"], ["b"]] * 4
    assert [{**a, **b} for a, b in zip(turns[::2], turns[1::2])] == both


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")  # this machine may have fewer cores
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_batches_are_the_same_whoever_reads_them(tmp_path, workers):
    """No worker, or several: they share the lanes, and the order is that of the lanes."""
    assert steps(mixture(tmp_path, workers=workers), 12) == steps(mixture(tmp_path), 12)


def test_in_an_epoch_every_sample_comes_once(tmp_path):
    """One lane: then an epoch of 10 samples in batches of 5 is two steps."""
    numbers = [text.split("0.")[0] for step in steps(mixture(tmp_path, lanes=1), 8) for text in step["b"]]
    assert all(sorted(map(int, numbers[e : e + 10])) == list(range(10)) for e in range(0, 40, 10))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulate", [True, False])
def test_stop_and_go_on_gives_what_no_stop_gives(tmp_path, workers, accumulate):
    """The exact next batch, shuffled, over epochs, through a file; what workers had read ahead comes again."""
    whole = steps(mixture(tmp_path, accumulate=accumulate), 14)
    for stop in (0, 1, 5, 8) if workers == 0 else (5,):
        first = mixture(tmp_path, workers=workers, accumulate=accumulate)
        assert steps(first, stop) == whole[:stop]
        save_tensors(first.state_dict(), tmp_path / "data.pt")
        second = mixture(tmp_path, workers=workers, accumulate=accumulate)
        second.load_state_dict(load_tensors(tmp_path / "data.pt"))
        assert steps(second, 14 - stop) == whole[stop:]
        assert steps(first, 14 - stop) == whole[stop:]  # and so does the next `for` of the same mixture


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")
def test_a_run_may_go_on_with_more_workers_or_fewer(tmp_path):
    """Another machine has other cores."""
    whole, first = steps(mixture(tmp_path), 9), mixture(tmp_path, workers=4)
    steps(first, 4)
    second = mixture(tmp_path, workers=2)
    second.load_state_dict(first.state_dict())
    assert steps(second, 5) == whole[4:]


def test_a_state_is_only_of_the_batches_that_were_handed_out(tmp_path):
    """It does not move while one looks at it, and a later step does not change what was kept."""
    mixed = mixture(tmp_path, workers=2)
    kept = []
    for _ in islice(mixed, 3):
        kept.append(mixed.state_dict())
    assert [int(state["step"]) for state in kept] == [1, 2, 3]
    for done, state in enumerate(kept, start=1):
        again = mixture(tmp_path)
        again.load_state_dict(state)
        assert steps(again, 1) == steps(mixture(tmp_path), done + 1)[done:]


OTHERS = {"seed": {"seed": 4}, "batch": {"sizes": (4, 5)}, "mix": {"mix": 1}, "lanes": {"lanes": 8}}


@pytest.mark.parametrize("other", [*OTHERS, "shards", "rank"])
def test_a_state_of_other_data_is_refused(tmp_path, other):
    """Its numbers would mean other samples."""
    state = mixture(tmp_path).state_dict()
    if other == "shards":
        tar(tmp_path / "a" / "00.tar", pairs(*range(50)))
    changed = mixture(tmp_path, **OTHERS.get(other, {}))
    if other == "rank":
        stream = ShardStream(f"{tmp_path}/a/*.tar", Numbers(), 3, mix=2, rank=1, world=2)
        changed = Mixture({"a": Part(stream, 3)}, BYTES)
    with pytest.raises(ValueError, match="a: this state was made with other shards, batch, seed, mix or lanes, or by another"):
        changed.load_state_dict(state)
    with pytest.raises(ValueError, match="a: this state was made with other"):
        mixture(tmp_path).load_state_dict({})


def test_the_folder_of_the_shards_may_move(tmp_path):
    """A state knows their names and sizes, not where they are."""
    first = mixture(tmp_path / "here")
    steps(first, 3)
    (tmp_path / "here").rename(tmp_path / "there")
    second = mixture(tmp_path / "there")
    second.load_state_dict(first.state_dict())
    assert steps(second, 2) == steps(mixture(tmp_path / "there"), 5)[3:]


def test_a_stage_keeps_the_mixture_with_the_weights(tmp_path):
    """A run that was killed and one that never was see the same data; nothing but the list of modules says so."""

    def run(folder, kill_at: int | None = None) -> list[str]:
        model, mixed = torch.nn.Linear(1, 1), mixture(tmp_path)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        stage = Stage("flamingo", folder, 9, {"model": model, "data": mixed}, optimizer, save_every=0.0)
        seen = []
        for step, batches in zip(stage.steps(), mixed):
            if step == kill_at:  # its batch is drawn, its step is not done
                break
            seen.append(" ".join(texts(batches["a"])))
        return seen

    whole = run(tmp_path / "whole")
    assert len(whole) == 9 == len(set(whole))
    assert run(tmp_path / "killed", kill_at=4) + run(tmp_path / "killed") == whole


@pytest.mark.parametrize("workers", [0, 2])
def test_what_was_passed_over_is_counted_also_in_workers(tmp_path, workers):
    """Each dataset for itself, of the batches that were handed out, and never twice."""
    tar(tmp_path / "0.tar", {**pairs(1, 2, 3), "lost.txt": b"a", "mute.png": encoded(1), "void.txt": b"", "void.png": b""})
    a, b = (ShardStream(tmp_path / "0.tar", Pairs(), lanes=2) for _ in range(2))
    mixed = Mixture({"a": Part(a, 3), "b": Part(b, 1)}, BYTES, prepare, workers)
    for _ in range(2):
        steps(mixed, 3)
    for part, samples in ((a, 9), (b, 3)):  # of each lane, in the 6 steps; the oracle counts without a mixture
        expected = Skipped()
        for lane in range(2):
            alone = Skipped()
            assert len(list(islice(part.lane(lane, alone), samples))) == samples
            expected.add(alone)
        assert (part.skipped.broken, part.skipped.unsuitable) == (expected.broken, expected.unsuitable)
    assert mixed.skipped["a"].broken > 6 and mixed.skipped["a"].unsuitable > 2
    assert any("lost: a pair has one image" in said for said in mixed.skipped["a"].first)


def test_an_error_of_the_data_comes_through_from_a_worker(tmp_path):
    """Shards without a good sample; the message says which."""
    stream = ShardStream(tar(tmp_path / "0.tar", {"lost.txt": b"a"}), Pairs())
    with pytest.raises(ValueError, match="no good sample in 1 shards"):
        next(iter(Mixture({"a": Part(stream, 2)}, LETTERS, prepare, workers=2)))


def test_drawing_batches_does_not_touch_the_dice_of_the_program(tmp_path):
    """Dropout after a stop is dropout without a stop."""
    before, state = torch.random.get_rng_state(), random.getstate()
    steps(mixture(tmp_path, workers=1), 2)
    assert torch.equal(torch.random.get_rng_state(), before) and random.getstate() == state


def test_what_cannot_be_is_refused(tmp_path):
    """Datasets that end, batches of nothing, workers that cannot share."""
    shards(tmp_path, 3)
    for epochs, batch in ((1, 3), (None, 0)):
        stream = ShardStream(f"{tmp_path}/*.tar", Pairs(), epochs=epochs)
        with pytest.raises(ValueError, match="m: a mixture has no end, so epochs must be None, and a batch one sample or more"):
            Mixture({"m": Part(stream, batch)}, LETTERS)
    with pytest.raises(ValueError, match="3 workers cannot share 4 lanes; choose a divisor"):
        mixture(tmp_path / "x", workers=3)


def test_flamingo_learns_from_a_mixture_of_pages_and_pairs(tmp_path):
    """The docstring's loop: Σ lambda_m ∇ L_m over real batches, equal to the gradient of the weighted sum."""
    letters = {f"{n}.txt": b"abc" for n in range(4)} | {f"{n}.png": encoded(n) for n in range(4)}
    tar(tmp_path / "pairs.tar", letters)
    page = b'{"texts": ["ab", null, "cd", null, "e"], "images": [null, "0.png", null, "1.png", null]}'
    tar(tmp_path / "pages.tar", {"0.json": page, "1.json": page, "0.png": encoded(0), "1.png": encoded(1)})
    parts = {
        "pages": Part(ShardStream(tmp_path / "pages.tar", Documents(LETTERS, length=9)), 2, 1.0),
        "pairs": Part(ShardStream(tmp_path / "pairs.tar", Pairs()), 3, 0.2),
    }
    mixed = Mixture(parts, LETTERS, prepare)
    flamingo = tiny_flamingo()
    parameters = [p for _, p in flamingo.bridge_parameters()]
    batches = next(iter(mixed))
    assert batches["pages"].media.shape[:2] == (2, 2) and batches["pairs"].media.shape == (3, 1, 1, 3, 8, 8)
    accumulate_gradients({m: lambda b=batch: flamingo.loss(b) for m, batch in batches.items()}, mixed.weights, parameters)
    total = flamingo.loss(batches["pages"]) + 0.2 * flamingo.loss(batches["pairs"])
    for parameter, gradient in zip(parameters, torch.autograd.grad(total, parameters)):
        assert close(parameter.grad, gradient)
