"""Figures: lines carry the data's numbers, text is literal and on the page, files are whole; `minflamingo/plots.py`."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from data_toy.draw import draw, draw_video
from data_toy.world import Scene, Video
from minflamingo import plots
from minflamingo.data.sample import EOC

SHOTS = ["0", "0_text", "1", "2", "4", "8", "16", "32"]
STEPS = range(0, 400, 10)
PICTURE = draw(Scene("things", colour="purple", shape="diamond", count=2, place="left"), random.Random(0))
FILM = draw_video(Video(("red", "circle"), ("blue", "star"), "right"), random.Random(0))


def results(tasks=("binding_4way", "naming", "ocr", "cost_$a$_$b", "video", "caption")):
    def curve(start):
        ys = [start + 0.09 * k for k in range(len(SHOTS))]
        return {s: {"accuracy": y, "ci95": [y - 0.03, y + 0.02], "n": 500} for s, y in zip(SHOTS, ys)}

    return {"tasks": {t: {"chance": 0.25 if k == 0 else None, "shots": curve(0.05 * k)} for k, t in enumerate(tasks)}}


def log():
    rows = [{"stage": "vision", "step": s, "loss": f"{4 - s / 200}"} for s in STEPS]
    for s in STEPS:
        row = {"stage": "flamingo", "step": s, "loss": 3 - s / 200, "loss_pages": 3 - s / 300}
        row["loss_videos"] = 2.0 if s % 50 == 0 else ""
        row |= {f"alpha_xattn_{k}": s / 1000 + 0.001 * k for k in range(4)}
        row |= {f"alpha_dense_{k}": str(s / (900 + 100 * k)) for k in range(4)}
        rows.append(row)
    return rows


def example(**changed):
    pieces = [PICTURE, "This is a $dax$.", FILM, "It_moves_right and on " + "W" * 40, PICTURE, "This is a"]
    given = {"title": "binding $1_a", "pieces": pieces, "completion": " dax.", "answer": " dax.", "correct": True}
    return given | changed


PROMPTS = [example(), example(completion=" two words $x$ " * 5, answer="a very long right answer " * 4, correct=False)]
WORLD = [(PICTURE, "two purple diamonds"), (FILM, "the $red circle moves right")] * 3
MAPS = np.random.default_rng(0).random((10, 4, 4))
TOKENS = [" a", "<EOC>", "$x$", " red", "\n", " a_very_long_token_indeed", " b", " c", " d", " e"]

FIGURES = {
    "shots": lambda path: plots.plot_shots(results(), path),
    "loss": lambda path: plots.plot_loss(log(), path),
    "gates": lambda path: plots.plot_gates(log(), path),
    "prompts": lambda path: plots.plot_prompts(PROMPTS, path),
    "attention": lambda path: plots.plot_attention(PICTURE, TOKENS, MAPS, path, predicted=" $red$"),
    "world": lambda path: plots.plot_world(WORLD, path),
}
every_figure = pytest.mark.parametrize("name", FIGURES)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Each figure once, as it was when written, and its file: name → (figure, path)."""
    made = {}

    def make(name):
        if name not in made:
            path = FIGURES[name](str(tmp_path_factory.mktemp(name) / "new" / "figure.png"))
            made[name] = kept.pop(), path
        return made[name]

    kept, save = [], plots.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save", lambda figure, path: kept.append(figure) or save(figure, path))
        yield make


def figure_of(plot, monkeypatch):
    """The figure that `plot` would have written."""
    with monkeypatch.context() as patch:
        patch.setattr(plots, "save", lambda figure, path: figure)
        return plot("nowhere.png")


def texts(figure):
    artists = [*figure.texts] + [t for axes in figure.axes for t in (*axes.texts, axes.title, axes._left_title)]
    return [t for t in artists if t.get_text().strip()]


def lines(axes):
    return {line.get_gid(): line for line in axes.get_lines() if line.get_gid() not in ("behind", "raw")}


