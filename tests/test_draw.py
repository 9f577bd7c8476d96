"""The images of data_toy: the facts of a scene can be measured in its pixels; designs, views and fonts of drawings."""

import random
import unicodedata
from itertools import combinations, product

import numpy as np
import pytest
from PIL import Image, ImageDraw

from data_toy import world
from data_toy.draw import IMAGE_SIZE, N_FRAMES, draw, shape_mask, text_mask
from data_toy.drawings import FONTS, draw_drawing, draw_views, glyphs, random_design, view_bank
from data_toy.media_pool import random_scene
from data_toy.world import ANIMALS, COLOURS, COUNTS, DIGITS, HALVES, PLACES, SHAPES, SIGN_WORDS, VALUES, Scene


def foreground(image: np.ndarray) -> np.ndarray:
    """(48, 48) bool. The shade of the background is the median of the image."""
    shade = np.median(image.reshape(-1, 3), axis=0)
    return np.abs(image - shade).max(axis=2) > 50


def centre(mask: np.ndarray) -> np.ndarray:
    """The centre of mass (y, x)."""
    return np.argwhere(mask).mean(axis=0)


def components(mask: np.ndarray) -> int:
    """Number of connected components, with four neighbours per pixel."""
    image, found = Image.fromarray(mask.astype(np.uint8)).copy(), 0  # 0: background, 1: not counted yet, 2: counted
    while len(rest := np.argwhere(np.asarray(image) == 1)):
        ImageDraw.floodfill(image, (int(rest[0, 1]), int(rest[0, 0])), 2)
        found += 1
    return found


def touches_border(mask: np.ndarray) -> bool:
    return not np.array_equal(mask, np.pad(mask[1:-1, 1:-1], 1))


@pytest.mark.parametrize("kind", VALUES)
def test_the_same_seed_gives_the_same_image_and_other_seeds_other_images(kind):
    scene = random_scene(random.Random(0), kind)
    image = draw(scene, random.Random(1))
    assert image.shape == (N_FRAMES,) * (kind == "video") + (IMAGE_SIZE, IMAGE_SIZE, 3) and image.dtype == np.uint8
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


@pytest.mark.parametrize("relation", ["left of", "above", None], ids=["left of", "above", "row"])
def test_different_things_are_in_the_stated_order(relation):
    """The centres of two neighbours of a pair or row are at least 12 pixels apart along the axis of their order."""
    things = [("red", "heart"), ("blue", "square")] if relation else [("red", "heart"), ("green", "ring"), ("blue", "square")]
    scene = Scene("pair" if relation else "row", things=tuple(things), relation=relation)
    for seed in range(100):
        image = draw(scene, random.Random(seed))
        mask, strongest = foreground(image), image.argmax(axis=2)  # channel 0: red, 1: green, 2: blue
        assert components(mask) == len(things)
        steps = np.diff([centre(mask & (strongest == "rgb".index(colour[0]))) for colour, _ in things], axis=0)  # (y, x)
        along, across = steps.T if relation == "above" else steps.T[::-1]
        assert (along > 12).all() and (not relation or abs(across[0]) <= along[0])


@pytest.mark.parametrize("word", SIGN_WORDS)
def test_every_word_fits_on_its_sign_and_every_sign_in_the_image(word):
    assert text_mask(word.upper(), 12, 36).shape[1] <= 36  # of 42: three pixels at both ends
    for place, seed in product(HALVES, range(10)):
        image = draw(Scene("sign", colour="white", word=word, place=place), random.Random(seed))
        bright = image.min(axis=2) > 150
        assert not touches_border(bright)
        assert centre(bright)[0] < 18 if place == "top" else centre(bright)[0] > 30
        ys, xs = np.nonzero(bright)
        board = image[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1].max(axis=2)
        assert board.shape == (17, 42)
        dark = board < 60
        assert dark.any() and not touches_border(dark)


def test_every_sum_fits_in_its_half_of_the_image():
    rng = random.Random(3)
    for a, b, (operator, place) in product(DIGITS, DIGITS, (("+", "top"), ("x", "bottom"))):
        mask = foreground(draw(Scene("sum", colour="yellow", operands=(a, operator, b), place=place), rng))
        assert components(mask) == 3 and not touches_border(mask)
        assert not (mask[24:] if place == "top" else mask[:24]).any()


def test_no_two_animals_look_alike():
    """With the same seeds for each, so that only the animals differ."""
    scenes = [Scene("animal", name=name) for name in ANIMALS]
    images = [np.stack([draw(scene, random.Random(seed)).astype(float) for seed in range(24)]) for scene in scenes]
    assert all(np.mean([foreground(image).sum() for image in views]) > 200 for views in images)
    assert all(np.abs(one - other).mean() > 15 for one, other in combinations(images, 2))


STEPS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # (y, x), y downwards
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}


