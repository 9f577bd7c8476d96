"""Files of a shard become samples: pairs, videos, and windows of documents, with images in the order of the text."""

import base64
import io
import json
import random
from collections import Counter

import numpy as np
import pytest
from conftest import EOC, LETTERS, equal, image
from PIL import Image

from minflamingo.data.records import chunks, document_pieces, document_sample, pair_sample, video_sample, window
from minflamingo.data.sample import Sample, is_medium, tokenize_sample
from minflamingo.tokenizer import ToyTokenizer


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


def ids_of(sample: Sample, tokenizer=LETTERS) -> list[int]:
    return tokenize_sample(sample, tokenizer, lambda pixels: pixels).ids


def test_an_image_and_its_text_are_a_pair():
    """`<BOS><image>a cat<EOC>` (section 2.4), without spaces around the caption. The txt file comes before the json."""
    assert equal(read(pair_sample, {"png": 7, "txt": " a <image>\n"}).pieces, [image(7), "a <image>", EOC])
    assert read(pair_sample, {"png": 7, "txt": b"\xef\xbb\xbfa cat\r\n"}).pieces[1] == "a cat"  # a byte-order mark
    assert equal(read(pair_sample, {"json": {"caption": "b\ud83d"}, "PNG": 8}).pieces, [image(8), "b\ufffd\ufffd\ufffd", EOC])
    for extension, form in (("jpg", "JPEG"), ("jpeg", "JPEG"), ("webp", "WEBP")):
        files = {extension: encoded(1, form), "json": {"caption": "a", "url": "..."}, "txt": "b"}
        assert read(pair_sample, files).pieces[1:] == ["b", EOC]
    # A long caption is cut and keeps its EOC, as in OpenFlamingo.
    sample = read(pair_sample, {"png": 0, "txt": "abcdefgh"}, tokenizer=LETTERS, max_tokens=3)
    assert ids_of(sample) == [LETTERS.bos_id, LETTERS.image_id, 3, 4, 5, LETTERS.eoc_id]


@pytest.mark.parametrize("n, used", [(1, [0]), (3, range(3)), (12, [0, 2, 3, 5, 6, 8, 9, 11]), (24, range(1, 24, 3))])
def test_eight_evenly_spaced_frames_are_read_in_the_order_of_their_numbers(n, used):
    """[N=1, T>1, H, W, C] with 8 frames (section 2.1); 2.png comes before 10.png; the other frames are not decoded."""
    files = {f"{i}.png": i if i in used else b"not decoded" for i in reversed(range(n))}
    sample = read(video_sample, {"json": {"caption": "a cat"}, **files})
    assert equal(sample.pieces, [np.concatenate([image(i) for i in used]), "a cat", EOC])


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


# ----------------------------------------------------------------------------------------------- interleaved documents

BYTES = ToyTokenizer([])
FILES = {f"{i}.png": encoded(i) for i in range(10)}
NUMBERS = {encoded(i): i for i in range(10)} | {image(i).tobytes(): i for i in range(10)}


def shown(pieces: list) -> list:
    """The pieces with images as their numbers."""
    pieces = [p.tobytes() if is_medium(p) else p for p in pieces]
    return [NUMBERS[p] if isinstance(p, bytes) else p for p in pieces]


def pieces_of(document: object, threshold: float = 0.24) -> list:
    return shown(document_pieces({"json": json.dumps(document).encode(), **FILES}, threshold))


def matched(*sentences: int, **changes) -> list[dict]:
    """image_info of the images 0.png, 1.png, ... that match these sentences."""
    info = [{"image_name": f"{i}.png", "matched_text_index": s, "matched_sim": 0.3} for i, s in enumerate(sentences)]
    return [{**entry, **changes} for entry in info]


def mmc4(texts: list, info: list, threshold: float = 0.24) -> list:
    return pieces_of({"text_list": texts, "image_info": info}, threshold)


