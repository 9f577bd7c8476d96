"""The painter of the toy world: from the facts of a `Scene` to pixels.

    >>> scene = Scene("things", colour="red", shape="circle", count=3, place="left")
    >>> picture = draw(scene, random.Random(0))          # three red discs, one above the other, at the left
    >>> picture.shape, picture.dtype                     # height, width, red-green-blue; values 0..255
    ((48, 48, 3), dtype('uint8'))
    >>> film = draw_video(Video(("red", "circle"), ("blue", "star"), "right"), random.Random(0), frames=4)
    >>> film.shape                                       # the disc goes from left to right, the star stays
    (4, 48, 48, 3)

**Two pictures of one scene are never the same.** All that the scene leaves open is drawn from `rng`: the shade and the
grain of the background, sizes, places to within a few pixels, brightness. What a model learns must survive all of it.
The same seed gives the same picture.

**How it is fast** (tens of microseconds a picture, so that training never waits for data). Everything that can be seen
is rendered once, many times too large, shrunk to a small mask of coverage between 0 and 1, and kept. A picture is then

    background, and a few lines of   region = region + mask * (colour - region)

on slices of a float canvas. The canvas is (3, 48, 48), colour channel first, because numpy is quick along the last axis
and slow when that axis has only three entries; it is turned to (48, 48, 3) at the very end.

In this file: the canvas, the masks (shapes, letters, figures), the arrangement of each kind of scene, and the films. The
animals come from `zoo.py`.
"""

from __future__ import annotations

import math
import random
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_toy.world import COLOURS, SHAPES, Scene, Video
from data_toy.zoo import creature_sprite

IMAGE_SIZE = 48
NEAR_BLACK = (18, 18, 22)
BOARD_SIZE = (42, 17)  # width and height of a sign


# ── The canvas ───────────────────────────────────────────────────────────────────────────────────────────────────────


@cache
def grain(size: int = 160) -> np.ndarray:
    """A large sheet of faint noise (3, size, size), of amplitude 6: every picture has a 48 x 48 window of it behind it.

    Half of it is soft clouds, half is fine grain. It is made with a seed of its own, once, and does not touch `rng`.
    """
    noise = np.random.default_rng(0)
    clouds = Image.fromarray(noise.integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8))
    clouds = np.asarray(clouds.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32) / 127.5 - 1
    sheet = 3 * clouds + 3 * noise.uniform(-1, 1, (size, size, 3))
    return np.ascontiguousarray(sheet.transpose(2, 0, 1), dtype=np.float32)


def background(rng: random.Random) -> np.ndarray:
    """A fresh canvas (3, 48, 48): one dark shade, greyish, every channel between 15 and 75, with grain over it."""
    sheet = grain()
    x, y = between(rng, 0, sheet.shape[2] - IMAGE_SIZE), between(rng, 0, sheet.shape[1] - IMAGE_SIZE)
    level = 25 + 40 * rng.random()
    shade = [level - 10 + 20 * rng.random() for _ in range(3)]
    return sheet[:, y : y + IMAGE_SIZE, x : x + IMAGE_SIZE] + channels(shade)


def channels(colour) -> np.ndarray:
    """Three numbers as (3, 1, 1), ready to meet a canvas."""
    return np.array(colour, dtype=np.float32).reshape(3, 1, 1)


def paint(canvas: np.ndarray, mask: np.ndarray, colour: np.ndarray, x: int, y: int) -> None:
    """Lay `colour` (3, 1, 1) over the canvas where `mask` (h, w) covers it; (x, y) is the mask's top left corner."""
    region = canvas[:, y : y + mask.shape[0], x : x + mask.shape[1]]  # a view: what is added to it lands on the canvas
    region += mask * (colour - region)


def finish(canvas: np.ndarray) -> np.ndarray:
    """From the float canvas (3, 48, 48) to the picture (48, 48, 3), uint8. All colours are in range by construction."""
    return np.ascontiguousarray(canvas.astype(np.uint8).transpose(1, 2, 0))


# Two shorthands. `randint` of the standard library takes three times as long as this, and we roll many dice.


def between(rng: random.Random, low: int, high: int) -> int:
    """A whole number from `low` to `high`, both included."""
    return low + int((high - low + 1) * rng.random())


def lit(colour: str, rng: random.Random) -> np.ndarray:
    """A colour of the world under today's light: up to a tenth darker or brighter."""
    light = 0.9 + 0.2 * rng.random()
    return channels([min(255.0, light * value) for value in COLOURS[colour]])


