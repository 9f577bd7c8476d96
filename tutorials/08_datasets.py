# %% [markdown]
# # 08 Many datasets, one training step
#
# **Question: Flamingo is trained on image-text pairs, videos and documents. How do they share one training step?**
#
# About 45 minutes. You know: the sample of [01](01_prompt.ipynb), the media index $\phi$, gradients, AdamW.
# Before: [07 Each token attends to one image](07_per_image_attention.ipynb).
# After: [09 Few-shot evaluation](09_few_shot_evaluation.ipynb).

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
from functools import partial
from random import Random

import torch
import torch.nn.functional as F
from helpers import check, show, source, token_strip
from matplotlib import pyplot as plt
from tqdm import tqdm

import minflamingo
from data_toy.media_pool import draw_media_pool, encode_media_pool
from data_toy.mixture import LAMBDAS, StepData, draw_step
from data_toy.shot_rows import caption_row, task_row, to_sample, video_row
from minflamingo.data.sample import collate
from minflamingo.gated_xattn import media_index
from minflamingo.lm import next_token_loss
from minflamingo.training.batching import micro_batches
from minflamingo.training.optim import accumulate_gradients, parameter_groups

flamingo = minflamingo.load("tiny")
model, tokenizer = flamingo.model, flamingo.tokenizer

# %% [markdown]
# ## What the paper says
#
# Section 2.4 and the appendix:
#
# - There are three kinds of data: interleaved documents (M3W, from web pages), image-text pairs (ALIGN, LTIP) and video-text
#   pairs (VTP).
# - The loss of dataset $m$ is the mean negative log-likelihood of its text tokens. The loss of a step is a weighted sum:
#
# $$L = \sum_m \lambda_m L_m$$
#
# - The weights are $\lambda$ = 1.0 for M3W, 0.2 for ALIGN, 0.2 for LTIP and 0.03 for VTP.
# - Each step has one batch of **every** dataset. All gradients are **accumulated** (added up), then there is one update.
#   The alternative is **round-robin**: each update uses one dataset, and the datasets take turns. It was worse (table 3).
#
# ## By hand: four tokens with loss
#
# A batch of one dataset has two sequences. The first has 3 tokens with loss, the second has 1. Their negative log-likelihoods
# are given:
#
# | sequence | tokens with loss | mean |
# |---|---|---|
# | 1 | 1.0, 2.0, 3.0 | 2.0 |
# | 2 | 6.0 | 6.0 |
#
# The mean over tokens is not the mean of the two means:

# %%
first, second = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([6.0])
print("mean over tokens:", torch.cat([first, second]).mean().item())
print("mean of the two means:", (first.mean() / 2 + second.mean() / 2).item())
print("means weighted by their number of tokens:", (3 / 4 * first.mean() + 1 / 4 * second.mean()).item())

# %% [markdown]
# $L_m$ is the mean over **tokens with loss**. (In toy documents these are mainly the answers and their `<EOC>`. Images, prompts
# and padding carry no loss.) If a batch is cut into parts, the mean of each part needs a weight: its share of the tokens
# with loss.
#
# ## Figure 1: three kinds of samples
#
# The toy world has the same three kinds. `media` is a pool of drawn images and videos. In `features`, the frozen vision encoder
# has encoded them once, so the training does not repeat this work.

# %%
media = draw_media_pool(1000, seed=0)
features = encode_media_pool(model, media)  # the same pool, with (T, S, D) instead of pixels
rows = {
    "image-text pair": caption_row(media, Random(0), 1),
    "video-text pair": video_row(media, Random(0), 1),
    "interleaved document": task_row(media, Random(4), 3, "colour"),
}

# %%
figure, axes = plt.subplots(3, 4, figsize=(6.6, 5.6))
for line, (title, shots) in zip(axes, rows.items()):
    frames = [frame for shot in shots for frame in media.media[shot.medium]]  # (H, W, C) each
    for ax, frame in zip(line, frames):
        ax.imshow(frame)
    for ax, shot in zip(line, shots):
        ax.set_xlabel(f"{shot.prompt}{shot.answer}", fontsize=8, loc="left")
    line[0].set_title(title)
    for ax in line:
        ax.set(xticks=[], yticks=[], frame_on=bool(ax.images))
