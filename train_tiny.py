"""minFlamingo from nothing: `python train_tiny.py` teaches an eye, a tongue and the bridge between them, on a laptop.

    1  the world     synthetic pictures, films and pages, drawn as they are needed
    2  the eye       a ViT learns to see: contrastive pretraining on pictures and captions            then frozen
    3  the tongue    a small language model learns to read: text alone, never an image                then frozen
    4  the bridge    Perceiver Resampler and GATED XATTN-DENSE learn on interleaved pages             the only part of Flamingo
    5  the exam      few-shot tasks on held-out cases at 0 … 32 shots, without any gradient              that learns here
    6  the figures   what goes into the README

Everything lands in `runs/tiny/`: the trained Flamingo (`minflamingo.load("runs/tiny")`), results.json, metrics.csv, figures.
Stop it whenever you like; the next call goes on where it was. `--fresh` starts over.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import platform
import random
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import minflamingo
from data_toy import worlds
from data_toy.album import Album, draw_album
from data_toy.library import nonsense, reading
from data_toy.pairs import contrastive_batch
from data_toy.tasks import CHANCE, ROWS, mark, queries
from data_toy.words import DASH, caption, marks, toy_tokenizer
from minflamingo.complete import LoadedFlamingo
from minflamingo.config import FlamingoConfig, preset
from minflamingo.data.images import ImagePreparation
from minflamingo.data.sample import Sample, collate, collate_rows, lay_out, pack
from minflamingo.evaluation.fewshot import SHOTS, accuracy, few_shot_prompt, predict
from minflamingo.evaluation.looking import patch_attention
from minflamingo.flamingo import Batch, Flamingo
from minflamingo.lm import LM
from minflamingo.plots import plot_attention, plot_gates, plot_loss, plot_prompts, plot_shots, plot_world
from minflamingo.tokenizer import Tokenizer
from minflamingo.training.checkpoint import load_tensors, save_json, write_atomically
from minflamingo.training.contrastive import ContrastivePair, TextTower
from minflamingo.training.optim import accumulate_gradients, learning_rate_factor, parameter_groups, set_learning_rate
from minflamingo.training.stage import SettingsDiffer, Stage
from minflamingo.vision import ViT


@dataclass(frozen=True)
class Recipe:
    """How long each lesson takes and how much it shows at a time."""

    eye_steps: int = 750
    eye_batch: int = 256
    eye_lr: float = 2.5e-3
    tongue_steps: int = 1400
    tongue_nonsense_steps: int = 300  # of these, the first
    tongue_tokens: int = 2048  # per step
    tongue_lr: float = 3e-3
    album: int = 24_000  # pictures and films that the pages are made of
    bridge_steps: int = 1440
    bridge_first_steps: int = 300  # of these, the first: one picture at a time
    bridge_second_steps: int = 120  # of these, the next: made-up names as well
    bridge_shots: int = 160  # pictures on the pages of one step
    bridge_pairs: int = 64
    bridge_videos: int = 24
    bridge_lr: float = 3e-3
    bridge_decay: float = 1.0  # AdamW shrinks by lr · decay a step: so few steps need more of it than the paper's 0.1
    exam: int = 160  # cases per task and number of shots


RECIPES = {
    "tiny": Recipe(),
    "small": Recipe(eye_steps=4000, tongue_steps=6000, tongue_nonsense_steps=600, bridge_steps=6000, album=120_000, exam=500),
    "quick": Recipe(
        eye_steps=6, eye_batch=32, tongue_nonsense_steps=3, tongue_steps=6, tongue_tokens=512, album=1200, bridge_steps=12,
        bridge_first_steps=3, bridge_second_steps=3, bridge_shots=24, bridge_pairs=4, bridge_videos=4, exam=4,
    ),
}  # fmt: skip

LESSON = {"vision": "eye", "language": "tongue"}

# The mixture of the bridge's lessons. Each dataset m has its weight lambda_m in the loss (paper §2.4).
ASK = partial(worlds.vqa, kinds=("things", "pair", "pair", "pair", "sign"), at_once=3)
PAGES = {
    worlds.task: 2, worlds.binding: 3.5, worlds.naming: 3, ASK: 3, worlds.arithmetic: 1, worlds.sums_beside: 0.7,
    worlds.ocr: 0.3, worlds.captions: 2.5,
}  # fmt: skip
LONG = {**PAGES, worlds.captions: 4}  # and of long pages: among so many whole sentences the tongue is most tempted to copy
PAIR_KINDS = ("things", "pair", "pair", "row", "sign", "sum", "sum", "sum")
LAMBDA = {"pages": 1.0, "pairs": 1.0, "videos": 1.0}
PARTS = {"pages": 3, "pairs": 2, "videos": 1}  # batches of a step: more of them have less padding, but each costs time
P_NEXT = 0.1  # share of pages whose text stands before its image
LONG_PAGES = 0.35  # share of steps whose pages are long ones
NAMED_FILMS = 0.2  # share of steps whose films give names to what moves, instead of saying how it does


@dataclass(frozen=True)
class Run:
    """What every part of the story needs to know."""

    size: str
    seed: int
    device: str
    out: Path
    recipe: Recipe

    @property
    def config(self) -> FlamingoConfig:
        return preset("tiny" if self.size == "quick" else self.size, toy_tokenizer().vocab_size)

    def rng(self, *words: object) -> random.Random:
        """The dice of one place in the story. They depend on the seed and the place alone, so nothing need be remembered."""
        return random.Random(" ".join(map(str, (self.seed, *words))))

    def stage(self, name: str, total: int, modules: dict, optimizer, line: int | None = None) -> Stage:
        recipe = {key: value for key, value in asdict(self.recipe).items() if key != "exam"}
        if name != "flamingo":  # what is taught later does not matter to an eye or a tongue
            recipe = {key: value for key, value in recipe.items() if key.startswith(LESSON[name])}
        settings = {"seed": self.seed, "config": repr(self.config), **recipe}
        return Stage(name, self.out / "stages", total, modules, optimizer, settings, line=line)


PREPARE = ImagePreparation(size=48)


# ---------------------------------------------------------------------------------------------------------- 2  the eye


def teach_the_eye(run: Run, line: int | None = None) -> Stage:
    """Contrastive pretraining: which caption belongs to which picture?"""
    recipe, config, tokenizer = run.recipe, run.config.vision, toy_tokenizer()
    torch.manual_seed(run.seed)
    text = TextTower(tokenizer.vocab_size, d=96)
    pair = ContrastivePair(ViT(config), config.d, text, d_text=96).to(run.device)
    optimizer = torch.optim.AdamW(parameter_groups(pair.named_parameters(), recipe.eye_lr, 0.05), betas=(0.9, 0.98))
    stage = run.stage("vision", recipe.eye_steps, {"pair": pair}, optimizer, line)
    for step in stage.steps():
        hard = step > 0.2 * recipe.eye_steps  # once it tells most pictures apart, only look-alikes teach it more
        pictures, captions = contrastive_batch(run.rng("vision", step), recipe.eye_batch, tokenizer, hard)
        loss, right = pair(PREPARE(pictures).to(run.device), captions.to(run.device))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(pair.parameters(), 1.0)
        set_learning_rate(optimizer, learning_rate_factor(step, 50, recipe.eye_steps, cooldown=0.4))
        optimizer.step()
        if step % 10 == 0:
            stage.log(step, loss=loss, accuracy=right)
    return stage


# ------------------------------------------------------------------------------------------------------- 3  the tongue


def teach_the_tongue(run: Run, line: int | None = None) -> Stage:
    """Language modelling on text alone: first nonsense, which teaches to look things up, then the library."""
    recipe, tokenizer = run.recipe, toy_tokenizer()
    torch.manual_seed(run.seed)
    lm = LM(run.config.lm).to(run.device)
    optimizer = torch.optim.AdamW(parameter_groups(lm.named_parameters(), recipe.tongue_lr, 0.01), betas=(0.9, 0.98))
    stage = run.stage("language", recipe.tongue_steps, {"lm": lm}, optimizer, line)
    words = [*tokenizer.words, *"abcdefghijklmnopqrstuvwxyz "]
    for step in stage.steps():
        rng = run.rng("language", step)
        practice = step >= recipe.tongue_nonsense_steps and rng.random() < 0.12  # of what was learned first
        if step < recipe.tongue_nonsense_steps or practice:
            length = rng.choice((64, 128))
            filler = 0 if step < recipe.tongue_nonsense_steps * 2 // 3 else 5
            pages = lambda: nonsense(rng, words, filler, length)  # noqa: B023, E731
        else:
            length = rng.choice((64, 128, 256, 512))
            pages = lambda: reading(rng, length // 5)  # noqa: B023, E731
        ids, labels = pack(pages, recipe.tongue_tokens // length, length, tokenizer)
        loss = lm.loss(ids.to(run.device), labels.to(run.device))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        set_learning_rate(optimizer, learning_rate_factor(step, 30, recipe.tongue_steps, cooldown=0.3))
        optimizer.step()
        if step % 10 == 0 and not practice:
            stage.log(step, loss=loss)
    return stage


# ----------------------------------------------------------------------------------------------- 4  freeze, and bridge


def two_at_a_time(device: str) -> ThreadPoolExecutor:
    """Threads for two batches at a time, each with half of a CPU's cores: quicker than all cores for one small batch."""
    cores = os.cpu_count() or 1
    threads = max(1, cores // 2)
    workers = min(2, cores) if device == "cpu" else 1
    return ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads,))


