# %% [markdown]
# # 00 What Flamingo does
#
# **Question: can a model with fixed weights learn a new task from a few examples in its prompt?**
#
# About 30 minutes. You know: Python, and roughly what a language model is. Before: nothing, this is the first notebook.
# After: [01 A prompt is one interleaved sequence](01_prompt.ipynb).

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
from collections import Counter
from dataclasses import replace
from random import Random

import numpy as np
from helpers import check, show, source
from matplotlib import pyplot as plt
from PIL import Image, ImageDraw, ImageOps

import minflamingo
from data_toy.draw import draw
from data_toy.evaluation_tasks import queries
from data_toy.media_pool import draw_media_pool, encode_media_pool
from data_toy.world import Scene
from minflamingo import EOC
from minflamingo.evaluation.fewshot import few_shot_prompt, generate_answers, predict
from minflamingo.plots import PINK, image_panel

# %% [markdown]
# ## What the paper says
#
# Flamingo is a language model that receives text with images and videos in between, and continues the text (section 2).
# Section 3 describes how it learns a new task:
#
# - The prompt contains a few solved examples, called **shots**: an image and the text that belongs to it. They come from a
#   small set of examples, the **support**.
# - Then comes the **query**: an image without its answer. The model continues the text.
# - No weight changes. This is called **in-context learning**.
#
# The paper's prompts have 0, 4, 8, 16 or 32 shots. `<EOC>` (end of chunk) ends the text of each image:
#
# `<BOS><image>Output: A cat wearing sunglasses.<EOC><image>Output: Elephants walking in the savanna.<EOC><image>Output:`
#
# Here a small model does the same with simple images of 48 x 48 pixels. They show colours, shapes, signs, sums and animals. We
# call them the toy world.
#
# ## By hand: a fixed rule that learns from examples
#
# How can an answer change if no weight changes? A tiny rule shows it. Describe each image by two numbers: how red, how round.
#
# | piece of the prompt | red | round |
# |---|---|---|
# | shot 1: a red star, "dax" | 1.0 | 0.1 |
# | shot 2: a blue ring, "fep" | 0.1 | 0.9 |
# | query: another red star | 0.9 | 0.2 |
#
# The rule: compare the query with each shot (dot product), apply a softmax, and answer with the name of the largest weight.
#
# - Shot 1: 1.0 · 0.9 + 0.1 · 0.2 = 0.92. Shot 2: 0.1 · 0.9 + 0.9 · 0.2 = 0.27.
# - Softmax: 0.66 and 0.34. So the answer is "dax".
# - If the names in the shots are exchanged, the weights are the same, and the answer is "fep".

# %%
shots = np.array([[1.0, 0.1], [0.1, 0.9]])  # (shots, numbers per image)
query = np.array([0.9, 0.2])
scores = shots @ query  # (shots,)
weights = np.exp(scores) / np.exp(scores).sum()  # softmax
for names in (("dax", "fep"), ("fep", "dax")):
    print("names of the shots:", *names, "  weights:", weights.round(2), "  answer:", names[weights.argmax()])

# %% [markdown]
# This rule is attention with one head and no learned weights. Flamingo is a much larger function with fixed weights. Our small
# model was trained on many documents in which the names were new each time. So it learned to use the examples in the prompt.
# (The paper's models were trained on web pages, image-text pairs and video-text pairs.)
#
# ## A first prompt
#
# In code, a prompt is a list of images, texts and `EOC`. The first function below makes such a list from scenes of the toy
# world. The names are made up, so only the shots say what they mean. The other two functions draw prompts as figures.


# %%
def make_shots_and_query(shots: list, query: Scene, rng: Random) -> list:
    """shots: pairs (scene, name). Each call draws new images of these scenes: other sizes, positions, backgrounds."""
    prompt = []
    for scene, name in shots:
        prompt += [draw(scene, rng), f"This is a {name}.", EOC]
    return prompt + [draw(query, rng), "This is a"]


def pairs_of(prompt: list) -> list[tuple]:
    """[image, text, EOC, image, text] -> [(image, text), (image, text)]."""
    images = [np.asarray(piece) for piece in prompt if not isinstance(piece, str) and piece is not EOC]
    texts = [piece for piece in prompt if isinstance(piece, str)] + [""]  # a query may have no text
    return list(zip(images, texts))


