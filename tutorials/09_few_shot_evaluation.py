# %% [markdown]
# # 09 Few-shot evaluation
#
# **Question: how do we measure what a model learns from the examples in its prompt?**
#
# About 45 minutes. You know: prompts ([01](01_prompt.ipynb)), log-softmax, accuracy.
# Before: [08 Many datasets, one step](08_datasets.ipynb). After: [10 Fast and real](10_fast_and_real.ipynb).

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
import tempfile
from dataclasses import replace
from random import Random

import torch
from helpers import check, show, source
from matplotlib import pyplot as plt

import minflamingo
from data_toy.evaluation_tasks import TASKS, correct, queries
from data_toy.media_pool import draw_media_pool, encode_media_pool
from data_toy.suite import suite
from minflamingo.data.sample import Sample, collate
from minflamingo.evaluation.features import FeatureCache
from minflamingo.evaluation.fewshot import accuracy, few_shot_prompt, predict, score_choices, wilson_interval
from minflamingo.evaluation.rices import most_similar, pool_features, support_features
from minflamingo.evaluation.runner import Protocol, evaluate, select_shots
from minflamingo.recipes.finetune import Hyperparameters, train

flamingo = minflamingo.load("tiny")
model, tokenizer = flamingo.model, flamingo.tokenizer

# %% [markdown]
# ## What the paper says
#
# Section 3.1 and the appendix:
#
# - A prompt has 0, 4, 8, 16 or 32 solved examples (**shots**) from a **support set**, then the **query**. No weight changes.
# - **Zero-shot**: two examples as text, **without** their images. They only show the form of an answer.
# - **Open-ended** tasks: the model generates text, up to the first `<EOC>`.
# - **Close-ended** tasks: each possible answer is appended to the prompt. The one with the highest log-likelihood is the
#   prediction.
# - **RICES** (retrieval-based in-context example selection): from a large support set, take the examples whose images are most
#   similar to the query's image.
# - **Fine-tuning** (section 3.2): change the weights, with many examples. The language model stays frozen.
#
# ## By hand: three tokens of two answers
#
# A prompt asks which vehicle is in the image. The possible answers are " bus" (1 token) and " red taxi" (2 tokens). The model
# gives these probabilities, each after the prompt and the earlier tokens of the answer:
#
# | answer | probability of its tokens |
# |---|---|
# | ` bus` | 0.30 |
# | ` red` ` taxi` | 0.50, 0.40 |
#
# The probability of an answer is the product. Its log-likelihood is the **sum** of the logarithms.

# %%
bus, red_taxi = torch.tensor([0.30]).log(), torch.tensor([0.50, 0.40]).log()
for name, log_p in (("bus", bus), ("red taxi", red_taxi)):
    numbers = [round(x, 2) for x in log_p.tolist()]
    print(f"{name:9} log p of the tokens {numbers}: sum {log_p.sum():.2f}, mean {log_p.mean():.2f}")

# %% [markdown]
# The sum chooses " bus" (0.30 against 0.20), the mean chooses " red taxi". The sum is the log-likelihood of the whole answer,
# but each further token makes it lower. The mean corrects for the length, but it is not the probability of the answer. If all
# answers have the same length, both choose the same one. In the package, `predict` uses the sum, and each benchmark has its
# own setting (`Task.scoring`).
#
# ## Figure 1: a few-shot prompt
#
# The task `binding_2way` gives made-up names to two things. No training data has these names, so only the shots define them.

# %%
media = draw_media_pool(1000, seed=0, split="test")  # held-out scenes
example = queries("binding_2way", media, 7, seed=1)[6]
shots = list(example.support[:4]) + [(example.medium, example.prompt + " ?")]
figure, axes = plt.subplots(1, 5, figsize=(7.5, 2))
for ax, (pixels, text) in zip(axes, shots):
    ax.imshow(pixels[0])  # (T, H, W, C) with T = 1
    ax.set(xticks=[], yticks=[])
    ax.set_xlabel(text, fontsize=8)
axes[4].set_title("query", fontsize=9)
show(figure, "Four images, each with a sentence or a name below it, then the query: an image whose name is missing.")
print("choices:", example.choices, "  right:", example.answer)

