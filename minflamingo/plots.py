"""Every figure of the README, the commands and the tutorials: numbers or images in, a PNG file out.

    train_tiny.py   plot_shots, plot_loss, plot_gates, plot_prompts, plot_world, plot_attention
    commands        plot_shots (eval), plot_grid (finetune), plot_ablations (ablate), plot_bench (bench)
    README          plot_architecture: figure 3 of the paper in the terms of this code

Each function takes data and a path, writes the file and returns the path. It raises ValueError if there is nothing to draw.
They use `Figure` instead of pyplot: they need no display and change no global state. A "$" in a text is only a "$".
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from PIL import Image

DPI = 150
INK, GREY, PALE, PINK = "#1f2733", "#5b6676", "#d0d5dd", "#c2255c"
CARD, LIGHT_PINK, LIGHT_BLUE, LIGHT_GREEN = "#edf1f7", "#fbc4d4", "#d3e3f7", "#cfeedd"
COLOURS = INK, PINK, "#1864ab", "#b35c00", "#5f3dc4"
STYLE = {
    "text.parse_math": False, "text.color": INK, "figure.dpi": DPI, "figure.facecolor": "white", "legend.frameon": False,
    "figure.titlesize": 14, "figure.titleweight": "bold", "axes.titlelocation": "left", "axes.titlesize": 11,
    "axes.titleweight": "bold", "axes.titlepad": 8, "axes.labelcolor": GREY, "axes.labelsize": 9, "axes.edgecolor": PALE,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "axes.grid": True, "axes.grid.axis": "y",
    "grid.color": "#eef0f3", "xtick.color": GREY, "ytick.color": GREY, "xtick.labelsize": 8.5, "ytick.labelsize": 8.5,
    "xtick.major.size": 0, "ytick.major.size": 0, "legend.fontsize": 9, "legend.labelcolor": "linecolor", "font.size": 9.5,
}  # fmt: skip
styled = rc_context(STYLE)  # a decorator: the style is active inside the function only


def save(figure: Figure, path: str | Path) -> Path:
    """Write a PNG with 256 colours: a third of the size."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    (canvas := FigureCanvasAgg(figure)).draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    image = image.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=2)  # the default method loses rare colours
    image.save(path, format="PNG", optimize=True, dpi=(DPI, DPI))
    return Path(path)


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


