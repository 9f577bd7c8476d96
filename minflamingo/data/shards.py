"""Datasets too large to list: shards (tars as WebDataset writes them, or folders), shuffled, dealt out, and resumed exactly.

    stream = ShardStream("laion/{00000..00331}.tar", Pairs(), seed=1, rank=0, world=8)
    for sample in stream: ...                      # endless: epoch after epoch, each in an order of its own

**How the cards are dealt.** An epoch is a shuffled list of the shards, cut into hands of `mix` shards; epoch follows epoch,
so the row of hands has no end. It is dealt in turn to all `lanes` of all ranks, as cards are to players. A lane shuffles the
samples of its hand and plays them one by one:

    6 shards, mix 2, world 2, lanes 1      epoch 0: [4 1] [0 5] [2 3]   epoch 1: [3 0] [1 4] [5 2]   …
                                     rank    0     1     0              1     0     1

So no sample comes twice in an epoch and none is lost, for any number of shards, ranks and lanes, and a lane knows the contents
of no more than `mix` shards. Every shuffle depends on the seed and the number of the hand alone. Hence two numbers say where a
lane is: which of its hands, and how many samples of it are played. A run goes on exactly where it stopped, without reading
again what it had.

**Broken samples** (a cut JPEG, a missing member, bad JSON, a tar that breaks off) are passed over and counted, the first few
with their names. A shard that is missing is an error at once.

Python's own `tarfile` lists a shard (0.4 s for 10,000 pairs); from then on a sample is a seek and a read for each of its files.
The `webdataset` package reads tars from front to back through a buffer, which cannot be resumed without reading it all again.
"""

from __future__ import annotations

import glob
import posixpath
import random
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Protocol

from .records import Record
from .sample import Sample


def expand(patterns: str | Path | Iterable[str | Path]) -> list[Path]:
    """Names of shards, with braces and globs, → the paths, in order.

    >>> expand("cats/{08..11}.tar")
    [PosixPath('cats/08.tar'), PosixPath('cats/09.tar'), PosixPath('cats/10.tar'), PosixPath('cats/11.tar')]

    Raises:
        FileNotFoundError: one of them is not there, or a glob finds nothing.
    """
    paths: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str | Path) else patterns:
        for name in _braces(str(pattern)):
            found = [name] if Path(name).exists() else sorted(glob.glob(name, recursive=True))
            if not found:
                raise FileNotFoundError(f"{name}: there is no such shard (from {str(pattern)!r})")
            paths += map(Path, found)
    if not paths:
        raise FileNotFoundError("no shards at all were named")
    if len(set(paths)) < len(paths):
        raise ValueError(f"{next(p for p in paths if paths.count(p) > 1)} is named twice; its samples would come twice")
    return paths


def _braces(pattern: str) -> list[str]:
    """{08..11} counts, with as many digits; {a,b} chooses. Several braces give all combinations, the last one fastest."""
    if not (brace := re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)):
        return [pattern]
    first, last, choices = brace.groups()
    middles = choices.split(",") if choices else [f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1)]
    if not middles:
        raise ValueError(f"{pattern}: {brace[0]} counts downwards; write the smaller number first")
    return [pattern[: brace.start()] + middle + rest for middle in middles for rest in _braces(pattern[brace.end() :])]


class Shard:
    """The files of a tar, or of a folder, by name: `name in shard`, `shard.read(name)`. `damage` says what is wrong with it."""

    def __init__(self, path: Path):
        self.path, self.damage, self.file = path, "", None
        self.places: dict[str, tuple[int, int]] = {}  # name → (where its content begins, how long it is)
        if path.is_dir():
            files = [f for f in sorted(path.rglob("*")) if f.is_file() and not f.is_symlink()]  # a link may lead anywhere
            self.places = {f.relative_to(path).as_posix(): (0, f.stat().st_size) for f in files}
            return
        self.file = open(path, "rb")  # noqa: SIM115
        try:
            with tarfile.open(fileobj=self.file, mode="r:") as tar:
                for member in tar:
                    if member.size < 0:  # tarfile would come back to it for ever (Python before the end of 2025)
                        raise ValueError(f"{member.name} has a negative size")
                    if member.isreg():
                        self.places[posixpath.normpath(member.name)] = (member.offset_data, member.size)
                end = tar.offset
            self.file.seek(end)
            if self.file.read(512) != bytes(512):  # tarfile itself is silent about a tar that ends between two members
                self.damage = "the tar breaks off before its end mark"
        except Exception as error:  # of a damaged header may come anything: TarError, OverflowError, OSError of a seek …
            self.damage = f"not an uncompressed tar, or the tar breaks off: {error}"

    def __contains__(self, name: str) -> bool:
        return name in self.places

    def read(self, name: str) -> bytes:
        if self.file is None:
            try:
                return (self.path / name).read_bytes()
            except OSError as error:
                raise ValueError(f"{name}: {error}") from None
        begin, size = self.places[name]
        self.file.seek(begin)
        content = self.file.read(size)
        if len(content) < size:
            raise ValueError(f"{name}: the tar breaks off in the middle of it")
        return content

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()


class Reader(Protocol):
    """How files become samples: `Pairs`, `Videos`, `Documents` (see `records.py`)."""

    def group(self, names: Iterable[str]) -> Mapping[str, Mapping[str, str]]: ...

    def __call__(self, record: Record, rng: random.Random) -> Sample | None: ...


