"""The whole: what is frozen, what an image can reach, and that a batch is nothing but its samples (paper §2)."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import pytest
import torch
from conftest import EOC, LETTERS, batch_of, close, picture, prepare, random, tiny_config, tiny_flamingo

from minflamingo.data.sample import is_medium
from minflamingo.flamingo import Batch, Flamingo
from minflamingo.gated_xattn import Segments, cut_into_segments, media_index, xattn_mask
from minflamingo.loss import next_token_loss


def written_out(flamingo: Flamingo, pieces: list, bos: bool = True, attend_next: bool = False) -> torch.Tensor:
    """One sample → logits (L, V): each image seen alone, each token alone in each bridge, with only its own image."""
    tokens, own, images = [], [], []
    if bos:
        tokens, own = [flamingo.lm.embed.weight[LETTERS.bos_id]], [int(attend_next)]
    for piece in pieces:
        if is_medium(piece):
            images.append(flamingo.resampler(flamingo.vision(prepare(piece))[None])[0])  # (R, D_v)
            tokens.append(flamingo.new_embed.weight[0])
            own.append(len(images))
        else:
            ids = [LETTERS.eoc_id] if piece is EOC else LETTERS.encode(piece)
            tokens += [flamingo.lm.embed.weight[i] for i in ids]
            own += [len(images) + attend_next] * len(ids)

    def bridge(i, x):
        if i % flamingo.config.xattn_every:
            return x
        layer, out = flamingo.xattn_layers[str(i)], []
        for y, n in zip(x[0], own):
            y = y[None, None]
            if 1 <= n <= len(images):
                k, v = layer.xattn.project_media(images[n - 1][None])
                y = y + layer.alpha_xattn.tanh() * layer.xattn(y, k, v, None)
            out.append(y + layer.alpha_dense.tanh() * layer.ff(layer.ff_norm(y)))
        return torch.cat(out, dim=1)

    return flamingo.lm(torch.stack(tokens)[None], before_block=bridge)[0][0]


def agree(flamingo: Flamingo, rows: list[list], **how) -> bool:
    """Has every row of the batch the logits of its sample written out?"""
    batch = batch_of(*rows, **how)
    logits, _ = flamingo(batch)
    kinds = {k: v for k, v in how.items() if k != "pad"}
    return all(
        close(logits[b, batch.attention_mask[b]], written_out(flamingo, row, **kinds)) for b, row in enumerate(rows)
    )  # fmt: skip


def features_of(flamingo: Flamingo, batch: Batch) -> Batch:
    """The same batch with the eye's features instead of pixels, ready for a gradient probe."""
    B, N, T = batch.media.shape[:3]
    features = flamingo.vision(batch.media.flatten(0, 2)).detach().unflatten(0, (B, N, T))
    return replace(batch, media=features.requires_grad_())


# ------------------------------------------------------------------------------------------------ at initialisation


def test_at_initialisation_the_logits_are_the_frozen_lms_bit_for_bit():
    """§2.2: gates at 0, so images, masks and the dense halves add exactly nothing."""
    torch.manual_seed(0)
    flamingo = Flamingo(tiny_config())
    batch = batch_of(["a", picture(1), "bcd", EOC, picture(2, frames=3), "e"], [picture(3), "fgh"])
    logits, _ = flamingo(batch)
    assert torch.equal(logits, flamingo.lm(flamingo.embed(batch.ids), batch.attention_mask)[0])


def test_at_initialisation_the_gates_are_what_can_learn_first():
    """With shut gates no gradient passes to resampler and projections; the gates and the row of <image> have one."""
    torch.manual_seed(0)
    flamingo = Flamingo(tiny_config())
    flamingo(batch_of([picture(1), "abc", EOC]))[1].backward()
    moving = {n for n, p in flamingo.named_parameters() if p.grad is not None and p.grad.any()}
    gates = {f"xattn_layers.{i}.alpha_{half}" for i in (0, 2) for half in ("xattn", "dense")}
    assert moving == gates | {"new_embed.weight"}


