"""Benchmarks: folders in the official formats become prompts; `python -m minflamingo eval` gives tables, figures and files."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import EOC, image, stopped_at, tiny_flamingo
from little_suite import suite
from PIL import Image

from minflamingo import Pipeline, ToyTokenizer, load
from minflamingo.__main__ import main
from minflamingo.data.images import ImagePreprocessor, as_frames
from minflamingo.evaluation.benchmarks import BENCHMARKS, answers_of, load_benchmark, load_folder
from minflamingo.evaluation.fewshot import few_shot_prompt
from minflamingo.evaluation.metrics import METRICS, Outcome
from minflamingo.evaluation.runner import Protocol, evaluate, make_query
from minflamingo.evaluation.task import Task
from minflamingo.recipes.benchmarks import load_tasks


def people(*answers: str) -> list[dict]:
    return [{"answer_id": i + 1, "answer": a, "answer_confidence": "yes"} for i, a in enumerate(answers)]


def karpathy(path: str, split: str, *captions: str, **more) -> dict:
    return {"filename": path, "split": split, "sentences": [{"raw": c, "sentid": 1} for c in captions], "imgid": 0, **more}


def coco_questions(prefix: str, subsets: dict[str, list]) -> dict:
    files = {}
    for subset, rows in subsets.items():
        questions = [{"question_id": q, "image_id": i, "question": text} for q, i, text, _ in rows]
        annotations = [{"question_id": q, "image_id": i, "answers": a} for q, i, _, a in rows]
        files[f"{prefix}OpenEnded_mscoco_{subset}_questions.json"] = {"questions": questions}
        files[f"{prefix}mscoco_{subset}_annotations.json"] = {"annotations": annotations[::-1]}  # another order
    return files


def cooking(subset: str, *segments: tuple) -> dict:
    annotations = [{"id": i, "segment": [s, e], "sentence": text} for i, (s, e, text) in enumerate(segments)]
    return {"duration": 100.5, "subset": subset, "recipe_type": "113", "annotations": annotations}


STEMS = [{**a, "raw_answer": r} for a, r in zip(people("race", "race", "fly"), ("racing", "races", "flying"))]
SWIM = [{**a, "raw_answer": "swimming"} for a in people(*["swim"] * 10)]
MEMES = {"train": [(42953, 0, "its character"), (23058, 1, "don't be afraid")], "test_seen": [(1243, 1, "a {b}"), (7, 0, "c")]}
TEXTVQA = {"image_id": "003a8", "question": "what does it say?", "answers": ["stop"] * 10}
MSRVTT = {"question": "what is a man doing?", "answer": "talk"}
ANNOTATIONS: dict[str, dict[str, object]] = {
    "coco": {"annotations/dataset_coco.json": {"images": [
        karpathy("9.jpg", "train", "A cat wearing sunglasses.", "cat", cocoid=9, filepath="train2014"),
        karpathy("17.jpg", "restval", "Elephants walking in the savanna.", cocoid=17, filepath="val2014"),  # training data
        karpathy("391895.jpg", "test", "A man on a moped.", "Man riding a motor bike. ", cocoid=391895, filepath="val2014"),
        karpathy("42.jpg", "test", "A dog.", cocoid=42, filepath="val2014"),
        karpathy("43.jpg", "val", "A bird.", cocoid=43, filepath="val2014")]}},
    "flickr30k": {"dataset_flickr30k.json": {"images": [
        karpathy("1000092795.jpg", "train", "Two guys."), karpathy("10002456.jpg", "test", "Several men."),
        karpathy("x_1.jpg", "test", "A girl.")]}},
    "vqav2": coco_questions("v2_", {
        "train2014": [(9000, 9, "What's the cat wearing?", people("glasses", *["sunglasses"] * 9)),
                      (17001, 9, "How many animals?", people(*["3"] * 10))],
        "val2014": [(262148000, 262148, "What is on the water?", people(*["boat"] * 4, *["ship"] * 6)),
                    (262148001, 262148, "Is it day?", people(*["yes"] * 10))]}),
    "okvqa": coco_questions("", {"train2014": [(51606, 9, "What?", STEMS)], "val2014": [(297147, 262148, "What?", SWIM)]}),
    "vizwiz": {f"{split}.json": [{"image": f"{split}_0.jpg", "question": "What is this?", "answers": people(*["soda"] * 10)}]
               for split in ("train", "val")},
    "textvqa": {"TextVQA_0.5.1_train.json": {"data": [{"question_id": 0, **TEXTVQA}]},
                "TextVQA_0.5.1_val.json": {"data": [{"question_id": 34602, **TEXTVQA}]}},
    "hatefulmemes": {f"{split}.jsonl": "\n".join(json.dumps({"id": i, "img": f"img/{i}.png", "label": label, "text": text})
                                                 for i, label, text in memes) + "\n\n" for split, memes in MEMES.items()},
    "msrvttqa": {"train_qa.json": [{"id": 1, "video_id": 0, **MSRVTT}], "test_qa.json": [{"id": 15, "video_id": 7, **MSRVTT}]},
    "vatex": {f"vatex_{split}_v1.{n}.json": [{"videoID": f"{split}_000001_000011", "enCap": ["A man lifts.", "He lifts."]}]
              for split, n in (("training", 0), ("public_test_english", 1))},
    "youcook2": {"youcookii_annotations_trainval.json": {"database": {
        "GLd3": cooking("training", (1, 3, "spread margarine")),
        "fn9a": cooking("validation", (2, 6, "chop the onion"), (6, 60, "fry it"))}}},
}  # fmt: skip
VQA_IMAGES = ["train2014/COCO_train2014_000000000009.jpg", "val2014/COCO_val2014_000000262148.jpg"]
MEDIA = {  # a path without an ending is a video
    "coco": ["train2014/9.jpg", *(f"val2014/{i}.jpg" for i in (17, 391895, 42, 43))],
    "flickr30k": [f"flickr30k-images/{name}.jpg" for name in ("1000092795", "10002456", "x_1")],
    "vqav2": VQA_IMAGES, "okvqa": VQA_IMAGES,
    "vizwiz": ["train/train_0.jpg", "val/val_0.jpg"], "textvqa": ["train_images/003a8.jpg"],
    "hatefulmemes": [f"img/{i}.png" for i in (42953, 23058, 1243, 7)], "msrvttqa": ["videos/video0", "videos/video7"],
    "vatex": ["videos/training_000001_000011", "videos/public_test_english_000001_000011"],
    "youcook2": ["raw_videos/training/113/GLd3", "raw_videos/validation/113/fn9a"],
}  # fmt: skip
QUERIES = {  # keys of the queries, number of support examples
    "coco": (["391895", "42"], 2), "flickr30k": (["10002456.jpg", "x_1.jpg"], 1),
    "vqav2": (["262148000", "262148001"], 2), "okvqa": (["297147"], 1), "vizwiz": (["val_0.jpg"], 1),
    "textvqa": (["34602"], 1), "hatefulmemes": (["1243", "7"], 2),
    "msrvttqa": (["15"], 1), "vatex": (["public_test_english_000001_000011"], 1), "youcook2": (["fn9a/0", "fn9a/1"], 1),
}  # fmt: skip


def make(name: str, folder: Path) -> None:
    for path, content in ANNOTATIONS[name].items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(content if isinstance(content, str) else json.dumps(content))
    for medium in MEDIA[name]:
        for path in [folder / medium] if "." in medium else [folder / medium / f"{second}.png" for second in range(40)]:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image(int(path.stem) if path.stem.isdecimal() else 0)[0]).save(path)


def loaded(name: str, folder: Path, **options) -> Task:
    make(name, folder)
    return load_benchmark(name, folder, **options)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_is_read_from_its_official_files(name, tmp_path, monkeypatch):
    """No image is opened while the annotations are read. Each example has a readable image or video, and references."""
    make(name, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", None)
        task = load_benchmark(name, tmp_path)
    keys, n_support = QUERIES[name]
    assert task.name == name and task.metric in METRICS
    assert [e.key for e in task.queries] == keys and len(task.support) == n_support
    for example in [*task.queries, *task.support]:
        assert as_frames(example.media()).dtype == np.uint8 and example.answers and all(example.answers)
        assert task.template.shown(example)


def test_questions_are_matched_with_answers_by_id_and_show_the_most_frequent_answer(tmp_path):
    """The two files are in different orders. All ten answers count in the metric."""
    task = loaded("vqav2", tmp_path)
    assert task.support[0].answers == ("sunglasses",) * 9 + ("glasses",)
    assert task.queries[0].answers == ("ship",) * 6 + ("boat",) * 4
    assert METRICS["vqa"]([Outcome(task.queries[0], "boat")]) == 100
    assert task.queries[0].media == task.queries[1].media  # one image, so that it is encoded once


def test_a_byte_order_mark_a_line_separator_and_an_empty_answer_are_read(tmp_path):
    """Windows writes the mark. U+2028 in a text does not end a line. An empty answer counts, and is never the one shown."""
    make("hatefulmemes", tmp_path)
    path = tmp_path / "test_seen.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b'"c"', '"c\u2028d"'.encode()))
    assert [e.fields["text"] for e in load_benchmark("hatefulmemes", tmp_path).queries] == ["a {b}", "c\u2028d"]
    assert answers_of({"answers": ["", "", "nokia"]}) == ("nokia", "", "")


def test_youcook2_videos_are_cut_to_their_segment_of_at_most_30_frames(tmp_path):
    """One frame per second. The second segment is longer than the video: 34 frames are left, of which 30 are shown."""
    first, second = loaded("youcook2", tmp_path).queries
    assert all(np.array_equal(as_frames(frame), image(2 + t)) for t, frame in enumerate(first.media()))
    assert len(first.media()) == 4 and len(second.media()) == 30


@pytest.mark.parametrize("name, template, shots, expected", [
    ("coco", "paper", "0", "<image>Output:"),
    ("coco", "paper", "1", "<image>Output: A cat wearing sunglasses.<EOC><image>Output:"),
    ("coco", "paper", "0_text",
     "Output: A cat wearing sunglasses.<EOC>Output: Elephants walking in the savanna.<EOC><image>Output:"),
    ("coco", "openflamingo", "1", "<image>Output:A cat wearing sunglasses.<EOC>\n<image>Output:"),
    ("vqav2", "paper", "1", "<image>Question: What's the cat wearing? Answer: sunglasses<EOC>"
     "<image>Question: What is on the water? Answer:"),
    ("vqav2", "openflamingo", "1", "<image>Question:What's the cat wearing? Short answer:sunglasses<EOC>\n"
     "<image>Question:What is on the water? Short answer:"),
    ("hatefulmemes", "paper", "1", '<image>is an image with written: "its character" on it. Is it hateful? Answer: no<EOC>'
     '<image>is an image with written: "a {b}" on it. Is it hateful? Answer:'),
    ("hatefulmemes", "openflamingo", "1",
     "<image>is an image with: 'its character' written on it. Is it hateful? Answer:no<EOC>"
     "<image>is an image with: 'a {b}' written on it. Is it hateful? Answer:"),
])  # fmt: skip
def test_prompts_are_those_of_the_paper_and_of_openflamingo(name, template, shots, expected, tmp_path):
    """Section 3.1 and appendix, and the code of OpenFlamingo."""
    task, features = loaded(name, tmp_path, template=template), SimpleNamespace(get=lambda example: torch.zeros(1, 4, 16))
    pieces = few_shot_prompt(make_query(task, task.queries[0], task.support, features), shots).pieces
    assert "".join("<EOC>" if p is EOC else p if isinstance(p, str) else "<image>" for p in pieces) == expected
    limits = {"paper": {"coco": 32, "vqav2": 16}, "openflamingo": {"coco": 20, "vqav2": 5}}
    assert task.max_new_tokens == limits[template].get(name, task.max_new_tokens)
    assert task.scoring == {"paper": "sum", "openflamingo": "mean"}[template]


@pytest.mark.parametrize("name, template, generated, kept", [
    ("coco", "paper", " A dog. Output: A cat", "A dog."),
    ("coco", "openflamingo", "A dog.Output", "A dog."),
    ("vqav2", "paper", " red, blue\nQuestion: who", "red, blue"),
    ("vqav2", "paper", " Answerphone Question: who", "Answerphone"),
    ("vqav2", "openflamingo", "red, blue", "red"),
    ("vqav2", "openflamingo", "red Short answer:blue", "red"),
    ("msrvttqa", "paper", " Talk. ", "talk"),
    ("okvqa", "paper", " Racing", "race"),  # stems of the training annotations
    ("okvqa", "paper", "swimming", "swimming"),  # only the queries' annotations have its stem
])  # fmt: skip
def test_a_generated_answer_ends_where_the_next_prompt_begins(name, template, generated, kept, tmp_path):
    assert loaded(name, tmp_path, template=template).clean(generated) == kept


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_missing_or_malformed_annotation_file_is_named(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"\.jsonl? is missing \(searched in .*annotations too\)"):
        load_benchmark(name, tmp_path)
    make(name, tmp_path)
    other = '[{"split": 3}]' if name != "youcook2" else '{"database": {"a": {"subset": "training"}}}'
    for text, message in ((other, f"{name} train is not in the official format"), ('{"images": [', "jsonl?: not valid JSON")):
        for path in tmp_path.glob("**/*.json*"):
            path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_benchmark(name, tmp_path)


def test_a_missing_or_damaged_media_file_is_an_error_of_its_example_only(tmp_path):
    """The runner counts OSError and ValueError of `media()`."""
    task = loaded("coco", tmp_path)
    path = tmp_path / "val2014" / "391895.jpg"
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(ValueError, match=r"391895\.jpg"):
        task.queries[0].media()
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"391895\.jpg is missing"):
        task.queries[0].media()
    assert task.queries[1].media().size == (8, 8)


def test_an_unknown_benchmark_or_split_is_refused_with_the_alternatives(tmp_path):
    make("vqav2", tmp_path)
    for name, split, message in (
        ("imagenet", None, "unknown benchmark 'imagenet'; choose one of coco, "),
        ("vqav2", "test2015", "vqav2: queries cannot come from split 'test2015'; choose one of val"),
        ("vqav2", "train", "vqav2: queries cannot come from split 'train'"),
    ):
        with pytest.raises(ValueError, match=message):
            load_benchmark(name, tmp_path, split=split)


# ------------------------------------------------------------------------------------------- python -m minflamingo eval

TOKENIZER = ToyTokenizer([" a", " cat", " dog", "Output", ":", "Question", " Answer"])


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A small model, and VQAv2 with five questions. One query image and one shot image are broken."""
    model = tiny_flamingo(lm={"vocab_size": TOKENIZER.vocab_size, "max_length": 4096})
    Pipeline(model, TOKENIZER, ImagePreprocessor(8)).save(tmp_path / "model")
    for split, n in (("val", 5), ("train", 9)):
        images = tmp_path / "vqa" / f"{split}2014"
        images.mkdir(parents=True)
        rows = [(10 * i, i, f"What is {i}?", [{"answer": f"{i}"}] * 10) for i in range(1, n + 1)]
        for name, content in coco_questions("v2_", {f"{split}2014": rows}).items():
            (tmp_path / "vqa" / name).write_text(json.dumps(content))
        for i in range(1, n + 1):
            Image.fromarray(image(i)[0]).save(images / f"COCO_{split}2014_{i:012}.jpg")
    (tmp_path / "vqa/val2014/COCO_val2014_000000000003.jpg").write_bytes(b"not an image")
    (tmp_path / "vqa/train2014/COCO_train2014_000000000004.jpg").unlink()
    monkeypatch.chdir(tmp_path)
    return tmp_path


