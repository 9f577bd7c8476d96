"""`python -m minflamingo bench`: what the fast versions bring, and how this code compares with another implementation.

    python -m minflamingo bench --against tests/peers/open_flamingo_peer.py --python ENV/bin/python

    prompts    0 ... 32 shots: the prefill, the prefill and 32 new tokens, and the time of one new token
    steps      a training step (forward, backward, clipping, AdamW) and its peak memory, for two shapes of batches
    queries    1,000 zero-shot queries, and one prefill of 32 shots with 1,000 queries after it (20 times the time of 50)

"plain" is the code inside `minflamingo.fast.disabled()`. "peer" is another implementation of the same sizes in a process of
its own (protocol: tests/peers/serve.py). In each round all versions work one after another, so other programs on the machine
slow them down alike. Numbers are medians over the rounds, and ratios are medians of the ratio in each round. The vision encoder
is left out: the inputs are image features.
"""

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import nn
from tqdm import tqdm

from .. import FlamingoConfig, LMConfig, ResamplerConfig, VisionConfig, fast
from ..flamingo import Batch, Cache, Flamingo
from ..generate import generate, prefill
from ..plots import plot_bench
from ..training.checkpoint import ProgressBar, save_json

SHOTS, SHOT_TOKENS, NEW_TOKENS = (0, 4, 8, 16, 32), 16, 32  # a shot is one image and 16 tokens
PARTS = ("prompts", "steps", "queries")
SIZES = {  # "3b" is Flamingo-3B in bf16
    "tiny": {"vocabulary": 500, "d": 64, "layers": 2, "heads": 4, "latents": 8, "d_vision": 32, "length": 1024},
    "small": {"vocabulary": 32_000, "d": 512, "layers": 8, "heads": 8, "latents": 64, "d_vision": 256, "length": 1024},
    "3b": {"vocabulary": 32_000, "d": 2048, "layers": 24, "heads": 16, "latents": 64, "d_vision": 1024, "length": 2048},
}
N_FEATURES = {"tiny": 6, "small": 64, "3b": 256}  # of an image


def bench_config(size: str, changes: dict | None = None) -> FlamingoConfig:
    """OpenFlamingo around an OPT of this size. `changes`: what a peer does differently."""
    s, changes = SIZES[size], {"vision": {}, "lm": {}, "resampler": {}, "flamingo": {}} | (changes or {})
    lm = {"position": "learned", "position_offset": 2, "attention_bias": True, "output_bias": True, "mlp_bias": True,
          "activation": "relu", "max_length": s["length"]}  # fmt: skip
    resampler = {"n_latents": s["latents"], "n_time_embeddings": 0, "activation": "gelu"}
    whole = {"xattn_activation": "gelu", "n_added_tokens": 3, "image_token": 1, "added_head": "tied"}
    return FlamingoConfig(
        VisionConfig(**{"d": s["d_vision"]} | changes["vision"]),
        ResamplerConfig(s["d_vision"], **resampler | changes["resampler"]),
        LMConfig(s["vocabulary"], s["d"], s["layers"], s["heads"], **lm | changes["lm"]),
        **whole | changes["flamingo"],
    )


class Peer:
    """Another implementation in its own process. `changes`: its differences from `bench_config`."""

    def __init__(self, script: str, python: str, size: str, folder: Path):
        self.folder = folder
        (folder / "case.json").write_text(json.dumps({**SIZES[size], "threads": torch.get_num_threads()}), encoding="utf-8")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": (folder / "peer.log").open("wb")}
        self.process = subprocess.Popen([python, script, str(folder)], encoding="utf-8", **pipes)
        self.changes = self.answer()["changes"]

    def answer(self) -> dict:
        for line in self.process.stdout:
            if line.startswith("{"):  # libraries may print other lines
                return json.loads(line)
        self.process.wait()
        raise RuntimeError(f"the peer has stopped:\n{(self.folder / 'peer.log').read_bytes()[-500:].decode(errors='replace')}")

    def ask(self, do: str, batch: Batch, **options) -> tuple[float, float, torch.Tensor]:
        """Seconds, the most bytes in use, and the result."""
        files = {"input": str(self.folder / "input.pt"), "output": str(self.folder / "output.pt")}
        torch.save({"ids": batch.ids, "labels": batch.labels, "media": batch.media}, files["input"])
        self.process.stdin.write(json.dumps({"do": do, **files, **options}) + "\n")
        self.process.stdin.flush()
        answer = self.answer()
        return answer["seconds"], answer["bytes"], torch.load(files["output"], weights_only=True)