# ── Masks: shapes, letters, figures ──────────────────────────────────────────────────────────────────────────────────


def as_mask(image: Image.Image, width: int, height: int) -> np.ndarray:
    """A large grey image shrunk to a mask (height, width) of coverage between 0 and 1; shrinking smooths the edges."""
    return np.asarray(image.resize((width, height), Image.Resampling.BOX), dtype=np.float32) / 255


@cache
def shape_mask(shape: str, size: int) -> np.ndarray:
    """One of the eight shapes as a mask (size, size), which it fills from border to border."""
    if shape not in SHAPES:
        raise ValueError(f"unknown shape {shape!r}: the world has {', '.join(SHAPES)}")
    big = 32 * size
    image = Image.new("L", (big, big))
    pen = ImageDraw.Draw(image)

    def polygon(points):
        pen.polygon([(x * big, y * big) for x, y in points], fill=255)

    if shape in ("circle", "ring"):
        pen.ellipse((0, 0, big - 1, big - 1), fill=255)
        if shape == "ring":  # a hole wide enough to be seen at 10 pixels
            pen.ellipse((0.23 * big, 0.23 * big, 0.77 * big, 0.77 * big), fill=0)
    elif shape == "square":
        pen.rectangle((0, 0, big, big), fill=255)
    elif shape == "triangle":
        polygon([(0.5, 0.0), (1.0, 1.0), (0.0, 1.0)])
    elif shape == "diamond":  # narrower than high, so that it is no square on its corner
        polygon([(0.5, 0.0), (0.9, 0.5), (0.5, 1.0), (0.1, 0.5)])
    elif shape == "cross":  # lying like an x: an upright one is too much like a star at 13 pixels
        polygon([(0, 0), (0.18, 0), (1, 0.82), (1, 1), (0.82, 1), (0, 0.18)])
        polygon([(1, 0), (0.82, 0), (0, 0.82), (0, 1), (0.18, 1), (1, 0.18)])
    elif shape == "star":  # ten corners, far and near in turn
        corners = [(0.53 if k % 2 == 0 else 0.23, math.pi * k / 5) for k in range(10)]
        polygon([(0.5 + r * math.sin(a), 0.53 - r * math.cos(a)) for r, a in corners])
    elif shape == "heart":  # the well-known curve x = 16 sin^3 t, 32 wide and 29 high
        turns = [2 * math.pi * k / 90 for k in range(90)]
        ys = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in turns]
        polygon([(0.5 + math.sin(t) ** 3 / 2, (12 - y) / 29) for t, y in zip(turns, ys, strict=True)])
    return as_mask(image, size, size)


