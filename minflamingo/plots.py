"""Every figure of the README, the commands and the tutorials: numbers or images in, a PNG file out.

    train_tiny.py   plot_shots, plot_loss, plot_gates, plot_prompts, plot_world, plot_attention
    commands        plot_shots (eval), plot_grid (finetune), plot_ablations (ablate), plot_bench (bench)

Each function takes data and a path, writes the file and returns the path. It raises ValueError if there is nothing to draw.
They use `Figure` instead of pyplot: they need no display and change no global state. A "$" in a text is only a "$".
"""

import math
import textwrap
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from .data.readers import write_atomically

INK, GREY, PALE, PINK = "#1f2733", "#5b6676", "#d0d5dd", "#c2255c"
LIGHT_PINK, LIGHT_GREEN = "#fbc4d4", "#cfeedd"
STYLE = {
    "text.parse_math": False, "text.color": INK, "figure.dpi": 150, "figure.facecolor": "white", "legend.frameon": False,
    "figure.titlesize": 14, "figure.titleweight": "bold", "axes.titlelocation": "left", "axes.titlesize": 11,
    "axes.titleweight": "bold", "axes.titlepad": 8, "axes.labelcolor": GREY, "axes.labelsize": 9, "axes.edgecolor": PALE,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "axes.grid": True, "axes.grid.axis": "y",
    "grid.color": "#eef0f3", "xtick.color": GREY, "ytick.color": GREY, "xtick.labelsize": 8.5, "ytick.labelsize": 8.5,
    "xtick.major.size": 0, "ytick.major.size": 0, "legend.fontsize": 9, "font.size": 9.5,
}  # fmt: skip
styled = rc_context(STYLE)  # a decorator: the style is active inside the function only


def panels(n: int, title: str, note: str = "", *, columns: int = 5, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure of n panels of size (width, height) in inches, with a title above and a note below."""
    if n == 0:
        raise ValueError(f"no data for the figure {title!r}")
    rows = math.ceil(n / columns)
    columns = math.ceil(n / rows)
    figure = Figure((max(7.0, size[0] * columns), size[1] * rows + 0.7), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08, hspace=0.05)
    figure.suptitle(title, x=0.01, ha="left")
    figure.supxlabel(note, x=0.01, ha="left", fontsize=9, color=GREY)
    return figure, [figure.add_subplot(rows, columns, k + 1) for k in range(n)]


def save(figure: Figure, path: str | Path) -> Path:
    """Write a PNG with 256 colours: a quarter of the size."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(content := BytesIO(), format="png")
    with Image.open(content) as image:  # the default method of `quantize` loses rare colours
        small = image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=2)
    write_atomically(path, lambda temporary: small.save(temporary, format="PNG", optimize=True))
    return Path(path)


def line_panel(axes: Axes, lines: dict[str, tuple], *, smooth: bool = False, **labels) -> None:
    """Lines: label -> (x, y). With `smooth`: the mean over neighbours (7 of 100 values), and the values themselves in pale."""
    top = 1e-9
    for (label, (x, y)), colour in zip(lines.items(), colormaps["plasma"](np.linspace(0, 0.75, len(lines)))):
        window = np.ones(len(y) // 32 * 2 + 1 if smooth else 1)
        mean = np.convolve(y, window, "same") / np.convolve(np.ones(len(y)), window, "same")  # fewer neighbours at the ends
        axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.2)
        axes.plot(x, mean, color=colour, linewidth=2, label=f"{label}: {mean[-1]:.2f}", gid=label)
        top = max(top, 1.08 * mean.max())
    axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.2), ncols=2)  # below, where it covers no line
    axes.set(ylim=(0, top), **labels)


