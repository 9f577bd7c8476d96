"""The examination: what it asks, what it may show, what counts as right; and the eye's lessons before it."""

from __future__ import annotations

import random
import re
from collections import Counter

import numpy as np
import pytest
import torch

from data_toy import pairs, tasks
from data_toy.album import Album, draw_album
from data_toy.draw import draw
from data_toy.words import attributes, caption, fact, toy_tokenizer
from data_toy.world import CREATURES, HELD_OUT_CREATURES, MADE_UP_NAMES, SIGN_WORDS, Scene, Video, held_out
from minflamingo.evaluation.fewshot import SHOTS, Query, few_shot_prompt

TOKENIZER = toy_tokenizer()
TASKS = list(tasks.ROWS)
N = 40


@pytest.fixture(scope="module")
def exam() -> Album:
    """A smaller exam's album."""
    return draw_album(1500, seed=0, split="test")


@pytest.fixture(scope="module")
def cases(exam) -> dict[str, list[Query]]:
    return {task: tasks.queries(task, exam, N, seed=0) for task in TASKS}


@pytest.fixture(scope="module")
def scene_of(exam):
    """What a medium of the album shows."""
    shown = {id(medium): scene for medium, scene in zip(exam.media, exam.scenes)}
    return lambda medium: shown[id(medium)]


def facts(queries: list[Query]) -> list:
    """Everything in the cases, media by their place in memory: the album is one."""
    return [([(id(m), t) for m, t in q.support], id(q.medium), q.prompt, q.answer, q.choices) for q in queries]


# ----------------------------------------------------------------------------------------------------------- the cases


@pytest.mark.parametrize("task", TASKS)
def test_the_same_seed_asks_the_same_and_another_seed_something_else(task, exam):
    """So two models, or two days, sit the same exam. A longer exam begins with the shorter one."""
    one = facts(tasks.queries(task, exam, 6, seed=0))
    assert one == facts(tasks.queries(task, exam, 6, seed=0)) == facts(tasks.queries(task, exam, 8, seed=0))[:6]
    assert one != facts(tasks.queries(task, exam, 6, seed=1))
    assert len({repr(case) for case in one}) == 6


@pytest.mark.parametrize("task", TASKS)
def test_every_picture_of_the_exam_is_held_out(task, cases, scene_of):
    """Support and query: no combination of facts that was seen in training (creatures apart, which never are held out)."""
    for query in cases[task]:
        for medium in (query.medium, *(m for m, _ in query.support)):
            scene = scene_of(medium)
            if isinstance(scene, Scene) and scene.kind == "creature":
                assert task == "naming"
            else:
                assert held_out(scene) and task != "naming"


@pytest.mark.parametrize("task", TASKS)
def test_there_is_support_for_every_number_of_shots(task, cases):
    """32 examples, also where the answer had to be left out: a prompt of 32 shots can be made of every case."""
    for query in cases[task]:
        assert len(query.support) == 32
        for shots in SHOTS:
            few_shot_prompt(query, shots)


@pytest.mark.parametrize("task", TASKS)
def test_the_support_has_the_form_of_the_query(task, cases):
    """Prompt and answer side by side (appendix of the paper): who copies the form can be right to the letter."""
    for query in cases[task]:
        for _, text in query.support:
            if task == "vqa":
                assert re.fullmatch(r"Question: [^?]+\? Answer: \w.*", text)
            else:
                assert text.startswith(query.prompt) and len(text) > len(query.prompt)


@pytest.mark.parametrize("task", ["ocr", "arithmetic"])
def test_words_and_sums_cannot_be_copied_from_the_support(task, cases, scene_of):
    """The answer stands in no example, so it must be read from the picture."""
    for query in cases[task]:
        said = [text.removeprefix("Output:") for _, text in query.support]
        assert query.answer not in said
        scene = scene_of(query.medium)
        attribute = "word" if task == "ocr" else "sum"
        assert query.answer == " " + attributes(scene)[attribute]
        if task == "arithmetic":
            a, op, b, result = re.fullmatch(r" (\d)([+x])(\d)=(\d+)", query.answer).groups()
            assert int(result) == (int(a) + int(b) if op == "+" else int(a) * int(b))


