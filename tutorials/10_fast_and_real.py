# %% [markdown]
# # 10 Fast and real
#
# **Question: how do we make a model faster, or give it published weights, and know that its results are still right?**
#
# About 45 minutes. You know: attention with queries, keys and values; the model of notebooks 04 to 07.
# Before: [09 Few-shot evaluation](09_few_shot_evaluation.ipynb). After: this is the last notebook.
# The beginning is [00 What Flamingo does](00_what_flamingo_does.ipynb).

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
import time
from dataclasses import replace
from random import Random
from statistics import median

import torch
from helpers import check, show, source
from matplotlib import pyplot as plt

from data_toy.draw import draw
from data_toy.words import caption
from data_toy.world import Scene
from minflamingo import EOC, fast, load
from minflamingo.gated_xattn import MaskedCrossAttention, attend_to_media
from minflamingo.generate import decode_step, prefill
from minflamingo.lm import LM, KVCache

_ = torch.set_grad_enabled(False)  # nothing is trained here

# %% [markdown]
# ## What the paper says
#
# Text is generated token by token (section 2): token $y_l$ depends on the tokens before it and on the images before it.
#
# $$p(y \mid x) = \prod_l p(y_l \mid y_{<l}, x_{\le l})$$
#
# - A token never depends on **later** tokens. So nothing that was computed for earlier tokens changes when a new token comes.
# - A token cross-attends only to the visual tokens of **one** image, the last one before it (section 2.3).
# - The language model is pretrained and frozen (section 2). So one can take published weights for it.
#
# This notebook uses these three facts. Each time the test is the same: **compute the result in two ways, and print the largest
# difference.** Numbers with 32 bits have about 7 digits. So the difference must be about a millionth of the largest number.
#
# ## By hand: four tokens
#
# Self-attention needs the keys of all tokens so far. A language model (LM) receives four tokens, one per step.
#
# | step | keys computed without a cache | with a cache |
# |---|---|---|
# | 1 | token 1 | token 1 |
# | 2 | tokens 1, 2 | token 2 |
# | 3 | tokens 1, 2, 3 | token 3 |
# | 4 | tokens 1, 2, 3, 4 | token 4 |
# | sum | 1 + 2 + 3 + 4 = **10** | 1 + 1 + 1 + 1 = **4** |
#
# The next cell does both for the LM of the ready model. It prints one number of each key (last block, head 0, channel 0), and
# it counts the keys that the block really computes.

# %%
flamingo = load("tiny")
model, lm, tokenizer = flamingo.model, flamingo.model.lm, flamingo.tokenizer
ids = torch.tensor([tokenizer.encode(" a red circle and")])  # (1, 4)
cache, n_keys = None, []  # n_keys: how many keys each call computes
hook = lm.blocks[-1].attn.to_k.register_forward_hook(lambda layer, inputs, keys: n_keys.append(keys.shape[1]))
for n in range(1, 5):
    without_cache, new_cache = lm(lm.embed(ids[:, :n]))  # all tokens so far
    with_cache, cache = lm(lm.embed(ids[:, n - 1 : n]), cache=cache)  # the new token only
    keys = new_cache.blocks[-1][0].k[0, 0, :, 0]  # k: (B, h, n, d_head)
    print(f"step {n}: keys", "".join(f"{number:8.3f}" for number in keys.tolist()))
hook.remove()
print("keys computed without a cache:", n_keys[::2], " with a cache:", n_keys[1::2])
difference = (with_cache[0, -1] - without_cache[0, -1]).abs().max()
print(f"logits after step 4: largest {without_cache[0, -1].abs().max():.1f}, largest difference {difference:.7f}")

# %% [markdown]
# Each column has the same number in all steps, because the key of token 1 does not depend on token 2. So each key is computed
# once and kept in the cache. `lm` returns a cache, and it accepts the cache of an earlier call. The logits agree.
#
# ## Images are computed once
#
# The whole Flamingo works in the same way. `prefill` processes a prompt. `decode_step` processes one more token. The cache
# also holds the keys and values of the images, for each gated layer. Make 33 examples: 32 shots and one query.

# %%
rng, colours, shapes = Random(0), ("red", "blue", "green", "yellow"), ("circle", "square", "star", "heart")
scenes = [Scene("things", colour=rng.choice(colours), shape=rng.choice(shapes), count=1, place="left") for _ in range(33)]
examples = [(draw(scene, rng), caption(scene)) for scene in scenes]
query = examples[32][0]


