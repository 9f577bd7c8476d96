"""Render the toy world: from the facts of a `Scene` or `Video` to pixels.

    scene = Scene("things", colour="red", shape="circle", count=3, place="left")
    draw(scene, random.Random(0))                                                      # (48, 48, 3) uint8
    draw_video(Video(("red", "circle"), ("blue", "star"), "right"), random.Random(0))  # (4, 48, 48, 3) uint8

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

from .world import COLOURS, DIRECTIONS, HALVES, VALUES, Scene, Video

IMAGE_SIZE = 48
N_FRAMES = 4  # of a video
BOARD_SIZE = (42, 17)  # width and height of a sign


@cache
def noise_sheet(size: int = 160) -> np.ndarray:
    """Faint noise (3, size, size) with amplitude 6, half of it smooth. Backgrounds are 48 x 48 windows of it."""
    noise = np.random.default_rng(0)  # a fixed seed: the sheet is part of the world and does not use `rng`
    smooth = Image.fromarray(noise.integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8))
    smooth = np.asarray(smooth.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32) / 127.5 - 1
    sheet = 3 * smooth + 3 * noise.uniform(-1, 1, (size, size, 3))
    return np.ascontiguousarray(sheet.transpose(2, 0, 1), dtype=np.float32)


def background(rng: random.Random) -> np.ndarray:
    """A new canvas (3, 48, 48): one dark greyish shade, every channel between 15 and 75, plus noise."""
    sheet = noise_sheet()
    x, y = between(rng, 0, sheet.shape[2] - IMAGE_SIZE), between(rng, 0, sheet.shape[1] - IMAGE_SIZE)
    level = 25 + 40 * rng.random()
    shade = [level - 10 + 20 * rng.random() for _ in range(3)]
    return sheet[:, y : y + IMAGE_SIZE, x : x + IMAGE_SIZE] + to_channels(shade)


def to_channels(colour) -> np.ndarray:
    return np.array(colour, dtype=np.float32).reshape(3, 1, 1)  # broadcasts over a canvas


def paint(canvas: np.ndarray, mask: np.ndarray, colour: np.ndarray, along: int, across: int, horizontal: bool = True) -> None:
    """Blend `colour` (3, 1, 1) into the canvas where `mask` (h, w) covers it, with its top left corner at (along, across).

    These are x and y in a horizontal arrangement, and y and x in a vertical one.
    """
    x, y = (along, across) if horizontal else (across, along)
    region = canvas[:, y : y + mask.shape[0], x : x + mask.shape[1]]  # a view: the next line changes the canvas
    region += mask * (colour - region)


def between(rng: random.Random, low: int, high: int) -> int:
    """An integer from `low` to `high`, both included; faster than `rng.randint`."""
    return low + int((high - low + 1) * rng.random())


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


def large_text(text: str, stroke: int) -> Image.Image:
    """`text` in letters of 160 points, cropped to its bounding box. `stroke` makes the font of Pillow bolder."""
    font = ImageFont.load_default(size=160)
    image = Image.new("L", (160 * (len(text) + 1), 320))
    ImageDraw.Draw(image).text((80, 40), text, fill=255, font=font, stroke_width=stroke)
    return image.crop(image.getbbox())


@cache
def digit_mask(character: str, height: int) -> np.ndarray:
    """A digit of this height, or an operator that fits digits of this height."""
    image = large_text(character, stroke=5)
    height = height if character.isdigit() else round(0.65 * height)
    return to_mask(image, round(height * image.width / image.height), height)


@cache
def word_mask(word: str) -> np.ndarray:
    """A word in capitals, 10 pixels high. Words that are too wide for a sign get narrower letters."""
    letters = [large_text(letter, stroke=7) for letter in word.upper()]
    widths = [10 * letter.width / letter.height for letter in letters]
    factor = min(1.0, (BOARD_SIZE[0] - 5 - len(word)) / sum(widths))
    widths = [max(1, int(factor * width + 0.5)) for width in widths]
    masks = [to_mask(letter, width, 10) for letter, width in zip(letters, widths)]
    return np.hstack([np.pad(mask, ((0, 0), (0, 1))) for mask in masks])[:, :-1]  # one empty column between letters


@cache
def board_mask() -> np.ndarray:
    """The board of a sign, with round corners."""
    width, height = BOARD_SIZE
    image = Image.new("L", (8 * width, 8 * height))
    ImageDraw.Draw(image).rounded_rectangle((0, 0, 8 * width - 1, 8 * height - 1), radius=28, fill=255)
    return to_mask(image, width, height)


@cache
def animal_sprite(name: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Colours times coverage (3, size, size), and the share of the background that remains visible (size, size)."""
    with Image.open(Path(__file__).parent / "animals" / f"{name}.png") as image:
        pixels = np.asarray(image.resize((size, size), Image.Resampling.BOX), dtype=np.float32)
    coverage = pixels[..., 3] / 255
    return np.ascontiguousarray(pixels[..., :3].transpose(2, 0, 1) * coverage), 1 - coverage