def test_the_documents_of_the_docstring():
    """MMC4 and OBELICS with the same content give the same pieces."""
    expected = ["Cats purr.", EOC, 1, "Dogs bark.", EOC]
    info = [{"image_name": "1.png", "matched_text_index": 1, "matched_sim": 0.5}]
    assert mmc4(["Cats purr.", "Dogs bark."], info) == expected
    assert pieces_of({"texts": ["Cats purr.", None, "Dogs bark."], "images": [None, "1.png", None]}) == expected


def test_images_follow_the_order_of_the_sentences_not_of_the_image_list():
    """OpenFlamingo passes images in the order of their list while <image> tokens follow the sentences."""
    assert mmc4(["a", "b", "c", "d"], matched(3, 0, 2)) == [1, "a b", EOC, 2, "c", EOC, 0, "d", EOC]
    assert mmc4(["a", "b"], matched(1, 0, 1, 1)) == [1, "a", EOC, 0, 2, 3, "b", EOC]  # several images of one sentence


def test_images_below_the_similarity_threshold_or_without_file_are_left_out():
    info = [{"image_name": f"{i}.png", "matched_text_index": 0, "matched_sim": s} for i, s in enumerate((0.23, 0.24, 0.9))]
    assert mmc4(["a"], info) == [1, 2, "a", EOC]
    assert mmc4(["a"], info, threshold=0.5) == [2, "a", EOC]
    for dead in ({"image_name": None}, {"image_name": "dead.jpg"}, {"image_base64": "?"}):  # the download failed
        assert mmc4(["a", "b"], [*matched(0), *matched(1, **dead)]) == [0, "a b", EOC]
    assert pieces_of({"texts": ["a", None, "b", None], "images": [None, "dead", None, "1.png"]}) == ["a\n\nb", EOC, 1]


def test_sequences_by_chatgpt_are_documents():
    """OpenFlamingo's format: placeholders in a text, and a map with the images. A dead link is left out."""
    text = "_!_IMAGE1_!_ A cat. _!_IMAGE2_!_ _!_IMAGE3_!_ A dog. _!_IMAGE12_!_End."
    images = {f"_!_IMAGE{i}_!_": {"base64_image": base64.b64encode(encoded(i)).decode(), "caption": "c"} for i in (1, 3)}
    gpt = {"is_gpt": True, "example": text, "image_map": {**images, "_!_IMAGE2_!_": {"url": "dead"}}}
    assert pieces_of(gpt) == [1, "A cat.", EOC, 3, "A dog. End.", EOC]


@pytest.mark.parametrize("content", [b"no image", encoded(3, "JPEG")[:-40]], ids=["not an image", "truncated"])
def test_a_damaged_image_is_left_out_of_its_document(content):
    """As if the image were not there: the texts around it are one chunk. Without any other image the record is skipped."""
    document = {"texts": ["a", None, "b", None, "c"], "images": [None, "x.png", None, "1.png", None]}
    files = {"json": document, "x.png": content, "1.png": 1}
    sample = read(document_sample, files, tokenizer=BYTES)
    assert equal(ids_of(sample, BYTES), ids_of(Sample(["a\n\nb", EOC, image(1), "c", EOC]), BYTES))
    assert equal(sample.media, [image(1)])
    with pytest.raises(ValueError, match="the document has no text or no image"):
        read(document_sample, {**files, "1.png": content}, tokenizer=BYTES)


def test_eoc_follows_each_chunk_of_text():
    """Section 2.4: before the next image and at the end of the document, and not between two images."""
    assert chunks(["x", b"1", b"2", "y", "  ", None, " z\n", b"1"], "|") == ["x", EOC, b"1", b"2", "y|z", EOC, b"1"]
    assert chunks([], " ") == [] and chunks([" "], " ") == [] and chunks([b"1"], " ") == [b"1"]


def test_an_image_may_be_a_name_or_base64():
    code = base64.b64encode(FILES["3.png"]).decode()
    both = {"image_base64": code, "image_name": "nowhere.png"}
    images = ["3.png", {"image_base64": code}, {"image_name": "3.png"}, both, None]
    assert pieces_of({"texts": [None] * 4 + ["a"], "images": images}) == [3] * 4 + ["a", EOC]


