"""From somebody else's names to ours, strictly: every tensor of a checkpoint is used, every parameter of the model is filled.

A family is a *table*, our name → where it comes from:

    {"final_norm.weight": "ln_f.weight",                                    the same tensor under another name
     "blocks.0.attn.to_q.weight": ("h.0.attn.c_attn.weight", third(0))}     a part of it, or two joined: names and a function

`fill(module, tensors, table)` compares all names and shapes first, and says at once what is missing, left over or of
another shape (OpenFlamingo's own loader uses `strict=False`, which hides it). Then it puts the tensors in one by one, in the
wanted dtype and on the wanted device; the module may have been made on the meta device, so that its weights exist only once.

Example: `fill(LM(config), {"wte.weight": …, "h.0.ln_1.weight": …, …}, gpt2.table(config), "gpt2.safetensors")`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from ..training.checkpoint import raise_if_any

# our name → their name, or (their name or names, function of these tensors)
Table = dict[str, "str | tuple[str | tuple[str, ...], Callable[..., Tensor]]"]


def numbered(n: int, rows: Mapping[str, object], ours: str = "", theirs: str = "") -> Table:
    """The rows of one block, for blocks 0 … n − 1. `ours` and `theirs` are prefixes with a "*" for the number."""
    table = {}
    for i in range(n):
        table |= prefixed(rows, ours.replace("*", str(i)), theirs.replace("*", str(i)))
    return table


def prefixed(table: Mapping[str, object], ours: str = "", theirs: str = "") -> Table:
    """The same table with a prefix before our names, and one before theirs."""

    def put(source):
        if isinstance(source, str):
            return theirs + source
        names, function = source
        return (theirs + names if isinstance(names, str) else tuple(theirs + n for n in names)), function

    return {ours + name: put(source) for name, source in table.items()}


def with_bias(rows: Mapping[str, str], wanted: bool) -> Table:
    """Rows given as "to_q": "q_proj" become their ".weight", and their ".bias" too if there is one."""
    kinds = ("weight", "bias") if wanted else ("weight",)
    return {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in rows.items() for kind in kinds}


def joined(*tensors: Tensor) -> Tensor:
    """One below the other: k and v → kv."""
    return torch.cat(tensors)


def transposed(tensor: Tensor) -> Tensor:
    """GPT-2's linear layers are stored the other way round."""
    return tensor.T.contiguous()


def third(i: int) -> Callable[[Tensor], Tensor]:
    """Rows of q (0), k (1) or v (2) of a fused projection."""
    return lambda fused: fused.chunk(3)[i].clone()  # a view would keep all three alive


def first(n: int) -> Callable[[Tensor], Tensor]:
    """The first n rows: what a table of embeddings had before it was made longer."""
    return lambda tensor: tensor[:n].clone()


def behind(n: int) -> Callable[[Tensor], Tensor]:
    """The rows behind the first n."""
    return lambda tensor: tensor[n:].clone()


# Their names for the activations → ours (layers.py)
ACTIVATIONS = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "relu": "relu",
    "quick_gelu": "quick_gelu", "silu": "silu", "swish": "silu",
}  # fmt: skip