@dataclass
class Skipped:
    """What was passed over: `broken` samples and shards, the `first` of them by name; and whole ones with nothing in them."""

    broken: int = 0
    unsuitable: int = 0
    first: list[str] = field(default_factory=list)
    NAMED = 10

    def note(self, name: str, reason: str) -> None:
        self.add(Skipped(1, 0, [f"{name}: {reason}"]))

    def add(self, other: Skipped) -> None:
        self.broken, self.unsuitable = self.broken + other.broken, self.unsuitable + other.unsuitable
        self.first = (self.first + other.first)[: self.NAMED]

    def take(self) -> Skipped:
        """What has come together so far; counting begins anew."""
        taken = Skipped(self.broken, self.unsuitable, self.first)
        self.broken, self.unsuitable, self.first = 0, 0, []
        return taken


class ShardStream:
    """Samples of many shards, shuffled.

    Args:
        shards: paths of tars and folders, `{0000..0009}` and globs in them allowed.
        reader: what their files mean: `Pairs()`, `Videos()`, `Documents(tokenizer)`.
        seed: of every shuffle, and of the readers' dice. `shuffle=False`: in the order of the shards and of their files.
        mix: how many shards are shuffled together.
        rank, world: this process, of how many.
        lanes: streams within a rank, for the workers of a `Mixture`. The order depends on them, not on the workers.
        epochs: how often every sample comes; None: without end.
    Raises:
        FileNotFoundError: a shard is missing; names it.
    """

    def __init__(
        self, shards: str | Path | Iterable[str | Path], reader: Reader, seed: int = 0, shuffle: bool = True, mix: int = 4,
        rank: int = 0, world: int = 1, lanes: int = 4, epochs: int | None = None,
    ):  # fmt: skip
        self.shards, self.reader, self.seed, self.shuffle = expand(shards), reader, seed, shuffle
        self.mix, self.rank, self.world, self.lanes, self.epochs = mix, rank, world, lanes, epochs
        if not 0 <= rank < world or mix < 1 or lanes < 1:
            raise ValueError(f"rank {rank} of world {world}, mix {mix}, lanes {lanes}: ranks count from 0; the others from 1")
        self.hands = -(-len(self.shards) // mix)  # of an epoch
        self.skipped = Skipped()

    @property
    def settings(self) -> tuple:
        """What must be the same when a run goes on: then, and only then, do the numbers of a lane mean the same samples."""
        sizes = [(path.name, path.stat().st_size if path.is_file() else 0) for path in self.shards]
        return (sizes, self.seed, self.shuffle, self.mix, self.rank, self.world, self.lanes)

    def __iter__(self) -> Iterator[Sample]:
        """One sample of each lane in turn."""
        lanes = [self.lane(i, self.skipped) for i in range(self.lanes)]
        while lanes:
            for lane in list(lanes):
                if (drawn := next(lane, None)) is None:
                    lanes.remove(lane)
                else:
                    yield drawn[0]

    def lane(self, lane: int, skipped: Skipped, begin: int = 0, played: int = 0) -> Iterator[tuple[Sample, tuple[int, int]]]:
        """The samples of a lane, each with the (turn, played) behind it, from which another call goes on with the next.

        Raises:
            ValueError: there is not one good sample in all the shards.
        """
        barren: list[Path] = []  # shards without a good sample, since the last good one
        for turn in count(begin):
            hand = (turn * self.lanes + lane) * self.world + self.rank
            epoch, which = divmod(hand, self.hands)
            if self.epochs is not None and epoch >= self.epochs:
                return
            paths = self._order(epoch)[which * self.mix : (which + 1) * self.mix]
            found = played > 0  # then it is not known what this hand held before
            with ExitStack() as opened:
                records = self._records(paths, hand, opened, skipped)
                for i in range(played, len(records)):
                    sample = self._sample(*records[i], random.Random(f"{self.seed} hand {hand} card {i}"), skipped)
                    if sample is not None:
                        found = True
                        yield sample, (turn, i + 1)
            played = 0
            barren = [] if found else barren + paths
            # Unshuffled, a lane may see the same few shards for ever; then they are all there is.
            if len(set(barren)) == len(self.shards) or (not self.shuffle and len(barren) >= self.hands * self.mix):
                said = "; ".join(skipped.first) or "nothing was broken, but nothing was of use either"
                raise ValueError(f"there is no good sample in {len(set(barren))} shards, {paths[0]} among them: {said}")

    def _order(self, epoch: int) -> list[Path]:
        shards = list(self.shards)
        if self.shuffle:
            random.Random(f"{self.seed} epoch {epoch}").shuffle(shards)
        return shards

    def _records(
        self, paths: list[Path], hand: int, opened: ExitStack, skipped: Skipped
    ) -> list[tuple[Shard, str, Mapping[str, str]]]:
        """The cards of a hand, in the order of play. Nothing but the shards' tables of content has been read."""
        records = []
        for path in paths:
            shard = opened.enter_context(Shard(path))
            if shard.damage:
                skipped.note(str(path), shard.damage)
            records += [(shard, key, files) for key, files in self.reader.group(shard.places).items()]
        if self.shuffle:
            random.Random(f"{self.seed} hand {hand}").shuffle(records)
        return records

    def _sample(
        self, shard: Shard, key: str, files: Mapping[str, str], rng: random.Random, skipped: Skipped
    ) -> Sample | None:
        try:
            sample = self.reader(Record(key, files, shard), rng)
        except ValueError as error:
            skipped.note(f"{shard.path}, {key}", str(error))
            return None
        skipped.unsuitable += sample is None
        return sample
