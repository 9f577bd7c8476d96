"""Every figure of the README, of the runs and of the lessons: from plain numbers and pixels to a PNG.

    plot_shots(results, "shots.png")                   accuracy against the number of shots, one panel a task
    plot_loss(rows, "loss.png")                        the loss, one panel a stage of training
    plot_gates(rows, "gates.png")                      |tanh α| of every layer, opening from zero (paper §2.2)
    plot_prompts(examples, "prompts.png")              prompts and completions, like the paper's figure 1
    plot_attention(picture, tokens, maps, "look.png")  what each token looks at
    plot_world(examples, "world.png")                  pictures and films with their captions

Each returns the Path it wrote; what cannot be drawn is a ValueError. Without pyplot: nothing global is switched.
`shots_figure`, `loss_figure` and `gates_figure` give the `Figure` itself; the `gid` of a line says what it shows.
"""

from __future__ import annotations

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
TEXT = {"color": INK, "parse_math": False}  # literally: a "$" is a "$"
BOLD = {**TEXT, "fontweight": "bold"}


def save(figure: Figure, path: str | Path) -> Path:
    """Draw beside the place, then move there: nobody meets half a file. In 256 colours: a third of the size."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".plot-") as folder:
        (canvas := FigureCanvasAgg(figure)).draw()
        image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        image = image.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=2)  # the median cut would lose rare colours
        image.save(draft := Path(folder) / "draft.png", optimize=True, dpi=(DPI, DPI))
        draft.replace(path)
    return path


def require(rows: list[dict], names: tuple[str, ...], what: str) -> None:
    if not rows:
        raise ValueError(f"no {what} to plot")
    for k, row in enumerate(rows):
        if missing := [name for name in names if name not in row]:
            raise ValueError(f"{what} {k} has no {missing[0]!r}; it has {', '.join(map(repr, row)) or 'nothing'}")


def tidy(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, pad=7, **BOLD)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(colors=GREY, length=0, labelsize=8.5)
    axes.grid(axis="y", color="#eef0f3", linewidth=0.8)
    axes.set(axisbelow=True, facecolor="white")


def shots_figure(results: dict, trained_with: int = 8) -> Figure:
    """One panel a task: accuracy, its 95 % interval, chance dashed, and the other tasks in grey behind.

    results = {"tasks": {task: {"chance": 0.25 or None, "shots": {"4": {"accuracy": 0.9, "ci95": [0.88, 0.92]}, …}}}};
    shots may also be "0_text". More of them than `trained_with`, the most of any training page, stand on shaded ground.
    """
    tasks = results.get("tasks", {})
    require(list(tasks.values()), ("shots",), "task")
    ticks = {shots for task in tasks.values() for shots in task["shots"]}
    if wrong := [s for s in ticks if not re.fullmatch(r"\d+|0_text", s)]:
        raise ValueError(f"shots are a number or '0_text', not {wrong[0]!r}")
    ticks = sorted(ticks, key=lambda s: (int(s.removesuffix("_text")), s))
    within = sum(int(s.removesuffix("_text")) <= trained_with for s in ticks)  # so many of them are like training
    curves = {}  # task → places on the x axis, accuracy, interval, in percent
    for name, task in tasks.items():
        require(list(task["shots"].values()), ("accuracy", "ci95"), f"task {name!r}: shots")
        cells = {k: task["shots"][s] for k, s in enumerate(ticks) if s in task["shots"]}
        accuracy, interval = (100 * np.array([c[key] for c in cells.values()]) for key in ("accuracy", "ci95"))
        curves[name] = list(cells), accuracy, interval.T
    notes = ["band: 95% interval"] + ["dashed: chance"] * any(task.get("chance") is not None for task in tasks.values())
    notes += ["hollow: two examples without their pictures"] * ("0_text" in ticks)
    notes += [f"shaded: more than the {trained_with} images of training"] * (within < len(ticks))
    lines, columns = -(-len(tasks) // 5), 5 if len(tasks) > 4 else 4
    width, height = 360 * columns + 80, 360 * lines + 190
    figure = Figure((width / DPI, height / DPI), DPI, facecolor="white")
    figure.subplots_adjust(75 / width, 130 / height, 1 - 20 / width, 1 - 110 / height, 0.10, 0.48)
    figure.suptitle("Accuracy against the number of shots in the prompt", x=75 / width, ha="left", fontsize=14, **BOLD)
    figure.text(75 / width, 24 / height, "   ·   ".join(notes), fontsize=9.5, color=GREY)
    for panel, (name, (x, y, (low, high))) in enumerate(curves.items()):
        axes = figure.add_subplot(lines, columns, panel + 1)
        tidy(axes, re.sub(r" (\d+)way$", r", \1-way", name.replace("_", " ")))
        if within < len(ticks):
            axes.axvspan(within - 0.5, len(ticks) + 0.75, color="#f4f1ea", linewidth=0, zorder=0)
            axes.axvline(within - 0.5, color=GREY, linewidth=0.9, linestyle=":", zorder=1)
        for other in curves.keys() - {name}:
            axes.plot(*curves[other][:2], color="#d9dee6", linewidth=0.9, zorder=1.5, gid="behind")
        if (chance := tasks[name].get("chance")) is not None:
            axes.axhline(100 * chance, color=PINK, linewidth=1.1, linestyle=(0, (4, 3)), zorder=2, gid="chance")
        axes.fill_between(x, low, high, color=PINK, alpha=0.18, linewidth=0, zorder=2)
        axes.plot(x, y, color=PINK, linewidth=2.2, zorder=3, gid=name)
        dots = ["white" if ticks[k] == "0_text" else PINK for k in x]
        axes.scatter(x, y, s=24, c=dots, edgecolors=PINK, linewidths=1.4, zorder=4, clip_on=False)
        axes.text(x[-1] + 0.3, y[-1], f"{y[-1]:.0f}%", va="center", fontsize=10, **{**BOLD, "color": PINK})
        axes.set(xlim=(-0.4, len(ticks) + 0.75), ylim=(0, 104))
        axes.set_xticks(range(len(ticks)), [s.replace("_", "\n") if "_" in s else f"{s}\n" for s in ticks])
        axes.set_yticks(range(0, 101, 25), [f"{v}%" * (panel % columns == 0) for v in range(0, 101, 25)])
    return figure


def series(rows: list[dict], name: str) -> np.ndarray:
    """(2, n): steps and values of one column, without the rows where it is missing, empty or not finite."""
    points = [(float(row["step"]), float(row[name])) for row in rows if row.get(name) not in (None, "")]
    require(points := [point for point in points if np.isfinite(point).all()], (), f"number in column {name!r}")
    return np.array(points).T


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """A running mean of the same length; at the ends it averages what there is: [0, 3, 6], 3 → [1.5, 3, 4.5]."""
    total, count = (np.convolve(v, np.ones(window // 2 * 2 + 1), "same") for v in (values, np.ones(len(values))))
    return total / count


def spread(heights: list[float], gap: float) -> np.ndarray:
    """Heights moved as little as possible (least squares) until none is nearer than `gap` to the next."""
    order, blocks = np.argsort(heights, kind="stable"), []  # blocks of labels that touch: heights, less k·gap
    for k, i in enumerate(order):
        blocks.append([heights[i] - k * gap])
        while len(blocks) > 1 and np.mean(blocks[-2]) >= np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    moved = [np.mean(block) for block in blocks for _ in block] + gap * np.arange(len(order))
    return moved[np.argsort(order)]


def curves_figure(panels: dict[str, list[tuple]], window: float = 0, top: float | None = None) -> Figure:
    """A panel a title, its lines (gid, label, colour, points) faint, and smoothed over `window`; `top` None: room for these."""
    width = 600 * len(panels) + 120
    figure = Figure((width / DPI, 560 / DPI), DPI, facecolor="white")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    figure.subplots_adjust(80 / width, 0.16, 1 - 170 / width, 0.86, 0.52)
    for axes, (title, lines) in zip(grid, panels.items()):
        tidy(axes, title)
        means = [smooth(y, int(window * len(y))) for *_, (_, y) in lines]
        for (gid, _, colour, (x, y)), mean in zip(lines, means):
            axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.18, gid="raw")
            axes.plot(x, mean, color=colour, linewidth=2, gid=gid)
        highest = max((v for mean in means for v in mean if np.isfinite(v)), default=0)
        axes.set(xmargin=0, ylim=(0, top or 1.1 * highest or None))
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel("step", fontsize=9.5, color=GREY)
        gap = axes.get_ylim()[1] * 26 / (0.70 * 560)  # a line of text is 26 pixels high, the axes 70 % of the figure
        for (_, label, colour, _), mean, y in zip(lines, means, spread([mean[-1] for mean in means], gap)):
            style = {**BOLD, "color": colour, "fontsize": 9, "va": "center", "transform": axes.get_yaxis_transform()}
            axes.text(1.03, y, f"{label}: {mean[-1]:.2f}".removeprefix(": "), **style)
    return figure


def loss_figure(rows: list[dict]) -> Figure:
    """Rows as a CSV reader gives them: "stage", "step", "loss", and columns loss_*, drawn where they hold numbers."""
    require(rows, ("stage", "step", "loss"), "row")
    panels = {}
    for stage in dict.fromkeys(row["stage"] for row in rows):
        part = [row for row in rows if row["stage"] == stage]
        found = sorted({c for row in part for c in row if c.startswith("loss_") and row[c] not in (None, "")})
        colours = dict(zip(["loss", *found], [INK, *(PINK, "#1864ab", "#b35c00", "#5f3dc4") * len(found)]))
        panels[f"{stage}: loss"] = [(c, c[5:] or "all" * bool(found), colours[c], series(part, c)) for c in colours]
    return curves_figure(panels, window=0.06)


def gates_figure(rows: list[dict]) -> Figure:
    """Columns alpha_xattn_0, …, alpha_dense_0, … of the stage "flamingo": |tanh α|, 0 where a gate is shut."""
    rows, panels = [row for row in rows if row.get("stage") == "flamingo"], {}
    require(rows, ("step",), "row of stage 'flamingo'")
    for kind, title in (("xattn", "gates of cross-attention"), ("dense", "gates of dense layers")):
        found = {c: int(c.split("_")[2]) for row in rows for c in row if re.fullmatch(rf"alpha_{kind}_\d+", c)}
        require(found, (), f"column alpha_{kind}_0, alpha_{kind}_1, … of stage 'flamingo'")
        shade = {k: colormaps["plasma"](0.72 * k / (max(found.values()) or 1)) for k in found.values()}
        panels[f"{title}: |tanh α|"] = [(c, f"layer {k}", shade[k], series(rows, c)) for c, k in found.items()]
    return curves_figure(panels, top=1.06 * max(y.max() for lines in panels.values() for *_, (_, y) in lines) or 1)


def plot_shots(results: dict, path: str | Path, trained_with: int = 8) -> Path:
    return save(shots_figure(results, trained_with), path)


def plot_loss(rows: list[dict], path: str | Path) -> Path:
    return save(loss_figure(rows), path)


def plot_gates(rows: list[dict], path: str | Path) -> Path:
    return save(gates_figure(rows), path)


# ── Slides: one unit is one pixel of the file, so that pictures grow by whole numbers (48 × 3 = 144) and stay crisp
PICTURE, FRAME, PAD, GAP = 144, 96, 16, 14  # pixels: a picture, a frame of a film, inside a card, between cards
COLUMN = PICTURE + 4 * PAD  # the width of a card; a film takes two, and the gap between them
LINE, RULER = 1.25 * DPI / 72, RendererAgg(1, 1, DPI)  # a line of text in pixels per point; what measures its width


def wrap(text: str, width: float, size: float, weight: str = "normal") -> tuple[str, float, float]:
    """Text broken into lines of at most `width` pixels, within a word only where one is wider; its width and height."""
    font = FontProperties(size=size, weight=weight)
    for letters in range(int(1.6 * width / size), 0, -1):
        lines = textwrap.wrap(text.strip(), letters)
        widest = max((RULER.get_text_width_height_descent(line, font, False)[0] for line in lines), default=0)
        if widest <= width:
            break
    return "\n".join(lines), widest, len(lines) * size * LINE


def slide(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure((round(width) / DPI, round(height) / DPI), DPI, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, round(width)), ylim=(round(height), 0))
    axes.axis("off")
    return figure, axes


def box(axes: Axes, x: float, y: float, width: float, height: float, colour: str, radius: float, **more):
    style = {"boxstyle": f"round,pad=0,rounding_size={radius}", "linewidth": 0, "facecolor": colour, **more}
    return axes.add_patch(FancyBboxPatch((x, y), width, height, **style))


def show(axes: Axes, picture: np.ndarray, x: float, y: float, size: int, radius: float = 8) -> None:
    """A picture (H, W, 3), enlarged or shrunk to `size` pixels a side, with round corners."""
    way = Image.Resampling.NEAREST if len(picture) <= size else Image.Resampling.LANCZOS
    x, y, pixels = round(x), round(y), np.asarray(Image.fromarray(picture).resize((size, size), way))
    shown = axes.imshow(pixels, extent=(x, x + size, y + size, y), interpolation="nearest", aspect="auto", zorder=2)
    shown.set_clip_path(box(axes, x, y, size, size, "none", radius))


def frames_of(medium: np.ndarray, where: str) -> list[np.ndarray]:
    """A picture (H, W, 3) is one frame; of a film (T, H, W, 3) it is four at most, from the first to the last."""
    film = np.asarray(medium)
    if film.dtype != np.uint8 or film.ndim not in (3, 4) or film.shape[-1] != 3 or film.size == 0:
        raise ValueError(f"{where}: pictures are uint8 (H, W, 3), films (T, H, W, 3), not {film.dtype} {film.shape}")
    film = film.reshape(-1, *film.shape[-3:])
    return [film[round(t)] for t in np.linspace(0, len(film) - 1, min(4, len(film)))]


class Card:
    """A picture or a film with its text under it, or a text alone."""

    def __init__(self, frames: list[np.ndarray], text: str):
        self.frames, self.film = frames, len(frames) > 1
        self.width = 2 * COLUMN + GAP if self.film else COLUMN
        self.top = PAD + (PICTURE + 8 if frames else 0)  # where the text begins
        self.text, _, height = wrap(text, self.width - PAD, 9.5)
        self.height = self.top + height + PAD / 2

    def draw(self, axes: Axes, x: float, y: float, height: float, ink: str = INK, **edge) -> float:
        """Draw it as high as its neighbours; returns where the next one begins."""
        box(axes, x, y, self.width, height, CARD, 14, **edge)
        middle, size = x + self.width / 2, FRAME if self.film else PICTURE
        if self.film:
            left, right = (middle + side * (len(self.frames) * (FRAME + 4) / 2 + 4) for side in (-1, 1))
            box(axes, left, y + PAD, right - left, PICTURE, "#15181e", 6)
            axes.hlines((y + PAD + 12, y + PAD + PICTURE - 12), left + 12, right - 12, "white", (0, (1, 0.9)), lw=4.5)
        for k, frame in enumerate(self.frames):
            left = middle + (k - len(self.frames) / 2) * (size + 4) + 2
            show(axes, frame, left, y + PAD + (PICTURE - size) / 2, size, radius=2 if self.film else 8)
        axes.text(middle, y + self.top, self.text, fontsize=9.5, ha="center", va="top", **{**TEXT, "color": ink})
        return x + self.width + GAP


def plot_prompts(examples: list[dict], path: str | Path) -> Path:
    """Prompts, one strip each: the shots, the query with its prompt in grey, the model's completion on a bubble.

    example = {"title": "binding", "pieces": [picture, "This is a dax.", …, picture, "This is a"],
    "completion": " dax.", "answer": " dax.", "correct": True}; among the pieces there may be EOCs, which are not drawn.
    """
    require(examples, ("title", "pieces", "completion", "answer", "correct"), "example")
    strips = []
    for k, example in enumerate(examples):
        cells: list[list] = [[[], ""]]
        for piece in example["pieces"]:
            if isinstance(piece, str):
                cells[-1][1] += piece
            else:  # a medium begins a new card; so does what follows an EOC
                cells.append([frames_of(piece, f"example {k}") if hasattr(piece, "shape") else [], ""])
        require(cards := [Card(*cell) for cell in cells if cell != [[], ""]], (), f"pieces of example {k}")
        said = wrap(example["completion"] or "(nothing)", 240, 12, "bold")
        truth = wrap("" if example["correct"] else f"right answer: {example['answer'].strip()}", 340, 9)
        strips.append((cards, said, truth, max(said[2] + 36 + 2 * truth[2], *(card.height for card in cards))))
    width = max(sum(card.width + GAP for card in cards) for cards, *_ in strips) + 470
    figure, axes = slide(width, sum(height + 76 for *_, height in strips) + 10)
    y = 16.0
    for example, (cards, (text, wide, high), (truth, *_), height) in zip(examples, strips):
        axes.text(32, y, example["title"], fontsize=11, va="top", **BOLD)
        x, y, middle = 28.0, y + 38, y + 38 + height / 2
        for card in cards[:-1]:
            x = card.draw(axes, x, y, height)
        x = cards[-1].draw(axes, x, y, height, GREY, edgecolor=PINK, linewidth=1.5)
        arrow = {"arrowstyle": "-|>", "color": PINK, "linewidth": 1.8, "mutation_scale": 16}
        axes.annotate("", (x + 54, middle), (x - 12, middle), arrowprops=arrow)
        box(axes, x + 56, middle - high / 2 - 18, wide + 100, high + 36, BUBBLE, 20)
        axes.text(x + 78, middle, text, fontsize=12, va="center", **BOLD)
        mark = {"s": "✓", "color": GREEN} if example["correct"] else {"s": "✗", "color": RED}
        axes.text(x + wide + 122, middle, fontsize=19, ha="center", va="center", fontweight="bold", **mark)
        axes.text(x + 78, middle + high / 2 + 26, truth, fontsize=9, va="top", **{**TEXT, "color": GREY})
        y += height + 38
    return save(figure, path)


def plot_attention(image, tokens: list[str], maps: np.ndarray, path: str | Path, predicted: str | None = None) -> Path:
    """What each of L tokens looks at: `maps` (L, h, w) ≥ 0 over a grid of patches, each scaled by its own maximum."""
    maps, large = np.asarray(maps, dtype=np.float32), Image.fromarray(frames_of(image, "the image")[0])
    if maps.ndim != 3 or not 0 < len(maps) == len(tokens):
        raise ValueError(f"every token needs a map (h, w): {len(tokens)} tokens, maps of shape {maps.shape}")
    lines, step = -(-(len(tokens) + 1) // 8), PICTURE + GAP
    columns = max(4, -(-(len(tokens) + 1) // lines))
    figure, axes = slide(columns * step + 42, lines * (step + 36) + 62)
    large = np.asarray(large.resize((PICTURE, PICTURE), Image.Resampling.NEAREST), dtype=np.float32)
    for k, token in enumerate(["the image", *tokens]):
        x, y, pixels = 28 + k % columns * step, 16 + k // columns * (step + 36), large
        if k > 0:  # lit where it looks, dark elsewhere, with a warm glow
            heat = Image.fromarray(maps[k - 1] / max(maps[k - 1].max(), 1e-12))
            heat = np.asarray(heat.resize((PICTURE, PICTURE), Image.Resampling.BICUBIC)).clip(0, 1)
            pixels = large * (0.25 + 0.75 * heat[..., None]) + 75 * colormaps["inferno"](0.85 * heat)[..., :3]
        name = textwrap.shorten(token, 13, placeholder="…") or repr(token)
        axes.text(x + PICTURE / 2, y, name, fontsize=10, ha="center", va="top", **(BOLD if k else TEXT))
        show(axes, pixels.clip(0, 255).astype(np.uint8), x, y + 32, PICTURE)
    note = "bright: where the token looks" + (f"   ·   next token: {predicted.strip()}" if predicted else "")
    axes.text(28, lines * (step + 36) + 18, note, fontsize=9.5, va="top", **{**TEXT, "color": GREY})
    return save(figure, path)


def plot_world(examples: list[tuple[np.ndarray, str]], path: str | Path) -> Path:
    """Pictures and films with their captions, in rows of six columns."""
    require(examples, (), "examples")
    rows: list[list[Card]] = [[]]
    for k, (medium, text) in enumerate(examples):
        card = Card(frames_of(medium, f"example {k}"), text)
        if sum(c.width + GAP for c in rows[-1]) + card.width > 6 * (COLUMN + GAP):
            rows.append([])
        rows[-1].append(card)
    heights = [max(card.height for card in row) for row in rows]
    width = max(sum(card.width + GAP for card in row) for row in rows)
    figure, axes = slide(max(640, width + 40 - GAP), sum(heights) + GAP * (len(rows) - 1) + 40)
    y = 20.0
    for row, height in zip(rows, heights):
        x = 20.0
        for card in row:
            x = card.draw(axes, x, y, height)
        y += height + GAP
    return save(figure, path)