show(figure, "Three rows of images. First row: one image with its caption. Second row: the four frames of one video with one "
     "caption. Third row: three images, each with its own text that names a colour.")  # fmt: skip

# %% [markdown]
# From top to bottom: one image and one text; one video of four frames and one text; three images, each with its own text.
# Text and images become one sequence:

# %%
special = {tokenizer.pad_id: "<PAD>", tokenizer.bos_id: "<BOS>", tokenizer.eoc_id: "<EOC>", tokenizer.image_id: "<image>"}


def strip(title: str, sample) -> tuple:
    """A title, the tokens as text, and the number phi of the image that each token attends to."""
    batch = collate([sample], tokenizer)
    phi = media_index(batch.ids == tokenizer.image_id, batch.attend_next)  # (1, L)
    return title, [special.get(i) or tokenizer.decode([i]) for i in batch.ids[0].tolist()], phi[0].tolist()


strips = [strip(title, to_sample(shots, features)) for title, shots in rows.items()]
token_strip(strips, "Three rows of token boxes. The pair and the video have one image token and one colour. The document has "
            "three image tokens and three colours.")  # fmt: skip

# %% [markdown]
# Each colour is one image or video; grey tokens come before it. A video is **one** `<image>` token, with any number of frames.
# So all three kinds have the same form, and the same model code processes them.
#
# ## p_next: which image does a text belong to?
#
# In a web page, a text may describe the image before it or after it. So the paper changes a sample with probability p_next =
# 1/2: in the whole sequence, each text attends to the **next** image (`attend_next`). In a toy document the image and its text
# always belong together, so `to_sample` also moves each text before its image. The toy training does this for only one
# document in ten, and an evaluation never does it, because all prompts have the image first.

# %%
document = rows["interleaved document"]
strips = [
    strip("as in a prompt: text attends to the last image", to_sample(document, features)),
    strip("attend_next: text attends to the next image", to_sample(document, features, attend_next=True)),
]
token_strip(strips, "The same document twice. First each image token is followed by the text of its colour. Then each text "
            "comes before the image token of its colour.")  # fmt: skip

# %% [markdown]
# In both rows, each text has the colour of its own image: it attends to the right one. With `attend_next`, `<BOS>` also
# attends to the first image.
#
# ## One step: one batch of each dataset
#
# `draw_step` draws the samples of one step. We print the size of the three batches, and their loss with the ready model.

# %%
SIZE = StepData(shots=24, pairs=12, videos=5)  # about how many images each dataset has in a step; less than in train_tiny.py


def batches_of_step(seed: str) -> dict:
    """{dataset: batch}"""
    return {name: collate(samples, tokenizer) for name, samples in draw_step(features, Random(seed), SIZE).items()}


for name, batch in batches_of_step("one step").items():
    B, N, T = batch.media.shape[:3]
    loss = model.loss(batch).item()
    n = int((batch.labels >= 0).sum())
    L = batch.ids.shape[1]
    print(f"{name:10} {B:2} sequences of {L:3} tokens, N = {N}, T = {T}, {n:3} tokens with loss, loss {loss:.3f}")

# %% [markdown]
# (All documents of a step have the same length, from 4 to 32 images, and there are at least two. A toy sample of videos can
# have several videos.)
#
# The three batches have different shapes, so they cannot be one tensor. Each has its own forward and backward pass, and then
# the gradients are added. The number of tokens does not change the weight of a dataset: $L_m$ is a mean, and only $\lambda_m$
# says how much it counts. The toy training has $\lambda_m = 1$ for all three.
#
# ## Experiment: three ways to order the same batches
#
# We train new modules between the frozen vision encoder and the frozen language model, with the same batches in three orders:
#
# - **accumulation**: each update has one batch of all three datasets.
# - **round-robin**: documents, pairs, videos, documents, pairs, ... with one update for each batch.
# - **long turns**: first all batches of documents, then all pairs, then all videos, with one update for each batch.