# %%
def prompt_strip(rows: list[tuple], alt: str) -> None:
    """Each row is (title, prompt, answer of the model, right answer)."""
    columns = max(len(pairs_of(prompt)) for _, prompt, _, _ in rows) + 1
    figure, grid = plt.subplots(len(rows), columns, figsize=(1.5 * columns, 2.0 * len(rows)), squeeze=False)
    for axes, (title, prompt, answer, right) in zip(grid, rows):
        mark, colour, text = ("✓", "#2b8a3e", answer) if answer == right else ("✗", PINK, f"{answer} (right: {right.strip()})")
        pairs = [*pairs_of(prompt), (np.full((48, 48, 3), 255, np.uint8), text)]  # the answer, under a white image
        for ax, (image, text) in zip(axes, pairs):
            image_panel(ax, image, text)
        axes[0].set_title(title)
        axes[len(pairs) - 2].spines[:].set(visible=True, color=PINK, linewidth=2)
        axes[len(pairs) - 1].text(24, 24, mark, color=colour, fontsize=32, ha="center", va="center")
        for ax in axes[len(pairs) :]:
            ax.axis("off")
    show(figure, alt)


# %%
flamingo = minflamingo.load("tiny")  # a small model that is already trained
star = Scene("things", colour="red", shape="star", count=1, place="left")
ring = Scene("things", colour="blue", shape="ring", count=1, place="top")
another_star = replace(star, place="right")

prompt = make_shots_and_query([(star, "dax"), (ring, "fep")], another_star, Random(0))
exchanged = make_shots_and_query([(star, "fep"), (ring, "dax")], another_star, Random(0))
print("a prompt:", [piece if isinstance(piece, str) else "EOC" if piece is EOC else "image" for piece in prompt])
print("answer:  ", flamingo.complete(prompt))
prompt_strip([("two names", prompt, flamingo.complete(prompt), " dax."),
              ("the names exchanged", exchanged, flamingo.complete(exchanged), " fep.")],
             "Two rows with the same three images: a red star, a blue ring, and as the query another red star. In the second "
             "row the two names are exchanged. The answer of the model is at the right of each row.")  # fmt: skip

# %% [markdown]
# Each row is a prompt: the shots with their texts, then the query in a pink frame. At the right is the answer of the model,
# with ✓ if it is right. Both rows have the same images, because `Random(0)` makes the same random choices. Only the names in
# the shots differ, and the answer follows them.
#
# ## Figure 1: one model, many tasks
#
# The next cell draws 1,500 images and videos. Except for the animals, training had no image of the same content, and the
# made-up names are new too. `queries` makes few-shot prompts of them, in the form of the paper. The vision encoder is frozen,
# so it encodes each image only once. The figure shows the **first** query of each task.

# %%
model, tokenizer = flamingo.model, flamingo.tokenizer
pixels = draw_media_pool(1500, seed=1, split="test")
features = encode_media_pool(model, pixels)  # (T, S, D) for each image or video
tasks = {  # title: (name of the task, number of shots)
    "two names, one shot for each": ("any_name_2way", "2"), "two names, two shots for each": ("any_name_2way", "4"),
    "four names, one shot for each": ("any_name_4way", "4"), "an animal and its country": ("naming", "2"),
    "the word on a sign": ("ocr", "2"), "a sum": ("arithmetic", "2"), "a video (four frames)": ("video", "2"),
}  # fmt: skip
N = 48  # queries of each task
answers, rights = {}, {}
for title, (task, shots) in tasks.items():
    asked = queries(task, features, N, seed=0)
    answers[title] = predict(model, tokenizer, asked, shots)
    rights[title] = [query.answer for query in asked]


# %%
def row(title: str, i: int) -> tuple:
    """Query number i of a task, as a row of a strip. The same query with pixels: features cannot be drawn."""
    task, shots = tasks[title]
    query = queries(task, pixels, i + 1, seed=0)[i]
    prompt = [p[0] if isinstance(p, np.ndarray) and len(p) == 1 else p for p in few_shot_prompt(query, shots).pieces]
    return title, prompt, answers[title][i], rights[title][i]


prompt_strip([row(title, 0) for title in tasks],
             "Seven prompts, one in each row: made-up names for things, an animal with its country, a word on a sign, a sum "
             "and a video. Shots with their texts, then the query in a pink frame, then the answer of the model.")  # fmt: skip