def draw(scene: Scene, rng: random.Random) -> np.ndarray:
    """Render a scene: uint8 (48, 48, 3). Raises ValueError if the world does not have this kind, place, shape, …"""
    for name, known in {"kind": VALUES, **VALUES.get(scene.kind, {})}.items():  # the keys of VALUES are the known kinds
        if (value := getattr(scene, name)) not in known:
            raise ValueError(f"{scene.kind}: unknown {name} {value!r}; choose one of {', '.join(map(str, known))}")
    canvas = background(rng)
    RENDERERS[scene.kind](canvas, scene, rng)
    return np.ascontiguousarray(canvas.astype(np.uint8).transpose(1, 2, 0))  # all colours are in 0..255 by construction


def positions_in_line(sizes: list[int], gap: int, rng: random.Random) -> list[int]:
    """Where each thing starts: things of these sizes in a line, `gap` pixels apart, up to 4 pixels off the middle."""
    margin = (IMAGE_SIZE - sum(sizes) - gap * (len(sizes) - 1)) // 2
    most = max(0, min(4, margin - 1))  # keeps one pixel to the border, except if four large things need it
    start = margin + between(rng, -most, most)
    return [start + sum(sizes[:k]) + gap * k for k in range(len(sizes))]


# Number of things -> smallest size, largest size, largest gap. Four things of 11 and their gaps just fit.
LINES = {1: (13, 17, 4), 2: (13, 16, 4), 3: (12, 14, 2), 4: (10, 11, 1)}


def draw_things(canvas: np.ndarray, scene: Scene, rng: random.Random) -> None:
    """One to four equal things: in a column at the left or right, or in a row at the top or bottom."""
    smallest, largest, gap = LINES[scene.count]
    size = between(rng, smallest, largest)
    mask, colour = shape_mask(scene.shape, size), random_brightness(scene.colour, rng)
    starts = positions_in_line([size] * scene.count, between(rng, 1, gap), rng)
    edge = between(rng, 2, 4)  # distance to the border; each thing differs by up to one pixel
    for along in starts:
        across = edge + between(rng, -1, 1)
        if scene.place in ("right", "bottom"):
            across = IMAGE_SIZE - size - across
        paint(canvas, mask, colour, along, across, horizontal=scene.place in HALVES)


def draw_pair_or_row(canvas: np.ndarray, scene: Scene, rng: random.Random) -> None:
    """Different things from left to right, or the first above the second, each up to 7 pixels off the middle line."""
    smallest, largest, *gaps = (14, 17, 2, 10) if scene.kind == "pair" else (13, 14, 1, 2)
    gap = between(rng, *gaps)
    sizes = [between(rng, smallest, largest) for _ in scene.things]
    for (colour, shape), size, along in zip(scene.things, sizes, positions_in_line(sizes, gap, rng)):
        across = (IMAGE_SIZE - size) // 2 + between(rng, -7, 7)
        paint(canvas, shape_mask(shape, size), random_brightness(colour, rng), along, across, scene.relation != "above")


def top_or_bottom(scene: Scene, height: int, offset: int) -> int:
    """The first row of something `height` pixels high, `offset` pixels from the top or bottom."""
    return offset if scene.place == "top" else IMAGE_SIZE - height - offset


def draw_sign(canvas: np.ndarray, scene: Scene, rng: random.Random) -> None:
    """A coloured board with a dark word on it."""
    width, height = BOARD_SIZE
    x, y = between(rng, 1, IMAGE_SIZE - width - 1), top_or_bottom(scene, height, between(rng, 1, 6))
    paint(canvas, board_mask(), random_brightness(scene.colour, rng), x, y)
    word = word_mask(scene.word)
    x += (width - word.shape[1]) // 2 + between(rng, -1, 1)
    y += (height - word.shape[0]) // 2 + between(rng, 0, 1)
    paint(canvas, word, to_channels((18, 18, 22)), x, y)


