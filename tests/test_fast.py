"""Each faster version in `fast.py` equals the plain one in values and gradients, alone and in the whole model.

And the graph: a training step and a decoding step can be compiled as one graph and never wait for the accelerator.
"""

import contextlib
from dataclasses import replace

import pytest
import torch
from conftest import EOC, batch_of, close, image, random, tiny_flamingo
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from minflamingo import Batch, Flamingo, fast
from minflamingo.gated_xattn import attend_to_media, media_index
from minflamingo.generate import beam_search, decode_step, generate, prefill, score_answers
from minflamingo.lm import KVCache

VERSIONS = {"fast": contextlib.nullcontext, "plain": fast.disabled}


@pytest.fixture
def small_limits(monkeypatch):
    """Small models use every faster version."""
    for name, value in dict(MIN_IMAGES=1, MIN_KEYS=0).items():
        monkeypatch.setattr(fast, name, value)


def test_disabled_runs_the_plain_code_and_is_undone_at_the_end():
    """Also after an error, and inside each other."""
    k = random(1, 2, 3, 4)
    with contextlib.suppress(ZeroDivisionError), fast.disabled():
        with fast.disabled():
            pass
        assert type(KVCache(k, k).repeat(2)) is KVCache
        raise ZeroDivisionError
    assert type(KVCache(k, k).repeat(2)) is fast.SharedKVCache


def compare_attention(phi: Tensor, n_media: int, R: int = 3) -> None:
    """Values and gradients of the plain and the fast version for phi (B, L), in double precision."""
    (B, L), found = phi.shape, []
    leaves = [random(B, 2, n, 4, seed=s).double().requires_grad_() for s, n in enumerate((L, n_media * R, n_media * R))]
    weight = random(B, 2, L, 4, seed=5).double()
    for version in (attend_to_media.plain, fast.attend_to_media):
        out = version(*leaves, phi, R)
        found.append((out, *torch.autograd.grad((out * weight).sum(), leaves)))
    assert all(close(a, b, 1e-12) for a, b in zip(*found))
    assert not found[1][0].transpose(1, 2)[phi == 0].any()


def test_attention_in_blocks_equals_masked_attention(small_limits, monkeypatch):
    """300 random cases: 1 to 4 rows, 1 to 60 tokens, 1 to 8 images; documents, phi in arbitrary order, extreme cases."""
    masks, attention, generator = [], fast.attention, torch.Generator().manual_seed(0)
    monkeypatch.setattr(fast, "attention", lambda q, k, v, mask=None: masks.append(mask) or attention(q, k, v, mask))
    for case in range(300):
        B, L, N = (int(torch.randint(1, n, (), generator=generator)) for n in (5, 61, 9))
        if case % 2:
            phi = torch.randint(0, N + 1, (B, L), generator=generator)
        else:
            is_image = torch.rand(B, L, generator=generator) < (0.05, 0.2, 0.5)[case % 3]
            phi = media_index(is_image, torch.rand(B, generator=generator) < 0.3).clamp_max(N)
        compare_attention(phi, N)
    for phi in ([0] * 40, [1] * 40, [8] * 40, [5] * 20 + [0] * 20, [*range(9)] * 4, [0, 8] * 20):
        compare_attention(torch.tensor([phi, phi[::-1]]), 8)
    assert sum(mask is None for mask in masks) > 300  # blocks have no mask: they were really used


