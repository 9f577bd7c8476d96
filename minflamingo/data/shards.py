"""Datasets that are too large to list: shards (tar files in WebDataset's format), shuffled, and resumed exactly.

    dataset = Dataset("laion/{00000..00331}.tar", pair_sample, seed=1, rank=0, world=8)
    for sample, state, skipped in dataset.stream(0): ...       # endless: epoch after epoch, each in its own order

In each epoch, the list of shards is shuffled and cut into groups of `mix` shards. The groups of all epochs form one endless
list, which is distributed in turn over the `streams` of all processes. Each stream shuffles the samples of its group:

    6 shards, mix 2, world 2, streams 1     epoch 0: [4 1] [0 5] [2 3]   epoch 1: [3 0] [1 4] [5 2]   ...
                                    rank      0     1     0                1     0     1

So each epoch has each sample once, for any number of shards, processes and streams. A shuffle depends only on the seed and the
number of the group. Therefore the state of a stream is two numbers: which of its groups, and how many records of it are done.
A run resumes at the exact next sample. Broken samples, and what comes after damage in a shard, are skipped and counted. A
missing shard is an error.

Why no library (November 2026)? webdataset 1.0.2 reads a tar from front to back and does not store its position. torchdata 0.11
only stores the state that a dataset gives it, so we would still need this file.
"""

import glob
import os
import posixpath
import random
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .sample import Sample

NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")  # key and extension, separated by the first dot as in WebDataset
MOST_SKIPPED = 1000  # broken records in a row; so many mean that the dataset has another format
Files = dict[str, tuple[int, int]]  # the files of a record: name -> (offset, size) in the tar


def expand(pattern: str) -> list[str]:
    """Braces and globs -> file names, in order: cats/{08..10}.tar is cats/08.tar, cats/09.tar, cats/10.tar; {a,b} is both."""
    if braces := re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern):
        first, last, choices = braces.groups()
        values = choices.split(",") if choices else [f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1)]
        return [name for value in values for name in expand(pattern.replace(braces[0], value, 1))]
    if not (names := sorted(glob.glob(pattern))):
        raise FileNotFoundError(f"{pattern}: no such shard")
    return names


def read_index(path: str) -> tuple[dict[str, Files], str | None]:
    """The records of an uncompressed tar. A record is a text, `key.txt` or `key.json`, with all files `key.*` and `key/*`.

        cats/7.jpg, cats/7.txt, run/0.jpg, run.txt  ->  {"cats/7": {"jpg": …, "txt": …}, "run": {"0.jpg": …, "txt": …}}

    Returns the records and what is wrong, or None. A damaged tar has the records before the damage. A missing one is an error.
    """
    places, problem, end = {}, None, os.path.getsize(path)
    with open(path, "rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    if member.isreg() and member.offset_data + member.size <= end:
                        places[posixpath.normpath(member.name)] = (member.offset_data, member.size)
                file.seek(tar.offset)
                if file.read(512) != bytes(512):  # tarfile takes a damaged header for the end
                    raise ValueError("there is no end mark")
        except Exception as error:  # damaged headers raise TarError, OverflowError, OSError, ...
            problem = f"not an uncompressed tar, or the tar is truncated: {error}"
    matches = [match for match in map(NAME.fullmatch, places) if match]  # hidden files do not match
    keys = {key for key, extension in (match.groups() for match in matches) if extension in ("txt", "json")}
    records: dict[str, Files] = {}
    for match in matches:
        key, name = match.groups() if match[1] in keys else posixpath.split(match[0])
        if key in keys:
            records.setdefault(key, {})[name] = places[match[0]]
    if not records and problem is None:
        problem = "the shard contains no txt and no json file"
    return records, problem


def read_files(path: str, files: Files) -> dict[str, bytes]:
    """One record: name -> content."""
    record = {}
    with open(path, "rb") as file:
        for name, (offset, size) in files.items():
            file.seek(offset)
            record[name] = file.read(size)
    return record


@dataclass
class Dataset:
    """Endless samples of many shards, shuffled."""

    shards: str  # names of tars; `{0000..0009}` and globs are allowed
    reader: Callable[[dict[str, bytes], random.Random], Sample]  # see `records.py`; after an error, the record is skipped
    batch_size: int = 1  # in a `Mixture`
    weight: float = 1.0  # in a `Mixture`: its lambda_m
    seed: int = 0  # of all shuffles and of the reader's random choices
    mix: int = 4  # how many shards are shuffled together
    rank: int = 0  # number of this process
    world: int = 1  # how many processes there are
    streams: int = 4  # per process. The workers of a `Mixture` share them. The order depends on the streams, not on the workers

    def __post_init__(self):
        if not 0 <= self.rank < self.world or min(self.batch_size, self.mix, self.streams) < 1:
            raise ValueError(f"need 0 <= rank < world, and batch_size, mix and streams of at least 1; got {self}")
        self.paths = expand(self.shards)

    def fingerprint(self) -> int:
        """Equal for equal shards and settings. Only then does a state mean the same samples."""
        shards = [(os.path.basename(path), os.path.getsize(path)) for path in self.paths]
        return zlib.crc32(repr((shards, self.seed, self.mix, self.rank, self.world, self.streams)).encode())

    def stream(self, i: int, turn: int = 0, done: int = 0) -> Iterator[tuple[Sample, tuple[int, int], list[str]]]:
        """The samples of stream `i`, each with the state (turn, done) after it and the reasons of what was skipped before it.

        Another call resumes from a state. turn: number of the group in this stream. done: how many of its records are done.
        """
        skipped: list[str] = []
        while len(skipped) < MOST_SKIPPED:
            group = (turn * self.streams + i) * self.world + self.rank
            records = self._records(group, skipped)
            for k in range(done, len(records)):
                path, key, files = records[k]
                record, rng = read_files(path, files), random.Random(f"{self.seed} group {group} sample {k}")
                try:
                    sample = self.reader(record, rng)
                except Exception as error:  # data from the web is broken in many ways, and a bug of a reader is named as well
                    skipped.append(f"{path}, {key}: {type(error).__name__}: {error}"[:600])
                    if len(skipped) == MOST_SKIPPED:
                        break
                else:
                    yield sample, (turn, k + 1), skipped
                    skipped = []
            turn, done = turn + 1, 0
        raise ValueError(f"{len(skipped)} records or shards in a row cannot be read. The first one is {skipped[0]}")

    def _records(self, group: int, skipped: list[str]) -> list[tuple[str, str, Files]]:
        """(shard, key, files) of the records of one group in their shuffled order. Only the indexes of the shards are read."""
        shards, records = list(self.paths), []
        epoch, number = divmod(group, -(-len(shards) // self.mix))  # an epoch has ceil(shards / mix) groups
        random.Random(f"{self.seed} epoch {epoch}").shuffle(shards)
        for path in shards[number * self.mix : (number + 1) * self.mix]:
            found, problem = read_index(path)
            records += [(path, key, files) for key, files in found.items()]
            skipped += [f"{path}: {problem}"] if problem else []
        random.Random(f"{self.seed} group {group}").shuffle(records)
        return records
