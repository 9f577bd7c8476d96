"""Figures: the lines carry the numbers of the data, texts are literal and inside the figure, invalid data is an error."""

import numpy as np
import pytest
from PIL import Image

from minflamingo import plots

SHOTS = ["0", "0_text", "1", "2", "4", "8", "16", "32"]
STEPS = list(range(0, 400, 10))
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (48, 48, 3), dtype=np.uint8)
VIDEO = RNG.integers(0, 256, (9, 48, 48, 3), dtype=np.uint8)


def results(tasks=("binding_4way", "naming", "ocr", "cost_$a$_$b", "video", "caption")) -> dict:
    made = {}
    for k, task in enumerate(tasks):
        scores = {shots: 5 * k + 9 * i for i, shots in enumerate(SHOTS)}
        cells = {shots: {"score": score, "interval": [score - 3, score + 2]} for shots, score in scores.items()}
        made[task] = {"unit": "exact match (%)", "chance": 25.0 if k == 0 else None, "shots": cells}
    return {"tasks": made, "mean": {"0_text": 31.0, "4": 52.0}}


def log() -> list[dict]:
    """Rows of two training stages, with numbers as text like those of a CSV file."""
    rows = [{"stage": "vision", "step": str(s), "loss": f"{4 - s / 200}"} for s in STEPS]
    for s in STEPS:
        row = {"stage": "flamingo", "step": s, "loss": 3 - s / 200, "loss_documents": 3 - s / 300}
        row["loss_videos"] = 2.0 if s % 50 == 0 else ""
        row |= {f"alpha_xattn_{k}": s / 1000 + 0.001 * k for k in range(4)}
        row |= {f"alpha_dense_{k}": str(s / (900 + 100 * k)) for k in range(4)}
        rows.append(row)
    return rows


LOW, MIDDLE, HIGH = ({"lr": lr, "steps": 80} for lr in (1e-4, 1e-3, 1e-2))
TRIALS = [{"hyperparameters": h, "score": score} for h, score in ((LOW, 58.0), (MIDDLE, 70.5), (HIGH, 71.5))]
CAPTIONS, QUESTIONS = {"hyperparameters": LOW, "grid": TRIALS[:1]}, {"hyperparameters": HIGH, "grid": TRIALS}
GRID = {"tasks": {"questions_$1$": QUESTIONS, "captions": CAPTIONS}}
FIRST = {"4": {"score": 69.0, "seeds": [65.0, 73.0], "difference": None}, "32": {"score": 68.0}}
SECOND = {"4": {"score": 60.0, "seeds": [58.0, 62.0], "difference": -9.0}}
OTHER = {"changed": "training data", "to": "without $videos$", "paper_difference": -3.4, "shots": SECOND}
ABLATIONS = {"rows": {"baseline": {"changed": "-", "to": "the whole model", "shots": FIRST}, "no-videos": OTHER}}
TIMES = {"prompt, 32 shots": {"unit": "s", "fast": 0.5, "plain": 0.6, "peer": 1.25}, "queries": {"unit": "s", "fast": 2.0}}
BENCH = {"device": "2 CPU threads", "against": "peers/open_flamingo_peer.py", "rows": TIMES}


def example(**changed) -> dict:
    pieces = [IMAGE, "This is a $dax$.", VIDEO, "It_moves_right and on ", IMAGE, "This is a"]
    return {"title": "binding $1_a", "pieces": pieces, "completion": " dax.", "answer": " dax.", "correct": True} | changed


WRONG = example(completion=" two words $x$ " * 4, answer="a long right answer " * 3, correct=False)
TOKENS = [" a", "<EOC>", "$x$", " red", "\n", " a_very_long_token_indeed", " b", " c", " d", " e"]
FIGURES = {
    "shots": lambda path: plots.plot_shots(results(), path),
    "loss": lambda path: plots.plot_loss(log(), path),
    "gates": lambda path: plots.plot_gates(log(), path),
    "grid": lambda path: plots.plot_grid(GRID, path),
    "ablations": lambda path: plots.plot_ablations(ABLATIONS, path),
    "bench": lambda path: plots.plot_bench(BENCH, path),
    "prompts": lambda path: plots.plot_prompts([example(), WRONG], path),
    "attention": lambda path: plots.plot_attention(IMAGE, TOKENS, RNG.random((10, 4, 4)), path),
    "world": lambda path: plots.plot_world([(IMAGE, "two purple diamonds"), (VIDEO, "the $red$ circle moves right")] * 3, path),
}


