# %% [markdown]
# # 06 The tanh gate starts as the identity
#
# **Question: how can new layers with random weights be inserted into a trained language model without disturbing it?**
#
# About 45 minutes. You know: the frozen language model (LM) of [05](05_language_model.ipynb), attention, gradients.
# Before: [05 Language model](05_language_model.ipynb). After: [07 One image per token](07_per_image_attention.ipynb).

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
from helpers import check, show, source
from matplotlib import pyplot as plt
from tqdm import tqdm

import minflamingo
from data_toy.media_pool import MediaPool, encode_media_pool, random_scene, render
from data_toy.shot_rows import caption_row, to_sample
from data_toy.text_corpus import corpus_text
from minflamingo import Batch, Flamingo, collate
from minflamingo.data.sample import pack
from minflamingo.gated_xattn import GatedCrossAttentionDense
from minflamingo.lm import next_token_loss

flamingo = minflamingo.load("tiny")
ready, tokenizer = flamingo.model, flamingo.tokenizer
lm = ready.lm  # frozen

# %% [markdown]
# ## What the paper says
#
# A new layer is inserted before a block of the frozen LM. The paper calls it GATED XATTN-DENSE (section 2.2, figure 4):
#
# $$y \leftarrow y + \tanh(\alpha_{xattn}) \cdot \text{attention}(y, \text{visual tokens})$$
# $$y \leftarrow y + \tanh(\alpha_{dense}) \cdot \text{feed-forward}(y)$$
# $$y \leftarrow \text{frozen LM block}(y)$$
#
# - $\alpha_{xattn}$ and $\alpha_{dense}$ are trained numbers, two for each layer. $\tanh(\alpha)$ is the **gate**. ("Dense" is
#   the paper's word for the feed-forward block.)
# - Both start at 0, and $\tanh(0) = 0$. So at the start a new layer changes nothing: $y \leftarrow y$.
# - The output of the whole model is then exactly that of the LM. Training begins with a model that already knows language.
# - Without the gates, the paper's results are worse (table 3).
#
# ## By hand: one token
#
# One token is $y = (1, 2)$. A new layer has random weights, and its attention returns the large output $a = (10, -10)$.
#
# | $\alpha$ | $\tanh(\alpha)$ | $y + \tanh(\alpha) \cdot a$ |
# |---|---|---|
# | 0 | 0 | (1, 2) |
# | 0.5 | 0.462 | (5.621, -2.621) |
# | large | 1 | (11, -8) |
#
# At $\alpha = 0$ the output of the attention does not matter. How can such a layer be trained? Let $g$ be the gradient of the
# loss with respect to the result; it has the shape of $y$. The chain rule gives two gradients:
#
# $$\frac{\partial \mathcal L}{\partial \alpha} = \tanh'(\alpha) \, (a \cdot g) \qquad
# \frac{\partial \mathcal L}{\partial a} = \tanh(\alpha) \, g$$
#
# At $\alpha = 0$ we have $\tanh'(0) = 1$ and $\tanh(0) = 0$. So $\alpha$ **has** a gradient and the attention has none. The
# gate must open first. With $g = (0.1, 0.2)$: $\partial \mathcal L / \partial \alpha = 10 \cdot 0.1 - 10 \cdot 0.2 = -1$. This
# is negative, so a step of gradient descent makes $\alpha$ larger, and the gate opens.

# %%
y, g = torch.tensor([1.0, 2.0]), torch.tensor([0.1, 0.2])
for value in (0.0, 0.5):
    a, alpha = torch.tensor([10.0, -10.0], requires_grad=True), torch.tensor(value, requires_grad=True)
    result = y + alpha.tanh() * a
    result.backward(g)  # g is the gradient that arrives from the layers after this one
    numbers = [round(x, 3) for x in result.tolist()]
    print(f"alpha {value}: result {numbers}, gradient of alpha {alpha.grad:.3f}, of a {[round(x, 3) for x in a.grad.tolist()]}")

# %% [markdown]
# ## A new Flamingo around the ready vision encoder and LM
#
# The vision encoder and the LM come from the ready model and are frozen. The resampler and the gated layers are **new**, with
# random weights. `<image>` is a token that the LM does not know, so Flamingo has an embedding for it, which is trained too.
# Here it comes from the ready model and is frozen, because in this notebook we study the gates alone.
#
# The data are images of two things with a caption, such as " a red circle left of a blue star". They are encoded once. Only the
# tokens of the caption and `<EOC>` carry loss.


