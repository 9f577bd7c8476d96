"""Do the tests notice wrong code? Each mutant of mutants.py is tested in a copy of the project: a test must fail.

    python -m tutorials.assignments.mutation_check                    all mutants, about an hour on two cores
    python -m tutorials.assignments.mutation_check next-image ...     single mutants, by name

Mutants of the core are tested with `tests/spec` alone. Others are tested with the files of tests/ that import the changed
module, then with all others. Results are in runs/mutation/results.json; mutants that are there already are not tested again.
"""

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from tqdm import tqdm

from minflamingo.training.checkpoint import save_json
from tutorials.assignments.components import ROOT
from tutorials.assignments.mutants import MUTANTS, Mutant

CONTEXT = get_context("forkserver")  # its processes start with torch and pytest imported
CONTEXT.set_forkserver_preload(["torch", "pytest"])
LIMIT = 600  # seconds of processor time; a mutant that needs more counts as noticed
SLOW = ("test_in_context_learning.py", "test_train_tiny.py")  # they come last


def is_core(mutant: Mutant) -> bool:
    """Whether the change is in the core or in a component."""
    around = ("fast", "pipeline", "plots", "__init__", "__main__")
    path = Path(mutant.file)
    return mutant.component is not None or (path.parent.name == "minflamingo" and path.stem not in around)


def choose_tests(mutant: Mutant) -> list[str]:
    """Test files in the order in which they are run: those that are most likely to fail come first."""
    name = Path(mutant.file).stem
    if is_core(mutant):
        files = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests" / "spec").glob("test_*.py"))
        return sorted(files, key=lambda file: name not in file)
    module = mutant.file.removesuffix(".py").replace("/", ".")
    files = sorted((ROOT / "tests").rglob("test_*.py"))

    def late(path: Path) -> tuple:
        """Tests of this module come first, then those that import it."""
        return path.name in SLOW, name not in path.name, module not in path.read_text(encoding="utf-8"), path.name

    return [path.relative_to(ROOT).as_posix() for path in sorted(files, key=late)]


def run_tests(tree: Path, tests: list[str]) -> None:
    """In a process of its own: run the tests in `tree` up to the first that fails. Its name is written to tree/failed.txt."""
    import pytest

    class FirstFailure:
        def pytest_runtest_logreport(self, report):
            if report.failed:
                (tree / "failed.txt").write_text(report.nodeid, encoding="utf-8")

    for name in [name for name in sys.modules if name.split(".")[0] in ("minflamingo", "data_toy", "train_tiny", "tutorials")]:
        del sys.modules[name]  # those of the project itself; the tests must import the mutant
    os.chdir(tree)
    sys.path[:] = [str(tree), *(path for path in sys.path if path and Path(path).resolve() != ROOT)]
    os.environ["PYTHONPATH"] = str(tree)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
    options = ["-x", "-q", "-p", "no:cacheprovider", "--tb=no", "-W", "ignore"]
    code = pytest.main([*options, *tests], plugins=[FirstFailure()])
    sys.exit(int(code))


def check(mutant: Mutant) -> dict:
    """Test one mutant -> {"noticed": bool, "by": the first test that failed}."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder).resolve() / "project"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", "runs", "__pycache__", ".venv", "venv", "*.egg-info"))
        path = tree / mutant.file
        text = path.read_text(encoding="utf-8")
        if text.count(mutant.old) != 1:
            raise ValueError(f"{mutant.name}: the text to replace occurs {text.count(mutant.old)} times in {mutant.file}")
        path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        process = CONTEXT.Process(target=run_tests, args=(tree, choose_tests(mutant)))
        process.start()
        process.join(6 * LIMIT)  # by the clock: other programs may need the processor too
        if process.is_alive() or process.exitcode < 0:
            process.kill()
            return {"noticed": True, "by": "it was ended: an endless loop?"}
        if process.exitcode not in (0, 1, 2):  # 1: a test failed; 2: a test file could not be imported
            raise RuntimeError(f"{mutant.name}: the tests did not run, exit code {process.exitcode} of pytest")
        by = tree / "failed.txt"
        return {"noticed": process.exitcode != 0, "by": by.read_text(encoding="utf-8") if by.exists() else ""}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="names of mutants; none: all")
    parser.add_argument("--out", type=Path, default=Path("runs/mutation"), help="folder for the results; default: %(default)s")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants at once; default: the number of cores")
    args = parser.parse_args()
    if unknown := set(args.names) - {mutant.name for mutant in MUTANTS}:
        raise SystemExit(f"unknown mutants: {', '.join(sorted(unknown))}")
    chosen = [mutant for mutant in MUTANTS if not args.names or mutant.name in args.names]
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "results.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    todo = [mutant for mutant in chosen if mutant.name not in results or args.names]
    with ThreadPoolExecutor(max(1, args.jobs)) as pool:
        for mutant, result in zip(todo, tqdm(pool.map(check, todo), total=len(todo), desc="mutants")):
            results[mutant.name] = result
            save_json(results, path)
    for kind, own in (("core, by tests/spec alone", [m for m in chosen if is_core(m)]),
                      ("data, training, evaluation", [m for m in chosen if not is_core(m)])):  # fmt: skip
        if own:
            noticed = sum(results[m.name]["noticed"] for m in own)
            print(f"{kind}: {noticed} of {len(own)} noticed ({100 * noticed / len(own):.1f}%)")
    for mutant in chosen:
        if not results[mutant.name]["noticed"]:
            print(f"not noticed: {mutant.name} ({mutant.file}): {mutant.why}")


if __name__ == "__main__":
    main()
