# %% [markdown]
# # 03 Contrastive pretraining
#
# **Question: how can a vision encoder learn what images show, if the data has no labels, only images with captions?**
#
# About 45 minutes. You know: the vision encoder of [02](02_vision_encoder.ipynb), softmax, cross-entropy, dot products.
# Before: [02 Vision encoder](02_vision_encoder.ipynb). After: [04 Perceiver Resampler](04_resampler.ipynb).

# %%
import os
import subprocess
import sys

if not os.path.exists("helpers.py"):  # this notebook was opened alone, for example in Colab
    url = "https://github.com/minflamingo/minflamingo"
    subprocess.run(f"git clone -q --depth 1 {url} && pip install -q ./minflamingo", shell=True, check=True)
    os.chdir("minflamingo/tutorials")
sys.path[:0] = [".", ".."]  # this folder, and the package next to it

# %%
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from helpers import check, show, source
from matplotlib import pyplot as plt
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from data_toy.draw import draw
from data_toy.media_pool import PREPROCESS, random_scene
from data_toy.words import caption, toy_tokenizer
from data_toy.world import COLOURS, PLACES, SHAPES, Scene, held_out
from minflamingo.config import VisionConfig
from minflamingo.contrastive import ContrastiveModel, TextEncoder, contrastive_loss
from minflamingo.vision import ViT

# %% [markdown]
# ## What the paper says
#
# Section 2.1 and the appendix, in short:
#
# - Flamingo's vision encoder is trained first, alone, on pairs of an image and its text.
# - A second encoder turns the text into a vector. The paper uses BERT for the text and an NFNet-F6 for the image.
# - In a batch of B pairs, each image must find its own text among the B texts, and each text must find its own image. This loss
#   is called **two-way contrastive loss**, or two-way InfoNCE. CLIP is trained in the same way.
# - Afterwards the vision encoder is **frozen**: its weights do not change any more.
#
# The image vectors $v_i$ and text vectors $t_j$ have length 1, so their dot product is the cosine of the angle between them:
#
# $$\text{logits}_{ij} = \text{scale} \cdot \langle v_i, t_j \rangle \qquad
# \text{loss} = \tfrac{1}{2}\,\text{CE(rows)} + \tfrac{1}{2}\,\text{CE(columns)}$$
#
# CE is the cross-entropy. In row $i$ and in column $i$, the right answer is number $i$. The scale is a learned number: cosines
# are between -1 and 1, so without a scale the softmax over many texts would be almost flat.
#
# ## By hand: two pairs
#
# Each vector has two numbers. The scale is 5.
#
# | | text 1 = (0.6, 0.8) | text 2 = (0, 1) |
# |---|---|---|
# | image 1 = (1, 0) | 5 · 0.6 = **3** | 5 · 0 = 0 |
# | image 2 = (0, 1) | 5 · 0.8 = 4 | 5 · 1 = **5** |
#
# With two choices, the cross-entropy is $\log(1 + e^{\,\text{wrong} - \text{right}})$:
#
# - Rows: image 1 prefers text 1 (3 > 0), image 2 prefers text 2 (5 > 4). Both are right.
#   $\log(1 + e^{-3}) = 0.05$ and $\log(1 + e^{-1}) = 0.31$.
# - Columns: text 1 prefers **image 2** (4 > 3). This is wrong. Text 2 prefers image 2 (5 > 0).
#   $\log(1 + e^{1}) = 1.31$ and $\log(1 + e^{-5}) = 0.01$.
#
# The rows alone would report no mistake. The columns find it.

# %%
two_images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
two_texts = torch.tensor([[0.6, 0.8], [0.0, 1.0]])
logits = 5 * two_images @ two_texts.T
print("logits:", logits.tolist())
rows = [np.log(1 + np.exp(0 - 3)), np.log(1 + np.exp(4 - 5))]
columns = [np.log(1 + np.exp(4 - 3)), np.log(1 + np.exp(0 - 5))]
by_hand = (sum(rows) / 2 + sum(columns) / 2) / 2
print(f"rows: {rows[0]:.3f} and {rows[1]:.3f}, mean {sum(rows) / 2:.3f}")
print(f"columns: {columns[0]:.3f} and {columns[1]:.3f}, mean {sum(columns) / 2:.3f}")
print(f"loss: {by_hand:.4f}")

# %%
figure, ax = plt.subplots(figsize=(3.6, 3.2), layout="constrained")
vectors = {"image 1": (1, 0), "image 2": (0, 1), "text 1": (0.6, 0.8), "text 2": (0, 1)}
for name, (x, y) in vectors.items():
    colour = "#1c7ed6" if "image" in name else "#c2255c"
    width = 6 if name == "image 2" else 2  # wider, because text 2 has the same direction
    ax.plot([0, x], [0, y], color=colour, linewidth=width)
    ax.text(x + 0.05, y + (0.07 if name == "text 2" else -0.05), name, color=colour, fontsize=9)
