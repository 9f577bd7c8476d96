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

In this file: the canvas, the masks (shapes, letters, figures), the arrangement of each kind of scene, the films, and at
the end the zoo: a table that says what each animal looks like, and one painter that reads it.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from data_toy.world import COLOURS, SHAPES, Scene, Video

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
    elif shape == "cross":
        pen.rectangle((0.34 * big, 0, 0.66 * big, big), fill=255)
        pen.rectangle((0, 0.34 * big, big, 0.66 * big), fill=255)
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


def draw_things(canvas: np.ndarray, scene: Scene, rng: random.Random) -> None:
    """Up to four equal things: in a column at the left or right, or in a row at the top or bottom."""
    if scene.place not in ("left", "right", "top", "bottom"):
        raise ValueError(f"things stand at the left, right, top or bottom, not at {scene.place!r}")
    count = scene.count
    size = between(rng, 10, 11 if count == 4 else 13)  # four of 11 and the gaps between them just fit in 48
    mask, colour = shape_mask(scene.shape, size), lit(scene.colour, rng)
    along = line_up([size] * count, between(rng, 1, 1 if count == 4 else 4), rng)
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
    draw_line(canvas, scene.things, rng, gap=between(rng, 4, 12), upright=scene.relation == "above")


def draw_row(canvas: np.ndarray, scene: Scene, rng: random.Random) -> None:
    """Three things from left to right."""
    draw_line(canvas, scene.things, rng, gap=between(rng, 2, 4), upright=False)


def draw_line(canvas: np.ndarray, things, rng: random.Random, gap: int, upright: bool) -> None:
    """Things in their order from left to right, or from top to bottom, each up to 6 pixels off the middle line."""
    sizes = [between(rng, 10, 13) for _ in things]
    for (colour, shape), size, along in zip(things, sizes, line_up(sizes, gap, rng), strict=True):
        across = (IMAGE_SIZE - size) // 2 + between(rng, -6, 6)
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
    """Two figures and an operator between them, such as 3x6, or three figures, 306; all of one colour."""
    height = between(rng, 16, 20 if scene.kind == "sum" else 18)  # three digits side by side take more room
    masks = [figure_mask(str(operand), height) for operand in scene.operands]
    colour = lit(scene.colour, rng)
    xs = line_up([mask.shape[1] for mask in masks], 2, rng)
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
    size, still_size = between(rng, 10, 13), between(rng, 10, 13)

    # `across` the direction of travel lie two lanes, around 12 and around 36; `along` it is the path, left to right.
    near, far = (12, 36) if rng.random() < 0.5 else (36, 12)
    across = near - size // 2 + between(rng, -3, 3)
    still_across = far - still_size // 2 + between(rng, -4, 4)
    still_along = between(rng, 1, IMAGE_SIZE - still_size - 1)
    travel = between(rng, 28, 30)
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


# ── The zoo ──────────────────────────────────────────────────────────────────────────────────────────────────────────

BLACK, DARK, WHITE, CREAM, PINK = (34, 34, 42), (74, 50, 40), (246, 244, 238), (240, 224, 192), (240, 165, 170)
HALO = (196, 190, 176)  # a thin pale line around every animal: even a black one stands out from the dark


@dataclass(frozen=True)
class Animal:
    """What an animal looks like, in a box of 100 x 100 with y downwards. It stands on y = 96 and looks right, or at us.

    A blob is an ellipse (x, y, half width, half height); a path is two to four points that a smooth curve is drawn by.
    Everything on the head counts from the head's centre, and when the animal looks at us it is there twice, mirrored.
    """

    coat: tuple  # the colour of all that has no colour of its own
    body: tuple  # a blob
    head: tuple  # a blob
    front: bool = False  # looks at us
    face: tuple | None = None  # the head's colour, if it is not the coat's
    legs: tuple = ()  # (the x of each, width, colour), from the body to the ground
    feet: tuple | None = None  # a colour
    neck: tuple = ()  # (width, path)
    mane: tuple = ()  # (width, path, colour)
    tail: tuple = ()  # (width, path, colour, colour of its rings or None)
    humps: tuple = ()  # blobs behind the body, coloured like it: wings too
    fringe: int = 0  # long hair, down to this y
    spines: tuple | None = None  # a colour: a body all of spikes
    marks: tuple = ()  # (blob, colour) on the body
    stripes: tuple = ()  # (colour, distance, width): upright, on body, neck and head
    ears: tuple = ()  # ("round" or "pointed", blob on the head, colour, colour inside)
    horns: tuple = ()  # (width, paths on the head, colour)
    spots: tuple = ()  # (blob on the head, colour)
    muzzle: tuple = ()  # (blob on the head, colour)
    beak: tuple = ()  # (corners on the head, colour), as many as it has parts
    nose: tuple = ()  # (blob on the head, colour)
    eye: tuple = (0, 0, 4)  # x and y on the head, radius
    iris: tuple = BLACK


