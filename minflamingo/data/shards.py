"""Datasets that are too large to list: shards, shuffled, and resumed exactly.

    dataset = Dataset("laion/{00000..00331}.tar", pair_sample, seed=1)
    for entry in dataset.entries(): sample = dataset.read(entry)     # endless: epoch after epoch, each in its own order

A shard is a tar file in WebDataset's format, a folder of images with texts, or a `.jsonl` file (see `readers.py`). A list of
shards can also be a folder that contains tars, or one `.jsonl` file.

In each epoch, the list of shards is shuffled and cut into groups of `mix` shards. The records of a group are shuffled:

    6 shards, mix 2     epoch 0: [4 1] [0 5] [2 3]     epoch 1: [3 0] [1 4] [5 2]   ...      group 3 is [3 0]

So all records of all epochs form one endless list. It depends only on the shards and the seed, so every process and every
worker has the same list, and an epoch has each record once. Only the indexes of shards are read to make it. A place in the list
is two numbers: the group, and how many of its records are done. A run resumes there, at the exact next sample.

A problem of a shard (it is truncated, or files belong to no text) is also an entry of the list. `read` raises an error for
it, as for a broken record, so both are skipped, counted and named in one way. A missing shard is an error.

(No library, as of November 2026: webdataset 1.0.2 does not store its position, and torchdata 0.11 needs a dataset that does.)
"""

import glob
import math
import os
import posixpath
import random
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import NamedTuple

from .files import open_file, problem_of, read_file
from .readers import read_line, read_lines
from .sample import Sample

# Key and extension. In a tar, the first dot separates them, as in WebDataset; in a folder the last one: photo.10.32.jpg
NAME_IN_TAR, NAME_IN_FOLDER = re.compile(r"(?s)((?:.*/)?[^./]+)\.([^/]+)"), re.compile(r"(?s)((?:.*/)?[^./][^/]*)\.([^./]+)")
BRACES = re.compile(r"\{(?:(\d{1,18})\.\.(\d{1,18})|([^{}]*,[^{}]*))\}")  # {08..10} or {a,b}
MOST_SHARDS = 1_000_000
LINE = "line of a .jsonl file"  # the name of a record's only file, if its shard is a .jsonl file
Place = tuple[str, int, int]  # where the content of a file is: path, offset, size (-1: to the end)
Files = dict[str, Place]  # the files of a record, by name
Index = list[tuple[str, Place]]  # the files of a shard: name and place


def expand(pattern: str) -> list[str]:
    """Braces and globs -> shards, in order: cats/{08..10}.tar is cats/08.tar, cats/09.tar, cats/10.tar; {a,b} is both."""
    # A name that exists is not a pattern, even if it has brackets.
    if not os.path.exists(pattern) and (braces := BRACES.search(pattern)):
        sizes = [c.count(",") + 1 if c else int(b) - int(a) + 1 for a, b, c in BRACES.findall(pattern)]
        if (n := math.prod(sizes)) > MOST_SHARDS:
            raise ValueError(f"{pattern:.300}: the braces give {n:,} names; at most {MOST_SHARDS:,} are possible")
        first, last, choices = braces.groups()
        values = choices.split(",") if choices else [f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1)]
        names = (pattern.replace(braces[0], value, 1) for value in values)
        shards = dict.fromkeys(shard for name in names for shard in expand(name))  # each once, also of {a,{a,b}}
    else:
        names = [os.path.normpath(pattern)] if os.path.exists(pattern) else sorted(glob.glob(pattern))
        shards = [shard for name in names for shard in _shards_in(name)]
    if not shards:
        raise FileNotFoundError(f"{pattern:.600}: no such shard")
    return list(shards)


