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

from .cache import LMCache
from .config import FlamingoConfig
from .gated_xattn import GatedCrossAttentionDense, Segments, cut_into_segments, media_index, xattn_mask
from .lm import LM, last_real
from .loss import head_loss, labelled, next_token_loss
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
        moved = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if v is not None}
        return replace(self, **moved)


@dataclass(frozen=True)
class Cache:
    """All that generation carries from step to step. Never changed in place.

    lm: the language model's, whose prompt may be shared by several rows.
    media: per LM layer the keys and values (B, h, K·R, d_head) of the images that what follows can still look at, or None
        where no bridge stands. That is the last one, K = 1 (with `attend="all"` all of them). Each image was seen once.
    phi: (B,) long, the number of the last one among these K; 0: the row has had no image.
    """

    lm: LMCache
    media: tuple[tuple[Tensor, Tensor] | None, ...] | None
    phi: Tensor

    def select(self, rows: Tensor) -> Cache:
        """The cache of other rows of the batch, which may be repeated or reordered; a prompt stays shared where it can."""

        def pick(x: Tensor) -> Tensor:
            return x[rows] if len(x) > 1 else x.expand(len(rows), *x.shape[1:])  # of one row there need be no copies

        media = self.media and tuple(kv and (pick(kv[0]), pick(kv[1])) for kv in self.media)
        return Cache(self.lm.select(rows), media, self.phi[rows])

    def repeat(self, times: int) -> Cache:
        """Each row `times` times, one after the other: the same prompt under so many continuations."""
        return self.select(torch.arange(len(self.phi), device=self.phi.device).repeat_interleave(times))

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it holds, room for more tokens included. What rows share counts once."""
        text = [x for kept in (*(self.lm.shared or ()), *(self.lm.own or ())) for x in (kept.k, kept.v)]
        media = [x for kv in self.media or () if kv is not None for x in kv]
        held = [*text, *media, *(t for t in self.lm.tails if t is not None), self.lm.mask, self.phi]
        storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in held}
        return sum(storages.values())


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
        if not bool(is_new.any()):
            return self.lm.embed(ids)
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
        media = media.to(self.resampler.final_norm.weight.dtype)  # prepared in fp32, whatever the model's
        if media.dim() not in (5, 6):
            raise ValueError(f"media: expected (B, N, T, C, H, W) pixels or (B, N, T, S, D) features, got {tuple(media.shape)}")
        if media.dim() == 6 and not bool(torch.isfinite(media).all()):
            where = (~torch.isfinite(media)).flatten(2).any(-1).nonzero()[0].tolist()
            raise ValueError(f"media: pixels of sample {where[0]}, image {where[1]} are not finite (NaN or infinite)")
        (B, N), media = media.shape[:2], media.flatten(0, 1)  # (B·N, T, …)
        frames = None if frames is None else frames.flatten()
        there = None
        if frames is not None and not bool((frames > 0).all()):
            # Samples with fewer media than others: nobody looks at their empty places, so they are left out.
            there = (frames > 0).nonzero()[:, 0]
            media, frames = media[there], frames[there]
        features = media
        if media.dim() == 5:
            # A frozen eye needs no graph; one that is being fine-tuned does (the others' no_grad forbids that).
            with torch.set_grad_enabled(torch.is_grad_enabled() and any(p.requires_grad for p in self.vision.parameters())):
                features = self.vision(media.flatten(0, 1)).unflatten(0, media.shape[:2])  # (M, T, S, D_v)
        check_shape(features, "M T S D", "features of the eye", D=self.config.resampler.d)
        visual = self.resampler(features, frames)  # (M, R, D_v)
        if there is not None:
            visual = visual.new_zeros(B * N, *visual.shape[1:]).index_copy(0, there, visual)
        return visual.unflatten(0, (B, N))

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

    def loss(self, batch: Batch, recompute: bool = False) -> Tensor:
        """The loss of `forward` alone, quicker: logits are made where there are labels and nowhere else.

        recompute: activation checkpointing, see `LM.read`.
        """
        at, targets = labelled(batch.labels)
        heads = [self.lm.head, *([self.new_head] if self.config.new_head else [])]
        trained = [p for head in heads for p in head.parameters() if p.requires_grad]
        return head_loss(self.head, trained, self._run(batch, None, False, at, recompute)[0], targets)

    def read(
        self, batch: Batch, use_cache: bool = False, at: Tensor | None = None, cache: Cache | None = None
    ) -> tuple[Tensor, Cache | None]:
        """A batch → logits (B, L, V), or (n, V) of the n positions that are True in `at` (B, L); and a cache to go on from.

        With a `cache` the batch goes on from it, text and images; its padding stands on the right.
        """
        hidden, cache = self._run(batch, cache, use_cache, at)
        return self.head(hidden), cache

    def read_on(self, ids: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """More text, ids (B, L), after what the cache holds. It looks at the image the cache stopped at."""
        if bool((ids == self.image_id).any()):
            raise ValueError("read_on takes text only: an <image> token needs its image, as a batch for `read(…, cache=…)`")
        return self.read(Batch(ids, ids, torch.ones_like(ids, dtype=torch.bool)), True, cache=cache)

    def head(self, hidden: Tensor) -> Tensor:
        """(…, D) → logits (…, V), of the LM's tokens and, with `new_head`, of the new ones."""
        logits = self.lm.head(hidden)
        return torch.cat([logits, self.new_head(hidden)], dim=-1) if self.config.new_head else logits

    def _run(
        self, batch: Batch, cache: Cache | None, use_cache: bool, at: Tensor | None, recompute: bool = False
    ) -> tuple[Tensor, Cache | None]:
        """The LM with a bridge in front of its layers: hidden states before the head, and the cache behind this batch."""
        is_image = (batch.ids == self.image_id) & batch.attention_mask
        check_media_count(batch, is_image)
        if cache is not None and len(cache.phi) != len(batch.ids):
            raise ValueError(f"{len(batch.ids)} rows cannot go on from a cache of {len(cache.phi)}: see cache.repeat")
        if cache is not None and batch.attend_next is not None and bool(batch.attend_next.any()):
            raise ValueError("attend_next is a layout of training: what goes on from a cache looks at the last image before it")
        R, attend = self.config.resampler.n_latents, self.config.attend
        mask = None if bool(batch.attention_mask.all()) else batch.attention_mask
        media = None if batch.media is None else self.project_media(self.see(batch.media, batch.frames))
        if cache is not None and media is None:
            media, phi = cache.media, cache.phi[:, None].expand_as(batch.ids)  # text goes on looking at what it looked at
        else:
            phi = media_index(is_image, batch.attend_next)
            if cache is not None:
                media, phi = _behind(cache, media, phi, R, attend)
        looks: Tensor | Segments | None = None
        if media is not None:
            n_media = next(kv for kv in media if kv is not None)[0].shape[2] // R
            if attend == "all" or n_media == 1:  # nothing to save: every token sees all there is, or nothing
                looks = None if n_media == 1 and bool((phi == 1).all()) else xattn_mask(phi, n_media, R, attend)
            else:
                looks = cut_into_segments(phi, n_media)

        def before_block(i: int, x: Tensor) -> Tensor:
            if str(i) not in self.xattn_layers:
                return x
            # Text alone passes the bridge too: it must read like text before a first image, in any batch
            k, v = (None, None) if media is None else media[i]
            return self.xattn_layers[str(i)](x, k, v, looks)

        lm_cache = cache and cache.lm
        hidden, lm_cache = self.lm.read(self.embed(batch.ids), mask, lm_cache, before_block, use_cache, at, recompute)
        if not use_cache:
            return hidden, None
        # Of each row's last token
        phi = phi[:, -1] if mask is None else phi.gather(1, last_real(mask).clamp_min(0)[:, None])[:, 0]
        if media is not None and attend == "last" and n_media > 1:
            media, phi = _last_image(media, phi, R), phi.clamp_max(1)
        return hidden, Cache(lm_cache, media, phi)


