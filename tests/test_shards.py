"""Shards and mixtures: each sample comes once per epoch, a run resumes exactly, and broken data is skipped and named."""

import io
import pickle
import random
import tarfile
from collections import Counter
from functools import partial
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import EOC, LETTERS, equal, image, preprocess
from test_records import encoded

from minflamingo import Sample, ToyTokenizer
from minflamingo.data.mixture import Mixture
from minflamingo.data.readers import write_jsonl
from minflamingo.data.records import document_sample, pair_sample, video_sample
from minflamingo.data.shards import Dataset, expand, read_files, read_index

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")  # this machine may have fewer cores


def tar(path: Path, files: dict[str, bytes]) -> Path:
    """A tar of these files, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def pairs(*numbers: int) -> dict[str, bytes]:
    """Pair n is image n % 10 with the text "n"."""
    return {f"{n:03d}.{e}": c for n in numbers for e, c in (("png", encoded(n % 10)), ("txt", str(n).encode()))}


def shards(folder: Path, *sizes: int) -> str:
    """Shards with these numbers of pairs. The pairs are numbered 0, 1, 2, ..."""
    n = 0
    for s, size in enumerate(sizes):
        tar(folder / f"{s:02d}.tar", pairs(*range(n, n + size)))
        n += size
    return str(folder / f"{{00..{len(sizes) - 1:02d}}}.tar")


was_read: list[int] = []


def number_sample(record: dict[str, bytes], rng: random.Random) -> Sample:
    """A reader of the text alone: the number of a pair and a random number. `was_read` has the numbers that were read."""
    was_read.append(int(record["txt"]))
    return Sample([record["txt"].decode(), str(rng.random())])


def pieces(dataset: Dataset, n: int) -> list[list]:
    """Of the first n records."""
    return [dataset.read(entry).pieces for entry in islice(dataset.entries(), n)]


def numbers(dataset: Dataset, n: int) -> list[int]:
    return [int(text) for text, _ in pieces(dataset, n)]


def read_entries(shards: object, n: int, reader=pair_sample, **options) -> tuple[list[str], list[str]]:
    """The texts of the pairs among n entries in sorted order, and the problems, which `read` raises."""
    dataset, texts, problems = Dataset(str(shards), reader, mix=1, **options), [], []
    for entry in islice(dataset.entries(), n):
        try:
            texts.append(dataset.read(entry).pieces[1])
        except Exception as error:
            problems.append(str(error))
    return sorted(texts), problems


def test_braces_and_globs_name_shards(tmp_path):
    for n in (8, 9, 10):
        tar(tmp_path / f"a/{n:02}.tar", {}), tar(tmp_path / f"b/{n:02}.tar", {})

    def names(pattern: str) -> list[str]:
        return [Path(path).relative_to(tmp_path).as_posix()[:-4] for path in expand(f"{tmp_path}/{pattern}.tar")]

    assert names("a/{08..10}") == ["a/08", "a/09", "a/10"]
    assert names("{b,a}/{09..10}") == ["b/09", "b/10", "a/09", "a/10"]
    assert names("*/0*") == ["a/08", "a/09", "b/08", "b/09"]
    for wrong in ({"mix": 0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match="batch_size and mix must be at least 1"):
            Dataset(f"{tmp_path}/a/*.tar", pair_sample, **wrong)
    for wrong in ({"rank": 2, "world": 2}, {"rank": -1}, {"workers": -1}):
        with pytest.raises(ValueError, match="need 0 <= rank < world"):
            Mixture({}, LETTERS, **wrong)


@pytest.mark.parametrize("sizes, mix", [((1, 1, 1, 1, 1, 1), 2), ((3, 1, 0, 7, 2), 1), ((3, 1, 0, 7, 2), 4), ((5,), 4)])
def test_each_epoch_has_each_record_once_in_groups_of_shards(tmp_path, sizes, mix):
    """For any number of shards, also one. An empty shard is one entry: its problem."""
    dataset, n_groups, total = Dataset(shards(tmp_path, *sizes), number_sample, mix=mix), -(-len(sizes) // mix), sum(sizes)
    found = list(islice(dataset.entries(), 3 * (total + sizes.count(0))))
    assert [entry.group for entry in found] == sorted(entry.group for entry in found)
    for epoch in range(3):
        names = [entry.name for entry in found if entry.group // n_groups == epoch and not isinstance(entry.files, str)]
        assert sorted(int(name[-3:]) for name in names) == list(range(total))
    groups = [{entry.name.split(",")[0] for entry in found if entry.group == group} for group in range(n_groups)]
    assert sorted(map(len, groups)) == sorted([mix] * (len(sizes) // mix) + [len(sizes) % mix] * (len(sizes) % mix > 0))


def test_each_epoch_and_each_seed_has_its_own_order(tmp_path):
    """Shards and samples are shuffled, and the random numbers of the readers are new each time."""
    names = shards(tmp_path, 6, 6, 6)
    one, two = (Dataset(names, number_sample, seed=s, mix=3) for s in (1, 2))
    found, drawn = numbers(one, 72), pieces(one, 72)
    assert found == numbers(one, 72) != numbers(two, 72)
    assert pieces(pickle.loads(pickle.dumps(one)), 72) == drawn  # spawned workers get a pickle
    epochs = [found[i : i + 18] for i in range(0, 72, 18)]
    assert len(set(map(tuple, epochs))) == 4 and len({random for _, random in drawn}) == 72
    assert sum(abs(a - b) == 1 for epoch in epochs for a, b in pairwise(epoch)) < 20  # of 68; 7.5 are expected at random
    assert len({n // 6 for n in epochs[0][:9]}) == 3  # the shards are mixed
    orders = numbers(Dataset(names, number_sample, mix=1), 18 * 9)  # one shard after the other: another order in other epochs
    assert len({tuple(n // 6 for n in orders[i : i + 18 : 6]) for i in range(0, 18 * 9, 18)}) > 2
    firsts = Counter(numbers(Dataset(names, number_sample, seed=s, mix=2), 1)[0] for s in range(300))
    assert set(firsts) == set(range(18)) and max(firsts.values()) < 45  # 17 expected: no sample is bound to a place


@pytest.mark.parametrize("mix", [1, 3])
def test_the_list_resumes_at_the_exact_record(tmp_path, mix):
    """Stop and resume equals no stop, over epochs and with the readers' random numbers. Nothing is read twice."""
    dataset = Dataset(shards(tmp_path, 3, 1, 4, 2), number_sample, seed=5, mix=mix)
    whole = [(dataset.read(entry).pieces, entry) for entry in islice(dataset.entries(), 30)]
    for i, (_, entry) in enumerate(whole[:-1]):
        was_read.clear()
        rest = islice(dataset.entries(entry.group, entry.number + 1), 30 - i - 1)
        assert [(dataset.read(entry).pieces, entry) for entry in rest] == whole[i + 1 :]
        assert was_read == [int(n) for (n, _), _ in whole[i + 1 :]]


