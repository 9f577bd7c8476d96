"""Use of several CPU cores by small models: one small batch does not fill them, but two batches or two stages at once do."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import torch


def worker_threads(device: str) -> ThreadPoolExecutor:
    """Two threads with half of the CPU's cores each; one thread on a GPU."""
    cores = os.cpu_count() or 1
    n = min(2, cores) if device == "cpu" else 1
    return ThreadPoolExecutor(n, initializer=torch.set_num_threads, initargs=(max(1, cores // 2),))


def _run_one(function: Callable, arguments: tuple, line: int, n_threads: int) -> None:
    torch.set_num_threads(n_threads)
    function(*arguments, line=line)


def run_in_parallel(functions: Sequence[Callable], *arguments: object) -> None:
    """Call `function(*arguments, line=0 | 1 | ...)` for each function in a process of its own with an equal share of the cores.

    `line` is the line of its progress bar. The functions leave their results in files. With a single core: one after the other.
    """
    cores = os.cpu_count() or 1
    if cores < len(functions):
        for function in functions:
            function(*arguments, line=None)
        return
    with ProcessPoolExecutor(len(functions), mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(_run_one, f, arguments, i, cores // len(functions)) for i, f in enumerate(functions)]
        for job in jobs:
            job.result()
    print("\n" * (len(functions) - 1), file=sys.stderr)
