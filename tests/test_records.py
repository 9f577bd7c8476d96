"""Files of a shard become samples: pairs, videos and documents, for `minflamingo/data/records.py`."""

from __future__ import annotations

import base64
import io
import json
import random

import numpy as np
import pytest
from conftest import EOC, LETTERS, picture
from PIL import Image

from minflamingo.data.records import Documents, Pairs, Record, Videos
from minflamingo.data.sample import Sample, lay_out
from minflamingo.tokenizer import ToyTokenizer

BYTES = ToyTokenizer([])


class Folder(dict):
    """A shard in memory: name → bytes."""

    def read(self, name: str) -> bytes:
        return self[name]


def encoded(i: int, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(i)[0]).save(file, format=form)
    return file.getvalue()


def base64_of(i: int) -> str:
    return base64.b64encode(encoded(i)).decode()


def read(reader, files: dict[str, object], seed: int = 0) -> dict[str, Sample | None]:
    """All records in these files: text and objects (JSON) are written, a number is that picture."""
    write = {int: encoded, str: str.encode, bytes: bytes, dict: lambda v: json.dumps(v).encode()}
    shard = Folder({name: write[type(content)](content) for name, content in files.items()})
    groups = reader.group(shard)
    return {key: reader(Record(key, found, shard), random.Random(seed)) for key, found in groups.items()}


def same(sample: Sample, *pieces: object) -> bool:
    equal = [np.array_equal(a, b) if isinstance(b, np.ndarray) else a == b for a, b in zip(sample.pieces, pieces)]
    return all(equal) and len(sample.pieces) == len(pieces)


# --------------------------------------------------------------------------------------------------------------- pairs


def test_an_image_and_its_text_are_a_pair_that_ends_its_chunk():
    """`<BOS><image>a cat<EOC>` (§2.4); spaces around a caption are not its own."""
    samples = read(Pairs(), {"cats/7.png": 7, "cats/7.txt": " a cat\n", "cats/8.txt": "b", "cats/8.PNG": 8})
    assert list(samples) == ["cats/7", "cats/8"]
    assert same(samples["cats/7"], picture(7), "a cat", EOC) and same(samples["cats/8"], picture(8), "b", EOC)
    assert lay_out(samples["cats/8"], LETTERS, lambda p: p).ids == [1, 11, 4, 2]
    assert lay_out(samples["cats/8"], LETTERS, lambda p: p).labels == [-100, -100, 4, 2]


@pytest.mark.parametrize("ending, form", [("jpg", "JPEG"), ("jpeg", "JPEG"), ("png", "PNG"), ("webp", "WEBP")])
def test_a_pair_may_have_an_image_of_any_common_format_and_its_caption_in_the_json(ending, form):
    """As img2dataset writes them: jpg, json with everything, and mostly a txt, which then counts."""
    (sample,) = read(Pairs(), {f"0.{ending}": encoded(1, form), "0.json": {"caption": "a", "url": "…"}}).values()
    assert sample.pieces[1:] == ["a", EOC] and sample.pieces[0].shape == (1, 8, 8, 3)
    (sample,) = read(Pairs(), {f"0.{ending}": encoded(1, form), "0.json": {"caption": "a"}, "0.txt": "b"}).values()
    assert sample.pieces[1:] == ["b", EOC]


def test_files_belong_together_as_webdataset_says():
    """The first dot of a name parts key and ending. The oracle is the library that writes most such tars."""
    oracle = pytest.importorskip("webdataset.tariterators").base_plus_ext
    names = ["a/b.c/7.jpg", "a/b.c/7.txt", "7.jpg", "7.seg.png", "x/7.jpg", "x/7.tar.gz", "x/noending", ".DS_Store", "8.JPG"]
    names += ["a b/ü.txt"]
    expected: dict = {}
    for name in names:
        key, ending = oracle(name)
        if key is not None and key and ending:
            expected.setdefault(key, {})[ending.lower()] = name
    assert Pairs().group(names) == expected
    hidden = ["x/._7.jpg", "x/.hidden", "._7.json"]  # a Mac leaves such; webdataset makes a sample of them
    assert Pairs().group(hidden) == Videos().group(hidden) == Documents(LETTERS).group(hidden) == {}


