"""Datasets on disk: what is written is what is read, and a broken line is named, for `minflamingo/data/readers.py`."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import LETTERS, picture, prepare
from PIL import Image

from minflamingo.data.readers import JsonlDataset, write_jsonl
from minflamingo.data.sample import EOC, Sample, Unscored, collate

A_CAT = [{"image": "images/a.png"}, {"text": " a cat"}, {"eoc": True}]


def dataset(folder, *lines: object, **options) -> JsonlDataset:
    """A dataset of these lines (objects become JSON) beside three images: a.png, b.jpg, c.png; c is larger."""
    (folder / "images").mkdir(exist_ok=True)
    Image.fromarray(picture(1)[0]).save(folder / "images/a.png")
    Image.fromarray(picture(2)[0]).save(folder / "images/b.jpg")
    Image.fromarray(picture(3)[0]).resize((16, 16)).save(folder / "images/c.png")
    written = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    (folder / "cats.jsonl").write_bytes(b"\n".join(written))
    return JsonlDataset(folder / "cats.jsonl", **options)


def pair(**changes) -> dict:
    return {"id": "0", "kind": "pair", "pieces": A_CAT, **changes}


def same(a: Sample, b: Sample) -> bool:
    """Equal to the last pixel."""

    def equal(p, q) -> bool:
        if isinstance(p, np.ndarray):
            return isinstance(q, np.ndarray) and p.dtype == q.dtype and np.array_equal(p, q)
        return type(p) is type(q) and p == q

    fields = (a.attend_next, a.bos, len(a.pieces)) == (b.attend_next, b.bos, len(b.pieces))
    return fields and all(map(equal, a.pieces, b.pieces))


EVERY_SORT = [
    Sample([picture(1), " a cat", EOC]),
    Sample([picture(2, frames=3), "Output:", " a cat runs", EOC]),
    Sample([" a", EOC, picture(1), Unscored(" dax"), Unscored(EOC), picture(3, frames=2)], attend_next=True),
    Sample([Unscored("<image>"), "ein Kätzchen\n猫 \u2028 \ud83d", EOC], bos=False),
    Sample([np.arange(2 * 5 * 7 * 3, dtype=np.uint8).reshape(2, 5, 7, 3)]),
    Sample([]),
]


def test_what_is_written_is_what_is_read_to_the_last_pixel(tmp_path):
    """Pairs (N=1, T=1), videos (N=1, T>1), pages (N>1) and text (§2.4); losses, layout and any letters come back."""
    write_jsonl(iter(EVERY_SORT), tmp_path / "new folder" / "cats.jsonl")
    read = JsonlDataset(tmp_path / "new folder" / "cats.jsonl")
    assert len(read) == len(EVERY_SORT)
    assert all(map(same, EVERY_SORT, read))
    kinds = [json.loads(line)["kind"] for line in read.path.read_bytes().splitlines()]
    assert kinds == ["pair", "video", "page", "text", "video", "text"]


def test_a_line_is_read_as_the_format_says(tmp_path):
    """A line written by hand, every key spelled out, and one with no key too many."""
    image = {"image": "images/a.png"}
    video = {"video": ["images/a.png", "images/a.png"]}
    pieces = [{"text": " a"}, {"eoc": True, "unscored": True}, image, {"text": "b", "unscored": True}, video]
    page = {"id": "p", "kind": "page", "pieces": pieces, "attend_next": True, "licence": "CC0", "url": None}
    long, short = dataset(tmp_path, page, {"kind": "text", "pieces": [{"text": "c"}]})
    film = picture(1).repeat(2, axis=0)
    assert same(long, Sample([" a", Unscored(EOC), picture(1), Unscored("b"), film], attend_next=True))
    assert same(short, Sample(["c"]))


def test_samples_from_disk_make_a_batch(tmp_path):
    """The reader's samples are those of `collate`: ids, labels, media (B, N, T, C, H, W)."""
    cat = {"kind": "pair", "pieces": [{"image": "images/a.png"}, {"text": "ab"}, {"eoc": True}]}
    film = {"kind": "video", "pieces": [{"video": ["images/a.png", "images/b.jpg"]}, {"text": "c"}]}
    batch = collate(list(dataset(tmp_path, cat, film)), LETTERS, prepare)
    assert batch.ids.tolist() == [[1, 11, 3, 4, 2], [1, 11, 5, 0, 0]]
    assert batch.labels.tolist() == [[-100, -100, 3, 4, 2], [-100, -100, 5, -100, -100]]
    assert batch.media.shape == (2, 1, 2, 3, 8, 8) and batch.frames.tolist() == [[1], [2]]
    assert torch.equal(batch.media[0, 0, 0], prepare(picture(1))[0])


