"""The tongue: every family against its formulas, blind to the future, unmoved by padding and caches."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import LM_FAMILIES, close, enliven, random, tiny_lm

from minflamingo.config import LMConfig
from minflamingo.lm import LM, CausalConv, alibi_slopes, rotary_angles, rotate
from minflamingo.loss import next_token_loss

every_family = pytest.mark.parametrize("family", LM_FAMILIES)


def written_out(lm: LM, x: torch.Tensor, before_block=lambda i, x: x) -> torch.Tensor:
    """The formulas for one sequence (L, D) → logits (L, V): loops over heads and tokens, complex numbers for rotary."""
    c, L, width = lm.config, len(x), lm.config.d_head

    def norm(layer, y):
        if c.norm == "rmsnorm":
            return y / (y.square().mean(-1, keepdim=True) + c.norm_eps).sqrt() * layer.weight
        y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, unbiased=False, keepdim=True) + c.norm_eps).sqrt()
        return y * layer.weight + (layer.bias if c.norm_bias else 0)

    def linear(layer, y):
        return y @ layer.weight.T + (0 if layer.bias is None else layer.bias)

    def act(y):
        if c.activation == "gelu":
            return y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))
        if c.activation == "gelu_tanh":
            return y * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        return y.clamp_min(0) if c.activation == "relu" else y / (1 + (-y).exp())

    def place(y, l):
        """Rotary: channels i and i + n/2 are one complex number, which turns by l · theta^(−2i/n)."""
        n = round(width * c.rotary_pct)
        if c.position != "rotary":
            return y
        angle = l * c.rotary_theta ** (-torch.arange(0, n, 2) / n)
        z = torch.complex(y[: n // 2], y[n // 2 : n]) * torch.polar(torch.ones(n // 2), angle)
        return torch.cat([z.real, z.imag, y[n:]])

    def self_attention(block, y):
        a = block.attn
        q, k, v = linear(a.to_q, y), linear(a.to_k, y), linear(a.to_v, y)
        if c.qk_norm == "full":
            q, k = norm(a.q_norm, q), norm(a.k_norm, k)
        heads = []
        for h in range(c.heads):
            g = h // (c.heads // c.n_kv_heads)
            qh, kh, vh = (t[:, i * width : (i + 1) * width] for t, i in ((q, h), (k, g), (v, g)))
            if c.qk_norm == "head":
                qh, kh = norm(a.q_norm, qh), norm(a.k_norm, kh)
            rows = []
            for l in range(L):
                scores = torch.stack([place(qh[l], l) @ place(kh[m], m) / math.sqrt(width) for m in range(l + 1)])
                if c.position == "alibi":  # 4 heads: slopes 2^−2, 2^−4, 2^−6, 2^−8
                    scores = scores - 0.25 ** (h + 1) * (l - torch.arange(l + 1))
                rows.append(scores.exp() / scores.exp().sum() @ vh[: l + 1])
            heads.append(torch.stack(rows))
        return linear(a.to_out, torch.cat(heads, dim=-1))

    def mlp(block, y):
        m = block.mlp
        return linear(m.out, act(linear(m.gate, y)) * linear(m.up, y) if c.gated_mlp else act(linear(m.up, y)))

    if c.position == "learned":
        x = x + lm.position_embed.weight[c.position_offset : c.position_offset + L]
    for i, block in enumerate(lm.blocks):
        x = before_block(i, x)
        y = norm(block.attn_norm, x)
        if c.conv_width:
            y = y + sum(w * torch.cat([torch.zeros(back, c.d), y])[:L] for back, w in enumerate(block.conv.weight))
        if c.parallel_residual:
            x = x + self_attention(block, y) + mlp(block, norm(block.mlp_norm, x))
        else:
            x = x + self_attention(block, y)
            x = x + mlp(block, norm(block.mlp_norm, x))
    return linear(lm.head, norm(lm.final_norm, x))


# ------------------------------------------------------------------------------------------------------- the families


@every_family
def test_each_family_is_its_formulas(family):
    """The table in `LMConfig`: norms, positions, residuals, biases, activations, against formulas written out here."""
    lm = tiny_lm(family)
    x = random(2, 7, lm.config.d, seed=5)
    logits, cache = lm(x)
    assert cache is None
    assert close(logits, torch.stack([written_out(lm, row) for row in x]))


@every_family
def test_no_token_sees_a_later_one_and_every_token_sees_all_before(family):
    """p(y_l | y_<l): a gradient probe from the logits at l to every embedding."""
    lm = tiny_lm(family)
    x = random(1, 7, lm.config.d, seed=5).requires_grad_()
    logits, _ = lm(x)
    for l in range(7):
        (grad,) = torch.autograd.grad(logits[0, l, 3], x, retain_graph=True)
        assert not grad[0, l + 1 :].any(), f"the logits at {l} know the future"
        assert grad[0, : l + 1].abs().amax(-1).min() > 0, f"the logits at {l} do not see all of the past"


@every_family
def test_the_hook_runs_before_every_block_and_its_result_goes_on(family):
    """Where GATED XATTN-DENSE stands (paper §2.2, fig. 4): in front of each block, in order."""
    lm = tiny_lm(family)
    x, visits = random(1, 5, lm.config.d, seed=5), []

    def hook(i, y):
        visits.append(i)
        return 0.7 * y + i

    logits, _ = lm(x, before_block=hook)
    assert visits == [0, 1]
    assert close(logits[0], written_out(lm, x[0], hook))


def test_the_head_is_tied_where_the_family_ties_it():
    """One matrix in GPT-2, OPT and MPT, two in GPT-NeoX and Llama."""
    for family, tied in (("gpt2", True), ("opt", True), ("mpt", True), ("neox", False), ("llama", False)):
        lm = tiny_lm(family)
        assert (lm.head.weight is lm.embed.weight) == tied
        assert ("head.weight" in dict(lm.named_parameters())) == (not tied)


def test_mpt_and_llama_have_no_bias_anywhere():
    """MPT-7B and Llama: `no_bias`, in linears and norms."""
    for family in ("mpt", "llama"):
        assert not [name for name, _ in tiny_lm(family).named_parameters() if name.endswith("bias")]


def test_what_a_block_adds_shrinks_with_the_number_of_additions_at_initialisation():
    """GPT-2: std 0.02, and 0.02 / √(2 · layers) for the two matrices that write to the residual stream."""
    torch.manual_seed(0)
    lm = LM(LMConfig(vocab_size=64, d=64, layers=8, heads=4))
    for weight, std in ((lm.blocks[3].attn.to_q.weight, 0.02), (lm.blocks[3].mlp.out.weight, 0.005)):
        assert abs(float(weight.detach().std()) / std - 1) < 0.05
    assert abs(float(lm.blocks[5].attn.to_out.weight.detach().std()) / 0.005 - 1) < 0.05


# ------------------------------------------------------------------------------------------------- padding and caches


def padded(rows: list[torch.Tensor], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (L_b, D) in one batch with loud nonsense at the padding, and the mask."""
    L = max(map(len, rows)) + 2
    x = 5 * random(len(rows), L, rows[0].shape[-1], seed=77)
    mask = torch.zeros(len(rows), L, dtype=torch.bool)
    for b, row in enumerate(rows):
        at = slice(0, len(row)) if side == "right" else slice(L - len(row), L)
        x[b, at], mask[b, at] = row, True
    return x, mask


