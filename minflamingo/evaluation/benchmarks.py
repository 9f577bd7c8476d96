"""The paper's benchmarks (section 3), read from disk in their official formats.

    task = load_benchmark("vqav2", "data/vqav2")              queries from val2014, shots from train2014
    task.template.shown(task.support[0])                      "Question: What's the cat wearing? Answer: sunglasses"

The folder has the official layout. Annotation files are in it or in annotations/. The last column of the table below has the
paths of images and videos. A video is PATH.mp4 or a folder PATH with one frame per second. An error names the missing file.
"""

import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..data.files import parse_json, read_file
from ..data.images import IMAGES, OTHER_IMAGES, read_image
from ..data.records import caption
from ..data.shards import read_files, read_index
from ..data.videos import VIDEOS, read_video
from .task import Example, Task, Template

# Kind of benchmark -> prompt, where a generated answer ends (regular expression), max_new_tokens.
# "paper": section 3 and appendix; it prints no prompt for memes, so that one is ours. "openflamingo": its code.
TEMPLATES = {
    "paper": {
        "caption": (Template("Output:"), "Output:", 32),
        "question": (Template("Question: {question} Answer:"), "Question:|\n", 16),
        "meme": (Template('is an image with written: "{text}" on it. Is it hateful? Answer:'), "", 0),
    },
    "openflamingo": {
        "caption": (Template("Output:", "{answer}", between="\n"), "Output", 20),
        "question": (Template("Question:{question} Short answer:", "{answer}", between="\n"), "Question|Answer|Short|, ", 5),
        "meme": (Template("is an image with: '{text}' written on it. Is it hateful? Answer:", "{answer}"), "", 0),
    },
}

# ----------------------------------------------------------------------------------------------------- annotation files
# A reader yields plain records, one per example. `read(name)` parses a file of the benchmark's folder.

Read = Callable[[str], object]


def read_annotations(folder: Path, name: str) -> object:
    """The content of a .json or .jsonl file in `folder` or `folder/annotations`."""
    paths = [path for path in (folder / name, folder / "annotations" / name) if path.exists()]
    if not paths:
        raise FileNotFoundError(f"{folder / name} is missing (searched in {folder}/annotations too)")
    content = read_file(paths[0])
    lines = content.split(b"\n") if name.endswith("l") else ()
    try:
        return [parse_json(line) for line in lines if line.strip()] if lines else parse_json(content)
    except ValueError as error:
        raise ValueError(f"{paths[0]}: not valid JSON ({error})") from None


def flat(read: Read, file: str, split: str) -> Iterable[dict]:
    """VizWiz, TextVQA, MSRVTTQA, VATEX, Hateful Memes: a list of records, or a list under "data"."""
    content = read(file.format(split=split))
    return content["data"] if isinstance(content, dict) else content


def karpathy(read: Read, file: str, split: str) -> Iterable[dict]:
    """COCO, Flickr30K (https://cs.stanford.edu/people/karpathy/deepimagesent): one file. Split "restval" is training data."""
    for image in read(file)["images"]:
        if image["split"] in (("train", "restval") if split == "train" else (split,)):
            path = f"{image.get('filepath', 'flickr30k-images')}/{image['filename']}"
            image_id = image.get("cocoid", image["filename"])
            yield {"image_id": image_id, "path": path, "answers": [s["raw"] for s in image["sentences"]]}


def coco_questions(read: Read, prefix: str, split: str) -> Iterable[dict]:
    """VQAv2, OK-VQA (https://visualqa.org): questions and answers are two files, matched by question_id."""
    annotations = read(f"{prefix}mscoco_{split}_annotations.json")["annotations"]
    answers = {record["question_id"]: record["answers"] for record in annotations}
    if len(answers) < len(annotations):
        raise ValueError("a question_id occurs twice in the annotations")
    for question in read(f"{prefix}OpenEnded_mscoco_{split}_questions.json")["questions"]:
        yield {**question, "answers": answers[question["question_id"]]}


def youcook2(read: Read, file: str, split: str) -> Iterable[dict]:
    """http://youcook2.eecs.umich.edu: each segment of a video is an example."""
    for video_id, video in read(file)["database"].items():
        for segment in video["annotations"] if video["subset"] == split else ():
            path = f"raw_videos/{split}/{video['recipe_type']}/{video_id}"
            yield {**segment, "video_id": video_id, "path": path, "answers": [segment["sentence"]]}