def _shards_in(name: str) -> list[str]:
    """The tars in a folder, or its .jsonl file. A folder with neither is one shard; so is a file."""
    inside = sorted(n for n in os.listdir(name) if n[0] != ".") if os.path.isdir(name) else []
    tars, lines = ([os.path.join(name, n) for n in inside if n.endswith(end)] for end in (".tar", ".jsonl"))
    if len(lines) > 1 and not tars:
        raise ValueError(f"{name} contains several datasets: choose one of {', '.join(lines)}"[:600])
    for shard in (shards := tars or lines or [name]):
        if not (os.path.isfile(shard) or os.path.isdir(shard)):
            open_file(shard)  # raises an error: it is a pipe, a device or a link to a missing file
    return shards


def read_index(path: str) -> tuple[dict[str, Files], list[str]]:
    """The records of a shard, and what is wrong with it. A missing shard is an error.

    A record of a tar or a folder is a text, `key.txt` or `key.json`, with all files `key.*` and `key/*`:

        cats/7.jpg, cats/7.txt, run/0.jpg, run.txt  ->  {"cats/7": {"jpg": …, "txt": …}, "run": {"0.jpg": …, "txt": …}}
    """
    problems: list[str] = []
    if path.endswith(".jsonl"):
        records = {name: {LINE: (path, offset, len(line))} for name, offset, line in read_lines(path)}
        return records, [] if records else ["the file has no lines"]
    pattern, index = (NAME_IN_FOLDER, index_folder) if os.path.isdir(path) else (NAME_IN_TAR, index_tar)
    matches = [(match, place) for name, place in index(path, problems) if (match := pattern.fullmatch(name))]  # no hidden files
    keys = {match[1] for match, _ in matches if match[2].lower() in ("txt", "json")}
    records, without_text, twice = {}, [], []
    for match, place in matches:
        key, name = (match[1], match[2].lower()) if match[1] in keys else posixpath.split(match[0])
        if key not in keys:
            without_text.append(match[0])
        else:
            twice += [match[0]] if name in records.setdefault(key, {}) else []
            records[key][name] = place
    if not records and not problems:
        problems.append("it contains no txt and no json file, but each image or video needs one: cat.png with cat.txt")
    elif without_text:
        problems.append(f"{len(without_text)} files belong to no text, such as {without_text[0]}")
    if twice:
        problems.append(f"{len(twice)} files occur twice, such as {twice[0]}; only the last one is used")
    return records, problems


