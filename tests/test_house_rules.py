"""The rules of the code base that a program can check: line budgets, density of comments, plain words, direction of imports."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = [
    "shapes", "config", "attention", "layers", "vision", "contrastive", "resampler", "gated_xattn", "lm", "flamingo",
    "generate", "tokenizer",
]  # fmt: skip
PACKAGE = sorted((ROOT / "minflamingo").rglob("*.py"))
CORE_FILES = [ROOT / "minflamingo" / f"{name}.py" for name in CORE]
TOY = sorted((ROOT / "data_toy").rglob("*.py"))
PYTHON = [*PACKAGE, *TOY, ROOT / "train_tiny.py", *sorted((ROOT / "tests").rglob("*.py"))]
# Written in halves, so that this file does not contain them.
PRIVATE_WORDS = [
    "ey" "es?", "tong" "ues?", "brid" "ges?", "fil" "ms?", "creat" "ures?", "less" "ons?", "nob" "ody", "who" "ever",
    "someb" "ody", "la" "nes?", "di" "ce", "stan" "ds? (?:behind|beside|before)", "loo" "ks? at nothing",
]  # fmt: skip


def n_lines(files: list[Path]) -> int:
    return sum(path.read_text(encoding="utf-8").count("\n") for path in files)


def count_comments(path: Path) -> tuple[int, int, int]:
    """Lines of code, lines of comments and docstrings, and lines of code with a comment on them or directly above them."""
    text = path.read_text(encoding="utf-8")
    docstrings, comments, code = set(), set(), set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False) is not None:
            docstrings |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    empty = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments.add(token.start[0])
        elif token.type not in empty:
            code |= set(range(token.start[0], token.end[0] + 1))
    code -= docstrings
    explained = sum(line in comments or line - 1 in comments - code for line in code)
    return len(code), len(docstrings) + len(comments), explained


def test_the_core_can_be_read_in_an_afternoon():
    assert n_lines(CORE_FILES) <= 1900
    for path in CORE_FILES:
        assert n_lines([path]) <= 250, path.name


def test_the_core_is_heavily_commented():
    code, prose, explained = map(sum, zip(*map(count_comments, CORE_FILES)))
    assert prose / code >= 0.8
    assert explained / code >= 0.2


# The plan: 6,500 lines for the package, 1,600 for data_toy, 17,000 for all Python. Problems that people reported, and checks of
# bad inputs with their cases, came on top (7,440 and 18,381 at first). These limits may only fall.
@pytest.mark.parametrize("files, most", [
    (PACKAGE, 8258), ([ROOT / "train_tiny.py"], 330), (TOY, 1600), (PYTHON, 21_232)
], ids=["package", "train_tiny.py", "data_toy", "all Python outside tutorials"])  # fmt: skip
def test_line_budgets(files, most):
    assert n_lines(files) <= most


def test_no_file_is_longer_than_350_lines():
    assert [path.name for path in [*PACKAGE, *TOY] if n_lines([path]) > 350] == []


def test_every_file_in_the_package_root_is_core_or_named_in_the_layout():
    around = {"__init__", "__main__", "fast", "pipeline", "plots"}
    assert {path.stem for path in (ROOT / "minflamingo").glob("*.py")} == {*CORE, *around}


def test_no_private_vocabulary():
    pattern = re.compile(rf"\b({'|'.join(PRIVATE_WORDS)})\b", re.IGNORECASE)
    for path in [*PYTHON, *ROOT.glob("*.md"), *(ROOT / "data_toy").glob("*.md"), *(ROOT / "tests").rglob("*.md")]:
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            assert not (found := pattern.search(line)), f"{path.relative_to(ROOT)}:{number}: {found.group()!r}"


def imported_modules(path: Path) -> set[str]:
    """Absolute names of the modules that a file of the package imports."""
    inside = ["minflamingo", *path.relative_to(ROOT / "minflamingo").parent.parts]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = inside[: len(inside) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def test_a_core_file_imports_only_core_files_before_it():
    for i, path in enumerate(CORE_FILES):
        allowed = {"minflamingo", "minflamingo.fast", *(f"minflamingo.{name}" for name in CORE[:i])}
        for module in imported_modules(path):
            if module.startswith("minflamingo"):
                inside = any(module.startswith(f"{a}.") for a in allowed - {"minflamingo"})
                assert module in allowed or inside, (path.name, module)


def test_nothing_in_the_package_imports_what_is_built_on_it():
    for path in PACKAGE:
        for module in imported_modules(path):
            assert not re.match(r"(data_toy|train_tiny|tutorials|tests)\b", module), (path.name, module)
            if module.startswith("minflamingo.recipes"):
                assert path.name == "__main__.py" or "recipes" in path.parts, (path.name, module)
            if module.startswith("minflamingo.training"):
                assert "data" not in path.relative_to(ROOT / "minflamingo").parts, (path.name, module)
