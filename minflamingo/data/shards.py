"""Datasets that are too large to list: shards (tar files in WebDataset's format, or folders), shuffled, and resumed exactly.

    stream = ShardStream("laion/{00000..00331}.tar", Pairs(), seed=1, rank=0, world=8)
    for sample in stream: ...                      # endless: epoch after epoch, each in its own order

In each epoch, the list of shards is shuffled and cut into groups of `mix` shards. The groups of all epochs form one endless
list, which is distributed in turn over the `streams` of all processes. Each stream shuffles the samples of its group:

    6 shards, mix 2, world 2, streams 1     epoch 0: [4 1] [0 5] [2 3]   epoch 1: [3 0] [1 4] [5 2]   ...
                                    rank      0     1     0                1     0     1

So each epoch has each sample once, for any number of shards, processes and streams. A shuffle depends only on the seed and the
number of the group. Therefore the state of a stream is two numbers: which of its groups, and how many samples of it are done.
A run resumes at the exact next sample. Broken samples are skipped and counted. A missing shard is an error.

Why no library (November 2026)? webdataset 1.0.2 reads a tar from front to back and does not store its position; its author
recommends random resampling instead of resuming (webdataset issues 177, 271). torchdata 0.11 has StatefulDataLoader (last
release February 2025, no new development: torchdata issue 1549). It works with torch 2.13, but it only stores the state that a
dataset gives it, so the stream below would stay. It would replace about 15 lines of `mixture.py`, and it requires the same
number of workers when a run resumes (here it may change).
"""

import glob
import posixpath
import random
import re
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from .records import Documents, Pairs, Record, Videos
from .sample import Sample


def expand(patterns: str | Path | Iterable[str | Path]) -> list[Path]:
    """File names with braces and globs -> the paths, in order: cats/{08..10}.tar is cats/08.tar, cats/09.tar, cats/10.tar."""
    paths: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str | Path) else patterns:
        for name in _braces(str(pattern)):
            found = [name] if Path(name).exists() else sorted(glob.glob(name, recursive=True))
            if not found:
                raise FileNotFoundError(f"{name}: no such shard (from {str(pattern)!r})")
            paths += map(Path, found)
    if not paths or len(set(paths)) < len(paths):
        raise ValueError(f"{patterns!r} names no shards, or names a shard twice")
    return paths


def _braces(pattern: str) -> list[str]:
    """{08..11} counts with leading zeros, {a,b} lists; several braces give all combinations."""
    if not (brace := re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)):
        return [pattern]
    first, last, choices = brace.groups()
    values = choices.split(",") if choices else [f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1)]
    return [pattern[: brace.start()] + value + rest for value in values for rest in _braces(pattern[brace.end() :])]


class Shard:
    """The files of a tar or a folder: `name in shard`, `shard.read(name)`. `damage`: what is wrong with the tar, or ""."""

    def __init__(self, path: Path):
        self.path, self.damage, self.file = path, "", None
        self.index: dict[str, tuple[int, int]] = {}  # name -> (offset, size)
        if path.is_dir():
            files = [f for f in sorted(path.rglob("*")) if f.is_file() and not f.is_symlink()]  # links may point anywhere
            self.index = {f.relative_to(path).as_posix(): (0, 0) for f in files}
            return
        self.file = open(path, "rb")  # noqa: SIM115
        try:
            with tarfile.open(fileobj=self.file, mode="r:") as tar:
                for member in tar:
                    if member.size < 0:  # older versions of tarfile would read the same header for ever
                        raise ValueError(f"{member.name} has a negative size")
                    if member.isreg():
                        self.index[posixpath.normpath(member.name)] = (member.offset_data, member.size)
                end = tar.offset
            self.file.seek(end)
            if self.file.read(512) != bytes(512):  # tarfile does not report a tar that ends between two files
                self.damage = "the tar is truncated (no end mark)"
        except Exception as error:  # damaged headers raise TarError, OverflowError, OSError, ...
            self.damage = f"not an uncompressed tar, or the tar is truncated: {error}"

    def __contains__(self, name: str) -> bool:
        return name in self.index

    def read(self, name: str) -> bytes:
        if self.file is None:
            return (self.path / name).read_bytes()
        offset, size = self.index[name]
        self.file.seek(offset)
        content = self.file.read(size)
        if len(content) < size:
            raise ValueError(f"{name}: the tar is truncated inside this file")
        return content

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


@dataclass
class Skipped:
    """How many samples or shards are `broken`, how many samples `unsuitable` (no text, no image); the `first` ten reasons."""

    broken: int = 0
    unsuitable: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, other: "Skipped") -> None:
        self.broken, self.unsuitable = self.broken + other.broken, self.unsuitable + other.unsuitable
        self.first = (self.first + other.first)[:10]

    def take(self) -> "Skipped":
        """The counts so far. Counting starts again at zero."""
        taken = Skipped(self.broken, self.unsuitable, self.first)
        self.broken, self.unsuitable, self.first = 0, 0, []
        return taken


