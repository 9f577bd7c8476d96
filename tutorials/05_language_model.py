# %% [markdown]
# # 05 The language model is trained on text and then frozen
#
# **Question: what does a language model know before it receives any image, and why does Flamingo not change it?**
#
# About 60 minutes. You know: next-token prediction, self-attention, gradients in PyTorch.
# Before: [04 Resampler](04_resampler.ipynb). After: [06 The tanh gate](06_tanh_gate.ipynb).

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
import copy
import math
from random import Random

import torch
from helpers import check, show, source
from matplotlib import pyplot as plt
from tqdm import tqdm

import minflamingo
from data_toy.media_pool import random_scene
from data_toy.text_corpus import TEXT_KINDS, corpus_text
from data_toy.words import caption, fact, sum_text
from data_toy.world import ANIMALS, COLOURS, DIGITS, OPERATORS, SIGN_WORDS, TEXT_ONLY_ANIMALS
from minflamingo import LM, LMConfig
from minflamingo.attention import attention_written_out, split_heads
from minflamingo.data.sample import EOC, Sample, pack, tokenize_sample
from minflamingo.layers import rotate
from minflamingo.lm import Block, next_token_loss

# %% [markdown]
# ## What the paper says
#
# - Flamingo starts from a language model that was trained **on text alone**. Then the LM is **frozen**: its weights do not
#   change any more (section 2).
# - The new layers are inserted between the blocks of this LM (section 2.2). They are trained, the LM is not.
# - In the paper's models the LM is by far the largest part. Flamingo-80B has an LM with 70 billion parameters (table 1). (In
#   our toy model, the LM and the new layers have about the same size.)
# - If the LM is trained together with the new layers, the results are worse (table 3).
#
# The LM models the probability of each token, given the tokens before it:
#
# $$p(y) = \prod_l p(y_l \mid y_{<l})$$
#
# ## By hand: four tokens
#
# The vocabulary has three tokens: 0 is `<BOS>`, 1 is ` ha`, 2 is `<EOC>`. The text is `<BOS> ha ha <EOC>`. The first ` ha` is
# only input, so its label is -100. The LM returns these probabilities:
#
# | position | token | label | p(`<BOS>`) | p(` ha`) | p(`<EOC>`) | the next token | label of the next token | its loss |
# |---|---|---|---|---|---|---|---|---|
# | 0 | `<BOS>` | -100 | 0.2 | 0.5 | 0.3 | ` ha` | -100 | not counted |
# | 1 | ` ha` | -100 | 0.25 | 0.5 | 0.25 | ` ha` | 1 | -log 0.5 = 0.693 |
# | 2 | ` ha` | 1 | 0.25 | 0.5 | 0.25 | `<EOC>` | 2 | -log 0.25 = 1.386 |
# | 3 | `<EOC>` | 2 | 0.4 | 0.3 | 0.3 | unknown | - | not counted |
#
# Position $l$ predicts token $l + 1$. So the loss of position 1 uses the label of position 2. Labels are not shifted; the loss
# function does it. The mean of the two losses is 1.040. The package computes the same (log-probabilities can be used as
# logits, because the softmax does not change them):

# %%
probabilities = torch.tensor([[[0.2, 0.5, 0.3], [0.25, 0.5, 0.25], [0.25, 0.5, 0.25], [0.4, 0.3, 0.3]]])  # (B, L, V)
labels = torch.tensor([[-100, -100, 1, 2]])  # (B, L)
print("by hand:    ", round((-math.log(0.5) - math.log(0.25)) / 2, 3))
print("the package:", round(next_token_loss(probabilities.log(), labels).item(), 3))

# %% [markdown]
# ## The text corpus
#
# The toy LM is trained on text about the toy world: descriptions, questions, sums, and facts about animals. There are no
# images in it. A document is a row of short chunks, and each chunk ends with `<EOC>`. Here is one document of each kind, with
# three chunks. Some chunks begin with a description. It is at the place where a Flamingo prompt has an image, so no space comes
# after it. The ready LM was also trained on `lookup_practice`, see figure 2.

# %%
flamingo = minflamingo.load("tiny")
model, tokenizer = flamingo.model, flamingo.tokenizer
lm = model.lm  # the language model (LM) inside the ready Flamingo


def name(i: int) -> str:
    """A token as text. The special tokens have no text, so they get their name."""
    return {tokenizer.bos_id: "<BOS>", tokenizer.eoc_id: "<EOC>"}.get(i) or tokenizer.decode([i])


