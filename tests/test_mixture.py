"""Mixture: one batch of each dataset per step, the same with any number of workers and after any stop."""

import random
from itertools import islice

import pytest
import torch
from conftest import LETTERS, close, preprocess, tiny_flamingo
from test_records import encoded
from test_shards import Numbers, pairs, shards, tar

from minflamingo.data.mixture import Dataset, Mixture, datasets_of_step
from minflamingo.data.records import Documents, Pairs
from minflamingo.data.shards import ShardStream, Skipped
from minflamingo.tokenizer import ToyTokenizer
from minflamingo.training.optim import accumulate_gradients
from minflamingo.training.stage import Stage

BYTES = ToyTokenizer([])
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")  # this machine may have fewer cores


def mixture(folder, *, seed=3, sizes=(3, 5), workers=0, mix=2, streams=4, **options) -> Mixture:
    """Two datasets of numbered pairs: "a" of 23 in batches of 3, "b" of 10 in batches of 5."""
    if not (folder / "a").exists():
        shards(folder / "a", 7, 5, 1, 10), shards(folder / "b", 6, 4)
    a, b = (ShardStream(f"{folder}/{name}/*.tar", Numbers(), seed=seed, mix=mix, streams=streams) for name in "ab")
    return Mixture({"a": Dataset(a, sizes[0], 1.0), "b": Dataset(b, sizes[1], 0.2)}, BYTES, workers=workers, **options)


def steps(mixture: Mixture, n: int) -> list[dict[str, list[str]]]:
    """The texts of the next n steps."""
    return [{k: [BYTES.decode(row) for row in batch.ids] for k, batch in batches.items()} for batches in islice(mixture, n)]


def test_each_step_has_one_batch_of_each_dataset(tmp_path):
    """Section 2.4: each update has the gradients of all datasets, each times its lambda_m. An epoch has each sample once."""
    mixed = mixture(tmp_path, streams=1)
    drawn = steps(mixed, 8)
    assert all((len(step["a"]), len(step["b"])) == (3, 5) for step in drawn)
    assert mixed.weights == {"a": 1.0, "b": 0.2} and mixed.step == 8
    numbers = [int(text.split("0.")[0]) for step in drawn for text in step["b"]]
    assert all(sorted(numbers[e : e + 10]) == list(range(10)) for e in range(0, 40, 10))


def test_round_robin_gives_one_dataset_in_turn(tmp_path):
    """The alternative of table 3; each dataset has the same batches as without it."""
    alone, together = (mixture(tmp_path, accumulate=accumulate) for accumulate in (False, True))
    turns, both = steps(alone, 8), steps(together, 4)
    assert [list(step) for step in turns] == [["a"], ["b"]] * 4
    assert [{**a, **b} for a, b in zip(turns[::2], turns[1::2])] == both
    assert [datasets_of_step("xyz", s) for s in range(2)] == [["x", "y", "z"]] * 2
    assert [datasets_of_step("xyz", s, accumulate=False) for s in range(4)] == [["x"], ["y"], ["z"], ["x"]]


@pytest.mark.parametrize("workers, resumed, accumulate", [(0, 0, True), (0, 0, False), (2, 2, False), (4, 2, True)])
def test_a_run_that_stops_and_resumes_has_the_same_batches(tmp_path, workers, resumed, accumulate):
    """With any number of workers before and after the stop. Batches that workers had read in advance come again."""
    whole = steps(mixture(tmp_path, accumulate=accumulate), 14)
    for stop in (0, 1, 5, 8) if workers == 0 else (5,):
        first = mixture(tmp_path, workers=workers, accumulate=accumulate)
        assert steps(first, stop) == whole[:stop]
        torch.save(first.state_dict(), tmp_path / "data.pt")
        second = mixture(tmp_path, workers=resumed, accumulate=accumulate)
        second.load_state_dict(torch.load(tmp_path / "data.pt", weights_only=True))
        assert steps(second, 14 - stop) == whole[stop:]
        assert steps(first, 14 - stop) == whole[stop:]  # and so does the next `for` loop over the same mixture


def test_a_state_does_not_change_when_training_continues(tmp_path):
    mixed, states = mixture(tmp_path, workers=2), []
    for _ in islice(mixed, 3):
        states.append(mixed.state_dict())
    whole = steps(mixture(tmp_path), 4)
    for done, state in enumerate(states, start=1):
        again = mixture(tmp_path)
        again.load_state_dict(state)
        assert int(state["step"]) == done and steps(again, 1) == whole[done : done + 1]


OTHER = {"seed": {"seed": 4}, "batch": {"sizes": (4, 5)}, "mix": {"mix": 1}, "streams": {"streams": 8}}