@pytest.mark.parametrize("side", ["left", "right"])
@every_family
def test_padding_on_either_side_changes_nothing(family, side):
    """Whatever lies at the padding: positions, attention and convolution are those of the row alone."""
    lm = tiny_lm(family)
    rows = [random(n, lm.config.d, seed=n) for n in (6, 4, 1)]
    x, mask = padded(rows, side)
    logits, _ = lm(x, mask)
    for b, row in enumerate(rows):
        assert close(logits[b, mask[b]], lm(row[None])[0][0])


@pytest.mark.parametrize("side", ["left", "right"])
@every_family
def test_padding_neither_gives_nor_gets_a_gradient(family, side):
    """Left padding makes rows that may look at nothing; none of them may turn into NaN on the way back."""
    lm = tiny_lm(family)
    x, mask = padded([random(n, lm.config.d, seed=n) for n in (5, 2)], side)
    x.requires_grad_()
    lm(x, mask)[0][mask].square().mean().backward()
    assert not x.grad[~mask].any()
    assert x.grad[mask].abs().amax(-1).min() > 0
    assert all(torch.isfinite(p.grad).all() for p in lm.parameters() if p.grad is not None)


@pytest.mark.parametrize("chunks", [[1] * 8, [4, 1, 1, 2], [1, 7], [3, 5]])
@every_family
def test_reading_in_pieces_with_a_cache_equals_reading_at_once(family, chunks):
    """Token by token and in chunks, one shorter than the convolution and one longer."""
    lm = tiny_lm(family)
    x = random(2, 8, lm.config.d, seed=5)
    whole, _ = lm(x)
    cache, parts = None, []
    for part in x.split(chunks, dim=1):
        logits, cache = lm(part, cache=cache, use_cache=True)
        parts.append(logits)
    assert cache.length == 8
    assert close(torch.cat(parts, dim=1), whole)


