"""Grade one tree: the points of each component, decided by the tests of `tests/spec`.

    python -m tutorials.assignments.grade TREE --out results.json            all components
    python -m tutorials.assignments.grade TREE a2 --out results.json         one assignment, or single components

The grader takes only the components' own functions from TREE. Each component runs in a process of its own, in a clean copy of
the package in which everything else is solved (worker.py). The tests run here (remote.py). So whatever the code of one
component does, the points of the others and the maximum stay the same. results.json is what Gradescope reads.
"""

import argparse
import contextlib
import importlib
import io
from pathlib import Path

from tutorials.assignments import remote
from tutorials.assignments.components import ROOT, Function, choose_components, find_functions, take_function

# Each worker imports this file (multiprocessing does), so nothing of minflamingo and no test is imported at the top.


def collect_code(tree: Path, functions: list[Function]) -> tuple[dict[Function, str], str]:
    """The student's versions of the functions of one component, and "" or why they cannot be used."""
    code = {}
    for function in functions:
        try:
            text = (tree / function.file).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:  # no such file, or bytes that are not text
            return {}, f"cannot read {function.file}: {error}"
        found = take_function(text, function)
        if found is None:
            return {}, f"{function.file} has no function {function.name}"
        try:
            compile(found, function.file, "exec")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            return {}, f"{function.name} is not valid Python: {error}"
        code[function] = found
    return code, ""


def grade(tree: Path, names: list[str], seconds: int = 40) -> list[dict]:
    """One dict per test: {"component", "test", "points", "max", "message"}.

    A test with several cases gives its points if all cases pass. seconds: limit of processor time of each component.
    """
    import pytest
    import torch

    torch.set_num_threads(1)  # as in the worker: some tests compare results of both processes bit for bit
    chosen, functions = choose_components(names), find_functions()
    for function in functions:  # modules that are imported later get the stand-in from these
        importlib.import_module(function.module)
    components = {name: [f for f in functions if f.component == name] for name in chosen}
    plugin = Grader(tree, components, seconds)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = pytest.main([str(ROOT / "tests" / "spec"), "-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"),
                            "-o", "addopts="], plugins=[plugin])  # fmt: skip
    if code not in (0, 1):
        raise RuntimeError(f"the tests of the solution cannot run (pytest's exit code {code}); try: pytest {ROOT}/tests/spec")
    return list(plugin.results.values())


class Grader:
    """A pytest plugin: runs each test once for each component that it grades, with the student's functions of it."""

    def __init__(self, tree: Path, components: dict[str, list[Function]], seconds: int):
        self.components, self.seconds, self.results = components, seconds, {}
        self.student, self.name, self.problem, self.stack = None, None, "", contextlib.ExitStack()
        self.code = {name: collect_code(tree, functions) for name, functions in components.items()}
        for functions in components.values():
            for function in functions:
                remote.replace_function(function, lambda original, f=function: self.stand_in(f, original))

    def stand_in(self, function: Function, original):
        def call(*args, **kwargs):
            if function.component != self.name:
                return original(*args, **kwargs)
            return self.student.call(function.name, args, kwargs)

        return call

    def pytest_generate_tests(self, metafunc):
        """One case more for each component that the test grades."""
        graded = [name for name in self.components if any(mark.name == name for mark in metafunc.definition.iter_markers())]
        if graded:
            metafunc.fixturenames.append("graded")
            metafunc.parametrize("graded", graded, ids=[f"component={name}" for name in graded])

    def pytest_collection_modifyitems(self, items):
        """Only graded tests, those of a component one after the other."""
        items[:] = [item for item in items if "graded" in getattr(getattr(item, "callspec", None), "params", {})]
        items.sort(key=lambda item: list(self.components).index(item.callspec.params["graded"]))
        for item in items:
            name = item.callspec.params["graded"]
            points = next(mark for mark in item.iter_markers(name)).kwargs["points"]
            self.results[name, item.originalname] = {
                "component": name, "test": item.originalname, "points": points, "max": points, "message": "",
            }  # fmt: skip

    def pytest_runtest_setup(self, item):
        name = item.callspec.params["graded"]
        if name != self.name:  # the first test of this component
            self.stack.close()
            self.name, (code, problem) = name, self.code[name]
            self.student = self.stack.enter_context(remote.Student(code, self.seconds)) if code else None
            self.problem = problem
        if self.student is None:
            import pytest

            pytest.fail(self.problem, pytrace=False)

    def pytest_runtest_logreport(self, report):
        if report.failed:
            test, _, case = report.nodeid.split("::")[-1].partition("[")
            name = case.rpartition("component=")[2].split("-")[0].rstrip("]")
            result = self.results[name, test]
            if result["points"]:
                crash = getattr(report.longrepr, "reprcrash", None)
                text = crash.message if crash else str(report.longrepr)
                text = text.removeprefix("tutorials.assignments.remote.Ended: ")
                result.update(points=0, message="\n".join(line[:200] for line in text.split("\n")[:8]))

    def pytest_sessionfinish(self):
        self.stack.close()


def sentence(result: dict) -> str:
    """"test_the_mask_allows_one_image" -> "the mask allows one image"."""
    return result["test"].removeprefix("test_").replace("_", " ")


def gradescope(results: list[dict]) -> dict:
    """The results in the format of Gradescope's results.json."""
    tests = [
        {"name": f"{r['component']}: {sentence(r)}", "score": r["points"], "max_score": r["max"], "output": r["message"],
         "status": "passed" if r["points"] else "failed", "tags": [r["component"]]}
        for r in results
    ]  # fmt: skip
    return {"score": sum(r["points"] for r in results), "tests": tests, "stdout_visibility": "hidden"}


def report(results: list[dict]) -> str:
    """The points of each component, and the first message of each test that failed."""
    lines = []
    for name in dict.fromkeys(r["component"] for r in results):
        own = [r for r in results if r["component"] == name]
        lines.append(f"{name:18} {sum(r['points'] for r in own):3} of {sum(r['max'] for r in own)}")
        for r in own:
            if r["message"]:
                lines.append(f"    {sentence(r)} (0 of {r['max']})")
                lines += [f"        {line}" for line in r["message"].split("\n")[:3]]
    return "\n".join([*lines, f"{'total':18} {sum(r['points'] for r in results):3} of {sum(r['max'] for r in results)}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", type=Path, help="a student's folder, with minflamingo/ in it")
    parser.add_argument("names", nargs="*", help="assignments (a1 ... a4) or components; none: all components")
    parser.add_argument("--out", type=Path, help="write results.json here")
    parser.add_argument("--seconds", type=int, default=40, help="processor time of each component; default: %(default)s")
    args = parser.parse_args()
    try:
        if not (args.tree / "minflamingo").is_dir():
            raise ValueError(f"{args.tree} has no folder minflamingo; give the folder that contains it")
        results = grade(args.tree, args.names, args.seconds)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    print(report(results))
    if args.out:
        from minflamingo.training.checkpoint import save_json

        save_json(gradescope(results), args.out)


if __name__ == "__main__":
    main()
