"""Specification of `flamingo.py`: what is frozen, what an image can affect, batches and caches (section 2)."""

from dataclasses import replace

import pytest
import torch
from conftest import EOC, LETTERS, batch_of, close, image, preprocess, random, tiny_config, tiny_flamingo
from torch import Tensor

from minflamingo.data.sample import is_medium
from minflamingo.flamingo import Batch, Flamingo, check_batch
from minflamingo.gated_xattn import media_index


def written_out(flamingo: Flamingo, pieces: list, bos: bool = True, attend_next: bool = False) -> Tensor:
    """One sample -> logits (L, V). Each image is encoded alone; in a gated layer each token is alone with its own image."""
    tokens, own, visual = [], [], []
    if bos:
        tokens, own = [flamingo.lm.embed.weight[LETTERS.bos_id]], [int(attend_next)]
    for piece in pieces:
        if is_medium(piece):
            visual.append(flamingo.resampler(flamingo.vision(preprocess(piece))[None])[0])  # (R, D_v)
            tokens.append(flamingo.added_embed.weight[0])
            own.append(len(visual))
        else:
            ids = [LETTERS.eoc_id] if piece is EOC else LETTERS.encode(piece)
            tokens += [flamingo.lm.embed.weight[i] for i in ids]
            own += [len(visual) + attend_next] * len(ids)
    y, positions = flamingo.lm.prepare(torch.stack(tokens)[None], None, None)
    for i, block in enumerate(flamingo.lm.blocks):
        if i % flamingo.config.xattn_every == 0:
            layer, out = flamingo.xattn_layers[str(i)], []
            for token, n in zip(y[0], own):
                token, one = token[None, None], torch.tensor([[1]])
                if 1 <= n <= len(visual):
                    media = layer.xattn.project_media(visual[n - 1][None, None])
                    token = token + layer.alpha_xattn.tanh() * layer.xattn(token, media, one, len(visual[n - 1]))
                out.append(token + layer.alpha_dense.tanh() * layer.ff(layer.ff_norm(token)))
            y = torch.cat(out, dim=1)
        y, _ = block(y, positions)
    return flamingo.lm.head(flamingo.lm.final_norm(y))[0]


def assert_equal_to_written_out(flamingo: Flamingo, rows: list[list], pad: str = "right", **sample) -> None:
    """Every row of the batch has the logits of its sample written out."""
    batch = batch_of(*rows, pad=pad, **sample)
    batch.ids[~batch.attention_mask] = LETTERS.image_id  # an id at padding has no meaning
    logits, _ = flamingo(batch)
    for b, row in enumerate(rows):
        assert close(logits[b, batch.attention_mask[b]], written_out(flamingo, row, **sample)), f"row {b}"


def with_features(flamingo: Flamingo, batch: Batch) -> Batch:
    """The same batch with features of the vision encoder instead of pixels, for gradient probes."""
    features = flamingo.vision(batch.media.flatten(0, 2)).detach().unflatten(0, batch.media.shape[:3])
    return replace(batch, media=features.requires_grad_())


@pytest.mark.flamingo_forward(points=1)
@pytest.mark.parametrize("rows", [[["a", image(1), "bcd", EOC, image(2, frames=3), "e"], [image(3), "fgh"]], [["abc"], ["d"]]])
def test_at_initialisation_the_logits_are_exactly_those_of_the_frozen_lm(rows):
    """Section 2.2: all gates are 0, so images and gated layers add nothing, bit for bit. The gates have a gradient."""
    torch.manual_seed(0)
    flamingo, batch = Flamingo(tiny_config()), batch_of(*rows)
    assert torch.equal(flamingo(batch)[0], flamingo.lm(flamingo.embed(batch.ids), batch.attention_mask)[0])
    flamingo.loss(batch).backward()
    assert all(p.grad.any() for name, p in flamingo.named_parameters() if "alpha_dense" in name)
    assert not any(p.requires_grad for p in [*flamingo.vision.parameters(), *flamingo.lm.parameters()]), "frozen parts"


