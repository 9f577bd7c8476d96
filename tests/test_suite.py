"""The nine toy benchmarks: their splits, what is held out, and that each answer is that of the picture."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_toy import suite as toy
from data_toy.suite import LIKE, PEOPLE, SPLITS, SUITE, UNANSWERABLE, clean, example, suite, things_and_names
from data_toy.words import caption, questions, toy_tokenizer
from data_toy.world import MADE_UP_NAMES, Scene, Video, held_out
from minflamingo.data.images import as_frames
from minflamingo.evaluation.figure import UNITS
from minflamingo.evaluation.metrics import METRICS, Outcome
from minflamingo.evaluation.runner import perfect

TASKS = list(SUITE)
N = 60
NAMED = ("poor_pictures", "video_questions", "dialogue")


@pytest.fixture(scope="module")
def scenes():
    """What is painted for an example: task, split, number → the scenes that its medium shows."""
    shown: dict[tuple, list] = {}

    def of(task: str, split: str, number: int) -> list:
        key = task, split, number
        if key not in shown:
            painted: list = []
            with pytest.MonkeyPatch.context() as patch:
                for name in ("draw", "draw_video"):
                    real = getattr(toy, name)
                    patch.setattr(toy, name, lambda s, rng, real=real: painted.append(s) or real(s, rng))
                example(*key).media()
            shown[key] = painted
        return shown[key]

    return of


def test_there_are_nine_tasks_one_for_each_column_of_the_table_on_fine_tuning():
    """§3.2: the same sort of answer, the same metric."""
    columns = ["VQAv2", "COCO", "VATEX", "VizWiz", "MSRVTTQA", "VisDial", "YouCook2", "TextVQA", "HatefulMemes"]
    metric = dict(zip(columns, ["vqa", "cider", "cider", "vqa", "top1", "ndcg", "cider", "vqa", "auc"]))
    tasks = suite("test", queries=2, support=2)
    assert list(tasks) == TASKS and sorted(LIKE.values()) == sorted(columns)
    assert {LIKE[name]: task.metric for name, task in tasks.items()} == metric
    close_ended = {name for name, task in tasks.items() if task.queries[0].choices is not None}
    assert close_ended == {"dialogue", "clashes"}
    films = {name for name, task in tasks.items() if isinstance(task.queries[0].media(), list)}
    assert films == {"video_captions", "video_questions", "steps"}
    with pytest.raises(ValueError, match="no split 'dev'; choose one of train, validation, test"):
        suite("dev")


@pytest.mark.parametrize("task", TASKS)
def test_an_example_is_its_number(task):
    """The same picture and answer whenever it is asked for; another number, split or seed is another one."""

    def facts(split: str, i: int, seed: int = 0):
        e = example(task, split, i, seed)
        return as_frames(e.media()).tobytes(), e.answers, e.fields, e.choices

    assert facts("train", 3) == facts("train", 3)
    assert len({facts(split, i, seed)[0] for split in SPLITS for i in range(3) for seed in (0, 1)}) == 18
    keys = [e.key for split in SPLITS for e in suite(split, 5, 5)[task].queries]
    assert len(set(keys)) == 15 and not {e.key for e in suite("test", 5, 5)[task].support} & set(keys[5:])


@pytest.mark.parametrize("task", TASKS)
def test_only_the_test_split_shows_what_is_held_out_and_nothing_else(task, scenes):
    """`world.held_out`. Of a film of two moves the first one decides."""
    for split in SPLITS:
        for i in range(N):
            assert held_out(scenes(task, split, i)[0]) == (split == "test")


def answered(task: str, e, shown: list) -> bool:
    """Is the example's answer that of the scene, worked out from the facts?"""
    scene, said = shown[0], e.answers[0]
    things, names = things_and_names(task)
    if task in ("captions", "video_captions"):
        return said == caption(scene)
    if task == "steps":
        first, then = shown
        return (first.mover, first.still) == (then.mover, then.still) and said == f"{caption(first)}, {caption(then)}"
    if task == "questions":
        return (e.fields["question"], said) in questions(scene)
    if task == "reading":
        return said == scene.word
    if task == "clashes":
        return said == ("yes" if scene.colour in toy.FITTING[scene.word] else "no")
    thing = scene.mover if isinstance(scene, Video) else (scene.colour, scene.shape)
    k = things.index(thing)
    if task == "dialogue":
        mine = {names[2 * k], names[2 * k + 1]}
        gains = dict(zip(e.choices, e.gains))
        return said in mine and {n: g for n, g in gains.items() if g} == {**dict.fromkeys(mine, 0.5), said: 1.0}
    return said in (names[k], *((UNANSWERABLE,) if task == "poor_pictures" else ()))


