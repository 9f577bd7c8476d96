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


def dataset(folder, *lines: object, **options) -> JsonlDataset:
    """A dataset of these lines (objects become JSON) with three images: a.png, b.jpg, c.png; c is larger."""
    (folder / "images").mkdir(exist_ok=True)
    Image.fromarray(image(1)[0]).save(folder / "images/a.png")
    Image.fromarray(image(2)[0]).save(folder / "images/b.jpg")
    Image.fromarray(image(3)[0]).resize((16, 16)).save(folder / "images/c.png")
    written = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    (folder / "cats.jsonl").write_bytes(b"\n".join(written))
    return JsonlDataset(folder / "cats.jsonl", **options)


def pair(**changes) -> dict:
    return {"id": "0", "kind": "pair", "pieces": A_CAT, **changes}


def document(*pieces: object) -> dict:
    return {"kind": "document", "pieces": list(pieces)}


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
    long = {**document(*pieces), "id": "p", "attend_next": True, "licence": "CC0", "url": None}
    data = dataset(tmp_path, long, {"kind": "text", "pieces": [{"text": "c"}]}, document(A_CAT[0]))
    video = np.concatenate([image(1), data[0].pieces[4][1:]])  # a JPEG is not lossless
    assert same(data[0], Sample(["a", NoLoss(EOC), image(1), NoLoss("b"), video], attend_next=True))
    assert same(data[1], Sample(["c"])) and same(data[2], Sample([image(1)]))
    batch = collate(list(data)[:2], LETTERS, preprocess)
    assert batch.ids.tolist() == [[1, 3, 2, 11, 4, 11], [1, 5, 0, 0, 0, 0]] and batch.frames.tolist() == [[1, 2], [0, 0]]


@pytest.mark.parametrize("mode, extension", [("L", "png"), ("RGBA", "png"), ("P", "png"), ("CMYK", "jpg"), ("RGB", "webp")])
def test_images_of_all_modes_are_read_as_rgb(tmp_path, mode, extension):
    data = dataset(tmp_path, pair(pieces=[{"image": f"images/d.{extension}"}]))
    Image.fromarray(image(1)[0]).convert(mode).save(tmp_path / f"images/d.{extension}")
    assert data[0].pieces[0].shape == (1, 8, 8, 3) and data[0].pieces[0].dtype == np.uint8


def test_images_are_read_when_the_sample_is_used(tmp_path):
    data = dataset(tmp_path, pair(), pair())
    shutil.rmtree(tmp_path / "images")
    assert len(data) == 2
    with pytest.raises(ValueError, match="missing"):
        data[0]


def test_samples_have_numbers_and_empty_lines_are_no_samples(tmp_path):
    """Line numbers in errors are those of an editor. A byte order mark and Windows line ends are allowed."""
    lines = [json.dumps({"kind": "text", "pieces": [{"text": f"é{i}"}]}).encode() for i in range(2)]
    data = dataset(tmp_path, b"\xef\xbb\xbf" + lines[0] + b"\r", b"", b"  \r", lines[1], b"{", b"")
    assert len(data) == 3 and [data[i].pieces for i in (1, 0, -2)] == [["é1"], ["é0"], ["é1"]]
    with pytest.raises(ValueError, match=r"cats\.jsonl, line 5: not valid JSON"):
        data[2]
    with pytest.raises(IndexError):
        data[3]


