"""All sizes and choices of a model, as frozen dataclasses. `preset(name)` returns a named configuration.

A config is plain data: it can be compared, printed, saved as JSON and read back. Each field is explained where it is used.

    >>> config = preset("tiny")
    >>> config.lm.d, config.resampler.n_latents, config.xattn_every
    (96, 8, 1)
    >>> FlamingoConfig.from_dict(config.to_dict()) == config
    True

OpenFlamingo and IDEFICS are public copies of Flamingo, with weights. Comments say where they differ from the paper.
The presets of published models (the sizes in table 1 of the paper, OpenFlamingo) are in `pretrained/presets.py`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Literal, get_args, get_origin, get_type_hints

# The smallest and the largest number that a field may have, by its name without "xattn_". The largest are several times those
# of any published model: a mistake such as d = 10**9 is then an error, and does not fill the memory.
RANGES = {
    "other numbers": (1, 262_144), "vocab_size": (1, 2_000_000), "max_length": (1, 20_000_000), "image_size": (1, 8192),
    "n_layers": (1, 1000), "VisionConfig.n_layers": (0, 1000), "norm_eps": (1e-12, 0.1), "dropout": (0, 1),
    "rotary_pct": (0, 1), "rotary_theta": (1, 1e12), "size": (1, 8192), "position_offset": (0, 1000),
    "conv_width": (0, 1000), **dict.fromkeys(("n_time_embeddings", "n_kv_heads", "every", "first", "image_token"), (0, 65_536)),
}  # fmt: skip
# each head gets d / n_heads channels, and each key head serves n_heads / n_kv_heads query heads
DIVISORS = {"VisionConfig": {"patch_size": "image_size", "n_heads": "d"}, "LMConfig": {"n_heads": "d", "n_kv_heads": "n_heads"}}
Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "sq_relu", "silu"]


def check_fields(config: object) -> None:
    """Raise a TypeError or ValueError unless each field has the type of its annotation, and a value that it may have."""
    owner, kinds = type(config).__name__, get_type_hints(type(config))
    for field in fields(config):
        value, kind, rule = getattr(config, field.name), kinds[field.name], field.name.removeprefix("xattn_")
        problem = f"{owner}.{field.name} is {value!r:.80}"
        if get_origin(kind) is Literal:
            if value not in get_args(kind):
                raise ValueError(f"{problem}; choose one of {', '.join(map(repr, get_args(kind)))}")
        # In Python True is also an int, but not a size. An int is allowed where a float is.
        elif not isinstance(value, float | int if kind is float else kind) or isinstance(value, bool) != (kind is bool):
            raise TypeError(f"{problem}; it must be of type {getattr(field.type, '__name__', field.type)}")
        elif isinstance(value, float | int) and kind is not bool:
            low, high = RANGES.get(f"{owner}.{rule}") or RANGES.get(rule) or RANGES["other numbers"]
            if not low <= value <= high:  # also true for NaN
                raise ValueError(f"{problem}; it must be from {low} to {high}")
    for small, big in DIVISORS.get(owner, {}).items():
        a, b = getattr(config, small), getattr(config, big)
        if a is not None and (a < 1 or b % a):
            raise ValueError(f"{owner}: {small}={a} does not divide {big}={b}")


def build(kind: type, values: object) -> object:
    """The inverse of `asdict`. Raises ValueError if a field is unknown, missing or invalid; the message names it."""
    if not isinstance(values, dict):
        raise ValueError(f"invalid {kind.__name__}: expected its fields, found {values!r:.80}")
    kinds, made = get_type_hints(kind), {}
    for name, value in values.items():
        if name not in kinds:
            # If a field name is misspelled, suggest the nearest one.
            hint = "".join(f" (did you mean {near!r}?)" for near in get_close_matches(str(name), kinds, 1))
            raise ValueError(f"invalid {kind.__name__}: unknown field {name!r:.80}{hint}")
        # some fields are configs themselves
        made[name] = build(kinds[name], value) if is_dataclass(kinds[name]) else value
    try:
        return kind(**made)
    except TypeError as error:  # a missing field, or a value of a wrong type
        raise ValueError(f"invalid {kind.__name__}: {error}") from None


@dataclass(frozen=True)
class VisionConfig:
    """A Vision Transformer (ViT). The defaults are those of CLIP ViT-L/14."""

    image_size: int = 224  # pixels; images are square
    patch_size: int = 14
    d: int = 1024  # D_v, the width of the features
    n_layers: int = 24
    n_heads: int = 16
    d_ff: int | None = None  # width of the feed-forward blocks; None: 4 d
    activation: Activation = "gelu"  # OpenAI's CLIP weights need "quick_gelu"
    stem: Literal["patch", "conv"] = "patch"  # one large convolution, or a few small ones, better for small images
    class_token: bool = True
    keep_class_token: bool = True  # in the output: IDEFICS keeps it, OpenFlamingo uses the patches alone
    pre_norm: bool = True  # CLIP has a LayerNorm between the embeddings and the first block
    post_norm: bool = False  # LayerNorm on the output; OpenFlamingo and IDEFICS use the features before it
    norm_eps: float = 1e-5

    def __post_init__(self):
        check_fields(self)
        if self.stem == "conv" and (self.patch_size < 2 or self.d < 3):  # strides are its factors, the first width is d // 3
            raise ValueError(f"VisionConfig: the conv stem needs patch_size {self.patch_size} >= 2 and d {self.d} >= 3")

    @property
    def n_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class LMConfig:
    """A decoder-only language model. Each published family is one setting of these fields:

    |            | norm      | position        | parallel | bias  | qk_norm | activation  | tied head |
    | GPT-2      | layernorm | learned         | no       | yes   | -       | gelu_tanh   | yes |
    | OPT        | layernorm | learned, +2     | no       | yes   | -       | relu        | yes |
    | GPT-NeoX   | layernorm | rotary, pct .25 | yes      | yes   | -       | gelu        | no  |
    | MPT        | layernorm | alibi           | no       | no    | -       | gelu        | yes |
    | Llama      | rmsnorm   | rotary          | no       | no    | -       | silu, gated | no  |
    | toy LM     | layernorm | rotary          | no       | no    | -       | gelu        | yes |
    """

    vocab_size: int  # V
    d: int  # D, the width of the residual stream
    n_layers: int
    n_heads: int
    n_kv_heads: int | None = None  # heads of keys and values (grouped-query attention); None: n_heads
    d_ff: int | None = None  # None: 4 d
    max_length: int | None = 1024  # tokens; None: no limit (possible with relative positions: rotary, ALiBi)
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_bias: bool = True
    norm_eps: float = 1e-5
    position: Literal["learned", "rotary", "alibi", "none"] = "rotary"
    position_offset: int = 0  # OPT: the first two rows of its position table are unused
    rotary_pct: float = 1.0  # share of each head's channels that are rotated
    rotary_theta: float = 10_000.0
    alibi_max: float = 8.0
    parallel_residual: bool = False  # GPT-NeoX: x + attention(norm(x)) + mlp(norm(x))
    attention_bias: bool = False  # bias of the q, k, v projections
    output_bias: bool = False  # bias of the attention's output projection
    mlp_bias: bool = False
    qk_norm: Literal[None, "full", "head"] = None  # of queries and keys: "full" over all heads (MosaicGPT), "head" per head
    activation: Activation = "gelu"
    gated_mlp: bool = False  # act(gate(x)) * up(x); with silu this is SwiGLU
    tied_head: bool = True  # the output layer shares its matrix with the token embedding
    head_bias: bool = False
    conv_width: int = 0  # width of a causal convolution before each attention (toy LM only); 0: none
    dropout: float = 0.0

    def __post_init__(self):
        check_fields(self)
        if self.max_length is None and self.position == "learned":
            raise ValueError("LMConfig.max_length is None, but learned positions need a limit: set max_length")
        if self.position == "rotary" and int(self.d_head * self.rotary_pct) % 2:  # channels are rotated in pairs
            raise ValueError(f"LMConfig: rotary_pct {self.rotary_pct} of d_head {self.d_head} must give an even number")

    @property
    def kv_heads(self) -> int:
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def d_head(self) -> int:
        return self.d // self.n_heads


@dataclass(frozen=True)
class ResamplerConfig:
    """The Perceiver Resampler (paper section 2.1). Its width `d` is that of the vision features."""

    d: int = 1024
    n_latents: int = 64  # R, the number of visual tokens per image or video
    n_layers: int = 6
    n_heads: int = 8
    d_head: int = 64  # n_heads * d_head may differ from d
    n_time_embeddings: int = 8  # frames per video in training; 0: no time embeddings (OpenFlamingo, IDEFICS)
    ff_mult: int = 4  # width of the feed-forward block / d
    activation: Activation = "sq_relu"
    qk_norm: bool = False  # LayerNorm on each head's queries and keys (IDEFICS)

    def __post_init__(self):
        check_fields(self)


@dataclass(frozen=True)
class FlamingoConfig:
    """The whole model: vision encoder, resampler, language model, and the gated layers that connect them."""

    vision: VisionConfig
    resampler: ResamplerConfig
    lm: LMConfig
    xattn_every: int = 1  # a gated layer (gated_xattn.py) before every n-th LM block
    xattn_first: int = 0  # counted from this block on; in OpenFlamingo this is xattn_every - 1
    xattn_n_heads: int = 8
    xattn_d_head: int = 64
    xattn_d_ff: int | None = None  # None: 4 d of the LM
    xattn_activation: Activation = "sq_relu"
    xattn_gated_mlp: bool = False  # SwiGLU (IDEFICS)
    xattn_norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    xattn_norm_eps: float = 1e-5
    xattn_qk_norm: bool = False  # norm of each head's queries and keys (IDEFICS)
    xattn_vector_gate: bool = False  # each of a layer's two gates has one value per channel (some IDEFICS models)
    n_added_tokens: int = 1  # ids V, V+1, ... that the LM does not have; their embeddings are trained
    image_token: int = 0  # which of the added tokens is <image>
    # Can the model generate added tokens? None: no. "tied": with their embeddings as output rows. "own": with separate rows.
    added_head: Literal[None, "tied", "own"] = None

    def __post_init__(self):
        check_fields(self)
        if not 0 <= self.image_token < self.n_added_tokens:
            raise ValueError(f"FlamingoConfig.image_token is {self.image_token}; there are {self.n_added_tokens} added tokens")
        first, every, n = self.xattn_first, self.xattn_every, self.lm.n_layers
        if not 0 <= first < n or not 1 <= every <= n:
            limits = f"choose 0 <= xattn_first < {n} and 1 <= xattn_every <= {n}"
            raise ValueError(f"FlamingoConfig: xattn_first={first}, xattn_every={every}, but the LM has {n} layers: {limits}")

    @property
    def xattn_layers(self) -> range:
        """The indices of the LM blocks that have a gated cross-attention layer before them."""
        return range(self.xattn_first, self.lm.n_layers, self.xattn_every)

    to_dict = asdict
    from_dict = classmethod(build)  # the inverse of `to_dict`


def _toy(d: int, vision_layers: int, lm_layers: int, n_latents: int) -> FlamingoConfig:
    """The toy models: images of 48 x 48 pixels, a grid of 4 x 4 patches. Heads have 32 channels, those of the LM 48."""
    n_heads = d // 32
    return FlamingoConfig(
        vision=VisionConfig(
            image_size=48, patch_size=12, d=d, n_layers=vision_layers, n_heads=n_heads, d_ff=2 * d,
            stem="conv", class_token=False, pre_norm=False, post_norm=True,
        ),
        # d is also the width of the vision features; videos have 4 frames in training
        resampler=ResamplerConfig(d, n_latents, n_layers=2, n_heads=n_heads, d_head=32, n_time_embeddings=4, ff_mult=2),
        # The convolution makes in-context lookup learnable within minutes (layers.CausalConv). Few large heads that mostly do
        # not rotate: to look up the name of an image, one head must compare it with another, at any distance.
        lm=LMConfig(vocab_size=512, d=d, n_layers=lm_layers, n_heads=d // 48, rotary_pct=0.25, conv_width=8),
        xattn_n_heads=n_heads, xattn_d_head=32, xattn_d_ff=2 * d,
    )  # fmt: skip


PRESETS = {
    "tiny": _toy(d=96, vision_layers=2, lm_layers=3, n_latents=8),
    "small": _toy(d=192, vision_layers=4, lm_layers=6, n_latents=16),
}


def preset(name: str, vocab_size: int | None = None) -> FlamingoConfig:
    """The config called `name`, with the vocabulary size of a tokenizer if given. Raises ValueError if there is none."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
    config = PRESETS[name]
    return config if vocab_size is None else replace(config, lm=replace(config.lm, vocab_size=vocab_size))
