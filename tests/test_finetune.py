"""Fine-tuning (paper section 3.2): what is trained, on which samples, and how hyperparameters are chosen."""

import json
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import close, enliven, image, stopped_at, tiny_flamingo
from conftest import random as noise
from little_suite import OPENED

from minflamingo import EOC, NoLoss, Pipeline, ToyTokenizer, VisionConfig, collate, load
from minflamingo.__main__ import main
from minflamingo.data.images import ImagePreprocessor
from minflamingo.evaluation.task import Example, Task, Template
from minflamingo.recipes.finetune import (
    SCHEDULES,
    Hyperparameters,
    resize_positions,
    resize_vit,
    samples_of_step,
    split_validation,
    train,
    training_sample,
)  # fmt: skip
from minflamingo.training.checkpoint import load_json
from minflamingo.vision import ViT

TOKENIZER = ToyTokenizer([" a", " cat", " dog", "Output", ":", "Question", " Answer"])
H = Hyperparameters(lr=3e-3, schedule="linear", steps=3, batch_size=4)


def small_task(n: int = 12, per_image: int = 1) -> Task:
    def examples(split: str, n: int) -> list[Example]:
        images = [lambda i=i: image(i + 100 * (split == "test"))[0] for i in range(n)]
        return [Example(f"{split}-{k}", images[k // per_image], ((" cat", "cat")[k % 2],)) for k in range(n * per_image)]

    return Task("small", examples("train", n), examples("test", 4), Template("Output:", "{answer}"), "exact_match")


def small_pipeline(stem: str = "patch") -> Pipeline:
    vision = VisionConfig(image_size=8, patch_size=4, d=16, n_layers=1, n_heads=2, stem=stem)
    lm = {"vocab_size": TOKENIZER.vocab_size, "max_length": 256}
    return Pipeline(tiny_flamingo(lm=lm, vision=vision), TOKENIZER, ImagePreprocessor(8))


# ------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_the_lm_stays_frozen_and_the_vision_encoder_learns(stem, tmp_path):
    """Section 3.2: every weight outside of the LM changes, no bit of the LM does, nor do BatchNorm's statistics."""
    pipeline = small_pipeline(stem)
    before = {n: t.clone() for n, t in pipeline.model.state_dict().items()}
    stage = train(pipeline, small_task(), replace(H, steps=5), name="a", folder=tmp_path)
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
        h = replace(H, batch_size=8, steps=6)
        stage = train(small_pipeline(), small_task(), h, name=f"{micro_batch}", folder=tmp_path, micro_batch=micro_batch)
        losses.append([row["loss"] for row in stage.rows])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) and losses[0][-1] < 0.9 * losses[0][0]


@pytest.mark.parametrize("schedule, factors", [
    ("constant", [1, 1, 1, 1]),
    ("linear", [1, 0.75, 0.5, 0.25]),
    ("cosine", [1, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5]),
])  # fmt: skip
def test_schedules_fall_as_their_names_say(schedule, factors):
    assert [SCHEDULES[schedule](step / 4) for step in range(4)] == pytest.approx(factors)


# -------------------------------------------------------------------------------------------------------------- samples


def test_the_loss_is_on_answer_and_end_of_chunk_alone():
    """<BOS><image>Output: cat<EOC>: the prompt carries no label. Of several answers each is drawn."""
    example = small_task().support[0]
    sample = training_sample(small_task(), example, random.Random(0))
    assert sample.pieces[1:] == [NoLoss("Output:"), " cat", EOC] and sample.pieces[0].shape == (1, 8, 8, 3)
    batch = collate([sample], TOKENIZER, ImagePreprocessor(8))
    assert batch.labels[batch.labels >= 0].tolist() == [*TOKENIZER.encode(" cat"), TOKENIZER.eoc_id]
    several = replace(example, answers=("cat", " dog"))
    drawn = Counter(training_sample(small_task(), several, random.Random(i)).pieces[2] for i in range(100))
    assert set(drawn) == {"cat", " dog"} and min(drawn.values()) > 25


def test_examples_that_cannot_be_opened_are_left_out_unless_none_can():
    def missing():
        raise FileNotFoundError("no such image")

    task = small_task()
    broken = [replace(e, media=missing) for e in task.support]
    some_broken = replace(task, support=[*broken[:6], *task.support[6:]])
    assert len(samples_of_step(some_broken, replace(H, batch_size=12), 0, 0, left_out := {})) == 6
    assert left_out == {e.key: f"{e.key}: no such image" for e in broken[:6]}
    with pytest.raises(ValueError, match="small, step 7: no training example can be used, e.g. .*train-.*no such image"):
        samples_of_step(replace(task, support=broken), H, 0, 7, {})


def test_an_example_that_is_too_long_for_the_lm_is_left_out_and_named(tmp_path, capsys):
    """The others are trained on. The context is 256 tokens."""
    task = small_task()
    long = replace(task.support[3], answers=(" a" * 300,))
    stage = train(small_pipeline(), replace(task, support=[*task.support[:3], long]), H, name="long", folder=tmp_path)
    assert len(stage.rows) == 3
    said = r"long: 1 examples were left out, such as train-3: \d+ tokens are more than the LM's context of 256"
    assert re.search(said, capsys.readouterr().out)


# --------------------------------------------------------------------------------------------------------------- search


def test_validation_examples_are_training_examples_and_share_no_image_with_those_that_are_trained_on():
    """Section 3.2: a validation subset of the training set. Three questions about one image stay together."""
    task = small_task(12, per_image=3)
    training, validation = split_validation(task, seed=3)
    assert sorted(e.key for e in [*training, *validation]) == sorted(e.key for e in task.support)
    assert len(validation) == 9 and not {e.media for e in training} & {e.media for e in validation}
    keys = [[e.key for e in split_validation(task, seed=seed)[1]] for seed in (3, 3, 4)]
    assert keys[0] == keys[1] != keys[2]
    with pytest.raises(ValueError, match="small: the training set has 3 images; the search needs at least 4"):
        split_validation(small_task(3))
    with pytest.raises(ValueError, match="test query q has an image of the training set"):
        split_validation(replace(task, queries=[replace(task.support[0], key="q")]))


# --------------------------------------------------------------------------------------------------------- the command

COMMAND = ["finetune", "--model", "made", "--suite", "little_suite", "--task", "named", "--limit", "6", "--shots", "2"]
COMMAND += ["--lr", "1e-3", "1e-2", "--steps", "2", "4", "--batch-size", "4", "--device", "cpu", "--out", "out"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("minflamingo.__main__.load", lambda *args, **options: small_pipeline())
    monkeypatch.chdir(tmp_path)
    OPENED.clear()


def test_the_command_ends_in_a_table_a_figure_and_a_model_that_can_be_loaded(capsys):
    """Table 2 of the paper: few-shot and fine-tuned scores with intervals. The model has larger images than in pretraining."""
    main([*COMMAND, "--image-size", "16"])
    found, printed = load_json(Path("out/results.json"))["tasks"]["named"], capsys.readouterr().out
    for kind in ("few_shot", "fine_tuned"):
        low, high = found[kind]["interval"]
        assert f"{found[kind]['score']:.1f} [{low:.0f}, {high:.0f}]" in printed and found[kind]["n"] == 6
    assert Path("out/grid.png").stat().st_size > 5000
    pipeline, before = load("out/models/named"), small_pipeline().model
    assert all(torch.equal(p, q) for p, q in zip(pipeline.model.lm.parameters(), before.lm.parameters(), strict=True))
    assert pipeline.preprocess.size == pipeline.model.config.vision.image_size == 16
    assert pipeline.model.vision.positions.shape == (17, 16)
    assert not torch.equal(pipeline.model.vision.patches.weight, before.vision.patches.weight)
    answers = json.loads(Path("out/models/named/predictions.json").read_text())
    assert [row["key"] for row in answers] == [f"test-{i}" for i in range(6)]


def test_the_setting_with_the_best_validation_score_is_trained_on_all_examples_and_tested_once():
    """Three quarters of the 16 training examples are for the search. No test image is opened before its end."""
    main(COMMAND)
    found = load_json(Path("out/results.json"))["tasks"]["named"]
    tried = [(trial["hyperparameters"]["lr"], trial["hyperparameters"]["steps"]) for trial in found["grid"]]
    assert tried == [(1e-3, 2), (1e-3, 4), (1e-2, 2), (1e-2, 4)]
    best = max(found["grid"], key=lambda trial: trial["score"])
    assert found["hyperparameters"] == best["hyperparameters"] and {trial["n"] for trial in found["grid"]} == {4}
    # The few-shot evaluation opens 6 queries and their shots, then only the training set is used.
    assert OPENED.count("test") == 12 and OPENED[-6:] == ["test"] * 6
    after = OPENED[max(i for i, split in enumerate(OPENED[:-6]) if split == "test") + 1 : -6]
    assert len(after) > 4 * 4 and set(after) == {"train"}


def test_a_stopped_search_resumes_with_the_same_result():
    """A third call has nothing to train. Another seed has another validation set, so all is trained again."""
    main([*COMMAND, "--out", "whole"])
    with stopped_at(3), pytest.raises(SystemExit, match="resume"):
        main(COMMAND)
    main(COMMAND)
    assert load_json(Path("out/results.json")) == load_json(Path("whole/results.json"))
    OPENED.clear()
    main(COMMAND)
    assert OPENED == []
    main([*COMMAND, "--seed", "1"])
    assert OPENED.count("train") > 16


def test_a_training_that_diverges_is_left_out_of_the_search(capsys):
    """It is named, and the next one starts from the weights of before. If all diverge, this is an error."""
    main([*COMMAND, "--out", "whole"])
    main([*COMMAND, "--lr", "1e30", "1e-3", "1e-2", "--out", "wild"])
    assert load_json(Path("wild/results.json")) == load_json(Path("whole/results.json"))
    assert re.search(r"named-1e\+30-linear-2-4 is left out: .* is not finite", capsys.readouterr().out)
    with pytest.raises(SystemExit, match="named: all settings were left out"):
        main([*COMMAND, "--lr", "1e30", "--out", "none"])


def test_positions_of_a_larger_grid_are_interpolated_between_patch_centres():
    """Section 3.2: fine-tuning uses larger images. The values 0 and 1 become 0, 1/4, 3/4, 1."""
    by_hand = torch.tensor([0, 0.25, 0.75, 1])
    columns, rows = resize_positions(torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 1]]), 4).unbind(-1)
    assert close(columns, by_hand.repeat(4)) and close(rows, by_hand.repeat_interleave(4))
    assert torch.equal(resize_positions(noise(9, 5), 3), noise(9, 5))
    with pytest.raises(ValueError, match="cannot resize 8 positions"):
        resize_positions(noise(8, 5), 4)


def test_resizing_keeps_the_patch_size_and_the_class_token_and_accepts_larger_images():
    """Only the positions change: the class token's position stays, and the new ones are those of `resize_positions`."""
    vit = enliven(ViT(VisionConfig(12, 4, d=16, n_layers=1, n_heads=2)))
    before = {name: p.clone() for name, p in vit.state_dict().items()}
    resize_vit(vit, 20)
    assert vit(noise(1, 3, 20, 20)).shape == (1, 26, 16) and vit.config.image_size == 20
    expected = torch.cat([before["positions"][:1], resize_positions(before["positions"][1:], 5)])
    assert torch.equal(vit.positions, expected)
    assert all(torch.equal(p, before[name]) for name, p in vit.state_dict().items() if name != "positions")
    with pytest.raises(ValueError, match="image size 22 is not a multiple of the patch size 4: choose 20 or 24"):
        resize_vit(vit, 22)
    with pytest.raises(TypeError, match="only a ViT can be resized, not a Identity"):
        resize_vit(torch.nn.Identity(), 8)
