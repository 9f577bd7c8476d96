"""The annotation files of the benchmarks. Each function returns plain records, one per example; `read(name)` parses a file.

    list(coco_questions("v2_", read, "val2014"))
    [{"question_id": 262148000, "image_id": 262148, "question": "What is on the water?", "answers": [{"answer": "boat"}, …]}, …]
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ...data.images import read_image
from ...data.videos import VIDEOS, read_video

Read = Callable[[str], object]


def read_annotations(folder: Path, name: str) -> object:
    """The content of a .json or .jsonl file in `folder` or `folder/annotations`."""
    paths = [path for path in (folder / name, folder / "annotations" / name) if path.is_file()]
    if not paths:
        raise FileNotFoundError(f"{folder / name} is missing (searched in {folder}/annotations too)")
    text = paths[0].read_text(encoding="utf-8")
    try:
        return [json.loads(line) for line in text.splitlines() if line.strip()] if name.endswith("l") else json.loads(text)
    except ValueError as error:
        raise ValueError(f"{paths[0]}: not valid JSON ({error})") from None


def flat(file: str, read: Read, split: str) -> Iterable[dict]:
    """VizWiz, TextVQA, MSRVTTQA, VATEX, Hateful Memes: a list of records, or a list under "data"."""
    content = read(file.format(split=split))
    return content["data"] if isinstance(content, dict) else content


def karpathy(file: str, read: Read, split: str) -> Iterable[dict]:
    """COCO, Flickr30K (https://cs.stanford.edu/people/karpathy/deepimagesent): one file. Split "restval" is training data."""
    for image in read(file)["images"]:
        if image["split"] in (("train", "restval") if split == "train" else (split,)):
            path = f"{image.get('filepath', 'flickr30k-images')}/{image['filename']}"
            image_id = image.get("cocoid", image["filename"])
            yield {"image_id": image_id, "path": path, "answers": [s["raw"] for s in image["sentences"]]}


def coco_questions(prefix: str, read: Read, split: str) -> Iterable[dict]:
    """VQAv2, OK-VQA (https://visualqa.org): questions and answers are two files, matched by question_id. Tests hide answers."""
    annotations = [] if split.startswith("test") else read(f"{prefix}mscoco_{split}_annotations.json")["annotations"]
    answers = {record["question_id"]: record["answers"] for record in annotations}
    for question in read(f"{prefix}OpenEnded_mscoco_{split}_questions.json")["questions"]:
        yield {**question, "answers": answers[question["question_id"]] if annotations else []}


def youcook2(read: Read, split: str) -> Iterable[dict]:
    """http://youcook2.eecs.umich.edu: each segment of a video is an example."""
    for video_id, video in read("youcookii_annotations_trainval.json")["database"].items():
        for segment in video["annotations"] if video["subset"] == split else ():
            path = f"raw_videos/{split}/{video['recipe_type']}/{video_id}"
            yield {**segment, "video_id": video_id, "path": path, "answers": [segment["sentence"]]}


def visdial(read: Read, split: str) -> Iterable[dict]:
    """https://visualdialog.org/data. One round of a dialogue has a relevance for each of its 100 candidates. It is the query.

    The caption and the rounds before it are in the prompt: "a man rides a horse. Question: is it sunny? Answer: yes ".
    """
    data = read(f"visdial_1.0_{split}.json")["data"]
    dense = [] if split == "test" else read(f"visdial_1.0_{split}_dense_annotations.json")
    relevance = {d["image_id"]: (d["round_id"], d["gt_relevance" if split == "val" else "relevance"]) for d in dense}
    for dialogue in data["dialogs"]:
        rounds = dialogue["dialog"]
        round_id, gains = relevance.get(dialogue["image_id"], (len(rounds), None))  # rounds count from 1
        questions = [data["questions"][r["question"]].rstrip("?") + "?" for r in rounds]
        answers = [data["answers"][r["answer"]] for r in rounds if "answer" in r]
        history = [f"Question: {q} Answer: {a} " for q, a in zip(questions[: round_id - 1], answers)]
        choices = [data["answers"][i] for i in rounds[round_id - 1].get("answer_options", ())]
        yield {
            "image_id": dialogue["image_id"], "round_id": round_id, "question": questions[round_id - 1],
            "dialogue": dialogue["caption"].rstrip(". ") + ". " + "".join(history),
            "answers": answers[round_id - 1 : round_id], "choices": choices, "gains": gains,
        }  # fmt: skip


@dataclass(frozen=True)
class MediaFile:
    """An image, or a video from second `start` to `end`: the first of `paths` that exists. The file is read when called.

    A video is a file, or a folder with one frame per second. Raises FileNotFoundError, or ValueError if the file is damaged.
    """

    paths: tuple[Path, ...]
    start: float = 0.0
    end: float = float("inf")

    def __call__(self) -> object:
        files = [path.with_name(path.name + ending) for path in self.paths for ending in ("", *VIDEOS)]
        file = next((file for file in files if file.exists()), None)
        if file is None:
            raise FileNotFoundError(f"{' or '.join(map(str, self.paths))} is missing")
        if file.is_dir() or file.suffix in VIDEOS:
            return read_video(file, start=self.start, end=self.end)  # at most 30 frames, as in the paper
        return read_image(file)
