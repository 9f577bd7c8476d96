"""Checkpoints on disk: name -> `Stored`, a shape and a function that reads the tensor. Nothing is read before it is asked for.

    .safetensors, or several with an index      through `safetensors`
    .pt, .bin, or several with an index         through `torch.load(mmap=True, weights_only=True)`: code in a file never runs
    .gguf                                       through `gguf`; a quantised tensor becomes fp32 when it is read

    tensors = open_tensors("opt-125m/")                     # reads names and shapes only
    tensors["model.decoder.embed_tokens.weight"].read()     # reads 77 MB
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..training.checkpoint import load_json


class Stored(NamedTuple):
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


Tensors = Mapping[str, Stored]


def as_tensors(state: Mapping) -> Tensors:
    """A state dict in memory. Raises ValueError if an entry is not a tensor."""
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor | Stored):
            raise ValueError(f"{name} is not a tensor but {type(tensor).__name__}; pass a state dict")
    return {n: t if isinstance(t, Stored) else Stored(tuple(t.shape), lambda t=t: t) for n, t in state.items()}


def renamed(tensors: Tensors, rename: Callable[[str], str | None]) -> Tensors:
    """The same tensors under new names. None: leave it out. Of two tensors that get the same name the first is used."""
    new: dict[str, Stored] = {}
    for name, stored in tensors.items():
        new.setdefault(rename(name), stored)
    new.pop(None, None)
    return new


def open_tensors(path: str | Path) -> Tensors:
    """Open a checkpoint: a file, an index of several files, or a folder that contains one of these.

    Raises:
        FileNotFoundError: a file is missing. ValueError: a file is damaged, of another format, or a pickle that would run code.
        ImportError: the package for this format is missing.
    """
    path = find_checkpoint(Path(path)) if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: this file does not exist")
    if path.name.endswith(".index.json"):
        parts = load_json(path).get("weight_map")
        if not isinstance(parts, dict):
            raise ValueError(f"{path} is not the index of a checkpoint: it has no weight_map")
        opened = {file: open_tensors(path.parent / file) for file in sorted(set(parts.values()))}
        for name, file in parts.items():
            if name not in opened[file]:
                raise ValueError(f"{path}: {name} is missing in {file}, although the index lists it")
        return {name: opened[file][name] for name, file in parts.items()}
    read = {".safetensors": read_safetensors, ".gguf": lambda path: read_gguf(path)[0]}.get(path.suffix, read_pickle)
    try:
        return read(path)
    except ImportError as error:
        raise ImportError(f"{path} needs the package {error.name}: pip install 'minflamingo[real]'") from None
    except Exception as error:  # each library raises many types for damaged files
        reason = str(error).split("\n")[0][:200]
        raise ValueError(f"{path}: not a valid checkpoint (truncated, another format, or an unsafe pickle): {reason}") from None


def find_checkpoint(folder: Path) -> Path:
    """The checkpoint in a folder: by the usual names, or the only file with one of the known endings."""
    usual = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")
    for pattern in (*usual, "checkpoint.pt", "*.safetensors", "*.gguf", "*.pt", "*.bin"):
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            raise ValueError(f"{folder} contains several checkpoints ({found[0].name}, {found[1].name}, ...): pass one file")
        if found:
            return found[0]
    raise FileNotFoundError(f"{folder}: no checkpoint in this folder (*.safetensors, *.bin, *.pt or *.gguf)")


def read_safetensors(path: Path) -> Tensors:
    from safetensors import safe_open

    file = safe_open(path, framework="pt")
    names = list(file.keys())
    return {n: Stored(tuple(file.get_slice(n).get_shape()), lambda n=n: file.get_tensor(n)) for n in names}


def read_pickle(path: Path) -> Tensors:
    # Files of torch before 1.6 are not zip archives and cannot be mapped into memory.
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    for wrapper in ("model_state_dict", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict):
        raise ValueError(f"expected a dict of tensors, found {type(state).__name__}")
    return as_tensors(state)


def read_gguf(path: str | Path) -> tuple[Tensors, dict]:
    """The tensors and the metadata of a GGUF file."""
    import gguf

    reader = gguf.GGUFReader(path)

    def dequantise(tensor) -> Tensor:
        return torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())

    # GGUF lists the fastest axis first, torch last.
    tensors = {t.name: Stored(tuple(map(int, reversed(t.shape))), lambda t=t: dequantise(t)) for t in reader.tensors}
    return tensors, {name: field.contents() for name, field in reader.fields.items()}


def read_config(path: str | Path) -> dict:
    """The config.json next to a checkpoint. Raises FileNotFoundError or ValueError if it is missing or not a JSON object."""
    path = (Path(path) if Path(path).is_dir() else Path(path).parent) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: it contains the sizes of the model")
    return load_json(path)


def fetch(where: str | Path) -> Path:
    """A local file or folder as it is, or the folder to which a hub repository ("org/name") is downloaded, with progress bars.

    Raises:
        FileNotFoundError: it does not exist, or there is no connection. ImportError: `huggingface_hub` is not installed.
    """
    if Path(where).exists():
        return Path(where)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(where)):
        raise FileNotFoundError(f"{where}: not an existing file or folder, and not the name of a hub repository (org/name)")
    try:
        from huggingface_hub import list_repo_files, snapshot_download
    except ImportError:
        raise ImportError(f"{where} is not a local path; to download it: pip install 'minflamingo[real]'") from None
    try:
        names = list_repo_files(str(where))
    except Exception as error:  # no connection, or no such repository: a copy from an earlier download may exist
        try:
            return Path(snapshot_download(str(where), local_files_only=True))
        except Exception:
            raise FileNotFoundError(f"{where}: no local copy, and the download failed: {error!s:.200}") from None
    # Many repositories have the same weights in several formats. One of them is enough.
    weights = [f"*{suffix}" for suffix in (".safetensors", ".bin", ".pt") if any(name.endswith(suffix) for name in names)]
    return Path(snapshot_download(str(where), allow_patterns=["*.json", "*.txt", "*.model", *weights[:1]]))
