"""One attention for everybody, written twice: both are the equation, and who may look at nothing receives nothing."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import close, random
from torch.utils._python_dispatch import TorchDispatchMode

from minflamingo.attention import (
    attention,
    attention_with_shared,
    attention_written_out,
    causal_mask,
    merge_heads,
    split_heads,
)

B, H, LQ, LK, D = 2, 4, 5, 6, 8


def by_hand(q, k, v, mask=None, bias=None):
    """The equation as loops over batch, heads and queries. Query head i reads key head i // (h / h_kv)."""
    q, k, v = q.detach(), k.detach(), v.detach()
    out = torch.zeros_like(q)
    groups = q.shape[1] // k.shape[1]
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                visible = [j for j in range(k.shape[2]) if mask is None or mask[b, h, i, j]]
                scores = [float(q[b, h, i] @ k[b, h // groups, j]) / math.sqrt(q.shape[-1]) for j in visible]
                if bias is not None:
                    scores = [s + float(bias[b, h, i, j]) for s, j in zip(scores, visible)]
                total = sum(math.exp(s) for s in scores)
                for s, j in zip(scores, visible):
                    out[b, h, i] += math.exp(s) / total * v[b, h // groups, j]
    return out


def some_mask() -> torch.Tensor:
    """(B, 1, Lq, Lk): random, but query 0 of sample 0 and the whole of query 3 may look at nothing."""
    mask = random(B, 1, LQ, LK, seed=9) > 0
    mask[0, :, 0] = False
    mask[:, :, 3] = False
    mask[:, :, 1] = True
    return mask


def alibi() -> torch.Tensor:
    """(1, h, Lq, Lk): a penalty that grows with the distance, at another rate in each head."""
    distance = (torch.arange(LK)[None] - torch.arange(LQ)[:, None]).abs()
    return -(0.5 ** torch.arange(1, H + 1).float())[None, :, None, None] * distance


def inputs(kv_heads: int = H):
    q, k, v = random(B, H, LQ, D, seed=1), random(B, kv_heads, LK, D, seed=2), random(B, kv_heads, LK, D, seed=3)
    return [x.requires_grad_() for x in (q, k, v)]


CASES = {
    "everything": (None, None),
    "mask with rows that see nothing": (some_mask(), None),
    "mask of keys only": (torch.tensor([True, False, True, True, False, True]).view(1, 1, 1, LK), None),
    "mask and ALiBi": (some_mask(), alibi()),
    "ALiBi": (None, alibi()),
}


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("case", CASES)
def test_both_ways_of_writing_attention_are_the_equation(case, kv_heads):
    """softmax(q·k/√d + bias) v over the keys that may be seen, against loops; with grouped key heads too."""
    mask, bias = CASES[case]
    q, k, v = inputs(kv_heads)
    full = [None if x is None else x.expand(B, H, LQ, LK) for x in (mask, bias)]
    expected = by_hand(q, k, v, *full)
    assert close(attention_written_out(q, k, v, mask, bias)[0], expected)
    assert close(attention(q, k, v, mask, bias), expected)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("case", CASES)
def test_the_fast_path_has_the_gradients_of_the_plain_one(case, kv_heads):
    """Values and gradients, rows that see nothing included; all of them finite."""
    mask, bias = CASES[case]
    leaves, weight = inputs(kv_heads), random(B, H, LQ, D, seed=4)
    plain = torch.autograd.grad((attention_written_out(*leaves, mask, bias)[0] * weight).sum(), leaves)
    fast = torch.autograd.grad((attention(*leaves, mask, bias) * weight).sum(), leaves)
    for a, b in zip(plain, fast):
        assert torch.isfinite(a).all() and close(a, b)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("case", CASES)
def test_a_single_query_is_the_last_of_several(case, kv_heads):
    """A step of generation; with grouped heads it goes another way, that copies no key."""
    mask, bias = CASES[case]
    mask, bias = (None if x is None else x[:, :, -1:] for x in (mask, bias))
    q, k, v = inputs(kv_heads)
    leaves, weight = (q[:, :, -1:], k, v), random(B, H, 1, D, seed=4)
    plain, fast = attention_written_out(*leaves, mask, bias)[0], attention(*leaves, mask, bias)
    assert close(fast, plain)
    gradients = (torch.autograd.grad((out * weight).sum(), (q, k, v)) for out in (plain, fast))
    assert all(torch.isfinite(b).all() and close(a, b) for a, b in zip(*gradients, strict=True))


def test_causal_is_the_mask_of_the_past_in_values_and_gradients():
    """`causal=True` needs no mask tensor, and means that query l sees keys 0 … l."""
    q, k, v = (random(B, H, LQ, D, seed=s).requires_grad_() for s in range(3))
    past = torch.tensor([[j <= i for j in range(LQ)] for i in range(LQ)]).expand(B, H, LQ, LQ)
    fast = attention(q, k, v, causal=True)
    assert close(fast, by_hand(q, k, v, past))
    weight = random(B, H, LQ, D, seed=4)
    plain = torch.autograd.grad((attention_written_out(q, k, v, past)[0] * weight).sum(), (q, k, v))
    for a, b in zip(plain, torch.autograd.grad((fast * weight).sum(), (q, k, v))):
        assert close(a, b)


@pytest.mark.parametrize("how", [attention, lambda *a: attention_written_out(*a)[0]], ids=["fast", "plain"])
def test_a_token_that_may_look_at_nothing_receives_exactly_zero_and_not_the_mean(how):
    """Paper §2.3. Others mask with a large negative number, and such a row becomes the mean of all it must not see."""
    q, k, v = inputs()
    mask = some_mask()
    out = how(q, k, v, mask)
    assert torch.equal(out[:, :, 3], torch.zeros(B, H, D)) and torch.equal(out[0, :, 0], torch.zeros(H, D))
    assert out[1, :, 0].abs().min() > 0, "the rows that do see something are not touched"
    grads = torch.autograd.grad(out[:, :, 3].sum() + out[0, :, 0].sum(), (q, k, v))
    for grad in grads:
        assert torch.equal(grad, torch.zeros_like(grad)), "and it sends nothing back, NaN least of all"


@pytest.mark.parametrize("how", [attention, lambda *a: attention_written_out(*a)[0]], ids=["fast", "plain"])
def test_what_is_masked_has_no_influence_however_large_it_is(how):
    """Keys and values behind the mask may hold anything."""
    q, k, v = inputs()
    mask = some_mask() & (torch.arange(LK) != 4)
    louder = how(q, k.detach().clone().index_fill_(2, torch.tensor(4), 1e4), v, mask)
    assert close(how(q, k, v, mask), louder)
    louder = how(q, k, v.detach().clone().index_fill_(2, torch.tensor(4), 1e4), mask)
    assert close(how(q, k, v, mask), louder)


def test_the_weights_that_a_figure_draws_are_a_distribution_or_nothing():
    """They sum to one over what may be seen, are zero elsewhere, and give the output when applied to the values."""
    q, k, v = inputs()
    mask = some_mask()
    out, weights = attention_written_out(q, k, v, mask)
    assert close(weights.sum(-1), mask.any(-1).float().expand(B, H, LQ))
    assert not weights[~mask.expand_as(weights)].any()
    assert close(out, weights @ v)


def test_the_score_is_divided_by_the_root_of_the_width_of_a_head():
    """Two keys, scores ln 3 and 0 after the division: weights ¾ and ¼ by hand."""
    q = torch.tensor([[[[2.0 * math.log(3), 0, 0, 0]]]])  # d = 4, √d = 2
    k = torch.tensor([[[[1.0, 0, 0, 0], [0, 1.0, 0, 0]]]])
    weights = attention_written_out(q, k, k)[1]
    assert close(weights, torch.tensor([[[[0.75, 0.25]]]]))
    assert close(attention(q, k, k), torch.tensor([[[[0.75, 0.25, 0, 0]]]]))


def test_half_precision_gives_zero_and_no_nan_to_a_row_that_sees_nothing():
    """bfloat16 is what real models run in; their masks overflow there."""
    q, k, v = (x.detach().bfloat16() for x in inputs())
    out = attention(q, k, v, some_mask(), alibi().bfloat16())
    assert torch.isfinite(out).all() and not out[:, :, 3].any()


def test_heads_are_split_in_blocks_of_channels():
    """The layout "(h d)" of published weights: head 1 is the first d channels."""
    x = random(2, 3, 8)
    heads = split_heads(x, 4)
    for h in range(4):
        assert torch.equal(heads[:, h], x[..., 2 * h : 2 * h + 2])
    assert torch.equal(merge_heads(heads), x)


def test_a_key_head_serves_the_query_heads_that_stand_in_a_row():
    """Grouped heads: heads 0, 1 read key head 0 and heads 2, 3 read key head 1 (not 0, 2 and 1, 3)."""
    q, k, v = inputs(kv_heads=2)
    whole = attention(q, k, v)
    for head in range(4):
        alone = attention(q[:, [head]], k[:, [head // 2]], v[:, [head // 2]])
        assert close(whole[:, [head]], alone)


def test_in_the_causal_mask_the_queries_are_the_last_positions():
    """The docstring's example, and every size against the sentence: query i of Lq stands at place Lk − Lq + i."""
    assert causal_mask(2, 4).tolist() == [[True, True, True, False], [True, True, True, True]]
    for lq in range(1, 4):
        for lk in range(lq, 6):
            assert causal_mask(lq, lk).tolist() == [[j <= lk - lq + i for j in range(lk)] for i in range(lq)]


# ------------------------------------------------------------------------------------------- keys that rows share

LP = 7  # keys that stand there once; each row has LK of its own


def shared_inputs(rows: int, kv_heads: int, queries: int):
    """Two prompts, read by `rows` rows each: q, shared keys and values, own keys and values, in double precision."""
    shapes = [(2 * rows, H, queries, D), *[(2, kv_heads, LP, D)] * 2, *[(2 * rows, kv_heads, LK, D)] * 2]
    return [random(*shape, seed=s).double().requires_grad_() for s, shape in enumerate(shapes)]


@pytest.mark.parametrize("case", ["everything", "mask", "one mask for all", "ALiBi", "mask and ALiBi"])
@pytest.mark.parametrize("queries", [1, 5, 40], ids=["one query", "few", "many"])
@pytest.mark.parametrize("rows, kv_heads", [(1, 4), (1, 2), (3, 4), (3, 2), (3, 1)])
def test_shared_keys_are_keys_repeated_for_each_row_in_values_and_gradients(rows, kv_heads, queries, case):
    """The plain twin puts a copy of the shared keys before each row's own; grouped heads, masks and blind rows too."""
    leaves = q, k0, v0, k, v = shared_inputs(rows, kv_heads, queries)
    mask, bias = None, None
    if "mask" in case:
        mask = random(1 if "one" in case else 2 * rows, 1, queries, LP + LK, seed=9) > 0
        mask[0, :, 0] = False  # the first query looks at nothing
        mask[-1, :, -1, LP:] = False  # the last one of the last row at shared keys alone
    if "ALiBi" in case:
        bias = random(2 * rows, H, queries, LP + LK, seed=8).double()
    out = attention_with_shared(q, k0, v0, k, v, mask, bias)
    repeated = [torch.cat([x0.repeat_interleave(rows, 0), x], dim=2) for x0, x in ((k0, k), (v0, v))]
    expected = attention(q, *repeated, mask, bias)
    assert close(out, expected, 1e-12)
    assert mask is None or torch.equal(out[0, :, 0], torch.zeros(H, D))
    weight = random(*out.shape, seed=7)
    ours, theirs = (torch.autograd.grad((x * weight).sum(), leaves) for x in (out, expected))
    assert all(close(a, b, 1e-12) for a, b in zip(ours, theirs, strict=True))


def test_a_step_of_generation_copies_nothing_of_the_prompt():
    """4 rows over one prompt of 1,000 keys: nothing larger than the scores is made (the keys are 8 times that)."""
    q, k, v = (random(4, H, 1, 32, seed=s) for s in range(3))
    k0, v0 = random(1, H, 1000, 32, seed=4), random(1, H, 1000, 32, seed=5)
    given, made = {x.untyped_storage().data_ptr() for x in (k0, v0)}, []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in given:
                made.append(out.numel())
            return out

    with Watch():
        attention_with_shared(q, k0, v0, k, v)
    assert max(made) == 4 * H * 1001