def test_a_record_is_a_text_with_the_files_of_its_name_or_folder(tmp_path):
    """The first dot of a name separates key and extension. Files without a text and hidden files are in no record."""
    names = ["./cats/7.jpg", "cats/7.seg.png", "cats/7.txt", "cats/8.jpg", "v/run/0.jpg", "v/run/10.jpg", "v/run.json"]
    hidden = ["x/._7.jpg", "x/._7.txt", "x/.txt", "._7.json", ".DS_Store", "x/noending"]  # macOS writes such files
    names += [*hidden, "v/go.1.jpg", "v/go.txt", "a.b/ü.txt"]
    path = str(tar(tmp_path / "0.tar", {name: name.encode() for name in names}))
    found = {key: read_files(files) for key, files in read_index(path)[0].items()}
    assert found == {
        "cats/7": {"jpg": b"./cats/7.jpg", "seg.png": b"cats/7.seg.png", "txt": b"cats/7.txt"},
        "v/run": {"0.jpg": b"v/run/0.jpg", "10.jpg": b"v/run/10.jpg", "json": b"v/run.json"},
        "v/go": {"1.jpg": b"v/go.1.jpg", "txt": b"v/go.txt"},
        "a.b/ü": {"txt": "a.b/ü.txt".encode()},
    }


def test_webdataset_reads_the_same_samples_from_the_same_tar(tmp_path):
    webdataset, path = pytest.importorskip("webdataset"), str(tmp_path / "0.tar")
    with webdataset.TarWriter(path) as writer:
        for n in range(20):
            writer.write({"__key__": f"cats/{n:03d}", "seg.png": encoded(n % 10), "txt": f"cat {n}", "json": {"n": n}})
    theirs = {s.pop("__key__"): s for s in webdataset.WebDataset(path, shardshuffle=False)}
    ours = {key: read_files(files) for key, files in read_index(path)[0].items()}
    assert len(ours) == 20 and ours == {key: {n: c for n, c in s.items() if n[0] != "_"} for key, s in theirs.items()}


