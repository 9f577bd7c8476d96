"""Checkpoints and weights that are damaged, of other types, or that a program made to attack."""

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minflamingo import ToyTokenizer, load
from minflamingo.pretrained import from_state_dict, load_lm
from minflamingo.pretrained.files import open_tensors, read_config
from tests.conftest import gpt2_state

from . import Case
from .configs import NOT_FILES, load_with, saved_files

GPT2 = dict(model_type="gpt2", vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=40)
REAL = find_spec("safetensors") and find_spec("gguf")  # is the extra [real] installed?


STATE = gpt2_state(2)


def with_value(value: float) -> Callable[[Tensor], Tensor]:
    return lambda t: torch.where(torch.arange(t.numel()).view(t.shape) == t.numel() // 2, value, t)


class Subclass(Tensor):
    pass


class CreatesFile:
    """Unpickling this object creates a file outside the folder."""

    def __reduce__(self):
        return open, ("../created", "w")


BAD_TENSORS: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "NaN": (with_value(torch.nan), "NaN or infinite"), "infinity": (with_value(torch.inf), "NaN or infinite"),
    "-infinity": (with_value(-torch.inf), "NaN or infinite"),
    **{str(kind): (lambda t, k=kind: t.to(k), f"weights of type {kind}") for kind in (
        torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn)},
    "float16 among float32": (Tensor.half, "torch.float.* but .*pass dtype="),
    "float64 among float32": (Tensor.double, "torch.float.* but .*pass dtype="),
    "quantised": (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "expected an ordinary tensor"),
    "sparse": (Tensor.to_sparse, "expected an ordinary tensor, found torch.sparse"),
    "on the meta device": (lambda t: t.to("meta"), "found torch.strided on meta"),
    "a subclass": (lambda t: t.as_subclass(Subclass), "expected an ordinary tensor"),
    "one value, expanded": (lambda t: torch.zeros(()).expand(t.shape), "fewer values than the shape"),
    "2**60 values, expanded": (lambda t: torch.zeros(1).expand(2**60), "fewer values than the shape"),
    "no values": (lambda t: t[:0], "shape|dimension"), "a scalar": (lambda t: t.sum(), "shape|dimension"),
    "one row more": (lambda t: torch.cat([t, t[:1]]), "shape|unflatten"), "a dimension more": (lambda t: t[None],
        "shape|dimension"),
    "None": (lambda t: None, "found NoneType"), "a number": (lambda t: 3.0, "found float"), "a list": (Tensor.tolist,
        "found list"),
    "an array": (Tensor.numpy, "found ndarray"), "a text": (lambda t: "weights", "found str"), "a dict": (lambda t: {"a": t},
        "found dict"),
}  # fmt: skip
STATES: dict[str, tuple[Callable[[], object], str]] = {
    "a list": (lambda: list(STATE.values()), "is not a dict of names and tensors"), "None": (lambda: None, "is not a dict"),
    "a number": (lambda: 3, "is not a dict"), "a tensor": (lambda: torch.zeros(3), "is not a dict"),
    "numbers as names": (lambda: dict(enumerate(STATE.values())), "is not a dict of names"), "empty": (dict, "no known family"),
    "None as a name": (lambda: {**STATE, None: torch.zeros(1)}, "is not a dict of names"),
    "a tensor is missing": (lambda: {k: v for k, v in STATE.items() if ".1.ln_1.bias" not in k},
                            r"^the state dict does not fit this model\. missing: h\.1\.ln_1\.bias"),
    "a layer more": (lambda: {**STATE, "transformer.h.3.ln_1.bias": torch.zeros(32)}, r"left over: h\.3\.ln_1\.bias"),
    "an epoch": (lambda: {**STATE, "epoch": 3}, "left over: epoch"),
    "other names": (lambda: {k.replace("c_fc", "fc"): v for k, v in STATE.items()}, r"missing: (\S+,? )+.*; left over: "),
    "a position less": (lambda: {**STATE, "wpe.weight": torch.zeros(39, 32)},
        r"shape: wpe.weight \(39, 32\) instead of \(40, 32\)"),
    "another model": (lambda: {"encoder.weight": torch.zeros(3)}, "no known family of language models has these names"),
}  # fmt: skip


