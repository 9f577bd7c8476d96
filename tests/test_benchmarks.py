"""Benchmarks on disk: small files in the official formats are written, read, asked in the papers' words, and handed in."""

from __future__ import annotations

import builtins
import csv
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import picture
from PIL import Image

from minflamingo.data.films import spread
from minflamingo.data.images import as_frames
from minflamingo.evaluation.benchmarks import BENCHMARKS, PUBLISHED, TEMPLATES, files_expected, load_benchmark, write_submission
from minflamingo.evaluation.benchmarks.files import Film
from minflamingo.evaluation.metrics import METRICS, Outcome
from minflamingo.evaluation.task import Example, Task


def image(path: Path, i: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(i)[0]).save(path)


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def people(*answers: str) -> list[dict]:
    return [{"answer_id": i + 1, "answer": a, "answer_confidence": "yes"} for i, a in enumerate(answers)]


# ------------------------------------------------------------------------------- a small folder of each, in its true format


def coco(folder: Path) -> None:
    """Karpathy's file: the split is in each image; "restval" belongs to train."""
    images = [
        ("train2014", 9, "train", ["A cat wearing sunglasses.", "cat"]),
        ("val2014", 17, "restval", ["Elephants walking in the savanna."]),
        ("val2014", 391895, "test", ["A man with a red helmet on a small moped.", "Man riding a motor bike. "]),
        ("val2014", 42, "test", ["A dog."]),
        ("val2014", 43, "val", ["A bird."]),
    ]
    records = [
        {"filepath": place, "filename": f"COCO_{place}_{i:012d}.jpg", "cocoid": i, "imgid": i, "split": split,
         "sentences": [{"raw": c, "tokens": c.split()} for c in captions]}
        for place, i, split, captions in images
    ]  # fmt: skip
    write(folder / "annotations" / "dataset_coco.json", {"images": records, "dataset": "coco"})
    for place, i, _, _ in images:
        image(folder / place / f"COCO_{place}_{i:012d}.jpg", i)


def flickr30k(folder: Path) -> None:
    rows = [
        ("1000092795.jpg", "train", "Two young guys."),
        ("10002456.jpg", "test", "Several men."),
        ("x_1.jpg", "test", "A girl."),
    ]
    records = [{"filename": f, "imgid": i, "split": s, "sentences": [{"raw": c}]} for i, (f, s, c) in enumerate(rows)]
    write(folder / "dataset_flickr30k.json", {"images": records, "dataset": "flickr30k"})
    for i, (name, _, _) in enumerate(rows):
        image(folder / "flickr30k-images" / name, i)


def coco_questions(folder: Path, prefix: str, subsets: dict[str, list]) -> None:
    for subset, rows in subsets.items():
        questions = [{"question_id": q, "image_id": i, "question": text} for q, i, text, _ in rows]
        annotations = [{"question_id": q, "image_id": i, "answers": a, "question_type": "what"} for q, i, _, a in rows]
        opening = f"{prefix}OpenEnded_mscoco_{subset}_questions.json"
        write(folder / opening, {"questions": questions, "task_type": "Open-Ended"})
        write(folder / f"{prefix}mscoco_{subset}_annotations.json", {"annotations": annotations[::-1]})  # another order
        for _, i, _, _ in rows:
            image(folder / subset / f"COCO_{subset}_{i:012d}.jpg", i)


def vqav2(folder: Path) -> None:
    train = [(9000, 9, "What's the cat wearing?", people("glasses", *["sunglasses"] * 9)),
             (17001, 17, "How many animals?", people(*["3"] * 10))]  # fmt: skip
    val = [(262148000, 262148, "What is on the water?", people(*["boat"] * 4, *["ship"] * 6)),
           (262148001, 262148, "Is it day?", people(*["yes"] * 10))]  # fmt: skip
    coco_questions(folder, "v2_", {"train2014": train, "val2014": val})
    write(folder / "v2_OpenEnded_mscoco_test-dev2015_questions.json",
          {"questions": [{"question_id": 1000, "image_id": 1, "question": "Who?"}]})  # fmt: skip


def okvqa(folder: Path) -> None:
    stemmed = [{**a, "raw_answer": r} for a, r in zip(people("race", "race", "fly"), ("racing", "races", "flying"))]
    train = [(51606, 51, "What are they doing?", stemmed)]
    coco_questions(folder, "", {"train2014": train, "val2014": [(297147, 29, "What sport?", people(*["race"] * 10))]})


