"""`python -m minflamingo bench`: the table of times, as JSON and as a figure.

    prompt      reading it, 0 … 32 shots: ours, plain, peer; and the fraction of the machine's matmul rate
    generate    prompt and 32 new tokens
    token       a new token alone, and the fraction of the machine's reading rate
    queries     many queries after the same 32 shots, against as many queries without shots
    candidates  ten given answers compared behind 32 shots, against reading the prompt alone
    step        a training step, and its peak memory; how it grows with the number of images
    cache       bytes that a prompt leaves behind
    pipeline    laying out, preparing and padding pages, in samples a second

Plain is our own code with its plain twins: masks instead of segments, everything read again for each token, all logits.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from .. import layers, loss
from ..data.images import ImagePreparation
from ..data.sample import EOC, Sample, collate
from ..flamingo import Batch
from ..generate import generate, read_prompt, score_answers
from ..tokenizer import ToyTokenizer
from ..training.checkpoint import save_json
from . import cases, measure
from .figure import plot_bench
from .peers import PEERS, Peer

PAGES = ((8, 5, 250), (2, 33, 528))  # B, N, L of the training steps
NEW_TOKENS = 32


class Bench:
    """What every measurement needs to know."""

    def __init__(self, size: str, device: str, rounds: int, peer: Peer | None):
        self.device, self.rounds, self.peer = device, rounds, peer
        self.dtype = torch.bfloat16 if size == "3b" else torch.float32
        with_eye = size == "3b"
        self.patches = 0 if with_eye else 64
        self.flamingo = peer.flamingo if peer else cases.model(cases.config(size), device, self.dtype, with_eye)
        self.limits = measure.limits(device, self.dtype)

    def compare(
        self,
        ours: Callable[[], object],
        plain: Callable[[], object] | None,
        ask: str | None = None,
        batch: Batch | None = None,
        **how: object,
    ) -> dict:
        """The three in turns: {"ours": …, "plain": …, "peer": …, "plain_ratio": …, "peer_ratio": …}."""
        calls = {"ours": lambda: measure.seconds(ours, self.device)}
        if plain is not None:
            calls["plain"] = lambda: self.plain_seconds(plain)
        if self.peer is not None and ask is not None:
            calls["peer"] = lambda: self.peer.ask(ask, batch, **how)[0]["seconds"]
        taken = measure.in_turns(calls, self.rounds)
        row: dict = {name: measure.summary(values) for name, values in taken.items()}
        for other in ("plain", "peer"):
            if other in taken:
                row[f"{other}_ratio"] = round(median(taken[other]) / median(taken["ours"]), 2)
        return row

    def plain_seconds(self, call: Callable[[], object]) -> float:
        """How long a call takes where the plain twins do the work."""
        with cases.plainly(self.flamingo):
            return measure.seconds(call, self.device)

    def timed(self, calls: dict[str, Callable[[], object]], rounds: int) -> dict:
        """Calls of ours in turns: {name: its summary}."""
        taken = measure.in_turns({k: lambda f=f: measure.seconds(f, self.device) for k, f in calls.items()}, rounds)
        return {name: measure.summary(values) for name, values in taken.items()}

    def flops(self, call: Callable[[], object]) -> int:
        """Floating-point operations of matrix products and attention in one call, as PyTorch counts them."""
        # It knows products by their public name, and no gradient taken within a gradient.
        public, whole = patch.object(layers, "product", F.linear), patch.object(loss, "CHUNK", 2**40)
        with public, whole, FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops()


def bench_prompts(b: Bench) -> dict:
    """Reading a prompt, by number of shots; and whether the peer's logits are ours."""
    rows = {}
    for shots in cases.SHOTS:
        batch = cases.prompt(b.flamingo, shots, b.patches, b.device)

        @torch.inference_mode()
        def ours(batch=batch):
            return read_prompt(b.flamingo, batch)[0]

        @torch.inference_mode()
        def plain(batch=batch):
            return b.flamingo(batch)[0]

        def counted(batch=batch):  # with gradients: without, the counter does not work
            return read_prompt(b.flamingo, batch)

        row = b.compare(ours, plain, "read", batch)
        row["of_matmul_limit"] = round(b.flops(counted) / row["ours"]["median"] / b.limits["flops"], 3)
        if b.peer is not None:
            row["largest_difference"] = measure.difference(ours(), b.peer.ask("read", batch)[1])
        rows[str(shots)] = row
    return rows