# %%
steps = [batches_of_step(f"step {i}") for i in range(36)]
orders = {
    "accumulation": steps,
    "round-robin": [{name: step[name]} for step in steps for name in LAMBDAS],
    "long turns": [{name: step[name]} for name in LAMBDAS for step in steps],
}
for order, updates in orders.items():
    print(f"{order:13} {len(updates):3} updates, {sum(len(update) for update in updates)} batches")

# %% [markdown]
# The loss is measured on other samples, always the same ones, at 12 times during the training.

# %%
not_trained = [batches_of_step(f"not trained {i}") for i in range(4)]


@torch.no_grad()
def measure(model) -> dict:
    """The loss of each dataset: the mean over four batches."""
    return {name: sum(model.loss(step[name]).item() for step in not_trained) / 4 for name in LAMBDAS}


# %%
def train(order: str) -> list[dict]:
    torch.manual_seed(0)
    new = minflamingo.Flamingo(model.config, model.vision, model.lm).train()  # new trained modules, the same frozen parts
    optimizer = torch.optim.AdamW(parameter_groups(new.trainable_parameters(), lr=3e-3, gate_lr=9e-3))  # gates learn faster
    parameters = [parameter for _, parameter in new.trainable_parameters()]
    updates, measured = orders[order], []
    for i, update in enumerate(tqdm(updates, desc=order)):
        losses = {name: partial(new.loss, batch) for name, batch in update.items()}
        accumulate_gradients(losses, LAMBDAS, parameters)  # sets .grad to the weighted sum
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (i + 1) % (len(updates) // 12) == 0:
            measured.append(measure(new))
    return measured


# %%
curves = {order: train(order) for order in orders}

# %% [markdown]
# ## Figure 2: the loss of each dataset

# %%
n_batches = torch.arange(1, 13) * 3 * len(steps) / 12
styles = {"accumulation": ("#c2255c", "-"), "round-robin": ("#2f5fd6", "-"), "long turns": ("#5b6676", "--")}
figure, axes = plt.subplots(1, 3, figsize=(9.5, 3), layout="constrained")
for ax, name in zip(axes, LAMBDAS):
    for order, (colour, line) in styles.items():
        ax.plot(n_batches, [losses[name] for losses in curves[order]], line, color=colour, label=order)
    for turn, trained in enumerate(LAMBDAS):  # what "long turns" is trained on at this time
        ax.axvspan(turn * len(steps), (turn + 1) * len(steps), color="#edf1f7", alpha=turn % 2, linewidth=0)
        ax.text((turn + 0.5) * len(steps), 0.02, trained, ha="center", fontsize=7, transform=ax.get_xaxis_transform())
    ax.set(title=f"loss of {name}", xlabel="batches in the training so far", ylim=(0, None), xlim=(0, 3 * len(steps)))
axes[0].set_ylabel("loss")
axes[1].legend()
show(figure, "Three panels: the loss of documents, pairs and videos against the number of batches, one line for each order. "
     "Accumulation and round-robin are close. With long turns, the loss of pairs falls and later rises again.")  # fmt: skip

# %% [markdown]
# Each panel is one dataset. The words at the bottom say which dataset the run with long turns uses at this time.
#
# - **Long turns** (dashed): the loss of a dataset falls in its own turn. In the next turn the modules change for another
#   dataset, and the loss rises again. This is called forgetting. The middle panel shows it most clearly.
# - **Accumulation** and **round-robin** (solid): every three batches include all datasets, so none of them is forgotten.
#   The loss of videos hardly changes in this short training.
#
# Is accumulation better than round-robin? There are two ways to compare:

# %%
total = {order: [sum(losses.values()) for losses in curve] for order, curve in curves.items()}
one, other, turns = total["accumulation"], total["round-robin"], total["long turns"]
print(f"after  {len(steps)} updates: accumulation {one[-1]:.2f}, round-robin {other[3]:.2f}")
print(f"after {3 * len(steps)} batches: accumulation {one[-1]:.2f}, round-robin {other[-1]:.2f}, long turns {turns[-1]:.2f}")

# %% [markdown]
# The numbers are the sum of the three losses. All are far above those of the ready model, which was trained much longer.
#
# - After the same number of **updates**, accumulation is better. But it has used three times as many batches.
# - After the same number of **batches**, the two are close to each other, and with another seed the order may change. So this
#   training of a few seconds does **not** show that accumulation is better. Long turns are clearly worse.
#
# The paper compares the few-shot scores of trained models. There, round-robin is worse (table 3). A longer comparison:
# `python -m minflamingo ablate --model tiny --rows baseline,round-robin`.
#
# ## The package's code
#
# `accumulate_gradients` computes the gradient of each loss, multiplies it by $\lambda_m$ and adds them up. `micro_batches` cuts
# the samples of one dataset into parts of similar length, so there is less padding. It returns each part with its **share** of
# the tokens with loss.

# %%
source(accumulate_gradients, micro_batches)

# %% [markdown]
# ## Exercise: the loss of a step
#
# Each dataset's batch is cut into micro-batches. Write `my_loss`: the sum over datasets of $\lambda_m L_m$, where $L_m$ is the
# mean over **all** tokens with loss of dataset $m$. For each micro-batch you get two tensors (B, L):
#
# - `nll`: the negative log-likelihood of each token,
# - `labels`: -100 where a token has no loss, for example at padding. There, `nll` may hold any number.
#
# Micro-batches have different lengths L, so they cannot be joined to one tensor. The result must not depend on how a batch is
# cut.


# %% tags=["exercise"]
def my_loss(parts: dict[str, list[tuple[torch.Tensor, torch.Tensor]]], lambdas: dict[str, float]) -> torch.Tensor:
    """parts: for each dataset its micro-batches (nll, labels), both (B, L) -> the loss of the step, a scalar."""
    ...  # your code


# %%
@torch.no_grad()
def with_nll(batch) -> tuple[torch.Tensor, torch.Tensor]:
    """(nll, labels) of a batch with the ready model. Position l - 1 predicts token l; nothing predicts token 0."""
    logits, _ = model(batch)
    nll = F.cross_entropy(logits[:, :-1].transpose(1, 2), batch.labels[:, 1:], reduction="none")  # (B, L - 1)
    return F.pad(nll, (1, 0)), batch.labels


samples, paper = draw_step(features, Random("exercise"), SIZE), {"documents": 1.0, "pairs": 0.2, "videos": 0.03}
expected = sum(paper[name] * model.loss(collate(samples[name], tokenizer)).detach() for name in paper)


def cut(n_parts: int) -> dict:
    return {name: [with_nll(batch) for _, batch in micro_batches(samples[name], n_parts, tokenizer)] for name in samples}


# %% tags=["check"]
table = [(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[5, 6, 7]])), (torch.tensor([[6.0, 9.0]]), torch.tensor([[8, -100]]))]
check("by hand: 3 tokens and 1 token", lambda: my_loss({"pairs": table}, {"pairs": 1.0}), torch.tensor(3.0),
      "add up the losses of all tokens with a label, then divide once by their number; 9.0 has no label")  # fmt: skip