def test_the_bridge_stands_before_every_nth_layer_from_the_first():
    """xattn_every = 2 of 3 layers: before layers 0 and 2."""
    assert list(tiny_flamingo().xattn_layers) == ["0", "2"]
    assert list(tiny_flamingo(xattn_every=3).xattn_layers) == ["0"]
    assert list(tiny_flamingo(xattn_every=1).xattn_layers) == ["0", "1", "2"]


# ---------------------------------------------------------------------------------------- the equations, as a whole


@pytest.mark.parametrize(
    "row",
    [
        ["ab", picture(1), "cd", EOC, picture(2), "ef"],
        [picture(1), picture(2), "a"],  # adjacent: text sees the second
        [picture(1, frames=3), "ab", picture(2), "c"],  # a video and an image in one sequence
        [picture(1, frames=7), "ab"],  # more frames than time embeddings
        ["a", picture(1)],
        ["abc"],
    ],
    ids=["page", "adjacent", "video and image", "long video", "image last", "text alone"],
)
@pytest.mark.parametrize("bos", [True, False], ids=["from the beginning", "mid-document"])
def test_a_sample_is_seen_as_the_paper_says(row, bos):
    """Fig. 3, 4, 7 written out: every image seen alone, every token beside its own image only; <BOS> or not."""
    assert agree(tiny_flamingo(), [row], bos=bos)


def test_in_the_p_next_layout_text_sees_the_image_behind_it():
    """§2.4: "a" looks at image 1 although it stands before it; "d", behind the last, looks at nothing."""
    assert agree(tiny_flamingo(), [["a", picture(1), "bc", picture(2), "d"]], attend_next=True)


@pytest.mark.parametrize("pad", ["right", "left"])
def test_samples_with_different_numbers_of_images_and_frames_share_a_batch(pad):
    """0, 1, 2 and 3 media, images and videos mixed, padding on either side: each as if alone."""
    rows = [
        [picture(1), "abc", EOC, picture(2), "de"],
        ["gh"],
        [picture(3, frames=6), "a"],
        ["ab", picture(4, frames=2), picture(5), "cdef", picture(6, frames=3), "gg"],
    ]
    assert agree(tiny_flamingo(), rows, pad=pad)


def test_a_row_is_not_affected_by_the_others():
    """No batch-wide switch: a gradient probe from each row's logits to the features and the images of all rows."""
    flamingo = tiny_flamingo()
    batch = features_of(flamingo, batch_of([picture(1), "abc"], ["d", picture(2), "ef"], ["gh"]))
    logits, _ = flamingo(batch)
    for b in range(3):
        own = logits[b, batch.attention_mask[b]].square().sum()
        (grad,) = torch.autograd.grad(own, batch.media, retain_graph=True)
        assert grad.flatten(1).any(1).tolist() == [b == other and b < 2 for other in range(3)]


def test_forty_images_in_one_sequence_run():
    """The paper trains with 5 and evaluates with 32; nothing in the model limits their number."""
    flamingo = tiny_flamingo(lm=dict(max_length=128))
    assert agree(flamingo, [[piece for n in range(40) for piece in (picture(n), "a")]])


def test_text_alone_reads_like_text_before_an_image():
    """phi = 0 either way: whether an image follows, or stands in another row of the batch, the past cannot know."""
    flamingo = tiny_flamingo()
    alone = batch_of(["abc"])
    assert alone.media is None
    logits, loss = flamingo(alone)
    assert torch.isfinite(loss) and not any(p.requires_grad for p in flamingo.vision.parameters())
    assert close(logits, flamingo(batch_of(["abc", picture(1), "d"]))[0][:, :4])
    assert close(logits, flamingo(batch_of(["abc"], [picture(1), "ab"]))[0][:1])


def test_text_alone_is_the_frozen_lms_at_initialisation():
    """Without images too, the output is the LM's bit for bit as long as the gates are shut."""
    flamingo = Flamingo(tiny_config())
    batch = batch_of(["abc", EOC], ["d"])
    assert torch.equal(flamingo(batch)[0], flamingo.lm(flamingo.lm.embed(batch.ids), batch.attention_mask)[0])