@pytest.mark.parametrize("ways", [2, 4])
def test_a_bound_name_can_be_looked_up_from_as_many_shots_as_there_are_names(ways, cases, scene_of):
    """binding: before, some prompts cannot be answered; then the query's thing stands in the support, under its name."""
    early = 0
    for query in cases[f"binding_{ways}way"]:
        assert len(query.choices) == len(set(query.choices)) == ways and query.answer in query.choices
        assert {choice.strip(" .") for choice in query.choices} <= set(MADE_UP_NAMES["test"])

        def thing(medium):
            scene = scene_of(medium)
            return scene.colour, scene.shape

        for shots in (ways, 2 * ways, 32):
            told = {thing(m): text.removeprefix(query.prompt) for m, text in query.support[:shots]}
            assert told[thing(query.medium)] == query.answer and sorted(told.values()) == sorted(query.choices)
        early += thing(query.medium) in {thing(m) for m, _ in query.support[: ways - 1]}
    assert 0 < early < N


def test_the_place_of_the_right_answer_gives_nothing_away(cases):
    """binding: not always the first choice, nor the last name shown."""
    for ways in (2, 4):
        queries = cases[f"binding_{ways}way"]
        assert {q.choices.index(q.answer) for q in queries} == set(range(ways))
        last = sum(q.support[-1][1].endswith(q.answer) for q in queries)
        assert 0 < last < N


def test_only_bindings_are_close_ended(cases):
    """Chance is 1 over the number of choices there; the rest is written out freely."""
    for task, queries in cases.items():
        close_ended = {q.choices is not None for q in queries}
        assert close_ended == {task.startswith("binding")}
    assert (tasks.CHANCE["binding_2way"], tasks.CHANCE["binding_4way"]) == (1 / 2, 1 / 4)


def test_naming_asks_for_a_creature_whose_fact_was_never_shown(cases, scene_of):
    """The query is held out and never in the support; its home can come from the library alone."""
    for query in cases["naming"]:
        name = scene_of(query.medium).name
        assert name in HELD_OUT_CREATURES
        assert (query.prompt, query.answer) == ("This is a", f" {name}." + fact(name))
        for medium, text in query.support:
            shown = scene_of(medium).name
            assert shown not in HELD_OUT_CREATURES and text == f"This is a {shown}." + fact(shown)


def test_a_task_has_one_attribute_and_chance_is_what_guessing_gives(cases, scene_of):
    """task: some attribute explains the whole support and the query; CHANCE counts the answers there are."""
    for query in cases["task"]:
        fitting = [{a for a, v in attributes(scene_of(m)).items() if text == f"Output: {v}"} for m, text in query.support]
        (attribute,) = set.intersection(*fitting)
        assert query.answer == " " + attributes(scene_of(query.medium))[attribute]
    assert tasks.CHANCE["naming"] == tasks.CHANCE["naming_fact"] == 1 / len(CREATURES)
    assert tasks.CHANCE["ocr"] == 1 / len(SIGN_WORDS)
    assert tasks.CHANCE["arithmetic"] == 1 / (9 * 2 * 9) and tasks.CHANCE["video"] == 1 / (8 * 8 * 4)
    assert set(tasks.CHANCE) == {*TASKS, "naming_fact"}


# ------------------------------------------------------------------------------------------------------------- marking


def case(answer: str) -> Query:
    return Query((), np.zeros((1, 8, 8, 3), np.uint8), "Output:", answer)


def test_an_answer_is_right_to_the_letter():
    """No mercy for a lost space, a capital letter, or something behind it."""
    answers = [" red", "red", " Red", " red.", " red red", "", " blue"]
    marks = tasks.mark("ocr", answers, [case(" red")] * 7)
    assert marks == {"ocr": [True] + [False] * 6}


def test_naming_is_marked_twice_the_name_alone_and_all_of_it():
    """naming: the first sentence; naming_fact: to the letter, so never right without the name."""
    answer = " koala. They are mainly found in Australia."
    said = {
        answer: (True, True),
        " koala.": (True, False),
        " koala": (True, False),
        " koala. They are mainly found in Cuba.": (True, False),
        " tiger. They are mainly found in Australia.": (False, False),
        "koala. They are mainly found in Australia.": (False, False),
        "": (False, False),
    }
    marks = tasks.mark("naming", list(said), [case(answer)] * len(said))
    assert list(marks) == ["naming", "naming_fact"]
    assert list(zip(marks["naming"], marks["naming_fact"])) == list(said.values())


