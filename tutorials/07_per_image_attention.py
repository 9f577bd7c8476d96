# %% [markdown]
# # 07 Each token attends to one image
#
# **Question: a prompt has many images. Which of them may a word attend to?**
#
# About 45 minutes. You know: attention with a mask, the media index $\phi$ of [01](01_prompt.ipynb).
# Before: [06 The tanh gate](06_tanh_gate.ipynb). After: [08 Many datasets, one step](08_datasets.ipynb).

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
import math
from dataclasses import replace
from random import Random

import torch
from helpers import check, show, source
from matplotlib import pyplot as plt

import minflamingo
from data_toy.draw import draw
from data_toy.evaluation_tasks import queries
from data_toy.media_pool import PREPROCESS, draw_media_pool, encode_media_pool
from data_toy.world import Scene
from minflamingo import fast, gated_xattn
from minflamingo.attention import attention
from minflamingo.data.sample import EOC, Sample, collate
from minflamingo.evaluation.fewshot import predict
from minflamingo.gated_xattn import attend_to_media, media_index, xattn_mask

flamingo = minflamingo.load("tiny")
model, tokenizer = flamingo.model, flamingo.tokenizer

# %% [markdown]
# ## What the paper says
#
# Section 2.3, in short:
#
# - The cross-attention of a text token has a mask. The token attends to the visual tokens of **one** image: the last image
#   before it. $\phi(l)$ is the number of this image.
# - A token before the first image has $\phi = 0$. It attends to nothing, and the cross-attention gives it exactly zero.
# - The token still depends on **all** earlier images, but only indirectly. The language model's own self-attention carries
#   information from earlier text to later text.
# - Why: the model was trained with at most 5 images in a sequence, and it works with 32. No token ever cross-attends to more
#   than one image, so more images are nothing new for the cross-attention.
#
# ## By hand: four tokens
#
# Two images, each with R = 2 visual tokens. (There is one visual token for each latent of the resampler, see
# [04](04_resampler.ipynb).) The text is `<BOS> <image> a <image>`:
#
# | token | $\phi$ | image 1, latent 1 | image 1, latent 2 | image 2, latent 1 | image 2, latent 2 |
# |---|---|---|---|---|---|
# | `<BOS>` | 0 | - | - | - | - |
# | `<image>` | 1 | yes | yes | - | - |
# | ` a` | 1 | yes | yes | - | - |
# | `<image>` | 2 | - | - | yes | yes |
#
# The four columns are the keys of the cross-attention. The same table in code:

# %%
is_image = torch.tensor([[False, True, False, True]])
phi = media_index(is_image)
print("phi:", phi.tolist())
print(xattn_mask(phi, n_media=2, n_latents=2)[0, 0].int())  # (L, N*R)

# %% [markdown]
# ## Figure 1: the mask of a real prompt
#
# A prompt with two shots and a query. The ready model has R = 8 visual tokens for each image. The made-up names are spelled.

# %%
rng = Random(3)
things = (("red", "star"), ("blue", "ring"), ("red", "star"))
scenes = [Scene("things", colour=colour, shape=shape, count=1, place="left") for colour, shape in things]
images = [draw(scene, rng)[None] for scene in scenes]  # (T, H, W, C) with T = 1
prompt = Sample([images[0], "This is a dax.", EOC, images[1], "This is a fep.", EOC, images[2], "This is a"])
batch = collate([prompt], tokenizer, PREPROCESS)

special = {tokenizer.bos_id: "<BOS>", tokenizer.eoc_id: "<EOC>", tokenizer.image_id: "<image>"}
tokens = [special.get(i) or tokenizer.decode([i]).replace(" ", "␣") for i in batch.ids[0].tolist()]
R = model.config.resampler.n_latents
phi = media_index(batch.ids == tokenizer.image_id)
mask = xattn_mask(phi, n_media=3, n_latents=R)[0, 0]  # (L, N*R)

# %%
figure, ax = plt.subplots(figsize=(6, 5.4))
ax.imshow(mask, cmap="RdPu", vmin=0, vmax=1.6, aspect="auto")
ax.set_yticks(range(len(tokens)), [f"{token}   {p}" for token, p in zip(tokens, phi[0].tolist())], fontsize=7)
ax.set_xticks([R * n + R / 2 - 0.5 for n in range(3)], [f"image {n + 1}\n({R} visual tokens)" for n in range(3)])
ax.grid(False)
ax.set(title="Coloured: the token may attend to this visual token", ylabel="token, phi")
show(figure, "A matrix with one row per token and 24 columns. The row of BOS is empty. Each other row is coloured at the eight "
     "columns of the last image before the token, so three blocks go down from left to right.")  # fmt: skip

