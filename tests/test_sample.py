"""Samples and batches: ids, labels, media and padding."""

import numpy as np
import pytest
import torch
from conftest import EOC, LETTERS, batch_of, image, preprocess, random

from minflamingo.data.sample import NoLoss, Sample, collate, pack, tokenize_sample
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
    """Section 2.4: no label on <image>, <BOS>, padding and NoLoss pieces. (flamingo-mini trains on padding.)"""
    batch = batch_of(["ab", image(1), NoLoss("cd"), "e", NoLoss(EOC), "f", EOC], ["g", EOC], pad=pad)
    assert batch.labels[0].tolist() == [-100, 3, 4, -100, -100, -100, 7, -100, 8, END]
    assert sorted(batch.labels[1].tolist()) == [-100] * 8 + [END, 9]
    has_loss = batch.labels != -100
    assert torch.equal(batch.labels[has_loss], batch.ids[has_loss])
    assert not (has_loss & ~batch.attention_mask).any()


def test_no_loss_text_is_still_input():
    plain, no_loss = batch_of(["ab", EOC]), batch_of([NoLoss("ab"), NoLoss(EOC)])
    assert torch.equal(plain.ids, no_loss.ids) and torch.equal(plain.attention_mask, no_loss.attention_mask)
    assert (no_loss.labels == -100).all()


def test_the_letters_of_a_special_token_are_text():
    """Only an image makes an <image> token; "<image>" in a caption is seven characters with a loss each."""
    tokenizer = ToyTokenizer([])
    batch = collate([Sample(["<image><EOC>"])], tokenizer)
    assert batch.media is None
    assert not {tokenizer.image_id, tokenizer.eoc_id} & set(batch.ids[0].tolist())
    assert tokenizer.decode(batch.ids[0]) == "<image><EOC>"
    assert (batch.labels[0, 1:] == batch.ids[0, 1:]).all()


@pytest.mark.parametrize("pad", ["left", "right"])
def test_shorter_samples_are_padded_on_the_given_side(pad):
    batch = batch_of(["abc"], ["d"], pad=pad)
    row = [PAD, PAD, BOS, 6] if pad == "left" else [BOS, 6, PAD, PAD]
    assert batch.ids.tolist() == [[BOS, 3, 4, 5], row]
    assert batch.attention_mask.tolist() == [[True] * 4, [i != PAD for i in row]]


def test_bos_and_attend_next_are_properties_of_each_sample():
    """Section 2.4: a window from the middle of a document has no <BOS>. p_next is chosen per sample."""
    batch = collate([Sample(["ab"]), Sample(["cd"], attend_next=True, bos=False)], LETTERS)
    assert batch.ids.tolist() == [[BOS, 3, 4], [5, 6, PAD]]
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
    alone = batch_of(["a"], ["bc"])
    assert alone.media is None and alone.frames is None


def test_features_are_stacked_without_preprocessing():
    one, two = random(1, 5, 16, seed=1), random(3, 5, 16, seed=2)
    batch = collate([Sample([one, "a"]), Sample([two])], LETTERS)
    assert batch.media.shape == (2, 1, 3, 5, 16) and batch.frames.tolist() == [[1], [3]]
    assert torch.equal(batch.media[0, 0, :1], one) and torch.equal(batch.media[1, 0], two)


def test_tokenized_samples_give_the_same_batch_as_samples():
    samples = [Sample(["ab", image(1), EOC]), Sample([image(2, frames=2), "c"], attend_next=True)]
    tokenized = [tokenize_sample(s, LETTERS, preprocess) for s in samples]
    a, b = collate(samples, LETTERS, preprocess), collate(tokenized, LETTERS)
    assert all(torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values()))


def test_packed_rows_are_stretches_of_the_samples():
    """Oracle: all samples of a row, one after the other, cut at the length."""
    drawn = []

    def draw() -> Sample:
        drawn.append(Sample([NoLoss("ab"), "cde"[: 1 + len(drawn) % 3], EOC]))
        return drawn[-1]

    ids, labels = pack(draw, 3, 13, LETTERS)
    assert ids.shape == labels.shape == (3, 13)
    rows = [tokenize_sample(s, LETTERS) for s in drawn]
    for row_ids, row_labels in zip(ids.tolist(), labels.tolist()):
        expected: tuple[list, list] = ([], [])
        while len(expected[0]) < 13:
            row = rows.pop(0)
            expected = (expected[0] + row.ids, expected[1] + row.labels)
        assert (row_ids, row_labels) == (expected[0][:13], expected[1][:13])
    assert not rows


NAN = torch.full((1, 5, 16), torch.nan)
BROKEN = {
    "float pixels": ([["a"], ["b", "c", image(1) / 255]], "sample 1, piece 2: media must be uint8 pixels .* float64"),
    "pixels of one frame without T": ([[image(1)[0]]], r"got uint8 of shape \(8, 8, 3\)"),
    "integer features": ([[torch.zeros(1, 5, 16, dtype=torch.long)]], r"got torch.int64 of shape \(1, 5, 16\)"),
    "two sizes": ([[image(1)], [image(2), np.zeros((1, 8, 12, 3), np.uint8)]], r"sample 1, image 1: shape \(1, 3, 8, 12\)"),
    "pixels and features": ([[image(1)], [random(1, 5, 16)]], r"sample 1, image 0: shape \(1, 5, 16\); .* \(3, 8, 8\)"),
    "no frames": ([[image(1, frames=0)]], "sample 0, image 0: shape .* T > 0 frames"),
    "NaN features": ([["a"], [random(1, 5, 16), NAN]], "sample 1, image 1: .* not finite"),
    "infinite features": ([[random(1, 5, 16)], [random(1, 5, 16) / 0]], "sample 1, image 0: .* not finite"),
    "no samples": ([], "0 samples"),
}  # fmt: skip


@pytest.mark.parametrize("rows, message", BROKEN.values(), ids=BROKEN)
def test_invalid_media_raise_an_error_that_names_sample_and_piece(rows, message):
    with pytest.raises(ValueError, match=message):
        batch_of(*rows)


def test_invalid_calls_raise_errors():
    with pytest.raises(TypeError, match="sample 0, piece 1: expected text, EOC or media, got int"):
        batch_of(["a", 5])
    with pytest.raises(ValueError, match="pad 'middle'"):
        batch_of(["a"], pad="middle")
    with pytest.raises(ValueError, match="sample 0, piece 0: pixels need image preprocessing"):
        collate([Sample([image(1)])], LETTERS)
    with pytest.raises(ValueError, match="sample 0: 1 <image> tokens but 0 images"):
        row = tokenize_sample(Sample([image(1)]), LETTERS, preprocess)
        row.media.clear()
        collate([row], LETTERS)