@pytest.mark.parametrize("other", [*OTHER, "shards", "rank", "moved folder"])
def test_the_state_of_other_data_is_rejected_but_the_folder_may_move(tmp_path, other):
    first = mixture(tmp_path / "here")
    state, folder = first.state_dict(), tmp_path / "here"
    if other == "moved folder":
        folder = folder.rename(tmp_path / "there")
        return mixture(folder).load_state_dict(state)
    if other == "shards":
        tar(folder / "a" / "00.tar", pairs(*range(50)))
    changed = mixture(folder, **OTHER.get(other, {}))
    if other == "rank":
        changed = Mixture({"a": Dataset(ShardStream(f"{folder}/a/*.tar", Numbers(), seed=3, mix=2, rank=1, world=2), 3)}, BYTES)
    with pytest.raises(ValueError, match="a: the saved state has other shards, batch_size, seed, mix, streams, rank or world"):
        changed.load_state_dict(state)


def test_a_stage_saves_the_mixture_with_the_weights(tmp_path):
    """A run that was killed and a run without a stop see the same data."""

    def run(folder, kill_at: int | None = None) -> list[str]:
        model, mixed = torch.nn.Linear(1, 1), mixture(tmp_path)
        stage = Stage("flamingo", folder, 9, state={"model": model, "data": mixed}, save_every=0.0)
        texts = []
        for step, batches in zip(stage.steps(show=False), mixed):
            if step == kill_at:  # its batch is drawn, but its step is not done
                break
            texts.append(" ".join(BYTES.decode(row) for row in batches["a"].ids))
        return texts

    whole = run(tmp_path / "whole")
    assert len(whole) == 9 == len(set(whole))
    assert run(tmp_path / "killed", kill_at=4) + run(tmp_path / "killed") == whole


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_samples_are_counted_also_in_workers(tmp_path, workers):
    """Per dataset, for the batches that were returned, and never twice. Oracle: the streams without a mixture."""
    tar(tmp_path / "0.tar", {**pairs(1, 2, 3), "lost.txt": b"a", "mute.png": encoded(1), "void.txt": b"", "void.png": b""})
    a, b = (ShardStream(tmp_path / "0.tar", Pairs(), streams=2) for _ in range(2))
    mixed = Mixture({"a": Dataset(a, 3), "b": Dataset(b, 1)}, BYTES, preprocess, workers=workers)
    for _ in range(2):
        steps(mixed, 3)
    for source, samples in ((a, 9), (b, 3)):  # of each stream, in the 6 steps
        expected = Skipped()
        for i in range(2):
            assert len(list(islice(source.stream(i, expected), samples))) == samples
        assert (source.skipped.broken, source.skipped.unsuitable) == (expected.broken, expected.unsuitable)
    assert mixed.skipped["a"].broken > 6 and any("lost: a pair" in said for said in mixed.skipped["a"].first)


def test_errors_come_through_workers_and_random_numbers_of_the_program_do_not_change(tmp_path):
    before, state = torch.random.get_rng_state(), random.getstate()
    steps(mixture(tmp_path, workers=1), 2)
    assert torch.equal(torch.random.get_rng_state(), before) and random.getstate() == state
    stream = ShardStream(tar(tmp_path / "0.tar", {"lost.txt": b"a"}), Pairs())
    with pytest.raises(ValueError, match="no good sample in 1 shards"):
        next(iter(Mixture({"a": Dataset(stream, 2)}, LETTERS, preprocess, workers=2)))
    for epochs, batch_size, workers in ((1, 3, 0), (None, 0, 0), (None, 3, 3)):
        stream = ShardStream(tmp_path / "0.tar", Pairs(), epochs=epochs)
        with pytest.raises(ValueError, match="m: a mixture needs endless samples .* workers that divide its 4 streams"):
            Mixture({"m": Dataset(stream, batch_size)}, LETTERS, workers=workers)


def test_the_gradient_of_a_step_is_that_of_the_weighted_sum(tmp_path):
    """The loop of the docstring, with real documents and pairs."""
    tar(tmp_path / "pairs.tar", {f"{n}.txt": b"abc" for n in range(4)} | {f"{n}.png": encoded(n) for n in range(4)})
    document = b'{"texts": ["ab", null, "cd", null, "e"], "images": [null, "0.png", null, "1.png", null]}'
    tar(tmp_path / "documents.tar", {"0.json": document, "1.json": document, "0.png": encoded(0), "1.png": encoded(1)})
    documents = Dataset(ShardStream(tmp_path / "documents.tar", Documents(LETTERS, length=9)), 2, 1.0)
    mixed = Mixture({"d": documents, "p": Dataset(ShardStream(tmp_path / "pairs.tar", Pairs()), 3, 0.2)}, LETTERS, preprocess)
    flamingo = tiny_flamingo()
    parameters = [p for _, p in flamingo.trainable_parameters()]
    batches = next(iter(mixed))
    assert batches["d"].media.shape[:2] == (2, 2) and batches["p"].media.shape == (3, 1, 1, 3, 8, 8)
    accumulate_gradients({m: lambda b=batch: flamingo.loss(b) for m, batch in batches.items()}, mixed.weights, parameters)
    total = flamingo.loss(batches["d"]) + 0.2 * flamingo.loss(batches["p"])
    for parameter, gradient in zip(parameters, torch.autograd.grad(total, parameters)):
        assert close(parameter.grad, gradient)