def vizwiz(folder: Path) -> None:
    for split, question, answers in (("train", "What is this?", ["soda"] * 10), ("val", "Which color?", ["unsuitable"] * 10)):
        name = f"VizWiz_{split}_00000000.jpg"
        record = {"image": name, "question": question, "answer_type": "other", "answerable": 1, "answers": people(*answers)}
        write(folder / f"{split}.json", [record])
        image(folder / split / name)
    write(folder / "test.json", [{"image": "VizWiz_test_00000003.jpg", "question": "Why?"}])


def textvqa(folder: Path) -> None:
    for split, q in (("train", 0), ("val", 34602)):
        record = {"question_id": q, "image_id": f"003a8ae2ef43b90{q % 7}", "question": "what does it say?",
                  "answers": ["stop"] * 10, "set_name": split, "image_classes": ["Sign"]}  # fmt: skip
        write(folder / f"TextVQA_0.5.1_{split}.json", {"dataset_type": split, "data": [record]})
        image(folder / "train_images" / f"{record['image_id']}.jpg")


def visdial(folder: Path) -> None:
    questions, answers = ["is it sunny", "is he old?", "any dogs"], ["yes", "no", "maybe", "2 dogs"]

    def dialogue(image_id: int, n: int) -> dict:
        rounds = [{"question": i, "answer": i, "answer_options": [3, 2, 1, 0], "gt_index": 3 - i} for i in range(n)]
        return {"image_id": image_id, "caption": "a man rides a horse", "dialog": rounds}

    for split, ids in (("train", [378466]), ("val", [185565, 284024])):
        data = {"questions": questions, "answers": answers, "dialogs": [dialogue(i, 3) for i in ids]}
        write(folder / f"visdial_1.0_{split}.json", {"version": "1.0", "split": split, "data": data})
    dense = [{"image_id": 185565, "round_id": 2, "gt_relevance": [0.0, 0.4, 1.0, 0.0]}]
    write(folder / "visdial_1.0_val_dense_annotations.json", dense)
    write(folder / "visdial_1.0_train_dense_annotations.json", [{"image_id": 378466, "round_id": 1, "relevance": [0, 0, 1, 0]}])
    image(folder / "VisualDialog_val2018" / "VisualDialog_val2018_000000185565.jpg")
    image(folder / "VisualDialog_val2018" / "VisualDialog_val2018_000000284024.jpg")
    image(folder / "val2014" / "COCO_val2014_000000378466.jpg")


def hatefulmemes(folder: Path) -> None:
    rows = {
        "train": [(42953, 0, "its their character"), (23058, 1, "don't be afraid")],
        "test_seen": [(1243, 1, "a {b}"), (7, 0, "c")],
    }
    for split, memes in rows.items():
        records = [{"id": i, "img": f"img/{i:05d}.png", "label": label, "text": text} for i, label, text in memes]
        write(folder / f"{split}.jsonl", "\n".join(map(json.dumps, records)) + "\n\n")
        for i, *_ in memes:
            image(folder / "img" / f"{i:05d}.png", i)


def frames(folder: Path, n: int) -> None:
    for t in range(n):
        image(folder / f"{t}.png", t)


def msrvttqa(folder: Path) -> None:
    for split, i, video in (("train", 1, 0), ("test", 158581, 7010)):
        record = {"id": i, "video_id": video, "question": "what is a man doing?", "answer": "talk", "category_id": 0}
        write(folder / f"{split}_qa.json", [record])
        frames(folder / "frames" / f"video{video}", 12)


def vatex(folder: Path) -> None:
    for name, video in (("training_v1.0", "a_000001_000011"), ("public_test_english_v1.1", "Ptf_2VRj-V0_000122_000132")):
        write(folder / f"vatex_{name}.json", [{"videoID": video, "enCap": ["A man lifts.", "He lifts."], "chCap": ["…"]}])
        frames(folder / "videos" / video, 2)


