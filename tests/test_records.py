"""Files of a shard become samples: pairs and videos. Documents: test_documents.py."""

import io
import json
import random

import numpy as np
import pytest
from conftest import EOC, LETTERS, image
from PIL import Image

from minflamingo.data.records import pair_sample, video_sample
from minflamingo.data.sample import Sample, tokenize_sample


def encoded(i: int, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(image(i)[0]).save(file, format=form)
    return file.getvalue()


def record(files: dict[str, object]) -> dict[str, bytes]:
    """Text and objects (JSON) are encoded; a number is that image."""
    encode = {int: encoded, str: str.encode, bytes: bytes, dict: lambda v: json.dumps(v).encode()}
    return {name: encode[type(content)](content) for name, content in files.items()}


def read(reader, files: dict[str, object], **options) -> Sample:
    return reader(record(files), random.Random(0), **options)


def same(sample: Sample, *pieces: object) -> bool:
    equal = [np.array_equal(a, b) if isinstance(b, np.ndarray) else a == b for a, b in zip(sample.pieces, pieces)]
    return all(equal) and len(sample.pieces) == len(pieces)


def test_an_image_and_its_text_are_a_pair():
    """`<BOS><image>a cat<EOC>` (section 2.4), without spaces around the caption. The txt file comes before the json."""
    assert same(read(pair_sample, {"png": 7, "txt": " a <image>\n"}), image(7), "a <image>", EOC)
    assert same(read(pair_sample, {"json": {"caption": "b\ud83d"}, "PNG": 8}), image(8), "b\ufffd\ufffd\ufffd", EOC)
    for extension, form in (("jpg", "JPEG"), ("jpeg", "JPEG"), ("webp", "WEBP")):
        files = {extension: encoded(1, form), "json": {"caption": "a", "url": "..."}, "txt": "b"}
        assert read(pair_sample, files).pieces[1:] == ["b", EOC]


def test_a_long_caption_is_cut_and_keeps_its_eoc():
    """OpenFlamingo cuts captions at 32 tokens, EOC included."""
    sample = read(pair_sample, {"png": 0, "txt": "abcdefgh"}, tokenizer=LETTERS, max_tokens=3)
    ids = tokenize_sample(sample, LETTERS, lambda pixels: pixels).ids
    assert ids == [LETTERS.bos_id, LETTERS.image_id, 3, 4, 5, LETTERS.eoc_id]


BROKEN = {
    "no image": (pair_sample, {"txt": "a"}, "a pair needs one image"),
    "two images": (pair_sample, {"png": 1, "jpg": 1, "txt": "a"}, "found png, jpg, txt"),
    "no text": (pair_sample, {"png": 1, "cls": "3"}, "json"),
    "an empty text": (pair_sample, {"png": b"not read", "txt": " \n"}, "the caption is empty"),
    "a text that is not UTF-8": (pair_sample, {"png": 1, "txt": b"\xff\xfe"}, "utf-8"),
    "a truncated image": (pair_sample, {"jpg": encoded(1, "JPEG")[:-40], "txt": "a"}, "'jpg': not an image.*or damaged"),
    "half a json": (pair_sample, {"png": 1, "json": b'{"caption": "a'}, "Unterminated string"),
    "a json without caption": (pair_sample, {"png": 1, "json": {}}, "caption"),
    "a video without frames": (video_sample, {"txt": "a"}, "a video needs one or more frames"),
    "a file that is not a video": (video_sample, {"mp4": b"not a video", "txt": "a"}, "mp4.*PyAV|mp4: not a video, or damaged"),
}  # fmt: skip


@pytest.mark.parametrize("reader, files, message", BROKEN.values(), ids=BROKEN)
def test_a_broken_record_raises_an_error_with_the_reason(reader, files, message):
    with pytest.raises(Exception, match=message):
        read(reader, files)


@pytest.mark.parametrize("n, used", [(1, [0]), (3, range(3)), (12, [0, 2, 3, 5, 6, 8, 9, 11]), (24, range(1, 24, 3))])
def test_eight_evenly_spaced_frames_are_read_in_the_order_of_their_numbers(n, used):
    """[N=1, T>1, H, W, C] with 8 frames (section 2.1); 2.png comes before 10.png; the other frames are not decoded."""
    files = {f"{i}.png": i if i in used else b"not decoded" for i in reversed(range(n))}
    sample = read(video_sample, {"json": {"caption": "a cat"}, **files})
    assert same(sample, np.concatenate([image(i) for i in used]), "a cat", EOC)


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
        sample = read(video_sample, {"MP4": file.getvalue(), "txt": "a"}, frames=frames)
        assert [float(frame.mean()) for frame in sample.media[0]] == pytest.approx(greys, abs=4)
