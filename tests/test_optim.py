"""AdamW as in the paper and Muon: which weights decay, the learning rate, one update from several datasets, micro-batches."""

import copy
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from conftest import EOC, LETTERS, batch_of, close, equal, image, preprocess, random, tiny_flamingo, tiny_lm
from torch import nn

from minflamingo.data.sample import NoLoss, Sample, collate
from minflamingo.training import optim
from minflamingo.training.batching import least_padding, micro_batches


def decaying(model: nn.Module, key: str = "weight_decay", value: float | bool = 0.1) -> set[str]:
    """Names of the parameters in a group with the paper's weight decay (or another property). Others have none."""
    groups = optim.parameter_groups(model.named_parameters(), lr=1e-4)
    assert {group[key] for group in groups} <= {value, 0.0}
    ids = {id(p) for group in groups if group[key] for p in group["params"]}
    return {name for name, p in model.named_parameters() if id(p) in ids}


def test_only_matrices_decay_and_none_of_the_resampler():
    """Appendix. Gates, norms, embeddings and the convolution do not decay either. (OpenFlamingo decays its gates.)"""
    parts = ("xattn.to_q", "xattn.to_kv", "xattn.to_out", "ff.up", "ff.out")
    assert decaying(tiny_flamingo()) == {f"xattn_layers.{i}.{part}.weight" for i in (0, 2) for part in parts}
    parts = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out", "mlp.up", "mlp.out")
    assert decaying(tiny_lm("toy")) == {f"blocks.{i}.{part}.weight" for i in (0, 1) for part in parts}
    # A tied output layer is the embedding. An untied one is a matrix like the others.
    assert "head.weight" in decaying(tiny_lm("llama")) and "embed.weight" not in decaying(tiny_lm("llama"))


@pytest.mark.parametrize("make", [tiny_flamingo, tiny_lm, lambda: nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))])
def test_every_trainable_parameter_is_in_one_group_and_no_frozen_parameter_in_any(make):
    """An optimizer that held frozen weights would decay them (section 2.3)."""
    model = make()
    groups = optim.parameter_groups(model.named_parameters(), lr=1e-3)
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert all(group["params"] for group in groups)


@pytest.mark.parametrize("gate_lr, expected", [(None, 0.01), (0.03, 0.03), (0.0, 0.0)])
def test_gates_can_have_their_own_learning_rate(gate_lr, expected):
    """A factor is always relative to the peak: setting it twice does not multiply twice."""
    flamingo = tiny_flamingo()
    optimizer = torch.optim.AdamW(optim.parameter_groups(flamingo.trainable_parameters(), lr=0.01, gate_lr=gate_lr))
    for factor in (1.0, 0.5, 0.25):
        optim.set_learning_rate(optimizer, factor)
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        for name, p in flamingo.trainable_parameters():
            assert rates[id(p)] == pytest.approx(factor * (expected if "alpha_" in name else 0.01)), name