@pytest.mark.parametrize("direction", STEPS)
def test_the_mover_moves_in_equal_steps_and_the_other_thing_stays(direction):
    """The mover travels 27 to 29 pixels in the stated direction. Played backwards, it moves in the opposite direction."""
    step, things = STEPS[direction], (("red", "circle"), ("blue", "square"))
    for seed in range(50):
        scene, back = (Scene("video", things=things, direction=d) for d in (direction, OPPOSITE[direction]))
        pixels, opposite = (draw(video, random.Random(seed)) for video in (scene, back))
        assert pixels.shape == (N_FRAMES, IMAGE_SIZE, IMAGE_SIZE, 3) and pixels.dtype == np.uint8
        assert np.array_equal(pixels[::-1], opposite)  # only the order of the frames differs
        video = pixels.astype(int)
        red, blue = video[..., 0] - video[..., 2] > 80, video[..., 2] - video[..., 0] > 80
        path = np.array([centre(frame) for frame in red])
        moves = np.diff(path, axis=0) @ np.array(step)  # pixels along the direction, frame to frame
        assert 26.5 < moves.sum() < 29.5 and np.ptp(moves) < 1.3
        assert np.allclose(np.ptp(path, axis=0) * (1 - np.abs(step)), 0, atol=0.2)  # and none across it
        assert (blue == blue[0]).all() and not any(touches_border(mask) for mask in red | blue)
        assert all(components(mask) == 2 for mask in red | blue)


@pytest.mark.parametrize("wrong, message", [
    ({"kind": "portrait"}, "portrait: unknown kind 'portrait'; choose one of things, pair, row"),
    ({"kind": "sign", "word": "taxi", "place": "left"}, "sign: unknown place 'left'; choose one of top, bottom"),
    ({"place": "middle"}, "things: unknown place 'middle'; choose one of left, right, top, bottom"),
    ({"shape": "blob"}, "things: unknown shape 'blob'; choose one of circle, square"),
    ({"kind": "pair", "relation": "below"}, "pair: unknown relation 'below'; choose one of left of, above"),
    ({"kind": "animal", "name": "unicorn"}, "animal: unknown name 'unicorn'; choose one of flamingo, chinchilla"),
])  # fmt: skip
def test_unknown_contents_of_a_scene_raise_an_error_that_lists_the_choices(wrong, message):
    scene = {"kind": "things", "colour": "red", "shape": "circle", "count": 1, "place": "left"}
    with pytest.raises(ValueError, match=message):
        draw(Scene(**{**scene, **wrong}), random.Random(0))


# ------------------------------------------------------------------------------------------------------------ drawings


@pytest.mark.parametrize(
    "a, b", [("glyph ж", "glyph Q"), ("glyph ა", "glyph ա"), ("doodle 17", "doodle 18"), ("icon 17", "icon 18")]
)
def test_a_design_and_a_random_generator_determine_a_view(a, b):
    """Another generator gives another view of the design. Another design gives another image."""
    view = draw_drawing(a, random.Random(0))
    assert view.shape == (48, 48, 3) and view.dtype == np.uint8
    assert np.array_equal(view, draw_drawing(a, random.Random(0)))
    for other in (draw_drawing(a, random.Random(1)), draw_drawing(b, random.Random(0))):
        assert np.abs(view - other.astype(int)).max() > 50


def test_the_test_has_only_glyphs_of_held_out_scripts_and_training_has_none():
    designs = {split: [random_design(random.Random(seed), split) for seed in range(3000)] for split in ("train", "test")}
    assert {design.split()[0] for design in designs["train"]} == {"glyph", "doodle", "icon"}
    for split, held in (("train", False), ("test", True)):
        assert {world.held_out(Scene("drawing", name=design)) for design in designs[split]} == {held}
        characters = [*glyphs(split)]
        words = [set(unicodedata.name(character, "").split()) & {*world.HELD_OUT_SCRIPTS} for character in characters]
        assert all(words) if held else not any(words)
        assert len(characters) > (200 if held else 5000)


def test_the_fonts_of_the_test_are_not_used_in_training():
    """All of them come with matplotlib."""
    assert not set(FONTS["train"]) & set(FONTS["test"])
    for split, fonts in FONTS.items():
        assert len({font.path for having in glyphs(split).values() for font in having}) == len(fonts)


def test_strokes_contrast_with_backgrounds_from_black_to_white():
    """Dark on light and light on dark both occur."""
    grey = np.stack([draw_drawing(f"doodle {seed}", random.Random(seed)) for seed in range(60)]).mean(-1).reshape(60, -1)
    background = np.median(grey, axis=1)
    stroke = grey[range(60), np.abs(grey - background[:, None]).argmax(1)] - background  # the pixel that differs most
    assert np.abs(stroke).min() >= 50 and 15 < (stroke > 0).sum() < 45
    assert background.min() < 20 and background.max() > 235 and 10 < ((background > 60) & (background < 200)).sum() < 40


def test_draw_views_shows_two_views_of_each_of_n_different_designs():
    """First one view of each, then another of each in the same order."""
    bank = view_bank(20, 3, 0)
    views = draw_views(random.Random(0), 8, bank)
    assert bank.shape == (20, 3, 48, 48, 3) and views.shape == (16, 48, 48, 3) and views.dtype == np.uint8
    design = [[np.array_equal(view, other) for other in bank.reshape(60, 48, 48, 3)].index(True) for view in views]
    assert [i // 3 for i in design[:8]] == [i // 3 for i in design[8:]] and len({*design}) == 2 * len({i // 3 for i in design})
