"""The Perceiver Resampler (paper section 2.1, figure 5): any number of image features in, R visual tokens out.

The vision encoder returns S feature vectors per frame, so a video of T frames has T*S of them. Cross-attention from text to
thousands of vectors would be expensive, and its cost would depend on the input. The resampler compresses them to a fixed R:

    features = features + time_embeddings[t]                                                      one per frame
    latents  = latents + attention(queries = latents, keys and values = [features, latents])
    latents  = latents + feed_forward(latents)                                                    repeated for each layer

The R latents are parameters. Each learns to collect one kind of information from every image or video. An image is a video with
T = 1. No spatial positions are added: the features of the vision encoder already carry them.

Example, R = 8 latents of width D = 96 and a video of 4 frames with 16 patches each:
    features (1, 4, 16, 96)  ->  add a time embedding to each frame  ->  flatten (1, 64, 96)  ->  visual tokens (1, 8, 96)
"""

import torch
from torch import Tensor, nn

from .attention import attention, merge_heads, split_heads
from .config import ResamplerConfig
from .layers import FeedForward
from .shapes import check_shape


class ResamplerLayer(nn.Module):
    """One layer: attention of the latents, then a feed-forward block, each with a residual connection."""

    def __init__(self, config: ResamplerConfig):
        super().__init__()
        self.n_heads = config.n_heads
        inner = config.n_heads * config.d_head  # may differ from config.d: IDEFICS has 16 heads of 96 at width 1280
        # Features and latents come from different distributions, so each has its own norm.
        self.norm_features, self.norm_latents = nn.LayerNorm(config.d), nn.LayerNorm(config.d)
        # No biases in the projections: published checkpoints (OpenFlamingo, IDEFICS) have none.
        self.to_q = nn.Linear(config.d, inner, bias=False)
        self.to_kv = nn.Linear(config.d, 2 * inner, bias=False)  # one matrix: first half keys, second half values
        self.to_out = nn.Linear(inner, config.d, bias=False)
        # IDEFICS normalises the queries and keys of each head. For all others these two do nothing.
        self.q_norm = nn.LayerNorm(config.d_head) if config.qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(config.d_head) if config.qk_norm else nn.Identity()
        self.ff_norm = nn.LayerNorm(config.d)
        self.ff = FeedForward(config.d, config.ff_mult * config.d, config.activation)

    def forward(self, latents: Tensor, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Update the latents.

        Args:
            latents: (M, R, D).
            features: (M, T*S, D), time embeddings already added.
            mask: (M, 1, 1, T*S + R) bool, False at padded frames. None: attend to everything.
        Returns:
            (M, R, D).
        """
        ### BEGIN SOLUTION resampler_layer
        x = self.norm_latents(latents)  # pre-norm: the residual path below stays unnormalised

        # Keys and values come from the features AND the latents (figure 5). So latents exchange information with each other,
        # and a latent can put its weight on the latents when the image has nothing useful for it (the weights sum to 1).
        context = torch.cat([self.norm_features(features), x], dim=1)  # (M, T*S + R, D)

        q = split_heads(self.to_q(x), self.n_heads)  # (M, h, R, d_head)
        k, v = self.to_kv(context).chunk(2, dim=-1)  # (M, T*S + R, h*d_head) each
        k, v = split_heads(k, self.n_heads), split_heads(v, self.n_heads)  # (M, h, T*S + R, d_head)

        # The latents attend to each other without a causal mask: they have no order.
        out = attention(self.q_norm(q), self.k_norm(k), v, mask)  # (M, h, R, d_head)
        latents = latents + self.to_out(merge_heads(out))  # (M, R, D)
        return latents + self.ff(self.ff_norm(latents))
        ### END SOLUTION


class PerceiverResampler(nn.Module):
    """Compress the features of M images or videos, (M, T, S, D), to visual tokens (M, R, D)."""

    def __init__(self, config: ResamplerConfig):
        super().__init__()
        self.config = config
        # Every image starts from these R vectors. The layers then fill them with what is in the image.
        self.latents = nn.Parameter(torch.randn(config.n_latents, config.d))
        # One embedding per FRAME, not per patch. Without it, reversing a video would change nothing, because attention ignores
        # the order of its keys.
        if config.n_time_embeddings:
            self.time_embeddings = nn.Parameter(0.1 * torch.randn(config.n_time_embeddings, config.d))
        self.layers = nn.ModuleList(ResamplerLayer(config) for _ in range(config.n_layers))
        # the gated layers use the result as keys and values, and they have no norm for it
        self.final_norm = nn.LayerNorm(config.d)

    def time_embedding(self, n_frames: Tensor, T: int) -> Tensor:
        """The embedding of each frame: n_frames (M,), of at most T frames -> (M, T, D).

        A video with at most K frames (as in training) uses the first of the K embeddings. For longer videos we interpolate them
        linearly: the paper trains with 8 frames and evaluates with 30. Padded frames may get any finite value. With K = 4 and 7
        frames, frame t is at position t * (K - 1) / (7 - 1):

            frame        0    1    2    3    4    5    6
            position     0   0.5   1   1.5   2   2.5   3        frame 3 gets 0.5 * embedding 1 + 0.5 * embedding 2
        """
        ### BEGIN SOLUTION time_embedding
        # all videos of a batch are padded to T frames, but each is interpolated over its own number of frames
        learned = self.time_embeddings  # (K, D)
        K = len(learned)
        if T <= K:
            return learned[:T].expand(len(n_frames), T, -1)
        step = torch.where(n_frames > K, (K - 1) / (n_frames - 1).clamp_min(1), 1.0)  # (M,) from one frame to the next
        position = (step[:, None] * torch.arange(T, device=learned.device)).clamp_max(K - 1)  # (M, T), 0 ... K - 1
        left = position.long()  # rounds down
        right = (left + 1).clamp_max(K - 1)
        weight = (position - left)[..., None].to(learned.dtype)  # (M, T, 1): how far the frame is from its left neighbour
        return (1 - weight) * learned[left] + weight * learned[right]
        ### END SOLUTION

    def forward(self, features: Tensor, frames: Tensor | None = None) -> Tensor:
        """features (M, T, S, D) -> visual tokens (M, R, D).

        Args:
            frames: (M,), how many of the T frames are real; the others are padding and change nothing. None: all.
        Raises:
            ValueError: the features do not have width D.
        """
        ### BEGIN SOLUTION resampler
        check_shape(features, "M T S D", "features", D=self.config.d)
        M, T, S, _ = features.shape
        R = self.config.n_latents
        n_frames = torch.full((M,), T, device=features.device) if frames is None else frames

        if self.config.n_time_embeddings:
            # The same embedding for all S patches of a frame: (M, T, D) -> (M, T, 1, D).
            features = features + self.time_embedding(n_frames, T)[:, :, None]
        # From here on there are no frames any more, only a set of T*S vectors.
        features = features.flatten(1, 2)  # (M, T, S, D) -> (M, T*S, D)

        mask = None
        if frames is not None:
            # A latent may attend to the patches of real frames, and always to the R latents.
            real = torch.arange(T, device=features.device) < frames[:, None]  # (M, T)
            real = real.repeat_interleave(S, dim=1)  # (M, T*S)
            mask = torch.cat([real, real.new_ones(M, R)], dim=1)[:, None, None]  # (M, 1, 1, T*S + R)

        latents = self.latents.expand(M, -1, -1)  # every image starts from the same R latents
        for layer in self.layers:
            latents = layer(latents, features, mask)
        return self.final_norm(latents)
        ### END SOLUTION