def running_mean(y: np.ndarray, window: int) -> np.ndarray:
    """The mean of `window` neighbours (an odd number); fewer at the ends: [0, 3, 6], 3 -> [1.5, 3, 4.5]."""
    total, count = (np.convolve(np.pad(v, window // 2), np.ones(window), "valid") for v in (y, np.ones(len(y))))
    return total / count


def line_panel(axes: Axes, lines: dict[str, tuple], colours: Sequence, *, window: int = 1, form: str = ".2f", **labels) -> None:
    """Lines: label -> (x, y). Drawn is the running mean over `window` values; the values themselves are pale."""
    top = 1e-9
    for (label, (x, y)), colour in zip(lines.items(), colours):
        mean = running_mean(np.asarray(y), window)
        axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.2, gid="values")
        axes.plot(x, mean, color=colour, linewidth=2, label=f"{label}: {mean[-1]:{form}}", gid=label)
        top = max(top, 1.08 * mean.max())
    if len(lines) == 1:
        style = {"va": "center", "color": colour, "fontweight": "bold"}
        axes.annotate(f"{mean[-1]:{form}}", (x[-1], mean[-1]), (7, 0), textcoords="offset points", **style)
    else:
        axes.legend()
    axes.set(ylim=(0, top), **labels)


@styled
def plot_shots(results: dict, path: str | Path) -> Path:
    """results = {"tasks": {task: {"unit": "VQA accuracy", "chance": 25.0, "shots": {"0_text": cell, "4": cell, ...}}, ...},
    "mean": {"0_text": 41.0, "4": 52.0, ...}} with cell = {"score": 49.0, "interval": [47.1, 50.8]}.
    "unit", "chance" and "mean" may be missing. Cells without a score are left out."""
    tasks = results.get("tasks", {})
    if len(tasks) > 1:
        mean = {s: {"score": score, "interval": [score, score]} for s, score in results.get("mean", {}).items()}
        tasks = {"mean": {"unit": "mean of the tasks", "shots": mean}} | tasks
    curves = {name: {s: c for s, c in task["shots"].items() if "score" in c} for name, task in tasks.items()}
    curves = {name: cells for name, cells in curves.items() if cells}
    shots = list(dict.fromkeys(s for cells in curves.values() for s in cells))
    note = "band: 95% interval   ·   ring: the query's image is the only one   ·   dashed: chance"
    figure, grid = panels(len(curves), "Score against the number of shots in the prompt", note, size=(2.5, 2.3))
    for axes, (name, cells) in zip(grid, curves.items()):
        x, y = [shots.index(s) for s in cells], np.array([c["score"] for c in cells.values()])
        low, high = np.array([c["interval"] for c in cells.values()]).T
        colour = INK if name == "mean" else PINK
        line_panel(axes, {name: (x, y)}, [colour], form=".0f", title=name.replace("_", " "))
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
        inside = ["white" if s.startswith("0") else colour for s in cells]
        axes.scatter(x, y, s=28, c=inside, edgecolors=colour, linewidths=1.4, zorder=3, clip_on=False)
        if chance := tasks[name].get("chance"):
            axes.axhline(chance, color=GREY, linewidth=1.1, linestyle="--", gid="chance")
        axes.set(xlim=(-0.4, len(shots) - 0.6), ylim=(0, max(104, 1.04 * high.max())), ylabel=tasks[name].get("unit", "score"))
        axes.set_xticks(range(len(shots)), [s.replace("_", "\n") for s in shots])
    return save(figure, path)


def column(rows: list[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one column, without the rows in which it is empty."""
    pairs = [(float(row["step"]), float(row[name])) for row in rows if row.get(name) not in (None, "")]
    if not pairs:
        raise ValueError(f"no numbers in column {name!r}")
    return tuple(np.array(pairs).T)


@styled
def plot_loss(rows: list[dict], path: str | Path) -> Path:
    """rows as read from a CSV file: "stage", "step", "loss", and optional columns loss_* for the parts of the loss."""
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    figure, grid = panels(
        len(stages), "Training loss of each stage", "line: running mean   ·   pale: single steps", size=(3.6, 2.5)
    )
    for axes, stage in zip(grid, stages):
        part = [row for row in rows if row["stage"] == stage]
        found = sorted({c for row in part for c in row if c.startswith("loss_") and row[c] not in (None, "")})
        lines = {c.removeprefix("loss_").replace("loss", "all"): column(part, c) for c in ("loss", *found)}
        line_panel(axes, lines, COLOURS, window=len(part) // 32 * 2 + 1, title=stage, xlabel="step", ylabel="loss")
    return save(figure, path)


@styled
def plot_gates(rows: list[dict], path: str | Path) -> Path:
    """Columns alpha_xattn_0, ..., alpha_dense_0, ... of the stage "flamingo": |tanh(alpha)|, 0 where a gate is closed."""
    rows = [row for row in rows if row.get("stage") == "flamingo"]
    figure, grid = panels(2, "The gates open during training", size=(4, 2.6))
    for axes, kind, title in zip(grid, ("xattn", "dense"), ("gates of cross-attention", "gates of the feed-forward blocks")):
        blocks = sorted({int(c.split("_")[2]) for row in rows for c in row if c.startswith(f"alpha_{kind}_")}) or [0]
        lines = {f"LM block {k}": column(rows, f"alpha_{kind}_{k}") for k in blocks}
        shades = colormaps["plasma"](np.linspace(0, 0.72, len(blocks)))
        line_panel(axes, lines, shades, title=title, xlabel="step", ylabel="|tanh(alpha)|")
    return save(figure, path)


@styled
def plot_grid(results: dict, path: str | Path) -> Path:
    """results = {"tasks": {task: {"unit": "VQA accuracy", "hyperparameters": {"lr": 2e-4, "steps": 80}, "grid": [trial, ...]}}}
    with trial = {"hyperparameters": {"lr": 2e-4, "steps": 80, ...}, "round": 0, "score": 94.5}."""
    tasks = results.get("tasks", {})
    note = "number: best score over the other hyperparameters   ·   frame: chosen   ·   *: did not reach the last round"
    figure, grid = panels(len(tasks), "Grid search on the validation subset", note, size=(2.9, 2.5))
    for axes, (name, task) in zip(grid, tasks.items()):
        best: dict[tuple, tuple] = {}  # (learning rate, steps) -> (last round, best score in that round)
        for trial in task["grid"]:
            key = trial["hyperparameters"]["lr"], trial["hyperparameters"]["steps"]
            best[key] = max(best.get(key, (-1, 0.0)), (trial["round"], trial["score"]))
        rates, steps = (sorted(set(values)) for values in zip(*best))
        scores = np.array([[best.get((lr, n), (0, np.nan))[1] for n in steps] for lr in rates])
        axes.imshow(scores, "Blues", origin="lower", aspect="auto")
        for (lr, n), (number, score) in best.items():
            text = f"{score:.1f}" + "*" * (number < max(best.values())[0])
            colour = "white" if score > (np.nanmin(scores) + np.nanmax(scores)) / 2 else INK
            axes.text(steps.index(n), rates.index(lr), text, color=colour, ha="center", va="center")
        corner = steps.index(task["hyperparameters"]["steps"]) - 0.5, rates.index(task["hyperparameters"]["lr"]) - 0.5
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=PINK, linewidth=3, clip_on=False, zorder=3))
        axes.set(title=f"{name.replace('_', ' ')}\n{task.get('unit', '')}".strip(), xlabel="steps", ylabel="learning rate")
        axes.set_xticks(range(len(steps)), map(str, steps))
        axes.set_yticks(range(len(rates)), [f"{lr:g}" for lr in rates])
        axes.grid(False)
    return save(figure, path)


def bar_figure(title: str, note: str, rows: dict[str, list[tuple]]) -> tuple[Figure, Axes]:
    """Horizontal bars: label -> its bars, each (value, colour, text at the right). The dashed line shows the first value."""
    n_bars = sum(map(len, rows.values()))
    figure, (axes,) = panels(min(1, n_bars), title, note, size=(9, 0.17 * n_bars + 0.16 * len(rows) + 0.4))
    for k, bars in enumerate(rows.values()):
        for i, (value, colour, text) in enumerate(bars):
            y = k - 0.4 + 0.8 * (i + 0.5) / len(bars)
            axes.barh(y, value, 0.7 / len(bars), color=colour)
            axes.text(1.02, y, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    axes.axvline(axes.patches[0].get_width(), color=GREY, linewidth=1.1, linestyle="--")
    axes.set_yticks(range(len(rows)), rows, color=INK, fontsize=9.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)  # the first row on top
    axes.grid(False, axis="y")
    axes.grid(True, axis="x")
    return figure, axes


@styled
def plot_ablations(results: dict, path: str | Path) -> Path:
    """results = {"rows": {"no-videos": {"changed": "training data", "to": "without videos", "paper_difference": -3.4,
    "shots": {"4": {"score": 67.8, "seeds": [67.0, 68.6], "difference": -1.2}, "32": {"score": 66.0}}}, ...}}."""
    rows = list(results.get("rows", {}).values())
    bars = {}
    for row in rows:
        four, paper = row["shots"]["4"], row.get("paper_difference")
        text = f"{four['score']:.1f}" + ("" if four.get("difference") is None else f"   {four['difference']:+.1f}")
        text += "" if paper is None else f"   (paper {paper:+.1f})"
        bars[f"{row['changed']}: {row['to']}".removeprefix("-: ")] = [(four["score"], PINK if bars else INK, text)]
    note = "dot: one seed   ·   diamond: 32 shots   ·   right: score, difference from the first row (the same in the paper)"
    figure, axes = bar_figure("One change at a time: score with 4 shots", note, bars)
    for y, row in enumerate(rows):
        for shots, marker in (("4", "o"), ("32", "D")):
            cell = row["shots"].get(shots, {})
            values = cell.get("seeds", []) if shots == "4" else [cell.get("score", np.nan)]
            axes.plot(values, [y] * len(values), marker, color="white", markeredgecolor=INK, gid=shots)
    axes.set_xlim(0, 100)
    return save(figure, path)


@styled
def plot_bench(result: dict, path: str | Path) -> Path:
    """result = {"device": "cpu", "against": "open_flamingo_peer.py", "rows": {"32-shot prompt": {"unit": "s", "fast": 0.6,
    "plain": 0.8, "peer": 1.5}, ...}}. "plain" and "peer" may be missing."""
    peer = Path(result.get("against") or "").stem
    versions = ("fast", "minFlamingo", PINK), ("plain", "without fast.py", PALE), ("peer", peer, INK)
    bars = {}
    for label, row in result["rows"].items():
        present = [version for version in versions if version[0] in row]
        bars[label] = [(row[k] / row["fast"], colour, f"{row[k]:.3g} {row['unit']}   {name}") for k, name, colour in present]
    note = f"{result['device']}   ·   shorter bars are better   ·   right: medians"
    return save(bar_figure("Time and memory relative to minFlamingo", note, bars)[0], path)


def image_panel(axes: Axes, media: np.ndarray | None, text: str = "") -> None:
    """An image (H, W, 3) with its text below. Of a video (T, H, W, 3): four frames in reading order. None: a blank image."""
    media = np.full((1, 1, 3), 238, np.uint8) if media is None else np.asarray(media)
    if media.dtype != np.uint8 or media.ndim not in (3, 4) or media.shape[-1] != 3 or media.size == 0:
        raise ValueError(f"expected an image (H, W, 3) or a video (T, H, W, 3) of uint8, found {media.dtype} {media.shape}")
    if media.ndim == 4:
        frames = media[np.linspace(0, len(media) - 1, 4).round().astype(int)]
        frames = np.pad(frames, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)  # (4, H+2, W+2, 3)
        media = np.vstack([np.hstack(frames[:2]), np.hstack(frames[2:])])
    axes.imshow(media, interpolation="nearest")
    axes.set_xlabel(textwrap.fill(text.strip(), 21), color=INK)
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)


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

    example = {"title": "binding", "pieces": [image, "This is a dax.", EOC, ..., image, "This is a"], "completion": " dax.",
    "answer": " dax.", "correct": True}.
    """
    rows = []  # the (media, text) pairs of each prompt
    for example in examples:
        pairs: list[list] = [[None, ""]]
        for piece in example["pieces"]:
            if isinstance(piece, str):
                pairs[-1][1] += piece
            else:  # an image or a video begins a new pair; so does the text after an EOC
                pairs.append([piece if hasattr(piece, "shape") else None, ""])
        rows.append([pair for pair in pairs if pair[0] is not None or pair[1]])
    columns = max(map(len, rows), default=0) + 1
    figure, grid = panels(columns * len(rows), "Prompts and completions", columns=columns, size=(1.6, 2.1))
    for k, (example, pairs) in enumerate(zip(examples, rows)):
        *shown, end = grid[k * columns : k * columns + len(pairs) + 1]
        for axes, (media, text) in zip(shown, pairs):
            image_panel(axes, media, text)
        shown[0].set_title(example["title"].replace("_", " "))
        shown[-1].spines[:].set(visible=True, color=PINK, linewidth=2)
        mark, colour = ("✓", LIGHT_GREEN) if example["correct"] else ("✗", LIGHT_PINK)
        bubble = {"boxstyle": "round,pad=0.6", "facecolor": colour, "linewidth": 0}
        end.text(0.08, 0.5, textwrap.fill(f"{mark} {example['completion'].strip()}", 15), va="center", fontsize=11, bbox=bubble)
        answer = "" if example["correct"] else f"right answer: {example['answer'].strip()}"
        end.text(0, -0.06, textwrap.fill(answer, 20), va="top", color=GREY)
    for axes in grid:
        if not axes.images:
            axes.axis("off")
    return save(figure, path)


@styled
def plot_attention(image: np.ndarray, tokens: list[str], maps: np.ndarray, path: str | Path, predicted: str = "") -> Path:
    """The patches that each of L tokens attends to: maps (L, h, w) >= 0, each scaled by its own maximum."""
    maps = np.asarray(maps, dtype=np.float32)
    if maps.ndim != 3 or not 0 < len(maps) == len(tokens):
        raise ValueError(f"expected one map (h, w) per token, found {len(tokens)} tokens and maps of shape {maps.shape}")
    note = "bright: the token attends to this part of the image" + f"   ·   next token: {predicted.strip()}" * bool(predicted)
    figure, grid = panels(len(tokens) + 1, "Attention of each token to the image", note, columns=8, size=(1.5, 1.8))
    image_panel(grid[0], image)
    grid[0].set_title("the image")
    for axes, token, attention in zip(grid[1:], tokens, maps):
        heat = Image.fromarray(attention / max(attention.max(), 1e-12)).resize(image.shape[1::-1], Image.Resampling.BICUBIC)
        heat = np.asarray(heat).clip(0, 1)
        lit = image * (0.25 + 0.75 * heat[..., None]) + 75 * colormaps["inferno"](0.85 * heat)[..., :3]
        image_panel(axes, lit.clip(0, 255).astype(np.uint8))
        axes.set_title(token.strip()[:12] or repr(token))
    return save(figure, path)


@styled
def plot_architecture(path: str | Path) -> Path:
    """Figure 3 of the paper: two images and a text go in at the bottom, the continuation of the text comes out at the top."""
    figure = Figure((10.5, 6.4))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 10.5), ylim=(0.1, 6.5))
    axes.axis("off")
    axes.text(0.4, 6.05, "Flamingo: images and text in, text out", fontsize=14, fontweight="bold")
    blocks = [
        (5.3, 0.5, 4.8, "<image> Output: a red star <EOC> <image> Output:", CARD),
        (5.8, 5.75, 3.2, "a blue circle <EOC>", CARD),
        (5.8, 1.75, 3.2, "GATED XATTN-DENSE", LIGHT_PINK), (5.8, 2.6, 3.2, "LM block 1", LIGHT_BLUE),
        (5.8, 4.0, 3.2, "GATED XATTN-DENSE", LIGHT_PINK), (5.8, 4.85, 3.2, "LM block n", LIGHT_BLUE),
        (9.3, 3.7, 0.9, "frozen", LIGHT_BLUE), (9.3, 2.9, 0.9, "trained", LIGHT_PINK),
    ]  # fmt: skip
    arrows = [[(7.4, y), (7.4, to)] for y, to in ((1.1, 1.75), (2.35, 2.6), (3.2, 4), (4.6, 4.85), (5.45, 5.75))]
    arrows += [[(5.3, 4.7), (5.3, y), (5.8, y)] for y in (2.05, 4.3)]
    for x, shape, colour in ((0.4, "*", "#d62f2f"), (2.3, "o", "#2f5fd6")):
        blocks += [(x, 1.75, 1.6, "Vision encoder", LIGHT_BLUE), (x, 2.9, 1.6, "Perceiver\nResampler", LIGHT_PINK)]
        arrows += [[(x + 0.8, y), (x + 0.8, to)] for y, to in ((1.25, 1.75), (2.35, 2.9), (3.5, 4.05))]
        axes.add_patch(Rectangle((x + 0.35, 0.35), 0.9, 0.9, facecolor="#2c3038"))
        axes.plot(x + 0.8, 0.8, shape, color=colour, markersize=26)
        axes.plot(x + 0.8 + 0.26 * np.arange(-1.5, 2), [4.2] * 4, "s", color=PINK, markersize=12)
        axes.plot([x + 0.8, x + 0.8, 5.3], [4.35, 4.7, 4.7], color=GREY, linewidth=1.5)
    for x, y, width, text, colour in blocks:
        style = {"boxstyle": "round,pad=0,rounding_size=0.1", "facecolor": colour, "linewidth": 0}
        axes.add_patch(FancyBboxPatch((x, y), width, 0.6, **style))
        axes.text(x + width / 2, y + 0.3, text, ha="center", va="center", fontsize=10)
    for *before, start, end in arrows:
        axes.plot(*zip(*before, start), color=GREY, linewidth=1.5)
        style = {"arrowstyle": "-|>", "color": GREY, "linewidth": 1.5, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", end, start, arrowprops=style)
    for y, text in ((0.8, "N images\nor videos"), (2.6, "N x S\nfeatures"), (3.8, "N x R\nvisual tokens")):
        axes.text(4.05, y, text, fontsize=9, color=GREY, va="center")
    return save(figure, path)
