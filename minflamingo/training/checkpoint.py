"""Files that are whole or not there: atomic writing, checked reading, and the state of a run that may be stopped any time.

A file is written beside its place and renamed into it: whoever reads sees the old one or the new one, never half of one.
Weights are read with `weights_only=True`: a pickle that would run code is refused, and nothing of it runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary path)` and rename the result to `path`. If anything fails, nothing is left behind."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_json(content: object, path: str | Path) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False)
    write_atomically(path, lambda p: p.write_text(text + "\n"))


def load_json(path: str | Path) -> dict:
    """Raises ValueError, with the path, if this is no JSON object."""
    try:
        content = json.loads(Path(path).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def save_tensors(content: dict, path: str | Path) -> None:
    """Tensors, numbers, strings, lists and dicts of these."""
    write_atomically(path, lambda p: torch.save(content, p))


def load_tensors(path: str | Path, device: torch.device | str = "cpu") -> dict:
    """What `save_tensors` wrote.

    Raises:
        FileNotFoundError: with the path. ValueError: the file is truncated, something else, or would run code.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        reason = str(error).split("\n")[0][:200]
        raise ValueError(f"{path} is no checkpoint of tensors (truncated, foreign, or with code in it): {reason}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a dict of tensors, found {type(content).__name__}")
    return content


def load_weights(module: torch.nn.Module, state: dict, where: str) -> None:
    """Load strictly, and say which keys are missing, left over or of a wrong shape.

    Raises:
        ValueError: with up to five names of each sort.
    """
    own = module.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    wrong = [
        f"{k} {tuple(getattr(state[k], 'shape', ()))} instead of {tuple(own[k].shape)}"
        for k in sorted(own.keys() & state.keys())
        if getattr(state[k], "shape", None) != own[k].shape
    ]
    refuse_if_any(where, {"missing": missing, "left over": extra, "wrong shape": wrong})
    module.load_state_dict(state)


def refuse_if_any(where: str, trouble: Mapping[str, Iterable[str]]) -> None:
    """Raise a ValueError that says what does not fit, up to five names of each sort; or nothing, if all lists are empty."""
    sorts = {sort: sorted(names) for sort, names in trouble.items() if names}
    if sorts:
        said = "; ".join(f"{sort}: {', '.join(names[:5])}{' …' if len(names) > 5 else ''}" for sort, names in sorts.items())
        raise ValueError(f"{where} does not fit this model. {said}")