def prompt(shots: int) -> list:
    """Image, text, EOC for each shot, and then the query."""
    pieces = []
    for image, text in examples[:shots]:
        pieces += [image, f"Output: {text}", EOC]
    return [*pieces, query, "Output:"]


for shots in (0, 4, 32):
    _, cache = prefill(model, flamingo.batch(prompt(shots)))
    text_keys, image_keys = cache.lm.blocks[0][0].k, cache.media_kv["0"][0]  # block 0, and the gated layer before it
    print(f"{shots:2} shots: keys of text {tuple(text_keys.shape)}, keys of images {tuple(image_keys.shape)}")

# %% [markdown]
# The axes are (B, heads, tokens, channels). The text grows with the shots. But the cache keeps the visual tokens of **one**
# image: new text attends to the last image only. What earlier images contributed is in the keys and values of the text.
#
# ## Figure 1: time per token
#
# Without a cache each new token costs a whole prefill. Measure three ways:
#
# - no cache: the images and the text are computed again for each token;
# - no cache, but the vision encoder's features are stored: a prompt may contain features instead of pixels;
# - with a cache: one `decode_step`.

# %%
def milliseconds(function, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
    return 1000 * (time.perf_counter() - start)


torch.set_num_threads(1)  # with one thread, times vary less
all_shots, work = (0, 4, 8, 16, 32), {}  # work: (way, shots) -> function and arguments
for shots in all_shots:
    batch = flamingo.batch(prompt(shots))  # batch.media: (1, N, 1, C, H, W)
    features = model.vision(batch.media[0, :, 0])[None, :, None]  # (1, N, 1, S, D_v)
    logits, cache = prefill(model, batch)
    work["no cache", shots] = (prefill, model, batch)
    work["no cache, features stored", shots] = (prefill, model, replace(batch, media=features))
    work["cache", shots] = (decode_step, model, logits.argmax(-1), cache)
rounds = [{case: milliseconds(*call) for case, call in work.items()} for _ in range(10)]
times = {case: median(of_round[case] for of_round in rounds[1:]) for case in work}  # the first round is a warm-up

# %% tags=["time"]
figure, ax = plt.subplots(figsize=(5.6, 3))
for way, colour in (("no cache", "#c2255c"), ("no cache, features stored", "#e8963c"), ("cache", "#2f6fb7")):
    values = [times[way, shots] for shots in all_shots]
    ax.plot(all_shots, values, "o-", color=colour, label=way)
    print(f"{way:26}", "".join(f"{value:8.1f} ms" for value in values))
ax.set(title="Time per new token", xlabel="shots in the prompt", ylabel="milliseconds", xticks=all_shots, ylim=(0, None))
ax.legend()
show(figure, "Time per new token against the number of shots, 0 to 32. Without a cache it rises steadily, with stored features "
     "more slowly. With a cache it stays almost the same.")  # fmt: skip

# %% [markdown]
# Horizontal: the number of shots. Vertical: time per new token, the median of 9 repetitions. These are times of one machine,
# and they vary from run to run. The form of the curves does not: without a cache the time grows with the prompt. With a cache
# it is almost constant for a model of this size.
#
# ## The package's code
#
# A cache is an argument and a result. It is never changed in place, so several continuations can start from the same cache.

# %%
source(decode_step, KVCache, MaskedCrossAttention.project_media)

# %% [markdown]
# ## Exercise, part 1: cache the keys and values of images
#
# `xattn` is a `MaskedCrossAttention`. Write `my_cross_attend`. It processes the tokens of `y` one after the other, as in
# generation:
#
# - Token `l` belongs to image number `phi[l]`. The numbers begin with 1.
# - When the first token of an image comes, call `xattn.project_media` for this image alone: `visual[:, n - 1 : n]`. Keep the
#   result.
# - Then call `xattn(token, keys_and_values, torch.tensor([[1]]), R)` with a token of shape `(1, 1, D)`. The `1` means: the
#   token belongs to image 1 of these keys and values, which hold only one image.


# %% tags=["exercise"]
def my_cross_attend(xattn, visual: torch.Tensor, y: torch.Tensor, phi: list[int]) -> torch.Tensor:
    """visual (1, N, R, D_v), y (1, L, D), phi: L numbers from 1 to N -> (1, L, D)."""
    ...  # your code


# %% tags=["check"]
torch.manual_seed(0)
xattn, R = model.xattn_layers["0"].xattn, model.config.resampler.n_latents
visual, y = torch.randn(1, 2, R, model.config.resampler.d), torch.randn(1, 5, model.config.lm.d)  # 2 images, 5 tokens
expected = xattn(y, xattn.project_media(visual), torch.tensor([[1, 1, 1, 2, 2]]), R)  # all tokens at once
calls = []  # one entry per call of project_media, which uses the layer to_kv
xattn.to_kv.register_forward_hook(lambda *_: calls.append(1))
check("five tokens, two images", lambda: my_cross_attend(xattn, visual, y, [1, 1, 1, 2, 2]), expected,
      "process y[:, l : l + 1] for each l, and join the results with torch.cat(..., dim=1)")  # fmt: skip


def count(phi: list[int]) -> int:
    """How often your function calls `project_media`."""
    calls.clear()
    my_cross_attend(xattn, visual, y, phi)
    return len(calls)


hint = "keep the result in a dictionary: image number -> keys and values"
check("calls of project_media for two images", lambda: count([1, 1, 1, 2, 2]), 2, hint)
check("calls of project_media for image 2 alone", lambda: count([2, 2, 2, 2, 2]), 1, hint)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_cross_attend(xattn, visual: torch.Tensor, y: torch.Tensor, phi: list[int]) -> torch.Tensor:
#     """The keys and values of an image do not depend on the text, so they are computed at its first token only."""
#     R, cached, out = visual.shape[2], {}, []
#     for l, n in enumerate(phi):
#         if n not in cached:
#             cached[n] = xattn.project_media(visual[:, n - 1 : n])  # image n alone
#         out.append(xattn(y[:, l : l + 1], cached[n], torch.tensor([[1]]), R))  # (1, 1, D)
#     return torch.cat(out, dim=1)
# ```
#
# </details>
#
# ## Faster functions with equal results
#
# Two functions of the core are marked with `@has_fast_version`. They have a second version in
# [fast.py](../minflamingo/fast.py), which runs by default. `fast.disabled()` runs the plain code, which is easier to read.
#
# - `KVCache.repeat` (above) is used when many queries, or the beams of a beam search, follow the same prompt. The plain
#   version copies the cache for each query. The fast version stores the prompt once.
# - `attend_to_media`: the plain version computes the scores of each token with the visual tokens of **all** images, and then
#   masks most of them. These are $L \cdot N R$ scores. The fast version sorts the tokens into blocks, one image per block, and
#   computes at most about $2 L R$ scores (blocks have a fixed size, so some of their places are empty). With few images,
#   sorting would cost more than it saves, so it computes all scores there.
#
# ## Figure 2: plain against fast
#
# 16 tokens per image, 64 visual tokens per image, 2 to 64 images. A result with 64-bit numbers shows the error of both
# versions.

# %%
torch.manual_seed(0)
n_images, ratios, errors = (2, 4, 8, 16, 32, 64), [], {"plain": [], "fast": []}
for N in n_images:
    phi = torch.arange(1, N + 1).repeat_interleave(16)[None]  # (1, L): 16 tokens after each image
    q, k, v = (torch.randn(1, 8, n, 64) for n in (16 * N, 64 * N, 64 * N))  # (B, h, tokens, d_head)
    exact = attend_to_media.plain(q.double(), k.double(), v.double(), phi, 64)
    quick, slow = [], []
    for _ in range(11):
        quick.append(milliseconds(attend_to_media, q, k, v, phi, 64))
        with fast.disabled():
            slow.append(milliseconds(attend_to_media, q, k, v, phi, 64))
    ratios.append(min(slow) / min(quick))  # the shortest times: other programs only add time
    errors["fast"].append((attend_to_media(q, k, v, phi, 64) - exact).abs().max())
    errors["plain"].append((attend_to_media.plain(q, k, v, phi, 64) - exact).abs().max())

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(7.6, 2.9), layout="constrained")
positions = torch.arange(len(n_images))
left.plot(positions, ratios, "o-", color="#2f6fb7")
left.axhline(1, color="grey", linestyle="--", linewidth=1)
left.set(title="Time of plain / time of fast", xlabel="images", ylabel="ratio", ylim=(0, None))
for shift, (version, values), colour in zip((-0.2, 0.2), errors.items(), ("#b8c2cf", "#2f6fb7")):
    right.bar(positions + shift, [1e6 * float(value) for value in values], 0.38, color=colour, label=version)
