"""Drawings: what images of unknown kinds look like. They teach the model to compare images instead of knowing them.

A design is a short text that determines what is drawn. There are three kinds:

    "glyph ж"     a character of one of the fonts that come with matplotlib: letters of many scripts, symbols, arrows, faces
    "doodle 17"   a few random pen strokes, as in handwriting; the number is the seed
    "icon 17"     two to four coloured shapes on top of each other

    draw_drawing("glyph ж", random.Random(0))       # (48, 48, 3) uint8, one view of the design

Two views of a design differ in size, slant, position and background, those of glyphs and doodles also in ink and stroke.
"""

import math
import random
import unicodedata
from functools import cache
from itertools import pairwise

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from .draw import IMAGE_SIZE, noise_sheet, paint, to_channels
from .world import is_held_out_script

BIG = 96  # side of the canvas on which a design is drawn before it is reduced to 48 x 48
# The evaluation shows glyphs of other scripts in other fonts (file names in the folder of matplotlib).
FONTS = {
    "train": ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique", "STIXGeneral", "STIXGeneralBol"),
    "test": ("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSansMono", "DejaVuSansMono-Bold"),
}


@cache
def glyphs(split: str) -> dict[str, list[ImageFont.FreeTypeFont]]:
    """All characters of a split, and for each the fonts that have it."""
    found: dict[str, list[ImageFont.FreeTypeFont]] = {}
    for name in FONTS[split]:
        path = f"{matplotlib.get_data_path()}/fonts/ttf/{name}.ttf"
        font = ImageFont.truetype(path, 72)
        for character in map(chr, FT2Font(path).get_charmap()):
            # Letters, symbols, numbers and punctuation; not marks, which combine with a letter, nor spaces.
            visible = unicodedata.category(character)[0] in "LSNP" and character not in "\u2800\ufffc"  # these two are blank
            if visible and is_held_out_script(character) == (split == "test"):
                found.setdefault(character, []).append(font)
    return found


def random_design(rng: random.Random, split: str | None) -> str:
    """Training has all three kinds; the test has only glyphs of held-out scripts."""
    kind = "glyph" if split == "test" else rng.choice(("glyph", "glyph", "doodle", "icon"))
    return f"glyph {rng.choice([*glyphs(split or 'train')])}" if kind == "glyph" else f"{kind} {rng.randrange(10**9)}"


def draw_glyph(character: str, rng: random.Random) -> Image.Image:
    """The character, greyscale, as large as the canvas."""
    split = "test" if is_held_out_script(character) else "train"
    font = rng.choice(glyphs(split)[character])
    width = rng.choice((0, 0, 2, 4))  # makes strokes wider
    left, top, right, bottom = font.getbbox(character, stroke_width=width)
    side = max(right - left, bottom - top, 40)
    image = Image.new("L", (side, side))
    origin = (side - right - left) / 2, (side - bottom - top) / 2
    ImageDraw.Draw(image).text(origin, character, fill=255, font=font, stroke_width=width)
    return image.resize((BIG, BIG), Image.Resampling.BILINEAR)


def draw_doodle(design: random.Random, rng: random.Random) -> Image.Image:
    """One to four strokes between points of a 4 x 4 grid, straight or curved. Each view moves the points a little."""
    image = Image.new("L", (BIG, BIG))
    pen, width = ImageDraw.Draw(image), rng.choice((2, 3, 5, 8, 12))
    for _ in range(design.randint(1, 4)):
        corners = [(design.randrange(4) / 3, design.randrange(4) / 3) for _ in range(design.randint(2, 5))]
        points = [(x + rng.gauss(0, 0.05), y + rng.gauss(0, 0.05)) for x, y in corners]
        for _ in range(design.choice((0, 3, 3))):  # cut corners off (Chaikin): straight lines become a smooth curve
            cut = [(a + (c - a) * t, b + (d - b) * t) for (a, b), (c, d) in pairwise(points) for t in (0.25, 0.75)]
            points = [points[0], *cut, points[-1]]
        margin = BIG / 10
        pen.line([(margin + x * (BIG - 2 * margin), margin + y * (BIG - 2 * margin)) for x, y in points], 255, width, "curve")
    return image


