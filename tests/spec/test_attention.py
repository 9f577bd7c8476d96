"""Specification of `attention.py`: both functions are the equation, and a query without any key gets exactly zero."""

import math

import pytest
import torch
from conftest import close, random

from minflamingo.attention import attention, attention_written_out, merge_heads, split_heads

B, H, LQ, LK, D = 2, 4, 5, 6, 8
FUNCTIONS = {"fused": attention, "written out": lambda *args: attention_written_out(*args)[0]}
both_functions = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


def by_hand(q, k, v, mask=None, bias=None):
    """The equation as loops over batch, heads and queries. Query head h has key head h // (h / h_kv)."""
    q, k, v = q.detach(), k.detach(), v.detach()
    out, group = torch.zeros_like(q), q.shape[1] // k.shape[1]
    for b in range(B):
        for h in range(H):
            for i in range(LQ):
                keys = [j for j in range(LK) if mask is None or mask[b, h, i, j]]
                scores = [float(q[b, h, i] @ k[b, h // group, j]) / math.sqrt(D) for j in keys]
                if bias is not None:
                    scores = [s + float(bias[b, h, i, j]) for s, j in zip(scores, keys)]
                total = sum(map(math.exp, scores))
                for s, j in zip(scores, keys):
                    out[b, h, i] += math.exp(s) / total * v[b, h // group, j]
    return out


def example_mask() -> torch.Tensor:
    """(B, 1, Lq, Lk), random. Query 0 of sample 0 and query 3 of both samples have no key; query 1 has all."""
    mask = random(B, 1, LQ, LK, seed=9) > 0
    mask[:, :, 3] = mask[0, :, 0] = False
    mask[:, :, 1] = True
    return mask


def inputs(kv_heads: int = H) -> list[torch.Tensor]:
    shapes = [(B, H, LQ, D), (B, kv_heads, LK, D), (B, kv_heads, LK, D)]
    return [random(*shape, seed=s).requires_grad_() for s, shape in enumerate(shapes)]


DISTANCE = (torch.arange(LK)[None] - torch.arange(LQ)[:, None]).abs()
CASES = {
    "all keys": (None, None),
    "a mask with empty rows": (example_mask(), None),
    "a mask of keys": (torch.tensor([True, False, True, True, False, True]).view(1, 1, 1, LK), None),
    "a bias per head": (None, -(0.5 ** torch.arange(1, H + 1).float())[None, :, None, None] * DISTANCE),
}


@pytest.mark.attention(points=3)
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("case", CASES)
def test_attention_is_the_softmax_of_scaled_dot_products_times_the_values(case, kv_heads):
    """Vaswani et al. 2017: softmax(q . k / sqrt(d) + bias) v over the allowed keys, against loops. Equal gradients too."""
    mask, bias = CASES[case]
    leaves, weight, gradients = inputs(kv_heads), random(B, H, LQ, D, seed=4), []
    expected = by_hand(*leaves, *(None if x is None else x.expand(B, H, LQ, LK) for x in (mask, bias)))
    for name, function in FUNCTIONS.items():
        out = function(*leaves, mask, bias)
        assert close(out, expected), f"the function that is {name}"
        gradients.append(torch.autograd.grad((out * weight).sum(), leaves))
    assert all(torch.isfinite(a).all() and close(a, b) for a, b in zip(*gradients))


@pytest.mark.attention(points=1)
@both_functions
def test_the_score_is_divided_by_the_square_root_of_the_head_width(function):
    """Vaswani et al. 2017: two keys with scores ln 3 and 0 after the division have the weights 3/4 and 1/4."""
    q = torch.tensor([[[[2.0 * math.log(3), 0, 0, 0]]]])  # d = 4, so sqrt(d) = 2
    k = torch.tensor([[[[1.0, 0, 0, 0], [0, 1.0, 0, 0]]]])
    assert close(function(q, k, k), torch.tensor([[[[0.75, 0.25, 0, 0]]]]))


@pytest.mark.attention(points=2)
@both_functions
def test_a_query_that_may_attend_to_no_key_gets_exactly_zero(function):
    """Section 2.3: zero, not the mean of all values, and no gradient flows back. In bfloat16 too."""
    q, k, v = inputs()
    out = function(q, k, v, example_mask())
    assert not out[:, :, 3].any() and not out[0, :, 0].any(), "a query without any allowed key"
    assert out[1, :, 0].abs().min() > 0, "a query with an allowed key, next to one without"
    for grad in torch.autograd.grad(out[:, :, 3].sum() + out[0, :, 0].sum(), (q, k, v)):
        assert torch.equal(grad, torch.zeros_like(grad))
    half = function(*(x.detach().bfloat16() for x in (q, k, v)), example_mask())
    assert torch.isfinite(half).all() and not half[:, :, 3].any()


@pytest.mark.attention(points=1)
@both_functions
def test_a_masked_key_has_no_influence(function):
    """Section 2.3: keys and values outside of the mask may have any size."""
    q, k, v = (x.detach() for x in inputs())
    mask = example_mask() & (torch.arange(LK) != 4)
    expected, four = function(q, k, v, mask), torch.tensor(4)
    assert close(function(q, k.index_fill(2, four, 1e4), v, mask), expected), "a masked key was changed"
    assert close(function(q, k, v.index_fill(2, four, 1e4), mask), expected), "a masked value was changed"


@pytest.mark.attention(points=1)
def test_the_attention_weights_are_a_distribution_over_the_allowed_keys():
    """Section 2.3: they sum to 1 over the keys, or to 0 in a row without any key, and weights @ values is the output."""
    (q, k, v), mask = inputs(), example_mask()
    out, weights = attention_written_out(q, k, v, mask)
    assert close(weights.sum(-1), mask.any(-1).float().expand(B, H, LQ)), "the sum over the keys"
    assert close(out, weights @ v) and not weights[~mask.expand_as(weights)].any()


def test_a_mask_next_to_a_bias_is_refused_and_not_ignored():
    (q, k, v), mask = inputs(), example_mask()
    with pytest.raises(ValueError, match="got a mask and a bias"):
        attention(q, k, v, mask, torch.zeros(LQ, LK))


def test_heads_are_blocks_of_channels():
    """Head 0 is the first d channels, as in published weights; `merge_heads` is the inverse."""
    x = random(2, 3, 8)
    heads = split_heads(x, 4)
    for h in range(4):
        assert torch.equal(heads[:, h], x[..., 2 * h : 2 * h + 2])
    assert torch.equal(merge_heads(heads), x)