def youcook2(folder: Path) -> None:
    def video(subset: str, *segments: tuple) -> dict:
        annotations = [{"id": i, "segment": [s, e], "sentence": text} for i, (s, e, text) in enumerate(segments)]
        return {"duration": 100.5, "subset": subset, "recipe_type": "113", "annotations": annotations, "video_url": "…"}

    database = {"GLd3aX16zBg": video("training", (1, 3, "spread margarine on bread")),
                "fn9anlEL4FI": video("validation", (2, 6, "chop the onion"), (6, 60, "fry it"))}  # fmt: skip
    write(folder / "youcookii_annotations_trainval.json", {"database": database})
    for name in database:
        frames(folder / "raw_videos" / "training" / "113" / name if "GL" in name else folder / "frames" / name, 40)


MAKERS = {
    f.__name__: f for f in (coco, flickr30k, vqav2, okvqa, vizwiz, textvqa, visdial, hatefulmemes, msrvttqa, vatex, youcook2)
}


def loaded(name: str, folder: Path, **options) -> Task:
    MAKERS[name](folder)
    return load_benchmark(name, folder, **options)


# ------------------------------------------------------------------------------------------------------------- reading

QUERIES = {
    "coco": (["391895", "42"], 2), "flickr30k": (["10002456", "x_1"], 1), "vqav2": (["262148000", "262148001"], 2),
    "okvqa": (["297147"], 1), "vizwiz": (["VizWiz_val_00000000.jpg"], 1), "textvqa": (["34602"], 1),
    "visdial": (["185565/2", "284024/3"], 1), "hatefulmemes": (["1243", "7"], 2), "msrvttqa": (["158581"], 1),
    "vatex": (["Ptf_2VRj-V0_000122_000132"], 1), "youcook2": (["fn9anlEL4FI/0", "fn9anlEL4FI/1"], 1),
}  # fmt: skip


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_is_read_from_its_official_files(name, tmp_path):
    """Queries and support are those of their splits, nothing is a problem, every image or film can be looked at."""
    task = loaded(name, tmp_path)
    keys, n_support = QUERIES[name]
    assert task.name == name and task.problems == () and task.metric == BENCHMARKS[name].metric in METRICS
    assert [e.key for e in task.queries] == keys and len(task.support) == n_support
    for example in [*task.queries, *task.support]:
        assert as_frames(example.media()).dtype == np.uint8 and example.answers and all(example.answers)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_no_image_or_film_is_opened_before_it_is_looked_at(name, tmp_path, monkeypatch):
    """A benchmark has 100,000 images: loading reads its lists alone, and an example its own medium."""
    MAKERS[name](tmp_path)
    opened = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda path, *a, **k: opened.append(Path(path).name) or original(path, *a, **k))
    task = load_benchmark(name, tmp_path)
    for example in task.support:
        task.template.shown(example)
    assert opened == []
    task.queries[0].media()
    assert 1 <= len(opened) <= 30


def test_coco_without_karpathys_file_is_read_from_the_official_one(tmp_path):
    """captions_val2014.json: a record a caption, a record an image. The hidden test set has images only."""
    for split, ids in (("train", [9]), ("val", [17, 42])):
        images = [{"id": i, "file_name": f"COCO_{split}2014_{i:012d}.jpg", "height": 8} for i in ids]
        captions = [{"id": 10 * i + j, "image_id": i, "caption": f"caption {j} of {i}\n"} for j in range(2) for i in ids]
        write(tmp_path / "annotations" / f"captions_{split}2014.json", {"images": images, "annotations": captions})
    image(tmp_path / "images" / "COCO_val2014_000000000042.jpg", 42)
    task = load_benchmark("coco", tmp_path, split="val")
    assert [e.answers for e in task.queries] == [("caption 0 of 17", "caption 1 of 17"), ("caption 0 of 42", "caption 1 of 42")]
    assert np.array_equal(as_frames(task.queries[1].media()).shape, (1, 8, 8, 3))
    write(tmp_path / "image_info_test2014.json", {"images": [{"id": 5, "file_name": "COCO_test2014_000000000005.jpg"}]})
    (hidden,) = load_benchmark("coco", tmp_path, split="test").queries
    assert hidden.answers == () and hidden.fields == {"image_id": 5}
    assert load_benchmark("coco", tmp_path, split="val", support="test").support == []  # without an answer nothing can be shown


def test_images_may_be_elsewhere(tmp_path):
    """One folder of COCO's images serves four benchmarks."""
    vqav2(tmp_path / "lists")
    (tmp_path / "lists" / "val2014").rename(tmp_path / "val2014")
    example = load_benchmark("vqav2", tmp_path / "lists", media=tmp_path).queries[0]
    assert example.media().size == (8, 8)
    with pytest.raises(FileNotFoundError, match=r"COCO_val2014_000000262148\.jpg is in none of .*lists"):
        load_benchmark("vqav2", tmp_path / "lists").queries[0].media()


