"""The paper's benchmarks (section 3), read from disk in their official formats.

    task = load_benchmark("vqav2", "data/vqav2")              queries from val2014, shots from train2014
    task.template.shown(task.support[0])                      "Question: What's the cat wearing? Answer: sunglasses"

The folder has the official layout. Annotation files are in it or in annotations/. The last column of the table below has the
paths of images and videos. A video is VIDEO.mp4 or a folder VIDEO with one frame per second. An error names the missing file.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..task import Example, Task, Template
from .formats import MediaFile, coco_questions, flat, karpathy, read_annotations, visdial, youcook2

# Kind of benchmark -> prompt, where a generated answer ends (regular expression), max_new_tokens.
# "paper": section 3 and appendix. It prints no prompts for dialogues and memes: these are ours. "openflamingo": its code.
TEMPLATES = {
    "paper": {
        "caption": (Template("Output:"), "Output:", 32),
        "question": (Template("Question: {question} Answer:"), "Question:|\n", 16),
        "dialogue": (Template("{dialogue}Question: {question} Answer:"), "", 0),
        "meme": (Template('is an image with written: "{text}" on it. Is it hateful? Answer:'), "", 0),
    },
    "openflamingo": {
        "caption": (Template("Output:", "{answer}", between="\n"), "Output", 20),
        "question": (Template("Question:{question} Short answer:", "{answer}", between="\n"), "Question|Answer|Short|, ", 5),
        "dialogue": (Template("{dialogue}Question: {question} Answer:"), "", 0),
        "meme": (Template("is an image with: '{text}' written on it. Is it hateful? Answer:", "{answer}"), "", 0),
    },
}


@dataclass(frozen=True)
class Benchmark:
    """records(read, split) reads the annotations. splits: our names -> names in files. queries: the usual split of the queries.

    ids: fields that identify a record, also in the official results file. media: possible paths, with a record's fields.
    """

    metric: str
    kind: str
    records: Callable[[Callable, str], Iterable[dict]]
    splits: Mapping[str, str]
    queries: str
    ids: tuple[str, ...]
    media: tuple[str, ...]


SAME = {"train": "train", "val": "val", "test": "test"}
YEARS = {"train": "train2014", "val": "val2014"}
YEARS_VQA = {**YEARS, "test": "test2015", "test-dev": "test-dev2015"}
MEMES = {split: split for split in ("train", "dev_seen", "test_seen", "dev_unseen", "test_unseen")}
VATEX = {"train": "training_v1.0", "val": "validation_v1.0", "test": "public_test_english_v1.1"}
COCO = "{split}/COCO_{split}_{image_id:012d}.jpg"
TEST_DEV = "test2015/COCO_test2015_{image_id:012d}.jpg"
VISDIAL = (
    "VisualDialog_{split}2018/VisualDialog_{split}2018_{image_id:012d}.jpg",
    "train2014/COCO_train2014_{image_id:012d}.jpg", "val2014/COCO_val2014_{image_id:012d}.jpg",
)  # fmt: skip
BENCHMARKS = {name: Benchmark(*row) for name, row in {
    "coco": ("cider", "caption", partial(karpathy, "dataset_coco.json"), SAME, "test", ("image_id",), ("{path}",)),
    "flickr30k": ("cider", "caption", partial(karpathy, "dataset_flickr30k.json"), SAME, "test", ("image_id",), ("{path}",)),
    "vqav2": ("vqa", "question", partial(coco_questions, "v2_"), YEARS_VQA, "val", ("question_id",), (COCO, TEST_DEV)),
    "okvqa": ("vqa", "question", partial(coco_questions, ""), YEARS, "val", ("question_id",), (COCO,)),
    "vizwiz": ("vqa", "question", partial(flat, "{split}.json"), SAME, "val", ("image",), ("{split}/{image}",)),
    "textvqa": ("vqa", "question", partial(flat, "TextVQA_0.5.1_{split}.json"), SAME, "val", ("question_id",),
                ("train_images/{image_id}.jpg", "test_images/{image_id}.jpg")),
    "visdial": ("ndcg", "dialogue", visdial, SAME, "val", ("image_id", "round_id"), VISDIAL),
    "hatefulmemes": ("roc_auc", "meme", partial(flat, "{split}.jsonl"), MEMES, "test_seen", ("id",), ("{img}",)),
    "msrvttqa": ("exact_match", "question", partial(flat, "{split}_qa.json"), SAME, "test", ("id",),
                 ("videos/video{video_id}", "frames/video{video_id}")),
    "vatex": ("cider", "caption", partial(flat, "vatex_{split}.json"), VATEX, "test", ("videoID",),
              ("videos/{videoID}", "frames/{videoID}")),
    "youcook2": ("cider", "caption", youcook2, {"train": "training", "val": "validation"}, "val", ("video_id", "id"),
                 ("{path}", "videos/{video_id}", "frames/{video_id}")),
}.items()}  # fmt: skip


def answers_of(record: dict) -> tuple[str, ...]:
    """The references; () if they are hidden. The most frequent is the first: it is the one that a prompt shows."""
    if record.get("label") is not None:  # Hateful Memes
        return ("yes" if record["label"] else "no",)
    given = record.get("answers") or record.get("enCap") or ([record["answer"]] if "answer" in record else [])
    texts = [(a["answer"] if isinstance(a, dict) else a).strip() for a in given]
    return tuple(sorted(texts, key=Counter(texts).get, reverse=True))


def example(benchmark: Benchmark, folder: Path, split: str, record: dict) -> Example:
    media = tuple(folder / path.format_map({**record, "split": split}) for path in benchmark.media)
    choices = ("yes", "no") if benchmark.kind == "meme" else tuple(record.get("choices", ()))
    return Example(
        key="/".join(str(record[name]) for name in benchmark.ids),
        media=MediaFile(media, *record.get("segment", ())),
        answers=answers_of(record),
        fields={name: value for name, value in record.items() if isinstance(value, str | int)},
        choices=choices or None,
        gains=tuple(record["gains"]) if record.get("gains") else None,
    )


def cleaned(text: str, end: str, lower: bool, stems: Mapping[str, str]) -> str:
    """The generated text before `end`, the beginning of another prompt."""
    text = re.split(end, text, maxsplit=1)[0].strip()
    text = text.rstrip(" .").lower() if lower else text
    return stems.get(text.lower(), text)


def load_benchmark(name: str, folder: str | Path, *, split: str | None = None, template: str = "paper") -> Task:
    """Queries from `split` (default: the usual one), shots from the training split. Media files are opened when they are used.

    Raises:
        FileNotFoundError: an annotation file is missing. ValueError: unknown name or split, or a file of another format.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"unknown benchmark {name!r}; choose one of {', '.join(BENCHMARKS)}")
    benchmark, stems = BENCHMARKS[name], {}
    split = split or benchmark.queries
    if split not in benchmark.splits or split == "train":
        allowed = ", ".join(s for s in benchmark.splits if s != "train")
        raise ValueError(f"{name}: queries cannot come from split {split!r}; choose one of {allowed}")
    examples: dict[str, list[Example]] = {"train": [], split: []}
    for part, made in examples.items():
        files, record = benchmark.splits[part], "at its beginning"
        try:
            for record in benchmark.records(partial(read_annotations, Path(folder)), files):
                made.append(example(benchmark, Path(folder), files, record))
                if name == "okvqa" and part == "train":  # answers are stemmed ("racing" -> "race"), so predictions are, too
                    stems |= {a["raw_answer"].lower(): a["answer"] for a in record["answers"]}
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ValueError(f"{folder}: {name} {part} is not in the official format: {error!r} at {record!r:.200}") from None
    prompt, end, length = TEMPLATES[template][benchmark.kind]
    return Task(
        name, [e for e in examples["train"] if e.answers], examples[split], prompt, benchmark.metric,
        clean=partial(cleaned, end=end, lower=name == "msrvttqa", stems=stems), max_new_tokens=length,
        scoring="sum" if template == "paper" else "mean",  # of the log-likelihoods of a choice's tokens
    )  # fmt: skip
