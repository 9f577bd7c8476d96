"""The ablations of the paper's table 3: each variant is what its name says, and the command computes, stops and resumes."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import LETTERS, batch_of, close, enliven, image, preprocess, random, stopped_at, tiny_flamingo, tiny_lm

from minflamingo import EOC, Batch, Flamingo, PerceiverResampler, Pipeline, ResamplerConfig, ToyTokenizer
from minflamingo.__main__ import main
from minflamingo.attention import attention_written_out, merge_heads, split_heads
from minflamingo.data.images import ImagePreprocessor
from minflamingo.evaluation.features import fingerprint
from minflamingo.gated_xattn import GatedCrossAttentionDense
from minflamingo.recipes.ablate import summarize, table
from minflamingo.recipes.variants import VARIANTS, MLPResampler, TransformerResampler, build, double_blocks, split_blocks
from minflamingo.training.checkpoint import load_json


def flamingo_of(name: str) -> Flamingo:
    """The variant with an LM of three blocks, with random weights and open gates."""
    whole = tiny_flamingo(xattn_every=1)
    return enliven(build(VARIANTS[name], whole.config, whole.vision, whole.lm), seed=3)


def some_batch(**more):
    return batch_of([image(1), "ab", EOC, image(2), "cd", EOC], ["a", image(3), "efg"], **more)


# ----------------------------------------------------------------------------------------------------- what is trained


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_trains_the_new_modules_and_the_lm_only_where_it_says_so(name):
    """Table 3. Everything that is trained gets a gradient, and nothing else does."""
    flamingo, variant = flamingo_of(name), VARIANTS[name]
    trained = {n for n, p in flamingo.named_parameters() if p.requires_grad}
    flamingo.loss(some_batch(attend_next=False)).backward()
    of_lm = {n for n, _ in flamingo.named_parameters() if n.startswith("lm.")}
    new_blocks = {n for n in of_lm if n.startswith(("lm.blocks.3.", "lm.blocks.4.", "lm.blocks.5."))}
    lm_trained = of_lm if variant.lm != "frozen" else new_blocks if variant.place == "grafting" else set()
    assert trained == lm_trained | {n for n, _ in flamingo.named_parameters() if not n.startswith(("lm.", "vision."))}
    without_gradient = {n for n, p in flamingo.named_parameters() if p.grad is None or not p.grad.any()}
    unused = {n for n in trained if "norm_features" in n and name == "transformer"}  # its features are among the latents
    assert without_gradient & trained - {"resampler.time_embeddings"} == unused
    assert all(p.grad is None for n, p in flamingo.named_parameters() if n not in trained)


def test_the_baseline_is_the_core_model_and_building_changes_neither_lm_nor_config():
    whole = tiny_flamingo(xattn_every=1)
    before, config = {n: t.clone() for n, t in whole.lm.state_dict().items()}, whole.config
    for variant in VARIANTS.values():
        enliven(build(variant, whole.config, whole.vision, whole.lm), seed=9).lm.requires_grad_(True)
        enliven(whole.vision)
    assert all(torch.equal(t, before[n]) for n, t in whole.lm.state_dict().items()) and len(whole.lm.blocks) == 3
    built = build(VARIANTS["baseline"], whole.config, whole.vision, whole.lm)
    built.load_state_dict(whole.state_dict())
    assert built.config == whole.config == config
    assert torch.equal(built.eval()(some_batch())[0], whole(some_batch())[0])


def test_an_lm_trained_from_random_weights_is_new_and_a_pretrained_one_is_a_copy():
    """Table 3, "freezing the LM"."""
    whole = tiny_flamingo(xattn_every=1)
    new, copied = (build(VARIANTS[n], whole.config, whole.vision, whole.lm).lm for n in ("lm-random", "lm-pretrained"))
    for (name, p), p_new, p_copied in zip(whole.lm.named_parameters(), new.parameters(), copied.parameters(), strict=True):
        assert torch.equal(p, p_copied) and p_copied is not p and not p.requires_grad
        assert p_new.requires_grad and p_copied.requires_grad
        assert p.dim() == 1 or "conv" in name or not torch.equal(p, p_new)


# ------------------------------------------------------------------------------------------- gates and cross-attention


def test_without_gates_a_layer_is_a_gated_layer_whose_gates_are_open():
    """Section 2.2 without tanh(alpha): tanh(50) is 1. There is no alpha to train."""
    config = tiny_flamingo(xattn_every=1).config
    torch.manual_seed(0)
    layer = VARIANTS["no-gate"].layer(config)
    torch.manual_seed(0)
    gated = GatedCrossAttentionDense(config)
    y, visual, phi = random(2, 4, 32), random(2, 2, 3, 16, seed=1), torch.tensor([[0, 1, 1, 2]] * 2)
    media = layer.xattn.project_media(visual)
    expected = y + layer.xattn(y, media, phi, 3)
    expected = expected + layer.ff(layer.ff_norm(expected))
    assert close(layer(y, media, phi, 3), expected) and not close(expected, y, 1e-2)
    with torch.no_grad():
        gated.alpha_xattn.fill_(50.0)
        gated.alpha_dense.fill_(50.0)
    assert close(gated(y, media, phi, 3), layer(y, media, phi, 3))
    for name in ("no-gate", "vanilla", "grafting"):
        assert not any("alpha" in n for n, _ in flamingo_of(name).named_parameters())


@pytest.mark.parametrize("family", ["toy", "gpt2", "llama", "mpt"])
def test_vanilla_cross_attention_is_between_self_attention_and_mlp(family):
    """Table 3, "vanilla", written out block by block. In a parallel block there is nothing between the two."""
    whole, lm = tiny_flamingo(xattn_every=1), tiny_lm(family, n_layers=3)
    flamingo = enliven(build(VARIANTS["vanilla"], replace(whole.config, lm=lm.config), whole.vision, lm), seed=4)
    flamingo.lm.load_state_dict(split_blocks(tiny_lm(family, n_layers=3)).state_dict())
    batch = batch_of([image(1), "bcd", EOC])
    batch = replace(batch, ids=torch.where(batch.ids == LETTERS.image_id, flamingo.image_id, batch.ids))
    visual = flamingo.encode_media(batch.media, batch.frames)
    phi = (torch.arange(batch.ids.shape[1]) >= 1).long()[None]  # <BOS> comes before the image
    x, positions = lm.prepare(flamingo.embed(batch.ids), None, None)
    for block, layer in zip(lm.blocks, flamingo.xattn_layers.values(), strict=True):
        y = block.attn_norm(x)
        if block.conv is not None:
            y, _ = block.conv(y, None, positions.end)
        x = x + block.attn(y, positions, None)[0]
        x = x + layer.xattn(x, layer.xattn.project_media(visual), phi, 3)
        x = x + block.mlp(block.mlp_norm(x))
    assert close(flamingo(batch)[0], lm.head(lm.final_norm(x)), 1e-4)
    assert list(flamingo.xattn_layers) == ["1", "3", "5"]
    with pytest.raises(ValueError, match="in this LM both are parallel"):
        split_blocks(tiny_lm("neox"))


def test_grafting_leaves_the_frozen_blocks_as_they_are_and_adds_new_ones_after_them():
    """Table 3, "grafting": images change nothing in the frozen blocks; the new blocks attend to them."""
    whole = tiny_flamingo(xattn_every=1)
    flamingo = build(VARIANTS["grafting"], whole.config, whole.vision, whole.lm).eval()
    assert list(flamingo.xattn_layers) == ["3", "4", "5"] and len(flamingo.lm.blocks) == 6
    inside = []
    for lm in (flamingo.lm, whole.lm):
        lm.blocks[2].register_forward_hook(lambda *call: inside.append(call[2][0]))
    one, other = batch_of([image(1), "abc"]), batch_of([image(2), "abc"])
    assert not close(flamingo(one)[0], flamingo(other)[0], 1e-4)
    whole.lm(flamingo.embed(one.ids))
    assert torch.equal(inside[0], inside[1]) and close(inside[2], inside[0])
    before, doubled = tiny_lm().state_dict(), double_blocks(tiny_lm()).state_dict()
    assert all(torch.equal(doubled[n], t) for n, t in before.items()) and len(doubled) > len(before)


@pytest.mark.parametrize("name, of_24, of_3", [
    ("baseline", range(24), [0, 1, 2]),
    ("middle", [12], [1]),
    ("every-4th", [0, 4, 8, 12, 16, 20], [0]),
    ("every-2nd", range(0, 24, 2), [0, 2]),
])  # fmt: skip
def test_the_frequency_says_which_blocks_have_cross_attention(name, of_24, of_3):
    """Table 3, "frequency". In an LM of 3 blocks every 4th block is the first alone."""
    for n_layers, expected in ((24, of_24), (3, of_3)):
        whole = tiny_flamingo(lm={"n_layers": n_layers})
        assert list(map(int, build(VARIANTS[name], whole.config, whole.vision, whole.lm).xattn_layers)) == list(expected)


def test_attention_to_all_images_includes_the_earlier_ones():
    """Section 2.3 without the paper's mask: before the first image nothing, then one image, then both."""
    layer = flamingo_of("all-images").xattn_layers["0"].xattn
    y, visual = random(1, 3, 32), random(1, 2, 3, 16, seed=1)
    out = layer(y, layer.project_media(visual), torch.tensor([[0, 1, 2]]), 3)
    assert not out[:, 0].any()
    for token, n_images in ((1, 1), (2, 2)):
        k, v = layer.project_media(visual[:, :n_images])
        q = split_heads(layer.to_q(layer.norm(y[:, token : token + 1])), layer.n_heads)
        assert close(out[:, token], layer.to_out(merge_heads(attention_written_out(q, k, v)[0]))[:, 0])


