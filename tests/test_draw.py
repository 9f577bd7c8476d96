"""data_toy/draw.py: the facts of a scene can be measured in its pixels."""

import random
from itertools import combinations, product

import numpy as np
import pytest

from data_toy.draw import IMAGE_SIZE, draw, draw_video, shape_mask, word_mask
from data_toy.world import ANIMALS, COLOURS, COUNTS, DIGITS, PLACES, RELATIONS, REVERSED, SHAPES, SIGN_WORDS, Scene, Video

ONE_OF_EACH_KIND = [
    Scene("things", colour="red", shape="circle", count=3, place="left"),
    Scene("pair", things=(("red", "circle"), ("blue", "star")), relation="left of"),
    Scene("row", things=(("red", "circle"), ("blue", "star"), ("green", "ring"))),
    Scene("sign", colour="blue", word="taxi", place="top"),
    Scene("sum", colour="green", operands=(3, "x", 6), place="top"),
    Scene("number", colour="green", operands=(8, 3, 6), place="top"),
    Scene("animal", name="flamingo"),
]


def foreground(image: np.ndarray) -> np.ndarray:
    """(48, 48) bool. The shade of the background is the median of the image."""
    shade = np.median(image.reshape(-1, 3), axis=0)
    return np.abs(image - shade).max(axis=2) > 50


def centre(mask: np.ndarray) -> np.ndarray:
    """The centre of mass (y, x)."""
    return np.argwhere(mask).mean(axis=0)


def components(mask: np.ndarray) -> int:
    """Number of connected components, with four neighbours per pixel."""
    unvisited = set(map(tuple, np.argwhere(mask)))
    found = 0
    while unvisited:
        found += 1
        stack = [unvisited.pop()]
        while stack:
            y, x = stack.pop()
            for neighbour in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if neighbour in unvisited:
                    unvisited.remove(neighbour)
                    stack.append(neighbour)
    return found


def touches_border(mask: np.ndarray) -> bool:
    return not np.array_equal(mask, np.pad(mask[1:-1, 1:-1], 1))


@pytest.mark.parametrize("scene", ONE_OF_EACH_KIND, ids=lambda scene: scene.kind)
def test_the_same_seed_gives_the_same_image_and_other_seeds_other_images(scene):
    image = draw(scene, random.Random(1))
    assert image.shape == (IMAGE_SIZE, IMAGE_SIZE, 3) and image.dtype == np.uint8
    assert np.array_equal(image, draw(scene, random.Random(1)))
    assert len({draw(scene, random.Random(seed)).tobytes() for seed in range(50)}) == 50


@pytest.mark.parametrize("shape", SHAPES)
def test_an_image_shows_the_stated_number_of_things_at_the_stated_place(shape):
    rng = random.Random(2)
    for place, count, colour in product(PLACES, COUNTS, ("red", "yellow", "blue", "white")):
        mask = foreground(draw(Scene("things", colour=colour, shape=shape, count=count, place=place), rng))
        assert components(mask) == count
        y, x = centre(mask)
        across, along = (x, y) if place in ("left", "right") else (y, x)
        assert 16 < along < 32 and (across < 16 if place in ("left", "top") else across > 32)


def test_every_drawn_colour_is_nearest_to_its_own_name():
    """Brightness varies by a tenth, and yet no colour is confused with another."""
    names, values = list(COLOURS), np.array(list(COLOURS.values()), dtype=float)
    for colour, seed in product(COLOURS, range(20)):
        image = draw(Scene("things", colour=colour, shape="square", count=1, place="top"), random.Random(seed))
        drawn = np.median(image[foreground(image)], axis=0)
        assert names[np.abs(values - drawn).sum(axis=1).argmin()] == colour


def test_masks_of_two_shapes_differ_by_a_tenth_of_their_area_at_every_size():
    for size, (one, other) in product(range(10, 18), combinations(SHAPES, 2)):
        a, b = shape_mask(one, size), shape_mask(other, size)
        assert np.abs(a - b).sum() > (a + b).sum() / 10, (one, other)


@pytest.mark.parametrize("relation", RELATIONS)
def test_the_first_thing_of_a_pair_is_left_of_or_above_the_second(relation):
    """Measured along the axis of the relation; the distance along the other axis is smaller."""
    for seed in range(100):
        scene = Scene("pair", things=(("red", "heart"), ("blue", "square")), relation=relation)
        image = draw(scene, random.Random(seed)).astype(int)
        red, blue = image[:, :, 0] - image[:, :, 2] > 80, image[:, :, 2] - image[:, :, 0] > 80
        step = centre(blue) - centre(red)
        along, across = step if relation == "above" else step[::-1]
        assert along > 12 and abs(across) <= along
        assert components(red | blue) == 2


