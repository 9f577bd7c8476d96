"""Every figure of the README, of the runs and of the lessons: from plain numbers and pixels to a PNG.

    plot_shots(results, "shots.png")                   accuracy against the number of shots, one panel a task
    plot_loss(rows, "loss.png")                        the loss, one panel a stage of training
    plot_gates(rows, "gates.png")                      |tanh α| of every layer, opening from zero (paper §2.2)
    plot_prompts(examples, "prompts.png")              prompts and completions, like the paper's figure 1
    plot_attention(picture, tokens, maps, "look.png")  what each token looks at
    plot_world(examples, "world.png")                  pictures and films with their captions

Each returns the Path it wrote; a file appears whole or not at all, and what cannot be drawn is a ValueError. Nothing here is
pyplot: no backend and no style is switched for whoever imports this. `shots_figure(results)`, `loss_figure(rows)` and
`gates_figure(rows)` give the `Figure` itself; its lines carry what they show as their `gid`.

The others are slides: axes on which one unit is one pixel of the file, so that the small pictures of the toy world are
enlarged by whole numbers (48 × 3 = 144) and stay crisp.
"""

from __future__ import annotations

import os
import re
import tempfile
import textwrap
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyBboxPatch
from PIL import Image

DPI = 150
INK, GREY, PALE, CARD = "#1f2733", "#5b6676", "#d0d5dd", "#edf1f7"
PINK, BUBBLE, GREEN, RED = "#c2255c", "#fbc4d4", "#1b7f4b", "#c0272d"
SERIES = (INK, PINK, "#1864ab", "#b35c00", "#5f3dc4")