@pytest.mark.parametrize("name", ["vanilla", "grafting", "no-gate", "mlp", "transformer", "all-images", "middle"])
def test_logits_with_a_cache_equal_those_of_the_whole_sequence(name):
    flamingo, ids = flamingo_of(name), torch.tensor([[3, 4], [5, 6]])
    rows = [[image(1), "ab", EOC, image(2), "cd"], [image(3), "e", EOC, image(4), "f"]]
    batch, mask = batch_of(*rows, pad="left"), torch.ones(2, 2, dtype=torch.bool)
    _, cache = flamingo(batch)
    continued, _ = flamingo(Batch(ids, ids, mask), cache.repeat(1))
    whole = {"ids": torch.cat([batch.ids, ids], 1), "attention_mask": torch.cat([batch.attention_mask, mask], 1)}
    assert close(continued, flamingo(replace(batch, labels=whole["ids"], **whole))[0][:, -2:])


# ---------------------------------------------------------------------------------------------------------- resamplers

SIZES = dict(d=16, n_latents=4, n_layers=2, n_heads=2, d_head=8, n_time_embeddings=4)


def test_in_the_transformer_features_and_latents_attend_to_each_other():
    """Table 3, "Transformer", written out. Padded frames change nothing."""
    resampler = enliven(TransformerResampler(ResamplerConfig(**SIZES)))
    features = random(2, 3, 4, 16)
    for m, real in enumerate((3, 2)):
        x = torch.cat([(features[m, :real] + resampler.time_embeddings[:real, None]).flatten(0, 1), resampler.latents])
        for layer in resampler.layers[0]:
            normed = layer.norm_latents(x)
            q, k, v = (t.unflatten(-1, (2, 8)).transpose(0, 1) for t in (layer.to_q(normed), *layer.to_kv(normed).chunk(2, -1)))
            weights = (q @ k.transpose(1, 2) / 8**0.5).softmax(-1)
            x = x + layer.to_out((weights @ v).transpose(0, 1).flatten(1))
            x = x + layer.ff(layer.ff_norm(x))
        assert close(resampler(features, torch.tensor([3, 2]))[m], resampler.final_norm(x[-4:]))