# %% [markdown]
# This is a prompt with 4 shots. The task is close-ended: the model scores the two names.
#
# ## Figure 2: score against shots
#
# Three tasks, 60 queries each:
#
# - `binding_2way`: two names. With 2 shots, each name is shown once.
# - `binding_random`: five names, and each shot shows a random one. So a few shots do not show all names.
# - `task`: one attribute, for example the colour, after `Output:`. The answer is generated. Only the answers of the shots say
#   which attribute is asked. `0_text` is the paper's zero-shot prompt.

# %%
features = encode_media_pool(model, media)  # each image is encoded once
asked, scores = {}, {}
for name, numbers in (("binding_2way", "0 1 2 4 8"), ("binding_random", "2 4 8 16"), ("task", "0 0_text 1 2 4 8")):
    asked[name], scores[name] = queries(name, features, 60, seed=0), {}
    for n in numbers.split():
        answers = predict(model, tokenizer, asked[name], n)
        right = correct(name, answers, asked[name])[name]  # a list of bool; `correct` returns one list per score
        scores[name][n] = accuracy(right)
print("binding_2way with 8 shots:", scores["binding_2way"]["8"])

# %%
figure, axes = plt.subplots(1, 3, figsize=(9, 2.8), sharey=True)
for ax, (name, cells) in zip(axes, scores.items()):
    x, y = list(cells), [cell["score"] for cell in cells.values()]
    low, high = zip(*(cell["interval"] for cell in cells.values()))
    ax.fill_between(x, low, high, color="#fbc4d4")
    ax.plot(x, y, "o-", color="#c2255c")
    if chance := TASKS[name].chance:
        ax.axhline(chance, color="#5b6676", linestyle="--")
        ax.text(0.98, chance - 3, "chance", ha="right", va="top", fontsize=8, transform=ax.get_yaxis_transform())
    ax.set(title=name, xlabel="shots", ylim=(0, 103))
axes[0].set_ylabel("accuracy (%)")
show(figure, "Three panels of accuracy against shots with a pale band. binding_2way is at chance with 0 and 1 shots and high "
     "from 2. binding_random rises with more shots. task is at zero without examples and high from 0_text.")  # fmt: skip

# %% [markdown]
# The band is the 95% interval: with 60 queries, an accuracy is known only up to about ten points. A difference smaller than the
# band says little.
#
# - `binding_2way` is at chance without shots, and also with 1 shot (the next cell shows why). With 2 shots both names are
#   defined.
# - `binding_random` rises with the number of shots, because more shots show more of the five names.
# - `task` needs no images in its examples: two texts are enough. With 0 shots the model writes a caption, so no answer is
#   right. (There is no chance line: too many answers are possible.)

# %%
answers = predict(model, tokenizer, asked["binding_2way"], "1")
copies = [query.support[0][1].endswith(answer) for query, answer in zip(asked["binding_2way"], answers)]
print(f"with 1 shot, the model chooses the name of the shot in {100 * sum(copies) / len(copies):.0f}% of the prompts")

# %% [markdown]
# With 1 shot the model chooses the name that is in the prompt, also if the query shows the other thing. This is
# right in about half of the cases.
#
# ## Figure 3: random shots or similar shots
#
# RICES needs a large support set. We take two toy benchmarks with 256 support examples and 60 queries.
#
# - `memes` (after HatefulMemes): do the word and the colour of a sign fit? yes or no. The rule is invented: "stop", "food" and
#   "shop" fit red, orange and yellow; "taxi", "bus" and "tea" fit green, cyan and blue. The answer is written "This is a yes."
# - `poor_images` (after VizWiz): made-up names of three things in blurred, noisy or dark images. If nothing can be recognised,
#   the right answer is `nah`.

# %%
tasks = {name: task for name, task in suite("test", queries=60, support=256).items() if name in ("poor_images", "memes")}
caches = {name: FeatureCache(flamingo) for name in tasks}  # features of the support images


