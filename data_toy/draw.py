"""Render the toy world: from the facts of a `Scene` to pixels.

    scene = Scene("things", colour="red", shape="circle", count=3, place="left")
    draw(scene, random.Random(0))        # (48, 48, 3) uint8; of a video (4, 48, 48, 3)

Everything that the scene does not determine is drawn from `rng`: shade and noise of the background, sizes, exact positions,
brightness. Each shape is rendered once, at a large size, and reduced to a mask of coverage between 0 and 1, which is cached.
Drawing is then `region += mask * (colour - region)` on a float canvas (3, 48, 48), which takes microseconds. Channels come
first because numpy is slow when the last axis has only three entries. Animals are PNG files in animals/.
"""

import math
import random
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .world import COLOURS, HALVES, VALUES, Scene

IMAGE_SIZE = 48
N_FRAMES = 4  # of a video


@cache
def noise_sheet(size: int = 160) -> np.ndarray:
    """Faint noise (3, size, size) with amplitude 5. Backgrounds are 48 x 48 windows of it."""
    return np.random.default_rng(0).uniform(-5, 5, (3, size, size)).astype(np.float32)  # a fixed seed: part of the world


def background(rng: random.Random) -> np.ndarray:
    """A new canvas (3, 48, 48): one dark greyish shade, every channel between 15 and 75, plus noise."""
    x, y = rng.randrange(100), rng.randrange(100)
    level = 25 + 40 * rng.random()
    shade = [level - 10 + 20 * rng.random() for _ in range(3)]
    return noise_sheet()[:, y : y + IMAGE_SIZE, x : x + IMAGE_SIZE] + to_channels(shade)


def to_channels(colour) -> np.ndarray:
    return np.array(colour, dtype=np.float32).reshape(3, 1, 1)  # broadcasts over a canvas


def paint(canvas: np.ndarray, mask: np.ndarray, colour: np.ndarray, along: int, across: int, horizontal: bool = True) -> None:
    """Blend `colour` (3, 1, 1) into the canvas where `mask` (h, w) covers it, with its top left corner at (along, across).

    These are x and y in a horizontal arrangement, and y and x in a vertical one.
    """
    x, y = (along, across) if horizontal else (across, along)
    region = canvas[:, y : y + mask.shape[0], x : x + mask.shape[1]]  # a view: the next line changes the canvas
    region += mask * (colour - region)


def random_brightness(colour: str, rng: random.Random) -> np.ndarray:
    """A colour of the world, up to a tenth darker or brighter."""
    brightness = 0.9 + 0.2 * rng.random()
    return to_channels([min(255.0, brightness * value) for value in COLOURS[colour]])


def to_mask(image: Image.Image, width: int, height: int) -> np.ndarray:
    """A large greyscale image as a mask (height, width) of coverage between 0 and 1."""
    return np.asarray(image.resize((width, height), Image.Resampling.BOX), dtype=np.float32) / 255


STAR = [(0.53 if k % 2 == 0 else 0.23, math.pi * k / 5) for k in range(10)]  # radius and angle of the ten corners
TURNS = [2 * math.pi * k / 90 for k in range(90)]
HEART_Y = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in TURNS]
# The polygons of each shape, in a box from (0, 0) to (1, 1). A heart is the curve x = 16 sin^3 t, 32 wide and 29 high.
POLYGONS = {
    "circle": [], "ring": [],  # ellipses, see `shape_mask`
    "square": [[(0, 0), (1, 0), (1, 1), (0, 1)]],
    "triangle": [[(0.5, 0.0), (1.0, 1.0), (0.0, 1.0)]],
    "diamond": [[(0.5, 0.0), (0.9, 0.5), (0.5, 1.0), (0.1, 0.5)]],  # narrow: not a rotated square
    # Like the letter x: at 13 pixels an upright cross looks too much like a star.
    "cross": [[(0, 0), (0.18, 0), (1, 0.82), (1, 1), (0.82, 1), (0, 0.18)],
              [(1, 0), (0.82, 0), (0, 0.82), (0, 1), (0.18, 1), (1, 0.18)]],
    "star": [[(0.5 + r * math.sin(a), 0.53 - r * math.cos(a)) for r, a in STAR]],
    "heart": [[(0.5 + math.sin(t) ** 3 / 2, (12 - y) / 29) for t, y in zip(TURNS, HEART_Y)]],
}  # fmt: skip


