"""The whole model (paper section 2, figure 3): a frozen vision encoder, a frozen LM, and the trained modules that connect them.

    pixels (B, N, T, C, H, W) -> vision encoder -> features (B, N, T, S, D_v) -> resampler -> visual tokens (B, N, R, D_v)
    ids (B, L) -> embeddings -> [GATED XATTN-DENSE ->] LM block -> ... -> logits (B, L, V)

It models p(y | x) = prod_l p(y_l | y_<l, x_<=l): each token y_l of the text depends on the tokens before it (y_<l) and on the
images or videos before it (x_<=l). We train only the resampler, the gated layers and the rows of added tokens (`<image>`).

**What is frozen.** The weights of the vision encoder and the LM do not change. `freeze()` turns off their gradients, and
`train()` leaves both in evaluation mode, so dropout and batch statistics are off too. Gradients pass THROUGH the frozen LM to
the gated layers between its blocks and on to the resampler; the LM's own weights receive none.

Every input is an argument and every result is returned: no visual tokens, masks or caches are stored on modules.

Example, ids `<BOS> <image> a cat <EOC>` with one image: media (1, 1, 1, 3, 48, 48) -> logits (1, 5, V). At initialisation they
equal the logits of `flamingo.lm` for the same embeddings, because all gates are zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .config import FlamingoConfig
from .gated_xattn import GatedCrossAttentionDense, media_index
from .lm import LM, LMCache, next_token_loss
from .resampler import PerceiverResampler
from .shapes import FLOATS, check_batch, check_shape
from .vision import ViT

# For each gated layer (named by its LM block) the keys and values of the images, (B, h, N*R, d_head) each.
MediaKeysValues = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Batch:
    """The input of `Flamingo.forward`, made from samples by `data.collate`.

    ids, labels: (B, L) long. labels[l] is ids[l], or -100 where no loss is counted. Position l - 1 predicts labels[l].
    attention_mask: (B, L) bool, False at padding.
    media: (B, N, T, C, H, W) preprocessed pixels, or (B, N, T, S, D_v) features of the vision encoder; None: text alone.
    frames: (B, N) long, how many of the T frames are real; None: all. 0: no image here, because this sample has fewer than N.
    attend_next: (B,) bool, True: text attends to the next image instead of the last one (training only).
    """

    ids: Tensor
    labels: Tensor
    attention_mask: Tensor
    media: Tensor | None = None
    frames: Tensor | None = None
    attend_next: Tensor | None = None

    def __post_init__(self):
        """Types and shapes. The values depend on the model: see `check_batch`."""
        media = "B N T S D" if getattr(self.media, "ndim", 6) == 5 else "B N T C H W"
        letters, integers, booleans = ("B L", "B L", "B L", media, "B N", "B"), (torch.long,), (torch.bool,)
        dtypes, sizes = (integers, integers, booleans, FLOATS, integers, booleans), {}
        for (name, x), axes, dtype in zip(vars(self).items(), letters, dtypes):
            if x is not None or name in ("ids", "labels", "attention_mask"):  # the others are optional
                sizes = check_shape(x, axes, f"batch: {name}", dtype, **sizes)
        got = {name: (*x.shape, str(x.device)) for name, x in vars(self).items() if x is not None}
        no_media = self.frames is not None and self.media is None
        if 0 in sizes.values() or len({device for *_, device in got.values()}) > 1 or no_media:
            raise ValueError(f"batch: no axis may be empty, all must be on one device, and frames need media; got {got}")

    def to(self, device: torch.device | str) -> Batch:
        gpu = torch.device(device).type != "cpu"  # a copy to the CPU must be complete before a value is read
        return replace(self, **{k: v.to(device, non_blocking=gpu) for k, v in vars(self).items() if v is not None})


@dataclass(frozen=True)
class Cache:
    """Everything that generation carries from step to step. Never changed in place.

    lm: keys and values of earlier text.
    media_kv: keys and values of the last image only: text that follows cross-attends to no earlier one. What earlier images
        contributed is in the keys and values of the text. None: no row has had an image.
    phi: (B,), 1 if the row has had an image, otherwise 0.
    """

    lm: LMCache
    media_kv: MediaKeysValues | None
    phi: Tensor

    def repeat(self, times: int) -> Cache:
        """Each row `times` times, one after the other: the same prompt for several continuations."""
        media_kv = self.media_kv and {i: tuple(x.repeat_interleave(times, 0) for x in kv) for i, kv in self.media_kv.items()}
        return Cache(self.lm.repeat(times), media_kv, self.phi.repeat_interleave(times, 0))

    def reorder(self, rows: Tensor) -> Cache:
        """New row i continues old row rows[i]. The rows of one prompt have the same images, so only the text changes places."""
        return replace(self, lm=self.lm.reorder(rows))


class Flamingo(nn.Module):
    """A visual language model around a given vision encoder and a given LM.

    Args:
        config: `config.vision` and `config.lm` describe the parts below if these are not given.
        vision: any module (M, C, H, W) -> (M, S, D_v) with D_v = config.resampler.d. None: a new `ViT`.
        lm: an `LM`. None: a new one.
    """

    def __init__(self, config: FlamingoConfig, vision: nn.Module | None = None, lm: LM | None = None):
        super().__init__()
        c = self.config = config
        self.vision = ViT(c.vision) if vision is None else vision
        self.lm = LM(c.lm) if lm is None else lm
        self.resampler = PerceiverResampler(c.resampler)
        # The LM has no row for <image> in its embedding table, and the table is frozen. The added tokens have their own rows.
        self.added_embed = nn.Embedding(c.n_added_tokens, c.lm.d)
        nn.init.normal_(self.added_embed.weight, std=0.02)
        if c.added_head:  # only if the model can generate added tokens
            self.added_head = nn.Linear(c.lm.d, c.n_added_tokens, bias=False)
            nn.init.normal_(self.added_head.weight, std=0.02)
        if c.added_head == "tied":
            self.added_head.weight = self.added_embed.weight
        self.xattn_layers = nn.ModuleDict({str(i): GatedCrossAttentionDense(c) for i in c.xattn_layers})
        self.freeze()

    def freeze(self) -> Flamingo:
        """Turn off the gradients of the vision encoder and the LM."""
        ### BEGIN SOLUTION freeze
        self.vision.requires_grad_(False)
        self.lm.requires_grad_(False)
        return self.train(self.training)
        ### END SOLUTION

    def train(self, mode: bool = True) -> Flamingo:
        """As in every module, but a part without any trained weight stays in evaluation mode: a frozen LM has no dropout."""
        ### BEGIN SOLUTION freeze
        super().train(mode)
        for part in (self.vision, self.lm):
            part.train(mode and any(p.requires_grad for p in part.parameters()))
        return self
        ### END SOLUTION

    def trainable_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Name and parameter of everything outside of the vision encoder and the LM: what Flamingo adds and trains."""
        return ((n, p) for n, p in self.named_parameters() if not n.startswith(("vision.", "lm.")))

    @property
    def image_id(self) -> int:
        """The id of `<image>`: the added tokens come after the LM's vocabulary."""
        return self.lm.embed.num_embeddings + self.config.image_token

    def embed(self, ids: Tensor) -> Tensor:
        """(B, L) -> (B, L, D): the LM's frozen table for its own ids, our trained rows for the added ones."""
        V = self.lm.embed.num_embeddings
        # Both tables are read for all ids, with ids that each table has; `where` then takes the right row.
        return torch.where((ids >= V)[..., None], self.added_embed((ids - V).clamp_min(0)), self.lm.embed(ids.clamp_max(V - 1)))

    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., D) -> logits (..., V) of the LM's tokens and, with `added_head`, of the added ones."""
        logits = self.lm.head(hidden)
        return torch.cat([logits, self.added_head(hidden)], dim=-1) if self.config.added_head else logits

    def encode_media(self, media: Tensor, frames: Tensor | None = None) -> Tensor:
        """Images and videos -> visual tokens (B, N, R, D_v).

        Args:
            media: (B, N, T, C, H, W) preprocessed pixels, or (B, N, T, S, D_v) features that were computed before.
            frames: (B, N), how many of the T frames are real. None: all.
        """
        B, N = media.shape[:2]
        # M = B*N independent images or videos. Pixels come in fp32; the model may be in half precision.
        media = media.flatten(0, 1).to(self.resampler.final_norm.weight.dtype)
        if media.dim() == 5:  # pixels
            # The vision encoder sees single images: frames become rows of the batch, (M, T, C, H, W) -> (M*T, C, H, W).
            # Frozen weights need no graph, and storing one would cost most of the memory. In fine-tuning they are trained.
            needs_grad = torch.is_grad_enabled() and any(p.requires_grad for p in self.vision.parameters())
            with torch.set_grad_enabled(needs_grad):
                media = self.vision(media.flatten(0, 1)).unflatten(0, media.shape[:2])
        check_shape(media, "M T S D", "features of the vision encoder", D=self.config.resampler.d)
        visual = self.resampler(media, None if frames is None else frames.flatten())  # (M, R, D_v)
        return visual.unflatten(0, (B, N))

    def forward(self, batch: Batch, cache: Cache | None = None, head: Callable | None = None) -> tuple[Tensor, Cache]:
        """Figure 3 of the paper: images and text in, logits out.

        Args:
            cache: from an earlier call; text and images of this batch come after it.
            head: what to apply to the final hidden states (B, L, D). None: `self.head`, which gives the logits.
        Returns:
            logits (B, L, V), or what `head` returns, and the cache with which the sequences can be continued.
        """
        if cache is None and not torch.compiler.is_compiling():
            check_batch(batch, self.image_id, len(self.lm.embed.weight) + self.config.n_added_tokens, self.added_embed.weight)
        ### BEGIN SOLUTION flamingo_forward
        # phi: which image each token attends to. <image> at padding is not an image.
        phi = media_index((batch.ids == self.image_id) & batch.attention_mask, batch.attend_next)  # (B, L)

        # Images -> visual tokens -> keys and values for every gated layer.
        media_kv = None
        if batch.media is not None:
            visual = self.encode_media(batch.media, batch.frames)  # (B, N, R, D_v)
            media_kv = {i: layer.xattn.project_media(visual) for i, layer in self.xattn_layers.items()}
        if cache is not None:
            media_kv, phi = self.join_media(cache, media_kv, phi)

        # Text through the frozen LM, with a gated layer before some of its blocks.
        y, info = self.lm.prepare(self.embed(batch.ids), batch.attention_mask, cache and cache.lm)  # (B, L, D)
        block_caches = []
        for i, block in enumerate(self.lm.blocks):
            if str(i) in self.xattn_layers:
                y = self.xattn_layers[str(i)](y, media_kv and media_kv[str(i)], phi, self.config.resampler.n_latents)
            y, block_cache = block(y, info, cache and cache.lm.blocks[i])
            block_caches.append(block_cache)
        logits = (head or self.head)(self.lm.final_norm(y))

        # What later tokens need: the LM's keys and values, and the last image of each row.
        last_phi = phi.gather(1, (info.end - 1).clamp_min(0)[:, None])[:, 0]  # (B,) phi of the last real token
        media_kv, last_phi = self.last_image(media_kv, last_phi)
        return logits, Cache(LMCache(tuple(block_caches), info.mask), media_kv, last_phi)
        ### END SOLUTION

    def loss(self, batch: Batch) -> Tensor:
        """The mean negative log-likelihood of the labelled tokens that the model can generate (paper section 2.4)."""
        logits, _ = self(batch)
        # Not counted: padding, the first token after it, and tokens for which the model has no output, such as <image>.
        counted = batch.attention_mask & batch.attention_mask.roll(1, 1) & (batch.labels < logits.shape[-1])
        return next_token_loss(logits, batch.labels.masked_fill(~counted, -100))

    def join_media(self, cache: Cache, media_kv: MediaKeysValues | None, phi: Tensor) -> tuple[MediaKeysValues | None, Tensor]:
        """The cached image comes first, then the new ones. Text before the first new image attends to the cached one.

        Example: one cached image and a prompt `a <image> b` with phi 0 1 1. Joined: images 1 (cached) and 2, phi 1 2 2.
        """
        if cache.media_kv is None:
            return media_kv, phi
        before = cache.phi[:, None].expand_as(phi)
        if media_kv is None:
            return cache.media_kv, before
        R = self.config.resampler.n_latents
        n_cached = next(iter(cache.media_kv.values()))[0].shape[2] // R
        joined = {i: tuple(torch.cat([old, new], 2) for old, new in zip(cache.media_kv[i], media_kv[i])) for i in media_kv}
        return joined, torch.where(phi > 0, phi + n_cached, before)

    def last_image(self, media_kv: MediaKeysValues | None, phi: Tensor) -> tuple[MediaKeysValues | None, Tensor]:
        """Keep only the keys and values of image phi in each row, (B, h, R, d_head), as image 1. phi = 0: any one, not used."""
        if media_kv is None:
            return None, phi
        rows, number, R = torch.arange(len(phi), device=phi.device), (phi - 1).clamp_min(0), self.config.resampler.n_latents
        # (B, h, N*R, d) -> (B, h, N, R, d) -> (B, h, R, d)
        return {i: tuple(x.unflatten(2, (-1, R))[rows, :, number] for x in kv) for i, kv in media_kv.items()}, phi.clamp_max(1)
