"""The whole: a frozen eye, a frozen tongue, and between them the parts that learn (paper §2, fig. 3).

    pixels (B, N, T, C, H, W) → eye → features (B, N, T, S, D_v) → resampler → visual tokens (B, N, R, D_v)
    ids (B, L) → embeddings → [GATED XATTN-DENSE →] LM block → … → logits (B, L, V)      (V + new tokens, with `new_head`)

It models p(y | x) = Π_l p(y_l | y_<l, x_≤l): text y interleaved with images or videos x. Trained are the resampler, the
GATED XATTN-DENSE layers and the embedding rows of new tokens (`<image>`), nothing else.

**Frozen means frozen.** `freeze()` takes the gradient from eye and tongue, and `train()` leaves both in evaluation mode, so
that no dropout reaches them either (OpenFlamingo's `model.train()` wakes the frozen OPT's dropout of 0.1).

Nothing is stored on the modules between calls: visual tokens, phi and caches are arguments and results.

Example, ids `<BOS> <image> a cat <EOC>` with one picture: media (1, 1, 1, 3, 48, 48) → logits (1, 5, V), equal at
initialisation to `flamingo.lm` on the same embeddings, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .config import FlamingoConfig
from .gated_xattn import GatedCrossAttentionDense, media_index, xattn_mask
from .lm import LM, LMCache, labelled, labelled_loss, next_token_loss
from .resampler import PerceiverResampler
from .shapes import check_shape
from .vision import ViT


@dataclass(frozen=True)
class Batch:
    """What `Flamingo.forward` takes.

    ids, labels: (B, L) long; labels are −100 where no loss is counted.
    attention_mask: (B, L) bool, False at padding.
    media: (B, N, T, C, H, W) prepared pixels, or (B, N, T, S, D) features; None: text alone.
    frames: (B, N) long, how many of the T frames are real; 0: there is no such medium (the sample has fewer).
    attend_next: (B,) bool.
    """

    ids: Tensor
    labels: Tensor
    attention_mask: Tensor
    media: Tensor | None = None
    frames: Tensor | None = None
    attend_next: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        moved = {k: v.to(device) for k, v in vars(self).items() if v is not None}
        return replace(self, **moved)


@dataclass(frozen=True)
class Cache:
    """All that generation carries from step to step. Never changed in place.

    media: per LM layer the keys and values of all images, or None where no bridge stands; each image was seen once.
    phi: (B,) long, the image that the last token looked at.
    """

    lm: LMCache
    media: tuple[tuple[Tensor, Tensor] | None, ...] | None
    phi: Tensor

    def select(self, rows: Tensor) -> Cache:
        media = self.media and tuple(kv and (kv[0][rows], kv[1][rows]) for kv in self.media)
        return Cache(self.lm.select(rows), media, self.phi[rows])


class Flamingo(nn.Module):
    """A visual language model around a given eye and a given tongue.

    Args:
        config: sizes of the bridge; `config.lm` and `config.vision` describe the parts below when those are not given.
        vision: any module (M, C, H, W) → (M, S, D_v), D_v = config.resampler.d. None: a fresh `ViT`.
        lm: an `LM`. None: a fresh one.
    """

    def __init__(self, config: FlamingoConfig, vision: nn.Module | None = None, lm: LM | None = None):
        super().__init__()
        c = self.config = config
        self.vision = ViT(c.vision) if vision is None else vision
        self.lm = LM(c.lm) if lm is None else lm
        self.resampler = PerceiverResampler(c.resampler)
        self.new_embed = nn.Embedding(c.n_new_tokens, c.lm.d)
        nn.init.normal_(self.new_embed.weight, std=0.02)
        if c.new_head:
            self.new_head = nn.Linear(c.lm.d, c.n_new_tokens, bias=False)
            nn.init.normal_(self.new_head.weight, std=0.02)
        if c.new_head == "tied":
            self.new_head.weight = self.new_embed.weight
        self.xattn_layers = nn.ModuleDict({str(i): GatedCrossAttentionDense(c) for i in c.xattn_layers})
        self.freeze()

    # ------------------------------------------------------------------------------------------------ what is frozen

    def freeze(self) -> Flamingo:
        """Take the gradient from eye and tongue."""
        self.vision.requires_grad_(False)
        self.lm.requires_grad_(False)
        return self.train(self.training)

    def train(self, mode: bool = True) -> Flamingo:
        """As in every module, except that a part without any gradient stays in evaluation mode."""
        super().train(mode)
        for part in (self.vision, self.lm):
            part.train(mode and any(p.requires_grad for p in part.parameters()))
        return self

    def bridge_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Name and parameter of all that Flamingo adds to eye and tongue, and trains."""
        return ((n, p) for n, p in self.named_parameters() if not n.startswith(("vision.", "lm.")))

    # ------------------------------------------------------------------------------------------------------- forward

    def embed(self, ids: Tensor) -> Tensor:
        """(B, L) → (B, L, D): the frozen table for the LM's ids, our own rows for the new ones."""
        V = self.lm.embed.num_embeddings
        is_new = ids >= V
        old = self.lm.embed(ids.masked_fill(is_new, 0))
        new = self.new_embed((ids - V).clamp_min(0))
        return torch.where(is_new[..., None], new, old)

    @property
    def image_id(self) -> int:
        return self.lm.embed.num_embeddings + self.config.image_token

    def see(self, media: Tensor, frames: Tensor | None = None) -> Tensor:
        """Images and videos → visual tokens (B, N, R, D_v).

        Args:
            media: (B, N, T, C, H, W) prepared pixels, or (B, N, T, S, D_v) features of the eye made before.
            frames: (B, N) long, real frames of each; None: all T.
        Raises:
            ValueError: another number of axes, or values that are not finite.
        """
        media = media.to(self.resampler.latents.dtype)  # prepared in fp32, whatever the model's
        if media.dim() == 6:
            B, N, T = media.shape[:3]
            if not bool(torch.isfinite(media).all()):
                where = (~torch.isfinite(media)).flatten(2).any(-1).nonzero()[0].tolist()
                raise ValueError(f"media: pixels of sample {where[0]}, image {where[1]} are not finite (NaN or infinite)")
            # A frozen eye needs no graph; one that is being fine-tuned does (the others' no_grad forbids that).
            with torch.set_grad_enabled(torch.is_grad_enabled() and any(p.requires_grad for p in self.vision.parameters())):
                features = self.vision(media.flatten(0, 2)).unflatten(0, (B, N, T))  # (B, N, T, S, D_v)
        else:
            features = media
        sizes = check_shape(features, "B N T S D", "features of the eye", D=self.config.resampler.d)
        flat_frames = None if frames is None else frames.flatten()
        return self.resampler(features.flatten(0, 1), flat_frames).unflatten(0, (sizes["B"], sizes["N"]))

    def project_media(self, visual: Tensor) -> tuple[tuple[Tensor, Tensor] | None, ...]:
        """Visual tokens (B, N, R, D_v) → per LM layer the keys and values (B, h, N·R, d_head), None where no bridge stands."""
        flat = visual.flatten(1, 2)
        keys = [str(i) for i in range(len(self.lm.blocks))]
        return tuple(self.xattn_layers[i].xattn.project_media(flat) if i in self.xattn_layers else None for i in keys)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """A batch → logits (B, L, V) and the mean loss over its labels (0 when there is none).

        Raises:
            ValueError: `<image>` tokens and media differ in number (says in which sample), or shapes do not fit.
        """
        logits, _ = self.read(batch)
        return logits, next_token_loss(logits, batch.labels)

    def loss(self, batch: Batch) -> Tensor:
        """The loss of `forward` alone, quicker: logits are made where there are labels and nowhere else."""
        at, targets = labelled(batch.labels)
        return labelled_loss(self.read(batch, at=at)[0], targets)

    def read(self, batch: Batch, use_cache: bool = False, at: Tensor | None = None) -> tuple[Tensor, Cache | None]:
        """A batch from its beginning → logits (B, L, V), or (n, V) of the positions `at`; and a cache to go on from."""
        check_media_count(batch, self.image_id)
        media = None if batch.media is None else self.project_media(self.see(batch.media, batch.frames))
        phi = media_index((batch.ids == self.image_id) & batch.attention_mask, batch.attend_next)
        return self._run(batch.ids, batch.attention_mask, media, phi, None, use_cache, at)

    def read_on(self, ids: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """More text, ids (B, L), after what the cache holds. It looks at the image the cache stopped at."""
        if bool((ids == self.image_id).any()):
            raise ValueError("read_on takes text only: an <image> token needs its image; start again with `read`")
        phi = cache.phi[:, None].expand_as(ids)
        logits, cache = self._run(ids, torch.ones_like(ids, dtype=torch.bool), cache.media, phi, cache.lm, True)
        return logits, cache

    def _run(self, ids, attention_mask, media, phi, lm_cache, use_cache, at=None):
        """The LM with a bridge in front of its layers."""
        mask = None
        if media is not None:
            R = self.config.resampler.n_latents
            n_media = next(kv for kv in media if kv is not None)[0].shape[2] // R
            mask = xattn_mask(phi, n_media, R, self.config.attend)

        def before_block(i: int, x: Tensor) -> Tensor:
            if str(i) not in self.xattn_layers:
                return x
            # Text alone passes the bridge too: it must read like text before a first image, in any batch
            k, v = (None, None) if media is None else media[i]
            return self.xattn_layers[str(i)](x, k, v, mask)

        hidden, lm_cache = self.lm.read(self.embed(ids), attention_mask, lm_cache, before_block, use_cache, at)
        logits = self.lm.head(hidden)
        if self.config.new_head:
            logits = torch.cat([logits, self.new_head(hidden)], dim=-1)
        return logits, Cache(lm_cache, media, phi[:, -1]) if use_cache else None


def check_media_count(batch: Batch, image_id: int) -> None:
    """Every `<image>` token needs its medium and every medium its token; say which sample breaks it."""
    tokens = ((batch.ids == image_id) & batch.attention_mask).sum(1)
    if batch.media is None:
        media = torch.zeros_like(tokens)
    elif batch.frames is None:
        media = torch.full_like(tokens, batch.media.shape[1])
    else:
        media = (batch.frames > 0).sum(1)
    if not torch.equal(tokens, media):
        b = int((tokens != media).nonzero()[0])
        raise ValueError(
            f"{int(tokens[b])} <image> tokens but {int(media[b])} images in sample {b}: "
            "each image or video needs exactly one <image> token at its place"
        )