def ink(text: str, points: int, weight: int) -> Image.Image:
    """`text` in large bold letters, cut to its bounding box. `weight` thickens the strokes of Pillow's own font."""
    font = ImageFont.load_default(size=points)
    image = Image.new("L", (points * (len(text) + 1), 2 * points))
    ImageDraw.Draw(image).text((points // 2, points // 4), text, fill=255, font=font, stroke_width=weight)
    return image.crop(image.getbbox())


@cache
def figure_mask(figure: str, height: int) -> np.ndarray:
    """A digit of this height, or an operator that goes with digits of this height."""
    image = ink(figure, points=160, weight=5)
    if not figure.isdigit():
        height = round(0.65 * height)
    return as_mask(image, round(height * image.width / image.height), height)


@cache
def word_mask(word: str) -> np.ndarray:
    """A word as it stands on a board, in capitals 10 pixels high, squeezed where it would be wider than the board."""
    letters = [ink(letter, points=160, weight=7) for letter in word.upper()]
    widths = [10 * letter.width / letter.height for letter in letters]
    squeeze = min(1.0, (BOARD_SIZE[0] - 5 - len(word)) / sum(widths))
    widths = [max(1, int(squeeze * width + 0.5)) for width in widths]
    mask = np.zeros((10, sum(widths) + len(word) - 1), dtype=np.float32)
    x = 0
    for letter, width in zip(letters, widths, strict=True):
        mask[:, x : x + width] = as_mask(letter, width, 10)
        x += width + 1  # a whole pixel between letters keeps them apart
    return mask


@cache
def board_mask() -> np.ndarray:
    width, height = BOARD_SIZE
    image = Image.new("L", (8 * width, 8 * height))
    ImageDraw.Draw(image).rounded_rectangle((0, 0, 8 * width - 1, 8 * height - 1), radius=28, fill=255)
    return as_mask(image, width, height)


# ── The arrangement of each kind of scene ────────────────────────────────────────────────────────────────────────────


def draw(scene: Scene, rng: random.Random) -> np.ndarray:
    """Paint a scene: uint8 (48, 48, 3). Raises ValueError for a kind, or a place, that the world does not have."""
    if scene.kind not in ARRANGEMENTS:
        raise ValueError(f"unknown kind of scene {scene.kind!r}: the painter knows {', '.join(ARRANGEMENTS)}")
    canvas = background(rng)
    ARRANGEMENTS[scene.kind](canvas, scene, rng)
    return finish(canvas)


def line_up(sizes: list[int], gap: int, rng: random.Random) -> list[int]:
    """Where things of these sizes begin when they stand in line across the picture, `gap` apart, near its middle.

    Example: line_up([12, 12], 2, rng) is a line of 26 pixels; in the very middle it is [11, 25], or up to 4 off.
    """
    total = sum(sizes) + gap * (len(sizes) - 1)
    slack = (IMAGE_SIZE - total) // 2
    play = max(0, min(4, slack - 1))  # one pixel to the border, except where four large things need it all
    start = slack + between(rng, -play, play)
    starts = []
    for size in sizes:
        starts.append(start)
        start += size + gap
    return starts


# How large things may be, and how far apart, when so many stand in line: four of 11 and their gaps just fit in 48.
LINES = {1: (13, 17, 4), 2: (13, 16, 4), 3: (12, 14, 2), 4: (10, 11, 1)}


def draw_things(canvas: np.ndarray, scene: Scene, rng: random.Random) -> None:
    """Up to four equal things: in a column at the left or right, or in a row at the top or bottom."""
    if scene.place not in ("left", "right", "top", "bottom"):
        raise ValueError(f"things stand at the left, right, top or bottom, not at {scene.place!r}")
    count = scene.count
    smallest, largest, gap = LINES[count]
    size = between(rng, smallest, largest)
    mask, colour = shape_mask(scene.shape, size), lit(scene.colour, rng)
    along = line_up([size] * count, between(rng, 1, gap), rng)
    # `edge` is how far the things are from the border of their side: 1 to 5 pixels, each with a wobble of its own.
    edge = between(rng, 2, 4)
    for position in along:
        across = edge + between(rng, -1, 1)
        if scene.place in ("right", "bottom"):
            across = IMAGE_SIZE - size - across
        x, y = (across, position) if scene.place in ("left", "right") else (position, across)
        paint(canvas, mask, colour, x, y)


def draw_pair(canvas: np.ndarray, scene: Scene, rng: random.Random) -> None:
    """The first thing is left of, or above, the second."""
    if scene.relation not in ("left of", "above"):
        raise ValueError(f"a pair stands 'left of' or 'above', not {scene.relation!r}")
    draw_line(canvas, scene.things, rng, (14, 17), gap=between(rng, 2, 10), upright=scene.relation == "above")


def draw_row(canvas: np.ndarray, scene: Scene, rng: random.Random) -> None:
    """Three things from left to right."""
    draw_line(canvas, scene.things, rng, (13, 14), gap=between(rng, 1, 2), upright=False)


def draw_line(canvas: np.ndarray, things, rng: random.Random, sizes: tuple[int, int], gap: int, upright: bool) -> None:
    """Things in their order from left to right, or from top to bottom, each up to 7 pixels off the middle line."""
    sizes = [between(rng, *sizes) for _ in things]
    for (colour, shape), size, along in zip(things, sizes, line_up(sizes, gap, rng), strict=True):
        across = (IMAGE_SIZE - size) // 2 + between(rng, -7, 7)
        x, y = (across, along) if upright else (along, across)
        paint(canvas, shape_mask(shape, size), lit(colour, rng), x, y)


def top_or_bottom(scene: Scene, height: int, room: int, rng: random.Random) -> int:
    """The first row of something `height` high that hangs at the top or stands at the bottom, with `room` to move."""
    offset = between(rng, 1, room)
    if scene.place == "top":
        return offset
    if scene.place == "bottom":
        return IMAGE_SIZE - height - offset
    raise ValueError(f"a {scene.kind} is at the top or at the bottom, not at {scene.place!r}")


def draw_sign(canvas: np.ndarray, scene: Scene, rng: random.Random) -> None:
    """A coloured board with a dark word on it."""
    width, height = BOARD_SIZE
    x, y = between(rng, 1, IMAGE_SIZE - width - 1), top_or_bottom(scene, height, 6, rng)
    paint(canvas, board_mask(), lit(scene.colour, rng), x, y)
    word = word_mask(scene.word)
    x += (width - word.shape[1]) // 2 + between(rng, -1, 1)
    y += (height - word.shape[0]) // 2 + between(rng, 0, 1)
    paint(canvas, word, channels(NEAR_BLACK), x, y)


def draw_sum(canvas: np.ndarray, scene: Scene, rng: random.Random) -> None:
    """Two figures and an operator between them, such as 3x6, or one to three figures, 306; all of one colour."""
    three_digits = scene.kind == "number" and len(scene.operands) == 3  # these take more room
    height = between(rng, 17, 18) if three_digits else between(rng, 19, 20)
    masks = [figure_mask(str(operand), height) for operand in scene.operands]
    colour = lit(scene.colour, rng)
    xs = line_up([mask.shape[1] for mask in masks], 1, rng)
    if scene.kind == "number" and not three_digits:  # a short number may stand anywhere in its half
        shift = between(rng, 1, IMAGE_SIZE - 1 - (xs[-1] + masks[-1].shape[1] - xs[0])) - xs[0]
        xs = [x + shift for x in xs]
    middle = top_or_bottom(scene, height, 23 - height, rng) + height // 2  # operators float at half height
    for mask, x in zip(masks, xs, strict=True):
        paint(canvas, mask, colour, x, middle - mask.shape[0] // 2)


def draw_creature(canvas: np.ndarray, scene: Scene, rng: random.Random) -> None:
    """One animal, looking left or right, somewhere near the middle, 31 to 35 pixels large without its margin."""
    size = 34 + 2 * between(rng, 0, 2)
    hide, rest = creature_sprite(scene.name, size, flipped=rng.random() < 0.5)
    x, y = (IMAGE_SIZE - size) // 2 + between(rng, -5, 5), (IMAGE_SIZE - size) // 2 + between(rng, -5, 5)
    region = canvas[:, y : y + size, x : x + size]
    region *= rest
    region += hide * (0.85 + 0.15 * rng.random())  # the sprite is at full light already: it can only get darker


ARRANGEMENTS = {
    "things": draw_things, "pair": draw_pair, "row": draw_row,
    "sign": draw_sign, "sum": draw_sum,
    "number": draw_sum, "creature": draw_creature,
}  # fmt: skip


# ── Films ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def draw_video(video: Video, rng: random.Random, frames: int = 4) -> np.ndarray:
    """Paint a film: uint8 (frames, 48, 48, 3). The first frame is the start of the path, the last frame its end.

    One half of the picture, drawn at random, is the lane of the mover; the other half is where the still thing stands.
    Nothing but the order of the frames tells a direction from its opposite: with the same seed, "left" is "right"
    played backwards, pixel by pixel. So a model that ignores time can do no better than guess between the two.
    """
    if frames < 1:
        raise ValueError(f"a film has at least one frame, not {frames}")
    if video.direction not in ("left", "right", "up", "down"):
        raise ValueError(f"things move left, right, up or down, not {video.direction!r}")
    canvas = background(rng)
    (mover_colour, mover_shape), (still_colour, still_shape) = video.mover, video.still
    sideways = video.direction in ("left", "right")
    size, still_size = between(rng, 14, 17), between(rng, 14, 17)  # as large as the things of a pair

    # `across` the direction of travel lie two lanes, around 12 and around 36; `along` it is the path, left to right.
    near, far = (12, 36) if rng.random() < 0.5 else (36, 12)
    across = near - size // 2 + between(rng, -3, 2)
    still_across = far - still_size // 2 + between(rng, -3, 2)
    still_along = between(rng, 1, IMAGE_SIZE - still_size - 1)
    travel = between(rng, 27, 29)
    start = between(rng, 1, IMAGE_SIZE - size - travel - 1)

    path = [start + round(travel * t / max(frames - 1, 1)) for t in range(frames)]
    if video.direction in ("left", "up"):  # the way back: the same stations in the opposite order
        path = path[::-1] if frames > 1 else [start + travel]

    x, y = (still_along, still_across) if sideways else (still_across, still_along)
    paint(canvas, shape_mask(still_shape, still_size), lit(still_colour, rng), x, y)
    mask, colour = shape_mask(mover_shape, size), lit(mover_colour, rng)
    film = np.empty((frames, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    for t, station in enumerate(path):
        frame = canvas.copy()
        x, y = (station, across) if sideways else (across, station)
        paint(frame, mask, colour, x, y)
        film[t] = frame.transpose(1, 2, 0)
    return film