def test_questions_find_their_answers_by_number_and_show_the_commonest(tmp_path):
    """The two files are in different orders. "sunglasses" was said by nine, and is what a prompt shows; all ten count."""
    task = loaded("vqav2", tmp_path)
    assert task.support[0].answers == ("sunglasses",) * 9 + ("glasses",)
    assert task.queries[0].answers == ("ship",) * 6 + ("boat",) * 4
    assert METRICS["vqa"]([Outcome(task.queries[0], "boat")]) == 100
    (hidden,) = load_benchmark("vqav2", tmp_path, split="test-dev").queries
    assert hidden.answers == () and hidden.media.names == ("COCO_test2015_000000000001.jpg",)


def test_okvqas_stems_are_learnt_from_the_support(tmp_path):
    """Its answers are stemmed; so is a prediction that somebody gave in the support. What only queries know is not used."""
    task = loaded("okvqa", tmp_path)
    assert task.clean(" Racing") == "race" and task.clean("flying") == "fly" and task.clean("swimming") == "swimming"
    path = tmp_path / "mscoco_val2014_annotations.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["answers"][0]["raw_answer"] = "swimming"
    write(path, content)
    assert load_benchmark("okvqa", tmp_path).clean("swimming") == "swimming"


def test_visdial_asks_the_round_that_is_annotated_after_the_dialogue_before_it(tmp_path):
    """Rounds count from 1. Without dense annotations the last one is asked, and nothing says how relevant a candidate is."""
    dense, last = loaded("visdial", tmp_path).queries
    shown = load_benchmark("visdial", tmp_path).template.asked(dense)
    assert shown == "a man rides a horse. Question: is it sunny? Answer: yes Question: is he old? Answer:"
    assert (
        dense.choices == ("2 dogs", "maybe", "no", "yes") and dense.gains == (0.0, 0.4, 1.0, 0.0) and dense.answers == ("no",)
    )
    assert last.gains is None and last.fields["round_id"] == 3
    (tmp_path / "visdial_1.0_val_dense_annotations.json").unlink()
    task = load_benchmark("visdial", tmp_path)
    assert [e.fields["round_id"] for e in task.queries] == [3, 3] and "no dense annotations" in task.problems[0]


def test_a_film_shows_one_frame_a_second_of_its_segment(tmp_path):
    """YouCook2: seconds 2 to 6, and 6 to 60 of a film that ends at 40; never more than 30, in the order of their numbers."""
    frames(tmp_path / "film", 40)
    expected = [as_frames(Image.fromarray(picture(t)[0])) for t in range(40)]

    def seconds(**options) -> list[int]:
        shown = [as_frames(frame) for frame in Film((tmp_path,), ("film",), **options)()]
        return [next(t for t in range(40) if np.array_equal(frame, expected[t])) for frame in shown]

    assert seconds(start=2, end=6) == [2, 3, 4, 5] and seconds(start=38, end=60) == [38, 39] and seconds(start=99) == [39]
    assert seconds() == spread(range(40), 30) and len(seconds()) == 30 and seconds(start=0, end=30) == list(range(30))
    assert spread(range(10, 70), 30) == list(range(11, 70, 2))


CUTS = [(0.0, 99.0, [0, 1, 2, 3]), (1.5, 99.0, [1.5, 2.5, 3.5]), (1.0, 3.0, [1, 2])]


@pytest.mark.parametrize("start, end, expected", CUTS)
def test_a_video_file_is_decoded_one_frame_a_second(tmp_path, start, end, expected):
    """Four seconds at 10 frames a second, each of another grey; needs PyAV."""
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "film.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for i in range(40):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 5 * i + 20, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    shown = Film((tmp_path,), ("film",), start, end)()
    greys = [as_frames(frame).mean() for frame in shown]
    assert greys == pytest.approx([50 * second + 20 for second in expected], abs=4)
    (tmp_path / "film.mp4").write_bytes(b"no film")
    with pytest.raises(ValueError, match=r"film\.mp4 is no video, or damaged"):
        Film((tmp_path,), ("film",))()


