"""The ablations of the paper's table 3: Flamingo with one thing changed. Changes of the model are subclasses of core modules.

    GATED XATTN-DENSE   [cross-attention, feed-forward], [self-attention, MLP], ...      the new layers have gates
    vanilla             self-attention, cross-attention, MLP, ...                        Vaswani et al. 2017
    grafting            n frozen blocks without images, then n new ones with             Luo et al. 2022 (VC-GPT)

Example: the toy LM has 3 blocks. "vanilla" splits them into 6 halves and has cross-attention before halves 1, 3 and 5, counted
from 0. "grafting" has 6 blocks and cross-attention before blocks 3, 4 and 5. "every 4th layer" is the first alone.
"""

import copy
import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import Flamingo, FlamingoConfig, PerceiverResampler, ResamplerConfig
from ..attention import attention, merge_heads, split_heads
from ..gated_xattn import GatedCrossAttentionDense, MaskedCrossAttention
from ..layers import FeedForward
from ..lm import LM, Block, KVCache


class UngatedLayer(GatedCrossAttentionDense):
    """No tanh gates: at initialisation the output is not that of the LM."""

    def __init__(self, config: FlamingoConfig):
        super().__init__(config)
        del self.alpha_xattn, self.alpha_dense
        for name in ("alpha_xattn", "alpha_dense"):
            self.register_buffer(name, torch.full((1,), math.inf))  # tanh(inf) = 1


