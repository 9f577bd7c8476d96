"""Specification of `gated_xattn.py`: phi, the mask, and GATED XATTN-DENSE (sections 2.2 and 2.3, figures 4 and 7)."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import close, enliven, random, tiny_config

from minflamingo.config import ResamplerConfig
from minflamingo.gated_xattn import GatedCrossAttentionDense, MaskedCrossAttention, media_index, xattn_mask

R, N, L, D, DV = 3, 2, 6, 16, 12  # latents, images, text tokens, widths of text and of visual tokens
SMALL = tiny_config(lm={"d": D}, resampler=ResamplerConfig(d=DV, n_latents=R))


def is_image(layout: str) -> torch.Tensor:
    """ "..#.#" -> (1, L) bool: "#" is an <image> token."""
    return torch.tensor([[letter == "#" for letter in layout]])


PHI = torch.tensor([[0, 1, 1, 2, 2, 2]])  # of ".#.#.."


def gated_layer(**changes) -> GatedCrossAttentionDense:
    return enliven(GatedCrossAttentionDense(replace(SMALL, **changes)))


def run(layer: GatedCrossAttentionDense, y: torch.Tensor, visual: torch.Tensor, phi: torch.Tensor = PHI) -> torch.Tensor:
    return layer(y, layer.xattn.project_media(visual), phi, R)


def text_and_visual() -> tuple[torch.Tensor, torch.Tensor]:
    return random(1, L, D, seed=1), random(1, N, R, DV, seed=2)


each_layout = pytest.mark.parametrize("layout, last, following", [
    ("..#..#.", [0, 0, 1, 1, 1, 2, 2], [1, 1, 1, 2, 2, 2, 0]),  # the example of the module
    (".....", [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]),
    ("#....", [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]),
    ("....#", [0, 0, 0, 0, 1], [1, 1, 1, 1, 1]),
    ("##.#.", [1, 2, 2, 3, 3], [1, 2, 3, 3, 0]),
    (".###.", [0, 1, 2, 3, 3], [1, 1, 2, 3, 0]),
])  # fmt: skip


@pytest.mark.media_index(points=3)
@each_layout
def test_phi_is_the_number_of_the_last_image(layout, last, following):
    """Figure 7: 0 before the first image. An <image> token has its own number."""
    assert media_index(is_image(layout)).tolist() == [last]


@pytest.mark.media_index(points=3)
@each_layout
def test_in_rows_with_attend_next_phi_is_the_number_of_the_next_image(layout, last, following):
    """Section 2.4, p_next, chosen per row: 0 after the last image of the row. An <image> token has its own number."""
    rows = torch.cat([is_image(row) for row in (layout, layout, "#" * len(layout))])
    phi = media_index(rows, attend_next=torch.tensor([False, True, False])).tolist()
    assert phi == [last, following, list(range(1, len(layout) + 1))]


@pytest.mark.xattn_mask(points=3)
def test_the_mask_allows_exactly_the_visual_tokens_of_image_phi():
    """Section 2.3: a loop over tokens, images and latents; images are numbered from 1."""
    phi = torch.tensor([[0, 0, 1, 3], [1, 2, 2, 0]])
    mask = xattn_mask(phi, n_media=3, n_latents=2)
    assert mask.shape == (2, 1, 4, 6)
    for b in range(2):
        for l in range(4):
            expected = [n == phi[b, l] for n in (1, 2, 3) for _ in range(2)]
            assert mask[b, 0, l].tolist() == expected, f"a token with phi = {phi[b, l]} of 3 images with 2 visual tokens each"


def norm(n: torch.nn.Module, t: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(t, t.shape[-1:], n.weight, n.bias) if isinstance(n, torch.nn.LayerNorm) else t


def attended(x: MaskedCrossAttention, token: torch.Tensor, visual: torch.Tensor) -> torch.Tensor:
    """Cross-attention of one token (D,) to the visual tokens (R, D_v) of one image, head by head."""
    q, (k, v) = x.to_q.weight @ norm(x.norm, token), (visual @ x.to_kv.weight.T).chunk(2, dim=-1)
    heads = []
    for h in (slice(0, 8), slice(8, 16)):
        scores = norm(x.k_norm, k[:, h]) @ norm(x.q_norm, q[h]) / math.sqrt(8)
        heads.append(scores.softmax(0) @ v[:, h])
    return x.to_out.weight @ torch.cat(heads)


@pytest.mark.cross_attention(points=3)
@pytest.mark.parametrize("qk_norm", [False, True])
def test_cross_attention_is_attention_from_text_to_the_visual_tokens_of_image_phi(qk_norm):
    """Section 2.2: queries from the text, keys and values from the visual tokens. Each row has its own phi."""
    xattn, y, visual = gated_layer(xattn_qk_norm=qk_norm).xattn, random(3, L, D, seed=1), random(3, N, R, DV, seed=2)
    phi = torch.tensor([[0, 1, 1, 2, 2, 2], [0, 0, 0, 0, 0, 0], [2, 2, 1, 1, 0, 0]])
    out = xattn(y, xattn.project_media(visual), phi, R)
    for b, row in enumerate(phi.tolist()):
        for l, n in enumerate(row):
            expected = attended(xattn, y[b, l], visual[b, n - 1]) if n else torch.zeros(D)
            assert close(out[b, l], expected), f"row {b}, token {l}, phi = {n}"


@pytest.mark.gated_layer(points=3)
@pytest.mark.parametrize(
    "changes", [{}, {"xattn_qk_norm": True}, {"xattn_vector_gate": True}, {"xattn_gated_mlp": True, "xattn_d_ff": 20}], ids=str
)
def test_gated_xattn_dense_is_the_papers_equations(changes):
    """Figure 4: y += tanh(alpha_xattn) * attention(y, visual); y += tanh(alpha_dense) * ff(y), token by token."""
    layer, (y, visual) = gated_layer(**changes), text_and_visual()
    out = run(layer, y, visual)
    for l, phi in enumerate(PHI[0].tolist()):
        token = y[0, l]
        if phi:
            token = token + layer.alpha_xattn.tanh() * attended(layer.xattn, token, visual[0, phi - 1])
        z = norm(layer.ff_norm, token)
        act = layer.ff.up.weight @ z if layer.ff.gate is None else layer.ff.gate.weight @ z
        hidden = act.clamp_min(0) ** 2 if layer.ff.gate is None else act.clamp_min(0) ** 2 * (layer.ff.up.weight @ z)
        assert close(out[0, l], token + layer.alpha_dense.tanh() * (layer.ff.out.weight @ hidden)), f"token {l}, phi = {phi}"
    no_image = torch.zeros_like(PHI)
    assert close(layer(y, None, no_image, R), run(layer, y, visual, no_image)), "text without any image"


@pytest.mark.gated_layer(points=2)
def test_both_gates_start_at_zero_so_a_new_layer_changes_nothing():
    """Section 2.2: tanh(0) = 0, bit for bit, with one gate per layer or one per channel."""
    y, visual = text_and_visual()
    for config in (SMALL, replace(SMALL, xattn_vector_gate=True)):
        assert torch.equal(run(GatedCrossAttentionDense(config), y, visual), y), "a new layer changes the text"


@pytest.mark.gated_layer(points=2)
@pytest.mark.parametrize("gate", ["alpha_xattn", "alpha_dense"])
def test_each_gate_has_a_gradient_at_zero_and_opens_its_own_part(gate):
    """Figure 4: both gates can open. The attention changes tokens with an image; the feed-forward block changes all."""
    layer, (y, visual) = gated_layer(), text_and_visual()
    with torch.no_grad():
        layer.alpha_xattn.zero_()
        layer.alpha_dense.zero_()
    run(layer, y, visual).square().sum().backward()
    assert getattr(layer, gate).grad.abs() > 0, "a closed gate without a gradient never opens"
    with torch.no_grad():
        getattr(layer, gate).fill_(0.5)
    changed = (run(layer, y, visual) - y).abs().amax(-1)[0] > 0
    assert changed.tolist() == [gate == "alpha_dense"] + [True] * 5, "tokens that an open gate changes; the first has no image"


@pytest.mark.xattn_mask(points=2)
@pytest.mark.cross_attention(points=2)
@pytest.mark.parametrize("phi", [PHI, torch.tensor([[1, 1, 2, 2, 0, 0]])], ids=["last", "attend_next"])
def test_a_token_attends_to_the_visual_tokens_of_its_own_image_only(phi):
    """Section 2.3: gradient probes. Other text tokens have no influence: text is mixed by the LM's self-attention."""
    xattn, (y, visual) = gated_layer().xattn, text_and_visual()
    for l, own in enumerate(phi[0].tolist()):
        out = xattn(y.requires_grad_(), xattn.project_media(visual.requires_grad_()), phi, R)
        to_text, to_visual = torch.autograd.grad(out[0, l].square().sum(), (y, visual))
        reached = (to_visual[0].abs().amax(-1) > 0).tolist()
        assert reached == [[n + 1 == own] * R for n in range(N)], f"visual tokens that reach token {l}, phi = {own}"
        assert (to_text[0].abs().amax(-1) > 0).tolist() == [m == l and own > 0 for m in range(L)], f"text reaching token {l}"


