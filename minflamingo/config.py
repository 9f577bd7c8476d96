"""Every size and choice of a model, as frozen dataclasses; `preset(name)` gives the named ones.

A config is data: it can be compared, printed, saved as JSON and read back, and nothing in it runs code.

    >>> config = preset("tiny")
    >>> config.lm.d, config.resampler.n_latents, config.xattn_every
    (96, 8, 1)
    >>> FlamingoConfig.from_dict(config.to_dict()) == config
    True
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace


def one_of(owner: str, name: str, value: object, choices: tuple) -> None:
    """Raise a ValueError that lists the choices if `value` is none of them."""
    if value not in choices:
        raise ValueError(f"{owner}.{name} is {value!r}; choose one of {', '.join(map(repr, choices))}")


def divides(owner: str, small: str, a: int, big: str, b: int) -> None:
    """Raise a ValueError unless `a` is positive and divides `b`."""
    if a < 1 or b % a:
        raise ValueError(f"{owner}: {small}={a} does not divide {big}={b}")


ACTIVATION_NAMES = ("gelu", "gelu_tanh", "quick_gelu", "relu", "sq_relu", "silu")


@dataclass(frozen=True)
class VisionConfig:
    """A ViT. The defaults are CLIP's habits; `stem="conv"` replaces the one big patch convolution by a few small ones."""

    image_size: int = 224
    patch_size: int = 14
    d: int = 1024
    layers: int = 24
    heads: int = 16
    d_ff: int | None = None  # None: 4 d
    activation: str = "gelu"  # OpenAI's CLIP weights: "quick_gelu"
    stem: str = "patch"
    class_token: bool = True
    pre_norm: bool = True  # CLIP's LayerNorm between embeddings and first block
    post_norm: bool = False  # LayerNorm on the features; Flamingo reads the patch tokens before it
    keep_class_token: bool = True  # among the features: IDEFICS keeps it, OpenFlamingo takes the patches alone
    norm_eps: float = 1e-5

    def __post_init__(self):
        divides("VisionConfig", "patch_size", self.patch_size, "image_size", self.image_size)
        divides("VisionConfig", "heads", self.heads, "d", self.d)
        one_of("VisionConfig", "activation", self.activation, ACTIVATION_NAMES)
        one_of("VisionConfig", "stem", self.stem, ("patch", "conv"))

    @property
    def n_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class LMConfig:
    """A decoder-only language model. Each published family is one setting of these fields:

    |            | norm      | position        | parallel | bias  | qk_norm | activation, gated | tied head |
    | GPT-2      | layernorm | learned         | no       | yes   | -       | gelu_tanh         | yes |
    | OPT        | layernorm | learned, +2     | no       | yes   | -       | relu              | yes |
    | GPT-NeoX   | layernorm | rotary, pct .25 | yes      | yes   | -       | gelu              | no  |
    | MPT        | layernorm | alibi           | no       | no    | -       | gelu              | yes |
    | Llama      | rmsnorm   | rotary          | no       | no    | -       | silu, gated       | no  |
    """

    vocab_size: int
    d: int
    layers: int
    heads: int
    kv_heads: int | None = None  # None: as many as heads
    d_ff: int | None = None  # None: 4 d
    max_length: int | None = 1024  # None: no limit, where positions are relative (rotary, ALiBi)
    norm: str = "layernorm"
    norm_bias: bool = True
    norm_eps: float = 1e-5
    position: str = "rotary"
    position_offset: int = 0  # OPT's table starts with two rows that no text uses
    rotary_pct: float = 1.0  # the share of each head's channels that turn
    rotary_theta: float = 10_000.0
    alibi_max: float = 8.0
    parallel_residual: bool = False  # x + attention(norm x) + mlp(norm x), as in GPT-NeoX
    attention_bias: bool = False  # of the q, k, v projections
    output_bias: bool = False  # of the attention's output projection
    mlp_bias: bool = False
    qk_norm: str | None = None  # "full": over all heads at once (MosaicGPT); "head": each head alone
    activation: str = "gelu"
    gated_mlp: bool = False  # act(gate(x)) * up(x), with silu: SwiGLU
    tied_head: bool = True
    head_bias: bool = False
    conv_width: int = 0  # a causal depthwise convolution over this many tokens before each attention; 0: none
    dropout: float = 0.0

    def __post_init__(self):
        divides("LMConfig", "heads", self.heads, "d", self.d)
        divides("LMConfig", "kv_heads", self.n_kv_heads, "heads", self.heads)
        one_of("LMConfig", "norm", self.norm, ("layernorm", "rmsnorm"))
        one_of("LMConfig", "position", self.position, ("learned", "rotary", "alibi", "none"))
        one_of("LMConfig", "qk_norm", self.qk_norm, (None, "full", "head"))
        one_of("LMConfig", "activation", self.activation, ACTIVATION_NAMES)
        if self.max_length is None and self.position == "learned":
            raise ValueError("LMConfig.max_length is None, but learned positions have a last one: say which")

    @property
    def n_kv_heads(self) -> int:
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def d_head(self) -> int:
        return self.d // self.heads


