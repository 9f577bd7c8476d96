"""Samples: as batches (ids, labels, media, padding) and in JSON Lines files, where errors name the broken line."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import EOC, LETTERS, batch_of, close, enliven, equal, image, preprocess, random, tiny_flamingo
from PIL import Image

from minflamingo.data.readers import JsonlDataset, write_jsonl
from minflamingo.data.sample import NoLoss, Sample, TokenizedSample, collate, pack, tokenize_sample
from minflamingo.gated_xattn import media_index
from minflamingo.tokenizer import ToyTokenizer

PAD, BOS, END, IMAGE = LETTERS.pad_id, LETTERS.bos_id, LETTERS.eoc_id, LETTERS.image_id


def test_the_example_in_the_docstring_token_by_token():
    """`<BOS><image> a cat<EOC><image> a dog<EOC>` (section 2.4 and appendix): ids, labels and phi."""
    tokenizer = ToyTokenizer([" a", " cat", " dog"])
    batch = collate([Sample([image(1), " a cat", EOC, image(2), " a dog", EOC])], tokenizer, preprocess)
    a, cat, dog = 259, 260, 261
    assert batch.ids[0].tolist() == [1, 262, a, cat, 2, 262, a, dog, 2]
    assert batch.labels[0].tolist() == [-100, -100, a, cat, 2, -100, a, dog, 2]
    assert media_index(batch.ids == tokenizer.image_id)[0].tolist() == [0, 1, 1, 1, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("pad", ["left", "right"])
def test_loss_is_on_text_and_eoc_only(pad):
    """Section 2.4: no label on <image>, <BOS>, padding and NoLoss, which is only input."""
    batch = batch_of(["ab", image(1), NoLoss("cd"), "e", NoLoss(EOC), "f", EOC], ["g", EOC], pad=pad)
    assert batch.ids[0].tolist() == [BOS, 3, 4, IMAGE, 5, 6, 7, END, 8, END] and batch.attention_mask[0].all()
    assert batch.labels[0].tolist() == [-100, 3, 4, -100, -100, -100, 7, -100, 8, END]
    assert sorted(batch.labels[1].tolist()) == [-100] * 8 + [END, 9]
    has_loss = batch.labels != -100
    assert torch.equal(batch.labels[has_loss], batch.ids[has_loss])
    assert not (has_loss & ~batch.attention_mask).any()


@pytest.mark.parametrize("pad, row", [("right", [6, PAD, PAD]), ("left", [PAD, PAD, 6])])
def test_padding_is_on_the_given_side_and_bos_and_attend_next_are_properties_of_each_sample(pad, row):
    """Section 2.4: a window from the middle of a document has no <BOS>. p_next is chosen per sample."""
    batch = collate([Sample(["ab"]), Sample(["d"], attend_next=True, bos=False)], LETTERS, pad=pad)
    assert batch.ids.tolist() == [[BOS, 3, 4], row]
    assert batch.attention_mask.tolist() == [[True] * 3, [i != PAD for i in row]]
    assert batch.attend_next.tolist() == [False, True]


def test_media_are_in_the_order_of_their_tokens_and_padded_with_zeros():
    """(B, N, T, C, H, W): the n-th <image> is media n; zeros after short videos and rows with fewer media."""
    first, second, third = image(1, frames=3), image(2), torch.from_numpy(image(3, frames=2))
    batch = batch_of(["a", first, "b", second], ["c"], [third])
    assert batch.media.shape == (3, 2, 3, 3, 8, 8)
    assert batch.frames.tolist() == [[3, 1], [0, 0], [2, 0]]
    for b, n, pixels in ((0, 0, first), (0, 1, second), (2, 0, third)):
        assert torch.equal(batch.media[b, n, : len(pixels)], preprocess(pixels))
        assert not batch.media[b, n, len(pixels) :].any()
    assert not batch.media[1].any() and not batch.media[2, 1].any()
    assert batch_of(["a"], ["bc"]).media is None
    # Features are stacked without preprocessing.
    one, two = random(1, 5, 16, seed=1), random(3, 5, 16, seed=2)
    batch = collate([Sample([one, "a"]), Sample([two])], LETTERS)
    assert batch.media.shape == (2, 1, 3, 5, 16) and batch.frames.tolist() == [[1], [3]]
    assert torch.equal(batch.media[0, 0, :1], one) and torch.equal(batch.media[1, 0], two)


def test_packed_rows_are_stretches_of_the_samples():
    """Oracle: all samples of a row, one after the other, cut at the length."""
    drawn = []

    def draw() -> Sample:
        drawn.append(Sample([NoLoss("ab"), "cde"[: 1 + len(drawn) % 3], EOC]))
        return drawn[-1]

    ids, labels = pack(draw, 3, 13, LETTERS)
    assert ids.shape == labels.shape == (3, 13)
    samples = [tokenize_sample(s, LETTERS) for s in drawn]
    for row_ids, row_labels in zip(ids.tolist(), labels.tolist()):
        expected = TokenizedSample()
        while len(expected.ids) < 13:
            expected.ids += samples[0].ids
            expected.labels += samples.pop(0).labels
        assert row_ids == expected.ids[:13] and row_labels == expected.labels[:13]
    assert not samples


# ------------------------------------------------------------------------------------------------- JSON Lines datasets

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
    return equal(vars(a), vars(b))


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
    assert [json.loads(line)["id"] for line in (tmp_path / "documents.jsonl").open()] == ["x", "y"]
    for ids in (["x"], ["x", "y", "z"]):
        with pytest.raises(ValueError, match="zip"):
            write_jsonl([Sample(["a"]), Sample(["b"])], tmp_path / "cats.jsonl", ids=ids)


def test_the_loss_does_not_depend_on_the_side_of_the_padding():
    """The first token of a row follows padding or nothing, so it is not counted. Here it is text, without <BOS>."""
    flamingo, rows = enliven(tiny_flamingo()), (["abc", image(1), "de"], ["f", image(2), "b"])
    assert close(*(flamingo.loss(batch_of(*rows, pad=side, bos=False)) for side in ("left", "right")))


def test_the_loss_counts_only_tokens_that_the_model_can_generate():
    """Labels may be the ids everywhere, at padding and at <image> too."""
    flamingo, batch = enliven(tiny_flamingo()), batch_of(["abc", image(1), "de"], [image(2), "b"])
    assert close(flamingo.loss(replace(batch, labels=batch.ids)), flamingo.loss(batch))
