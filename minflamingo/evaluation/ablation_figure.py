"""The figure of the ablations: a bar a row, grouped by what is changed, the baseline's score as a line through all.

    plot_ablations(results, "ablations.png")      results as `python -m minflamingo ablate` writes them

    results = {"rows": {"no-pages": {"changed": "training data", "to": "without pages", "paper_difference": -17.3,
                                     "shots": {"4": {"score": 51.2, "seeds": [50.0, 52.4], "difference": -14.0}, …}}, …}}

Dots are the seeds, a diamond is the score with 32 shots. Two columns of figures: the difference here, and the paper's.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from ..plots import BOLD, DPI, GREY, INK, PALE, PINK, TEXT, require, save

LINE, GAP = 46, 0.45  # pixels per row; rows of space between groups


def ablations_figure(results: dict) -> Figure:
    """Raises ValueError where there is no row, or one without its score."""
    rows = results.get("rows", {})
    require(list(rows.values()), ("changed", "to", "shots"), "row")
    require([row["shots"].get("4", {}) for row in rows.values()], ("score", "seeds"), "score")
    places, y, last = [], 0.0, None
    for row in rows.values():
        y += 1 + GAP * (last not in (None, row["changed"]))
        places.append(y)
        last = row["changed"]
    width, height = 1500, LINE * (y + 1) + 190
    figure = Figure((width / DPI, height / DPI), DPI, facecolor="white")
    axes = figure.add_axes((0.335, 105 / height, 0.44, 1 - 215 / height), ylim=(y + 0.7, 0.3), xlim=(0, 100))
    figure.suptitle("One thing changed: the score with 4 shots", x=0.02, ha="left", fontsize=14, **BOLD)
    notes = "bar: mean over seeds   ·   dot: a seed   ·   diamond: with 32 shots   ·   paper: table 3, Flamingo-3B, roughly"
    figure.text(0.02, 24 / height, notes, fontsize=9.5, color=GREY)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(PALE)
    axes.tick_params(colors=GREY, length=0, labelsize=8.5)
    axes.grid(axis="x", color="#eef0f3", linewidth=0.8)
    axes.set(axisbelow=True, yticks=[])
    if (whole := rows.get("baseline")) is not None:
        axes.axvline(whole["shots"]["4"]["score"], color=GREY, linewidth=1.1, linestyle=(0, (4, 3)), gid="baseline")
    across = axes.get_yaxis_transform()
    for x, title in ((1.1, "here"), (1.25, "paper")):
        axes.text(x, 0.15, title, transform=across, ha="right", va="bottom", fontsize=9, color=GREY)
    last = None
    for (name, row), y in zip(rows.items(), places):
        four = row["shots"]["4"]
        axes.barh(y, four["score"], 0.62, color=INK if name == "baseline" else PINK, alpha=0.85, gid=name)
        axes.plot(four["seeds"], [y] * len(four["seeds"]), "o", color="white", markeredgecolor=INK, markersize=4, clip_on=False)
        if "32" in row["shots"]:
            axes.plot(row["shots"]["32"]["score"], y, "D", color="white", markeredgecolor=INK, markersize=6, gid=f"{name} 32")
        if row["changed"] not in (last, "-"):
            axes.text(-0.74, y, row["changed"], transform=across, va="center", fontsize=9.5, **BOLD)
        axes.text(-0.02, y, row["to"], transform=across, ha="right", va="center", fontsize=9.5, **TEXT)
        for x, difference in ((1.1, four.get("difference")), (1.25, row.get("paper_difference"))):
            said = "" if difference is None else f"{difference:+.1f}".replace("-", "−")
            axes.text(x, y, said, transform=across, ha="right", va="center", fontsize=9.5, **TEXT)
        last = row["changed"]
    return figure


def plot_ablations(results: dict, path: str | Path) -> Path:
    return save(ablations_figure(results), path)