@pytest.mark.parametrize("mode, ending", [("L", "png"), ("RGBA", "png"), ("P", "png"), ("CMYK", "jpg"), ("RGB", "webp")])
def test_a_picture_of_any_mode_is_read_as_rgb(tmp_path, mode, ending):
    """Grey, see-through, palette and print colours all become (1, H, W, 3)."""
    cats = dataset(tmp_path, pair(pieces=[{"image": f"images/d.{ending}"}]))
    Image.fromarray(picture(1)[0]).convert(mode).save(tmp_path / f"images/d.{ending}")
    assert cats[0].pieces[0].shape == (1, 8, 8, 3) and cats[0].pieces[0].dtype == np.uint8


def test_images_are_read_when_they_are_asked_for_and_not_before(tmp_path):
    """Opening a large dataset costs one pass over its lines; `lazily=False` reads, checks and keeps everything."""
    cats = dataset(tmp_path, pair(), pair())
    kept = JsonlDataset(cats.path, lazily=False)
    shutil.rmtree(tmp_path / "images")
    assert len(cats) == 2 and len(kept) == 2
    with pytest.raises(ValueError, match="missing"):
        cats[0]
    with pytest.raises(ValueError, match=r"line 1.*missing"):
        JsonlDataset(cats.path, lazily=False)
    assert same(kept[1], Sample([picture(1), " a cat", EOC])) and len(list(kept)) == 2


def test_samples_are_found_by_number_from_either_end(tmp_path):
    """A dataset is a sequence, so a DataLoader or `random.choice` can draw from it."""
    texts = [{"kind": "text", "pieces": [{"text": f"é{i}"}]} for i in range(3)]
    cats = dataset(tmp_path, *texts)
    assert [cats[i].pieces for i in (0, 2, 1, -1)] == [["é0"], ["é2"], ["é1"], ["é2"]]
    with pytest.raises(IndexError):
        cats[3]


def test_blank_lines_and_windows_line_ends_are_no_samples(tmp_path):
    """Numbers in messages are those an editor shows."""
    line = json.dumps({"kind": "text", "pieces": [{"text": "a"}]}).encode()
    cats = dataset(tmp_path, b"\xef\xbb\xbf" + line + b"\r", b"", b"  \r", line, b"{", b"")
    assert len(cats) == 3 and cats[0].pieces == cats[1].pieces == ["a"]
    with pytest.raises(ValueError, match=r"cats\.jsonl, line 5: this is not JSON"):
        cats[2]


def image(name: str) -> dict:
    return pair(pieces=[{"image": name}])


def piece(content: object) -> dict:
    return {"kind": "text", "pieces": [{"text": "a"}, content]}


