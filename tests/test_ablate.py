"""The ablations of table 3: every row is what its name says, and the command counts, stops and goes on as it should."""

from __future__ import annotations

import json
import random as dice
from dataclasses import replace
from statistics import mean

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import LETTERS, batch_of, close, enliven, picture, prepare, random, tiny_config, tiny_flamingo, tiny_lm
from PIL import Image

import train_tiny
from data_toy import ablations
from data_toy.album import draw_album
from minflamingo import EOC, LoadedFlamingo, Sample, ToyTokenizer, collate, save
from minflamingo.__main__ import main
from minflamingo.config import ResamplerConfig
from minflamingo.data.images import ImagePreparation
from minflamingo.evaluation import ablate
from minflamingo.evaluation.ablation_figure import ablations_figure, plot_ablations
from minflamingo.evaluation.looking import patch_attention
from minflamingo.evaluation.variants import BASELINE, ROWS, build, grafted, halved, places, trained_parameters
from minflamingo.flamingo import Flamingo
from minflamingo.gated_xattn import GatedCrossAttentionDense
from minflamingo.generate import generate
from minflamingo.lm import rotary_angles
from minflamingo.resampler import PerceiverResampler
from minflamingo.training.checkpoint import load_json

CONFIG = tiny_config(xattn_every=1)


def flamingo_of(name: str, alive: bool = True) -> Flamingo:
    """The row `name` around a small eye and a tongue of three layers."""
    whole = tiny_flamingo(xattn_every=1)
    built = build(ROWS[name], whole.config, whole.vision, whole.lm)
    return enliven(built, seed=3) if alive else built.eval()


def some_batch(**more):
    return batch_of([picture(1), "ab", EOC, picture(2), "cd", EOC], ["a", picture(3), "efg"], **more)


# ------------------------------------------------------------------------------------------- each row is what it says


@pytest.mark.parametrize("name", ROWS)
def test_every_row_trains_its_bridge_and_leaves_the_eye_alone(name):
    """Table 3: what is trained is the bridge, the LM only where the row says so; what is trained has a gradient."""
    flamingo, row = flamingo_of(name), ROWS[name]
    trained = trained_parameters(flamingo)
    flamingo.loss(some_batch(attend_next=False)).backward()
    assert not any(n.startswith("vision.") for n in trained)
    of_lm = {n for n in trained if n.startswith("lm.")}
    every = {n for n, _ in flamingo.named_parameters() if n.startswith("lm.")}
    new = {n for n in every if n.startswith(("lm.blocks.3.", "lm.blocks.4.", "lm.blocks.5."))}
    assert of_lm == (every if row.lm != "frozen" else new if row.bridge == "grafting" else set())
    still = {n for n, p in trained.items() if p.grad is None or not bool(p.grad.any())}
    idle = {n for n in trained if "norm_media" in n and name == "transformer"}  # its features stand among the latents
    assert still - {"resampler.time_embeddings"} == idle
    assert all(p.grad is None for n, p in flamingo.named_parameters() if n not in trained)


def test_the_baseline_is_the_flamingo_of_the_config():
    """And building a row changes neither the LM it was given nor the config."""
    whole = tiny_flamingo(xattn_every=1)
    before = {n: t.clone() for n, t in whole.lm.state_dict().items()}
    for row in ROWS.values():
        enliven(build(row, whole.config, whole.vision, whole.lm), seed=9).lm.requires_grad_(True)
    assert all(torch.equal(t, before[n]) for n, t in whole.lm.state_dict().items()) and len(whole.lm.blocks) == 3
    built = build(ROWS[BASELINE], whole.config, whole.vision, whole.lm)
    built.load_state_dict(whole.state_dict())
    assert built.config == whole.config
    assert torch.equal(built(some_batch())[0], whole(some_batch())[0])