# %%
def new_flamingo(alpha: float = 0.0) -> Flamingo:
    """Frozen parts of the ready model, new layers between them, all gates at tanh(alpha)."""
    torch.manual_seed(0)
    model = Flamingo(ready.config, vision=ready.vision, lm=ready.lm)
    model.added_embed.load_state_dict(ready.added_embed.state_dict())
    model.added_embed.requires_grad_(False)
    set_gates(model, alpha)
    return model


@torch.no_grad()
def set_gates(model: Flamingo, alpha: float, which: tuple = ("alpha_xattn", "alpha_dense")) -> None:
    for layer in model.xattn_layers.values():
        for name in which:
            getattr(layer, name).fill_(alpha)


# %%
rng = Random(0)
scenes = [random_scene(rng, "pair") for _ in range(400)]
pool = encode_media_pool(ready, MediaPool(scenes, [render(scene, rng) for scene in scenes]))


def draw_batch(rng: Random, size: int) -> Batch:
    rows = [caption_row(pool, rng, 1, kinds=("pair",)) for _ in range(size)]  # one image with its caption each
    return collate([to_sample(row, pool) for row in rows], tokenizer)


batch = draw_batch(Random("test"), 64)
print("ids:", tuple(batch.ids.shape), " media:", tuple(batch.media.shape))
print("one caption, without its special tokens:", tokenizer.decode(batch.ids[0]))

# %% [markdown]
# With all gates at 0, the logits must be those of the LM for the same embeddings. This must hold exactly, not only
# approximately.

# %%
model = new_flamingo()
with torch.no_grad():
    lm_logits, _ = lm(model.embed(batch.ids), batch.attention_mask)  # (B, L, V)
    logits, _ = model(batch)
print("largest difference with gates at 0:", (logits - lm_logits).abs().max().item())

# %% [markdown]
# ## Figure 1: how far does a random layer move the output?
#
# Now we set all gates of the untrained model to the same $\alpha$, from 0 to 3. How far is its prediction from that of the
# LM? We measure the Kullback-Leibler divergence (KL) between the two distributions of the next token. It is 0 if they are
# equal.

# %%
log_p = lm_logits.log_softmax(-1)[batch.attention_mask]  # (tokens, V)


@torch.no_grad()
def divergence(model: Flamingo) -> float:
    """KL(LM || model), the mean over all tokens."""
    log_q = model(batch)[0].log_softmax(-1)[batch.attention_mask]
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()


alphas, curves = torch.linspace(0, 3, 13), {}
xattn, dense = "alpha_xattn", "alpha_dense"
for label, which in {"both": (xattn, dense), "only the attention": (xattn,), "only the feed-forward": (dense,)}.items():
    curves[label] = []
    for alpha in alphas:
        set_gates(model, 0.0)
        set_gates(model, alpha, which)
        curves[label].append(divergence(model))

# %%
figure, (left, ax) = plt.subplots(1, 2, figsize=(8.5, 3.2), layout="constrained")
left.plot(alphas, alphas.tanh(), color="#1f2733")
left.plot([0, 1], [0, 1], color="#5b6676", linestyle="--", linewidth=1)  # slope 1
left.set(title="The gate", xlabel="alpha", ylabel="tanh(alpha)")
for (label, curve), colour in zip(curves.items(), ("#c2255c", "#2f5fd6", "#e08a1e")):
    ax.plot(alphas, curve, "o-", markersize=3, color=colour, label=label)
ax.set(title="Distance from the LM", xlabel="alpha of the open gates", ylabel="KL per token", ylim=(0, None))
ax.legend(title="which gates are open")
show(figure, "Left: tanh rises from 0 with slope 1 and flattens near 1. Right: three curves of the KL divergence. All begin at "
     "exactly 0 and rise steeply until alpha is about 1. The curve with all gates open is the highest.")  # fmt: skip
print("KL at alpha 0:", curves["both"][0], "  at alpha 3:", round(curves["both"][-1], 2))