def test_the_learning_rate_warms_up_linearly_and_then_is_constant_or_cools_down():
    """Appendix: linear from 0, then constant. With a cooldown it falls linearly to 1/20."""
    assert [optim.learning_rate_factor(s, 4) for s in (0, 1, 2, 3, 4, 5, 10**6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]
    assert optim.learning_rate_factor(0, 0) == 1.0  # no warm-up
    factors = [optim.learning_rate_factor(s, 1, 40, cooldown=0.25) for s in range(40)]
    assert factors[:31] == [1.0] * 31 and factors[31:] == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    assert [optim.learning_rate_factor(s, 1, 100, cooldown=1.0) for s in (94, 96, 99)] == pytest.approx([0.06, 0.05, 0.05])
    docstring = [round(optim.learning_rate_factor(s, 4, 20, cooldown=0.25), 2) for s in (0, 1, 3, 10, 15, 19)]
    assert str(docstring) in optim.learning_rate_factor.__doc__


# ---------------------------------------------------------------------------------------------------------------- Muon

SHAPES = {
    "up.weight": (5, 3), "out.weight": (5, 3), "kernel.weight": (4, 3, 2, 2), "up.bias": (5,), "embed.weight": (6, 4),
    "unused.weight": (4, 4),
}  # fmt: skip


def start(optimizer: type) -> tuple[dict[str, nn.Parameter], torch.optim.Optimizer]:
    named = {name: nn.Parameter(random(*shape, seed=i)) for i, (name, shape) in enumerate(SHAPES.items())}
    return named, optimizer(optim.parameter_groups(named.items(), lr=0.01), betas=(0.9, 0.98))


def gradient(name: str, step: int) -> torch.Tensor:
    return random(*SHAPES[name], seed=100 * step + len(name))


def take_three_steps(named: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    for step in range(3):
        for name in SHAPES.keys() - {"unused.weight"}:
            named[name].grad = gradient(name, step)
        optimizer.step()


def test_muon_is_for_matrices_and_kernels_of_hidden_layers():
    """Not for embeddings, latents, positions, the causal convolution, the output layer, and parameters with one axis."""
    flamingo, lm = tiny_flamingo(), tiny_lm("llama")
    resampler = {f"resampler.{name}" for name, p in flamingo.resampler.layers.named_parameters("layers") if p.dim() == 2}
    assert decaying(flamingo, "hidden", True) == decaying(flamingo) | resampler
    assert decaying(lm, "hidden", True) == decaying(lm) - {"head.weight"}
    assert decaying(nn.Conv2d(3, 4, 2), "hidden", True) == {"weight"}


@pytest.mark.parametrize("a, b", [(6, 6), (4, 9), (9, 4)])
def test_orthogonalize_keeps_singular_vectors_and_brings_singular_values_near_1(a, b):
    """For singular values from 1 to 0.02. The scale of a matrix does not matter, nor do the other matrices of the batch."""
    u, _, v = torch.linalg.svd(random(3, a, b), full_matrices=False)
    values = torch.logspace(0, -1.7, min(a, b)) * torch.tensor([0.01, 1, 100])[:, None]
    result = optim.orthogonalize((u * values[:, None]) @ v)
    values = (u.mT @ result @ v.mT).diagonal(dim1=1, dim2=2)
    assert ((values > 0.65) & (values < 1.2)).all()
    assert close(result, (u * values[:, None]) @ v, 1e-4)


def test_a_step_of_muon_is_its_formula_for_matrices_and_a_step_of_adamw_for_the_rest():
    """Momentum 0.95 one step ahead (Nesterov), orthogonalised, times 0.2 sqrt(longer side). A kernel is out x (in k k)."""
    (named, muon), (others, adamw) = start(optim.Muon), start(torch.optim.AdamW)
    before = {name: p.detach().clone() for name, p in named.items()}
    take_three_steps(named, muon)
    take_three_steps(others, adamw)
    for name, longer in (("up.weight", 5), ("out.weight", 5), ("kernel.weight", 12)):
        weight, momentum = before[name].flatten(1), 0
        for step in range(3):
            momentum = 0.95 * momentum + 0.05 * gradient(name, step).flatten(1)
            ahead = 0.95 * momentum + 0.05 * gradient(name, step).flatten(1)
            weight = (1 - 0.01 * 0.1) * weight - 0.01 * 0.2 * longer**0.5 * optim.orthogonalize(ahead[None])[0]
        assert close(named[name].flatten(1), weight)
    assert all(torch.equal(named[name], others[name]) for name in ("up.bias", "embed.weight"))
    assert [name for name in SHAPES if torch.equal(named[name], before[name])] == ["unused.weight"]


# ---------------------------------------------------------------------------------------------------- several datasets

WEIGHTS = {"documents": 1.0, "pairs": 0.2, "videos": 0.03, "text": 0.5}
BATCHES = {
    "documents": batch_of([image(1), "ab", EOC, image(2), "ba", EOC], ["c", image(3), "d", EOC]),
    "pairs": batch_of([image(4), "cd", EOC]),
    "videos": batch_of([image(5, frames=3), "efg", EOC]),
    "text": batch_of(["hgf", EOC]),
}


def accumulated(flamingo, names=tuple(BATCHES), workers: int = 1) -> tuple[dict, dict]:
    """Losses and gradients of one step over the datasets `names`."""
    named = dict(flamingo.trainable_parameters())
    losses = {name: lambda name=name: flamingo.loss(BATCHES[name]) for name in names}
    # Each worker thread computes with as many threads as this one: another number rounds differently.
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),))
    losses = optim.accumulate_gradients(losses, WEIGHTS, list(named.values()), pool if workers > 1 else None)
    return losses, {name: p.grad for name, p in named.items()}


@pytest.mark.parametrize("workers, recompute", [(1, False), (1, True), (3, True)])
def test_accumulated_gradients_are_the_gradient_of_the_weighted_sum(workers, recompute):
    """Section 2.4: L = sum lambda_m L_m over datasets of all kinds, also with activation checkpointing and in threads."""
    flamingo, other = tiny_flamingo(), tiny_flamingo()
    if recompute:
        optim.checkpoint_activations(flamingo)
    losses, gradients = accumulated(flamingo, workers=workers)
    expected = {name: other.loss(batch) for name, batch in BATCHES.items()}
    sum(WEIGHTS[name] * loss for name, loss in expected.items()).backward()
    assert list(losses) == list(BATCHES)
    assert all(close(loss, expected[name].detach()) and not loss.requires_grad for name, loss in losses.items())
    assert all(close(gradients[name], p.grad, 1e-5) for name, p in other.trainable_parameters())
    assert sum(float(g.abs().sum()) for g in gradients.values()) > 1
    assert all(p.grad is None for p in flamingo.parameters() if not p.requires_grad)