def _behind(cache: Cache, media, phi: Tensor, n_latents: int, attend: str):
    """Media and phi of images behind a cache: the cached ones come first, and text before a new one sees them."""
    if attend == "all":
        raise ValueError('attend="all": a batch with images cannot go on from a cache; read the whole sequence at once')
    if cache.media is None or bool((phi > 0).all()):  # no text before a new one: as queries that begin with their image
        return media, phi
    together = tuple(
        new and tuple(torch.cat([old.expand(len(phi), -1, -1, -1), more], dim=2) for old, more in zip(kept, new))
        for kept, new in zip(cache.media, media)
    )
    kept = next(kv for kv in cache.media if kv is not None)[0].shape[2] // n_latents
    return together, torch.where(phi > 0, phi + kept, cache.phi[:, None])


def _last_image(media, phi: Tensor, n_latents: int):
    """Of the keys and values (B, h, N·R, d) of all images those of image phi (B,), (B, h, R, d)."""
    rows = torch.arange(len(phi), device=phi.device)
    number = (phi - 1).clamp_min(0)
    return tuple(kv and tuple(x.unflatten(2, (-1, n_latents))[rows, :, number] for x in kv) for kv in media)


def check_media_count(batch: Batch, is_image: Tensor) -> None:
    """Every `<image>` token, is_image (B, L), needs its medium and every medium its token; say which sample breaks it."""
    if batch.media is None and not bool(is_image.any()):
        return
    tokens = is_image.sum(1)
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
