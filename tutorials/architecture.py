"""The figure of the architecture in the README: figure 3 of the paper in the terms of this code.

    python -m tutorials.architecture            writes tutorials/figures/architecture.png
"""

from pathlib import Path

import numpy as np
from matplotlib.patches import FancyBboxPatch

from minflamingo.plots import GREY, LIGHT_PINK, PINK, panels, save, styled

CARD, LIGHT_BLUE = "#edf1f7", "#d3e3f7"


@styled
def plot_architecture(path: str | Path) -> Path:
    """Figure 3 of the paper: two images and a text go in at the bottom, the continuation of the text comes out at the top."""
    figure, (axes,) = panels(1, "Flamingo: images and text in, text out", "blue: frozen   ·   pink: trained", size=(10, 6))
    axes.set(xlim=(0.3, 9.8), ylim=(-0.5, 5.4))
    axes.axis("off")
    style = {"arrowstyle": "-|>", "color": GREY, "linewidth": 1.5, "shrinkA": 0, "shrinkB": 0}

    def arrow(*points: tuple[float, float]) -> None:
        axes.plot(*zip(*points[:-1]), color=GREY, linewidth=1.5)
        axes.annotate("", points[-1], points[-2], arrowprops=style)

    def column(x: float, width: float, *boxes: tuple[str, str]) -> None:
        """Boxes (text, colour) at the heights 0, 1, ..., with an arrow from each to the next."""
        for y, (text, colour) in enumerate(boxes):
            shape = "round,pad=0,rounding_size=0.1"
            axes.add_patch(FancyBboxPatch((x - width / 2, y - 0.3), width, 0.6, boxstyle=shape, facecolor=colour, linewidth=0))
            axes.text(x, y, text, ha="center", va="center", fontsize=10)
            if y > 0:
                arrow((x, y - 0.7), (x, y - 0.3))

    encoder, resampler = ("Vision encoder", LIGHT_BLUE), ("Perceiver\nResampler", LIGHT_PINK)
    for x, shape, colour in ((1.2, "*", "#d62f2f"), (3.0, "o", "#2f5fd6")):
        column(x, 1.5, ("", "#2c3038"), encoder, resampler, ("", "white"))
        axes.plot(x, 0, shape, color=colour, markersize=22)  # in the image
        axes.plot(x + 0.26 * np.arange(-1.5, 2), [3] * 4, "s", color=PINK, markersize=12)  # the visual tokens
        arrow((x, 3.3), (x, 3.6), (5.1, 3.6), (5.1, 3), (5.5, 3))
    arrow((5.1, 3), (5.1, 1), (5.5, 1))
    for y, text in ((0, "N images\nor videos"), (1.5, "N x S\nfeatures"), (3, "N x R\nvisual\ntokens")):
        axes.text(4, y, text, fontsize=9, color=GREY, va="center")
    prompt, xattn = "<image> Output: a red star <EOC> <image> Output:", ("GATED XATTN-DENSE", LIGHT_PINK)
    lm = [xattn, ("LM block 1", LIGHT_BLUE), xattn, ("LM block n", LIGHT_BLUE)]
    column(7.6, 4.2, (prompt, CARD), *lm, ("a blue circle <EOC>", CARD))
    return save(figure, path)


if __name__ == "__main__":
    print(plot_architecture(Path(__file__).parent / "figures" / "architecture.png"))