def bar_panel(title: str, note: str, bars: list[tuple]) -> tuple[Figure, Axes]:
    """Horizontal bars: (label at the left, value, colour, text at the right). The dashed line shows the first value."""
    figure, (axes,) = panels(min(1, len(bars)), title, note, size=(9, 0.27 * len(bars) + 0.4))
    labels, values, colours, texts = zip(*bars)
    axes.barh(range(len(bars)), values, 0.7, color=colours)
    for y, text in enumerate(texts):
        axes.text(1.02, y, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    axes.axvline(values[0], color=GREY, linewidth=1.1, linestyle="--")
    axes.set_yticks(range(len(bars)), labels, color=INK, fontsize=9.5)
    axes.set_ylim(len(bars) - 0.5, -0.5)  # the first bar on top
    axes.grid(False, axis="y")
    axes.grid(True, axis="x")
    return figure, axes


def image_panel(axes: Axes, media: np.ndarray, text: str = "", title: str = "") -> None:
    """An image (H, W, 3) with its text below. Of a video (T, H, W, 3): four frames in reading order."""
    if media.ndim == 4:
        frames = media[np.linspace(0, len(media) - 1, 4).round().astype(int)]
        frames = np.pad(frames, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)  # (4, H+2, W+2, 3)
        media = np.vstack([np.hstack(frames[:2]), np.hstack(frames[2:])])
    axes.imshow(media, interpolation="nearest")
    axes.set_xlabel(textwrap.fill(text.strip(), 21), color=INK)
    axes.set(xticks=[], yticks=[], title=title)
    axes.grid(False)
    axes.spines[:].set_visible(False)


@styled
def plot_shots(results: dict, path: str | Path, band: str = "95% interval") -> Path:
    """results = {"tasks": {task: {"unit": "VQA accuracy", "chance": 25.0, "shots": {"0_text": cell, "4": cell, ...}}, ...},
    "mean": {"0_text": 41.0, "4": 52.0, ...}} with cell = {"score": 49.0, "interval": [47.1, 50.8]}.
    "unit", "chance" and "mean" may be missing. Cells without a score are left out."""
    tasks = {n: t for n, t in results.get("tasks", {}).items() if any("score" in cell for cell in t["shots"].values())}
    if len(tasks) > 1 and "mean" in results:
        mean = {s: {"score": score, "interval": [score, score]} for s, score in results["mean"].items()}
        tasks = {"mean": {"unit": "mean of the tasks", "shots": mean}} | tasks
    note = f"band: {band}   ·   ring: the query's image is the only one   ·   dashed: chance"
    figure, grid = panels(len(tasks), "Score against the number of shots in the prompt", note, size=(2.5, 2.3))
    for axes, (name, task) in zip(grid, tasks.items()):
        cells = {shots.replace("_", "\n"): cell for shots, cell in task["shots"].items() if "score" in cell}
        x, y = list(cells), [cell["score"] for cell in cells.values()]
        low, high = zip(*(cell["interval"] for cell in cells.values()))
        axes.plot(x, y, color=PINK, linewidth=2, gid=name)
        style = {"va": "center", "color": PINK, "weight": "bold"}
        axes.annotate(f"{y[-1]:.0f}", (x[-1], y[-1]), (7, 0), textcoords="offset points", **style)
        axes.fill_between(x, low, high, color=PINK, alpha=0.18, linewidth=0)
        inside = ["white" if shots.startswith("0") else PINK for shots in cells]
        axes.scatter(x, y, s=28, c=inside, edgecolors=PINK, linewidths=1.4, zorder=3, clip_on=False)
        if chance := task.get("chance"):
            axes.axhline(chance, color=GREY, linewidth=1.1, linestyle="--", gid="chance")
        axes.set(ylim=(0, max(104, 1.04 * max(high))), title=name.replace("_", " "), ylabel=task.get("unit", "score"))
    return save(figure, path)


def read_columns(rows: list[dict], prefix: str) -> dict[str, np.ndarray]:
    """The columns of a CSV file whose names begin with `prefix`: name -> steps and values (2, n), without empty cells."""
    names = {name: None for row in rows for name in row if name.startswith(prefix) and row[name] != ""}
    return {n: np.array([(row["step"], row[n]) for row in rows if row.get(n, "") != ""], float).T for n in names}


@styled
def plot_loss(rows: list[dict], path: str | Path) -> Path:
    """rows as read from a CSV file: "stage", "step", "loss", and optional columns loss_* for the parts of the loss."""
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    note = "line: running mean   ·   pale: single steps"
    figure, grid = panels(len(stages), "Training loss of each stage", note, size=(3.6, 2.5))
    for axes, stage in zip(grid, stages):
        columns = read_columns([row for row in rows if row["stage"] == stage], "loss")
        lines = {name.removeprefix("loss_").replace("loss", "all"): column for name, column in columns.items()}
        line_panel(axes, lines, smooth=True, title=stage, xlabel="step", ylabel="loss")
    return save(figure, path)


@styled
def plot_gates(rows: list[dict], path: str | Path) -> Path:
    """Columns alpha_xattn_0, ..., alpha_dense_0, ...: |tanh(alpha)| of each gated layer, 0 where a gate is closed."""
    kinds = {"alpha_xattn_": "gates of cross-attention", "alpha_dense_": "gates of the feed-forward blocks"}
    columns = {title: read_columns(rows, prefix) for prefix, title in kinds.items()}
    figure, grid = panels(2 if all(columns.values()) else 0, "The gates open during training", size=(4, 2.6))
    for axes, (title, of_blocks) in zip(grid, columns.items()):
        lines = {f"LM block {name.split('_')[2]}": column for name, column in of_blocks.items()}
        line_panel(axes, lines, title=title, xlabel="step", ylabel="|tanh(alpha)|")
    return save(figure, path)


@styled
def plot_grid(results: dict, path: str | Path) -> Path:
    """results = {"tasks": {task: {"hyperparameters": {"lr": 2e-4, "steps": 80, ...}, "grid": [trial, ...]}, ...}} with
    trial = {"hyperparameters": {...}, "score": 94.5}. The 24 best trials are shown, the chosen one in dark."""
    bars = []
    for name, task in results.get("tasks", {}).items():
        for trial in sorted(task["grid"], key=lambda trial: trial["score"], reverse=True)[:24]:
            values = ", ".join(f"{key} {value}" for key, value in trial["hyperparameters"].items())
            colour = INK if trial["hyperparameters"] == task["hyperparameters"] else PINK
            bars.append((f"{name}: {values}", trial["score"], colour, f"{trial['score']:.1f}"))
    note = "dark: chosen   ·   right: score"
    return save(bar_panel("Search of hyperparameters on the validation subset", note, bars)[0], path)


@styled
def plot_ablations(results: dict, path: str | Path) -> Path:
    """results = {"rows": {"no-videos": {"changed": "training data", "to": "without videos", "paper_difference": -3.4,
    "shots": {"4": {"score": 67.8, "seeds": [67.0, 68.6], "difference": -1.2}, "32": {"score": 66.0}}}, ...}}."""
    rows, bars = list(results.get("rows", {}).values()), []
    for row in rows:
        cell, paper = row["shots"]["4"], row.get("paper_difference")
        text = f"{cell['score']:.1f}" + ("" if cell.get("difference") is None else f"   {cell['difference']:+.1f}")
        text += "" if paper is None else f"   (paper {paper:+.1f})"
        bars.append((f"{row['changed']}: {row['to']}".removeprefix("-: "), cell["score"], PINK if bars else INK, text))
    note = "dot: one seed   ·   diamond: 32 shots   ·   right: score, difference from the first row (the same in the paper)"
    figure, axes = bar_panel("One change at a time: score with 4 shots", note, bars)
    for y, row in enumerate(rows):
        seeds, more = row["shots"]["4"].get("seeds", []), row["shots"].get("32", {})
        axes.plot(seeds, [y] * len(seeds), "o", color="white", markeredgecolor=INK, gid="seeds")
        axes.plot(more.get("score", math.nan), y, "D", color="white", markeredgecolor=INK)
    axes.set_xlim(0, 100)
    return save(figure, path)


@styled
def plot_bench(result: dict, path: str | Path) -> Path:
    """result = {"device": "cpu", "against": "open_flamingo_peer.py", "rows": {"32-shot prompt": {"unit": "s", "fast": 0.6,
    "plain": 0.8, "peer": 1.5}, ...}}. "plain" and "peer" may be missing."""
    peer, bars = Path(result.get("against") or "").stem, []
    versions = {"fast": ("minFlamingo", PINK), "plain": ("without fast.py", PALE), "peer": (peer, INK)}
    for label, row in result["rows"].items():
        for version in (version for version in versions if version in row):
            name, colour = versions[version]
            text = f"{row[version]:.3g} {row['unit']}   {name}"
            bars.append((label if version == "fast" else "", row[version] / row["fast"], colour, text))
    note = f"{result['device']}   ·   shorter bars are better   ·   right: medians"
    return save(bar_panel("Time and memory relative to minFlamingo", note, bars)[0], path)


@styled
def plot_world(examples: list[tuple[np.ndarray, str]], path: str | Path) -> Path:
    """Images and videos with their captions."""
    figure, grid = panels(len(examples), "Images and videos of the toy world", columns=7, size=(1.6, 2.0))
    for axes, (media, text) in zip(grid, examples):
        image_panel(axes, media, text)
    return save(figure, path)


@styled
def plot_prompts(examples: list[dict], path: str | Path) -> Path:
    """One row per prompt: the shots, the query with a frame, and the completion of the model.

    example = {"title": "binding", "pieces": [image, "This is a dak.", ..., image, "This is a"], "completion": " dak.",
    "answer": " dak.", "correct": True}. Each image or video begins a shot or the query.
    """
    prompts = []  # the (media, text) pairs of each prompt
    for pieces in (example["pieces"] for example in examples):
        starts = [i for i, piece in enumerate(pieces) if not isinstance(piece, str)]
        prompts.append([(pieces[i], "".join(pieces[i + 1 : end])) for i, end in pairwise([*starts, len(pieces)])])
    columns = max(map(len, prompts), default=0) + 1
    figure, grid = panels(columns * len(prompts), "Prompts and completions", columns=columns, size=(1.6, 2.1))
    for k, (example, prompt) in enumerate(zip(examples, prompts)):
        *shown, end = grid[k * columns : k * columns + len(prompt) + 1]
        for axes, (media, text) in zip(shown, prompt):
            image_panel(axes, media, text)
        shown[0].set_title(example["title"].replace("_", " "))
        shown[-1].spines[:].set(visible=True, color=PINK, linewidth=2)
        mark, colour = ("✓", LIGHT_GREEN) if example["correct"] else ("✗", LIGHT_PINK)
        bubble = {"boxstyle": "round,pad=0.6", "facecolor": colour, "linewidth": 0}
        end.text(0.08, 0.5, textwrap.fill(f"{mark} {example['completion'].strip()}", 15), va="center", fontsize=11, bbox=bubble)
        answer = "" if example["correct"] else f"right answer: {example['answer'].strip()}"
        end.text(0, -0.06, textwrap.fill(answer, 20), va="top", color=GREY)
    for axes in (axes for axes in grid if not axes.images):
        axes.axis("off")
    return save(figure, path)


@styled
def plot_attention(image: np.ndarray, tokens: list[str], maps: np.ndarray, path: str | Path) -> Path:
    """The patches that each of L tokens attends to: maps (L, h, w) >= 0, each scaled by its own maximum."""
    note = "bright: the token attends to this part of the image"
    figure, grid = panels(len(tokens) + 1, "Attention of each token to the image", note, columns=8, size=(1.5, 1.8))
    image_panel(grid[0], image, title="the image")
    for axes, token, attention in zip(grid[1:], tokens, maps, strict=True):
        heat = Image.fromarray(attention / max(attention.max(), 1e-12)).resize(image.shape[1::-1], Image.Resampling.BICUBIC)
        heat = np.asarray(heat).clip(0, 1)
        lit = image * (0.25 + 0.75 * heat[..., None]) + 75 * colormaps["inferno"](0.85 * heat)[..., :3]
        image_panel(axes, lit.clip(0, 255).astype(np.uint8), title=token.strip()[:12] or repr(token))
    return save(figure, path)
