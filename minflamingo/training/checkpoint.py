"""Files that are complete or do not exist: atomic writing (`write_atomically`) and checked reading.

Weights are read with `weights_only=True`: a pickle that would run code is refused, and none of it runs.
"""

import importlib
import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch

from ..data.files import parse_json, read_file
from ..data.readers import write_atomically


def save_json(content: object, path: str | Path) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    # "replace": a model may generate half of a character
    write_atomically(path, lambda temporary: temporary.write_bytes(text.encode("utf-8", "replace")))


def load_json(path: str | Path) -> dict:
    """Raises ValueError, with the path, if the file is not a JSON object, or OSError if it is not a file."""
    try:
        content = parse_json(read_file(path))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def save_tensors(content: dict, path: str | Path, previous: Path | None = None) -> None:
    """Tensors, numbers, strings, and lists and dicts of these. With `previous`, the old file gets this name."""

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:  # from a path alone, torch would not say that the disk is full
            torch.save(content, file)

    write_atomically(path, write, previous)


def load_tensors(path: str | Path) -> dict:
    """What `save_tensors` wrote, on the CPU. Raises ValueError, with the path, for any other file."""
    with errors_of(path):
        verify_checksums(path)
        return torch.load(path, map_location="cpu", weights_only=True)


def verify_checksums(path: str | Path) -> bool:
    """torch's files are zip archives with a checksum (CRC32) of each part, which torch writes but does not verify.

    Otherwise one wrong bit would be read as another number. It takes about a second per GB. Returns False for files without
    checksums, as those of torch before 1.6.
    """
    if not Path(path).is_file() and Path(path).exists():
        raise ValueError("not a regular file")
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        if any(part.compress_type or part.external_attr & 16 for part in parts):  # 16: a folder, which torch does not read
            raise ValueError("compressed, or with folders, which torch's own files never are")
        if any(part.CRC for part in parts) and (damaged := archive.testzip()):  # torch can leave out all checksums
            raise ValueError(f"the checksum of {damaged} is wrong: the file is damaged")
    return True


@contextmanager
def errors_of(path: str | Path, kind: str = "checkpoint (truncated, another format, or an unsafe pickle)") -> Iterator[None]:
    """Libraries raise many types for a damaged file. Inside, each becomes a ValueError with the path and the reason."""
    try:
        yield
    except (ImportError, FileNotFoundError, PermissionError, MemoryError):  # not a fault of the file
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