# %% [markdown]
# Each row has one coloured block, the R visual tokens of its image. The row of `<BOS>` is empty.
#
# ## Figure 2: what a logit depends on
#
# A gradient tells whether an output depends on an input: if the gradient is zero, the input has no influence. We take two
# outputs for each token $l$:
#
# 1. the **cross-attention** of the first gated layer at token $l$. A gradient needs one number, so we take the sum of this
#    vector;
# 2. the largest **logit** at token $l$, at the end of the whole model. This is the token that the model would choose.
#
# For both we compute the gradient with respect to the features of each image, and its norm.

# %%
features = model.vision(batch.media[0, :, 0]).detach()  # (N, S, D): one image per row
features = features[None, :, None].requires_grad_()  # (B, N, T, S, D)
with_features = replace(batch, media=features)  # a batch may hold features instead of pixels


def gradient_norms(outputs: torch.Tensor) -> torch.Tensor:
    """outputs (L,) -> (L, N): the norm of the gradient of each output with respect to each image."""
    rows = [torch.autograd.grad(output, features, retain_graph=True)[0] for output in outputs]  # L of (1, N, 1, S, D)
    return torch.stack([row[0].flatten(1).norm(dim=1) for row in rows])


# %%
visual = model.encode_media(features)  # (B, N, R, D)
xattn = model.xattn_layers["0"].xattn
direct = xattn(model.embed(batch.ids), xattn.project_media(visual), phi, R)  # (B, L, D)
logits, _ = model(with_features)  # (B, L, V)
print("the model's answer:", flamingo.complete(prompt.pieces))
norms = {
    "first cross-attention": gradient_norms(direct[0].sum(1)),
    "logit of the whole model": gradient_norms(logits[0].amax(1)),
}

# %%
figure, axes = plt.subplots(1, 2, figsize=(7, 5), sharey=True)
for ax, (title, norm) in zip(axes, norms.items()):
    ax.imshow((norm / norm.max()).sqrt(), cmap="RdPu", aspect="auto")  # the root makes small values visible
    for l, n in (norm == 0).nonzero().tolist():
        ax.text(n, l, "0", ha="center", va="center", fontsize=7, color="#5b6676")  # exactly zero
    ax.set_xticks(range(3), ["image 1", "image 2", "image 3"])
    ax.set(title=title)
    ax.grid(False)
axes[0].set_yticks(range(len(tokens)), tokens, fontsize=7)
show(figure, "Two matrices of tokens and images. Left, cross-attention: each token depends on its own image only, all "
     "other cells are zero. Right, logits: each token depends on all images before it, later images have zero.")  # fmt: skip

# %% [markdown]
# Darker: a larger gradient. Each of the two panels has its own scale. Cells with a 0 are **exactly** zero.
#
# - Left: in the first gated layer, the cross-attention of a token depends on its own image alone. In later layers the query $q$
#   already carries information from earlier images, but keys and values still come from one image.
# - Right: the logit depends on **all images before the token**. This is the work of the language model's self-attention. The
#   last ` a` needs all three images to answer "dax": the query's image, and the name that came after a similar image.
# - Right, above the blocks: no token depends on a later image. Otherwise the model could not generate from left to right.
#
# ## Exercise: the mask
#
# Write `my_mask`. Inputs: `is_image` (B, L), True at `<image>`; N, the largest number of images in a row of the batch (a row
# may have fewer); R, the number of visual tokens per image; and `attend_next`. The result is `(B, L, N*R)` with True where
# token $l$ may attend to a visual token.
#
# - Visual tokens are ordered by image: first the R tokens of image 1, then those of image 2.
# - With `attend_next=False`, a token attends to the last image at or before it.
# - With `attend_next=True` a text token attends to the **next** image, and `<image>` to its own. `<BOS>` is text. This is the
#   paper's augmentation in training, with probability p_next, because in web pages a text may belong to the image after it.
# - Without an image, a token attends to nothing. With `attend_next=False` this is the text before the first image, with
#   `attend_next=True` the text after the last one.
#
# Write it in steps: first the number of the image for each token, then the comparison with the number of each column.


# %% tags=["exercise"]
def my_mask(is_image: torch.Tensor, N: int, R: int, attend_next: bool = False) -> torch.Tensor:
    """(B, L) bool -> (B, L, N*R) bool."""
    ...  # your code


# %% tags=["check"]
example = torch.tensor([[False, True, False, True, False]])  # <BOS> <image> a <image> b
check("text attends to the last image", lambda: my_mask(example, 2, 2), xattn_mask(media_index(example), 2, 2)[:, 0],
      "compare phi, as (B, L, 1), with the image number of each column: 1 1 2 2")  # fmt: skip
check("text before any image attends to nothing", lambda: my_mask(example, 2, 2)[0, 0].tolist(), [False] * 4,
      "its number is 0, and no column has the number 0")  # fmt: skip
following = xattn_mask(media_index(example, torch.tensor([True])), 2, 2)[:, 0]
check("attend_next", lambda: my_mask(example, 2, 2, attend_next=True), following,
      "text (not <image>) gets phi + 1; if this is above the number of images in this row, it gets 0")  # fmt: skip
