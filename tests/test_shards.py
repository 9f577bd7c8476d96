"""Shards: each sample comes once per epoch, a run resumes at the exact sample, and broken data is skipped and counted."""

import gzip
import io
import os
import pickle
import random
import tarfile
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path
from typing import ClassVar

import pytest
from test_records import encoded

from minflamingo.data.records import Pairs, Record
from minflamingo.data.sample import Sample
from minflamingo.data.shards import Shard, ShardStream, Skipped, expand


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


class Numbers(Pairs):
    """A reader of the text alone: the number of a pair and a random number. `was_read` has the numbers that were read."""

    was_read: ClassVar[list[int]] = []

    def __call__(self, record: Record, rng: random.Random) -> Sample:
        self.was_read.append(int(record.read("txt")))
        return Sample([record.read("txt").decode(), str(rng.random())])


def numbers(stream) -> list[int]:
    return [int(sample.pieces[0]) for sample in stream]


def captions(stream) -> list[str]:
    return sorted(sample.pieces[1] for sample in stream)


def test_braces_and_globs_name_shards(tmp_path):
    for name in ("a/08", "a/09", "a/10", "b/08", "b/09", "b/10", "c[1]{x}"):
        tar(tmp_path / f"{name}.tar", {})

    def names(*patterns: str) -> list[str]:
        return [path.relative_to(tmp_path).as_posix()[:-4] for path in expand([f"{tmp_path}/{p}.tar" for p in patterns])]

    assert names("a/{08..10}") == ["a/08", "a/09", "a/10"]
    assert names("{b,a}/{09..10}") == ["b/09", "b/10", "a/09", "a/10"]
    assert names("*/0*", "a/10") == ["a/08", "a/09", "b/08", "b/09", "a/10"]
    assert names("c[1]{x}") == ["c[1]{x}"]  # a file may have such a name
    with pytest.raises(FileNotFoundError, match=r"11\.tar: no such shard \(from .*08\.\.11"):
        ShardStream(f"{tmp_path}/a/{{08..11}}.tar", Pairs())
    for wrong in ([], [f"{tmp_path}/a/08.tar", f"{tmp_path}/a/*.tar"]):
        with pytest.raises(ValueError, match="names no shards, or names a shard twice"):
            ShardStream(wrong, Pairs())
    for wrong in ({"rank": 2, "world": 2}, {"rank": -1}, {"mix": 0}, {"streams": 0}):
        with pytest.raises(ValueError, match="need 0 <= rank < world"):
            ShardStream(f"{tmp_path}/a/*.tar", Pairs(), **wrong)


# ---------------------------------------------------------------------------------------------------------------- order


def test_groups_of_shards_are_distributed_in_turn(tmp_path):
    """The example of the docstring: rank 0 has the groups 0, 2, 4, ..., rank 1 has 1, 3, 5, ... of an endless list."""
    names = shards(tmp_path, 1, 1, 1, 1, 1, 1)
    whole = numbers(islice(ShardStream(names, Numbers(), mix=2, streams=1), 24))
    assert all(sorted(whole[e : e + 6]) == list(range(6)) for e in range(0, 24, 6))
    groups = [whole[i : i + 2] for i in range(0, 24, 2)]
    for rank in range(2):
        own = numbers(islice(ShardStream(names, Numbers(), mix=2, streams=1, rank=rank, world=2), 12))
        assert own == [n for group in groups[rank::2] for n in group]


@pytest.mark.parametrize("world, streams, mix", [(1, 1, 1), (1, 4, 2), (3, 2, 4), (2, 3, 1), (8, 4, 3)])
def test_each_epoch_has_each_sample_once_over_all_processes(tmp_path, world, streams, mix):
    names = shards(tmp_path, 3, 1, 0, 7, 2)
    for epochs in (1, 3):
        options = dict(mix=mix, world=world, streams=streams, epochs=epochs)
        processes = [ShardStream(names, Numbers(), rank=r, **options) for r in range(world)]
        assert Counter(n for stream in processes for n in numbers(stream)) == Counter({n: epochs for n in range(13)})