@dataclass(frozen=True)
class ResamplerConfig:
    """The Perceiver Resampler (paper §2.1). Its width is that of the vision features."""

    d: int = 1024
    n_latents: int = 64
    layers: int = 6
    heads: int = 8
    d_head: int = 64
    n_time_embeddings: int = 8  # frames per video in training; 0: frames are not told apart (OpenFlamingo, IDEFICS)
    ff_mult: int = 4
    activation: str = "sq_relu"
    qk_norm: bool = False  # LayerNorm on each head's queries and keys (IDEFICS)
    kind: str = "perceiver"  # "transformer" or "mlp", of as many parameters: the ablations of paper table 3

    def __post_init__(self):
        one_of("ResamplerConfig", "kind", self.kind, ("perceiver", "transformer", "mlp"))


@dataclass(frozen=True)
class FlamingoConfig:
    """The whole: an eye, a resampler, a language model, and where and how they are bridged."""

    vision: VisionConfig
    resampler: ResamplerConfig
    lm: LMConfig
    xattn_every: int = 1  # a GATED XATTN-DENSE before LM layers first, first + every, first + 2·every, …
    xattn_first: int = 0  # OpenFlamingo: every - 1
    xattn_heads: int = 8
    xattn_d_head: int = 64
    xattn_ff_mult: int = 4  # 0: cross-attention alone, without a dense layer behind it
    xattn_d_ff: int | None = None  # None: xattn_ff_mult · d
    xattn_activation: str = "sq_relu"
    xattn_gated_mlp: bool = False  # SwiGLU, with "silu"
    xattn_norm: str = "layernorm"
    xattn_norm_eps: float = 1e-5
    xattn_qk_norm: bool = False  # the same norm on each head's queries and keys
    xattn_gate: str = "scalar"  # "vector": one alpha per channel; "none": always open (the ablation of paper table 3)
    n_new_tokens: int = 1  # ids V, V+1, … that the LM's table does not have
    image_token: int = 0  # which of them is `<image>`
    new_head: str | None = None  # may new tokens be said? None: no. "tied": by their embeddings; "own": rows of their own
    attend: str = "last"  # "all": every image at or before the token (the ablation of paper table 3)

    def __post_init__(self):
        one_of("FlamingoConfig", "attend", self.attend, ("last", "all"))
        one_of("FlamingoConfig", "xattn_activation", self.xattn_activation, ACTIVATION_NAMES)
        one_of("FlamingoConfig", "xattn_norm", self.xattn_norm, ("layernorm", "rmsnorm"))
        one_of("FlamingoConfig", "xattn_gate", self.xattn_gate, ("scalar", "vector", "none"))
        one_of("FlamingoConfig", "new_head", self.new_head, (None, "tied", "own"))
        if not 0 <= self.image_token < self.n_new_tokens:
            raise ValueError(f"FlamingoConfig.image_token is {self.image_token}; there are {self.n_new_tokens} new tokens")
        if not 0 <= self.xattn_first < self.lm.layers:
            raise ValueError(f"FlamingoConfig.xattn_first is {self.xattn_first}; the LM has {self.lm.layers} layers")
        if not 1 <= self.xattn_every <= self.lm.layers:
            raise ValueError(f"FlamingoConfig.xattn_every is {self.xattn_every}; the LM has {self.lm.layers} layers")

    @property
    def xattn_layers(self) -> range:
        """The LM layers that have a GATED XATTN-DENSE in front of them."""
        return range(self.xattn_first, self.lm.layers, self.xattn_every)

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict) -> FlamingoConfig:
        """The way back from `to_dict`.

        Raises:
            ValueError: a field is missing, or is none of this version's.
        """
        parts = {"vision": VisionConfig, "resampler": ResamplerConfig, "lm": LMConfig}
        try:
            return cls(**{k: parts[k](**v) if k in parts else v for k, v in content.items()})
        except TypeError as error:
            raise ValueError(f"this is no FlamingoConfig: {error}") from None