fewer = torch.tensor([[False, True, False, True, False], [False, True, False, False, False]])  # the second row has one image
following = xattn_mask(media_index(fewer, torch.tensor([True, True])), 2, 2)[:, 0]
check("attend_next, rows with two images and with one", lambda: my_mask(fewer, 2, 2, attend_next=True), following,
      "the last text of row 2 must not attend to image 2: in this row there is no image 2")  # fmt: skip

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_mask(is_image: torch.Tensor, N: int, R: int, attend_next: bool = False) -> torch.Tensor:
#     """First the number of the image for each token, then the comparison with each column."""
#     number = is_image.long().cumsum(1)  # (B, L)
#     if attend_next:
#         last = number[:, -1:]  # (B, 1) how many images the row has
#         number = number + (~is_image).long()
#         number = torch.where(number > last, 0, number)
#     column = torch.arange(1, N + 1).repeat_interleave(R)  # (N*R,): 1 1 2 2
#     return number[..., None] == column
# ```
#
# </details>
#
# ## The package's code
#
# The package computes the mask in two steps: first $\phi$ (`media_index`), then the comparison (`xattn_mask`).

# %%
source(media_index, xattn_mask, attend_to_media)

# %% [markdown]
# ## Break it, part 1: a mask of very negative numbers
#
# A common way to mask is to set forbidden scores to -1e9. For a token with $\phi = 0$, **all** scores are then equal. The
# softmax of equal scores is uniform, so the token gets the mean over all images. Several open implementations have this bug.

# %%
torch.manual_seed(0)
q, k, v = torch.randn(1, 1, 4, 8), torch.randn(1, 1, 4, 8), torch.randn(1, 1, 4, 8)  # (B, h, L, d), (B, h, N*R, d)
allowed = xattn_mask(media_index(is_image), 2, 2)  # (1, 1, 4, 4); the first row is empty
scores = q @ k.transpose(-2, -1) / math.sqrt(8)
naive = scores.masked_fill(~allowed, -1e9).softmax(-1) @ v
right = attention(q, k, v, allowed)
print("output of <BOS>, which has no image:")
print(f"  with -1e9:      norm {naive[0, 0, 0].norm():.3f}")
print(f"  in the package: norm {right[0, 0, 0].norm():.3f}, exactly zero: {bool((right[0, 0, 0] == 0).all())}")
print(f"largest difference at the other tokens: {(naive - right)[0, 0, 1:].abs().max():.1e}")

# %% [markdown]
# All other tokens agree, so a test that compares typical outputs does not notice it. **How you would notice**: a test for
# exactly zero at $\phi = 0$, or the gradient of figure 2: `<BOS>` would depend on later images.
#
# ## Break it, part 2: no mask at all
#
# Now every token attends to the visual tokens of all images in the prompt. We describe 60 images, with 0, 1, 4 and 8 shots.

# %%
pool = encode_media_pool(model, draw_media_pool(500, seed=0, split="test"))
asked = queries("caption", pool, 60, seed=0)


def accuracy(shots: int) -> float:
    """Percent of captions that are exactly right."""
    answers = predict(model, tokenizer, asked, str(shots))
    return 100 * sum(answer == query.answer for answer, query in zip(answers, asked)) / len(asked)


def no_mask(phi: torch.Tensor, n_media: int, n_latents: int) -> torch.Tensor:
    """Every token may attend to every visual token. (B, 1, L, N*R)"""
    return torch.ones(len(phi), 1, phi.shape[1], n_media * n_latents, dtype=torch.bool)


# %%
shots = (0, 1, 4, 8)
with_mask = [accuracy(n) for n in shots]
gated_xattn.xattn_mask = no_mask
with fast.disabled():  # the fast version has its own mask
    without_mask = [accuracy(n) for n in shots]
gated_xattn.xattn_mask = xattn_mask  # repair it
for n, one, other in zip(shots, with_mask, without_mask):
    print(f"{n} shots: {one:3.0f}% with the mask, {other:3.0f}% without")

# %% [markdown]
# With 0 shots only `<BOS>` changes: it now attends to the query's image, although it comes before it. With more
# images, the caption mixes the content of several images. **How you would notice**: without the mask, accuracy falls much more
# with the number of shots than with it. (One caption of 60 is 1.7%, so small differences mean nothing.)
#
# This model was trained with the mask. A model could also be trained without it. Then a token must find out which of all visual
# tokens belong to its image, and prompts with more images than in training are new to it.
#
# ## One line to remember
#
# **A token cross-attends to the last image before it and to no other. Earlier images reach it through the language model.**
#
# Next: [08 Many datasets, one step](08_datasets.ipynb), how images, videos and documents are trained together.
# In the code: [gated_xattn.py](../minflamingo/gated_xattn.py), and its [specification](../tests/spec/test_gated_xattn.py).
# In the paper: section 2.3 and figure 7; section 2.4 for p_next.
