"""What options may be: numbers, texts, folders, devices. Commands use these as types of argparse, functions use `check`.

    "--beams", type=Number(1, 256, whole=True)            argument --beams: '0' is not a whole number from 1 to 256
    check({"beams": Number(1, 256, whole=True)}, beams=0)       beams is 0; it must be a whole number from 1 to 256
"""

import argparse
import importlib
import numbers
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch


class InvalidOption(argparse.ArgumentTypeError, ValueError):
    """argparse prints its message after the name of the option. Everywhere else it is a ValueError."""


@dataclass(frozen=True)
class Number:
    """The numbers from `least` to `most`; `or_zero`: and 0. Called with a text, it returns the number."""

    least: float
    most: float
    whole: bool = False
    or_zero: bool = False

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        return f"{'0 or ' if self.or_zero else ''}{kind} from {self.least:,} to {self.most:,}"

    def allows(self, value: object) -> bool:
        right_type = isinstance(value, numbers.Integral if self.whole else numbers.Real) and not isinstance(value, bool)
        return right_type and (self.least <= value <= self.most or (self.or_zero and value == 0))  # false for NaN

    def __call__(self, word: str) -> float:
        value = None
        with suppress(ValueError):
            value = (int if self.whole else float)(word)
        if not self.allows(value):
            raise InvalidOption(f"{word!r:.100} is not {self}")
        return value


def check(allowed: Mapping[str, Number], **values: object) -> None:
    """Raises TypeError or ValueError, with the name of the argument, for a value that is not allowed."""
    for name, value in values.items():
        if name in allowed and not allowed[name].allows(value):
            error = ValueError if isinstance(value, numbers.Real) else TypeError
            raise error(f"{name} is {value!r:.100}; it must be {allowed[name]}")


COUNT, BATCH, FEW = (Number(1, most, whole=True) for most in (10**9, 4096, 1000))  # steps, batch sizes, repetitions
SEED, BEAMS = Number(0, 2**63 - 1, whole=True), Number(1, 256, whole=True)  # each beam has a KV cache of its own
RATE = Number(1e-12, 1e38)  # learning rates; the limits of float32


def filled(word: str) -> str:
    if not word.strip() or "\0" in word:
        raise InvalidOption("an empty text is not allowed, nor a null character")
    return word


def names(word: str) -> list[str]:
    """"4,8" -> ["4", "8"]."""
    found = word.split(",")
    if not all(name.strip() for name in found) or len({*found}) < len(found):
        raise InvalidOption(f"{word!r:.100}: expected different names, separated by commas")
    return found


def output_folder(word: str) -> Path:
    """A folder that exists or can be made. It is not made here: all other options are checked first."""
    path = Path(filled(word))
    parent = next(p for p in (path, *path.absolute().parents) if os.path.lexists(p))
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise InvalidOption(f"cannot write to {word!r:.200}: {parent} is not a folder, or read-only. Choose another folder")
    return path


def check_output(out: Path, model: str, *data: str | None) -> None:
    """Raises ValueError if results would replace the model, or would be read as data by the next command."""
    if os.path.isdir(model) and Path(model).resolve() == out.resolve():
        raise ValueError(f"--out {out} is the folder of --model, and its files would be replaced. Choose another folder")
    for folder in data:
        if os.path.isdir(folder or "") and Path(folder).resolve() in (out.resolve(), *out.resolve().parents):
            raise ValueError(f"--out {out} is in {folder}, so results would be read as data. Choose another folder")


def known_device(word: str | torch.device) -> str:
    """A device of this machine."""
    counts = {kind: getattr(torch, kind).device_count() for kind in ("cuda", "xpu", "mps")}
    found = ["cpu", *(name for kind, n in counts.items() if n for name in (kind, *(f"{kind}:{i}" for i in range(n))))]
    if str(word) not in found:
        raise InvalidOption(f"device {str(word)!r:.100} is not available; this machine has: {', '.join(found)}")
    return str(word)


def import_option(option: str, name: str, *needs: str) -> ModuleType:
    """The module that an option names. `needs`: what it must define; names in small letters are functions."""
    try:
        module = importlib.import_module(name)
        if missing := [n for n in needs if not hasattr(module, n) or (n.islower() and not callable(getattr(module, n)))]:
            raise AttributeError(f"the module does not define {missing[0]}")
    except Exception as error:  # of any type: an import runs the module's code
        raise ImportError(f"{option} {name!r:.100}: {error}; pass another module with {option}") from None
    return module
