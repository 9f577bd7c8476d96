# %% [markdown]
# # 01 A prompt is one interleaved sequence
#
# **Question: a language model reads a row of tokens. Where in this row are the images?**
#
# About 30 minutes. You know: tokens, next-token prediction, PyTorch tensors.
# Before: [00 What Flamingo does](00_what_flamingo_does.ipynb). After: [02 Vision encoder](02_vision_encoder.ipynb).

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

import torch
from helpers import check, show, source, token_strip
from matplotlib import pyplot as plt

import minflamingo
from data_toy.draw import draw
from data_toy.media_pool import PREPROCESS
from data_toy.words import toy_tokenizer
from data_toy.world import Scene
from minflamingo.data.sample import EOC, NoLoss, Sample, collate, tokenize_sample
from minflamingo.gated_xattn import media_index
from minflamingo.tokenizer import ToyTokenizer

tokenizer = toy_tokenizer()

# %% [markdown]
# ## What the paper says
#
# Flamingo models text that is conditioned on images and videos in between (section 2):
#
# $$p(y \mid x) = \prod_l p(y_l \mid y_{<l}, x_{\le l})$$
#
# - $y_l$ is token $l$ of the text, and $y_{<l}$ are the tokens before it.
# - $x_{\le l}$ are the images and videos that come before token $l$. (An image has no number $l$ of its own. So the paper
#   writes $\le$: all images that the sequence contains up to token $l$.)
#
# So there is **one** sequence. The paper writes its prompts like this (appendix):
#
# `<BOS><image>Output: A cat wearing sunglasses.<EOC><image>Output:`
#
# `<image>` marks the place of an image. `<EOC>` (end of chunk) ends the text of an image. `<BOS>` begins the sequence.
#
# ## By hand: four tokens
#
# Take one image with the text " a cat". The sequence has four tokens:
#
# | position | token | what it is |
# |---|---|---|
# | 0 | `<BOS>` | the beginning |
# | 1 | `<image>` | the place of the image. The pixels are **not** here. |
# | 2 | ` a` | text |
# | 3 | ` cat` | text |
#
# The image itself travels separately, as an array of pixels. The model needs to know which image each token belongs to.
# This number is called the **media index**, $\phi$ (phi). It is the number of the last image at or before the token:
#
# - `<BOS>`: no image yet, so $\phi = 0$.
# - `<image>`, ` a`, ` cat`: image number 1, so $\phi = 1$.
#
# ## In code
#
# In minFlamingo a sample is a Python list of text, images, and `EOC`. Here are two images of the toy world.

# %%
circle = draw(Scene("things", colour="red", shape="circle", count=1, place="left"), Random(0))
star = draw(Scene("things", colour="blue", shape="star", count=2, place="top"), Random(1))
print("an image:", circle.shape, circle.dtype)

figure, axes = plt.subplots(1, 2, figsize=(3.4, 1.9))
for ax, image, title in zip(axes, (circle, star), ("image 1", "image 2")):
    ax.imshow(image)
    ax.set(xticks=[], yticks=[], title=title)
show(figure, "Two small images: one red circle at the left; two blue stars at the top.")

# %% [markdown]
# A sample has media with an axis for time: an image is a video with one frame, `(T, H, W, C)` with `T = 1`.

# %%
sample = Sample([circle[None], " a red circle", EOC, star[None], " two blue stars", EOC])
row = tokenize_sample(sample, tokenizer, PREPROCESS)


def name(i: int) -> str:
    """A token as text. The special tokens have no text, so they get their name."""
    special = {tokenizer.bos_id: "<BOS>", tokenizer.eoc_id: "<EOC>", tokenizer.image_id: "<image>"}
    return special.get(i) or tokenizer.decode([i]).replace(" ", "␣")


tokens = [name(i) for i in row.ids]
print(tokens)
print(f"{len(row.ids)} tokens, {len(row.media)} images of shape {tuple(row.media[0].shape)}")

# %% [markdown]
# `␣` is a space. A word includes the space before it, so ` red` is one token.
#
# Two things to notice:
#
# 1. Each image became exactly **one** token, `<image>`. Its pixels are in a second list.
# 2. `<BOS>` was added at the beginning.
#
# `collate` puts samples into one batch of tensors. `attention_mask` is False at padding, and `frames` counts the frames of each
# image or video.

# %%
batch = collate([sample], tokenizer, PREPROCESS)
for field in ("ids", "labels", "attention_mask", "media", "frames"):
    print(f"{field:15} {tuple(getattr(batch, field).shape)}")

# %% [markdown]
# The axes of `media` are `(B, N, T, C, H, W)`: batch, images, frames, channels, height, width. The paper has three kinds of
# data (section 2.4), and they differ only in N and T:
#
# | data | N | T |
# |---|---|---|
# | image-text pairs | 1 | 1 |
# | video-text pairs | 1 | more than 1 |
# | web pages with images in between (M3W) | more than 1 | 1 |
#
# ## The figure: which image does each token belong to?

# %%
phi = media_index(batch.ids == tokenizer.image_id)  # (B, L)
print(phi[0].tolist())
token_strip(
    [("colour: the image that the token belongs to; grey: none", tokens, phi[0].tolist())],
    "The tokens as boxes. BOS is grey. The first image token and its caption are pink, the second image token and its "
    "caption are blue.",
)

# %% [markdown]
# The caption of image 1 and its `<EOC>` are pink, everything after the second `<image>` is blue.
# [07](07_per_image_attention.ipynb) shows how the model uses $\phi$: a token attends to the visual tokens of image $\phi$
# and to **no others**.
#
# ## What the model learns to predict
#
# The loss counts text only. The model is not trained to predict `<BOS>` or `<image>`. In `labels`, -100 means "not counted".
# Text in `NoLoss(...)` is input too, but the model is not trained to predict it: for example a question.

