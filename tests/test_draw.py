"""The painter: what the facts of a scene say is what can be measured in the pixels, for `data_toy/draw.py`."""

from __future__ import annotations

import random

import numpy as np
import pytest

from data_toy.draw import IMAGE_SIZE, draw, draw_video, shape_mask, word_mask
from data_toy.world import (
    COLOURS,
    COUNTS,
    CREATURES,
    DIGITS,
    OPERATORS,
    PLACES,
    RELATIONS,
    REVERSED,
    SHAPES,
    SIGN_WORDS,
    Scene,
    Video,
)
from data_toy.zoo import ZOO

ONE_OF_EACH_KIND = [
    Scene("things", colour="red", shape="circle", count=3, place="left"),
    Scene("pair", things=(("red", "circle"), ("blue", "star")), relation="left of"),
    Scene("row", things=(("red", "circle"), ("blue", "star"), ("green", "ring"))),
    Scene("sign", colour="blue", word="taxi", place="top"),
    Scene("sum", colour="green", operands=(3, "x", 6), place="top"),
    Scene("creature", name="flamingo"),
]


def painted(picture: np.ndarray) -> np.ndarray:
    """Where a picture is not background, (48, 48) of bool. The shade of the background is the median of the picture."""
    shade = np.median(picture.reshape(-1, 3), axis=0)
    return np.abs(picture - shade).max(axis=2) > 50


def centre(ink: np.ndarray) -> np.ndarray:
    """The centre of mass (y, x) of what is painted."""
    return np.argwhere(ink).mean(axis=0)


def islands(ink: np.ndarray) -> int:
    """How many connected pieces there are: flood one, count it, look for the next. Corners do not connect."""
    dry = set(map(tuple, np.argwhere(ink)))
    pieces = 0
    while dry:
        pieces += 1
        flood = [dry.pop()]
        while flood:
            y, x = flood.pop()
            for neighbour in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if neighbour in dry:
                    dry.remove(neighbour)
                    flood.append(neighbour)
    return pieces


def touches_the_border(ink: np.ndarray) -> bool:
    return bool(ink[0].any() or ink[-1].any() or ink[:, 0].any() or ink[:, -1].any())


@pytest.mark.parametrize("scene", ONE_OF_EACH_KIND, ids=lambda scene: scene.kind)
def test_the_same_seed_gives_the_same_picture_and_another_seed_another(scene):
    """All chance comes from the `rng` that is handed in."""
    picture = draw(scene, random.Random(1))
    assert picture.shape == (IMAGE_SIZE, IMAGE_SIZE, 3) and picture.dtype == np.uint8
    assert np.array_equal(picture, draw(scene, random.Random(1)))
    assert len({draw(scene, random.Random(seed)).tobytes() for seed in range(50)}) == 50


@pytest.mark.parametrize("shape", SHAPES)
def test_things_are_as_many_as_said_and_stand_where_said(shape):
    """Islands of paint are counted by flooding them; the centre of all paint tells the place."""
    rng = random.Random(2)
    for place in PLACES:
        for count in COUNTS:
            for colour in ("red", "yellow", "blue", "white"):
                ink = painted(draw(Scene("things", colour=colour, shape=shape, count=count, place=place), rng))
                assert islands(ink) == count
                y, x = centre(ink)
                away, beside = (x, y) if place in ("left", "right") else (y, x)
                assert away < 16 if place in ("left", "top") else away > 32
                assert 16 < beside < 32


def test_every_colour_is_nearest_to_its_own_name_under_any_light():
    """The light varies by a tenth, and yet no colour is taken for another."""
    names, values = list(COLOURS), np.array(list(COLOURS.values()), dtype=float)
    for colour in COLOURS:
        for seed in range(20):
            picture = draw(Scene("things", colour=colour, shape="square", count=1, place="top"), random.Random(seed))
            seen = np.median(picture[painted(picture)], axis=0)
            assert names[np.abs(values - seen).sum(axis=1).argmin()] == colour


def test_no_shape_is_taken_for_another():
    """At every size, masks of two shapes differ by at least a tenth of all the paint in the two."""
    for size in range(10, 18):
        for i, one in enumerate(SHAPES):
            for other in SHAPES[i + 1 :]:
                a, b = shape_mask(one, size), shape_mask(other, size)
                assert np.abs(a - b).sum() > (a + b).sum() / 10, (one, other)


@pytest.mark.parametrize("relation", RELATIONS)
def test_the_first_of_a_pair_is_left_of_or_above_the_second(relation):
    """Red is measured against blue along the axis of the relation; they are never side by side on the other."""
    for seed in range(100):
        scene = Scene("pair", things=(("red", "heart"), ("blue", "square")), relation=relation)
        picture = draw(scene, random.Random(seed)).astype(int)
        red, blue = picture[:, :, 0] - picture[:, :, 2] > 80, picture[:, :, 2] - picture[:, :, 0] > 80
        step = centre(blue) - centre(red)
        along, across = step if relation == "above" else step[::-1]
        assert along > 12 and abs(across) <= along
        assert islands(red | blue) == 2


def test_a_row_is_in_order_from_left_to_right():
    """Red, then green, then blue, and a column of background between any two."""
    scene = Scene("row", things=(("red", "square"), ("green", "square"), ("blue", "square")))
    for seed in range(100):
        picture = draw(scene, random.Random(seed))
        ink = painted(picture)
        assert islands(ink) == 3
        strongest = np.where(ink, picture.argmax(axis=2), -1).max(
            axis=0
        )  # of a column: -1 none, 0 red, 1 green, 2 blue
        order = strongest[strongest >= 0]
        assert set(order) == {0, 1, 2} and (np.diff(order) >= 0).all()