def test_the_right_answers_get_full_marks(cases):
    """Whoever answers what is in the cases is right in every task; who answers the next case's, is not."""
    for task, queries in cases.items():
        answers = [q.answer for q in queries]
        assert all(all(correct) for correct in tasks.mark(task, answers, queries).values())
        shifted = tasks.mark(task, answers[1:] + answers[:1], queries)
        assert sum(sum(correct) for correct in shifted.values()) < N


# ------------------------------------------------------------------------------------------------- the eye's lessons


@pytest.fixture
def drawn(monkeypatch) -> list[Scene]:
    """The scenes that are drawn for a batch, as they are drawn."""
    scenes = []

    def draw_and_remember(scene, rng):
        scenes.append(scene)
        return draw(scene, rng)

    monkeypatch.setattr(pairs, "draw", draw_and_remember)
    return scenes


@pytest.mark.parametrize("hard", [False, True])
def test_a_contrastive_batch_shows_nothing_that_is_held_out(drawn, hard):
    """The eye is part of the exam too. Every kind of picture but films, sums and plain numbers among them."""
    for seed in range(4):
        pairs.contrastive_batch(random.Random(seed), 64, TOKENIZER, hard)
    assert len(drawn) == 256 and not any(map(held_out, drawn))
    assert {scene.kind for scene in drawn} >= {"things", "pair", "sign", "sum", "creature", "number"}
    assert not any(isinstance(scene, Video) for scene in drawn)


@pytest.mark.parametrize("hard", [False, True])
def test_captions_belong_to_their_pictures_and_padding_is_zero(drawn, hard):
    """Row by row: the caption's ids, then nothing but 0, which is no token of a text."""
    pictures, captions = pairs.contrastive_batch(random.Random(0), 48, TOKENIZER, hard)
    assert pictures.shape == (48, 48, 48, 3) and pictures.dtype == np.uint8 and len(np.unique(pictures)) > 100
    longest = 0
    for row, scene in zip(captions.tolist(), drawn, strict=True):
        ids = TOKENIZER.encode(" " + pairs.seen_caption(scene))
        assert 0 not in ids and row == ids + [0] * (len(row) - len(ids))
        longest = max(longest, len(ids))
    assert captions.shape == (48, longest) and captions.dtype == torch.long


def test_the_eye_is_not_told_what_a_sum_comes_to(drawn):
    """To see 3 x 6 is the eye's task, to know that it is 18 the tongue's: no figure but those in the picture, no "="."""
    for seed in range(6):
        _, captions = pairs.contrastive_batch(random.Random(seed), 64, TOKENIZER)
        texts = [TOKENIZER.decode(row) for row in captions]
        for text, scene in zip(texts, drawn[-64:], strict=True):
            assert "=" not in text
            figures = [int(f) for f in re.findall(r"\d+", text)]
            assert figures == [f for f in scene.operands or () if isinstance(f, int)]
    assert Counter(scene.kind for scene in drawn)["sum"] > 20
    assert pairs.seen_caption(Scene("sum", colour="red", operands=(3, "x", 6), place="top")) == "3 x 6 in red at the top"
    thing = Scene("things", colour="red", shape="star", count=2, place="left")
    assert pairs.seen_caption(thing) == caption(thing)


def test_look_alikes_agree_more_than_chance_has_it(drawn):
    """Hard negatives: in a hard batch, sums of one colour; in an easy one, of all colours."""

    def shares(hard: bool) -> float:
        """How often two sums of a batch share colour and place."""
        same = total = 0
        for seed in range(8):
            drawn.clear()
            pairs.contrastive_batch(random.Random(seed), 48, TOKENIZER, hard)
            sums = [(s.colour, s.place) for s in drawn if s.kind == "sum"]
            same += sum(a == b for i, a in enumerate(sums) for b in sums[:i])
            total += len(sums) * (len(sums) - 1) // 2
        return same / total

    assert shares(hard=False) < 0.15 < 0.25 < shares(hard=True)


def test_the_same_dice_give_the_same_lesson():
    """All chance comes from the `rng` that is handed in."""
    one, again, other = (pairs.contrastive_batch(random.Random(s), 16, TOKENIZER, True) for s in (1, 1, 2))
    assert np.array_equal(one[0], again[0]) and torch.equal(one[1], again[1])
    assert not np.array_equal(one[0], other[0])