SAMPLES = {
    "interleaved": ["ab", image(1), "cd", EOC, image(2), "ef"],
    "adjacent images": [image(1), image(2), "a"],
    "a video and an image": [image(1, frames=3), "ab", image(2), "c"],
    "more frames than time embeddings": [image(1, frames=7), "ab"],
    "an image at the end": ["a", image(1)],
    "text alone": ["abc"],
    "forty images": [piece for n in range(40) for piece in (image(n), "a")],
}


@pytest.mark.flamingo_forward(points=3)
@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
def test_the_logits_are_the_papers_equations(sample, bos):
    """Figures 3, 4 and 7 written out: each image encoded alone, each token with its own image. Any number of images."""
    assert_equal_to_written_out(tiny_flamingo(lm=dict(max_length=128)), [sample], bos=bos)


@pytest.mark.media_index(points=2)
@pytest.mark.flamingo_forward(points=1)
def test_with_attend_next_text_attends_to_the_next_image():
    """Section 2.4, p_next: "a" attends to image 1 after it; "d", after the last image, attends to no image."""
    assert_equal_to_written_out(tiny_flamingo(), [["a", image(1), "bc", image(2), "d"]], attend_next=True)


@pytest.mark.flamingo_forward(points=2)
@pytest.mark.parametrize("pad", ["right", "left"])
def test_each_sample_of_a_batch_has_the_logits_that_it_has_alone(pad):
    """Section 2.4: rows with 0 to 2 images and videos, padded on either side."""
    rows = [*SAMPLES.values()][:-1]
    assert_equal_to_written_out(tiny_flamingo(), rows, pad=pad)


def test_features_can_be_given_instead_of_pixels():
    """Section 2.1: the vision encoder is frozen, so its features can be computed before."""
    flamingo, batch = tiny_flamingo(), batch_of(["a", image(1), "bc", image(2)], [image(3), "d"])
    assert close(flamingo(batch)[0], flamingo(with_features(flamingo, batch).to("cpu"))[0])
    with pytest.raises(ValueError, match=r"features of the vision encoder: expected shape \(M, T, S, D=16\)"):
        flamingo(replace(batch_of([image(1), "a"]), media=random(1, 1, 1, 5, 24)))


@pytest.mark.next_token_loss(points=2)
@pytest.mark.parametrize("added_head", [None, "own", "tied"])
def test_the_loss_is_the_mean_negative_log_likelihood_of_the_text_tokens(added_head):
    """Section 2.4: text and <EOC> given what is before them; <BOS> and <image> are not predicted."""
    flamingo, rows = tiny_flamingo(added_head=added_head), [["a", image(1), "bc", EOC], [image(2), "d"]]
    batch, terms = batch_of(*rows), []
    logits, _ = flamingo(batch)
    assert logits.shape[-1] == LETTERS.vocab_size + bool(added_head)
    for b, l, letter in ((0, 1, "a"), (0, 3, "b"), (0, 4, "c"), (0, 5, None), (1, 2, "d")):
        target = LETTERS.encode(letter)[0] if letter else LETTERS.eoc_id
        terms.append(-logits[b, l - 1].log_softmax(-1)[target])
    assert close(flamingo.loss(batch), sum(terms) / 5)
    assert flamingo.loss(replace(batch, labels=torch.full_like(batch.labels, -100))) == 0


@pytest.mark.flamingo_forward(points=2)
def test_no_token_depends_on_a_later_image_and_every_token_depends_on_all_earlier_ones():
    """Section 2, p(y_l | y_<l, x_<=l): a gradient probe from the logits of each token to every image of every row."""
    flamingo = tiny_flamingo()
    batch = with_features(flamingo, batch_of(["a", image(1), "b", image(2), "c", image(3)], [image(4), "ab"], ["abc"]))
    for b, counts in enumerate([[0, 0, 1, 1, 2, 2, 3], [0, 1, 1, 1], [0] * 4]):
        for l, n_images in enumerate(counts):
            (grad,) = torch.autograd.grad(flamingo(batch)[0][b, l].square().sum(), batch.media)
            expected = [[row == b and n < n_images for n in range(3)] for row in range(3)]
            assert grad.flatten(2).any(-1).tolist() == expected, f"the images (row, number) of token {l} of row {b}"


