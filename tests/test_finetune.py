"""Fine-tuning (paper section 3.2): what is trained, on which samples, and how hyperparameters are chosen."""

from __future__ import annotations

import importlib
import random
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import image, tiny_flamingo

import minflamingo
from minflamingo import EOC, Pipeline, ToyTokenizer, collate
from minflamingo.__main__ import main
from minflamingo.config import VisionConfig
from minflamingo.data.images import ImagePreprocessor
from minflamingo.data.sample import NoLoss
from minflamingo.evaluation.task import Example, Task, Template
from minflamingo.recipes import finetune
from minflamingo.recipes.finetune import FinetuneConfig, Hyperparameters, split_validation, train, training_sample
from minflamingo.training.checkpoint import load_json

TOKENIZER = ToyTokenizer([" a", " cat", " dog", "Output", ":", "Question", " Answer"])
SUITE = '''
import numpy as np
from minflamingo.evaluation.task import Example, Task, Template

OPENED, STOP = [], False

def suite(split, queries=6, support=16):
    """Bright images are dogs, dark ones cats."""
    def example(split, i):
        def media():
            OPENED.append(split)
            rng = np.random.default_rng(i + 1000 * (split == "test"))
            return rng.integers(128 * (i % 2), 128 * (i % 2) + 128, (8, 8, 3), dtype=np.uint8)
        return Example(f"{split}-{i}", media, (("cat", "dog")[i % 2],))
    training, test = [example("train", i) for i in range(support)], [example("test", i) for i in range(queries)]
    return {"named": Task("named", training, test, Template("Output:"), "exact_match", max_new_tokens=4)}
'''
H = Hyperparameters(lr=3e-3, schedule="linear", steps=3, batch_size=4, augment="none")


