"""The process in which a student's functions run. It gets arguments and returns results; it knows no test and no score.

It is forked from a process that has imported torch and nothing of minflamingo, so the solution is not in its memory. Before any
line of the student runs, it gives up network, other processes and all files but its own folder. These limits are those of
Python: code in C could get around them (README.md).
"""

import importlib
import json
import os
import pickle
import resource
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import numpy  # noqa: F401  numpy, Pillow and symbolic_shapes (needed for gradients) are imported once, before the forks
import PIL.Image  # noqa: F401
import torch
import torch.fx.experimental.symbolic_shapes
from torch import Tensor, nn

MEMORY, FILE_SIZE, REPLY_SIZE = 3 << 30, 1 << 20, 64 << 20  # of one component, in bytes
# Audit events (https://docs.python.org/3/library/audit_events.html) that are refused.
REFUSED = ("socket.", "subprocess.", "os.fork", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.kill", "os.startfile",
           "pty.", "ctypes.dlopen", "ctypes.dlsym", "ctypes.call_function", "ctypes.string_at", "signal.pthread_kill",
           "gc.get", "sys._current_frames", "resource.")  # fmt: skip
CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.chown", "os.link", "os.symlink", "os.truncate",
           "os.utime", "os.chflags", "os.setxattr", "os.removexattr", "shutil.")  # fmt: skip


def refuse_everything_outside(tree: Path, solution: Path) -> None:
    """From now on: no network, no processes, files are written only in the current folder, and the solution cannot be read."""
    own, solution = Path.cwd().resolve(), solution.resolve()
    libraries = [Path(p).resolve() for p in {sys.prefix, sys.base_prefix, *sys.path} if p]

    def inside(path: object, *folders: Path) -> bool:
        place = Path(os.path.realpath(os.fsdecode(path)))
        return any(place.is_relative_to(folder) for folder in folders)

    def readable(path: object) -> bool:
        """The tree, the own folder, and installed libraries, but no copy of minflamingo among them."""
        if inside(path, own, tree, Path("/dev")):
            return True
        place = Path(os.path.realpath(os.fsdecode(path)))
        # An environment may lie inside the folder of the solution, but the solution itself must not be read.
        homes = [f for f in libraries if place.is_relative_to(f) and (f.is_relative_to(solution) or not inside(path, solution))]
        return any("minflamingo" not in place.relative_to(folder).parts for folder in homes)

    def hook(event: str, arguments: tuple) -> None:
        if event.startswith(REFUSED):
            raise PermissionError(f"{event} is not allowed here")
        if event == "open" and not isinstance(arguments[0], int) and arguments[0] is not None:
            path, _, flags = arguments
            writes = (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
            if not (inside(path, own) or os.fsdecode(path) == os.devnull if writes else readable(path)):
                raise PermissionError(f"{os.fsdecode(path)} is outside the folder of this process")
        if event.startswith(CHANGES):
            paths = [a for a in arguments if isinstance(a, str | bytes | os.PathLike)]
            if not all(inside(path, own) for path in paths):
                raise PermissionError(f"{event} is allowed only in the folder of this process")

    sys.addaudithook(hook)


def limit_resources(seconds: int) -> None:
    """seconds: of processor time. Above it the system ends the process."""
    for kind, value in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_DATA, MEMORY), (resource.RLIMIT_FSIZE, FILE_SIZE),
                        (resource.RLIMIT_CORE, 0)):  # fmt: skip
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def serve(connection: Connection, tree: str, folder: str, solution: str, functions: dict[str, str], seconds: int) -> None:
    """Answer calls until the connection closes. functions: {"Class.method": module}."""
    os.setsid()  # its own group of processes, so that it can be ended as a whole
    os.chdir(folder)
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT)
    for stream in (0, 1, 2):
        os.dup2(output if stream else os.open(os.devnull, os.O_RDONLY), stream)
    os.environ.clear()
    os.environ.update({"HOME": folder, "TMPDIR": folder, "MPLCONFIGDIR": folder, "PATH": ""})
    torch.set_num_threads(1)
    sys.dont_write_bytecode = True
    root = Path(solution).resolve()
    sys.path[:] = [tree, *(p for p in sys.path if p and Path(p).resolve() != root)]
    limit_resources(seconds)
    refuse_everything_outside(Path(tree).resolve(), root)
    calls = Calls()
    try:
        importlib.import_module("minflamingo.fast")._enabled = False  # the plain versions
        for name, module in functions.items():
            found = importlib.import_module(module)
            for part in name.split("."):
                found = getattr(found, part)
            calls.functions[name] = found
    except BaseException as error:
        calls.broken = error
    while True:
        request = pickle.loads(connection.recv_bytes())
        try:
            reply = calls.call(**request) if "function" in request else calls.backward(**request)
        except BaseException as error:
            reply = {"error": type(error).__name__, "message": str(error)[:2000]}
        if len(data := write_reply(reply)) > REPLY_SIZE:
            data = write_reply({"error": "ValueError", "message": f"the result has {len(data) >> 20} MB"})
        connection.send_bytes(data)


TABLES: dict[str, object] = {}  # what the arguments of the present call refer to


def look_up(table: str, key: int | str) -> object:
    """A tensor, a random generator or an activation function, by its place in the request (remote.Arguments)."""
    return TABLES[table][key]


