"""The README is true: its example runs as printed, and its numbers are those of the committed results."""

import json
import re
import subprocess
import sys
from pathlib import Path
from statistics import mean

import pytest

from minflamingo.evaluation.fewshot import SHOTS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CARD = (ROOT / "tutorials" / "pretrained" / "tiny" / "README.md").read_text()
FIGURES = ROOT / "tutorials" / "figures"
RUNS = [json.loads(path.read_text()) for path in sorted(FIGURES.glob("results_seed*.json"))]


def section(name: str) -> str:
    return README.split(f"<!-- {name} -->")[1].split(f"<!-- end of {name} -->")[0]


def table(text: str) -> dict[str, list[float]]:
    rows = re.findall(r"^\| `(\w+)` \|(.+)\|$", text, re.MULTILINE)
    return {name: [float(cell) for cell in cells.split("|")] for name, cells in rows}


def test_the_first_example_runs_as_printed():
    """With the ready model and images of the sample folder, in a new process, without a network."""
    code = re.search(r"```python\n(.+?)```", README, re.DOTALL)[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == re.search(r"print\(answer\)  # (.+)", code)[1]


def test_the_table_of_results_is_the_mean_of_the_committed_runs():
    found = table(section("results"))
    assert found.keys() == RUNS[0]["tasks"].keys()
    for name, cells in found.items():
        expected = [mean(run["tasks"][name]["shots"][shots]["score"] for run in RUNS) for shots in SHOTS]
        assert cells == pytest.approx(expected, abs=0.0501), name


def test_accuracy_rises_with_shots_where_the_readme_says_so():
    """And the tasks that it calls flat are flat."""
    scores = {name: [mean(run["tasks"][name]["shots"][s]["score"] for run in RUNS) for s in SHOTS] for name in RUNS[0]["tasks"]}
    at = {shots: i for i, shots in enumerate(SHOTS)}
    for name in ("binding_2way", "binding_4way"):
        assert scores[name][at["8"]] - scores[name][at["0_text"]] > 30, name
    for name in ("task", "ocr", "arithmetic"):
        assert scores[name][at["0"]] < 5 and scores[name][at["0_text"]] > 80, name
    for name in ("naming", "vqa", "video"):
        assert max(scores[name]) - min(scores[name]) < 10, name


def test_the_time_is_that_of_the_committed_runs():
    minutes = float(re.search(r"([\d.]+) minutes", section("time"))[1])
    longest = max(run["seconds"]["total"] for run in RUNS) / 60
    assert longest - 0.06 <= minutes < longest + 0.11


def test_the_table_of_speed_is_that_of_the_committed_bench():
    rows = json.loads((FIGURES / "bench.json").read_text())["rows"]
    lines = [line.strip("| ").split(" | ", 1) for line in section("speed").split("\n") if re.match(r"\| [^|]*\d", line)]
    assert len(lines) == 7
    for label, numbers in lines:
        expected = [rows[label][key] for key in ("fast", "plain", "plain / fast", "peer", "peer / fast") if key in rows[label]]
        assert [float(number) for number in re.findall(r"[\d.]+", numbers)] == pytest.approx(expected, rel=0.01), label


def test_the_ready_model_is_described_by_its_own_results():
    """The model card: the accuracies of the run that made it. And it is small."""
    folder = ROOT / "tutorials" / "pretrained" / "tiny"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 5_000_000
    results = json.loads((FIGURES / "results_seed0.json").read_text())
    found = table(CARD)
    assert found.keys() == results["tasks"].keys()
    for name, cells in found.items():
        expected = [results["tasks"][name]["shots"][shots]["score"] for shots in SHOTS]
        assert cells == pytest.approx(expected, abs=0.0501), name
    assert "python train_tiny.py" in CARD and re.search(r"commit `?[0-9a-f]{7}", CARD)


def test_every_linked_file_and_figure_exists():
    linked = re.findall(r"\]\(((?!http)[^)#]+)\)", README)
    assert len(linked) > 15
    assert [path for path in linked if not (ROOT / path).exists()] == []


def test_two_commands_do_all_the_setup():
    commands = re.findall(r"```bash\n(.+)\n```", README)
    install = "python3 -m venv .venv && . .venv/bin/activate && pip install -r requirements.txt && "
    assert commands[:2] == [install + "python train_tiny.py", install + "pytest"]
    pinned = [line for line in (ROOT / "requirements.txt").read_text().split("\n") if line and not line.startswith("#")]
    assert "torch==2.13.0" in pinned and all("==" in line for line in pinned) and len(pinned) == 6