def small_task(n: int = 12, n_queries: int = 4, per_image: int = 1) -> Task:
    def examples(split: str, n: int) -> list[Example]:
        images = [lambda i=i: image(i + 100 * (split == "test"))[0] for i in range(n)]
        return [Example(f"{split}-{k}", images[k // per_image], ((" cat", "cat")[k % 2],)) for k in range(n * per_image)]

    return Task("small", examples("train", n), examples("test", n_queries), Template("Output:", "{answer}"), "exact_match")


def small_pipeline(stem: str = "patch", **changes) -> Pipeline:
    vision = VisionConfig(image_size=8, patch_size=4, d=16, n_layers=1, n_heads=2, stem=stem)
    lm = {"vocab_size": TOKENIZER.vocab_size, "max_length": 256}
    return Pipeline(tiny_flamingo(lm=lm, vision=vision, **changes), TOKENIZER, ImagePreprocessor(8))


# ------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_the_lm_stays_frozen_and_the_vision_encoder_learns(stem, tmp_path):
    """Section 3.2: every weight outside of the LM changes, no bit of the LM does, nor do BatchNorm's statistics."""
    pipeline = small_pipeline(stem)
    before = {n: t.clone() for n, t in pipeline.model.state_dict().items()}
    stage = train(pipeline, small_task(), replace(H, steps=5), FinetuneConfig(), name="a", folder=tmp_path)
    after, parameters = pipeline.model.state_dict(), dict(pipeline.model.named_parameters())
    losses = [row["loss"] for row in stage.rows]
    assert len(losses) == 5 and losses[-1] < losses[0]
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) == (name.startswith("lm.") or name not in parameters), name
    assert any("running_mean" in n for n in before) == (stem == "conv")
    assert not pipeline.model.training and not any(p.requires_grad for p in pipeline.model.vision.parameters())


def test_a_batch_in_parts_makes_the_steps_of_a_whole_one(tmp_path):
    """Gradients are accumulated; each part has its share of the labels."""
    losses = []
    for micro_batch in (64, 3):
        config = FinetuneConfig(micro_batch=micro_batch)
        h = replace(H, batch_size=8, steps=6)
        stage = train(small_pipeline(), small_task(), h, config, name=f"parts-{micro_batch}", folder=tmp_path)
        losses.append([row["loss"] for row in stage.rows])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) and losses[0][-1] < 0.9 * losses[0][0]


def test_a_baseline_from_scratch_has_the_same_config_and_other_weights_and_trains_its_lm(tmp_path):
    pipeline = small_pipeline()
    scratch, again, other = (finetune.from_scratch_baseline(pipeline, seed) for seed in (0, 0, 1))
    embed = scratch.model.lm.embed.weight.clone()
    assert scratch.model.config == pipeline.model.config and torch.equal(embed, again.model.lm.embed.weight)
    assert not torch.equal(embed, other.model.lm.embed.weight) and not torch.equal(embed, pipeline.model.lm.embed.weight)
    train(scratch, small_task(), H, FinetuneConfig(), name="scratch", folder=tmp_path, everything=True)
    assert not torch.equal(scratch.model.lm.embed.weight, embed)


def test_schedules_fall_as_their_names_say():
    assert [finetune.schedule_factor("constant", s, 4) for s in range(4)] == [1] * 4
    assert [finetune.schedule_factor("linear", s, 4) for s in range(4)] == [1, 0.75, 0.5, 0.25]
    assert [finetune.schedule_factor("cosine", s, 4) for s in range(4)] == pytest.approx(
        [1, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5]
    )


def test_a_model_for_larger_images_is_saved_and_loaded_as_such(tmp_path):
    pipeline = finetune.resize(small_pipeline(), 16)
    pipeline.save(tmp_path)
    again = minflamingo.load(tmp_path)
    assert again.preprocess.size == again.model.config.vision.image_size == 16
    sample = training_sample(small_task(), small_task().support[0], random.Random(0), "none")
    logits = [p.model(collate([sample], TOKENIZER, p.preprocess))[0] for p in (pipeline, again)]
    assert torch.equal(*logits)


# -------------------------------------------------------------------------------------------------------------- samples


def test_the_loss_is_on_answer_and_end_of_chunk_alone():
    """<BOS><image>Output: cat<EOC>: the prompt carries no label. Of several answers each is drawn."""
    example = small_task().support[0]
    sample = training_sample(small_task(), example, random.Random(0), "none")
    assert sample.pieces[1:] == [NoLoss("Output:"), " cat", EOC] and sample.pieces[0].shape == (1, 8, 8, 3)
    batch = collate([sample], TOKENIZER, ImagePreprocessor(8))
    assert batch.labels[batch.labels >= 0].tolist() == [*TOKENIZER.encode(" cat"), TOKENIZER.eoc_id]
    several = replace(example, answers=("cat", " dog"))
    drawn = Counter(training_sample(small_task(), several, random.Random(i), "none").pieces[2] for i in range(100))
    assert set(drawn) == {"cat", " dog"} and min(drawn.values()) > 25


def test_light_augmentation_shifts_and_brightens_each_sample_and_mirrors_none():
    """48 pixels: at most 3 in each direction, the same for all frames of a video; brightness within 15%."""
    video = np.zeros((3, 48, 48, 3), np.uint8)
    video[:, 20:24, 10:30] = 100
    video[:, 20:24, 10:14] = 200  # the left end is brighter: in a mirrored image it would be the right end
    shifts, brightness = set(), []
    for seed in range(200):
        changed = finetune.augment_lightly(video, random.Random(seed))
        assert changed.dtype == np.uint8 and all(np.array_equal(changed[0], frame) for frame in changed)
        rows, columns = np.nonzero(changed[0, :, :, 0])
        left, right = changed[0, rows.min(), columns.min(), 0], changed[0, rows.min(), columns.max(), 0]
        assert np.ptp(rows) == 3 and np.ptp(columns) == 19 and left > 1.8 * right
        shifts.add((int(rows.min()) - 20, int(columns.min()) - 10))
        brightness.append(right / 100)
    assert {y for y, _ in shifts} == {x for _, x in shifts} == set(range(-3, 4)) and len(shifts) > 40
    assert 0.85 <= min(brightness) < 0.88 and 1.12 < max(brightness) <= 1.15


def test_examples_that_cannot_be_opened_are_left_out_unless_none_can():
    def missing():
        raise FileNotFoundError("no such image")

    task = small_task()
    broken = [replace(e, media=missing) for e in task.support]
    some_broken = replace(task, support=[*broken[:6], *task.support[6:]])
    assert len(finetune.samples_of_step(some_broken, replace(H, batch_size=12), 0, 0)) == 6
    with pytest.raises(ValueError, match="small, step 7: no training example can be opened, e.g. train-.*no such image"):
        finetune.samples_of_step(replace(task, support=broken), H, 0, 7)
    features = replace(task.support[0], media=lambda: torch.zeros(1, 5, 16))
    with pytest.raises(TypeError, match="needs pixels, not features"):
        training_sample(task, features, random.Random(0), "none")


# --------------------------------------------------------------------------------------------------------------- search


def test_validation_examples_are_training_examples_and_share_no_image_with_those_that_are_trained_on():
    """Section 3.2: a validation subset of the training set. Three questions about one image stay together."""
    task = small_task(12, per_image=3)
    training, validation = split_validation(task, seed=3)
    assert sorted(e.key for e in [*training, *validation]) == sorted(e.key for e in task.support)
    assert 9 <= len(validation) < 12 and not {e.media for e in training} & {e.media for e in validation}
    keys = [[e.key for e in split_validation(task, seed=seed)[1]] for seed in (3, 3, 4)]
    assert keys[0] == keys[1] != keys[2]
    with pytest.raises(ValueError, match="12 training examples are too few for 12 validation examples"):
        split_validation(small_task(12), 12)
    with pytest.raises(ValueError, match="test query q has an image of the training set"):
        split_validation(replace(task, queries=[replace(task.support[0], key="q")]))


def test_halving_trains_all_candidates_for_a_quarter_and_the_best_quarter_in_full():
    """The higher score is better; of equal scores, the lower loss."""
    candidates = [replace(H, lr=lr, steps=8) for lr in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)]
    scores = {1.0: (10, 0.5), 2.0: (90, 0.9), 3.0: (90, 0.2), 4.0: (0, 0.1), 5.0: (0, 0), 6.0: (0, 0), 7.0: (0, 0), 8.0: (0, 0)}
    measured = []

    def measure(h: Hyperparameters, number: int) -> dict:
        measured.append((h.lr, h.steps, number))
        score, loss = scores[h.lr]
        return {"score": score + (5 if number == 1 and h.lr == 2.0 else 0), "loss": loss}

    best, records = finetune.successive_halving(candidates, measure)
    assert measured == [(float(lr), 2, 0) for lr in range(1, 9)] + [(3.0, 8, 1), (2.0, 8, 1)]
    assert best == candidates[1] and [r["round"] for r in records] == [0] * 8 + [1] * 2
    assert records[-1] == {"hyperparameters": asdict(candidates[1]), "round": 1, "score": 95, "loss": 0.9}


