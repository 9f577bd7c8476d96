"""All sizes and choices of a model, as frozen dataclasses. `preset(name)` returns a named configuration.

A config is plain data: it can be compared, printed, saved as JSON and read back. Skim this file first and come back later: each
field is explained again where it is used.

    >>> config = preset("tiny")
    >>> config.lm.d, config.resampler.n_latents, config.xattn_every
    (96, 8, 1)
    >>> FlamingoConfig.from_dict(config.to_dict()) == config
    True

OpenFlamingo and IDEFICS are public copies of Flamingo, with weights. Comments say where they differ from the paper.
The presets of published models (the sizes in table 1 of the paper, OpenFlamingo) are in `pretrained/presets.py`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches

ACTIVATION_NAMES = ("gelu", "gelu_tanh", "quick_gelu", "relu", "sq_relu", "silu")


def require_choice(owner: str, name: str, value: object, choices: tuple) -> None:
    """Raise a ValueError that lists the choices if `value` is not one of them."""
    if value not in choices:
        raise ValueError(f"{owner}.{name} is {value!r}; choose one of {', '.join(map(repr, choices))}")


def require_divisor(owner: str, small: str, a: int, big: str, b: int) -> None:
    """Raise a ValueError unless `a` is positive and divides `b`."""
    if a < 1 or b % a:
        raise ValueError(f"{owner}: {small}={a} does not divide {big}={b}")


@dataclass(frozen=True)
class VisionConfig:
    """A Vision Transformer (ViT). The defaults are those of CLIP ViT-L/14."""

    image_size: int = 224  # pixels; images are square
    patch_size: int = 14
    d: int = 1024  # D_v, the width of the features
    n_layers: int = 24
    n_heads: int = 16
    d_ff: int | None = None  # width of the feed-forward blocks; None: 4 d
    activation: str = "gelu"  # OpenAI's CLIP weights need "quick_gelu"
    stem: str = "patch"  # "patch": one large convolution; "conv": a few small ones, better for small images
    class_token: bool = True
    keep_class_token: bool = True  # in the output: IDEFICS keeps it, OpenFlamingo uses the patches alone
    pre_norm: bool = True  # CLIP has a LayerNorm between the embeddings and the first block
    post_norm: bool = False  # LayerNorm on the output; OpenFlamingo and IDEFICS use the features before it
    norm_eps: float = 1e-5

    def __post_init__(self):
        require_divisor("VisionConfig", "patch_size", self.patch_size, "image_size", self.image_size)
        require_divisor("VisionConfig", "n_heads", self.n_heads, "d", self.d)
        require_choice("VisionConfig", "activation", self.activation, ACTIVATION_NAMES)
        require_choice("VisionConfig", "stem", self.stem, ("patch", "conv"))

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
    norm: str = "layernorm"
    norm_bias: bool = True
    norm_eps: float = 1e-5
    position: str = "rotary"
    position_offset: int = 0  # OPT: the first two rows of its position table are unused
    rotary_pct: float = 1.0  # share of each head's channels that are rotated
    rotary_theta: float = 10_000.0
    alibi_max: float = 8.0
    parallel_residual: bool = False  # GPT-NeoX: x + attention(norm(x)) + mlp(norm(x))
    attention_bias: bool = False  # bias of the q, k, v projections
    output_bias: bool = False  # bias of the attention's output projection
    mlp_bias: bool = False
    qk_norm: str | None = None  # norm of queries and keys: "full" over all heads (MosaicGPT), "head" per head
    activation: str = "gelu"
    gated_mlp: bool = False  # act(gate(x)) * up(x); with silu this is SwiGLU
    tied_head: bool = True  # the output layer shares its matrix with the token embedding
    head_bias: bool = False
    conv_width: int = 0  # width of a causal convolution before each attention (toy LM only); 0: none
    dropout: float = 0.0

    def __post_init__(self):
        # each head gets d / n_heads channels, and each key head serves n_heads / n_kv_heads query heads
        require_divisor("LMConfig", "n_heads", self.n_heads, "d", self.d)
        require_divisor("LMConfig", "n_kv_heads", self.kv_heads, "n_heads", self.n_heads)
        require_choice("LMConfig", "norm", self.norm, ("layernorm", "rmsnorm"))
        require_choice("LMConfig", "position", self.position, ("learned", "rotary", "alibi", "none"))
        require_choice("LMConfig", "qk_norm", self.qk_norm, (None, "full", "head"))
        require_choice("LMConfig", "activation", self.activation, ACTIVATION_NAMES)
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
    activation: str = "sq_relu"
    qk_norm: bool = False  # LayerNorm on each head's queries and keys (IDEFICS)

    def __post_init__(self):
        require_choice("ResamplerConfig", "activation", self.activation, ACTIVATION_NAMES)


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
    xattn_activation: str = "sq_relu"
    xattn_gated_mlp: bool = False  # SwiGLU (IDEFICS)
    xattn_norm: str = "layernorm"
    xattn_norm_eps: float = 1e-5
    xattn_qk_norm: bool = False  # norm of each head's queries and keys (IDEFICS)
    xattn_vector_gate: bool = False  # each of a layer's two gates has one value per channel (some IDEFICS models)
    n_added_tokens: int = 1  # ids V, V+1, ... that the LM does not have; their embeddings are trained
    image_token: int = 0  # which of the added tokens is <image>
    # Can the model generate added tokens? None: no. "tied": with their embeddings as output rows. "own": with separate rows.
    added_head: str | None = None

    def __post_init__(self):
        require_choice("FlamingoConfig", "xattn_activation", self.xattn_activation, ACTIVATION_NAMES)
        require_choice("FlamingoConfig", "xattn_norm", self.xattn_norm, ("layernorm", "rmsnorm"))
        require_choice("FlamingoConfig", "added_head", self.added_head, (None, "tied", "own"))
        n_layers = self.lm.n_layers
        # checked here, where the mistake is made, and not at the first forward pass
        if not 0 <= self.image_token < self.n_added_tokens:
            raise ValueError(f"FlamingoConfig.image_token is {self.image_token}; there are {self.n_added_tokens} added tokens")
        if not 0 <= self.xattn_first < n_layers or not 1 <= self.xattn_every <= n_layers:
            raise ValueError(
                f"FlamingoConfig: xattn_first={self.xattn_first}, xattn_every={self.xattn_every}, but the LM has "
                f"{n_layers} layers: choose 0 <= xattn_first < {n_layers} and 1 <= xattn_every <= {n_layers}"
            )

    @property
    def xattn_layers(self) -> range:
        """The indices of the LM blocks that have a gated cross-attention layer before them."""
        return range(self.xattn_first, self.lm.n_layers, self.xattn_every)

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict) -> FlamingoConfig:
        """The inverse of `to_dict`.

        Raises:
            ValueError: a field is unknown, missing or invalid; the message names it.
        """
        parts = {"vision": VisionConfig, "resampler": ResamplerConfig, "lm": LMConfig}

        def build(kind: type, values: dict):
            known = [f.name for f in fields(kind)]
            for name in values:
                if name not in known:
                    # If a field name is misspelled, suggest the nearest one.
                    near = get_close_matches(name, known, 1)
                    hint = f" (did you mean {near[0]!r}?)" if near else ""
                    raise ValueError(f"invalid {kind.__name__}: unknown field {name!r}{hint}")
            try:
                return kind(**values)
            except TypeError as error:  # a missing field, or a value of a wrong type
                raise ValueError(f"invalid {kind.__name__}: {error}") from None

        return build(cls, {name: build(parts[name], value) if name in parts else value for name, value in content.items()})


def _toy(d: int, vision_layers: int, lm_layers: int, n_latents: int) -> FlamingoConfig:
    """The toy models: images of 48 x 48 pixels, a grid of 4 x 4 patches. Heads have 32 channels, those of the LM 48."""
    n_heads = d // 32
    return FlamingoConfig(
        # no class token: every feature is a patch of the image
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
    """The config called `name`, with the vocabulary size of a tokenizer if given.

    Raises:
        ValueError: there is no such preset; the message lists the existing ones.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
    config = PRESETS[name]
    # configs are frozen, so `replace` makes a changed copy
    return config if vocab_size is None else replace(config, lm=replace(config.lm, vocab_size=vocab_size))
