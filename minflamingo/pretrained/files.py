"""Checkpoints on disk: name -> tensor. The files are mapped into memory; the data of a tensor are read when they are used.

    .safetensors, or several with an index      through `safetensors`
    .pt, .bin, or several with an index         through `torch.load(mmap=True, weights_only=True)`: code in a file never runs
    .gguf                                       through `gguf`; each tensor is a function that returns it, dequantised to fp32

    tensors = open_tensors("opt-125m/")                        # reads names and shapes
    tensors["model.decoder.embed_tokens.weight"].half()        # reads 77 MB
"""

import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..data.files import open_file
from ..training.checkpoint import errors_of, extra, load_json, verify_checksums

Tensors = Mapping[str, "Tensor | Callable[[], Tensor]"]
PART = r"[^/\\:]+\.(safetensors|bin|pt)"  # of a checkpoint in several files


def renamed(tensors: Tensors, rename: Callable[[str], str | None]) -> Tensors:
    """The same tensors under new names. None: leave it out. Of two tensors that get the same name the first is used."""
    new: dict = {}
    for name, tensor in tensors.items():
        new.setdefault(rename(name), tensor)
    new.pop(None, None)
    return new


def open_tensors(path: str | Path) -> Tensors:
    """Open a checkpoint: a file, an index of several files, or a folder that contains one of these.

    Raises:
        FileNotFoundError: a file is missing. ValueError: a file is damaged, of another format, or a pickle that would run code.
        ImportError: the package for this format is missing.
    """
    path = find_checkpoint(Path(path))
    if path.name.endswith(".index.json"):  # {"weight_map": {name of a tensor: file}}
        files, tensors = load_json(path).get("weight_map"), {}
        if not isinstance(files, dict) or not all(re.fullmatch(PART, str(file)) for file in files.values()):
            raise ValueError(f"{path}: weight_map must give each tensor a .safetensors or .bin file in this folder")
        for file in sorted(set(files.values())):
            tensors |= read_tensors(path.parent / file)
        return tensors
    return read_tensors(path)


def read_tensors(path: Path) -> Tensors:
    """Open one file. Its format follows from the end of its name."""
    open_file(path).close()  # an error if it is a folder or a pipe
    with errors_of(path):
        if path.suffix == ".safetensors":
            return read_safetensors(path)
        return read_gguf(path)[0] if path.suffix == ".gguf" else read_pickle(path)


def find_checkpoint(path: Path) -> Path:
    """A file as it is. In a folder the file with one of the usual names, or the only one with one of the known endings."""
    if not path.is_dir():
        return path
    usual = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")
    for pattern in (*usual, "checkpoint.pt", "*.safetensors", "*.gguf", "*.pt", "*.bin"):
        found = sorted(path.glob(pattern))
        if len(found) > 1:
            raise ValueError(f"{path} contains several checkpoints ({found[0].name}, {found[1].name}, ...): pass one file")
        if found:
            return found[0]
    raise FileNotFoundError(f"{path}: no checkpoint in this folder (*.safetensors, *.bin, *.pt or *.gguf)")


def read_pickle(path: Path) -> Tensors:
    # Files of torch before 1.6 are not zip archives and cannot be mapped into memory.
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=verify_checksums(path))
    for wrapper in ("model_state_dict", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    return as_tensors(state)


def as_tensors(state: object, where: str = "the content") -> Tensors:
    """A state dict as it is. Raises ValueError if it is something else."""
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise ValueError(f"{where} is not a dict of names and tensors, but {state!r:.100}")
    return state


def read_safetensors(path: Path) -> Tensors:
    tensors = extra("safetensors.torch").load_file(path)
    with extra("safetensors").safe_open(path, "pt") as file:  # the format has no checksum, but `Pipeline.save` adds one
        expected = (file.metadata() or {}).get("crc32")
    if expected not in (None, checksum(tensors)):
        raise ValueError("the checksum is wrong: the file is damaged")
    return tensors


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """CRC32 of all values, in the order of the names."""
    crc = 0
    for _, tensor in sorted(tensors.items()):
        crc = zlib.crc32(tensor.cpu().flatten().view(torch.uint8).numpy(), crc)
    return str(crc)


def read_gguf(path: Path) -> tuple[Tensors, dict]:
    """The tensors and the metadata of a GGUF file. The metadata get the fields of a config.json that they do not have."""
    gguf = extra("gguf")
    reader = gguf.GGUFReader(path)
    dequantise = gguf.quants.dequantize
    tensors = {t.name: lambda t=t: torch.from_numpy(dequantise(t.data, t.tensor_type).copy()) for t in reader.tensors}
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    metadata["model_type"] = f"{metadata.get('general.architecture')}.gguf"
    metadata["vocab_size"] = next((int(t.shape[1]) for t in reader.tensors if t.name == "token_embd.weight"), 0)
    metadata["tie_word_embeddings"] = "output.weight" not in tensors
    return tensors, metadata


def read_config(path: str | Path) -> dict:
    """The metadata of a GGUF file, or the config.json in a folder or next to a checkpoint."""
    with errors_of(path, "config"):
        return read_gguf(Path(path))[1] if Path(path).suffix == ".gguf" else load_json(beside(path, "config.json"))


def beside(path: str | Path, name: str) -> Path:
    """The file of this name in a folder, or next to a file."""
    return (Path(path) if Path(path).is_dir() else Path(path).parent) / name


def fetch(where: str | Path) -> Path:
    """A local file or folder as it is, or the folder to which a hub repository ("org/name") is downloaded, with progress bars.

    Raises:
        FileNotFoundError: it does not exist, or there is neither a connection nor a copy from an earlier download.
        ImportError: `huggingface_hub` is not installed.
    """
    if Path(where).exists():
        return Path(where)
    hub = extra("huggingface_hub")
    try:
        names = hub.list_repo_files(str(where))
    except Exception:  # no connection: then `snapshot_download` returns the copy from an earlier download, or raises
        names = []
    # Many repositories have the same weights in several formats. One of them is enough.
    weights = [f"*{suffix}" for suffix in (".safetensors", ".bin", ".pt") if any(name.endswith(suffix) for name in names)]
    try:
        return Path(hub.snapshot_download(str(where), allow_patterns=["*.json", "*.txt", "*.model", *weights[:1]]))
    except Exception as error:
        raise FileNotFoundError(f"{where}: not a local file or folder, and the download failed: {error!s:.200}") from None