def test_a_caption_that_is_too_long_keeps_its_end_of_chunk():
    """OpenFlamingo cuts captions at 32 tokens, EOC and all; here the text gives way."""
    for limit, text in ((4, "a"), (6, "abc"), (11, "abcdefgh"), (None, "abcdefgh")):
        (sample,) = read(Pairs(LETTERS, limit), {"0.png": 0, "0.txt": "abcdefgh"}).values()
        assert same(sample, picture(0), text, EOC)
        assert limit is None or len(lay_out(sample, LETTERS, lambda p: p).ids) <= limit
    with pytest.raises(ValueError, match="Pairs: max_tokens needs a tokenizer"):
        Pairs(max_tokens=32)
    with pytest.raises(ValueError, match="Videos: .*room for a text: 4 or more"):
        Videos(LETTERS, max_tokens=3)


def test_the_letters_of_a_special_token_in_a_caption_are_text():
    """A caption has one image: its own."""
    (sample,) = read(Pairs(), {"0.png": 0, "0.txt": "<image> tag<EOC>"}).values()
    ids = lay_out(sample, BYTES, lambda p: p).ids
    assert ids.count(BYTES.image_id) == 1 and ids.count(BYTES.eoc_id) == 1


def test_an_empty_caption_is_no_sample_and_no_damage():
    """There is nothing to learn from it, and its image is not even read."""
    assert read(Pairs(), {"0.png": b"no image", "0.txt": " \n"}) == {"0": None}
    assert read(Videos(), {"0/1.png": b"no image", "0.txt": ""}) == {"0": None}