ax.set(xlim=(-0.05, 1.45), ylim=(-0.1, 1.2), aspect="equal", title="Four unit vectors")
ax.set(xlabel="first number", ylabel="second number")
show(figure, "Four lines of length 1 from the origin. Image 1 points right, image 2 up. Text 2 also points up. Text 1 is "
     "between them, and nearer to image 2 than to image 1.")  # fmt: skip

# %% [markdown]
# Blue: images. Pink: texts. The axes are the two numbers of each vector. Text 2 has the direction of its image: the cosine is
# 1, the best case. Text 1 is nearer to image 2 than to its own image. Training changes the vectors until each pair is close
# together and far from the other pairs.
#
# ## The data
#
# We use a small part of the toy world: one thing, in one of eight colours, eight shapes and four places. Some combinations are
# **held out**: no training image shows them. If "a blue ring at the left" is held out, then training shows blue things, rings,
# and things at the left, but never all three together.

# %%
tokenizer = toy_tokenizer()


def make_batch(scenes: list[Scene], rng: Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Scenes -> pixels (B, 3, 48, 48) and caption ids (B, L), where 0 is padding."""
    images = np.stack([draw(scene, rng) for scene in scenes])  # (B, 48, 48, 3) uint8
    ids = [torch.tensor(tokenizer.encode(" " + caption(scene))) for scene in scenes]
    return PREPROCESS(images), pad_sequence(ids, batch_first=True)


every = [Scene("things", colour=c, shape=s, count=1, place=p) for c in COLOURS for s in SHAPES for p in PLACES]
unseen = [scene for scene in every if held_out(scene)]
Random(0).shuffle(unseen)
unseen_pixels, unseen_captions = make_batch(unseen * 8, Random(1))  # eight different images of each held-out scene
unseen_captions = unseen_captions[: len(unseen)]  # each caption once
print(f"{len(every)} scenes, {len(unseen)} of them held out")
print("pixels", tuple(unseen_pixels.shape), "  captions", tuple(unseen_captions.shape))
print("for example:", ", ".join(caption(scene) for scene in unseen[:3]))

# %% [markdown]
# ## The model
#
# Two encoders, and one linear map for each, into a shared space of 64 dimensions. The text encoder has no attention: it
# processes each word with its position only, and takes the mean. With attention, the encoders could memorise whole captions.


# %%
def new_model() -> ContrastiveModel:
    torch.manual_seed(0)
    config = VisionConfig(
        image_size=48, patch_size=12, d=48, n_layers=1, n_heads=2, d_ff=96,
        stem="conv", class_token=False, pre_norm=False, post_norm=True,
    )  # fmt: skip
    text = TextEncoder(tokenizer.vocab_size, d=48)
    return ContrastiveModel(ViT(config), 48, text, d_text=48, d_shared=64)


def cosines(model: ContrastiveModel, pixels: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
    """The cosine of every image (row) with every text (column)."""
    images = model.image_projection(model.vision(pixels).mean(1))  # the mean over the patches: (B, S, D) -> (B, D)
    texts = model.text_projection(model.text(captions))
    return F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T


# %% [markdown]
# ## Training
#
# 100 steps with 64 pairs each. This takes a few seconds. The learning rate rises during the first ten steps (warm-up) and falls
# in the second half.


# %%
def train(model: ContrastiveModel, compute_loss, steps: int = 100) -> list[float]:
    """Train on random scenes that are not held out. Returns the loss of each step."""
    optimizer = torch.optim.AdamW(model.parameters())
    rng, losses = Random(0), []
    progress = tqdm(range(steps), ncols=80)
    for step in progress:
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, (step + 1) / 10, 2 - 2 * step / steps)
        scenes = [random_scene(rng, "single", "train") for _ in range(64)]
        loss = compute_loss(model, *make_batch(scenes, rng))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        progress.set_postfix(loss=f"{losses[-1]:.2f}")
    return losses


# %%
def two_way_loss(model: ContrastiveModel, pixels: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
    loss, _ = model(pixels, captions)  # the package's loss; the second result is an accuracy
    return loss


model = new_model()
with torch.no_grad():
    before = cosines(model.eval(), unseen_pixels, unseen_captions)  # eval: BatchNorm does not depend on the batch
losses = train(model.train(), two_way_loss)
with torch.no_grad():
    after = cosines(model.eval(), unseen_pixels, unseen_captions)

# %%
figure, ax = plt.subplots(figsize=(5, 2.6), layout="constrained")
ax.plot(losses, color="#1c7ed6")
ax.axhline(np.log(64), color="#5b6676", linestyle="--", linewidth=1)
ax.text(100, np.log(64) - 0.15, "log 64: guessing", ha="right", va="top", fontsize=8, color="#5b6676")
ax.set(xlabel="training step", ylabel="loss", ylim=(0, None), title="Contrastive loss")
show(figure, "The loss at each training step. It starts near the dashed line at log 64. Then it falls, at first quickly.")

# %% [markdown]
# The horizontal axis is the training step, the vertical axis is the loss. A model that guesses among 64 texts has a loss of
# about $\log 64 = 4.16$. The curve starts there. If the loss of a contrastive training stays at $\log B$, the model has
# learned nothing: for example because images and captions are in a different order.
#
# ## The figure: similarity before and after
#
# Images of twelve **held-out** scenes, and their captions. Row: image. Column: text. Colour: the cosine.

# %%
names = [caption(scene) for scene in unseen[:12]]
figure, axes = plt.subplots(1, 2, figsize=(9, 5.2), sharey=True, layout="constrained")
for ax, matrix, title in zip(axes, (before, after), ("Before training", "After training")):
    image = ax.imshow(matrix[:12, :12], cmap="RdBu_r", vmin=-1, vmax=1)
    ax.set_xticks(range(12), names, rotation=90, fontsize=7.5)
    ax.set_yticks(range(12), names, fontsize=7.5)
    ax.set(title=title, xlabel="caption")
    ax.grid(False)
axes[0].set_ylabel("image of ...")
figure.colorbar(image, ax=axes, label="cosine", shrink=0.6)
show(figure, "Two matrices of twelve images and twelve captions. Before training all cells have almost the same colour. After "
     "training the diagonal is dark red, and most other cells are paler or blue.")  # fmt: skip

# %% [markdown]
# Before training, all cells are almost equal. The cosine says nothing about the image. After training, the **diagonal** is dark
# red: each image is close to its own caption. Notice also the other red cells. In most of them, image and caption have
# something in common, such as the place or the colour.
#
# The same in numbers, for all held-out scenes. There are eight images of each.


# %%
def report(matrix: torch.Tensor) -> None:
    """matrix: the cosines of all held-out images (rows) and captions (columns)."""
    n = len(unseen)
    own = torch.arange(n).repeat(8)  # the number of each image's own caption: 0 ... n - 1, eight times
    is_right = F.one_hot(own).bool()  # True where image and caption belong together
    print(f"  cosine of right pairs {matrix[is_right].mean():.2f}, of wrong pairs {matrix[~is_right].mean():.2f}")
    wins = (matrix.argmax(1) == own).float().mean()
    print(f"  own caption wins: {100 * wins:.0f}% of the images (guessing: {100 / n:.0f}%)")


print("before training")
report(before)
print("after training")
report(after)

# %% [markdown]
# No training image showed these combinations. So the encoders did not only memorise captions: they can represent new
# combinations of colour, shape and place. The data has no labels such as "colour: red". The captions were enough: the other
# captions of the batch were the wrong answers.
#
# ## Exercise: the two-way loss
#
# Write `my_contrastive_loss`. Inputs: unit vectors `image` and `text`, both (B, D), and `scale`. Row $i$ of both is pair $i$.
# The result is the loss, a tensor with one number. No caption occurs twice.
#
# You may use `F.cross_entropy(logits, target)`. It takes the mean over the rows.


# %% tags=["exercise"]
def my_contrastive_loss(image: torch.Tensor, text: torch.Tensor, scale: float) -> torch.Tensor:
    """(B, D), (B, D) -> one number."""
    ...  # your code


# %% tags=["check"]
torch.manual_seed(0)
image, text = F.normalize(torch.randn(5, 8), dim=-1), F.normalize(torch.randn(5, 8), dim=-1)
expected, _ = contrastive_loss(image, text, 10.0, torch.eye(5).bool())
check("two pairs, computed by hand", lambda: my_contrastive_loss(two_images, two_texts, 5.0), torch.tensor(by_hand),
      "the rows give 0.181 and the columns 0.660; the loss is the mean of both. Did you multiply by the scale?")  # fmt: skip
check("one pair has no wrong answer", lambda: my_contrastive_loss(image[:1], text[:1], 10.0), torch.tensor(0.0),
      "return one number; the right answer of row i is column i: target = 0, 1, ..., B - 1")  # fmt: skip
check("five pairs, as the package", lambda: my_contrastive_loss(image, text, 10.0), expected,
      "the columns of the logits are the rows of logits.T")  # fmt: skip
check("images and texts exchanged", lambda: my_contrastive_loss(text, image, 10.0), expected,
      "the loss has two directions with equal weight, so it does not change")  # fmt: skip

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_contrastive_loss(image: torch.Tensor, text: torch.Tensor, scale: float) -> torch.Tensor:
#     """Rows: choose the text for an image. Columns: choose the image for a text."""
#     logits = scale * image @ text.T  # (B, B)
#     target = torch.arange(len(logits))  # the right answer is on the diagonal
#     rows = F.cross_entropy(logits, target)
#     columns = F.cross_entropy(logits.T, target)
#     return (rows + columns) / 2
# ```
#
# </details>
#
# ## The package's code
#
# Here V is 0. Only the toy run has V "drawings": it also compares images with images.

# %%
source(contrastive_loss, ContrastiveModel.forward)

# %% [markdown]
# `same` solves a problem of small batches: two images can have the same caption. If image j has the same caption as image i,
# the logit (i, j) becomes minus infinity. Its probability is then 0, so it does not count as a wrong answer.
#
# ## Break it: no wrong answers
#
# The goal is that an image and its caption are close together. Can we train exactly this? The next loss is 1 minus the mean
# cosine of the right pairs. It ignores all wrong pairs.


# %%
def loss_without_wrong_answers(model: ContrastiveModel, pixels: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
    return 1 - cosines(model, pixels, captions).diagonal().mean()


broken = new_model()  # the same weights as before at the start
broken_losses = train(broken, loss_without_wrong_answers)
with torch.no_grad():
    collapsed = cosines(broken.eval(), unseen_pixels, unseen_captions)
print(f"loss at the end: {broken_losses[-1]:.4f} (the best possible value is 0)")
print("two-way loss")
report(after)
print("no wrong answers")
report(collapsed)

# %%
figure, axes = plt.subplots(1, 2, figsize=(6.4, 3.1), layout="constrained")
for ax, matrix, title in zip(axes, (after, collapsed), ("Two-way loss", "No wrong answers")):
    drawn = ax.imshow(matrix[:12, :12], cmap="RdBu_r", vmin=-1, vmax=1)
    ax.set(title=title, xlabel="caption", ylabel="image", xticks=[], yticks=[])
    ax.grid(False)
figure.colorbar(drawn, ax=axes, label="cosine", shrink=0.8)
show(figure, "Two matrices. With the two-way loss only the diagonal is dark red. Without wrong answers all cells are dark red.")

# %% [markdown]
# The same twelve images and captions as above. In the right matrix, every cell is dark red. The model found the easiest
# solution: it gives almost **the same vector to every image and every caption**. This is called collapse. The loss is almost 0,
# but the vectors say almost nothing about the image.
#
# **How you would notice**: the loss does not show it. Print the cosine of wrong pairs, or the accuracy on held-out pairs. If
# right and wrong pairs have the same cosine, the vectors have collapsed.
#
# ## After the training: keep one part, freeze it
#
# Flamingo needs only the vision encoder, and from it the vector of **each patch**, before the mean.


# %%
def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


vision = model.vision.eval().requires_grad_(False)  # frozen
print("kept:       ", f"{count(vision):,} parameters of the vision encoder")
print("thrown away:", f"{count(model) - count(vision):,} parameters of the text encoder, the projections and the scale")
print("features of one image:", tuple(vision(unseen_pixels[:1]).shape), " (B, S, D)")

# %% [markdown]
# - **Why is the text encoder thrown away?** Flamingo has a language model for text. The text encoder was needed only to compare
#   images with captions. The projections and the scale belong to this comparison.
# - **Why is the vision encoder frozen?** In the paper, training it together with the rest made it forget what it had learned
#   here. There is a second advantage: the features of an image never change, so they can be computed once and stored.
#
# The toy run in [train_tiny.py](../train_tiny.py) trains a larger encoder for more steps, on all kinds of images
# ([contrastive_data.py](../data_toy/contrastive_data.py)). After a while its batches contain **hard negatives**: captions that
# differ in one detail. It also compares images with images: two views of one drawing are a pair.
#
# ## One line to remember
#
# **Two encoders learn which image and which caption belong together; the other pairs of the batch are the wrong answers.**
#
# Next: [04 Perceiver Resampler](04_resampler.ipynb), how the features become a fixed number of visual tokens.
# In the code: [contrastive.py](../minflamingo/contrastive.py), and its [specification](../tests/spec/test_contrastive.py).
# In the paper: section 2.1, and the appendix about the vision encoder.