def measure(call: Callable[[], object], device: str = "cpu") -> tuple[float, float]:
    """Seconds, and the most bytes in use during the call: by the process (0 if unknown), or on the GPU."""
    gpu, reset = device.startswith("cuda"), Path("/proc/self/clear_refs")
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    elif reset.exists():
        reset.write_text("5", encoding="ascii")  # Linux: resets the peak VmHWM
    start = time.perf_counter()
    call()
    if gpu:
        torch.cuda.synchronize()  # wait until the GPU has finished
        return time.perf_counter() - start, torch.cuda.max_memory_allocated()
    seconds = time.perf_counter() - start
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if reset.exists() else []
    return seconds, 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


class Bench:
    """Collects `rows`: label -> {"unit", "fast", "plain", "peer", "plain / fast", "peer / fast"}."""

    def __init__(self, size: str, device: str, rounds: int, peer: Peer | None = None):
        self.device, self.rounds, self.peer, self.rows = device, rounds, peer, {}
        self.n_features = N_FEATURES[size]
        self.training_batches = [(2, 2, 32)] if size == "tiny" else [(8, 5, 250), (2, 33, 528)]  # (B, N, L)
        torch.manual_seed(0)
        flamingo = Flamingo(bench_config(size, peer and peer.changes), vision=nn.Identity())
        self.flamingo = flamingo.to(device, torch.bfloat16 if size == "3b" else torch.float32).eval()

    def batch(self, B: int, N: int, L: int, seed: int = 0) -> Batch:
        """B sequences of L random tokens with N images at equal distances. Images are random features."""
        rng, parameter = torch.Generator().manual_seed(seed), self.flamingo.resampler.latents
        ids = torch.randint(3, self.flamingo.config.lm.vocab_size, (B, L), generator=rng)
        labels, positions = ids.clone(), [L * n // N for n in range(N)]
        ids[:, positions], labels[:, positions] = self.flamingo.image_id, -100
        media = torch.randn(B, N, 1, self.n_features, parameter.shape[-1], generator=rng).to(parameter.dtype)
        frames = torch.ones(B, N, dtype=torch.long)
        return Batch(ids, labels, torch.ones_like(ids, dtype=torch.bool), media, frames).to(parameter.device)

    @torch.inference_mode()
    def prefill(self, batch: Batch) -> Cache:
        return prefill(self.flamingo, batch)[1]

    def in_turns(self, works: dict[str, tuple[Callable, dict | None]]) -> tuple[dict, dict]:
        """label -> (our call, request for the peer). Returns seconds and bytes: label -> version -> one value per round."""
        taken: dict = {label: {"fast": [], "plain": [], "peer": []} for label in works}
        for _ in range(self.rounds + 1):
            for label, (call, request) in works.items():
                taken[label]["fast"].append(measure(call, self.device))
                with fast.disabled():
                    taken[label]["plain"].append(measure(call, self.device))
                if self.peer and request:
                    taken[label]["peer"].append(self.peer.ask(**request)[:2])
        # The first round is for warming up.
        return tuple({l: {v: [x[i] for x in xs[1:]] for v, xs in of.items() if xs} for l, of in taken.items()} for i in (0, 1))

    def add(self, label: str, values: dict[str, list[float]], unit: str = "s", scale: float = 1.0) -> None:
        row = {version: scale * median(v) for version, v in values.items()}
        ratios = {f"{v} / fast": median(b / a for a, b in zip(values["fast"], values[v])) for v in values if v != "fast"}
        self.rows[label] = {"unit": unit} | row | ratios
        columns = [f"{row[v]:12.4g}" if v in row else " " * 12 for v in ("fast", "plain", "peer")]
        columns += [f"{ratio:10.2f} x" for ratio in ratios.values()]
        tqdm.write(f"{label + ', ' + unit:58}{''.join(columns)}")

    def prompts(self) -> None:
        for shots in SHOTS:
            batch = self.batch(1, shots + 1, SHOT_TOKENS * (shots + 1))
            prompt = partial(self.prefill, batch), {"do": "prompt", "batch": batch}
            whole = partial(generate, self.flamingo, batch, -1, max_new_tokens=NEW_TOKENS)
            request = {"do": "generate", "batch": batch, "tokens": NEW_TOKENS}
            taken, _ = self.in_turns({"prompt": prompt, "all": (whole, request)})
            # The prefill gives the first new token. Each of the others costs one decode step.
            token = {v: [(a - p) / (NEW_TOKENS - 1) for a, p in zip(taken["all"][v], taken["prompt"][v])] for v in taken["all"]}
            self.add(f"prompt, {shots} shots", taken["prompt"])
            self.add(f"prompt and {NEW_TOKENS} tokens, {shots} shots", taken["all"])
            self.add(f"one token after {shots} shots", token, "ms", 1000)

    def steps(self) -> None:
        parameters = [p for _, p in self.flamingo.trainable_parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)

        def step(batch: Batch) -> None:
            optimizer.zero_grad()
            self.flamingo.loss(batch).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()

        for B, N, L in self.training_batches:
            batch = self.batch(B, N, L)
            taken, peaks = self.in_turns({"step": (partial(step, batch), {"do": "step", "batch": batch})})
            self.add(f"training step, B {B}, N {N}, L {L}", taken["step"])
            if all(peaks["step"]["fast"]):  # the system reports it
                self.add(f"peak memory of a training step, B {B}, N {N}, L {L}", peaks["step"], "GiB", 2**-30)

    def queries(self) -> None:
        shots, group = self.batch(1, 32, 32 * SHOT_TOKENS), self.batch(50, 1, SHOT_TOKENS, seed=1)

        def ask(after: Batch | None = None) -> None:
            generate(self.flamingo, group, -1, max_new_tokens=4, cache=self.prefill(after) if after else None)

        works = {"zero-shot": ask, "prefill": partial(self.prefill, shots), "after shots": partial(ask, shots)}
        taken, _ = self.in_turns({label: (call, None) for label, call in works.items()})
        once, whole = taken["prefill"], taken["after shots"]
        self.add("1,000 zero-shot queries", taken["zero-shot"], scale=20)
        after_shots = {v: [p + 20 * (a - p) for a, p in zip(whole[v], once[v])] for v in whole}
        self.add("1,000 queries after the same 32 shots", after_shots)


def add_parser(commands, add_model_options: Callable | None = None) -> None:
    parser = commands.add_parser("bench", help="time the fast versions, and another implementation", description=__doc__)
    parser.add_argument("--size", choices=tuple(SIZES), help="default: 3b on a GPU, small elsewhere")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each number")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    parser.add_argument("--against", help="the script that runs another implementation")
    parser.add_argument("--python", help="the Python interpreter in which that implementation is installed")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder for bench.json and bench.png")


def run(args: argparse.Namespace, load: Callable | None = None) -> None:
    if args.rounds < 1 or bool(args.against) != bool(args.python):
        raise ValueError("--rounds must be at least 1, and --against and --python belong together")
    size = args.size or ("3b" if args.device.startswith("cuda") else "small")
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else f"{torch.get_num_threads()} CPU threads"
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(args.against, args.python, size, Path(folder)) if args.against else None
        bench = Bench(size, args.device, args.rounds, peer)
        print(f"{'':58}{'fast':>12}{'plain':>12}{'peer':>12}{'plain/fast':>12}{'peer/fast':>12}")
        for part in ProgressBar(args.parts, desc="bench"):
            getattr(bench, part)()
        if peer:
            peer.process.communicate(timeout=60)  # the end of its input stops the peer
    args.out.mkdir(parents=True, exist_ok=True)
    result = {"device": device, "size": size, "rounds": args.rounds, "against": args.against, "rows": bench.rows}
    save_json(result, args.out / "bench.json")
    plot_bench(result, args.out / "bench.png")
    print(f"written: {args.out / 'bench.json'} and bench.png")
