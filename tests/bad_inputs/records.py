"""Samples on disk: records, .jsonl files, tars and folders, damaged in every way. Good samples next to bad ones are read."""

import base64
import bz2
import gzip
import io
import json
import os
import random
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product, takewhile
from pathlib import Path

from PIL import Image

from minflamingo import EOC, Sample, ToyTokenizer
from minflamingo.data.images import ImagePreprocessor
from minflamingo.data.mixture import Mixture
from minflamingo.data.readers import JsonlDataset
from minflamingo.data.records import document_pieces, document_sample, pair_sample, video_sample
from minflamingo.data.shards import Dataset, expand
from minflamingo.evaluation.benchmarks import load_benchmark, load_folder

from . import Case
from .images import SPECIAL, encoded

BYTES = ToyTokenizer([])
PNG = encoded(image=Image.new("RGB", (8, 8)))
Members = list[tuple[tarfile.TarInfo | str, bytes]]  # of a tar: a name or a header, and the content


def pair(n: int) -> Members:
    return [(f"{n}.png", PNG), (f"{n}.txt", str(n).encode())]


def member(name: str, content: bytes = b"", **fields) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def tar(members: Members, form: int = tarfile.GNU_FORMAT) -> bytes:
    """As tarfile would write it, also with headers that it refuses to write."""
    blocks = []
    for info, content in members:
        info = member(info, content) if isinstance(info, str) else info
        header = info.tobuf(tarfile.PAX_FORMAT if info.pax_headers else form, "utf-8", "surrogateescape")
        blocks += [header, content, bytes(-len(content) % 512)]
    return b"".join(blocks) + bytes(1024)


def read_epoch(shards: str, reader: Callable = pair_sample) -> tuple[list[str], str]:
    """The texts of all good samples in sorted order, and the problems."""
    dataset, texts, problems = Dataset(shards, reader, mix=1), [], []
    for entry in takewhile(lambda entry: entry.group < len(dataset.paths), dataset.entries()):
        try:
            pieces = dataset.read(entry).pieces
            texts += ["".join(piece for piece in pieces if isinstance(piece, str))]
        except ValueError as error:
            assert str(error).startswith(entry.name.split("\n")[0].encode("utf-8", "surrogatepass").decode("utf-8", "replace")), error
            problems.append(str(error))
    return sorted(texts), "\n".join(problems)


def reads(name: str, content: bytes, good: str, problem: str, reader: Callable = pair_sample) -> Case:
    """A shard with this content: the texts of its good samples, and a pattern of its problems ("": none)."""

    def run(folder: Path) -> object:
        file = Path("0.jsonl" if name.startswith("lines") else "0.tar")
        file.write_bytes(content)
        texts, problems = read_epoch(str(file), reader)
        return texts if (re.search(problem, problems) if problem else not problems) else problems

    return Case(name, run, gives=good.split(" ") if good else [])


# --------------------------------------------------------------------------------------------------------------- tars

