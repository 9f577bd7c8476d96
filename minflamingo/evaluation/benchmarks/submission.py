"""Results as each benchmark's server or evaluation tool wants them, with its own ids in their own types.

    vqav2, okvqa, textvqa, msrvttqa     [{"question_id": 262148000, "answer": "down"}, …]
    vizwiz                              [{"image": "VizWiz_test_00000000.jpg", "answer": "soda"}, …]
    coco, flickr30k                     [{"image_id": 391895, "caption": "a man on a motorbike"}, …]
    vatex                               {"Ptf_2VRj-V0_000122_000132": "a man …", …}
    youcook2                            {"version": "VERSION 1.0", "results": {"GLd3aX16zBg": [{"sentence": "spread margarine",
                                         "timestamp": [90.0, 102.0]}]}, "external_data": {…}}
    visdial                             [{"image_id": 185565, "round_id": 8, "ranks": [3, 1, 2, …]}, …]   ranks count from 1
    hatefulmemes                        id,proba,label              (CSV; proba: how likely it is hateful)

Sources: https://visualqa.org/challenge.html, https://cocodataset.org/#captions-eval, https://vizwiz.org/tasks-and-datasets/vqa,
https://visualdialog.org/challenge, https://www.drivendata.org/competitions/64/hateful-memes, the VATEX captioning challenge,
https://github.com/ranjaykrishna/densevid_eval (YouCook2). Flickr30K and MSRVTTQA have no server: theirs is that of their kin.

Worked example: the candidates "yes", "no", "maybe" scored −2, −1, −3 have the ranks 2, 1, 3.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ...training.checkpoint import write_atomically
from ..metrics import Outcome, probability_of


def write_submission(name: str, outcomes: Sequence[Outcome], path: str | Path) -> None:
    """The results file of benchmark `name`, whole or not at all.

    Raises:
        ValueError: no outcomes, an unknown benchmark, an example that comes twice, or one that is not of this benchmark.
    """
    if name not in WRITERS:
        raise ValueError(f"there is no results format for {name!r}; choose one of {', '.join(WRITERS)}")
    keys = [o.example.key for o in outcomes]
    if not keys or len(set(keys)) < len(keys):
        twice = next((k for k in keys if keys.count(k) > 1), None)
        raise ValueError("there are no outcomes to write" if not keys else f"example {twice} has more than one outcome")
    try:
        content = WRITERS[name](outcomes)
    except KeyError as error:
        raise ValueError(f"these are no outcomes of {name}: an example has no {error} in its fields") from None
    write_atomically(path, lambda p: p.write_text(content, encoding="utf-8"))


def _listed(*ids: str, says: str) -> Callable[[Sequence[Outcome]], str]:
    """A list of objects with these ids, and what was said under that name."""
    return lambda outcomes: json.dumps(
        [{**{i: o.example.fields[i] for i in ids}, says: o.prediction} for o in outcomes], ensure_ascii=False
    )


def _vatex(outcomes: Sequence[Outcome]) -> str:
    return json.dumps({o.example.fields["video_id"]: o.prediction for o in outcomes}, ensure_ascii=False)


def _youcook2(outcomes: Sequence[Outcome]) -> str:
    results: dict[str, list] = {}
    for o in outcomes:
        said = {"sentence": o.prediction, "timestamp": o.example.fields["segment"]}
        results.setdefault(o.example.fields["video_id"], []).append(said)
    used = {"used": True, "details": "few-shot with a pretrained visual language model"}
    return json.dumps({"version": "VERSION 1.0", "results": results, "external_data": used}, ensure_ascii=False)


def _visdial(outcomes: Sequence[Outcome]) -> str:
    rows = []
    for o in outcomes:
        if o.scores is None:
            raise ValueError(f"example {o.example.key}: VisDial wants the candidates ranked, but there are no scores")
        ranks = np.empty(len(o.scores), dtype=int)
        ranks[np.argsort(-np.asarray(o.scores), kind="stable")] = np.arange(1, len(o.scores) + 1)
        rows.append({**{i: o.example.fields[i] for i in ("image_id", "round_id")}, "ranks": ranks.tolist()})
    return json.dumps(rows)


def _hatefulmemes(outcomes: Sequence[Outcome]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["id", "proba", "label"])
    for o in outcomes:
        proba = probability_of("yes", o)
        writer.writerow([o.example.fields["id"], f"{proba:.6f}", int(proba > 0.5)])
    return file.getvalue()


WRITERS: dict[str, Callable[[Sequence[Outcome]], str]] = {
    **dict.fromkeys(("vqav2", "okvqa", "textvqa", "msrvttqa"), _listed("question_id", says="answer")),
    **dict.fromkeys(("coco", "flickr30k"), _listed("image_id", says="caption")),
    "vizwiz": _listed("image", says="answer"),
    "visdial": _visdial,
    "hatefulmemes": _hatefulmemes,
    "vatex": _vatex,
    "youcook2": _youcook2,
}
