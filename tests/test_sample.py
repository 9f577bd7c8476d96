"""Samples and batches: ids, labels, media and padding."""

import numpy as np
import pytest
import torch
from conftest import EOC, LETTERS, batch_of, image, preprocess, random

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


def test_features_are_stacked_without_preprocessing():
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


NAN = torch.full((1, 5, 16), torch.nan)
INVALID = {
    "float pixels": ([["a"], ["b", "c", image(1) / 255]], "sample 1, piece 2: media must be uint8 pixels .* float64"),
    "pixels of one frame without T": ([[image(1)[0]]], r"got uint8 of shape \(8, 8, 3\)"),
    "integer features": ([[torch.zeros(1, 5, 16, dtype=torch.long)]], r"got torch.int64 of shape \(1, 5, 16\)"),
    "two sizes": ([[image(1)], [image(2), np.zeros((1, 8, 12, 3), np.uint8)]], r"sample 1, image 1: shape \(1, 3, 8, 12\)"),
    "pixels and features": ([[image(1)], [random(1, 5, 16)]], r"sample 1, image 0: shape \(1, 5, 16\); .* \(3, 8, 8\)"),
    "no frames": ([[image(1, frames=0)]], "sample 0, image 0: shape .* T > 0 frames"),
    "NaN features": ([["a"], [random(1, 5, 16), NAN]], "sample 1, image 1: .* not finite"),
    "infinite features": ([[random(1, 5, 16)], [random(1, 5, 16) / 0]], "sample 1, image 0: .* not finite"),
    "a number": ([["a", 5]], "sample 0, piece 1: expected text, EOC or media, got int"),
    "no samples": ([], "0 samples"),
}  # fmt: skip


@pytest.mark.parametrize("rows, message", INVALID.values(), ids=INVALID)
def test_invalid_samples_raise_an_error_that_names_sample_and_piece(rows, message):
    with pytest.raises((TypeError, ValueError), match=message):
        batch_of(*rows)


def test_invalid_options_and_missing_media_raise_errors():
    with pytest.raises(ValueError, match="pad 'middle'"):
        batch_of(["a"], pad="middle")
    with pytest.raises(ValueError, match="sample 0, piece 0: pixels need image preprocessing"):
        collate([Sample([image(1)])], LETTERS)
    with pytest.raises(ValueError, match="sample 0: 1 <image> tokens but 0 images"):
        collate([TokenizedSample([IMAGE], [-100])], LETTERS)
