"""Submissions that attack the grader or are broken. Each may cost the points of `xattn_mask` and nothing else.

`HOSTILE` has bodies for the function `xattn_mask`, in which {root} is the folder of the project. `BREAK_TREE` damages the rest
of a tree, which must cost nothing at all. tutorials/assignments/test_assignments.py grades them, in a copy of the project.
"""

from collections.abc import Callable
from pathlib import Path

SOLVED = """
number = torch.arange(1, n_media + 1, device=phi.device).repeat_interleave(n_latents)
return (number == phi[..., None])[:, None]
"""
HOSTILE = {
    "endless-loop": "while True: pass",
    "sleeps": "import time\ntime.sleep(10_000)",
    "memory": "x = [0]\nwhile True: x = x + x",
    "memory-of-torch": "x = torch.ones(1 << 40)\nreturn x",
    "os-exit": "import os\nos._exit(0)",
    "sys-exit": "raise SystemExit(0)",
    "keyboard-interrupt": "raise KeyboardInterrupt",
    "syntax-error": "return ((",
    "recursion": "return xattn_mask(phi, n_media, n_latents)",
    "prints-without-end": "while True: print('a' * 10_000, flush=True)",
    "deletes-files": "import shutil\nshutil.rmtree('{root}/tests')\nreturn True",
    "overwrites-a-test": "open('{root}/tests/spec/test_gated_xattn.py', 'w').write('')\nreturn True",
    "writes-its-score": "open('results.json', 'w').write('{\"score\": 1000}')\nreturn True",
    "changes-pytest": "import pytest\npytest.fail = pytest.raises = lambda *a, **k: None\nreturn True",
    "always-equal": "torch.Tensor.__eq__ = lambda a, b: True\ntorch.equal = torch.allclose = lambda *a: True\nreturn phi",
    "kills-its-parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
    "kills-its-group": "import os, signal\nos.killpg(0, signal.SIGKILL)",
    "forks": "import os\nwhile True: os.fork()",
    "starts-a-program": "import subprocess\nsubprocess.Popen(['sleep', '1000'])\nreturn True",
    "network": "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:1')\nreturn True",
    "crash": "import ctypes\nctypes.string_at(0)",
    "reads-the-solution": "exec(open('{root}/minflamingo/gated_xattn.py').read(), space := {'__name__': 'minflamingo.x', "
    "'__package__': 'minflamingo'})\nreturn space['xattn_mask'](phi, n_media, n_latents)",
    "writes-to-all-files": "import os\nfor i in range(100):\n    try: os.write(i, b'1' * 1000)\n    except OSError: pass\n"
    "return True",
    "result-that-runs-code": "class Evil:\n    def __reduce__(self): return (print, ('x',))\nreturn Evil()",
    "endless-result": "x = []\nx.append(x)\nreturn x",
    "large-result": "return torch.ones(1, 1, 1 << 14, 1 << 14)",
    "busy-threads": "import threading\nfor _ in range(4): threading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()\n"
    "return phi",
    "changes-its-arguments": "phi += 1\nreturn (phi[..., None] == phi[..., None])[:, None]",
    "nan": "return torch.full((len(phi), 1, phi.shape[1], n_media * n_latents), float('nan'))",
}  # fmt: skip


def broken_import(tree: Path) -> None:
    path = tree / "minflamingo" / "gated_xattn.py"
    path.write_text("import a_package_that_does_not_exist\n" + path.read_text())


def exits_at_import(tree: Path) -> None:
    for path in (tree / "minflamingo").rglob("*.py"):
        path.write_text(path.read_text() + "\nimport os\nos._exit(0)\n")


def edited_tests(tree: Path) -> None:
    for path in (tree / "tests").rglob("*.py"):
        path.write_text("def test_nothing():\n    pass\n")


def added_settings(tree: Path) -> None:
    (tree / "conftest.py").write_text("raise SystemExit(0)\n")
    (tree / "pytest.ini").write_text("[pytest]\naddopts = --collect-only\n")
    (tree / "sitecustomize.py").write_text("raise SystemExit(0)\n")
    (tree / "torch.py").write_text("raise SystemExit(0)\n")


def syntax_error_elsewhere(tree: Path) -> None:
    path = tree / "minflamingo" / "gated_xattn.py"
    path.write_text(path.read_text() + "\ndef unfinished(:\n")


BREAK_TREE: dict[str, Callable[[Path], None]] = {
    f.__name__: f for f in (broken_import, exits_at_import, edited_tests, added_settings, syntax_error_elsewhere)
}
