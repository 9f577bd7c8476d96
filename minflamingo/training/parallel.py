"""Several cores and several GPUs.

Cores: a small model does not fill a CPU with one batch. Two batches (`worker_threads`) or two trainings (`run_in_parallel`) do.

GPUs: `torchrun --nproc-per-node 8 -m minflamingo train ...` starts a process per GPU. Each holds the whole model and reads its
own share of the data. Gradients are averaged, so all processes take the same step and keep the same weights, bit for bit.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children, get_context

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

    `line` is for progress bars. Results are written to files. If this process is told to stop, it tells the others.
    """
    n = min(len(functions), CORES)

    def stop() -> None:
        pool.shutdown(wait=False, cancel_futures=True)  # functions that wait for a process do not begin
        for process in active_children() if sys.platform != "win32" else ():  # Windows: ends them at once, without a checkpoint
            process.terminate()
        raise KeyboardInterrupt

    pool = ProcessPoolExecutor(n, get_context("spawn"), torch.set_num_threads, (CORES // n,))
    with handle_stop_signals(stop), pool:  # at the end, the pool waits for its processes
        for job in [pool.submit(function, *arguments, line=i) for i, function in enumerate(functions)]:
            job.result()
    print("\n" * (len(functions) - 1), file=sys.stderr)


@contextmanager
def handle_stop_signals(handle: Callable[[], None]) -> Iterator[None]:
    """Inside, Ctrl-C (SIGINT) and SIGTERM call `handle()`. A second Ctrl-C stops at once. (Job schedulers send SIGTERM.)"""

    def received(number: int, frame: object) -> None:
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
        handle()

    # Only the main thread can receive signals. A background job of a shell ignores Ctrl-C.
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.getsignal(number) for number in numbers if signal.getsignal(number) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, received)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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

    def any(self, flag: bool) -> bool:
        """Whether the flag is true in at least one process."""
        mean = torch.tensor(float(flag))  # on the CPU, so this does not wait for the GPU
        self.average([mean])
        return mean.item() > 0


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