@pytest.mark.parametrize("first", [1, 4, 6])
@every_family
def test_reading_in_pieces_equals_reading_at_once_with_left_padding_too(family, first):
    """Prompts of different lengths go on from one cache; a first piece of 1 is nothing but padding in every row."""
    lm = tiny_lm(family)
    rows = [random(n, lm.config.d, seed=n) for n in (7, 5, 2)]
    x, mask = padded(rows, "left")
    logits, cache = lm(x[:, :first], mask[:, :first], use_cache=True)
    parts = [logits]
    for l in range(first, x.shape[1]):
        logits, cache = lm(x[:, l : l + 1], mask[:, l : l + 1], cache=cache)
        parts.append(logits)
    logits = torch.cat(parts, dim=1)
    for b, row in enumerate(rows):
        assert close(logits[b, mask[b]], lm(row[None])[0][0])


@every_family
def test_a_cache_can_be_reordered_and_repeated_row_by_row(family):
    """What beam search does: hypothesis 2 goes on twice, hypothesis 0 once, hypothesis 1 dies."""
    lm = tiny_lm(family)
    rows = [random(n, lm.config.d, seed=n) for n in (6, 4, 3)]
    x, mask = padded(rows, "left")
    _, cache = lm(x, mask, use_cache=True)
    pick, following = torch.tensor([2, 2, 0]), random(3, 2, lm.config.d, seed=50)
    logits, _ = lm(following, cache=cache.select(pick))
    for b, row in enumerate(pick.tolist()):
        alone, _ = lm(torch.cat([rows[row], following[b]])[None])
        assert close(logits[b], alone[0, -2:])


@every_family
def test_a_cache_is_never_changed_in_place(family):
    """Two answers may go on from the same cache (scoring classes with a growing cache is a bug that others have)."""
    lm = tiny_lm(family)
    _, cache = lm(random(1, 4, lm.config.d, seed=1), use_cache=True)
    x = random(1, 3, lm.config.d, seed=2)
    first, _ = lm(x, cache=cache)
    assert cache.length == 4
    assert torch.equal(lm(x, cache=cache)[0], first)


def test_no_cache_is_made_unless_asked_for():
    """Training needs none."""
    assert tiny_lm()(random(1, 3, 32))[1] is None


@every_family
def test_a_text_longer_than_the_context_is_refused(family):
    """Exactly `max_length` tokens fit, one more does not, in one piece or with a cache."""
    lm = tiny_lm(family, max_length=6)
    d = lm.config.d
    _, cache = lm(random(1, 6, d), use_cache=True)
    with pytest.raises(ValueError, match="7 tokens, but the language model's context is 6"):
        lm(random(1, 7, d))
    with pytest.raises(ValueError, match="7 tokens, but the language model's context is 6"):
        lm(random(1, 1, d), cache=cache)