def draw_sum(canvas: np.ndarray, scene: Scene, rng: random.Random) -> None:
    """Two digits and an operator, such as 3x6, or a number of one to three digits, such as 306. All have one colour."""
    three_digits = scene.kind == "number" and len(scene.operands) == 3  # these are wider
    height = between(rng, 17, 18) if three_digits else between(rng, 19, 20)
    masks = [digit_mask(str(operand), height) for operand in scene.operands]
    colour = random_brightness(scene.colour, rng)
    xs = positions_in_line([mask.shape[1] for mask in masks], 1, rng)
    if scene.kind == "number" and not three_digits:  # a short number can be anywhere in its half of the image
        shift = between(rng, 1, IMAGE_SIZE - 1 - (xs[-1] + masks[-1].shape[1] - xs[0])) - xs[0]
        xs = [x + shift for x in xs]
    middle = top_or_bottom(scene, height, between(rng, 1, 23 - height)) + height // 2  # operators are centred vertically
    for mask, x in zip(masks, xs):
        paint(canvas, mask, colour, x, middle - mask.shape[0] // 2)


def draw_animal(canvas: np.ndarray, scene: Scene, rng: random.Random) -> None:
    """One animal near the middle, 31 to 35 pixels large, facing left or right."""
    size = 34 + 2 * between(rng, 0, 2)
    colours, background_share = animal_sprite(scene.name, size)
    if rng.random() < 0.5:  # mirror it
        colours, background_share = colours[:, :, ::-1], background_share[:, ::-1]
    x, y = (IMAGE_SIZE - size) // 2 + between(rng, -5, 5), (IMAGE_SIZE - size) // 2 + between(rng, -5, 5)
    region = canvas[:, y : y + size, x : x + size]
    region *= background_share
    region += colours * (0.85 + 0.15 * rng.random())  # the sprite has full brightness already, so only make it darker


RENDERERS = {
    "things": draw_things, "pair": draw_pair_or_row, "row": draw_pair_or_row, "sign": draw_sign,
    "sum": draw_sum, "number": draw_sum, "animal": draw_animal,
}  # fmt: skip


def draw_video(video: Video, rng: random.Random) -> np.ndarray:
    """Render a video: uint8 (4, 48, 48, 3), from the start of the path to its end.

    The path of the mover is in one half of the image, the still thing in the other. With the same seed, "left" is "right"
    played backwards, so a model that ignores the order of the frames can only guess the direction.
    """
    if video.direction not in DIRECTIONS:
        raise ValueError(f"video: unknown direction {video.direction!r}; choose one of {', '.join(DIRECTIONS)}")
    canvas = background(rng)
    horizontal = video.direction in ("left", "right")
    size, still_size = between(rng, 14, 17), between(rng, 14, 17)  # as large as the things of a pair

    # `across` is the coordinate that does not change during the motion; its two halves are centred at 12 and 36.
    near, far = (12, 36) if rng.random() < 0.5 else (36, 12)
    across = near - size // 2 + between(rng, -3, 2)
    still_across = far - still_size // 2 + between(rng, -3, 2)
    still_along = between(rng, 1, IMAGE_SIZE - still_size - 1)
    distance = between(rng, 27, 29)
    start = between(rng, 1, IMAGE_SIZE - size - distance - 1)
    path = [start + round(distance * t / (N_FRAMES - 1)) for t in range(N_FRAMES)]
    path = path[::-1] if video.direction in ("left", "up") else path  # the same positions in the opposite order

    still_mask, still_colour = shape_mask(video.still[1], still_size), random_brightness(video.still[0], rng)
    paint(canvas, still_mask, still_colour, still_along, still_across, horizontal)
    mask, colour = shape_mask(video.mover[1], size), random_brightness(video.mover[0], rng)
    frames = np.stack([canvas] * N_FRAMES)
    for frame, along in zip(frames, path):
        paint(frame, mask, colour, along, across, horizontal)
    return np.ascontiguousarray(frames.astype(np.uint8).transpose(0, 2, 3, 1))