BROKEN = {
    "half a line": (b'{"kind": "pair", "pieces": [', "not JSON"),
    "no text at all": (b"\xff\xfe\xfa", "not JSON"),
    "nested too deep": (b"[" * 100_000, "not JSON"),
    "a list": ([1, 2], "expected {kind"),
    "no kind": ({"pieces": A_CAT}, "kind: pair or video or page or text"),
    "an unknown kind": (pair(kind="picture"), "'picture'"),
    "a kind of another type": (pair(kind=["pair"]), "kind"),
    "no pieces": ({"kind": "text"}, "pieces"),
    "an unknown piece": (piece({"sound": "a.wav"}), "piece 1: unknown piece {'sound'.*text, eoc, image, video"),
    "two pieces in one": (piece({"text": "a", "eoc": True}), "piece 1: unknown piece"),
    "a bare string": (piece("a"), "piece 1: unknown piece 'a'"),
    "text that is a number": (piece({"text": 3}), "piece 1: text must be a string, not 3"),
    "an end of chunk that is none": (piece({"eoc": False}), "piece 1: eoc must be true, not False"),
    "a flag in quotes": (piece({"text": "a", "unscored": "no"}), "unscored must be true or false, not 'no'"),
    "a flag of the sample in quotes": (pair(attend_next="false"), "attend_next must be true or false"),
    "a video of no frames": ({"kind": "video", "pieces": [{"video": []}]}, "video must be a list"),
    "a video that is one file": ({"kind": "video", "pieces": [{"video": "a.mp4"}]}, "video must be a list"),
    "frames of two sizes": (
        {"kind": "video", "pieces": [{"video": ["images/a.png", "images/c.png"]}]}, "piece 0: frames of different sizes",
    ),
    "a missing image": (image("images/z.png"), "piece 0: 'images/z.png' is missing.*Copy it there"),
    "a missing frame": (
        {"kind": "video", "pieces": [{"video": ["images/a.png", "images/z.png"]}]}, "piece 0, frame 1: 'images/z.png'",
    ),
    "not an image": (image("cats.jsonl"), "'cats.jsonl' is not an image"),
    "a folder": (image("images"), "not an image"),
    "a name that no file can have": (image("images/\0.png"), "not an image"),
    "a name too long": (image("a" * 5000), "not an image"),
    "a path out of the folder": (image("images/../../secret.png"), "outside the dataset's folder"),
    "an absolute path": (image("/etc/hostname"), "outside the dataset's folder"),
    "an absolute path, even to an image": ("HERE", "outside the dataset's folder"),
    "a pair of two images": (pair(pieces=A_CAT + A_CAT), "a 'pair' has exactly one image.*Is it a 'page'"),
    "a pair without image": (pair(pieces=[{"text": "a"}]), "Is it a 'text'"),
    "a pair with a film": (pair(pieces=[{"video": ["images/a.png"] * 2}]), "Is it a 'video'"),
    "a video of one frame": (pair(kind="video", pieces=[{"video": ["images/a.png"]}]), "two frames or more.*a 'pair'"),
    "two videos": ({"kind": "video", "pieces": [{"video": ["images/a.png"] * 2}] * 2}, "exactly one video"),
    "a page without images": ({"kind": "page", "pieces": [{"text": "a"}]}, "at least one image"),
    "text with an image": (pair(kind="text"), "a 'text' has no image.*Is it a 'pair'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_line_is_refused_by_file_and_number(tmp_path, name):
    """Whatever is wrong with line 2: line 1 can be read, line 2 says where and what, with a ValueError and no other."""
    line, complaint = BROKEN[name]
    Image.fromarray(picture(1)[0]).save(tmp_path / "secret.png")
    (tmp_path / "folder").mkdir()
    if line == "HERE":  # it would lead nowhere on another disk
        line = image(str(tmp_path / "folder/images/a.png"))
    cats = dataset(tmp_path / "folder", pair(), line)
    assert same(cats[0], Sample([picture(1), " a cat", EOC]))
    with pytest.raises(ValueError, match=rf"cats\.jsonl, line 2: (.|\n)*{complaint}"):
        cats[1]
    with pytest.raises(ValueError, match="line 2"):
        list(cats)


def test_a_damaged_image_is_refused_wherever_it_is_cut(tmp_path):
    """A download that stopped. Pillow has many ways to say so."""
    cats = dataset(tmp_path, image("images/d.png"), image("images/d.jpg"))
    for i, (whole, cut) in enumerate((("a.png", "d.png"), ("b.jpg", "d.jpg"))):
        content = (tmp_path / "images" / whole).read_bytes()
        for end in range(0, len(content) * 9 // 10, 7):
            (tmp_path / "images" / cut).write_bytes(content[:end])
            with pytest.raises(ValueError, match=r"line .: piece 0: 'images/d.* is not an image, or damaged"):
                cats[i]


def test_a_link_that_leads_out_of_the_folder_is_not_followed(tmp_path):
    """The folder as a whole may be a link, though: large images live on other disks."""
    Image.fromarray(picture(1)[0]).save(tmp_path / "secret.png")
    (tmp_path / "folder").mkdir()
    cats = dataset(tmp_path / "folder", image("images/link.png"), pair())
    (tmp_path / "folder/images/link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ValueError, match="outside"):
        cats[0]
    (tmp_path / "elsewhere").symlink_to(tmp_path / "folder")
    assert same(JsonlDataset(tmp_path / "elsewhere" / "cats.jsonl")[1], cats[1])


@pytest.mark.parametrize("lazily", [True, False])
def test_broken_samples_may_be_skipped_and_are_counted(tmp_path, lazily):
    """`skipped` tells the line and the reason of each, of the last pass only; asking for one by its number still raises."""
    lines = [pair(), b"{", pair(kind="page"), image("images/z.png"), pair()]
    cats = dataset(tmp_path, *lines, lazily=lazily, on_error="skip")
    for _ in range(2):
        assert [len(sample.pieces) for sample in cats] == [3, 3, 3]
        assert [line for line, _ in cats.skipped] == [2, 4]
        assert "not JSON" in cats.skipped[0][1] and "missing" in cats.skipped[1][1]
    if lazily:
        with pytest.raises(ValueError, match="line 2"):
            cats[1]
    else:
        assert len(cats) == 3 and same(cats[1], Sample([picture(1), " a cat", EOC]))


def test_a_wrong_call_says_what_is_right(tmp_path):
    """No such file; no such way to treat errors."""
    with pytest.raises(FileNotFoundError, match=r"nothing\.jsonl: no such file"):
        JsonlDataset(tmp_path / "nothing.jsonl")
    with pytest.raises(FileNotFoundError, match=r"A dataset is one \.jsonl file"):
        JsonlDataset(tmp_path)
    with pytest.raises(ValueError, match="'ignore'; choose 'raise' or 'skip'"):
        dataset(tmp_path, pair(), on_error="ignore")


@pytest.mark.parametrize("broken", [3, np.zeros((2, 4, 3), np.float32), torch.zeros(1, 4, 8), np.zeros((1, 8, 8, 3))])
def test_a_dataset_on_disk_is_the_old_one_or_the_new_one(tmp_path, broken):
    """Writing that fails halfway leaves the older dataset as it was, and no half-written file."""
    write_jsonl(EVERY_SORT, tmp_path / "cats.jsonl")
    before = (tmp_path / "cats.jsonl").read_bytes()
    with pytest.raises(TypeError, match=r"sample 1, piece 1: expected text, EOC or uint8 pixels"):
        write_jsonl([Sample([picture(9)]), Sample(["a", broken])], tmp_path / "cats.jsonl")
    assert (tmp_path / "cats.jsonl").read_bytes() == before
    assert all(map(same, EVERY_SORT, JsonlDataset(tmp_path / "cats.jsonl")))
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".partial"]


def test_a_picture_that_comes_twice_is_stored_once(tmp_path):
    """Files are named after their pixels, also across the datasets of one folder."""
    write_jsonl([Sample([picture(1), "a", picture(1)]), Sample([picture(2)])], tmp_path / "pages.jsonl")
    write_jsonl([Sample([picture(1), "b"])], tmp_path / "pairs.jsonl")
    assert len(list((tmp_path / "images").iterdir())) == 2


def test_samples_keep_the_ids_they_are_given(tmp_path):
    """One each, no more and no fewer."""
    write_jsonl([Sample(["a"]), Sample(["b"])], tmp_path / "cats.jsonl", ids=["x", "y"])
    lines = (tmp_path / "cats.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["x", "y"]
    for ids in (["x"], ["x", "y", "z"]):
        with pytest.raises(ValueError, match="zip"):
            write_jsonl([Sample(["a"]), Sample(["b"])], tmp_path / "cats.jsonl", ids=ids)