def score(pipeline, name: str, n: str, rices: bool = False, cache=None) -> dict:
    """The accuracy with n shots, and its 95% interval."""
    protocol = Protocol(rices=rices, beams=1, batch_size=30)
    records = evaluate(pipeline, tasks[name], n, protocol=protocol, features=cache)["records"]
    return accuracy([r["prediction"] in query.answers for r, query in zip(records, tasks[name].queries)])


# %%
query = tasks["memes"].queries[3]
figure, axes = plt.subplots(2, 5, figsize=(7.5, 4))
for line, rices in zip(axes, (False, True)):
    shots, _ = select_shots(tasks["memes"], query, "4", 0, Protocol(rices=rices), caches["memes"])
    for ax, shown in zip(line, [*shots, query]):
        ax.imshow(shown.media())
        ax.set(xticks=[], yticks=[])
        ax.set_xlabel("This is a ?" if shown is query else tasks["memes"].template.shown(shown), fontsize=8)
    line[0].set_title("RICES" if rices else "random shots")
    line[4].set_title("query", fontsize=9)
show(figure, "Two rows of four signs and the query. The random shots show different words and colours. The shots of RICES show "
     "signs that are similar to the query.")  # fmt: skip

# %% [markdown]
# The similarity is the cosine between the mean features of the frozen vision encoder. The most similar example is the last
# one, next to the query.

# %%
selection = {}
for name in tasks:
    for rices in (False, True):
        selection[name, rices] = [score(flamingo, name, n, rices, caches[name]) for n in ("2", "4", "8")]

# %%
figure, axes = plt.subplots(1, 2, figsize=(7, 2.8), sharey=True)
for ax, name in zip(axes, tasks):
    for rices, colour, label in ((True, "#c2255c", "RICES"), (False, "#2f5fd6", "random shots")):
        low, high = zip(*(cell["interval"] for cell in selection[name, rices]))
        ax.fill_between(("2", "4", "8"), low, high, color=colour, alpha=0.15)
        ax.plot(("2", "4", "8"), [cell["score"] for cell in selection[name, rices]], "o-", color=colour, label=label)
    ax.set(title=name, xlabel="shots", ylim=(0, 103))
axes[1].axhline(50, color="#5b6676", linestyle="--", label="chance")
axes[1].legend(loc="lower left")
axes[0].set_ylabel("accuracy (%)")
show(figure, "Two panels of accuracy against shots. RICES is clearly above random shots in both. Random shots stay near 50 in "
     "memes and rise with the number of shots in poor_images.")  # fmt: skip

# %% [markdown]
# Few of the random shots are similar to the query. In `memes` the rule combines two attributes, and random shots stay near
# chance. With RICES the shots show signs with the same word or the same colour as the query, and often the same answer is
# right for them.
#
# What does RICES measure then? Here is a method without any language model: give the answer of the **one** most similar
# example.

# %%
for name, task in tasks.items():
    support, pooled = support_features(caches[name], task)  # (n, D)
    nearest = [support[most_similar(pool_features(caches[name].get(query)), pooled)[0]] for query in task.queries]
    right = [example.answers[0] in query.answers for example, query in zip(nearest, task.queries)]
    print(f"{name:12} answer of the nearest example: {accuracy(right)['score']:.0f}% right")

# %% [markdown]
# This is close to the accuracy with RICES. So in these tasks, copying the answer of a similar example is enough. RICES and
# random shots are two different measurements. A report must say which one it used, and how large the support set was.
#
# ## Figure 4: fine-tuning
#
# Fine-tuning uses the same 256 examples as **training data**. The language model stays frozen; the resampler, the gated
# layers and the vision encoder are trained. The query then has no shots. Here: 80 steps with 8 examples each.

# %%
h = Hyperparameters(lr=1e-3, schedule="linear", steps=80, batch_size=8)
fine_tuned, losses = {}, {}
for name, task in tasks.items():
    copied = copy.deepcopy(flamingo)  # the ready model stays as it is
    with tempfile.TemporaryDirectory() as folder:
        stage = train(copied, task, h, name=name, folder=folder)
    losses[name] = [row["loss"] for row in stage.rows]
    fine_tuned[name] = score(copied, name, "0")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3), width_ratios=(2, 3))
