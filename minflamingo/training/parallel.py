"""Several cores and several GPUs.

Cores: a small model does not fill a CPU with one batch. Two batches (`worker_threads`) or two trainings (`run_in_parallel`) do.

GPUs: `torchrun --nproc-per-node 8 -m minflamingo train ...` starts a process per GPU. Each holds the whole model and reads its
own share of the data. Gradients are averaged, so all processes take the same step and keep the same weights, bit for bit.
"""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import active_children, get_context
from multiprocessing.connection import Connection, wait

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from ..data.mixture import end_with_parent
from .command import keep_running_without_a_terminal

CORES = os.cpu_count() or 1


def worker_threads(device: str) -> ThreadPoolExecutor:
    """On a CPU two threads with half of the cores each; otherwise one thread."""
    n = min(2, CORES) if device == "cpu" else 1
    return ThreadPoolExecutor(n, initializer=torch.set_num_threads, initargs=(max(1, CORES // 2),))


def run_in_parallel(functions: Sequence[Callable], *arguments: object) -> None:
    """Call `function(*arguments, line=0, 1, ...)` for each function, each in a process with its share of the cores.

    `line` is for progress bars. Results are written to files. If one process fails, or this one is told to stop, all stop.
    Raises the error of the process, or ChildProcessError if it was killed.
    """

    def stop() -> None:
        raise KeyboardInterrupt

    context, names = get_context("spawn"), {}
    os.environ["PARENT_PROCESS"] = str(os.getpid())  # for a process whose parent ends before it can watch it
    try:
        with handle_stop_signals(stop):
            for i, function in enumerate(functions):
                receiver, sender = context.Pipe(duplex=False)
                names[receiver] = f"training process {i + 1} of {len(functions)}"
                job = partial(function, *arguments, line=i)
                context.Process(target=_run, args=(sender, max(1, CORES // len(functions)), job), daemon=True).start()
                sender.close()  # now only the process holds it, so the receiver notices when the process ends
            while names:
                for receiver in wait(list(names)):
                    name = names.pop(receiver)
                    if (error := receiver.recv()) is not None:
                        raise error
    except EOFError:
        raise ChildProcessError(f"{name} was killed; the same command resumes") from None
    finally:
        for process in (left := active_children()) if sys.platform != "win32" else ():  # Windows: would not save a checkpoint
            process.terminate()
        for process in left:
            process.join()


def _run(sender: Connection, threads: int, job: Callable[[], object]) -> None:
    """In the new process: do the job, and send the error, or None."""
    end_with_parent()
    keep_running_without_a_terminal()
    torch.set_num_threads(threads)
    tqdm.set_lock(threading.RLock())  # its own lock is a semaphore of the system, which only Python's end would remove
    try:
        job()
        sender.send(None)
    except BaseException as error:
        if not isinstance(error, (ValueError, TypeError, OSError, ImportError, KeyboardInterrupt)):
            traceback.print_exc()
            error = RuntimeError(f"{type(error).__name__}: {error}")  # not every error can be sent
        with suppress(OSError):  # after a second Ctrl-C, the parent does not wait
            sender.send(error)
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(0)  # everything is on disk; Python's own end takes up to a second


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
