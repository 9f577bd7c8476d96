"""AdamW as in the paper: who decays, how the learning rate moves, how several datasets make one step."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import EOC, batch_of, close, picture, tiny_flamingo, tiny_lm
from torch import nn

from minflamingo.training.optim import (
    accumulate_gradients,
    datasets_of_step,
    decays,
    learning_rate_factor,
    parameter_groups,
    set_learning_rate,
)

XATTN = ("xattn.to_q.weight", "xattn.to_kv.weight", "xattn.to_out.weight", "ff.up.weight", "ff.out.weight")


def test_of_a_flamingo_the_matrices_of_gated_xattn_decay_and_nothing_else():
    """Appendix: decay 0.1, none on the resampler; nor on gates, norms, biases, embeddings. (OpenFlamingo decays its gates.)"""
    flamingo = tiny_flamingo()
    name_of = {id(p): n for n, p in flamingo.named_parameters()}
    groups = parameter_groups(flamingo.bridge_parameters(), lr=1e-4)
    decaying = {name_of[id(p)] for g in groups if g["weight_decay"] > 0 for p in g["params"]}
    assert decaying == {f"xattn_layers.{i}.{part}" for i in (0, 2) for part in XATTN}
    assert {g["weight_decay"] for g in groups} == {0.1, 0.0}
    still = {name_of[id(p)] for g in groups if g["weight_decay"] == 0 for p in g["params"]}
    for kept_out in ("resampler.latents", "resampler.time_embeddings", "resampler.layers.0.to_q.weight", "new_embed.weight",
                     "xattn_layers.0.alpha_xattn", "xattn_layers.2.alpha_dense", "xattn_layers.0.ff_norm.weight"):  # fmt: skip
        assert kept_out in still


def test_decay_moves_those_and_leaves_the_others_where_they_are():
    """AdamW itself, with no gradient at all: p − lr · 0.1 · p for the matrices of the bridge, p for everything else."""
    flamingo = tiny_flamingo()
    before = copy.deepcopy(flamingo.state_dict())
    optimizer = torch.optim.AdamW(parameter_groups(flamingo.named_parameters(), lr=0.5))
    for p in flamingo.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    optimizer.step()
    for name, p in flamingo.named_parameters():
        decayed = name.startswith("xattn_layers") and name.endswith(XATTN)
        assert close(p.detach(), before[name] * (0.95 if decayed else 1.0), 1e-7), name


@pytest.mark.parametrize("make", [tiny_flamingo, tiny_lm, lambda: nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))])
def test_every_trainable_parameter_is_in_exactly_one_group_and_no_frozen_one_in_any(make):
    """Eye and tongue are frozen (§2.3): an optimizer that holds them would decay them."""
    model = make()
    groups = parameter_groups(model.named_parameters(), lr=1e-3)
    ids = [id(p) for g in groups for p in g["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert all(g["params"] for g in groups)


def test_a_language_models_embeddings_norms_and_convolution_do_not_decay():
    """A tied head is the embedding, once; an untied one is a matrix like others."""
    tied = dict(tiny_lm("toy").named_parameters())
    decaying = {n for n, p in tied.items() if decays(n, p)}
    parts = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out", "mlp.up", "mlp.out")
    assert decaying == {f"blocks.{i}.{part}.weight" for i in (0, 1) for part in parts}
    untied = tiny_lm("llama")
    assert decays("head.weight", untied.head.weight) and not decays("embed.weight", untied.embed.weight)


@pytest.mark.parametrize("gate_lr, expected", [(None, 0.01), (0.03, 0.03), (0.0, 0.0)])
def test_gates_may_have_a_learning_rate_of_their_own(gate_lr, expected):
    """Two numbers a layer, which must open from 0 (§2.2). A rate of 0 keeps them shut."""
    flamingo = tiny_flamingo()
    groups = parameter_groups(flamingo.bridge_parameters(), lr=0.01, gate_lr=gate_lr)
    gates = {id(p) for n, p in flamingo.named_parameters() if "alpha_" in n}
    of_gates = [g for g in groups if gates & {id(p) for p in g["params"]}]
    assert len(gates) == 4 and [(g["lr"], {id(p) for p in g["params"]}) for g in of_gates] == [(expected, gates)]
    assert all(g["lr"] == g["peak_lr"] == 0.01 for g in groups if g is not of_gates[0])


# --------------------------------------------------------------------------------------------------- the learning rate


def test_the_learning_rate_warms_up_linearly_and_stays():
    """Appendix: linear from 0 over the warm-up, then constant. Of 4 steps: 1/4, 2/4, 3/4, 1, 1, …"""
    assert [learning_rate_factor(s, 4) for s in (0, 1, 2, 3, 4, 5, 10**6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]
    assert [learning_rate_factor(s, 5000) * 1e-4 for s in (0, 2499, 4999)] == pytest.approx([2e-8, 5e-5, 1e-4])
    assert learning_rate_factor(0, 0) == 1.0  # no warm-up


def test_a_cooldown_falls_linearly_to_a_twentieth():
    """The last quarter of 40 steps, 10 of them: 10/10, 9/10, … 1/10; of 100 steps the last is held at 1/20."""
    factors = [learning_rate_factor(s, 1, 40, cooldown=0.25) for s in range(40)]
    assert factors[:31] == [1.0] * 31
    assert factors[31:] == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    assert [learning_rate_factor(s, 1, 100, cooldown=1.0) for s in (94, 96, 99)] == pytest.approx([0.06, 0.05, 0.05])
    docstring = [round(learning_rate_factor(s, 4, 20, cooldown=0.25), 2) for s in (0, 1, 3, 10, 15, 19)]
    assert docstring == [0.25, 0.5, 1.0, 1.0, 1.0, 0.2] and str(docstring) in learning_rate_factor.__doc__


def test_the_factor_scales_every_groups_own_peak():
    """Always from the peak: setting it twice does not multiply twice."""
    flamingo = tiny_flamingo()
    optimizer = torch.optim.AdamW(parameter_groups(flamingo.bridge_parameters(), lr=0.01, gate_lr=0.04))
    for factor in (0.5, 0.25):
        set_learning_rate(optimizer, factor)
        assert sorted(g["lr"] for g in optimizer.param_groups) == pytest.approx([0.01 * factor] * 2 + [0.04 * factor])


# ---------------------------------------------------------------------------------------------------- several datasets


def test_all_datasets_take_part_in_each_step_or_in_turn_one():
    """§2.4: accumulation; round-robin is the alternative of table 3."""
    names = ("pages", "pairs", "videos")
    assert [datasets_of_step(names, s) for s in range(3)] == [list(names)] * 3
    turns = [datasets_of_step(names, s, accumulate=False) for s in range(5)]
    assert turns == [["pages"], ["pairs"], ["videos"], ["pages"], ["pairs"]]


WEIGHTS = {"pages": 1.0, "pairs": 0.2, "videos": 0.03, "text": 0.5}
BATCHES = {
    "pages": batch_of([picture(1), "ab", EOC, picture(2), "ba", EOC], ["c", picture(3), "d", EOC]),
    "pairs": batch_of([picture(4), "cd", EOC]),
    "videos": batch_of([picture(5, frames=3), "efg", EOC]),
    "text": batch_of(["hgf", EOC]),
}


def pool_of(workers: int) -> ThreadPoolExecutor | None:
    return ThreadPoolExecutor(workers) if workers > 1 else None


def accumulated(flamingo, names=tuple(BATCHES), workers: int = 1) -> tuple[dict, dict]:
    """The losses, and per name the gradients, of one step over the datasets `names`."""
    named = dict(flamingo.bridge_parameters())
    losses = {m: lambda m=m: flamingo(BATCHES[m])[1] for m in names}
    losses = accumulate_gradients(losses, WEIGHTS, list(named.values()), pool_of(workers))
    return losses, {name: p.grad for name, p in named.items()}


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_accumulated_gradients_are_the_gradient_of_the_weighted_sum(workers):
    """§2.4: L = Σ lambda_m · L_m over datasets of all kinds, against one backward of the sum; alone or side by side."""
    one, other = tiny_flamingo(), tiny_flamingo()
    losses, gradients = accumulated(one, workers=workers)
    expected = {m: other(batch)[1] for m, batch in BATCHES.items()}
    sum(WEIGHTS[m] * loss for m, loss in expected.items()).backward()
    assert list(losses) == list(BATCHES)
    for m, loss in losses.items():
        assert close(loss, expected[m].detach()) and not loss.requires_grad
    for name, p in other.named_parameters():
        if p.requires_grad:
            assert close(gradients[name], p.grad, 1e-5), name
    assert sum(float(g.abs().sum()) for g in gradients.values()) > 1
    assert all(p.grad is None for p in one.parameters() if not p.requires_grad)


def test_each_step_starts_from_no_gradient_and_ends_the_same_with_any_number_of_workers():
    """Bit for bit: a run may go on with more threads. What a dataset does not reach gets zero of it, not nothing."""
    flamingo = tiny_flamingo()
    _, first = accumulated(flamingo)
    for workers in (1, 3):
        _, again = accumulated(flamingo, workers=workers)
        assert all(torch.equal(first[name], again[name]) for name in first)
    _, text = accumulated(flamingo, names=("text",))
    assert (text["resampler.latents"] == 0).all() and (text["xattn_layers.0.ff.up.weight"] != 0).any()


def test_an_error_in_one_dataset_is_not_lost_in_its_thread():
    """The message comes through."""

    def broken():
        raise ValueError("3 <image> tokens but 2 images in sample 5")

    p = nn.Parameter(torch.ones(1))
    for workers in (1, 2):
        with pytest.raises(ValueError, match="in sample 5"):
            accumulate_gradients({"a": lambda: p.sum(), "b": broken}, {"a": 1.0, "b": 1.0}, [p], pool_of(workers))