right.set(title="Largest error", xlabel="images", ylabel="millionths (1e-6)", ylim=(0, 2.5))
right.legend(ncols=2)
for ax in (left, right):
    ax.set_xticks(positions, n_images)
show(figure, "Left: time of the plain version divided by time of the fast one: about 1 for few images, largest for 64. "
     "Right: the largest error of both versions is about one millionth for all numbers of images.")  # fmt: skip

# %% [markdown]
# Left: above the dashed line the fast version is faster. It gains little or nothing with few images, and much with many. Each
# ratio compares the shortest of 11 times, because these calls are short. The ratios vary from run to run, too. Right: the
# largest error of both versions against the 64-bit result. It is about 0.000001 for both: a rounding error. The bars are nearly
# equal, because both compute the same sums; masked scores contribute exactly 0.
#
# ## Real: a published layout
#
# A published model is a file of tensors with names. Other authors choose other names, and sometimes other shapes. GPT-2 has
# all three matrices for queries, keys and values in one (`c_attn`), and it stores each matrix as (inputs, outputs). PyTorch's
# `Linear` stores (outputs, inputs). The values in this cell are random and the sizes are small. Names and layout are those of
# the published file.

# %%
from minflamingo.pretrained import from_state_dict
from minflamingo.pretrained.language_models import GPT2_TABLE
from minflamingo.pretrained.tables import fill, thirds, transposed