# %% [markdown]
# - Left: near 0, $\tanh$ has the slope 1 (dashed). It never goes above 1, so a gate cannot grow without limit.
# - Right: at $\alpha = 0$ the distance is exactly 0. Small gates have small effects. Open gates with random layers change the
#   prediction completely. The feed-forward block alone is enough for that, and it acts on every token, with or without an
#   image.
#
# ## Only the gates have a gradient at first
#
# By hand we found: at $\alpha = 0$ only $\alpha$ has a gradient. Here is the whole model. We print the norm of the gradient
# of each part at the start, and again after one step of the optimizer.


# %%
parts = {  # name: how the names of its parameters begin, and what they contain
    "gates": ("xattn_layers.", ".alpha_"), "attention": ("xattn_layers.", ".xattn."),
    "feed-forward": ("xattn_layers.", ".ff"), "resampler": ("resampler.", ""),
}  # fmt: skip


def gradient_norm(model: Flamingo, begin: str, contain: str) -> float:
    """The norm of the gradient of all parameters of this part."""
    chosen = [p for name, p in model.trainable_parameters() if name.startswith(begin) and contain in name]
    return torch.cat([p.grad.flatten() for p in chosen]).norm().item()


model = new_flamingo()
optimizer = torch.optim.AdamW([p for _, p in model.trainable_parameters()], lr=3e-3)
for step in range(2):
    optimizer.zero_grad()
    model.loss(batch).backward()
    norms = {part: gradient_norm(model, *names) for part, names in parts.items()}
    print(f"step {step}:", ", ".join(f"{part} {norm:.1e}" for part, norm in norms.items()))
    optimizer.step()

# %% [markdown]
# At the start, attention, feed-forward and resampler have a gradient of exactly 0. After one step the gates are a little open,
# and all parts have gradients. The other parts learn little until the gates open. So [train_tiny.py](../train_tiny.py) gives
# the gates three times the learning rate.
#
# ## Training: closed gates and open gates
#
# We train two models in the same way for 60 steps on the same captions. In one model all $\alpha$ start at 0, in the other
# at 1. Every ten steps we also measure the loss on **text alone**: text of the LM's corpus, without any image. No model is
# trained on it here.

# %%
rng = Random("text")
text_ids, text_labels = pack(lambda: corpus_text(rng, 12), rows=16, length=64, tokenizer=tokenizer)
text_batch = Batch(text_ids, text_labels, attention_mask=torch.ones_like(text_ids, dtype=torch.bool))  # media=None


# %%
def train(model: Flamingo, name: str) -> tuple[list[float], list[float]]:
    """The losses of the captions in each step, and of text alone in every tenth step."""
    parameters, rng, losses, text_losses = [p for _, p in model.trainable_parameters()], Random(0), [], []
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    for step in tqdm(range(61), desc=name):
        if step % 10 == 0:
            text_losses.append(model.loss(text_batch).item())
        loss = model.loss(draw_batch(rng, 32))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses, text_losses


# %%
closed, opened = new_flamingo(alpha=0.0), new_flamingo(alpha=1.0)
runs = {"gates start at 0": train(closed, "closed"), "gates start open": train(opened, "open")}

# %%
lm_on_text = lm.loss(text_ids, text_labels).item()
figure, (left, ax) = plt.subplots(1, 2, figsize=(8.5, 3.2), layout="constrained")
for (label, (losses, text_losses)), colour in zip(runs.items(), ("#2f5fd6", "#c2255c")):
    left.plot(losses, color=colour, label=label)
    ax.plot(range(0, 61, 10), text_losses, "o-", markersize=3, color=colour, label=label)
ax.axhline(lm_on_text, color="#5b6676", linestyle="--", label="the LM alone")
left.axhline(next_token_loss(lm_logits, batch.labels).item(), color="#5b6676", linestyle="--", label="the LM alone")
left.set(title="Captions (trained)", xlabel="step", ylabel="loss per token", ylim=(0, None))
ax.set(title="Text alone (not trained)", xlabel="step", ylim=(0, None))
left.legend()
ax.legend()
show(figure, "Left: the loss of captions. With open gates it starts several times higher, and then both fall together. "
     "Right: text alone. With closed gates the loss stays near that of the LM. With open gates it is far higher.")  # fmt: skip
for label, (losses, text_losses) in runs.items():
    print(f"{label}: captions {losses[0]:.2f} -> {losses[-1]:.2f}, text alone {text_losses[0]:.2f} -> {text_losses[-1]:.2f}")