class Zero(nn.Module):
    """In the place of a feed-forward block that is left out."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class VanillaLayer(UngatedLayer):
    """Cross-attention alone: the feed-forward block is that of the LM."""

    def __init__(self, config: FlamingoConfig):
        super().__init__(config)
        self.ff_norm, self.ff = nn.Identity(), Zero()


class AllImagesAttention(MaskedCrossAttention):
    """A token attends to image phi and to all images before it."""

    def forward(self, y: Tensor, media_kv: tuple[Tensor, Tensor], phi: Tensor, n_latents: int) -> Tensor:
        k, v = media_kv
        q = self.q_norm(split_heads(self.to_q(self.norm(y)), self.n_heads))  # (B, h, L, d_head)
        number = torch.arange(k.shape[2], device=y.device) // n_latents + 1  # (N*R,) the image of each visual token
        mask = (number <= phi[..., None])[:, None]  # (B, 1, L, N*R)
        return self.to_out(merge_heads(attention(q, k, v, mask)))


class AllImagesFlamingo(Flamingo):
    def __init__(self, config: FlamingoConfig, vision: nn.Module, lm: LM):
        super().__init__(config, vision, lm)
        for layer in self.xattn_layers.values():
            layer.xattn = AllImagesAttention(config)

    def last_image(self, media_kv, phi: Tensor):
        return media_kv, phi  # the cache keeps every image, because later text attends to all of them


class MLPHalf(nn.Module):
    """x + mlp(norm(x)) of an LM block. It has no keys and values, so its cache is empty."""

    def __init__(self, block: Block):
        super().__init__()
        self.mlp_norm, self.mlp, self.dropout = block.mlp_norm, block.mlp, block.dropout

    def forward(self, x: Tensor, info, cache=None):
        empty = x.new_zeros(len(x), 1, 0, 1)
        return x + self.dropout(self.mlp(self.mlp_norm(x))), (KVCache(empty, empty), None)


def split_blocks(lm: LM) -> LM:
    """Split each block in place, into self-attention and MLP. The LM computes the same as before."""
    if lm.config.parallel_residual:
        raise ValueError("vanilla cross-attention comes between self-attention and MLP, but in this LM both are parallel")
    halves = []
    for block in lm.blocks:
        halves += [block, MLPHalf(block)]
        block.mlp_norm, block.mlp = nn.Identity(), Zero()
    lm.blocks, lm.config = nn.ModuleList(halves), replace(lm.config, n_layers=len(halves))
    return lm


def double_blocks(lm: LM) -> LM:
    """Append as many new blocks as there are, in place. They process the output of the frozen ones."""
    config = replace(lm.config, n_layers=2 * lm.config.n_layers)
    lm.blocks.extend(LM(config).blocks[lm.config.n_layers :])
    lm.config = config
    return lm


class TransformerLayers(nn.ModuleList):
    """Features and latents are one sequence, in which everything attends to everything."""

    def forward(self, latents: Tensor, features: Tensor, mask: Tensor | None) -> Tensor:
        x = torch.cat([features, latents], dim=1)  # (M, T*S + R, D)
        for layer in self:
            x = layer(x, features[:, :0], mask)  # all of x are latents; there are no other features
        return x[:, -latents.shape[1] :]


class TransformerResampler(PerceiverResampler):
    def __init__(self, config: ResamplerConfig):
        super().__init__(config)
        self.layers = nn.ModuleList([TransformerLayers(self.layers)])


class MLPLayers(nn.ModuleList):
    """Each feature is processed alone. Visual token r is the mean of part r of the features, which are cut into R parts."""

    def forward(self, latents: Tensor, features: Tensor, mask: Tensor | None) -> Tensor:
        for layer in self:
            features = features + layer(features)
        M, n, _ = features.shape
        n_real = [n] * M if mask is None else mask[:, 0, 0, :n].sum(1).clamp_min(1).tolist()  # padded frames come last
        return torch.stack([F.adaptive_avg_pool1d(x[:end].T, latents.shape[1]).T for x, end in zip(features, n_real)])


class MLPResampler(PerceiverResampler):
    def __init__(self, config: ResamplerConfig):
        super().__init__(config)
        del self.latents
        self.register_buffer("latents", torch.zeros(config.n_latents, config.d))  # only their number is used
        # As many parameters as a Perceiver layer, which has 4 d * inner in its attention and 2 d * hidden in its feed-forward.
        hidden = 2 * config.n_heads * config.d_head + config.ff_mult * config.d
        ffs = [FeedForward(config.d, hidden, config.activation) for _ in range(config.n_layers)]
        self.layers = nn.ModuleList([MLPLayers(nn.Sequential(nn.LayerNorm(config.d), ff) for ff in ffs)])


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    changed: str
    to: str
    paper: float | None = None  # the overall score of Flamingo-3B in table 3, approximately
    model: type[Flamingo] = Flamingo
    layer: type[GatedCrossAttentionDense] = GatedCrossAttentionDense
    resampler: type[PerceiverResampler] = PerceiverResampler
    time_embeddings: bool = True
    place: str = "every"  # where the cross-attention is: see `build`
    lm: str = "frozen"  # or trained, from "pretrained" or "random" weights
    without: str | None = None  # a dataset that is left out
    accumulate: bool = True  # False: each update uses one dataset, in turn (round-robin)
    p_next: float | None = None  # share of documents whose text attends to the next image; None: the recipe's
    shots: tuple[str, ...] = ("4",)


BASELINE = "baseline"
VARIANTS = {
    BASELINE: Variant("-", "the whole Flamingo", 70.7, shots=("4", "32")),
    "no-videos": Variant("training data", "without videos", 67.3, without="videos"),
    "no-pairs": Variant("training data", "without pairs", 60.9, without="pairs"),
    "no-documents": Variant("training data", "without documents", 53.4, without="documents"),
    "round-robin": Variant("optimisation", "round-robin", 62.9, accumulate=False),
    "no-gate": Variant("tanh gating", "none", 66.5, layer=UngatedLayer),
    "vanilla": Variant("cross-attention", "vanilla", 66.9, layer=VanillaLayer, place="vanilla"),
    "grafting": Variant("cross-attention", "grafting", 63.1, layer=UngatedLayer, place="grafting"),
    "middle": Variant("frequency", "one in the middle", 59.8, place="middle"),
    "every-4th": Variant("frequency", "every 4th layer", 68.8, place="every 4th"),
    "every-2nd": Variant("frequency", "every 2nd layer", 68.2, place="every 2nd"),
    "mlp": Variant("resampler", "MLP", 66.6, resampler=MLPResampler),
    "transformer": Variant("resampler", "Transformer", 66.7, resampler=TransformerResampler),
    "lm-random": Variant("freezing the LM", "not frozen, random", 57.8, lm="random"),
    "lm-pretrained": Variant("freezing the LM", "not frozen, pretrained", 62.7, lm="pretrained"),
    "all-images": Variant("attention", "to all earlier images", model=AllImagesFlamingo, shots=("4", "32")),
    "p-next-0": Variant("p_next", "0: to the last image", p_next=0.0),
    "p-next-half": Variant("p_next", "1/2: as often to the next", p_next=0.5),
    "no-time": Variant("time embeddings", "none", time_embeddings=False),
}


def build(variant: Variant, config: FlamingoConfig, vision: nn.Module, lm: LM) -> Flamingo:
    """A Flamingo with the variant's change, with `vision` and a copy of `lm`. Everything else is new.

    Raises ValueError: this LM cannot be changed in this way.
    """
    device, n = next(lm.parameters()).device, lm.config.n_layers
    lm = LM(lm.config) if variant.lm == "random" else copy.deepcopy(lm).cpu()
    first, every = {
        "every": (0, 1), "every 2nd": (0, 2), "every 4th": (0, 4), "middle": (n // 2, n), "vanilla": (1, 2), "grafting": (n, 1),
    }[variant.place]  # fmt: skip
    if variant.place in ("vanilla", "grafting"):
        lm = split_blocks(lm) if variant.place == "vanilla" else double_blocks(lm)
    resampler = config.resampler if variant.time_embeddings else replace(config.resampler, n_time_embeddings=0)
    config = replace(config, lm=lm.config, resampler=resampler, xattn_first=first, xattn_every=min(every, lm.config.n_layers))
    flamingo = variant.model(config, vision, lm)
    if variant.resampler is not PerceiverResampler:
        flamingo.resampler = variant.resampler(resampler)
    if variant.layer is not GatedCrossAttentionDense:
        flamingo.xattn_layers = nn.ModuleDict({str(i): variant.layer(config) for i in config.xattn_layers})
    lm.blocks[n:].requires_grad_(variant.place == "grafting")
    if variant.lm != "frozen":
        lm.requires_grad_(True)
    return flamingo.to(device)