for k, (name, colour) in enumerate((("poor_images", "#0b7285"), ("memes", "#e8590c"))):
    left.plot(losses[name], color=colour, label=name)
    cells = [selection[name, False][2], selection[name, True][2], fine_tuned[name]]
    x, y = [k, k + 3, k + 6], [cell["score"] for cell in cells]
    error = [[cell["score"] - cell["interval"][0] for cell in cells], [cell["interval"][1] - cell["score"] for cell in cells]]
    right.bar(x, y, yerr=error, color=colour, capsize=3, ecolor="#1f2733")
left.set(title="loss of fine-tuning", xlabel="step", ylabel="loss", yscale="log")
left.set_yticks((0.001, 0.01, 0.1, 1, 10), ("0.001", "0.01", "0.1", "1", "10"))
left.legend()
right.axhline(50, color="#5b6676", linestyle="--")
right.set_xticks((0.5, 3.5, 6.5), ("8 random shots", "8 shots, RICES", "fine-tuned, 0 shots"))
right.set(title="accuracy (%)", ylim=(0, 105))
show(figure, "Left: the losses of two fine-tunings against the step, on a logarithmic axis. Right: bars of accuracy with "
     "error bars for random shots, RICES and fine-tuning, for poor_images and memes.")  # fmt: skip

# %% [markdown]
# Left: the loss against the step, with a logarithmic axis. Right: accuracies with 95% intervals; dashed: chance in `memes`.
#
# - `poor_images`: the names are learned in 80 steps. Afterwards the model needs no shots.
# - `memes`: the loss stops falling early, and the accuracy stays near chance. In these few steps the model learns to answer
#   with yes or no, but not the rule. The loss is small although the answer is a guess, because it is a mean over all tokens of
#   the answer, and only one of them is "yes" or "no".
#
# Shots need no training, and one model serves all tasks. Fine-tuning can use any number of examples, but it needs more time and
# hyperparameters, which are searched on a validation subset of the training set. The recipe of the package does this:
# `python -m minflamingo finetune --model tiny --task memes --lr 2e-4 6e-4 --steps 240 480`.
#
# ## The package's code
#
# The prompt, the similarity of RICES, and the interval:

# %%
source(few_shot_prompt, pool_features, most_similar, wilson_interval)

# %% [markdown]
# Scores of many benchmarks, with a table and a figure, are one command: `python -m minflamingo eval --model tiny --task toy`.
# Add `--rices` for RICES, and `--ensemble` for prompt ensembling: the log-likelihoods are averaged over several orders of the
# shots.
#
# ## Exercise: score the answers
#
# Write `my_score`. For each choice, run prompt + choice through the model, and add up the log-probabilities of the tokens of
# the choice. The result is a tensor (A,) for A choices.
#
# - `collate([Sample([*prompt, choice])], tokenizer)` makes the batch. Its `ids` are (1, L).
# - `logits, _ = model(batch)` gives (1, L, V). The logits at position $l$ predict token $l + 1$.
# - `len(tokenizer.encode(choice))` is the number of tokens of the choice. They are at the end.


# %% tags=["exercise"]
@torch.no_grad()
def my_score(model, tokenizer, prompt: list, choices: list[str]) -> torch.Tensor:
    """(A,): the summed log-likelihood of each choice after the prompt."""
    ...  # your code


# %% tags=["check"]
colour = next(query for query in asked["task"] if query.answer == " red")
one_token = replace(colour, choices=(" red", " blue", " green"))
(caption,) = queries("caption", features, 1, seed=0)
lengths = replace(caption, choices=(caption.answer, " a red circle", " dak."))
(named,) = queries("binding_4way", features, 1, seed=0)


def compare(what: str, query, shots: str, hint: str) -> None:
    expected = score_choices(model, tokenizer, [query], shots)[0]  # (A,)
    check(what, lambda: my_score(model, tokenizer, few_shot_prompt(query, shots).pieces, query.choices), expected, hint)


