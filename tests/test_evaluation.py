"""The runner: which shots a query gets, the text of its prompt, broken files, scores, and resuming."""

from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import LETTERS, batch_of, image, tiny_flamingo
from test_fewshot import log_likelihood

from minflamingo import EOC, Pipeline
from minflamingo.data.images import ImagePreprocessor
from minflamingo.evaluation import runner
from minflamingo.evaluation.features import FeatureCache
from minflamingo.evaluation.runner import Protocol, evaluate, random_order, score_records, select_shots
from minflamingo.evaluation.task import Example, Task, Template
from minflamingo.generate import beam_search
from minflamingo.training.stage import Stage

PREPROCESS = ImagePreprocessor(8, mean=(128 / 255,) * 3, std=(64 / 255,) * 3)  # as conftest.preprocess


def example(i: int, split: str = "train", broken: bool = False) -> Example:
    def media():
        if broken:
            raise OSError(f"{split}/{i}.png is missing")
        return image(i + 1000 * (split == "test"), 1 + i % 2)

    return Example(f"{split}-{i}", media, ("abcdefgh"[i % 8],), {"given": "ab" * (i % 3)})


def logged(example: Example, opened: list[str], interrupt: bool = False) -> Example:
    """The same example; `opened` lists its key each time its file is opened."""

    def media():
        opened.append(example.key)
        if interrupt:
            raise KeyboardInterrupt
        return example.media()

    return replace(example, media=media)


def letters_task(n_support: int = 20, n: int = 7, **more) -> Task:
    support, queries = [example(i) for i in range(n_support)], [example(i, "test") for i in range(n)]
    return Task("letters", support, queries, Template("{given}", "{answer}"), "exact_match", **{"max_new_tokens": 5, **more})


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    model = tiny_flamingo(lm={"max_length": 256})
    with torch.no_grad():
        model.lm.head.bias[:2] = -100.0  # never <PAD> or <BOS>
    return Pipeline(model, LETTERS, PREPROCESS)


def shot_keys(pipeline, task, shots: str, trial: int = 0, seed: int = 0) -> list[list[str]]:
    cache, protocol = FeatureCache(pipeline), Protocol(seed)
    return [[e.key for e in select_shots(task, query, shots, trial, protocol, cache)[0]] for query in task.queries]


# ------------------------------------------------------------------------------------------------------------- the shots


def test_random_shots_depend_on_seed_task_trial_and_query_alone(pipeline):
    """The shots of "8" begin with those of "4"."""
    task = letters_task()
    keys = shot_keys(pipeline, task, "4")
    assert shot_keys(pipeline, replace(task, queries=task.queries[3:5]), "4") == keys[3:5]
    others = [shot_keys(pipeline, task, "4", seed=1), shot_keys(pipeline, task, "4", trial=1)]
    others.append(shot_keys(pipeline, replace(task, name="other"), "4"))
    assert all(other != keys for other in others) and len({tuple(row) for row in keys}) == len(keys)
    assert [row[:4] for row in shot_keys(pipeline, task, "8")] == keys


def test_the_query_is_never_one_of_its_shots_and_no_shot_is_repeated(pipeline):
    task = letters_task(n_support=9)
    task = replace(task, queries=task.support[:5])
    for query, row in zip(task.queries, shot_keys(pipeline, task, "8")):
        assert len(set(row)) == 8 and query.key not in row
    with pytest.raises(ValueError, match="letters: 16 shots need 16 support examples, but query train-0 can use only 8"):
        shot_keys(pipeline, task, "16")


def test_every_example_is_drawn_equally_often():
    """Chi-squared of the first of 20 examples in 4000 draws: below 43.8, the 99.9% quantile with 19 degrees of freedom."""
    first = Counter(next(random_order(20, "seed", q)) for q in range(4000))
    assert sum((first[i] - 200) ** 2 / 200 for i in range(20)) < 43.8
    assert sorted(random_order(20, "a")) == list(range(20))


def test_a_broken_shot_is_replaced_by_the_next_candidate(pipeline):
    """Every prompt has its full number of shots. Without images ("0_text") no support file is opened."""
    task = letters_task()
    task = replace(task, support=[example(i, broken=i % 3 == 0) for i in range(20)])
    for query, row in zip(task.queries, shot_keys(pipeline, task, "8")):
        usable = [i for i in random_order(20, 0, "letters", 0, query.key) if i % 3]
        assert row == [f"train-{i}" for i in usable[:8]]
    result = evaluate(pipeline, task, "8")
    assert result["n"] == 7 and result["replaced"] and {int(key[6:]) % 3 for key in result["replaced"]} == {0}
    with pytest.raises(ValueError, match="can use only 13; 7 are broken"):
        evaluate(pipeline, task, "16")
    task = replace(task, support=[example(i, broken=True) for i in range(5)])
    assert evaluate(pipeline, task, "0_text")["n"] == 7


# ----------------------------------------------------------------------------------------------------- prompts and answers


