"""Specification of `layers.py`: norms, feed-forward block, rotary and ALiBi positions, causal convolution."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import close, enliven, random

from minflamingo.layers import ACTIVATIONS, CausalConv, FeedForward, alibi_slopes, make_norm, rotary_angles, rotate


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_divides_by_the_root_mean_square(dtype):
    """x / sqrt(mean(x^2) + eps) * w, in fp32 inside; PyTorch's function is the reference. MPT's LayerNorm has no bias."""
    norm, x = enliven(make_norm("rmsnorm", 16, 1e-5)).to(dtype), random(3, 4, 16, seed=2).to(dtype)
    expected = norm.weight * F.rms_norm(x.float(), (16,), eps=1e-5).to(dtype)
    assert close(norm(x).float(), expected.float(), 1e-6)
    assert make_norm("layernorm", 16, 0.5, bias=False).bias is None


def test_activations_by_hand():
    """Squared ReLU of 3 is 9 and of -3 is 0; quick GELU is x * sigmoid(1.702 x)."""
    x = torch.tensor([3.0, -3.0, 1.0])
    assert ACTIVATIONS["sq_relu"](x).tolist() == [9, 0, 1] and ACTIVATIONS["relu"](x).tolist() == [3, 0, 1]
    assert close(ACTIVATIONS["quick_gelu"](x[2]), torch.tensor(1 / (1 + math.exp(-1.702))))
    assert close(ACTIVATIONS["gelu"](x[2]), torch.tensor(0.5 * (1 + math.erf(1 / math.sqrt(2)))))
    assert close(ACTIVATIONS["silu"](x[2]), torch.tensor(1 / (1 + math.exp(-1))))


@pytest.mark.feed_forward(points=2)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_feed_forward_block_is_its_formula(name, gated):
    """Figures 4 and 5: out(act(up(x))), or with a gate out(act(gate(x)) * up(x))."""
    block, x = enliven(FeedForward(6, 10, name, bias=True, gated=gated)), random(2, 5, 6, seed=3)

    def linear(layer, y):
        return y @ layer.weight.T + layer.bias

    hidden = ACTIVATIONS[name](linear(block.gate, x)) * linear(block.up, x) if gated else ACTIVATIONS[name](linear(block.up, x))
    assert close(block(x), linear(block.out, hidden))


@pytest.mark.feed_forward(points=2)
def test_only_the_gate_of_a_feed_forward_block_has_the_activation():
    """SwiGLU (Shazeer 2020), here with squared ReLU. By hand: 2 -> gate 4, up -6 -> 16 * -6 / 2; -2 -> gate -4 -> 0."""
    block = FeedForward(1, 1, "sq_relu", gated=True)
    for layer, weight in ((block.gate, 2.0), (block.up, -3.0), (block.out, 0.5)):
        torch.nn.init.constant_(layer.weight, weight)
    assert block(torch.tensor([[[2.0], [-2.0]]])).flatten().tolist() == [-48, 0]


@pytest.mark.feed_forward(points=2)
@pytest.mark.parametrize("gated", [False, True])
def test_a_feed_forward_block_acts_on_each_token_alone(gated):
    """Section 2.2: only attention mixes tokens. A gradient probe from token 2 of row 0."""
    block, x = enliven(FeedForward(6, 10, "gelu", gated=gated)), random(2, 5, 6, seed=3).requires_grad_()
    (grad,) = torch.autograd.grad(block(x)[0, 2].sum(), x)
    assert grad.abs().sum(-1).nonzero().tolist() == [[0, 2]], "the tokens (row, position) on which this token depends"


@pytest.mark.rotary(points=3)
def test_rotary_turns_each_pair_of_channels_by_position_times_frequency():
    """RoPE (Su et al. 2021): at position 1 the pair (0, 2) turns by 1 and (1, 3) by theta^(-2/4) = 0.01; channel 4 stays."""
    cos, sin = rotary_angles(torch.tensor([[0, 1], [1, 0]]), 4, 10_000.0)  # two rows with different positions
    x = torch.tensor([1.0, 1.0, 0.0, 0.0, 7.0]).expand(2, 1, 2, 5)
    zero, one = x[0, 0, 0], torch.tensor([math.cos(1), math.cos(0.01), math.sin(1), math.sin(0.01), 7.0])
    assert close(rotate(x, cos, sin)[:, 0], torch.stack([zero, one, one, zero]).view(2, 2, 5))


@pytest.mark.rotary(points=2)
def test_the_product_of_rotated_vectors_depends_on_the_distance_only():
    """RoPE: it is a function of m - n with a sign, and rotation keeps lengths."""
    q, k = random(8, seed=1), random(8, seed=2)

    def turned(x, position):
        return rotate(x.view(1, 1, 1, 8), *rotary_angles(torch.tensor([[position]]), 8, 10_000.0)).flatten()

    near, shifted, reverse = (turned(q, m) @ turned(k, n) for m, n in ((5, 3), (105, 103), (3, 5)))
    assert abs(near - shifted) < 1e-4, "both positions were shifted by 100"
    assert abs(near - reverse) > 1e-2, "the positions of query and key were exchanged"
    assert abs(turned(q, 50).norm() - q.norm()) < 1e-5, "a rotation keeps the length"


def test_alibi_slopes_by_hand():
    """ALiBi (Press et al. 2022), 8 heads: 1/2 ... 1/256. For 6 heads MPT takes every second one of these 8 first."""
    assert alibi_slopes(8, 8.0).tolist() == [0.5**i for i in range(1, 9)]
    assert alibi_slopes(6, 8.0).tolist() == [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8]
    assert alibi_slopes(2, 4.0).tolist() == [1 / 4, 1 / 16] and alibi_slopes(1, 8.0).tolist() == [1 / 256]


def test_the_causal_convolution_is_a_weighted_sum_of_the_last_tokens():
    """out_l = x_l + sum_i weight_i * x_(l-i), each channel alone, zeros before the beginning. A new layer mixes tokens."""
    conv, x = enliven(CausalConv(6, 3)), random(2, 5, 6)
    out, state = conv(x, None, torch.tensor([5, 5]))
    for l in range(5):
        assert close(out[:, l], x[:, l] + sum(conv.weight[i] * x[:, l - i] for i in range(3) if l >= i))
    assert torch.equal(state, x[:, -2:])
    assert CausalConv(6, 3).weight.all()


@pytest.mark.parametrize("first", [1, 2, 4])
def test_the_convolution_continues_from_its_state(first):
    """Two calls give the result of one. Padding on the right (row 1) is not part of the state."""
    conv, x = enliven(CausalConv(6, 3)), random(2, 7, 6)
    whole, _ = conv(x, None, torch.tensor([7, 7]))
    padded = torch.stack([x[0, : first + 1], torch.cat([x[1, :first], 99 * torch.ones(1, 6)])])
    _, state = conv(padded, None, torch.tensor([first + 1, first]))
    assert close(conv(x[:1, first + 1 :], state[:1], torch.tensor([6 - first]))[0], whole[:1, first + 1 :])
    assert close(conv(x[1:, first:], state[1:], torch.tensor([7 - first]))[0], whole[1:, first:])
