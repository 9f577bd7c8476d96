"""Drawings: what determines the pixels, how views differ, and what is held out for the test."""

import unicodedata
from random import Random

import numpy as np
import pytest

from data_toy.drawings import FONTS, draw_drawing, draw_views, glyphs, random_design, view_bank
from data_toy.world import HELD_OUT_SCRIPTS, Scene, held_out

PAIRS = [("glyph ж", "glyph Q"), ("glyph ა", "glyph ա"), ("doodle 17", "doodle 18"), ("icon 17", "icon 18")]


@pytest.mark.parametrize("a, b", PAIRS)
def test_a_design_and_a_random_generator_determine_a_view(a, b):
    """Another generator gives another view of the design. Another design gives another image."""
    view = draw_drawing(a, Random(0))
    assert view.shape == (48, 48, 3) and view.dtype == np.uint8
    assert np.array_equal(view, draw_drawing(a, Random(0)))
    for other in (draw_drawing(a, Random(1)), draw_drawing(b, Random(0))):
        assert np.abs(view - other.astype(int)).max() > 50


def test_the_test_has_only_glyphs_of_held_out_scripts_and_training_has_none():
    designs = {split: [random_design(Random(seed), split) for seed in range(3000)] for split in ("train", "test")}
    assert {design.split()[0] for design in designs["train"]} == {"glyph", "doodle", "icon"}
    for split, held in (("train", False), ("test", True)):
        assert {held_out(Scene("drawing", name=design)) for design in designs[split]} == {held}
        characters = [*glyphs(split)]
        words = [set(unicodedata.name(character, "").split()) & {*HELD_OUT_SCRIPTS} for character in characters]
        assert all(words) if held else not any(words)
        assert len(characters) > (200 if held else 5000)


def test_the_fonts_of_the_test_are_not_used_in_training():
    """All of them come with matplotlib."""
    assert not set(FONTS["train"]) & set(FONTS["test"])
    for split, fonts in FONTS.items():
        assert len({font.path for having in glyphs(split).values() for font in having}) == len(fonts)


def test_strokes_contrast_with_backgrounds_from_black_to_white():
    """Dark on light and light on dark both occur."""
    grey = np.stack([draw_drawing(f"doodle {seed}", Random(seed)) for seed in range(60)]).mean(-1).reshape(60, -1)
    background = np.median(grey, axis=1)
    stroke = grey[range(60), np.abs(grey - background[:, None]).argmax(1)] - background  # the pixel that differs most
    assert np.abs(stroke).min() >= 50 and 15 < (stroke > 0).sum() < 45
    assert background.min() < 20 and background.max() > 235 and 10 < ((background > 60) & (background < 200)).sum() < 40


def test_draw_views_shows_two_views_of_each_of_n_different_designs():
    """First one view of each, then another of each in the same order."""
    bank = view_bank(20, 3, 0)
    views = draw_views(Random(0), 8, bank)
    assert bank.shape == (20, 3, 48, 48, 3) and views.shape == (16, 48, 48, 3) and views.dtype == np.uint8
    design = [[np.array_equal(view, other) for other in bank.reshape(60, 48, 48, 3)].index(True) for view in views]
    assert [i // 3 for i in design[:8]] == [i // 3 for i in design[8:]] and len({*design}) == 2 * len({i // 3 for i in design})
