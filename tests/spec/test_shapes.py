"""Specification of `shapes.py`: one letter per axis, and errors that say which tensor or value is wrong."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from minflamingo.flamingo import Batch
from minflamingo.shapes import check_batch, check_shape


def test_check_shape_returns_the_size_of_each_letter():
    """The first example of the module, and sizes of letters that the tensor does not have."""
    assert check_shape(torch.zeros(2, 8, 96), "B R D", "latents", D=96) == {"B": 2, "R": 8, "D": 96}
    assert check_shape(torch.zeros(0), "B", "x", B=0, D=7) == {"B": 0, "D": 7}


def test_the_error_names_the_tensor_the_expected_and_the_actual_shape():
    """The second example of the module, word for word."""
    with pytest.raises(ValueError) as error:
        check_shape(torch.zeros(2, 8, 96), "B R D", "latents", D=64)
    assert str(error.value) == "latents: expected shape (B, R, D=64), got (2, 8, 96)"


@pytest.mark.parametrize("shape", [(), (2,), (2, 8), (2, 8, 96, 1)])
def test_a_wrong_number_of_axes_is_an_error(shape):
    """One axis per letter."""
    with pytest.raises(ValueError, match=r"x: expected shape \(B, R, D\), got"):
        check_shape(torch.zeros(shape), "B R D", "x")


def test_a_letter_that_appears_twice_has_one_size():
    """(B, L, L) is square."""
    assert check_shape(torch.zeros(3, 5, 5), "B L L", "mask") == {"B": 3, "L": 5}
    with pytest.raises(ValueError, match="mask"):
        check_shape(torch.zeros(3, 5, 6), "B L L", "mask")


@pytest.mark.parametrize("x", [[0.5], np.zeros(1), torch.zeros(1, dtype=torch.long), torch.zeros(1).to_sparse()])
def test_a_value_of_another_type_is_an_error(x):
    """Lists, arrays, sparse tensors, and numbers of another type."""
    with pytest.raises(TypeError, match="x: expected a dense tensor of type torch.float32 or .*, got"):
        check_shape(x, "B", "x")


@pytest.mark.parametrize("field, value, message", [
    ("ids", [[9, -1, 5]], r"sample 0: ids\[1\] is -1; it must be 0 ... 9"),
    ("ids", [[9, 4, 10]], r"sample 0: ids\[2\] is 10; it must be 0 ... 9"),
    ("labels", [[-100, 5, 5]], r"sample 0: labels\[1\] is 5; it must be the id of the same token, or -100"),
    ("frames", [[3, 0]], r"sample 0: frames\[0\] is 3; it must be 0 ... 2"),
    ("frames", [[0, 1]], r"sample 0: frames\[0\] is 0; it must be 0 ... 2, and 0 only after the last image"),
    ("media", float("nan"), r"sample 0: the largest \|value\| of media\[0\] is nan; it must be finite"),
    ("media", 1e6, r"sample 0: the largest \|value\| of media\[0\] is 1000000.0; it must be finite, at most 65504"),
])  # fmt: skip
def test_check_batch_names_the_first_value_outside_its_range(field, value, message):
    """One <image> (id 9), a video of two frames, and a place for a second image that this sample does not have."""
    ids, media = torch.tensor([[9, 4, 5]]), torch.zeros(1, 2, 2, 5, 8)
    batch = Batch(ids, ids, torch.ones(1, 3, dtype=torch.bool), media, torch.tensor([[2, 0]]))
    check_batch(batch, image_id=9, n_ids=10)
    if field == "media":
        value = media.index_put((torch.tensor(0),) * 5, torch.tensor(value))
    changes = {field: torch.as_tensor(value)}
    batch = replace(batch, **changes, **({"labels": changes["ids"]} if field == "ids" else {}))
    with pytest.raises(ValueError, match=message):
        check_batch(batch, image_id=9, n_ids=10)
    with pytest.raises(ValueError, match=r"the batch is on cpu, but the model is on meta: use batch.to\(device\)"):
        check_batch(batch, image_id=9, weight=torch.zeros(1, device="meta"))