def test_text_attends_only_to_the_last_image_before_it():
    """Section 2.3: after image 2, cross-attention depends on image 2 alone; image 1 arrives through self-attention."""
    flamingo = tiny_flamingo()
    batch = with_features(flamingo, batch_of([image(1), "ab", image(2), "cd"]))
    layer, R = flamingo.xattn_layers["0"].xattn, flamingo.config.resampler.n_latents
    media = layer.project_media(flamingo.encode_media(batch.media))
    direct = layer(flamingo.embed(batch.ids), media, media_index(batch.ids == flamingo.image_id), R)
    logits, _ = flamingo(batch)
    for out, expected in ((direct, [False, True]), (logits, [True, True])):
        (grad,) = torch.autograd.grad(out[0, -1].square().sum(), batch.media, retain_graph=True)
        assert grad[0].flatten(1).any(1).tolist() == expected


@pytest.mark.freeze(points=3)
def test_only_resampler_gated_layers_and_added_embeddings_are_trained():
    """Section 2: all of them get a gradient and move; vision encoder and LM stay bit-identical, with weight decay too."""
    flamingo = tiny_flamingo().train()
    before = {n: p.clone() for n, p in flamingo.state_dict().items()}
    optimizer = torch.optim.AdamW(flamingo.parameters(), lr=0.1, weight_decay=0.5)
    flamingo.loss(batch_of(["a", image(1, frames=4), "bc", EOC], [image(2), "d"])).backward()
    optimizer.step()
    trained = dict(flamingo.trainable_parameters())
    assert {n.split(".")[0] for n in trained} == {"resampler", "xattn_layers", "added_embed"}
    for name, p in flamingo.named_parameters():
        assert (p.grad is not None and bool(p.grad.any())) == (name in trained), name
        assert torch.equal(p, before[name]) == (name not in trained), name


@pytest.mark.freeze(points=3)
@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_dropout_and_batch_statistics_of_frozen_parts_stay_off_in_training(stem):
    """Section 2: frozen means frozen. A part that is trained again has its dropout; `freeze` switches it off."""
    config = tiny_config(lm=dict(dropout=0.5))
    flamingo = tiny_flamingo(lm=dict(dropout=0.5), vision=replace(config.vision, stem=stem))
    batch, statistics = batch_of([image(1), "abc"], [image(2), "d"]), [b.clone() for b in flamingo.vision.buffers()]
    expected = flamingo.eval()(batch)[0]
    assert torch.equal(flamingo.train()(batch)[0], expected), "train() changes the output of a frozen model"
    assert flamingo.resampler.training and not flamingo.eval().resampler.training
    assert all(torch.equal(a, b) for a, b in zip(flamingo.vision.buffers(), statistics)), "batch statistics"
    flamingo.lm.requires_grad_(True)
    assert not close(flamingo.train()(batch)[0], expected), "an LM that is trained has its dropout"
    assert torch.equal(flamingo.freeze()(batch)[0], expected), "freeze() after the LM was trained"


@pytest.mark.freeze(points=2)
def test_gradients_pass_through_the_frozen_lm():
    """Section 2: the trained modules have the same gradients whether the LM and the vision encoder are frozen or not."""
    flamingo, batch, gradients = tiny_flamingo(), batch_of([image(1), "abc"], [image(2), "d"]), []
    for change in (flamingo.freeze, flamingo.requires_grad_):
        gradients.append(torch.autograd.grad(change().loss(batch), [p for _, p in flamingo.trainable_parameters()]))
    assert all(map(close, *gradients)), "freezing the LM changes the gradients of the trained modules"


