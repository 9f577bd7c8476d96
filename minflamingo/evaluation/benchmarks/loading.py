"""`load_benchmark`: a name and a folder → a `Task`, with the prompts of the paper or of OpenFlamingo.

    task = load_benchmark("vqav2", "data/vqav2")              queries of val2014, shots from train2014
    task.template.shown(task.support[0])                      "Question: What's the cat wearing? Answer: sunglasses"

    template        paper (§3, appendix)                                    openflamingo
    captions        Output: {caption}                                       Output:{caption}
    questions       Question: {question} Answer: {answer}                   Question:{question} Short answer:{answer}
    HatefulMemes    is an image with written: "{text}" on it.               is an image with: '{text}' written on it.
                    Is it hateful? Answer: {answer}                         Is it hateful? Answer:{answer}
    choices by      the sum of their tokens' log-likelihoods                the mean

OpenFlamingo puts a line break after each `<EOC>` of captions and questions. The paper's wording for HatefulMemes is given from
memory (~). VisDial's is ours in both, as neither prints one: `choices.py` shows it.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..task import Example, Task, Template
from . import captions, choices, questions
from .files import Source


@dataclass(frozen=True)
class Benchmark:
    """How one is read. `files`: what must be in the folder, for people to read. `queries`, `support`: the usual splits."""

    read: Callable[[Source, str], list[Example]]
    kind: str  # of template
    metric: str
    splits: tuple[str, ...]
    queries: str
    support: str
    files: str


BENCHMARKS: dict[str, Benchmark] = {
    "coco": Benchmark(
        captions.coco, "caption", "cider", ("train", "val", "test"), "test", "train",
        "dataset_coco.json (Karpathy's splits), or captions_{train,val}{2014,2017}.json; images in train2014/, val2014/ …",
    ),
    "flickr30k": Benchmark(
        captions.flickr30k, "caption", "cider", ("train", "val", "test"), "test", "train",
        "dataset_flickr30k.json (Karpathy's splits); images in flickr30k-images/",
    ),
    "vqav2": Benchmark(
        questions.vqav2, "question", "vqa", ("train", "val", "test-dev", "test"), "val", "train",
        "v2_OpenEnded_mscoco_{train,val}2014_questions.json, v2_mscoco_{train,val}2014_annotations.json "
        "(test: only v2_OpenEnded_mscoco_test[-dev]2015_questions.json); images in train2014/, val2014/, test2015/",
    ),
    "okvqa": Benchmark(
        questions.okvqa, "question", "vqa", ("train", "val"), "val", "train",
        "OpenEnded_mscoco_{train,val}2014_questions.json, mscoco_{train,val}2014_annotations.json; "
        "images in train2014/, val2014/",
    ),
    "vizwiz": Benchmark(
        questions.vizwiz, "question", "vqa", ("train", "val", "test"), "val", "train",
        "{train,val,test}.json; images in train/, val/, test/",
    ),
    "textvqa": Benchmark(
        questions.textvqa, "question", "vqa", ("train", "val", "test"), "val", "train",
        "TextVQA_0.5.1_{train,val,test}.json; images in train_images/ (train and val), test_images/",
    ),
    "visdial": Benchmark(
        choices.visdial, "dialogue", "ndcg", ("train", "val", "test"), "val", "train",
        "visdial_1.0_{train,val,test}.json, visdial_1.0_{train,val}_dense_annotations.json; "
        "images in train2014/, val2014/ (train), VisualDialog_{val,test}2018/",
    ),
    "hatefulmemes": Benchmark(
        choices.hatefulmemes, "meme", "auc",
        ("train", "dev", "test", "dev_seen", "test_seen", "dev_unseen", "test_unseen"), "test_seen", "train",
        "train.jsonl, {dev,test}[_seen|_unseen].jsonl; images in img/",
    ),
    "msrvttqa": Benchmark(
        questions.msrvttqa, "question", "top1", ("train", "val", "test"), "test", "train",
        "{train,val,test}_qa.json; films video0.mp4 …, or folders video0/ … of frames, in videos/, video/ or frames/",
    ),
    "vatex": Benchmark(
        captions.vatex, "caption", "cider", ("train", "val", "test", "private_test"), "test", "train",
        "vatex_training_v1.0.json, vatex_validation_v1.0.json, vatex_public_test_english_v1.1.json, "
        "vatex_private_test_without_annotations.json; films VIDEOID.mp4, or folders VIDEOID/ of frames, in videos/ or frames/",
    ),
    "youcook2": Benchmark(
        captions.youcook2, "caption", "cider", ("train", "val"), "val", "train",
        "youcookii_annotations_trainval.json; whole films in raw_videos/SUBSET/RECIPE/ID.mp4 or videos/ID.mp4, or folders "
        "frames/ID/ with one frame a second",
    ),
}  # fmt: skip

PAPER = {
    "caption": Template("Output:", " {answer}"),
    "question": Template("Question: {question} Answer:", " {answer}"),
    "dialogue": Template("{dialogue}Question: {question} Answer:", " {answer}"),
    "meme": Template('is an image with written: "{text}" on it. Is it hateful? Answer:', " {answer}"),
}
OPENFLAMINGO = {
    "caption": Template("Output:", "{answer}", between="\n"),
    "question": Template("Question:{question} Short answer:", "{answer}", between="\n"),
    "dialogue": PAPER["dialogue"],  # OpenFlamingo has no VisDial
    "meme": Template("is an image with: '{text}' written on it. Is it hateful? Answer:", "{answer}"),
}
TEMPLATES: Mapping[str, Mapping[str, Template]] = {"paper": PAPER, "openflamingo": OPENFLAMINGO}


def files_expected() -> str:
    """A line for each benchmark, on the files it needs: for `--help`."""
    return "\n".join(f"{name:<13} {b.files}  [{', '.join(b.splits)}]" for name, b in BENCHMARKS.items())


def load_benchmark(
    name: str,
    folder: str | Path,
    split: str | None = None,
    support: str | None = None,
    template: str = "paper",
    media: str | Path | None = None,
) -> Task:
    """A benchmark on disk. Its annotation files are read; images and films are not, until an example's `media()` is called.

    Args:
        name: one of `BENCHMARKS`. folder: where its files are, under their official names (`files_expected`).
        split, support: of the queries and of what shots are drawn from; None: those that are usual.
        template: "paper" or "openflamingo". media: the folder of images or films, if it is another one.
    Returns:
        A task; `task.problems` says which records could not be read and were passed over.
    Raises:
        FileNotFoundError: an annotation file is missing; lists what was looked for. ValueError: it is not of the format, or
        there is no such benchmark, split or template, or queries and support are the same split.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"there is no benchmark {name!r}; choose one of {', '.join(BENCHMARKS)}")
    if template not in TEMPLATES:
        raise ValueError(f"there is no template {template!r}; choose one of {', '.join(TEMPLATES)}")
    benchmark = BENCHMARKS[name]
    split, support = split or benchmark.queries, support or benchmark.support
    for asked in (split, support):
        if asked not in benchmark.splits:
            raise ValueError(f"{name} has no split {asked!r}; choose one of {', '.join(benchmark.splits)}")
    if split == support:
        raise ValueError(f"{name}: queries and support are both {split!r}; an example could be shown its own answer")
    source = Source(Path(folder), Path(media) if media is not None else None)
    with no_garbage():
        queries = benchmark.read(source, split)
        source.stems.clear()  # those of the queries' answers are nobody's to know
        shown = [e for e in benchmark.read(source, support) if e.answers]
    paper = template == "paper"
    return Task(
        name=name,
        support=shown,
        queries=queries,
        template=TEMPLATES[template][benchmark.kind],
        metric=benchmark.metric,
        clean=Clean(benchmark.kind, template, name == "msrvttqa", source.stems or None),
        max_new_tokens=(32 if paper else 20) if benchmark.kind == "caption" else (16 if paper else 5),
        scoring="sum" if paper else "mean",
        problems=tuple(dict.fromkeys(source.problems)),  # a file that holds both splits was read twice
    )


@contextmanager
def no_garbage() -> Iterator[None]:
    """VQAv2 makes millions of objects, and none of them is garbage: to look them through for some takes half the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@dataclass(frozen=True)
class Clean:
    """What is left of a generated text: no next prompt, no spaces around.

    As OpenFlamingo does it, an answer also ends at its first comma, and a bare "Question", "Answer" or "Short" ends it.
    lower: MSRVTTQA's answers are lower case and without a point. stems: OK-VQA's, from the support's annotations; the words
    that people gave and what the benchmark made of them (OpenFlamingo stems with a dictionary instead).
    """

    kind: str
    template: str
    lower: bool = False
    stems: Mapping[str, str] | None = None

    def __call__(self, generated: str) -> str:
        if self.template == "openflamingo":
            end = "Output" if self.kind == "caption" else "Question|Answer|Short|, "
        else:
            end = "Output:" if self.kind == "caption" else "Question:|\n"
        kept = re.split(end, generated, maxsplit=1)[0].strip()
        if self.lower:
            kept = kept.rstrip(" .").lower()
        return (self.stems or {}).get(kept.lower(), kept)