def test_features_given_are_pixels_given():
    """The eye is frozen, so its features may be computed once beforehand: the number of axes says which they are."""
    flamingo = tiny_flamingo()
    rows = [["a", picture(1), "bc", picture(2, frames=3)], [picture(3), "d"]]
    seen = [[flamingo.vision(prepare(p)) if is_medium(p) else p for p in row] for row in rows]
    assert close(flamingo(batch_of(*rows))[0], flamingo(batch_of(*seen))[0])


def test_the_loss_counts_the_labels_of_the_batch():
    """Negative log-likelihood of text given what is before it; the mean over labelled tokens of all samples (§2.4)."""
    flamingo = tiny_flamingo()
    rows = [["a", picture(1), "bc", EOC], [picture(2), "d"]]
    _, loss = flamingo(batch_of(*rows))
    terms = []
    for row in rows:
        logits, labels = written_out(flamingo, row), batch_of(row).labels[0]
        terms += [-logits[l - 1].log_softmax(-1)[labels[l]] for l in range(1, len(labels)) if labels[l] >= 0]
    assert len(terms) == 5
    assert close(loss, sum(terms) / 5)


def test_logits_are_over_the_vocabulary_of_the_language_model():
    """<image> is an input only: there is no logit for it (elsewhere added rows break the loss)."""
    logits, loss = tiny_flamingo()(batch_of([picture(1), "ab"]))
    assert logits.shape[-1] == LETTERS.vocab_size == LETTERS.image_id
    assert torch.isfinite(loss)


# ------------------------------------------------------------------------------------------ what an image can reach


def test_text_before_the_first_image_is_not_affected_by_images():
    """§2.3: phi = 0. Two pages that differ in their images agree up to the first of them, bit for bit."""
    flamingo = tiny_flamingo()
    a, _ = flamingo(batch_of(["abc", picture(1), "d"]))
    b, _ = flamingo(batch_of(["abc", picture(2), "d"]))
    assert torch.equal(a[:, :4], b[:, :4])
    assert (a[:, 4:] - b[:, 4:]).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("attend", ["last", "all"])
def test_an_earlier_image_reaches_later_text_through_self_attention_and_not_through_cross_attention(attend):
    """§2.3: behind image 2 cross-attention hands over image 2 alone; in the ablation "all" image 1 as well."""
    flamingo = tiny_flamingo(attend=attend)
    direct, logits = [], []
    for first in (1, 9):
        batch = batch_of([picture(first), "ab", picture(2), "cd"])
        logits.append(flamingo(batch)[0][0, -3:])
        phi = media_index(batch.ids == flamingo.image_id)
        mask = xattn_mask(phi, 2, flamingo.config.resampler.n_latents, attend)
        media = flamingo.project_media(flamingo.see(batch.media))
        direct.append(flamingo.xattn_layers["0"].xattn(flamingo.embed(batch.ids), *media[0], mask)[0, -3:])
    assert torch.equal(direct[0], direct[1]) == (attend == "last")
    assert (logits[0] - logits[1]).abs().amax(-1).min() > 1e-3


def test_no_token_sees_a_later_image_or_a_later_token():
    """p(y_l | y_<l, x_≤l): a gradient probe from each token's logits to every image."""
    flamingo = tiny_flamingo()
    batch = features_of(flamingo, batch_of(["a", picture(1), "b", picture(2), "c", picture(3)]))
    logits, _ = flamingo(batch)
    for l, images in enumerate([0, 0, 1, 1, 2, 2, 3]):
        (grad,) = torch.autograd.grad(logits[0, l].square().sum(), batch.media, retain_graph=True)
        assert grad[0].flatten(1).any(1).tolist() == [n < images for n in range(3)]


# ------------------------------------------------------------------------------------------------- what is frozen


