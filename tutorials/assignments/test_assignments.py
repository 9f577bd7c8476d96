"""The course: starters, and a grader that gives a component's points for correct code of this component only."""

import csv
import json
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tutorials.assignments.components import ASSIGNMENTS, ROOT, blank, find_functions, put_function, take_function
from tutorials.assignments.hostile import BREAK_TREE, HOSTILE, SOLVED
from tutorials.assignments.mutants import MUTANTS

FUNCTIONS = find_functions()
COMPONENTS = list(dict.fromkeys(f.component for f in FUNCTIONS))
MASK = next(f for f in FUNCTIONS if f.component == "xattn_mask")
QUICK_HOSTILE = ("os-exit", "deletes-files")


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the project, so that a fault of the grader cannot damage this one."""
    copy = tmp_path_factory.mktemp("project")
    for part in ("minflamingo", "tests", "tutorials/assignments"):
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    return copy


def copy_tree(project: Path, tree: Path) -> Path:
    shutil.copytree(project / "minflamingo", tree / "minflamingo")
    shutil.copytree(project / "tests", tree / "tests")
    return tree


def grade(project: Path, tree: Path, *names: str) -> dict[str, tuple[int, int]]:
    """{component: (points, maximum)}."""
    out = tree.parent / "results.json"
    command = [sys.executable, "-m", "tutorials.assignments.grade", str(tree), *names, "--seconds", "10", "--out", str(out)]
    subprocess.run(command, cwd=project, check=True, capture_output=True, timeout=1000)
    points: dict[str, tuple[int, int]] = {}
    for test in json.loads(out.read_text())["tests"]:
        before = points.get(test["tags"][0], (0, 0))
        points[test["tags"][0]] = (before[0] + test["score"], before[1] + test["max_score"])
    return points


def test_each_component_is_in_one_assignment_and_has_three_graded_tests():
    assert sorted(name for names in ASSIGNMENTS.values() for name in names) == sorted(COMPONENTS) and len(COMPONENTS) >= 14
    spec = "\n".join(path.read_text() for path in (ROOT / "tests" / "spec").glob("test_*.py"))
    settings = (ROOT / "pyproject.toml").read_text()
    marks = re.findall(r"^@pytest\.mark\.(\w+)\(points=(\d)\)$", spec, re.MULTILINE)
    points = {name: sum(int(n) for mark, n in marks if mark == name) for name in COMPONENTS}
    for name, parts in ASSIGNMENTS.items():
        handout = next((ROOT / "tutorials" / "assignments").glob(f"{name}_*.md")).read_text()
        assert f"60 * earned / {sum(points[part] for part in parts)}" in handout, name
    for name in COMPONENTS:
        assert len(re.findall(rf"^@pytest\.mark\.{name}\(points=[1-9]\)$", spec, re.MULTILINE)) >= 3, name
        assert f'"{name}: ' in settings, name


def test_a_starter_keeps_signatures_docstrings_and_comments_and_can_be_collected(tmp_path):
    command = [sys.executable, "-m", "tutorials.assignments.make_starter", str(tmp_path / "a"), "a2"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    text = (tmp_path / "a" / MASK.file).read_text()
    assert text == blank((ROOT / MASK.file).read_text(), list(ASSIGNMENTS["a2"])) and "repeat_interleave" not in text
    assert (ROOT / "minflamingo/lm.py").read_text() == (tmp_path / "a" / "minflamingo/lm.py").read_text()
    assert "_enabled = False" in (tmp_path / "a" / "minflamingo/fast.py").read_text()
    assert not list((tmp_path / "a").rglob("key*")) and list((tmp_path / "a").rglob("a2_*.md"))
    for notebook in (tmp_path / "a" / "tutorials").glob("*.ipynb"):
        assert "<summary>Solution" not in notebook.read_text() and not any(
            cell.get("outputs") for cell in json.loads(notebook.read_text())["cells"]
        )
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode and "choose another folder" in again.stderr
    listed = subprocess.run([sys.executable, "-m", "pytest", "tests/spec", "--collect-only", "-q", "-m", "xattn_mask"],
                            cwd=tmp_path / "a", capture_output=True, text=True)  # fmt: skip
    assert listed.returncode == 0 and "media_index" not in listed.stdout, listed.stdout


def test_a_function_is_found_although_the_rest_of_the_file_is_broken():
    text = (ROOT / MASK.file).read_text()
    for function in FUNCTIONS:
        source = (ROOT / function.file).read_text()
        code = take_function(source, function)
        assert code.startswith("def ") and put_function(source, function, code) == source
        assert take_function(source + "\ndef unfinished(:\n", function) == code
    assert take_function(text.replace("def xattn_mask", "def another"), MASK) is None


def check_matrix(project: Path, tmp_path: Path, names: list[str]) -> None:
    """Blank every second component, then the others: each has 0 points exactly when it is blank."""
    for i in range(2):
        tree = copy_tree(project, tmp_path / str(i) / "tree")
        for path in (tree / "minflamingo").rglob("*.py"):
            path.write_text(blank(path.read_text(), names[i::2]))
        for name, (points, most) in grade(project, tree, *names).items():
            assert points == (0 if name in names[i::2] else most), name


def check_hostile(project: Path, tmp_path: Path, name: str) -> None:
    tree = copy_tree(project, tmp_path / "tree")
    body = HOSTILE.get(name, SOLVED).replace("{root}", str(project))
    code = f"def xattn_mask(phi: Tensor, n_media: int, n_latents: int) -> Tensor:\n{textwrap.indent(body, '    ')}"
    (tree / MASK.file).write_text(put_function((tree / MASK.file).read_text(), MASK, code))
    if name in BREAK_TREE:
        BREAK_TREE[name](tree)
    points = grade(project, tree, "media_index", "xattn_mask")
    assert points["media_index"][0] == points["media_index"][1]
    assert points["xattn_mask"][0] == (points["xattn_mask"][1] if name in BREAK_TREE else 0)
    assert all((project / "tests" / "spec" / path.name).exists() for path in (ROOT / "tests" / "spec").glob("*.py"))
    assert (project / "tests/spec/test_gated_xattn.py").read_text() == (ROOT / "tests/spec/test_gated_xattn.py").read_text()


def test_solved_components_have_all_points_and_blank_ones_none(project, tmp_path):
    check_matrix(project, tmp_path, ["media_index", "xattn_mask", "rices"])


@pytest.mark.parametrize("name", [*QUICK_HOSTILE, "broken_import"])
def test_a_broken_component_costs_its_own_points_only(project, tmp_path, name):
    check_hostile(project, tmp_path, name)


def test_a_class_has_a_row_for_every_student_also_for_one_whose_tree_is_not_there(project, tmp_path):
    copy_tree(project, tmp_path / "class" / "anna")
    (tmp_path / "class" / "bo").mkdir()
    command = [sys.executable, "-m", "tutorials.assignments.grade_class", str(tmp_path / "class"), "xattn_mask"]
    for _ in range(2):  # the second call finds anna's results
        subprocess.run([*command, "--out", str(tmp_path / "grades")], cwd=project, check=True, capture_output=True)
        with open(tmp_path / "grades" / "grades.csv", encoding="utf-8") as file:
            anna, bo = csv.DictReader(file)
        assert (anna["student"], anna["total"], anna["note"]) == ("anna", anna["xattn_mask"], "") and int(anna["total"]) > 0
        assert (bo["student"], bo["total"]) == ("bo", "0") and "has no folder minflamingo" in bo["note"]


@pytest.mark.slow
def test_all_solved_components_have_all_points_and_blank_ones_none(project, tmp_path):
    check_matrix(project, tmp_path, COMPONENTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in (*HOSTILE, *BREAK_TREE) if name not in QUICK_HOSTILE])
def test_no_submission_gets_or_costs_points_that_are_not_its_own(project, tmp_path, name):
    check_hostile(project, tmp_path, name)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m.component], ids=lambda m: m.name)
def test_a_wrong_solution_loses_points(project, tmp_path, mutant):
    tree = copy_tree(project, tmp_path / "tree")
    path = tree / mutant.file
    path.write_text(path.read_text().replace(mutant.old, mutant.new))
    points, most = grade(project, tree, mutant.component)[mutant.component]
    assert points < most


def test_each_mutant_changes_one_place_and_is_valid_python():
    assert len({m.name for m in MUTANTS}) == len(MUTANTS) >= 100 and sum(m.component is not None for m in MUTANTS) >= 40
    for m in MUTANTS:
        text = (ROOT / m.file).read_text()
        assert text.count(m.old) == 1, m.name
        compile(text.replace(m.old, m.new), m.file, "exec")
        if m.component:  # then a blank component no longer has this text
            assert m.old not in blank(text, [m.component]), m.name
