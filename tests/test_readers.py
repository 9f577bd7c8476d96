"""JSON Lines datasets: what is written is what is read, and errors name the broken line."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import LETTERS, image, preprocess
from PIL import Image

from minflamingo.data.readers import JsonlDataset, write_jsonl
from minflamingo.data.sample import EOC, NoLoss, Sample, collate

A_CAT = [{"image": "images/a.png"}, {"text": " a cat"}, {"eoc": True}]
A_VIDEO = {"video": ["images/a.png", "images/b.jpg"]}


def dataset(folder, *lines: object) -> JsonlDataset:
    """A dataset of these lines (objects become JSON) with three images: a.png, b.jpg, c.png; c is larger."""
    (folder / "images").mkdir(exist_ok=True)
    Image.fromarray(image(1)[0]).save(folder / "images/a.png")
    Image.fromarray(image(2)[0]).save(folder / "images/b.jpg")
    Image.fromarray(image(3)[0]).resize((16, 16)).save(folder / "images/c.png")
    written = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    (folder / "cats.jsonl").write_bytes(b"\n".join(written))
    return JsonlDataset(folder / "cats.jsonl")


def line(*pieces: object, **changes) -> dict:
    return {"pieces": list(pieces), **changes}


def same(a: Sample, b: Sample) -> bool:
    """Equal to the last pixel."""

    def equal(p, q) -> bool:
        if isinstance(p, np.ndarray):
            return isinstance(q, np.ndarray) and p.dtype == q.dtype and np.array_equal(p, q)
        return type(p) is type(q) and p == q

    fields = (a.attend_next, a.bos, len(a.pieces)) == (b.attend_next, b.bos, len(b.pieces))
    return fields and all(map(equal, a.pieces, b.pieces))


SAMPLES = [
    Sample([image(1), " a cat", EOC]),
    Sample([image(2, frames=3), "Output:", " a cat runs", EOC]),
    Sample([" a", EOC, image(1), NoLoss(" dax"), NoLoss(EOC), image(3, frames=2)], attend_next=True),
    Sample([NoLoss("<image>"), "ein Kätzchen\n猫 \u2028 \ud83d", EOC], bos=False),
    Sample([np.arange(2 * 5 * 7 * 3, dtype=np.uint8).reshape(2, 5, 7, 3)]),
    Sample([]),
]


def test_what_is_written_is_what_is_read(tmp_path):
    """Pairs, videos, documents and text (section 2.4), with losses, layout and all characters."""
    write_jsonl(iter(SAMPLES), tmp_path / "new folder" / "cats.jsonl")
    read = JsonlDataset(tmp_path / "new folder" / "cats.jsonl")
    assert len(read) == len(SAMPLES) and all(map(same, SAMPLES, read))
    kinds = [json.loads(line)["kind"] for line in read.path.read_bytes().splitlines()]
    assert kinds == ["pair", "video", "document", "text", "video", "text"]


def test_lines_written_by_hand_are_read_as_the_format_says(tmp_path):
    pieces = [{"text": "a"}, {"eoc": True, "no_loss": True}, A_CAT[0], {"text": "b", "no_loss": True}, A_VIDEO]
    long = line(*pieces, id="p", attend_next=True, licence="CC0", url=None)
    data = dataset(tmp_path, long, line({"text": "c"}, kind="text"), line(A_CAT[0]))
    video = np.concatenate([image(1), data[0].pieces[4][1:]])  # a JPEG is not lossless
    assert same(data[0], Sample(["a", NoLoss(EOC), image(1), NoLoss("b"), video], attend_next=True))
    assert same(data[1], Sample(["c"])) and same(data[2], Sample([image(1)]))
    batch = collate(list(data)[:2], LETTERS, preprocess)
    assert batch.ids.tolist() == [[1, 3, 2, 11, 4, 11], [1, 5, 0, 0, 0, 0]] and batch.frames.tolist() == [[1, 2], [0, 0]]


def test_samples_have_numbers_and_empty_lines_are_no_samples(tmp_path):
    """Line numbers in errors are those of an editor. A byte order mark and Windows line ends are allowed."""
    lines = [json.dumps(line({"text": f"é{i}"})).encode() for i in range(2)]
    data = dataset(tmp_path, b"\xef\xbb\xbf" + lines[0] + b"\r", b"", b"  \r", lines[1], b"{", b"")
    assert len(data) == 3 and [data[i].pieces for i in (1, 0, -2)] == [["é1"], ["é0"], ["é1"]]
    with pytest.raises(ValueError, match=r"cats\.jsonl, line 5: JSONDecodeError: "):
        data[2]
    with pytest.raises(IndexError):
        data[3]
    data = dataset(tmp_path, line(*A_CAT))
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(ValueError, match=r"line 1: FileNotFoundError.*a\.png"):  # images are read when the sample is used
        data[0]
    with pytest.raises(FileNotFoundError, match=r"nothing\.jsonl"):
        JsonlDataset(tmp_path / "nothing.jsonl")


BROKEN = {
    "half a line": (b'{"kind": "pair", "pieces": [', ": JSONDecodeError: "),
    "a list": ([1, 2], ": ValueError: expected an object with pieces"),
    "pieces that are text": ({"pieces": "a cat"}, ": ValueError: expected an object with pieces"),
    "an unknown piece": (line({"sound": "a.wav"}), ': ValueError: expected {"text": .*, found {\'sound\''),
    "two pieces in one": (line({"text": "a"}, {"text": "a", "eoc": True}), ": ValueError: expected"),
    "a text that is a number": (line({"text": 3}), ": ValueError: expected"),
    "a flag in quotes": (line({"text": "a", "no_loss": "no"}), ": ValueError: no_loss must be true or false, not 'no'"),
    "a flag that is a number": (line(attend_next=1), ": ValueError: attend_next must be true or false, not 1"),
    "a video without frames": (line({"video": []}), ": ValueError: expected"),
    "frames of two sizes": (line({"video": ["images/a.png", "images/c.png"]}), ": .* frames of equal size"),
    "not an image": (line({"image": "cats.jsonl"}), ": ValueError: 'cats.jsonl': not an image"),
    "a name that is too long": (line({"image": "a" * 5000}), ": "),
    "a path out of the folder": (line({"image": "images/../../secret.png"}), "outside the dataset's folder"),
    "a link out of the folder": (line({"image": "images/link.png"}), "outside the dataset's folder"),
    "an absolute path": (line({"image": "HERE/secret.png"}), "outside the dataset's folder"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_line_raises_an_error_with_file_line_and_reason(tmp_path, name):
    broken, message = BROKEN[name]
    Image.fromarray(image(1)[0]).save(tmp_path / "secret.png")
    folder = tmp_path / "folder"
    (folder / "images").mkdir(parents=True)
    (folder / "images/link.png").symlink_to(tmp_path / "secret.png")
    if not isinstance(broken, bytes):
        broken = json.dumps(broken).replace("HERE", str(tmp_path)).encode()
    data = dataset(folder, line(*A_CAT), broken)
    assert same(data[0], Sample([image(1), " a cat", EOC]))
    with pytest.raises(ValueError, match=rf"cats\.jsonl, line 2(.|\n)*{message}"):
        list(data)


@pytest.mark.parametrize("broken", [3, np.zeros((2, 4, 3), np.float32), torch.zeros(1, 4, 8), np.zeros((1, 8, 8, 3))])
def test_a_failed_write_leaves_the_existing_dataset_unchanged(tmp_path, broken):
    write_jsonl(SAMPLES, tmp_path / "cats.jsonl")
    before = (tmp_path / "cats.jsonl").read_bytes()
    with pytest.raises(TypeError, match=r"sample 1, piece 1: expected text, EOC or uint8 pixels"):
        write_jsonl([Sample([image(9)]), Sample(["a", broken])], tmp_path / "cats.jsonl")
    assert (tmp_path / "cats.jsonl").read_bytes() == before
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".partial"]


def test_equal_images_are_stored_once_and_samples_keep_their_ids(tmp_path):
    write_jsonl([Sample([image(1), "a", image(1)]), Sample([image(2)])], tmp_path / "documents.jsonl", ids=["x", "y"])
    write_jsonl([Sample([image(1), "b"])], tmp_path / "pairs.jsonl")
    assert len(list((tmp_path / "images").iterdir())) == 2
    lines = (tmp_path / "documents.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["x", "y"]
    for ids in (["x"], ["x", "y", "z"]):
        with pytest.raises(ValueError, match="zip"):
            write_jsonl([Sample(["a"]), Sample(["b"])], tmp_path / "cats.jsonl", ids=ids)