def test_without_gates_the_bridge_is_wide_open_from_the_start():
    """§2.2 without tanh(alpha): y + attention, then y + ffw. There is no alpha, and the LM's output is not kept."""
    config = replace(CONFIG, xattn_gate="none")
    torch.manual_seed(0)
    layer = GatedCrossAttentionDense(config)
    assert not any("alpha" in name for name in layer.state_dict())
    y, visual = random(2, 4, 32), random(2, 3, 16, seed=1)
    k, v = layer.xattn.project_media(visual)
    expected = y + layer.xattn(y, k, v, None)
    expected = expected + layer.ff(layer.ff_norm(expected))
    assert close(layer(y, k, v, None), expected)
    assert not close(layer(y, k, v, None), y, 1e-2)
    torch.manual_seed(0)
    gated = GatedCrossAttentionDense(CONFIG)
    with torch.no_grad():
        gated.alpha_xattn.fill_(50.0)
        gated.alpha_dense.fill_(50.0)  # tanh 50 = 1: a gate that stands open is no gate
    assert close(gated(y, k, v, None), layer(y, k, v, None))
    for name in ("no-gate", "vanilla", "grafting"):
        assert not any("alpha" in n for n, _ in flamingo_of(name).named_parameters())


@pytest.mark.parametrize("family", ["toy", "gpt2", "llama", "mpt"])
def test_vanilla_cross_attention_stands_between_self_attention_and_mlp(family):
    """Table 3, "vanilla": x + self-attention, x + cross-attention, x + mlp, layer by layer, written out here."""
    whole = tiny_flamingo(xattn_every=1, lm={"dropout": 0.0})
    lm = tiny_lm(family, layers=3)
    config = replace(whole.config, lm=lm.config)
    flamingo = enliven(build(ROWS["vanilla"], config, whole.vision, lm), seed=4)
    # the frozen LM as it was, before it was enlivened anew
    flamingo.lm.load_state_dict(halved(tiny_lm(family, layers=3)).state_dict())
    ids = torch.tensor([[1, LETTERS.vocab_size, 4, 5, 6, 2]])
    batch = replace(batch_of([picture(1), "bcd", EOC]), ids=ids)
    visual = flamingo.see(batch.media, batch.frames).flatten(1, 2)
    seen = (torch.arange(6) >= 1)[None, None, :, None].expand(1, 1, 6, 3)
    crossed = iter(flamingo.xattn_layers.values())

    def between(i: int, x: torch.Tensor) -> torch.Tensor:
        if i % 2 == 0:
            return x
        layer = next(crossed)
        assert layer.ff is None
        return x + layer.xattn(x, *layer.xattn.project_media(visual), seen)

    # an LM that is run by hand: its blocks are whole here
    x = flamingo.embed(ids)
    if family == "gpt2":
        x = x + lm.position_embed(torch.arange(6))
    bias = None
    mask = torch.ones(6, 6).tril().bool()[None, None]
    if family == "mpt":
        slopes = torch.tensor([2.0 ** (-8 * i / 4) for i in range(1, 5)])
        bias = slopes[:, None, None] * (torch.arange(6)[None] - torch.arange(6)[:, None])
    c = lm.config
    channels = int(c.d_head * c.rotary_pct)
    angles = rotary_angles(torch.arange(6)[None], channels, c.rotary_theta) if c.position == "rotary" else None
    for i, block in enumerate(lm.blocks):
        y = block.attn_norm(x)
        if block.conv is not None:
            y, _ = block.conv(y, None)
        x = x + block.attn(y, angles, mask, bias, None)[0]
        x = between(2 * i + 1, x)
        x = x + block.mlp(block.mlp_norm(x))
    assert close(flamingo(batch)[0], lm.head(lm.final_norm(x)), 1e-4)
    assert [int(i) for i in flamingo.xattn_layers] == [1, 3, 5]


