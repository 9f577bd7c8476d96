"""Samples on disk: records, .jsonl files, tars and folders, damaged in every way. Good samples next to bad ones are read."""

import base64
import bz2
import gzip
import json
import os
import random
import re
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product, takewhile
from pathlib import Path

from PIL import Image

from minflamingo import ToyTokenizer
from minflamingo.data.images import ImagePreprocessor
from minflamingo.data.mixture import Mixture
from minflamingo.data.readers import JsonlDataset
from minflamingo.data.records import document_pieces, document_sample, pair_sample, video_sample
from minflamingo.data.shards import Dataset, expand, read_index
from minflamingo.evaluation.benchmarks import load_benchmark, load_folder

from . import Case
from .images import NO_FILE, SPECIAL, encoded, refused, works

BYTES, PNG = ToyTokenizer([]), encoded(image=Image.new("RGB", (8, 8)))
NO_VALUES = (3, 1.5, True, "x", [], {}, [3], [[]], {"x": 3}, float("nan"), None)
Members = list[tuple[tarfile.TarInfo | str, bytes]]  # of a tar: a name or a header, and the content


def pair(n: int) -> Members:
    return [(f"{n}.png", PNG), (f"{n}.txt", str(n).encode())]


def member(name: str, content: bytes = b"", **fields) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    for field, value in {"size": len(content), **fields}.items():
        setattr(info, field, value)
    return info, content


def tar(members: Members, form: int = tarfile.GNU_FORMAT) -> bytes:
    """As tarfile would write it, also with headers that it refuses to write."""
    blocks = []
    for info, content in members:
        info = member(info, content)[0] if isinstance(info, str) else info
        header = info.tobuf(tarfile.PAX_FORMAT if info.pax_headers else form, "utf-8", "surrogateescape")
        blocks += [header, content, bytes(-len(content) % 512)]
    return b"".join(blocks) + bytes(1024)


def read_epoch(shards: str) -> tuple[list[str], str]:
    """The texts of all good samples in sorted order, and the problems."""
    dataset, texts, problems = Dataset(shards, pair_sample, mix=1), [], []
    for entry in takewhile(lambda entry: entry.group < len(dataset.paths), dataset.entries()):
        try:
            texts += ["".join(piece for piece in dataset.read(entry).pieces if isinstance(piece, str))]
        except ValueError as error:
            assert str(error).startswith(shards), error
            problems.append(str(error))
    return sorted(texts), "\n".join(problems)


def reads(name: str, make: bytes | Callable[[Path], object], good: str, problem: str, file: str = "0.tar") -> Case:
    """A shard with this content: the texts of its good samples, and a pattern of its problems ("": none)."""

    def run(folder: Path) -> object:
        make(Path(file)) if callable(make) else Path(file).write_bytes(make)
        texts, problems = read_epoch(file)
        return texts if (re.search(problem, problems) if problem else not problems) else problems

    return Case(name, run, gives=good.split(" ") if good else [])


BROKEN_TAR = "not an uncompressed tar, or the tar is truncated: ."
NOT_READ, TWICE = "1 links and special files are not read, such as a.txt", "1 files occur twice, such as 1"
WHOLE = tar(pair(1) + pair(2) + pair(3))
MIDDLE: dict[str, tuple[Members, str]] = {  # between the pairs 1 and 2: what is there, and the problem
    "a text without image": ([("a.txt", b"a")], "^0.tar, a: ValueError: a pair needs one image"),
    "an image without text": ([("a.png", PNG)], "^0.tar: ValueError: 1 files belong to no text, such as a.png"),
    "half an image": ([("a.png", PNG[:40]), ("a.txt", b"a")], "^0.tar, a: ValueError: 'png': not an image"),
    "an empty text": ([("a.png", PNG), ("a.txt", b"")], "^0.tar, a: ValueError: the caption is empty"),
    **{f"type {t}": ([member("a.txt", type=t)], NOT_READ) for t in (b"6", b"3", b"4", b"S", b"Q")},
    **{f"link {t} to {to}": ([("a.png", PNG), member("a.txt", type=t, linkname=to)], NOT_READ)
       for t, to in product((tarfile.LNKTYPE, tarfile.SYMTYPE), ("1.txt", "/etc/passwd", "../x", "a.txt"))},
    "a folder": ([member("a.txt", type=tarfile.DIRTYPE)], ""), "nothing": ([], ""),
    **{f"a size of {n}": ([member("a.txt", size=n)], BROKEN_TAR) for n in (-1024, 8 * 10**9, 10**24)},
    **{f"pax size {n}": ([member("b.md", pax_headers={"size": n})], "b.md") for n in ("-512", "many", "9" * 99)},
    "a large pax header": ([member("b.md", pax_headers={"c": "1" * 10**6})], BROKEN_TAR),
    **{f"{name} twice": ([(name, PNG if "P" in name else b"1")], TWICE) for name in ("1.txt", "./1.txt", "1.PNG")},
}  # fmt: skip
NAMES = ("/tmp/x", "../../x", "a\nb", "x" * 5000, "\udcff", "\x1b[2J", " x ", "x/" * 500 + "x")  # of a record: these work
NOISE = random.Random(0).randbytes(9999)
NO_TARS = (b"", b"<html>404</html>", bytes(100), gzip.compress(WHOLE), bz2.compress(WHOLE), b"PK\3\4" * 99, NOISE)


