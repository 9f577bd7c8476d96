"""The zoo of the toy world: what each animal looks like, as a table, and one painter that reads it.

    >>> painted, rest = creature_sprite("flamingo", 34, flipped=False)
    >>> painted.shape, rest.shape                # its colours, and what still shows of the background behind it
    ((3, 34, 34), (34, 34))

A new animal is a new row of `ZOO`: colours, proportions, and which of legs, necks, ears, beaks, humps and stripes it has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

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