d, h, n_layers, V = 32, 4, 2, 50
config = {"model_type": "gpt2", "vocab_size": V, "n_embd": d, "n_layer": n_layers, "n_head": h, "n_positions": 40}
shapes_of_block = {
    "ln_1.weight": (d,), "ln_1.bias": (d,), "attn.c_attn.weight": (d, 3 * d), "attn.c_attn.bias": (3 * d,),
    "attn.c_proj.weight": (d, d), "attn.c_proj.bias": (d,), "ln_2.weight": (d,), "ln_2.bias": (d,),
    "mlp.c_fc.weight": (d, 4 * d), "mlp.c_fc.bias": (4 * d,), "mlp.c_proj.weight": (4 * d, d), "mlp.c_proj.bias": (d,),
}  # fmt: skip
torch.manual_seed(0)
state = {"wte.weight": torch.randn(V, d), "wpe.weight": torch.randn(40, d)}  # tokens and positions
state |= {"ln_f.weight": torch.randn(d), "ln_f.bias": torch.randn(d)}
state |= {f"h.{i}.{name}": 0.3 * torch.randn(shape) for i in range(n_layers) for name, shape in shapes_of_block.items()}
print(len(state), "tensors:", ", ".join(list(state)[:8]), "...")

# %% [markdown]
# The package has one table per family: our name, and the published name. `*` is the number of a layer. Some tensors also need a
# function, which transposes or splits them. For example, the function of `to_q` transposes `c_attn` and takes the first third.
# There is no `lm_head` in the file: then the output layer shares the table of token embeddings, `wte`.

# %%
for ours, entry in GPT2_TABLE.items():
    published, note = (entry, "") if isinstance(entry, str) else (entry[0], "and a function")
    print(f"{ours:24} {published:16} {note}")
source(transposed, thirds)

# %% [markdown]
# `from_state_dict` uses this table. It makes an `LM`, the same class that the toy model has. But are the results right? Write
# the computation of GPT-2 **directly with the published tensors**, without our classes. Here is one block:


# %%
from torch.nn.functional import gelu, layer_norm