@pytest.mark.parametrize("task", TASKS)
def test_the_answer_is_that_of_the_picture(task, scenes):
    """Whatever the split; in VQA tasks ten people say so."""
    for split in SPLITS:
        for i in range(N):
            e = example(task, split, i)
            assert answered(task, e, scenes(task, split, i)), (task, split, i)
            assert len(e.answers) == (PEOPLE if SUITE[task][2] == "vqa" else 1) and len(set(e.answers)) == 1
            assert e.choices is None or e.answers[0] in e.choices


def test_names_are_of_the_test_and_none_can_be_mistaken_for_another():
    """They stand on no training page; three things share no colour and no shape."""
    for task in NAMED:
        things, names = things_and_names(task)
        assert set(names) | {UNANSWERABLE} <= set(MADE_UP_NAMES["test"])
        for place in (0, 2):
            assert len({name[place] for name in (*names, UNANSWERABLE)}) == 9
        assert len({c for c, _ in things}) == len({s for _, s in things}) == 3


def test_the_place_of_a_right_choice_gives_nothing_away():
    """dialogue: any of the eight; clashes: yes as often as no, in each split."""
    asked = [example("dialogue", "train", i) for i in range(200)]
    assert {e.choices.index(e.answers[0]) for e in asked} == set(range(8))
    for split in SPLITS:
        share = sum(example("clashes", split, i).answers[0] == "yes" for i in range(300)) / 300
        assert 0.4 < share < 0.6


@pytest.mark.parametrize("split", SPLITS)
def test_neither_word_nor_board_nor_place_tells_whether_they_clash(split, scenes):
    """HatefulMemes' benign confounders: one of the three alone helps little. And what is held out is spread, so that nothing
    learned from the training split about a place misleads in the test."""
    facts = [(*scenes("clashes", split, i), example("clashes", split, i).answers[0]) for i in range(300)]
    boards = {(board.word, board.colour, board.place) for board, _ in facts}
    assert len(boards) >= (12 if split == "test" else 50)
    for place in ("top", "bottom"):
        answers = [answer for board, answer in facts if board.place == place]
        assert 0.3 < answers.count("yes") / len(answers) < 0.7, (split, place)
    for known in ("word", "colour"):
        seen = {said: {getattr(board, known) for board, answer in facts if answer == said} for said in ("yes", "no")}
        assert len(seen["yes"] & seen["no"]) >= (2 if split == "test" else 6), (split, known)
    if split != "test":
        for known in ("word", "colour"):
            for value in {getattr(board, known) for board, _ in facts}:
                answers = [answer for board, answer in facts if getattr(board, known) == value]
                assert 0.2 < answers.count("yes") / len(answers) < 0.8, (split, known, value)