OPTIONS = ["--device", "cpu", "--beams", "1", "--batch-size", "2"]
TOY = ["eval", "--model", "model", "--suite", "little_suite", "--limit", "7", *OPTIONS]
VQA = ["eval", "--model", "model", "--task", "vqav2", "--data", "vqa", "--shots", "0_text,4", "--out", "out", *OPTIONS]


def results(out: str = "out") -> dict:
    return json.loads(Path(out, "results.json").read_text())


def test_all_tasks_of_a_suite_give_a_table_a_figure_and_files(folder, capsys):
    """Scores are those of the runner. The mean over tasks is in percent."""
    main([*TOY, "--task", "toy", "--shots", "0,0_text,2", "--out", "out"])
    found, printed = results(), capsys.readouterr().out
    pipeline = load("model")
    for task in suite("test", 7).values():
        for shots in ("0", "0_text", "2"):
            expected = evaluate(pipeline, task, shots, protocol=Protocol(beams=1))
            cell = found["tasks"][task.name]["shots"][shots]
            assert (cell["score"], cell["interval"], cell["n"]) == (expected["score"], expected["interval"], 7)
            assert f"{cell['score']:.1f} [{cell['interval'][0]:.0f}, {cell['interval'][1]:.0f}]" in printed
            predictions = json.loads((folder / f"out/predictions/{task.name}-{shots}-0.json").read_text())
            assert [p["key"] for p in predictions] == [f"test-{i}" for i in range(7)]
    scores = [found["tasks"][name]["shots"]["2"]["score"] for name in ("named", "chosen")]
    assert found["mean"]["2"] == pytest.approx(sum(scores) / 2, abs=0.01) and "mean" in printed
    assert Image.open("out/shots.png").size[0] > 500


