"""Training on real data: the same step as in `train_tiny.py`, on shards and on whatever Flamingo was loaded.

    L = Σ_m lambda_m · mean NLL of dataset m, accumulated into each update of AdamW (paper §2.4)

The eye and the language model stay frozen. Data, weights and optimiser are kept together every few minutes: the same command
goes on at the exact sample. On CUDA the forward pass runs in bf16 around weights in fp32 that are trained; elsewhere all is
fp32, since bf16 is slower there. What is saved has the dtype it came in. Several processes train together (training/ranks.py).
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .complete import LoadedFlamingo
from .data.mixture import Mixture, Part
from .data.records import Documents, Pairs, Videos
from .data.shards import ShardStream
from .saving import save
from .training.optim import accumulate_gradients, learning_rate_factor, parameter_groups, set_learning_rate
from .training.ranks import ALONE, Ranks
from .training.stage import Stage


@dataclass(frozen=True)
class Settings:
    """How long, how much at a time, how fast. The lambdas are the paper's."""

    steps: int = 50_000
    seed: int = 0
    pages_batch: int = 8
    pairs_batch: int = 16
    videos_batch: int = 2
    pages_lambda: float = 1.0
    pairs_lambda: float = 0.2
    videos_lambda: float = 0.03
    lr: float = 1e-4
    warmup: int = 5000
    weight_decay: float = 0.1
    clip: float = 1.0
    recompute: bool = False  # activation checkpointing: less memory, a third more time
    workers: int = 0
    save_every: float = 300.0


class Bridge:
    """What is trained, as a module of its own for `Stage`: the frozen parts need not be written every few minutes."""

    def __init__(self, parameters: dict[str, nn.Parameter]):
        self.parameters = parameters

    def state_dict(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(state[name])


class Places:
    """Where every rank is in its data, as a module for `Stage`: the first rank keeps it for all, each row (W, …) one's own."""

    def __init__(self, mixture: Mixture, ranks: Ranks, device: torch.device):
        self.mixture, self.ranks, self.device = mixture, ranks, device
        self.note()

    def note(self) -> None:
        """All ranks together, after a step: what is saved later is of this moment."""
        self.now = self.ranks.gather(self.mixture.state_dict(), self.device)

    def state_dict(self) -> dict[str, Tensor]:
        return self.now

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.mixture.load_state_dict({name: rows[self.ranks.rank] for name, rows in state.items()})
        self.now = state


def mixture_of(shards: dict[str, str | None], flamingo: LoadedFlamingo, s: Settings, ranks: Ranks) -> Mixture:
    """One part per dataset that is given: "pages", "pairs", "videos" → a pattern of shards.

    Raises:
        ValueError: none is given. FileNotFoundError: a shard is missing.
    """
    readers = {"pages": Documents(flamingo.tokenizer), "pairs": Pairs(), "videos": Videos()}
    parts = {
        m: Part(
            ShardStream(pattern, readers[m], seed=s.seed, rank=ranks.rank, world=ranks.world),
            getattr(s, f"{m}_batch"), getattr(s, f"{m}_lambda"),
        )
        for m, pattern in shards.items()
        if pattern
    }  # fmt: skip
    if not parts:
        raise ValueError("nothing to train on: give at least one of --pages, --pairs, --videos")
    return Mixture(parts, flamingo.tokenizer, flamingo.prepare, workers=s.workers)


def train(loaded: LoadedFlamingo, shards: dict[str, str | None], out: Path, s: Settings, ranks: Ranks = ALONE) -> Stage:
    """Train the bridge and save it into `out`, a folder that `load` reads.

    Args:
        shards: "pages", "pairs", "videos" → a pattern such as "mmc4/{000..099}.tar", or None.
        s: its batches are those of one rank.
        ranks: which of several processes this is. The first one writes.
    """
    flamingo, device = loaded.model, loaded.device
    mixture = mixture_of(shards, loaded, s, ranks)
    named = dict(flamingo.bridge_parameters())
    stored = next(iter(named.values())).dtype
    for parameter in named.values() if device.type == "cuda" else flamingo.parameters():
        parameter.data = parameter.data.float()
    parameters = list(named.values())
    optimizer = torch.optim.AdamW(parameter_groups(named.items(), s.lr, s.weight_decay), betas=(0.9, 0.95), fused=True)
    places = Places(mixture, ranks, device)
    modules = {"bridge": Bridge(named), "data": places}
    # What does not change the result may be another when a run goes on.
    settings = {name: value for name, value in asdict(s).items() if name not in ("recompute", "workers", "save_every")}
    settings["processes"] = ranks.world
    stage = Stage(
        "flamingo", Path(out) / "stages", s.steps, modules, optimizer, settings, s.save_every, writes=ranks.rank == 0
    )  # fmt: skip
    autocast = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()
    flamingo.train()

    def loss(batch):
        with autocast:
            return flamingo.loss(batch.to(device), s.recompute)

    for step, batches in zip(stage.steps(), mixture):
        losses = accumulate_gradients({m: lambda b=b: loss(b) for m, b in batches.items()}, mixture.weights, parameters)
        ranks.average(parameter.grad for parameter in parameters)
        torch.nn.utils.clip_grad_norm_(parameters, s.clip)
        set_learning_rate(optimizer, learning_rate_factor(step, s.warmup))
        optimizer.step()
        places.note()
        if step % 10 == 0:
            ranks.average(losses.values())
            total = sum(mixture.weights[m] * value for m, value in losses.items())
            stage.log(step, loss=total, **{f"loss_{m}": value for m, value in losses.items()})
    for m, skipped in mixture.skipped.items():
        if skipped.broken:
            print(f"{m}: passed over {skipped.broken} broken samples, such as {'; '.join(skipped.first)}")
    flamingo.to(stored).eval()
    if ranks.rank == 0:
        save(loaded, out)
    return stage