print(f"the LM on text alone: {lm_on_text:.2f}")

# %% [markdown]
# - Left: with closed gates the first loss is that of the LM (the dashed line). With open gates it is much higher, but after
#   some steps both are similar. So the captions do not show a problem.
# - Right: the problem. Text alone has no image, so only the feed-forward blocks of the new layers act on it. With open gates
#   they disturb the LM from the first step, and training on captions makes this worse. The LM's weights are frozen, but its
#   blocks receive inputs that they cannot use. With closed gates the loss on text rises only slowly.
#
# ## Figure 2: the gates of the ready model
#
# The ready model was trained much longer. How far are its gates open? The sign of $\alpha$ has no meaning, because the layer
# could change the sign of its output weights instead. So we draw $|\tanh(\alpha)|$. A small gate can still be important if
# the output of its layer is large. So we also close each gate alone and measure the loss of the captions.


# %%
@torch.no_grad()
def loss_if_closed(layer: GatedCrossAttentionDense, name: str) -> float:
    """The ready model's loss of captions if this gate is 0. The gate is restored."""
    alpha = getattr(layer, name)
    before = alpha.clone()
    alpha.zero_()
    loss = ready.loss(batch).item()
    alpha.copy_(before)
    return loss


gates = [(i, name) for i in ready.xattn_layers for name in ("alpha_xattn", "alpha_dense")]
sizes = [getattr(ready.xattn_layers[i], name).tanh().abs().item() for i, name in gates]
closed_losses = [loss_if_closed(ready.xattn_layers[i], name) for i, name in gates]

# %%
figure, (left, ax) = plt.subplots(1, 2, figsize=(8.5, 3.2), layout="constrained")
labels = [f"layer {int(i) + 1}\n{name.removeprefix('alpha_')}" for i, name in gates]
colours = ["#c2255c" if name == "alpha_xattn" else "#e08a1e" for _, name in gates]
left.bar(labels, sizes, color=colours)
left.set(title="Gates of the ready model", ylabel="|tanh(alpha)|", ylim=(0, 1))
ax.bar(labels, closed_losses, color=colours)
ax.axhline(ready.loss(batch).item(), color="#5b6676", linestyle="--", label="all gates as trained")
ax.set(title="Loss of captions if one gate is closed", ylabel="loss per token", ylim=(0, 1.2 * max(closed_losses)))
ax.legend(loc="upper right")
show(figure, "Left: one bar for each gate, between 0 and 1. Right: the loss of captions if this gate alone is closed. A dashed "
     "line shows the unchanged model. Most bars are clearly above the line.")  # fmt: skip

# %% [markdown]
# The horizontal axes show the two gates of each layer: `xattn` is the gate of the attention, `dense` that of the
# feed-forward block. Layer 1 is `xattn_layers["0"]`. Most gates opened clearly during training. Closing one of them makes the
# captions worse, in most cases much worse. Compare the bars at the left and at the right: a small gate can be important,
# because the output of its layer may be large. So the size of a gate alone does not say how important it is.
#
# ## Exercise: the gated block
#
# Write the forward pass of the layer. `layer` has what you need:
#
# - `layer.xattn(y, media_kv, phi, n_latents)`: the cross-attention, (B, L, D);
# - `layer.ff` and `layer.ff_norm`: the feed-forward block, and the norm before it;
# - `layer.alpha_xattn` and `layer.alpha_dense`: the two numbers, before the tanh.
#
# Three inputs are only passed on to `layer.xattn`: `media_kv`, the keys and values of the visual tokens; `phi`, the number of
# the image that each token belongs to ([07](07_per_image_attention.ipynb)); and `n_latents`, the number of visual tokens per
# image. `media_kv` is None if there is no image at all. Then leave out the cross-attention.


# %% tags=["exercise"]
def my_block(layer, y: torch.Tensor, media_kv, phi: torch.Tensor, n_latents: int) -> torch.Tensor:
    """GATED XATTN-DENSE: y (B, L, D) -> y (B, L, D)."""
    ...  # your code


# %% [markdown]
# The check puts your function into the whole model, in place of the package's `forward`.


