"""Files that are complete or do not exist: atomic writing and checked reading.

A file is written under a temporary name in the same folder and then renamed. So a reader finds the old file or the new one,
never half of one. Weights are read with `weights_only=True`: a pickle that would run code is refused, and none of it runs.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from ..data.readers import write_atomically


def save_json(content: object, path: str | Path) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n"))


def load_json(path: str | Path) -> dict:
    """Raises ValueError, with the path, if the file is not a JSON object."""
    try:
        content = json.loads(Path(path).read_text())
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
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types for damaged files
        reason = str(error).split("\n")[0][:200]
        raise ValueError(f"{path}: not a valid checkpoint (truncated, another format, or an unsafe pickle): {reason}") from None


def raise_if_any(where: str, problems: Mapping[str, Collection[str]]) -> None:
    """Raise a ValueError with up to five names of each kind of problem. Do nothing if all are empty."""
    found = {kind: sorted(names) for kind, names in problems.items() if names}
    if found:
        text = "; ".join(f"{kind}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}" for kind, names in found.items())
        raise ValueError(f"{where} does not fit this model. {text}")
