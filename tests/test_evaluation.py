"""The runner: which shots a query sees, what its prompt says to the letter, how it is answered, and what is left out."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from conftest import LETTERS, batch_of, picture, prepare, tiny_flamingo

from minflamingo.complete import LoadedFlamingo
from minflamingo.data.sample import EOC, collate
from minflamingo.evaluation.benchmarks import OPENFLAMINGO, PAPER
from minflamingo.evaluation.eye import Eye
from minflamingo.evaluation.fewshot import choice_scores, few_shot_prompt
from minflamingo.evaluation.metrics import METRICS, Outcome
from minflamingo.evaluation.runner import (
    Protocol,
    Shots,
    answers,
    as_query,
    evaluate,
    mark,
    orders_of,
    outcomes_of,
    random_order,
)
from minflamingo.evaluation.task import Example, Task, Template
from minflamingo.generate import beam_search
from minflamingo.tokenizer import ToyTokenizer

LETTER = Template("{given}", "{answer}")


def example(i: int, split: str = "train", **more) -> Example:
    more = {"fields": {"given": "ab" * (i % 3)}, **more}
    return Example(f"{split}-{i}", lambda: picture(i + 1000 * (split == "test"), 1 + i % 2), ("abcdefgh"[i % 8],), **more)


def broken(i: int, split: str = "train") -> Example:
    def media():
        raise OSError(f"{split}/{i}.png: no such file")

    return Example(f"{split}-{i}", media, ("a",), {"given": ""})


def letters_task(n_support: int = 20, n: int = 7, **more) -> Task:
    support, queries = [example(i) for i in range(n_support)], [example(i, "test") for i in range(n)]
    return Task("letters", support, queries, LETTER, "top1", **{"max_new_tokens": 5, **more})


def close_ended(choices=("ab", "ch", "fgd", "b"), n: int = 7, **more) -> Task:
    task = letters_task(n=n, **more)
    return replace(task, queries=[replace(q, choices=choices[: 2 + i % 3]) for i, q in enumerate(task.queries)])


@pytest.fixture(scope="module")
def flamingo() -> LoadedFlamingo:
    """Alive, and its head in favour of letters."""
    model = tiny_flamingo(lm={"max_length": 256})
    with torch.no_grad():
        model.lm.head.bias[:2] = -100.0
    return LoadedFlamingo(model, LETTERS, prepare_any)


def prepare_any(medium):
    return prepare(medium)


def chosen_keys(flamingo, task, shots: str, trial: int = 0, seed: int = 0, queries=None) -> list[list[str]]:
    rows = Shots(task, shots, trial, Protocol(seed), Eye(flamingo)).choose(queries or task.queries)
    return [[e.key for e in row] for row in rows]


# ----------------------------------------------------------------------------------------------------- which shots are seen


def test_the_same_seed_shows_the_same_shots_and_another_seed_trial_or_query_others(flamingo):
    """Whatever is asked before or beside it: a query's shots depend on the seed, the task, the trial and the query."""
    task = letters_task()
    one = chosen_keys(flamingo, task, "4")
    assert one == chosen_keys(flamingo, task, "4")
    assert chosen_keys(flamingo, task, "4", queries=task.queries[3:5]) == one[3:5]
    others = [chosen_keys(flamingo, task, "4", seed=1), chosen_keys(flamingo, task, "4", trial=1)]
    others.append(chosen_keys(flamingo, replace(task, name="other"), "4"))
    assert all(other != one for other in others) and len({tuple(row) for row in one}) == len(one)


def test_more_shots_begin_with_those_of_fewer(flamingo):
    """So a curve over the number of shots is not one over other examples."""
    task = letters_task()
    four, eight = (chosen_keys(flamingo, task, s) for s in ("4", "8"))
    assert [row[:4] for row in eight] == four


def test_no_shot_comes_twice_and_none_is_the_query_itself(flamingo):
    """Also where the query stands in the support, and the support is hardly large enough."""
    task = letters_task(n_support=9)
    task = replace(task, queries=task.support[:5])
    for query, row in zip(task.queries, chosen_keys(flamingo, task, "8")):
        assert len(set(row)) == 8 and query.key not in row
    with pytest.raises(ValueError, match="letters: 16 shots asked for, but the support has 8 examples for query train-0"):
        chosen_keys(flamingo, task, "16")


def test_every_example_is_drawn_equally_often():
    """Chi-squared over first places, 20 examples and 4000 queries: below 43.8, its 99.9% quantile with 19 degrees."""
    first = Counter(next(random_order(20, "seed", q)) for q in range(4000))
    assert sum((first[i] - 200) ** 2 / 200 for i in range(20)) < 43.8
    assert sorted(random_order(20, "a")) == list(range(20))


