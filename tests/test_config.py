"""Configurations are data: compared, saved, read back, and wrong ones are refused with a sentence that helps."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from conftest import tiny_config

from minflamingo.config import (
    PRESETS,
    FlamingoConfig,
    LMConfig,
    ResamplerConfig,
    VisionConfig,
    preset,
)
from minflamingo.flamingo import Flamingo


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_the_way_through_json(name):
    """A config is data: `from_dict(to_dict)` is the identity, also through text."""
    config = preset(name)
    assert FlamingoConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_the_docstring_speaks_of_the_tiny_preset():
    """The example of the module."""
    config = preset("tiny")
    assert (config.lm.d, config.resampler.n_latents, config.xattn_every) == (96, 8, 1)


@pytest.mark.parametrize("name", PRESETS)
def test_in_every_preset_the_resampler_has_the_width_of_the_eye(name):
    """Its width is that of the vision features (paper §2.1): nothing stands between the two."""
    assert preset(name).resampler.d == preset(name).vision.d


def test_a_preset_takes_the_vocabulary_of_a_tokenizer_and_nothing_else_changes():
    """`vocab_size` is the one field that a tokenizer decides."""
    config = preset("tiny", vocab_size=300)
    assert config.lm.vocab_size == 300
    assert replace(config, lm=replace(config.lm, vocab_size=preset("tiny").lm.vocab_size)) == preset("tiny")


def test_an_unknown_preset_is_refused_with_the_list_of_those_there_are():
    """Errors say what to do."""
    with pytest.raises(ValueError, match=r"unknown preset 'huge'.*tiny.*small"):
        preset("huge")


def test_a_config_cannot_be_changed_in_place():
    """Frozen dataclasses: what was printed is what ran."""
    with pytest.raises(FrozenInstanceError):
        preset("tiny").xattn_every = 3


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: VisionConfig(image_size=224, patch_size=15), "patch_size=15 does not divide image_size=224"),
        (lambda: VisionConfig(d=100, heads=16), "heads=16 does not divide d=100"),
        (lambda: VisionConfig(stem="nfnet"), "VisionConfig.stem is 'nfnet'; choose one of 'patch', 'conv'"),
        (lambda: VisionConfig(activation="swish"), "VisionConfig.activation is 'swish'; choose one of .*'quick_gelu'"),
        (lambda: LMConfig(10, d=30, layers=1, heads=4), "heads=4 does not divide d=30"),
        (lambda: LMConfig(10, d=32, layers=1, heads=4, kv_heads=3), "kv_heads=3 does not divide heads=4"),
        (lambda: LMConfig(10, d=32, layers=1, heads=4, kv_heads=0), "kv_heads=0 does not divide heads=4"),
        (lambda: LMConfig(10, 32, 1, 4, position="sinus"), "LMConfig.position is 'sinus'; choose one of 'learned'"),
        (lambda: LMConfig(10, 32, 1, 4, norm="batchnorm"), "LMConfig.norm is 'batchnorm'"),
        (
            lambda: LMConfig(10, 32, 1, 4, qk_norm="yes"),
            "LMConfig.qk_norm is 'yes'; choose one of None, 'full', 'head'",
        ),
        (lambda: LMConfig(10, 32, 1, 4, activation="tanh"), "LMConfig.activation is 'tanh'"),
        (lambda: tiny_config(attend="next"), "FlamingoConfig.attend is 'next'; choose one of 'last', 'all'"),
        (lambda: tiny_config(xattn_activation="elu"), "FlamingoConfig.xattn_activation is 'elu'"),
        (lambda: tiny_config(xattn_every=0), "xattn_every is 0; the LM has 3 layers"),
        (lambda: tiny_config(xattn_every=4), "xattn_every is 4; the LM has 3 layers"),
    ],
)
def test_a_choice_that_does_not_exist_is_refused_when_the_config_is_made(make, sentence):
    """The mistake is named where it is made, not layers later as a shape that does not fit."""
    with pytest.raises(ValueError, match=sentence):
        make()


def test_a_dictionary_with_a_field_too_many_or_too_few_is_refused():
    """A file of another version says so instead of filling in defaults."""
    good = preset("tiny").to_dict()
    with pytest.raises(ValueError, match=r"no FlamingoConfig.*glasses"):
        FlamingoConfig.from_dict({**good, "glasses": True})
    with pytest.raises(ValueError, match=r"no FlamingoConfig.*ears"):
        FlamingoConfig.from_dict({**good, "vision": {**good["vision"], "ears": 2}})
    with pytest.raises(ValueError, match=r"no FlamingoConfig.*lm"):
        FlamingoConfig.from_dict({k: v for k, v in good.items() if k != "lm"})


def test_sizes_that_follow_from_others():
    """CLIP's ViT-L/14 cuts 224 pixels into 16 × 16 patches; heads share the width; kv_heads: as many as heads."""
    assert VisionConfig(image_size=224, patch_size=14).n_patches == 256
    lm = LMConfig(10, d=96, layers=1, heads=6)
    assert (lm.d_head, lm.n_kv_heads, replace(lm, kv_heads=2).n_kv_heads) == (16, 6, 2)


@pytest.mark.parametrize(
    "model, layers, d, heads, every, bridges",
    [("3B", 24, 2048, 16, 1, 24), ("9B", 40, 4096, 32, 4, 10), ("80B", 80, 8192, 64, 7, 12)],
)
def test_the_papers_three_models_have_24_10_and_12_cross_attention_layers(model, layers, d, heads, every, bridges):
    """The paper's table of models (§2.2, table 1): every layer of 24, every 4th of 40, every 7th of 80."""
    config = FlamingoConfig(
        vision=VisionConfig(d=1536, layers=1), resampler=ResamplerConfig(d=1536, heads=16, d_head=96),
        lm=LMConfig(100, d=d, layers=layers, heads=heads), xattn_every=every,
    )  # fmt: skip
    with torch.device("meta"):
        flamingo = Flamingo(config)
    assert len(flamingo.xattn_layers) == bridges
    assert list(flamingo.xattn_layers) == [str(i) for i in range(layers) if i % every == 0]