def draw_icon(design: random.Random, rng: random.Random) -> Image.Image:
    """Polygons from large to small, RGBA. Those with 24 corners look round."""
    image = Image.new("RGBA", (BIG, BIG))
    pen, shade = ImageDraw.Draw(image), 0.9 + 0.2 * rng.random()
    for size in sorted((design.uniform(0.15, 0.5) for _ in range(design.randint(2, 4))), reverse=True):
        colour = tuple(min(255, int(shade * design.choice((20, 90, 160, 250)))) for _ in range(3))
        x, y = (design.uniform(size, 1 - size) + rng.gauss(0, 0.015) for _ in "xy")
        flat, corners, turn = design.uniform(0.4, 1), design.choice((3, 4, 5, 6, 24, 24)), design.random()
        angles = [2 * math.pi * (k / corners + turn) for k in range(corners)]
        radii = [size * (1 if corners == 24 else design.choice((1, 1, 0.5))) for _ in angles]
        pen.polygon([(BIG * (x + r * math.cos(a)), BIG * (y + flat * r * math.sin(a))) for r, a in zip(radii, angles)], colour)
    return image


def random_tint(level: float, most: float, rng: random.Random) -> np.ndarray:
    """A colour (3, 1, 1) near this level of grey."""
    return to_channels([min(255.0, max(0.0, rng.gauss(level, most))) for _ in range(3)])


def seen_from(image: Image.Image, rng: random.Random) -> np.ndarray:
    """The image turned, stretched, slanted and shifted a little, and reduced: float (48, 48) or (48, 48, 4)."""
    turn, half, stretch = rng.gauss(0, 0.15), rng.uniform(0.55, 0.9), math.exp(rng.gauss(0, 0.08))
    x, y = (0.5 + rng.uniform(-0.5, 0.5) * max(half - 0.5, 0.1) for _ in "xy")
    quad = []
    for k in (0, 3, 2, 1):  # the corners of the square that becomes the new image, from the upper left to the lower left, …
        angle, r = turn + math.pi * (k / 2 + 1.25) + rng.gauss(0, 0.04), half * math.sqrt(2) * (1 + rng.gauss(0, 0.04))
        quad += [BIG * (x + r * stretch * math.cos(angle)), BIG * (y + r / stretch * math.sin(angle))]
    image = image.transform((2 * IMAGE_SIZE, 2 * IMAGE_SIZE), Image.Transform.QUAD, quad, Image.Resampling.BILINEAR)
    return np.asarray(image.reduce(2), dtype=np.float32)


def draw_drawing(name: str, rng: random.Random) -> np.ndarray:
    """One view of a design: uint8 (48, 48, 3)."""
    kind, _, which = name.partition(" ")
    if kind == "glyph":
        image = draw_glyph(which, rng)
    else:
        image = (draw_doodle if kind == "doodle" else draw_icon)(random.Random(name), rng)
    pixels = seen_from(image, rng)
    # Background from black to white. Before both are tinted, ink is at least 100 levels darker or lighter.
    level = rng.choice((0, 255, rng.uniform(0, 255)))
    darker = level > 155 or (level > 100 and rng.random() < 0.5)
    x, y = rng.randrange(100), rng.randrange(100)
    canvas = noise_sheet()[:, y : y + IMAGE_SIZE, x : x + IMAGE_SIZE] + random_tint(level, 15, rng)
    if kind == "icon":
        paint(canvas, pixels[..., 3] / 255, pixels[..., :3].transpose(2, 0, 1), 0, 0)
    else:
        ink = random_tint(rng.uniform(0, level - 100) if darker else rng.uniform(level + 100, 255), 40, rng)
        paint(canvas, pixels / 255, ink, 0, 0)
    return canvas.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)


@cache
def view_bank(designs: int, views: int, seed: int) -> np.ndarray:
    """Several views of each of many training designs: (designs, views, 48, 48, 3) uint8. Drawing takes 1 ms per view."""
    rng = random.Random(f"views {seed}")
    names = [random_design(rng, "train") for _ in range(designs)]
    return np.stack([np.stack([draw_drawing(name, rng) for _ in range(views)]) for name in names])


def draw_views(rng: random.Random, n: int, bank: np.ndarray) -> np.ndarray:
    """Two views of each of `n` different designs: first one of each, then another of each. (2n, 48, 48, 3) uint8."""
    chosen = rng.sample(range(bank.shape[0]), n)
    pairs = np.stack([bank[i, rng.sample(range(bank.shape[1]), 2)] for i in chosen], axis=1)  # (2, n, 48, 48, 3)
    return pairs.reshape(2 * n, *pairs.shape[2:])