def test_each_epoch_and_each_seed_has_its_own_order(tmp_path):
    """Shards and samples are shuffled, and the random numbers of the readers are new each time."""
    names = shards(tmp_path, 6, 6, 6)
    one, two = (list(ShardStream(names, Numbers(), seed=s, epochs=4, streams=1, mix=3)) for s in (1, 2))
    again = ShardStream(names, Numbers(), seed=1, epochs=4, streams=1, mix=3)
    assert [s.pieces for s in one] == [s.pieces for s in again] and numbers(one) != numbers(two)
    assert [s.pieces for s in pickle.loads(pickle.dumps(again))] == [s.pieces for s in one]  # spawned workers get a pickle
    epochs = [numbers(one)[i : i + 18] for i in range(0, 72, 18)]
    assert len(set(map(tuple, epochs))) == 4 and len({s.pieces[1] for s in one}) == 72
    assert sum(abs(a - b) == 1 for epoch in epochs for a, b in pairwise(epoch)) < 20  # of 68; 7.5 are expected at random
    assert len({n // 6 for n in epochs[0][:9]}) == 3  # the shards are mixed
    firsts = Counter(numbers(islice(ShardStream(names, Numbers(), seed=s, streams=1, mix=2), 1))[0] for s in range(300))
    assert set(firsts) == set(range(18)) and max(firsts.values()) < 45  # 17 expected: no sample is bound to a place
    assert numbers(ShardStream(names, Numbers(), shuffle=False, streams=1, epochs=1)) == list(range(18))


@pytest.mark.parametrize("mix", [1, 3])
def test_a_stream_resumes_at_the_exact_sample(tmp_path, mix):
    """Stop and resume equals no stop, over epochs and with the readers' random numbers. Nothing is read twice."""
    names = shards(tmp_path, 3, 1, 4, 2)

    def stream(*state: int):
        return ShardStream(names, Numbers(), seed=5, mix=mix, streams=2).stream(1, Skipped(), *state)

    whole = list(islice(stream(), 30))
    for i, (_, state) in enumerate(whole[:-1]):
        Numbers.was_read.clear()
        rest = list(islice(stream(*state), 30 - i - 1))
        assert [(s.pieces, at) for s, at in rest] == [(s.pieces, at) for s, at in whole[i + 1 :]]
        assert Numbers.was_read == numbers(s for s, _ in rest)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the system does not list open files")
def test_only_the_shards_of_the_current_groups_are_open(tmp_path):
    stream = ShardStream(shards(tmp_path, *[1] * 12), Numbers(), mix=3, streams=2, epochs=3)
    before = len(os.listdir("/proc/self/fd"))
    assert max(len(os.listdir("/proc/self/fd")) for _ in stream) == before + 2 * 3
    assert len(os.listdir("/proc/self/fd")) == before


# ----------------------------------------------------------------------------------------------------------------- files


def test_webdataset_reads_the_same_samples_from_the_same_tar(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "0.tar")) as writer:
        for n in range(20):
            writer.write({"__key__": f"cats/{n:03d}", "png": encoded(n % 10), "txt": f"cat {n}", "json": {"n": n}})
    theirs = webdataset.WebDataset(str(tmp_path / "0.tar"), shardshuffle=False)
    expected = [(s["__key__"], s["txt"].decode(), s["png"]) for s in theirs]
    shard = Shard(tmp_path / "0.tar")
    records = [Record(key, files, shard) for key, files in Pairs().group(shard.index).items()]
    assert [(r.key, r.caption(), r.read("png")) for r in records] == expected and len(expected) == 20


def test_a_folder_is_a_shard_and_links_in_it_are_not_followed(tmp_path):
    (tmp_path / "cats/sub").mkdir(parents=True)
    for name, content in pairs(1, 2).items():
        (tmp_path / "cats/sub" / name).write_bytes(content)
    (tmp_path / "secret.txt").write_text("9")
    (tmp_path / "cats/009.txt").symlink_to(tmp_path / "secret.txt")
    stream = ShardStream(tmp_path / "cats", Pairs(), epochs=1)
    assert captions(stream) == ["1", "2"] and stream.skipped.broken == 0


def test_broken_samples_are_skipped_and_counted_and_the_first_ten_are_named(tmp_path):
    files = {**pairs(1, 2), "cut.jpg": encoded(3, "JPEG")[:-40], "cut.txt": b"a", "lost.txt": b"a", "mute.png": encoded(1)}
    files |= {"3.txt": b"", "3.png": encoded(3), **pairs(4)}
    stream = ShardStream(tar(tmp_path / "0.tar", files), Pairs(), shuffle=False, epochs=1)
    assert captions(stream) == ["1", "2", "4"]
    assert (stream.skipped.broken, stream.skipped.unsuitable) == (3, 1)
    for said, reason in zip(stream.skipped.first, ["cut: 'cut.jpg': not an", "lost: a pair", "mute: neither"], strict=True):
        assert said.startswith(f"{tmp_path / '0.tar'}, {reason}")
    stream = ShardStream(tar(tmp_path / "1.tar", {f"{i}.txt": b"a" for i in range(50)} | pairs(1)), Pairs(), epochs=1)
    assert captions(stream) == ["1"] and stream.skipped.broken == 50 and len(stream.skipped.first) == 10


def test_a_truncated_tar_gives_its_complete_samples(tmp_path):
    """Truncated at any byte. Half a caption is not a caption."""
    path = tar(tmp_path / "0.tar", pairs(*range(4)))
    whole, index = path.read_bytes(), Shard(path).index
    tar(tmp_path / "1.tar", pairs(9))
    ends = {name: offset + size for name, (offset, size) in index.items()}
    for cut in range(0, max(ends.values()) + 1024, 73):
        path.write_bytes(whole[:cut])
        stream = ShardStream([path, tmp_path / "1.tar"], Pairs(), epochs=1, mix=1)
        complete = [str(n) for n in range(4) if max(ends[f"{n:03d}.png"], ends[f"{n:03d}.txt"]) <= cut]
        assert captions(stream) == sorted([*complete, "9"])
        assert any(said.startswith(f"{path}: ") and "the tar is truncated" in said for said in stream.skipped.first)


def test_a_damaged_tar_raises_no_error(tmp_path):
    """Random bytes in headers and files; and a negative size, with which older versions of tarfile never end."""
    path, rng, n_damaged = tar(tmp_path / "0.tar", pairs(1, 2)), random.Random(0), 0
    whole = path.read_bytes()
    tar(tmp_path / "1.tar", pairs(9))
    for _ in range(100):
        content = bytearray(whole)
        start = rng.choice(range(0, len(whole) - 512, 512)) + rng.randrange(500)
        content[start : start + 12] = rng.randbytes(12)
        path.write_bytes(content)
        stream = ShardStream([path, tmp_path / "1.tar"], Pairs(), epochs=1, mix=1)
        assert "9" in captions(stream)
        n_damaged += stream.skipped.broken > 0
    assert n_damaged > 10
    header = bytearray(whole[512 * 4 : 512 * 5])  # of 002.png
    header[124:136] = b"\xff" * 4 + (2**64 - 1024).to_bytes(8, "big")
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 8 * 32)
    path.write_bytes(whole[: 512 * 4] + header + whole[512 * 5 :])
    stream = ShardStream(path, Pairs(), epochs=1)
    assert captions(stream) == ["1"] and "negative size" in stream.skipped.first[0]


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", gzip.compress(bytes(2048)), bytes(100)])
def test_a_file_that_is_not_a_tar_is_skipped_and_named(tmp_path, content):
    (tmp_path / "0.tar").write_bytes(content)
    tar(tmp_path / "1.tar", pairs(9))
    stream = ShardStream(f"{tmp_path}/*.tar", Pairs(), epochs=1, streams=1, mix=2)
    assert captions(stream) == ["9"]
    assert stream.skipped.broken == 1 and "0.tar: not an uncompressed tar" in stream.skipped.first[0]