# ── Files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@every_figure
def test_a_figure_is_a_readable_png_wide_enough_and_small(name, drawn):
    path = drawn(name)[1]
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG" and image.width >= 600 and image.height >= 200
        assert len(image.getcolors()) > 20
    assert path.stat().st_size < 300_000
    assert [p.name for p in path.parent.iterdir()] == ["figure.png"]


def test_a_figure_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "figure.png"
    path.write_bytes(b"the old one")

    def half(self, file, *args, **kwargs):
        file.write_bytes(b"\x89PNG half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(OSError, match="disk full"):
        plots.plot_loss(log(), path)
    assert [p.name for p in tmp_path.iterdir()] == ["figure.png"] and path.read_bytes() == b"the old one"


def test_plotting_imports_neither_pyplot_nor_the_toy_world():
    code = "import sys, minflamingo.plots; print({'matplotlib.pyplot', 'data_toy', 'train_tiny'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


# ── Text ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@every_figure
def test_text_is_drawn_literally_and_stays_on_the_page(name, drawn):
    figure = drawn(name)[0]
    page = figure.bbox
    assert len(texts(figure)) > 3
    for text in texts(figure):
        box = text.get_window_extent()
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1, text.get_text()
        assert not text.get_parse_math() or "$" not in text.get_text()


@every_figure
def test_no_text_lies_over_another(name, drawn):
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts(drawn(name)[0])]
    for k, (one, a) in enumerate(boxes):
        for other, b in boxes[:k]:
            overlap = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
            assert min(overlap) <= 2, (one, other)


def test_wrapped_lines_are_no_wider_than_asked_and_lose_nothing():
    text = "two purple diamonds at the left " + "W" * 60
    wrapped, width, height = plots.wrap(text, 150, 10)
    assert width <= 150 and height == pytest.approx(len(wrapped.split("\n")) * 10 * plots.LINE)
    assert "".join(wrapped.split()) == "".join(text.split())
    assert "purple" in wrapped.split()  # words are broken only where they must be
    assert plots.wrap("", 150, 10) == ("", 0, 0)


def test_labels_are_spread_just_enough():
    assert plots.spread([0, 5, 5, 9], 2) == pytest.approx([0, 4, 6, 9])
    assert plots.spread([3, 3, 3], 1) == pytest.approx([2, 3, 4])
    assert plots.spread([9, 0], 1) == pytest.approx([9, 0])


# ── Numbers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_panel_of_shots_shows_its_task_in_percent_with_its_interval_and_chance():
    data = results()
    figure = plots.shots_figure(data)
    assert len(figure.axes) == len(data["tasks"])
    for axes, (name, task) in zip(figure.axes, data["tasks"].items()):
        line = lines(axes)[name]
        assert list(line.get_xdata()) == list(range(len(SHOTS)))
        assert line.get_ydata() == pytest.approx([100 * task["shots"][s]["accuracy"] for s in SHOTS])
        band = axes.collections[0].get_paths()[0].vertices
        for x, s in enumerate(SHOTS):
            low, high = task["shots"][s]["ci95"]
            assert {round(y, 6) for y in band[band[:, 0] == x][:, 1]} == {round(100 * low, 6), round(100 * high, 6)}
        assert ("chance" in lines(axes)) == (task["chance"] is not None)
        assert [t.get_text().strip() for t in axes.get_xticklabels()] == [s.replace("_", "\n") for s in SHOTS]
    assert lines(figure.axes[0])["chance"].get_ydata()[0] == 25
    assert figure.axes[0].get_title(loc="left") == "binding, 4-way"


@pytest.mark.parametrize("trained_with, edge", [(8, 5.5), (4, 4.5), (10, 5.5), (32, None)])
def test_the_ground_is_shaded_from_the_first_number_of_shots_beyond_training(trained_with, edge):
    axes = plots.shots_figure(results(), trained_with=trained_with).axes[0]
    assert [patch.get_x() for patch in axes.patches] == ([] if edge is None else [edge])