# ------------------------------------------------------------------------------------------------------------ the table

# Only splits whose answers are public.
SAME = {"train": "train", "val": "val", "test": "test"}
TRAIN_VAL = {"train": "train", "val": "val"}
YEARS = {"train": "train2014", "val": "val2014"}
MEMES = {split: split for split in ("train", "dev_seen", "test_seen", "dev_unseen", "test_unseen")}
VATEX = {"train": "training_v1.0", "val": "validation_v1.0", "test": "public_test_english_v1.1"}
YOUCOOK2 = {"train": "training", "val": "validation"}
TEXTVQA, COOKING = "TextVQA_0.5.1_{split}.json", "youcookii_annotations_trainval.json"
COCO = "{split}/COCO_{split}_{image_id:012d}.jpg"
BENCHMARKS = {
    # kind of prompt, metric, reader, annotation file, splits (our names -> names in files), usual split of the queries,
    # key and path of the image or video, with the fields of a record
    "coco": ("caption", "cider", karpathy, "dataset_coco.json", SAME, "test", "{image_id}", "{path}"),
    "flickr30k": ("caption", "cider", karpathy, "dataset_flickr30k.json", SAME, "test", "{image_id}", "{path}"),
    "vqav2": ("question", "vqa", coco_questions, "v2_", YEARS, "val", "{question_id}", COCO),
    "okvqa": ("question", "vqa", coco_questions, "", YEARS, "val", "{question_id}", COCO),
    "vizwiz": ("question", "vizwiz", flat, "{split}.json", TRAIN_VAL, "val", "{image}", "{split}/{image}"),
    "textvqa": ("question", "textvqa", flat, TEXTVQA, TRAIN_VAL, "val", "{question_id}", "train_images/{image_id}.jpg"),
    "hatefulmemes": ("meme", "roc_auc", flat, "{split}.jsonl", MEMES, "test_seen", "{id}", "{img}"),
    "msrvttqa": ("question", "exact_match", flat, "{split}_qa.json", SAME, "test", "{id}", "videos/video{video_id}"),
    "vatex": ("caption", "cider", flat, "vatex_{split}.json", VATEX, "test", "{videoID}", "videos/{videoID}"),
    "youcook2": ("caption", "cider", youcook2, COOKING, YOUCOOK2, "val", "{video_id}/{id}", "{path}"),
}


# ------------------------------------------------------------------------------------------------------------- examples


@dataclass(frozen=True)
class MediaFile:
    """An image, or a video from second `start` to `end`. The file is read when called.

    A video is path.mp4, .mkv, ..., or a folder with one frame per second. Raises FileNotFoundError, or ValueError (damaged).
    """

    path: Path
    start: float = 0.0
    end: float = float("inf")

    def __call__(self) -> object:
        files = [self.path.with_name(self.path.name + ending) for ending in ("", *VIDEOS)]
        file = next((file for file in files if file.exists()), None)
        if file is None:
            raise FileNotFoundError(f"{self.path} is missing")
        if file.is_dir() or file.suffix.lower() in VIDEOS:
            return read_video(file, start=self.start, end=self.end)  # at most 30 frames, as in the paper
        return read_image(file)


def answers_of(record: dict) -> tuple[str, ...]:
    """The references. The most frequent is the first: it is the one that a prompt shows."""
    if "label" in record:  # Hateful Memes
        return ({0: "no", 1: "yes"}[record["label"]],)
    given = record.get("answers") or record.get("enCap") or [record["answer"]]
    texts = [(a["answer"] if isinstance(a, dict) else a).strip() for a in given]
    counts = Counter(texts) | {"": 0}  # an empty answer counts in the metric, but a prompt should not show it
    return tuple(sorted(texts, key=counts.get, reverse=True))


def cleaned(text: str, end: str, lower: bool, stems: Mapping[str, str]) -> str:
    """The generated text before `end`, the beginning of another prompt."""
    text = re.split(end, text, maxsplit=1)[0].strip()
    text = text.rstrip(" .").lower() if lower else text
    return stems.get(text.lower(), text)