def test_an_lm_cut_into_halves_is_the_lm_it_was():
    """With its cache too; and where attention and mlp are side by side there is no place between them."""
    for family in ("toy", "gpt2", "mpt", "llama"):
        lm, halves = tiny_lm(family), halved(tiny_lm(family))
        x = random(2, 9, 32)
        mask = torch.ones(2, 9, dtype=torch.bool)
        mask[0, :3] = False
        assert torch.equal(lm(x, mask)[0], halves(x, mask)[0])
        at = mask & (torch.arange(9) % 2 == 0)
        assert close(halves(x, mask, at=at)[0], lm(x, mask)[0][at])
        _, cache = halves(x[:, :4], mask[:, :4], use_cache=True)
        rest, cache = halves(x[:, 4:8], cache=cache)
        last, _ = halves(x[:, 8:], cache=cache.select(torch.tensor([0, 1])))
        assert close(torch.cat([rest, last], dim=1), lm(x, mask)[0][:, 4:])
    with pytest.raises(ValueError, match="in this LM these are side by side"):
        halved(tiny_lm("neox"))


def test_a_graft_leaves_the_lm_whole_and_stands_behind_it():
    """Table 3, "grafting": the frozen layers do what they do without any picture; as many new ones behind them see it."""
    whole = tiny_flamingo(xattn_every=1)
    flamingo = build(ROWS["grafting"], whole.config, whole.vision, whole.lm)
    assert [int(i) for i in flamingo.xattn_layers] == [3, 4, 5] and len(flamingo.lm.blocks) == 6
    inside = []
    hooks = [flamingo.lm.blocks[2].register_forward_hook(lambda *given: inside.append(given[2][0]))]
    one, other = batch_of([picture(1), "abc"]), batch_of([picture(2), "abc"])
    assert not close(flamingo(one)[0], flamingo(other)[0], 1e-4)
    assert torch.equal(*inside)  # behind the third layer nothing knows of the picture
    hooks.append(whole.lm.blocks[2].register_forward_hook(lambda *given: inside.append(given[2][0])))
    whole.lm(flamingo.embed(one.ids))
    assert close(inside[-1], inside[0])
    for hook in hooks:
        hook.remove()
    before = {n: t for n, t in tiny_lm().state_dict().items()}
    stacked = grafted(tiny_lm()).state_dict()
    assert all(torch.equal(stacked[n], t) for n, t in before.items()) and len(stacked) > len(before)


@pytest.mark.parametrize("name", ["vanilla", "grafting", "no-gate", "mlp", "transformer", "all-images", "middle"])
def test_generation_with_caches_says_what_reading_all_anew_says(name):
    """A row is examined through caches, so they must hold what it remembers."""
    flamingo = flamingo_of(name)
    rows = [[picture(1), "ab", EOC, picture(2), "cd"], [picture(3), "e", EOC, picture(4), "f"]]
    said = generate(flamingo, batch_of(*rows, pad="left"), LETTERS.eoc_id, max_new_tokens=6)
    for row, new in zip(rows, said, strict=True):
        batch = collate([Sample(row)], LETTERS, prepare)
        ids = batch.ids
        for token in new:
            whole = replace(batch, ids=ids, labels=ids, attention_mask=torch.ones_like(ids, dtype=torch.bool))
            expected = int(flamingo.read(whole)[0][0, -1].argmax())
            assert token == expected
            ids = torch.cat([ids, torch.tensor([[expected]])], dim=1)


@pytest.mark.parametrize(
    "name, of_24, of_6, of_3",
    [
        ("baseline", list(range(24)), [0, 1, 2, 3, 4, 5], [0, 1, 2]),
        ("middle", [12], [3], [1]),
        ("every-4th", [0, 4, 8, 12, 16, 20], [0, 4], [0]),
        ("every-2nd", list(range(0, 24, 2)), [0, 2, 4], [0, 2]),
    ],
)
def test_bridges_stand_where_the_frequency_says(name, of_24, of_6, of_3):
    """Table 3, "frequency": one in the middle, every 4th, every 2nd; of three layers every 4th is the first alone."""
    for layers, expected in ((24, of_24), (6, of_6), (3, of_3)):
        config = replace(CONFIG, lm=replace(CONFIG.lm, layers=layers), **places(ROWS[name], layers))
        assert list(config.xattn_layers) == expected
    assert [int(i) for i in flamingo_of(name).xattn_layers] == of_3


