"""The components of the assignments. They are found in the source: nothing is written twice.

    ### BEGIN SOLUTION media_index            in the body of a function of minflamingo/
    ...                                       what students write
    ### END SOLUTION

A component is one such region or several with the same name. The whole functions that contain them are what a student hands in.
"""

import ast
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
ASSIGNMENTS = {
    "a1": ("attention", "feed_forward", "encoder_block", "vit", "contrastive_loss"),
    "a2": ("resampler_layer", "time_embedding", "resampler", "media_index", "xattn_mask", "cross_attention", "gated_layer"),
    "a3": ("rotary", "causal_mask", "self_attention", "lm_block", "next_token_loss", "freeze", "flamingo_forward"),
    "a4": ("generate", "beam_search", "score_answers", "few_shot_prompt", "rices"),
}
REGION = re.compile(r"^( *)### BEGIN SOLUTION (\w+)\n(.*?)^ *### END SOLUTION\n", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Function:
    """A function that contains a solution region: `name` is "rotate" or "Class.method", `file` is relative to the tree."""

    component: str
    file: str
    name: str

    @property
    def module(self) -> str:
        """"minflamingo/evaluation/rices.py" -> "minflamingo.evaluation.rices"."""
        return self.file.removesuffix(".py").replace("/", ".")


def find_functions(root: Path = ROOT) -> list[Function]:
    """All functions with a solution region, in the order of files and lines."""
    found = []
    for path in sorted((root / "minflamingo").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for region in REGION.finditer(text):
            line = text.count("\n", 0, region.start()) + 1
            owner = max((n for n in named_functions(ast.parse(text)) if n[1] <= line <= n[2]), key=lambda n: n[1])
            found.append(Function(region[2], path.relative_to(root).as_posix(), owner[0]))
    return found


def named_functions(tree: ast.Module) -> list[tuple[str, int, int]]:
    """(name, first line, last line) of functions and methods. The first line is that of `def`, after the decorators."""
    defs = [("", node) for node in tree.body]
    defs += [(f"{c.name}.", node) for c in tree.body if isinstance(c, ast.ClassDef) for node in c.body]
    return [(prefix + n.name, n.lineno, n.end_lineno) for prefix, n in defs if isinstance(n, ast.FunctionDef)]


def choose_components(names: list[str]) -> list[str]:
    """Names of components and of whole assignments -> names of components, each once. No names: all.

    Raises:
        ValueError: there is no such component.
    """
    known = list(dict.fromkeys(f.component for f in find_functions()))
    chosen = [part for name in names for part in ASSIGNMENTS.get(name, (name,))] or known
    for name in chosen:
        if name not in known:
            raise ValueError(f"unknown component {name!r}; choose from {', '.join([*ASSIGNMENTS, *known])}")
    return list(dict.fromkeys(chosen))


def blank(text: str, components: list[str]) -> str:
    """Remove the code of these components' regions. Comment lines stay, because they say what to do."""

    def stub(region: re.Match) -> str:
        indent, name, body = region.groups()
        if name not in components:
            return region[0]
        comments = "".join(f"{indent}{line.strip()}\n" for line in body.split("\n") if line.strip().startswith("#"))
        lines = f'{comments}{indent}raise NotImplementedError("{name}: write this part")\n'
        return f"{indent}### BEGIN SOLUTION {name}\n{lines}{indent}### END SOLUTION\n"

    return REGION.sub(stub, text)


def function_lines(text: str, name: str) -> tuple[int, int] | None:
    """Index of the first line of a function, and of the line after it. None: there is no such function.

    A syntax error somewhere else in the file must not matter, so this goes by indentation if the file cannot be parsed.
    """
    try:
        found = [(first - 1, last) for n, first, last in named_functions(ast.parse(text)) if n == name]
        return found[-1] if found else None  # if it is defined twice, Python takes the last one
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        pass
    lines, owner, _, method = text.split("\n"), *name.rpartition(".")
    indent, inside, found = ("    " if owner else ""), not owner, None
    for i, line in enumerate(lines):
        if owner and re.match(r"\S", line):
            inside = re.match(rf"class {owner}\b", line) is not None
        if inside and re.match(rf"{indent}def {method}\b", line):
            # It ends before the next line that is not deeper. A line with ")" closes the list of arguments.
            outside = (j for j in range(i + 1, len(lines)) if re.match(rf" {{0,{len(indent)}}}[^\s)#]", lines[j]))
            end = next(outside, len(lines))
            while not lines[end - 1].strip() or lines[end - 1].strip().startswith("#"):
                end -= 1
            found = (i, end)
    return found


def take_function(student: str, function: Function) -> str | None:
    """The student's version of a function, without decorators and without indentation. None: the file does not have it."""
    place = function_lines(student, function.name)
    return place and textwrap.dedent("\n".join(student.split("\n")[slice(*place)])).rstrip() + "\n"


def put_function(reference: str, function: Function, code: str) -> str:
    """The reference file with its function replaced. It keeps the decorators of the reference."""
    first, end = function_lines(reference, function.name)
    lines, indent = reference.split("\n"), "    " if "." in function.name else ""
    return "\n".join([*lines[:first], textwrap.indent(code.rstrip("\n"), indent), *lines[end:]])