class ShardStream:
    """Samples of many shards, shuffled. `shards`: paths of tars and folders; `{0000..0009}` and globs are allowed.

    Args:
        seed: of all shuffles and of the readers' random choices. `shuffle=False`: the order of the shards and their files.
        mix: how many shards are shuffled together.
        rank, world: number of this process, and of how many.
        streams: within a process, to be shared by the workers of a `Mixture`. The order depends on them, not on the workers.
        epochs: how often each sample comes; None: endless.
    """

    def __init__(
        self, shards: str | Path | Iterable[str | Path], reader: Pairs | Videos | Documents, *, seed: int = 0,
        shuffle: bool = True, mix: int = 4, rank: int = 0, world: int = 1, streams: int = 4, epochs: int | None = None,
    ):  # fmt: skip
        self.shards, self.reader, self.seed, self.shuffle = expand(shards), reader, seed, shuffle
        self.mix, self.rank, self.world, self.streams, self.epochs = mix, rank, world, streams, epochs
        if not 0 <= rank < world or mix < 1 or streams < 1:
            raise ValueError(f"need 0 <= rank < world, mix >= 1 and streams >= 1; got {rank=}, {world=}, {mix=}, {streams=}")
        self.skipped = Skipped()

    @property
    def settings(self) -> tuple:
        """Settings that must be equal when a run resumes: only then does the state of a stream mean the same samples."""
        sizes = [(path.name, path.stat().st_size if path.is_file() else 0) for path in self.shards]
        return (sizes, self.seed, self.shuffle, self.mix, self.rank, self.world, self.streams)

    def __iter__(self) -> Iterator[Sample]:
        """One sample of each stream in turn."""
        streams = [self.stream(i, self.skipped) for i in range(self.streams)]
        while streams:
            for stream in list(streams):
                if (item := next(stream, None)) is None:
                    streams.remove(stream)
                else:
                    yield item[0]

    def stream(self, i: int, skipped: Skipped, turn: int = 0, done: int = 0) -> Iterator[tuple[Sample, tuple[int, int]]]:
        """The samples of stream `i`, each with the state (turn, done) after it, from which another call resumes.

        turn: number of the group among those of this stream. done: samples of it that were returned. Broken samples are counted
        in `skipped`. Raises ValueError if there is no good sample in all the shards.
        """
        n_groups, n_empty = -(-len(self.shards) // self.mix), 0  # groups per epoch; groups without a good sample, in a row
        while True:
            group = (turn * self.streams + i) * self.world + self.rank
            epoch, number = divmod(group, n_groups)
            if self.epochs is not None and epoch >= self.epochs:
                return
            n_empty += done == 0  # after resuming, it is unknown whether the group had good samples before
            with ExitStack() as stack:
                records = self._records(epoch, number, group, stack, skipped)
                for k in range(done, len(records)):
                    sample = self._sample(records[k], random.Random(f"{self.seed} group {group} sample {k}"), skipped)
                    if sample is not None:
                        n_empty = 0
                        yield sample, (turn, k + 1)
            turn, done = turn + 1, 0
            if n_empty >= 10 * n_groups:  # groups are random: after as many, a stream has read every shard (almost surely)
                reasons = "; ".join(skipped.first) or "nothing is broken, but no sample has text and an image"
                raise ValueError(f"no good sample in {len(self.shards)} shards, such as {self.shards[0]}: {reasons}")

    def _records(self, epoch: int, number: int, group: int, stack: ExitStack, skipped: Skipped) -> list[Record]:
        """The records of one group of shards in their shuffled order. This reads only the file lists of the shards."""
        shards, records = list(self.shards), []
        if self.shuffle:
            random.Random(f"{self.seed} epoch {epoch}").shuffle(shards)
        for path in shards[number * self.mix : (number + 1) * self.mix]:
            shard = Shard(path)
            stack.callback(shard.close)
            if shard.damage:
                skipped.add(Skipped(1, 0, [f"{path}: {shard.damage}"]))
            records += [Record(key, files, shard) for key, files in self.reader.group(shard.index).items()]
        if self.shuffle:
            random.Random(f"{self.seed} group {group}").shuffle(records)
        return records

    def _sample(self, record: Record, rng: random.Random, skipped: Skipped) -> Sample | None:
        try:
            sample = self.reader(record, rng)
            skipped.unsuitable += sample is None
            return sample
        except ValueError as error:  # any other error is a bug of the reader and must not be hidden
            skipped.add(Skipped(1, 0, [f"{record.shard.path}, {record.key}: {error}"]))