ZOO = {
    "flamingo": Animal(
        coat=(252, 118, 160), body=(40, 47, 23, 14), head=(68, 13, 9, 8), eye=(1, -1, 2.5),
        legs=((36, 47), 4, (240, 90, 125)), neck=(7, ((56, 48), (98, 40), (30, 26), (66, 12))),
        tail=(9, ((22, 46), (8, 54)), (225, 75, 125), None),
        beak=((((4, -6), (17, -2), (18, 6), (5, 6)), CREAM), (((13, -3), (22, 3), (18, 16), (12, 6)), BLACK)),
    ),
    "chinchilla": Animal(
        coat=(168, 172, 205), body=(48, 70, 29, 26), head=(48, 46, 23, 20), front=True, feet=PINK,
        legs=((38, 58), 8, None), ears=("round", (17, -24, 12, 17), None, PINK),
        tail=(17, ((72, 88), (100, 90), (92, 52)), (110, 112, 145), None), marks=(((48, 78, 18, 17), WHITE),),
        nose=((0, 7, 3.5, 2.5), (220, 110, 130)), eye=(11, -1, 5), spots=(((10, 11, 7, 5), WHITE),),
    ),
    "shiba": Animal(
        coat=(236, 150, 62), body=(48, 76, 22, 22), head=(48, 42, 27, 23), front=True,
        ears=("pointed", (19, -20, 11, 20), None, CREAM),
        tail=(14, ((68, 84), (108, 84), (98, 36), (74, 56)), None, None),
        marks=(((48, 78, 13, 16), WHITE), ((48, 64, 19, 4), (210, 40, 50))),
        spots=(((14, 11, 11, 9), WHITE), ((10, -11, 4, 3), CREAM)), muzzle=((0, 12, 11, 10), WHITE),
        nose=((0, 7, 5, 4), BLACK), eye=(11, -3, 3.5), feet=WHITE, legs=((38, 58), 10, None),
    ),
    "panda": Animal(
        coat=WHITE, body=(50, 74, 27, 22), head=(50, 38, 31, 26), front=True,
        ears=("round", (24, -21, 11, 11), BLACK, None), marks=(((25, 70, 9, 16), BLACK), ((75, 70, 9, 16), BLACK)),
        feet=BLACK, legs=((34, 66), 16, BLACK), spots=(((13, 0, 9, 10), BLACK),), eye=(12, -1, 3), iris=WHITE,
        nose=((0, 11, 6, 4), BLACK),
    ),
    "koala": Animal(
        coat=(140, 148, 160), body=(50, 78, 22, 19), head=(50, 44, 27, 26), front=True,
        ears=("round", (31, -15, 18, 17), None, (232, 220, 224)), marks=(((50, 82, 13, 14), WHITE),),
        nose=((0, 7, 7.5, 12), BLACK), eye=(15, -4, 4.5), legs=((34, 66), 14, None),
    ),
    "camel": Animal(
        coat=(218, 166, 92), body=(40, 56, 26, 13), head=(80, 22, 13, 8), neck=(12, ((60, 56), (86, 74), (72, 22))),
        humps=((38, 42, 14, 20),), legs=((20, 29, 51, 60), 6, None), feet=DARK,
        tail=(4, ((16, 52), (8, 70)), DARK, None), ears=("round", (-9, -8, 4, 5), None, None),
        muzzle=((9, 3, 7, 6), (190, 135, 70)), eye=(0, -1, 2.5),
    ),
    "penguin": Animal(
        coat=(48, 54, 76), body=(50, 62, 25, 33), head=(50, 24, 20, 18), front=True,
        humps=((23, 60, 7, 22), (77, 60, 7, 22)), marks=(((50, 68, 18, 27), WHITE),),
        spots=(((8, 3, 8, 10), WHITE),), eye=(8, -1, 3), feet=(250, 160, 30), legs=((38, 62), 10, (250, 160, 30)),
        beak=((((-6, 3), (6, 3), (0, 14)), (250, 160, 30)),),
    ),
    "tiger": Animal(
        coat=(248, 142, 30), body=(48, 76, 23, 22), head=(48, 42, 30, 26), front=True,
        ears=("round", (22, -20, 10, 10), BLACK, WHITE), tail=(9, ((66, 88), (104, 92), (88, 44)), None, BLACK),
        marks=(((30, 72, 9, 3), BLACK), ((66, 72, 9, 3), BLACK), ((30, 82, 9, 3), BLACK), ((66, 82, 9, 3), BLACK)),
        spots=(
            ((0, -19, 3, 7), BLACK), ((9, -18, 2.5, 7), BLACK), ((26, -8, 6, 2.5), BLACK), ((25, 7, 7, 2.5), BLACK),
            ((12, -2, 7, 7), WHITE), ((8, 14, 9, 8), WHITE),
        ),
        nose=((0, 8, 5, 4), (220, 90, 110)), eye=(12, -2, 4), legs=((37, 59), 12, None),
    ),
    "moose": Animal(
        coat=(122, 78, 50), body=(38, 58, 26, 16), head=(72, 50, 13, 10), neck=(17, ((52, 56), (70, 52))),
        muzzle=((12, 7, 10, 9), (160, 112, 78)), legs=((20, 29, 47, 56), 7, (196, 168, 136)), feet=BLACK,
        tail=(6, ((14, 46), (10, 54)), None, None), ears=("pointed", (-12, -6, 5, 8), None, None), eye=(1, -2, 3),
        horns=(
            6,
            (((-2, -8), (-10, -22), (-34, -20), (-36, -38)), ((-14, -20), (-22, -40)), ((-6, -18), (-8, -36)),
             ((-2, -8), (4, -22), (22, -18), (26, -36)), ((6, -18), (10, -38))),
            (232, 204, 150),
        ),
    ),
    "llama": Animal(
        coat=CREAM, body=(38, 60, 26, 16), head=(72, 27, 13, 10), neck=(18, ((56, 62), (72, 60), (66, 29))),
        legs=((21, 31, 46, 56), 8, None), feet=DARK, tail=(12, ((14, 54), (9, 60)), None, None),
        ears=("pointed", (-6, -10, 5, 14), None, PINK),
        marks=(((38, 54, 17, 12), (215, 45, 65)), ((38, 54, 17, 3), (250, 205, 60))), muzzle=((9, 3, 7, 6), WHITE),
        nose=((13, 1, 3, 2), DARK), eye=(1, -2, 3),
    ),
    "lemur": Animal(
        coat=(150, 146, 150), face=WHITE, body=(40, 76, 20, 21), head=(40, 44, 24, 20), front=True,
        ears=("pointed", (18, -16, 9, 14), WHITE, None),
        tail=(14, ((58, 88), (100, 104), (92, 40), (70, 8)), WHITE, BLACK), marks=(((40, 78, 12, 15), WHITE),),
        spots=(((10, -2, 8, 8), BLACK),), eye=(10, -2, 5), iris=(255, 150, 20), nose=((0, 12, 6, 6), BLACK),
        legs=((30, 50), 10, None),
    ),
    "zebra": Animal(
        coat=WHITE, body=(38, 56, 26, 15), head=(76, 28, 13, 9), neck=(15, ((54, 54), (70, 30))),
        mane=(8, ((46, 42), (66, 16)), BLACK), stripes=(BLACK, 10, 4.5), legs=((20, 29, 48, 57), 7, WHITE),
        feet=BLACK, tail=(4, ((14, 50), (6, 70)), BLACK, None), ears=("pointed", (-8, -9, 4, 9), WHITE, None),
        muzzle=((10, 3, 7, 6), BLACK), eye=(0, -2, 3),
    ),
    "yak": Animal(
        coat=(84, 58, 48), body=(42, 52, 34, 21), head=(78, 56, 14, 15), humps=((56, 38, 16, 14),), fringe=88,
        legs=((22, 32, 52, 62), 9, BLACK), tail=(14, ((10, 52), (6, 80)), (60, 42, 36), None),
        muzzle=((4, 9, 9, 7), (205, 190, 180)),
        horns=(6, (((4, -12), (22, -14), (14, -30)), ((-6, -12), (-24, -14), (-14, -30))), CREAM), eye=(3, -3, 3),
        iris=WHITE,
    ),
    "toucan": Animal(
        coat=(40, 40, 52), body=(34, 60, 20, 26), head=(44, 32, 17, 16),
        tail=(12, ((26, 76), (14, 94)), None, None), legs=((34, 44), 5, (110, 150, 190)),
        marks=(((42, 52, 12, 15), (255, 240, 120)), ((36, 82, 9, 5), (225, 50, 50))),
        spots=(((4, -2, 7, 7), (90, 190, 240)),), eye=(4, -2, 3.5),
        beak=(
            (((10, -12), (34, -13), (50, -2), (50, 12), (40, 5), (12, 9)), (255, 150, 20)),
            (((42, -8), (50, -2), (50, 12), (42, 6)), BLACK),
        ),
    ),
    "hedgehog": Animal(
        coat=(232, 196, 150), body=(42, 64, 33, 28), head=(72, 74, 18, 15), spines=(126, 92, 66),
        legs=((30, 44, 60), 9, None), feet=DARK, beak=((((6, -10), (26, 4), (24, 9), (6, 13)), (232, 196, 150)),),
        nose=((24, 5, 4, 4), BLACK), eye=(4, -3, 3.5), ears=("round", (-9, -10, 6, 6), None, PINK),
    ),
    "bear": Animal(
        coat=(142, 88, 46), body=(50, 74, 27, 22), head=(50, 40, 29, 25), front=True,
        ears=("round", (22, -21, 10, 10), None, (214, 160, 110)), muzzle=((0, 10, 13, 11), (220, 178, 128)),
        nose=((0, 5, 6.5, 4.5), BLACK), eye=(12, -4, 3.5), legs=((35, 65), 16, None),
        marks=(((50, 78, 15, 15), (186, 128, 76)),),
    ),
}  # fmt: skip