# %%
@torch.no_grad()
def logits_with(block, model: Flamingo, batch: Batch) -> torch.Tensor:
    """The logits of `model`, with `block` as the forward pass of its gated layers."""

    def forward(*inputs):
        y = block(*inputs)
        if y is None:
            raise ValueError("my_block returned nothing")
        return y

    package = GatedCrossAttentionDense.forward
    GatedCrossAttentionDense.forward = forward
    try:
        return model(batch)[0]
    finally:
        GatedCrossAttentionDense.forward = package  # also after an error


# %% tags=["check"]
torch.manual_seed(0)
tokens, phi = torch.randn(1, 3, ready.config.lm.d), torch.zeros(1, 3, dtype=torch.long)
layer, R = ready.xattn_layers["1"], ready.config.resampler.n_latents
ready_logits, text_logits = (logits_with(GatedCrossAttentionDense.forward, ready, b) for b in (batch, text_batch))
check("one layer, text alone", lambda: my_block(layer, tokens, None, phi, R), layer(tokens, None, phi, R),
      "without media_kv: only y + tanh(alpha_dense) * ff(ff_norm(y))")  # fmt: skip
check("gates at 0: the logits of the LM", lambda: logits_with(my_block, new_flamingo(), batch), lm_logits,
      "both additions must be multiplied with the tanh of their alpha, and y itself must stay as it is")  # fmt: skip
check("the ready model with images", lambda: logits_with(my_block, ready, batch), ready_logits,
      "first the attention, then the feed-forward block on the new y")  # fmt: skip
check("the ready model with text alone", lambda: logits_with(my_block, ready, text_batch), text_logits,
      "the feed-forward block also acts on text without images")  # fmt: skip

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_block(layer, y: torch.Tensor, media_kv, phi: torch.Tensor, n_latents: int) -> torch.Tensor:
#     """GATED XATTN-DENSE: y (B, L, D) -> y (B, L, D)."""
#     if media_kv is not None:
#         y = y + torch.tanh(layer.alpha_xattn) * layer.xattn(y, media_kv, phi, n_latents)
#     return y + torch.tanh(layer.alpha_dense) * layer.ff(layer.ff_norm(y))
# ```
#
# </details>
#
# ## The package's code

# %%
source(GatedCrossAttentionDense)

# %% [markdown]
# ## Break it: leave out the gate
#
# A plain residual layer, as in most Transformers: `y + attention(y)`, then `y + feed_forward(y)`. We measure the perplexity
# $e^{loss}$ on text alone: 1 is perfect, and $V$ is as good as guessing among all tokens. Nothing is trained here.


# %%
def no_gate(layer, y: torch.Tensor, media_kv, phi: torch.Tensor, n_latents: int) -> torch.Tensor:
    """As in the package, but without the two gates."""
    if media_kv is not None:
        y = y + layer.xattn(y, media_kv, phi, n_latents)
    return y + layer.ff(layer.ff_norm(y))


def perplexity(logits: torch.Tensor) -> float:
    """logits (B, L, V) of the text batch."""
    return next_token_loss(logits, text_labels).exp().item()


# %%
model = new_flamingo()  # alpha = 0
with torch.no_grad():
    print(f"the LM alone:            perplexity {perplexity(lm(lm.embed(text_ids))[0]):6.2f}")
print(f"new layers with gates:    perplexity {perplexity(model(text_batch)[0]):6.2f}")
print(f"new layers without gates: perplexity {perplexity(logits_with(no_gate, model, text_batch)):6.2f}")
print(f"(guessing: {tokenizer.vocab_size})")

# %% [markdown]
# **How you would notice**: compare the very first loss of the training with the loss of the LM alone, or the
# logits at initialisation with those of the LM. With gates they are equal. The loss of captions may not show this bug: the
# model that starts with open gates (above) is similar, and its loss of captions falls.
#
# ## One line to remember
#
# **A gate of tanh(0) = 0 makes a new layer the identity. Training starts from the language model, and opens the gates step by
# step.**
#
# Next: [07 One image per token](07_per_image_attention.ipynb), which visual tokens the cross-attention may use.
# In the code: [gated_xattn.py](../minflamingo/gated_xattn.py), [flamingo.py](../minflamingo/flamingo.py), and the
# [specification](../tests/spec/test_gated_xattn.py).
# In the paper: section 2.2 and figure 4; table 3 for a model without gates.
