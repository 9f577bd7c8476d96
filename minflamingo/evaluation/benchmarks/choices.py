"""Benchmarks with given answers: HatefulMemes ("yes" or "no"; ROC AUC) and VisDial (a hundred candidates; NDCG).

Sources of the formats: HatefulMemes https://hatefulmemeschallenge.com (a JSON object a line); VisDial v1.0
https://visualdialog.org/data (questions and answers are pools, to which the dialogues refer by number).

    dev_seen.jsonl           {"id": 8291, "img": "img/08291.png", "label": 1, "text": "white people is this a shooting range"}
    visdial_1.0_val.json     {"data": {"questions": ["is it sunny", …], "answers": ["yes", …], "dialogs": [{"image_id": 185565,
                              "caption": "…", "dialog": [{"question": 7, "answer": 3, "answer_options": [3, 12, …]}, …]}]}}
    …_val_dense_annotations.json      [{"image_id": 185565, "round_id": 8, "gt_relevance": [0.0, 0.4, …]}]

Only one round of a dialogue, counted from 1, is densely annotated: how relevant is each candidate? That round is asked; where
there are no such annotations, the last one. Its prompt holds what was said before:

    a man rides a horse. Question: is it sunny? Answer: yes Question: is he old? Answer:
"""

from __future__ import annotations

import json

from ..task import Example
from .files import Picture, Source, identity, part, text

YES_NO = ("yes", "no")


def hatefulmemes(source: Source, split: str) -> list[Example]:
    """Splits "train", "dev", "test" of the first release, "dev_seen", "test_seen", "dev_unseen", "test_unseen" of the second.

    Where labels are hidden, there are no answers.
    """
    path = source.find(f"{split}.jsonl", *([f"{split.split('_')[0]}.jsonl"] if split.endswith("_seen") else []))
    places = source.places("data")
    records: list[object] = []
    for line in path.read_bytes().splitlines():
        if line.strip():
            try:
                records.append(json.loads(line))
            except (ValueError, RecursionError):
                records.append(line.decode("utf-8", "replace"))  # no object: it is noted below, with its beginning

    def make(record: dict) -> Example:
        meme_id, label = identity(record, "id"), record.get("label")
        if label not in (0, 1, None):
            raise ValueError(f"'label' must be 0 or 1, found {label!r:.60}")
        answers = () if label is None else ("yes" if label else "no",)
        fields = {"text": text(record, "text"), "id": meme_id}
        return Example(str(meme_id), Picture(places, (text(record, "img"),)), answers, fields, YES_NO)

    return source.examples(records, make, path.name)


def visdial(source: Source, split: str) -> list[Example]:
    """Splits "train", "val", "test". The candidates' relevance is `gains`; the answer is the one that was given."""
    content, name = source.json(f"visdial_1.0_{split}.json")
    data = part(content, "data", name, dict)
    questions, answers = (part(data, pool, f"{name}, data") for pool in ("questions", "answers"))
    below = (f"VisualDialog_{split}2018", "train2014", "val2014")
    places = source.places(*below, *(f"images/{b}" for b in below))
    images = [f"VisualDialog_{split}2018"] if split != "train" else ["COCO_train2014", "COCO_val2014"]
    relevance: dict[object, tuple[int, tuple[float, ...]]] = {}

    def note(record: dict) -> Example:
        image_id = identity(record, "image_id")
        gains = record["gt_relevance"] if "gt_relevance" in record else record["relevance"]  # val, train
        relevance[image_id] = (int(record["round_id"]), tuple(float(g) for g in gains))
        return Example(str(image_id), lambda: None, ())

    if split != "test":
        try:
            dense, dense_name = source.json(f"visdial_1.0_{split}_dense_annotations.json")
        except FileNotFoundError as error:
            source.problems.append(f"no dense annotations, so no NDCG: {error}")
        else:
            source.examples(dense, note, dense_name)

    def make(record: dict) -> Example:
        image_id, rounds = identity(record, "image_id"), record["dialog"]
        asked, gains = relevance.get(image_id, (len(rounds), None))
        if not 1 <= asked <= len(rounds):
            raise ValueError(f"round {asked} of a dialogue of {len(rounds)}")
        now = rounds[asked - 1]
        options = tuple(_pick(answers, i) for i in now.get("answer_options", ()))
        if gains is not None and len(gains) != len(options):
            raise ValueError(f"{len(gains)} relevances for {len(options)} candidates")
        said = [(_question(_pick(questions, r["question"])), _pick(answers, r["answer"])) for r in rounds[: asked - 1]]
        fields = {
            "dialogue": text(record, "caption").rstrip(". ") + ". " + "".join(f"Question: {q} Answer: {a} " for q, a in said),
            "question": _question(_pick(questions, now["question"])),
            "image_id": image_id,
            "round_id": asked,
        }
        picture = Picture(places, tuple(f"{prefix}_{int(image_id):012d}.jpg" for prefix in images))
        given = (_pick(answers, now["answer"]),) if "answer" in now else ()
        return Example(f"{image_id}/{asked}", picture, given, fields, options or None, gains)

    return source.examples(part(data, "dialogs", f"{name}, data"), make, name)


def _pick(pool: list[str], i: object) -> str:
    if not isinstance(i, int) or not 0 <= i < len(pool) or not isinstance(pool[i], str):
        raise ValueError(f"{i!r} is none of the pool's {len(pool)} texts")
    return pool[i]


def _question(question: str) -> str:
    """The pool's questions have no question mark."""
    return question if question.endswith("?") else question + "?"
