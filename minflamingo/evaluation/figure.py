"""The figures of an evaluation: score against shots, laid out like the paper's figure 2; and the grid of a fine-tuning.

    plot_scores(results, "shots.png")      results as `python -m minflamingo eval` writes them: a panel a task, the mean first
    plot_grid(results, "grid.png")         as `finetune` writes them: learning rate × steps, best over the other axes

    results = {"mean": {"0_text": 0.31, "4": 0.52, …},
               "tasks": {"vqav2": {"metric": "vqa", "shots": {"4": {"score": 49.0, "interval": [47.1, 50.8]}, …}}, …}}

Example: nine toy tasks are ten panels, two lines of five; one task alone is one panel.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..plots import BOLD, DPI, GREY, INK, PINK, require, save, tidy

UNITS = {"cider": "CIDEr", "bleu4": "BLEU-4", "vqa": "VQA accuracy", "top1": "top-1", "auc": "ROC AUC", "ndcg": "NDCG"}


def panel(axes: Axes, title: str, ticks: list[str], points: dict[str, tuple[float, float, float]], top: float) -> None:
    """`points`: shots → score, low, high. `top`: where the scale ends, if no point is above."""
    tidy(axes, title)
    x = [k for k, s in enumerate(ticks) if s in points]
    score, low, high = np.array([points[ticks[k]] for k in x]).T
    colour = INK if title.startswith("mean") else PINK
    axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    axes.plot(x, score, color=colour, linewidth=2.2, gid=title)
    dots = ["white" if ticks[k].startswith("0") else colour for k in x]  # nothing to look at but the query
    axes.scatter(x, score, s=24, c=dots, edgecolors=colour, linewidths=1.4, zorder=3, clip_on=False)
    last = f"{score[-1]:.2f}" if top <= 1 else f"{score[-1]:.0f}"
    axes.text(x[-1] + 0.25, score[-1], last, va="center", fontsize=10, **{**BOLD, "color": colour})
    axes.set(xlim=(-0.4, len(ticks) - 0.1), ylim=(0, max(top, 1.05 * float(high.max()))))
    axes.set_xticks(range(len(ticks)), [s.replace("_", "\n") if "_" in s else f"{s}\n" for s in ticks])


def scores_figure(results: dict) -> Figure:
    """Raises ValueError where there is no score at all."""
    tasks = {
        name: {s: (c["score"], *c["interval"]) for s, c in task["shots"].items() if "score" in c}
        for name, task in results.get("tasks", {}).items()
    }
    tasks = {name: points for name, points in tasks.items() if points}
    require([dict(points) for points in tasks.values()], (), "scores")
    ticks = list(dict.fromkeys(s for points in tasks.values() for s in points))
    mean = {s: (value,) * 3 for s, value in results.get("mean", {}).items()} if len(tasks) > 1 else {}
    n = len(tasks) + bool(mean)
    columns = min(n, 5 if n > 8 else 4)
    lines = -(-n // columns)
    width, height = 360 * columns + 90, 350 * lines + 200
    figure = Figure((width / DPI, height / DPI), DPI, facecolor="white")
    figure.subplots_adjust(75 / width, 125 / height, 1 - 25 / width, 1 - 120 / height, 0.24, 0.52)
    figure.suptitle("Score against the number of shots", x=75 / width, ha="left", fontsize=14, **BOLD)
    notes = "band: 95% interval   ·   hollow: no image but the query's   ·   mean: of shares of what right answers would score"
    if width < 1000:
        notes = "band: 95% interval   ·   hollow: no image but the query's"
    figure.text(75 / width, 24 / height, notes, fontsize=9.5, color=GREY)
    if mean:
        panel(figure.add_subplot(lines, columns, 1), "mean", ticks, mean, 1.0)
    for k, (name, points) in enumerate(tasks.items()):
        axes = figure.add_subplot(lines, columns, k + 1 + bool(mean))
        metric = results["tasks"][name]["metric"]
        panel(axes, name.replace("_", " "), ticks, points, 100.0)
        axes.text(0, 1.01, UNITS.get(metric, metric), transform=axes.transAxes, fontsize=8.5, va="bottom", color=GREY)
        axes.title.set_position((0, 1.0))
        axes.set_title(axes.get_title(loc="left"), loc="left", fontsize=11, pad=17, **BOLD)
    return figure


def plot_scores(results: dict, path: str | Path) -> Path:
    return save(scores_figure(results), path)


# ------------------------------------------------------------------------------------------------ the grid of fine-tuning


def cells_of(grid: list[dict]) -> dict[tuple[float, int], tuple[float, bool]]:
    """Jobs → (learning rate, steps) → the best score over the other axes, and whether it was reached in the last round.

    Rounds are not mixed: of a cell counts the furthest round that one of its points came to.
    """
    last = max(job["round"] for job in grid)
    cells: dict[tuple[float, int], tuple[int, float]] = {}
    for job in grid:
        key, found = (job["point"]["lr"], job["point"]["steps"]), (job["round"], job["score"])
        cells[key] = max(found, cells.get(key, found))
    return {key: (score, number == last) for key, (number, score) in cells.items()}


def heat_map(axes: Axes, title: str, unit: str, grid: list[dict], chosen: dict) -> None:
    """Rows: learning rates, the highest on top. Columns: steps. The chosen point's cell has a frame."""
    cells = cells_of(grid)
    rates, steps = sorted({lr for lr, _ in cells}), sorted({n for _, n in cells})
    scores = np.array([[cells[lr, n][0] for n in steps] for lr in rates])
    low, high = float(scores.min()), float(scores.max())
    floor = low - 0.35 * (high - low or 1)  # the darkest colours would not show the figures
    image = axes.imshow(scores, colormaps["magma"], origin="lower", aspect="auto", vmin=floor, vmax=high)
    image.set_gid(title)
    for row, lr in enumerate(rates):
        for column, n in enumerate(steps):
            score, in_full = cells[lr, n]
            red, green, blue, _ = image.cmap(image.norm(score))
            dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
            style = {**BOLD, "color": "white" if dark else INK, "fontsize": 9.5, "ha": "center", "va": "center"}
            axes.text(column, row, f"{score:.1f}" + "*" * (not in_full), **style)
    at = steps.index(chosen["steps"]) - 0.5, rates.index(chosen["lr"]) - 0.5
    axes.add_patch(Rectangle(at, 1, 1, fill=False, edgecolor=PINK, linewidth=3.2, clip_on=False, zorder=3))
    tidy(axes, title)
    axes.set_title(axes.get_title(loc="left"), loc="left", fontsize=11, pad=17, **BOLD)
    axes.text(0, 1.02, unit, transform=axes.transAxes, fontsize=8.5, va="bottom", color=GREY)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_xticks(range(len(steps)), map(str, steps))
    axes.set_yticks(range(len(rates)), [f"{lr:g}" for lr in rates])