def test_an_lm_from_random_weights_is_another_one_and_one_that_goes_on_is_the_same():
    """Table 3, "freezing the LM": not frozen in either row."""
    whole = tiny_flamingo(xattn_every=1)
    anew, goes_on = (build(ROWS[name], whole.config, whole.vision, whole.lm).lm for name in ("lm-random", "lm-pretrained"))
    pairs = list(zip(whole.lm.named_parameters(), anew.parameters(), goes_on.parameters(), strict=True))
    assert all(torch.equal(p, kept) and kept is not p for (_, p), _, kept in pairs)
    assert all(not torch.equal(p, other) for (n, p), other, _ in pairs if p.dim() > 1 and "conv" not in n)
    assert all(p.requires_grad for p in (*anew.parameters(), *goes_on.parameters()))
    assert not any(p.requires_grad for p in whole.lm.parameters())


def test_attention_to_all_images_sees_the_earlier_ones_too():
    """§2.3: with the paper's mask the bridge shows a token the last image alone."""
    other = lambda f: f.xattn_layers["0"].xattn  # noqa: E731
    for name, changes in (("baseline", False), ("all-images", True)):
        flamingo = flamingo_of(name)
        seen = []
        hook = other(flamingo).register_forward_hook(lambda *given, seen=seen: seen.append(given[2]))
        for first in (picture(1), picture(7)):
            flamingo(batch_of([first, "a", EOC, picture(2), "b"]))
        hook.remove()
        assert close(seen[0][:, -1], seen[1][:, -1]) != changes


def test_without_time_embeddings_the_order_of_frames_is_lost():
    """§2.1: they alone tell a frame's place."""
    film = picture(5, frames=3)
    for name, same in (("baseline", False), ("no-time", True)):
        flamingo = flamingo_of(name)
        assert ("resampler.time_embeddings" in flamingo.state_dict()) != same
        forward, backward = (flamingo.see(prepare(f)[None, None]) for f in (film, film[::-1].copy()))
        assert close(forward, backward) == same


# ------------------------------------------------------------------------------------------------- the two resamplers


def test_the_transformer_lets_features_and_latents_all_ask_and_all_answer():
    """Table 3, "Transformer": written out. Everything attends to everything, features too."""
    config = ResamplerConfig(d=16, n_latents=3, layers=2, heads=2, d_head=8, n_time_embeddings=4, kind="transformer")
    resampler = enliven(PerceiverResampler(config))
    features = random(2, 3, 4, 16)
    frames = torch.tensor([3, 2])
    for m, real in enumerate((3, 2)):
        x = (features[m, :real] + resampler.time_embeddings[:real, None]).flatten(0, 1)
        x = torch.cat([x, resampler.latents])
        for layer in resampler.layers:
            normed = layer.norm_latents(x)
            q = layer.to_q(normed).unflatten(-1, (2, 8)).transpose(0, 1)
            k, v = (t.unflatten(-1, (2, 8)).transpose(0, 1) for t in layer.to_kv(normed))
            weights = (q @ k.transpose(1, 2) / 8**0.5).softmax(-1)
            x = x + layer.to_out((weights @ v).transpose(0, 1).flatten(1))
            x = x + layer.ff(layer.ff_norm(x))
        assert close(resampler(features, frames)[m], resampler.final_norm(x[-3:]))


def test_in_the_mlp_no_feature_looks_at_another():
    """Table 3, "MLP": each alone, then the mean of each R-th part; a frame that is padding changes nothing."""
    config = ResamplerConfig(d=16, n_latents=4, layers=2, heads=2, d_head=8, n_time_embeddings=4, kind="mlp")
    resampler = enliven(PerceiverResampler(config))
    features = random(2, 3, 8, 16)
    frames = torch.tensor([3, 1])
    for m, real in enumerate((3, 1)):
        x = (features[m, :real] + resampler.time_embeddings[:real, None]).flatten(0, 1)
        for layer in resampler.layers:
            x = x + layer.ff.out(F.relu(layer.ff.up(layer.ff_norm(x))) ** 2)
        parts = torch.stack([part.mean(0) for part in x.chunk(4)])
        assert close(resampler(features, frames)[m], resampler.final_norm(parts))
        assert close(resampler(features[m : m + 1, :real])[0], resampler.final_norm(parts))


