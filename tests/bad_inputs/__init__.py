"""Bad inputs of every kind, each with what must happen: it works, or it is refused with a message that says what is wrong.

    python -m tests.bad_inputs                  all areas
    python -m tests.bad_inputs images           one area: the cases of tests/bad_inputs/images.py

Each case runs in its own process, in an empty folder and with a time limit, so a hang, a crash or a file outside this folder is
noticed too. `test_bad_inputs.py` runs all of them.
"""

import multiprocessing
import os
import re
import resource
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

SECONDS = 10  # for one case
GIGABYTES = 4  # that a case may allocate
NAMED = (ValueError, TypeError, OSError, ImportError, SystemExit)  # errors that the commands print without a traceback


@dataclass(frozen=True)
class Case:
    """`run(folder)` makes the bad input in an empty folder, and uses it.

    refused: it must raise one of the errors that the commands print, with a message that matches this pattern.
    gives: otherwise it must return this value.
    """

    name: str
    run: Callable[[Path], object]
    refused: str | None = None
    gives: object = None


def judge(case: Case, folder: Path) -> str:
    """What is wrong with the outcome of a case. Empty: nothing."""
    try:
        value = case.run(folder)
    except NAMED as error:
        message = str(error)
        if case.refused is None:
            return f"it was refused: {type(error).__name__}: {message[:200]}"
        if not re.search(case.refused, message) or "Traceback" in message or len(message) > 1000:
            return f"a message without {case.refused!r}: {type(error).__name__}: {message[:300]}"
        return ""
    except BaseException:
        return traceback.format_exc(limit=-2)
    if case.refused is not None:
        return f"it was not refused, but gave {value!r:.200}"
    return "" if value == case.gives else f"it gave {value!r:.200} instead of {case.gives!r:.200}"


def run_case(case: Case) -> str:
    """The same in a process of its own (a fork, so that nothing is imported again)."""
    with tempfile.TemporaryDirectory() as outside:
        folder = Path(outside) / "folder"
        folder.mkdir()
        receiver, sender = multiprocessing.Pipe(duplex=False)

        def child() -> None:
            os.chdir(folder)
            os.environ["HOME"] = outside
            output = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(output, number)
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + GIGABYTES * 2**30,) * 2)
            sender.send(judge(case, folder))

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        sender.close()
        process.join(SECONDS)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            return f"it did not end within {SECONDS} seconds"
        try:
            problem = receiver.recv()
        except EOFError:
            return f"the process ended with exit code {process.exitcode}"
        others = sorted(set(os.listdir(outside)) - {"folder"})
        return problem or (f"files outside the folder: {others}" if others else "")


def problems(cases: Iterable[Case]) -> list[str]:
    """Name and problem of each case with another outcome than the expected one."""
    found = [(case.name, run_case(case)) for case in cases]
    return [f"{name}: {problem}" for name, problem in found if problem]
