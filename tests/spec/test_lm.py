"""Specification of `lm.py`: every family against its formulas; causality, padding, caches and the loss."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import LM_FAMILIES, close, enliven, random, tiny_lm
from torch import Tensor

from minflamingo.config import LMConfig
from minflamingo.lm import LM, next_token_loss

every_family = pytest.mark.parametrize("family", LM_FAMILIES)


def written_out(lm: LM, x: Tensor) -> Tensor:
    """The formulas for one sequence (L, D) -> logits (L, V): loops over heads and tokens, complex numbers for rotary."""
    c, L = lm.config, len(x)

    def norm(layer, y):
        if c.norm == "rmsnorm":
            return y / (y.square().mean(-1, keepdim=True) + c.norm_eps).sqrt() * layer.weight
        return F.layer_norm(y, y.shape[-1:], layer.weight, layer.bias, c.norm_eps)

    def linear(layer, y):
        return y @ layer.weight.T + (0 if layer.bias is None else layer.bias)

    def act(y):
        if c.activation == "gelu_tanh":
            return y * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        return {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}[c.activation](y)

    def at_position(y, l):
        """Rotary: channels i and i + n/2 are one complex number, which turns by l * theta^(-2i/n)."""
        n = round(c.d_head * c.rotary_pct)
        if c.position != "rotary":
            return y
        angle = l * c.rotary_theta ** (-torch.arange(0, n, 2) / n)
        z = torch.complex(y[: n // 2], y[n // 2 : n]) * torch.polar(torch.ones(n // 2), angle)
        return torch.cat([z.real, z.imag, y[n:]])

    def self_attention(a, y):
        q, k, v = linear(a.to_q, y), linear(a.to_k, y), linear(a.to_v, y)
        if c.qk_norm == "full":
            q, k = norm(a.q_norm, q), norm(a.k_norm, k)
        heads = []
        for h in range(c.n_heads):
            g = h // (c.n_heads // c.kv_heads)
            qh, kh, vh = (t[:, i * c.d_head : (i + 1) * c.d_head] for t, i in ((q, h), (k, g), (v, g)))
            if c.qk_norm == "head":
                qh, kh = norm(a.q_norm, qh), norm(a.k_norm, kh)
            rows = []
            for l in range(L):
                scores = [at_position(qh[l], l) @ at_position(kh[m], m) / math.sqrt(c.d_head) for m in range(l + 1)]
                if c.position == "alibi":  # 4 heads: slopes 2^-2, 2^-4, 2^-6, 2^-8
                    scores = [s - 0.25 ** (h + 1) * (l - m) for m, s in enumerate(scores)]
                rows.append(torch.stack(scores).softmax(0) @ vh[: l + 1])
            heads.append(torch.stack(rows))
        return linear(a.to_out, torch.cat(heads, dim=-1))

    def mlp(m, y):
        return linear(m.out, act(linear(m.gate, y)) * linear(m.up, y) if c.gated_mlp else act(linear(m.up, y)))

    if c.position == "learned":
        x = x + lm.position_embed.weight[c.position_offset : c.position_offset + L]
    for block in lm.blocks:
        y = norm(block.attn_norm, x)
        if c.conv_width:
            y = y + sum(w * torch.cat([torch.zeros(i, c.d), y])[:L] for i, w in enumerate(block.conv.weight))
        attended = x + self_attention(block.attn, y)
        x = attended + mlp(block.mlp, norm(block.mlp_norm, x if c.parallel_residual else attended))
    return linear(lm.head, norm(lm.final_norm, x))


@pytest.mark.rotary(points=2)
@pytest.mark.causal_mask(points=3)
@pytest.mark.self_attention(points=3)
@pytest.mark.lm_block(points=3)
@every_family
def test_each_family_is_its_formulas(family):
    """Section 2, the frozen LM: norms, positions, residual connections, biases, activations, grouped-query heads."""
    lm = tiny_lm(family)
    x = random(2, 7, lm.config.d, seed=5)
    assert close(lm(x)[0], torch.stack([written_out(lm, row) for row in x]))


@pytest.mark.causal_mask(points=3)
@pytest.mark.self_attention(points=1)
@every_family
def test_a_token_depends_on_all_tokens_up_to_itself_and_on_no_later_one(family):
    """Section 2, p(y_l | y_<l): a gradient probe from the logits at l to every embedding."""
    lm = tiny_lm(family)
    x = random(1, 7, lm.config.d, seed=5).requires_grad_()
    for l in range(7):
        (grad,) = torch.autograd.grad(lm(x)[0][0, l, 3], x)
        assert grad[0].abs().amax(-1).gt(0).tolist() == [m <= l for m in range(7)], f"tokens on which token {l} depends"


def test_weights_are_tied_and_biases_exist_where_the_family_has_them():
    """One matrix for embedding and output layer in GPT-2, OPT and MPT; no bias in MPT and Llama."""
    for family, tied in (("gpt2", True), ("opt", True), ("mpt", True), ("neox", False), ("llama", False)):
        names = dict(tiny_lm(family).named_parameters())
        assert ("head.weight" in names) == (not tied)
        assert any(name.endswith("bias") for name in names) == (family not in ("mpt", "llama"))


def test_initial_output_weights_shrink_with_the_depth():
    """GPT-2: standard deviation 0.02, and 0.02 / sqrt(2 n_layers) for the matrices that write to the residual stream."""
    torch.manual_seed(0)
    block = LM(LMConfig(vocab_size=64, d=64, n_layers=8, n_heads=4)).blocks[3]
    for linear, std in ((block.attn.to_q, 0.02), (block.mlp.up, 0.02), (block.mlp.out, 0.005), (block.attn.to_out, 0.005)):
        assert abs(float(linear.weight.detach().std()) / std - 1) < 0.05


def padded(rows: list[Tensor], side: str) -> tuple[Tensor, Tensor]:
    """Rows (L_b, D) in one batch, with large random numbers as padding, and the mask."""
    L = max(map(len, rows)) + 2
    x = 5 * random(len(rows), L, rows[0].shape[-1], seed=77)
    mask = torch.zeros(len(rows), L, dtype=torch.bool)
    for b, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(L - len(row), L)
        x[b, place], mask[b, place] = row, True
    return x, mask


@pytest.mark.causal_mask(points=3)
@pytest.mark.lm_block(points=2)
@pytest.mark.parametrize("side", ["left", "right"])
@every_family
def test_padding_changes_nothing_and_has_no_gradient(family, side):
    """Section 3, batches of prompts: positions, attention and convolution of a row are those of the row alone."""
    lm, lengths = tiny_lm(family), (6, 4, 1)
    rows = [random(n, lm.config.d, seed=n) for n in lengths]
    x, mask = padded(rows, side)
    logits, _ = lm(x.requires_grad_(), mask)
    for b, row in enumerate(rows):
        assert close(logits[b, mask[b]], lm(row[None])[0][0]), f"row {b}, {len(row)} tokens and padding on the {side}"
    logits[mask].square().mean().backward()
    assert not x.grad[~mask].any() and x.grad[mask].abs().amax(-1).min() > 0, "padding has a gradient, or a token has none"
    assert all(torch.isfinite(p.grad).all() for p in lm.parameters() if p.grad is not None)


@pytest.mark.self_attention(points=2)
@pytest.mark.lm_block(points=2)
@pytest.mark.parametrize("pieces", [[1] * 8, [4, 1, 1, 2], [3, 5]], ids=str)
@every_family
def test_a_sequence_in_pieces_with_a_cache_equals_the_whole_sequence(family, pieces):
    """Section 3, generation: the KV cache changes no result. An old cache can be continued again: it is never changed."""
    lm = tiny_lm(family)
    x, cache, parts, caches = random(2, 8, lm.config.d, seed=5), None, [], []
    for part in x.split(pieces, dim=1):
        caches.append(cache)
        logits, cache = lm(part, cache=cache)
        parts.append(logits)
    assert close(torch.cat(parts, dim=1), lm(x)[0])
    for part, before, logits in zip(x.split(pieces, dim=1), caches, parts):
        assert torch.equal(lm(part, cache=before)[0], logits), "an earlier cache was changed"


@pytest.mark.causal_mask(points=2)
@every_family
def test_rows_of_different_lengths_continue_from_one_cache(family):
    """Section 3: prompts of 3, 5, 2 tokens, then 4, 1, 6 tokens padded on the right, then 2 each: as if each row were alone."""
    lm = tiny_lm(family)
    lengths = ((3, 5, 2), (4, 1, 6), (2, 2, 2))
    prompts, queries, more = ([random(n, lm.config.d, seed=10 * i + n) for n in ns] for i, ns in enumerate(lengths))
    for side in ("left", "right"):
        _, cache = lm(*padded(prompts, side))
        x, mask = padded(queries, "right")
        first, cache = lm(x, mask, cache)
        second, cache = lm(torch.stack(more), cache=cache)
        for b, n in enumerate(lengths[0]):
            alone = lm(torch.cat([prompts[b], queries[b], more[b]])[None])[0][0]
            assert close(torch.cat([first[b, mask[b]], second[b]]), alone[n:]), f"row {b}, prompts padded on the {side}"


@every_family
def test_rows_of_a_cache_can_be_repeated_and_reordered(family):
    """Section 3, beam search: two prompts, three hypotheses each, which change places within their prompt."""
    lm = tiny_lm(family)
    prompts, first, second = (random(n, L, lm.config.d, seed=s) for s, (n, L) in enumerate([(2, 5), (6, 2), (6, 1)], 1))
    _, cache = lm(first, cache=lm(prompts)[1].repeat(3))
    order = torch.tensor([2, 1, 1, 4, 3, 4])
    whole = torch.cat([prompts.repeat_interleave(3, 0), first[order], second], dim=1)
    assert close(lm(second, cache=cache.reorder(order))[0], lm(whole)[0][:, 7:])


@pytest.mark.causal_mask(points=1)
@every_family
def test_a_sequence_longer_than_the_context_is_an_error(family):
    """Exactly `max_length` tokens fit, with or without a cache. Relative positions can have no limit."""
    lm = tiny_lm(family, max_length=6)
    _, cache = lm(random(1, 6, lm.config.d))
    assert lm.remaining_context(6) == 0
    for n, before in ((7, None), (1, cache)):
        with pytest.raises(ValueError, match="the sequence has 7 tokens, but the LM's context is 6"):
            lm(random(1, n, lm.config.d), cache=before)
    with pytest.raises(ValueError, match="embeddings: expected shape"):
        lm(random(1, 3, 16))
    if lm.config.position != "learned":
        assert tiny_lm(family, max_length=None).remaining_context(10**9) == math.inf


@pytest.mark.next_token_loss(points=3)
def test_position_l_predicts_token_l_plus_1_and_only_labels_count():
    """Section 2.4: the mean negative log-likelihood over labelled tokens; without any label it is 0, not NaN."""
    logits, labels = random(2, 5, 11, seed=1), torch.tensor([[9, -100, 3, 4, -100], [-100, -100, -100, -100, 7]])
    terms = [-logits[b, l - 1].log_softmax(-1)[labels[b, l]] for b, l in ((0, 2), (0, 3), (1, 4))]
    assert close(next_token_loss(logits, labels), sum(terms) / 3)
    assert next_token_loss(logits.bfloat16(), labels) == next_token_loss(logits.bfloat16().float(), labels), "softmax in fp32"
    loss = next_token_loss(logits.requires_grad_(), torch.full_like(labels, -100))
    loss.backward()
    assert loss == 0 and not logits.grad.any(), "without any label"


@pytest.mark.next_token_loss(points=2)
def test_only_a_model_that_predicts_the_next_token_has_a_low_loss():
    """Section 2.4: the loss of logits that are 50 at the next token, at the same token, at the previous token."""
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    losses = [float(next_token_loss(50 * F.one_hot(ids.roll(shift), 11).float(), ids)) for shift in (-1, 0, 1)]
    assert losses == pytest.approx([0, 50, 50], abs=1e-4)


@pytest.mark.lm_block(points=1)
def test_the_loss_of_the_lm_is_that_of_its_logits_and_dropout_is_active_in_training_only():
    """Section 2: the LM is trained alone, before it is frozen."""
    lm, ids = enliven(tiny_lm(dropout=0.5)), torch.tensor([[1, 5, 3, 8], [1, 4, 4, 2]])
    labels = ids.masked_fill(ids == 1, -100)
    expected = next_token_loss(lm(lm.embed(ids))[0], labels)
    assert close(lm.loss(ids, labels), expected)
    assert not close(lm.train().loss(ids, labels), expected, 1e-3)
    silent, x = tiny_lm(dropout=1.0).train(), random(1, 4, 32)
    assert close(silent(x)[0], silent.head(silent.final_norm(x))), "dropout is on both branches, not on the residual stream"
