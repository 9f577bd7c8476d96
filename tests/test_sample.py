"""Samples and batches: what becomes a token, what carries a loss, and what is only padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import EOC, LETTERS, batch_of, picture, prepare, random

from minflamingo.data.sample import Sample, Unscored, collate
from minflamingo.gated_xattn import media_index
from minflamingo.tokenizer import ToyTokenizer

PAD, BOS, END, IMAGE = LETTERS.pad_id, LETTERS.bos_id, LETTERS.eoc_id, LETTERS.image_id


def test_the_docstrings_example_token_by_token():
    """`<BOS><image> a cat<EOC><image> a dog<EOC>` (§2.4, prompts in the appendix): ids, labels and phi."""
    tokenizer = ToyTokenizer([" a", " cat", " dog"])
    sample = Sample([picture(1), " a cat", EOC, picture(2), " a dog", EOC])
    batch = collate([sample], tokenizer, prepare)
    a, cat, dog = 259, 260, 261
    assert batch.ids[0].tolist() == [1, 262, a, cat, 2, 262, a, dog, 2]
    assert batch.labels[0].tolist() == [-100, -100, a, cat, 2, -100, a, dog, 2]
    assert media_index(batch.ids == tokenizer.image_id)[0].tolist() == [0, 1, 1, 1, 1, 2, 2, 2, 2]


def test_there_is_a_loss_on_text_and_its_end_and_on_nothing_else():
    """§2.4: no label on <image>, <BOS>, padding or what is Unscored. (flamingo-mini trains on its padding.)"""
    rows = [["ab", picture(1), Unscored("cd"), "e", Unscored(EOC), "f", EOC], ["g", EOC]]
    for pad in ("left", "right"):
        batch = batch_of(*rows, pad=pad)
        assert batch.labels[0].tolist() == [-100, 3, 4, -100, -100, -100, 7, -100, 8, END]
        assert sorted(batch.labels[1].tolist()) == [-100] * 8 + [END, 9]
        scored = batch.labels != -100
        assert torch.equal(batch.labels[scored], batch.ids[scored])
        assert not (scored & ~batch.attention_mask).any()
        for special in (PAD, BOS, IMAGE):
            assert not (batch.labels == special).any()


def test_unscored_text_is_read_all_the_same():
    """It is in ids and attention, only not in the loss."""
    plain, unscored = batch_of(["ab", EOC]), batch_of([Unscored("ab"), Unscored(EOC)])
    assert torch.equal(plain.ids, unscored.ids) and torch.equal(plain.attention_mask, unscored.attention_mask)
    assert (unscored.labels == -100).all()


def test_the_letters_of_a_special_token_are_text():
    """The one way to <image> is a medium; "<image>" in a caption is seven characters with a loss each."""
    tokenizer = ToyTokenizer([])
    batch = collate([Sample(["<image><EOC>"])], tokenizer)
    assert batch.media is None
    assert not {tokenizer.image_id, tokenizer.eoc_id} & set(batch.ids[0].tolist())
    assert tokenizer.decode(batch.ids[0]) == "<image><EOC>"
    assert (batch.labels[0, 1:] == batch.ids[0, 1:]).all()


@pytest.mark.parametrize("pad", ["left", "right"])
def test_shorter_samples_are_padded_on_the_side_that_was_asked_for(pad):
    """Left for prompts, so that all end at the same place; right for training."""
    batch = batch_of(["abc"], ["d"], pad=pad)
    row = [PAD, PAD, BOS, 6] if pad == "left" else [BOS, 6, PAD, PAD]
    assert batch.ids.tolist() == [[BOS, 3, 4, 5], row]
    assert batch.attention_mask.tolist() == [[True] * 4, [i != PAD for i in row]]
    with pytest.raises(ValueError, match="pad is 'middle'; choose 'left' or 'right'"):
        batch_of(["a"], pad="middle")


def test_a_sequence_may_start_in_the_middle_of_a_document():
    """§2.4: a random subsequence of a page has no <BOS> of its own."""
    batch = batch_of(["ab", picture(1)], bos=False)
    assert batch.ids[0].tolist() == [3, 4, IMAGE]
    assert batch.labels[0].tolist() == [3, 4, -100]


def test_the_layout_is_a_choice_of_each_sample():
    """p_next: `attend_next` travels with its row."""
    batch = collate([Sample(["a"]), Sample(["b"], attend_next=True)], LETTERS)
    assert batch.attend_next.tolist() == [False, True]


def test_media_stand_in_the_order_of_their_tokens_with_their_frames_counted():
    """[N, T, H, W, C] → (B, N, T, C, H, W): the n-th <image> is medium n; zeros behind a video and behind a row."""
    first, second, third = picture(1, frames=3), picture(2), picture(3, frames=2)
    batch = batch_of(["a", first, "b", second], ["c"], [third])
    assert batch.media.shape == (3, 2, 3, 3, 8, 8)
    assert batch.frames.tolist() == [[3, 1], [0, 0], [2, 0]]
    for b, n, pixels in ((0, 0, first), (0, 1, second), (2, 0, third)):
        T = len(pixels)
        assert torch.equal(batch.media[b, n, :T], prepare(pixels))
        assert not batch.media[b, n, T:].any()
    assert not batch.media[1].any() and not batch.media[2, 1].any()


def test_a_batch_where_nothing_is_missing_is_a_plain_stack():
    """The same numbers by the short way."""
    pictures = [[picture(10 * b + n) for n in range(2)] for b in range(2)]
    batch = batch_of(*pictures)
    assert torch.equal(batch.media, torch.stack([torch.stack([prepare(p) for p in row]) for row in pictures]))
    assert batch.frames.tolist() == [[1, 1], [1, 1]]


def test_samples_without_any_medium_make_a_batch_without_media():
    """Text alone."""
    batch = batch_of(["a"], ["bc"])
    assert batch.media is None and batch.frames is None
    assert Sample(["a", picture(1), EOC]).media[0].shape == (1, 8, 8, 3)


def test_features_are_media_too():
    """(T, S, D) of a frozen eye, computed once beforehand: stacked as they are, without any preparation."""
    one, two = random(1, 5, 16, seed=1), random(3, 5, 16, seed=2)
    batch = collate([Sample([one, "a"]), Sample([two])], LETTERS)
    assert batch.media.shape == (2, 1, 3, 5, 16) and batch.frames.tolist() == [[1], [3]]
    assert torch.equal(batch.media[0, 0, :1], one) and torch.equal(batch.media[1, 0], two)


def test_tensors_of_pixels_are_media_as_arrays_are():
    """uint8 (T, H, W, C), whichever library made it."""
    assert torch.equal(batch_of([torch.from_numpy(picture(1))]).media, batch_of([picture(1)]).media)


@pytest.mark.parametrize(
    "piece, sentence",
    [
        (picture(1).astype(np.float32), r"got float32 of shape \(1, 8, 8, 3\)"),
        (picture(1)[0], r"got uint8 of shape \(8, 8, 3\)"),
        (torch.zeros(1, 5, 16, dtype=torch.long), r"got torch.int64 of shape \(1, 5, 16\)"),
        (np.zeros((1, 5, 16), np.float32), r"got float32 of shape \(1, 5, 16\)"),
    ],
)
def test_a_medium_of_another_kind_is_refused_by_sample_and_piece(piece, sentence):
    """Floats in 0…1 where bytes are expected would train without a word."""
    with pytest.raises(ValueError, match=rf"sample 1, piece 2: a medium is uint8 pixels .*{sentence}"):
        batch_of(["a"], ["b", "c", piece])


def test_a_piece_that_is_no_piece_is_refused_by_sample_and_piece():
    """An id, or a path, is neither text nor medium."""
    with pytest.raises(TypeError, match="sample 0, piece 1: expected text, EOC or a medium, got int"):
        batch_of(["a", 5])


def test_media_of_different_sizes_are_refused_by_sample_and_medium():
    """One batch, one size of pictures; pixels beside features are of different sizes too."""
    wide = np.zeros((1, 8, 12, 3), np.uint8)
    with pytest.raises(ValueError, match=r"sample 1, medium 1: size \(3, 8, 12\) beside \(3, 8, 8\)"):
        batch_of([picture(1)], [picture(2), "a", wide])
    with pytest.raises(ValueError, match=r"sample 1, medium 0: size \(5, 16\) beside \(3, 8, 8\)"):
        batch_of([picture(1)], [random(1, 5, 16)])


def test_pixels_without_a_preparation_empty_videos_and_empty_batches_are_refused():
    """Each with what is missing."""
    with pytest.raises(ValueError, match="sample 0, piece 0: pixels need an image preparation"):
        collate([Sample([picture(1)])], LETTERS)
    with pytest.raises(ValueError, match="sample 0, medium 0: a video of no frames"):
        batch_of([picture(1, frames=0)])
    with pytest.raises(ValueError, match="no samples"):
        collate([], LETTERS)


def test_eoc_is_one_object_with_a_name():
    """It is recognised by identity and prints as what it is."""
    assert repr(EOC) == "EOC" and repr(Sample(["a", EOC])).count("EOC") == 1
    assert batch_of(["a", EOC, EOC]).ids[0].tolist() == [BOS, 3, END, END]
