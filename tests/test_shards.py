"""Shards are dealt out so that nothing comes twice and nothing is lost, also after a stop: `minflamingo/data/shards.py`."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import random
import tarfile
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import EOC, LETTERS, picture
from PIL import Image

from minflamingo.data.records import Documents, Pairs, Record, Videos
from minflamingo.data.sample import Sample
from minflamingo.data.shards import Shard, ShardStream, Skipped, expand


def encoded(i: int, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(i)[0]).save(file, format=form)
    return file.getvalue()


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
    """Pair number n is picture n % 10 with the text "n"."""
    return {f"{n:03d}.{e}": c for n in numbers for e, c in (("png", encoded(n % 10)), ("txt", str(n).encode()))}


def shards(folder: Path, *sizes: int) -> str:
    """Shards of so many pairs each, numbered through."""
    n = 0
    for s, size in enumerate(sizes):
        tar(folder / f"{s:02d}.tar", pairs(*range(n, n + size)))
        n += size
    return str(folder / f"{{00..{len(sizes) - 1:02d}}}.tar")


class Numbers:
    """A reader that reads the text alone: the number of a pair, and which ones were read at all."""

    def __init__(self):
        self.read: list[int] = []

    def group(self, names):
        return Pairs().group(names)

    def __call__(self, record: Record, rng: random.Random) -> Sample:
        self.read.append(int(record.read("txt")))
        return Sample([record.read("txt").decode(), str(rng.random())])


def numbers(stream) -> list[int]:
    return [int(sample.pieces[0]) for sample in stream]


def captions(stream) -> list[str]:
    return sorted(sample.pieces[1] for sample in stream)


# ----------------------------------------------------------------------------------------------------- names of shards


def test_braces_count_and_choose_and_stars_find(tmp_path):
    """{0000..0009} keeps its zeros; a star gives what there is, in order."""
    for name in ("a/08", "a/09", "a/10", "b/08", "b/09", "b/10", "c[1]{x}"):
        tar(tmp_path / f"{name}.tar", {})

    def names(*patterns: str) -> list[str]:
        return [path.relative_to(tmp_path).as_posix()[:-4] for path in expand([f"{tmp_path}/{p}.tar" for p in patterns])]

    assert names("a/{08..10}") == ["a/08", "a/09", "a/10"]
    assert names("{b,a}/{09..10}") == ["b/09", "b/10", "a/09", "a/10"]
    assert names("*/0*", "a/10") == ["a/08", "a/09", "b/08", "b/09", "a/10"]
    assert names("c[1]{x}") == ["c[1]{x}"]  # a file may be called so
    assert expand(tmp_path / "a" / "08.tar") == [tmp_path / "a" / "08.tar"]


def test_a_missing_shard_is_an_error_at_once_that_names_it(tmp_path):
    """Not after a week of training."""
    tar(tmp_path / "00.tar", {})
    with pytest.raises(FileNotFoundError, match=r"01\.tar: there is no such shard \(from .*00\.\.02"):
        ShardStream(f"{tmp_path}/{{00..02}}.tar", Pairs())
    with pytest.raises(FileNotFoundError, match=r"x\*\.tar: there is no such shard"):
        ShardStream(f"{tmp_path}/x*.tar", Pairs())
    with pytest.raises(FileNotFoundError, match="no shards at all"):
        ShardStream([], Pairs())
    with pytest.raises(ValueError, match=r"00\.tar is named twice"):
        ShardStream([f"{tmp_path}/00.tar", f"{tmp_path}/*.tar"], Pairs())
    with pytest.raises(ValueError, match=r"\{02\.\.00\} counts downwards"):
        ShardStream(f"{tmp_path}/{{02..00}}.tar", Pairs())


def test_a_shard_that_goes_missing_later_is_named_too(tmp_path):
    """A disk that is no longer there is nothing to pass over."""
    stream = ShardStream(shards(tmp_path, 2, 2), Numbers(), mix=1, lanes=1)
    (tmp_path / "01.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"01\.tar"):
        list(islice(stream, 9))


def test_ranks_and_sizes_that_cannot_be_are_refused(tmp_path):
    """Ranks count from 0."""
    for wrong in ({"rank": 2, "world": 2}, {"rank": -1}, {"mix": 0}, {"lanes": 0}):
        with pytest.raises(ValueError, match="ranks count from 0; the others from 1"):
            ShardStream(shards(tmp_path, 1), Pairs(), **wrong)


# ------------------------------------------------------------------------------------------------ the order of samples


def test_hands_are_dealt_in_turn_as_the_docstring_shows(tmp_path):
    """6 shards, mix 2, world 2, lanes 1: rank 0 has hands 0, 2, 4 …, rank 1 has hands 1, 3, 5 …, of an endless row."""
    names = shards(tmp_path, 1, 1, 1, 1, 1, 1)
    whole = numbers(islice(ShardStream(names, Numbers(), mix=2, lanes=1), 24))
    assert all(sorted(whole[e : e + 6]) == list(range(6)) for e in range(0, 24, 6))
    hands = [whole[i : i + 2] for i in range(0, 24, 2)]
    for rank in range(2):
        dealt = numbers(islice(ShardStream(names, Numbers(), mix=2, lanes=1, rank=rank, world=2), 12))
        assert dealt == [n for hand in hands[rank::2] for n in hand]


@pytest.mark.parametrize("world, lanes, mix", [(1, 1, 1), (1, 4, 2), (3, 2, 4), (2, 3, 1), (8, 4, 3)])
def test_in_an_epoch_no_sample_comes_twice_and_none_is_lost(tmp_path, world, lanes, mix):
    """Over all ranks and lanes, also with more of them than there are shards, and shards of any size."""
    names = shards(tmp_path, 3, 1, 0, 7, 2)
    for epochs in (1, 3):
        ranks = [ShardStream(names, Numbers(), mix=mix, rank=r, world=world, lanes=lanes, epochs=epochs) for r in range(world)]
        assert Counter(n for stream in ranks for n in numbers(stream)) == Counter({n: epochs for n in range(13)})


def test_each_epoch_has_an_order_of_its_own_and_so_has_each_seed(tmp_path):
    """Shuffled: shards, and the samples of the shards that are mixed."""
    names = shards(tmp_path, 6, 6, 6)
    one, two = ([numbers(ShardStream(names, Numbers(), s, epochs=4, lanes=1, mix=3)) for _ in range(2)] for s in (1, 2))
    assert one[0] == one[1] and two[0] == two[1] and one[0] != two[0]
    epochs = [one[0][i : i + 18] for i in range(0, 72, 18)]
    assert len(set(map(tuple, epochs))) == 4 and list(range(18)) not in epochs
    neighbours = sum(abs(a - b) == 1 for epoch in epochs for a, b in pairwise(epoch))
    assert neighbours < 20  # of 68; in a random order 7.5 are to be expected
    assert len({n // 6 for n in epochs[0][:9]}) == 3  # the shards are mixed


def test_every_place_in_an_epoch_is_open_to_every_sample(tmp_path):
    """A sample is not bound to its shard's place: over many seeds, each comes first as often as any other."""
    names = shards(tmp_path, 2, 2, 2)
    firsts = Counter(numbers(islice(ShardStream(names, Numbers(), seed, lanes=1, mix=2), 1))[0] for seed in range(300))
    assert set(firsts) == set(range(6)) and all(25 < n < 80 for n in firsts.values())