@pytest.fixture
def figure_of(monkeypatch):
    """A function that returns the figure instead of writing it."""
    monkeypatch.setattr(plots, "save", lambda figure, path: figure)
    return lambda plot, *data: plot(*data, "unused.png")


def texts(figure) -> list:
    artists = list(figure.texts)
    for axes in figure.axes:
        artists += [*axes.texts, axes._left_title, axes.xaxis.label, axes.yaxis.label] if axes.axison else axes.texts
    return [t for t in artists if t.get_text().strip()]


def lines(axes) -> dict:
    """The lines of a panel by their names."""
    return {line.get_gid(): line for line in axes.get_lines() if line.get_gid()}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_a_small_png_whose_texts_are_literal_and_do_not_overlap(name, tmp_path, monkeypatch):
    figures, save = [], plots.save
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure) or save(figure, path))
    path = FIGURES[name](str(tmp_path / "new" / "figure.png"))
    with Image.open(path) as image:
        assert image.format == "PNG" and image.width >= 600 and image.height >= 200
        assert len(np.unique(image.convert("L"))) > 20 and path.stat().st_size < 300_000
    (figure,) = figures
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts(figure)]
    assert len(boxes) > 3 and not any(t.get_parse_math() and "$" in t.get_text() for t in texts(figure))
    for k, (text, a) in enumerate(boxes):
        assert figure.bbox.x0 <= a.x0 and a.x1 <= figure.bbox.x1 and figure.bbox.y0 <= a.y0 and a.y1 <= figure.bbox.y1, text
        for other, b in boxes[:k]:
            assert min(a.x1, b.x1) - max(a.x0, b.x0) <= 2 or min(a.y1, b.y1) - max(a.y0, b.y0) <= 2, (text, other)


def test_each_panel_shows_the_scores_of_its_task_with_interval_and_chance(figure_of):
    data = results()
    mean, *panels = figure_of(plots.plot_shots, data).axes
    assert list(lines(mean)["mean"].get_ydata()) == [31.0, 52.0]
    assert len(panels) == len(data["tasks"])
    for axes, (name, task) in zip(panels, data["tasks"].items()):
        line = lines(axes)[name]
        assert [x.replace("\n", "_") for x in line.get_xdata()] == SHOTS
        assert list(line.get_ydata()) == [cell["score"] for cell in task["shots"].values()]
        band = axes.collections[0].get_paths()[0].vertices
        assert {y for x, y in band if x == SHOTS.index("4")} == set(task["shots"]["4"]["interval"])
        assert ("chance" in lines(axes)) == (task["chance"] is not None)
    assert lines(panels[0])["chance"].get_ydata()[0] == 25


def test_cells_and_tasks_without_a_score_and_the_mean_of_one_task_are_left_out(figure_of):
    data = results(["ocr"])
    data["tasks"]["ocr"]["shots"]["8"] = {"n": 3, "problem": "not enough examples"}
    data["tasks"]["hidden"] = {"shots": {"0": {"n": 3, "problem": "the answers are hidden"}}}
    (axes,) = figure_of(plots.plot_shots, data).axes
    assert len(lines(axes)["ocr"].get_xdata()) == len(SHOTS) - 1


def test_loss_has_a_panel_for_each_stage_and_gates_for_each_kind_with_a_line_for_each_column(figure_of):
    vision, flamingo = figure_of(plots.plot_loss, log()).axes
    values, mean = vision.get_lines()
    assert list(values.get_xdata()) == STEPS and values.get_ydata() == pytest.approx([4 - s / 200 for s in STEPS])
    # 40 values: the mean over 3, at the ends over 2.
    assert mean.get_ydata() == pytest.approx([3.975, *values.get_ydata()[1:-1], 2.075])
    assert set(lines(vision)) == {"all"} and set(lines(flamingo)) == {"all", "documents", "videos"}
    assert list(lines(flamingo)["videos"].get_xdata()) == [s for s in STEPS if s % 50 == 0]
    xattn, dense = figure_of(plots.plot_gates, log()).axes
    assert lines(xattn)["LM block 2"].get_ydata() == pytest.approx([s / 1000 + 0.002 for s in STEPS])
    assert lines(dense)["LM block 3"].get_ydata() == pytest.approx([s / 1200 for s in STEPS])
    assert xattn.get_ylim()[0] == 0