@cache
def shape_mask(shape: str, size: int) -> np.ndarray:
    """One of the eight shapes as a mask (size, size). It touches all four borders, or almost."""
    big = 32 * size
    image = Image.new("L", (big, big))
    pen = ImageDraw.Draw(image)
    if shape in ("circle", "ring"):
        pen.ellipse((0, 0, big - 1, big - 1), fill=255)
    if shape == "ring":  # the hole is visible even at 10 pixels
        pen.ellipse((0.23 * big, 0.23 * big, 0.77 * big, 0.77 * big), fill=0)
    for points in POLYGONS[shape]:
        pen.polygon([(x * big, y * big) for x, y in points], fill=255)
    return to_mask(image, size, size)


@cache
def text_mask(text: str, height: int, widest: int) -> np.ndarray:
    """A text of this height, with narrower letters if it is wider than `widest` pixels."""
    font, image = ImageFont.load_default(size=160), Image.new("L", (160 * (len(text) + 1), 320))
    ImageDraw.Draw(image).text((80, 40), text, fill=255, font=font, stroke_width=6)
    image = image.crop(image.getbbox())
    return to_mask(image, min(widest, round(height * image.width / image.height)), height)


@cache
def animal_sprite(name: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Colours times coverage (3, size, size), and the share of the background that remains visible (size, size)."""
    with Image.open(Path(__file__).parent / "animals" / f"{name}.png") as image:
        pixels = np.asarray(image.resize((size, size), Image.Resampling.BOX), dtype=np.float32)
    coverage = pixels[..., 3] / 255
    return np.ascontiguousarray(pixels[..., :3].transpose(2, 0, 1) * coverage), 1 - coverage


def draw(scene: Scene, rng: random.Random) -> np.ndarray:
    """Render a scene: uint8 (48, 48, 3), of a video (4, 48, 48, 3). Raises ValueError for an unknown kind, place, shape, …"""
    for name, known in {"kind": VALUES, **VALUES.get(scene.kind, {})}.items():  # the keys of VALUES are the known kinds
        if (value := getattr(scene, name)) not in known:
            raise ValueError(f"{scene.kind}: unknown {name} {value!r}; choose one of {', '.join(map(str, known))}")
    canvas = background(rng)
    if scene.kind == "video":
        canvas = np.stack([canvas] * N_FRAMES)
    RENDERERS[scene.kind](canvas, scene, rng)
    return np.ascontiguousarray(np.moveaxis(canvas.astype(np.uint8), -3, -1))  # all colours are in 0..255 by construction


def positions_in_line(sizes: list[int], gap: int, rng: random.Random) -> list[int]:
    """Where each thing starts: things of these sizes in a line, `gap` pixels apart, up to 4 pixels off the middle."""
    margin = (IMAGE_SIZE - sum(sizes) - gap * (len(sizes) - 1)) // 2
    most = max(0, min(4, margin - 1))  # keeps one pixel to the border, except if four large things need it
    start = margin + rng.randint(-most, most)
    return [start + sum(sizes[:k]) + gap * k for k in range(len(sizes))]


# Number of things -> smallest size, largest size, largest gap. Four things of 11 and their gaps just fit.
LINES = {1: (13, 17, 4), 2: (13, 16, 4), 3: (12, 14, 2), 4: (10, 11, 1)}


def draw_things(canvas: np.ndarray, scene: Scene, rng: random.Random) -> None:
    """One to four equal things: in a column at the left or right, or in a row at the top or bottom."""
    smallest, largest, gap = LINES[scene.count]
    size = rng.randint(smallest, largest)
    mask, colour = shape_mask(scene.shape, size), random_brightness(scene.colour, rng)
    starts = positions_in_line([size] * scene.count, rng.randint(1, gap), rng)
    edge = rng.randint(2, 4)  # distance to the border; each thing differs by up to one pixel
    for along in starts:
        across = edge + rng.randint(-1, 1)
        if scene.place in ("right", "bottom"):
            across = IMAGE_SIZE - size - across
        paint(canvas, mask, colour, along, across, horizontal=scene.place in HALVES)


def draw_pair_or_row(canvas: np.ndarray, scene: Scene, rng: random.Random) -> None:
    """Different things from left to right, or the first above the second, each up to 7 pixels off the middle line."""
    smallest, largest, *gaps = (14, 17, 2, 10) if scene.kind == "pair" else (13, 14, 1, 2)
    gap = rng.randint(*gaps)
    sizes = [rng.randint(smallest, largest) for _ in scene.things]
    for (colour, shape), size, along in zip(scene.things, sizes, positions_in_line(sizes, gap, rng)):
        across = (IMAGE_SIZE - size) // 2 + rng.randint(-7, 7)
        paint(canvas, shape_mask(shape, size), random_brightness(colour, rng), along, across, scene.relation != "above")


def draw_sign(canvas: np.ndarray, scene: Scene, rng: random.Random) -> None:
    """A coloured board with a dark word on it."""
    width, height = 42, 17
    x, y = rng.randint(1, IMAGE_SIZE - width - 1), rng.randint(1, 6)
    y = y if scene.place == "top" else IMAGE_SIZE - height - y
    paint(canvas, np.ones((height, width)), random_brightness(scene.colour, rng), x, y)
    word = text_mask(scene.word.upper(), 12, width - 6)
    x += (width - word.shape[1]) // 2 + rng.randint(-1, 1)
    y += (height - word.shape[0]) // 2 + rng.randint(0, 1)
    paint(canvas, word, to_channels((18, 18, 22)), x, y)


def draw_sum(canvas: np.ndarray, scene: Scene, rng: random.Random) -> None:
    """Two digits and an operator, such as 3x6."""
    height = rng.randint(19, 20)
    masks = [text_mask(str(operand), height if isinstance(operand, int) else 13, 16) for operand in scene.operands]
    colour, y = random_brightness(scene.colour, rng), rng.randint(1, 23 - height)
    middle = (y if scene.place == "top" else IMAGE_SIZE - height - y) + height // 2  # operators are centred vertically
    for mask, x in zip(masks, positions_in_line([mask.shape[1] for mask in masks], 1, rng)):
        paint(canvas, mask, colour, x, middle - mask.shape[0] // 2)


def draw_animal(canvas: np.ndarray, scene: Scene, rng: random.Random) -> None:
    """One animal near the middle, 31 to 35 pixels large, facing left or right."""
    size = 34 + 2 * rng.randint(0, 2)
    colours, background_share = animal_sprite(scene.name, size)
    if rng.random() < 0.5:  # mirror it
        colours, background_share = colours[:, :, ::-1], background_share[:, ::-1]
    x, y = (IMAGE_SIZE - size) // 2 + rng.randint(-5, 5), (IMAGE_SIZE - size) // 2 + rng.randint(-5, 5)
    region = canvas[:, y : y + size, x : x + size]
    region *= background_share
    region += colours * (0.95 + 0.05 * rng.random())  # the sprite has full brightness already, so only make it darker


def draw_video(frames: np.ndarray, scene: Scene, rng: random.Random) -> None:
    """The first thing moves from the start of its path to the end, the second does not move. frames: (4, 3, 48, 48).

    The path of the mover is in one half of the image, the still thing in the other. With the same seed, "left" is "right"
    played backwards, so a model that ignores the order of the frames can only guess the direction.
    """
    horizontal = scene.direction in ("left", "right")
    size, still_size = rng.randint(14, 17), rng.randint(14, 17)  # as large as the things of a pair

    # `across` is the coordinate that does not change during the motion; its two halves are centred at 12 and 36.
    near, far = (12, 36) if rng.random() < 0.5 else (36, 12)
    across = near - size // 2 + rng.randint(-3, 2)
    still_across = far - still_size // 2 + rng.randint(-3, 2)
    still_along = rng.randint(1, IMAGE_SIZE - still_size - 1)
    distance = rng.randint(27, 29)
    start = rng.randint(1, IMAGE_SIZE - size - distance - 1)
    path = [start + round(distance * t / (N_FRAMES - 1)) for t in range(N_FRAMES)]
    path = path[::-1] if scene.direction in ("left", "up") else path  # the same positions in the opposite order

    (colour, shape), (still_colour, still_shape) = scene.things
    still_mask = shape_mask(still_shape, still_size)
    still_brightness, brightness = random_brightness(still_colour, rng), random_brightness(colour, rng)
    for frame, along in zip(frames, path):
        paint(frame, still_mask, still_brightness, still_along, still_across, horizontal)
        paint(frame, shape_mask(shape, size), brightness, along, across, horizontal)


RENDERERS = {
    "things": draw_things, "pair": draw_pair_or_row, "row": draw_pair_or_row, "sign": draw_sign,
    "sum": draw_sum, "animal": draw_animal, "video": draw_video,
}  # fmt: skip