def test_shapes_that_do_not_fit_are_named():
    """Embeddings of another width, a mask of another length."""
    lm = tiny_lm()
    with pytest.raises(ValueError, match="embeddings: expected shape"):
        lm(random(1, 3, 16))
    with pytest.raises(ValueError, match="attention_mask"):
        lm(random(1, 3, 32), torch.ones(1, 4, dtype=torch.bool))


def test_an_opt_text_starts_at_row_two_of_its_table_of_positions():
    """OPT: position + 2; rows 0 and 1 are read by no text, padded or not."""
    lm = tiny_lm("opt")
    x, mask = padded([random(5, 32), random(3, 32)], "left")
    before = lm(x, mask)[0][mask]
    with torch.no_grad():
        lm.position_embed.weight[:2] = 100.0
    assert torch.equal(lm(x, mask)[0][mask], before)
    assert lm.position_embed.num_embeddings == lm.config.max_length + 2


# --------------------------------------------------------------------------------------------------- its small organs


def test_rotary_by_hand():
    """At position 1 the first pair (1, 0) turns to (cos 1, sin 1), the next by theta^(−2/4) = 0.01."""
    cos, sin = rotary_angles(torch.tensor([[0, 1]]), 4, 10_000.0)
    x = torch.tensor([1.0, 1.0, 0.0, 0.0, 7.0]).expand(
        1, 1, 2, 5
    )  # pairs (channel i, i + 2), and one channel that stays
    out = rotate(x, cos, sin)[0, 0]
    assert close(out[0], x[0, 0, 0])
    assert close(out[1], torch.tensor([math.cos(1), math.cos(0.01), math.sin(1), math.sin(0.01), 7.0]))


def test_with_rotary_the_inner_product_depends_on_the_distance_only():
    """⟨rot(q, m), rot(k, n)⟩ is a function of m − n, and lengths do not change."""
    q, k = random(8, seed=1), random(8, seed=2)

    def turned(x, position):
        return rotate(x.view(1, 1, 1, 8), *rotary_angles(torch.tensor([[position]]), 8, 10_000.0)).flatten()

    near, shifted, other = (turned(q, m) @ turned(k, n) for m, n in ((5, 3), (105, 103), (3, 5)))
    assert abs(near - shifted) < 1e-4
    assert abs(near - other) > 1e-2, "before and behind are not the same"
    assert abs(turned(q, 50).norm() - q.norm()) < 1e-5


def test_alibi_slopes_by_hand():
    """8 heads: 1/2 … 1/256. For 6 heads MPT takes of these 8 every second one first."""
    assert alibi_slopes(8, 8.0).tolist() == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]
    assert alibi_slopes(6, 8.0).tolist() == [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8]
    assert alibi_slopes(2, 4.0).tolist() == [1 / 4, 1 / 16]
    assert alibi_slopes(1, 8.0).tolist() == [1 / 256]


@pytest.mark.parametrize("family", ["toy", "gpt2", "neox", "mpt", "llama"])
def test_reading_at_some_positions_is_reading_at_all_of_them_and_picking(family):
    """Where norm and mlp of the last block are spared elsewhere; behind a cache too, and no cache is the poorer for it."""
    lm = tiny_lm(family)
    x = random(2, 9, lm.config.d)
    at = torch.rand(2, 9, generator=torch.Generator().manual_seed(0)) < 0.4
    whole, _ = lm(x)
    assert close(lm(x, at=at)[0], whole[at])
    _, cache = lm(x[:, :4], use_cache=True, at=at[:, :4])
    assert close(lm(x[:, 4:], cache=cache, at=at[:, 4:])[0], whole[:, 4:][at[:, 4:]], 1e-4)


def test_the_causal_convolution_is_a_loop_over_the_last_tokens():
    """out_l = x_l + Σ_back weight[back] · x_(l − back), each channel alone, nothing before the beginning."""
    conv = enliven(CausalConv(6, 3))
    x = random(2, 5, 6)
    out, tail = conv(x, None)
    for l in range(5):
        expected = x[:, l] + sum(conv.weight[back] * x[:, l - back] for back in range(3) if l >= back)
        assert close(out[:, l], expected)
    assert torch.equal(tail, x[:, -2:])
    first, tail = conv(x[:, :1], None)
    rest, _ = conv(x[:, 1:], tail)
    assert close(torch.cat([first, rest], dim=1), out)