def test_the_three_resamplers_have_as_many_parameters():
    """Up to the latents and the norms: so none wins by size."""
    sizes = dict(d=96, n_latents=8, layers=2, heads=3, d_head=32, n_time_embeddings=4, ff_mult=2)
    counts = {}
    for kind in ("perceiver", "transformer", "mlp"):
        matrices = PerceiverResampler(ResamplerConfig(**sizes, kind=kind)).parameters()
        counts[kind] = sum(p.numel() for p in matrices if p.dim() > 1)
    assert counts["perceiver"] == counts["transformer"] == counts["mlp"] + 8 * 96


def test_unknown_kinds_are_refused_and_looks_are_followed_in_a_perceiver_alone():
    """With what there is to choose from."""
    with pytest.raises(ValueError, match=r"ResamplerConfig\.kind is 'cnn'; choose one of 'perceiver', 'transformer', 'mlp'"):
        ResamplerConfig(kind="cnn")
    with pytest.raises(ValueError, match=r"this resampler is of kind 'mlp'"):
        patch_attention(flamingo_of("mlp"), batch_of([picture(1), "ab"]))
    open_gates = patch_attention(flamingo_of("no-gate"), batch_of([picture(1), "ab"]))
    assert bool((open_gates[0, 1:].sum((-1, -2)) > 0.05).all())


# ------------------------------------------------------------------------------------------------------ the toy recipe


def test_a_step_takes_the_datasets_that_the_row_names():
    """§2.4 and table 3: all of them at once, without one, or one in turn at the same cost."""
    kinds = ["pages", "pairs", "videos"]
    assert ablations.plan(ROWS["baseline"], 2) == [(0, kinds), (1, kinds)]
    for kind in kinds:
        assert ablations.plan(ROWS[f"no-{kind}"], 1) == [(0, [k for k in kinds if k != kind])]
    assert ablations.plan(ROWS["round-robin"], 2) == [(step, [kind]) for step in (0, 1) for kind in kinds]


def test_p_next_is_the_share_of_pages_whose_text_stands_before_its_image():
    """§2.4: 0 is none, 1/2 is the paper's; none given is the toy recipe's own."""
    album = draw_album(1200, seed=1)
    shares = {}
    for p_next in (0.0, 0.5, None):
        drawn = [train_tiny.draw_batches(album, dice.Random(s), ablations.RECIPE, p_next)["pages"] for s in range(30)]
        shares[p_next] = mean(sample.attend_next for pages in drawn for sample in pages)
    assert shares[0.0] == 0.0 and abs(shares[0.5] - 0.5) < 0.08
    assert abs(shares[None] - train_tiny.P_NEXT) < 0.06
    assert (ROWS["p-next-0"].p_next, ROWS["p-next-half"].p_next, ROWS["baseline"].p_next) == (0.0, 0.5, None)


def test_a_tongue_that_is_trained_keeps_its_own_decay():
    """The bridge's would wear it away; new layers of a graft belong to the bridge."""
    for name in ("lm-pretrained", "grafting", "baseline"):
        named = trained_parameters(flamingo_of(name))
        decay = {id(p): g["weight_decay"] for g in ablations.groups(named, ROWS[name]) for p in g["params"]}
        assert set(decay) == {id(p) for p in named.values()}
        of_lm = {decay[id(p)] for n, p in named.items() if n.startswith("lm.") and n.endswith(("to_q.weight", "up.weight"))}
        assert of_lm == {"lm-pretrained": {0.01}, "grafting": {1.0}, "baseline": set()}[name]
        bridge = {decay[id(p)] for n, p in named.items() if "xattn.to_q" in n}
        assert bridge == {1.0} and decay[id(named["resampler.latents"])] == 0.0