@pytest.mark.xattn_mask(points=1)
@pytest.mark.cross_attention(points=1)
def test_a_token_before_the_first_image_gets_exactly_zero_from_cross_attention():
    """Section 2.3: phi = 0 gives zero, not an average over later images."""
    xattn, (y, visual) = gated_layer().xattn, text_and_visual()
    out = xattn(y, xattn.project_media(visual), PHI, R)
    assert torch.equal(out[0, 0], torch.zeros(D)), "a token without an image"
    assert out[0, 1:].abs().amax(-1).min() > 0, "a token with an image"


@pytest.mark.cross_attention(points=2)
def test_the_projection_of_media_holds_keys_first_and_values_second():
    """Section 2.2; `to_kv`: rows of keys, then rows of values, heads in blocks. The visual tokens are not normalised again."""
    xattn, visual = enliven(MaskedCrossAttention(SMALL)), random(2, N, R, DV)
    k, v = xattn.project_media(visual)
    weight = xattn.to_kv.weight.view(2, 2, 8, DV)  # keys or values, head, channel, D_v
    assert close(k, torch.einsum("hcd,bnd->bhnc", weight[0], visual.flatten(1, 2))), "keys"
    assert close(v, torch.einsum("hcd,bnd->bhnc", weight[1], visual.flatten(1, 2))), "values"
