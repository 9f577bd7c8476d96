"""One call timed, its peak memory, and what the machine can do at best.

    in_turns({"ours": f, "theirs": g}, 5)        f g f g f g …  → seconds of each; a noisy machine is noisy for both
    limits()                                     {"flops": 1.6e11, "bytes": 3.4e10}: a second of matmul, a second of reading

A decoded token must read every weight once: 250 MB at 34 GB/s are 7.4 ms, and no implementation is faster than that.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import torch


def finish(device: torch.device | str) -> None:
    """Wait until a GPU has done what it was told."""
    if str(device).startswith("cuda"):
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], object], device: torch.device | str = "cpu") -> float:
    """How long one call takes."""
    finish(device)
    start = time.perf_counter()
    call()
    finish(device)
    return time.perf_counter() - start


def in_turns(calls: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each call, which returns its own seconds, once a round, after a first round that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds + 1):
        for name, call in calls.items():
            value = call()
            if i:
                taken[name].append(value)
    return taken


def summary(taken: list[float], digits: int = 5) -> dict[str, float]:
    """{"median", "min", "max"} in seconds."""
    return {name: round(of(taken), digits) for name, of in (("median", median), ("min", min), ("max", max))}


def peak_memory(call: Callable[[], object], device: torch.device | str = "cpu") -> int | None:
    """Bytes that the process (on CUDA: the GPU) held at most during the call, weights included. None where nobody counts."""
    if str(device).startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        call()
        finish(device)
        return torch.cuda.max_memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the highest resident size is counted anew
    except OSError:
        return None
    call()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def reader(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Callable[[], float]:
    """A call that reads 256 MB (2 GB on a GPU), more than caches hold for long, in the quicker of two ways: bytes a second."""
    gpu = str(device).startswith("cuda")
    matrix = torch.randn(2**15, (2**15 if gpu else 2**11), device=device, dtype=dtype)
    columns = torch.randn(2, matrix.shape[1], device=device, dtype=dtype).T
    ways = (lambda: matrix @ columns, lambda: matrix.sum())  # read once for two columns; read once, and nothing else is done
    return lambda: matrix.numel() * matrix.element_size() / min(seconds(way, device) for way in ways for _ in range(3))


def limits(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """The best rates seen here: "flops" of a large matmul, "bytes" of reading memory, each per second."""
    n = 8192 if str(device).startswith("cuda") else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    flops = min(seconds(lambda: a @ b, device) for _ in range(8))
    read = reader(device, dtype)
    return {"flops": 2 * n**3 / flops, "bytes": max(read() for _ in range(4))}


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((ours.cpu().float() - theirs.float()).abs().max() / theirs.float().abs().max())


def device_name(device: torch.device | str) -> str:
    if str(device).startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{device}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