def tokens(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Keys and values of n tokens: two rows, three heads of width four."""
    return random(2, 3, n, 4, seed=seed), random(2, 3, n, 4, seed=seed + 100)


def holds(cache: KVCache | fast.SharedKVCache, *pieces: tuple[Tensor, Tensor]) -> bool:
    """Does the cache contain these keys and values, one piece after the other?"""
    k, v = (torch.cat(parts, dim=2) for parts in zip(*pieces))
    return torch.equal(cache.k, k) and torch.equal(cache.v, v)


@pytest.mark.parametrize("shared", [False, True])
def test_a_cache_that_is_continued_twice_gives_independent_results(shared):
    """Nothing changes an existing cache, with or without a shared prefix."""
    prompt, a, b, c, d = (tokens(n, seed=i) for i, n in enumerate((5, 1, 2, 1, 3)))
    start = KVCache(*tokens(4, seed=9)).repeat(1).append(*prompt) if shared else KVCache(*prompt)
    one, two = start.append(*a), start.append(*b)
    further, other = one.append(*c), one.append(*d)
    rows = further.reorder(torch.tensor([1, 1, 0])).append(*(x[:1].expand(3, -1, -1, -1) for x in b))
    assert holds(start, prompt) and holds(one, prompt, a) and holds(two, prompt, b)
    assert holds(further, prompt, a, c) and holds(other, prompt, a, d) and torch.equal(rows.k[:, :, :-2], further.k[[1, 1, 0]])


@pytest.mark.parametrize("n_rows, kv_heads, L", [(1, 4, 1), (3, 4, 1), (3, 2, 5), (2, 1, 40)])
def test_rows_that_share_a_prefix_attend_as_if_each_had_a_copy(n_rows, kv_heads, L):
    """Values and gradients with a mask and a bias per head, grouped-query heads, after `repeat` and after a second `repeat`."""
    (B0, B), prefix, found = (2, 2 * n_rows), 7, []
    shapes = [(B, 4, L, 8), *[(B0, kv_heads, prefix, 8)] * 2, *[(B, kv_heads, L, 8)] * 2]
    q, k0, v0, k, v = leaves = [random(*shape, seed=s).double().requires_grad_() for s, shape in enumerate(shapes)]
    bias = random(B, 4, L, prefix + L, seed=8).double().masked_fill(random(B, 1, L, prefix + L, seed=9) > 1, -torch.inf)
    for version in VERSIONS.values():
        with version():
            half = KVCache(k0, v0).repeat(n_rows).append(k[:, :, : L // 2], v[:, :, : L // 2])
        early = half.attend(q, bias[..., : prefix + L // 2])
        whole = half.append(k[:, :, L // 2 :], v[:, :, L // 2 :])
        once = whole.attend(q, bias)
        with version():
            twice = whole.repeat(2).attend(q.repeat_interleave(2, 0), bias.repeat_interleave(2, 0))
        assert close(twice, once.repeat_interleave(2, 0), 1e-12)
        found.append((once, *torch.autograd.grad(((once + early) * random(*once.shape, seed=7)).sum(), leaves)))
    assert all(close(a, b, 1e-12) for a, b in zip(*found))


SHOTS = ["ab", *(piece for n in range(5) for piece in (image(n), "cde", EOC))]
QUERIES = [["ab", image(5), "cde", image(6, frames=2), "f"], [image(7), "a"], ["gh"], [image(8)]]
VARIANTS = {
    "toy": {}, "gpt2": dict(position="learned", conv_width=0), "grouped-query, gated": dict(n_kv_heads=1, gated_mlp=True),
    "alibi": dict(position="alibi", conv_width=0, n_kv_heads=2), "neox": dict(rotary_pct=0.5, parallel_residual=True),
}  # fmt: skip
every_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


@pytest.mark.parametrize("pad", ["left", "right"])
@every_variant
def test_a_training_step_has_the_same_loss_and_gradients(variant, pad, small_limits):
    """Interleaved documents with attend_next and text alone, in double precision."""
    flamingo, found = tiny_flamingo(lm=variant, added_head="tied").double().train(), []
    batches = [batch_of(SHOTS, *QUERIES, pad=pad, attend_next=a) for a in (False, True)] + [batch_of(["abc"], ["d"])]
    parameters = [p for _, p in flamingo.trainable_parameters()]
    for version in VERSIONS.values():
        with version():
            losses = [flamingo.loss(batch) for batch in batches]
        found.append([*losses, *torch.autograd.grad(sum(losses), parameters)])
    assert all(close(a, b, 1e-6) and a.any() for a, b in zip(*found))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@every_variant
def test_generation_and_scores_after_shared_shots_are_the_same(variant, mode, small_limits):
    """prefill, decode steps, greedy search, beam search and scores, after a cache that is used several times."""
    flamingo, found = tiny_flamingo(lm=variant), []
    flamingo.lm.final_norm.weight.data *= 0.3
    for version in VERSIONS.values():
        with version(), mode():
            _, shots = prefill(flamingo, batch_of(SHOTS))
            queries, answers = batch_of(*QUERIES, bos=False), [[[3, 4, 2], [5], [6, 7, 8, 9, 3]]] * 4
            logits, cache = prefill(flamingo, queries, shots)
            steps = [logits]
            for i in range(8):
                logits, cache = decode_step(flamingo, torch.tensor([3, 4, 5, 6]) + i % 4, cache)
                steps.append(logits)
            texts = [generate(flamingo, queries, 2, max_new_tokens=8, cache=shots)]
            texts += [beam_search(flamingo, queries, 2, beams=n, max_new_tokens=6, cache=shots) for n in (2, 3)]
            scores = score_answers(flamingo, queries, answers, cache=shots)
            found.append((torch.stack(steps), scores, texts, score_answers(flamingo, queries, answers, cache=shots)))
    (a, b, texts, again), (c, d, expected, _) = found
    assert close(a, c) and close(b, d, 2e-5) and torch.equal(b, again) and texts == expected


class Synchronisations(TorchDispatchMode):
    """Collects the operations for which a program must wait for the accelerator: their result decides what runs next."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "aten.equal", "aten.allclose")

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.found += [str(function)] * any(name in str(function) for name in self.NAMES)
        return function(*args, **(kwargs or {}))


def small_model_and_batch() -> tuple[Flamingo, Batch]:
    """Two LM blocks, one gated layer; two rows of 64 tokens and 8 images, of which one may use attend_next."""
    flamingo = tiny_flamingo(lm=dict(n_layers=2, max_length=128))
    ids = 3 + torch.arange(128).view(2, 64) % 8
    ids[:, ::8] = flamingo.image_id
    labels, frames = ids.masked_fill(ids == flamingo.image_id, -100), torch.ones(2, 8, dtype=torch.long)
    return flamingo, Batch(ids, labels, torch.ones(2, 64, dtype=torch.bool), random(2, 8, 1, 3, 8, 8), frames)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_training_step_is_one_graph_without_synchronisation(version, small_limits):
    """The loss is traced by torch.compile without a break; its value and gradients stay the same."""
    flamingo, batch = small_model_and_batch()
    batch, parameters = replace(batch, attend_next=torch.tensor([True, False])), [p for _, p in flamingo.trainable_parameters()]
    torch._dynamo.reset()
    with VERSIONS[version]():
        loss, expected = torch.compile(flamingo.train().loss, backend="eager", fullgraph=True)(batch), flamingo.loss(batch)
        ours, theirs = (torch.autograd.grad(x, parameters) for x in (loss, expected))
        assert close(loss, expected) and all(close(a, b) for a, b in zip(ours, theirs))
        with Synchronisations() as waiting:
            flamingo.loss(batch).backward()
    assert waiting.found == []


@pytest.mark.parametrize("version, mode", [("fast", torch.inference_mode), ("plain", torch.no_grad)])
def test_decoding_steps_are_one_graph_without_synchronisation(version, mode):
    """20 compiled steps in a row equal 20 steps without the compiler."""
    flamingo, batch = small_model_and_batch()
    step = torch.compile(lambda token, cache: decode_step(flamingo, token, cache), backend="eager", fullgraph=True)
    torch._dynamo.reset()
    with VERSIONS[version](), mode():
        compiled = expected = start = prefill(flamingo, batch)[1]
        for n in range(20):
            token = torch.tensor([3 + n % 7, 4 + n % 5])
            (a, compiled), (b, expected) = step(token, compiled), decode_step(flamingo, token, expected)
            assert close(a, b)
        with Synchronisations() as waiting:
            decode_step(flamingo, token, start)
    assert waiting.found == []