def test_a_task_may_lack_some_numbers_of_shots():
    data = results()
    del data["tasks"]["ocr"]["shots"]["0"], data["tasks"]["ocr"]["shots"]["8"]
    line = lines(plots.shots_figure(data).axes[2])["ocr"]
    assert list(line.get_xdata()) == [1, 2, 3, 4, 6, 7]


def test_loss_has_a_panel_a_stage_and_a_line_a_column_with_numbers():
    vision, flamingo = plots.loss_figure(log()).axes
    raw = next(line for line in vision.get_lines() if line.get_gid() == "raw")
    assert list(raw.get_xdata()) == list(STEPS)
    assert raw.get_ydata() == pytest.approx([4 - s / 200 for s in STEPS])
    assert set(lines(vision)) == {"loss"} and set(lines(flamingo)) == {"loss", "loss_pages", "loss_videos"}
    assert list(lines(flamingo)["loss_videos"].get_xdata()) == [s for s in STEPS if s % 50 == 0]
    assert [t.get_text() for t in flamingo.texts][1:] == ["pages: 1.72", "videos: 2.00"]


def test_smoothing_is_a_running_mean_that_keeps_the_length():
    assert plots.smooth(np.array([0.0, 3, 6, 9]), 3) == pytest.approx([1.5, 3, 6, 7.5])
    assert plots.smooth(np.array([0.0, 3, 6]), 0) == pytest.approx([0, 3, 6])
    assert plots.smooth(np.ones(40), 7) == pytest.approx(np.ones(40))


def test_gates_have_a_panel_a_kind_and_a_line_a_layer():
    xattn, dense = plots.gates_figure(log()).axes
    assert set(lines(xattn)) == {f"alpha_xattn_{k}" for k in range(4)}
    assert lines(xattn)["alpha_xattn_2"].get_ydata() == pytest.approx([s / 1000 + 0.002 for s in STEPS])
    assert lines(dense)["alpha_dense_3"].get_ydata() == pytest.approx([s / 1200 for s in STEPS])
    assert xattn.get_ylim() == dense.get_ylim()


# ── Pixels ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_pictures_arrive_in_the_file_enlarged_by_whole_pixels_in_their_own_colours(drawn):
    figure, path = drawn("world")
    shown = figure.axes[0].images[0]
    left, right, bottom, top = shown.get_extent()
    assert (right - left, bottom - top) == (144, 144) and left == int(left) and top == int(top)
    page = np.asarray(Image.open(path).convert("RGB")).astype(int)
    found = page[int(top) : int(bottom), int(left) : int(right)]
    error = np.abs(found - PICTURE.repeat(3, axis=0).repeat(3, axis=1))[10:-10].max(axis=-1)  # without round corners
    assert error.max() < 40 and error.mean() < 4


def test_the_palette_keeps_rare_colours(tmp_path):
    rng = random.Random(1)
    pictures = [draw(Scene("creature", name=name), rng) for name in ("flamingo", "panda", "zebra", "yak", "koala")]
    rare = np.full((48, 48, 3), 30, dtype=np.uint8)
    rare[:5, 20:25] = (155, 65, 195)  # purple, nowhere else
    path = plots.plot_world([(picture, "") for picture in (rare, *pictures)], tmp_path / "world.png")
    found = np.asarray(Image.open(path).convert("RGB")).astype(int).reshape(-1, 3)
    assert (np.abs(found - (155, 65, 195)).max(axis=-1) < 16).sum() == 15 * 15


def test_a_film_shows_four_frames_from_first_to_last():
    film = np.zeros((9, 48, 48, 3), dtype=np.uint8) + np.arange(9, dtype=np.uint8)[:, None, None, None]
    assert [int(frame.max()) for frame in plots.frames_of(film, "film")] == [0, 3, 5, 8]
    assert len(plots.frames_of(film[:1], "picture")) == 1