def test_a_grid_shows_the_best_trials_first_and_marks_the_chosen_one(figure_of):
    axes = figure_of(plots.plot_grid, GRID).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [71.5, 70.5, 58.0, 58.0]
    names = [t.get_text() for t in axes.get_yticklabels()]
    assert (names[0], names[-1]) == ("questions_$1$: lr 0.01, steps 80", "captions: lr 0.0001, steps 80")
    colours = [bar.get_facecolor() for bar in axes.patches]
    assert colours[0] == colours[3] != colours[1] == colours[2]


def test_ablations_show_scores_seeds_and_differences(figure_of):
    axes = figure_of(plots.plot_ablations, ABLATIONS).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [69.0, 60.0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["the whole model", "training data: without $videos$"]
    assert axes.texts[1].get_text() == "60.0   -9.0   (paper -3.4)"
    assert [list(line.get_xdata()) for line in axes.get_lines() if line.get_gid() == "seeds"] == [[65.0, 73.0], [58.0, 62.0]]


def test_bench_bars_are_relative_to_the_fast_version(figure_of):
    axes = figure_of(plots.plot_bench, BENCH).axes[0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([1, 1.2, 2.5, 1])
    assert axes.texts[2].get_text() == "1.25 s   open_flamingo_peer"


def test_images_keep_their_pixels_and_a_video_shows_four_frames_from_first_to_last(figure_of):
    video = np.arange(9, dtype=np.uint8)[:, None, None, None] * np.ones((1, 48, 48, 3), np.uint8)
    image_axes, video_axes = figure_of(plots.plot_world, [(IMAGE, "a"), (video, "b")]).axes
    assert np.array_equal(image_axes.images[0].get_array(), IMAGE)
    shown = video_axes.images[0].get_array()
    assert [shown[y, x, 0] for y, x in ((25, 25), (25, 75), (75, 25), (75, 75))] == [0, 3, 5, 8]


def test_the_file_keeps_rare_colours(tmp_path):
    rare = np.full((48, 48, 3), 30, dtype=np.uint8)
    rare[10:18, 10:18] = (155, 65, 195)  # this purple is nowhere else
    path = plots.plot_world([(image, "") for image in (rare, IMAGE, IMAGE, IMAGE)], tmp_path / "world.png")
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int).reshape(-1, 3)
    assert (np.abs(pixels - (155, 65, 195)).max(axis=-1) < 16).sum() > 64


def test_wrong_completions_are_marked_and_corrected(figure_of):
    right = [t.get_text() for t in texts(figure_of(plots.plot_prompts, [example()]))]
    wrong = [t.get_text() for t in texts(figure_of(plots.plot_prompts, [example(correct=False)]))]
    assert "✓ dax." in right and not any("right answer" in t for t in right)
    assert "✗ dax." in wrong and "right answer: dax." in wrong


def test_an_attention_map_is_bright_at_the_patch_with_the_largest_weight(figure_of):
    grey, maps = np.full((48, 48, 3), 60, dtype=np.uint8), np.zeros((1, 4, 4))
    maps[0, 1, 3] = 0.2  # scaled by its own maximum
    image, lit = (a.images[0].get_array().sum(-1) for a in figure_of(plots.plot_attention, grey, [" red"], maps).axes)
    y, x = np.unravel_index(lit.argmax(), lit.shape)
    assert (y // 12, x // 12) == (1, 3) and lit[y, x] > image[0, 0] > lit[46, 2]


@pytest.mark.parametrize("plot, data", [
    (plots.plot_shots, {}), (plots.plot_loss, []), (plots.plot_gates, log()[:3]), (plots.plot_grid, {}),
    (plots.plot_ablations, {}), (plots.plot_prompts, []),
])  # fmt: skip
def test_without_data_there_is_an_error_and_no_file(plot, data, tmp_path):
    with pytest.raises(ValueError, match="no data for the figure '"):
        plot(data, tmp_path / "figure.png")
    assert list(tmp_path.iterdir()) == []