def test_every_word_of_clashes_is_seen_with_boards_that_go_with_it_and_others():
    """Of each word and each colour the training split shows both cases: so the rule can be learned, not the pictures alone."""
    shown = {(word, colour) for word in toy.FITTING for colour in (*toy.WARM, *toy.COLD) for place in ("top", "bottom")
             if not held_out(Scene("sign", colour=colour, word=word, place=place))}  # fmt: skip
    for word, fitting in toy.FITTING.items():
        assert len([c for w, c in shown if w == word and c in fitting]) >= 2
        assert len([c for w, c in shown if w == word and c not in fitting]) >= 2
    for colour in (*toy.WARM, *toy.COLD):
        goes = [colour in toy.FITTING[word] for word, c in shown if c == colour]
        assert goes.count(True) >= 2 and goes.count(False) >= 2


def test_three_in_ten_poor_pictures_show_nothing():
    """Their contrast is gone: what is left of the thing is less than a tenth."""
    def contrast(e) -> float:
        pixels = np.asarray(e.media(), dtype=float)
        small = pixels.reshape(8, 6, 8, 6, 3).mean((1, 3))  # noise averages out
        return float(small.max((0, 1)).max() - small.min((0, 1)).min())

    by_answer = {True: [], False: []}
    for i in range(150):
        e = example("poor_pictures", "train", i)
        by_answer[e.answers[0] == UNANSWERABLE].append(contrast(e))
    assert 30 < len(by_answer[True]) < 60
    assert np.median(by_answer[True]) < 60 < 100 < np.quantile(by_answer[False], 0.05)


def test_every_prompt_is_made_of_words_that_the_tokenizer_knows():
    """Made-up names apart, and " yes" and " no": so a language model that has read the toy library can say it."""
    tokenizer = toy_tokenizer()
    for name, task in suite("test", 20, 0).items():
        for e in task.queries:
            spelled = name in NAMED or name == "clashes"
            text = task.template.asked(e) if spelled else task.template.shown(e)
            assert all(i >= tokenizer.N_SPECIAL + tokenizer.N_BYTES for i in tokenizer.encode(text)), text


@pytest.mark.parametrize("task", TASKS)
def test_right_answers_score_all_there_is(task):
    """The first answer as the prediction, the highest score for the most relevant choice: the metric's maximum."""
    content = suite("test", 40, 0)[task]

    def right(e) -> Outcome:
        if e.choices is None:
            return Outcome(e, content.clean(content.template.answered(e.answers[0])))
        return Outcome(e, "", tuple(e.gains or (float(c == e.answers[0]) for c in e.choices)))

    outcomes = [right(e) for e in content.queries]
    assert METRICS[content.metric](outcomes) == pytest.approx(perfect(content, outcomes))


def test_a_cleaned_answer_is_its_first_sentence():
    """A model that goes on about where a dak lives has answered."""
    assert clean(" dak. They are mainly found in Nepal.") == "dak" and clean(" a red circle left of a blue star") == (
        "a red circle left of a blue star"
    )


def test_the_benchmarks_of_the_readme_are_those_of_the_suite():
    """Name, whose column it is, metric; and each prompt is one that some example asks with."""
    readme = (Path(toy.__file__).parent / "README.md").read_text().split("## Nine benchmarks")[1]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([\w\- ]+) \| `(.*?)` →", readme, re.MULTILINE)
    assert [(name, like) for name, like, _, _ in rows] == list(LIKE.items())
    for name, _, metric, prompt in rows:
        _, template, key = SUITE[name]
        assert metric == UNITS[key]
        assert prompt in {template.asked(example(name, "train", i)) for i in range(300)}


def test_answers_are_spread():
    """No answer is so frequent that to say always the same would do."""
    for name, task in suite("test", 128, 0).items():
        most = Counter(e.answers[0] for e in task.queries).most_common(1)[0][1]
        assert most < 128 * (0.6 if name == "clashes" else 0.45), name


def test_a_scene_is_never_asked_of_dice_that_were_thrown_before():
    """The picture of an example does not depend on whether others were painted before it."""
    first = np.asarray(example("captions", "train", 1).media())
    random.seed(5)
    example("captions", "train", 0).media()
    assert np.array_equal(first, np.asarray(example("captions", "train", 1).media()))