@pytest.mark.parametrize("files", [{"a.txt": b"a", "b.txt": b"b"}, {"a.png": b"a"}, {}], ids=["broken", "no text", "empty"])
def test_shards_without_a_good_sample_raise_an_error(tmp_path, files):
    """Otherwise the program would search for ever. One good sample is enough."""
    for i in range(3):
        tar(tmp_path / f"{i}.tar", files)
    message = "1000 records or shards in a row cannot be read.*(a pair needs one image|contains no txt)"
    with pytest.raises(ValueError, match=message):
        read_batches(tmp_path / "*.tar", 1)
    tar(tmp_path / "3.tar", pairs(9))
    assert read_batches(tmp_path / "*.tar", 5) == [["9"]] * 5


def test_a_bug_of_a_reader_is_named_and_a_missing_shard_raises(tmp_path):
    def buggy(record, rng):
        raise KeyError("a bug")

    names = shards(tmp_path, 2, 2)
    with pytest.raises(ValueError, match="KeyError: 'a bug'"):
        read_batches(names, 1, reader=buggy)
    dataset = Dataset(names, number_sample, mix=1)
    (tmp_path / "01.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"01\.tar"):
        numbers(dataset, 9)


# -------------------------------------------------------------------------------------- folders and JSON Lines as shards


def photos(folder: Path) -> Path:
    """A folder as people have it: photos with texts, in subfolders, with links, and files that are not records."""
    files = {"1.png": encoded(1), "1.txt": "\ufeff one".encode(), "a/at 10.32.JPG": encoded(2, "JPEG")}
    files |= {"a/at 10.32.TXT": b"two", "a/b/3.jpeg": encoded(3, "JPEG"), "a/b/3.json": b'\xef\xbb\xbf{"caption": "three"}'}
    files |= {"4.webp": encoded(4, "WEBP"), "4.txt": b"four", "5.heic": b"", "5.txt": b"five"}
    files |= {"6.png": encoded(6), ".git/7.txt": b"", "._1.png": b""}
    for name, content in files.items():
        (folder / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "own" / name).write_bytes(content)
    links = folder / "links [1]"
    links.mkdir()
    (links / "9.png").symlink_to(folder / "own/1.png")
    (links / "9.txt").symlink_to(folder / "own/1.txt")
    (links / "folder").symlink_to(folder / "own/a")
    (links / "circle").symlink_to(links)
    (links / "8.txt").symlink_to(folder / "missing.txt")
    return folder


def test_a_folder_of_images_with_texts_is_a_shard(tmp_path):
    """Also in subfolders and through links. Files of other formats or without a text are named and not ignored."""
    photos(tmp_path)
    texts, problems = read_entries(tmp_path / "own", 6)
    assert texts == ["four", "one", "three", "two"]
    assert any("5: ValueError: a pair needs one image (.jpg, " in p and p.endswith("found heic, txt") for p in problems)
    assert any("own: ValueError: 1 files belong to no text, such as 6.png" in p for p in problems) and len(problems) == 2
    texts, problems = read_entries(tmp_path / "links [1]", 4)
    assert texts == ["one", "three", "two"] and "8: FileNotFoundError" in problems[0] and len(problems) == 1
    (tmp_path / "empty").mkdir()
    assert "each image or video needs one: cat.png with cat.txt" in read_entries(tmp_path / "empty", 1)[1][0]
    frames = {"go/10.png": encoded(2), "go/9.png": encoded(1), "go.txt": b"go"}
    for name, content in frames.items():
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / name).write_bytes(content)
    (video,) = islice((dataset := Dataset(str(tmp_path / "videos"), video_sample)).entries(), 1)
    assert np.array_equal(dataset.read(video).pieces[0], np.concatenate([image(1), image(2)]))


