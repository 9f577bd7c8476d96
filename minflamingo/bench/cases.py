"""The models and the work that is timed. Random weights: speed does not ask what a model knows.

    tiny         two layers of width 64: does the bench run at all (the tests use it)
    small        d 512, 8 layers with a bridge before each, 64 latents of width 256, 8 heads of 64: a CPU does it in a minute
    3b           Flamingo-3B around a ViT-L/14, bf16: for a GPU
    shot         16 tokens with its picture; 32 shots and the query are 33 pictures and 528 tokens
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import flamingo as whole
from .. import layers
from ..config import FlamingoConfig, LMConfig, ResamplerConfig, VisionConfig, preset
from ..flamingo import Batch, Flamingo
from ..gated_xattn import xattn_mask

SHOT_TOKENS = 16
SHOTS = (0, 4, 8, 16, 32)


class NoEye(nn.Module):
    """Features are given: the eye is not part of what is timed."""

    def forward(self, features: Tensor) -> Tensor:
        return features


def config(size: str) -> FlamingoConfig:
    """The configuration called "tiny", "small" or "3b"."""
    if size == "3b":
        return preset("flamingo-3b")
    sizes = {"tiny": (64, 2, 4, 8, 32, 500), "small": (512, 8, 8, 64, 256, 32000)}
    d, layers, heads, latents, d_vision, V = sizes[size]
    return FlamingoConfig(
        vision=VisionConfig(d=d_vision),
        lm=LMConfig(vocab_size=V, d=d, layers=layers, heads=heads, max_length=1024, position="learned", tied_head=True),
        resampler=ResamplerConfig(d=d_vision, layers=6, heads=8, d_head=64, n_latents=latents, n_time_embeddings=0),
        xattn_every=1, xattn_heads=8, xattn_d_head=64,
    )  # fmt: skip


def model(c: FlamingoConfig, device: torch.device | str, dtype: torch.dtype, with_eye: bool) -> Flamingo:
    """Random weights, gates half open (shut ones would let a clever kernel skip the work)."""
    torch.manual_seed(0)
    flamingo = Flamingo(c, None if with_eye else NoEye())
    with torch.no_grad():
        for layer in flamingo.xattn_layers.values():
            layer.alpha_xattn.fill_(0.5)
            layer.alpha_dense.fill_(0.5)
    return flamingo.to(device=device, dtype=dtype).eval()


def pages(
    flamingo: Flamingo, rows: int, images: int, tokens: int, patches: int, device: torch.device | str = "cpu", seed: int = 0
) -> Batch:
    """`rows` pages of `images` pictures, evenly spread over `tokens` tokens, the first at the beginning; all else is text.

    `patches` > 0: each picture is that many features; 0: pixels of the eye's size.
    """
    c, generator = flamingo.config, torch.Generator().manual_seed(seed)
    V = flamingo.lm.config.vocab_size
    ids = torch.randint(3, V, (rows, tokens), generator=generator)
    places = [tokens * n // images for n in range(images)]
    labels = ids.clone()
    ids[:, places], labels[:, places] = flamingo.image_id, -100
    side = c.vision.image_size
    shape = (rows, images, 1, patches, c.resampler.d) if patches else (rows, images, 1, 3, side, side)
    media = torch.randn(shape, generator=generator) if images else None
    frames = torch.ones(rows, images, dtype=torch.long)
    return Batch(ids, labels, torch.ones_like(ids, dtype=torch.bool), media, frames).to(device)


def prompt(flamingo: Flamingo, shots: int, patches: int, device: torch.device | str = "cpu", rows: int = 1) -> Batch:
    """`shots` examples and a query, 16 tokens and one picture each."""
    return pages(flamingo, rows, shots + 1, SHOT_TOKENS * (shots + 1), patches, device)


def queries(flamingo: Flamingo, rows: int, patches: int, device: torch.device | str = "cpu") -> Batch:
    """`rows` different queries of one picture and 16 tokens."""
    return pages(flamingo, rows, 1, SHOT_TOKENS, patches, device, seed=1)


@contextmanager
def plainly(flamingo: Flamingo) -> Iterator[None]:
    """Inside, the plain twins do the work: every token against the tokens of all images, and `F.linear` as it is."""
    R = flamingo.config.resampler.n_latents
    with (
        patch.object(whole, "cut_into_segments", lambda phi, n_media: xattn_mask(phi, n_media, R)),
        patch.object(layers, "product", F.linear),
    ):
        yield


def read_per_token(flamingo: Flamingo) -> int:
    """Bytes of weights that one more token has to read: all but the eye, the resampler, the tables and the media's keys."""
    skipped = ("vision.", "resampler.", "lm.position_embed.", "new_embed.")
    named = [(n, p) for n, p in flamingo.named_parameters() if not n.startswith(skipped) and "to_kv" not in n]
    if not flamingo.lm.config.tied_head:  # a tied table is read as the head
        named = [(n, p) for n, p in named if n != "lm.embed.weight"]
    return sum(p.numel() * p.element_size() for _, p in named)