BROKEN = {
    "half a line": (b'{"kind": "pair", "pieces": [', "not valid JSON"),
    "nested too deep": (b"[" * 100_000, "not valid JSON"),
    "a list": ([1, 2], "expected an object with kind and pieces"),
    "no kind": ({"pieces": A_CAT}, "kind is None.*'pair'"),
    "an unknown piece": (document({"sound": "a.wav"}), "piece 0: unknown piece {'sound'.*text, eoc, image, video"),
    "two pieces in one": (document({"text": "a", "eoc": True}), "piece 0: unknown piece"),
    "a flag in quotes": (document({"text": "a", "no_loss": "no"}), "no_loss must be true or false, not 'no'"),
    "a video without frames": (document({"video": []}), "video must be a list"),
    "frames of two sizes": (document({"video": ["images/a.png", "images/c.png"]}), "piece 0: .* frames of equal size"),
    "a missing image": (document({"image": "images/z.png"}), "piece 0: 'images/z.png' is missing.*copy it there"),
    "not an image": (document({"image": "cats.jsonl"}), "'cats.jsonl': not an image"),
    "a name with a zero byte": (document({"image": "images/\0.png"}), "piece 0: "),
    "a name that is too long": (document({"image": "a" * 5000}), "piece 0: "),
    "a path out of the folder": (document({"image": "images/../../secret.png"}), "outside the dataset's folder"),
    "a link out of the folder": (document({"image": "images/link.png"}), "outside the dataset's folder"),
    "an absolute path": (document({"image": "HERE/images/a.png"}), "outside the dataset's folder"),
    "a pair of two images": (pair(pieces=A_CAT + A_CAT), "kind is 'pair'.*'document'"),
    "a pair without image": (pair(pieces=[{"text": "a"}]), "kind is 'pair'.*'text'"),
    "a pair with a video": (pair(pieces=[A_VIDEO]), "kind is 'pair'.*'video'"),
    "a video of one frame": (pair(kind="video", pieces=[{"video": ["images/a.png"]}]), "kind is 'video'.*'pair'"),
    "a document without images": (document({"text": "a"}), "kind is 'document'.*'text'"),
    "text with an image": (pair(kind="text"), "kind is 'text'.*'pair'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_line_raises_an_error_with_file_and_line(tmp_path, name):
    line, message = BROKEN[name]
    Image.fromarray(image(1)[0]).save(tmp_path / "secret.png")
    folder = tmp_path / "folder"
    (folder / "images").mkdir(parents=True)
    (folder / "images/link.png").symlink_to(tmp_path / "secret.png")
    if not isinstance(line, bytes):
        line = json.dumps(line).replace("HERE", str(folder)).encode()
    data = dataset(folder, pair(), line)
    assert same(data[0], Sample([image(1), " a cat", EOC]))
    with pytest.raises(ValueError, match=rf"cats\.jsonl, line 2: (.|\n)*{message}"):
        data[1]
    with pytest.raises(ValueError, match="line 2"):
        list(data)


def test_an_image_that_is_truncated_at_any_byte_raises_an_error(tmp_path):
    data = dataset(tmp_path, document({"image": "images/d.png"}), document({"image": "images/d.jpg"}))
    for i, (whole, cut) in enumerate((("a.png", "d.png"), ("b.jpg", "d.jpg"))):
        content = (tmp_path / "images" / whole).read_bytes()
        for end in range(0, len(content) * 9 // 10, 7):
            (tmp_path / "images" / cut).write_bytes(content[:end])
            with pytest.raises(ValueError, match=r"line .: piece 0: 'images/d.*: not an image .* or damaged"):
                data[i]


def test_broken_samples_can_be_skipped_and_are_listed(tmp_path):
    """`skipped` has line and reason of the last iteration; access by number still raises."""
    data = dataset(tmp_path, pair(), b"{", pair(kind="document"), document({"image": "z.png"}), pair(), on_error="skip")
    for _ in range(2):
        assert [len(sample.pieces) for sample in data] == [3, 3, 3]
        assert [line for line, _ in data.skipped] == [2, 4]
        assert "not valid JSON" in data.skipped[0][1] and "missing" in data.skipped[1][1]
    with pytest.raises(ValueError, match="line 2"):
        data[1]
    with pytest.raises(FileNotFoundError, match=r"nothing\.jsonl: no such file"):
        JsonlDataset(tmp_path / "nothing.jsonl")
    with pytest.raises(ValueError, match="'ignore'; choose 'raise' or 'skip'"):
        dataset(tmp_path, pair(), on_error="ignore")


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