rng = Random(26)
for kind in TEXT_KINDS:  # the functions that write documents
    row = tokenize_sample(kind(rng, 3), tokenizer)
    print(f"{kind.__name__:13}", "".join(name(i) for i in row.ids))

# %% [markdown]
# ## Train a small LM
#
# The ready LM has three blocks of width 96. For this experiment we take one block of width 48 and 120 steps. `pack` puts
# documents one after the other until each row has 64 tokens.

# %%
torch.manual_seed(0)
small = LM(LMConfig(vocab_size=tokenizer.vocab_size, d=48, n_layers=1, n_heads=2, conv_width=4))
optimizer = torch.optim.AdamW(small.parameters(), lr=1e-2)
rng, losses = Random(0), []
for _ in tqdm(range(120)):
    ids, labels = pack(lambda: corpus_text(rng, 12), rows=16, length=64, tokenizer=tokenizer)  # (16, 64) each
    loss = small.loss(ids, labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())

# %%
rng = Random("test")
test_ids, test_labels = pack(lambda: corpus_text(rng, 12), rows=32, length=64, tokenizer=tokenizer)
with torch.no_grad():
    small_loss, ready_loss = (m.loss(test_ids, test_labels).item() for m in (small, lm))
uniform = math.log(tokenizer.vocab_size)

figure, ax = plt.subplots(figsize=(5.5, 3))
ax.plot(losses, color="#c2255c", label="small LM, training text")
ax.axhline(uniform, color="#5b6676", linestyle="--", label=f"all tokens equally probable: {uniform:.2f}")
ax.axhline(ready_loss, color="#2f5fd6", linestyle="--", label=f"ready LM, new text: {ready_loss:.2f}")
ax.set(xlabel="step", ylabel="loss per token", ylim=(0, None), title="Loss of a small language model")
ax.legend()
show(figure, "The loss begins at the line of equal probabilities. It falls quickly at first and then "
     "slowly. It stays above the loss of the ready LM.")  # fmt: skip
print(f"new text: small LM {small_loss:.2f}, ready LM {ready_loss:.2f}")

# %% [markdown]
# The horizontal axis is the training step, the vertical axis the loss. At step 0 all tokens have about the same probability
# $1/V$, so the loss is $\log V$. The small LM learns the formats quickly. The ready LM was trained longer, and its loss is
# lower.
#
# What is the difference? We ask both for knowledge: the country of each animal, and the results of sums.

# %%
facts = [f"This is a {animal}.{fact(animal)}" for animal in (*ANIMALS, *TEXT_ONLY_ANIMALS)]
sums = ["Output: " + sum_text((a, operator, b)) for a in DIGITS for operator in OPERATORS for b in DIGITS]
facts, sums = (torch.tensor([[tokenizer.bos_id, *tokenizer.encode(text)] for text in texts]) for texts in (facts, sums))


@torch.no_grad()
def right(lm: LM, texts: torch.Tensor, answer: int) -> float:
    """texts (B, L): percent of rows in which the most probable token at position `answer` is the right one."""
    logits, _ = lm(lm.embed(texts))  # (B, L, V)
    guesses = logits[:, answer - 1].argmax(-1)  # position l - 1 predicts token l
    return 100 * (guesses == texts[:, answer]).float().mean().item()


# %%
print(f"{len(facts)} facts, for example: {tokenizer.decode(facts[0])}")
print(f"{len(sums)} sums, for example: {tokenizer.decode(sums[0])}")
for which, one in {"small LM": small, "ready LM": lm}.items():
    # The country is the second-last token (before the full stop), the result of a sum is the last.
    print(f"{which}: {right(one, facts, -2):3.0f}% of the facts, {right(one, sums, -1):3.0f}% of the sums")

# %% [markdown]
# Each fact and each sum must be memorised. This needs many more steps, and the ready LM is also larger. From here on we use the
# ready LM. (In the figure, the loss of single training batches is noisy: some have more facts than others.)
#
# ## Figure 1: what comes next?
#
# Four prefixes, and the most probable next tokens. A sequence always begins with `<BOS>`, because the LM was trained so.

# %%
prefixes = ["This is a flamingo. They are mainly found in", "Output: 3x6=",
            "Question: What colour is the sign? Answer:", "This is a"]  # fmt: skip