def prompts(pipeline, task: Task, shots: str) -> list[list]:
    """The pieces of each query's prompt, with pixels, written out by hand."""
    made = []
    for query, keys in zip(task.queries, shot_keys(pipeline, task, shots)):
        pieces: list = []
        for shot in (e for key in keys for e in task.support if e.key == key):
            pieces += [*([] if shots == "0_text" else [shot.media()]), shot.fields["given"] + shot.answers[0], EOC]
        made.append([*pieces, query.media(), query.fields["given"]])
    return made


@pytest.mark.parametrize("shots", ["0", "0_text", "4"])
def test_open_ended_answers_are_found_by_beam_search_and_cleaned(pipeline, shots):
    """Section 3.1: 3 beams. Cached features give the same answers as pixels, in batches of any size."""
    task, expected = letters_task(clean=str.upper), []
    for pieces in prompts(pipeline, task, shots):
        ids = beam_search(pipeline.model, batch_of(pieces), LETTERS.eoc_id, beams=3, max_new_tokens=5)[0]
        expected.append(LETTERS.decode(ids).upper())
    assert len(set(expected)) > 1
    for size in (1, 3, 16):
        records = evaluate(pipeline, task, shots, protocol=Protocol(batch_size=size))["records"]
        assert records == [{"key": q.key, "prediction": text} for q, text in zip(task.queries, expected)]


@pytest.mark.parametrize("ensemble", [False, True])
def test_a_close_ended_prediction_is_the_choice_with_the_best_score(pipeline, ensemble):
    """Mean log-likelihood per token. Ensembling (appendix): averaged over both orders of the two shots."""
    task, choices, said = letters_task(), ("ab", "ch", "fgd"), []
    task = replace(task, metric="accuracy", queries=[replace(q, choices=choices) for q in task.queries])
    result = evaluate(pipeline, task, "2", protocol=Protocol(ensemble=ensemble))

    for pieces, record in zip(prompts(pipeline, task, "2"), result["records"], strict=True):
        orders = [pieces, [*pieces[3:6], *pieces[:3], *pieces[6:]]][: 1 + ensemble]
        rows = [[log_likelihood(pipeline.model, order, choice) / len(choice) for choice in choices] for order in orders]
        assert not ensemble or rows[0] != pytest.approx(rows[1], abs=1e-4)  # the order matters
        scores = [sum(column) / len(orders) for column in zip(*rows)]
        assert record["scores"] == pytest.approx(scores, abs=1e-5)
        said.append(choices[scores.index(max(scores))])
    assert [record["prediction"] for record in result["records"]] == said
    assert result["score"] == pytest.approx(100 * sum(s == q.answers[0] for s, q in zip(said, task.queries)) / 7, abs=0.01)
    assert result["interval"][0] <= result["score"] <= result["interval"][1]


def test_a_broken_query_is_reported_and_left_out(pipeline):
    task = letters_task()
    with_broken = replace(task, queries=[*task.queries[:2], example(50, "test", broken=True), *task.queries[2:]])
    whole, rest = (evaluate(pipeline, t, "2") for t in (task, with_broken))
    assert rest["broken"] == {"test-50": "test/50.png is missing"} and rest["n"] == whole["n"] == 7
    assert [r for r in rest["records"] if "broken" not in r] == whole["records"] and rest["score"] == whole["score"]


def test_without_references_there_are_predictions_and_a_reason_but_no_score(pipeline):
    task = letters_task()
    hidden = evaluate(pipeline, replace(task, queries=[replace(q, answers=()) for q in task.queries]), "2")
    assert "score" not in hidden and "no references" in hidden["problem"] and len(hidden["records"]) == 7
    assert "problem" in score_records(task, [])


def test_an_interrupted_evaluation_resumes_at_the_next_batch(pipeline, tmp_path, capsys, monkeypatch):
    """The records are those of an uninterrupted run. Another protocol starts again."""
    monkeypatch.setattr(runner, "Stage", partial(Stage, save_every=0.0))
    opened: list[str] = []
    task, protocol = letters_task(), Protocol(beams=1, batch_size=2)
    whole = evaluate(pipeline, task, "2", protocol=protocol)
    stopped = replace(task, queries=[logged(q, opened, interrupt=i == 5) for i, q in enumerate(task.queries)])
    with pytest.raises(KeyboardInterrupt):
        evaluate(pipeline, stopped, "2", protocol=protocol, folder=tmp_path)
    opened.clear()
    complete = replace(task, queries=[logged(q, opened) for q in task.queries])
    for expected in (["test-4", "test-5", "test-6"], []):
        assert evaluate(pipeline, complete, "2", protocol=protocol, folder=tmp_path) == whole and opened == expected
        opened.clear()
    evaluate(pipeline, complete, "2", protocol=replace(protocol, seed=1), folder=tmp_path)
    assert len(opened) == 7 and "seed" in capsys.readouterr().err