def paint_animal(animal: Animal, scale: int = 4) -> Image.Image:
    """Read one row of the table and paint it, from the back to the front: RGBA, 108 x `scale` pixels square.

    That is the box of 100 x 100 and a margin of 4 around it, where the halo finds room.
    """
    image = Image.new("RGBA", (108 * scale, 108 * scale), (*HALO, 0))
    pen = ImageDraw.Draw(image)
    hx, hy = animal.head[:2]

    def blob(shape, colour, on=pen, at=(0, 0)):
        x, y, w, h = shape
        x, y = x + at[0] + 4, y + at[1] + 4
        on.ellipse([scale * v for v in (x - w, y - h, x + w, y + h)], fill=colour or animal.coat)

    def polygon(points, colour, at=(0, 0)):
        pen.polygon([(scale * (x + at[0] + 4), scale * (y + at[1] + 4)) for x, y in points], fill=colour or animal.coat)

    def stroke(width, path, colour, rings=None, at=(0, 0), on=pen):
        """A string of small discs along a Bézier curve; with `rings`, every few of them are of the other colour."""
        for k in range(61):
            t, n = k / 60, len(path) - 1
            weights = [math.comb(n, i) * t**i * (1 - t) ** (n - i) for i in range(n + 1)]
            x, y = (sum(w * point[axis] for w, point in zip(weights, path, strict=True)) for axis in (0, 1))
            blob((x, y, width / 2, width / 2), rings if rings and k // 7 % 2 else colour, on, at)

    def on_head(shape, colour):
        """A blob on the head, twice when the animal looks at us."""
        blob(shape, colour, at=(hx, hy))
        if animal.front:
            blob((-shape[0], *shape[1:]), colour, at=(hx, hy))

    # Behind the body.
    if animal.tail:
        stroke(*animal.tail)
    for x in animal.legs[0] if animal.legs else ():
        _, width, colour = animal.legs
        stroke(width, ((x, animal.body[1]), (x, 96 - width / 2)), colour)
        if animal.feet:
            blob((x + (0 if animal.front else 1), 94, width * 0.7, 4), animal.feet)
    for hump in animal.humps:
        blob(hump, None)

    # The body, its fur and its marks.
    x, y, w, h = animal.body
    if animal.spines:  # a star of many points, and rows of darker dashes within
        turns = [math.pi * k / 22 for k in range(44)]
        far = [1.15 if k % 2 else 0.92 for k in range(44)]
        points = [(x + r * w * math.cos(a), y + r * h * math.sin(a)) for r, a in zip(far, turns, strict=True)]
        polygon(points, animal.spines)
        for k in range(0, 44, 2):
            inner, outer = (0.35, 0.6) if k % 4 else (0.65, 0.9)
            dx, dy = w * math.cos(turns[k]), h * math.sin(turns[k])
            stroke(3, ((x + inner * dx, y + inner * dy), (x + outer * dx, y + outer * dy)), CREAM if k % 4 else DARK)
    else:
        blob(animal.body, None)
    if animal.fringe:  # a curtain of hair from the middle of the body down, cut in zigzag
        teeth = [(x + w - k * w / 7, animal.fringe - (9 if k % 2 else 0)) for k in range(1, 14)]
        polygon([(x - w, y), (x + w, y), *teeth], None)
    if animal.mane:
        stroke(*animal.mane)
    if animal.neck:
        stroke(*animal.neck, None)
    for shape, colour in animal.marks:
        blob(shape, colour)

    # Behind the head, then the head.
    if animal.horns:
        width, paths, colour = animal.horns
        for path in paths:
            stroke(width, path, colour, at=(hx, hy))
    if animal.ears:
        kind, (ex, ey, ew, eh), colour, inside = animal.ears
        for side in (1, -1) if animal.front else (1,):
            for part, tint in ((1, colour), (0.55, inside)) if inside else ((1, colour),):
                if kind == "round":
                    blob((side * ex, ey, part * ew, part * eh), tint, at=(hx, hy))
                else:  # a triangle, its foot on the lower end of the blob
                    foot, tip = ey + eh, (1 - 2 * part) * eh + ey
                    corners = ((ex - part * ew, foot), (ex + part * ew, foot), (ex, tip))
                    polygon([(side * x, y) for x, y in corners], tint, (hx, hy))
    blob(animal.head, animal.face)
    if animal.stripes:
        colour, distance, width = animal.stripes
        skin = Image.new("L", image.size)
        for shape in (animal.body, animal.head):
            blob(shape, 255, ImageDraw.Draw(skin))
        stroke(*animal.neck, 255, on=ImageDraw.Draw(skin))
        bars = Image.new("L", image.size)
        for left in range(4, 116, distance):
            bar = [scale * v for v in (left, 4, left - 12, 104)]  # they lean a little
            ImageDraw.Draw(bars).line(bar, fill=255, width=round(scale * width))
        image.paste((*colour, 255), mask=ImageChops.multiply(skin, bars))

    # The face.
    for shape, colour in animal.spots:
        on_head(shape, colour)
    if animal.muzzle:
        blob(*animal.muzzle, at=(hx, hy))
    for corners, colour in animal.beak:
        polygon(corners, colour, (hx, hy))
    if animal.nose:
        blob(*animal.nose, at=(hx, hy))
    ex, ey, radius = animal.eye
    on_head((ex, ey, radius, radius), animal.iris)
    if animal.iris not in (BLACK, WHITE):  # bright eyes have pupils
        on_head((ex, ey, radius / 2, radius / 2), BLACK)
    return image


@cache
def animal_with_halo(name: str) -> Image.Image:
    """The large painting of an animal, cut out of the dark with a pale line: its blurred silhouette, laid under it."""
    if name not in ZOO:
        raise ValueError(f"unknown creature {name!r}: the zoo has {', '.join(ZOO)}")
    animal = paint_animal(ZOO[name])
    halo = Image.new("RGBA", animal.size, (*HALO, 255))
    halo.putalpha(animal.getchannel("A").filter(ImageFilter.BoxBlur(10)).point([min(255, 5 * v) for v in range(256)]))
    halo.alpha_composite(animal)
    return halo


@cache
def creature_sprite(name: str, size: int, flipped: bool) -> tuple[np.ndarray, np.ndarray]:
    """An animal, ready for the canvas: its colours times its coverage (3, size, size), and the rest (size, size).

    The rest is what still shows of the background: 1 where there is no animal, 0 where it hides everything.
    """
    if flipped:
        hide, rest = creature_sprite(name, size, flipped=False)
        return np.ascontiguousarray(hide[:, :, ::-1]), np.ascontiguousarray(rest[:, ::-1])
    pixels = animal_with_halo(name).resize((size, size), Image.Resampling.BOX)
    pixels = np.asarray(pixels, dtype=np.float32).transpose(2, 0, 1)  # red, green, blue, coverage
    coverage = pixels[3] / 255
    return np.ascontiguousarray(pixels[:3] * coverage), 1 - coverage