figure, axes = plt.subplots(2, 2, figsize=(8.5, 4.4), layout="constrained")
for ax, prefix in zip(axes.flat, prefixes):
    ids = torch.tensor([[tokenizer.bos_id, *tokenizer.encode(prefix)]])  # (1, L)
    logits, _ = lm(lm.embed(ids))  # (1, L, V)
    values, best = logits[0, -1].softmax(-1).topk(6)
    ax.barh(range(6), values, color="#c2255c")
    ax.set_yticks(range(6), [name(i).strip() for i in best.tolist()])
    ax.set_title(prefix, fontsize=9)
    ax.set(xlim=(0, 1))
    ax.invert_yaxis()
    ax.grid(axis="x")
show(figure, "Four bar charts of next-token probabilities. The fact and the sum have one long bar each. After the question, "
     "several colours have short bars. After 'This is a', all bars are very short.")  # fmt: skip

# %% [markdown]
# The bars show probabilities between 0 and 1.
#
# - Above: one token has almost all of the probability. The LM knows the fact and the result. No image is needed for them.
# - Below: the LM knows the **kind** of answer, a colour or an animal. It cannot know **which**, because it has no image. This
#   is exactly what Flamingo must add.
#
# ## Figure 2: an induction head
#
# The LM must also use what is in the prompt. In `taxi red <EOC> bank blue <EOC> taxi` the next token is `red`, because `red`
# followed `taxi` before. Few-shot learning needs this: the answer for the query follows an earlier, similar case. Attention
# heads that do this are called **induction heads** (Olsson et al. 2022).
#
# We make 200 such sequences with random pairs. So knowledge from the training text does not help.

# %%
rng, n_keys = Random(0), 4
keys = [f" {word}" for word in SIGN_WORDS]
answers = [f" {colour}" for colour in COLOURS]
rows, asked = [], []
for _ in range(200):
    pairs = list(zip(rng.sample(keys, n_keys), rng.sample(answers, n_keys)))
    ids = [tokenizer.bos_id]
    for key, answer in pairs:
        ids += [*tokenizer.encode(key + answer), tokenizer.eoc_id]  # three tokens
    asked.append(rng.randrange(n_keys))
    rows.append(ids + tokenizer.encode(pairs[asked[-1]][0]))  # one of the keys again
ids = torch.tensor(rows)  # (200, L) with L = 1 + 4 * 3 + 1
copy_at = 1 + 3 * torch.tensor(asked)  # (200,) the position of the earlier copy; its answer is one position later

# %% [markdown]
# `attention` in the package returns no weights. `attention_written_out` does. So we compute the input of each attention with
# the block's own layers: the norm, the convolution, the projections to queries and keys, and the rotary position
# embedding (RoPE). `lm.prepare` computes what all blocks share; `info.bias` is the causal mask.


# %%
@torch.no_grad()
def attention_maps(ids: torch.Tensor) -> torch.Tensor:
    """ids (B, L) -> the weights of all heads of all blocks, (B, blocks, h, L, L)."""
    x, info = lm.prepare(lm.embed(ids), None, None)
    maps = []
    for block in lm.blocks:
        y, _ = block.conv(block.attn_norm(x), None, info.end)  # (B, L, D)
        attn = block.attn
        q, k, v = (split_heads(project(y), lm.config.n_heads) for project in (attn.to_q, attn.to_k, attn.to_v))
        q, k = rotate(q, *info.angles), rotate(k, *info.angles)  # (B, h, L, d_head)
        _, weights = attention_written_out(q, k, v, bias=info.bias)  # (B, h, L, L)
        maps.append(weights)
        x, _ = block(x, info)  # the input of the next block
    return torch.stack(maps, 1)


# %%
maps, every = attention_maps(ids), torch.arange(len(ids))
last = maps[:, :, :, -1]  # (200, blocks, h, L): the weights of the last token
at_copy, at_answer = last[every, :, :, copy_at].mean(0), last[every, :, :, copy_at + 1].mean(0)  # (blocks, h)
with torch.no_grad():
    guesses = lm(lm.embed(ids))[0][:, -1].argmax(-1)
print(f"right next token: {100 * (guesses == ids[every, copy_at + 1]).float().mean():.0f}% (chance among 4 answers: 25%)")
b, h = divmod(at_answer.argmax().item(), lm.config.n_heads)  # the head with the largest weight on the answer
print(f"strongest induction head: block {b + 1}, head {h + 1}, mean weight {at_answer[b, h]:.2f} on the earlier answer")

