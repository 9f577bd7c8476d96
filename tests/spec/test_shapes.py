"""Specification of `shapes.py`: one letter per axis, and errors that say which tensor is wrong."""

import pytest
import torch

from minflamingo.shapes import check_shape


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