def test_a_video_file_without_pyav_says_what_to_install(tmp_path, monkeypatch):
    """Folders of frames need nothing."""
    (tmp_path / "film.mp4").write_bytes(b"")
    real = builtins.__import__

    def without_av(name, *args, **kwargs):
        if name == "av":
            raise ImportError("No module named 'av'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_av)
    with pytest.raises(
        ImportError, match=r"film\.mp4 is a video file: reading it needs PyAV \(pip install 'minflamingo\[video\]'\)"
    ):
        Film((tmp_path,), ("film",))()


# ------------------------------------------------------------------------------------------------------------- prompts

PROMPTS = {
    ("coco", "paper"): "<BOS><image>Output: A cat wearing sunglasses.<EOC><image>Output: Elephants walking in the savanna.<EOC>"
    "<image>Output:",
    ("vqav2", "paper"): "<BOS><image>Question: What's the cat wearing? Answer: sunglasses<EOC>"
    "<image>Question: How many animals? Answer: 3<EOC><image>Question: What is on the water? Answer:",
    ("hatefulmemes", "paper"): '<BOS><image>is an image with written: "its their character" on it. '
    'Is it hateful? Answer: no<EOC>'
    '<image>is an image with written: "don\'t be afraid" on it. Is it hateful? Answer: yes<EOC>'
    '<image>is an image with written: "a {b}" on it. Is it hateful? Answer:',
    ("coco", "openflamingo"): "<BOS><image>Output:A cat wearing sunglasses.<EOC>\n"
    "<image>Output:Elephants walking in the savanna.<EOC>\n<image>Output:",
    ("vqav2", "openflamingo"): "<BOS><image>Question:What's the cat wearing? Short answer:sunglasses<EOC>\n"
    "<image>Question:How many animals? Short answer:3<EOC>\n<image>Question:What is on the water? Short answer:",
    ("hatefulmemes", "openflamingo"): "<BOS><image>is an image with: 'its their character' written on it. Is it hateful? "
    "Answer:no<EOC><image>is an image with: 'don't be afraid' written on it. Is it hateful? Answer:yes<EOC>"
    "<image>is an image with: 'a {b}' written on it. Is it hateful? Answer:",
}  # fmt: skip


@pytest.mark.parametrize("name, template", PROMPTS)
def test_prompts_are_the_papers_to_the_letter(name, template, tmp_path):
    """§3 and appendix: the processed prompts with two shots; and OpenFlamingo's, with its line breaks."""
    task = loaded(name, tmp_path, template=template)
    between = task.template.between
    shots = "".join(f"<image>{task.template.shown(e)}<EOC>{between}" for e in task.support)
    assert f"<BOS>{shots}<image>{task.template.asked(task.queries[0])}" == PROMPTS[name, template]


def test_every_benchmark_has_both_wordings_and_ways_to_compare_choices(tmp_path):
    """The paper sums log-likelihoods, OpenFlamingo takes the mean over tokens and generates 20 or 5 tokens."""
    assert {b.kind for b in BENCHMARKS.values()} == TEMPLATES["paper"].keys() == TEMPLATES["openflamingo"].keys()
    for name in ("coco", "vqav2"):
        MAKERS[name](tmp_path)
    assert load_benchmark("vqav2", tmp_path).scoring == "sum"
    theirs = [load_benchmark(name, tmp_path, template="openflamingo") for name in ("coco", "vqav2")]
    assert [t.scoring for t in theirs] == ["mean", "mean"] and [t.max_new_tokens for t in theirs] == [20, 5]


CLEANED = [
    ("coco", "paper", " A dog. Output: A cat", "A dog."),
    ("coco", "openflamingo", "A dog.Output", "A dog."),
    ("vqav2", "paper", " red, blue\nQuestion: who", "red, blue"),
    ("vqav2", "paper", " Answerphone Question: who", "Answerphone"),
    ("vqav2", "openflamingo", "red, blue", "red"),
    ("vqav2", "openflamingo", "red Short answer:blue", "red"),
    ("msrvttqa", "paper", " Talk. ", "talk"),
]


@pytest.mark.parametrize("name, template, generated, kept", CLEANED)
def test_a_generated_answer_ends_where_the_next_prompt_begins(name, template, generated, kept, tmp_path):
    """OpenFlamingo cuts at "Output", and at "Question", "Answer", "Short", ", "; we cut at whole prompts only."""
    assert loaded(name, tmp_path, template=template).clean(generated) == kept


# ------------------------------------------------------------------------------------------------------------- trouble


def test_a_malformed_record_is_named_and_the_others_are_read(tmp_path):
    """Counted in `problems`, with the file, the record's number and name, and what is wrong."""
    vqav2(tmp_path)
    path = tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json"
    content = json.loads(path.read_text())
    broken = [{"question_id": 5, "image_id": 1, "question": "Unanswered?"}, {"question_id": 6}, "text", content["questions"][0],
              {"question_id": True, "image_id": 1, "question": "?"},
              {"question_id": 262148001, "image_id": 1, "question": 7}]  # fmt: skip
    write(path, {"questions": content["questions"][:1] + broken})
    task = load_benchmark("vqav2", tmp_path)
    assert [e.key for e in task.queries] == ["262148000"] and len(task.problems) == 6
    said = "\n".join(task.problems)
    for part in ("questions.json, record 1, question_id 5, image_id 1: there are no answers to it in v2_mscoco_val2014_anno",
                 "record 2, question_id 6: there is no 'image_id'", "record 3: a record is an object, found 'text'",
                 "record 4, question_id 262148000, image_id 262148: 262148000 came before",
                 "'question_id' must be a number or a name, found True", "'question' must be text, found 7"):  # fmt: skip
        assert part in said


BROKEN_RECORDS = {
    "coco": ("annotations/dataset_coco.json", "images",
             {"filename": "a.jpg", "cocoid": 3, "split": "test", "sentences": []}, "'sentences' is empty"),
    "flickr30k": ("dataset_flickr30k.json", "images", {"filename": "a.jpg"}, "there is no 'split'"),
    "textvqa": ("TextVQA_0.5.1_val.json", "data",
                {"question_id": 1, "image_id": "a", "question": "?"}, "there is no 'answers'"),
    "visdial": ("visdial_1.0_val.json", "data/dialogs",
                {"image_id": 1, "caption": "a", "dialog": [{"question": -1}]}, "-1 is none of the pool's 3 texts"),
    "vizwiz": ("val.json", "",
               {"image": "a.jpg", "question": "?", "answers": [{"answer": 3}]}, "must be a list of texts"),
    "msrvttqa": ("test_qa.json", "", {"id": 3, "video_id": 4, "question": "?"}, "there is no 'answer'"),
    "vatex": ("vatex_public_test_english_v1.1.json", "", {"videoID": "a", "enCap": "A man"}, "must be a list of texts"),
    "youcook2": ("youcookii_annotations_trainval.json", "database/fn9anlEL4FI/annotations",
                 {"id": 9, "segment": [5, 2], "sentence": "x"}, "video_id 'fn9anlEL4FI', id 9: a segment from 5 to 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN_RECORDS)
def test_a_malformed_record_of_any_benchmark_is_passed_over(name, tmp_path):
    """One bad record beside the good ones."""
    MAKERS[name](tmp_path)
    file, inside, record, message = BROKEN_RECORDS[name]
    content = json.loads((tmp_path / file).read_text())
    at = content
    for part in filter(None, inside.split("/")):
        at = at[part]
    at.append(record)
    write(tmp_path / file, content)
    task = load_benchmark(name, tmp_path)
    assert len(task.problems) == 1 and message in task.problems[0] and Path(file).name in task.problems[0]
    assert [e.key for e in task.queries] == QUERIES[name][0]


def test_a_broken_line_of_jsonl_is_passed_over(tmp_path):
    """HatefulMemes; a label that is hidden leaves the meme without an answer, another value is a problem."""
    hatefulmemes(tmp_path)
    lines = [
        '{"id": 1, "img"',
        '{"id": 2, "img": "img/x.png", "text": "hidden"}',
        '{"id": 3, "img": "a", "text": "b", "label": 5}',
    ]
    with open(tmp_path / "test_seen.jsonl", "a") as file:
        file.write("\n".join(lines))
    task = load_benchmark("hatefulmemes", tmp_path)
    assert [e.key for e in task.queries] == ["1243", "7", "2"] and task.queries[2].answers == ()
    assert len(task.problems) == 2 and "'label' must be 0 or 1, found 5" in task.problems[1]


@pytest.mark.parametrize("content", [b"no image", b""])
def test_a_broken_image_is_an_error_of_its_example_alone(tmp_path, content):
    """The runner counts OSError and ValueError of `media()`; the rest of the benchmark goes on."""
    task = loaded("coco", tmp_path)
    path = tmp_path / "val2014" / "COCO_val2014_000000391895.jpg"
    path.write_bytes(content or path.read_bytes()[:-60])  # nothing of it, or cut off
    with pytest.raises(ValueError, match=r"COCO_val2014_000000391895\.jpg is no image, or damaged"):
        task.queries[0].media()
    assert task.queries[1].media().size == (8, 8)
    path.unlink()
    with pytest.raises(OSError, match=r"COCO_val2014_000000391895\.jpg is in none of"):
        task.queries[0].media()


def test_a_missing_film_is_an_error_of_its_example_alone(tmp_path):
    """Neither folder nor file; a folder without frames."""
    task = loaded("msrvttqa", tmp_path)
    for frame in (tmp_path / "frames" / "video7010").iterdir():
        frame.unlink()
    with pytest.raises(ValueError, match="video7010: there are no frames in it"):
        task.queries[0].media()
    (tmp_path / "frames" / "video7010").rmdir()
    with pytest.raises(FileNotFoundError, match="video7010: neither a folder of frames nor a video file in"):
        task.queries[0].media()


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_missing_annotation_file_says_what_was_looked_for(name, tmp_path):
    """And where. The name is one of those that `files_expected` tells people."""
    with pytest.raises(FileNotFoundError, match=r"found none of .*\.jsonl?, there or up to two folders deeper"):
        load_benchmark(name, tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such folder"):
        load_benchmark(name, tmp_path / "nowhere")
    assert name in files_expected()


def test_an_annotation_file_of_another_form_is_refused(tmp_path):
    """Truncated JSON; JSON of something else."""
    vqav2(tmp_path)
    path = tmp_path / "v2_mscoco_val2014_annotations.json"
    write(path, path.read_text()[:50])
    with pytest.raises(ValueError, match=r"v2_mscoco_val2014_annotations\.json is not JSON"):
        load_benchmark("vqav2", tmp_path)
    write(path, [])
    with pytest.raises(
        ValueError, match="v2_mscoco_val2014_annotations.json: expected an object in which 'annotations' is a list"
    ):
        load_benchmark("vqav2", tmp_path)


ASKED_WRONGLY = [
    ({"name": "imagenet"}, "no benchmark 'imagenet'; choose one of coco, "),
    ({"split": "test2015"}, "vqav2 has no split 'test2015'; choose one of train, val"),
    ({"split": "train"}, "queries and support are both 'train'"),
    ({"template": "blip"}, "no template 'blip'; choose one of paper, openflamingo"),
]


@pytest.mark.parametrize("options, message", ASKED_WRONGLY)
def test_what_is_not_there_is_named_with_what_is(options, message, tmp_path):
    """Benchmarks, splits, templates; and queries must not be their own support."""
    vqav2(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_benchmark(**{"name": "vqav2", "folder": tmp_path, **options})


# --------------------------------------------------------------------------------------------------------- submissions


def handed_in(name: str, folder: Path, said: str = 'a "Ü"') -> object:
    task = loaded(name, folder)
    outcomes = [
        Outcome(e, said, tuple(-float((i * 7 + 2) % 5) for i in range(len(e.choices))) if e.choices else None)
        for e in task.queries
    ]
    write_submission(name, outcomes, folder / "results.json")
    assert not list(folder.glob("*.partial"))
    return (folder / "results.json").read_text(encoding="utf-8")


SUBMITTED = {
    "vqav2": [{"question_id": 262148000, "answer": 'a "Ü"'}, {"question_id": 262148001, "answer": 'a "Ü"'}],
    "okvqa": [{"question_id": 297147, "answer": 'a "Ü"'}],
    "textvqa": [{"question_id": 34602, "answer": 'a "Ü"'}],
    "msrvttqa": [{"question_id": 158581, "answer": 'a "Ü"'}],
    "vizwiz": [{"image": "VizWiz_val_00000000.jpg", "answer": 'a "Ü"'}],
    "coco": [{"image_id": 391895, "caption": 'a "Ü"'}, {"image_id": 42, "caption": 'a "Ü"'}],
    "flickr30k": [{"image_id": 10002456, "caption": 'a "Ü"'}, {"image_id": "x_1", "caption": 'a "Ü"'}],
    "vatex": {"Ptf_2VRj-V0_000122_000132": 'a "Ü"'},
    # scores −2, −4, −1, −3: the third candidate is first
    "visdial": [{"image_id": 185565, "round_id": 2, "ranks": [2, 4, 1, 3]},
                {"image_id": 284024, "round_id": 3, "ranks": [2, 4, 1, 3]}],
    "youcook2": {
        "version": "VERSION 1.0",
        "results": {"fn9anlEL4FI": [{"sentence": 'a "Ü"', "timestamp": [2.0, 6.0]},
                                    {"sentence": 'a "Ü"', "timestamp": [6.0, 60.0]}]},
        "external_data": {"used": True, "details": "few-shot with a pretrained visual language model"},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SUBMITTED)
def test_results_have_the_benchmarks_form_and_its_ids_their_types(name, tmp_path):
    """Numbers stay numbers, names stay names."""
    assert json.loads(handed_in(name, tmp_path)) == SUBMITTED[name]


def test_results_of_hatefulmemes_are_a_table_of_probabilities(tmp_path):
    """id, proba, label: the softmax over "yes" and "no" at "yes", and whether it is more than a half."""
    rows = list(csv.reader(handed_in("hatefulmemes", tmp_path).splitlines()))
    proba = 1 / (1 + np.exp(-4.0 + 2.0))  # scores −2 and −4
    assert rows == [["id", "proba", "label"], ["1243", f"{proba:.6f}", "1"], ["7", f"{proba:.6f}", "1"]]


def test_coco_results_are_read_by_the_official_tool(tmp_path, capsys):
    """pycocotools: loadRes refuses what is not of its format or not of the set."""
    tool = pytest.importorskip("pycocotools.coco")
    annotations = {"images": [{"id": i} for i in (391895, 42)], "annotations": [], "info": {}, "licenses": []}
    write(tmp_path / "truth.json", annotations)
    handed_in("coco", tmp_path)
    results = tool.COCO(str(tmp_path / "truth.json")).loadRes(str(tmp_path / "results.json"))
    assert {a["image_id"]: a["caption"] for a in results.anns.values()} == {391895: 'a "Ü"', 42: 'a "Ü"'}


def test_results_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    """A wrong outcome leaves the old file as it was, and so does a disk that is full."""
    path = tmp_path / "results.json"
    path.write_text("old")
    stranger = Outcome(Example("1", lambda: None, (), {"question": "?"}), "x")
    refused = [
        ("vqav2", [], "no outcomes"),
        ("vqav2", [stranger], "no outcomes of vqav2: an example has no 'question_id'"),
        ("vqav2", [stranger, stranger], "example 1 has more than one outcome"),
        ("visdial", [stranger], "example 1: VisDial wants the candidates ranked"),
        ("imagenet", [stranger], "no results format for 'imagenet'"),
    ]
    for name, outcomes, message in refused:
        with pytest.raises(ValueError, match=message):
            write_submission(name, outcomes, path)
    fine = Outcome(Example("1", lambda: None, (), {"question_id": 1}), "x")

    def half(file: Path, text: str, encoding: str) -> None:
        file.write_bytes(text[:9].encode())
        raise OSError("no space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(Path, "write_text", half)
        with pytest.raises(OSError, match="no space left"):
            write_submission("vqav2", [fine], path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    write_submission("vqav2", [fine], path)
    assert json.loads(path.read_text()) == [{"question_id": 1, "answer": "x"}]


# ------------------------------------------------------------------------------------------------------------ published


def test_published_numbers_stand_beside_every_benchmark_and_say_if_they_are_approximate():
    """Flamingo-80B with 0, 4 and 32 shots for all; the 32 of VQAv2 and COCO are in two tables of the paper, and certain."""
    assert PUBLISHED.keys() == BENCHMARKS.keys()
    for numbers in PUBLISHED.values():
        assert [n.shots for n in numbers if n.model == "Flamingo-80B"][:3] == ["0_text", "4", "32"]
    numbers = {(n.model, n.shots): str(n) for n in PUBLISHED["coco"]}
    assert numbers["Flamingo-80B", "32"] == "113.8" and numbers["Flamingo-80B", "4"] == "~103.2"
    assert numbers["Flamingo-80B", "fine-tuned"] == "138.1" and numbers["OpenFlamingo-9B", "4"] == "89"
