"""The grader's side of a component: functions that send their arguments to the student's process and return its results.

    test  ->  stand-in for media_index  ->  arguments  ->  student's process        gradients take the same way back

The test compares the results in the grader's own process, so a student's code can neither see nor change what is compared.
"""

import builtins
import contextlib
import importlib
import io
import os
import pickle
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor, nn

from tutorials.assignments.components import ROOT, Function, put_function
from tutorials.assignments.worker import REPLY_SIZE, look_up, new_module, pack, read_reply, serve


class Ended(Exception):
    """The student's process does not answer any more."""


class Arguments(pickle.Pickler):
    """Pickles arguments. Tensors and random generators are collected instead, so that gradients can come back to them."""

    def __init__(self, buffer: io.BytesIO):
        super().__init__(buffer)
        self.tensors: dict[int, Tensor] = {}
        self.generators: dict[int, torch.Generator] = {}
        self.activations = importlib.import_module("minflamingo.layers").ACTIVATIONS

    def reducer_override(self, value: object):
        """How to pickle an object, or NotImplemented for the usual way."""
        for kind, name, known in ((Tensor, "tensor", self.tensors), (torch.Generator, "generator", self.generators)):
            if isinstance(value, kind):
                known[id(value)] = value  # the pickler asks once for each object
                return look_up, (name, len(known) - 1)
        if isinstance(value, nn.Module):  # most of the dicts of a module are empty: leave them out
            return new_module, (type(value),), {k: v for k, v in vars(value).items() if not isinstance(v, dict | set) or v}
        names = [name for name, function in self.activations.items() if function is value] if callable(value) else []
        return (look_up, ("activation", names[0])) if names else NotImplemented  # most activations are lambdas


class Student:
    """A process that runs one component of one student in a clean copy of the package. Use it as a context manager.

    code: the component's functions. seconds: limit of its processor time. It may take three times as long by the clock.
    """

    def __init__(self, code: dict[Function, str], seconds: int):
        self.code, self.seconds, self.left, self.ended = code, seconds, 3.0 * seconds, ""
        self.process = self.connection = None

    def __enter__(self):
        # mkdtemp: only this user can read it
        self.folder = Path(tempfile.mkdtemp(prefix="grade-")).resolve()
        tree, own = self.folder / "tree", self.folder / "own"
        own.mkdir()
        shutil.copytree(ROOT / "minflamingo", tree / "minflamingo", ignore=shutil.ignore_patterns("__pycache__"))
        for function, code in self.code.items():
            path = tree / function.file
            path.write_text(put_function(path.read_text(encoding="utf-8"), function, code), encoding="utf-8")
        context = get_context("forkserver")
        context.set_forkserver_preload(["tutorials.assignments.worker"])
        self.connection, theirs = context.Pipe()
        functions = {function.name: function.module for function in self.code}
        arguments = (theirs, str(tree), str(own), str(ROOT), functions, self.seconds)
        self.process = context.Process(target=serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        return self

    def __exit__(self, *error):
        for end in (os.killpg, os.kill):  # the group, in case that something else runs in it
            with contextlib.suppress(ProcessLookupError, PermissionError):
                end(self.process.pid, signal.SIGKILL)
        self.process.join(10)
        self.connection.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def ask(self, request: dict) -> dict:
        """Send a request and wait for its reply.

        Raises Ended if there is none, or the exception that the student's code raised.
        """
        if self.ended:
            raise Ended(self.ended)
        began = time.monotonic()
        try:
            self.connection.send_bytes(pickle.dumps(request))
            if not self.connection.poll(max(self.left, 0.1)):
                raise Ended(f"no result within {3 * self.seconds} seconds; is there an endless loop?")
            reply = read_reply(self.connection.recv_bytes(2 * REPLY_SIZE))
            failed = "error" in reply
        except Ended as error:
            self.ended = str(error)
        except (OSError, EOFError):  # it has exited, was killed by a limit, or sends too much
            self.process.join(1)
            self.ended = f"the process ended ({describe_exit(self.process.exitcode)})"
        except Exception:  # a reply that is not one: the code wrote to the connection itself
            self.ended = "the process sent something that is not a result"
        self.left -= time.monotonic() - began
        if self.ended:
            raise Ended(self.ended)
        if failed:  # an exception: raise the same one, if it is one of Python's own
            kind, message = getattr(builtins, str(reply["error"]), None), reply["message"]
            ordinary = isinstance(kind, type) and issubclass(kind, Exception)
            raise (kind(message) if ordinary else RuntimeError(f"{reply['error']}: {message}"))
        return reply

    def call(self, name: str, args: tuple, kwargs: dict) -> object:
        """Call a function of the component in the student's process."""
        pickler = Arguments(buffer := io.BytesIO())
        pickler.dump((args, kwargs))
        tensors, generators = list(pickler.tensors.values()), list(pickler.generators.values())
        request = {
            "function": name, "arguments": buffer.getvalue(), "tensors": [pack(t) for t in tensors],
            "kinds": [(isinstance(t, nn.Parameter), t.requires_grad) for t in tensors], "rng": pack(torch.get_rng_state()),
            "generators": [pack(g.get_state()) for g in generators], "grad": torch.is_grad_enabled(),
        }  # fmt: skip
        reply: dict = {}
        outputs = RemoteCall.apply(self, request, reply, *tensors)
        torch.set_rng_state(reply["rng"])
        for generator, state in zip(generators, reply["generators"]):
            generator.set_state(state)
        owner = args[0] if args and isinstance(args[0], nn.Module) else None
        buffers = {id(b) for b in owner.buffers()} if owner is not None else set()
        for i, value in reply["changed"]:
            if id(tensors[i]) not in buffers:  # statistics of BatchNorm change in training; nothing else may
                raise AssertionError(f"{name} changes a tensor of its arguments in place")
            with torch.no_grad():
                tensors[i].copy_(value)
        if owner is not None:
            for module, training in zip(owner.modules(), reply["flags"][0]):
                module.training = bool(training)
            for parameter, requires_grad in zip(owner.parameters(), reply["flags"][1]):
                parameter.requires_grad_(bool(requires_grad))
        return decode(reply["structure"], outputs, owner)


class RemoteCall(torch.autograd.Function):
    """A call in the student's process as one step of the grader's gradient graph."""

    @staticmethod
    def forward(ctx, student, request, reply, *tensors):
        reply.update(student.ask(request))
        ctx.student, ctx.call = student, reply["call"]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*[t for t, d in zip(reply["tensors"], reply["differentiable"]) if not d])
        return tuple(reply["tensors"])

    @staticmethod
    def backward(ctx, *gradients):
        request = {"call": ctx.call, "gradients": [g if g is None else pack(g) for g in gradients]}
        found = dict(ctx.student.ask(request)["gradients"])
        return None, None, None, *(found.get(i) for i in range(len(ctx.needs_input_grad) - 3))


