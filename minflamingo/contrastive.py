"""Contrastive pretraining of the vision encoder on images with captions (paper section 2.1 and appendix; CLIP).

    logits_ij = scale * < image_i , text_j >         unit vectors; the scale is learned
    loss      = 1/2 CE(rows: which text belongs to image i?) + 1/2 CE(columns: which image belongs to text j?)

CE is the cross-entropy; this loss is called two-way InfoNCE. Afterwards the text encoder and both projections are thrown away.
The vision encoder is frozen and becomes a part of Flamingo. The paper freezes it because training it with the rest made it
forget what it had learned here.

Example, 3 pairs. The diagonal holds the right answers:
    logits   image 0 [ 9.1  2.0  0.3 ]
             image 1 [ 1.2  8.7  3.1 ]
             image 2 [ 0.5  2.2  9.4 ]      text 0 wins in row 0, image 0 wins in column 0
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import FeedForward


class TextEncoder(nn.Module):
    """Caption ids (B, L), 0 = padding -> one vector per caption (B, D). Used in this stage only.

    The paper uses a BERT with mean pooling. Ours has no attention, on purpose: each word is processed alone with its position.
    So the text vector is a mean of terms such as "red in place 2" and "star in place 7", and the image vector must become one
    too. Then it can describe new combinations. With attention, both encoders could memorise whole captions instead.
    """

    def __init__(self, vocab_size: int, d: int, max_length: int = 32):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, d)  # one vector per token
        self.positions = nn.Parameter(torch.randn(max_length, d) * 0.02)
        nn.init.normal_(self.embed.weight, std=0.02)
        # one feed-forward block per word: it can combine a word with its position, but not two words
        self.norm = nn.LayerNorm(d)
        self.ff = FeedForward(d, 4 * d, "gelu", bias=True)
        self.final_norm = nn.LayerNorm(d)

    def forward(self, ids: Tensor) -> Tensor:
        real = ids != 0  # (B, L), False at padding
        x = self.embed(ids) + self.positions[: ids.shape[1]]  # (B, L, D)
        x = self.final_norm(x + self.ff(self.norm(x))) * real[..., None]
        # Mean over the real words. clamp_min: an empty caption becomes zero, not NaN.
        return x.sum(1) / real.sum(1, keepdim=True).clamp_min(1)  # (B, D)


class ContrastiveModel(nn.Module):
    """A vision encoder and a text encoder that learn which image belongs to which caption."""

    def __init__(self, vision: nn.Module, d_vision: int, text: TextEncoder, d_text: int, d_shared: int = 128):
        super().__init__()
        self.vision, self.text = vision, text
        self.image_projection = nn.Linear(d_vision, d_shared, bias=False)
        self.text_projection = nn.Linear(d_text, d_shared, bias=False)
        # The scale (inverse temperature) is learned as a logarithm, so it stays positive. CLIP's start: temperature 0.07.
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, pixels: Tensor, captions: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B + 2V, C, H, W), caption ids (B, L) -> the loss, and the share of images whose own partner wins (0 ... 1).

        In this order: B images with captions, one view of each of V drawings, another view of each.
        """
        B, V = len(captions), (len(pixels) - len(captions)) // 2
        # Mean over the spatial tokens: (B, S, D) -> (B, D). Normalising turns the dot product into the cosine of the angle.
        images = F.normalize(self.image_projection(self.vision(pixels).mean(1)), dim=-1)  # (B + 2V, d_shared)
        texts = F.normalize(self.text_projection(self.text(captions)), dim=-1)  # (B, d_shared)
        # The partner of an image is its caption. That of a view is the other view, so drawings need no description.
        partners = torch.cat([texts, images[B + V :]])  # (B + V, d_shared)
        # Two images in a batch may have the same caption: compare every caption with every other, word by word.
        same = F.pad((captions[:, None] == captions[None]).all(-1), (0, V, 0, V))  # (B + V, B + V)
        # CLIP's limit: a scale above 100 makes training unstable.
        return contrastive_loss(images[: B + V], partners, self.log_scale.clamp(max=math.log(100)).exp(), same)


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor | float, same: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors (B, D), row i of both is pair i -> two-way InfoNCE, and the share of images whose own text scores best.

    same: (B, B) bool, True where captions i and j are equal. Both are right answers, so this entry is left out if i != j.
    """
    ### BEGIN SOLUTION contrastive_loss
    # the cosine of every image with every text of the batch; the other B - 1 texts are the wrong answers
    logits = scale * image @ text.T  # (B, B)
    target = torch.arange(len(logits), device=logits.device)  # the right answer of row i is column i
    duplicates = same & (target[:, None] != target)  # same caption, but not the pair itself
    logits = logits.masked_fill(duplicates, -math.inf)
    # Rows: choose the text for an image. Columns (the transpose): choose the image for a text.
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    return loss, (logits.argmax(1) == target).float().mean()
    ### END SOLUTION
