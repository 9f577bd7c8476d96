"""The figure of an evaluation, laid out like the paper's figure 2: score against shots, a panel a task, the mean first.

    plot_scores(results, "shots.png")      results as `python -m minflamingo eval` writes them

    results = {"mean": {"0_text": 0.31, "4": 0.52, …},
               "tasks": {"vqav2": {"metric": "vqa", "shots": {"4": {"score": 49.0, "interval": [47.1, 50.8]}, …}}, …}}

Example: nine toy tasks are ten panels, two lines of five; one task alone is one panel.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