def test_in_the_mlp_no_feature_attends_to_another():
    """Table 3, "MLP", written out: each feature alone, then the mean of each R-th part. Padded frames change nothing."""
    resampler = enliven(MLPResampler(ResamplerConfig(**SIZES)))
    features = random(2, 3, 8, 16)
    for m, real in enumerate((3, 1)):
        x = (features[m, :real] + resampler.time_embeddings[:real, None]).flatten(0, 1)
        for norm, ff in resampler.layers[0]:
            x = x + ff.out(F.relu(ff.up(norm(x))) ** 2)
        expected = resampler.final_norm(torch.stack([part.mean(0) for part in x.chunk(4)]))
        assert close(resampler(features, torch.tensor([3, 1]))[m], expected)
        assert close(resampler(features[m : m + 1, :real])[0], expected)
    assert resampler(features, torch.tensor([0, 1])).isfinite().all()  # 0: a sample with fewer images than others


def test_the_three_resamplers_have_equally_many_weights():
    """All matrices: only the latents of the MLP are missing."""
    kinds, config = (PerceiverResampler, TransformerResampler, MLPResampler), ResamplerConfig(**SIZES, ff_mult=2)
    counts = [sum(p.numel() for p in kind(config).parameters() if p.dim() > 1) for kind in kinds]
    assert counts[0] == counts[1] == counts[2] + 4 * 16


def test_without_time_embeddings_the_order_of_frames_is_lost():
    """Section 2.1: only they tell frames apart."""
    video = image(5, frames=3)
    for name, same in (("baseline", False), ("no-time", True)):
        forward, backward = (flamingo_of(name).encode_media(preprocess(v)[None, None]) for v in (video, video[::-1].copy()))
        assert close(forward, backward) == same


# --------------------------------------------------------------------------------------------------------- the command