def damaged(place: int) -> bytes:
    return WHOLE[:place] + bytes([WHOLE[place] ^ 0x55]) + WHOLE[place + 1 :]


def tars() -> Iterator[Case]:
    for name, (members, problem) in MIDDLE.items():  # with an end mark in the middle if there is nothing else
        yield reads(f"{name} in a tar", tar(pair(1) + members)[: -1024 if members else None] + tar(pair(2)), "1 2", problem)
    for key, form in product(NAMES, (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        members = pair(1) + [(f"{key}.png", PNG), (f"{key}.txt", b"3")] + pair(2)
        yield reads(f"the name {key[:9]!r}, {form}", tar(members, form), "1 2 3", "")
    for tenth in range(1, 10):
        good = [str(n) for n in (1, 2, 3) if 2048 * n - 511 <= 6 * 1024 * tenth // 10]
        yield reads(f"a tar cut at {10 * tenth}%", WHOLE[: 6 * 1024 * tenth // 10], " ".join(good), BROKEN_TAR)
    for header, field in product(range(6), (0, 100, 124, 148, 257)):
        good = [n for n in "123" if int(n) != header // 2 + 1]
        yield reads(f"header {header}, byte {field}", damaged(1024 * header + field), " ".join(good), BROKEN_TAR)
    for place in (1, 20, 30, 45):
        yield reads(f"an image, byte {place}", damaged(512 + place), "2 3", "^0.tar, 1: ValueError: 'png': not an image")
    for content in NO_TARS:
        yield reads(f"a tar of {content[:9]}", content, "", BROKEN_TAR)
    yield reads("an empty tar", tar([]), "", "it contains no txt and no json file")
    yield reads("a tar without its end", WHOLE[: 6 * 1024], "1 2 3", f"{BROKEN_TAR}.*no end mark after 3.txt")
    yield reads("text after a tar", WHOLE + b"a cat" * 999, "1 2 3", "")
    yield reads("a file of two names", tar(pair(1) + [("1/0.png", PNG), ("1.0.png", PNG)]), "", f"{TWICE}.0.png")
    many = tar(pair(1) + [(f"{n}.{end}", b"{}") for n in range(2, 5000) for end in ("md", "json")])
    yield works("10,000 tiny files", 4999, lambda: Path("0.tar").write_bytes(many) and len(read_index("0.tar")[0]))
    for text in (b"0 path=x\n", b"9" * 500, b"9 pathx\n", b"12 uid=\xff\xfe\n"):
        header = member("pax", text, type=tarfile.XHDTYPE)[0].tobuf(tarfile.USTAR_FORMAT) + text.ljust(512, b"\0")
        problem = BROKEN_TAR if text.startswith(b"0") else ""
        yield reads(f"the pax header {text[:9]}", WHOLE[:2048] + header + WHOLE[2048:], "1 2 3", problem)


A, B = b'{"pieces": [{"text": "1"}]}', b'{"pieces": [{"text": "2"}]}'
OBJECT, PIECE = "ValueError: expected an object with pieces", 'ValueError: expected {"text": STRING}'


def line(*pieces: object, **changes) -> bytes:
    return json.dumps({"pieces": list(pieces), **changes}).encode()


LINES: dict[str, tuple[bytes, str]] = {  # between two good lines
    "half a line": (b'{"kind": "pair", "pieces": [', "JSONDecodeError: "), "a list": (b"[1, 2]", OBJECT), "3": (b"3", OBJECT),
    "a key twice": (b'{"pieces": [], "pieces": [{"text": "a"}]}', "a key occurs twice: pieces, pieces"),
    "a key of a piece twice": (b'{"pieces": [{"text": "a", "text": "b"}]}', "a key occurs twice: text, text"),
    "100,000 brackets": (b'{"pieces": ' + b"[" * 100_000, "too many levels"), "5000 digits": (b"9" * 5000, "4300 digits"),
    "NUL": (b'{"pieces": [{"text": "\0"}]}', "not UTF-8 text"), "FF": (b'{"pieces": [{"text": "\xff"}]}', "UnicodeDecodeError"),
    "two records": (A + b"\r" + A, "Extra data"), "UTF-16": ('{"pieces": []}'.encode("utf-16"), "not UTF-8 text"),
    "an unknown piece": (line({"sound": "a.wav"}), PIECE + r".*found \{'sound'"), "an empty piece": (line({}), PIECE),
    "an unknown key": (line({"text": "a", "noloss": True}), PIECE), "two pieces": (line({"text": "a", "eoc": True}), PIECE),
    "frames of two sizes": (line({"video": ["a.png", "b.png"]}), "frames of equal size"),
    "a folder": (line({"image": ""}), NO_FILE), "a long name": (line({"image": "a" * 5000}), "."),
    "not an image": (line({"image": "0.jsonl"}), "ValueError: '0.jsonl': not an image"),
    "a missing image": (line({"image": "c.png"}), r"FileNotFoundError: .*c\.png: no such file"),
    **{f"the path {path}": (line({"image": path}), "outside the dataset's folder") for path in
       ("../../secret.png", "/etc/passwd", "images/../../x.png", "link.png", "/dev/zero")},
    **{f"{name} {v!r}": (line(**{name: v}), f"ValueError: {name} must be true or false, not") for name, v in
       product(("attend_next", "bos"), (1, "no", None, {}))},
    **{f"no_loss {v!r}": (line({"text": "a", "no_loss": v}), "no_loss must be true or false") for v in ("no", 1, None, [])},
    **{f"pieces {v!r}": (line(pieces=v), OBJECT) for v in (None, 3, "a cat", {}, True)},
    **{f"a piece {v!r}": (line(v), PIECE) for v in (None, 3, "a cat", [], ["text"], True)},
    **{f"{name} {v!r}": (line({name: v}), PIECE) for name, v in
       product(("text", "eoc", "image", "video"), (None, 3, float("nan"), {}, []))},
}  # fmt: skip
LINE_FILES = {  # what is in the file, the good texts and the problem
    "a mark": (b"\xef\xbb\xbf" + A + b"\n" + B, "1 2", ""), "Windows": (A + b"\r\n \r\n" + B + b"\r\n", "1 2", ""),
    "Mac": (A + b"\r" + B, "", "line 1: .*Extra data"), "nothing": (b"", "", "the file has no lines"),
    "gzip": (gzip.compress(A), "", "."), "1 TB": (lambda path: os.truncate(path.touch() or path, 2**40), "", "line 1: "),
    "an array": (b"[\n" + A + b",\n" + B + b"\n]", "2", "line 2"),
    "100 MB": (A + b"\n" + line({"text": "a" * 10**8}) + b"\n" + B, "1 2", "line 2: ValueError: .*more than 5,000,000"),
    **{code: ((A + b"\n" + B).decode().encode(code), "", "not UTF-8") for code in ("utf-16-le", "utf-16-be", "utf-16")},
}  # fmt: skip


def read_line(broken: bytes, problem: str) -> object:
    Path("link.png").symlink_to("/etc/hostname")
    for i, file in enumerate(("a.png", "b.png")):
        Path(file).write_bytes(encoded(image=Image.new("RGB", (8 + i, 8))))
    Path("0.jsonl").write_bytes(b"\n".join([A, broken, B]))
    texts, problems = read_epoch("0.jsonl")
    assert texts == ["1", "2"] and re.search(rf"^0\.jsonl, line 2: .*{problem}", problems), (texts, problems)
    return JsonlDataset("0.jsonl")[1]


def own(third: Callable[[Path], object]) -> Callable[[Path], object]:
    """A folder with three pairs, of which `third` changes the last one."""
    files = pair(1) + pair(2) + pair(3)
    return lambda folder: (folder.mkdir(), [(folder / name).write_bytes(content) for name, content in files], third(folder))


FOLDERS = {  # what is done to the third pair, and the problem
    "a text in UTF-16 without mark": (lambda own: (own / "3.txt").write_text("a", "utf-16-le"), "^own, 3: ValueError: .*NUL"),
    "a name that is not UTF-8": (lambda own: os.rename(own / "3.txt", b"own/\xff.txt"), "found txt"),
    "a huge image": (lambda own: os.truncate(own / "3.png", 2**40), "^own, 3: ValueError: .* bytes are too many"),
    "no text, a link to itself": (lambda own: ((own / "3.txt").unlink(), (own / "x").symlink_to(".")), "belong to no text"),
    **{f"{kind}, {name}": (lambda own, m=make, n=name: ((own / n).unlink(), m(own / n)), "3: |belong to no text, such as 3.png")
       for (kind, make), name in product(SPECIAL.items(), ("3.png", "3.txt"))},
}  # fmt: skip
PATTERNS = {
    **{p: "names; at most 1,000,000" for p in ("{0..99999999}", "{00..99}" * 4, "{,}" * 40 + "0", "{a,b}" * 200)},
    **{p: r"^1\.tar: no such shard" for p in ("{0..999999}", "{0..3}", "{0,{1..3}}")},
    **{p: "no such shard" for p in ("{5..1}", "{0..3", "0..3}", "{}", "{0..x}", "{0..-3}", "\0", "[", "x" * 5000)},
    "{0.." + "9" * 5000 + "}": "no such shard",
}  # fmt: skip

PAIR = {"texts": ["a", None], "images": [None, "1.png"]}
INFO = {"image_name": "1.png", "matched_text_index": 0, "matched_sim": 0.3}
MMC4 = {"text_list": ["a"], "image_info": [INFO]}
GPT = {"example": "_!_IMAGE1_!_ a", "image_map": {"_!_IMAGE1_!_": {"base64_image": base64.b64encode(PNG).decode()}}}
DOCUMENT = partial(document_sample, tokenizer=BYTES)
RECORDS = {  # reader, files, the reason
    "no image": (pair_sample, {"txt": b"a"}, "a pair needs one image"),
    "two images": (pair_sample, {"png": PNG, "jpg": PNG, "txt": b"a"}, "found png, jpg, txt"),
    "no text": (pair_sample, {"png": PNG, "cls": b"3"}, "no text: a txt file, or a json file .*found png, cls"),
    "a long text": (pair_sample, {"png": PNG, "txt": b"a" * 10**8}, "more than 5,000,000 characters"),
    "an empty text": (pair_sample, {"png": b"not read", "txt": b" \n"}, "the caption is empty"),
    "a text that is not UTF-8": (pair_sample, {"png": PNG, "txt": b"\xff\xfe"}, "utf-8"),
    "a truncated image": (pair_sample, {"jpg": encoded("JPEG")[:-40], "txt": b"a"}, "'jpg': not an image.*or damaged"),
    "half a json": (pair_sample, {"png": PNG, "json": b'{"caption": "a'}, "Unterminated string"),
    "a key twice": (pair_sample, {"png": PNG, "json": b'{"caption": "a", "caption": "b"}'}, "a key occurs twice"),
    "a deep json": (pair_sample, {"png": PNG, "json": b"[" * 100_000}, "too many levels"),
    "a video without frames": (video_sample, {"txt": b"a"}, "a video needs one or more frames"),
    "no video": (video_sample, {"mp4": b"not a video", "txt": b"a"}, "mp4.*PyAV|mp4: not a video, or damaged"),
    "frames of two sizes": (video_sample, {"0.png": PNG, "1.png": encoded(), "txt": b"a"}, "frames of equal size"),
    "a document without json": (DOCUMENT, {"txt": b"a"}, "Expecting value"),
    **{f"json {v!r}": (pair_sample, {"png": PNG, "json": json.dumps(v).encode()}, "no text: a txt file") for v in NO_VALUES},
    **{f"caption {v!r}": (pair_sample, {"png": PNG, "json": json.dumps({"caption": v}).encode()}, "no text: a txt file")
       for v in NO_VALUES if v != "x"},
}  # fmt: skip
DOCUMENTS = {
    "neither format": {"caption": "a"}, "no images": {"text_list": ["a"]}, "no file": {**PAIR, "images": [None, "../1.png"]},
    "two lengths": {"texts": ["a"], "images": [None, "1.png"]}, "no image": {"texts": ["a"], "images": [None]},
    "no text": {"texts": [None], "images": ["1.png"]}, "a text and an image": {"texts": ["a"], "images": ["1.png"]},
    **{f"a text {v!r}": {**PAIR, "texts": [v, None]} for v in (3, [], "a\0")},
    **{f"a sentence {v!r}": {**MMC4, "text_list": ["a", v]} for v in (3, [], {})},
    **{f"base64 {v!r}": {**PAIR, "images": [None, {"image_base64": v}]} for v in ("é", "abc", 3, [])},
    **{f"index {v!r}": {**MMC4, "image_info": [{**INFO, "matched_text_index": v}]} for v in (1, -1, 0.5, "0", None, [])},
    **{f"similarity {v!r:.9}": {**MMC4, "image_info": [{**INFO, "matched_sim": v}]} for v in
       (float("nan"), float("inf"), "high", None, 10**400, 0.1)},
    **{f"without {k}": {**MMC4, "image_info": [{n: v for n, v in INFO.items() if n != k}]} for k in INFO},
    **{f"{name} {v!r}": {**document, name: v} for document in (MMC4, PAIR, {"is_gpt": True, **GPT}) for name in document
       for v in NO_VALUES if name != "is_gpt"},
    **{f"a document {v!r}": v for v in NO_VALUES},
}  # fmt: skip

VIZWIZ = {"image": "7.jpg", "question": "What?", "answers": [{"answer": "a"}]}
MEME = {"id": 7, "img": "7.png", "label": 1, "text": "a"}
SEGMENT = {"id": 0, "segment": [0, 3], "sentence": "a"}


def vqa(answers: object = ({"answer": "a"},), n: int = 1, **changes) -> dict[str, object]:
    files, question = {}, {"question_id": 7, "image_id": 3, "question": "What?", **changes}
    for split in ("train2014", "val2014"):
        files[f"v2_OpenEnded_mscoco_{split}_questions.json"] = {"questions": [question]}
        files[f"v2_mscoco_{split}_annotations.json"] = {"annotations": [{"question_id": 7, "answers": answers}] * n}
    return files


def vizwiz(*records: object) -> dict[str, object]:
    return {"train.json": [VIZWIZ], "val.json": list(records)}


def memes(**changes) -> dict[str, object]:
    return {f"{split}.jsonl": {**MEME, **changes} for split in ("train", "test_seen")}


def flickr(**changes) -> dict[str, object]:
    images = [{"filename": "7.jpg", "sentences": [{"raw": "a"}], "split": split, **changes} for split in ("train", "test")]
    return {"dataset_flickr30k.json": {"images": images}}


def youcook2(**changes) -> dict[str, object]:
    videos = {s: {"subset": s, "recipe_type": "1", "annotations": [{**SEGMENT, **changes}]} for s in ("training", "validation")}
    return {"youcookii_annotations_trainval.json": {"database": videos}}


def load(name: str, files: dict[str, object]) -> list[int]:
    """The numbers of examples of a benchmark with these annotation files."""
    for file, content in files.items():
        content(Path(file)) if callable(content) else Path(file).write_bytes(
            content if isinstance(content, bytes) else json.dumps(content).encode())  # fmt: skip
    task = load_benchmark(name, Path("."))
    return [len(task.support), len(task.queries)]


GOOD = {"vqav2": vqa(), "vizwiz": vizwiz(VIZWIZ), "hatefulmemes": memes(), "flickr30k": flickr(), "youcook2": youcook2()}
NO_JSON = (b'[{"a": ', b"", b"\xff\xfe\0\1", b"null", b"3", b'"a"', b"[]", b"{}", b"[[]]", b"[" * 100_000, b'{"a": 1, "a": 2}')
BENCHMARKS = {  # what is wrong with the files of a benchmark
    "vqav2": {"a question_id twice": vqa(n=2), **{f"answers {v!r}": vqa(v) for v in ([], None, 3, [3], [None], [[]], [{}])},
              **{f"question {v!r}": vqa(question=v) for v in (None, [], {}, 1.5)},
              **{f"ids {v!r}": vqa(question_id=v, image_id=v) for v in (None, [], "x", 1.5)}},
    "vizwiz": {"an example twice": vizwiz(VIZWIZ, VIZWIZ), "no query": vizwiz(), **{f"{v!r}": vizwiz(v) for v in NO_VALUES}},
    "hatefulmemes": {**{f"label {v!r}": memes(label=v) for v in (2, -1, "0", None, [], 0.5)},
                     **{f"img {v!r}": memes(img=v) for v in ("../x.png", "/etc/passwd", "a/../../x.png")},
                     **{f"text {v!r}": memes(text=v) for v in (None, [], {})}},
    "flickr30k": {f"sentences {v!r}": flickr(sentences=v) for v in (None, [], [3], [{}], [{"raw": 3}], "a")},
    "youcook2": {f"segment {v!r}": youcook2(segment=v) for v in (None, 3, [], [1], [1, 2, 3], [3, 1], ["a", "b"], [-1, 2],
                 [float("nan"), 3], [0, float("nan")])},
}  # fmt: skip


def benchmarks() -> Iterator[Case]:
    for name, files in GOOD.items():
        yield works(f"{name} as it is", [1, 1], load, name, files)
        for content in NO_JSON:
            damaged_files = {**files, list(files)[-1]: content}
            yield refused(f"{name}, {content[:9]}", rf"{name} \w* is not in the official format: .", load, name, damaged_files)
        for kind, make in SPECIAL.items():
            yield refused(f"{name}, {kind}", f"{NO_FILE}|is missing", load, name, {**files, list(files)[-1]: make})
        for kind, wrong in BENCHMARKS[name].items():
            yield refused(f"{name}, {kind}", rf"{name} \w* is not in the official format: .", load, name, wrong)


def mixture(workers: int) -> dict[str, set[str]]:
    """All broken lines, and a cut tar with broken records, with two good samples each."""
    broken = [("a.txt", b""), ("a.png", PNG), ("b.txt", b"b"), ("c.png", PNG[:40]), ("c.txt", b"c"), ("d.png", PNG)]
    Path("0.tar").write_bytes(tar(pair(1) + broken + pair(2))[:-1024])
    Path("0.jsonl").write_bytes(b"\n".join([A, *(broken for broken, _ in LINES.values()), B]))
    datasets = {file: Dataset(file, pair_sample, batch_size=200) for file in ("0.tar", "0.jsonl")}
    mixed = Mixture(datasets, BYTES, ImagePreprocessor(4), workers=workers)
    batches = next(iter(mixed))
    assert all(n > 2 and mixed.problems[name][0].startswith(name) for name, n in mixed.n_problems.items())
    return {name: {BYTES.decode(row) for row in batch.ids} for name, batch in batches.items()}


def cases() -> Iterator[Case]:
    yield from tars()
    yield from (reads(f"a .jsonl file: {name}", *what, "0.jsonl") for name, what in LINE_FILES.items())
    yield from (refused(f"a line: {name}", r"^0\.jsonl, line 2: ", read_line, *what) for name, what in LINES.items())
    yield from (reads(f"a folder: {name}", own(third), "1 2", problem, "own") for name, (third, problem) in FOLDERS.items())
    for (kind, make), name in product(SPECIAL.items(), ("0.tar", "0.jsonl")):
        if kind != "a folder":
            open_made = lambda make, name: (make(Path(name)), Dataset(name, pair_sample))  # noqa: E731
            yield refused(f"{kind} as {name}", rf"^{name}: {NO_FILE}", open_made, make, name)
    for pattern, message in PATTERNS.items():
        yield refused(f"the pattern {pattern:.40}", message, lambda p: (Path("0.tar").touch(), expand(f"{p}.tar")), pattern)
    nested = lambda: ([Path(name).touch() for name in ("a.tar", "b.tar")], expand("{a,{a,b}}.tar"))[1]  # noqa: E731
    yield works("braces in braces", ["a.tar", "b.tar"], nested)
    for name, (reader, files, message) in RECORDS.items():
        yield refused(f"a record: {name}", message, reader, files, random.Random(0))
    for name, document in DOCUMENTS.items():
        yield refused(f"a document: {name}", ".", document_pieces, {"json": json.dumps(document).encode(), "1.png": PNG}, 0.24)
    many = {"texts": ["a"] + [None] * 3000, "images": [None, "1.png"] + ["x.png"] * 2999}
    files = {"json": json.dumps(many).encode(), "1.png": PNG, "x.png": PNG[:40]}
    yield works("2,999 damaged images", 1, lambda: len(DOCUMENT(files, random.Random(0)).media))
    yield from benchmarks()
    three = lambda make: (own(lambda folder: make(folder / "4.txt"))(Path("own")), load_folder(Path("own")))  # noqa: E731
    for kind, make in SPECIAL.items():
        yield refused(f"{kind} as text of a folder", "own has 3 images with texts", three, make)
    for workers in (0, 2):
        good = {"0.tar": {"1", "2"}, "0.jsonl": {"1", "2"}}
        yield works(f"good samples among bad ones, {workers} workers", good, mixture, workers)