# %%
figure, (left, ax) = plt.subplots(1, 2, figsize=(9, 4.4), layout="constrained", width_ratios=(1, 1.25))
heads = torch.arange(at_copy.numel())
left.bar(heads - 0.2, at_copy.flatten(), 0.4, color="#d0d5dd", label="on the earlier copy of the key")
left.bar(heads + 0.2, at_answer.flatten(), 0.4, color="#c2255c", label="on the answer after it")
left.set_xticks(heads, [f"block {i // 2 + 1}\nhead {i % 2 + 1}" for i in heads.tolist()])
left.set(title="Attention of the last token", ylabel="mean weight over 200 sequences", ylim=(0, 1.25))
left.legend(loc="upper right")

tokens = [name(i).strip() for i in rows[0]]
ax.imshow(maps[0, b, h], cmap="RdPu", vmin=0, vmax=1)
ax.set_xticks(range(len(tokens)), tokens, rotation=90)
ax.set_yticks(range(len(tokens)), tokens)
ax.set(title=f"Block {b + 1}, head {h + 1}: one sequence", xlabel="attends to", ylabel="token")
ax.grid(False)
show(figure, "Left: the mean attention weight of the last token, for each head. At least one head puts most of its weight on "
     "the answer after the earlier copy. Right: the map of this head. In its last row the answer is dark.")  # fmt: skip

# %% [markdown]
# - Left: each pair of bars is one head. The strongest induction head puts most of its weight on **the token after the earlier
#   copy**. The toy LM's training text contains practice for this: random words in random pairs (`lookup_practice` in
#   [text_corpus.py](../data_toy/text_corpus.py)). Which head does the work, and how, was not programmed. It was learned.
# - Right: the map of this head. Rows are the tokens that attend, columns the tokens that they attend to. Notice the last row:
#   it is dark at the answer of the same key. Ignore the rows of
#   tokens that occur for the first time: they have no earlier copy.
#
# How can the last token find the answer? This LM has a small convolution before each attention. It mixes the key into the
# vector of the answer. In an LM without it, an earlier block must first write this information.
#
# ## The package's code
#
# The loss, and one block. The file knows nothing about images.

# %%
source(next_token_loss, Block)

# %% [markdown]
# ## Freezing
#
# `requires_grad_(False)` freezes a module: its parameters get no gradient, so no optimizer changes them. In the ready model:

# %%
frozen = sum(p.numel() for p in lm.parameters())
trained = sum(p.numel() for _, p in model.trainable_parameters())
print(f"LM: {frozen:,} parameters, {sum(p.numel() for p in lm.parameters() if p.requires_grad)} of them with gradients")
print(f"resampler, gated layers and <image>: {trained:,} trained parameters")

# %% [markdown]
# But the new layers are **between** the blocks of the LM. Their gradients must pass **through** the frozen blocks after them.
# A frozen weight receives no gradient; the activations still pass it on:
#
# $$y = W x, \qquad \frac{\partial \mathcal L}{\partial x} = W^\top \frac{\partial \mathcal L}{\partial y}
# \quad\text{does not need}\quad \frac{\partial \mathcal L}{\partial W}$$
#
# ## Exercise: the gradient through a frozen LM
#
# Write `gradient_at_input`. It gets an LM whose parameters have `requires_grad=True`, embeddings (B, L, D) and labels (B, L).
#
# 1. Freeze the LM.
# 2. Make the embeddings an input that collects a gradient: `embeddings.detach().requires_grad_()`.
# 3. Compute the loss with `next_token_loss`. `lm(embeddings)` returns the logits and a cache.
# 4. Call `loss.backward()`, and return the gradient of the embeddings.


