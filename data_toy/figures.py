"""The figures of a run of `train_tiny.py`: accuracy against shots, losses, gates, example prompts, attention, the toy world."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np

from minflamingo import plots
from minflamingo.data.sample import Sample, collate
from minflamingo.evaluation.attention_maps import patch_attention
from minflamingo.evaluation.fewshot import few_shot_prompt, predict
from minflamingo.flamingo import Flamingo

from .evaluation_tasks import correct, queries
from .media_pool import PREPROCESS, draw_media_pool, encode_media_pool
from .words import caption, toy_tokenizer
from .world import VALUES


def example_prompts(flamingo: Flamingo, seed: int, shots: str = "4") -> list[dict]:
    """One prompt per task with the model's answer, right or wrong."""
    pixels, tokenizer, examples = draw_media_pool(1500, seed + 1, split="test"), toy_tokenizer(), []
    features = encode_media_pool(flamingo, pixels)
    for task in ("task", "binding_4way", "naming", "vqa", "ocr", "arithmetic", "video", "caption"):
        # The same query twice: with features for the model, with pixels for the figure.
        (query,), (shown,) = (queries(task, pool, 1, seed) for pool in (features, pixels))
        completion = predict(flamingo, tokenizer, [replace(query, choices=None)], shots)[0]
        pieces = [p[0] if isinstance(p, np.ndarray) and len(p) == 1 else p for p in few_shot_prompt(shown, shots).pieces]
        pieces = [p for p in pieces if isinstance(p, str | np.ndarray)]
        right = all(r[0] for r in correct(task, [completion], [query]).values())
        examples.append({"title": task, "pieces": pieces, "completion": completion, "answer": query.answer, "correct": right})
    return examples


def draw_figures(flamingo: Flamingo, results: dict, rows: list[dict], out: Path, seed: int) -> None:
    """Write shots, loss, gates, prompts, attention and world .png into the folder `out`.

    results: as in results.json. rows: what the training stages logged.
    """
    rng, tokenizer = random.Random(f"{seed} figures"), toy_tokenizer()
    plots.plot_shots(results, out / "shots.png")
    plots.plot_loss(rows, out / "loss.png")
    plots.plot_gates([row for row in rows if row["stage"] == "flamingo"], out / "gates.png")
    plots.plot_prompts(example_prompts(flamingo, seed), out / "prompts.png")

    # What each word of a caption attends to in its image.
    pool = draw_media_pool(300, seed + 2, split="test")
    i = pool.having("kind", "pair")[0]
    image, text = pool.media[i], " " + caption(pool.scenes[i])
    batch = collate([Sample([image, "Output:", text])], tokenizer, PREPROCESS).to(next(flamingo.parameters()).device)
    maps = patch_attention(flamingo, batch)[0, :, 0].cpu()  # (L, S)
    words = [tokenizer.decode([i]).strip() for i in tokenizer.encode(text)]
    # The map that produces a word is that of the token before it.
    maps = maps[-1 - len(words) : -1].unflatten(1, (int(maps.shape[1] ** 0.5), -1)).numpy()
    plots.plot_attention(image[0], words, maps, out / "attention.png")

    chosen = [i for kind in VALUES for i in rng.sample(pool.having("kind", kind), 2)]
    media = [pool.media[i][0] if len(pool.media[i]) == 1 else pool.media[i] for i in chosen]
    plots.plot_world([(medium, caption(pool.scenes[i])) for medium, i in zip(media, chosen)], out / "world.png")