class Header(tarfile.TarInfo):
    """Python's tarfile never ends if a size is negative, and may need hours for a large header before the header of a file."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.size > 2**14 and header.type in b"xgXLK"):
            raise tarfile.HeaderError(f"a header with a size of {header.size:,}")
        return header


def index_tar(path: str, problems: list[str]) -> Index:
    """The files in an uncompressed tar. After damage, reading resumes at the next header, so only damaged files are lost."""
    places, damages, others = [], [], []
    with open_file(path) as file:
        start, end = 0, file.seek(0, os.SEEK_END)
        while start is not None and len(damages) < 100:
            offset = file.seek(start)  # of the next header
            try:
                with tarfile.open(fileobj=file, mode="r:", tarinfo=Header) as tar:
                    for member in tar:
                        if not 0 <= member.size <= end - member.offset_data:
                            offset = member.offset_data - 512
                            raise ValueError(f"it ends in the middle of {member.name}")
                        if member.isreg() and not member.issparse():
                            places.append((posixpath.normpath(member.name), (path, member.offset_data, member.size)))
                        elif not member.isdir():
                            others.append(member.name)
                        offset = tar.offset
                file.seek(offset)
                if file.read(512) != bytes(512):  # tarfile takes a damaged header for the end
                    raise ValueError(f"there is no end mark after {places[-1][0]}" if places else "there is no end mark")
            except Exception as error:  # damaged headers raise TarError, OverflowError, OSError, ...
                damages.append(f"{error}, at byte {offset} after {len(places)} files")
            # also after an end mark: several tars can be one file
            headers = (o for o in range(offset + 512, end, 512) if file.seek(o + 257) and file.read(5) == b"ustar")
            start = next(headers, None)
    if damages:
        problems.append(f"not an uncompressed tar, or the tar is truncated: {'; '.join(damages)}"[:400])
    if others:
        problems.append(f"{len(others)} links and special files are not read, such as {others[0]}")
    return places


def index_folder(path: str, problems: list[str]) -> Index:
    """The files in a folder and its subfolders. Symbolic links are followed, but not back to a folder that was read."""
    places, seen = [], set()
    for folder, subfolders, names in os.walk(path, followlinks=True, onerror=lambda error: problems.append(str(error))):
        seen.add(os.path.realpath(folder))
        visible = sorted(name for name in subfolders if name[0] != ".")
        subfolders[:] = [name for name in visible if os.path.realpath(os.path.join(folder, name)) not in seen]
        files = (os.path.join(folder, name) for name in names)  # also pipes and links to missing files: broken records
        places += [(Path(file).relative_to(path).as_posix(), (file, 0, -1)) for file in files]
    return sorted(places)  # file systems have no order


def read_files(files: Files) -> dict[str, bytes]:
    """One record: name -> content."""
    return {name: read_file(*place) for name, place in files.items()}


class Entry(NamedTuple):
    """A record in the endless list: the group, its number in the group, its name for messages, its files or a problem."""

    group: int
    number: int
    name: str
    files: Files | str


@dataclass
class Dataset:
    """The endless list of the records of many shards, shuffled."""

    shards: str  # names of tars, folders or .jsonl files; `{0000..0009}` and globs are allowed
    reader: Callable[[dict[str, bytes], random.Random], Sample]  # see `records.py`; .jsonl files have their own format
    batch_size: int = 1  # in a `Mixture`, in each process
    weight: float = 1.0  # in a `Mixture`: its lambda_m
    seed: int = 0  # of all shuffles and of the reader's random choices
    mix: int = 4  # how many shards are shuffled together

    def __post_init__(self):
        if min(self.batch_size, self.mix) < 1:
            raise ValueError(f"batch_size and mix must be at least 1; got {self}")
        self.paths = expand(self.shards)

    def fingerprint(self) -> int:
        """Equal for equal shards and settings, also in another folder. Only then does a place mean the same samples."""
        shards = []
        for path in self.paths:
            places = index_folder(path, []) if os.path.isdir(path) else [(os.path.basename(path), (path, 0, -1))]
            # A link to a file that is missing has no size. It is a broken record.
            shards.append([(name, os.path.exists(file) and os.path.getsize(file)) for name, (file, _, _) in places])
        return zlib.crc32(repr((shards, self.seed, self.mix)).encode("utf-8", "surrogatepass"))

    def entries(self, group: int = 0, done: int = 0) -> Iterator[Entry]:
        """The endless list from a place on: after `done` records of this group."""
        for g in count(group):
            records = self._records(g)
            for number in range(done if g == group else 0, len(records)):
                yield Entry(g, number, *records[number])

    def _records(self, group: int) -> list[tuple[str, Files | str]]:
        """The records of one group and the problems of its shards, shuffled. Only the indexes of the shards are read."""
        shards, records = list(self.paths), []
        epoch, number = divmod(group, -(-len(shards) // self.mix))  # an epoch has ceil(shards / mix) groups
        random.Random(f"{self.seed} epoch {epoch}").shuffle(shards)
        for path in shards[number * self.mix : (number + 1) * self.mix]:
            found, problems = read_index(path)
            records += [(f"{path}, {key}", files) for key, files in found.items()]
            records += [(path, "; ".join(problems))] if problems else []
        random.Random(f"{self.seed} group {group}").shuffle(records)
        return records

    def read(self, entry: Entry) -> Sample:
        """Raises ValueError, with the name of the record, if it is broken or if the entry is a problem of a shard."""
        try:
            if isinstance(entry.files, str):
                raise ValueError(entry.files)
            record = read_files(entry.files)
            if LINE in record:
                return read_line(record[LINE], Path(entry.files[LINE][0]).parent.resolve())
            return self.reader(record, random.Random(f"{self.seed} group {entry.group} sample {entry.number}"))
        except Exception as error:  # data from the web is broken in many ways, and a bug of a reader is named as well
            raise ValueError(problem_of(entry.name, error)) from None