def test_unshuffled_shards_come_as_they_lie(tmp_path):
    """For looking at data."""
    stream = ShardStream(shards(tmp_path, 3, 2), Numbers(), shuffle=False, lanes=1, epochs=1)
    assert numbers(stream) == list(range(5)) and numbers(stream) == list(range(5))


# ---------------------------------------------------------------------------------------------------- stop and go on


@pytest.mark.parametrize("mix", [1, 3])
def test_a_lane_goes_on_at_the_exact_sample_wherever_it_stopped(tmp_path, mix):
    """Stop + go on = no stop, with shuffling, over epochs, with the readers' dice; two numbers are all that is kept."""
    names = shards(tmp_path, 3, 1, 4, 2)

    def lane(*place: int):
        return ShardStream(names, Numbers(), seed=5, mix=mix, lanes=2).lane(1, Skipped(), *place)

    whole = list(islice(lane(), 30))
    for i, (_, place) in enumerate(whole[:-1]):
        again = list(islice(lane(*place), 30 - i - 1))
        assert [(s.pieces, at) for s, at in again] == [(s.pieces, at) for s, at in whole[i + 1 :]]


def test_going_on_reads_nothing_that_was_read(tmp_path):
    """A stop after a million samples costs the listing of a few shards, not a million samples."""
    names, reader = shards(tmp_path, 50, 50), Numbers()
    (*_, (_, place)) = islice(ShardStream(names, reader, lanes=1).lane(0, Skipped()), 90)
    before = set(reader.read)
    reader.read.clear()
    rest = list(islice(ShardStream(names, reader, lanes=1).lane(0, Skipped(), *place), 10))
    assert len(rest) == len(reader.read) == 10 and not before & set(reader.read)