# %% tags=["exercise"]
def gradient_at_input(lm: LM, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Freeze `lm` -> the gradient of the loss with respect to the embeddings, (B, L, D)."""
    ...  # your code


# %% tags=["check"]
text, text_labels = test_ids[:2], test_labels[:2]  # (B, L)
embeddings = lm.embed(text)  # (B, L, D)
copied = copy.deepcopy(lm).requires_grad_(True)  # not frozen
x = embeddings.detach().requires_grad_()
(expected,) = torch.autograd.grad(next_token_loss(copied(x)[0], text_labels), x)
check("equal to the gradient of an LM that is not frozen", lambda: gradient_at_input(copied, embeddings, text_labels), expected,
      "freezing must not change the loss: use next_token_loss with the logits and labels as they are")  # fmt: skip
check("not zero", lambda: bool(gradient_at_input(copied, embeddings, text_labels).any()), True,
      "call backward() on the loss and return the .grad of the embeddings")  # fmt: skip
parameters = list(copied.parameters())
check("number of parameters of the LM that require a gradient, and that have one",
      lambda: (sum(p.requires_grad for p in parameters), sum(p.grad is not None for p in parameters)), (0, 0),
      "freeze the LM before the forward pass: lm.requires_grad_(False)")  # fmt: skip

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def gradient_at_input(lm: LM, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
#     """Freeze `lm` -> the gradient of the loss with respect to the embeddings, (B, L, D)."""
#     lm.requires_grad_(False)
#     x = embeddings.detach().requires_grad_()
#     logits, _ = lm(x)
#     next_token_loss(logits, labels).backward()
#     return x.grad
# ```
#
# </details>
#
# ## Break it, part 1: `torch.no_grad()` instead of freezing
#
# `torch.no_grad()` also keeps gradients away from the LM. But it cuts the path as well.

# %%
x = embeddings.detach().requires_grad_()
loss = next_token_loss(lm(x)[0], text_labels)  # the LM of the ready model is frozen
loss.backward()
print(f"frozen LM:       loss.requires_grad is {loss.requires_grad}, norm of the gradient at the input {x.grad.norm():.4f}")
with torch.no_grad():
    loss = next_token_loss(lm(x)[0], text_labels)
print(f"torch.no_grad(): loss.requires_grad is {loss.requires_grad}")

# %% [markdown]
# With `no_grad` nothing before a frozen block could be trained: no gated layer and no resampler. **How you would notice**:
# `backward()` raises an error, or the gradients of the layers before the LM are `None`.
#
# ## Break it, part 2: train the LM on captions
#
# Now we do not freeze the LM. We train a copy of it for 40 steps on captions alone. The learning rate is close to that of the
# LM's own training. The captions contain no facts about animals and no sums.


# %%
def captions(n: int = 8) -> Sample:
    """n captions, one after the other."""
    texts = ["Output: " + caption(random_scene(rng, "things")) for _ in range(n)]
    return Sample([piece for text in texts for piece in (text, EOC)])


rng = Random("captions")
test_captions = pack(captions, rows=16, length=64, tokenizer=tokenizer)  # ids and labels


def report(step: int, lm: LM) -> None:
    with torch.no_grad():
        loss = lm.loss(*test_captions).item()
    known = f"{right(lm, facts, -2):3.0f}% of the facts, {right(lm, sums, -1):3.0f}% of the sums"
    print(f"step {step:2}: loss of captions {loss:4.2f}, {known}")


# %%
rng, unfrozen = Random(0), copy.deepcopy(lm).requires_grad_(True)
optimizer = torch.optim.AdamW(unfrozen.parameters(), lr=3e-3)
report(0, unfrozen)
for step in range(1, 41):
    ids, labels = pack(captions, rows=16, length=64, tokenizer=tokenizer)
    optimizer.zero_grad()
    unfrozen.loss(ids, labels).backward()
    optimizer.step()
    if step in (10, 20, 40):
        report(step, unfrozen)

# %% [markdown]
# The loss of the captions falls, so the training seems to work. But the facts and the sums are overwritten. This is called
# catastrophic forgetting. A frozen LM cannot forget: after any number of steps its weights are the same, bit for bit.
#
# **How you would notice**: not in the training loss. Measure something that the LM could do before and that the new training
# data does not contain.
#
# Flamingo's images come with short texts. If these texts changed the LM, it could lose what it learned from much more text.
# So the paper freezes it, and new layers do the new work. But these layers change the input of the frozen blocks. Why this
# does not disturb the LM from the first step on is the topic of the next notebook.
#
# ## One line to remember
#
# **The language model brings knowledge and in-context learning from text. It is frozen, so it keeps both, and gradients pass
# through it.**
#
# Next: [06 The tanh gate](06_tanh_gate.ipynb), how new layers start without any effect.
# In the code: [lm.py](../minflamingo/lm.py), [text_corpus.py](../data_toy/text_corpus.py), and `train_language_model` in
# [train_tiny.py](../train_tiny.py).
# In the paper: section 2 and section 2.2; table 1 for the sizes; table 3 for an LM that is not frozen.
