# %% [markdown]
# # 02 The vision encoder turns patches into vectors
#
# **Question: an image is a grid of pixels. How does it become a few vectors that a language model can use?**
#
# About 40 minutes. You know: convolution, self-attention, LayerNorm, the form of a prompt from [01](01_prompt.ipynb).
# Before: [01 A prompt is one interleaved sequence](01_prompt.ipynb). After: [03 Contrastive pretraining](03_contrastive.ipynb).

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
from dataclasses import replace
from random import Random

import numpy as np
import torch
from helpers import check, show, source
from matplotlib import pyplot as plt

import minflamingo
from data_toy.draw import draw
from data_toy.media_pool import PREPROCESS, random_scene
from data_toy.words import caption
from data_toy.world import Scene
from minflamingo.data.sample import Sample, collate
from minflamingo.generate import generate
from minflamingo.vision import ViT, conv_stem

# %% [markdown]
# ## What the paper says
#
# Section 2.1, in short:
#
# - The vision encoder is pretrained on image-text pairs with a contrastive loss ([03](03_contrastive.ipynb)). Then it is
#   **frozen**.
# - Its output is a 2-D grid of features. The grid is flattened to S vectors.
# - The frames of a video are encoded one by one.
# - The Perceiver Resampler adds no spatial positions, because the features already contain them.
#
# The paper's encoder is an NFNet-F6, a convolutional network. The public copies of Flamingo use a Vision Transformer (ViT)
# instead, and so does this package. A ViT works in three steps:
#
# 1. cut the image into patches and map each patch to one vector;
# 2. add a position to each vector;
# 3. apply Transformer blocks, in which each patch attends to all patches.
#
# ## By hand: four patches
#
# An image of 4 x 4 pixels with one channel, and patches of 2 x 2 pixels:
#
# $$\begin{array}{cc|cc} 0 & 0 & 9 & 9 \\ 0 & 0 & 9 & 9 \\ \hline 3 & 3 & 0 & 6 \\ 3 & 3 & 0 & 6 \end{array}$$
#
# Each patch has 4 pixels $(a, b, c, d)$, read row by row. A linear map gives a vector of width D = 2. Here its first number is
# the mean, $(a + b + c + d) / 4$. Its second number is the right column minus the left one, $(b + d - a - c) / 2$.
#
# | patch | place | pixels | vector |
# |---|---|---|---|
# | 0 | top left | 0 0 0 0 | (0, 0) |
# | 1 | top right | 9 9 9 9 | (9, 0) |
# | 2 | bottom left | 3 3 3 3 | (3, 0) |
# | 3 | bottom right | 0 6 0 6 | (3, 6) |
#
# Patches 2 and 3 have the same mean. The second number distinguishes them. A real ViT learns such maps, with many more numbers.

# %%
small = torch.tensor([[0, 0, 9, 9], [0, 0, 9, 9], [3, 3, 0, 6], [3, 3, 0, 6]]).float()
W = torch.tensor([[0.25, 0.25, 0.25, 0.25], [-0.5, 0.5, -0.5, 0.5]])  # (D, pixels of a patch)

for row in range(2):
    for column in range(2):
        patch = small[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]  # (2, 2)
        print(f"patch {2 * row + column}: pixels {patch.flatten().tolist()} -> vector {(W @ patch.flatten()).tolist()}")

# %% [markdown]
# ## Figure 1: the patches of an image
#
# Images of the toy world have 48 x 48 pixels, and a patch has 12 x 12. So there are S = 4 x 4 = 16 patches.

# %%
flamingo = minflamingo.load("tiny")
vit = flamingo.model.vision
scene = Scene("pair", things=(("red", "heart"), ("yellow", "star")), relation="left of")
image = draw(scene, Random(4))
p = vit.config.patch_size
side = vit.config.image_size // p  # patches in each row of the grid

