"""Strict loading of weights that have other names: each parameter is filled, and each tensor of the checkpoint is used.

Each family of models has one table, our name -> its name. "*" is the number of a layer. A name is that of a parameter, or of a
module with all its parameters. A tensor that is stored in another form has a function too:

    {"final_norm": "ln_f",                                               final_norm.weight, .bias <- ln_f.weight, .bias
     "class_token": "class_embedding",
     "blocks.*.mlp.up": ("h.*.mlp.c_fc", transposed),                    blocks.0.mlp.up.weight <- h.0.mlp.c_fc.weight
     "layers.*.to_kv": ("layers.*.k_proj", "layers.*.v_proj", joined)}   one tensor of ours made from two
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from ..training.checkpoint import raise_if_any
from .files import Tensors

Table = dict[str, "str | tuple"]


def prefixed(table: Table, ours: str, theirs: str) -> Table:
    """The same table with a prefix before our names and one before theirs."""
    return {
        ours + name: theirs + entry if isinstance(entry, str) else (*(theirs + n for n in entry[:-1]), entry[-1])
        for name, entry in table.items()
    }


def same_names(module: nn.Module, names: Iterable[str]) -> Table:
    """The table of files with our own names. Only one name of a tied output layer needs to be in the file."""
    return {name: name for name in module.state_dict() if name in names}


def joined(*tensors: Tensor) -> Tensor:
    """Matrices one below the other: keys and values -> to_kv."""
    return torch.cat(tensors)


def transposed(tensor: Tensor) -> Tensor:
    """GPT-2 stores linear layers as (inputs, outputs). Their biases are as usual."""
    return tensor.T if tensor.dim() == 2 else tensor


def thirds(ours: str, theirs: str, split: Callable[[Tensor], list[Tensor]] = lambda fused: fused.chunk(3)) -> Table:
    """Queries, keys and values that are stored as one matrix. `ours` has "{}" in the place of q, k or v."""
    return {ours.format(x): (theirs, lambda fused, i=i: split(fused)[i]) for i, x in enumerate("qkv")}


# Their names of the activations -> ours (layers.py)
ACTIVATIONS = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "relu": "relu",
    "quick_gelu": "quick_gelu", "silu": "silu", "swish": "silu",
}  # fmt: skip


def activation(theirs: Mapping, key: str, default: str) -> str:
    """The activation that a config.json names. Raises ValueError if we do not have it."""
    name = theirs.get(key, default)
    if name not in ACTIVATIONS:
        raise ValueError(f"the config says {key}={name!r}; only these are implemented: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def expect(theirs: Mapping, **only: object) -> None:
    """Refuse settings that our classes do not implement. Loading such a model would give wrong numbers without any error."""
    for key, value in only.items():
        if key in theirs and theirs[key] != value and not (value is None and theirs[key] in (0, False)):
            raise ValueError(f"the config says {key}={theirs[key]!r}; only {value!r} is implemented")


def source(name: str, table: Table) -> tuple[tuple[str, ...], Callable[..., Tensor]] | None:
    """Where our parameter comes from: their names, and the function that makes it from these tensors."""
    number = "".join(re.findall(r"\.(\d+)\.", name)[:1])
    for key in (name, re.sub(r"\.\d+\.", ".*.", name)):
        module, _, kind = key.rpartition(".")
        for pattern, suffix in ((key, ""), (module, f".{kind}")):  # first the parameter itself, then its module
            if pattern in table:
                entry = table[pattern]
                names, function = ((entry,), lambda tensor: tensor) if isinstance(entry, str) else (entry[:-1], entry[-1])
                return tuple(theirs.replace("*", number) + suffix for theirs in names), function
    return None


def fill(
    module: nn.Module, tensors: Tensors, table: Table, where: str = "the checkpoint", *, ignored: Iterable[str] = (),
    dtype: torch.dtype | None = None, device: torch.device | str = "cpu",
) -> None:  # fmt: skip
    """Replace the parameters (and buffers) of a module by tensors of a checkpoint. All names and shapes are compared first.

    Args:
        module: on the meta device, so that its weights are in memory only once. Parts that already have values keep them if the
            table has no names for them.
        ignored: regular expressions of their names that are deliberately not used; each must match a whole name.
        dtype, device: of the new parameters; dtype None: as stored.
    Raises:
        ValueError: names are missing or left over, or shapes are wrong. The module is unchanged then. (OpenFlamingo's own
        loader uses `strict=False`, which hides such mistakes.)
    """
    own = module.state_dict(keep_vars=True)
    # A tied output layer is one parameter with two names. It may be stored under either of them, or under both.
    aliases: dict[int, list[str]] = {}
    for name, parameter in own.items():
        aliases.setdefault(id(parameter), []).append(name)
    plan, known, missing = {}, set(), set()
    for names in aliases.values():
        sources = [found for name in names if (found := source(name, table))]
        complete = [found for found in sources if all(name in tensors for name in found[0])]
        known |= {name for theirs, _ in sources for name in theirs}
        if complete:
            plan[names[0]] = complete[0]
        elif sources:
            missing |= set(sources[0][0]) - tensors.keys()
        elif own[names[0]].is_meta:
            missing.add(names[0])
    extra = {name for name in tensors.keys() - known if not any(re.fullmatch(pattern, name) for pattern in ignored)}
    raise_if_any(where, {"missing": missing, "left over": extra})
    wrong = [
        f"{' + '.join(theirs)} {tuple(shape)} instead of {tuple(own[name].shape)}"
        for name, (theirs, function) in plan.items()
        if (shape := function(*(torch.empty(tensors[t].shape, device="meta") for t in theirs)).shape) != own[name].shape
    ]
    raise_if_any(where, {"wrong shape": wrong})
    for name, (theirs, function) in plan.items():
        tensor = function(*(tensors[t].read() for t in theirs))
        # A copy: the parameter must not share memory with the file, nor keep a whole fused matrix in memory.
        new_dtype = dtype if dtype and tensor.is_floating_point() else tensor.dtype
        new = tensor.to(device, new_dtype, copy=True, memory_format=torch.contiguous_format)
        if is_parameter := isinstance(own[name], nn.Parameter):
            new = nn.Parameter(new, own[name].requires_grad)
        for alias in aliases[id(own[name])]:
            path, _, last = alias.rpartition(".")
            part = module.get_submodule(path)
            (part._parameters if is_parameter else part._buffers)[last] = new
