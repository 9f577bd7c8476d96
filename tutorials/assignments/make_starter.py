"""Make the tree that students start from: the chosen components are blank, all others are solved.

    python -m tutorials.assignments.make_starter OUT a2                     a whole assignment, with its handout
    python -m tutorials.assignments.make_starter OUT resampler media_index  single components

Fast versions are disabled, because students write the plain ones. The solutions of the notebooks' exercises are removed, and so
are the notebooks' outputs, in which the source of the package is printed.
"""

import argparse
import json
import re
import shutil
from pathlib import Path

from tutorials.assignments.components import ASSIGNMENTS, ROOT, blank, choose_components

PARTS = (
    "minflamingo", "data_toy", "tests/spec", "tests/conftest.py", "tutorials", "train_tiny.py", "README.md", "LICENSE",
    "pyproject.toml", "requirements.txt",
)  # fmt: skip
SOLUTION = re.compile(r"<details><summary>Solution</summary>.*?</details>", re.DOTALL)
REMOVED = "(The solution is not part of this version.)"


def make_starter(out: Path, names: list[str]) -> list[str]:
    """Write the starter to `out`, which must not exist or be empty. Returns the names of the blank components."""
    components = choose_components(names)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists already and is not an empty folder; choose another folder")
    left_out = ("assignments", "architecture.py", "build.py", "make_results.py", "test_tutorials.py")
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc", ".*", *left_out)
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, out / part, ignore=ignore, dirs_exist_ok=True)
        elif (ROOT / part).exists():
            (out / part).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / part, out / part)
    for path in sorted((out / "minflamingo").rglob("*.py")):
        text = blank(path.read_text(encoding="utf-8"), components)
        if path.name == "fast.py":
            text = text.replace("\n_enabled = True\n", "\n_enabled = False  # in a starter the plain versions run\n")
        path.write_text(text, encoding="utf-8")
    for path in [*(out / "tutorials").glob("*.py"), *(out / "tutorials").glob("*.ipynb")]:
        path.write_text(without_solutions(path.read_text(encoding="utf-8"), path.suffix), encoding="utf-8")
    folder = out / "tutorials" / "assignments"
    folder.mkdir()
    for name, parts in ASSIGNMENTS.items():
        if name in names or not names or set(parts) & set(components):
            for handout in (ROOT / "tutorials" / "assignments").glob(f"{name}_*.md"):
                shutil.copy(handout, folder)
    return components


def without_solutions(text: str, suffix: str) -> str:
    """A notebook or its source without the solutions, and a notebook without its outputs."""
    if suffix == ".py":
        return SOLUTION.sub(REMOVED, text)
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        source = SOLUTION.sub(REMOVED, "".join(cell["source"]))
        cell["source"] = source.splitlines(keepends=True)
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("names", nargs="*", help="assignments (a1 ... a4) or components; none: all components")
    args = parser.parse_args()
    try:
        components = make_starter(args.out, args.names)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    print(f"{args.out}: blank are {', '.join(components)}")


if __name__ == "__main__":
    main()
