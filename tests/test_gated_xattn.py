"""The bridge: phi, the mask, and the gated cross-attention (paper §2.2–2.3, fig. 4 and 7)."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import close, enliven, random, tiny_config

from minflamingo.config import ResamplerConfig
from minflamingo.gated_xattn import GatedCrossAttentionDense, MaskedCrossAttention, media_index, xattn_mask

YES = torch.tensor([True])


def row(layout: str) -> torch.Tensor:
    """ "..#.#" → is_image (1, L): "#" is an <image>."""
    return torch.tensor([[letter == "#" for letter in layout]])


@pytest.mark.parametrize(
    "layout, last, following",
    [
        ("..#..#.", [0, 0, 1, 1, 1, 2, 2], [1, 1, 1, 2, 2, 2, 0]),  # the docstring's
        (".....", [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]),
        ("#....", [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]),
        ("....#", [0, 0, 0, 0, 1], [1, 1, 1, 1, 1]),
        ("##.#.", [1, 2, 2, 3, 3], [1, 2, 3, 3, 0]),  # adjacent images: text sees the later one
        (".###.", [0, 1, 2, 3, 3], [1, 1, 2, 3, 0]),
    ],
)
def test_phi_is_the_number_of_the_last_image_or_in_the_p_next_layout_of_the_following_one(layout, last, following):
    """Fig. 7, by hand; an <image> token always means itself; behind the last image nothing follows (§2.4, p_next)."""
    assert media_index(row(layout))[0].tolist() == last
    assert media_index(row(layout), attend_next=~YES)[0].tolist() == last
    assert media_index(row(layout), attend_next=YES)[0].tolist() == following


def test_each_row_chooses_its_own_layout():
    """p_next is drawn per sequence: one row looks back, the other forward."""
    both = media_index(row("..#..#.").expand(2, -1), attend_next=torch.tensor([False, True]))
    assert both.tolist() == [[0, 0, 1, 1, 1, 2, 2], [1, 1, 1, 2, 2, 2, 0]]


def test_counting_goes_on_from_the_images_in_a_cache():
    """A text read in two pieces has the phi of the whole."""
    whole = media_index(row("..#.#..#."))
    first, rest = row("..#.#"), row("..#.")
    assert torch.equal(torch.cat([media_index(first), media_index(rest, before=first.sum(1))], dim=1), whole)


@pytest.mark.parametrize("attend", ["last", "all"])
def test_the_mask_is_a_loop_over_tokens_and_images(attend):
    """Token l sees visual token r of image n exactly if n = phi(l), or 1 ≤ n ≤ phi(l) in the ablation "all"."""
    phi = torch.tensor([[0, 0, 1, 3], [1, 2, 2, 0]])
    mask = xattn_mask(phi, n_media=3, n_latents=2, attend=attend)
    for b in range(2):
        for l in range(4):
            for n in (1, 2, 3):
                for r in (0, 1):
                    expected = n == phi[b, l] if attend == "last" else n <= phi[b, l]
                    assert mask[b, 0, l, (n - 1) * 2 + r] == expected
    docstring = xattn_mask(torch.tensor([[0, 1, 2]]), n_media=2, n_latents=2)[0, 0]
    assert docstring.int().tolist() == [[0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1]]


def test_text_before_the_first_image_sees_no_future_image_in_the_ablation_either():
    """(Without the mask of the last image, others let such text attend to all images, future ones too.)"""
    assert not xattn_mask(torch.tensor([[0]]), n_media=3, n_latents=2, attend="all").any()


# ------------------------------------------------------------------------------------------------ the cross-attention

R, N, L = 3, 2, 6
PHI = media_index(row(".#.#.."))  # 0 1 1 2 2 2
SMALL = tiny_config(lm={"d": 16}, resampler=ResamplerConfig(d=12), xattn_heads=2, xattn_d_head=8)


def bridge(seed: int = 0) -> GatedCrossAttentionDense:
    return enliven(GatedCrossAttentionDense(SMALL), seed)


def run(layer: GatedCrossAttentionDense, y, visual, attend: str = "last"):
    return layer(y, *layer.xattn.project_media(visual), xattn_mask(PHI, N, R, attend))


def test_gated_xattn_dense_is_the_papers_equations():
    """y += tanh(alpha_xattn) · attention(y, visual); y += tanh(alpha_dense) · ffw(y) (fig. 4), token by token."""
    layer, y, visual = bridge(), random(1, L, 16, seed=1), random(1, N * R, 12, seed=2)
    out = run(layer, y, visual)
    x, norm = layer.xattn, lambda n, t: F.layer_norm(t, (16,), n.weight, n.bias)
    for l, phi in enumerate(PHI[0].tolist()):
        token = y[0, l]
        if phi:
            seen = visual[0, (phi - 1) * R : phi * R]
            q, (k, v) = x.to_q.weight @ norm(x.norm, token), (seen @ x.to_kv.weight.T).chunk(2, dim=-1)
            heads = [
                (k[:, h] @ q[h] / math.sqrt(8)).softmax(0) @ v[:, h] for h in (slice(0, 8), slice(8, 16))
            ]  # fmt: skip
            token = token + layer.alpha_xattn.tanh() * (x.to_out.weight @ torch.cat(heads))
        hidden = (layer.ff.up.weight @ norm(layer.ff_norm, token)).clamp_min(0) ** 2
        token = token + layer.alpha_dense.tanh() * (layer.ff.out.weight @ hidden)
        assert close(out[0, l], token)


def test_with_both_gates_at_zero_the_output_is_the_input_bit_for_bit():
    """tanh(0) = 0 (§2.2). A fresh layer is born that way; every other parameter may be anything."""
    fresh = GatedCrossAttentionDense(SMALL)
    assert fresh.alpha_xattn == fresh.alpha_dense == 0
    layer, y = bridge(), random(1, L, 16, seed=1)
    with torch.no_grad():
        layer.alpha_xattn.zero_()
        layer.alpha_dense.zero_()
    for shut in (fresh, layer):
        assert torch.equal(run(shut, y, random(1, N * R, 12)), y)


@pytest.mark.parametrize("gate", ["alpha_xattn", "alpha_dense"])
def test_each_gate_opens_its_own_half(gate):
    """Both gates have a gradient at zero, so both can open; one alone changes the output in its own way."""
    layer, y, visual = bridge(), random(1, L, 16, seed=1), random(1, N * R, 12, seed=2)
    with torch.no_grad():
        layer.alpha_xattn.zero_()
        layer.alpha_dense.zero_()
    run(layer, y, visual).square().sum().backward()
    assert getattr(layer, gate).grad.abs() > 0
    with torch.no_grad():
        getattr(layer, gate).fill_(0.5)
    changed = (run(layer, y, visual) - y).abs().amax(-1)[0] > 0
    assert changed.tolist() == ([False] + [True] * 5 if gate == "alpha_xattn" else [True] * 6)


def test_a_token_sees_the_tokens_of_its_own_image_and_no_others():
    """Per-image masking (§2.3): a gradient probe from every text token to every visual token."""
    layer, y, visual = bridge(), random(1, L, 16, seed=1), random(1, N * R, 12, seed=2).requires_grad_()
    out = run(layer, y, visual)
    for l, phi in enumerate(PHI[0].tolist()):
        (grad,) = torch.autograd.grad(out[0, l].square().sum(), visual, retain_graph=True)
        seen = grad[0].abs().amax(-1).view(N, R) > 0
        assert seen.tolist() == [[n + 1 == phi] * R for n in range(N)]


def test_in_the_ablation_a_token_sees_earlier_images_as_well():
    """attend="all": every image at or before the token, none behind it."""
    layer, y, visual = bridge(), random(1, L, 16, seed=1), random(1, N * R, 12, seed=2).requires_grad_()
    out = run(layer, y, visual, attend="all")
    for l, phi in enumerate(PHI[0].tolist()):
        (grad,) = torch.autograd.grad(out[0, l].square().sum(), visual, retain_graph=True)
        seen = grad[0].abs().amax(-1).view(N, R) > 0
        assert seen.tolist() == [[n + 1 <= phi] * R for n in range(N)]


def test_tokens_before_the_first_image_get_exactly_nothing_from_cross_attention():
    """§2.3: phi = 0 is zero out of the attention, not an average; the dense half works on them all the same."""
    layer, y, visual = bridge(), random(1, L, 16, seed=1), random(1, N * R, 12, seed=2)
    out = layer.xattn(y, *layer.xattn.project_media(visual), xattn_mask(PHI, N, R))
    assert torch.equal(out[0, 0], torch.zeros(16)) and out[0, 1:].abs().amax(-1).min() > 0


def test_tokens_do_not_mix_in_the_bridge():
    """Cross-attention reads images only: what a token becomes does not depend on other text."""
    layer, y, visual = bridge(), random(1, L, 16, seed=1).requires_grad_(), random(1, N * R, 12, seed=2)
    (grad,) = torch.autograd.grad(run(layer, y, visual)[0, 3].sum(), y)
    assert grad[0].abs().amax(-1).gt(0).tolist() == [False, False, False, True, False, False]


def test_keys_are_the_first_half_of_the_projection_and_values_the_second():
    """`to_kv`: rows of k, then rows of v, heads in blocks — OpenFlamingo's layout. Media are not normalised."""
    xattn = enliven(MaskedCrossAttention(SMALL))
    visual = random(2, N * R, 12)
    k, v = xattn.project_media(visual)
    weight = xattn.to_kv.weight.view(2, 2, 8, 12)  # k or v, head, channel, D_visual
    assert close(k, torch.einsum("hcd,bnd->bhnc", weight[0], visual))
    assert close(v, torch.einsum("hcd,bnd->bhnc", weight[1], visual))


def test_the_weights_for_figures_are_those_of_the_output():
    """`weights` · values, through to_out, is the forward pass; a token with phi = 0 has none."""
    layer, y, visual = bridge(), random(1, L, 16, seed=1), random(1, N * R, 12, seed=2)
    k, v = layer.xattn.project_media(visual)
    mask = xattn_mask(PHI, N, R)
    weights = layer.xattn.weights(y, k, mask)
    assert close((weights @ v).transpose(1, 2).flatten(2) @ layer.xattn.to_out.weight.T, layer.xattn(y, k, v, mask))
    assert close(weights.sum(-1), (PHI > 0).float()[:, None].expand(1, 2, L))