def test_a_fresh_convolution_does_nothing():
    """Its weights start at zero: the toy model begins as an ordinary decoder."""
    x = random(2, 5, 6)
    assert torch.equal(CausalConv(6, 3)(x, None)[0], x)


def test_the_loss_is_the_mean_over_labelled_tokens_of_what_the_position_before_predicts():
    """Position l predicts label l + 1; −100 is not counted, nor is a label at the very first place."""
    logits, labels = random(2, 5, 11, seed=1), torch.tensor([[9, -100, 3, 4, -100], [-100, -100, -100, -100, 7]])
    terms = []
    for b in range(2):
        for l in range(4):
            if labels[b, l + 1] != -100:
                terms.append(-math.log(logits[b, l].softmax(-1)[labels[b, l + 1]]))
    assert len(terms) == 3
    assert abs(float(next_token_loss(logits, labels)) - sum(terms) / 3) < 1e-5


def test_no_label_at_all_is_a_loss_of_zero_and_not_nan():
    """A batch whose text is all unscored must not poison the run."""
    logits = random(2, 5, 11).requires_grad_()
    loss = next_token_loss(logits, torch.full((2, 5), -100))
    loss.backward()
    assert loss == 0 and not logits.grad.any()


def test_the_loss_of_the_language_model_is_that_of_its_logits():
    """`lm.loss` is for the stage in which the tongue learns alone."""
    lm, ids = tiny_lm(), torch.tensor([[1, 5, 3, 8], [1, 4, 4, 2]])
    labels = ids.masked_fill(ids == 1, -100)
    assert torch.equal(lm.loss(ids, labels), next_token_loss(lm(lm.embed(ids))[0], labels))


# ------------------------------------------------------------------------------ what is read once for several rows


@every_family
def test_text_behind_a_cache_may_be_padded_on_the_right(family):
    """Queries of 4, 1 and 6 tokens behind prompts of 3, 5 and 2, then 2 more tokens each: as if each stood alone."""
    lm = tiny_lm(family)
    lengths = ((3, 5, 2), (4, 1, 6), (2, 2, 2))
    prompts, queries, more = ([random(n, lm.config.d, seed=10 * i + n) for n in ns] for i, ns in enumerate(lengths))
    _, cache = lm(*padded(prompts, "right"), use_cache=True)
    x, mask = padded(queries, "right")
    first, cache = lm(x, mask, cache)
    second, cache = lm(torch.stack(more), cache=cache)
    assert cache.mask.sum(1).tolist() == [9, 8, 10]
    for b in range(3):
        alone = lm(torch.cat([prompts[b], queries[b], more[b]])[None])[0][0]
        n = len(prompts[b])
        assert close(torch.cat([first[b, mask[b]], second[b]]), alone[n:])


@pytest.mark.parametrize("family", ["toy", "neox", "mpt"])
def test_padding_on_the_left_behind_a_cache_is_refused_only_where_a_convolution_stands(family):
    """It would put padding between a token and the one before it; attention and positions do not mind."""
    lm = tiny_lm(family)
    _, cache = lm(random(2, 3, lm.config.d, seed=1), use_cache=True)
    rows = [random(n, lm.config.d, seed=n) for n in (4, 2)]
    x, mask = padded(rows, "left")
    if family == "toy":
        with pytest.raises(ValueError, match="behind a cache, padding stands on the right"):
            lm(x, mask, cache)
        return
    logits, _ = lm(x, mask, cache)
    for b, row in enumerate(rows):
        whole = torch.cat([random(2, 3, lm.config.d, seed=1)[b], row])
        assert close(logits[b, mask[b]], lm(whole[None])[0][0, 3:])


def same_memory(one, other) -> bool:
    """Are these the keys and values of all layers at the same place in memory, of the same shape?"""
    pairs = [(a, b) for x, y in zip(one, other, strict=True) for a, b in ((x.k, y.k), (x.v, y.v))]
    return all(a.data_ptr() == b.data_ptr() and a.shape == b.shape for a, b in pairs)


