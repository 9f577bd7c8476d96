"""Specification of `config.py`: a config is plain data, and a wrong value is refused with a message that helps."""

import json
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from conftest import tiny_config

from minflamingo.config import PRESETS, FlamingoConfig, LMConfig, ResamplerConfig, VisionConfig, preset
from minflamingo.flamingo import Flamingo


@pytest.mark.parametrize("name", PRESETS)
def test_a_config_survives_json(name):
    """`from_dict` is the inverse of `to_dict`, also through text. The resampler has the width of the features (section 2.1)."""
    config = preset(name)
    assert FlamingoConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.resampler.d == config.vision.d


def test_the_tiny_preset_has_the_documented_sizes_and_takes_the_vocabulary_size_of_a_tokenizer():
    """The example of the module; with another vocabulary nothing else changes."""
    config = preset("tiny")
    assert (config.lm.d, config.resampler.n_latents, config.xattn_every) == (96, 8, 1)
    config = preset("tiny", vocab_size=300)
    assert config.lm.vocab_size == 300
    assert replace(config, lm=replace(config.lm, vocab_size=preset("tiny").lm.vocab_size)) == preset("tiny")
    with pytest.raises(FrozenInstanceError):
        config.xattn_every = 3


WRONG = {
    "unknown preset 'huge'.*tiny.*small": lambda: preset("huge"),
    "patch_size=15 does not divide image_size=224": lambda: VisionConfig(image_size=224, patch_size=15),
    "VisionConfig: n_heads=16 does not divide d=100": lambda: VisionConfig(d=100, n_heads=16),
    "VisionConfig.stem is 'nfnet'; choose one of 'patch', 'conv'": lambda: VisionConfig(stem="nfnet"),
    "VisionConfig.activation is 'swish'; choose one of .*'quick_gelu'": lambda: VisionConfig(activation="swish"),
    "LMConfig: n_heads=4 does not divide d=30": lambda: LMConfig(10, d=30, n_layers=1, n_heads=4),
    "n_kv_heads=3 does not divide n_heads=4": lambda: LMConfig(10, d=32, n_layers=1, n_heads=4, n_kv_heads=3),
    "n_kv_heads=0 does not": lambda: LMConfig(10, d=32, n_layers=1, n_heads=4, n_kv_heads=0),
    "LMConfig.position is 'sinus'; choose one of 'learned'": lambda: LMConfig(10, 32, 1, 4, position="sinus"),
    "LMConfig.qk_norm is 'yes'; choose one of None, 'full', 'head'": lambda: LMConfig(10, 32, 1, 4, qk_norm="yes"),
    "max_length is None, but learned": lambda: LMConfig(10, 32, 1, 4, position="learned", max_length=None),
    "rotary_pct 0.3 of d_head 10 must give an even number": lambda: LMConfig(10, 40, 1, 4, rotary_pct=0.3),
    "FlamingoConfig.added_head is 'yes'": lambda: tiny_config(added_head="yes"),
    "image_token is 2; there are 2 added tokens": lambda: tiny_config(image_token=2, n_added_tokens=2),
    "xattn_every=0, but the LM has 3 layers": lambda: tiny_config(xattn_every=0),
    "xattn_every=4, but the LM has 3 layers": lambda: tiny_config(xattn_every=4),
    "xattn_first=3, xattn_every=2, but the LM has 3 layers": lambda: tiny_config(xattn_first=3),
}


@pytest.mark.parametrize("message", WRONG)
def test_an_impossible_value_is_an_error_when_the_config_is_made(message):
    """The message names the field, the value and the choices."""
    with pytest.raises(ValueError, match=message):
        WRONG[message]()


def test_an_unknown_or_missing_field_is_an_error_that_names_it():
    """A misspelled field is answered with the nearest name."""
    good = preset("tiny").to_dict()
    with pytest.raises(ValueError, match=r"FlamingoConfig: unknown field 'xattn_evry' \(did you mean 'xattn_every'\?\)"):
        FlamingoConfig.from_dict({**good, "xattn_evry": 1})
    with pytest.raises(ValueError, match="invalid VisionConfig: unknown field 'ears'"):
        FlamingoConfig.from_dict({**good, "vision": {**good["vision"], "ears": 2}})
    with pytest.raises(ValueError, match="invalid FlamingoConfig.*lm"):
        FlamingoConfig.from_dict({k: v for k, v in good.items() if k != "lm"})


def test_sizes_that_follow_from_other_sizes():
    """224 pixels in patches of 14 are 16 x 16 patches; heads share the width; as many key heads as heads by default."""
    assert VisionConfig(image_size=224, patch_size=14).n_patches == 256
    lm = LMConfig(10, d=96, n_layers=1, n_heads=6)
    assert (lm.d_head, lm.kv_heads, replace(lm, n_kv_heads=2).kv_heads) == (16, 6, 2)
    assert list(tiny_config(xattn_every=2, xattn_first=1).xattn_layers) == [1]


@pytest.mark.parametrize(
    "n_layers, d, n_heads, every, n_xattn", [(24, 2048, 16, 1, 24), (40, 4096, 32, 4, 10), (80, 8192, 64, 7, 12)]
)
def test_the_papers_three_models_have_24_10_and_12_cross_attention_layers(n_layers, d, n_heads, every, n_xattn):
    """Table 1: before every layer of 24, every 4th of 40 and every 7th of 80."""
    config = FlamingoConfig(
        vision=VisionConfig(d=1536, n_layers=1), resampler=ResamplerConfig(d=1536, n_heads=16, d_head=96),
        lm=LMConfig(100, d=d, n_layers=n_layers, n_heads=n_heads), xattn_every=every,
    )  # fmt: skip
    with torch.device("meta"):
        flamingo = Flamingo(config)
    assert len(flamingo.xattn_layers) == n_xattn
    assert list(flamingo.xattn_layers) == [str(i) for i in range(n_layers) if i % every == 0]