def bench_generation(b: Bench) -> dict:
    """Prompt and 32 new tokens."""
    rows = {}
    for shots in cases.SHOTS:
        batch = cases.prompt(b.flamingo, shots, b.patches, b.device)
        ours = lambda batch=batch: generate(b.flamingo, batch, -1, NEW_TOKENS)  # noqa: E731
        rows[str(shots)] = b.compare(ours, None, "generate", batch, tokens=NEW_TOKENS)
        if b.peer is not None:
            theirs = b.peer.ask("generate", batch, tokens=NEW_TOKENS)[1]
            rows[str(shots)]["same_tokens"] = theirs.tolist() == ours()
    return rows


@torch.inference_mode()
def bench_tokens(b: Bench) -> dict:
    """One token alone, from a cache: after each number of shots in turns, and the machine's reading rate among them."""
    batches = {str(shots): cases.prompt(b.flamingo, shots, b.patches, b.device) for shots in cases.SHOTS}

    def token(batch: Batch) -> float:
        _, cache = read_prompt(b.flamingo, batch)

        def steps(cache=cache):
            for _ in range(NEW_TOKENS):
                _, cache = b.flamingo.read_on(batch.ids[:, -1:], cache)

        return measure.seconds(steps, b.device) / NEW_TOKENS

    calls = {shots: (lambda batch=batch: token(batch)) for shots, batch in batches.items()}
    taken = measure.in_turns({**calls, "rate": measure.reader(b.device, b.dtype)}, b.rounds)
    rates, must_read, rows = taken.pop("rate"), cases.read_per_token(b.flamingo), {}
    for shots, ours in taken.items():
        again = [b.plain_seconds(lambda shots=shots: b.flamingo(batches[shots])) for _ in range(2)]  # no cache: all once more
        rows[shots] = row = {"ours": measure.summary(ours, 6), "plain": measure.summary(again)}
        row["plain_ratio"] = round(median(again) / median(ours), 1)
        row["of_reading_limit"] = round(median(must_read / rate / one for rate, one in zip(rates, ours)), 3)
        row["against_no_shots"] = round(median(one / none for one, none in zip(ours, taken["0"])), 3)
        if b.peer is not None:  # of theirs, what 31 of 32 tokens took: the first one comes with the prompt
            told = [b.peer.ask("generate", batches[shots], tokens=n)[0]["seconds"] for n in (NEW_TOKENS, 1)]
            row["peer"] = {"median": round((told[0] - told[1]) / (NEW_TOKENS - 1), 6)}
            row["peer_ratio"] = round(row["peer"]["median"] / row["ours"]["median"], 2)
    return rows