def two_prompts(family: str = "toy"):
    lm = tiny_lm(family)
    return lm, lm(random(2, 5, lm.config.d, seed=1), use_cache=True)[1]


@pytest.mark.parametrize(
    "rows", [[0, 1], [0, 0, 0, 1, 1, 1], [0, 0, 1, 1]], ids=["as they are", "three of each", "two of each"]
)  # fmt: skip
def test_repeated_rows_share_their_prompt_in_memory(rows):
    """Row b of B reads prompt b // (B / B0), the very same tensors: queries, beams and answers cost no copy of it."""
    _, cache = two_prompts()
    picked = cache.select(torch.tensor(rows))
    assert same_memory(picked.shared, cache.own) and picked.own is None


@pytest.mark.parametrize(
    "rows", [[1, 0], [0, 1, 1], [0, 0, 0, 1], [1, 1], [0, 0]], ids=["swapped", "uneven", "3 and 1", "the second", "the first"]
)
@every_family
def test_rows_that_leave_their_prompt_take_a_copy_of_it_along(family, rows):
    """Wherever a row goes, it goes on from its own text."""
    lm, cache = two_prompts(family)
    picked, x = cache.select(torch.tensor(rows)), random(len(rows), 2, lm.config.d, seed=3)
    assert not same_memory(picked.shared, cache.own)
    prompts = random(2, 5, lm.config.d, seed=1)
    assert close(lm(x, cache=picked)[0], lm(torch.cat([prompts[rows], x], dim=1))[0][:, 5:])


@every_family
def test_beams_are_reordered_within_their_prompt_without_touching_it(family):
    """Two prompts, three beams each; each has written two tokens, then the beams of each prompt change places."""
    lm, cache = two_prompts(family)
    prompts, written, more = (random(n, L, lm.config.d, seed=s) for s, (n, L) in enumerate([(2, 5), (6, 2), (6, 1)], 1))
    _, beams = lm(written, cache=cache.select(torch.tensor([0, 0, 0, 1, 1, 1])))
    order = torch.tensor([2, 0, 2, 3, 3, 5])
    picked = beams.select(order)
    assert same_memory(picked.shared, cache.own) and picked.own[0].length == 2
    logits, _ = lm(more, cache=picked)
    whole = torch.cat([prompts.repeat_interleave(3, 0), written[order], more], dim=1)
    assert close(logits, lm(whole)[0][:, 7:])


@pytest.mark.parametrize("shared", [False, True], ids=["all is own", "a shared prompt"])
@every_family
def test_a_text_that_grows_piece_by_piece_reads_as_if_it_were_one(family, shared):
    """280 tokens behind a prompt of 5: without a gradient its keys are written into the room behind the earlier ones."""
    lm, rows = tiny_lm(family, max_length=400), 2 if shared else 1
    prompt, text = random(1, 5, lm.config.d, seed=1), random(rows, 280, lm.config.d, seed=2)
    whole, _ = lm(torch.cat([prompt.expand(rows, -1, -1), text], dim=1))
    for gradient in (False, True):
        with torch.set_grad_enabled(gradient):
            _, cache = lm(prompt, use_cache=True)
            cache, parts = (cache.select(torch.tensor([0, 0])) if shared else cache), []
            for part in text.split([1, 31, 1, 1, 94, 1, 127, 1, 22, 1], dim=1):
                logits, cache = lm(part, cache=cache)
                parts.append(logits)
        assert close(torch.cat(parts, dim=1), whole[:, 5:], 1e-4) and cache.length == 285
        assert cache.own[0].length == (280 if shared else 285)
        assert (cache.shared[0].length == 5) if shared else cache.shared is None


@pytest.mark.parametrize("width", [2, 3, 8])
def test_the_tail_of_the_convolution_does_not_keep_the_text_it_was_cut_from(width):
    """A view of the last tokens would hold all of them in memory, in each layer."""
    for end in (None, torch.tensor([50, 30])):
        _, tail = CausalConv(6, width)(random(2, 50, 6), None, end)
        assert tail.untyped_storage().nbytes() == 2 * (width - 1) * 6 * 4