def grid_figure(results: dict) -> Figure:
    """A panel a task. Raises ValueError where there is no grid."""
    tasks = results.get("tasks", {})
    require(list(tasks.values()), ("grid", "point", "metric"), "task")
    n, widest = len(tasks), max(len({j["point"]["steps"] for j in task["grid"]}) for task in tasks.values())
    columns = min(n, 5 if n > 4 else 4)
    lines = -(-n // columns)
    width, height = max(620, columns * (190 + 95 * max(widest, 2)) + 60), 350 * lines + 230
    figure = Figure((width / DPI, height / DPI), DPI, facecolor="white")
    figure.subplots_adjust(105 / width, 150 / height, 1 - 25 / width, 1 - 150 / height, 0.42, 0.62)
    figure.suptitle("Grid search on the validation subset", x=75 / width, ha="left", fontsize=14, **BOLD)
    for k, (name, task) in enumerate(tasks.items()):
        axes = figure.add_subplot(lines, columns, k + 1)
        unit = UNITS.get(task["metric"], task["metric"])
        heat_map(axes, name.replace("_", " "), unit, task["grid"], task["point"])
        if k % columns == 0:
            axes.set_ylabel("learning rate", fontsize=9.5, color=GREY)
        if k + columns >= n:
            axes.set_xlabel("steps", fontsize=9.5, color=GREY)
    notes = ["best over the other axes   ·   frame: chosen"]
    if any(not in_full for task in tasks.values() for _, in_full in cells_of(task["grid"]).values()):
        notes.append("*: no point of it came to the last round")
    between = "   ·   " if width > 900 else "\n"
    figure.text(75 / width, 24 / height, between.join(notes), fontsize=9.5, color=GREY)
    return figure


def plot_grid(results: dict, path: str | Path) -> Path:
    return save(grid_figure(results), path)
