"""The bridge: phi, the mask, and the gated cross-attention (paper §2.2–2.3, fig. 4 and 7)."""

from __future__ import annotations

import math
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from conftest import close, enliven, random, tiny_config

from minflamingo.attention import attention
from minflamingo.config import ResamplerConfig
from minflamingo.gated_xattn import (
    GatedCrossAttentionDense,
    MaskedCrossAttention,
    cut_into_segments,
    media_index,
    segment_attention,
    xattn_mask,
)

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


# -------------------------------------------------------------------------------------------- the same in segments


def phi_of(*layouts: str, forward: bool = False) -> torch.Tensor:
    """Rows of one length → phi (B, L)."""
    is_image = torch.cat([row(layout) for layout in layouts])
    return media_index(is_image, torch.full((len(layouts),), forward))


LAYOUTS = {
    "text before the first image": phi_of("...#..#..", "#....#..."),
    "adjacent images": phi_of("###.#", ".####"),
    "padding on the left": phi_of("....#.#", "#.#...."),
    "padding on the right": phi_of("#.#....", "....#.#"),
    "a long piece beside short ones": phi_of("#.#.#......................#."),
    "rows with fewer images": phi_of("#.#.#.#.", "........", "..#....."),
    "p_next": phi_of("..#..#.", "#....#.", "##.#...", forward=True),
    "one image": phi_of("..#.."),
    "no token sees anything": phi_of("......", "......"),
    "shots of one length": phi_of("#..#..#..", "#..#..#.."),
    "a single token": phi_of("#"),
}


def both_ways(phi: torch.Tensor, n_media: int, latents: int = 3, heads: int = 2, d: int = 4):
    """Values and gradients of `attention` under the mask, and of `segment_attention`, in double precision."""
    B, L = phi.shape
    leaves = [random(B, heads, n, d, seed=s).double().requires_grad_() for s, n in enumerate((L, *[n_media * latents] * 2))]
    weight, found = random(B, heads, L, d, seed=5).double(), []
    for out in (
        attention(*leaves, xattn_mask(phi, n_media, latents)),
        segment_attention(*leaves, cut_into_segments(phi, n_media)),
    ):
        nothing = sum(0 * x.sum() for x in leaves)  # where no token sees anything, `out` is a constant
        found.append((out, *torch.autograd.grad((out * weight).sum() + nothing, leaves)))
    return found


@pytest.mark.parametrize("unused", [0, 1], ids=["", "an image nobody sees"])
@pytest.mark.parametrize("phi", LAYOUTS.values(), ids=LAYOUTS)
def test_segments_are_the_mask_in_values_and_gradients(phi, unused):
    """Fig. 7 twice: every token against all images under the mask, or each piece against its own image alone."""
    masked, cut = both_ways(phi, max(1, int(phi.max())) + unused)
    assert all(close(a, b, 1e-12) for a, b in zip(masked, cut, strict=True))
    assert not cut[0].transpose(1, 2)[phi == 0].any(), "who sees nothing receives exactly zero"


def test_segments_are_the_mask_wherever_the_images_stand():
    """Sixty random pages of up to 4 rows, 30 tokens and 6 images, from an image at every second token to none at all."""
    dice = torch.Generator().manual_seed(0)
    for i in range(60):
        B, L = (int(torch.randint(1, n, (), generator=dice)) for n in (5, 31))
        is_image = torch.rand(B, L, generator=dice) < (0.05, 0.2, 0.5)[i % 3]
        phi = media_index(is_image, torch.rand(B, generator=dice) < 0.3)
        masked, cut = both_ways(phi, max(1, int(phi.max())))
        assert all(close(a, b, 1e-12) for a, b in zip(masked, cut, strict=True))
        blocks = cut_into_segments(phi, max(1, int(phi.max()))).token
        assert blocks.numel() <= 2 * int((phi > 0).sum()), "as much padding as text at most"


def test_long_pieces_are_cut_to_the_mean_length():
    """The docstring's example: 6 tokens in 2 pieces, so blocks of 3; the padding holds the first token."""
    cut = cut_into_segments(torch.tensor([[0, 1, 1, 1, 1, 2, 2]]), 2)
    assert cut.token.tolist() == [[1, 2, 3], [4, 0, 0], [5, 6, 0]] and cut.image.tolist() == [0, 0, 1]
    assert cut.blind.flatten().tolist() == [True] + [False] * 6
    uneven = cut_into_segments(LAYOUTS["a long piece beside short ones"], 4)
    assert uneven.token.shape == (6, 8) and uneven.image.tolist() == [0, 1, 2, 2, 2, 3]  # pieces of 2, 2, 23 and 2 tokens


def test_shots_of_one_length_need_no_padding_and_no_copies_of_the_images():
    """32 shots and a query of 16 tokens: 33 blocks of 16, block m looks at image m; in every row of a batch."""
    cut = cut_into_segments(phi_of(*["#..............." * 33] * 2), 33)
    assert cut.token.shape == (66, 16) and cut.image is None
    assert torch.equal(cut.token.flatten(), torch.arange(2 * 528))
    fewer = cut_into_segments(phi_of("#..#..", "#....."), 2)  # pieces of 3, 3 and 6 tokens; the second row has no image 2
    assert fewer.token.shape == (4, 4) and fewer.image.tolist() == [0, 1, 2, 2]


@pytest.mark.parametrize("n_media", [2, 8, 32])
def test_the_cost_grows_with_the_text_and_not_with_the_number_of_images(n_media):
    """Scores computed a head: L·R for even shots and at most 2·L·R for any, where the mask needs L·N·R."""
    entries = []

    def count(q, k, v):
        entries.append(q.shape[0] * q.shape[2] * k.shape[2])
        return attention(q, k, v)

    even, uneven = phi_of("#..." * n_media), phi_of("#" * n_media + "." * 3 * n_media)
    for phi in (even, uneven):
        L, k = phi.shape[1], random(1, 1, n_media * R, 4)
        with mock.patch("minflamingo.gated_xattn.attention", count):
            segment_attention(random(1, 1, L, 4), k, k, cut_into_segments(phi, n_media))
    assert entries[0] == L * R and entries[1] <= 2 * L * R


@pytest.mark.parametrize("phi", LAYOUTS.values(), ids=LAYOUTS)
def test_the_whole_bridge_reads_segments_as_it_reads_the_mask(phi):
    """GATED XATTN-DENSE takes either; norms, gates and projections around it are the same."""
    layer, n_media = bridge().double(), max(1, int(phi.max()))
    y, visual = random(*phi.shape, 16, seed=1).double(), random(len(phi), n_media * R, 12, seed=2).double()
    k, v = layer.xattn.project_media(visual)
    assert close(layer(y, k, v, xattn_mask(phi, n_media, R)), layer(y, k, v, cut_into_segments(phi, n_media)), 1e-12)