CUT = encoded(1, "JPEG")[:-40]
BROKEN = {
    "no image": (Pairs(), {"0.txt": "a"}, "a pair has one image"),
    "two images": (Pairs(), {"0.png": 1, "0.jpg": 1, "0.txt": "a"}, "here are jpg, png, txt"),
    "no text": (Pairs(), {"0.png": 1, "0.cls": "3"}, "neither a txt nor a json beside cls, png"),
    "a text of no letters": (Pairs(), {"0.png": 1, "0.txt": b"\xff\xfe"}, "utf-8"),
    "a cut image": (Pairs(), {"0.jpg": CUT, "0.txt": "a"}, r"'0\.jpg' is no image.*or damaged"),
    "no image at all": (Pairs(), {"0.jpg": b"<html>404</html>", "0.txt": "a"}, r"'0\.jpg' is no image"),
    "another format": (Pairs(), {"0.jpg": encoded(1, "GIF"), "0.txt": "a"}, "is no image"),
    "half a json": (Pairs(), {"0.png": 1, "0.json": b'{"caption": "a'}, "the json is broken"),
    "a json of another letter": (Pairs(), {"0.png": 1, "0.json": b"\xff"}, "the json is broken"),
    "a json too deep": (Pairs(), {"0.png": 1, "0.json": b"[" * 100_000}, "the json is broken"),
    "a json that is a list": (Pairs(), {"0.png": 1, "0.json": b"[1]"}, "must be one object, found"),
    "a json without caption": (Pairs(), {"0.png": 1, "0.json": {}}, "caption must be a string, not None"),
    "a video without text": (Videos(), {"0/0.png": 1}, "neither a txt nor a json"),
    "a video without frames": (Videos(), {"0.txt": "a"}, "no frames"),
    "an empty list of frames": (Videos(), {"0.json": {"caption": "a", "frames": []}}, "no frames"),
    "frames that are no list": (Videos(), {"0.json": {"caption": "a", "frames": "0.png"}}, "frames must be a list"),
    "a frame that is null": (Videos(), {"0.json": {"caption": "a", "frames": [{}]}}, r"frames\[0\] is null"),
    "a frame that is missing": (
        Videos(), {"0.json": {"caption": "a", "frames": ["z.png"]}}, r"'z\.png': there is no such file",
    ),
    "a cut frame": (Videos(), {"0/0.png": 1, "0/1.jpg": CUT, "0.txt": "a"}, r"'0/1\.jpg' is no image"),
    "a json that is no document": (Documents(BYTES), {"0.json": {"caption": "a"}}, "neither text_list .* nor texts .* caption"),
    "a document's image that is missing": (
        Documents(BYTES), {"0.json": {"texts": [None, "a"], "images": ["z.png", None]}}, r"'z\.png': there is no such file",
    ),
    "base64 that is none": (
        Documents(BYTES), {"0.json": {"texts": [None, "a"], "images": [{"image_base64": "é"}, None]}}, r"images\[0\]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_record_says_what_is_broken(name):
    """With a ValueError, which is what a stream counts."""
    reader, files, complaint = BROKEN[name]
    with pytest.raises(ValueError, match=complaint):
        read(reader, files)


# -------------------------------------------------------------------------------------------------------------- videos

TEXT = "a cat runs"
WAYS = {
    "a folder and a text beside it": {"v/run/0.png": 0, "v/run/1.png": 1, "v/run/2.png": 2, "v/run.txt": TEXT},
    "a folder with the text in it": {"run/0.png": 0, "run/1.png": 1, "run/2.png": 2, "run/caption.txt": TEXT},
    "endings with numbers": {"v/run.0.png": 0, "v/run.1.png": 1, "v/run.2.png": 2, "v/run.json": {"caption": TEXT}},
    "a list of frames": {"run.json": {"caption": TEXT, "frames": ["f0.png", "f1.png", "run/f2.png"]},
                         "run.f0.png": 0, "run.f1.png": 1, "run/f2.png": 2},
    "a list of frames inside": {"run.json": {"caption": TEXT, "frames": [{"image_base64": base64_of(i)} for i in range(3)]}},
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_frames_and_a_text_are_a_video_however_they_are_packed(way):
    """[N=1, T>1, H, W, C] (§2.4), whatever the order of the files."""
    film = np.concatenate([picture(i) for i in range(3)])
    for order in (list, reversed):
        files = dict(order(list(WAYS[way].items())))
        (sample,) = read(Videos(), files).values()
        assert same(sample, film, TEXT, EOC)


def test_frames_stand_in_the_order_of_their_numbers():
    """2.png comes before 10.png, though not in the alphabet."""
    (sample,) = read(Videos(frames=99), {**{f"run/{i}.png": i for i in range(12)}, "run.txt": "a"}).values()
    assert np.array_equal(sample.pieces[0], np.concatenate([picture(i) for i in range(12)]))


@pytest.mark.parametrize("n, shown", [(1, [0]), (8, range(8)), (9, [0, 1, 2, 3, 5, 6, 7, 8]), (24, range(1, 24, 3))])
def test_of_many_frames_eight_evenly_spread_ones_are_shown(n, shown):
    """8 frames in training (§2.1); the others are not read."""
    files = {f"run/{i}.png": i if i in shown else b"never read" for i in range(n)}
    (sample,) = read(Videos(), {**files, "run.txt": "a"}).values()
    assert np.array_equal(sample.pieces[0], np.concatenate([picture(i) for i in shown]))


def test_videos_side_by_side_do_not_mix():
    """Each folder is one."""
    files = {f"v/{v}/{t}.png": 2 * v + t for t in range(2) for v in range(3)}
    samples = read(Videos(), {**files, **{f"v/{v}.txt": "abc"[v] for v in range(3)}})
    assert [s.pieces[1] for s in samples.values()] == ["a", "b", "c"]
    assert all(np.array_equal(s.media[0][1:], picture(2 * v + 1)) for v, s in enumerate(samples.values()))


def test_a_folder_of_videos_may_be_a_video_itself():
    """A text belongs to the folder of its name; only if there is none, to the folder it lies in."""
    files = {"v/0.png": 0, "v/text.txt": "a", "v/run/0.png": 1, "v/run.txt": "b"}
    samples = read(Videos(), files)
    assert same(samples["v"], picture(0), "a", EOC) and same(samples["v/run"], picture(1), "b", EOC) and len(samples) == 2


def mp4(seconds: int) -> bytes:
    """So many seconds at 5 frames each, second t of grey 20 + 40 t. Needs PyAV."""
    av, file = pytest.importorskip("av"), io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for i in range(5 * seconds):
            grey = np.full((32, 32, 3), 20 + 40 * (i // 5), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def test_a_video_file_and_a_text_are_a_video():
    """One frame a second (§2.1), at most as many as asked for; beside others, in folders too."""
    files = {"v/run.mp4": mp4(5), "v/run.txt": "a", "fly.MP4": mp4(1), "fly.json": {"caption": "b"}}
    samples = read(Videos(frames=3), files)
    greys = {key: [float(frame.mean()) for frame in sample.media[0]] for key, sample in samples.items()}
    assert greys == {"v/run": pytest.approx([20, 100, 180], abs=4), "fly": pytest.approx([20], abs=4)}
    assert [sample.pieces[1] for sample in samples.values()] == ["a", "b"]


def test_a_damaged_video_file_is_a_broken_sample():
    """It is skipped and counted, like a damaged picture."""
    pytest.importorskip("av")
    with pytest.raises(ValueError, match=r"run\.mp4 is no video, or damaged"):
        read(Videos(), {"run.mp4": b"no film", "run.txt": "a"})
    with pytest.raises(ValueError, match=r"one film in several files: mp4, avi"):
        read(Videos(), {"run.mp4": b"1", "run.avi": b"2", "run.txt": "a"})


# ----------------------------------------------------------------------------------------------------------- documents


@pytest.mark.parametrize("place", ["cats/7/dog.png", "cats/dog.png", "cats/7.dog.png", "dog.png"])
def test_a_documents_images_lie_beside_it(place):
    """In a folder of its own, in its folder, under its name, or anywhere by their whole name."""
    document = {"texts": ["a", None, "b"], "images": [None, "dog.png", None]}
    (sample,) = read(Documents(LETTERS), {"cats/7.json": document, place: 5}).values()
    assert same(sample, "a", EOC, picture(5), "b", EOC) and sample.bos


def test_a_document_with_its_images_inside():
    """MMC4 as OpenFlamingo packs it."""
    info = [{"image_base64": base64_of(5), "image_name": "x", "matched_text_index": 1, "matched_sim": 0.3}]
    document = {"text_list": ["a", "b"], "image_info": info}
    (sample,) = read(Documents(LETTERS), {"7.json": document}).values()
    assert same(sample, "a", EOC, picture(5), "b", EOC)
    assert read(Documents(LETTERS, threshold=0.31), {"7.json": document}) == {"7": None}  # no image is left


def test_a_page_of_images_or_text_alone_teaches_nothing():
    """The bridge learns from both, or not at all."""
    assert read(Documents(LETTERS), {"7.json": {"texts": ["a"], "images": [None]}}) == {"7": None}
    assert read(Documents(LETTERS), {"7.json": {"texts": [None], "images": ["8.png"]}, "8.png": 8}) == {"7": None}


def test_a_documents_window_is_as_long_as_was_asked_for():
    """L, N and p_next are the reader's; the window is another each time."""
    document = {"texts": [None, "abcdefgh"] * 4, "images": [x for i in range(4) for x in (f"{i}.png", None)]}
    files = {"7.json": document, **{f"7/{i}.png": i for i in range(4)}}
    reader = Documents(LETTERS, length=12, max_images=1, p_next=1.0)
    samples = [read(reader, files, seed)["7"] for seed in range(20)]
    assert all(len(lay_out(s, LETTERS, lambda p: p).ids) <= 12 and len(s.media) == 1 and s.attend_next for s in samples)
    assert len({str(s) for s in samples}) > 5


def test_a_name_leads_nowhere_but_into_the_shard():
    """Whoever reads a document may not have written it."""
    for name in ("/etc/hostname", "../../etc/hostname", "", ".", "\0"):
        with pytest.raises(ValueError, match="there is no such file in the shard"):
            read(Documents(LETTERS), {"7.json": {"texts": [None, "a"], "images": [name, None]}})