check("by hand: two datasets", lambda: my_loss({"a": table[:1], "b": table[1:]}, {"a": 1.0, "b": 0.5}), torch.tensor(5.0),
      "each dataset has its own mean: 1.0 * 2.0 + 0.5 * 6.0")  # fmt: skip
check("three datasets with the paper's lambdas, two parts each", lambda: my_loss(cut(2), paper), expected,
      "the micro-batches of one dataset share one sum and one number of tokens")  # fmt: skip
check("four parts each give the same", lambda: my_loss(cut(4), paper), expected, "the loss must not depend on the cut")

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_loss(parts: dict[str, list[tuple[torch.Tensor, torch.Tensor]]], lambdas: dict[str, float]) -> torch.Tensor:
#     """One sum and one number of tokens for each dataset, over all its micro-batches."""
#     loss = torch.tensor(0.0)
#     for name, of_dataset in parts.items():
#         total = sum(nll[labels != -100].sum() for nll, labels in of_dataset)
#         n = sum((labels != -100).sum() for _, labels in of_dataset)
#         loss = loss + lambdas[name] * total / n
#     return loss
# ```
#
# </details>
#
# The package uses an equal form: $L_m$ is the sum of share × mean over the parts. So each part can have its own backward pass.
#
# ## Break it: two wrong means
#
# 1. **Without the shares**: the average of the micro-batches' means.
# 2. **Padding counts**: the labels at padding are `<PAD>` instead of -100.
#
# We compare with the right loss, for 10 steps. For the first mistake we also compare the gradients: the norm of their
# difference, divided by the norm of the right gradient.

