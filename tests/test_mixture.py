"""Mixture: one batch of each dataset per step, the same with any number of workers and after any stop."""

import random
from functools import partial
from itertools import islice

import pytest
import torch
from conftest import LETTERS, image, preprocess
from test_records import encoded
from test_shards import number_sample, pairs, shards, tar

from minflamingo.data.mixture import Mixture
from minflamingo.data.records import document_sample, pair_sample
from minflamingo.data.shards import Dataset
from minflamingo.tokenizer import ToyTokenizer

BYTES = ToyTokenizer([])
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")  # this machine may have fewer cores


def mixture(folder, *, workers=0, **options) -> Mixture:
    """Two datasets of numbered pairs: "a" of 23 in batches of 3, "b" of 10 in batches of 5."""
    if not (folder / "a").exists():
        shards(folder / "a", 7, 5, 1, 10), shards(folder / "b", 6, 4)
    options = {"seed": 3, "mix": 2, **options}
    a = Dataset(f"{folder}/a/*.tar", number_sample, batch_size=3, weight=1.0, **options)
    b = Dataset(f"{folder}/b/*.tar", number_sample, batch_size=5, weight=0.2, **options)
    return Mixture({"a": a, "b": b}, BYTES, workers=workers)


def steps(mixture: Mixture, n: int) -> list[dict[str, list[str]]]:
    """The texts of the next n steps."""
    return [{k: [BYTES.decode(row) for row in batch.ids] for k, batch in batches.items()} for batches in islice(mixture, n)]


def test_each_step_has_one_batch_of_each_dataset(tmp_path):
    """Section 2.4: each update has the gradients of all datasets, each times its lambda_m. An epoch has each sample once."""
    mixed = mixture(tmp_path, streams=1)
    drawn = steps(mixed, 8)
    assert all((len(step["a"]), len(step["b"])) == (3, 5) for step in drawn)
    assert mixed.weights == {"a": 1.0, "b": 0.2}
    numbers = [int(text.split("0.")[0]) for step in drawn for text in step["b"]]
    assert all(sorted(numbers[e : e + 10]) == list(range(10)) for e in range(0, 40, 10))


@pytest.mark.parametrize("workers, resumed", [(0, 0), (2, 2), (4, 2)])
def test_a_run_that_stops_and_resumes_has_the_same_batches(tmp_path, workers, resumed):
    """With any number of workers before and after the stop. Batches that workers had read in advance come again."""
    whole = steps(mixture(tmp_path), 14)
    for stop in (0, 1, 5, 8) if workers == 0 else (5,):
        first = mixture(tmp_path, workers=workers)
        assert steps(first, stop) == whole[:stop]
        state = first.state_dict()
        assert steps(first, 14 - stop) == whole[stop:]  # the next loop over the same mixture; it does not change the state
        torch.save(state, tmp_path / "data.pt")
        second = mixture(tmp_path, workers=resumed)
        second.load_state_dict(torch.load(tmp_path / "data.pt", weights_only=True))
        assert steps(second, 14 - stop) == whole[stop:]


OTHER = {"seed": {"seed": 4}, "mix": {"mix": 1}, "streams": {"streams": 8}, "rank": {"rank": 1, "world": 2}}


@pytest.mark.parametrize("other", [*OTHER, "shards", "moved folder"])
def test_the_state_of_other_data_is_rejected_but_the_folder_may_move(tmp_path, other):
    state, folder = mixture(tmp_path / "here").state_dict(), tmp_path / "here"
    if other == "moved folder":
        folder = folder.rename(tmp_path / "there")
        return mixture(folder).load_state_dict(state)
    if other == "shards":
        tar(folder / "a" / "00.tar", pairs(*range(50)))
    with pytest.raises(ValueError, match="a: the saved state has other shards, seed, mix, streams, rank or world"):
        mixture(folder, **OTHER.get(other, {})).load_state_dict(state)


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_samples_are_counted_also_in_workers(tmp_path, workers):
    """Per dataset, for the batches that were returned, and never twice. Oracle: the streams without a mixture."""
    tar(tmp_path / "0.tar", {**pairs(1, 2, 3), "lost.txt": b"a", "void.txt": b"", "void.png": b""})
    a, b = (Dataset(f"{tmp_path}/0.tar", pair_sample, size, streams=2) for size in (3, 1))
    mixed = Mixture({"a": a, "b": b}, BYTES, preprocess, workers=workers)
    for _ in range(2):
        steps(mixed, 3)
    for name, dataset, samples in (("a", a, 9), ("b", b, 3)):  # samples of each stream in the 6 steps
        n_expected = sum(len(skipped) for i in range(2) for _, _, skipped in islice(dataset.stream(i), samples))
        assert mixed.n_skipped[name] == n_expected > 0
        assert len(mixed.reasons[name]) == min(10, mixed.n_skipped[name])
    assert any("lost: ValueError: a pair" in said for said in mixed.reasons["a"])


def test_errors_come_through_workers_and_random_numbers_of_the_program_do_not_change(tmp_path):
    before, state = torch.random.get_rng_state(), random.getstate()
    steps(mixture(tmp_path, workers=1), 2)
    assert torch.equal(torch.random.get_rng_state(), before) and random.getstate() == state
    dataset = Dataset(str(tar(tmp_path / "0.tar", {"lost.txt": b"a"})), pair_sample)
    with pytest.raises(ValueError, match="1000 records or shards in a row cannot be read"):
        next(iter(Mixture({"a": dataset}, LETTERS, preprocess, workers=2)))
    with pytest.raises(ValueError, match="m: 3 workers cannot share 4 streams"):
        Mixture({"m": dataset}, LETTERS, workers=3)


def test_documents_and_pairs_become_batches(tmp_path):
    """N > 1 and N = 1 (section 2.4). The images of a document are next to it."""
    tar(tmp_path / "pairs.tar", {f"{n}.txt": b"abc" for n in range(4)} | {f"{n}.png": encoded(n) for n in range(4)})
    document = b'{"texts": ["ab", null, "cd", null, "e"], "images": [null, "0.png", null, "1.png", null]}'
    tar(tmp_path / "documents.tar", {"a.json": document, "a.0.png": encoded(0), "a/1.png": encoded(1)})
    documents = Dataset(f"{tmp_path}/documents.tar", partial(document_sample, tokenizer=LETTERS, length=9), batch_size=2)
    mixed = Mixture({"d": documents, "p": Dataset(f"{tmp_path}/pairs.tar", pair_sample, 3)}, LETTERS, preprocess)
    batches = next(iter(mixed))
    assert batches["d"].media.shape == (2, 2, 1, 3, 8, 8) and batches["p"].media.shape == (3, 1, 1, 3, 8, 8)
    assert torch.equal(batches["d"].media[0, :, 0], torch.cat([preprocess(image(i)) for i in range(2)]))