def test_samples_are_read_when_they_are_drawn_and_not_before(tmp_path):
    """A shuffle buffer of samples would hold thousands of pictures; here it holds their names."""
    stream = ShardStream(shards(tmp_path, 9, 9), reader := Numbers())
    drawn = numbers(islice(stream, 5))
    assert reader.read == drawn


def test_the_readers_dice_fall_anew_each_time_a_sample_comes(tmp_path):
    """A document's window is another in the next epoch."""
    samples = list(ShardStream(shards(tmp_path, 3), Numbers(), lanes=1, epochs=4))
    assert len({sample.pieces[1] for sample in samples}) == 12


# ------------------------------------------------------------------------------------------------------ real samples


def test_pairs_videos_and_documents_come_out_of_a_tar_as_they_went_in(tmp_path):
    """To the last pixel, by way of `tarfile`'s own writer; names may begin with ./ as those of `tar -c .` do."""
    document = json.dumps({"texts": ["a", None, "b"], "images": [None, "7.png", None]}).encode()
    film = {f"./run/{t}.png": encoded(t) for t in range(3)}
    made = {
        Pairs(): ({"./0.png": encoded(4), "./0.txt": b"a"}, [picture(4), "a", EOC]),
        Videos(): ({**film, "./run.txt": b"a"}, [np.concatenate([picture(t) for t in range(3)]), "a", EOC]),
        Documents(LETTERS): ({"./0.json": document, "./7.png": encoded(7)}, ["a", EOC, picture(7), "b", EOC]),
    }
    for reader, (files, expected) in made.items():
        (sample,) = ShardStream(tar(tmp_path / f"{type(reader).__name__}.tar", files), reader, epochs=1)
        assert all(np.array_equal(a, b) if isinstance(b, np.ndarray) else a == b for a, b in zip(sample.pieces, expected))
        assert len(sample.pieces) == len(expected)


def test_webdataset_reads_the_same_samples_from_the_same_tar(tmp_path):
    """The oracle is the library whose format this is, for tars that it wrote itself."""
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "0.tar")) as writer:
        for n in range(20):
            writer.write({"__key__": f"cats/{n:03d}", "png": encoded(n % 10), "txt": f"cat {n}", "json": {"n": n}})
    theirs = webdataset.WebDataset(str(tmp_path / "0.tar"), shardshuffle=False)
    expected = [(s["__key__"], s["txt"].decode(), s["png"]) for s in theirs]
    with Shard(tmp_path / "0.tar") as shard:
        records = [Record(key, files, shard) for key, files in Pairs().group(shard.places).items()]
        assert [(r.key, r.caption(), r.read("png")) for r in records] == expected and len(expected) == 20


def test_a_folder_is_a_shard_too(tmp_path):
    """To try a few files before they are packed. Links are not followed: they may lead anywhere."""
    for name, content in pairs(1, 2).items():
        (tmp_path / "cats/sub").mkdir(parents=True, exist_ok=True)
        (tmp_path / "cats/sub" / name).write_bytes(content)
    (tmp_path / "secret.txt").write_text("9")
    (tmp_path / "cats/009.txt").symlink_to(tmp_path / "secret.txt")
    stream = ShardStream(tmp_path / "cats", Pairs(), epochs=1)
    assert captions(stream) == ["1", "2"] and stream.skipped.broken == 0