def activation(theirs: Mapping, key: str, default: str) -> str:
    """The activation that a config.json names. Raises ValueError for one we do not have."""
    name = theirs.get(key, default)
    if name not in ACTIVATIONS:
        raise ValueError(f"the config says {key}={name!r}; there are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def expect(theirs: Mapping, **only: object) -> None:
    """Refuse what our classes cannot express, rather than load it and be wrong. A key that is absent is as expected."""
    for key, value in only.items():
        if key in theirs and theirs[key] != value and not (value is None and theirs[key] in (0, False)):
            raise ValueError(f"the config says {key}={theirs[key]!r}; only {value!r} is implemented")


def _names(source) -> tuple[str, ...]:
    if isinstance(source, str):
        return (source,)
    return (source[0],) if isinstance(source[0], str) else source[0]


def _tensor(source, tensors: Mapping[str, Tensor]) -> Tensor:
    if isinstance(source, str):
        return tensors[source]
    return source[1](*(tensors[name] for name in _names(source)))


def check_names(table: Table, have: Iterable[str], where: str, ignored: Iterable[str] = ()) -> None:
    """Are the names of a checkpoint those that the table asks for?

    Args:
        ignored: regular expressions of names that are knowingly not used, each matching a whole name.
    Raises:
        ValueError: names that are missing, or left over; says up to five of each.
    """
    ignored = tuple(ignored)
    asked, have = {name for source in table.values() for name in _names(source)}, set(have)
    over = {name for name in have - asked if not any(re.fullmatch(pattern, name) for pattern in ignored)}
    raise_if_any(where, {"missing": asked - have, "left over": over})


def fill(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    table: Table,
    where: str = "the checkpoint",
    ignored: Iterable[str] = (),
    kept: tuple[str, ...] = (),
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Fill all of a module's parameters and buffers from a checkpoint.

    Args:
        module: may stand on the meta device: its parameters are replaced, not written into.
        tensors: their name → tensor. A mapping with a method `meta(name)` is asked for one real tensor at a time.
        ignored: regular expressions of their names that are knowingly not used.
        kept: beginnings of our names that the table leaves as they are.
        dtype, device: where the parameters go; dtype None: as they are stored.
    Raises:
        ValueError: a name missing or left over, a parameter of the module that nothing fills, another shape. Nothing of the
            module has been changed then.
    """
    slots = {name: _slot(module, name) for name in module.state_dict()}
    twins = twin_names(module)
    empty = {n for n in slots if not n.startswith(kept) and not any(twin in table for twin in twins[n])}
    raise_if_any(where, {"nothing fills": empty, "not in the model": table.keys() - slots})
    check_names(table, tensors, where, ignored)
    shapes = _Shapes(tensors)
    wrong = [
        f"{' + '.join(_names(source))} {tuple(shape)} instead of {tuple(wanted)}"
        for name, source in table.items()
        if (shape := _tensor(source, shapes).shape) != (wanted := _own(*slots[name]).shape)
    ]
    raise_if_any(where, {"wrong shape": wrong})
    for name, source in table.items():
        old, tensor = _own(*slots[name]), _tensor(source, tensors)
        new = tensor.to(device, dtype if tensor.is_floating_point() else None)
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, requires_grad=old.requires_grad)
        for twin in twins[name]:
            part, own = slots[twin]
            (part._parameters if isinstance(old, nn.Parameter) else part._buffers)[own] = new


def twin_names(module: nn.Module) -> dict[str, list[str]]:
    """Per name of the state dict all names of the same tensor: a tied head is one parameter under two, filled under either."""
    shared: dict[int, list[str]] = {}
    for name in module.state_dict():
        shared.setdefault(id(_own(*_slot(module, name))), []).append(name)
    return {name: names for names in shared.values() for name in names}


def as_they_are(module: nn.Module, names: Iterable[str]) -> Table:
    """The table of our own files: every tensor under its own name, a shared one under any of its names."""
    names = set(names)
    return {twins[0]: next((n for n in twins if n in names), twins[0]) for twins in twin_names(module).values()}


def _own(part: nn.Module, name: str) -> Tensor:
    return part._parameters[name] if name in part._parameters else part._buffers[name]


def _slot(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Where a parameter lives: "blocks.0.mlp.up.weight" → (that Linear, "weight")."""
    path, _, own = name.rpartition(".")
    return module.get_submodule(path), own


class _Shapes(Mapping):
    """The same names with tensors that have a shape and no content: a whole table can be tried out for nothing."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        if hasattr(self.tensors, "meta"):
            return self.tensors.meta(name)
        return torch.empty(self.tensors[name].shape, device="meta")

    def __iter__(self):
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)