@pytest.mark.parametrize("rices", [False, True])
def test_broken_files_are_counted_named_and_left_out(folder, capsys, rices):
    """A broken query has no prediction. A broken shot is replaced by another one; RICES never finds it."""
    main([*VQA, *["--rices"] * rices])
    cell, printed = results()["tasks"]["vqav2"]["shots"]["4"], capsys.readouterr().out
    assert cell["n"] == 4 and list(cell["broken"]) == ["30"] and cell["replaced"] == ([] if rices else ["40"])
    assert "vqav2: skipped 1 queries that are broken or too long, for example 30: " in printed
    assert rices or "vqav2: replaced 1 shots that are broken or too long, for example 40" in printed
    predictions = json.loads((folder / "out/predictions/vqav2-4-0.json").read_text())
    assert [p["key"] for p in predictions if "prediction" in p] == ["10", "20", "40", "50"]
    assert [p["key"] for p in predictions if "broken" in p] == ["30"]


def test_an_interrupted_evaluation_resumes_with_the_same_result(folder):
    arguments = [*TOY, "--task", "toy", "--shots", "0_text,2", "--trials", "2"]
    main([*arguments, "--out", "whole"])
    with stopped_at(4), pytest.raises(SystemExit, match="resume"):
        main([*arguments, "--out", "parts"])
    main([*arguments, "--out", "parts"])
    for file in ("results.json", "predictions/named-2-1.json"):
        assert Path("parts", file).read_text() == Path("whole", file).read_text()
    chosen = [json.loads(Path(out, "predictions/chosen-2-0.json").read_text()) for out in ("parts", "whole")]
    assert len({tuple((p["key"], p["prediction"]) for p in predictions) for predictions in chosen}) == 1