# %% [markdown]
# Every row is another task for the same weights:
#
# - **Names**: the shots define the names. The query shows the same thing as some of the shots, in another image. With two shots
#   for each name, the two images may be the same.
# - **An animal and its country**: no image of this animal came with its country in training. Only the texts from which the
#   language model learned state it. So the vision encoder recognises the animal, and the language model adds the country.
# - **A sign, a sum**: the shots show that only the word, or the sum, is asked.
# - **A video**: the four frames are encoded one by one. The answer needs all of them, because one frame shows no motion.
#
# One of the answers above may be wrong. How often is the model right? A few examples that work prove little.
#
# ## Figure 2: mistakes
#
# The next cell counts right answers, and then shows the **first wrong** answer of each task, if there is one.

# %%
mistakes = []
for title in tasks:
    wrong = [i for i in range(N) if answers[title][i] != rights[title][i]]
    print(f"{title:30} {1 - len(wrong) / N:4.0%} of {N} answers are right")
    if wrong:
        mistakes.append(row(title, wrong[0]))
if mistakes:
    prompt_strip(mistakes, "Prompts in the form of figure 1, each with a wrong answer of the model and the right answer.")

# %% [markdown]
# Compare each wrong answer with the shots. Typical mistakes are: the name of another shot, a mixture of two names, the word of
# a shot instead of the query's word, and a sum with the right digits and a wrong result.
#
# ## The same query with other names, many times
#
# One example with exchanged names could be luck. `exchange_names` does it for any query with two shots. The right answer is
# then the other name.


# %%
def exchange_names(query):
    """The images stay. The texts of the two shots are exchanged."""
    (image_1, text_1), (image_2, text_2) = query.support[:2]
    other = text_2 if text_1.endswith(query.answer) else text_1
    return replace(query, support=[(image_1, text_2), (image_2, text_1)], answer=other.removeprefix(query.prompt))


asked = queries("any_name_2way", features, N, seed=1)
for name, prompts in (("as they are", asked), ("names exchanged", [exchange_names(query) for query in asked])):
    given = predict(model, tokenizer, prompts, "2")
    correct = np.mean([answer == query.answer for answer, query in zip(given, prompts)])
    print(f"{name:16} {correct:4.0%} right")

# %% [markdown]
# The weights, the images and the query are the same. Only the shots decide which answer is right, and the model follows them.
#
# ## Figure 3: without shots, only chance
#
# Now the model chooses among the names of the prompt (2 or 4): `predict` computes the log-likelihood of each name and takes the
# highest ([09](09_few_shot_evaluation.ipynb)). We vary the number of shots. "0 shots" means here: the query alone.

# %%
numbers = ("0", "1", "2", "4", "8")
figure, ax = plt.subplots(figsize=(5.5, 3.2))
for ways, colour in ((2, PINK), (4, "#3b5bdb")):
    asked = queries(f"binding_{ways}way", features, N, seed=0)
    accuracy = []
    for shots in numbers:
        given = predict(model, tokenizer, asked, shots)
        accuracy.append(100 * np.mean([answer == query.answer for answer, query in zip(given, asked)]))
    ax.plot(numbers, accuracy, "o-", color=colour, label=f"{ways} names")
    ax.axhline(100 / ways, color=colour, linestyle="--", linewidth=1)
ax.set(ylim=(0, 104), xlabel="shots in the prompt", ylabel="accuracy (%)", title="dashed: chance")
ax.legend(loc="lower right")
show(figure, "Accuracy against the number of shots. With 0 shots both curves are near their dashed lines of chance, 50 and 25 "
     "percent. With 2 names the curve is high from 2 shots on, with 4 names from 4 shots on.")  # fmt: skip

# %% [markdown]
# Without shots, the model cannot know what a made-up name means. Its accuracy is near chance: 50% for two names, 25% for four.
# One shot is not enough, because it explains only one of the names. As soon as each name has a shot, the accuracy is high.
# **This is in-context learning**: no weight has changed.
#
# ## Your own doodle
#
# Three drawings with a few lines of Pillow. Each function draws around the point (x, y), with the size r. `redraw` chooses
# these at random, so all versions differ. A drawing has 96 x 96 pixels. `complete` reduces every image to 48 x 48.


