"""What all notebooks use: figures with a description, the package's source code, and checks of exercises."""

import inspect
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown, display
from matplotlib.figure import Figure

from minflamingo import plots

ROOT = Path(__file__).parent.parent
# The colour of text that belongs to image 0 (none), 1, 2, ... Dark text is readable on all of them.
PALE_COLOURS = ("#e3e6ea", "#fbc4d4", "#c9def7", "#cfeedd", "#fde9b8", "#e0d0f5", "#f9d5bd")
plt.rcParams.update(plots.STYLE | {"figure.constrained_layout.use": True})
torch.set_num_threads(2)  # results do not depend on the number of cores


def show(figure: Figure, alt: str) -> None:
    """Display a figure as a PNG, and below it, folded, a description for readers who cannot see it.

    `alt` is also in the metadata of the image, but JupyterLab 4.6 does not display it from there.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = plots.save(figure, Path(folder) / "figure.png")
        display({"image/png": path.read_bytes(), "text/plain": alt}, metadata={"image/png": {"alt": alt}}, raw=True)
    display(Markdown(f"<details><summary>Description of the figure</summary>{alt}</details>"))
    plt.close(figure)  # otherwise Jupyter displays it a second time


def source(*objects: object) -> None:
    """Display the source code of functions or classes of the package, with file and line."""
    for thing in map(inspect.unwrap, objects):  # of a function with a faster version: the plain one
        path, line = Path(inspect.getsourcefile(thing)).resolve().relative_to(ROOT), inspect.getsourcelines(thing)[1]
        link = f"[{path}, line {line}](../{path})"
        # without the markers of the assignments (assignments/components.py)
        text = re.sub(r" *### (BEGIN|END) SOLUTION.*\n", "", inspect.getsource(thing))
        display(Markdown(f"{link}\n\n```python\n{text.rstrip()}\n```"))


def check(what: str, compute: Callable, expected: object, hint: str) -> None:
    """Print whether `compute()` gives `expected`. If not: what it gave, what is right, and a hint."""
    try:
        got = compute()
    except Exception as error:  # whatever a reader writes, the next cells can still run
        got = f"{type(error).__name__}: {error}"
    if equal(got, expected):
        print(f"✓ {what}")
        return
    if got is None or "'NoneType'" in str(got):
        got = "nothing: the function has no result yet"
    print(f"✗ {what}\n    yours     {indent(got)}\n    expected  {indent(expected)}\n    hint: {hint}")


def equal(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-5)
    if isinstance(a, float) and isinstance(b, float):
        return bool(np.isclose(a, b, rtol=1e-4, atol=1e-5))
    return type(a) is type(b) and a == b


def indent(value: object) -> str:
    """Short tensors as lists. Large ones as their shape and first numbers. Numbers rounded."""
    if isinstance(value, torch.Tensor):
        if value.numel() > 60:
            first = ", ".join(f"{x:.4g}" for x in value.flatten()[:4].tolist())
            return f"a tensor of shape {tuple(value.shape)}: {first}, ..."
        value = "\n".join(map(str, value.tolist())) if value.dim() > 1 else value.tolist()
    if isinstance(value, float):
        value = f"{value:.5g}"
    return str(value).replace("\n", "\n" + " " * 14)


def token_strip(rows: list[tuple[str, list[str], list[int]]], alt: str, per_line: int = 16) -> None:
    """Rows (title, tokens, numbers): tokens as boxes, in the colour of the image whose number they have."""
    lines = []  # (title or "", tokens, numbers)
    for title, tokens, numbers in rows:
        for i in range(0, len(tokens), per_line):
            lines.append(("" if i else title, tokens[i : i + per_line], [int(n) for n in numbers[i : i + per_line]]))
    figure, axes = plt.subplots(figsize=(0.62 * min(per_line, max(len(t) for _, t, _ in lines)) + 0.4, 0.62 * len(lines)))
    for y, (title, tokens, numbers) in enumerate(lines):
        axes.text(0, -y + 0.62, title, fontsize=9, weight="bold")
        for x, (token, number) in enumerate(zip(tokens, numbers)):
            axes.add_patch(plt.Rectangle((x, -y), 0.94, 0.5, color=PALE_COLOURS[number % len(PALE_COLOURS)]))
            axes.text(x + 0.47, -y + 0.25, token, ha="center", va="center", fontsize=7.5 if len(token) < 8 else 6)
    axes.set(xlim=(0, max(len(t) for _, t, _ in lines)), ylim=(-len(lines) + 0.9, 1))
    axes.axis("off")
    show(figure, alt)
