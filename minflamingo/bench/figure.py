"""The bench as one figure: what shots cost to read, what they cost per new token, and what a training step costs.

    plot_bench(result, "bench.png")      `result` as `command.run` returns it

One colour an implementation; dashed, what the machine allows.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..plots import GREY, INK, PALE, PINK, save, tidy

LOOKS = {"ours": ("minFlamingo", PINK), "plain": ("its plain twins", GREY), "peer": (None, INK)}


def _lines(axes: Axes, rows: dict, names: dict, unit: float = 1.0) -> None:
    """Time against shots, one line an implementation, named at its end."""
    shots = [int(s) for s in rows]
    for key, (name, colour) in names.items():
        if all(key in row for row in rows.values()):
            values = [row[key]["median"] * unit for row in rows.values()]
            axes.plot(shots, values, color=colour, marker="o", markersize=4, linewidth=2)
            end = (shots[-1], values[-1])
            axes.annotate(name, end, (6, 0), textcoords="offset points", va="center", color=colour, fontsize=9)
    axes.set_xticks(shots)
    axes.set_xlabel("shots", color=GREY)
    axes.set_ylim(bottom=0)
    axes.margins(x=0.05)


def plot_bench(result: dict, path: str | Path) -> Path:
    """Three panels, from the result of a bench; without a peer there is no line of it."""
    names = {**LOOKS, "peer": (result["against"] or "", INK)}
    figure = Figure(figsize=(12.5, 3.9), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.25))

    _lines(left, result["generate"], names)
    tidy(left, "a prompt and 32 new tokens (s)")

    tokens = {s: {k: v for k, v in row.items() if k != "plain"} for s, row in result["token"].items()}
    _lines(middle, tokens, names, 1000)
    zero = result["token"]["0"]
    limit = zero["of_reading_limit"] * zero["ours"]["median"] * 1000
    middle.axhline(limit, color=GREY, linestyle="--", linewidth=1)
    middle.annotate("reading the weights once", (0, limit), (0, -11), textcoords="offset points", color=GREY, fontsize=8)
    tidy(middle, "one new token (ms)")

    rows = {name: row for name, row in result["step"].items() if "plain" in row}
    height, place = 0.26, 0.0
    longest = max(row[k]["median"] for row in rows.values() for k in names if k in row)
    for name, row in rows.items():
        right.annotate(name.replace(", ", " · "), (0, place - 0.28), color=GREY, fontsize=9)
        for key, (label, colour) in names.items():
            if key in row:
                value, memory = row[key]["median"], row.get({"ours": "peak_memory", "peer": "peer_peak_memory"}.get(key, ""))
                right.barh(place, value, height * 0.85, color=colour if key != "plain" else PALE)
                beside = f"{label}  {value:.2g} s" + (f", {memory / 2**30:.1f} GiB" if memory else "")
                right.annotate(beside, (value, place), (4, 0), textcoords="offset points", va="center", color=INK, fontsize=8)
                place += height
        place += 0.5
    right.set_xlim(0, longest * 1.75)
    right.set_ylim(place - 0.6, -0.5)  # downwards, with room for the first name
    right.set_yticks([])
    right.spines["left"].set_visible(False)
    tidy(right, "a training step (s) and its peak memory")
    figure.suptitle(f"{result['device']}, torch {result['torch']}", x=0.01, ha="left", fontsize=9, color=GREY)
    return save(figure, path)