# %%
def face(pen: ImageDraw.ImageDraw, x: int, y: int, r: int) -> None:
    pen.ellipse((x - r, y - r, x + r, y + r), outline="black", width=5)
    for side in (-1, 1):  # two short lines above the mouth
        pen.line((x + side * r // 3, y - r // 3, x + side * r // 3, y - r // 6), fill="black", width=5)
    pen.arc((x - r // 2, y - r // 2, x + r // 2, y + r // 2), 20, 160, fill="black", width=5)  # the mouth


def house(pen: ImageDraw.ImageDraw, x: int, y: int, r: int) -> None:
    pen.rectangle((x - r, y - r // 3, x + r, y + r), outline="black", width=5)
    pen.line((x - r, y - r // 3, x, y - r, x + r, y - r // 3), fill="black", width=5)  # the roof


def zigzag(pen: ImageDraw.ImageDraw, x: int, y: int, r: int) -> None:
    pen.line((x - r, y - r, x - r // 2, y + r, x, y - r, x + r // 2, y + r, x + r, y - r), fill="black", width=5)


def redraw(drawing, rng: Random) -> Image.Image:
    image = Image.new("RGB", (96, 96), "white")
    drawing(ImageDraw.Draw(image), 48 + rng.randint(-8, 8), 48 + rng.randint(-8, 8), rng.randint(24, 32))
    return image


# %%
doodles = {  # name: function that draws a new version
    "dak": lambda rng: redraw(face, rng), "wug": lambda rng: redraw(house, rng), "tof": lambda rng: redraw(zigzag, rng),
}  # fmt: skip


def doodle_shots(doodles: dict, rng: Random) -> list:
    """Each doodle twice, with its name."""
    shots = []
    for name, new_version in [*doodles.items(), *doodles.items()]:
        shots += [new_version(rng), f"This is a {name}.", EOC]
    return shots


prompt = [*doodle_shots(doodles, Random(0)), redraw(house, Random(1)), "This is a"]
prompt_strip([("doodles", prompt, flamingo.complete(prompt), " wug.")],
             "Six shots: a face, a house and a zigzag line, each twice, with the names dak, wug and tof. The query is another "
             "drawing of the house.")  # fmt: skip

# %% [markdown]
# One answer says little, so we draw everything again, 10 times, and ask for each drawing. Then we make it harder:
#
# - the query is white on black, but the shots are black on white;
# - the query is turned by 90 degrees;
# - the three names are for the same face in three orientations. Here chance is 33%.


# %%
def doodle_accuracy(doodles: dict, change=lambda image: image) -> float:
    """The share of right answers. `change` is applied to the query only."""
    right = []
    for rng in map(Random, range(10)):
        shots = flamingo.prefill(doodle_shots(doodles, rng))  # processed once, for several queries
        for name, new_version in doodles.items():
            answer = flamingo.complete([change(new_version(rng)), "This is a"], cache=shots, max_new_tokens=8)
            right.append(answer == f" {name}.")
    return np.mean(right)


turn = lambda image: image.rotate(90, fillcolor="white")
faces = {"dak": doodles["dak"], "wug": lambda rng: ImageOps.flip(redraw(face, rng)), "tof": lambda rng: turn(redraw(face, rng))}
print(f"new versions                    {doodle_accuracy(doodles):4.0%}")
print(f"query white on black            {doodle_accuracy(doodles, ImageOps.invert):4.0%}")
print(f"query turned by 90 degrees      {doodle_accuracy(doodles, turn):4.0%}")
print(f"one face in three orientations  {doodle_accuracy(faces):4.0%}")

# %% [markdown]
# The model was not trained on these drawings or names. Different drawings are easy for it. For turned drawings, and for the
# same face in three orientations, it is not much better than chance (33%). Change the drawings and try your own.
#
# ## The package's code
#
# `few_shot_prompt` makes the prompt, and `generate_answers` lets the model continue it. Nothing in them changes a weight.

# %%
source(few_shot_prompt, generate_answers)

# %% [markdown]
# ## Exercise: predict first, then run
#
# **Part 1.** Change a shot, predict the answer, run it. Write your predictions into `predictions` **before** you run the check.
#
# | | shots, in this order | query |
# |---|---|---|
# | A | blue ring = dax, red star = fep | red star |
# | B | red star = dax, blue ring = fep | blue ring |
# | C | blue ring = dax, blue ring = dax, red star = fep | blue ring |
# | D | red star = dax, blue ring = fep | **red ring** |
#
# D has no right answer: the query has the colour of one shot and the shape of the other. It is not checked, but make a guess.
#
# **Part 2.** Write `make_prompt`. It returns a prompt for which the model answers the name `wanted`. `same` is another image
# of the thing in `query`, and `other` is an image of another thing.


# %% tags=["exercise"]
predictions = {"A": ..., "B": ..., "C": ...}  # your predictions: "dax" or "fep"


def make_prompt(same: np.ndarray, other: np.ndarray, query: np.ndarray, wanted: str) -> list:
    """The model's answer to this prompt shall be the name `wanted`, for example "mip"."""
    ...  # your code


# %%
def most_frequent(shots: list, query: Scene) -> str:
    """The name that the model answers most often for 10 versions of the images."""
    prompts = [make_shots_and_query(shots, query, Random(i)) for i in range(10)]
    names = [flamingo.complete(prompt, max_new_tokens=8).strip(" .") for prompt in prompts]
    return Counter(names).most_common(1)[0][0]


def mostly_wanted(thing: Scene, other: Scene, wanted: str) -> bool:
    """Does the model answer `wanted` for at least 8 of 10 prompts of your function?"""
    right = 0
    for i in range(10):
        rng = Random(i)
        prompt = make_prompt(draw(thing, rng), draw(other, rng), draw(thing, rng), wanted)
        right += flamingo.complete(prompt, max_new_tokens=8).strip(" .") == wanted
    return right >= 8


# %% tags=["check"]
model_answers = {
    "A": most_frequent([(ring, "dax"), (star, "fep")], another_star),
    "B": most_frequent([(star, "dax"), (ring, "fep")], ring),
    "C": most_frequent([(ring, "dax"), (ring, "dax"), (star, "fep")], ring),
}
check("predictions", lambda: predictions, model_answers,
      "which name does the shot with the query's thing have? The order of the shots matters little")  # fmt: skip
check("the wanted name for a star", lambda: mostly_wanted(star, ring, "mip"), True,
      "two shots, each with an image, a text and EOC; the prompt ends with the query and the text 'This is a'")  # fmt: skip
check("the wanted name for a ring", lambda: mostly_wanted(ring, star, "zot"), True,
      "the text of the shot with `same` must contain `wanted`, the other shot another name")  # fmt: skip

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# predictions = {"A": "fep", "B": "fep", "C": "dax"}
#
#
# def make_prompt(same: np.ndarray, other: np.ndarray, query: np.ndarray, wanted: str) -> list:
#     """The shot that shows the same thing as the query has the wanted name."""
#     return [same, f"This is a {wanted}.", EOC, other, "This is a fep.", EOC, query, "This is a"]
# ```
#
# </details>
#
# And D? The next cell prints how many of 20 answers have the name of the shot with the same colour, and how many that of the
# shot with the same shape. Another model of the same size may decide differently.

# %%
red_ring = replace(ring, colour="red", place="bottom")
prompts = [make_shots_and_query([(star, "dax"), (ring, "fep")], red_ring, Random(i)) for i in range(20)]
counts = Counter(flamingo.complete(prompt, max_new_tokens=8).strip(" .") for prompt in prompts)
print(f"D: the name of the same colour (dax) {counts['dax']} times, of the same shape (fep) {counts['fep']} times")

# %% [markdown]
# ## Break it: shots without their images
#
# We remove the images from the shots, and keep the texts. The paper calls this prompt zero-shot: two examples as text only, so
# that the form of the answer is known. In this package it has the name `0_text`, because "0" is the query alone.

# %%
print(f"{'':22}2 shots   2 texts without images")
for name, task in (("one of two names", "binding_2way"), ("the word on a sign", "ocr")):
    asked = queries(task, features, 96, seed=0)
    correct = {}
    for shots in ("2", "0_text"):
        given = predict(model, tokenizer, asked, shots)
        correct[shots] = np.mean([answer == query.answer for answer, query in zip(given, asked)])
    print(f"{name:22}{correct['2']:7.0%}{correct['0_text']:25.0%}")

# %% [markdown]
# For made-up names the accuracy is near chance: the texts contain both names, but they do not say which image has which name.
# For signs almost nothing changes: the texts show what is asked, and the model can read without examples.
#
# **How you would notice** that a program loses the images of the shots: compare with the zero-shot prompt. If shots with
# images are not better, then either the images do not reach the model, or the task does not need them. So measure in-context
# learning with a task whose answer only the shots define.
#
# ## One line to remember
#
# **Flamingo learns a task from the examples in its prompt. The weights stay the same, and other examples give other answers.**
#
# Next: [01 A prompt is one interleaved sequence](01_prompt.ipynb), what the model receives as input.
# In the code: [evaluation/fewshot.py](../minflamingo/evaluation/fewshot.py), and the tasks in
# [data_toy](../data_toy/README.md).
# In the paper: section 2 for the model, section 3 for few-shot learning.