def test_only_the_bridge_learns():
    """Resampler, GATED XATTN-DENSE and the row of <image> get a gradient, all of them; eye and tongue get none."""
    flamingo = tiny_flamingo()
    flamingo(batch_of(["a", picture(1, frames=4), "bc", EOC], [picture(2), "d"]))[1].backward()
    bridge = dict(flamingo.bridge_parameters())
    assert {n.split(".")[0] for n in bridge} == {"resampler", "xattn_layers", "new_embed"}
    for name, p in flamingo.named_parameters():
        assert (p.grad is not None and bool(p.grad.any())) == (name in bridge), name


def test_a_training_step_with_weight_decay_leaves_eye_and_tongue_bit_identical():
    """Frozen means frozen: also when the optimiser is handed every parameter there is. The whole bridge moves."""
    flamingo = tiny_flamingo().train()
    before = {n: p.clone() for n, p in flamingo.state_dict().items()}
    optimiser = torch.optim.AdamW(flamingo.parameters(), lr=0.1, weight_decay=0.5)
    for seed in (1, 2):
        optimiser.zero_grad()
        flamingo(batch_of(["a", picture(seed, frames=4), "bc", EOC]))[1].backward()
        optimiser.step()
    bridge = {n for n, _ in flamingo.bridge_parameters()}
    for name, p in flamingo.state_dict().items():
        assert torch.equal(p, before[name]) == (name not in bridge), name


def test_dropout_in_the_frozen_lm_stays_off_in_training():
    """(OpenFlamingo's `model.train()` wakes the frozen OPT's dropout of 0.1.)"""
    flamingo = tiny_flamingo(lm=dict(dropout=0.5))
    batch = batch_of([picture(1), "abc"])
    expected, _ = flamingo.eval()(batch)
    flamingo.train()
    assert flamingo.training and flamingo.resampler.training
    assert not flamingo.lm.training and not flamingo.vision.training
    assert torch.equal(flamingo(batch)[0], expected)
    flamingo.lm.requires_grad_(True)  # a tongue that is trained has its dropout
    assert not close(flamingo.train()(batch)[0], expected)
    assert torch.equal(flamingo.freeze()(batch)[0], expected), "freezing again puts it back to sleep"


def test_an_unfrozen_eye_gets_its_gradients():
    """§3.2: fine-tuning trains the vision encoder too. (In the others a no_grad forbids it.)"""
    flamingo = tiny_flamingo()
    flamingo.vision.requires_grad_(True)
    batch = batch_of([picture(1), "abc", picture(2), "d"])
    flamingo(batch)[1].backward()
    weights = list(flamingo.vision.parameters())
    features = flamingo.vision(batch.media.flatten(0, 2)).unflatten(0, (1, 2, 1))
    expected = torch.autograd.grad(flamingo(replace(batch, media=features))[1], weights)
    for p, grad in zip(weights, expected):
        assert p.grad.any() and close(p.grad, grad)


def test_no_graph_is_kept_through_a_frozen_eye():
    """Its activations would fill the memory for nothing."""
    flamingo, graphs = tiny_flamingo(), []
    flamingo.vision.register_forward_hook(lambda _m, _i, features: graphs.append(features.requires_grad))
    flamingo(batch_of([picture(1), "a"]))
    flamingo.vision.requires_grad_(True)
    flamingo(batch_of([picture(1), "a"]))
    assert graphs == [False, True]


def test_a_given_eye_and_tongue_are_frozen_and_keep_their_weights():
    """Flamingo is built around parts that exist."""
    donor = tiny_flamingo(seed=3)
    eye, tongue = donor.vision.requires_grad_(True), donor.lm.requires_grad_(True)
    before = [p.clone() for p in (*eye.parameters(), *tongue.parameters())]
    flamingo = Flamingo(tiny_config(), eye, tongue)
    assert flamingo.vision is eye and flamingo.lm is tongue
    assert all(torch.equal(a, b) for a, b in zip(before, (*eye.parameters(), *tongue.parameters())))
    assert not any(p.requires_grad for p in (*eye.parameters(), *tongue.parameters()))