def new_figure(width: float, height: float) -> Figure:
    """White, `width` x `height` pixels."""
    figure = Figure(figsize=(round(width) / DPI, round(height) / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: str | Path, flat: bool = False) -> Path:
    """Draw beside the place, then move there: a reader never meets half a file. `flat`: 256 colours are enough."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".plot-") as folder:
        figure.canvas.draw()
        image = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
        image = image.quantize(256, dither=Image.Dither.NONE) if flat else image
        image.save(Path(folder) / "draft.png", optimize=True, dpi=(DPI, DPI))
        os.replace(Path(folder) / "draft.png", path)
    return path


def require(row: dict, names: tuple[str, ...], where: str) -> None:
    for name in names:
        if name not in row:
            raise ValueError(f"{where} has no {name!r}; it has {', '.join(map(repr, row)) or 'nothing'}")


# ── Curves ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def tidy(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, pad=7, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(colors=GREY, length=0, labelsize=8.5)
    axes.grid(axis="y", color="#eef0f3", linewidth=0.8)
    axes.set(axisbelow=True, facecolor="white")


def shots_figure(results: dict, trained_with: int = 8) -> Figure:
    """One panel a task: accuracy, its 95 % interval, chance dashed, and the other tasks in grey behind.

    results = {"tasks": {task: {"chance": 0.25 or None, "shots": {"4": {"accuracy": 0.9, "ci95": [0.88, 0.92]}, …}}}}; a number
    of shots may also be "0_text". More shots than `trained_with`, the most of any training page, stand on shaded ground.
    """
    tasks = results.get("tasks")
    if not tasks or not all(result.get("shots") for result in tasks.values()):
        raise ValueError('nothing to plot: results["tasks"], or the "shots" of a task, are missing or empty')
    for task, result in tasks.items():
        for shots, cell in result["shots"].items():
            if not re.fullmatch(r"\d+|0_text", shots):
                raise ValueError(f"task {task!r}: shots are a number or '0_text', not {shots!r}")
            require(cell, ("accuracy", "ci95"), f"task {task!r} with {shots} shots")
    ticks = sorted({s for result in tasks.values() for s in result["shots"]}, key=lambda s: (int(s.split("_")[0]), s))
    within = sum(int(s.split("_")[0]) <= trained_with for s in ticks)  # so many of the ticks are like training
    points = {}  # task → where on the x axis, accuracy, interval, in percent
    for task, result in tasks.items():
        cells = {k: result["shots"][s] for k, s in enumerate(ticks) if s in result["shots"]}
        accuracy, interval = (100 * np.array([c[key] for c in cells.values()]) for key in ("accuracy", "ci95"))
        points[task] = list(cells), accuracy, interval.T

    columns = min(5, max(2, len(tasks)))
    lines = -(-len(tasks) // columns)
    width, height = 360 * columns + 80, 350 * lines + 190
    figure = new_figure(width, height)
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    figure.subplots_adjust(75 / width, 140 / height, 1 - 20 / width, 1 - 110 / height, 0.10, 0.26)
    for axes, (task, (x, y, (low, high))) in zip(grid.flat, points.items()):
        tidy(axes, re.sub(r" (\d+)way$", r", \1-way", task.replace("_", " ")))
        if within < len(ticks):
            axes.axvspan(within - 0.5, len(ticks) + 0.75, color="#f4f1ea", linewidth=0, zorder=0)
            axes.axvline(within - 0.5, color=GREY, linewidth=0.9, linestyle=":", zorder=1)
        for other in points.keys() - {task}:
            axes.plot(*points[other][:2], color="#d9dee6", linewidth=0.9, zorder=1.5, gid="behind")
        if (chance := tasks[task].get("chance")) is not None:
            axes.axhline(100 * chance, color=PINK, linewidth=1.1, linestyle=(0, (4, 3)), zorder=2, gid="chance")
        axes.fill_between(x, low, high, color=PINK, alpha=0.18, linewidth=0, zorder=2)
        axes.plot(x, y, color=PINK, linewidth=2.2, zorder=3, gid=task)
        dots = ["white" if ticks[k] == "0_text" else PINK for k in x]
        axes.scatter(x, y, s=24, c=dots, edgecolors=PINK, linewidths=1.4, zorder=4, clip_on=False)
        axes.text(x[-1] + 0.3, y[-1], f"{y[-1]:.0f}%", va="center", fontsize=10, fontweight="bold", color=PINK)
        axes.set(xlim=(-0.4, len(ticks) + 0.75), ylim=(0, 104))
        axes.set_xticks(range(len(ticks)), [s.replace("_", "\n") if "_" in s else f"{s}\n" for s in ticks])
        axes.set_yticks(range(0, 101, 25), [f"{v}%" for v in range(0, 101, 25)])
    for axes in grid.flat[len(tasks) :]:
        axes.set_visible(False)
    title = {"fontsize": 14, "color": INK, "fontweight": "bold", "va": "top"}
    figure.text(75 / width, 1 - 28 / height, "Accuracy against the number of shots in the prompt", **title)
    notes = ["band: 95% interval"] + ["dashed: chance"] * any(t.get("chance") is not None for t in tasks.values())
    notes += ["hollow: two examples without their pictures"] * ("0_text" in ticks)
    notes += [f"shaded: more than the {trained_with} images of training"] * (within < len(ticks))
    notes = textwrap.wrap("  ·  ".join(note.replace(" ", "\0") for note in notes), width // 13)
    figure.text(75 / width, 24 / height, "\n".join(notes).replace("\0", " "), fontsize=9.5, color=GREY, va="bottom")
    return figure


def stages_of(rows: list[dict], columns: tuple[str, ...]) -> dict[str, list[dict]]:
    """Rows by stage, in order of appearance."""
    if not rows:
        raise ValueError("no rows to plot")
    stages: dict[str, list[dict]] = {}
    for k, row in enumerate(rows):
        require(row, columns, f"row {k}")
        stages.setdefault(row["stage"], []).append(row)
    return stages


def series(rows: list[dict], name: str) -> np.ndarray:
    """(2, n): steps and values of one column, without the rows where it is missing, empty or not finite."""
    try:
        points = [(float(row["step"]), float(row[name])) for row in rows if row.get(name) not in (None, "")]
    except ValueError as error:
        raise ValueError(f"column {name!r}: {error}") from None
    points = np.array([point for point in points if np.isfinite(point).all()]).T
    if points.size == 0:
        raise ValueError(f"column {name!r} of stage {rows[0]['stage']!r} holds no number")
    return points


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """A running mean of the same length; at the ends it averages what there is: smooth([0, 3, 6], 3) = [1.5, 3, 4.5]."""
    half = min(window, len(values)) // 2
    total, count = (np.convolve(v, np.ones(2 * half + 1)) for v in (values, np.ones(len(values))))
    return (total / count)[half : half + len(values)]


def spread(heights: list[float], gap: float) -> np.ndarray:
    """Heights moved as little as possible (least squares) until none is nearer than `gap` to the next.

    With k·gap taken off the k-th lowest, that is the nearest rising sequence: neighbours that fall are averaged.
    """
    order, blocks = np.argsort(heights, kind="stable"), []  # blocks of labels that touch: their heights, less k·gap
    for k, i in enumerate(order):
        blocks.append([heights[i] - k * gap])
        while len(blocks) > 1 and np.mean(blocks[-2]) >= np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    moved = np.empty(len(order))
    moved[order] = [np.mean(block) for block in blocks for _ in block] + gap * np.arange(len(order))
    return moved


def curves_figure(panels: dict[str, list[tuple]], raw: str = "", window: float = 0, together: bool = False) -> Figure:
    """A panel a title, in it lines (gid, label, colour, points), smoothed over this part of their length, labelled at
    their ends. The line called `raw` also shows as it is, faint. `together`: all panels have the same height."""
    width = 600 * len(panels) + 120
    figure = new_figure(width, 560)
    grid = figure.subplots(1, len(panels), sharey=together, squeeze=False)
    figure.subplots_adjust(80 / width, 0.16, 1 - 170 / width, 0.86, 0.56)
    for axes, (title, lines) in zip(grid.flat, panels.items()):
        tidy(axes, title)
        for gid, _, colour, (x, y) in lines:
            axes.plot(x, smooth(y, int(window * len(y))), color=colour, linewidth=2, gid=gid, zorder=3 + (gid == raw))
            if gid == raw:
                axes.plot(x, y, color=colour, alpha=0.25, linewidth=0.8, gid="raw")
        axes.margins(x=0)
        axes.set_ylim(bottom=0)
        axes.tick_params(labelleft=True)
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel("step", fontsize=9.5, color=GREY)
    for axes, lines in zip(grid.flat, panels.values()):  # only now are the heights of all panels known
        ends = [smooth(y, int(window * len(y)))[-1] for *_, (_, y) in lines]
        gap = axes.get_ylim()[1] * 26 / (0.70 * 560)  # a line of text is 26 pixels high
        for (_, label, colour, _), end, y in zip(lines, ends, spread(ends, gap)):
            style = {"color": colour, "fontsize": 9, "fontweight": "bold", "va": "center", "parse_math": False}
            axes.text(1.03, y, label.format(end), transform=axes.get_yaxis_transform(), **style)
    return figure


def loss_figure(rows: list[dict]) -> Figure:
    """Rows as a CSV reader gives them, {"stage", "step", "loss", …}; columns loss_* that hold numbers get lines as well."""
    panels = {}
    for stage, of_stage in stages_of(rows, ("stage", "step", "loss")).items():
        found = {c for row in of_stage for c in row if c.startswith("loss_") and row[c] not in (None, "")}
        lines = panels[f"{stage}: loss"] = [("loss", "all {:.2f}" if found else "{:.2f}", INK, series(of_stage, "loss"))]
        for k, name in enumerate(sorted(found), 1):
            lines.append((name, f"{name[5:]} {{:.2f}}", SERIES[k % len(SERIES)], series(of_stage, name)))
    return curves_figure(panels, raw="loss", window=0.06)


def gates_figure(rows: list[dict]) -> Figure:
    """Columns alpha_xattn_0, …, alpha_dense_0, … of the stage "flamingo": |tanh α|, 0 where a gate is shut."""
    of_stage = stages_of(rows, ("stage", "step")).get("flamingo", [])
    panels = {}
    for kind, title in (("xattn", "cross-attention"), ("dense", "dense layers")):
        found = {int(c.split("_")[-1]) for row in of_stage for c in row if re.fullmatch(rf"alpha_{kind}_\d+", c)}
        if not found:
            raise ValueError(f"no columns alpha_{kind}_0, alpha_{kind}_1, … in the rows of stage 'flamingo'")
        panels[f"{title}: |tanh α|"] = [
            (f"alpha_{kind}_{k}", f"layer {k}", colormaps["plasma"](0.72 * k / (max(found) or 1)), series(of_stage, f"alpha_{kind}_{k}"))
            for k in sorted(found)
        ]  # fmt: skip
    return curves_figure(panels, together=True)


def plot_shots(results: dict, path: str | Path, trained_with: int = 8) -> Path:
    return save(shots_figure(results, trained_with), path, flat=True)


def plot_loss(rows: list[dict], path: str | Path) -> Path:
    return save(loss_figure(rows), path, flat=True)


def plot_gates(rows: list[dict], path: str | Path) -> Path:
    return save(gates_figure(rows), path, flat=True)


# ── Slides ───────────────────────────────────────────────────────────────────────────────────────────────────────────

PICTURE, FRAME, PAD, GAP = 144, 96, 16, 14  # pixels: a picture, a frame of a film, inside a card, between cards
COLUMN = PICTURE + 4 * PAD  # the width of a card
LINE = 1.3 * DPI / 72  # a line of text: pixels per point of its size
RULER = RendererAgg(1, 1, DPI)  # it measures text


def wrap(text: str, width: float, size: float, bold: bool = False) -> list[str]:
    """Text cut into lines of at most `width` pixels, within a word only where one is wider than that."""
    font = FontProperties(size=size, weight="bold" if bold else "normal")
    for letters in range(min(len(text), int(width / size)) or 1, 0, -1):
        lines = textwrap.wrap(text, letters)
        if all(RULER.get_text_width_height_descent(line, font, False)[0] <= width for line in lines):
            break
    return lines


def slide(width: float, height: float) -> tuple[Figure, Axes]:
    """A page measured in pixels, from its top left corner."""
    figure = new_figure(width, height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, round(width)), ylim=(round(height), 0))
    axes.axis("off")
    return figure, axes


def box(axes: Axes, x: float, y: float, width: float, height: float, colour: str, radius: float, **more) -> FancyBboxPatch:
    style = {"boxstyle": f"round,pad=0,rounding_size={radius}", "linewidth": 0, "facecolor": colour, **more}
    return axes.add_patch(FancyBboxPatch((x, y), width, height, **style))


def write(axes: Axes, x: float, y: float, lines: list[str], size: float, **more) -> float:
    """Lines of text from `y` downwards, literally: a "$" is a "$". Returns where they end."""
    for k, line in enumerate(lines):
        style = {"fontsize": size, "va": "center_baseline", "color": INK, "parse_math": False, **more}
        axes.text(x, y + (k + 0.5) * size * LINE, line, **style)
    return y + len(lines) * size * LINE


def show(axes: Axes, picture: np.ndarray, x: float, y: float, size: int, radius: float = 8) -> None:
    """A picture (H, W, 3), enlarged or shrunk to `size` pixels a side, with round corners."""
    way = Image.Resampling.NEAREST if len(picture) <= size else Image.Resampling.LANCZOS
    x, y, pixels = round(x), round(y), np.asarray(Image.fromarray(picture).resize((size, size), way))
    shown = axes.imshow(pixels, extent=(x, x + size, y + size, y), interpolation="nearest", aspect="auto", zorder=2)
    shown.set_clip_path(box(axes, x, y, size, size, "none", radius))