def test_right_and_wrong_completions_are_marked_and_wrong_ones_corrected(monkeypatch):
    def words(**changed):
        figure = figure_of(lambda path: plots.plot_prompts([example(**changed)], path), monkeypatch)
        return [t.get_text() for t in texts(figure)]

    assert "✓" in words() and "dax." in words() and not any("right answer" in t for t in words())
    wrong = words(completion=" wug.", correct=False)
    assert "✗" in wrong and "wug." in wrong and "right answer: dax." in wrong


def test_texts_without_pictures_stand_on_cards_of_their_own(monkeypatch):
    pieces = ["Output: red", EOC, "Output: blue", EOC, PICTURE, "Output:"]
    figure = figure_of(lambda path: plots.plot_prompts([example(pieces=pieces)], path), monkeypatch)
    assert {"Output: red", "Output: blue", "Output:"} <= {t.get_text() for t in texts(figure)}
    assert len(figure.axes[0].images) == 1


def test_a_token_lights_the_patch_it_looks_at(monkeypatch):
    grey, maps = np.full((48, 48, 3), 60, dtype=np.uint8), np.zeros((1, 4, 4))
    maps[0, 1, 3] = 0.2  # scaled by its own maximum
    figure = figure_of(lambda path: plots.plot_attention(grey, [" red"], maps, path), monkeypatch)
    plain, lit = (np.asarray(image.get_array()).sum(-1) for image in figure.axes[0].images)
    assert np.ptp(plain) == 0
    y, x = np.unravel_index(lit.argmax(), lit.shape)
    assert (y // 36, x // 36) == (1, 3) and lit[y, x] > plain[0, 0] > lit[140, 4]


# ── Errors ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def shots_with(cell=None, key="4"):
    data = results()
    data["tasks"]["ocr"]["shots"][key] = cell or {"accuracy": 0.5, "ci95": [0.4, 0.6]}
    return data


@pytest.mark.parametrize(
    "plot, says",
    [
        (lambda path: plots.plot_shots({}, path), "no task to plot"),
        (lambda path: plots.plot_shots({"tasks": {"ocr": {"shots": {}}}}, path), "'ocr'"),
        (lambda path: plots.plot_shots({"tasks": {"ocr": {}}}, path), "no 'shots'"),
        (lambda path: plots.plot_shots(shots_with({"accuracy": 1.0}), path), "'ocr'.* no 'ci95'"),
        (lambda path: plots.plot_shots(shots_with(key="many"), path), "'many'"),
        (lambda path: plots.plot_loss([], path), "no row to plot"),
        (lambda path: plots.plot_loss([{"stage": "vision", "step": 1}], path), "row 0 has no 'loss'"),
        (lambda path: plots.plot_loss([{"stage": "vision", "step": 1, "loss": ""}], path), "no number in column"),
        (lambda path: plots.plot_loss([{"stage": "vision", "step": 1, "loss": "low"}], path), "low"),
        (lambda path: plots.plot_gates(log()[:3], path), "flamingo"),
        (lambda path: plots.plot_gates([{"stage": "flamingo", "step": 1, "loss": 1}], path), "alpha_xattn_0"),
        (lambda path: plots.plot_prompts([], path), "no example to plot"),
        (lambda path: plots.plot_prompts([{"title": "a"}], path), "example 0 has no 'pieces'"),
        (lambda path: plots.plot_prompts([example(pieces=[])], path), "no pieces of example 0"),
        (lambda path: plots.plot_prompts([example(pieces=[PICTURE / 255, "a"])], path), "example 0: .*float64"),
        (lambda path: plots.plot_attention(PICTURE, [], MAPS[:0], path), "0 tokens"),
        (lambda path: plots.plot_attention(PICTURE, [" a"], MAPS, path), "1 tokens, maps of shape"),
        (lambda path: plots.plot_world([], path), "no examples to plot"),
        (lambda path: plots.plot_world([(PICTURE[0], "a")], path), "uint8"),
    ],
)
def test_what_cannot_be_drawn_is_a_clear_error_and_no_file(plot, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        plot(tmp_path / "figure.png")
    assert list(tmp_path.iterdir()) == []
