"""The small layers: `Linear` is `nn.Linear` whatever road it takes, RMSNorm and activations are their formulas."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from conftest import close, enliven, random
from torch import nn

from minflamingo import layers
from minflamingo.layers import ACTIVATIONS, FeedForward, Linear, LinearInTwo, RMSNorm, make_norm, squared_relu

WIDTHS = {"wide": (24, 56), "square": (24, 24), "narrow": (56, 24), "to one": (24, 1), "from one": (1, 24)}


def pair(widths: tuple[int, int], bias: bool) -> tuple[Linear, nn.Linear]:
    """Ours, and PyTorch's with the same weights."""
    ours, theirs = enliven(Linear(*widths, bias=bias)), nn.Linear(*widths, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("slow", [True, False], ids=["read slowly", "read quickly"])
@pytest.mark.parametrize("onednn", [True, False], ids=["oneDNN", "without oneDNN"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("widths", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("rows", [(1,), (1, 1), (2,), (2, 4), (8,), (9,), (3, 3), (300,), (2, 3, 50), ()])
def test_without_a_gradient_the_product_is_that_of_nn_linear(rows, widths, bias, onednn, slow, monkeypatch):
    """One row, a few, many; more channels out than in, or fewer; any number of axes; each road there is."""
    if not onednn:
        monkeypatch.setattr(layers, "_ONEDNN", None)
    monkeypatch.setattr(layers, "reads_slowly", lambda: slow)
    ours, theirs = pair(widths, bias)
    x = random(*rows, widths[0], seed=1)
    with torch.no_grad():
        assert close(ours(x), theirs(x)) and ours(x).shape == (*rows, widths[1])
    with torch.inference_mode():
        assert close(ours(x), theirs(x))


def test_its_input_need_not_lie_in_one_piece():
    """Transposed, every second channel, one row for all."""
    for widths in (WIDTHS["wide"], WIDTHS["narrow"]):
        ours, theirs = pair(widths, True)
        n = widths[0]
        for x in (random(n, 5).T, random(n, 30).T, random(4, 2 * n)[:, ::2], random(1, n).expand(6, n), random(9, 3, n)[:, 1]):
            with torch.no_grad():
                assert not x.is_contiguous() and close(ours(x), theirs(x))


@pytest.mark.parametrize("shape", [(0, 24), (2, 0, 24)])
def test_of_no_rows_it_makes_no_rows(shape):
    """A batch may be empty: no image at all, no answer longer than a token."""
    with torch.no_grad():
        assert Linear(24, 56)(torch.zeros(shape)).shape == (*shape[:-1], 56)


def test_with_a_gradient_it_is_nn_linear_bit_for_bit():
    """Training takes no other road: values, and gradients of input, weight and bias."""
    for rows in (1, 2, 8, 9, 300):
        ours, theirs = pair(WIDTHS["wide"], True)
        x, y = (random(rows, 24, seed=1).requires_grad_() for _ in range(2))
        a, b = ours(x), theirs(y)
        a.square().sum().backward()
        b.square().sum().backward()
        assert torch.equal(a, b) and torch.equal(x.grad, y.grad)
        assert all(torch.equal(p.grad, q.grad) for p, q in zip(ours.parameters(), theirs.parameters()))


@pytest.mark.parametrize("rows", [1, 4, 30])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_in_other_precisions_it_is_nn_linear_bit_for_bit(dtype, rows):
    """The quick roads are for fp32; double stays double, bfloat16 stays bfloat16."""
    ours, theirs = pair(WIDTHS["wide"], True)
    x = random(rows, 24).to(dtype)
    with torch.no_grad():
        out = ours.to(dtype)(x)
        assert out.dtype == dtype and torch.equal(out, theirs.to(dtype)(x))


@pytest.mark.parametrize("rows", [1, 4, 30])
def test_under_autocast_it_computes_in_what_autocast_says(rows):
    """Nobody who asks for bfloat16 gets fp32, or the next product would refuse the mixture."""
    for widths in WIDTHS.values():
        ours, theirs = pair(widths, True)
        x = random(rows, widths[0])
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert ours(x).dtype == torch.bfloat16 and torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("rows", [1, 4, 30])
def test_what_does_not_fit_is_refused_in_nn_linears_words(rows):
    """Another width, another precision: "mat1 and mat2 …", not the inside of a library."""
    for wrong in (random(rows, 23), random(rows, 24).double()):
        with torch.no_grad(), pytest.raises(RuntimeError, match="mat1 and mat2|same dtype"):
            Linear(24, 16)(wrong)


def test_the_quick_roads_are_taken(monkeypatch):
    """One row and eight: one product W·X with at least two columns; many rows, or a narrow matrix: oneDNN where there is it."""
    monkeypatch.setattr(layers, "reads_slowly", lambda: True)
    with torch.no_grad(), mock.patch("torch.mm", side_effect=torch.mm) as mm, mock.patch.object(layers, "_ONEDNN") as onednn:
        for rows, columns in ((1, 2), (2, 2), (8, 8)):
            Linear(24, 56)(random(rows, 24))
            assert mm.call_args.args[1].shape == (24, columns)
        assert mm.call_count == 3 and onednn.call_count == 0
        Linear(24, 56)(random(9, 24))
        Linear(56, 24)(random(1, 56))
        assert mm.call_count == 3 and onednn.call_count == 2


def test_where_one_row_is_read_quickly_few_rows_take_no_other_road(monkeypatch):
    """Neither W·X nor oneDNN, wide or narrow; nor do many. In between, 16 to 100, it is oneDNN."""
    monkeypatch.setattr(layers, "reads_slowly", lambda: False)
    with torch.no_grad(), mock.patch("torch.mm") as mm, mock.patch.object(layers, "_ONEDNN") as onednn:
        for rows in (1, 2, 8, 9, 15, 101, 300):
            Linear(24, 56)(random(rows, 24)), Linear(56, 24)(random(rows, 56))
        assert mm.call_count == onednn.call_count == 0
        for rows in (16, 100):
            Linear(24, 56)(random(rows, 24)), Linear(56, 24)(random(rows, 56))
        assert mm.call_count == 0 and onednn.call_count == 4


@pytest.mark.parametrize("linear, slow", [(3.0, True), (1.0, False), (0.5, False)])
def test_which_road_is_quick_is_found_by_trying(linear, slow, monkeypatch):
    """A clock by which `F.linear` takes so many times as long as W·X. Alike, it stays `F.linear`."""
    now = [0.0]
    monkeypatch.setattr(layers.F, "linear", lambda *_: now.__setitem__(0, now[0] + linear))
    monkeypatch.setattr(layers, "transposed", lambda *_: now.__setitem__(0, now[0] + 1.0))
    monkeypatch.setattr(layers.time, "perf_counter", lambda: now[0])
    assert layers.reads_slowly.__wrapped__() is slow


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("rows", [(1,), (2, 4), (40,), (3, 100)])
def test_two_products_of_one_matrix_are_the_halves_of_its_product(rows, gradient):
    """Rows of k, then rows of v: values, and the gradients of input and weight. Each half lies in one piece."""
    two, x, y = enliven(LinearInTwo(24, 32, bias=False)), *(random(*rows, 24, seed=1).requires_grad_() for _ in range(2))
    with torch.set_grad_enabled(gradient):
        halves, whole = two(x), F.linear(y, two.weight)
    assert close(torch.cat(halves, dim=-1), whole) and all(half.is_contiguous() for half in halves)
    if gradient:
        weight = random(*whole.shape, seed=2)
        ours = torch.autograd.grad((torch.cat(halves, dim=-1) * weight).sum(), (x, two.weight))
        theirs = torch.autograd.grad((whole * weight).sum(), (y, two.weight))
        assert all(close(a, b) for a, b in zip(ours, theirs, strict=True))


# --------------------------------------------------------------------------------------------------------- the others


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_is_pytorchs(dtype):
    """x / √(mean x² + ε) · w, in fp32 inside."""
    ours, x = enliven(RMSNorm(16, 1e-5)), random(3, 4, 16, seed=2)
    ours, x = ours.to(dtype), x.to(dtype)
    expected = ours.weight * F.rms_norm(x.float(), (16,), eps=1e-5).to(dtype)
    assert close(ours(x).float(), expected.float(), 1e-6)
    assert isinstance(make_norm("rmsnorm", 16, 1e-5), RMSNorm) and isinstance(make_norm("layernorm", 16, 1e-5), nn.LayerNorm)


def test_squared_relu_of_3_is_9_and_of_minus_3_zero():
    """The docstring's example; quick GELU is x · σ(1.702 x)."""
    assert ACTIVATIONS["sq_relu"](torch.tensor([3.0, -3.0])).tolist() == [9, 0]
    assert ACTIVATIONS["relu"](torch.tensor([3.0, -3.0])).tolist() == [3, 0]
    assert close(ACTIVATIONS["quick_gelu"](torch.tensor([1.0])), torch.tensor([1 / (1 + 2.718281828**-1.702)]))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_feed_forward_block_is_its_formula_and_leaves_its_input_alone(name, gated):
    """out(act(up(x))), or out(act(gate(x)) · up(x)): values and gradients, the activations that work in place too."""
    plain = {"relu": lambda x: x.clamp_min(0), "sq_relu": lambda x: x.clamp_min(0) ** 2}
    act = plain.get(name, ACTIVATIONS[name])
    block = enliven(FeedForward(6, 10, name, bias=True, gated=gated))
    x = random(2, 5, 6, seed=3).requires_grad_()
    before, params = x.detach().clone(), list(block.parameters())
    up = F.linear(x, block.up.weight, block.up.bias)
    hidden = act(F.linear(x, block.gate.weight, block.gate.bias)) * up if gated else act(up)
    expected = F.linear(hidden, block.out.weight, block.out.bias)
    out = block(x)
    assert close(out, expected) and torch.equal(x, before)
    ours, theirs = (torch.autograd.grad(y.square().sum(), [x, *params]) for y in (out, expected))
    assert all(close(a, b, 1e-4) for a, b in zip(ours, theirs, strict=True))
    with torch.no_grad():
        assert close(block(x), expected) and torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_squared_relu_and_its_gradient_are_the_formula(dtype):
    """relu(x)² and 2 relu(x), at negative numbers, zero and positive ones; one input in two places."""
    x = torch.tensor([-3.0, -0.5, 0.0, 0.5, 3.0], dtype=dtype)
    expected, slope = torch.tensor([0, 0, 0, 0.25, 9], dtype=dtype), torch.tensor([0, 0, 0, 1, 6], dtype=dtype)
    leaf = x.clone().requires_grad_()
    out = squared_relu(leaf * 1)
    (out * out).sum().backward()
    assert torch.equal(out, expected) and torch.equal(leaf.grad, 2 * expected * slope)
    with torch.no_grad():
        assert torch.equal(squared_relu(x.clone()), expected)


def test_squared_relu_keeps_one_tensor_for_its_gradient():
    """relu(x), in the place of x; PyTorch's own relu and square keep it and make three more on the way back."""
    kept, x = [], random(6, 7).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        product = x * 1.0
        squared_relu(product)
    assert kept == [product.data_ptr()]