def decode(structure: list, tensors: tuple, owner: nn.Module | None) -> object:
    """The inverse of `worker.encode`. Only classes of minflamingo can be made."""
    kind, *rest = structure
    if kind == "self":
        return owner
    if kind == "tensor":
        return tensors[rest[0]]
    if kind == "plain":
        return rest[0]
    if kind in ("list", "tuple"):
        return (list if kind == "list" else tuple)(decode(s, tensors, owner) for s in rest)
    if kind == "dict":
        return {decode(k, tensors, owner): decode(v, tensors, owner) for k, v in rest}
    module, name, *fields = rest
    if not str(module).startswith("minflamingo."):
        raise ValueError(f"the result contains an object of {module}")
    found = getattr(importlib.import_module(module), str(name))
    if not isinstance(found, type):
        raise ValueError(f"{module}.{name} is not a class")
    known = [v for v in vars(sys.modules[module]).values() if type(v) is found]
    if not fields and known:  # EOC is the only object of its class
        return known[0]
    result = found.__new__(found)
    for field, value in fields:
        object.__setattr__(result, field, decode(value, tensors, owner))
    return result


def describe_exit(code: int | None) -> str:
    """What a negative exit code means: the signal that ended the process."""
    if code is None or code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code)
    limits = {signal.SIGXCPU: "too much processor time", signal.SIGKILL: "too much processor time or memory"}
    return limits.get(name, f"signal {name.name}")


def replace_function(function: Function, make: Callable[[Callable], Callable]) -> None:
    """Replace a function of the grader's package by make(function), in all modules that have imported it."""
    module = importlib.import_module(function.module)
    owner, _, name = function.name.rpartition(".")
    if owner:
        holder = getattr(module, owner)
        setattr(holder, name, make(getattr(holder, name)))
        return
    original = getattr(module, name)
    stand_in = make(original)
    for other in [m for n, m in sys.modules.items() if n.startswith("minflamingo")]:
        for key in [k for k, v in vars(other).items() if v is original]:
            setattr(other, key, stand_in)
