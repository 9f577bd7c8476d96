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
