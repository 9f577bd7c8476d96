# %% [markdown]
# # 04 The Perceiver Resampler
#
# **Question: an image has 16 feature vectors, a video of 30 frames has 480. How do both become the same number of tokens?**
#
# About 60 minutes. You know: attention with queries, keys and values; the features of [02](02_vision_encoder.ipynb).
# Before: [03 Contrastive pretraining](03_contrastive.ipynb). After: [05 Language model](05_language_model.ipynb).

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
from helpers import check, show, source
from matplotlib import pyplot as plt

import minflamingo
from data_toy.draw import draw
from data_toy.media_pool import PREPROCESS, random_scene
from data_toy.words import caption
from data_toy.world import Scene
from minflamingo import ResamplerConfig, Sample, collate
from minflamingo.attention import attention_written_out, merge_heads, split_heads
from minflamingo.generate import generate
from minflamingo.resampler import PerceiverResampler, ResamplerLayer

# %% [markdown]
# ## What the paper says
#
# Section 2.1 and figure 5, in short:
#
# - The vision encoder gives S feature vectors for each frame. A video of T frames has T·S of them. An image has T = 1.
# - A learned **time embedding** is added to the features, one for each frame. No position inside the frame is added: the
#   features already carry it.
# - R learned vectors, the **latents**, are the queries. Keys and values are the features **and** the latents:
#
# $$\text{latents} = \text{latents} + \text{attention}(q = \text{latents},\; kv = [\text{features}, \text{latents}])$$
# $$\text{latents} = \text{latents} + \text{ffw}(\text{latents})$$
#
# - Each layer updates the latents. After the last layer, they are the R **visual tokens** of the image or video. The paper has
#   R = 64 and 6 layers.
# - The paper trains with 8 frames and evaluates with 30. The time embeddings are interpolated linearly.
#
# ## By hand: two latents, three features
#
# Here each vector is a single number. Norms and projections are left out, so queries, keys and values are the numbers
# themselves. Three features: a = 2, b = 1, c = 0. Two latents: u = 1, v = -1. A score is a product, query times key. (It is
# divided by $\sqrt{d}$, which is 1 here.) Each cell has the score, and the attention weight after the softmax:
#
# | query | key a = 2 | key b = 1 | key c = 0 | key u = 1 | key v = -1 | sum of weight · value | new latent |
# |---|---|---|---|---|---|---|---|
# | u = 1 | 2 → 0.52 | 1 → 0.19 | 0 → 0.07 | 1 → 0.19 | -1 → 0.03 | 1.40 | 1 + 1.40 = 2.40 |
# | v = -1 | -2 → 0.03 | -1 → 0.08 | 0 → 0.22 | -1 → 0.08 | 1 → 0.59 | -0.37 | -1 - 0.37 = -1.37 |
#
# Latent u takes most from feature a. Latent v finds no feature that is similar to it. It puts the largest weight on **itself**.
# Without the latents among the keys, v must take its values from the features, because the weights sum to 1.

# %%
features = torch.tensor([[2.0], [1.0], [0.0]])  # (3, 1)
latents = torch.tensor([[1.0], [-1.0]])  # (2, 1)
for name, context in (("features and latents", torch.cat([features, latents])), ("features alone", features)):
    # (2, 1) -> (1, 1, 2, 1): the function wants a batch and a head axis
    out, weights = attention_written_out(latents[None, None], context[None, None], context[None, None])
    print(f"keys and values: {name}")
    for latent, w, o in zip(latents[:, 0].tolist(), weights[0, 0], out[0, 0, :, 0].tolist()):
        print(f"  latent {latent:2.0f}: weights {[round(x, 2) for x in w.tolist()]}, sum {o:.2f}, new latent {latent + o:.2f}")

# %% [markdown]
# ## Figure 1: tokens in, tokens out
#
# The ready model has S = 16 patches and R = 8 latents. We give its resampler an image, a video of 4 frames, and a video of
# 30 frames. In training, its videos had 4 frames.

# %%
flamingo = minflamingo.load("tiny")
model, tokenizer = flamingo.model, flamingo.tokenizer
resampler = model.resampler
torch.set_grad_enabled(False)  # this notebook trains nothing