# --------------------------------------------------------------------------------------------------------- what is broken


def test_broken_samples_are_passed_over_and_counted_by_name(tmp_path):
    """A cut JPEG, a missing member, bad JSON, letters that are none: the stream goes on, and says what it left out."""
    files = {**pairs(1, 2), "cut.jpg": encoded(3, "JPEG")[:-40], "cut.txt": b"a", "lost.txt": b"a", "mute.png": encoded(1)}
    files |= {"half.png": encoded(1), "half.json": b'{"caption": ', "odd.png": encoded(1), "odd.txt": b"\xff\xfe", "3.txt": b""}
    files |= {"3.png": encoded(3), **pairs(4)}
    stream = ShardStream(tar(tmp_path / "0.tar", files), Pairs(), shuffle=False, epochs=1)
    assert captions(stream) == ["1", "2", "4"]
    assert (stream.skipped.broken, stream.skipped.unsuitable) == (5, 1)
    reasons = ["cut: 'cut.jpg' is no image", "lost: a pair has one image", "mute: there is neither", "half: the json is broken",
               "odd: 'utf-8'"]  # fmt: skip
    for said, reason in zip(stream.skipped.first, reasons, strict=True):
        assert said.startswith(f"{tmp_path / '0.tar'}, {reason}")


def test_only_the_first_few_broken_samples_are_named(tmp_path):
    """A million names would help nobody; the number tells."""
    files = {f"{i}.txt": b"a" for i in range(50)}
    stream = ShardStream(tar(tmp_path / "0.tar", files | pairs(1)), Pairs(), shuffle=False, epochs=1)
    assert captions(stream) == ["1"]
    assert stream.skipped.broken == 50 and len(stream.skipped.first) == 10


def test_a_tar_that_breaks_off_gives_what_is_whole_wherever_it_breaks(tmp_path):
    """A download that stopped, at any byte: each sample before it comes, none that is cut does, and the shard is named."""
    path = tar(tmp_path / "0.tar", pairs(*range(4)))
    whole = path.read_bytes()
    tar(tmp_path / "1.tar", pairs(9))
    with Shard(path) as shard:
        ends = {name: begin + size for name, (begin, size) in shard.places.items()}
    for cut in range(0, max(ends.values()) + 1024, 73):
        path.write_bytes(whole[:cut])
        stream = ShardStream([path, tmp_path / "1.tar"], Pairs(), epochs=1, mix=1)
        complete = [str(n) for n in range(4) if max(ends[f"{n:03d}.png"], ends[f"{n:03d}.txt"]) <= cut]
        assert captions(stream) == sorted([*complete, "9"])
        assert any(said.startswith(f"{path}: ") and "the tar breaks off" in said for said in stream.skipped.first)


def test_half_a_caption_at_the_end_of_a_tar_is_no_caption(tmp_path):
    """It would teach the model to stop in mid-sentence."""
    path = tar(tmp_path / "0.tar", pairs(1) | {"2.png": encoded(2), "2.txt": b"a cat and a dog"})
    with Shard(path) as shard:
        begin, _ = shard.places["2.txt"]
    path.write_bytes(path.read_bytes()[: begin + 5])
    stream = ShardStream(path, Pairs(), epochs=1, shuffle=False)
    assert captions(stream) == ["1"]
    assert "2: 2.txt: the tar breaks off in the middle of it" in stream.skipped.first[1]


def test_a_tar_with_garbage_in_it_crashes_nothing(tmp_path):
    """Bytes changed at random, headers among them: the good shard comes all the same."""
    path = tar(tmp_path / "0.tar", pairs(*range(4)))
    whole = path.read_bytes()
    tar(tmp_path / "1.tar", pairs(9))
    damaged = 0
    for seed in range(150):
        dice, content = random.Random(seed), bytearray(whole)
        at = dice.choice([0, 512, 1024, 1536, 2048]) + dice.randrange(512)
        content[at : at + 12] = dice.randbytes(12)
        path.write_bytes(content)
        stream = ShardStream([path, tmp_path / "1.tar"], Pairs(), epochs=1, mix=1)
        assert "9" in captions(stream)
        damaged += stream.skipped.broken > 0
    assert damaged > 50


