"""Strict loading of weights that have other names: each parameter is filled, and each tensor of the checkpoint is used.

Each family of models has one table, our name -> its name. "*" is the number of a layer. A name is that of a parameter, or of a
module with all its parameters. A tensor that is stored in another form has a function too:

    {"final_norm": "ln_f",                                               final_norm.weight, .bias <- ln_f.weight, .bias
     "class_token": "class_embedding",
     "blocks.*.mlp.up": ("h.*.mlp.c_fc", transposed),                    blocks.0.mlp.up.weight <- h.0.mlp.c_fc.weight
     "layers.*.to_kv": ("layers.*.k_proj", "layers.*.v_proj", joined)}   one tensor of ours made from two
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .files import Tensors

Table = dict[str, "str | tuple"]
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# Their tensors that no model here needs: the last norm and projection of CLIP, and what is computed here (masks, frequencies).
IGNORED = re.compile(
    r"(.*\.)?(proj|(ln_post|post_layernorm)\..*|attn_mask|position_ids|inv_freq|(attn|attention)\.(bias|masked_bias))"
)


def prefixed(table: Table, ours: str, theirs: str) -> Table:
    """The same table with a prefix before our names and one before theirs."""
    return {
        ours + name: theirs + entry if isinstance(entry, str) else (*(theirs + n for n in entry[:-1]), entry[-1])
        for name, entry in table.items()
    }


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


# Fields of a config.json that do not change what a trained model computes. Each family has some more (`known`).
IRRELEVANT = """
    _name_or_path _?attn_implementation.* _commit_hash architectures auto_map model_type (torch_)?dtype torchscript use_bfloat16
    transformers.* tf_legacy_loss tokenizer_.* use_cache gradient_checkpointing chunk_size_feed_forward is_decoder verbose
    .*_token_id .*dropout .*pdrop layerdrop init_.* initializer_.* id2label label2id _?num_labels problem_type finetuning_task
    output_(attentions|hidden_states|scores) return_dict.* tie_encoder_decoder task_specific_params prefix (max|min)_length
    max_new_tokens do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p
    (repetition|length|exponential_decay_length)_penalty (encoder_)?no_repeat_ngram_size bad_words_ids num_return_sequences
    remove_invalid_values (begin_)?suppress_tokens"""


class Theirs:
    """The config of another project. Each field must be read (`get`), checked (`only`) or irrelevant. Others are refused."""

    def __init__(self, content: Mapping, place: str = ""):
        self.content, self.place, self.known, self.parts = content, place, [IRRELEVANT], []

    def get(self, key: str, default: Any = ...) -> Any:
        """The value of a field. It has the type of the default. Without a default it is required, and a positive integer."""
        self.known.append(key)
        value, kind = self.content.get(key, default), int if default in (..., None) else type(default)
        if value is ...:
            raise ValueError(f"the field {self.place + key!r} is missing")
        good = isinstance(value, float | int if kind is float else kind) and isinstance(value, bool) == (kind is bool)
        if value is not default and not (good and (kind is bool or 0 < value < math.inf)):
            expected = {int: "a positive integer", float: "a positive number", bool: "true or false"}[kind]
            raise ValueError(f"{self.place}{key}={value!r:.80}; expected {expected}")
        return value

    def part(self, key: str, default: Mapping | None = None) -> "Theirs":
        """A config inside the config."""
        content = self.content.get(key) or default
        if not isinstance(content, Mapping):
            raise ValueError(f"the field {self.place + key!r} is missing, or not an object of fields")
        self.known.append(key)
        self.parts.append(Theirs(content, f"{self.place}{key}."))
        return self.parts[-1]

    def only(self, **settings: object) -> None:
        """Refuse a setting that our classes do not implement. Such a model would give wrong numbers without an error."""
        for key, allowed in settings.items():
            choices = allowed if isinstance(allowed, tuple) else (allowed,)
            value = self.content.get(key, choices[0])
            if value not in choices and (value or None not in choices):  # 0, false and {} also mean: without it
                raise ValueError(f"{self.place}{key}={value!r:.80}; only {' or '.join(map(repr, choices))} is implemented")
        self.known += map(re.escape, settings)

    def activation(self, key: str, default: str) -> str:
        """Our name of the activation."""
        self.only(**{key: (default, *ACTIVATIONS)})
        return ACTIVATIONS[self.content.get(key, default)]

    def refuse_others(self) -> None:
        self.only(is_encoder_decoder=False, add_cross_attention=False, cross_attention_hidden_size=None, pruned_heads=None)
        known = re.compile("|".join(" ".join(self.known).split()))
        for key, value in self.content.items():
            if not known.fullmatch(str(key)):
                raise ValueError(f"{self.place}{key}={value!r:.80}; this field is not implemented")
        for part in self.parts:
            part.refuse_others()


@contextmanager
def foreign(content: object) -> Iterator[Theirs]:
    """Inside, a config of another project is read. All that is wrong with it becomes a ValueError that names it."""
    if not isinstance(content, Mapping):
        raise ValueError(f"a config must be a dict or an object with `to_dict`, not {type(content).__name__}")
    theirs = Theirs(content)
    try:
        yield theirs
        theirs.refuse_others()
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"the config of this {content.get('model_type', 'model')!s:.80}: {error}") from None


def source(name: str, table: Table) -> tuple[tuple[str, ...], Callable[..., Tensor]]:
    """Where our parameter comes from: their names, and the function that makes it from these tensors."""
    number = "".join(re.findall(r"\.(\d+)\.", name)[:1])
    for key in (name, re.sub(r"\.\d+\.", ".*.", name)):
        module, _, kind = key.rpartition(".")
        for pattern, suffix in ((key, ""), (module, f".{kind}")):  # first the parameter itself, then its module
            if pattern in table:
                entry = table[pattern]
                names, function = ((entry,), lambda tensor: tensor) if isinstance(entry, str) else (entry[:-1], entry[-1])
                return tuple(theirs.replace("*", number) + suffix for theirs in names), function
    return (name,), lambda tensor: tensor  # the same name in both


def check_tensor(tensor: object, dtype: torch.dtype) -> None:
    """Refuse what no model has. It would be read as other numbers, or need memory without limit."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        kind = f"{tensor.layout} on {tensor.device}" if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ValueError(f"expected an ordinary tensor, found {kind}")
    if tensor.dtype not in (FLOATS if dtype.is_floating_point else [dtype]):
        raise ValueError(f"weights of type {tensor.dtype} are not supported; expected float32, float16, bfloat16 or float64")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(f"the file has fewer values than the shape {tuple(tensor.shape)}")


