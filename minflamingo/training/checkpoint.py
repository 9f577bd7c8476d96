"""Files that are complete or do not exist: atomic writing (`write_atomically`) and checked reading.

Weights are read with `weights_only=True`: a pickle that would run code is refused, and none of it runs.
"""

import importlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import TextIO

import torch
from tqdm import tqdm

from ..data.readers import write_atomically


def print_any_character() -> None:
    """What the console's encoding does not have is printed as a number, "\\xe9". Otherwise it would be an error."""
    if hasattr(sys.stdout, "reconfigure"):  # not in a notebook
        sys.stdout.reconfigure(errors="backslashreplace")


class Output:
    """A standard stream. When it is gone (`| head`, a closed terminal), the rest is dropped, here and at the end of Python."""

    def __init__(self, stream: TextIO | None):
        self.stream = stream

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)

    def write(self, text: str) -> None:
        try:
            self.stream.write(text)
            self.stream.flush()
        except (OSError, ValueError, AttributeError):
            with suppress(OSError, ValueError, AttributeError):  # a closed stream, or one without a file
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


class ProgressBar(tqdm):
    """A bar on standard error. Only the thread that counts draws it: tqdm's own thread is switched off."""

    monitor_interval = 0

    def __init__(self, *args, **options):
        super().__init__(*args, file=Output(sys.stderr), dynamic_ncols=True, miniters=1, **options)


def save_json(content: object, path: str | Path) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    # "replace": a model may generate half of a character
    write_atomically(path, lambda temporary: temporary.write_bytes(text.encode("utf-8", "replace")))


def load_json(path: str | Path) -> dict:
    """Raises ValueError, with the path, if the file is not a JSON object."""
    try:
        content = json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def save_tensors(content: dict, path: str | Path) -> None:
    """Tensors, numbers, strings, and lists and dicts of these."""
    write_atomically(path, lambda temporary: torch.save(content, temporary))


def load_tensors(path: str | Path) -> dict:
    """What `save_tensors` wrote, on the CPU. Raises ValueError, with the path, for any other file."""
    with errors_of(path):
        return torch.load(path, map_location="cpu", weights_only=True)


@contextmanager
def errors_of(path: str | Path, kind: str = "checkpoint (truncated, another format, or an unsafe pickle)") -> Iterator[None]:
    """Libraries raise many types for a damaged file. Inside, each becomes a ValueError with the path and the reason."""
    try:
        yield
    except (ImportError, FileNotFoundError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".split("\n")[0][:200]
        raise ValueError(f"{path}: not a valid {kind}: {reason}") from None


def extra(module: str, group: str = "real") -> ModuleType:
    """Import a module of a package of the extra [group]. Raises ImportError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"this needs {module.split('.')[0]}: pip install 'minflamingo[{group}]' ({error})") from None
