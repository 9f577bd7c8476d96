"""The notebooks: built from their sources, executed, and their exercises can be solved."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from tutorials.architecture import plot_architecture
from tutorials.build import FOLDER, SOLUTION, SOURCES, execute, insert_solutions, read_cells

NAMES = [path.stem for path in SOURCES]
each = pytest.mark.parametrize("name", NAMES)
FIRST_CODE = next(cell["source"] for cell in read_cells(SOURCES[0]) if cell["cell_type"] == "code")


def source_cells(name: str) -> list[dict]:
    return read_cells(FOLDER / f"{name}.py")


def notebook_cells(name: str) -> list[dict]:
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    return [{**cell, "source": "".join(cell["source"]), "tags": cell["metadata"].get("tags", [])} for cell in cells]


def printed(cell: dict) -> str:
    return "".join("".join(output["text"]) for output in cell["outputs"] if output.get("name") == "stdout")


def test_the_figure_of_the_architecture_is_that_of_its_program(tmp_path):
    """Another version of matplotlib may draw letters slightly differently."""
    paths = (plot_architecture(tmp_path / "new.png"), FOLDER / "figures" / "architecture.png")
    new, committed = (np.asarray(Image.open(path).convert("L"), float) for path in paths)
    assert new.shape == committed.shape and np.abs(new - committed).mean() < 2 and len(np.unique(new)) > 20


def test_there_are_eleven_notebooks():
    assert [name[:2] for name in NAMES] == [f"{number:02}" for number in range(11)]


@each
def test_a_notebook_has_the_cells_of_its_source_and_was_executed_to_the_end(name):
    cells = notebook_cells(name)
    for cell, source in zip(cells, source_cells(name), strict=True):
        assert {key: cell[key] for key in source} == source
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not any(output["output_type"] == "error" for cell in code for output in cell["outputs"])


@each
def test_the_code_that_a_notebook_shows_is_that_of_the_package(name):
    """If not, build this notebook again: `python -m tutorials.build 01`."""
    outputs = [output for cell in notebook_cells(name) for output in cell.get("outputs", [])]
    for shown in ("".join(output.get("data", {}).get("text/markdown", "")) for output in outputs):
        if match := re.match(r"\[(.*), line (\d+)\]\(.*?\)\n\n```python\n(.*)\n```$", shown, re.DOTALL):
            path, line, code = match.groups()
            lines = (FOLDER.parent / path).read_text(encoding="utf-8").split("\n")[int(line) - 1 :]
            lines = [text for text in lines if not re.match(r" *### (BEGIN|END) SOLUTION", text)]
            assert lines[: code.count("\n") + 1] == code.split("\n"), path


@each
def test_every_figure_has_a_description_and_at_most_300_kb(name):
    outputs = [output for cell in notebook_cells(name) for output in cell.get("outputs", [])]
    figures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert figures
    for figure in figures:
        assert len(figure["metadata"]["image/png"]["alt"]) > 40
        assert len("".join(figure["data"]["image/png"])) * 3 / 4 <= 300_000  # base64: four letters for three bytes


@each
def test_a_notebook_has_every_part_of_a_tutorial(name):
    """DESIGN: question, paper, an example by hand, code, exercise, break it, one line, links. Short cells."""
    cells = source_cells(name)
    text = "\n".join(cell["source"] for cell in cells if cell["cell_type"] == "markdown")
    parts = "question:", "what the paper says", "by hand", "# exercise", "break it", "would notice", "one line to remember"
    for part in parts:
        assert part in " ".join(text.lower().split()), part
    code = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
    assert code[0] == FIRST_CODE and any("source(" in cell for cell in code)
    for cell in code:  # empty lines and imports do not count
        assert sum(not re.match(r"\s*$|import |from ", line) for line in cell.split("\n")) <= 16, cell
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert target.startswith("https://") or (FOLDER / target).exists(), target


@each
def test_an_exercise_fails_its_checks_as_shipped_and_says_what_is_wrong(name):
    checks = [cell for cell in notebook_cells(name) if "check" in cell["tags"]]
    assert checks
    for cell in checks:
        assert "✗" in printed(cell) and "expected" in printed(cell) and "hint: " in printed(cell)
    assert len(SOLUTION.findall("\n".join(cell["source"] for cell in source_cells(name)))) > 0


@pytest.mark.slow
@each
def test_the_solutions_pass_the_checks_and_everything_else_gives_the_committed_output(name):
    """Runs the whole notebook. Numbers may differ by a few percent: rounding differs between machines. Times are left out."""
    pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(nbformat.read(FOLDER / f"{name}.ipynb", as_version=4))
    solved = execute(insert_solutions(source_cells(name))).cells
    for cell, committed in zip(solved, notebook_cells(name), strict=True):
        if "check" in committed["tags"]:
            lines = printed(cell).splitlines()
            assert lines and all(line.startswith("✓") for line in lines), printed(cell)
        elif cell["cell_type"] == "code" and "time" not in committed["tags"]:
            ours, theirs = printed(cell), printed(committed)
            number = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
            assert number.sub("#", ours).split() == number.sub("#", theirs).split()
            for a, b in zip(map(float, number.findall(ours)), map(float, number.findall(theirs))):
                assert a == pytest.approx(b, rel=0.1, abs=8), (ours, theirs)
