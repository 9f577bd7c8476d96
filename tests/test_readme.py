"""The README is true: its example runs as printed, and its numbers are those of the committed results."""

import json
import re
import subprocess
import sys
from pathlib import Path
from statistics import mean

import pytest

from data_toy.evaluation_tasks import format_table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
TINY = ROOT / "tutorials" / "pretrained" / "tiny"
FIGURES = ROOT / "tutorials" / "figures"
RUNS = [json.loads(path.read_text()) for path in sorted(FIGURES.glob("results_seed*.json"))]
TASKS = RUNS[0]["tasks"]  # of seed 0


def scores_of(run: dict) -> dict[str, dict[str, float]]:
    return {task: {shots: cell["score"] for shots, cell in entry["shots"].items()} for task, entry in run["tasks"].items()}


MEANS = {task: {s: mean(scores_of(run)[task][s] for run in RUNS) for s in entry["shots"]} for task, entry in TASKS.items()}


def section(name: str) -> str:
    return README.split(f"<!-- {name} -->")[1].split(f"<!-- end of {name} -->")[0]


def table(text: str) -> dict[str, dict[str, float]]:
    """Task -> number of shots -> accuracy. Cells of numbers of shots that a task does not have are empty."""
    (header,) = re.findall(r"^\| task +\|(.+)\|$", text, re.MULTILINE)
    columns = [cell.strip().replace(" ", "_") for cell in header.split("|")]
    rows = {}
    for task, line in re.findall(r"^\| `(\w+)` +\|(.+)\|$", text, re.MULTILINE):
        cells = dict(zip(columns, line.split("|"), strict=True))
        rows[task] = {shots: float(cell) for shots, cell in cells.items() if cell.strip()}
    return rows


def test_the_first_example_runs_as_printed():
    """With the ready model and images of the sample folder, in a new process, without a network."""
    code = re.search(r"```python\n(.+?)```", README, re.DOTALL)[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == re.search(r"print\(answer\)  # (.+)", code)[1]


def test_the_results_and_times_are_those_of_the_committed_runs():
    """Seed 0 with all numbers of shots; all seeds with 8 shots, or the most that a task has; seed 0 on another machine."""
    assert section("results").split("\n\n")[1].strip() == format_table(TASKS)
    rows = re.findall(r"\| `(\w+)` \| (\d+) \| (.+) \|", section("seeds"))
    assert [task for task, _, _ in rows] == list(TASKS)
    assert f"| {len(RUNS)} seeds |" in section("seeds")
    for task, shots, numbers in rows:
        scores = [scores_of(run)[task][shots] for run in RUNS]
        assert [float(x) for x in numbers.split(" | ")] == pytest.approx([mean(scores), min(scores), max(scores)], abs=0.0501)
    other = json.loads((FIGURES / "results_other_cpu.json").read_text())
    expected = [scores_of(run)["arithmetic"]["8"] for run in (other, RUNS[0])]
    assert [float(x) for x in re.findall(r"(\d+\.\d)%", section("other cpu"))] == pytest.approx(expected, abs=0.0501)
    minutes = sorted(run["seconds"]["total"] / 60 for run in RUNS)[2:]  # of five: the median, and the two longest
    assert [float(x) for x in re.findall(r"\d+\.\d", section("time"))] == pytest.approx(minutes, abs=0.06)


def test_accuracy_rises_with_shots_where_the_readme_says_so():
    """And `task`, `ocr` and `arithmetic` need to see the form of an answer, but no image."""
    for task in ("binding_2way", "binding_4way"):
        assert MEANS[task]["8"] - MEANS[task]["0_text"] > 30, task
    rising = re.findall(r"`(\w+)`", section("rising"))
    assert len(set(rising)) >= 4
    for task in rising:
        first, *_, last = sorted(int(shots) for shots in MEANS[task] if shots.isdecimal() and int(shots) >= 2)
        assert MEANS[task][str(last)] - MEANS[task][str(first)] >= 5, task
    for task in ("task", "ocr", "arithmetic"):
        assert MEANS[task]["0"] < 5 and MEANS[task]["0_text"] > max(80, MEANS[task]["2"] - 5), task


def test_the_table_of_toy_benchmarks_has_the_means_of_the_committed_runs():
    runs = [scores_of(json.loads(path.read_text())) for path in sorted(FIGURES.glob("toy_benchmarks_seed*.json"))]
    means = {task: {shots: mean(run[task][shots] for run in runs) for shots in runs[0][task]} for task in runs[0]}
    assert len(runs) == 3 and table(section("toy benchmarks")) == {t: pytest.approx(means[t], abs=0.0501) for t in means}


def test_the_table_of_speed_is_that_of_the_committed_bench():
    rows = json.loads((FIGURES / "bench.json").read_text())["rows"]
    lines = [line.strip("| ").split(" | ", 1) for line in section("speed").split("\n") if re.match(r"\| [^|]*\d", line)]
    assert len(lines) == 7
    for label, numbers in lines:
        expected = [rows[label][key] for key in ("fast", "plain", "plain / fast", "peer", "peer / fast") if key in rows[label]]
        assert [float(number) for number in re.findall(r"[\d.]+", numbers)] == pytest.approx(expected, rel=0.01), label


def test_the_ablations_that_disagree_with_the_paper_are_those_of_the_committed_run():
    rows = json.loads((FIGURES / "ablations.json").read_text())["rows"]
    differences = {name: (row["shots"]["4"]["difference"], row["paper_difference"]) for name, row in rows.items()}
    disagree = {name: ours for name, (ours, paper) in differences.items() if paper is not None and ours * paper < 0}
    written = {name: float(value) for name, value in re.findall(r"`([\w-]+)` \(([+-][\d.]+)\)", section("disagree"))}
    assert written == pytest.approx(disagree, abs=0.0501)
    binding = {name: 100 * row["shots"]["4"]["tasks"]["binding_2way"] for name, row in rows.items()}
    assert set(re.findall(r"`([\w-]+)`", section("chance"))) == {name for name, score in binding.items() if score < 55}
    longer = json.loads((FIGURES / "ablations_longer.json").read_text())["rows"]
    expected = [row["shots"]["4"]["score"] for row in (longer["round-robin"], rows["baseline"], *list(longer.values())[1:])]
    assert [float(x) for x in re.findall(r"\d+\.\d", section("longer"))] == pytest.approx(expected, abs=0.0501)


def test_the_ready_model_is_described_by_its_own_results():
    """The model card: the accuracies of the run that made it. And it is small."""
    assert sum(path.stat().st_size for path in TINY.iterdir()) < 5_000_000
    card = (TINY / "README.md").read_text()
    assert table(card) == {task: pytest.approx(scores, abs=0.0501) for task, scores in scores_of(RUNS[0]).items()}
    assert "python train_tiny.py" in card and re.search(r"commit `?[0-9a-f]{7}", card)


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
