"""Small models for the tests: random, but the same on every run, with open gates and non-trivial weights everywhere.

A new model hides mistakes: its gates are closed, and weights of 0.02 make right and wrong results agree to 1e-5. `enliven`
gives each parameter a value at which a mistake shows.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from minflamingo import LM, Batch, Flamingo, FlamingoConfig, LMConfig, ResamplerConfig, Sample, VisionConfig, collate
from minflamingo.data.sample import EOC as EOC
from minflamingo.training.stage import Stage

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell starts background jobs so; tests of Ctrl-C need it
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent


def random(*shape: int, seed: int = 0) -> Tensor:
    """Normal random numbers that depend only on the seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gpt2_state(n_layers: int, prefix: str = "") -> dict[str, Tensor]:
    """Random weights with the names and shapes of a small GPT-2."""
    linears = {"attn.c_attn": (32, 96), "attn.c_proj": (32, 32), "mlp.c_fc": (32, 128), "mlp.c_proj": (128, 32)}
    shapes = {"wte.weight": (50, 32), "wpe.weight": (40, 32), "ln_f.weight": (32,), "ln_f.bias": (32,)}
    for i in range(n_layers):
        shapes |= {f"h.{i}.{name}.{kind}": (32,) for name in ("ln_1", "ln_2") for kind in ("weight", "bias")}
        shapes |= {f"h.{i}.{name}.weight": shape for name, shape in linears.items()}
        shapes |= {f"h.{i}.{name}.bias": shape[1:] for name, shape in linears.items()}
    return {f"{prefix}{name}": random(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}


@torch.no_grad()
def enliven(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter a random value that matters: open gates, non-trivial norms and biases."""
    for i, (name, p) in enumerate(model.named_parameters()):
        noise = random(*p.shape, seed=1000 * seed + i)
        if "alpha" in name:
            p.copy_(0.5 + noise.abs())
        elif p.dim() <= 1:
            p.copy_(0.2 * noise + float(name.endswith("weight")))  # a vector named "weight" belongs to a norm
        elif any(word in name for word in ("embed", "latents", "positions", "time")):
            p.copy_(0.3 * noise)
        else:
            p.copy_(noise / p[0].numel() ** 0.5)
    for name, statistic in model.named_buffers():  # statistics of BatchNorm
        if name.endswith(("mean", "var")):
            statistic.copy_(0.2 * random(*statistic.shape, seed=seed).tanh() + float(name.endswith("var")))
    return model.eval()


class LetterTokenizer:
    """A minimal tokenizer: "a" ... "h" are the ids 3 ... 10."""

    vocab_size, pad_id, bos_id, eoc_id, image_id = 11, 0, 1, 2, 11

    def encode(self, text: str) -> list[int]:
        return ["abcdefgh".index(letter) + 3 for letter in text]

    def decode(self, ids) -> str:
        return "".join("abcdefgh"[i - 3] for i in ids if 3 <= i < self.vocab_size)


LETTERS = LetterTokenizer()

GPT2 = dict(position="learned", attention_bias=True, output_bias=True, mlp_bias=True, activation="gelu_tanh", tied_head=True)
LM_FAMILIES = {
    "gpt2": GPT2,
    "opt": {**GPT2, "activation": "relu", "position_offset": 2},
    "neox": dict(position="rotary", rotary_pct=0.25, parallel_residual=True, attention_bias=True, output_bias=True,
                 mlp_bias=True, tied_head=False, d=64),
    "mpt": dict(position="alibi", norm_bias=False, tied_head=True),
    "mosaic": dict(position="alibi", qk_norm="full", tied_head=True),
    "llama": dict(position="rotary", norm="rmsnorm", norm_eps=1e-6, activation="silu", gated_mlp=True, n_kv_heads=2,
                  tied_head=False),
    "head_norm": dict(position="rotary", norm="rmsnorm", qk_norm="head", n_kv_heads=1, gated_mlp=True, head_bias=True),
    "toy": dict(position="rotary", conv_width=3),
}  # fmt: skip


def tiny_lm(family: str = "toy", seed: int = 0, **changes) -> LM:
    """A language model of two layers with the options of `family`."""
    sizes = dict(vocab_size=LETTERS.vocab_size, d=32, n_layers=2, n_heads=4, max_length=32)
    return enliven(LM(LMConfig(**{**sizes, **LM_FAMILIES[family], **changes})), seed)


def tiny_config(lm: dict | None = None, **changes) -> FlamingoConfig:
    """Images of 8 x 8 pixels, 4 patches and a class token, 3 latents, gated layers before LM blocks 0 and 2."""
    sizes = dict(vocab_size=LETTERS.vocab_size, d=32, n_layers=3, n_heads=4, conv_width=3, max_length=64, head_bias=True)
    config = FlamingoConfig(
        vision=VisionConfig(image_size=8, patch_size=4, d=16, n_layers=1, n_heads=2),
        resampler=ResamplerConfig(d=16, n_latents=3, n_layers=2, n_heads=2, d_head=8, n_time_embeddings=4),
        lm=LMConfig(**{**sizes, **(lm or {})}),
        xattn_every=2, xattn_n_heads=2, xattn_d_head=8,
    )  # fmt: skip
    return replace(config, **changes)


def tiny_flamingo(seed: int = 0, lm: dict | None = None, **changes) -> Flamingo:
    """A Flamingo of `tiny_config` whose logits depend on the images."""
    return enliven(Flamingo(tiny_config(lm, **changes)), seed)


def image(seed: int, frames: int = 1) -> np.ndarray:
    """Pixels (T, 8, 8, 3) uint8 of an image or a video."""
    return np.random.default_rng(seed).integers(0, 256, (frames, 8, 8, 3), dtype=np.uint8)


def preprocess(pixels: np.ndarray) -> Tensor:
    """(T, H, W, C) uint8 -> (T, C, H, W) from -2 to 2."""
    return torch.as_tensor(pixels).permute(0, 3, 1, 2) / 64 - 2


def batch_of(*rows: list, pad: str = "right", **sample) -> Batch:
    """A batch with one row per list of pieces, tokenized with the letter tokenizer."""
    return collate([Sample(row, **sample) for row in rows], LETTERS, preprocess, pad=pad)


@torch.no_grad()
def next_log_p(flamingo: Flamingo, pieces: list, *rows: Sequence[int]) -> Tensor:
    """(V,), or (n, V) for n rows: after a prompt and new tokens, everything computed from scratch."""
    batch, new = batch_of(*[pieces] * max(1, len(rows))), torch.tensor(rows or [()], dtype=torch.long)
    ids = torch.cat([batch.ids, new], dim=1)
    logits = flamingo(replace(batch, ids=ids, labels=ids, attention_mask=torch.ones_like(ids, dtype=torch.bool)))[0]
    return logits[:, -1].log_softmax(-1).squeeze(0)


def log_likelihood(flamingo: Flamingo, pieces: list, answer: list[int]) -> float:
    """Of the tokens of an answer after a prompt, without any cache."""
    return sum(float(next_log_p(flamingo, pieces, answer[:i])[token]) for i, token in enumerate(answer))


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    """Equal up to rounding; NaN is never equal."""
    return a.shape == b.shape and bool(((a - b).abs() <= tolerance).all())


def equal(a, b) -> bool:
    """Equal to the last bit, however deeply nested."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


class CreatesFile:
    """Unpickling this object creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@contextmanager
def stopped_at(step: int) -> Iterator[None]:
    """Interrupt every stage (Ctrl-C) when this step would begin. There is a checkpoint after each step."""
    steps = Stage.steps

    def stops(self, *args, **kwargs):
        self.save_every = -1.0
        for i in steps(self, *args, **kwargs):
            if i == step:
                raise KeyboardInterrupt
            yield i

    with mock.patch.object(Stage, "steps", stops):
        yield


# ------------------------------------------------------------------------------------- train_tiny.py as a person starts it

QUICK, STAGES = ["--quick", "--device", "cpu"], ["vision", "language", "flamingo"]


def python(*arguments: str) -> subprocess.CompletedProcess:
    """A new process with as many threads as this one, so that sums are rounded alike."""
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=500)


@pytest.fixture(scope="session")
def quick(tmp_path_factory) -> tuple[Path, str]:
    """One run without a stop: its folder, and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "deep" / "quick"
    done = python("train_tiny.py", *QUICK, "--out", str(out))
    assert done.returncode == 0, done.stderr
    return out, done.stdout