def gpt2_block(x: torch.Tensor, w: dict[str, torch.Tensor]) -> torch.Tensor:
    """x (L, d) -> (L, d). `w` has the published names. `y @ weight` fits its layout (inputs, outputs)."""
    y = layer_norm(x, (d,), w["ln_1.weight"], w["ln_1.bias"])
    q, k, v = (y @ w["attn.c_attn.weight"] + w["attn.c_attn.bias"]).chunk(3, dim=1)  # (L, d) each
    q, k, v = (t.unflatten(1, (h, d // h)).transpose(0, 1) for t in (q, k, v))  # (h, L, d/h) each
    later = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)  # (L, L): is the key after the query?
    scores = (q @ k.transpose(1, 2) / (d // h) ** 0.5).masked_fill(later, -torch.inf)  # (h, L, L)
    y = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)  # (L, d)
    x = x + y @ w["attn.c_proj.weight"] + w["attn.c_proj.bias"]
    y = layer_norm(x, (d,), w["ln_2.weight"], w["ln_2.bias"])
    y = gelu(y @ w["mlp.c_fc.weight"] + w["mlp.c_fc.bias"], approximate="tanh")  # (L, 4d)
    return x + y @ w["mlp.c_proj.weight"] + w["mlp.c_proj.bias"]


# %%
def gpt2(ids: torch.Tensor) -> torch.Tensor:
    """ids (L,) -> logits (L, V)."""
    x = state["wte.weight"][ids] + state["wpe.weight"][: len(ids)]
    for i in range(n_layers):
        x = gpt2_block(x, {name: state[f"h.{i}.{name}"] for name in shapes_of_block})
    x = layer_norm(x, (d,), state["ln_f.weight"], state["ln_f.bias"])
    return x @ state["wte.weight"].T  # the output layer is the table of token embeddings


ids = torch.randint(0, V, (20,))
expected_logits = gpt2(ids)  # (L, V)
small_gpt2 = from_state_dict(config, state)
our_logits = small_gpt2(small_gpt2.embed(ids[None]))[0][0]  # (L, V)
print(type(small_gpt2).__name__, "with", sum(p.numel() for p in small_gpt2.parameters()), "parameters")
print(f"largest logit {expected_logits.abs().max():.1f}, largest difference {(our_logits - expected_logits).abs().max():.7f}")

# %% [markdown]
# ## Figure 3: our logits against GPT-2 written out

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(7.6, 3), layout="constrained")
left.plot(expected_logits.flatten(), our_logits.flatten(), ".", markersize=3, color="#2f6fb7")
left.set(title="1,000 logits", xlabel="written out", ylabel="our class")
image = right.imshow((our_logits - expected_logits).abs(), cmap="magma_r", vmin=0, aspect="auto", interpolation="nearest")
right.set(title="Absolute difference", xlabel="token of the vocabulary", ylabel="position", yticks=range(0, 20, 5))
right.grid(False)
figure.colorbar(image, ax=right)
show(figure, "Left: our logits against the written-out logits; all points are on the diagonal. Right: a heat map of their "
     "absolute differences for 20 positions and 50 tokens; the colour bar ends at some millionths.")  # fmt: skip

# %% [markdown]
# Left: each point is one logit. Horizontal is the written-out computation, vertical is our class. All points are on the
# diagonal. Right: the difference of each logit. Read the numbers at the colour bar: these are rounding errors, and they are
# small for all positions and tokens. This tests our table and our class. It needs no trained weights.
#
# ## Exercise, part 2: map one layer
#
# Write `my_attention_weights`. The input has the tensors of one block with GPT-2's names. The result is the state dict of our
# `SelfAttention`. It has eight entries: `to_q`, `to_k`, `to_v` and `to_out`, each with `.weight` and `.bias`. You need
# `attn.c_attn` and `attn.c_proj`. Use only `.T`, `.chunk(3)` and a dictionary.


# %% tags=["exercise"]
def my_attention_weights(w: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Published names and shapes -> our names and shapes."""
    ...  # your code


# %% tags=["check"]
block = {name: state[f"h.0.{name}"] for name in shapes_of_block}
shapes_of_ours = {name: tuple(weight.shape) for name, weight in small_gpt2.blocks[0].attn.state_dict().items()}


def my_logits() -> torch.Tensor:
    mine = from_state_dict(config, state)
    mine.blocks[0].attn.load_state_dict(my_attention_weights(block) or {})
    return mine(mine.embed(ids[None]))[0][0]


check("the names", lambda: sorted(my_attention_weights(block) or {}), sorted(shapes_of_ours), "eight, such as to_q.weight")
check("the shapes", lambda: {n: tuple(w.shape) for n, w in sorted((my_attention_weights(block) or {}).items())},
      dict(sorted(shapes_of_ours.items())), "transpose c_attn.weight first, then .chunk(3) splits its rows")  # fmt: skip
check("the logits", my_logits, expected_logits, "c_proj.weight is square: a wrong orientation has the right shape")

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_attention_weights(w: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
#     """Matrices are transposed. Biases have one axis, so there is nothing to transpose."""
#     q, k, v = w["attn.c_attn.weight"].T.chunk(3)  # (3d, d) -> three of (d, d)
#     q_bias, k_bias, v_bias = w["attn.c_attn.bias"].chunk(3)
#     return {
#         "to_q.weight": q, "to_k.weight": k, "to_v.weight": v, "to_out.weight": w["attn.c_proj.weight"].T,
#         "to_q.bias": q_bias, "to_k.bias": k_bias, "to_v.bias": v_bias, "to_out.bias": w["attn.c_proj.bias"],
#     }
# ```
#
# </details>
#
# ## Break it: forget one transposition
#
# Remove the function `transposed` from one row of the table. `fill` is the function that fills a model with the tensors of a
# file. Try it with two matrices: `mlp.c_fc` of shape (32, 128), and `attn.c_proj` of shape (32, 32).

# %%
rows = {"blocks.*.mlp.up": "h.*.mlp.c_fc", "blocks.*.attn.to_out": "h.*.attn.c_proj"}  # both without the function
for ours, published in rows.items():
    with torch.device("meta"):  # shapes without memory; `fill` brings the values
        broken = LM(small_gpt2.config)
    try:
        fill(broken, state, GPT2_TABLE | {ours: published}, "the state dict")
    except ValueError as error:
        print(f"{published}: ValueError: {error}\n")
broken_logits = broken(broken.embed(ids[None]))[0][0]  # the second one was filled without an error
for name, logits in (("right", our_logits), ("one transposition forgotten", broken_logits)):
    same = (logits.argmax(-1) == expected_logits.argmax(-1)).float().mean()
    print(f"{name:28} difference {(logits - expected_logits).abs().max():.6f}, same best token {100 * same:.0f}%")

# %% [markdown]
# The first mistake is an error at once, because loading is strict: each shape must fit. The second one gives **no error**. The
# logits are wrong, but they are finite numbers of the usual size. With real weights the model would still write some text.
# **How you would notice**: compare logits with another implementation, as above. The package's tests do this with small random
# weights for each family. Random weights are enough, also for biases and norms. (PyTorch starts them at 0 and 1. With these
# values a forgotten bias or norm would change nothing.)
#
# ## Break it: a cache that is not updated
#
# `decode_step` returns a **new** cache. What if a loop forgets it and continues with the old one? Take 20 images. Give the
# model the words of the right caption, one by one, and compare the logits.

# %%
differences, same = [[], []], [[], []]  # index 0: the first token of each caption, index 1: the later ones
for image, text in examples[:20]:
    _, cache = prefill(model, flamingo.batch([image, "Output:"]))
    old_cache = cache  # never replaced
    for l, token in enumerate(tokenizer.encode(f" {text}")):
        logits, cache = decode_step(model, torch.tensor([token]), cache)
        wrong, _ = decode_step(model, torch.tensor([token]), old_cache)
        differences[l > 0].append((logits - wrong).abs().max())
        same[l > 0].append(float(logits.argmax() == wrong.argmax()))
for part, name in enumerate(("first token", "later tokens")):
    mean_difference, percent = torch.tensor(differences[part]).mean(), 100 * torch.tensor(same[part]).mean()
    print(f"{name:13} mean of the largest difference {mean_difference:.6f}, same best token {percent:.0f}%")

# %% [markdown]
# The first token is right, because the old cache is still correct there. For a later token, the old cache lacks the earlier
# tokens of the caption. The model continues as if they did not exist. **How you would notice**: compare with a computation
# without a cache, and for more than one new token. A test with one token passes.
#
# ## Real sizes, and a GPU
#
# The same classes run OpenFlamingo and IDEFICS. There are tables for their names, too, and for those of their vision encoder
# (CLIP) and of six families of language models. `load` downloads the files of a published model, so this is not run here:
#
# ```python
# # pip install '.[real]'
# flamingo = minflamingo.load("openflamingo-3b", device="cuda", dtype=torch.bfloat16)
# flamingo.complete([first_image, "Output: a cat", EOC, second_image, "Output:"])
# ```
#
# `device="cuda"` puts any model on a GPU, also `minflamingo.load("tiny", device="cuda")`. `complete` moves the prompt there.
# For times on your own machine run `python -m minflamingo bench`: it prints the times of fast and plain versions and their
# ratios.
#
# ## One line to remember
#
# **Faster code and loaded weights must give the same numbers as the plain computation: compute both and print the largest
# difference.**
#
# This is the last notebook. Next: train your own model with [train_tiny.py](../train_tiny.py), or read the notebooks again from
# [00 What Flamingo does](00_what_flamingo_does.ipynb).
# In the code: [generate.py](../minflamingo/generate.py), [fast.py](../minflamingo/fast.py), the tables in
# [pretrained/](../minflamingo/pretrained): [language_models.py](../minflamingo/pretrained/language_models.py),
# [clip.py](../minflamingo/pretrained/clip.py), [openflamingo.py](../minflamingo/pretrained/openflamingo.py),
# [idefics.py](../minflamingo/pretrained/idefics.py).
# In the paper: section 2 for the model, section 2.3 for one image per token, section 3 for 32 shots.