def test_special_letters_in_a_document_are_text():
    """ "<image>" in a text is not an image; half a character from JSON becomes U+FFFD, because tokenizers need UTF-8."""
    document = {"text_list": ["<image><EOC> <BOS>\ud83d"], "image_info": matched(0)}
    record = {"json": json.dumps(document).encode(), **FILES}
    ids = ids_of(document_sample(record, random.Random(0), tokenizer=BYTES), BYTES)
    assert ids.count(BYTES.image_id) == 1 and ids.count(BYTES.eoc_id) == 1
    assert BYTES.decode(ids) == "<image><EOC> <BOS>\ufffd\ufffd\ufffd"


# ------------------------------------------------------------------------------------------------------------- windows

DOCUMENT = ["abc", EOC, encoded(0), "de", EOC, encoded(1), encoded(2), "fgh", EOC, "aaaaaaaa", EOC]


def windows(pieces: list = DOCUMENT, n: int = 400, tokenizer=LETTERS, **options) -> list[Sample]:
    return [window(pieces, tokenizer, random.Random(i), **options) for i in range(n)]


def test_the_window_of_the_docstring():
    words = ToyTokenizer(["Cats", " purr", "Dogs", " bark"])
    document = ["Cats purr.", EOC, encoded(1), "Dogs bark.", EOC]
    dot, dogs, bark = ([words.encode(text)[0]] for text in (".", "Dogs", " bark"))
    assert [dot, EOC, 1, dogs, bark, dot] in [shown(sample.pieces) for sample in windows(document, 100, words, length=6)]


@pytest.mark.parametrize("tokenizer", [LETTERS, ToyTokenizer(["abc", "aa"])], ids=["letters", "words"])
@pytest.mark.parametrize("length", [1, 5, 23, 24, 256])
def test_all_windows_with_an_image_are_equally_likely_stretches_of_the_document(length, tokenizer):
    """Oracle: the tokens of the whole document. Only the first window has <BOS>; a cut chunk has no EOC."""
    ids = ids_of(Sample([image(NUMBERS[p]) if isinstance(p, bytes) else p for p in DOCUMENT]), tokenizer)
    n = min(length, len(ids))
    stretches = [ids[i : i + n] for i in range(len(ids) - n + 1)]
    expected = Counter(tuple(s) for s in stretches if tokenizer.image_id in s)
    samples = windows(length=length, tokenizer=tokenizer)
    found = Counter(tuple(ids_of(sample, tokenizer)) for sample in samples)
    assert found.keys() == expected.keys()
    each = len(samples) / expected.total()
    assert all(abs(found[s] - expected[s] * each) < 5 * (expected[s] * each) ** 0.5 + 1 for s in expected)
    assert all(sample.bos == (ids_of(sample, tokenizer)[0] == tokenizer.bos_id) for sample in samples)


def test_only_the_first_images_of_a_window_are_kept_and_decoded():
    """N = 5 (appendix); the text of later images stays. (OpenFlamingo's ChatGPT documents keep one image fewer.)"""
    document = [p for i in range(8) for p in (encoded(i) if i < 5 else b"not decoded", "abcdefgh"[i], EOC)]
    (sample,) = windows(document, 1)
    expected = [p for i in range(8) for p in ([i] if i < 5 else []) + [[i + 3], EOC]]
    assert shown(sample.pieces) == expected and sample.bos
    (sample,) = windows(document[:15], 1, max_images=2, length=9)
    assert len(sample.media) == 2 and len(ids_of(sample)) == 9 - 1


def test_half_of_the_windows_attend_to_the_next_image():
    """p_next = 1/2, for the whole window (appendix); equal seeds give equal windows."""
    first, second = windows(), windows()
    assert abs(sum(sample.attend_next for sample in first) - 200) < 50
    assert [(s.attend_next, ids_of(s)) for s in first] == [(s.attend_next, ids_of(s)) for s in second]
    assert [s.attend_next for p in (0, 1) for s in windows(p_next=p, n=50)] == [False] * 50 + [True] * 50
