"""Grade a folder of submissions, one folder per student, several at once.

    python -m tutorials.assignments.grade_class FOLDER a2 --out grades

    grades/grades.csv           one row per student: total, points of each component, and a note if a tree could not be graded
    grades/anna.json            the results of FOLDER/anna, as Gradescope reads them
    grades/anna.txt             the same to read

A student who has results already is not graded again, so the same command continues after an interruption (--fresh: all again).
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from tutorials.assignments.components import ROOT, choose_components

LIMIT = 1800  # seconds for one student; grading takes about one minute, and an endless loop adds 40 seconds per component


def grade_student(tree: Path, names: list[str], out: Path) -> str:
    """Grade one tree in a process of its own. Writes the two files; returns "" or what went wrong."""
    result, text = out / f"{tree.name}.json", out / f"{tree.name}.txt"
    if result.exists():
        return ""
    temporary = result.with_suffix(".tmp")  # renamed at the end, so an interruption leaves no half result
    grade = [sys.executable, "-m", "tutorials.assignments.grade"]
    process = subprocess.Popen([*grade, str(tree.resolve()), *names, "--out", str(temporary.resolve())], cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
                               env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    try:
        printed, errors = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return f"not graded within {LIMIT} seconds"
    except BaseException:  # Ctrl-C
        process.kill()
        raise
    if process.returncode or not temporary.exists():
        return (errors.strip().split("\n") or ["?"])[-1]
    text.write_text(printed, encoding="utf-8")
    temporary.replace(result)
    return ""


def write_table(students: list[str], problems: dict[str, str], components: list[str], out: Path) -> None:
    """grades.csv from the results of all students. A student without results has 0 points and a note."""
    rows = []
    for student in students:
        row = {"student": student, "total": 0, **dict.fromkeys(components, 0), "note": problems.get(student, "")}
        if (path := out / f"{student}.json").exists():
            for test in json.loads(path.read_text(encoding="utf-8"))["tests"]:
                row[test["tags"][0]] += test["score"]
                row["total"] += test["score"]
        rows.append(row)
    temporary = out / "grades.csv.tmp"
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["student", "total", *components, "note"])
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(out / "grades.csv")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a folder with one folder per student")
    parser.add_argument("names", nargs="*", help="assignments (a1 ... a4) or components; none: all components")
    parser.add_argument("--out", type=Path, default=Path("grades"), help="folder for the results; default: %(default)s")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="students at once; default: the number of cores")
    parser.add_argument("--fresh", action="store_true", help="grade all again")
    args = parser.parse_args()
    try:
        components = choose_components(args.names)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    trees = sorted(path for path in args.folder.glob("[!.]*") if path.is_dir())
    if not trees:
        raise SystemExit(f"{args.folder} has no folders; it needs one folder per student")
    if args.fresh:
        shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(max(1, args.jobs)) as pool:
        found = pool.map(lambda tree: grade_student(tree, args.names, args.out), trees)
        problems = dict(zip([tree.name for tree in trees], tqdm(found, total=len(trees), desc="grading", file=sys.stderr)))
    write_table([tree.name for tree in trees], problems, components, args.out)
    failed = [f"{name}: {problem}" for name, problem in problems.items() if problem]
    print("\n".join([f"{len(trees)} students: {args.out / 'grades.csv'}", *failed]))


if __name__ == "__main__":
    main()