@pytest.fixture
def small_recipe(monkeypatch):
    """Three pages, a pair, a film; three cases."""
    monkeypatch.setattr(
        ablations, "RECIPE", replace(ablations.RECIPE, album=1200, bridge_shots=24, bridge_pairs=2, bridge_videos=3, exam=3)
    )


def toy_flamingo() -> Flamingo:
    torch.manual_seed(0)
    return Flamingo(train_tiny.Run("quick", 0, "cpu", None, None).config)


def test_a_row_of_the_toy_world_is_taught_stops_and_goes_on(small_recipe, tmp_path, monkeypatch):
    """Bit for bit the weights of one that never stopped; eye and frozen tongue stay what they were."""
    whole, row = toy_flamingo(), ROWS["round-robin"]

    def taught(folder, steps=2):
        torch.manual_seed(5)
        flamingo = build(row, whole.config, whole.vision, whole.lm)
        stage = ablations.teach(flamingo, row, 0, steps, tmp_path / folder)
        return flamingo, stage

    once, stage = taught("once")
    assert stage.total == stage.step == 6  # three kinds in turn
    steps = ablations.Stage.steps

    def stops(self):
        self.save_every = 0.0
        for step in steps(self):
            if step == 4:
                raise KeyboardInterrupt
            yield step

    monkeypatch.setattr(ablations.Stage, "steps", stops)
    with pytest.raises(KeyboardInterrupt):
        taught("twice")
    monkeypatch.setattr(ablations.Stage, "steps", steps)
    twice, _ = taught("twice")
    a, b = once.state_dict(), twice.state_dict()
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert all(torch.equal(a[f"lm.{n}"], t) for n, t in whole.lm.state_dict().items())
    assert all(torch.equal(a[f"vision.{n}"], t) for n, t in whole.vision.state_dict().items())
    assert all(bool(layer.alpha_xattn != 0) for layer in once.xattn_layers.values())
    found = ablations.examine(once, 0, "4")
    assert list(found) == list(ablations.TASKS.values()) and {task["n"] for task in found.values()} == {3}


# --------------------------------------------------------------------------------------------------------- the command

