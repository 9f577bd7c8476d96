"""Files of a shard become samples: pairs, videos and documents."""

import base64
import io
import json
import random

import numpy as np
import pytest
from conftest import EOC, LETTERS, image
from PIL import Image

from minflamingo.data.records import Documents, Pairs, Record, Videos
from minflamingo.data.sample import Sample, tokenize_sample


class Files(dict):
    """A shard in memory: name -> bytes."""

    def read(self, name: str) -> bytes:
        return self[name]


def encoded(i: int, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(image(i)[0]).save(file, format=form)
    return file.getvalue()


def read(reader, files: dict[str, object], seed: int = 0) -> dict[str, Sample | None]:
    """All records in these files: text and objects (JSON) are encoded, a number is that image."""
    encode = {int: encoded, str: str.encode, bytes: bytes, dict: lambda v: json.dumps(v).encode()}
    shard = Files({name: encode[type(content)](content) for name, content in files.items()})
    return {key: reader(Record(key, found, shard), random.Random(seed)) for key, found in reader.group(shard).items()}


def same(sample: Sample, *pieces: object) -> bool:
    equal = [np.array_equal(a, b) if isinstance(b, np.ndarray) else a == b for a, b in zip(sample.pieces, pieces)]
    return all(equal) and len(sample.pieces) == len(pieces)


def test_an_image_and_its_text_are_a_pair():
    """`<BOS><image>a cat<EOC>` (section 2.4), without spaces around the caption. The txt file comes before the json."""
    samples = read(Pairs(), {"cats/7.png": 7, "cats/7.txt": " a <image>\n", "cats/8.json": {"caption": "b"}, "cats/8.PNG": 8})
    assert same(samples["cats/7"], image(7), "a <image>", EOC) and same(samples["cats/8"], image(8), "b", EOC)
    for extension, form in (("jpg", "JPEG"), ("jpeg", "JPEG"), ("webp", "WEBP")):
        files = {f"0.{extension}": encoded(1, form), "0.json": {"caption": "a", "url": "..."}, "0.txt": "b"}
        assert read(Pairs(), files)["0"].pieces[1:] == ["b", EOC]


def test_files_are_grouped_as_in_webdataset():
    """The first dot of a name separates key and extension. Oracle: the library that writes most such tars."""
    names = ["a/b.c/7.jpg", "a/b.c/7.txt", "7.jpg", "7.seg.png", "x/7.jpg", "x/7.tar.gz", "x/noending", "8.JPG", "a b/ü.txt"]
    hidden = ["x/._7.jpg", "x/.hidden", "._7.json", ".DS_Store"]  # macOS writes such files; webdataset makes samples of some
    assert Pairs().group(hidden) == Videos().group(hidden) == Documents(LETTERS).group(hidden) == {}
    oracle = pytest.importorskip("webdataset.tariterators").base_plus_ext
    expected: dict = {}
    for name in names:
        key, extension = oracle(name)
        if key and extension:
            expected.setdefault(key, {})[extension.lower()] = name
    assert Pairs().group(names) == expected


def test_a_long_caption_is_cut_and_keeps_its_eoc():
    """OpenFlamingo cuts captions at 32 tokens, EOC included."""
    for limit, text in ((4, "a"), (6, "abc"), (11, "abcdefgh"), (None, "abcdefgh")):
        (sample,) = read(Pairs(LETTERS, limit), {"0.png": 0, "0.txt": "abcdefgh"}).values()
        assert same(sample, image(0), text, EOC)
        assert limit is None or len(tokenize_sample(sample, LETTERS, lambda p: p).ids) <= limit
    for wrong in (lambda: Pairs(max_tokens=32), lambda: Videos(LETTERS, max_tokens=3)):
        with pytest.raises(ValueError, match="max_tokens needs a tokenizer and must be at least 4"):
            wrong()


def test_records_that_are_not_useful_give_none():
    """An empty caption (its image is not read), or a document without images or without text."""
    assert read(Pairs(), {"0.png": b"not an image", "0.txt": " \n"}) == {"0": None}
    assert read(Videos(), {"0/1.png": b"not an image", "0.txt": ""}) == {"0": None}
    assert read(Documents(LETTERS), {"7.json": {"texts": ["a"], "images": [None]}}) == {"7": None}
    assert read(Documents(LETTERS), {"7.json": {"texts": [None], "images": ["8.png"]}, "8.png": 8}) == {"7": None}


CUT = encoded(1, "JPEG")[:-40]
BROKEN = {
    "no image": (Pairs(), {"0.txt": "a"}, "a pair needs one image"),
    "two images": (Pairs(), {"0.png": 1, "0.jpg": 1, "0.txt": "a"}, "found jpg, png, txt"),
    "no text": (Pairs(), {"0.png": 1, "0.cls": "3"}, "neither a txt nor a json next to cls, png"),
    "a text that is not UTF-8": (Pairs(), {"0.png": 1, "0.txt": b"\xff\xfe"}, "utf-8"),
    "a truncated image": (Pairs(), {"0.jpg": CUT, "0.txt": "a"}, r"'0\.jpg': not an image.*or damaged"),
    "not an image": (Pairs(), {"0.jpg": b"<html>404</html>", "0.txt": "a"}, r"'0\.jpg': not an image"),
    "half a json": (Pairs(), {"0.png": 1, "0.json": b'{"caption": "a'}, "the json is not valid"),
    "a json nested too deep": (Pairs(), {"0.png": 1, "0.json": b"[" * 100_000}, "the json is not valid"),
    "a json without caption": (Pairs(), {"0.png": 1, "0.json": {}}, "caption must be a string, not None"),
    "a video without frames": (Videos(), {"0.txt": "a"}, "a video needs image files or a list of frames"),
    "frames that are a string": (Videos(), {"0.json": {"caption": "a", "frames": "0.png"}}, "a list of frames"),
    "a frame that is null": (Videos(), {"0.json": {"caption": "a", "frames": [{}]}}, "without null"),
    "a missing frame": (Videos(), {"0.json": {"caption": "a", "frames": ["z.png"]}}, r"'z\.png': there is no such file"),
    "two video files": (Videos(), {"run.mp4": b"1", "run.avi": b"2", "run.txt": "a"}, "one video in several files: mp4, avi"),
    "a file outside the shard": (
        Documents(LETTERS), {"7.json": {"texts": [None, "a"], "images": ["../../etc/hostname", None]}}, "no such file in the",
    ),
    "base64 that is not valid": (
        Documents(LETTERS), {"0.json": {"texts": [None, "a"], "images": [{"image_base64": "é"}, None]}}, r"images\[0\]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("reader, files, message", BROKEN.values(), ids=BROKEN)
def test_a_broken_record_raises_a_value_error_with_the_reason(reader, files, message):
    with pytest.raises(ValueError, match=message):
        read(reader, files)


inside = {"caption": "a cat", "frames": [{"image_base64": base64.b64encode(encoded(i)).decode()} for i in range(3)]}
VIDEOS = {
    "a folder and a text next to it": {"v/run/0.png": 0, "v/run/1.png": 1, "v/run/2.png": 2, "v/run.txt": "a cat"},
    "a folder with the text in it": {"run/0.png": 0, "run/1.png": 1, "run/2.png": 2, "run/caption.txt": "a cat"},
    "numbered extensions": {"v/run.0.png": 0, "v/run.1.png": 1, "v/run.2.png": 2, "v/run.json": {"caption": "a cat"}},
    "a list of frames": {
        "run.json": {"caption": "a cat", "frames": ["f0.png", "f1.png", "run/f2.png"]},
        "run.f0.png": 0, "run.f1.png": 1, "run/f2.png": 2,
    },
    "frames in the json": {"run.json": inside},
}  # fmt: skip


@pytest.mark.parametrize("files", VIDEOS.values(), ids=VIDEOS)
def test_frames_and_a_text_are_a_video(files):
    """[N=1, T>1, H, W, C] (section 2.4), for any order of the files."""
    for order in (list, reversed):
        (sample,) = read(Videos(), dict(order(list(files.items())))).values()
        assert same(sample, np.concatenate([image(i) for i in range(3)]), "a cat", EOC)


@pytest.mark.parametrize("n, used", [(1, [0]), (8, range(8)), (12, [0, 2, 3, 5, 6, 8, 9, 11]), (24, range(1, 24, 3))])
def test_eight_evenly_spaced_frames_are_read_in_the_order_of_their_numbers(n, used):
    """8 frames in training (section 2.1); 2.png comes before 10.png; the other frames are not read."""
    files = {f"run/{i}.png": i if i in used else b"not read" for i in range(n)}
    (sample,) = read(Videos(), {**files, "run.txt": "a"}).values()
    assert np.array_equal(sample.pieces[0], np.concatenate([image(i) for i in used]))


def test_a_text_belongs_to_the_folder_of_its_name():
    """Only if there is none, it belongs to the folder that contains it."""
    files = {"v/0.png": 0, "v/text.txt": "a", "v/run/0.png": 1, "v/run.txt": "b", "v/go/0.png": 2, "v/go.txt": "c"}
    samples = read(Videos(), files)
    texts = {key: sample.pieces[1] for key, sample in samples.items()}
    assert texts == {"v": "a", "v/run": "b", "v/go": "c"}


def test_video_files_give_one_frame_per_second():
    av, file = pytest.importorskip("av"), io.BytesIO()
    with av.open(file, "w", format="mp4") as container:  # 5 seconds of 5 frames; second t is grey 20 + 40 t
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for i in range(25):
            grey = np.full((32, 32, 3), 20 + 40 * (i // 5), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    for frames, greys in ((8, [20, 60, 100, 140, 180]), (3, [20, 100, 180])):
        sample = read(Videos(frames=frames), {"v/run.MP4": file.getvalue(), "v/run.txt": "a"})["v/run"]
        assert [float(frame.mean()) for frame in sample.media[0]] == pytest.approx(greys, abs=4)
    with pytest.raises(ValueError, match=r"run\.mp4: not a video, or damaged"):
        read(Videos(), {"run.mp4": b"not a video", "run.txt": "a"})


@pytest.mark.parametrize("path", ["cats/7/dog.png", "cats/dog.png", "cats/7.dog.png", "dog.png"])
def test_images_of_a_document_are_next_to_it(path):
    """In its own folder, in the same folder, with its name as prefix, or at the full path."""
    document = {"texts": ["a", None, "b"], "images": [None, "dog.png", None]}
    (sample,) = read(Documents(LETTERS), {"cats/7.json": document, path: 5}).values()
    assert same(sample, "a", EOC, image(5), "b", EOC) and sample.bos


def test_a_document_has_a_new_window_each_time_with_the_readers_options():
    document = {"texts": [None, "abcdefgh"] * 4, "images": [x for i in range(4) for x in (f"{i}.png", None)]}
    files = {"7.json": document, **{f"7/{i}.png": i for i in range(4)}}
    reader = Documents(LETTERS, length=12, max_images=1, p_next=1.0)
    samples = [read(reader, files, seed)["7"] for seed in range(20)]
    assert all(len(tokenize_sample(s, LETTERS, lambda p: p).ids) <= 12 and len(s.media) == 1 and s.attend_next for s in samples)
    assert len({str(s) for s in samples}) > 5