def _toy(d: int, vision_layers: int, lm_layers: int, n_latents: int) -> FlamingoConfig:
    """The toy models: one dial, the width `d`, and how deep. 48 pixels, 16 patches; heads of 32 channels, in the LM of 16."""
    heads = d // 32
    return FlamingoConfig(
        vision=VisionConfig(
            image_size=48, patch_size=12, d=d, layers=vision_layers, heads=heads, d_ff=2 * d,
            stem="conv", class_token=False, pre_norm=False, post_norm=True,
        ),
        resampler=ResamplerConfig(
            d=d, n_latents=n_latents, layers=2, heads=heads, d_head=32, n_time_embeddings=4, ff_mult=2
        ),
        lm=LMConfig(vocab_size=512, d=d, layers=lm_layers, heads=d // 16, conv_width=8),
        xattn_heads=heads, xattn_d_head=32, xattn_ff_mult=2,
    )  # fmt: skip


def _clip_l14(**changes) -> VisionConfig:
    """CLIP ViT-L/14 as OpenFlamingo reads it: patches alone, before the last norm."""
    return replace(VisionConfig(activation="quick_gelu", keep_class_token=False), **changes)


def _paper(lm_layers: int, d: int, heads: int, every: int, xattn_heads: int, xattn_d_head: int) -> FlamingoConfig:
    """The paper's sizes (table 1), around a Chinchilla-like LM.

    Not in the paper: the inner widths of the bridge, chosen so that it has the published number of parameters. The eye is an
    NFNet-F6 there, and a CLIP tower of like width here.
    """
    return FlamingoConfig(
        vision=VisionConfig(d=1536, layers=32, heads=16, keep_class_token=False),
        resampler=ResamplerConfig(d=1536, heads=16, d_head=128),
        lm=LMConfig(32_000, d, lm_layers, heads, max_length=2048, norm="rmsnorm", tied_head=False),
        xattn_every=every, xattn_heads=xattn_heads, xattn_d_head=xattn_d_head,
    )  # fmt: skip


def _openflamingo(lm: LMConfig, every: int) -> FlamingoConfig:
    return FlamingoConfig(
        vision=_clip_l14(), lm=lm, xattn_every=every, xattn_first=every - 1, xattn_activation="gelu",
        resampler=ResamplerConfig(n_time_embeddings=0, activation="gelu"),
        n_new_tokens=3, image_token=1, new_head="tied" if lm.tied_head else None,
    )  # fmt: skip


def _mpt(d: int, layers: int, heads: int, vocab_size: int, qk_norm: str | None = None) -> LMConfig:
    return LMConfig(vocab_size, d, layers, heads, max_length=None, norm_bias=False, position="alibi", qk_norm=qk_norm)


def _idefics(lm: LMConfig, new: int, qk_norm: bool) -> FlamingoConfig:
    return FlamingoConfig(
        vision=VisionConfig(d=1280, layers=32, heads=16),
        resampler=ResamplerConfig(d=1280, heads=16, d_head=96, n_time_embeddings=0, activation="relu", qk_norm=qk_norm),
        lm=lm, xattn_every=4, xattn_heads=lm.heads, xattn_d_head=lm.d_head, xattn_d_ff=lm.d_ff, xattn_activation="silu",
        xattn_gated_mlp=True, xattn_norm="rmsnorm", xattn_norm_eps=lm.norm_eps, xattn_qk_norm=qk_norm,
        n_new_tokens=new, image_token=1, new_head="own",
    )  # fmt: skip


def _llama(d: int, layers: int, heads: int, d_ff: int, kv_heads: int | None = None, norm_eps: float = 1e-6) -> LMConfig:
    return LMConfig(
        32_000, d, layers, heads, kv_heads, d_ff, max_length=None, norm="rmsnorm", norm_eps=norm_eps, activation="silu",
        gated_mlp=True, tied_head=False,
    )  # fmt: skip


_MPT_1B, _MPT_7B = _mpt(2048, 24, 16, 50_277, qk_norm="full"), _mpt(4096, 32, 32, 50_277)
_REDPAJAMA_3B = LMConfig(
    50_277, 2560, 32, 32, d_ff=10_240, max_length=None, attention_bias=True, output_bias=True, mlp_bias=True, tied_head=False
)
_LLAMA_7B, _LLAMA_65B = _llama(4096, 32, 32, 11_008), _llama(8192, 80, 64, 22_016, norm_eps=1e-5)
PRESETS = {
    "tiny": _toy(d=96, vision_layers=2, lm_layers=3, n_latents=8),
    "small": _toy(d=192, vision_layers=4, lm_layers=6, n_latents=16),
    "flamingo-3b": _paper(24, 2048, 16, every=1, xattn_heads=16, xattn_d_head=128),
    "flamingo-9b": _paper(40, 4096, 32, every=4, xattn_heads=16, xattn_d_head=128),
    "flamingo-80b": _paper(80, 8192, 64, every=7, xattn_heads=64, xattn_d_head=256),
    "openflamingo-3b": _openflamingo(_MPT_1B, every=1),
    "openflamingo-3b-instruct": _openflamingo(_MPT_1B, every=1),
    "openflamingo-4b": _openflamingo(_REDPAJAMA_3B, every=2),
    "openflamingo-4b-instruct": _openflamingo(_REDPAJAMA_3B, every=2),
    "openflamingo-9b": _openflamingo(_MPT_7B, every=4),
    "idefics-9b": _idefics(_LLAMA_7B, new=2, qk_norm=True),
    "idefics-9b-instruct": _idefics(_LLAMA_7B, new=3, qk_norm=True),
    "idefics-80b": _idefics(_LLAMA_65B, new=2, qk_norm=True),
    "idefics-80b-instruct": _idefics(_LLAMA_65B, new=3, qk_norm=True),
}


def preset(name: str, vocab_size: int | None = None) -> FlamingoConfig:
    """The config called `name`, for a tokenizer of `vocab_size` if given.

    Raises:
        ValueError: there is no such preset; the message lists those there are.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; there are: {', '.join(PRESETS)}")
    config = PRESETS[name]
    return config if vocab_size is None else replace(config, lm=replace(config.lm, vocab_size=vocab_size))
