"""Several processes, one for each GPU, that train one bridge: each reads its own share of the data, gradients are averaged.

    torchrun --nproc-per-node 8 -m minflamingo train …          tells each process its number r of W

    ∇L = 1/W Σ_r ∇L_r           so all take the same step, and hold the same weights to the last bit

Each holds the whole model: what is trained must fit into one GPU's memory three times more (gradients, AdamW's two moments).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """Which process this is, of how many. Alone, every method gives back what it was given."""

    rank: int = 0
    world: int = 1

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Each tensor becomes its mean over all processes, in place."""
        for tensor in tensors if self.world > 1 else ():
            dist.all_reduce(tensor)
            tensor /= self.world

    def gather(self, state: Mapping[str, Tensor], device: torch.device | str) -> dict[str, Tensor]:
        """Whole numbers of every process: each (…) becomes (W, …), on the CPU. `device`: whose memory the processes share."""
        if self.world == 1:
            return {name: mine[None] for name, mine in state.items()}
        everyone = {name: [torch.empty_like(mine, device=device) for _ in range(self.world)] for name, mine in state.items()}
        for name, mine in state.items():
            dist.all_gather(everyone[name], mine.to(device))
        return {name: torch.stack(rows).cpu() for name, rows in everyone.items()}


ALONE = Ranks()


@contextmanager
def ranks_of_environment(device: str) -> Iterator[Ranks]:
    """What torchrun says of this process: RANK, WORLD_SIZE and LOCAL_RANK; without it this is the only one."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        yield ALONE
        return
    if device == "cuda":  # from here on "cuda" is this process' own GPU
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    elif device != "cpu":
        raise ValueError(f"--device {device} is one for {world} processes: say cuda, and each takes its own; or cpu")
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank(), world)
    finally:
        dist.destroy_process_group()