@pytest.mark.parametrize("shuffle", [True, False])
def test_shards_without_a_good_sample_raise_an_error(tmp_path, shuffle):
    """Otherwise the program would search for ever. One good sample is enough, also if it came before a stop."""
    for i in range(3):
        tar(tmp_path / f"{i}.tar", {"a.txt": b"a", "b.txt": b"b"})
    with pytest.raises(ValueError, match="no good sample in 3 shards.*a pair needs one image"):
        next(iter(ShardStream(f"{tmp_path}/*.tar", Pairs(), shuffle=shuffle, mix=2)))
    tar(tmp_path / "3.tar", pairs(9))
    stream = ShardStream(f"{tmp_path}/*.tar", Pairs(), mix=1, streams=1)
    assert set(captions(islice(stream, 5))) == {"9"}
    (_, state) = next(stream.stream(0, Skipped()))
    assert next(stream.stream(0, Skipped(), *state))[0].pieces[1] == "9"


def test_only_value_errors_count_as_broken_samples_and_missing_shards_raise(tmp_path):
    class Buggy(Pairs):
        def __call__(self, record, rng):
            raise KeyError("a bug")

    names = shards(tmp_path, 2, 2)
    with pytest.raises(KeyError):
        next(iter(ShardStream(names, Buggy())))
    stream = ShardStream(names, Numbers(), mix=1, streams=1)
    (tmp_path / "01.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"01\.tar"):
        list(islice(stream, 9))
