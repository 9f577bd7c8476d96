"""data_toy/suite.py: the splits of the nine toy benchmarks, held-out scenes, and the answers."""

import random
import re
import zlib
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from data_toy import suite as toy
from data_toy.suite import FITTING, N_ANSWERS, SPLITS, SUITE, UNANSWERABLE, clean, example, suite, things_and_names
from data_toy.words import caption, questions, toy_tokenizer
from data_toy.world import held_out
from minflamingo.data.images import as_frames
from minflamingo.evaluation.metrics import METRICS, Outcome

TASKS = list(SUITE)
NAMED = ("poor_images", "video_questions", "dialogue")


@cache
def scenes_of(task: str, split: str, number: int) -> list:
    """The scenes that are rendered for an example."""
    rendered: list = []
    with pytest.MonkeyPatch.context() as patch:
        original = toy.draw
        patch.setattr(toy, "draw", lambda scene, rng: rendered.append(scene) or original(scene, rng))
        example(task, split, number).media()
    return rendered


def test_the_suite_has_a_task_for_each_column_of_the_papers_fine_tuning_table():
    """Section 3.2. Three tasks have videos, two are close-ended."""
    columns = ["VQAv2", "COCO", "VATEX", "VizWiz", "MSRVTTQA", "VisDial", "YouCook2", "TextVQA", "HatefulMemes"]
    tasks = suite("test", queries=2, support=2)
    assert list(tasks) == TASKS and sorted(like for *_, like in SUITE.values()) == sorted(columns)
    assert {name for name, task in tasks.items() if task.queries[0].choices is not None} == {"dialogue", "memes"}
    videos = {name for name, task in tasks.items() if isinstance(task.queries[0].media(), list)}
    assert videos == {"video_captions", "video_questions", "steps"}
    with pytest.raises(ValueError, match="no split 'dev'; choose one of train, validation, test"):
        suite("dev")


@pytest.mark.parametrize("task", TASKS)
def test_an_example_is_determined_by_its_number_and_split(task):
    def content(split: str, i: int):
        e = example(task, split, i)
        return as_frames(e.media()).tobytes(), e.answers, e.fields, e.choices

    first = content("train", 3)
    random.seed(5)  # the global random state and other examples have no influence
    assert content("test", 0) != first == content("train", 3)
    assert len({content(split, i)[0] for split in SPLITS for i in range(6)}) == 18
    keys = [e.key for split in SPLITS for e in suite(split, 5, 5)[task].queries]
    assert len(set(keys)) == 15 and not {e.key for e in suite("test", 5, 5)[task].support} & set(keys[5:])


def is_answer(task: str, e, scenes: list) -> bool:
    """Is the answer of the example right, derived from the facts of the scene?"""
    scene, answer = scenes[0], e.answers[0]
    things, names = things_and_names(task)
    if task in ("captions", "video_captions", "steps"):  # steps: two moves of the same thing
        assert all(s.things == scene.things for s in scenes[1:])
        return answer == ", ".join(map(caption, scenes))
    if task == "questions":
        return (e.fields["question"], answer) in questions(scene)
    if task == "reading":
        return answer == scene.word
    if task == "memes":
        return answer == ("yes" if scene.colour in FITTING[scene.word] else "no")
    k = things.index(scene.things[0] if scene.kind == "video" else (scene.colour, scene.shape))
    if task == "dialogue":
        return sorted(e.answers) == sorted(names[2 * k : 2 * k + 2]) and set(e.choices) == set(names)
    return answer in (names[k], *((UNANSWERABLE,) if task == "poor_images" else ()))


@pytest.mark.parametrize("task", TASKS)
def test_answers_are_right_and_exactly_the_test_split_shows_held_out_scenes(task):
    """Of a video with two moves, the first decides. VQA tasks have ten equal answers. A right answer scores 100."""
    content = suite("test", 2, 0)[task]
    for split in SPLITS:
        outcomes = []
        for i in range(60):
            e, scenes = example(task, split, i), scenes_of(task, split, i)
            assert held_out(scenes[0]) == (split == "test")
            assert is_answer(task, e, scenes), (task, split, i)
            assert len(e.answers) == (N_ANSWERS if SUITE[task][2] == "vqa" else 2 if task == "dialogue" else 1)
            assert e.choices is None or set(e.answers) <= set(e.choices)
            scores = tuple(float(choice == e.answers[-1]) for choice in e.choices or ())
            outcomes.append(Outcome(e, "" if scores else clean(content.template.answered(e.answers[0])), scores or None))
        assert METRICS[content.metric](outcomes) == pytest.approx(100)


