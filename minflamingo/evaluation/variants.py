"""The rows of the paper's table 3: Flamingo with one thing changed, each built around the same eye and the same tongue.

    row = ROWS["grafting"]
    flamingo = build(row, config, eye, tongue)       the eye frozen; the tongue too, unless the row says otherwise
    trained_parameters(flamingo)                     what its training moves

What a row changes is a field of the config where Flamingo has one (gates, places of the bridges, resampler, whose images a
token sees). Three rows are built here, out of the model's own parts, with an LM of n layers:

    GATED XATTN-DENSE   bridge, self-attention + mlp, bridge, self-attention + mlp, …          bridge: cross-attention, dense
    vanilla             self-attention, cross-attention, mlp, self-attention, …                as in Vaswani et al. 2017
    grafting            n frozen layers as they are, then n new ones, each with a bridge       Luo et al. 2022 (VC-GPT)

Example: the toy tongue has 3 layers. Vanilla has cross-attention between the two halves of each of them: 6 halves, numbers 1,
3, 5 of which (counted from 0) have it in front. A graft is an LM of 6 layers with bridges before numbers 3, 4, 5.

The paper's frequencies are of 24 layers: "every 4th" is 6 bridges there, and before the first of 3 layers alone here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from ..cache import Kept
from ..config import FlamingoConfig
from ..flamingo import Flamingo
from ..lm import LM, Block

NO_GATE = {"xattn_gate": "none"}


@dataclass(frozen=True)
class Row:
    """One line of the table: what is changed, to what, and the score that Flamingo-3B had with it.

    paper: the overall score of table 3, approximately; None: not in that table.
    config, resampler: fields of FlamingoConfig and of ResamplerConfig that differ.
    place: which LM layers have a bridge before them: "every", "every 2nd", "every 4th", "middle".
    bridge: "gated", "vanilla", "grafting", as above.
    lm: "frozen"; trained from "pretrained" or from "random" weights.
    without: a kind of data that is left out: "videos", "pairs", "pages".
    accumulate: False: each update takes one kind of data, in turn.
    p_next: the share of pages whose text looks at the next image; None: as in the recipe.
    shots: what the examination shows.
    """

    changed: str
    to: str
    paper: float | None = None
    config: Mapping[str, object] = field(default_factory=dict)
    resampler: Mapping[str, object] = field(default_factory=dict)
    place: str = "every"
    bridge: str = "gated"
    lm: str = "frozen"
    without: str | None = None
    accumulate: bool = True
    p_next: float | None = None
    shots: tuple[str, ...] = ("4",)


BASELINE = "baseline"
ROWS = {
    BASELINE: Row("-", "the whole Flamingo", 70.7, shots=("4", "32")),
    "no-videos": Row("training data", "without films", 67.3, without="videos"),
    "no-pairs": Row("training data", "without pairs", 60.9, without="pairs"),
    "no-pages": Row("training data", "without pages", 53.4, without="pages"),
    "round-robin": Row("optimisation", "round-robin", 62.9, accumulate=False),
    "no-gate": Row("tanh gating", "none", 66.5, config=NO_GATE),
    "vanilla": Row("cross-attention", "vanilla", 66.9, bridge="vanilla"),
    "grafting": Row("cross-attention", "grafting", 63.1, bridge="grafting"),
    "middle": Row("frequency", "one in the middle", 59.8, place="middle"),
    "every-4th": Row("frequency", "every 4th layer", 68.8, place="every 4th"),
    "every-2nd": Row("frequency", "every 2nd layer", 68.2, place="every 2nd"),
    "mlp": Row("resampler", "MLP", 66.6, resampler={"kind": "mlp"}),
    "transformer": Row("resampler", "Transformer", 66.7, resampler={"kind": "transformer"}),
    "lm-random": Row("freezing the LM", "not frozen, random", 57.8, lm="random"),
    "lm-pretrained": Row("freezing the LM", "not frozen, pretrained", 62.7, lm="pretrained"),
    "all-images": Row("attention", "to all images before", config={"attend": "all"}, shots=("4", "32")),
    "p-next-0": Row("p_next", "0: text behind its image", p_next=0.0),
    "p-next-half": Row("p_next", "1/2: as often before it", p_next=0.5),
    "no-time": Row("time embeddings", "none", resampler={"n_time_embeddings": 0}),
}


def places(row: Row, layers: int) -> dict[str, int]:
    """Where the bridges of `row` stand among so many LM layers, as fields of FlamingoConfig.

    >>> places(ROWS["middle"], 24), places(ROWS["every-4th"], 3)
    ({'xattn_first': 12, 'xattn_every': 24}, {'xattn_first': 0, 'xattn_every': 3})
    """
    first, every = {"every": (0, 1), "every 2nd": (0, 2), "every 4th": (0, 4), "middle": (layers // 2, layers)}[row.place]
    return {"xattn_first": first, "xattn_every": min(every, layers)}


def build(row: Row, config: FlamingoConfig, vision: nn.Module, lm: LM) -> Flamingo:
    """A Flamingo with what `row` changes, around `vision` and a copy of `lm`; the bridge is fresh (by torch's own dice).

    Args:
        config: of the whole Flamingo: sizes, and the bridge before every layer.
    Raises:
        ValueError: this LM cannot be changed in that way.
    """
    lm = copy.deepcopy(lm)
    if row.lm == "random":
        lm = LM(lm.config).to(next(lm.parameters()).device)
    config = replace(
        config, **places(row, config.lm.layers), resampler=replace(config.resampler, **row.resampler), **row.config
    )
    if row.bridge == "vanilla":
        lm = halved(lm)
        config = replace(config, lm=lm.config, xattn_first=1, xattn_every=2, xattn_ff_mult=0, xattn_d_ff=None, **NO_GATE)
    if row.bridge == "grafting":
        frozen = config.lm.layers
        lm = grafted(lm)
        config = replace(config, lm=lm.config, xattn_first=frozen, **NO_GATE)
    flamingo = Flamingo(config, vision, lm)
    if row.lm != "frozen":
        lm.requires_grad_(True)
    if row.bridge == "grafting":
        lm.blocks[frozen:].requires_grad_(True)
    return flamingo.to(next(lm.parameters()).device)


def trained_parameters(flamingo: Flamingo) -> dict[str, nn.Parameter]:
    """By name. That is the bridge, and what of the LM a row sets free or adds."""
    return {name: p for name, p in flamingo.named_parameters() if p.requires_grad}


def grafted(lm: LM) -> LM:
    """`lm` with as many new layers behind its own: self-attention that reads what the frozen LM has made of the text."""
    config = replace(lm.config, layers=2 * lm.config.layers)
    stacked = LM(config).to(next(lm.parameters()).device)
    new = stacked.blocks[lm.config.layers :]
    lm.config, lm.blocks = config, nn.ModuleList([*lm.blocks, *new])
    return lm


def halved(lm: LM) -> LM:
    """`lm` with each layer cut in two: so `before_block(2i + 1, x)` stands between layer i's self-attention and its mlp.

    It computes what it did. The mlp has nothing to remember, and its place in a cache holds keys of no tokens.
    """
    if lm.config.parallel_residual:
        raise ValueError("vanilla cross-attention stands between self-attention and mlp; in this LM these are side by side")
    lm.blocks = nn.ModuleList(half for block in lm.blocks for half in (FirstHalf(block), SecondHalf(block)))
    lm.config = replace(lm.config, layers=len(lm.blocks))
    return lm


class FirstHalf(nn.Module):
    """x + attention(norm(x)) of a `Block`. Never the last of an LM, so `at` is not its concern."""

    def __init__(self, block: Block):
        super().__init__()
        self.attn_norm, self.conv, self.attn, self.dropout = block.attn_norm, block.conv, block.attn, block.dropout

    def forward(self, x, angles, mask, bias, keep, end, past, tail, at=None):
        y = self.attn_norm(x)
        if self.conv is not None:
            y, tail = self.conv(y if keep is None else y * keep, tail, end)
        attended, kv = self.attn(y, angles, mask, bias, past)
        return x + self.dropout(attended), kv, tail


class SecondHalf(nn.Module):
    """x + mlp(norm(x)) of a `Block`."""

    def __init__(self, block: Block):
        super().__init__()
        self.mlp_norm, self.mlp, self.dropout = block.mlp_norm, block.mlp, block.dropout

    def forward(self, x, angles, mask, bias, keep, end, past, tail, at=None):
        nothing = x.new_zeros(len(x), 1, 0, 1)
        x = x if at is None else x[at]
        kv = (nothing, nothing) if past is None else Kept(nothing, nothing)
        return x + self.dropout(self.mlp(self.mlp_norm(x))), kv, None


def describe(flamingo: Flamingo) -> dict:
    """What was built, for the results file."""
    trained = trained_parameters(flamingo)
    return {
        "bridges_before": [int(i) for i in flamingo.xattn_layers],
        "trained_parameters": sum(p.numel() for p in trained.values()),
        "all_parameters": sum(p.numel() for p in flamingo.parameters()),
    }
