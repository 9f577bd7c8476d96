"""Checkpoints on disk: one mapping, name → tensor, whatever the file. A tensor is read when it is asked for, and not before.

    .safetensors, or several with an index      through `safetensors`, memory-mapped
    .pt, .bin, or several with an index         through `torch.load(mmap=True, weights_only=True)`: no code in it ever runs
    .gguf                                       through `gguf`, dequantised tensor by tensor
    a folder                                    whatever of these lies in it, and its config.json

    tensors = open_tensors("opt-125m/")          # nothing has been read yet
    tensors["model.decoder.embed_tokens.weight"] # now 77 MB have
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..training.checkpoint import load_json


class Tensors(Mapping):
    """name → tensor, read at each request; `meta(name)` tells the shape without reading.

    Args:
        entries: per name its shape, and a function that reads it.
        metadata: what else the file says (GGUF).
    """

    def __init__(self, entries: Mapping[str, tuple[tuple[int, ...], Callable[[], Tensor]]], metadata: Mapping | None = None):
        self.entries, self.metadata = dict(entries), dict(metadata or {})

    def __getitem__(self, name: str) -> Tensor:
        return self.entries[name][1]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def meta(self, name: str) -> Tensor:
        return torch.empty(self.entries[name][0], device="meta")

    def renamed(self, names: Mapping[str, str]) -> Tensors:
        """The same tensors under new names: new → old. Those without a new name are left out."""
        return Tensors({new: self.entries[old] for new, old in names.items()}, self.metadata)


def as_tensors(state: Mapping[str, Tensor]) -> Tensors:
    """A state dict that is in memory already. Entries that are no tensors are refused."""
    if isinstance(state, Tensors):
        return state
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} is no tensor but {type(tensor).__name__}; is this a state dict?")
    return Tensors({name: (tuple(t.shape), lambda t=t: t) for name, t in state.items()})


def open_tensors(path: str | Path) -> Tensors:
    """Open a checkpoint: a file, an index of several, or a folder that holds either.

    Raises:
        FileNotFoundError: nothing there. ValueError: truncated, foreign, or a pickle that would run code; names the file.
        ImportError: the library for this format is not installed; says which.
    """
    path = Path(path)
    if path.is_dir():
        path = _in_folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    if path.name.endswith(".index.json"):
        parts = load_json(path).get("weight_map")
        if not isinstance(parts, dict):
            raise ValueError(f"{path} is no index of a checkpoint: it has no weight_map")
        opened = {file: open_tensors(path.parent / file) for file in sorted(set(parts.values()))}
        missing = [name for name, file in parts.items() if name not in opened[file]]
        if missing:
            raise ValueError(f"{path}: {missing[0]} is not in {parts[missing[0]]}, though the index says so")
        return Tensors({name: opened[file].entries[name] for name, file in parts.items()})
    if path.suffix == ".safetensors":
        return _safetensors(path)
    if path.suffix == ".gguf":
        return _gguf(path)
    return _pickled(path)


FILES = (
    "model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin", "checkpoint.pt",
)  # fmt: skip


def _in_folder(folder: Path) -> Path:
    for name in FILES:
        if (folder / name).is_file():
            return folder / name
    for pattern in ("*.safetensors", "*.gguf", "*.pt", "*.bin"):
        found = sorted(folder.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(f"{folder} holds several checkpoints ({found[0].name}, {found[1].name} …): say which file")
    raise FileNotFoundError(f"{folder}: no checkpoint in this folder (looked for {', '.join(FILES)}, *.gguf)")


def _safetensors(path: Path) -> Tensors:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise ImportError(f"{path} needs the package safetensors: pip install 'minflamingo[real]'") from None
    try:
        file = safe_open(path, framework="pt")
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118, no mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no safetensors file, or truncated: {error}") from None

    def read(name: str) -> Tensor:
        # Opened for each tensor: what has been read and converted is unmapped again, so the file is never in memory whole.
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)

    return Tensors({name: (shape, partial(read, name)) for name, shape in shapes.items()})


def _pickled(path: Path) -> Tensors:
    def content(mmap: bool) -> dict:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        for wrapper in ("model_state_dict", "state_dict"):
            if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
                found = found[wrapper]
        if not isinstance(found, dict):
            raise ValueError(f"expected a dict of tensors, found {type(found).__name__}")
        return found

    try:
        if not zipfile.is_zipfile(path):  # files of torch before 1.6 cannot be mapped
            return as_tensors(content(mmap=False))
        shapes = as_tensors(content(mmap=True))
    except Exception as error:
        reason = str(error).split("\n")[0][:200]
        raise ValueError(f"{path} is no checkpoint of tensors (truncated, foreign, or with code in it): {reason}") from None
    mapped = _Mapped(lambda: content(mmap=True), most=max(2**24, path.stat().st_size // 32))
    return Tensors({name: (shape, partial(mapped, name)) for name, (shape, _) in shapes.entries.items()})


class _Mapped:
    """name → a tensor of a mapped file, copied: so whoever asks twice has two, and the file may go.

    It is mapped anew after every `most` bytes, and so never in memory whole. Not for each tensor, as above: to map a .pt file
    is to read its whole table of contents.
    """

    def __init__(self, content: Callable[[], Mapping[str, Tensor]], most: int):
        self.content, self.most = content, most
        self.tensors, self.read = None, 0

    def __call__(self, name: str) -> Tensor:
        if self.tensors is None or self.read > self.most:
            self.tensors, self.read = self.content(), 0
        tensor = self.tensors[name].clone()
        self.read += tensor.nbytes
        return tensor


def _gguf(path: Path) -> Tensors:
    try:
        import gguf
    except ImportError:
        raise ImportError(f"{path} needs the package gguf: pip install 'minflamingo[real]'") from None
    try:
        reader = gguf.GGUFReader(path)
    except Exception as error:
        raise ValueError(f"{path} is no GGUF file, or truncated: {error}") from None

    def read(tensor) -> Tensor:
        return torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())

    # GGUF counts the fastest axis first, torch last
    entries = {t.name: (tuple(int(n) for n in reversed(t.shape)), lambda t=t: read(t)) for t in reader.tensors}
    return Tensors(entries, {name: field.contents() for name, field in reader.fields.items()})


def read_config(path: str | Path) -> dict:
    """The config.json beside a checkpoint.

    Raises:
        FileNotFoundError, ValueError: there is none, or it is no JSON object.
    """
    path = Path(path)
    path = (path if path.is_dir() else path.parent) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: it says how the model is built")
    return load_json(path)


def fetch(where: str | Path) -> Path:
    """A local file or folder as it is; the name of a hub repository ("org/name") → the folder it is downloaded to.

    Raises:
        FileNotFoundError: neither is there. ImportError: `huggingface_hub` is not installed.
    """
    path = Path(where)
    if path.exists():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(where)):
        raise FileNotFoundError(f"{where}: there is no such file or folder, and it is no name of a hub repository (org/name)")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ImportError(f"{where} is no local path; to fetch it from the hub: pip install 'minflamingo[real]'") from None
    wanted = ["*.json", "*.safetensors", "*.bin", "*.pt", "*.txt", "*.model"]
    return Path(snapshot_download(str(where), allow_patterns=wanted))