pixels = draw(Scene("video", things=(("red", "circle"), ("blue", "star")), direction="left"), Random(0))  # (4, 48, 48, 3)
four_frames = model.vision(PREPROCESS(pixels))[None]  # (M, T, S, D): the vision encoder takes each frame as an image
slow = [t * 4 // 30 for t in range(30)]  # 0 0 0 ... 3 3 3: the same video, slower
inputs = {"image": four_frames[:, :1], "video, 4 frames": four_frames, "video, 30 frames": four_frames[:, slow]}
for name, x in inputs.items():
    print(f"{name:17} features {tuple(x.shape)!s:17} -> visual tokens {tuple(resampler(x).shape)}")

# %%
figure, axes = plt.subplots(1, 3, figsize=(9, 2.9), width_ratios=(9, 12, 38), layout="constrained")
for ax, (name, x) in zip(axes, inputs.items()):
    _, T, S, _ = x.shape
    R = resampler(x).shape[1]
    frame, patch = np.meshgrid(range(T), range(S))
    ax.scatter(frame, patch, marker="s", s=14, color="#74a9e0")
    ax.scatter([T + 4] * R, 4 + np.arange(R), marker="s", s=14, color="#c2255c")
    ax.annotate("", (T + 3.5, 7.5), (T - 0.3, 7.5), arrowprops={"arrowstyle": "->", "color": "#5b6676"})
    ax.set_title(f"{name}\n{T} · {S} = {T * S} in, {R} out", fontsize=8.5)
    ax.set(xlim=(-1, T + 7.5), ylim=(S + 0.5, -1.5))
    ax.axis("off")
show(figure, "Three panels. Left of each arrow are the features as blue squares, one column per frame: 1, 4 and 30 columns of "
     "16. Right of each arrow are 8 pink squares.")  # fmt: skip

# %% [markdown]
# Blue squares: features, one column for each frame, one row for each patch. Pink squares: visual tokens. The
# number of pink squares is always R. So the cost of the cross-attention in the language model does not depend on the size of
# the input. (Only the resampler itself needs more time for more frames.) In comments, M is the number of images and videos,
# and D the width of a vector.
#
# ## Figure 2: what each latent attends to
#
# We repeat the beginning of the first layer and keep the attention weights. The image is a video with one frame.


# %%
def first_layer_weights(image: np.ndarray) -> torch.Tensor:
    """Pixels (H, W, 3) -> attention weights (R, S + R), mean over the heads."""
    layer = resampler.layers[0]
    features = model.vision(PREPROCESS(image[None]))  # (1, S, D)
    features = features + resampler.time_embeddings[0]  # the image is frame 0
    latents = layer.norm_latents(resampler.latents[None])  # (1, R, D)
    context = torch.cat([layer.norm_features(features), latents], dim=1)  # (1, S + R, D)
    k, _ = layer.to_kv(context).chunk(2, dim=-1)  # keys and values; only the keys are needed
    q, k = split_heads(layer.to_q(latents), layer.n_heads), split_heads(k, layer.n_heads)  # (1, h, R or S + R, d_head)
    _, weights = attention_written_out(q, k, k)  # (1, h, R, S + R)
    return weights[0].mean(0)


# %%
things = [("red", "star", 1, "left"), ("red", "star", 1, "right"), ("blue", "circle", 3, "top")]
images = [draw(Scene("things", *facts), Random(0)) for facts in things]
R = resampler.config.n_latents
figure, axes = plt.subplots(3, R + 1, figsize=(9, 3.9), layout="constrained")
for row, image in zip(axes, images):
    row[0].imshow(image)
    for r, (ax, weights) in enumerate(zip(row[1:], first_layer_weights(image))):
        ax.imshow(weights[:-R].reshape(4, 4), cmap="magma", vmin=0, vmax=0.25)  # the S = 16 patches as a grid
        ax.set_title(f"latent {r + 1}\non latents {weights[-R:].sum():.2f}", fontsize=7)
for ax in axes.flat:
    ax.set(xticks=[], yticks=[])
show(figure, "Three rows: an image, then a map of 4 by 4 patches for each of the eight latents. The maps differ from latent to "
     "latent and from image to image. Some are almost black.")  # fmt: skip

# %% [markdown]
# Each row: an image, and for each latent its attention to the 4 x 4 patches. Black: weight 0. Brightest: 0.25 or more. The
# number above a map is the sum of the weights on the **latents**, the remaining keys. Notice:
#
# - Latents differ. Each has learned its own query.
# - Most maps change with the image. Some latents give bright patches near the thing, others in the background.
# - A map can be dark. Then the latent puts most of its weight on the latents, its own key or those of others.
#
# ## Figure 3: a video and its reverse
#
# Attention ignores the order of its keys. Only the time embeddings say which frame came first. Does the model use them?


# %%
def captions(features: torch.Tensor) -> list[str]:
    """Features (M, T, S, D) -> the model's caption of each image or video."""
    batch = collate([Sample([x, "Output:"]) for x in features], tokenizer)
    rows = generate(model, batch, tokenizer.eoc_id, max_new_tokens=14)
    return [tokenizer.decode(row).strip() for row in rows]


backwards = four_frames.flip(1)  # reverse the axis of the frames
figure, axes = plt.subplots(2, 4, figsize=(6, 3.7), layout="constrained")
for row, frames, x in zip(axes, (pixels, pixels[::-1]), (four_frames, backwards)):
    for t, (ax, frame) in enumerate(zip(row, frames)):
        ax.imshow(frame)
        ax.set(xticks=[], yticks=[], xlabel=f"frame {t}")
    row[0].set_title(captions(x)[0], fontsize=10)
show(figure, "Two rows of four frames with the model's captions. In the first row the red circle moves left. The second row "
     "has the same frames in reverse order, so it moves right.")  # fmt: skip

# %% [markdown]
# Above each row: the model's caption. Both videos have the same four frames. One video proves little, so here are 100 videos of
# held-out scenes, forwards, backwards, and slower.

# %%
rng = Random(0)
scenes = [random_scene(rng, "video", "test") for _ in range(100)]
videos = np.stack([draw(scene, rng) for scene in scenes])  # (M, T, H, W, 3)
video_features = model.vision(PREPROCESS(videos.reshape(-1, 48, 48, 3))).unflatten(0, (100, 4))  # (M, T, S, D)

directions = [scene.direction for scene in scenes]
opposite = {"left": "right", "right": "left", "up": "down", "down": "up"}
reverse = [opposite[direction] for direction in directions]


def accuracy(features: torch.Tensor, expected: list[str]) -> float:
    """Percent of videos whose caption ends with the right direction."""
    words = [text.split()[-1] for text in captions(features)]
    return 100 * sum(a == b for a, b in zip(words, expected)) / len(expected)


# %%
print(f"forwards:            {accuracy(video_features, directions):.0f}% of the directions are right")
print(f"backwards:           {accuracy(video_features.flip(1), reverse):.0f}%")
print(f"slower, 30 frames:   {accuracy(video_features[:, slow], directions):.0f}%")

# %% [markdown]
# ## Exercise (a): one attention step
#
# Write `my_attention_step`: the first of the two equations. Use the parts of the layer that you get:
#
# - `layer.norm_latents` and `layer.norm_features` (the latents are normalised also as keys and values);
# - `layer.to_q`, and `layer.to_kv`: its result has the keys in the first half of the last axis, the values in the second half;
# - `layer.to_out` for the result, and `layer.n_heads`.
#
# `attention_written_out(q, k, v)` returns the output and the weights. It needs a head axis: `split_heads` adds it, and
# `merge_heads` removes it. Do not forget the residual connection.

# %%
source(split_heads, merge_heads)


# %% tags=["exercise"]
def my_attention_step(layer: ResamplerLayer, latents: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """latents (M, R, D), features (M, T*S, D) -> latents (M, R, D), without the feed-forward part."""
    ...  # your code


# %% tags=["check"]
torch.manual_seed(0)
layer = ResamplerLayer(ResamplerConfig(d=32, n_latents=2, n_heads=2, d_head=16))
for parameter in layer.parameters():
    parameter.normal_(std=0.2)  # also the norms, so that each has different weights
layer.ff.out.weight.zero_()  # the feed-forward part adds nothing, so the layer is the attention step alone
x, short, long = torch.randn(1, 2, 32), torch.randn(1, 3, 32), torch.randn(1, 480, 32)
check("2 latents, 3 features", lambda: my_attention_step(layer, x, short), layer(x, short),
      "queries: normalised latents; keys, values: normalised features and latents, joined; at the end + latents")  # fmt: skip
check("2 latents, 480 features", lambda: my_attention_step(layer, x, long), layer(x, long),
      "the result has the shape of the latents, for any number of features")  # fmt: skip
check("no feature at all (only a test)", lambda: my_attention_step(layer, x, short[:, :0]), layer(x, short[:, :0]),
      "then the latents attend to each other: they are keys, too")  # fmt: skip

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_attention_step(layer: ResamplerLayer, latents: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
#     """Queries: the latents. Keys and values: the features and the latents."""
#     x = layer.norm_latents(latents)
#     context = torch.cat([layer.norm_features(features), x], dim=1)  # (M, T*S + R, D)
#     q = split_heads(layer.to_q(x), layer.n_heads)
#     k, v = layer.to_kv(context).chunk(2, dim=-1)
#     out, _ = attention_written_out(q, split_heads(k, layer.n_heads), split_heads(v, layer.n_heads))
#     return latents + layer.to_out(merge_heads(out))
# ```
#
# </details>
#
# ## Exercise (b): time embeddings for longer videos
#
# Write `my_time_embedding`. There are K learned embeddings. A video of T frames needs T embeddings:
#
# - If T is at most K: the first T of them.
# - If T is larger: spread the T frames evenly over the positions 0 ... K - 1. A frame at position 1.25 gets
#   0.75 · embedding 1 + 0.25 · embedding 2.


# %% tags=["exercise"]
def my_time_embedding(learned: torch.Tensor, T: int) -> torch.Tensor:
    """(K, D) -> (T, D)."""
    ...  # your code


# %% tags=["check"]
numbers = torch.tensor([[0.0], [10.0], [20.0], [30.0]])  # K = 4, D = 1
learned = resampler.time_embeddings
expected = resampler.time_embedding(torch.tensor([30]), 30)[0]
check("2 frames", lambda: my_time_embedding(numbers, 2), torch.tensor([[0.0], [10.0]]),
      "with at most K frames, nothing is interpolated")  # fmt: skip
check("7 frames", lambda: my_time_embedding(numbers, 7), torch.tensor([[0.0], [5.0], [10.0], [15.0], [20.0], [25.0], [30.0]]),
      "the positions are 0, 0.5, 1, ..., 3: torch.linspace(0, K - 1, T)")  # fmt: skip
check("30 frames, as the package", lambda: my_time_embedding(learned, 30), expected,
      "left = position rounded down, weight = position - left; the last frame has no right neighbour, so clamp it")  # fmt: skip

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_time_embedding(learned: torch.Tensor, T: int) -> torch.Tensor:
#     """Linear interpolation between the two nearest learned embeddings."""
#     K = len(learned)
#     if T <= K:
#         return learned[:T]
#     position = torch.linspace(0, K - 1, T)  # (T,)
#     left = position.long()  # rounds down
#     right = (left + 1).clamp_max(K - 1)
#     weight = (position - left)[:, None]  # (T, 1)
#     return (1 - weight) * learned[left] + weight * learned[right]
# ```
#
# </details>
#
# ## The package's code
#
# `q_norm` and `k_norm` do nothing in this model. One published model normalises queries and keys there.

# %%
source(ResamplerLayer.forward, PerceiverResampler.time_embedding)

# %% [markdown]
# ## Break it, part 1: the time embeddings
#
# We give the resampler other time embeddings. First: all zeros. Second, for 30 frames: no interpolation. All frames after the
# fourth get the last embedding.

# %%
K = len(learned)


def with_embeddings(embeddings: torch.Tensor, features: torch.Tensor, expected: list[str]) -> float:
    """The accuracy with other time embeddings. Afterwards the model is as before."""
    resampler.time_embeddings = torch.nn.Parameter(embeddings)
    result = accuracy(features, expected)
    resampler.time_embeddings = learned
    return result


repeat_last = learned[torch.arange(30).clamp_max(K - 1)]  # (30, D): embeddings 0 1 2 3 3 3 ... 3
slow_features = video_features[:, slow]
print(f"4 frames, as trained:                 {with_embeddings(learned, video_features, directions):.0f}%")
print(f"4 frames, zeros:                      {with_embeddings(learned * 0, video_features, directions):.0f}%")
print(f"4 frames backwards, zeros:            {with_embeddings(learned * 0, video_features.flip(1), reverse):.0f}%")
print(f"30 frames, interpolated:              {with_embeddings(learned, slow_features, directions):.0f}%")
print(f"30 frames, last embedding repeated:   {with_embeddings(repeat_last, slow_features, directions):.0f}%")

# %% [markdown]
# With zeros, a video and its reverse have the same visual tokens, so they get the same caption. At most one of the two can be
# right. The model can only guess one of two directions, so about half of its answers are right. Without interpolation, most
# frames of a long video have the same embedding, so the order of these frames is lost. Only the first frames keep their own.
#
# **How you would notice**: reverse the frames. If the visual tokens do not change, the order is lost. An accuracy on single
# images does not show this bug.

# %%
same = torch.allclose(resampler(four_frames), resampler(backwards), atol=1e-4)
resampler.time_embeddings = torch.nn.Parameter(learned * 0)
same_with_zeros = torch.allclose(resampler(four_frames), resampler(backwards), atol=1e-4)
resampler.time_embeddings = learned
print("video and reverse have the same visual tokens:", same, "  with zeros:", same_with_zeros)

# %% [markdown]
# ## Break it, part 2: latents are no keys
#
# Many cross-attention modules use only the features as keys and values. A mask does the same here: True means that a latent may
# attend to this key. We describe 200 images with one to four things.


# %%
def without_latents(features: torch.Tensor, frames: torch.Tensor | None = None) -> torch.Tensor:
    """As PerceiverResampler.forward for images (M, 1, S, D), but no latent is a key."""
    M, _, S, _ = features.shape
    features = features[:, 0] + resampler.time_embeddings[0]  # (M, S, D)
    allowed = torch.tensor([True] * S + [False] * R)[None, None, None]  # (1, 1, 1, S + R)
    latents = resampler.latents.expand(M, -1, -1)
    for layer in resampler.layers:
        latents = layer(latents, features, allowed)
    return resampler.final_norm(latents)


rng = Random(0)
scenes = [random_scene(rng, kind, "test") for kind in ("things", "pair") for _ in range(100)]
image_features = model.vision(PREPROCESS(np.stack([draw(scene, rng) for scene in scenes])))[:, None]  # (M, 1, S, D)


# %%
def right_captions() -> float:
    """Percent of captions that are exactly right."""
    texts = captions(image_features)
    return 100 * sum(text == caption(scene) for text, scene in zip(texts, scenes)) / len(scenes)


tokens, changed = resampler(image_features), without_latents(image_features)
print(f"change of the visual tokens: {100 * (changed - tokens).norm() / tokens.norm():.0f}% of their norm")
print(f"keys are features and latents: {right_captions():.0f}% of the captions are right")
resampler.forward = without_latents
print(f"keys are features alone:       {right_captions():.0f}%")
del resampler.forward  # repair it: the method of the class is used again

# %% [markdown]
# All shapes are the same, and many captions are still right. So this bug is difficult to find. **How you would notice**:
# compare with the equation on random weights, as in exercise (a). Or compute a gradient: in one layer, the first output must
# depend on the second latent.

# %%
two_latents = torch.randn(1, 2, 32, requires_grad=True)
with torch.enable_grad():  # it is turned off above
    first_output = layer(two_latents, short)[0, 0].sum()
(gradient,) = torch.autograd.grad(first_output, two_latents)
print("gradient of the first output with respect to the second latent:", f"{gradient[0, 1].norm():.3f}")

# %% [markdown]
# This model was trained with the latents among its keys. A model that is trained without them would adapt, but its latents
# could not exchange information with each other.
#
# ## One line to remember
#
# **R learned latents attend to all features and to the latents, so any T · S features become R visual tokens.**
#
# Next: [05 Language model](05_language_model.ipynb), the other frozen part.
# In the code: [resampler.py](../minflamingo/resampler.py), and its [specification](../tests/spec/test_resampler.py).
# In the paper: section 2.1 and figure 5.