def load_benchmark(name: str, folder: str | Path, *, split: str | None = None, template: str = "paper") -> Task:
    """Queries from `split` (default: the usual one), shots from the training split. Media files are opened when they are used.

    Raises FileNotFoundError: an annotation file is missing; ValueError: unknown name or split, or a file of another format.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"unknown benchmark {name!r}; choose one of {', '.join(BENCHMARKS)}")
    kind, metric, reader, file, splits, usual_split, key, path = BENCHMARKS[name]
    folder, split = Path(folder), split or usual_split
    if split not in splits or split == "train":
        allowed = ", ".join(s for s in splits if s != "train")
        raise ValueError(f"{name}: queries cannot come from split {split!r}; choose one of {allowed}")

    if template not in TEMPLATES:
        raise ValueError(f"unknown template {template!r}; choose one of {', '.join(TEMPLATES)}")
    prompt, end, length = TEMPLATES[template][kind]

    def example(record: dict) -> Example:
        # On disk, names are in UTF-8, also where the system has another encoding.
        medium = Path(os.fsdecode(path.format_map(record).encode()))
        start, stop = record.get("segment", (0.0, float("inf")))
        if medium.is_absolute() or ".." in medium.parts or not 0 <= start < stop:
            raise ValueError(f"{medium} from second {start} to {stop} must be in the folder, and end after it begins")
        return Example(
            key=key.format_map(record),
            media=MediaFile(folder / medium, start, stop),
            answers=answers_of(record),
            fields={name: value for name, value in record.items() if isinstance(value, str | int)},
            choices=("yes", "no") if kind == "meme" else None,
        )

    examples, stems = {}, {}
    for part in ("train", split):
        try:
            records = [{**r, "split": splits[part]} for r in reader(partial(read_annotations, folder), file, splits[part])]
            examples[part] = [example(record) for record in records]
            n = len({(e.key, bool(prompt.shown(e))) for e in examples[part]})  # an error if a field or the answer is missing
            if n < len(records) or (n == 0 and part == split):
                raise ValueError(f"{len(records)} examples with {n} different ids")
            if name == "okvqa" and part == "train":  # answers are stemmed ("racing" -> "race"), so predictions are, too
                stems = {a["raw_answer"].lower(): a["answer"] for record in records for a in record["answers"]}
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(f"{folder}: {name} {part} is not in the official format: {error!r}"[:600]) from None
    return Task(
        name, examples["train"], examples[split], prompt, metric,
        clean=partial(cleaned, end=end, lower=name == "msrvttqa", stems=stems), max_new_tokens=length,
        scoring="sum" if template == "paper" else "mean",  # of the log-likelihoods of a choice's tokens
    )  # fmt: skip


def load_folder(folder: Path, metric: str = "exact_match", seed: int = 0) -> Task:
    """Your own images or videos with texts, as in training: cat.png with cat.txt. The text is the answer to "Output:".

    A random quarter are the queries, the others are shots. Empty and damaged texts are left out and named. Raises ValueError if
    there are fewer than 4 texts.
    """
    examples, problems = [], []
    records, notes = read_index(str(folder))
    for key, files in records.items():
        texts = {name: place for name, place in files.items() if name in ("txt", "json")}
        paths = [Path(path) for path, _, _ in files.values() if Path(path).parent != folder / key]
        media = [path for endings in (IMAGES, OTHER_IMAGES, VIDEOS) for path in paths if path.suffix.lower() in endings]
        try:
            text = caption(read_files(texts))
        except Exception as error:  # damaged texts raise many types
            problems.append(f"{key}: {error}")
            continue
        # without an image or video of this name, it is a folder of frames. A missing one is an error when the example is used.
        examples.append(Example(key, MediaFile(media[0] if media else folder / key), (text,)))
    if problems:
        notes.append(f"{len(problems)} texts are left out, such as {problems[0]}")
    for note in notes:
        print(f"{folder}: {note}".encode("utf-8", "replace").decode())  # not all names of files are valid UTF-8
    if len(examples) < 4:
        raise ValueError(f"{folder} has {len(examples)} images with texts (cat.png with cat.txt); at least 4 are needed")
    queries = set(random.Random(f"queries {seed}").sample(range(len(examples)), len(examples) // 4))
    parts = [[e for i, e in enumerate(examples) if (i in queries) is chosen] for chosen in (False, True)]
    prompt, end, length = TEMPLATES["paper"]["caption"]
    clean = partial(cleaned, end=end, lower=False, stems={})
    return Task(folder.resolve().name, *parts, prompt, metric, clean=clean, max_new_tokens=length)