# ---------------------------------------------------------------------------------------------------- what the prompt says

CAT = Example("1", lambda: picture(1), ("A cat wearing sunglasses.",))
ELEPHANTS = Example("2", lambda: picture(2), ("Elephants walking in the savanna.",))
ASKED = Example("3", lambda: picture(3), ("unknown",))
WEARING = Example("1", lambda: picture(1), ("sunglasses",), {"question": "What's the cat wearing?"})
HOW_MANY = Example("2", lambda: picture(2), ("3",), {"question": "How many animals?"})
WATER = Example("3", lambda: picture(3), ("unknown",), {"question": "What is on the water?"})
MEME = Example("1", lambda: picture(1), ("no",), {"text": "hello there"}, ("yes", "no"))
LITERAL = {
    ("caption", "2"): (
        PAPER["caption"], (CAT, ELEPHANTS, ASKED),
        "<BOS><image>Output: A cat wearing sunglasses.<EOC><image>Output: Elephants walking in the savanna.<EOC><image>Output:",
    ),
    ("question", "2"): (
        PAPER["question"], (WEARING, HOW_MANY, WATER),
        "<BOS><image>Question: What's the cat wearing? Answer: sunglasses<EOC><image>Question: How many animals? Answer: 3"
        "<EOC><image>Question: What is on the water? Answer:",
    ),
    ("caption", "0_text"): (
        PAPER["caption"], (CAT, ELEPHANTS, ASKED),
        "<BOS>Output: A cat wearing sunglasses.<EOC>Output: Elephants walking in the savanna.<EOC><image>Output:",
    ),
    ("caption", "0"): (PAPER["caption"], (ASKED,), "<BOS><image>Output:"),
    ("openflamingo question", "2"): (
        OPENFLAMINGO["question"], (WEARING, HOW_MANY, WATER),
        "<BOS><image>Question:What's the cat wearing? Short answer:sunglasses<EOC>\n<image>Question:How many animals? "
        "Short answer:3<EOC>\n<image>Question:What is on the water? Short answer:",
    ),
    ("openflamingo meme", "1"): (
        OPENFLAMINGO["meme"], (MEME, MEME),
        "<BOS><image>is an image with: 'hello there' written on it. Is it hateful? Answer:no<EOC>"
        "<image>is an image with: 'hello there' written on it. Is it hateful? Answer:",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", LITERAL)
def test_the_prompt_of_a_benchmark_is_the_papers_to_the_letter(flamingo, kind):
    """§3 and appendix; zero-shot is two examples without their images. OpenFlamingo's wording beside it."""
    template, (*shots, query), expected = LITERAL[kind]
    task = Task("t", shots, [query], template, "cider")
    case = as_query(task, query, shots, Eye(flamingo), text_only=kind[1] == "0_text")
    tokenizer = ToyTokenizer([])
    batch = collate([few_shot_prompt(case, kind[1])], tokenizer, pad="left")
    special = {tokenizer.bos_id: "<BOS>", tokenizer.eoc_id: "<EOC>", tokenizer.image_id: "<image>"}
    assert "".join(special.get(i) or tokenizer.decode([i]) for i in batch.ids[0].tolist()) == expected
    assert "unknown" not in expected


def test_features_stand_for_the_pixels_of_the_prompt(flamingo):
    """The eye is frozen: with features looked at before, the logits are those of the pixels."""
    task = letters_task()
    query, shots = task.queries[0], task.support[:2]
    batch = collate([few_shot_prompt(as_query(task, query, shots, Eye(flamingo)), "2")], LETTERS, pad="left")
    pieces = []
    for shot in shots:
        pieces += [shot.media(), LETTER.shown(shot), EOC]
    pixels = batch_of([*pieces, query.media(), *([LETTER.asked(query)] if LETTER.asked(query) else [])])
    assert torch.equal(batch.ids, pixels.ids)
    assert torch.allclose(flamingo.model(batch)[0], flamingo.model(pixels)[0], atol=1e-5)


# --------------------------------------------------------------------------------------------------- how it is answered


def prompts(flamingo, task: Task, shots: str) -> list:
    eye = Eye(flamingo)
    chooser = Shots(task, shots, 0, Protocol(), eye)
    rows = chooser.choose(task.queries)
    return [few_shot_prompt(as_query(task, q, row, eye, shots == "0_text"), shots) for q, row in zip(task.queries, rows)]


@pytest.mark.parametrize("shots", ["0", "0_text", "4"])
def test_open_ended_answers_are_found_by_beam_search_and_cleaned(flamingo, shots):
    """§3: beam 3, up to the first <EOC>; then the task's clean-up. In batches of any size, from any query on."""
    task = letters_task(clean=lambda text: text.upper())
    expected = []
    for prompt in prompts(flamingo, task, shots):
        ids = beam_search(flamingo.model, collate([prompt], LETTERS, pad="left"), LETTERS.eoc_id, 3, 5)[0]
        expected.append(LETTERS.decode(ids).upper())
    assert len(set(expected)) > 1
    for size, start in ((1, 0), (3, 0), (16, 0), (3, 4)):
        records = list(itertools.chain(*answers(flamingo, task, shots, batch_size=size, start=start)))
        assert [r["prediction"] for r in records] == expected[start:]
        assert [r["key"] for r in records] == [q.key for q in task.queries[start:]]


def brute_force(flamingo, prompt, choice: str, scoring: str) -> float:
    """The whole sequence, prompt and choice, read from the beginning."""
    batch = collate([replace(prompt, pieces=[*prompt.pieces, choice])], LETTERS)
    log_p = flamingo.model(batch)[0][0].log_softmax(-1)
    n = len(choice)
    total = sum(log_p[-1 - n + i, token].item() for i, token in enumerate(batch.ids[0, -n:].tolist()))
    return total / n if scoring == "mean" else total


@pytest.mark.parametrize("scoring", ["mean", "sum"])
@pytest.mark.parametrize("shots", ["0", "0_text", "4"])
def test_close_ended_scores_agree_with_brute_force(flamingo, shots, scoring):
    """§3: the log-likelihood of each choice after the prompt, to 1e-5; queries may have different numbers of choices."""
    task = close_ended(scoring=scoring)
    expected = [
        [brute_force(flamingo, prompt, choice, scoring) for choice in query.choices]
        for prompt, query in zip(prompts(flamingo, task, shots), task.queries)
    ]
    for size in (1, 5):
        records = list(itertools.chain(*answers(flamingo, task, shots, batch_size=size)))
        for record, row in zip(records, expected, strict=True):
            assert record["scores"] == pytest.approx(row, abs=1e-5)


@pytest.mark.parametrize("shots, n", [("0", 1), ("1", 1), ("2", 2), ("0_text", 2), ("3", 6), ("4", 6)])
def test_ensembling_is_the_mean_over_orders_of_the_shots(flamingo, shots, n):
    """Appendix: log-likelihoods averaged over 6 permutations, or all of them where there are fewer."""
    task, eye, protocol = close_ended(n=3), Eye(flamingo), Protocol(ensemble=True)
    records = list(itertools.chain(*answers(flamingo, task, shots, protocol=protocol)))
    rows = Shots(task, shots, 0, protocol, eye).choose(task.queries)
    for record, query, row in zip(records, task.queries, rows):
        orders = orders_of(len(row), 6, protocol.seed)
        assert len(orders) == n == min(6, math.factorial(len(row)))
        per_order = []
        for order in orders:
            case = as_query(task, query, [row[i] for i in order], eye, shots == "0_text")
            per_order.append([brute_force(flamingo, few_shot_prompt(case, shots), c, "mean") for c in query.choices])
        if n > 1:
            assert per_order[0] != pytest.approx(per_order[1], abs=1e-4)  # order matters
        expected = [sum(column) / n for column in zip(*per_order)]
        assert record["scores"] == pytest.approx(expected, abs=1e-5)


def test_orders_are_different_and_begin_with_the_one_that_was_drawn():
    """All of 3! are there; of 32! six, always the same for a seed."""
    assert sorted(orders_of(3, 6, 0)) == sorted(itertools.permutations(range(3)))
    for n in (0, 1, 2, 8, 32):
        orders = orders_of(n, 6, 0)
        assert len(set(orders)) == len(orders) == min(6, math.factorial(n)) and orders[0] == tuple(range(n))
        assert all(sorted(order) == list(range(n)) for order in orders) and orders == orders_of(n, 6, 0)


def test_ensembling_makes_the_order_of_the_shots_matter_less(flamingo):
    """Appendix. Means of six orders vary a sixth as much as single ones: here, over many draws of orders, less than half."""
    task, eye = close_ended(n=6), Eye(flamingo)
    rows = Shots(task, "8", 0, Protocol(), eye).choose(task.queries)

    def scores(seed: int, most: int) -> torch.Tensor:
        """The log-likelihood of each query's first choice, over `most` orders; the first, as it was drawn, left out."""
        orders = orders_of(8, most + 1, seed)[1:]
        cases = [[as_query(task, q, [row[i] for i in order], eye) for order in orders] for q, row in zip(task.queries, rows)]
        flat = [case for several in cases for case in several]
        prompts = [few_shot_prompt(case, "8") for case in flat]
        found = choice_scores(flamingo.model, LETTERS, prompts, [case.choices for case in flat], prepare)
        return torch.tensor([row[0] for row in found]).unflatten(0, (len(rows), most)).mean(1)

    single, ensembled = (torch.stack([scores(seed, n) for seed in range(12)]).var(0).mean() for n in (1, 6))
    assert 0 < float(ensembled) < 0.5 * float(single)


# ------------------------------------------------------------------------------------------------- what is left out, marks


def test_a_query_that_cannot_be_opened_is_named_counted_and_left_out(flamingo):
    """The others are answered as if it had never been there."""
    task = letters_task()
    with_broken = replace(task, queries=[*task.queries[:2], broken(50, "test"), *task.queries[2:]])
    whole, holed = (evaluate(flamingo, t, "2") for t in (task, with_broken))
    assert holed["broken"] == {"test-50": "test/50.png: no such file"} and holed["n"] == whole["n"] == 7
    assert [r for r in holed["records"] if "broken" not in r] == whole["records"] and holed["score"] == whole["score"]


def test_a_shot_that_cannot_be_opened_is_replaced_by_the_next_one_and_counted(flamingo):
    """Every prompt has its full number of shots: those it would have, were the broken ones not in the support."""
    support = [example(i) if i % 3 else broken(i) for i in range(20)]
    task = replace(letters_task(), support=support)
    rows = chosen_keys(flamingo, task, "8")
    sound = {e.key for i, e in enumerate(support) if i % 3}
    for query, row in zip(task.queries, rows):
        order = [support[i].key for i in random_order(20, 0, "letters", 0, query.key)]
        assert sorted(row) == sorted([key for key in order if key in sound][:8])
    result = evaluate(flamingo, task, "8")
    assert result["n"] == 7 and set(result["replaced"]) <= {e.key for e in support} - sound and result["replaced"]
    with pytest.raises(ValueError, match="16 shots asked for, but the support has 13 examples"):
        evaluate(flamingo, task, "16")


def test_text_only_shots_need_no_image(flamingo):
    """Zero-shot opens no file but the query's."""
    task = replace(letters_task(), support=[broken(i) for i in range(5)])
    assert evaluate(flamingo, task, "0_text")["n"] == 7


def test_the_score_is_the_benchmarks_metric_on_what_was_said(flamingo):
    """Open and close-ended; with its interval, and as a share of what right answers would score."""
    task = close_ended()
    result = evaluate(flamingo, task, "2")
    said = [q.choices[r["scores"].index(max(r["scores"]))] for q, r in zip(task.queries, result["records"])]
    assert [o.prediction for o in outcomes_of(task, result["records"])] == said
    right = sum(s == q.answers[0] for s, q in zip(said, task.queries))
    assert result["score"] == pytest.approx(100 * right / 7, abs=0.01) and result["share"] == pytest.approx(right / 7, abs=1e-4)
    assert result["interval"][0] <= result["score"] <= result["interval"][1]


def test_a_captions_share_is_of_what_its_first_reference_would_score():
    """CIDEr has no fixed maximum: 1 is what a person's own caption gets from the set."""
    references = [("a red circle", "one red disc"), ("two blue stars at the top", "blue stars"), ("a cat on a mat", "a cat")]
    queries = [Example(str(i), lambda: picture(0), r) for i, r in enumerate(references)]
    task = Task("c", [], queries, Template("Output:"), "cider")
    said = [r[0] for r in references[:2]] + ["a dog"]
    result = mark(task, [{"key": str(i), "prediction": s} for i, s in enumerate(said)])
    best = METRICS["cider"]([Outcome(q, q.answers[0]) for q in queries])
    assert result["share"] == pytest.approx(result["score"] / best, abs=1e-3) and 0 < result["share"] < 1
    assert mark(task, [{"key": q.key, "prediction": q.answers[0]} for q in queries])["share"] == 1


def test_without_references_there_are_predictions_and_a_reason_but_no_score(flamingo):
    """Hidden test sets; an AUC of one class."""
    task = letters_task()
    hidden = evaluate(flamingo, replace(task, queries=[replace(q, answers=()) for q in task.queries]), "2")
    assert "score" not in hidden and "no references" in hidden["problem"] and len(hidden["records"]) == 7
    yes = [Example(str(i), lambda: picture(1), ("yes",), {}, ("yes", "no")) for i in range(3)]
    one_class = mark(replace(task, queries=yes, metric="auc"), [{"key": e.key, "scores": [0.0, 1.0]} for e in yes])
    assert "score" not in one_class and "both classes" in one_class["problem"]


def test_shots_are_a_number_or_the_papers_zero(flamingo):
    """"0_text" is the paper's zero-shot, "0" the query alone, as in `fewshot.SHOTS`."""
    for wrong in ("-1", "four", "4_text"):
        with pytest.raises(ValueError, match="shots are a number, or 0_text"):
            evaluate(flamingo, letters_task(), wrong)