def encode_album(flamingo: Flamingo, album: Album) -> Album:
    """The frozen eye looks at every picture once; from here on its features stand in the place of the pixels."""
    device = next(flamingo.parameters()).device

    @torch.no_grad()
    def eye(pictures: np.ndarray) -> torch.Tensor:
        return flamingo.vision(PREPARE(pictures).to(device)).cpu()

    return album.encode(eye)


def draw_pages(album: Album, rng: random.Random, shots: int, p_next: float | None = None) -> list[Sample]:
    """Interleaved pages of 3 to 8 shots each, `shots` on all together; or long pages: 8, and text before. [N > 1, T = 1]

    A prompt of 32 shots is longer than 8 images ever are; long pages have its length.
    """
    text_only, n = (24, 8) if rng.random() < LONG_PAGES else (0, rng.randint(3, 8))  # the same for all pages of a step
    mixture = LONG if text_only else PAGES
    drawn = rng.choices(list(mixture), weights=list(mixture.values()), k=max(2, shots // (text_only + n)))
    rows = [world(album, rng, text_only + n) for world in drawn]
    rows = [row[: text_only + n] if text_only else row for row in rows]  # several questions about a picture add up
    p_next = P_NEXT if p_next is None else p_next
    return [worlds.page(row, album, rng.random() < p_next, marks(rng, text_only)) for row in rows]


def draw_batches(album: Album, rng: random.Random, recipe: Recipe, p_next: float | None = None) -> dict[str, list[Sample]]:
    """One batch of each of the paper's three kinds of dataset."""
    # Here too some pages are long: other films' texts, without their films, stand before.
    long, named = rng.random() < LONG_PAGES, rng.random() < NAMED_FILMS
    if named:
        before, n = (24, 8) if long else (0, rng.randint(4, 8))
    else:
        before, n = (28, 3) if long else (0, rng.choice((1, 2, 3)))
    world = partial(worlds.binding, shown="mover") if named else worlds.video
    videos = [world(album, rng, before + n) for _ in range(max(1, recipe.bridge_videos // n))]
    asked = recipe.bridge_pairs * 3 // 16  # what the first lesson taught is to be kept
    pairs = [worlds.captions(album, rng, 1, PAIR_KINDS) for _ in range(recipe.bridge_pairs - asked)]
    pairs += [worlds.vqa(album, rng, 1, ("pair",), at_once=3) for _ in range(asked)]
    return {
        "pages": draw_pages(album, rng, recipe.bridge_shots, p_next),
        "pairs": [worlds.page(shots, album) for shots in pairs],
        "videos": [worlds.page(shots, album, lost=marks(rng, before)) for shots in videos],
    }


def draw_first_lesson(album: Album, rng: random.Random, recipe: Recipe) -> dict[str, list[Sample]]:
    """One picture at a time, mostly of two things: what colour each has, how they stand, or its caption.

    Of two things, the colour of the one that is asked for must be looked up by its shape. Among pages of all sorts at once some
    bridges never learned that, and guessed one of the two colours to the end; alone it is learned soon, and kept.
    """
    told, asked = recipe.bridge_pairs // 4, recipe.bridge_pairs * 5 // 8
    lessons = [worlds.captions(album, rng, 1, ("things", "pair", "pair", "row")) for _ in range(told)]
    lessons += [worlds.vqa(album, rng, 1, ("pair",), at_once=3) for _ in range(asked)]
    return {"pairs": [worlds.page(shots, album) for shots in lessons]}


def draw_second_lesson(album: Album, rng: random.Random, recipe: Recipe) -> dict[str, list[Sample]]:
    """The same, and pages of made-up names: pictures become keys by which the tongue looks things up.

    That is learned within a hundred steps here. Where all the other pages came next, some bridges found it late or never.
    """
    n = rng.randint(4, 8)
    rows = [worlds.binding(album, rng, n) for _ in range(max(2, recipe.bridge_shots // 2 // n))]
    return {"pages": [worlds.page(row, album) for row in rows], **draw_first_lesson(album, rng, recipe)}


def least_padding(lengths: list[int], parts: int) -> list[int]:
    """Where to cut samples of ascending lengths into `parts` batches that are least; each is as wide as its longest sample.

    >>> least_padding([2, 2, 3, 9, 9], parts=2)  # 3 · 3 + 2 · 9 = 27 tokens, where halves would have 2 · 2 + 3 · 9 = 31
    [0, 3, 5]
    """
    best = [(0, [0]), *[(float("inf"), [])] * len(lengths)]  # size and cuts of the first 0, 1, 2 … samples
    for _ in range(parts):
        found = best[:1]
        for b in range(1, len(lengths) + 1):
            sizes = [best[a][0] + lengths[b - 1] * (b - a) for a in range(b)]
            least = min(sizes)
            found.append((least, min([*best[a][1], b] for a in range(b) if sizes[a] == least)))
        best = found
    return best[-1][1]


def micro_batches(samples: list[Sample], parts: int, tokenizer: Tokenizer) -> list[tuple[float, Batch]]:
    """A dataset's samples in at most `parts` batches with little padding, and with each batch its share of the labels.

    The mean loss over all of them is Σ share · loss: gradients are the same as those of one large batch.
    """
    rows = sorted((lay_out(sample, tokenizer) for sample in samples), key=lambda row: len(row.ids))
    cuts = least_padding([len(row.ids) for row in rows], parts)
    batches = [collate_rows(rows[a:b], tokenizer.pad_id) for a, b in pairwise(cuts)]
    labels = [int((batch.labels >= 0).sum()) for batch in batches]
    return [(n / max(sum(labels), 1), batch) for n, batch in zip(labels, batches)]


def gate_openings(flamingo: Flamingo) -> dict[str, float]:
    """|tanh alpha| of every layer: how far each gate stands open."""
    return {
        f"{alpha}_{i}": float(getattr(layer, alpha).detach().tanh().abs())
        for i, layer in flamingo.xattn_layers.items()
        for alpha in ("alpha_xattn", "alpha_dense")
    }


@torch.no_grad()
def begin_as_a_dash(flamingo: Flamingo) -> None:
    """The row of `<image>` begins as a dash: the mark before an entry of a list, which the tongue knows to say nothing.

    In the tongue's self-attention an `<image>` is one more token. With 32 of them, and never more than 8 in training, a tongue
    that had not read lists recalled wrong homes and sums, and captions got mixed up.
    """
    (dash,) = toy_tokenizer().encode(DASH)
    flamingo.new_embed.weight.copy_(flamingo.lm.embed.weight[dash])


def build_the_bridge(run: Run, eye: Stage, tongue: Stage) -> tuple[Stage, Flamingo]:
    """Flamingo proper: eye and tongue are frozen, what stands between them learns."""
    recipe, tokenizer = run.recipe, toy_tokenizer()
    torch.manual_seed(run.seed)
    flamingo = Flamingo(run.config, eye.modules["pair"].vision, tongue.modules["lm"]).to(run.device)
    begin_as_a_dash(flamingo)
    groups = parameter_groups(flamingo.bridge_parameters(), recipe.bridge_lr, recipe.bridge_decay, gate_lr=3 * recipe.bridge_lr)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    stage = run.stage("flamingo", recipe.bridge_steps, {"flamingo": flamingo}, optimizer)
    if stage.finished:
        return stage, flamingo
    album = encode_album(flamingo, draw_album(recipe.album, run.seed))
    parameters = [parameter for _, parameter in flamingo.bridge_parameters()]
    pool = two_at_a_time(run.device)
    flamingo.train()
    for step in stage.steps():
        if step < recipe.bridge_first_steps:
            draw = draw_first_lesson
        else:
            draw = draw_second_lesson if step < recipe.bridge_first_steps + recipe.bridge_second_steps else draw_batches
        datasets = draw(album, run.rng("flamingo", step), recipe)
        parts = {
            (kind, i): part
            for kind, samples in datasets.items()
            for i, part in enumerate(micro_batches(samples, PARTS[kind], tokenizer))
        }
        # The longest first: so neither of two threads waits long for the other in the end.
        parts = dict(sorted(parts.items(), key=lambda item: -item[1][1].ids.numel()))
        # The gradients of all datasets are added up, each times its lambda_m, before one update is made.
        forward = {key: lambda batch=batch: flamingo.loss(batch.to(run.device)) for key, (_, batch) in parts.items()}
        weights = {(kind, i): LAMBDA[kind] * share for (kind, i), (share, _) in parts.items()}
        losses = accumulate_gradients(forward, weights, parameters, pool)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        set_learning_rate(optimizer, learning_rate_factor(step, 50, recipe.bridge_steps, cooldown=0.4))
        optimizer.step()
        if step % 10 == 0:
            by_kind = {
                f"loss_{kind}": sum(parts[key][0] * loss for key, loss in losses.items() if key[0] == kind) for kind in datasets
            }
            total = sum(weights[key] * loss for key, loss in losses.items())
            stage.log(step, loss=total, **by_kind, **gate_openings(flamingo))
    return stage, flamingo


# ----------------------------------------------------------------------------------------------------------- 5  the exam


def examine(run: Run, flamingo: Flamingo) -> dict[str, dict]:
    """Few-shot accuracy per task and number of shots, on held-out cases. No gradient anywhere."""
    tokenizer, n = toy_tokenizer(), run.recipe.exam
    flamingo.eval()
    album = encode_album(flamingo, draw_album(3000, run.seed, split="test"))
    tasks: dict[str, dict] = {}
    with (
        tqdm(total=len(ROWS) * len(SHOTS), desc="      exam", file=sys.stderr, dynamic_ncols=True) as bar,
        two_at_a_time(run.device) as pool,
    ):
        cases = {task: queries(task, album, n, run.seed) for task in ROWS}
        # The longest papers first: so no core waits long for the other in the end.
        papers = {
            (task, shots): pool.submit(predict, flamingo, tokenizer, cases[task], shots)
            for shots in reversed(SHOTS)
            for task in ROWS
        }
        for paper in papers.values():
            paper.add_done_callback(lambda _: bar.update())
        for task in ROWS:
            for shots in SHOTS:
                for marked, correct in mark(task, papers[task, shots].result(), cases[task]).items():
                    entry = tasks.setdefault(marked, {"chance": CHANCE[marked], "shots": {}})
                    entry["shots"][shots] = accuracy(correct)
    return tasks


# -------------------------------------------------------------------------------------------------------- 6  the figures


def some_prompts(run: Run, flamingo: Flamingo, shots: str = "4") -> list[dict]:
    """A few real prompts with the model's completions, right or wrong as they come."""
    tokenizer, examples = toy_tokenizer(), []
    pixels = draw_album(1500, run.seed + 1, split="test")
    features = encode_album(flamingo, pixels)
    for task in ("task", "binding_4way", "naming", "vqa", "ocr", "arithmetic", "video", "caption"):
        (seen,), (shown,) = (queries(task, album, 1, run.seed) for album in (features, pixels))
        completion = predict(flamingo, tokenizer, [replace(seen, choices=None)], shots)[0]
        pieces = [p[0] if isinstance(p, np.ndarray) and len(p) == 1 else p for p in few_shot_prompt(shown, shots).pieces]
        pieces = [p for p in pieces if isinstance(p, str | np.ndarray)]
        right = all(correct[0] for correct in mark(task, [completion], [seen]).values())
        examples.append({"title": task, "pieces": pieces, "completion": completion, "answer": seen.answer, "correct": right})
    return examples


def draw_figures(run: Run, flamingo: Flamingo, results: dict, rows: list[dict]) -> None:
    """shots, loss, gates, prompts, attention and world .png"""
    out, tokenizer = run.out, toy_tokenizer()
    plot_shots(results, out / "shots.png")
    plot_loss(rows, out / "loss.png")
    plot_gates([row for row in rows if row["stage"] == "flamingo"], out / "gates.png")
    plot_prompts(some_prompts(run, flamingo), out / "prompts.png")

    rng = run.rng("figures")
    album = draw_album(300, run.seed + 2, split="test")
    pair = album.scenes[album.having("kind", "pair")[0]], album.media[album.having("kind", "pair")[0]]
    text = " " + caption(pair[0])
    batch = collate([Sample([pair[1], "Output:", text])], tokenizer, PREPARE).to(run.device)
    maps = patch_attention(flamingo, batch)[0, :, 0].cpu()  # (L, S)
    side = int(maps.shape[1] ** 0.5)
    words = tokenizer.encode(text)
    names = [tokenizer.decode([i]).strip() for i in words]
    # The map that produces a word is that of the token before it.
    maps = maps[-1 - len(words) : -1].unflatten(1, (side, side)).numpy()
    plot_attention(pair[1][0], names, maps, out / "attention.png")

    kinds = ("things", "pair", "row", "sign", "sum", "creature", "video")
    chosen = [rng.choice(album.having("kind", kind)) for kind in kinds for _ in range(2)]
    plot_world([(album.media[i][0] if len(album.media[i]) == 1 else album.media[i], caption(album.scenes[i])) for i in chosen],
               out / "world.png")  # fmt: skip


# -------------------------------------------------------------------------------------------------------- the whole story


def best_device() -> str:
    """The GPU if there is one."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def one_lesson(lesson, run: Run, line: int, threads: int) -> None:
    """A lesson in a process of its own; what it learned is in its checkpoint."""
    torch.set_num_threads(threads)
    lesson(run, line)


def teach_eye_and_tongue(run: Run) -> tuple[Stage, Stage]:
    """The two do not need each other: on a CPU each gets half of the cores, which is quicker than all cores for one."""
    lessons, cores = (teach_the_eye, teach_the_tongue), os.cpu_count() or 1
    if run.device == "cpu" and cores > 1 and run.size != "quick":
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(2, mp_context=spawn) as pool:
            jobs = [pool.submit(one_lesson, lesson, run, i, cores // 2) for i, lesson in enumerate(lessons)]
            for job in jobs:
                job.result()
        print(file=sys.stderr)
    return teach_the_eye(run), teach_the_tongue(run)  # finished ones are only read from their checkpoints


def seconds_of_earlier_calls(run: Run) -> float:
    """What a resumed run has behind it already (eye and tongue are taught at the same time)."""
    files = [run.out / "stages" / f"{name}.pt" for name in ("vision", "language", "flamingo")]
    eye, tongue, bridge = (load_tensors(file)["seconds"] if file.exists() else 0.0 for file in files)
    return max(eye, tongue) + bridge


def write_metrics(rows: list[dict], path: Path) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(path, write)


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=("tiny", "small"), default="tiny", help="small wants a GPU")
    parser.add_argument("--device", default=None, help="cpu, cuda or mps; by itself the best there is")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="default: runs/tiny")
    parser.add_argument("--fresh", action="store_true", help="start over instead of going on")
    parser.add_argument("--quick", action="store_true", help="a smoke run: everything happens, nothing is learnt")
    given = parser.parse_args(arguments)
    size = "quick" if given.quick else given.size
    run = Run(size, given.seed, given.device or best_device(), given.out or Path("runs") / size, RECIPES[size])
    try:
        if given.fresh and run.out.exists():
            shutil.rmtree(run.out / "stages", ignore_errors=True)
        (run.out / "stages").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"cannot write to {run.out}: {error.strerror}. Choose another folder with --out") from None

    began, earlier = time.monotonic(), seconds_of_earlier_calls(run)
    try:
        eye, tongue = teach_eye_and_tongue(run)
        stage, flamingo = build_the_bridge(run, eye, tongue)
    except SettingsDiffer as error:
        raise SystemExit(str(error)) from None
    minflamingo.save(LoadedFlamingo(flamingo, toy_tokenizer(), PREPARE), run.out)
    rows = eye.rows + tongue.rows + stage.rows
    write_metrics(rows, run.out / "metrics.csv")
    exam_began = time.monotonic()
    tasks = examine(run, flamingo)
    results = {
        "seed": run.seed,
        "device": device_name(run.device),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "minflamingo": minflamingo.__version__},
        "seconds": {
            "vision": round(eye.seconds, 1), "language": round(tongue.seconds, 1), "flamingo": round(stage.seconds, 1),
            "evaluation": round(time.monotonic() - exam_began, 1),
        },
        "tasks": tasks,
    }  # fmt: skip
    draw_figures(run, flamingo, results, rows)
    results["seconds"]["total"] = round(earlier + time.monotonic() - began, 1)
    save_json(results, run.out / "results.json")
    report(results, run.out)
    return results


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device.startswith("cuda") else f"{device}, {os.cpu_count()} cores"


def report(results: dict, out: Path) -> None:
    """The table of results, for people."""
    print(f"\n{'':14}" + "".join(f"{shots:>8}" for shots in SHOTS) + "    shots")
    for task, entry in results["tasks"].items():
        print(f"{task:14}" + "".join(f"{entry['shots'][shots]['accuracy']:8.2f}" for shots in SHOTS))
    print(f"\n{results['seconds']['total'] / 60:.1f} minutes. The model, results.json and the figures are in {out}/")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("\nstopped; the same command goes on from here") from None