# %%
question = Sample([circle[None], NoLoss("Question: What shape? Answer:"), " circle", EOC])
row = tokenize_sample(question, tokenizer, PREPROCESS)
for i, label in zip(row.ids, row.labels):
    print(f"{name(i):12} {'-' if label == -100 else 'counts'}")

# %% [markdown]
# "counts" next to a token means: the model must predict this token from the tokens before it. `<EOC>` counts, so the model
# learns to stop.
#
# ## Text is only text
#
# What happens if a user writes the letters `<image>`? Many implementations search the text for this string. Then such a text
# gets a special token, but there is no image for it. Here special tokens exist only as numbers, and text never becomes one.

# %%
ids = tokenizer.encode(" a sign says <image>")
print([name(i) for i in ids])
print("contains the special token:", tokenizer.image_id in ids)

# %% [markdown]
# The unknown word was spelled, letter by letter. So every string can be encoded, and no string is special.
#
# ## The package's code
#
# This is everything that turns a sample into tokens, and the function that spells or looks up words. You may skip the lines
# with `around`: one published model needs them.

# %%
source(tokenize_sample, ToyTokenizer.encode)

# %% [markdown]
# ## Exercise: the media index
#
# Write `my_media_index`. The input is a tensor `(B, L)` of booleans, True at `<image>` tokens. The result has the same shape:
# for each token the number of the last image at or before it, 0 if there is none.
#
# Try a loop first. Then find the PyTorch function for running sums.


# %% tags=["exercise"]
def my_media_index(is_image: torch.Tensor) -> torch.Tensor:
    """(B, L) bool -> (B, L) long."""
    ...  # your code


# %% tags=["check"]
one = torch.tensor([[False, True, False, False]])
two = torch.tensor([[False, True, False, False, True, False], [True, True, False, False, False, False]])
check("<BOS> <image> a cat", lambda: my_media_index(one), torch.tensor([[0, 1, 1, 1]]),
      "walk through the tokens and count the images that you have passed")  # fmt: skip
check("two rows", lambda: my_media_index(two), torch.tensor([[0, 1, 1, 1, 2, 2], [1, 2, 2, 2, 2, 2]]),
      "each row counts its own images: the direction of counting is axis 1")  # fmt: skip
check("text without any image", lambda: my_media_index(torch.zeros(1, 3, dtype=torch.bool)), torch.tensor([[0, 0, 0]]),
      "before the first image the number is 0")  # fmt: skip

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_media_index(is_image: torch.Tensor) -> torch.Tensor:
#     """Counting the images up to each token gives the number of the last one."""
#     return is_image.long().cumsum(1)
# ```
#
# </details>
#
# The package's version is `media_index` in [gated_xattn.py](../minflamingo/gated_xattn.py). It can also let text attend to the
# **next** image. In web pages a text may belong to the image before or after it, so the paper trains with both.

# %%
attend_next = torch.tensor([True])
print("last:", media_index(one).tolist(), " next:", media_index(one, attend_next).tolist())

# %% [markdown]
# With `attend_next`, $\phi$ is the number of the next image. `<BOS>` counts as text, so it gets 1. The text
# after the last image has no next image, so it gets 0.
#
# ## Break it: the image after its text
#
# The order matters. The ready model was trained with each image before its text, as in the paper's prompts. What if the image
# is at the wrong place? The model describes 40 images, with two prompts for each: once the image comes before `Output:`, once
# after it. (`complete` also takes a single image (H, W, C) and adds the axis for time.)

# %%
flamingo = minflamingo.load("tiny")
colours, shapes, rng = ("red", "blue", "green", "yellow"), ("circle", "square", "star", "heart"), Random(2)
scenes = [
    Scene("things", colour=rng.choice(colours), shape=rng.choice(shapes), count=1, place="left")
    for _ in range(40)
]
images = [draw(scene, rng) for scene in scenes]


def accuracy(make_prompt) -> float:
    """Percent of images whose colour and shape are in the model's answer."""
    answers = [flamingo.complete(make_prompt(image), max_new_tokens=8) for image in images]
    return 100 * sum(f"{s.colour} {s.shape}" in answer for s, answer in zip(scenes, answers)) / len(scenes)


# %%
before = accuracy(lambda image: [image, "Output:"])
after = accuracy(lambda image: ["Output:", image])
print(f"image before the text: {before:.0f}% right")
print(f"image after the text:  {after:.0f}% right")
for prompt in ([images[0], "Output:"], ["Output:", images[0]]):
    batch = flamingo.batch(prompt)
    phi = media_index(batch.ids == tokenizer.image_id)[0].tolist()
    tokens = [name(i) for i in batch.ids[0].tolist()]
    print([f"{token} {number}" for token, number in zip(tokens, phi)], "->", repr(flamingo.complete(prompt, max_new_tokens=8)))

# %% [markdown]
# The second prompt has the same image and the same words. But its tokens `Output` and `:` have $\phi = 0$, and
# the prompt ends with `<image>`. The model was never trained on such sequences. Its answer
# is empty or has another form. **How you would notice**: print the tokens of the prompt with their $\phi$, as above. The
# text before the answer must have the number of the query's image.
#
# ## One line to remember
#
# **A prompt is one sequence of tokens. `<image>` marks where an image is, and $\phi$ says which image each token belongs to.**
#
# Next: [02 Vision encoder](02_vision_encoder.ipynb), how pixels become vectors.
# In the code: [data/sample.py](../minflamingo/data/sample.py), [tokenizer.py](../minflamingo/tokenizer.py).
# In the paper: section 2 and figure 3; section 2.4 for the three kinds of data.