def state_dicts() -> Iterator[Case]:
    from_state_dict(GPT2, STATE)  # imports some parts of torch, which would take seconds in the process of each case
    for name, (damage, message) in BAD_TENSORS.items():
        for tensor in ("wte.weight", "h.1.attn.c_attn.weight", "ln_f.bias"):
            yield Case(f"{tensor} is {name}", lambda _, t=tensor, d=damage: from_state_dict(GPT2, {**STATE, t: d(STATE[t])}),
                       refused=f"^the state dict(?=.*{tensor}).*({message})")  # fmt: skip
    for name, (make, message) in STATES.items():
        yield Case(f"a state dict: {name}", lambda _, m=make: from_state_dict(GPT2, m()), refused=message)
    half = {name: tensor.half() if "wte" in name else tensor for name, tensor in STATE.items()}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        yield Case(f"two precisions are converted to {dtype}", gives={dtype},
                   run=lambda _, d=dtype: {p.dtype for p in from_state_dict(GPT2, half, dtype=d).parameters()})  # fmt: skip
    large = {**STATE, "ln_f.bias": torch.full((32,), 1e6)}
    yield Case("a value too large for float16", lambda _: from_state_dict(GPT2, large, dtype=torch.float16),
               refused="ln_f.bias.*infinite")
    yield Case("a good state dict", lambda _: from_state_dict(GPT2, STATE).embed.weight.equal(STATE["wte.weight"]), gives=True)


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def zipped(**files: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def safetensors(header: object, data: bytes = bytes(128), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(**changes: object) -> dict:
    return {"wte.weight": {"dtype": "F32", "shape": [4, 8], "data_offsets": [0, 128], **changes}}


PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
FILES = {  # of any format
    "empty": b"", "a PNG": PNG, "text": b"weights", "HTML": b"<html>404</html>", "zeros": bytes(1000), "a zip": zipped(a=b"b"),
    "an empty zip": zipped(), "JSON": b'{"a": 1}',
        "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\nsize 3\n",
}  # fmt: skip
PICKLES = {
    "a list": saved([torch.zeros(3)]), "None": saved(None), "a number": saved(3), "a tensor": saved(torch.zeros(3)),
    "numbers as names": saved({1: torch.zeros(3)}), "code": saved({**STATE, "a": CreatesFile()}),
    "a plain pickle": pickle.dumps({"a": 1}), "a plain pickle with code": pickle.dumps(CreatesFile()),
        "cut": saved(STATE)[:-100],
    "a whole module": saved(torch.nn.Linear(2, 2)), "an array": saved({"wte.weight": np.zeros(3)}),
        "nested": saved({"a": {"b": 1}}),
    "a nested pickle": b"\x80\x02" + b"(" * 10**5 + b"." , "zip with another pickle": zipped(**{"archive/data.pkl": b"x"}),
}  # fmt: skip
SAFETENSORS = {
    "a huge header": safetensors(entry(), length=2**62), "a header longer than the file": safetensors(entry(), length=10**4),
    "a header of 0": safetensors(b"", length=0), "no JSON": safetensors(b"{wte}"), "a list": safetensors([]),
    "deep JSON": safetensors(b'{"a":' * 10**4), "a negative offset": safetensors(entry(data_offsets=[-1, 127])),
    "an offset after the end": safetensors(entry(data_offsets=[0, 1280])),
        "reversed offsets": safetensors(entry(data_offsets=[128, 0])),
    "a huge shape": safetensors(entry(shape=[2**40, 2**40])), "a negative shape": safetensors(entry(shape=[-4, -8])),
    "an unknown type": safetensors(entry(dtype="F33")), "no type": safetensors({"wte.weight": {"shape": [1]}}),
    "overlapping tensors": safetensors({**entry(), "b": entry()["wte.weight"]}), "cut data": safetensors(entry(), bytes(100)),
    "more data": safetensors(entry(), bytes(200)), "another shape": safetensors(entry(shape=[4, 4])),
}  # fmt: skip
GGUF = {
    "another version": b"GGUF" + struct.pack("<IQQ", 99, 0, 0), "2**62 tensors": b"GGUF" + struct.pack("<IQQ", 3, 2**62, 0),
    "2**62 fields": b"GGUF" + struct.pack("<IQQ", 3, 0, 2**62), "only the name": b"GGUF",
        "no tensors": b"GGUF" + struct.pack("<IQQ", 3, 0, 0),
}  # fmt: skip
INDEXES = {
    "no weight_map": {}, "a list": {"weight_map": []}, "null": {"weight_map": None}, "numbers": {"weight_map": {"a": 3}},
    "itself": {"weight_map": {"a": "pytorch_model.bin.index.json"}}, "another folder": {"weight_map": {"a": "../secret.bin"}},
    "an absolute path": {"weight_map": {"a": "/etc/secret.bin"}}, "a folder": {"weight_map": {"a": "folder/model.bin"}},
    "this folder": {"weight_map": {"a": "."}}, "an empty name": {"weight_map": {"a": ""}},
        "a device": {"weight_map": {"a": "/dev/zero"}},
    "a path of Windows": {"weight_map": {"a": "C:\\model.bin"}}, "a text": {"weight_map": "model.bin"},
}  # fmt: skip


def folder_with(name: str, content: bytes) -> object:
    Path("config.json").write_text(json.dumps(GPT2))
    Path(name).write_bytes(content)
    return load_lm(".")


def checkpoint_files() -> Iterator[Case]:
    formats = {".bin": ({}, PICKLES), ".pt": ({}, {})} | ({".safetensors": ({}, SAFETENSORS), ".gguf": ({},
    GGUF)} if REAL else {})
    for suffix, (_, own) in formats.items():
        for name, content in {**FILES, **own}.items():
            yield Case(f"model{suffix}: {name}", lambda _, n=f"model{suffix}", c=content: folder_with(n, c),
                       refused=rf"model{suffix}: not a valid|family of language models")  # fmt: skip
        for name, make in NOT_FILES.items():
            if name != "missing":
                yield Case(f"model{suffix}: {name}", lambda _, m=make, s=suffix: (m(Path(f"model{s}")),
                           open_tensors(f"model{s}")),
                           refused=rf"model{suffix}|no checkpoint in this folder")  # fmt: skip
    for name, index in INDEXES.items():
        yield Case(f"an index: {name}", lambda _, i=index: folder_with("pytorch_model.bin.index.json", json.dumps(i).encode()),
                   refused=r"index\.json: weight_map must")  # fmt: skip
    missing = json.dumps({"weight_map": {"a": "b.bin"}}).encode()
    yield Case("an index of a missing file", lambda _: folder_with("pytorch_model.bin.index.json", missing),
               refused=r"b\.bin: no such file")
    yield Case("a folder without weights", lambda _: load_lm("."), refused="no checkpoint in this folder")
    yield Case("a folder with two", lambda _: [Path(n).touch() for n in ("a.pt", "b.pt")] and load_lm("."),
               refused="several checkpoints")
    yield Case("a missing folder", lambda _: load_lm("models/a"), refused="models/a: no such file")
    yield Case("a missing config", lambda _: (Path("a.bin").write_bytes(saved(STATE)), load_lm("."))[1],
               refused=r"config\.json")
    yield Case("a config that is a pipe", lambda _: (NOT_FILES["a pipe"](Path("config.json")), read_config(".")),
               refused=r"config\.json")
    yield Case("a good file", lambda _: folder_with("model.bin", saved(STATE)).embed.weight.equal(STATE["wte.weight"]),
               gives=True)
    wrapped = saved({"model_state_dict": STATE, "epoch": 3})
    yield Case("a wrapped state dict", lambda _: folder_with("model.bin", wrapped).embed.weight.equal(STATE["wte.weight"]),
               gives=True)


def saved_models() -> Iterator[Case]:
    state = torch.load(io.BytesIO(saved_files()["model.pt"]), weights_only=True)
    for name, (damage, message) in BAD_TENSORS.items():
        for tensor in ("lm.embed.weight", "vision.patches.1.running_mean"):
            try:
                content = saved({**state, tensor: damage(state[tensor])})
            except Exception:  # torch.save cannot write it
                continue
            yield Case(f"model.pt: {tensor} is {name}", lambda _, c=content: load_with(model=c),
                       refused=rf"model\.pt((?=.*{tensor}).*({message})|: not a valid checkpoint)")  # fmt: skip
    counter = saved({**state, "vision.patches.1.num_batches_tracked": torch.tensor(3.5)})
    yield Case("model.pt: a counter with a fraction", lambda _: load_with(model=counter),
               refused="num_batches_tracked: .*float32")
    for name, content in {**FILES, **PICKLES}.items():
        yield Case(f"model.pt: {name}", lambda _, c=content: load_with(model=c),
                   refused=r"model\.pt(: not a valid| does not fit)")
    for name in ("config.json", "tokenizer.json", "model.pt"):
        half = saved_files()[name][: len(saved_files()[name]) // 2]
        yield Case(f"half of {name}", lambda _, n=name, c=half: load_with(**{n.split(".")[0]: c}), refused=name)
        for kind, make in NOT_FILES.items():
            def run(folder: Path, name: str = name, make: Callable = make) -> object:
                for other in saved_files().keys() - {name}:
                    (folder / other).write_bytes(saved_files()[other])
                make(folder / name)
                return load(folder)

            yield Case(f"{name}: {kind}", run, refused=f"{name} is missing")

    def other_tokenizer(folder: Path) -> object:
        for name, content in saved_files().items():
            (folder / name).write_bytes(content)
        ToyTokenizer([" cat", " dog", " taxi", " bus"]).save(folder / "tokenizer.json")
        return load(folder)

    yield Case("the tokenizer of another model", other_tokenizer,
               refused=f"<image> is {259 + 4} in tokenizer.json, but {259 + 2} in config.json")
    narrow = saved({name: tensor[..., :48] if tensor.dim() else tensor for name, tensor in state.items()})
    yield Case("the weights of another model", lambda _: load_with(model=narrow), refused=r"model\.pt.* wrong shape")
    yield Case("a folder that does not exist", lambda _: load("runs/none"), refused="runs/none is not a saved Flamingo")


def cases() -> Iterator[Case]:
    for part in (state_dicts, checkpoint_files, saved_models):
        yield from part()