TOKENIZER = ToyTokenizer([" a", " cat"])
WORLD = '''
import json, pathlib
RECIPE = "short"
SCORES = {"baseline": 0.7, "no-pages": 0.4, "mlp": 0.5, "every-4th": 0.6}

class stage:
    seconds = 60.0

def teach(flamingo, row, seed, steps, folder, line=None):
    log = pathlib.Path("log.txt")
    log.write_text((log.read_text() if log.exists() else "") + f"{row.to}, seed {seed}, {steps} steps\\n")
    if pathlib.Path("stop").exists():
        pathlib.Path(folder, "begun").touch()
        raise KeyboardInterrupt
    return stage

def examine(flamingo, seed, shots):
    kind = flamingo.config.resampler.kind
    name = "mlp" if kind == "mlp" else "every-4th" if len(flamingo.xattn_layers) == 1 else "baseline"
    accuracy = SCORES[name] + 0.02 * seed - 0.1 * (shots == "32")
    return {"vqa": {"accuracy": accuracy + 0.1, "n": 10}, "caption": {"accuracy": accuracy - 0.1, "n": 10}}
'''


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with two models of different weights, and a world where rows are made and scored in no time."""
    for seed in (0, 1):
        model = tiny_flamingo(seed, lm={"vocab_size": TOKENIZER.vocab_size}, xattn_every=1)
        save(LoadedFlamingo(model, TOKENIZER, ImagePreparation(8)), tmp_path / f"model{seed}")
    (tmp_path / "little_world.py").write_text(WORLD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "little_world", raising=False)
    return tmp_path


HOW = ["ablate", "--model", "model0", "model1", "--world", "little_world", "--out", "out", "--jobs", "1", "--steps", "9"]


def log(place) -> list[str]:
    path = place / "log.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def test_rows_seeds_and_the_papers_numbers_end_in_a_table_and_a_figure(place, capsys):
    """Score, lowest and highest seed, the difference from the baseline of the same seeds, and table 3 beside it."""
    main([*HOW, "--rows", "baseline,mlp,every-4th"])
    found = load_json(place / "out/results.json")
    assert list(found["rows"]) == ["baseline", "mlp", "every-4th"] and found["seeds"] == [0, 1]
    baseline, mlp, fourth = found["rows"].values()
    assert baseline["shots"]["4"] == {
        "score": 71.0, "seeds": [70.0, 72.0], "difference": None, "tasks": {"vqa": 0.81, "caption": 0.61},
    }  # fmt: skip
    assert baseline["shots"]["32"]["score"] == 61.0 and "32" not in mlp["shots"]
    assert (mlp["shots"]["4"]["difference"], mlp["paper"], mlp["paper_difference"]) == (-20.0, 66.6, -4.1)
    assert fourth["bridges_before"] == [0] and baseline["bridges_before"] == [0, 1, 2]
    lines = capsys.readouterr().out.splitlines()
    cells = {line.split("  ")[0]: line for line in lines}
    assert cells["resampler"].split() == ["resampler", "MLP", "51.0", "[50.0,", "52.0]", "-20.0", "66.6", "-4.1"]
    assert cells["-"].split()[-5:] == ["71.0", "[70.0,", "72.0]", "70.7", "61.0"]
    assert "So small a tongue has no fourth layer: every 4th layer is the first alone." in lines
    assert log(place) == [
        f"{to}, seed {seed}, 9 steps" for seed in (0, 1) for to in ("the whole Flamingo", "MLP", "every 4th layer")
    ]
    pixels = np.asarray(Image.open(place / "out/ablations.png").convert("L"))
    assert min(pixels.shape) > 150 and pixels.std() > 2
    assert not list((place / "out/stages").iterdir())


def test_seeds_take_the_models_in_turn(place):
    """An eye and a tongue a seed, the first again when there are no more."""
    main([*HOW, "--rows", "mlp", "--seeds", "3"])
    models = [load_json(place / f"out/rows/mlp-{seed}.json")["settings"]["model"] for seed in range(3)]
    assert models[0] == models[2] != models[1]
    assert load_json(place / "out/results.json")["rows"]["mlp"]["shots"]["4"]["difference"] is None  # no baseline


def test_what_is_done_is_not_done_again_and_what_is_under_way_goes_on(place):
    """The same command after a stop; other steps, other weights or another recipe begin anew."""
    main([*HOW, "--rows", "mlp"])
    assert len(log(place)) == 2
    (place / "stop").touch()
    with pytest.raises(SystemExit, match="the same command goes on from here"):
        main([*HOW, "--rows", "mlp,baseline"])
    begun = place / "out/stages/baseline-0/begun"
    assert log(place) == ["the whole Flamingo, seed 0, 9 steps"] and begun.exists()
    with pytest.raises(SystemExit):  # goes on in the same folder
        main([*HOW, "--rows", "mlp,baseline"])
    assert begun.exists()
    begun.write_text("kept")
    with pytest.raises(SystemExit):  # but not with what was begun otherwise
        main([*HOW, "--rows", "baseline", "--steps", "8"])
    assert begun.read_text() == ""
    (place / "stop").unlink()
    log(place)
    main([*HOW, "--rows", "mlp,baseline"])
    assert log(place) == ["the whole Flamingo, seed 0, 9 steps", "the whole Flamingo, seed 1, 9 steps"]
    main([*HOW, "--rows", "mlp,baseline"])
    assert log(place) == []
    main([*HOW, "--rows", "mlp", "--steps", "8"])
    main([*HOW[:2], "model1", *HOW[4:], "--rows", "mlp"])
    assert [line.split(", ")[1:] for line in log(place)] == [
        ["seed 0", "8 steps"], ["seed 1", "8 steps"], ["seed 0", "9 steps"], ["seed 1", "9 steps"],
    ]  # fmt: skip


def test_rows_in_two_processes_come_to_the_same_results(place):
    """`--jobs 2`: rows are independent of each other."""
    main([*HOW, "--rows", "baseline,mlp"])
    one = load_json(place / "out/results.json")
    main([*HOW, "--rows", "baseline,mlp", "--jobs", "2", "--out", "two"])
    assert load_json(place / "two/results.json") == one


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--rows", "mlp,moe"], r"there is no row 'moe'; choose among baseline, no-videos, .*, no-time"),
        (["--seeds", "0"], r"--seeds is 0; it must be at least 1"),
        (["--jobs", "0"], r"--jobs is 0; it must be at least 1"),
        (["--world", "nowhere"], r"what is taught is in the module nowhere, which cannot be imported .*--world"),
        (["--model", "nothing"], r"nothing/config.json is missing"),
    ],
)
def test_bad_input_ends_with_one_sentence(place, arguments, said):
    """What, where, and what to do; nothing is begun."""
    with pytest.raises(SystemExit, match=said):
        main([*HOW, *arguments])
    assert log(place) == []


def test_the_rows_have_the_papers_numbers():
    """Table 3 (approximately): what is not in it has none."""
    numbers = {name: row.paper for name, row in ROWS.items() if row.paper is not None}
    assert numbers == {
        "baseline": 70.7, "no-videos": 67.3, "no-pairs": 60.9, "no-pages": 53.4, "round-robin": 62.9, "no-gate": 66.5,
        "vanilla": 66.9, "grafting": 63.1, "middle": 59.8, "every-4th": 68.8, "every-2nd": 68.2, "mlp": 66.6,
        "transformer": 66.7, "lm-random": 57.8, "lm-pretrained": 62.7,
    }  # fmt: skip


def made_up(**changes) -> dict:
    rows = {
        "baseline": {"changed": "-", "to": "the whole Flamingo", "paper": 70.7, "paper_difference": None, "shots": {
            "4": {"score": 80.0, "seeds": [78.0, 82.0], "difference": None}, "32": {"score": 75.0, "seeds": [75.0, 75.0]}}},
        "no-pages": {"changed": "training data", "to": "without pages", "paper": 53.4, "paper_difference": -17.3, "shots": {
            "4": {"score": 55.0, "seeds": [50.0, 60.0], "difference": -25.0}}},
    }  # fmt: skip
    return {"rows": {**rows, **changes}}


def test_the_figure_has_a_bar_a_row_as_long_as_its_score():
    """And the baseline's score as a line, seeds as dots, 32 shots as a diamond, both differences in figures."""
    axes = ablations_figure(made_up()).axes[0]
    assert {bar.get_gid(): bar.get_width() for bar in axes.patches} == {"baseline": 80.0, "no-pages": 55.0}
    lines = {line.get_gid(): line for line in axes.lines if line.get_gid()}
    assert list(lines["baseline"].get_xdata()) == [80.0, 80.0] and list(lines["baseline 32"].get_xdata()) == [75.0]
    dots = [x for line in axes.lines if line.get_marker() == "o" for x in line.get_xdata()]
    assert dots == [78.0, 82.0, 50.0, 60.0]
    assert {"−25.0", "−17.3", "without pages", "training data"} <= {text.get_text() for text in axes.texts}


def test_a_figure_without_rows_or_scores_is_an_error(tmp_path):
    """It says what is missing."""
    with pytest.raises(ValueError, match="no row to plot"):
        plot_ablations({}, tmp_path / "a.png")
    with pytest.raises(ValueError, match="score 1 has no 'score'"):
        plot_ablations(made_up(**{"no-pages": {"changed": "a", "to": "b", "shots": {}}}), tmp_path / "a.png")


def test_the_table_marks_what_has_no_number(capsys):
    """No baseline, no difference; not in the paper, a dash."""
    results = made_up()
    del results["rows"]["baseline"]
    results["rows"]["no-pages"] |= {"paper": None, "paper_difference": None}
    results["rows"]["no-pages"]["shots"]["4"]["difference"] = None
    line = ablate.table(results).splitlines()[2]
    assert line.split() == ["training", "data", "without", "pages", "55.0", "[50.0,", "60.0]", "-"]
    assert json.dumps(results)