def test_a_jsonl_file_is_a_shard_also_as_the_only_one_of_a_folder(tmp_path):
    """The samples are those of `JsonlDataset`. A broken line is named. Several files in a folder are refused."""
    path = tmp_path / "set" / "pairs.jsonl"
    write_jsonl([Sample([image(i), f" {i}", EOC]) for i in range(3)], path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\n{}\n")
    for name in (path, tmp_path / "set"):
        texts, problems = read_entries(name, 4)
        assert texts == [" 0", " 1", " 2"] and len(problems) == 1
        assert problems[0].startswith(f"{path}, line 5: ValueError: expected an object with pieces")
    (tmp_path / "set/void.jsonl").write_bytes(b"\n")
    assert read_entries(tmp_path / "set/void.jsonl", 1)[1] == [f"{tmp_path}/set/void.jsonl: ValueError: the file has no lines"]
    with pytest.raises(ValueError, match=r"set contains several datasets: choose one of .*pairs\.jsonl, .*void\.jsonl"):
        expand(str(tmp_path / "set"))
    shards(tmp_path / "tars", 2, 3)
    assert [Path(p).name for p in expand(str(tmp_path / "tars"))] == ["00.tar", "01.tar"]


# ---------------------------------------------------------------------------------------------------------- the mixture

BYTES = ToyTokenizer([])


def mixture(folder, *, workers=0, rank=0, world=1, **options) -> Mixture:
    """Two datasets of numbered pairs: "a" of 23 in batches of 3, "b" of 10 in batches of 5."""
    if not (folder / "a").exists():
        shards(folder / "a", 7, 5, 1, 10), shards(folder / "b", 6, 4)
    options = {"seed": 3, "mix": 2, **options}
    a = Dataset(f"{folder}/a/*.tar", number_sample, batch_size=3, weight=1.0, **options)
    b = Dataset(f"{folder}/b/*.tar", number_sample, batch_size=5, weight=0.2, **options)
    return Mixture({"a": a, "b": b}, BYTES, workers=workers, rank=rank, world=world)


def read_batches(shards: object, n: int, reader=pair_sample, **options) -> list[list[str]]:
    """The texts of the first n batches of a dataset."""
    mixed = Mixture({"a": Dataset(str(shards), reader, mix=1, **options)}, BYTES, preprocess)
    return [step["a"] for step in steps(mixed, n)]


def steps(mixture: Mixture, n: int) -> list[dict[str, list[str]]]:
    """The texts of the next n steps."""
    return [{k: [BYTES.decode(row) for row in batch.ids] for k, batch in batches.items()} for batches in islice(mixture, n)]


def test_each_step_has_one_batch_of_each_dataset(tmp_path):
    """Section 2.4: each update has the gradients of all datasets, each times its lambda_m. An epoch has each sample once."""
    mixed = mixture(tmp_path)
    drawn = steps(mixed, 8)
    assert all((len(step["a"]), len(step["b"])) == (3, 5) for step in drawn)
    assert mixed.weights == {"a": 1.0, "b": 0.2}
    numbers = [int(text.split("0.")[0]) for step in drawn for text in step["b"]]
    assert all(sorted(numbers[e : e + 10]) == list(range(10)) for e in range(0, 40, 10))


@pytest.mark.parametrize("world, workers", [(1, 0), (2, 0), (3, 2), (2, 3)])
def test_rounds_distribute_the_list_over_processes(tmp_path, world, workers):
    """Together, the processes have the batches of the list in its order. Oracle: the list itself. All have one state."""
    dataset = mixture(tmp_path).datasets["a"]
    expected = ["".join(dataset.read(entry).pieces) for entry in islice(dataset.entries(), 3 * 4 * world)]
    mixtures = [mixture(tmp_path, workers=workers, rank=rank, world=world) for rank in range(world)]
    of_processes = [[step["a"] for step in steps(mixed, 4)] for mixed in mixtures]
    assert [text for in_round in zip(*of_processes) for batch in in_round for text in batch] == expected
    assert all(equal(mixed.state_dict(), mixtures[0].state_dict()) for mixed in mixtures)


@pytest.mark.parametrize("workers, resumed", [(0, 0), (2, 3), (5, 2)])
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


OTHER = {"seed": {"seed": 4}, "mix": {"mix": 1}}


@pytest.mark.parametrize("other", [*OTHER, "shards", "moved folder", "moved photos", "photos"])
def test_the_state_of_other_data_is_rejected_but_the_folder_may_move(tmp_path, other):
    if "photos" in other:
        before = Dataset(str(photos(tmp_path / "here") / "own"), pair_sample).fingerprint()
        (tmp_path / "here").rename(tmp_path / "there")
        if other == "photos":
            (tmp_path / "there/own/7.txt").write_bytes(b"new")
        after = Dataset(f"{tmp_path}/there/own", pair_sample).fingerprint()
        assert (after == before) == (other == "moved photos")
        return
    state, folder = mixture(tmp_path / "here").state_dict(), tmp_path / "here"
    if other == "moved folder":
        folder = folder.rename(tmp_path / "there")
        return mixture(folder).load_state_dict(state)
    if other == "shards":
        tar(folder / "a" / "00.tar", pairs(*range(50)))
    with pytest.raises(ValueError, match="a: the saved state has other shards, seed or mix"):
        mixture(folder, **OTHER.get(other, {})).load_state_dict(state)


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_samples_are_counted_also_in_workers(tmp_path, workers):
    """Per dataset, for the batches that were returned, and never twice. Oracle: the list. A batch of broken records alone gets
    the first good record after its round."""
    tar(tmp_path / "0.tar", {**pairs(1, 2, 3), "lost.txt": b"a", "void.txt": b"", "void.png": b""})
    a, b = (Dataset(f"{tmp_path}/0.tar", pair_sample, size) for size in (3, 1))
    mixed = Mixture({"a": a, "b": b}, BYTES, preprocess, workers=workers)
    batches = [step for _ in range(2) for step in steps(mixed, 3)]
    for name, dataset in (("a", a), ("b", b)):
        entries, expected, problems = list(islice(dataset.entries(), 40)), [], 0
        for start in range(0, 6 * dataset.batch_size, dataset.batch_size):
            good = [entry.name[-3:].lstrip("0").isdecimal() for entry in entries]
            end = start + dataset.batch_size
            while not any(good[start:end]):
                end += 1
            problems += good[start:end].count(False)
            expected.append([e.name[-1] for e, ok in zip(entries[start:end], good[start:end]) if ok])
        assert [step[name] for step in batches] == expected
        assert mixed.n_problems[name] == problems > 0
    assert len(mixed.problems["a"]) == 2 and any("lost: ValueError: a pair" in said for said in mixed.problems["a"])


def test_a_sample_that_is_longer_than_the_context_is_cut_and_named(tmp_path):
    """Text and images after the cut are left out; the batch can be computed. Without a limit nothing is cut."""
    write_jsonl([Sample([image(1), "abcdefgh", image(2), "ab", EOC])], tmp_path / "long.jsonl")
    dataset = Dataset(str(tmp_path / "long.jsonl"), pair_sample)
    for limit, kept, n_images in ((6, "abcd", 1), (11, "abcdefgh", 2), (14, "abcdefghab", 2), (None, "abcdefghab", 2)):
        mixed = Mixture({"a": dataset}, LETTERS, preprocess, max_length=limit)
        batch = next(iter(mixed))["a"]
        assert LETTERS.decode(batch.ids[0]) == kept and batch.ids.shape[1] == (limit or 14)
        assert batch.labels.shape == batch.ids.shape and batch.media.shape[1] == n_images
        assert mixed.n_problems["a"] == (limit in (6, 11))
        assert all(f"line 1: cut from 14 tokens to the {limit} of the LM's context" in said for said in mixed.problems["a"])


def test_errors_come_through_workers_and_random_numbers_of_the_program_do_not_change(tmp_path):
    before, state = torch.random.get_rng_state(), random.getstate()
    steps(mixture(tmp_path, workers=1), 2)
    assert torch.equal(torch.random.get_rng_state(), before) and random.getstate() == state
    dataset = Dataset(str(tar(tmp_path / "0.tar", {"lost.txt": b"a"})), pair_sample)
    with pytest.raises(ValueError, match="^(ValueError: )?1000 records or shards in a row cannot be read"):  # no traceback
        next(iter(Mixture({"a": dataset}, LETTERS, preprocess, workers=2)))


def test_documents_and_pairs_become_batches(tmp_path):
    """N > 1 and N = 1 (section 2.4). The images of a document are next to it."""
    tar(tmp_path / "pairs.tar", {f"{n}.txt": b"abc" for n in range(4)} | {f"{n}.png": encoded(n) for n in range(4)})
    document = b'{"texts": ["ab", null, "cd", null, "e"], "images": [null, "0.png", null, "1.png", null]}'
    tar(tmp_path / "documents.tar", {"a.json": document, "a.0.png": encoded(0), "a/1.png": encoded(1)})
    documents = Dataset(f"{tmp_path}/documents.tar", partial(document_sample, tokenizer=LETTERS, length=9), batch_size=2)
    batches = next(iter(Mixture({"d": documents, "p": Dataset(f"{tmp_path}/pairs.tar", pair_sample, 3)}, LETTERS, preprocess)))
    assert batches["d"].media.shape == (2, 2, 1, 3, 8, 8) and batches["p"].media.shape == (3, 1, 1, 3, 8, 8)
    assert torch.equal(batches["d"].media[0, :, 0], torch.cat([preprocess(image(i)) for i in range(2)]))
