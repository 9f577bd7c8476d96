"""Small models for the tests: random but the same on every run, every gate open, every organ at work.

A freshly initialised model is a bad witness: its gates are shut, and its weights of 0.02 make wrong and right agree to
1e-5. So `enliven` gives each parameter a value at which a mistake shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from minflamingo.config import FlamingoConfig, LMConfig, ResamplerConfig, VisionConfig
from minflamingo.data.sample import EOC, Sample, collate
from minflamingo.flamingo import Batch, Flamingo
from minflamingo.lm import LM
from minflamingo.training.stage import Stage


def random(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers that depend on the seed alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def enliven(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter a random value that matters: gates open, norms and biases not trivial."""
    for i, (name, p) in enumerate(model.named_parameters()):
        noise = random(*p.shape, seed=1000 * seed + i)
        if "alpha" in name:
            p.copy_(0.5 + noise.abs())
        elif p.dim() <= 1:
            p.copy_(0.2 * noise + float(name.endswith("weight")))  # a vector called "weight" is a norm's
        elif any(word in name for word in ("embed", "latents", "positions", "time")):
            p.copy_(0.3 * noise)
        else:
            p.copy_(noise / p[0].numel() ** 0.5)
    for name, statistic in model.named_buffers():  # of a BatchNorm
        if name.endswith(("mean", "var")):
            statistic.copy_(0.2 * random(*statistic.shape, seed=seed).tanh() + float(name.endswith("var")))
    return model.eval()


class LetterTokenizer:
    """The smallest tokenizer there is: "a" … "h" are ids 3 … 10."""

    vocab_size, pad_id, bos_id, eoc_id, image_id = 11, 0, 1, 2, 11

    def encode(self, text: str) -> list[int]:
        return ["abcdefgh".index(letter) + 3 for letter in text]

    def decode(self, ids) -> str:
        return "".join("abcdefgh"[i - 3] for i in ids if 3 <= i < self.vocab_size)


LETTERS = LetterTokenizer()

GPT2 = dict(
    position="learned", attention_bias=True, output_bias=True, mlp_bias=True, activation="gelu_tanh", tied_head=True,
)  # fmt: skip
LM_FAMILIES = {
    "gpt2": GPT2,
    "opt": {**GPT2, "activation": "relu", "position_offset": 2},
    "neox": dict(
        position="rotary", rotary_pct=0.25, parallel_residual=True, attention_bias=True, output_bias=True,
        mlp_bias=True, tied_head=False, d=64,
    ),
    "mpt": dict(position="alibi", norm_bias=False, tied_head=True),
    "mosaic": dict(position="alibi", qk_norm="full", tied_head=True),
    "llama": dict(
        position="rotary", norm="rmsnorm", norm_eps=1e-6, activation="silu", gated_mlp=True, kv_heads=2,
        tied_head=False,
    ),
    "head_norm": dict(position="rotary", norm="rmsnorm", qk_norm="head", kv_heads=1, gated_mlp=True, head_bias=True),
    "toy": dict(position="rotary", conv_width=3),
}  # fmt: skip


def tiny_lm(family: str = "toy", seed: int = 0, **changes) -> LM:
    """A language model of two layers in the manner of `family`, alive."""
    sizes = dict(vocab_size=LETTERS.vocab_size, d=32, layers=2, heads=4, max_length=32)
    return enliven(LM(LMConfig(**{**sizes, **LM_FAMILIES[family], **changes})), seed)


def tiny_config(lm: dict | None = None, **changes) -> FlamingoConfig:
    """For pictures of 8×8 pixels: 4 patches and a class token, 3 latents, a bridge before LM layers 0 and 2."""
    sizes = dict(vocab_size=LETTERS.vocab_size, d=32, layers=3, heads=4, conv_width=3, max_length=64, head_bias=True)
    config = FlamingoConfig(
        vision=VisionConfig(image_size=8, patch_size=4, d=16, layers=1, heads=2),
        resampler=ResamplerConfig(d=16, n_latents=3, layers=2, heads=2, d_head=8, n_time_embeddings=4),
        lm=LMConfig(**{**sizes, **(lm or {})}),
        xattn_every=2, xattn_heads=2, xattn_d_head=8,
    )  # fmt: skip
    return replace(config, **changes)


def tiny_flamingo(seed: int = 0, lm: dict | None = None, **changes) -> Flamingo:
    """A Flamingo of `tiny_config`, alive: what an image shows changes the logits."""
    return enliven(Flamingo(tiny_config(lm, **changes)), seed)


def picture(seed: int, frames: int = 1) -> np.ndarray:
    """Pixels (T, 8, 8, 3) uint8 of an image, or of a video."""
    return np.random.default_rng(seed).integers(0, 256, (frames, 8, 8, 3), dtype=np.uint8)


def prepare(pixels: np.ndarray) -> Tensor:
    """(T, H, W, C) uint8 → (T, C, H, W) in −2 … 2."""
    return torch.as_tensor(pixels).permute(0, 3, 1, 2) / 64 - 2


def batch_of(*rows: list, pad: str = "right", **sample) -> Batch:
    """A batch of rows of pieces, read with the letter tokenizer."""
    return collate([Sample(row, **sample) for row in rows], LETTERS, prepare, pad)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    """Equal up to rounding; NaN is equal to nothing."""
    return a.shape == b.shape and bool(((a - b).abs() <= tolerance).all())


__all__ = [
    "EOC", "LETTERS", "LM_FAMILIES", "batch_of", "close", "enliven", "picture", "prepare", "random", "tiny_config",
    "tiny_flamingo", "tiny_lm",
]  # fmt: skip


@contextmanager
def stopped_at(step: int) -> Iterator[None]:
    """Whoever trains is interrupted when this step would begin."""
    steps = Stage.steps

    def stops(self):
        for i in steps(self):
            if i == step:
                raise KeyboardInterrupt
            yield i

    with mock.patch.object(Stage, "steps", stops):
        yield