def test_new_tokens_have_rows_of_their_own_and_leave_the_lms_table_alone():
    """Ids V, V + 1, … are `new_embed`'s; the frozen table is not made longer."""
    flamingo = Flamingo(tiny_config(n_new_tokens=2))
    V = LETTERS.vocab_size
    rows = flamingo.embed(torch.tensor([[1, V, V - 1, V + 1]]))[0]
    old, new = flamingo.lm.embed.weight, flamingo.new_embed.weight
    assert torch.equal(rows, torch.stack([old[1], new[0], old[V - 1], new[1]]))
    assert flamingo.lm.embed.num_embeddings == V


# ------------------------------------------------------------------------------------------- caches, state and errors


def test_reading_on_from_a_cache_equals_reading_at_once():
    """The new text looks at the image its row stopped at; rows of different lengths stand padded on the left."""
    flamingo = tiny_flamingo()
    rows = [["a", picture(1), "b", picture(2), "cd"], [picture(3), "abcd"], ["efgha", picture(4)], ["hg"]]
    batch = batch_of(*rows, pad="left")
    logits, cache = flamingo.read(batch, use_cache=True)
    parts = [logits]
    for ids in torch.tensor([3, 9, 4]).expand(len(rows), 3).split([1, 2], dim=1):
        logits, cache = flamingo.read_on(ids, cache)
        parts.append(logits)
    for b, row in enumerate(rows):
        alone = written_out(flamingo, [*row, "agb"])
        real = torch.cat([batch.attention_mask[b], torch.ones(3, dtype=torch.bool)])
        assert close(torch.cat(parts, dim=1)[b, real], alone)


def test_a_cache_of_other_rows_carries_their_images_along():
    """`select` repeats and reorders text, images and phi together."""
    flamingo = tiny_flamingo()
    rows = [[picture(1), "ab"], ["abc", picture(2), "d", picture(3)], ["ef"]]
    _, cache = flamingo.read(batch_of(*rows, pad="left"), use_cache=True)
    pick = [1, 2, 1, 0]
    logits, _ = flamingo.read_on(torch.tensor([[5], [6], [7], [8]]), cache.select(torch.tensor(pick)))
    for b, (row, letter) in enumerate(zip(pick, "cdef")):
        assert close(logits[b, 0], written_out(flamingo, [*rows[row], letter])[-1])


def test_reading_on_refuses_an_image_token():
    """A generated <image> would have no image. (In OpenFlamingo it resets the row to image 1 and blinds the others.)"""
    flamingo = tiny_flamingo()
    _, cache = flamingo.read(batch_of([picture(1), "a"]), use_cache=True)
    with pytest.raises(ValueError, match="read_on takes text only"):
        flamingo.read_on(torch.tensor([[flamingo.image_id]]), cache)