compare("choices of one token", one_token, "2", "the last token of the prompt, at position -2, predicts the choice")
compare("choices of different lengths", lengths, "2", "with n tokens, the logits at positions -n-1 to -2 predict the choice")
compare("names that are spelled, 8 shots", named, "8", "sum over tokens; each prediction is read at the token before")

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# @torch.no_grad()
# def my_score(model, tokenizer, prompt: list, choices: list[str]) -> torch.Tensor:
#     """The prediction of a token is at the position before it."""
#     scores = []
#     for choice in choices:
#         batch = collate([Sample([*prompt, choice])], tokenizer)
#         logits, _ = model(batch)  # (1, L, V)
#         n = len(tokenizer.encode(choice))
#         log_p = logits[0, -n - 1 : -1].log_softmax(-1)  # (n, V)
#         scores.append(log_p.gather(1, batch.ids[0, -n:, None]).sum())
#     return torch.stack(scores)
# ```
#
# </details>
#
# The package's version is `score_answers` in [generate.py](../minflamingo/generate.py). It processes the prompt once for all
# choices.
#
# ## Break it: two small mistakes
#
# 1. **Off by one**: the prediction of each token is read at the token itself, not at the token before it.
# 2. **Shuffled answers**: the answers of the shots are put in random order. The prompt has the right form, but it defines
#    nothing.
#
# The task is `binding_4way`: as `binding_2way`, but with four names. The tokenizer spells made-up names letter by letter.


# %%
@torch.no_grad()
def log_likelihood(query, shots: str, choice: str, before: int) -> float:
    """Predictions are read `before` tokens before their token: 1 is right, 0 is the mistake."""
    batch = collate([Sample([*few_shot_prompt(query, shots).pieces, choice])], tokenizer)
    log_p = model(batch)[0][0].log_softmax(-1)  # (L, V)
    start = len(log_p) - len(tokenizer.encode(choice))  # the position of the first token of the choice
    return sum(log_p[i - before, batch.ids[0, i]].item() for i in range(start, len(log_p)))


def choose(query, shots: str, before: int) -> str:
    return max(query.choices, key=lambda choice: log_likelihood(query, shots, choice, before))


def shuffle_answers(query, n: int):
    media, texts = zip(*query.support[:n])
    texts = Random(str(texts)).sample(texts, n)  # the same texts in a random order
    return replace(query, support=list(zip(media, texts)))


# %%
four_names = queries("binding_4way", features, 60, seed=0)
answers = {
    "right": [choose(query, "8", before=1) for query in four_names],
    "off by one": [choose(query, "8", before=0) for query in four_names],
    "shuffled answers": predict(model, tokenizer, [shuffle_answers(query, 8) for query in four_names], "8"),
}
print("binding_4way, 8 shots, chance 25%")
for what, given in answers.items():
    print(f"    {what:17} {accuracy(correct('binding_4way', given, four_names)['binding_4way'])['score']:.0f}%")

# %% [markdown]
# Both mistakes give about chance, and no error message. Here is a test for the first one. In greedy generation the model
# takes the most likely token each time. So the answer that it generates must have a high log-likelihood.

# %%
captions = queries("caption", features, 20, seed=0)
generated = predict(model, tokenizer, captions, "0")
for before in (1, 0):
    values = [log_likelihood(query, "0", answer, before) for query, answer in zip(captions, generated)]
    what = "right" if before else "off by one"
    print(f"{what:10}  mean log-likelihood of the generated answers: {sum(values) / len(values):.2f}")

# %% [markdown]
# **How you would notice**: print the chance level next to each score. Score answers that the model has generated, as above. And
# shuffle the answers of the shots on purpose: if the score does not fall, the model does not use the shots.
#
# ## One line to remember
#
# **Few-shot evaluation changes only the prompt: shots, query, then a generated answer or the choice with the highest
# log-likelihood.**
#
# Next: [10 Fast and real](10_fast_and_real.ipynb), faster versions of the same functions, and published models.
# In the code: [evaluation/fewshot.py](../minflamingo/evaluation/fewshot.py),
# [evaluation/rices.py](../minflamingo/evaluation/rices.py), [evaluation/runner.py](../minflamingo/evaluation/runner.py),
# [recipes/finetune.py](../minflamingo/recipes/finetune.py); the tasks: [data_toy/README.md](../data_toy/README.md).
# In the paper: section 3.1 (few-shot), section 3.2 (fine-tuning), and the appendix for prompts, RICES and prompt ensembling.