def test_trials_draw_other_shots_and_the_score_is_their_mean(folder):
    """Where nothing is random there is one trial: without shots, and with RICES."""
    main([*TOY, "--task", "named", "--shots", "0,4", "--trials", "3", "--out", "out"])
    shots = results()["tasks"]["named"]["shots"]
    assert len({Path(f"out/predictions/named-4-{trial}.json").read_text() for trial in range(3)}) == 3
    assert len(shots["4"]["trials"]) == 3 and len(shots["0"]["trials"]) == 1
    assert shots["4"]["score"] == pytest.approx(sum(shots["4"]["trials"]) / 3, abs=0.01)
    main([*TOY, "--task", "chosen", "--shots", "0_text,4", "--trials", "2", "--rices", "--ensemble", "--out", "rices"])
    shots = results("rices")["tasks"]["chosen"]["shots"]
    assert len(shots["4"]["trials"]) == 1 and len(shots["0_text"]["trials"]) == 2
    (task,) = load_tasks(given(task=["chosen"]))
    expected = evaluate(load("model"), task, "4", protocol=Protocol(rices=True, ensemble=True, beams=1))
    assert shots["4"]["score"] == expected["score"]


def given(**options):
    defaults = {"task": ["vqav2"], "data": Path("vqa"), "split": None, "template": "paper", "limit": 7, "suite": "little_suite"}
    return SimpleNamespace(**{**defaults, "seed": 0, **options})


