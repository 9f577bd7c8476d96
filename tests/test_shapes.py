"""The legend of letters, and errors that say which tensor was wrong."""

from __future__ import annotations

import pytest
import torch

from minflamingo.shapes import check_shape


def test_sizes_are_returned_by_letter():
    """The docstring's first example."""
    assert check_shape(torch.zeros(2, 8, 96), "B R D", "latents", D=96) == {"B": 2, "R": 8, "D": 96}


def test_the_error_names_the_tensor_what_was_expected_and_what_came():
    """The docstring's second example, to the letter."""
    with pytest.raises(ValueError) as error:
        check_shape(torch.zeros(2, 8, 96), "B R D", "latents", D=64)
    assert str(error.value) == "latents: expected shape (B, R, D=64), got (2, 8, 96)"


@pytest.mark.parametrize("shape", [(), (2,), (2, 8), (2, 8, 96, 1)])
def test_another_number_of_axes_is_an_error(shape):
    """One axis per letter, no more and no fewer."""
    with pytest.raises(ValueError, match=r"x: expected shape \(B, R, D\), got"):
        check_shape(torch.zeros(shape), "B R D", "x")


def test_a_letter_that_stands_twice_has_one_size():
    """A letter is a number: (L, L) is square."""
    assert check_shape(torch.zeros(3, 5, 5), "B L L", "mask") == {"B": 3, "L": 5}
    with pytest.raises(ValueError, match="mask"):
        check_shape(torch.zeros(3, 5, 6), "B L L", "mask")


def test_sizes_of_other_letters_are_passed_through():
    """So that one dictionary can carry the sizes from one check to the next."""
    assert check_shape(torch.zeros(3), "B", "x", D=7) == {"B": 3, "D": 7}


def test_an_empty_axis_is_a_size_like_any_other():
    """Zero is a size; it is not 'unknown'."""
    assert check_shape(torch.zeros(0, 4), "B D", "x", B=0)["B"] == 0
    with pytest.raises(ValueError):
        check_shape(torch.zeros(0, 4), "B D", "x", B=1)