def fill(
    module: nn.Module, tensors: Tensors, table: Table, where: str, *, dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> None:  # fmt: skip
    """Replace the parameters (and buffers) on the meta device by tensors of a checkpoint. Others keep their values.

    Args:
        module: made on the meta device, so that its weights are in memory only once.
        dtype, device: of the new parameters; dtype None: as stored.
    Raises:
        ValueError: names are missing or left over, or a shape is wrong. The module is unchanged then. (OpenFlamingo's own
        loader uses `strict=False`, which hides such mistakes.)
    """
    own = module.state_dict(keep_vars=True)
    # A tied output layer is one parameter with two names. It may be stored under either of them, or under both. So both
    # dictionaries have the id of a parameter as the key: how it is made, and which names it lacks in the checkpoint.
    plan, lacking, known = {}, {}, set()
    for name, parameter in own.items():
        if parameter.is_meta:
            theirs, function = source(name, table)
            known.update(theirs)
            if absent := set(theirs) - tensors.keys():
                lacking.setdefault(id(parameter), absent)
            else:
                plan.setdefault(id(parameter), (parameter, theirs, function))
    missing = {name for key, names in lacking.items() if key not in plan for name in names}
    extra = {name for name in tensors.keys() - known if not IGNORED.fullmatch(name)}
    problems = [(kind, sorted(names)) for kind, names in (("missing", missing), ("left over", extra)) if names]
    if problems:
        text = "; ".join(f"{kind}: {', '.join(names[:5])}{' ...' * (len(names) > 5)}" for kind, names in problems)
        raise ValueError(f"{where} does not fit this model. {text}")
    new, first = {}, None
    for key, (parameter, theirs, function) in plan.items():
        label = f"{where}: {' + '.join(theirs)}"
        try:
            parts = [tensors[name] for name in theirs]
            parts = [part() if callable(part) else part for part in parts]  # reads it from the file
            for part in parts:
                check_tensor(part, parameter.dtype)
            tensor = function(*parts)
        except Exception as error:  # of the library that reads the file, or of tensors with wrong shapes
            raise ValueError(f"{label}: {error!s:.300}") from None
        if tensor.shape != parameter.shape:
            shapes = f"{tuple(tensor.shape)} instead of {tuple(parameter.shape)}"
            raise ValueError(f"{where} does not fit this model. wrong shape: {' + '.join(theirs)} {shapes}")
        # A copy: the parameter must not share memory with the file, nor keep a whole fused matrix in memory.
        is_float = parameter.is_floating_point()
        tensor = tensor.to(device, dtype if is_float else None, copy=True, memory_format=torch.contiguous_format)
        if is_float and not all(bound.isfinite() for bound in tensor.aminmax()):  # much faster than isfinite of all values
            raise ValueError(f"{label}: a value is NaN or infinite in {tensor.dtype}")
        first = first or (label, tensor.dtype)
        if is_float and tensor.dtype != first[1]:
            raise ValueError(f"{label} is {tensor.dtype}, but {first[0]} is {first[1]}; pass dtype= to convert all of them")
        new[key] = nn.Parameter(tensor, requires_grad=False) if isinstance(parameter, nn.Parameter) else tensor
    state = {name: new[id(parameter)] for name, parameter in own.items() if id(parameter) in new}
    module.load_state_dict(state, strict=False, assign=True)  # `requires_grad` stays as it was