def test_invalid_hyperparameters_are_an_error_that_lists_the_choices():
    with pytest.raises(ValueError, match="schedule is 'step'; choose one of 'constant', 'linear', 'cosine'"):
        replace(H, schedule="step")
    with pytest.raises(ValueError, match="must be positive"):
        replace(H, lr=0.0)


# --------------------------------------------------------------------------------------------------------- the command

COMMAND = ["finetune", "--model", "made", "--suite", "dark_suite", "--task", "named", "--limit", "6", "--shots", "2"]
COMMAND += ["--lr", "1e-3", "1e-2", "--steps", "4", "8", "--batch-size", "4", "--schedule", "linear", "--augment", "none"]
COMMAND += ["--beams", "1", "--device", "cpu", "--out", "out"]


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """A suite that records which images are opened."""
    monkeypatch.setattr("minflamingo.__main__.load", lambda *args, **options: small_pipeline())
    (tmp_path / "dark_suite.py").write_text(SUITE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "dark_suite", raising=False)
    return importlib.import_module("dark_suite")


def test_the_command_ends_in_a_table_a_figure_and_models_that_can_be_loaded(suite, capsys):
    """The table of section 3.2: few-shot, fine-tuned and from-scratch scores with intervals."""
    main([*COMMAND, "--image-size", "16", "--baseline-lr", "1e-3"])
    found, printed = load_json(Path("out/results.json"))["tasks"]["named"], capsys.readouterr().out
    for kind in ("few_shot", "fine_tuned", "from_scratch"):
        low, high = found[kind]["interval"]
        assert f"{found[kind]['score']:.1f} [{low:.0f}, {high:.0f}]" in printed and found[kind]["n"] == 6
    assert [record["round"] for record in found["grid"]] == [0, 0, 0, 0, 1]
    assert found["hyperparameters"] == found["grid"][-1]["hyperparameters"] and Path("out/grid.png").stat().st_size > 5000
    model, before = minflamingo.load("out/models/named").model, small_pipeline().model
    assert all(torch.equal(p, q) for p, q in zip(model.lm.parameters(), before.lm.parameters(), strict=True))
    assert model.config.vision.image_size == 16 and model.vision.positions.shape == (17, 16)
    assert not torch.equal(model.vision.patches.weight, before.vision.patches.weight)


def test_a_stopped_search_resumes_and_the_test_set_is_used_after_the_last_choice(suite, monkeypatch):
    """What was trained is not trained again. Each test image is opened once, after all training images."""
    trained = []

    def counting_train(pipeline, task, *rest, **options):
        stage = train(pipeline, task, *rest, **options)
        if stage.result is None:
            trained.append(len(task.support))
        if len(trained) == 3 and suite.STOP:
            raise KeyboardInterrupt
        return stage

    monkeypatch.setattr(finetune, "train", counting_train)
    suite.STOP = True
    with pytest.raises(SystemExit):
        main(COMMAND)
    assert suite.OPENED.count("test") == 6, "by the few-shot evaluation alone"
    suite.OPENED.clear()
    suite.STOP = False
    main(COMMAND)
    # The third was trained but not yet evaluated. Three quarters of 16 examples are for training; at the end all 16.
    assert trained == [12] * 3 + [12] * 3 + [16]
    assert suite.OPENED.count("test") == 6 and suite.OPENED[-6:] == ["test"] * 6
    results = load_json(Path("out/results.json"))
    main(COMMAND)
    assert len(trained) == 7 and load_json(Path("out/results.json")) == results
    main([*COMMAND, "--seed", "1"])
    assert len(trained) == 13, "another seed has another validation set: nothing is reused"
