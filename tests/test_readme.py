"""What the README says is so: its numbers are those of the runs whose results lie beside its figures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import mean

import pytest

from minflamingo.evaluation.fewshot import SHOTS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RUNS = [json.loads(path.read_text()) for path in sorted((ROOT / "tutorials" / "figures").glob("results_seed*.json"))]


def test_the_table_of_results_is_the_mean_of_the_two_runs():
    """Every cell, to the two decimals that are printed."""
    assert [run["seed"] for run in RUNS] == [0, 1]
    rows = re.findall(r"^\| `(\w+)` \|(.+)\|$", README, re.MULTILINE)
    table = {name: cells.split("|") for name, cells in rows if name in RUNS[0]["tasks"]}
    assert table.keys() == RUNS[0]["tasks"].keys()
    for name, cells in table.items():
        expected = [mean(run["tasks"][name]["shots"][shots]["accuracy"] for run in RUNS) for shots in SHOTS]
        assert [float(cell) for cell in cells] == pytest.approx(expected, abs=0.00501), name


def test_the_minutes_are_those_of_the_runs():
    """The README's time is the longer of the two, rounded up to a tenth of a minute at most."""
    said = float(re.search(r"took ([\d.]+) minutes", README)[1])
    longest = max(run["seconds"]["total"] for run in RUNS) / 60
    assert longest <= said + 0.05 and said - longest < 0.11


def test_the_costs_are_those_of_the_bench():
    """Each number between the two marks, from `python -m minflamingo bench`, whose result lies beside its figure."""
    bench = json.loads((ROOT / "tutorials" / "figures" / "bench.json").read_text())
    said = README.split("<!-- bench -->")[1].split("<!-- end of bench -->")[0]
    token, steps = bench["token"]["32"], list(bench["step"].values())[:2]
    timed = [bench["prompt"]["32"], bench["generate"]["32"], token, *steps]
    rows = [line for line in said.split("\n") if re.match(r"\| (a|the) ", line)]
    table = [[float(n) for n in re.findall(r"\| ([\d.]+)", line)] for line in rows]
    for (theirs, ours, ratio), row, unit in zip(table, timed, (1, 1, 1000, 1, 1), strict=True):
        assert [theirs, ours] == pytest.approx([row[k]["median"] * unit for k in ("peer", "ours")], abs=0.051)
        assert ratio == pytest.approx(row["peer_ratio"], abs=0.051)
    others = [float(n) for n in re.findall(r"\d+\.\d+", said.split("Peak memory")[1])]
    memory = [row["peak_memory"] / row["peer_peak_memory"] for row in steps]
    rest = [token["against_no_shots"], 1 / token["of_reading_limit"], bench["queries"]["ratio"]]
    assert others == pytest.approx([*memory, *rest], abs=0.051)
    assert all(row["same_tokens"] for row in bench["generate"].values())
    assert max(row["largest_difference"] for row in bench["prompt"].values()) < 1e-5


def test_the_fine_tuned_scores_are_those_of_the_run():
    """Each row between the two marks, from `python -m minflamingo finetune`, whose results lie beside the figures."""
    tasks = json.loads((ROOT / "tutorials" / "figures" / "finetune.json").read_text())["tasks"]
    said = README.split("<!-- finetune -->")[1].split("<!-- end of finetune -->")[0]
    rows = re.findall(r"^\| `(\w+)` \|[^|]+\| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", said, re.MULTILINE)
    assert [name for name, *_ in rows] == list(tasks)
    for name, *numbers in rows:
        scores = [tasks[name][kind]["score"] for kind in ("shots", "tuned", "specialist")]
        assert [float(n) for n in numbers] == pytest.approx(scores, abs=0.051)
    better = sum(task["tuned"]["score"] > task["shots"]["score"] for task in tasks.values())
    assert f"beats 32 shots on {better} of the nine" in said
    assert not any(task["tuned"]["changed"]["language model"] for task in tasks.values())
    assert all(task["tuned"]["changed"]["eye"] for task in tasks.values())


def test_what_it_says_of_the_ablations_is_in_their_results():
    """Rows that differ by more than the seeds do have the paper's sign; the exceptions are those that are named."""
    rows = json.loads((ROOT / "tutorials" / "figures" / "ablations.json").read_text())["rows"]
    whole = rows["baseline"]["shots"]["4"]["seeds"]
    against = [name for name, row in rows.items() if row["paper_difference"] is not None
               and row["shots"]["4"]["difference"] > -1]  # fmt: skip
    named = README.split("<!-- ablations -->")[1].split("<!-- end of ablations -->")[0]
    assert re.findall(r"\(`([\w-]+)`\)", named) == against
    for name in ("no-pages", "no-pairs", "middle", "every-2nd", "vanilla", "lm-random", "all-images"):
        assert max(rows[name]["shots"]["4"]["seeds"]) < min(whole), name
    assert min((row["shots"]["4"]["score"], name) for name, row in rows.items() if name.startswith("no-p"))[1] == "no-pages"
    assert rows["all-images"]["shots"]["32"]["score"] < rows["baseline"]["shots"]["32"]["score"] / 2
    ungated = rows["no-gate"]["shots"]["4"]["seeds"]
    assert f"up to {max(ungated) - min(ungated):.0f} points apart" in README


def test_every_file_and_figure_it_names_exists():
    """Links and pictures of the README."""
    linked = re.findall(r"\]\(((?!http)[^)#]+)\)", README)
    assert len(linked) > 15
    assert [path for path in linked if not (ROOT / path).exists()] == []


def test_the_two_commands_install_from_the_requirements_file():
    """One line each: one trains, one tests; both begin with nothing installed."""
    commands = re.findall(r"```bash\n(.+)\n```", README)
    install = "python3 -m venv .venv && . .venv/bin/activate && pip install -r requirements.txt && "
    assert commands[:2] == [install + "python train_tiny.py", install + "pytest"]
    pinned = [line for line in (ROOT / "requirements.txt").read_text().split("\n") if line and not line.startswith("#")]
    assert "torch==2.13.0" in pinned and all("==" in line for line in pinned) and len(pinned) == 6