# %%
figure = plt.figure(figsize=(8, 2.7), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=(1, 2))
whole, parts = left.subplots(), right.subplots(2, 8).flat
whole.imshow(image)
whole.set(xticks=[], yticks=[])
for i, ax in enumerate(parts):
    x, y = p * (i % side), p * (i // side)  # the upper left corner of patch i
    ax.imshow(image[y : y + p, x : x + p])
    ax.set(xticks=[], yticks=[])
    ax.set_title(str(i), loc="center", fontsize=9, pad=3)
    whole.add_patch(plt.Rectangle((x - 0.5, y - 0.5), p, p, fill=False, color="white", linewidth=1))
    whole.text(x + 0.3, y + 2.4, str(i), color="white", fontsize=8)
show(figure, "Left: an image of a red heart left of a yellow star, cut into four times four patches with the numbers 0 to 15, "
     "row by row. Right: the sixteen patches one after the other, in two rows of eight.")  # fmt: skip

# %% [markdown]
# Left: the image with its grid. Right: the same patches as a sequence. Patch 0 is at the top left, patch 3 at the top right,
# and patch 15 at the bottom right. The pixels of a patch do not say where it was. For example, patches 3 and 4 are neighbours
# in the sequence, but not in the image.
#
# Now the same steps in the ready model, with the shapes:

# %%
pixels = PREPROCESS(image[None])
with torch.no_grad():
    grid = vit.patches(pixels)
    vectors = grid.flatten(2).transpose(1, 2)
    features = vit(pixels)
print("pixels              ", tuple(pixels.shape), " (B, 3, H, W)")
print("grid of vectors     ", tuple(grid.shape), "  (B, D, rows, columns)")
print("sequence of vectors ", tuple(vectors.shape), "   (B, S, D)")
print("learned positions   ", tuple(vit.positions.shape), "      (S, D), added to the vectors of each image")
print("features            ", tuple(features.shape), "   (B, S, D), after", len(vit.blocks), "Transformer blocks")

# %% [markdown]
# ## Two ways to make the vectors
#
# The part before the Transformer blocks is called the **stem**.
#
# - `stem="patch"`: one convolution whose kernel and stride are as large as a patch. Patches do not overlap. Each vector is a
#   linear map of the pixels of its own patch, as in the example by hand. The published ViTs have this stem.
# - `stem="conv"`: several small convolutions. The product of their strides is the patch size, so the grid is the same. The
#   ready model has this stem, because it learns small shapes and letters in far fewer steps.

# %%
torch.manual_seed(0)
patch_stem = ViT(replace(vit.config, stem="patch")).patches  # random weights
for name, stem in (("patch", patch_stem), ("conv", vit.patches)):
    parameters = sum(weight.numel() for weight in stem.parameters())
    print(f'stem="{name}": {parameters} parameters, {tuple(pixels.shape)} -> {tuple(stem(pixels).shape)}')
source(conv_stem)

# %% [markdown]
# ## Figure 2: which pixels does one vector depend on?
#
# Again the gradient tells whether an output depends on an input. We take the vector of patch 5, and compute the gradient with
# respect to all pixels. A pixel with gradient zero has no influence.

# %%
figure, axes = plt.subplots(1, 2, figsize=(6, 3.2))
for ax, (name, stem) in zip(axes, (("patch", patch_stem), ("conv", vit.patches))):
    x = pixels.clone().requires_grad_()
    vector = stem(x)[0, :, 1, 1]  # (D,) row 1, column 1: patch 5
    (gradient,) = torch.autograd.grad(vector.pow(2).sum(), x)  # (1, 3, H, W)
    used = gradient[0].abs().sum(0) > 0  # (H, W)
    ax.imshow(used, cmap="RdPu", vmin=0, vmax=1.6, extent=(0, 48, 48, 0))
    ax.set_xticks(range(0, 49, p))
    ax.set(yticks=range(0, 49, p), title=f'stem="{name}": {int(used.sum())} pixels')
    ax.grid(True, axis="both", color="#5b6676", linewidth=0.8)
    ax.set_axisbelow(False)
show(figure, "Two maps of 48 by 48 pixels with the patch grid. Patch stem: only the pixels of patch 5 are coloured. Conv "
     "stem: a larger square around patch 5 is coloured. It covers parts of the neighbouring patches.")  # fmt: skip

# %% [markdown]
# The axes are pixels, and the lines are the borders of the patches. Left: exactly one patch. Right: the vector also depends on
# pixels of neighbouring patches. (This region is larger than a patch and not centred on it; the border of the image cuts it.)
# Near the border of the image, the small convolutions also receive the zeros with which the image is padded. So a vector of a
# conv stem contains some information about its place. This matters in "Break it".
#
# ## Figure 3: the learned positions
#
# The position of a patch is a vector of D numbers, learned like all other weights. The code does not say that patch 5 is next
# to patch 6. Did the model learn it? We compare the positions of all pairs of patches. First we subtract the mean over all
# positions. Then we compute the cosine similarity.

# %%
positions = vit.positions.detach()
positions = positions - positions.mean(0)  # what all have in common says nothing about the place
similarity = torch.cosine_similarity(positions[:, None], positions[None], dim=-1)  # (S, S)

figure, axes = plt.subplots(side, side, figsize=(5.2, 4.7), layout="constrained")
for i, ax in enumerate(axes.flat):
    drawn = ax.imshow(similarity[i].reshape(side, side), cmap="RdBu_r", vmin=-0.5, vmax=0.5)
    ax.set(xticks=[], yticks=[])
    ax.set_title(f"patch {i}", fontsize=8.5, weight="normal", pad=3)
figure.colorbar(drawn, ax=axes, shrink=0.6, label="cosine similarity")
show(figure, "Sixteen small maps of four by four cells. In each map the cell of its own patch is dark red. Many cells next "
     "to it are pale red, and most cells far away are blue.")  # fmt: skip

# %% [markdown]
# Each small map belongs to one patch. Its 16 cells are the 16 patches at their places. The cell of the patch itself has the
# similarity 1 (from 0.5 on, the colour is the same). The cells next to it tend to be red (similar), and those far away tend to
# be blue. In numbers: the mean over all pairs of patches at each distance.

# %%
rows, columns = torch.arange(side * side) // side, torch.arange(side * side) % side
distance = (rows[:, None] - rows).abs() + (columns[:, None] - columns).abs()  # (S, S)
for steps in range(5):
    print(f"distance {steps}: mean similarity {similarity[distance == steps].mean():+.2f}")

# %% [markdown]
# A distance of 1 is one step to the left, to the right, up or down. Neighbours have more similar positions than distant
# patches. So the model learned from its data which patches are neighbours.
#
# ## The package's code

# %%
source(ViT)

# %% [markdown]
# ## Exercise: a patch embedding is a convolution
#
# Write both functions:
#
# 1. `my_patchify` cuts images into patches. The patches are ordered row by row. The numbers of a patch are ordered by channel,
#    then row, then column. You need `reshape`, `permute` and `reshape`, or `torch.nn.functional.unfold`.
# 2. `my_embed` multiplies each patch by the weight of a convolution `conv` that has stride = kernel = patch size and no bias.
#    Do not call `conv`. Use `conv.weight`, of shape `(D, C, p, p)`. The result must be the same as the output of `conv`.


# %% tags=["exercise"]
def my_patchify(pixels: torch.Tensor, p: int) -> torch.Tensor:
    """(B, C, H, W) -> (B, S, C*p*p)."""
    ...  # your code


def my_embed(pixels: torch.Tensor, conv: torch.nn.Conv2d) -> torch.Tensor:
    """(B, C, H, W) -> (B, S, D)."""
    ...  # your code


# %% tags=["check"]
by_hand = torch.tensor([[[0, 0, 0, 0], [9, 9, 9, 9], [3, 3, 3, 3], [0, 6, 0, 6]]]).float()
check("the example by hand", lambda: my_patchify(small[None, None], 2), by_hand,
      "split H into (rows, p) and W into (columns, p), then bring rows and columns to the front")  # fmt: skip
two_channels = torch.arange(32.0).reshape(1, 2, 4, 4)
expected = torch.stack([two_channels[0, :, r : r + 2, c : c + 2].flatten() for r in (0, 2) for c in (0, 2)])[None]
check("two channels", lambda: my_patchify(two_channels, 2), expected,
      "after permute the axes are (B, rows, columns, C, p, p)")  # fmt: skip
by_convolution = patch_stem(pixels).detach().flatten(2).transpose(1, 2)  # (B, S, D)
check("the same as the convolution", lambda: my_embed(pixels, patch_stem), by_convolution,
      "conv.weight.flatten(1) has shape (D, C*p*p); conv.stride[0] is p")  # fmt: skip

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_patchify(pixels: torch.Tensor, p: int) -> torch.Tensor:
#     """Split both axes of the image, bring the patches to the front, and flatten each patch."""
#     B, C, H, W = pixels.shape
#     x = pixels.reshape(B, C, H // p, p, W // p, p)
#     x = x.permute(0, 2, 4, 1, 3, 5)  # (B, rows, columns, C, p, p)
#     return x.reshape(B, (H // p) * (W // p), C * p * p)
#
#
# def my_embed(pixels: torch.Tensor, conv: torch.nn.Conv2d) -> torch.Tensor:
#     """Each row of the flattened weight gives one number of the vector."""
#     weight = conv.weight.detach().flatten(1)  # (D, C*p*p)
#     return my_patchify(pixels, conv.stride[0]) @ weight.T
# ```
#
# </details>
#
# So a strided convolution is the same as cutting into patches and a linear layer. The package uses the convolution: it is one
# call, and published weights are stored in this form.
#
# ## Break it, part 1: no positions in a ViT with the patch stem
#
# We shuffle the 16 patches of an image. Self-attention does not depend on the order of its inputs. So without positions, the
# shuffled image gives the same 16 features, only in another order. To test this, we compare the mean of the 16 features. The
# mean does not depend on the order. The weights are random.

# %%
torch.manual_seed(0)
encoder = ViT(replace(vit.config, stem="patch")).eval()
order = torch.randperm(side * side)
patches = pixels.reshape(1, 3, side, p, side, p).permute(2, 4, 0, 1, 3, 5).flatten(0, 1)  # (S, 1, 3, p, p)
shuffled = patches[order].unflatten(0, (side, side)).permute(2, 3, 0, 4, 1, 5).reshape(1, 3, 48, 48)


@torch.no_grad()
def difference() -> float:
    """How much the mean feature of the image differs from that of the shuffled image."""
    return (encoder(pixels).mean(1) - encoder(shuffled).mean(1)).norm().item()


print(f"with positions:    {difference():.6f}")
encoder.positions.data.zero_()
print(f"without positions: {difference():.6f}")

# %% [markdown]
# Without positions, the difference is zero, up to rounding. The Perceiver Resampler treats the features as a set: it adds no
# spatial positions of its own. So the image and the shuffled image would always get the same caption. No training can change
# this.
#
# ## Break it, part 2: wrong positions in the ready model
#
# How much does the ready model need its positions? Its conv stem gives some information about the place (figure 2). It
# describes 80 images of each kind, three times: with its positions; with all positions zero; and with the positions in
# reversed order. Then patch 0 has the position of patch 15.

# %%
positions, rng = vit.positions.detach().clone(), Random(0)
scenes = {kind: [random_scene(rng, kind, "test") for _ in range(80)] for kind in ("single", "pair", "row")}
images = {kind: PREPROCESS(np.stack([draw(s, rng) for s in scenes[kind]])) for kind in scenes}  # (80, 3, H, W)
for kind in scenes:
    print(f"an image of the kind {kind!r}: {caption(scenes[kind][0])}")


@torch.no_grad()
def answers(kind: str, positions: torch.Tensor) -> list[str]:
    """The model's captions of all images of this kind."""
    vit.positions.copy_(positions)
    features = vit(images[kind])[:, None]  # (80, T, S, D) with T = 1
    batch = collate([Sample([f, "Output:"]) for f in features], flamingo.tokenizer)
    rows = generate(flamingo.model, batch, flamingo.tokenizer.eoc_id)
    return [flamingo.tokenizer.decode(ids) for ids in rows]


# %%
print(" " * 12 + "colour and shape   place   caption of a pair   caption of a row")
for name, changed in (("right", positions), ("zero", 0 * positions), ("reversed", positions.flip(0))):
    one, pair, row = (list(zip(answers(kind, changed), scenes[kind])) for kind in scenes)
    thing = np.mean([f" {s.colour} {s.shape} " in answer for answer, s in one])
    place = np.mean([answer.endswith(s.place) for answer, s in one])
    exact = [np.mean([answer == " " + caption(s) for answer, s in pairs]) for pairs in (pair, row)]
    print(f"{name:12}{thing:16.0%}{place:8.0%}{exact[0]:20.0%}{exact[1]:19.0%}")
vit.positions.data = positions  # repair it

# %% [markdown]
# The first two columns are about images with a single thing.
#
# - **Zero**: colour and shape of a single thing are almost as good as before, and the place is right for most images. Figure 2
#   explains it: the vectors of the conv stem contain information about the place. Captions of pairs and rows are worse. There
#   the model must combine several patches.
# - **Reversed**: now the positions contradict the image. The place is often wrong. The colour and the shape of a single thing
#   are still mostly right, because they need no position.
#
# **How you would notice**: the model names colours and shapes, but makes mistakes with several things and their order. Measure
# the accuracy for each kind of question. A mean over all questions can hide this bug, because many questions need no position.
# For a patch stem there is a fast test, part 1: shuffle the patches of an image. If the mean feature does not change, the
# positions are missing. With a conv stem this test does not work, because its vectors depend on more than one patch.
#
# ## One line to remember
#
# **A ViT cuts the image into patches, maps each patch to a vector, and adds a position. Attention alone ignores the order.**
#
# Next: [03 Contrastive pretraining](03_contrastive.ipynb), how this encoder is trained on images and captions.
# In the code: [vision.py](../minflamingo/vision.py), and its [specification](../tests/spec/test_vision.py). `resize_vit` in
# [finetune.py](../minflamingo/recipes/finetune.py) interpolates the positions for larger images, as in the paper's
# fine-tuning.
# In the paper: section 2.1.
