"""What the language model remembers: a growing text is written into the room behind it, and nobody else's is written over."""

from __future__ import annotations

import pytest
import torch
from conftest import random

from minflamingo.cache import ROOM, Kept, first_kept


def tokens(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of n tokens: two rows, three heads of width four."""
    return random(2, 3, n, 4, seed=seed), random(2, 3, n, 4, seed=seed + 100)


def holds(kept: Kept, *pieces: tuple[torch.Tensor, torch.Tensor]) -> bool:
    """Are these its keys and values, one piece behind the other?"""
    k, v = (torch.cat(parts, dim=2) for parts in zip(*pieces))
    return torch.equal(kept.k, k) and torch.equal(kept.v, v) and kept.length == k.shape[2]


@pytest.mark.parametrize("gradient", [False, True])
def test_what_is_appended_stands_behind_what_was_there(gradient):
    """In pieces of one token and of many, past the room's end; with a gradient through `torch.cat`, the plain twin."""
    pieces = [tokens(n, seed=n) for n in (5, 1, 2, ROOM - 3, 1, 3 * ROOM, 1)]
    with torch.set_grad_enabled(gradient):
        kept = first_kept(*pieces[0])
        for piece in pieces[1:]:
            kept = kept.append(*piece)
    assert holds(kept, *pieces)


@torch.no_grad()
def test_within_its_room_a_token_is_written_and_nothing_is_copied():
    """All of them stand in the memory of the first; a token more than there is room for moves out, into room for as many."""
    start = kept = first_kept(*tokens(5))
    for i in range(ROOM):
        kept = kept.append(*tokens(1, i))
        assert kept.k.data_ptr() == start.k.data_ptr() and kept.v.data_ptr() == start.v.data_ptr()
    moved = kept.append(*tokens(1))
    assert moved.k.data_ptr() != start.k.data_ptr() and moved.memory[0].shape[2] == 5 + ROOM + 1 + ROOM


@torch.no_grad()
def test_what_goes_on_from_the_same_place_twice_parts():
    """Two continuations of one prompt, and a third from the middle of the first: each is as if it were alone."""
    prompt, a, b, c, d = (tokens(n, seed=i) for i, n in enumerate((5, 1, 2, 1, 3)))
    start = first_kept(*prompt)
    one = start.append(*a)
    two = start.append(*b)
    further, other = one.append(*c), one.append(*d)
    assert holds(start, prompt) and holds(one, prompt, a) and holds(two, prompt, b)
    assert holds(further, prompt, a, c) and holds(other, prompt, a, d)


def test_what_a_gradient_needs_is_not_written_over():
    """A step that is to be differentiated leaves the memory of one that was not as it is, and the other way round."""
    prompt, a, b = tokens(5), tokens(1, 1), tokens(1, 2)
    with torch.no_grad():
        start = first_kept(*prompt)
    learning = start.append(*(x.requires_grad_() for x in a))
    with torch.no_grad():
        other = start.append(*b)
    learning.k.sum().backward()
    assert holds(learning, prompt, a) and holds(other, prompt, b) and torch.equal(a[0].grad, torch.ones_like(a[0]))


def test_what_was_made_in_inference_mode_goes_on_outside():
    """PyTorch allows nobody to write into it there: so it is copied."""
    prompt, a, b = tokens(5), tokens(1, 1), tokens(1, 2)
    with torch.inference_mode():
        start = first_kept(*prompt)
    with torch.no_grad():
        kept = start.append(*a).append(*b)
    assert holds(kept, prompt, a, b)


@torch.no_grad()
def test_selected_rows_take_their_tokens_along():
    """Repeated and reordered, as beams are."""
    k, v = tokens(5)
    kept = first_kept(k, v).select(torch.tensor([1, 1, 0]))
    assert torch.equal(kept.k, k[[1, 1, 0]]) and torch.equal(kept.v, v[[1, 1, 0]])
