"""How the eye learns to see: contrastive pretraining on pictures and their captions (paper §2.1 and appendix; CLIP).

    logits_ij = exp(t) · ⟨ image_i , text_j ⟩           both of unit length; t is learned
    loss      = ½ · CE(rows: which text is mine?) + ½ · CE(columns: which image is mine?)        two-way InfoNCE

Features and words are mean-pooled, as in the paper. After this lesson the text tower and both projections are thrown away;
the eye stays, frozen. Two pictures in one batch may have the very same caption: they are no negatives of each other.

Example: 3 pairs, captions 0 and 2 alike → picture 0 competes with caption 1 only, and so does picture 2.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import FeedForward


class TextTower(nn.Module):
    """Captions (B, L) with 0 = padding → one vector each (B, D): each word thinks alone, at its place; then the mean of all.

    The paper's is a BERT. Ours has no attention, on purpose: what it says of a caption is a sum over words, one term for
    "red in place 2", one for "star in place 7". So the picture's vector must be such a sum too, and an eye that has learned
    the terms can read combinations of them that it never saw. A tower that mixes words may learn whole captions by heart,
    and the eye with it. Used in this stage only.
    """

    def __init__(self, vocab_size: int, d: int, max_length: int = 32):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, d)
        self.positions = nn.Parameter(torch.randn(max_length, d) * 0.02)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.norm = nn.LayerNorm(d)
        self.ff = FeedForward(d, 4 * d, "gelu", bias=True)
        self.final_norm = nn.LayerNorm(d)

    def forward(self, ids: Tensor) -> Tensor:
        real = ids != 0  # (B, L)
        x = self.embed(ids) + self.positions[: ids.shape[1]]
        x = self.final_norm(x + self.ff(self.norm(x))) * real[..., None]
        return x.sum(1) / real.sum(1, keepdim=True).clamp_min(1)  # an empty caption is zero, not NaN


class ContrastivePair(nn.Module):
    """An eye and a text tower that learn to agree."""

    def __init__(self, vision: nn.Module, d_vision: int, text: TextTower, d_text: int, d_shared: int = 128):
        super().__init__()
        self.vision, self.text = vision, text
        self.image_projection = nn.Linear(d_vision, d_shared, bias=False)
        self.text_projection = nn.Linear(d_text, d_shared, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # CLIP's start: temperature 0.07

    def forward(self, pixels: Tensor, captions: Tensor) -> tuple[Tensor, Tensor]:
        """pixels (B, C, H, W) and caption ids (B, L) → the loss, and how often the own caption wins (0…1)."""
        image = F.normalize(self.image_projection(self.vision(pixels).mean(1)), dim=-1)
        text = F.normalize(self.text_projection(self.text(captions)), dim=-1)
        same = (captions[:, None] == captions[None]).all(-1)
        return info_nce(image, text, self.log_scale.clamp(max=math.log(100)).exp(), same)


def info_nce(image: Tensor, text: Tensor, scale: Tensor | float, same: Tensor) -> tuple[Tensor, Tensor]:
    """Two-way InfoNCE of unit vectors (B, D). same (B, B) bool: these captions are alike, so they are no negatives."""
    logits = scale * image @ text.T  # (B, B)
    target = torch.arange(len(logits), device=logits.device)
    others_alike = same & ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(others_alike, -math.inf)
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    return loss, (logits.argmax(1) == target).float().mean()