# %%
parameters = [parameter for _, parameter in model.trainable_parameters()]


def gradient(loss: torch.Tensor) -> torch.Tensor:
    """All gradients as one vector."""
    parts = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])


def compare(samples: list) -> list[float]:
    """Losses: right, without shares, with padding; and the error of the gradient without shares."""
    whole = collate(samples, tokenizer)
    # `model.loss` never counts padding, so here we compute the logits and the loss in two steps
    with_padding = next_token_loss(model(whole)[0], torch.where(whole.attention_mask, whole.labels, tokenizer.pad_id))
    parts = [(share, model.loss(batch)) for share, batch in micro_batches(samples, 2, tokenizer)]
    right, wrong = sum(share * loss for share, loss in parts), sum(loss for _, loss in parts) / len(parts)
    g_parts = [(share, gradient(loss)) for share, loss in parts]
    g_right, g_wrong = sum(share * g for share, g in g_parts), sum(g for _, g in g_parts) / len(parts)
    error = (g_wrong - g_right).norm() / g_right.norm()
    return [right.item(), wrong.item(), with_padding.item(), error.item()]


# %%
for name in ("documents", "pairs"):
    values = torch.tensor([compare(draw_step(features, Random(f"wrong {i}"), SIZE)[name]) for i in range(10)])  # (10, 4)
    right, wrong, padding, error = values.T
    print(f"{name}: mean loss {right.mean():.3f}")
    print(f"    without the shares: the loss is wrong by {100 * ((wrong - right).abs() / right).mean():.0f}%, "
          f"the gradient by {100 * error.mean():.0f}% (means over 10 steps)")  # fmt: skip
    print(f"    padding counts:     mean loss {padding.mean():.3f}")

# %% [markdown]
# Without the shares, a token in a part with few tokens counts more than others. The loss is still a plausible number, so this
# bug is easy to miss. With padding, the loss is many times too high: most of it comes from predictions of `<PAD>`.
#
# **How you would notice**: compute one step twice, once with one large batch and once with micro-batches. The losses and the
# gradients must be equal up to rounding. Then add padding to a batch: the loss must not change.
#
# ## One line to remember
#
# **Each step has a batch of every dataset: a mean over the tokens within a dataset, a weighted sum over datasets, one update.**
#
# Next: [09 Few-shot evaluation](09_few_shot_evaluation.ipynb), how the trained model is tested.
# In the code: [training/optim.py](../minflamingo/training/optim.py) and
# [training/batching.py](../minflamingo/training/batching.py); the training step `train_flamingo` in
# [train_tiny.py](../train_tiny.py), and its data in [data_toy/mixture.py](../data_toy/mixture.py); datasets on disk in
# [data/mixture.py](../minflamingo/data/mixture.py).
# In the paper: section 2.4, the appendix on training, and table 3.