def pack(tensor: Tensor) -> tuple:
    """A tensor as bytes, type and shape. For many small tensors this is much faster than `torch.save`."""
    return tensor.detach().flatten().view(torch.uint8).numpy().tobytes(), tensor.dtype, tuple(tensor.shape)


def unpack(data: bytes, dtype: torch.dtype, shape: tuple) -> Tensor:
    """The inverse of `pack`."""
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape) if data else torch.empty(shape, dtype=dtype)


def write_reply(reply: dict) -> bytes:
    """A line of JSON, followed by the bytes of its tensors: reading it runs no code. (`torch.save` is much slower.)"""
    parts: list[bytes] = []

    def store(tensor: Tensor) -> dict:
        data, dtype, shape = pack(tensor)
        parts.append(data)
        return {"dtype": str(dtype).removeprefix("torch."), "shape": shape, "bytes": len(data)}

    return b"".join([json.dumps(reply, default=store).encode(), b"\n", *parts])


def read_reply(data: bytes) -> dict:
    """The inverse of `write_reply`. It raises an error of any type if the data are something else."""
    line, _, rest = data.partition(b"\n")

    def restore(entry: dict) -> object:
        nonlocal rest
        if "dtype" not in entry:
            return entry
        mine, rest = rest[: entry["bytes"]], rest[entry["bytes"] :]
        return unpack(mine, getattr(torch, entry["dtype"]), tuple(entry["shape"]))

    return json.loads(line, object_hook=restore)


def new_module(kind: type[nn.Module]) -> nn.Module:
    """A module without parameters and submodules."""
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    return module


class Calls:
    """Calls of a component's functions, and what their gradients need."""

    def __init__(self):
        self.functions, self.broken, self.graphs = {}, None, []

    def call(self, function: str, arguments: bytes, tensors: list, kinds: list, generators: list, grad: bool, rng: tuple):
        """Run a function -> the reply: its result, and what it changed."""
        if self.broken is not None:
            raise self.broken
        leaves = [self.leaf(unpack(*t), *kind) for t, kind in zip(tensors, kinds)]
        drawn = [torch.Generator() for _ in generators]
        for generator, state in zip(drawn, generators):
            generator.set_state(unpack(*state))
        activations = importlib.import_module("minflamingo.layers").ACTIVATIONS
        TABLES.update(tensor=leaves, generator=drawn, activation=activations)
        args, kwargs = pickle.loads(arguments)
        versions = [leaf._version for leaf in leaves]
        torch.set_rng_state(unpack(*rng))
        with torch.set_grad_enabled(grad):
            result = self.functions[function](*args, **kwargs)
        outputs: list[Tensor] = []
        owner = args[0] if args and isinstance(args[0], nn.Module) else None
        structure = encode(result, outputs, owner)
        self.graphs.append((leaves, outputs))
        flags = owner and [[m.training for m in owner.modules()], [p.requires_grad for p in owner.parameters()]]
        return {
            "structure": structure, "tensors": outputs, "flags": flags,
            "differentiable": [t.requires_grad for t in outputs], "rng": torch.get_rng_state(), "call": len(self.graphs) - 1,
            "generators": [g.get_state() for g in drawn],
            "changed": [[i, leaf] for i, leaf in enumerate(leaves) if leaf._version != versions[i]],
        }  # fmt: skip

    @staticmethod
    def leaf(tensor: Tensor, is_parameter: bool, requires_grad: bool) -> Tensor:
        return nn.Parameter(tensor, requires_grad) if is_parameter else tensor.requires_grad_(requires_grad)

    def backward(self, call: int, gradients: list) -> dict:
        """Gradients of the outputs of a call -> gradients of its tensors. None: the outputs do not depend on it."""
        leaves, outputs = self.graphs[call]
        used = [(o, unpack(*g)) for o, g in zip(outputs, gradients) if o.requires_grad and g is not None]
        wanted = [i for i, leaf in enumerate(leaves) if leaf.requires_grad]
        found = [None] * len(wanted)
        if used and wanted:
            found = torch.autograd.grad([o for o, _ in used], [leaves[i] for i in wanted], [g for _, g in used],
                                        retain_graph=True, allow_unused=True)  # fmt: skip
        return {"gradients": list(zip(wanted, found))}


def encode(value: object, tensors: list[Tensor], owner: nn.Module | None) -> list:
    """A result as plain lists that need no class to be read; its tensors are collected in `tensors`."""
    if value is owner and owner is not None:
        return ["self"]
    if isinstance(value, Tensor):
        tensors.append(value)
        return ["tensor", len(tensors) - 1]
    if value is None or isinstance(value, bool | int | float | str):
        return ["plain", value]
    if isinstance(value, list | tuple):
        return ["list" if isinstance(value, list) else "tuple", *(encode(v, tensors, owner) for v in value)]
    if isinstance(value, dict):
        return ["dict", *([encode(k, tensors, owner), encode(v, tensors, owner)] for k, v in value.items())]
    kind = type(value)
    if kind.__module__.startswith("minflamingo.") and hasattr(value, "__dict__"):
        fields = [[name, encode(v, tensors, owner)] for name, v in vars(value).items()]
        return ["object", kind.__module__, kind.__qualname__, *fields]
    raise TypeError(f"the result contains a {kind.__name__}; return tensors, numbers, texts, lists, or classes of minflamingo")
