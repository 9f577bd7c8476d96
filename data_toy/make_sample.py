"""A small sample of the toy world on disk: `python -m data_toy.make_sample [folder]`. The format: `data/readers.py`.

    pairs.jsonl    40   a picture and its caption: every kind of picture
    videos.jsonl   12   a film and its caption
    pages.jsonl    24   few-shot pages of 3, 4 and 5 shots of each world; those of 5 have each text before its image
    text.jsonl     24   pages of the library, which the language model reads
    images/             what the first three show: PNG, 48 × 48, one for each picture and each frame

Training draws its pages as it goes. This sample is to look at, to try a reader with, and to copy the format from.
Nothing in it is held out. The same program writes the same files.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from minflamingo.data.readers import write_jsonl
from minflamingo.data.sample import EOC, Sample

from . import worlds
from .album import Album, draw_album
from .library import SHELVES, nonsense
from .words import caption, vocabulary
from .world import CREATURES

FOLDER = Path(__file__).parent / "sample"
# How many of each kind there are in the album that everything is chosen from: few, so that pages share pictures.
PICTURES = {"things": 40, "pair": 10, "row": 7, "sign": 16, "sum": 24, "video": 12}
PAIRS = {"things": 10, "pair": 8, "row": 5, "sign": 6, "sum": 6, "creature": 5}
WORLDS = {
    "task": worlds.task, "binding": worlds.binding, "naming": worlds.naming, "vqa": worlds.vqa, "ocr": worlds.ocr,
    "arithmetic": worlds.arithmetic, "video": worlds.video, "caption": worlds.captions,
}  # fmt: skip
SEED = 352  # chosen so that the three pages of each world differ in what they ask


def dice(*words: object) -> random.Random:
    """Each item has dice of its own: a change in one world leaves the items of the others as they are."""
    return random.Random(" ".join(map(str, (f"sample {SEED}", *words))))


def small_album() -> Album:
    """A few pictures of each kind, and every creature once. Training pictures only."""
    big = draw_album(1000, seed=0)
    chosen = [i for kind, n in PICTURES.items() for i in big.ids["kind", kind][:n]]
    chosen += [big.ids["creature", name][0] for name in CREATURES]
    return Album([big.scenes[i] for i in chosen], [big.media[i] for i in chosen])


def captioned(album: Album, i: int) -> Sample:
    return Sample([album.media[i], " " + caption(album.scenes[i]), EOC])


def draw_sample() -> dict[str, dict[str, Sample]]:
    """Everything that is in the sample: name of the dataset → id → sample."""
    album, words = small_album(), vocabulary()
    pairs = {f"{kind}-{k}": captioned(album, album.ids["kind", kind][k]) for kind, n in PAIRS.items() for k in range(n)}
    videos = {f"video-{k}": captioned(album, i) for k, i in enumerate(album.ids["kind", "video"])}
    pages = {
        f"{name}-{k}": worlds.page(world(album, dice(name, k), 3 + k), album, attend_next=k == 2)
        for name, world in WORLDS.items()
        for k in range(3)
    }
    text = {f"{shelf.__name__}-{k}": shelf(dice(shelf.__name__, k), 5) for shelf in SHELVES for k in range(4)}
    text |= {f"nonsense-{k}": nonsense(dice("nonsense", k), words, longest_filler=3, length=40) for k in range(4)}
    return {"pairs": pairs, "videos": videos, "pages": pages, "text": text}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help="default: data_toy/sample")
    folder = parser.parse_args(arguments).folder
    for name, samples in draw_sample().items():
        write_jsonl(samples.values(), folder / f"{name}.jsonl", ids=samples)
        print(f"{folder / name}.jsonl: {len(samples)} samples")


if __name__ == "__main__":
    main()