def test_a_vision_encoder_that_is_trained_gets_its_gradients():
    """Section 3.2: fine-tuning trains the vision encoder too. A frozen one gets no graph."""
    flamingo, batch, graphs = tiny_flamingo(), batch_of([image(1), "abc", image(2), "d"]), []
    flamingo.vision.register_forward_hook(lambda _module, _inputs, features: graphs.append(features.requires_grad))
    flamingo.loss(batch)
    weights = list(flamingo.vision.requires_grad_(True).parameters())
    flamingo.loss(batch).backward()
    assert graphs == [False, True]
    features = flamingo.vision(batch.media.flatten(0, 2)).unflatten(0, (1, 2, 1))
    expected = torch.autograd.grad(flamingo.loss(replace(batch, media=features)), weights)
    assert all(p.grad.any() and close(p.grad, grad) for p, grad in zip(weights, expected))


def test_added_tokens_have_their_own_embeddings_after_the_vocabulary_of_the_lm():
    """Section 2: ids V, V + 1, ... belong to `added_embed`; the LM's frozen table does not grow. Given parts are frozen."""
    donor = tiny_flamingo(seed=3)
    flamingo = Flamingo(tiny_config(n_added_tokens=2), donor.vision.requires_grad_(True), donor.lm.requires_grad_(True))
    V, old, new = LETTERS.vocab_size, flamingo.lm.embed.weight, flamingo.added_embed.weight
    rows = flamingo.embed(torch.tensor([[1, V, V - 1, V + 1]]))[0]
    assert torch.equal(rows, torch.stack([old[1], new[0], old[V - 1], new[1]])) and len(old) == V
    assert flamingo.lm is donor.lm and not any(p.requires_grad for p in [*donor.lm.parameters(), *donor.vision.parameters()])


PROMPTS = [["a", image(1), "b", image(2), "cd"], [image(3, frames=3), "ab"], ["efgh"]]


@pytest.mark.flamingo_forward(points=3)
@pytest.mark.parametrize("prompts", [PROMPTS, [["a"], ["ab"], ["abc"]]], ids=["images", "text alone"])
@pytest.mark.parametrize("pad", ["left", "right"])
def test_a_sequence_in_pieces_with_a_cache_equals_the_whole_sequence(pad, prompts):
    """Section 3: prompts, then pieces with and without new images. The cache keeps the last image of each row."""
    flamingo, R = tiny_flamingo(), 3
    pieces = [["a"], ["bc"], ["d"]], [["a"], [image(4), "bc"], ["d", image(5), "e"]], [[image(6)], ["cdef"], [image(7), "a"]]
    _, cache = flamingo(batch_of(*prompts, pad=pad))
    for rows in pieces:
        batch = batch_of(*rows, bos=False)
        logits, cache = flamingo(batch, cache)
        prompts = [prompt + row for prompt, row in zip(prompts, rows)]
        for b, prompt in enumerate(prompts):
            real = batch.attention_mask[b]
            assert close(logits[b, real], written_out(flamingo, prompt)[-int(real.sum()) :]), f"row {b}: {rows[b]}"
        assert cache.media_kv is None or all(k.shape == v.shape == (3, 2, R, 8) for k, v in cache.media_kv.values())


@pytest.mark.parametrize("n_images, n_tokens", [(1, 2), (2, 1), (0, 1), (1, 0)])
def test_each_sample_needs_one_image_per_image_token(n_images, n_tokens):
    """Section 2.4: `check_batch` names the first sample in which the two numbers differ; without any media too."""
    row = [image(1), "a", image(2), "b"]
    batch = batch_of(row, row, row)
    check_batch(batch, LETTERS.image_id)
    batch.ids[1] = torch.tensor([LETTERS.bos_id] + [LETTERS.image_id] * n_tokens + [3] * (4 - n_tokens))
    batch.frames[1] = torch.tensor([1] * n_images + [0] * (2 - n_images))
    with pytest.raises(ValueError, match=f"sample 1: {n_tokens} <image> tokens but {n_images} images"):
        check_batch(batch, LETTERS.image_id)
    with pytest.raises(ValueError, match="sample 0: 2 <image> tokens but 0 images"):
        check_batch(replace(batch, media=None, frames=None), LETTERS.image_id)
