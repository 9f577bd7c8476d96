"""Several cores and several GPUs.

Cores: a small model does not fill a CPU with one batch. Two batches (`worker_threads`) or two trainings (`run_in_parallel`) do.

GPUs: `torchrun --nproc-per-node 8 -m minflamingo train ...` starts a process per GPU. Each holds the whole model and reads its
own share of the data. Gradients are averaged, so all processes take the same step and keep the same weights, bit for bit.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context

import torch
import torch.distributed as dist
from torch import Tensor

CORES = os.cpu_count() or 1


def worker_threads(device: str) -> ThreadPoolExecutor:
    """On a CPU two threads with half of the cores each; otherwise one thread."""
    n = min(2, CORES) if device == "cpu" else 1
    return ThreadPoolExecutor(n, initializer=torch.set_num_threads, initargs=(max(1, CORES // 2),))


def run_in_parallel(functions: Sequence[Callable], *arguments: object) -> None:
    """Call `function(*arguments, line=0, 1, ...)` for each function, in up to one process per core.

    `line` is for progress bars. Results are written to files.
    """
    n = min(len(functions), CORES)
    with ProcessPoolExecutor(n, get_context("spawn"), torch.set_num_threads, (CORES // n,)) as pool:
        for job in [pool.submit(function, *arguments, line=i) for i, function in enumerate(functions)]:
            job.result()
    print("\n" * (len(functions) - 1), file=sys.stderr)


@dataclass(frozen=True)
class Processes:
    """Which of `world` processes this is. With one process, `average` changes nothing."""

    rank: int = 0
    world: int = 1

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over all processes, in place."""
        if self.world > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)
                tensor /= self.world

    def gather(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each CPU tensor (...) -> those of all processes, (world, ...)."""
        rows = {name: [mine.clone() for _ in range(self.world)] for name, mine in state.items()}
        for name, mine in state.items() if self.world > 1 else ():
            dist.all_gather(rows[name], mine)
        return {name: torch.stack(tensors) for name, tensors in rows.items()}


SINGLE = Processes()


@contextmanager
def distributed_processes(device: str) -> Iterator[Processes]:
    """Read the variables that torchrun sets. Without them this is the only process."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield SINGLE
        return
    if device not in ("cuda", "cpu"):
        raise ValueError(f"--device {device} is a single device, but there are several processes: use --device cuda or cpu")
    if device == "cuda":  # from here on "cuda" is this process's own GPU
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Tensors on the GPU go through NCCL. Tensors on the CPU go through Gloo, which does not wait for the GPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