def test_names_are_held_out_and_easy_to_distinguish():
    """No training document contains them. Three things share no colour and no shape. Only the first sentence counts."""
    for task in NAMED:
        things, names = things_and_names(task)
        names = [name.lower() for name in (*names, UNANSWERABLE)]
        assert all(zlib.crc32(name.encode()) % 5 == 0 for name in names)  # as in world.py
        for place in (0, 2):
            assert len({name[place : place + 1] for name in names}) == 9
        assert len({colour for colour, _ in things}) == len({shape for _, shape in things}) == 3
    assert clean(" dak. They are mainly found in Nepal.") == "dak"


def test_no_answer_and_no_position_among_the_choices_is_frequent():
    for name, task in suite("test", 128, 0).items():
        most = Counter(e.answers[0] for e in task.queries).most_common(1)[0][1]
        assert most < 128 * (0.6 if name == "memes" else 0.45), name
    assert {e.choices.index(e.answers[0]) for e in (example("dialogue", "train", i) for i in range(200))} == set(range(8))


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("known", ["word", "colour", "place"])
def test_neither_word_nor_colour_nor_place_alone_decides_a_meme(known, split):
    """As the benign confounders of HatefulMemes. The test split has few signs, and some words or colours have one answer."""
    facts = [(*scenes_of("memes", split, i), example("memes", split, i).answers[0]) for i in range(300)]
    assert len({sign for sign, _ in facts}) >= (12 if split == "test" else 50)
    answers: dict[str, list[bool]] = {}
    for sign, answer in facts:
        answers.setdefault(getattr(sign, known), []).append(answer == "yes")
    shares = [np.mean(found) for found in answers.values()]
    assert 0.4 < np.mean([answer == "yes" for _, answer in facts]) < 0.6
    assert sum(0 < share < 1 for share in shares) >= (2 if split == "test" or known == "place" else 6)
    if known == "place" or split != "test":
        margin = 0.3 if known == "place" else 0.2
        assert all(margin < share < 1 - margin for share in shares)


def test_three_in_ten_poor_images_show_nothing():
    """Their contrast, measured on averages of 6 x 8 pixels, is low."""

    def contrast(e) -> float:
        pixels = np.asarray(e.media(), dtype=float)
        small = pixels.reshape(8, 6, 8, 6, 3).mean((1, 3))  # noise averages out
        return float(small.max((0, 1)).max() - small.min((0, 1)).min())

    by_answer = {True: [], False: []}
    for i in range(150):
        e = example("poor_images", "train", i)
        by_answer[e.answers[0] == UNANSWERABLE].append(contrast(e))
    assert 30 < len(by_answer[True]) < 60
    assert np.median(by_answer[True]) < 60 < 100 < np.quantile(by_answer[False], 0.05)


def test_prompts_consist_of_words_of_the_vocabulary_and_agree_with_the_table_of_the_readme():
    """Except made-up names, "yes" and "no", which the tokenizer spells in bytes."""
    tokenizer = toy_tokenizer()
    readme = (Path(toy.__file__).parent / "README.md").read_text(encoding="utf-8").split("## Nine benchmarks")[1]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([\w ]+) \| `(.*?)` →", readme, re.MULTILINE)
    assert [(name, like) for name, like, _, _ in rows] == [(name, like) for name, (*_, like) in SUITE.items()]
    for name, _, metric, prompt in rows:
        _, template, key, _ = SUITE[name]
        assert metric.lower().replace(" ", "_") in (key, f"{key}_accuracy")
        examples = [example(name, "train", i) for i in range(300)]
        assert prompt in map(template.asked, examples)
        for text in map(template.asked if name in (*NAMED, "memes") else template.shown, examples):
            assert all(i >= tokenizer.N_SPECIAL + tokenizer.N_BYTES for i in tokenizer.encode(text)), text