def test_checkpointed_activations_are_not_kept():
    """Fewer bytes are saved for the backward pass."""

    def saved_bytes(flamingo) -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel() * t.element_size()) or t, lambda t: t):
            flamingo.loss(BATCHES["documents"])
        return sum(sizes)

    flamingo = tiny_flamingo()
    before = saved_bytes(flamingo)
    optim.checkpoint_activations(flamingo)
    assert saved_bytes(flamingo) < before / 2


def test_gradients_of_a_step_do_not_depend_on_earlier_steps_or_on_the_number_of_threads():
    """Bit for bit. A dataset that does not reach a parameter gives it a zero gradient."""
    flamingo = tiny_flamingo()
    _, first = accumulated(flamingo)
    for workers in (1, 3):
        _, again = accumulated(flamingo, workers=workers)
        assert all(torch.equal(first[name], again[name]) for name in first)
    _, text = accumulated(flamingo, names=("text",))
    assert (text["resampler.latents"] == 0).all() and (text["xattn_layers.0.ff.up.weight"] != 0).any()


# ------------------------------------------------------------------------------------------------------- micro-batches


@pytest.mark.parametrize("parts, most", [(1, None), (3, None), (100, None), (1, 3)])
def test_micro_batches_have_the_loss_of_one_large_batch(parts, most):
    """sum(share * loss) is the mean over all labelled tokens. Samples have different numbers of images and of labels."""
    flamingo, texts = tiny_flamingo(), ["a", "bcdefgh", "cc", "aaaaaaaaaaaa", "bb", "cd", "efefefe"]
    pieces = [[image(i), NoLoss("h" * (i % 3)), text, EOC] * (1 + i % 2) for i, text in enumerate(texts)]
    samples = [Sample(["gg", *pieces[0]], bos=False), *map(Sample, pieces[1:])]  # nothing predicts the first token
    shares, batches = zip(*micro_batches(samples, parts, LETTERS, preprocess, max_samples=most))
    sizes = [len(batch.ids) for batch in batches]
    assert sum(sizes) == 7 and len(batches) == (min(parts, 7) if most is None else 3) and max(sizes) <= (most or 7)
    widths = [batch.ids.shape[1] for batch in batches]
    assert widths == sorted(widths) and sum(shares) == pytest.approx(1)
    with torch.no_grad():
        total = sum(share * flamingo.loss(batch).item() for share, batch in zip(shares, batches))
        assert total == pytest.approx(flamingo.loss(collate(samples, LETTERS, preprocess)).item(), rel=1e-5)


def test_no_other_way_to_cut_has_less_padding():
    """Compared with all ways to cut a few samples."""

    def size(lengths, cuts):
        return sum(lengths[b - 1] * (b - a) for a, b in pairwise(cuts))

    assert least_padding([2, 2, 3, 9, 9], parts=2, max_samples=5) == [0, 3, 5]
    rng = np.random.default_rng(0)
    for _ in range(100):
        n, parts = rng.integers(1, 9), rng.integers(1, 5)
        lengths = sorted(rng.integers(1, 20, n).tolist())
        most = int(rng.integers(-(-n // parts), n + 1))
        ways = [[0, *cuts, n] for k in range(parts) for cuts in combinations(range(1, n), k)]
        ways = [cuts for cuts in ways if max(b - a for a, b in pairwise(cuts)) <= most]
        found = least_padding(lengths, parts, most)
        assert found in ways and size(lengths, found) == min(size(lengths, cuts) for cuts in ways)


@pytest.mark.parametrize("make", [torch.optim.AdamW, partial(torch.optim.AdamW, fused=True), optim.Muon])
@pytest.mark.parametrize("loss, gradient, reason", [
    (1.0, 1.0, ""), (torch.nan, 1.0, "the loss of text"), (torch.inf, 1.0, "the loss of text"),
    (1.0, torch.nan, "the gradient"), (1.0, torch.inf, "the gradient"),
])  # fmt: skip
def test_an_update_with_a_loss_or_gradient_that_is_not_finite_changes_nothing(make, loss, gradient, reason):
    """Neither the weights nor the optimizer's averages, and no later update."""
    weights = [nn.Parameter(torch.ones(2, 2)) for _ in range(2)]
    optimizer = make([{"params": [p], "hidden": i == 0, "lr": 0.1} for i, p in enumerate(weights)])
    for values in ((1.0, 3.0), (loss, gradient)):
        before = [p.detach().clone() for p in weights], copy.deepcopy(optimizer.state_dict())
        for p in weights:
            p.grad = torch.full_like(p, 3.0)
        weights[1].grad[0, 0] = values[1]
        losses = {"pairs": torch.tensor(2.0), "text": torch.tensor(values[0])}
        found = optim.clip_gradients((p for p in weights), losses)
        norm = None if found else torch.cat([p.grad.flatten() for p in weights]).norm().item()
        optimizer.step()
    assert found == reason and (norm is None or abs(norm - 1) < 1e-4)
    assert equal((weights, optimizer.state_dict()), before) == (reason != "")
