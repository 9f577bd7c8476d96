"""The Perceiver Resampler: however many frames and patches go in, R visual tokens come out (paper §2.1, fig. 5).

    features = features + time_embeddings[t]             one per frame; flattened to T·S rows
    repeat:  latents = latents + attention(q = latents, kv = [features, latents])
             latents = latents + ffw(latents)

Keys and values come from the features AND the latents. No spatial positions are added: the eye's features carry them.
A video longer than those of training has its time embeddings interpolated linearly, so 4 learned ones serve 8 frames:

    frame of 8      0     1     2     3     4     5     6     7
    place among 4   0    .43   .86  1.29  1.71  2.14  2.57   3          time_embedding(1) = .57·e0 + .43·e1

Example: 2 pictures of 16 patches → features (2, 1, 16, 128) → visual tokens (2, 8, 128).

Table 3 compares it with two others of as many parameters, here `kind`. "transformer": features and latents all ask and all
answer, (T·S + R)² scores a head in the place of R · (T·S + R). "mlp": each feature thinks alone and none looks at another; a
visual token is the mean of an R-th part of them, so of 16 patches and R = 8 each is the mean of two neighbours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attention, merge_heads, split_heads
from .config import ResamplerConfig
from .layers import FeedForward, Linear, LinearInTwo
from .shapes import check_shape


class ResamplerLayer(nn.Module):
    """Latents look at features and at each other, then each thinks alone. Bias-free, norms on both sides of the attention."""

    def __init__(self, c: ResamplerConfig):
        super().__init__()
        inner = c.heads * c.d_head
        self.heads = c.heads
        self.norm_media, self.norm_latents = nn.LayerNorm(c.d), nn.LayerNorm(c.d)
        self.to_q = Linear(c.d, inner, bias=False)
        self.to_kv = LinearInTwo(c.d, 2 * inner, bias=False)  # rows of k, then rows of v
        self.to_out = Linear(inner, c.d, bias=False)
        self.q_norm, self.k_norm = (nn.LayerNorm(c.d_head) if c.qk_norm else nn.Identity() for _ in range(2))
        self.ff_norm = nn.LayerNorm(c.d)
        self.ff = FeedForward(c.d, c.ff_mult * c.d, c.activation)

    def project(self, latents: Tensor, features: Tensor) -> list[Tensor]:
        """latents (M, R, D), features (M, T·S, D) → q (M, h, R, d), k and v (M, h, T·S + R, d)."""
        normed = self.norm_latents(latents)
        k, v = self.to_kv(torch.cat([self.norm_media(features), normed], dim=1))
        q, k, v = (split_heads(t, self.heads) for t in (self.to_q(normed), k, v))
        return [self.q_norm(q), self.k_norm(k), v]

    def forward(self, latents: Tensor, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """latents (M, R, D), features (M, T·S, D), mask (M, 1, 1, T·S + R) bool or None."""
        latents = latents + self.to_out(merge_heads(attention(*self.project(latents, features), mask)))
        return latents + self.ff(self.ff_norm(latents))


class DenseLayer(nn.Module):
    """kind="mlp": a layer without attention, whose parameters make the feed-forward block wider."""

    def __init__(self, c: ResamplerConfig):
        super().__init__()
        inner = 2 * c.heads * c.d_head + c.ff_mult * c.d  # to_q, to_kv and to_out are 4 D·inner, a block's two matrices 2
        self.ff_norm = nn.LayerNorm(c.d)
        self.ff = FeedForward(c.d, inner, c.activation)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ff(self.ff_norm(x))


class PerceiverResampler(nn.Module):
    """features (M, T, S, D) of M images or videos → visual tokens (M, R, D).

    `frames` (M,) long says how many of the T frames are real (None: all); the others are padding and change nothing.
    """

    def __init__(self, config: ResamplerConfig):
        super().__init__()
        c = self.config = config
        if c.kind != "mlp":
            self.latents = nn.Parameter(torch.randn(c.n_latents, c.d))
        if c.n_time_embeddings:
            self.time_embeddings = nn.Parameter(torch.randn(c.n_time_embeddings, c.d) * 0.1)
        layer = DenseLayer if c.kind == "mlp" else ResamplerLayer
        self.layers = nn.ModuleList(layer(c) for _ in range(c.layers))
        self.final_norm = nn.LayerNorm(c.d)

    def time_embedding(self, n_frames: int) -> Tensor:
        """(n_frames, D): the first learned rows, or all of them interpolated when the video is longer. None learned: zero."""
        if not self.config.n_time_embeddings:
            return self.final_norm.weight.new_zeros(n_frames, self.config.d)
        learned = self.time_embeddings
        if n_frames <= learned.shape[0]:
            return learned[:n_frames]
        return F.interpolate(learned.T[None], size=n_frames, mode="linear", align_corners=True)[0].T

    def means(self, features: Tensor) -> Tensor:
        """features (M, T·S, D), in order → (M, R, D), the mean of each R-th part of them."""
        return F.adaptive_avg_pool1d(features.transpose(1, 2), self.config.n_latents).transpose(1, 2)

    def forward(self, features: Tensor, frames: Tensor | None = None) -> Tensor:
        sizes = check_shape(features, "M T S D", "features", D=self.config.d)
        M, T, S = sizes["M"], sizes["T"], sizes["S"]
        mask = None
        if frames is None or bool((frames == T).all()):
            times = self.time_embedding(T)[None]  # (1, T, D)
        else:
            # Videos of different lengths: each has its own embeddings, zero behind its end, and a mask over its keys.
            longest = [F.pad(self.time_embedding(n), (0, 0, 0, T - n)) for n in frames.tolist()]
            times = torch.stack(longest)  # (M, T, D)
            real = torch.arange(T, device=features.device) < frames[:, None]  # (M, T)
            real = F.pad(real.repeat_interleave(S, dim=1), (0, self.config.n_latents), value=True)
            mask = real[:, None, None, :]  # (M, 1, 1, T·S + R)
        features = (features + times[:, :, None, :]).flatten(1, 2)  # (M, T, S, D) → (M, T·S, D)
        if self.config.kind == "mlp":
            for layer in self.layers:
                features = layer(features)
            if mask is None:
                return self.final_norm(self.means(features))
            ends = (frames * S).tolist()
            return self.final_norm(torch.cat([self.means(x[None, :end]) for x, end in zip(features, ends)]))
        latents = self.latents.expand(M, -1, -1)
        if self.config.kind == "transformer":
            # Whoever is among the latents asks and answers: so all are, and nothing stands beside them.
            latents, features = torch.cat([features, latents], dim=1), features[:, :0]
        for layer in self.layers:
            latents = layer(latents, features, mask)
        return self.final_norm(latents[:, -self.config.n_latents :])