def bench_queries(b: Bench, n: int = 1000, at_once: int = 50, new_tokens: int = 4) -> dict:
    """`n` queries of one picture each, after the same 32 shots read once, and without any."""
    batch = cases.queries(b.flamingo, at_once, b.patches, b.device)
    shots = cases.pages(b.flamingo, 1, 32, 32 * cases.SHOT_TOKENS, b.patches, b.device)

    def without():
        for _ in range(n // at_once):
            generate(b.flamingo, batch, -1, new_tokens)

    def after():
        with torch.inference_mode():
            _, cache = read_prompt(b.flamingo, shots)
        for _ in range(n // at_once):
            generate(b.flamingo, batch, -1, new_tokens, after=cache)

    @torch.inference_mode()
    def prefill():
        read_prompt(b.flamingo, shots)

    row = b.timed({"no_shots": without, "after_32_shots": after, "prefill": prefill}, max(1, b.rounds // 2))
    expected = row["no_shots"]["median"] + row["prefill"]["median"]
    return {"n": n, **row, "ratio": round(row["after_32_shots"]["median"] / expected, 3)}


def bench_candidates(b: Bench, n: int = 10, tokens: int = 4) -> dict:
    """The log-likelihood of `n` given answers behind a prompt of 32 shots, which is read once; and the prompt alone."""
    batch = cases.prompt(b.flamingo, 32, b.patches, b.device)
    V, generator = b.flamingo.lm.config.vocab_size, torch.Generator().manual_seed(2)
    answers = torch.randint(3, V, (1, n, tokens), generator=generator).tolist()

    def scored():
        score_answers(b.flamingo, batch, answers)

    @torch.inference_mode()
    def prefill():
        read_prompt(b.flamingo, batch)

    row = b.timed({"scored": scored, "prefill": prefill}, b.rounds)
    return {"n": n, **row, "ratio": round(row["scored"]["median"] / row["prefill"]["median"], 3)}


def bench_steps(b: Bench, pages: tuple = PAGES) -> dict:
    """A training step of the bridge: forward, backward, clipping, AdamW."""
    parameters = [p for _, p in b.flamingo.bridge_parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    rows = {}
    autocast = torch.autocast("cuda", torch.bfloat16) if b.dtype is torch.bfloat16 else nullcontext()
    growing = tuple((2, N, N * cases.SHOT_TOKENS) for N in (5, 9, 17))
    batches = {page: cases.pages(b.flamingo, *page, b.patches, b.device) for page in (*pages, *growing)}
    differences = {}
    if b.peer:  # before any step is made, while the weights are the same
        with torch.no_grad():
            for page in pages:
                theirs = b.peer.ask("step", batches[page], update=False)[1]
                differences[page] = measure.difference(b.flamingo.loss(batches[page]), theirs)
    for (B, N, L), batch in batches.items():

        def step(objective, batch=batch):
            optimizer.zero_grad()
            with autocast:
                value = objective(batch)
            value.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            return value.detach()

        def ours(step=step):
            return step(b.flamingo.loss)

        def plain(step=step):
            return step(lambda pages: b.flamingo(pages)[1])

        compared = (B, N, L) in pages
        row = b.compare(ours, plain if compared else None, "step" if compared else None, batch)
        row["peak_memory"] = measure.peak_memory(ours, b.device)
        row["of_matmul_limit"] = round(b.flops(ours) / row["ours"]["median"] / b.limits["flops"], 3)
        if (B, N, L) in differences:
            row["peer_peak_memory"] = b.peer.ask("step", batch, count_memory=True)[0]["peak"]
            row["largest_difference"] = differences[B, N, L]
        rows[f"B {B}, N {N}, L {L}"] = row
    return rows


def bench_caches(b: Bench) -> dict:
    """Bytes that a prompt leaves behind, and as many under 50 queries that share it."""
    rows = {}
    for shots in cases.SHOTS:
        with torch.inference_mode():
            _, cache = read_prompt(b.flamingo, cases.prompt(b.flamingo, shots, b.patches, b.device))
        rows[str(shots)] = {"bytes": cache.nbytes, "bytes_for_50_queries": cache.repeat(50).nbytes}
    return rows


def bench_pipeline() -> dict:
    """Pages of five pictures through layout, preparation and padding, on one core."""
    tokenizer, prepare = ToyTokenizer([]), ImagePreparation(size=224)
    picture = np.random.default_rng(0).integers(0, 256, (1, 256, 256, 3), dtype=np.uint8)
    page = Sample([piece for _ in range(5) for piece in (picture, "Output: a picture of nothing at all", EOC)])
    taken = min(measure.seconds(lambda: collate([page] * 8, tokenizer, prepare)) for _ in range(4))
    return {"pages_per_second": round(8 / taken, 1), "pictures_per_second": round(40 / taken, 1)}


def run(size: str, device: str, rounds: int, out: Path, against: str | None = None, python: str | None = None) -> dict:
    """All measurements, written into `out`: bench.json and bench.png."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(against, python, Path(folder), cases.config(size)) if against else None
        with peer or nullcontext(), tqdm(total=8, desc="bench", dynamic_ncols=True) as bar:
            b = Bench(size, device, rounds, peer)

            def done(value):
                bar.update()
                return value

            result = {
                "device": measure.device_name(device), "torch": torch.__version__, "python": platform.python_version(),
                "size": size, "rounds": rounds, "against": against, "limits": {k: round(v) for k, v in b.limits.items()},
                "prompt": done(bench_prompts(b)),
            }  # fmt: skip
            result["generate"] = done(bench_generation(b))
            result["token"] = done(bench_tokens(b))
            result["queries"] = done(bench_queries(b, 1000 if size != "tiny" else 100))
            result["candidates"] = done(bench_candidates(b))
            result["step"] = done(bench_steps(b, PAGES if size != "tiny" else ((2, 2, 32),)))
            result["cache"] = done(bench_caches(b))
            result["pipeline"] = done(bench_pipeline())
    save_json(result, out / "bench.json")
    plot_bench(result, out / "bench.png")
    return result


def report(result: dict) -> str:
    """The table, for people."""

    def line(name: str, row: dict, unit: float = 1.0) -> str:
        cells = [f"{row[k]['median'] * unit:9.3f}" if k in row else " " * 9 for k in ("ours", "plain", "peer")]
        ratios = [f"{row.get(f'{k}_ratio', float('nan')):8.2f}x" if k in row else " " * 9 for k in ("plain", "peer")]
        limit = row.get("of_matmul_limit", row.get("of_reading_limit"))
        return f"{name:34}{''.join(cells)}{''.join(ratios)}{'' if limit is None else f'{limit:9.0%}'}"

    lines = [f"{result['device']}, torch {result['torch']}; seconds, medians of {result['rounds']}",
             f"{'':34}     ours    plain     peer    plain     peer    limit"]  # fmt: skip
    lines += [line(f"prompt, {shots} shots", row) for shots, row in result["prompt"].items()]
    lines += [line(f"prompt and {NEW_TOKENS} tokens, {shots} shots", row) for shots, row in result["generate"].items()]
    lines += [line(f"one token, {shots} shots (ms)", row, 1000) for shots, row in result["token"].items()]
    lines += [line(f"step, {name}", row) for name, row in result["step"].items()]
    for name, row in result["step"].items():
        if row["peak_memory"]:
            theirs = row.get("peer_peak_memory")
            beside = f", peer {theirs / 2**30:.2f}: {row['peak_memory'] / theirs:.2f}x" if theirs else ""
            lines.append(f"peak memory (GiB), {name}: {row['peak_memory'] / 2**30:.2f}{beside}")
    q = result["queries"]
    after, without, once = (q[k]["median"] for k in ("after_32_shots", "no_shots", "prefill"))
    lines.append(f"{q['n']} queries after the same 32 shots: {after:.2f} s; "
                 f"without shots, and the shots read once: {without:.2f} + {once:.2f} s ({q['ratio']:.2f}x)")  # fmt: skip
    c = result["candidates"]
    lines.append(f"{c['n']} candidate answers behind 32 shots: {c['scored']['median']:.3f} s; "
                 f"the prompt alone: {c['prefill']['median']:.3f} s ({c['ratio']:.2f}x)")  # fmt: skip
    lines.append(f"one token at 32 shots against none: {result['token']['32']['against_no_shots']:.2f}x; "
                 f"cache of 32 shots: {result['cache']['32']['bytes'] / 2**20:.1f} MiB")  # fmt: skip
    return "\n".join(lines)


def add_parser(commands) -> None:
    """The words of `bench` on the command line."""
    parser = commands.add_parser("bench", help="what each part costs, beside its plain twin, the machine's limit and a peer")
    parser.add_argument("--size", choices=("tiny", "small", "3b"), default=None, help="default: 3b on CUDA, small elsewhere")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5, help="how often each thing is timed")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--against", choices=PEERS, default=None, help="another implementation on the same weights")
    parser.add_argument("--python", default=None, help="the interpreter that has it")


def command(given: argparse.Namespace) -> None:
    if given.against and not given.python:
        raise ValueError("--against needs --python, the interpreter of an environment that holds the peer")
    if given.rounds < 1:
        raise ValueError(f"--rounds is {given.rounds}; it must be at least 1")
    size = given.size or ("3b" if given.device.startswith("cuda") else "small")
    result = run(size, given.device, given.rounds, given.out, given.against, given.python)
    print(report(result))
    print(f"\n{given.out / 'bench.json'} and {given.out / 'bench.png'} hold it all")

