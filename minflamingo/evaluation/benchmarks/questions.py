"""Questions about images and films: VQAv2, OK-VQA, VizWiz, TextVQA (VQA accuracy), MSRVTTQA (top-1).

Sources of the formats: VQAv2 https://visualqa.org/download.html; OK-VQA https://okvqa.allenai.org; VizWiz
https://vizwiz.org/tasks-and-datasets/vqa; TextVQA https://textvqa.org/dataset; MSRVTT-QA https://github.com/xudejing/video-question-answering

    v2_OpenEnded_mscoco_val2014_questions.json   {"questions": [{"image_id": 262148, "question": "Where is he looking?",
                                                  "question_id": 262148000}]}
    v2_mscoco_val2014_annotations.json           {"annotations": [{"question_id": 262148000, "answers": [{"answer": "down"}]}]}
    VizWiz val.json                              [{"image": "VizWiz_val_00000000.jpg", "question": "…",
                                                  "answers": [{"answer": "soda"}, …]}]
    TextVQA_0.5.1_val.json                       {"data": [{"question_id": 34602, "image_id": "003a8ae2ef43b901",
                                                  "question": "…", "answers": ["nous les gosses", …]}]}
    val_qa.json                                  [{"id": 158581, "video_id": 6513, "question": "…", "answer": "park"}]

Questions and answers are matched by question_id, not by their places in the two files. The first answer, the one that is shown
in a prompt, is the one that most people gave; accuracy does not depend on the order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from sys import intern

from ..task import Example
from .files import Film, Picture, Source, identity, part, text, texts


def commonest_first(answers: Sequence[str]) -> tuple[str, ...]:
    """The same answers, all of them; those that more people gave come first."""
    count = Counter(answers)
    return tuple(sorted(map(intern, answers), key=lambda a: -count[a]))


def vqav2(source: Source, split: str) -> list[Example]:
    """Splits "train", "val", and without answers "test", "test-dev"."""
    subset = {"test": "test2015", "test-dev": "test-dev2015"}.get(split, f"{split}2014")
    names = f"v2_OpenEnded_mscoco_{subset}_questions.json", f"v2_mscoco_{subset}_annotations.json"
    return _coco_questions(source, *names, subset)


def okvqa(source: Source, split: str) -> list[Example]:
    """Splits "train", "val". Its answers are stemmed ("race" for "racing"), and so are those that a prompt shows."""
    subset = f"{split}2014"
    names = f"OpenEnded_mscoco_{subset}_questions.json", f"mscoco_{subset}_annotations.json"
    return _coco_questions(source, *names, subset)


def _coco_questions(source: Source, questions_name: str, annotations_name: str, subset: str) -> list[Example]:
    questions = part(source.json(questions_name)[0], "questions", questions_name)
    hidden = subset.startswith("test")
    images = subset.replace("-dev", "")
    places = source.places(images, f"images/{images}", f"coco/{images}")
    given: dict[object, tuple[str, ...]] = {}

    def note(record: dict) -> Example:
        question_id = identity(record, "question_id")
        for answer in record["answers"]:
            if "raw_answer" in answer:  # OK-VQA
                source.stems.setdefault(text(answer, "raw_answer").lower(), answer["answer"])
        given[question_id] = commonest_first(texts([a["answer"] for a in record["answers"]], "answers"))
        return Example(str(question_id), lambda: None, ())

    if not hidden:
        annotations = part(source.json(annotations_name)[0], "annotations", annotations_name)
        source.examples(annotations, note, annotations_name)

    def make(record: dict) -> Example:
        question_id, image_id = identity(record, "question_id"), identity(record, "image_id")
        if not hidden and question_id not in given:
            raise ValueError(f"there are no answers to it in {annotations_name}")
        picture = Picture(places, (f"COCO_{images}_{int(image_id):012d}.jpg",))
        return Example(str(question_id), picture, given.get(question_id, ()), _asks(record, question_id, image_id))

    return source.examples(questions, make, questions_name)


def _asks(record: dict, question_id: int | str, image_id: int | str) -> dict:
    return {"question": text(record, "question"), "question_id": question_id, "image_id": image_id}


def vizwiz(source: Source, split: str) -> list[Example]:
    """Splits "train", "val", and without answers "test". A question has no id: its image is its name."""
    records, name = source.json(f"{split}.json", f"VizWiz_{split}.json")
    places = source.places(split, f"images/{split}")

    def make(record: dict) -> Example:
        image = text(record, "image")
        answers = () if split == "test" else commonest_first(texts([a["answer"] for a in record["answers"]], "answers"))
        return Example(image, Picture(places, (image,)), answers, {"question": text(record, "question"), "image": image})

    return source.examples(records, make, name)


def textvqa(source: Source, split: str) -> list[Example]:
    """Splits "train", "val", and without answers "test". Images of train and val are in one folder, train_images."""
    content, name = source.json(f"TextVQA_0.5.1_{split}.json", f"TextVQA_0.5_{split}.json")
    places = source.places("train_images", "test_images", "train_val_images/train_images")

    def make(record: dict) -> Example:
        question_id, image_id = identity(record, "question_id"), identity(record, "image_id")
        answers = () if split == "test" else commonest_first(texts(record["answers"], "answers"))
        return Example(str(question_id), Picture(places, (f"{image_id}.jpg",)), answers, _asks(record, question_id, image_id))

    return source.examples(part(content, "data", name), make, name)


def msrvttqa(source: Source, split: str) -> list[Example]:
    """Splits "train", "val", "test". Films are video6513.mp4, or folders video6513 of frames."""
    records, name = source.json(f"{split}_qa.json", f"msrvtt_qa_{split}.json")
    places = source.places("video", "TrainValVideo", "TestVideo", "all")

    def make(record: dict) -> Example:
        question_id, video_id = identity(record, "id"), identity(record, "video_id")
        film = Film(places, (f"video{video_id}" if isinstance(video_id, int) else video_id,))
        fields = {"question": text(record, "question"), "question_id": question_id, "video_id": video_id}
        return Example(str(question_id), film, (text(record, "answer"),), fields)

    return source.examples(records, make, name)
