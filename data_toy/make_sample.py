"""Write a small sample of the toy world to disk: `python -m data_toy.make_sample`.

It shows the format (see README.md) and is useful to test a reader. Each task has three documents, with 3, 4 and 5 shots. In the
last one, each text comes before its image. Nothing in the sample is held out.
"""

import random
from functools import partial
from pathlib import Path

from minflamingo.data.readers import write_jsonl
from minflamingo.data.sample import EOC, Sample

from . import shot_rows
from .media_pool import draw_media_pool
from .shot_rows import to_sample
from .text_corpus import TEXT_KINDS, lookup_practice
from .words import caption, vocabulary

FOLDER = Path(__file__).parent / "sample"
PAIRS = {"things": 10, "pair": 8, "row": 5, "sign": 6, "sum": 6, "animal": 5}
TASKS = ("task", "binding", "naming", "vqa", "ocr", "arithmetic", "video", "caption")
sample_pool = partial(draw_media_pool, 1500, seed=40)  # it starts with the animals of the README's example


def draw_sample() -> dict[str, dict[str, Sample]]:
    """Dataset name -> id -> sample."""
    pool, words = sample_pool(), vocabulary()

    def rng_of(name: str, k: int) -> random.Random:
        return random.Random(f"sample 352 {name} {k}")

    def captioned(kind: str, k: int) -> Sample:
        i = pool.ids["kind", kind][k]
        return Sample([pool.media[i], " " + caption(pool.scenes[i]), EOC])

    def document(name: str, k: int) -> Sample:
        row = getattr(shot_rows, f"{name}_row")(pool, rng_of(name, k), 3 + k)
        return to_sample(row, pool, attend_next=k == 2)

    text = {f"{kind.__name__}-{k}": kind(rng_of(kind.__name__, k), 5) for kind in TEXT_KINDS for k in range(4)}
    text |= {f"lookup_practice-{k}": lookup_practice(rng_of("lookup_practice", k), words, length=40) for k in range(4)}
    return {
        "pairs": {f"{kind}-{k}": captioned(kind, k) for kind, n in PAIRS.items() for k in range(n)},
        "videos": {f"video-{k}": captioned("video", k) for k in range(12)},
        "documents": {f"{name}-{k}": document(name, k) for name in TASKS for k in range(3)},
        "text": text,
    }


def write_sample(folder: Path = FOLDER) -> None:
    for name, samples in draw_sample().items():
        write_jsonl(samples.values(), folder / f"{name}.jsonl", ids=samples)


if __name__ == "__main__":
    write_sample()