TRUNCATED = "not an uncompressed tar, or the tar is truncated"
PAIRS = pair(1) + pair(2) + pair(3)
WHOLE = tar(PAIRS)
MIDDLE: dict[str, tuple[Members, str]] = {  # between the pairs 1 and 2: what is there, and the problem
    "a text without image": ([("a.txt", b"a")], "0.tar, a: ValueError: a pair needs one image"),
    "an image without text": ([("a.png", PNG)], "1 files belong to no text, such as a.png"),
    "half an image": ([("a.png", PNG[:40]), ("a.txt", b"a")], "0.tar, a: ValueError: 'png': not an image"),
    "a pipe": ([(member("a.txt", type=tarfile.FIFOTYPE), b"")], "1 links and special files are not read, such as a.txt"),
    "a device": ([(member("a.txt", type=tarfile.CHRTYPE), b"")], "1 links and special files are not read, such as a.txt"),
    "a folder": ([(member("a.txt", type=tarfile.DIRTYPE), b"")], ""),
    "an unknown type": ([(member("a.txt", type=b"Q"), b"")], "1 links and special files are not read, such as a.txt"),
    "a sparse file": ([(member("a.txt", b"a", type=tarfile.GNUTYPE_SPARSE), b"a")], "special files are not read, such as a.txt"),
    "a negative size": ([(member("a.txt", size=-1024), b"")], f"{TRUNCATED}: .*a header with a size of -1,024"),
    "a size of 8 GB": ([(member("a.txt", size=8 * 10**9), b"")], f"{TRUNCATED}: it ends in the middle of a.txt"),
    "a size of 10^24": ([(member("a.txt", size=10**24), b"")], f"{TRUNCATED}: it ends in the middle of a.txt"),
    "zeros": ([], ""),
    "a large pax header": ([(member("a.txt", b"a", pax_headers={"c": "1" * 10**6}), b"a")], TRUNCATED),
    "a pax size below 0": ([(member("a.txt", pax_headers={"size": "-512"}), b"")], TRUNCATED),
    "a pax size that is a word": ([(member("b.md", pax_headers={"size": "many"}), b"")], "1 files belong to no text, such as b.md"),
    "a member twice": ([*pair(1)[1:]], "1 files occur twice, such as 1.txt"),
    "a member twice, with ./": ([("./1.txt", b"1")], "1 files occur twice"),
    "two endings that differ in capitals": ([("1.PNG", PNG)], "1 files occur twice, such as 1.PNG"),
    "a file and a folder of one name": ([("1/0.png", PNG), ("1.0.png", PNG)], "1 files occur twice, such as 1.0.png"),
}  # fmt: skip
NAMES = {  # of a record: works
    "an absolute name": "/tmp/x", "a name with ..": "../../x", "a name with a line end": "a\nb", "a long name": "x" * 5000,
    "a name that is not UTF-8": "\udcff", "a name with control characters": "\x1b[2J", "a name with spaces": " x ",
    "a deep folder": "x/" * 500 + "x",
}  # fmt: skip
NO_TARS = {"nothing": b"", "text": b"<html>404</html>", "100 zeros": bytes(100), "zip": b"", "gzip": gzip.compress(WHOLE),
           "bzip2": bz2.compress(WHOLE), "noise": random.Random(0).randbytes(9999)}  # fmt: skip


def link(kind: bytes, target: str) -> Members:
    return [("a.png", PNG), (member("a.txt", type=kind, linkname=target), b"")]