TOKENIZER = ToyTokenizer([" a", " cat"])
RECIPE = """
from types import SimpleNamespace

import torch

from minflamingo import EOC, Sample

RECIPE = SimpleNamespace(lr=1e-3, weight_decay=0.1, lm_weight_decay=0.01, gate_lr=3e-3)
LAMBDAS = {"documents": 1.0, "pairs": 1.0, "videos": 0.5}
CALLS, USED = [], []  # (random number, p_next) of each call; the datasets that were trained on

class Recorded(dict):
    def __getitem__(self, kind):
        USED.append(kind)
        return super().__getitem__(kind)

def media_pool(flamingo, seed):
    return torch.randn(3, 1, 5, 16, generator=torch.Generator().manual_seed(seed))

def draw_batches(pool, rng, p_next=None):
    CALLS.append((rng.random(), p_next))
    return Recorded({kind: [Sample([pool[i], rng.choice((" a", " cat")), EOC])] for i, kind in enumerate(LAMBDAS)})

def evaluate(flamingo, seed, shots):
    assert not flamingo.training
    accuracy = 0.5 + 0.02 * seed - 0.1 * (shots == "32") - 0.2 * (type(flamingo.resampler).__name__ == "MLPResampler")
    return {"vqa": accuracy + 0.1, "caption": accuracy - 0.1}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A folder with a model and a small recipe."""
    model = tiny_flamingo(lm={"vocab_size": TOKENIZER.vocab_size}, xattn_every=1)
    Pipeline(model, TOKENIZER, ImagePreprocessor(8)).save(tmp_path / "model")
    (tmp_path / "little_recipe.py").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "little_recipe", raising=False)
    return importlib.import_module("little_recipe")


COMMAND = ["ablate", "--model", "model", "--recipe", "little_recipe", "--out", "out", "--steps", "4", "--device", "cpu"]


def test_the_command_compares_rows_with_the_baseline_of_the_same_seeds_and_with_the_paper(recipe, capsys):
    main([*COMMAND, "--rows", "baseline,mlp,p-next-half,round-robin"])
    rows = load_json(Path("out/results.json"))["rows"]
    assert rows["baseline"]["shots"]["4"] == {
        "score": 51.0, "seeds": [50.0, 52.0], "difference": None, "tasks": {"vqa": 0.61, "caption": 0.41},
    }  # fmt: skip
    assert rows["baseline"]["shots"]["32"]["score"] == 41.0 and "32" not in rows["mlp"]["shots"]
    assert (rows["mlp"]["shots"]["4"]["difference"], rows["mlp"]["paper_difference"]) == (-20.0, -4.1)
    printed = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "the whole Flamingo 51.0 [50.0, 52.0] 70.7 41.0" in printed
    assert "resampler: MLP 31.0 [30.0, 32.0] -20.0 66.6 -4.1" in printed
    assert [p_next for _, p_next in recipe.CALLS] == 2 * ([None] * 8 + [0.5] * 4 + [None] * 12)
    assert Path("out/ablations.png").stat().st_size > 5000


@pytest.mark.parametrize("row, used", [
    ("baseline", 2 * ["documents", "pairs", "videos"]),
    ("no-pairs", 2 * ["documents", "videos"]),
    ("round-robin", 2 * ["documents", "pairs", "videos"]),
])  # fmt: skip
def test_a_row_trains_on_its_datasets(recipe, row, used):
    """Section 2.4: all datasets in each update, or one in turn. Then three updates share the data of one step."""
    main([*COMMAND, "--rows", row, "--seeds", "1", "--steps", "2"])
    numbers = [number for number, _ in recipe.CALLS]
    assert used == recipe.USED and len(set(numbers)) == 2
    assert len(numbers) == (6 if row == "round-robin" else 2) and numbers == sorted(numbers, key=numbers.index)


def test_a_stopped_row_resumes_with_the_same_weights_and_a_finished_row_is_not_repeated(recipe, monkeypatch):
    """A row that was stopped and resumed has the weights of one that was never stopped, bit for bit."""
    weights = []
    monkeypatch.setattr(recipe, "evaluate", lambda flamingo, seed, shots: weights.append(fingerprint(flamingo)) or {"vqa": 0.5})
    command = [*COMMAND, "--rows", "mlp,no-gate", "--seeds", "1"]
    main([*command, "--out", "whole"])
    main([*command, "--rows", "mlp"])
    recipe.CALLS.clear()
    with stopped_at(3), pytest.raises(SystemExit, match="resume"):
        main(command)
    main(command)
    main(command)
    assert len(recipe.CALLS) == 4, "each step of the second row once"
    assert weights[:2] == weights[2:]
    assert load_json(Path("out/results.json")) == load_json(Path("whole/results.json"))


def test_the_table_marks_what_has_no_number():
    """Without a baseline there is no difference; a row that is not in the paper has a dash."""
    results = {"rows": summarize({"all-images": [{"4": {"vqa": 0.5, "caption": 0.6}, "32": {"vqa": 0.3, "caption": 0.2}}]})}
    assert " ".join(table(results).splitlines()[1].split()) == "attention: to all earlier images 55.0 [55.0, 55.0] - 25.0"