def test_a_row_is_in_order_from_left_to_right():
    """Red, then green, then blue, with background between them."""
    scene = Scene("row", things=(("red", "square"), ("green", "square"), ("blue", "square")))
    for seed in range(100):
        image = draw(scene, random.Random(seed))
        mask = foreground(image)
        assert components(mask) == 3
        strongest = np.where(mask, image.argmax(axis=2), -1).max(axis=0)  # per column: -1 none, 0 red, 1 green, 2 blue
        order = strongest[strongest >= 0]
        assert set(order) == {0, 1, 2} and (np.diff(order) >= 0).all()


@pytest.mark.parametrize("word", SIGN_WORDS)
def test_every_word_fits_on_its_sign_and_every_sign_in_the_image(word):
    assert word_mask(word).shape[1] <= 36  # of 42: three pixels at both ends, minus one for the random position
    for place in ("top", "bottom"):
        for seed in range(10):
            image = draw(Scene("sign", colour="white", word=word, place=place), random.Random(seed))
            bright = image.min(axis=2) > 150
            assert not touches_border(bright)
            assert centre(bright)[0] < 18 if place == "top" else centre(bright)[0] > 30
            ys, xs = np.nonzero(bright)
            board = image[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1].max(axis=2)
            assert board.shape == (17, 42)
            dark = board < 60
            dark[:3, :3] = dark[:3, -3:] = dark[-3:, :3] = dark[-3:, -3:] = False  # background at the round corners
            assert dark.any() and not touches_border(dark)


def test_every_sum_fits_in_its_half_of_the_image():
    rng = random.Random(3)
    for a, b, (operator, place) in product(DIGITS, DIGITS, (("+", "top"), ("x", "bottom"))):
        mask = foreground(draw(Scene("sum", colour="yellow", operands=(a, operator, b), place=place), rng))
        assert components(mask) == 3 and not touches_border(mask)
        assert not (mask[24:] if place == "top" else mask[:24]).any()


def test_no_two_animals_look_alike():
    """With the same seed for each, so that only the animals differ."""
    images = [draw(Scene("animal", name=name), random.Random(0)).astype(float) for name in ANIMALS]
    assert all(foreground(image).sum() > 200 for image in images)
    assert all(np.abs(one - other).mean() > 15 for one, other in combinations(images, 2))


STEPS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # (y, x), y downwards


@pytest.mark.parametrize("direction", STEPS)
def test_the_mover_moves_in_equal_steps_and_the_other_thing_stays(direction):
    """The mover travels 27 to 29 pixels in the stated direction."""
    step = STEPS[direction]
    for seed in range(50):
        video = draw_video(Video(("red", "circle"), ("blue", "square"), direction), random.Random(seed), 4).astype(int)
        red, blue = video[..., 0] - video[..., 2] > 80, video[..., 2] - video[..., 0] > 80
        path = np.array([centre(frame) for frame in red])
        moves = np.diff(path, axis=0) @ np.array(step)  # pixels along the direction, frame to frame
        assert 26.5 < moves.sum() < 29.5 and np.ptp(moves) < 1.3
        assert np.allclose(np.ptp(path, axis=0) * (1 - np.abs(step)), 0, atol=0.2)  # and none across it
        assert (blue == blue[0]).all() and not any(touches_border(mask) for mask in red | blue)
        assert all(components(mask) == 2 for mask in red | blue)


@pytest.mark.parametrize("direction", REVERSED)
def test_a_video_played_backwards_shows_the_opposite_direction(direction):
    """Only the order of the frames differs: with one seed the two videos have the same frames, pixel by pixel."""
    things = ("red", "circle"), ("blue", "star")
    for seed in range(20):
        for frames in (2, 4, 5, 8):
            forwards = draw_video(Video(*things, direction), random.Random(seed), frames)
            backwards = draw_video(Video(*things, REVERSED[direction]), random.Random(seed), frames)
            assert forwards.shape == (frames, IMAGE_SIZE, IMAGE_SIZE, 3) and forwards.dtype == np.uint8
            assert np.array_equal(forwards[::-1], backwards)
        single = draw_video(Video(*things, direction), random.Random(seed), frames=1)
        assert np.array_equal(single[0], forwards[0])  # a video of one frame is the start of the path


@pytest.mark.parametrize(
    ("scene", "message"),
    [
        (Scene("portrait"), "unknown kind of scene 'portrait'"),
        (Scene("sign", colour="red", word="taxi", place="middle"), "sign: unknown place 'middle'; choose top or bottom"),
        (Scene("sum", colour="red", operands=(1, "+", 2), place="left"), "sum: unknown place 'left'; choose top or bottom"),
        (Scene("things", colour="red", shape="circle", count=1, place="middle"), "choose left, right, top or bottom"),
        (Scene("things", colour="red", shape="blob", count=1, place="left"), "unknown shape 'blob'"),
        (Scene("pair", things=(("red", "ring"), ("blue", "ring")), relation="below"), "choose 'left of' or 'above'"),
        (Scene("animal", name="unicorn"), "unknown animal 'unicorn'"),
    ],
)
def test_unknown_contents_of_a_scene_raise_an_error_that_lists_the_choices(scene, message):
    with pytest.raises(ValueError, match=message):
        draw(scene, random.Random(0))