def test_nothing_is_kept_on_the_modules_between_calls():
    """No side channel: a call that fails midway leaves no trace, and the state of the model is its parameters."""
    flamingo = tiny_flamingo()
    batch = batch_of([picture(1), "ab"])
    expected, names = flamingo(batch)[0], [set(vars(m)) for m in flamingo.modules()]
    handle = flamingo.lm.blocks[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        flamingo.read(batch, use_cache=True)
    handle.remove()
    assert [set(vars(m)) for m in flamingo.modules()] == names
    assert torch.equal(flamingo(batch)[0], expected)
    assert torch.isfinite(flamingo(batch_of(["c"]))[0]).all()


@pytest.mark.parametrize("images, tokens", [(1, 2), (2, 1), (0, 1), (1, 0)])
def test_image_tokens_without_an_image_and_images_without_a_token_are_refused_by_sample(images, tokens):
    """(With more <image> tokens than images others silently average all images.) The error names the sample."""
    right = [picture(1), "a", picture(2), "b"]
    batch = batch_of(right, right, right)
    ids = torch.tensor([LETTERS.bos_id] + [LETTERS.image_id] * tokens + [3] * (4 - tokens))
    frames = torch.tensor([1] * images + [0] * (2 - images))
    batch.ids[1], batch.frames[1] = ids, frames
    with pytest.raises(ValueError, match=rf"{tokens} <image> tokens but {images} images in sample 1"):
        tiny_flamingo()(batch)


def test_image_tokens_in_a_batch_without_media_are_refused():
    """The same mistake when nobody has an image."""
    batch = batch_of(["ab"], ["c"])
    batch.ids[0, 2] = LETTERS.image_id
    with pytest.raises(ValueError, match="1 <image> tokens but 0 images in sample 0"):
        tiny_flamingo()(batch)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_pixels_that_are_no_numbers_are_refused_by_sample_and_image(bad):
    """One broken picture would poison the run without a word."""
    batch = batch_of([picture(1), "a", picture(2)], [picture(3), "b", picture(4)])
    batch.media[1, 0, 0, 2, 3, 3] = bad
    with pytest.raises(ValueError, match="sample 1, image 0 are not finite"):
        tiny_flamingo()(batch)


def test_features_of_another_eye_are_refused():
    """Their width is not the resampler's."""
    batch = replace(batch_of([picture(1), "a"]), media=random(1, 1, 1, 5, 24))
    with pytest.raises(ValueError, match=r"features of the eye: expected shape \(M, T, S, D=16\)"):
        tiny_flamingo()(batch)


def test_a_batch_moves_as_a_whole():
    """All tensors move, what is None stays None."""
    moved = batch_of([picture(1), "a"]).to("meta")
    assert all(v.is_meta for v in vars(moved).values())
    assert batch_of(["a"]).to("meta").media is None


@pytest.mark.parametrize("pad", ["left", "right"])
def test_the_loss_alone_is_the_loss_of_forward_with_the_same_gradients(pad):
    """The fast path makes logits where labels are; its plain twin makes them all."""
    batch = batch_of([picture(1), "ab", EOC, picture(2), "cde"], ["f", picture(3), "g"], pad=pad)
    gradients = []
    for loss_of in (lambda flamingo: flamingo.loss(batch), lambda flamingo: flamingo(batch)[1]):
        flamingo = tiny_flamingo()
        loss = loss_of(flamingo)
        loss.backward()
        gradients.append((loss.detach(), [p.grad for _, p in flamingo.bridge_parameters()]))
    (loss, ours), (expected, theirs) = gradients
    assert close(loss, expected) and expected > 1
    assert all(close(a, b, 1e-5) for a, b in zip(ours, theirs, strict=True))


def test_the_logits_of_some_positions_are_those_of_the_whole():
    """`at` picks rows; what they see does not change."""
    flamingo, batch = tiny_flamingo(), batch_of([picture(1), "ab", EOC, picture(2), "c"])
    at = torch.tensor([[False, True, True, False, False, False, True]])
    assert close(flamingo.read(batch, at=at)[0], flamingo(batch)[0][at])


def test_a_loss_over_no_label_is_zero():
    """A batch whose labels are all −100 has a loss of 0 and finite gradients."""
    flamingo = tiny_flamingo()
    batch = batch_of([picture(1), "ab"])
    batch = replace(batch, labels=torch.full_like(batch.labels, -100))
    logits, loss = flamingo(batch)
    loss.backward()
    assert loss == next_token_loss(logits, batch.labels) == flamingo.loss(batch) == 0
    assert all(torch.isfinite(p.grad).all() for _, p in flamingo.bridge_parameters() if p.grad is not None)


# ------------------------------------------------------------------------------------- segments, and prompts read once

PAGES = {
    "images and videos": [["ab", picture(1, frames=3), "c", EOC, picture(2), "def"], [picture(3), picture(4, frames=6), "g"]],
    "uneven": [[picture(1), "a", picture(2), "abcdefgh" * 3], ["ab", picture(3), "c", EOC, picture(4), picture(5), "d"]],
    "rows with fewer images": [["abc"], [picture(1), "d"], ["e", picture(2), "f", picture(3), "gh", picture(4)]],
    "one row": [["ab", *(piece for n in range(7) for piece in (picture(n), "a" * n))]],
}


@pytest.mark.parametrize("how", [dict(pad="left"), dict(pad="right"), dict(attend_next=True)], ids=["left", "right", "p_next"])
@pytest.mark.parametrize("rows", PAGES.values(), ids=PAGES)
def test_a_model_with_segments_is_the_model_with_the_mask_in_logits_and_gradients(rows, how):
    """§2.3 written twice: `cut_into_segments` replaced by `xattn_mask`, everything else as it is, in double precision."""
    batch, found, looks = batch_of(*rows, **how), [], []
    for cut in (cut_into_segments, lambda phi, n: xattn_mask(phi, n, 3)):
        flamingo = tiny_flamingo().double()
        flamingo.xattn_layers["0"].register_forward_hook(lambda _m, given, _y: looks.append(type(given[3])))
        with mock.patch("minflamingo.flamingo.cut_into_segments", cut):
            logits = flamingo(batch)[0]
        logits[batch.attention_mask].square().mean().backward()
        found.append((logits.detach()[batch.attention_mask], *(p.grad for _, p in flamingo.bridge_parameters())))
    assert looks == [Segments, torch.Tensor]
    assert all(close(a, b, 1e-10) and a.any() for a, b in zip(*found, strict=True))


SHOTS = {
    "shots with images": ["ab", picture(1), "cd", EOC, picture(2, frames=3), "e", EOC],
    "shots that end in an image": ["a", picture(1), "b", picture(2)],
    "shots without images": ["ab", EOC, "cde", EOC],
}
QUERIES = {
    "queries with images": [["ab", picture(3), "cde", picture(4), "f"], [picture(5, frames=2), "a"], ["gh"], [picture(6)]],
    "queries of text": [["abcd"], ["e"], ["fg"], ["hhh"]],
}


@pytest.mark.parametrize("queries", QUERIES.values(), ids=QUERIES)
@pytest.mark.parametrize("shots", SHOTS.values(), ids=SHOTS)
def test_shots_read_once_and_then_queries_are_each_sequence_read_whole(shots, queries):
    """Different lengths and numbers of images behind one prompt; text before a new image still sees the last shot's."""
    flamingo = tiny_flamingo()
    _, cache = flamingo.read(batch_of(shots), use_cache=True)
    batch = batch_of(*queries, bos=False)
    logits, cache = flamingo.read(batch, cache=cache.repeat(len(queries)), use_cache=True)
    later, cache = flamingo.read_on(torch.tensor([[3, 9]] * len(queries)), cache)
    for b, query in enumerate(queries):
        alone = written_out(flamingo, [*shots, *query, "ag"])
        ours = torch.cat([logits[b, batch.attention_mask[b]], later[b]])
        assert close(ours, alone[-len(ours) :])


def test_each_row_may_go_on_from_a_prompt_of_its_own():
    """Prompts with two images, one and none, padded on the left; new images in some rows; then once more."""
    flamingo = tiny_flamingo()
    prompts = [["a", picture(1), "b", picture(2), "cd"], [picture(3), "ab"], ["efgh"]]
    pieces = [[["a"], [picture(4), "bc"], ["d", picture(5), "e"]], [[picture(6), "ab"], ["cdef"], [picture(7), picture(8)]]]
    _, cache = flamingo.read(batch_of(*prompts, pad="left"), use_cache=True)
    for rows in pieces:
        batch = batch_of(*rows, bos=False)
        logits, cache = flamingo.read(batch, cache=cache, use_cache=True)
        prompts = [prompt + row for prompt, row in zip(prompts, rows)]
        for b, prompt in enumerate(prompts):
            real = batch.attention_mask[b]
            assert close(logits[b, real], written_out(flamingo, prompt)[-int(real.sum()) :])
    assert cache.phi.tolist() == [1, 1, 1]


def test_a_cache_holds_the_keys_of_one_image_however_many_there_were():
    """K = 1: what follows can look at the last image only (§2.3); the others are in the text's own keys."""
    flamingo, R = tiny_flamingo(), 3
    for n in (1, 2, 9):
        _, cache = flamingo.read(batch_of([piece for i in range(n) for piece in (picture(i), "a")]), use_cache=True)
        for more in ([picture(20), "b"], ["c"], [picture(21), "d", picture(22)]):
            assert [None if kv is None else kv[0].shape for kv in cache.media] == [(1, 2, R, 8), None, (1, 2, R, 8)]
            assert cache.phi.tolist() == [1]
            _, cache = flamingo.read(batch_of(more, bos=False), True, cache=cache)
    _, everything = tiny_flamingo(attend="all").read(batch_of([picture(1), "a", picture(2)]), use_cache=True)
    assert everything.media[0][0].shape[2] == 2 * R and everything.phi.tolist() == [2]


def test_the_bytes_of_a_cache_count_what_rows_share_once():
    """By hand: a prompt of 9 tokens and 2 images, 5 rows going on from it, each with a token of its own."""
    flamingo, fp32 = tiny_flamingo(), 4
    _, cache = flamingo.read(batch_of([picture(1), "ab", EOC, picture(2), "cde"]), use_cache=True)
    prompt = 3 * 2 * 9 * 32 * fp32  # layers, k and v, tokens, width
    tail = 3 * 2 * 32 * fp32  # layers, conv_width − 1, width
    image = 2 * 2 * 3 * 16 * fp32  # bridges, k and v, R, heads · width of a head
    assert cache.nbytes == prompt + tail + image + 9 + 8  # and a byte of mask a token, and phi
    five = cache.repeat(5)
    assert five.nbytes == prompt + 5 * tail + image + 5 * 9 + 5 * 8
    _, five = flamingo.read_on(torch.full((5, 1), 3), five)
    assert five.nbytes == prompt + 5 * 3 * 2 * 1 * 32 * fp32 + 5 * tail + image + 5 * 10 + 5 * 8


def test_rows_and_cache_must_be_as_many():
    """One prompt is repeated for its queries by whoever knows that it is theirs."""
    flamingo = tiny_flamingo()
    _, cache = flamingo.read(batch_of([picture(1), "a"], ["b"]), use_cache=True)
    with pytest.raises(ValueError, match=r"3 rows cannot go on from a cache of 2: see cache\.repeat"):
        flamingo.read(batch_of(["a"], ["b"], ["c"], bos=False), cache=cache)


def test_the_layout_of_training_is_refused_behind_a_cache():
    """attend_next: text of the cache would have had to look at an image that is only now there."""
    flamingo = tiny_flamingo()
    _, cache = flamingo.read(batch_of([picture(1), "a"]), use_cache=True)
    batch = replace(batch_of(["b", picture(2)], bos=False), attend_next=torch.tensor([True]))
    with pytest.raises(ValueError, match="attend_next is a layout of training"):
        flamingo.read(batch, cache=cache)


def test_in_the_ablation_images_behind_a_cache_are_refused_and_text_is_not():
    """attend="all": the images of the cache and the new ones would have to stand together."""
    flamingo, prompt = tiny_flamingo(attend="all"), [picture(1), "ab", picture(2), "c"]
    _, cache = flamingo.read(batch_of(prompt), use_cache=True)
    with pytest.raises(ValueError, match='attend="all": a batch with images cannot go on from a cache'):
        flamingo.read(batch_of([picture(3), "a"], bos=False), cache=cache)
    whole, _ = flamingo(batch_of([*prompt, "def"]))
    assert close(flamingo.read(batch_of(["def"], bos=False), cache=cache)[0], whole[:, -3:])


def test_recomputing_activations_keeps_less_and_gives_the_same_gradients():
    """Activation checkpointing: of each layer only its input waits for the backward pass."""
    flamingo, batch = tiny_flamingo(), batch_of([picture(1), "abcdef", picture(2), "gh"], [picture(3), "ab"])
    parameters = [p for _, p in flamingo.bridge_parameters()]

    def gradients(recompute: bool) -> tuple[tuple[torch.Tensor, ...], int]:
        kept = {}
        keep = lambda x: kept.setdefault(x.data_ptr(), x.nbytes) and x  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss = flamingo.loss(batch, recompute=recompute)
        return torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True), sum(kept.values())

    (plain, much), (again, little) = gradients(False), gradients(True)
    assert all(close(a, b) for a, b in zip(plain, again))
    assert little < 0.6 * much