@pytest.mark.parametrize("word", SIGN_WORDS)
def test_every_word_fits_on_its_board_and_every_board_in_the_picture(word):
    """Around the dark letters is board, and around the board is background."""
    width = word_mask(word).shape[1]
    assert width <= 36  # of 42: three pixels at either end, before the jitter of one
    for place in ("top", "bottom"):
        for seed in range(10):
            picture = draw(Scene("sign", colour="white", word=word, place=place), random.Random(seed))
            bright = picture.min(axis=2) > 150
            assert not touches_the_border(bright)
            assert centre(bright)[0] < 18 if place == "top" else centre(bright)[0] > 30
            ys, xs = np.nonzero(bright)
            board = picture[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1].max(axis=2)
            assert board.shape == (17, 42)
            dark = board < 60
            dark[:3, :3] = dark[:3, -3:] = dark[-3:, :3] = dark[-3:, -3:] = False  # background behind the round corners
            assert dark.any() and not touches_the_border(dark)


def test_every_sum_fits_in_its_half_of_the_picture():
    """Two figures and an operator are three islands, in the half that was asked for, clear of the border."""
    rng = random.Random(3)
    for a in DIGITS:
        for b in DIGITS:
            for operator, place in zip(OPERATORS, ("top", "bottom"), strict=True):
                ink = painted(draw(Scene("sum", colour="yellow", operands=(a, operator, b), place=place), rng))
                assert islands(ink) == 3 and not touches_the_border(ink)
                assert not (ink[24:] if place == "top" else ink[:24]).any()


def test_all_creatures_are_in_the_zoo_and_no_two_look_alike():
    """The same dice for each, so that animals differ and nothing else; silhouettes and colours both count."""
    assert set(ZOO) == set(CREATURES)
    pictures = [draw(Scene("creature", name=name), random.Random(0)).astype(float) for name in CREATURES]
    for i, one in enumerate(pictures):
        assert painted(one).sum() > 200
        for other in pictures[i + 1 :]:
            assert np.abs(one - other).mean() > 15


@pytest.mark.parametrize("direction", REVERSED)
def test_a_film_played_backwards_is_a_film_of_the_opposite_direction(direction):
    """The order of the frames is the only cue: with one seed the two films have the same frames, pixel by pixel."""
    for seed in range(20):
        for frames in (2, 4, 5, 8):
            there = draw_video(Video(("red", "circle"), ("blue", "star"), direction), random.Random(seed), frames)
            opposite = Video(("red", "circle"), ("blue", "star"), REVERSED[direction])
            back = draw_video(opposite, random.Random(seed), frames)
            assert there.shape == (frames, IMAGE_SIZE, IMAGE_SIZE, 3) and there.dtype == np.uint8
            assert np.array_equal(there[::-1], back)


STEPS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # (y, x), y downwards


@pytest.mark.parametrize("direction", STEPS)
def test_the_mover_crosses_the_picture_in_equal_steps_and_the_still_thing_stays(direction):
    """Centres of red paint are 27 to 29 pixels apart from first to last frame; blue paint is the same in all frames."""
    step = STEPS[direction]
    for seed in range(50):
        film = draw_video(Video(("red", "circle"), ("blue", "square"), direction), random.Random(seed), 4).astype(int)
        red, blue = film[..., 0] - film[..., 2] > 80, film[..., 2] - film[..., 0] > 80
        path = np.array([centre(frame) for frame in red])
        moves = np.diff(path, axis=0) @ np.array(step)  # pixels along the direction, frame to frame
        assert 26.5 < moves.sum() < 29.5 and np.ptp(moves) < 1.3
        assert np.allclose(np.ptp(path, axis=0) * (1 - np.abs(step)), 0, atol=0.2)  # and none across it
        assert (blue == blue[0]).all() and not any(touches_the_border(ink) for ink in red | blue)
        assert all(islands(ink) == 2 for ink in red | blue)


def test_a_film_of_one_frame_is_the_start_of_the_path():
    """One frame for either way: where the longer film begins."""
    for direction in REVERSED:
        video = Video(("red", "circle"), ("blue", "star"), direction)
        one, four = draw_video(video, random.Random(5), frames=1), draw_video(video, random.Random(5), frames=4)
        assert np.array_equal(one[0], four[0])


@pytest.mark.parametrize(
    ("scene", "complaint"),
    [
        (Scene("portrait"), "unknown kind of scene 'portrait'"),
        (Scene("sign", colour="red", word="taxi", place="middle"), "at the top or at the bottom, not at 'middle'"),
        (Scene("sum", colour="red", operands=(1, "+", 2), place="left"), "a sum is at the top or at the bottom"),
        (Scene("things", colour="red", shape="circle", count=1, place="middle"), "left, right, top or bottom"),
        (Scene("things", colour="red", shape="blob", count=1, place="left"), "unknown shape 'blob'"),
        (Scene("pair", things=(("red", "ring"), ("blue", "ring")), relation="behind"), "'left of' or 'above'"),
        (Scene("creature", name="unicorn"), "unknown creature 'unicorn'"),
    ],
)
def test_what_the_world_does_not_have_is_refused(scene, complaint):
    """The error says what was wrong and what there is instead."""
    with pytest.raises(ValueError, match=complaint):
        draw(scene, random.Random(0))