def test_a_member_of_negative_size_does_not_send_the_reader_in_circles(tmp_path):
    """Python's tarfile of 2025 and before comes back to the same header for ever."""
    path = tar(tmp_path / "0.tar", pairs(1, 2))
    content = bytearray(path.read_bytes())
    header = bytearray(content[512 * 4 : 512 * 5])  # of 002.png
    for size in (-512, -1024, -2048):
        header[124:136] = b"\xff" * 4 + (2**64 + size).to_bytes(8, "big")
        header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 8 * 32)
        content[512 * 4 : 512 * 5] = header
        path.write_bytes(content)
        stream = ShardStream(path, Pairs(), epochs=1)
        assert captions(stream) == ["1"] and "negative size" in stream.skipped.first[0]


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", gzip.compress(bytes(2048)), bytes(100)])
def test_what_is_no_tar_is_passed_over_and_named(tmp_path, content):
    """A compressed one is none either: its samples cannot be reached one by one."""
    (tmp_path / "0.tar").write_bytes(content)
    tar(tmp_path / "1.tar", pairs(9))
    stream = ShardStream(f"{tmp_path}/*.tar", Pairs(), epochs=1, lanes=1, mix=2)
    assert captions(stream) == ["9"]
    assert stream.skipped.broken == 1 and "0.tar: not an uncompressed tar" in stream.skipped.first[0]


@pytest.mark.parametrize("shuffle", [True, False])
def test_shards_without_one_good_sample_are_an_error_and_no_endless_search(tmp_path, shuffle):
    """It would look like a run that is slow."""
    for i in range(3):
        tar(tmp_path / f"{i}.tar", {"a.txt": b"a", "b.txt": b"b"})
    with pytest.raises(ValueError, match="no good sample in .* shards.*a pair has one image"):
        next(iter(ShardStream(f"{tmp_path}/*.tar", Pairs(), shuffle=shuffle, mix=2)))
    tar(tmp_path / "3.tar", pairs(9))  # one is enough
    if shuffle:
        assert set(captions(islice(ShardStream(f"{tmp_path}/*.tar", Pairs(), mix=1), 20))) == {"9"}


def test_going_on_behind_the_only_good_sample_is_no_error(tmp_path):
    """What came before the stop counts as well."""
    stream = ShardStream(tar(tmp_path / "0.tar", pairs(1) | {"z.txt": b"z"}), Pairs(), lanes=1)
    (_, place) = next(stream.lane(0, Skipped()))
    assert next(stream.lane(0, Skipped(), place[0], 2))[0].pieces[1] == "1"


def test_a_mistake_of_a_reader_is_not_taken_for_a_broken_sample(tmp_path):
    """Only ValueError means broken; a bug must not throw the data away in silence."""

    class Buggy(Pairs):
        def __call__(self, record, rng):
            raise KeyError("a bug")

    with pytest.raises(KeyError):
        next(iter(ShardStream(tar(tmp_path / "0.tar", pairs(1)), Buggy())))


def test_a_stream_can_be_sent_to_another_process(tmp_path):
    """Where worker processes begin anew (macOS, Windows) they get it by pickle, and then read the same."""
    stream = ShardStream(shards(tmp_path, 4, 4), Pairs(), seed=2, epochs=1)
    sent = pickle.loads(pickle.dumps(stream))
    assert [s.pieces[1] for s in sent] == [s.pieces[1] for s in stream]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the system does not tell which files are open")
def test_no_more_files_are_open_than_the_shards_of_each_lanes_hand(tmp_path):
    """Thousands of shards go through a process."""
    stream = ShardStream(shards(tmp_path, *[1] * 12), Numbers(), mix=3, lanes=2, epochs=3)
    before = len(os.listdir("/proc/self/fd"))
    assert max(len(os.listdir("/proc/self/fd")) for _ in stream) == before + 2 * 3
    assert len(os.listdir("/proc/self/fd")) == before