def tars() -> Iterator[Case]:
    for name, (members, problem) in MIDDLE.items():
        end = 0 if name == "zeros" else -1024  # without the end mark in the middle
        good = "2" if "of one name" in name else "1 2"
        yield reads(f"{name} in a tar", tar(pair(1) + members)[: end or None] + tar(pair(2)), good, problem)
    for kind, target in product((tarfile.LNKTYPE, tarfile.SYMTYPE), ("1.txt", "/etc/passwd", "../x", "a.txt")):
        yield reads(f"a link {kind} to {target}", tar(pair(1) + link(kind, target) + pair(2)), "1 2", "1 links .*such as a.txt")
    for name, key in NAMES.items():
        for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
            members = [(key + end, content) for end, content in ((".png", PNG), (".txt", b"3"))]
            yield reads(f"{name}, {form}", tar(pair(1) + members + pair(2), form), "1 2 3", "")
    for tenth in range(1, 10):
        cut = 6 * 1024 * tenth // 10
        good = [str(n) for n in (1, 2, 3) if 2048 * n - 511 <= cut]
        yield reads(f"a tar cut at {10 * tenth}%", WHOLE[:cut], " ".join(good), TRUNCATED)
    for block, field in product(range(0, 12, 2), (0, 100, 124, 148, 257)):
        damaged = bytearray(WHOLE)
        damaged[512 * block + field] ^= 0x55
        good = [n for n in "123" if int(n) != block // 4 + 1]
        yield reads(f"header {block // 2}, byte {field}", bytes(damaged), " ".join(good), rf"{TRUNCATED}|{block // 4 + 1}")
    for place in (1, 20, 30, 45):
        damaged = bytearray(WHOLE)
        damaged[512 + place] ^= 0x55
        yield reads(f"content, byte {place}", bytes(damaged), "2 3", "1: ValueError: 'png': not an image")
    for name, content in NO_TARS.items():
        if name == "zip":
            zipfile.ZipFile(file := io.BytesIO(), "w").writestr("1.txt", "1")
            content = file.getvalue()
        yield reads(f"a tar that is {name}", content, "", TRUNCATED)
    yield reads("an empty tar", tar([]), "", "it contains no txt and no json file")
    yield reads("a tar without its end", WHOLE[: 6 * 1024], "1 2 3", f"{TRUNCATED}: there is no end mark after 3.txt")
    yield reads("text after a tar", WHOLE + b"a cat" * 999, "1 2 3", "")
    many = tar([(f"{n}.{end}", c) for n in range(5000) for end, c in (("txt", b"1"), ("json", b"{}"))])
    yield reads("10,000 tiny files", many, " ".join(["1"] * 5000), "", lambda record, rng: Sample([record["txt"].decode()]))
    pax = struct.Struct("512s").pack
    for name, text in {"0": b"0 path=x\n", "999": b"9" * 500, "9": b"9 pathx\n", "bytes": b"12 uid=\xff\xfe\n"}.items():
        header = member("pax", text, type=tarfile.XHDTYPE).tobuf(tarfile.USTAR_FORMAT)
        content = WHOLE[:2048] + header + pax(text) + WHOLE[2048:]
        yield reads(f"a pax header: {name}", content, "1 2 3", TRUNCATED if name == "0" else "")


# --------------------------------------------------------------------------------------------------------- JSON Lines

A, B = b'{"pieces": [{"text": "1"}]}', b'{"pieces": [{"text": "2"}]}'


def line(*pieces: object, **changes) -> bytes:
    return json.dumps({"pieces": list(pieces), **changes}).encode()


EXPECTED = 'expected {"text": STRING}'
LINES: dict[str, tuple[bytes, str]] = {  # between two good lines
    "half a line": (b'{"kind": "pair", "pieces": [', "JSONDecodeError"),
    "a list": (b"[1, 2]", "expected an object with pieces"), "a number": (b"3", "expected an object with pieces"),
    "a key twice": (b'{"pieces": [], "pieces": [{"text": "a"}]}', "a key occurs twice: pieces, pieces"),
    "a key of a piece twice": (b'{"pieces": [{"text": "a", "text": "b"}]}', "a key occurs twice: text, text"),
    "100,000 brackets": (b'{"pieces": ' + b"[" * 100_000, "too many levels"),
    "a number of 5000 digits": (b'{"pieces": [], "id": ' + b"9" * 5000 + b"}", "4300 digits"),
    "a NUL byte": (b'{"pieces": [{"text": "a\0"}]}', "not UTF-8 text"),
    "bytes that are not UTF-8": (b'{"pieces": [{"text": "\xff\xfe"}]}', "UnicodeDecodeError"),
    "two records in a line": (A + b"\r" + A, "Extra data"), "UTF-16": ('{"pieces": []}'.encode("utf-16"), "not UTF-8 text"),
    "an unknown piece": (line({"sound": "a.wav"}), EXPECTED + r".*found \{'sound'"), "an empty piece": (line({}), EXPECTED),
    "an unknown key of a piece": (line({"text": "a", "noloss": True}), EXPECTED),
    "two pieces in one": (line({"text": "a"}, {"text": "a", "eoc": True}), EXPECTED),
    "frames of two sizes": (line({"video": ["a.png", "b.png"]}), "frames of equal size"),
    "not an image": (line({"image": "0.jsonl"}), "'0.jsonl': not an image"), "a folder": (line({"image": ""}), "not a file"),
    "a name that is too long": (line({"image": "a" * 5000}), "."), "a name with NUL": (line({"image": "\0.png"}), "null|NUL|no such"),
    "a missing image": (line({"image": "c.png"}), r"c\.png: no such file"),
    **{f"the path {path}": (line({"image": path}), "outside the dataset's folder") for path in
       ("../../secret.png", "/etc/passwd", "images/../../x.png", "link.png", "/dev/zero", "~/../../../../x")},
    **{f"no_loss {v!r}": (line({"text": "a", "no_loss": v}), "no_loss must be true or false") for v in ("no", 1, None, [], 0.0)},
    **{f"{name} {v!r}": (line(**{name: v}), f"{name} must be true or false") for name, v in
       product(("attend_next", "bos"), (1, "", None, {}))},
    **{f"pieces {v!r}": (line(pieces=v), "expected an object with pieces") for v in (None, 3, "a cat", {}, True)},
    **{f"a piece {v!r}": (line(v), EXPECTED) for v in (None, 3, "a cat", [], ["text"], True)},
    **{f"{name} {v!r}": (line({name: v}), ".") for name in ("text", "eoc", "image", "video")
       for v in (None, 3, 1.5, float("nan"), {}, [], False, [None], [3])},
}  # fmt: skip
FILES = {  # of two records
    "UTF-8 with a mark": (b"\xef\xbb\xbf" + A + b"\n" + B, "1 2", ""), "Windows": (A + b"\r\n" + B + b"\r\n", "1 2", ""),
    "empty lines": (b"\n\n" + A + b"\n \r\n\t\n" + B, "1 2", ""), "no line end": (A, "1", ""),
    "a line separator in a text": ('{"pieces": [{"text": "1\u20282"}]}'.encode(), "1\u20282", ""),
    "Mac": (A + b"\r" + B, "", "line 1: .*Extra data"), "nothing": (b"", "", "the file has no lines"),
    "only line ends": (b"\n\r\n", "", "the file has no lines"), "gzip": (gzip.compress(A), "", "."),
    "noise": (random.Random(0).randbytes(9999), "", "."), "a list": (b"[\n" + A + b",\n" + B + b"\n]", "2", "line 2"),
    "100 MB in a line": (A + b"\n" + line({"text": "a" * 10**8}, 3) + b"\n" + B, "1 2", "line 2: ValueError: expected"),
    **{f"{code}{mark!r}": (mark + b"\n".join([A, B]).decode().encode(code), "", "not UTF-8 text|Decode")
       for code, mark in (("utf-16-le", b""), ("utf-16-be", b""), ("utf-16-le", b"\xff\xfe"), ("utf-32-le", b""))},
}  # fmt: skip


def lines() -> Iterator[Case]:
    for name, (content, good, problem) in FILES.items():
        yield reads(f"lines of {name}", content, good, problem)
    for name, (broken, problem) in LINES.items():

        def run(folder: Path, broken: bytes = broken, problem: str = problem) -> object:
            Path("link.png").symlink_to("/etc/hostname")
            for i, file in enumerate(("a.png", "b.png")):
                Path(file).write_bytes(encoded(image=Image.new("RGB", (8 + i, 8))))
            Path("0.jsonl").write_bytes(b"\n".join([A, broken, B]))
            texts, problems = read_epoch("0.jsonl")
            data = JsonlDataset("0.jsonl")
            assert texts == ["1", "2"] and [data[i].pieces for i in (0, 2)] == [["1"], ["2"]], (texts, problems)
            assert re.search(rf"^0\.jsonl, line 2: \w*: .*{problem}|^0\.jsonl, line 2: {problem}", problems), problems
            return data[1]

        yield Case(f"{name} in lines", run, refused=r"^0\.jsonl, line 2: ")


# ------------------------------------------------------------------------------------------------- folders and patterns


def folder_with(name: str, make: Callable[[Path], object], problem: str, good: str = "1 2") -> Case:
    """A folder with the pairs 1 and 2 and a third one, of which `make` makes one file."""

    def run(folder: Path) -> object:
        os.mkdir("own")
        for file, content in pair(1) + pair(2) + pair(3):
            Path("own", file).write_bytes(content)
        make(Path("own"))
        texts, problems = read_epoch("own")
        return texts if re.search(problem, problems) else problems

    return Case(name, run, gives=good.split())


def replaced(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda own: ((own / name).unlink(), make(own / name))


FOLDERS = {  # what is done to the third pair, and the problem
    "a text that is empty": (lambda own: (own / "3.txt").write_bytes(b""), "own, 3: ValueError: the caption is empty"),
    "a text in UTF-16": (lambda own: (own / "3.txt").write_text("a cat", "utf-16"), "own, 3: UnicodeDecodeError"),
    "a text in UTF-16 without mark": (lambda own: (own / "3.txt").write_text("a", "utf-16-le"), "NUL characters"),
    "a name that is not UTF-8": (lambda own: os.rename(own / "3.txt", b"own/\xff.txt"), "found txt"),
    "no text": (lambda own: (own / "3.txt").unlink(), "1 files belong to no text, such as 3.png"),
    "two images": (lambda own: (own / "3.jpg").write_bytes(PNG), "own, 3: ValueError: a pair needs one image.*found jpg, png"),
    "a huge image": (lambda own: os.truncate(own / "3.png", 2**40), "own, 3: ValueError: .* bytes are too many"),
    "a huge text": (lambda own: os.truncate(own / "3.txt", 2**40), "own, 3: ValueError: .* bytes are too many"),
    "a link to its folder": (lambda own: ((own / "3.txt").unlink(), (own / "x").symlink_to(".")), "belong to no text"),
    "two endings": (lambda own: ((own / "3.PNG").write_bytes(PNG), (own / "3.txt").write_bytes(b"")), "1 files occur twice"),
}
PATTERNS = {
    "{0..99999999}.tar": "100,000,000 names", "{00..99}{00..99}{00..99}{00..99}.tar": "100,000,000 names",
    "{,}" * 40 + "0.tar": "names; at most 1,000,000", "{a,b}" * 200 + ".tar": "at most 1,000,000",
    "{0..999999}.tar": r"^1\.tar: no such shard", "{0..3}.tar": r"^1\.tar: no such shard", "{5..1}.tar": "no such shard",
    "{0..3.tar": "no such shard", "0..3}.tar": "no such shard", "{}.tar": "no such shard", "{0..x}.tar": "no such shard",
    "{0..-3}.tar": "no such shard", "{0.." + "9" * 5000 + "}.tar": "no such shard", "": "no such shard", "\0.tar": "no such shard",
    "x" * 5000: "no such shard", "*.gz": "no such shard", "{0,{1..3}}.tar": r"^1\.tar: no such shard", "[": "no such shard",
}  # fmt: skip


def folders() -> Iterator[Case]:
    for name, (make, problem) in FOLDERS.items():
        yield folder_with(f"{name} in a folder", make, problem)
    for (kind, make), name in product(SPECIAL.items(), ("3.png", "3.txt")):
        yield folder_with(f"{kind} as {name} in a folder", replaced(name, make), r"3: |belong to no text, such as 3\.png")
    for (kind, make), name in product(SPECIAL.items(), ("0.tar", "0.jsonl", "own/0.tar")):
        if kind != "a folder":
            run = lambda _, m=make, n=name: (Path("own").mkdir(), m(Path(n)), Dataset(n.split("/")[0], pair_sample))  # noqa: E731
            yield Case(f"{kind} as {name}", run, refused=rf"^{name}: (no such file|not a file, but a folder)")
    for pattern, message in PATTERNS.items():
        run = lambda _, p=pattern: (Path("0.tar").write_bytes(WHOLE), expand(p))  # noqa: E731
        yield Case(f"the pattern {pattern[:40]!r}", run, refused=message)
    run = lambda _: (Path("a.tar").touch(), Path("b.tar").touch(), expand("{a,{a,b}}.tar"))[2]  # noqa: E731
    yield Case("braces in braces", run, gives=["a.tar", "b.tar"])


# ------------------------------------------------------------------------------------------------ pairs and documents

PAIR = {"texts": ["a", None], "images": [None, "1.png"]}
INFO = {"image_name": "1.png", "matched_text_index": 0, "matched_sim": 0.3}
MMC4 = {"text_list": ["a"], "image_info": [INFO]}
IMAGE_MAP = {"_!_IMAGE1_!_": {"base64_image": base64.b64encode(PNG).decode()}}
GPT = {"is_gpt": True, "example": "_!_IMAGE1_!_ a", "image_map": IMAGE_MAP}
NO_VALUES = (3, 1.5, True, "x", [], {}, [3], [[]], {"x": 3}, float("nan"), None)
RECORDS = {  # reader, files, the reason
    "no image": (pair_sample, {"txt": b"a"}, "a pair needs one image"),
    "two images": (pair_sample, {"png": PNG, "jpg": PNG, "txt": b"a"}, "found png, jpg, txt"),
    "no text": (pair_sample, {"png": PNG, "cls": b"3"}, "no text: a txt file, or a json file .*found png, cls"),
    "an empty text": (pair_sample, {"png": b"not read", "txt": b" \n"}, "the caption is empty"),
    "a text that is not UTF-8": (pair_sample, {"png": PNG, "txt": b"\xff\xfe"}, "utf-8"),
    "a truncated image": (pair_sample, {"jpg": encoded("JPEG")[:-40], "txt": b"a"}, "'jpg': not an image.*or damaged"),
    "half a json": (pair_sample, {"png": PNG, "json": b'{"caption": "a'}, "Unterminated string"),
    "a key twice": (pair_sample, {"png": PNG, "json": b'{"caption": "a", "caption": "b"}'}, "a key occurs twice"),
    "a deep json": (pair_sample, {"png": PNG, "json": b"[" * 100_000}, "too many levels"),
    "a video without frames": (video_sample, {"txt": b"a"}, "a video needs one or more frames"),
    "no video": (video_sample, {"mp4": b"not a video", "txt": b"a"}, "mp4.*PyAV|mp4: not a video, or damaged"),
    "frames of two sizes": (video_sample, {"0.png": PNG, "1.png": encoded(), "txt": b"a"}, "frames of equal size"),
    "a document without json": (partial(document_sample, tokenizer=BYTES), {"txt": b"a"}, "Expecting value"),
    **{f"caption {v!r}": (pair_sample, {"png": PNG, "json": json.dumps({"caption": v}).encode()}, "no text|is empty")
       for v in NO_VALUES if v != "x"},
    **{f"json {v!r}": (pair_sample, {"png": PNG, "json": json.dumps(v).encode()}, "no text: a txt file") for v in NO_VALUES},
}  # fmt: skip
DOCUMENTS = {
    "neither format": {"caption": "a"}, "no images": {"text_list": ["a"]}, "a missing file": {**PAIR, "images": [None, "../1.png"]},
    **{f"base64 {v!r}": {**PAIR, "images": [None, {"image_base64": v}]} for v in ("é", "abc", 3, [])},
    "lists of two lengths": {"texts": ["a"], "images": [None, "1.png"]}, "no image": {"texts": ["a"], "images": [None]},
    "no text": {"texts": [None], "images": ["1.png"]}, "a text and an image": {"texts": ["a"], "images": ["1.png"]},
    "a text with NUL": {**PAIR, "texts": ["a\0", None]},
    **{f"index {v!r}": {**MMC4, "image_info": [{**INFO, "matched_text_index": v}]} for v in (1, -1, 0.5, "0", None, [], 10**30)},
    **{f"similarity {v!r}": {**MMC4, "image_info": [{**INFO, "matched_sim": v}]}
       for v in (float("nan"), float("inf"), -float("inf"), "high", None, [], 10**400, 0.1)},
    **{f"image_info without {k}": {**MMC4, "image_info": [{n: v for n, v in INFO.items() if n != k}]} for k in INFO},
    **{f"{name} {v!r}": {**document, name: v} for document in (MMC4, PAIR, GPT) for name in document for v in NO_VALUES
       if name != "is_gpt"},
    **{f"a sentence {v!r}": {**MMC4, "text_list": ["a", v]} for v in (3, [], {})},
    **{f"an image {v!r}": {**PAIR, "images": [None, v]} for v in (3, [], [3], {"image_name": 3})},
    **{f"a document {v!r}": v for v in NO_VALUES},
}  # fmt: skip


def records() -> Iterator[Case]:
    for name, (reader, files, message) in RECORDS.items():
        yield Case(f"{name}, record", lambda _, r=reader, f=files: r(f, random.Random(0)), refused=message)
    for name, document in DOCUMENTS.items():
        record = {"json": json.dumps(document).encode(), "1.png": PNG}
        yield Case(f"{name}, document", lambda _, r=record: document_pieces(r, 0.24), refused=".")
    for name, document in {"MMC4": MMC4, "OBELICS": PAIR, "ChatGPT": GPT}.items():
        record = {"json": json.dumps(document).encode(), "1.png": PNG}
        pieces = ["a", EOC, PNG] if name == "OBELICS" else [PNG, "a", EOC]
        yield Case(f"a document of {name}", lambda _, r=record: document_pieces(r, 0.24), gives=pieces)
    damaged = {"json": json.dumps({"texts": ["a"] + [None] * 3000, "images": [None, "1.png"] + ["x.png"] * 2999}).encode()}
    damaged |= {"1.png": PNG, "x.png": PNG[:40]}
    read = partial(document_sample, tokenizer=BYTES)
    yield Case("2,999 damaged images", lambda _: len(read(damaged, random.Random(0)).media), gives=1)


# ---------------------------------------------------------------------------------------------------------- benchmarks

QUESTION, MEME = {"question_id": 7, "image_id": 3, "question": "What?"}, {"id": 7, "img": "7.png", "label": 1, "text": "a"}
VIZWIZ = {"image": "7.jpg", "question": "What?", "answers": [{"answer": "a"}]}
SEGMENT = {"id": 0, "segment": [0, 3], "sentence": "a"}
FLICKR = {"filename": "7.jpg", "sentences": [{"raw": "a"}]}
NO_JSON = {"brackets": b"[" * 100_000, "a key twice": b'{"a": 1, "a": 2}', **{f"{content}": content for content in
           (b'[{"a": ', b"", b"\xff\xfe\0\1", b"null", b"3", b'"a"', b"[]", b"{}", b"[[[]]]")}}  # fmt: skip


def vqa(answers: object = ({"answer": "a"},), n: int = 1, **changes) -> dict[str, object]:
    files = {}
    for split in ("train2014", "val2014"):
        files[f"v2_OpenEnded_mscoco_{split}_questions.json"] = {"questions": [{**QUESTION, **changes}]}
        files[f"v2_mscoco_{split}_annotations.json"] = {"annotations": [{"question_id": 7, "answers": answers}] * n}
    return files


def vizwiz(*records: object) -> dict[str, object]:
    return {"train.json": [VIZWIZ], "val.json": list(records)}


def memes(**changes) -> dict[str, object]:
    return {f"{split}.jsonl": {**MEME, **changes} for split in ("train", "test_seen")}


def flickr(**changes) -> dict[str, object]:
    images = [{**FLICKR, "split": split, **changes} for split in ("train", "test")]
    return {"dataset_flickr30k.json": {"images": images}}


def youcook2(**changes) -> dict[str, object]:
    videos = {s: {"subset": s, "recipe_type": "1", "annotations": [{**SEGMENT, **changes}]} for s in ("training", "validation")}
    return {"youcookii_annotations_trainval.json": {"database": videos}}


GOOD = {"vqav2": vqa(), "vizwiz": vizwiz(VIZWIZ), "hatefulmemes": memes(), "flickr30k": flickr(), "youcook2": youcook2()}
BENCHMARKS = {  # benchmark and its files
    "a question_id twice": ("vqav2", vqa(n=2)), "no answer": ("vqav2", vqa(answers=[])),
    "the same example twice": ("vizwiz", vizwiz(VIZWIZ, VIZWIZ)), "no queries": ("vizwiz", vizwiz()),
    **{f"question {v!r}": ("vqav2", vqa(question=v)) for v in (None, [], {}, 1.5)},
    **{f"question_id {v!r}": ("vqav2", vqa(question_id=v)) for v in (8, "7", None, [])},
    **{f"image_id {v!r}": ("vqav2", vqa(image_id=v)) for v in ("x", None, [], 1.5, {})},
    **{f"answers {v!r}": ("vqav2", vqa(answers=v)) for v in (None, 3, [3], [None], [[]], [{}], {})},
    **{f"a record {v!r}": ("vizwiz", vizwiz(v)) for v in NO_VALUES},
    **{f"vizwiz without {k}": ("vizwiz", vizwiz({n: v for n, v in VIZWIZ.items() if n != k})) for k in VIZWIZ},
    **{f"label {v!r}": ("hatefulmemes", memes(label=v)) for v in (2, -1, "0", None, [], 0.5)},
    **{f"img {v!r}": ("hatefulmemes", memes(img=v)) for v in ("../x.png", "/etc/passwd", "a/../../x.png")},
    **{f"text {v!r}": ("hatefulmemes", memes(text=v)) for v in (None, [], {})},
    **{f"filename {v!r}": ("flickr30k", flickr(filename=v)) for v in ("../../x", "../x/../../y")},
    **{f"sentences {v!r}": ("flickr30k", flickr(sentences=v)) for v in (None, [], [3], [{}], [{"raw": 3}], "a")},
    **{f"segment {v!r}": ("youcook2", youcook2(segment=v)) for v in (None, 3, [], [1], [1, 2, 3], [3, 1], ["a", "b"], [-1, 2],
       [float("nan"), 3], [0, float("nan")], "ab")},
}  # fmt: skip


def write(files: dict[str, object]) -> Path:
    for name, content in files.items():
        Path(name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return Path(".").absolute()


def benchmarks() -> Iterator[Case]:
    def load(name: str, files: dict[str, object]) -> list[int]:
        task = load_benchmark(name, write(files))
        return [len(task.support), len(task.queries)]

    for name, files in GOOD.items():
        yield Case(f"{name} as it is", lambda _, n=name, f=files: load(n, f), gives=[1, 1])
        missing = r"\.jsonl? is missing \(searched in .*annotations too"
        yield Case(f"{name} without files", lambda _, n=name: load(n, {}), refused=missing)
        for kind, content in NO_JSON.items():
            damaged = {**files, list(files)[-1]: content}
            yield Case(f"{name}, {kind}", lambda _, n=name, f=damaged: load(n, f), refused=rf"{name} \w* is not in the official")
        for kind, make in SPECIAL.items():
            run = lambda _, m=make, n=name, f=files: (write(f), Path([*f][-1]).unlink(), m(Path([*f][-1])), load(n, {}))  # noqa: E731
            yield Case(f"{name}, {kind}", run, refused="not a file, but a folder|is missing")
    for name, (benchmark, files) in BENCHMARKS.items():
        refused = rf"folder: {benchmark} \w* is not in the official format: ."
        yield Case(f"{name} in {benchmark}", lambda _, n=benchmark, f=files: load(n, f), refused=refused)
    for template, split in (("poem", None), ("paper", "x"), ("paper", "train")):
        run = lambda _, t=template, s=split: load_benchmark("vizwiz", write(GOOD["vizwiz"]), template=t, split=s)  # noqa: E731
        yield Case(f"template {template}, split {split}", run, refused="unknown template 'poem'; choose|cannot come from split")
    for (kind, make), name in product(SPECIAL.items(), ("val/7.jpg", "val")):
        if kind != "a folder":
            run = lambda _, m=make, n=name: (  # noqa: E731
                Path(n).parent.mkdir(exist_ok=True), m(Path(n)), load_benchmark("vizwiz", write(GOOD["vizwiz"])).queries[0].media())  # fmt: skip
            yield Case(f"{kind} as {name}", run, refused=r"val/7\.jpg( is missing|: no such file|: not a file)")
    for kind, make in SPECIAL.items():
        run = lambda _, m=make: (write(dict(pair(1) + pair(2) + pair(3))), m(Path("4.txt")), load_folder(Path(".")))  # noqa: E731
        yield Case(f"{kind} as text of a folder", run, refused="has 3 images with texts")


# ------------------------------------------------------------------------------------------------- all in one mixture


def mixture(workers: int) -> Case:
    def run(folder: Path) -> object:
        bad = [member for members, _ in MIDDLE.values() for member in members if not isinstance(member[0], tarfile.TarInfo)]
        Path("0.tar").write_bytes(tar(pair(1) + pair(2) + [(f"{i}{name}", c) for i, (name, c) in enumerate(bad)])[:-1024] + b"?")
        Path("0.jsonl").write_bytes(b"\n".join([A, *(broken for broken, _ in LINES.values()), B]))
        batches = {name: Dataset(file, pair_sample, 200) for name, file in {"tar": "0.tar", "lines": "0.jsonl"}.items()}
        mixed = Mixture(batches, BYTES, ImagePreprocessor(4), workers=workers)
        batch = next(iter(mixed))
        texts = {name: {BYTES.decode(row) for row in b.ids} & {"1", "2"} for name, b in batch.items()}
        assert all(n > 0 for n in mixed.n_problems.values()) and all(len(p) > 1 for p in mixed.problems.values())
        return texts

    return Case(f"good samples among bad ones, {workers} workers", run, gives={"tar": {"1", "2"}, "lines": {"1", "2"}})


def cases() -> Iterator[Case]:
    yield from tars()
    yield from lines()
    yield from folders()
    yield from records()
    yield from benchmarks()
    yield from map(mixture, (0, 2))