def test_a_folder_of_your_own_images_and_texts_is_a_task(tmp_path, folder, capsys):
    """Images of any format, subfolders, videos as folders of frames. A quarter are queries; `eval` takes the folder's name."""
    photos = tmp_path / "photos"
    for key in ("a.b", "sub/c", "d", "e", "f", "g", "run/1", "run/2"):
        (photos / key).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image(1)[0]).save(photos / f"{key}.{'gif' if key == 'd' else 'png'}")
    (photos / "e.png").rename(photos / "e.PNG")
    (photos / "f.xmp").write_text("a file that a program for photos writes next to them")
    for key in ("a.b", "sub/c", "d", "e", "f", "g", "run", "lost"):
        (photos / f"{key}.txt").write_text(f"\ufeff a {key}\n", encoding="utf-8")
    task = load_folder(photos)
    assert {e.key: e.answers for e in (*task.support, *task.queries)} == {
        key: (f"a {key}",) for key in ("a.b", "sub/c", "d", "e", "f", "g", "run", "lost")
    }
    assert len(task.queries) == 2 and len(task.support) == 6 and task.queries != load_folder(photos, seed=1).queries
    frames = {e.key: len(as_frames(e.media())) for e in (*task.support, *task.queries) if e.key != "lost"}
    assert frames == {"a.b": 1, "sub/c": 1, "d": 1, "e": 1, "f": 1, "g": 1, "run": 2}
    main(["eval", "--model", str(folder / "model"), "--task", str(photos), "--shots", "0,2", "--out", str(tmp_path / "out")])
    results = json.loads((tmp_path / "out/results.json").read_text(encoding="utf-8"))["tasks"]["photos"]
    assert results["metric"] == "exact_match" and set(results["shots"]) == {"0", "2"}
    (photos / "g.txt").write_text(" ")
    task = load_folder(photos)
    assert "1 texts are left out, such as g: the caption is empty" in capsys.readouterr().out
    assert "g" not in [e.key for e in (*task.support, *task.queries)] and len(task.support) == 6
    with pytest.raises(ValueError, match="sub has 1 images with texts"):
        load_folder(photos / "sub")


def test_a_limit_draws_queries_by_the_seed(folder):
    """They are not the first ones, because files are often sorted."""
    keys = [[query.key for query in load_tasks(given(limit=3, seed=seed))[0].queries] for seed in range(8)]
    assert keys[0] == [query.key for query in load_tasks(given(limit=3))[0].queries]
    assert {len(k) for k in keys} == {3} and len(set(map(tuple, keys))) > 2
