"""The few-shot protocol: the prompt as in the paper, open-ended and close-ended answers, Wilson intervals."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import LETTERS, batch_of, image, preprocess, random, tiny_flamingo

from minflamingo import EOC, ToyTokenizer, collate
from minflamingo.evaluation import fewshot
from minflamingo.evaluation.fewshot import Query, count_shots, few_shot_prompt, predict, score_choices, shot_orders
from minflamingo.generate import score_answers

TOKENIZER = ToyTokenizer(["Output", " red", " blue", " green"])
SUPPORT = [(random(1, 4, 16, seed=i), f"Output: {word}") for i, word in enumerate(["red", "blue", "green", "red", "green"])]
QUERY = Query(SUPPORT, random(1, 4, 16, seed=9), "Output:", " blue")


def written(batch, row: int = 0) -> str:
    """The tokens of a row, with the special ones in brackets."""
    special = {TOKENIZER.bos_id: "<BOS>", TOKENIZER.eoc_id: "<EOC>", TOKENIZER.image_id: "<image>"}
    ids = batch.ids[row][batch.attention_mask[row]].tolist()
    return "".join(special.get(i) or TOKENIZER.decode([i]) for i in ids)


# ---------------------------------------------------------------------------------------------------------- the prompt

PROMPTS = {
    "0": "<BOS><image>Output:",
    "0_text": "<BOS>Output: red<EOC>Output: blue<EOC><image>Output:",
    "1": "<BOS><image>Output: red<EOC><image>Output:",
    "2": "<BOS><image>Output: red<EOC><image>Output: blue<EOC><image>Output:",
    "4": "<BOS><image>Output: red<EOC><image>Output: blue<EOC><image>Output: green<EOC><image>Output: red<EOC><image>Output:",
}


@pytest.mark.parametrize("shots", PROMPTS)
def test_the_prompt_is_that_of_the_paper_token_by_token(shots):
    """Section 3.1 and appendix: zero-shot ("0_text") shows two examples without their images. Each image is before its text."""
    batch = collate([few_shot_prompt(QUERY, shots)], TOKENIZER, pad="left")
    assert written(batch) == PROMPTS[shots]
    shown = [medium for medium, _ in SUPPORT[: 0 if shots == "0_text" else int(shots)]] + [QUERY.medium]
    assert torch.equal(batch.media[0], torch.stack(shown))


def test_the_answer_and_the_choices_of_the_query_are_not_in_its_prompt():
    other = replace(QUERY, answer=" taxi", choices=(" taxi", " bus"))
    for shots in PROMPTS:
        one, two = few_shot_prompt(QUERY, shots).pieces, few_shot_prompt(other, shots).pieces
        assert len(one) == len(two) and all(a is b or a == b for a, b in zip(one, two))


def test_an_order_permutes_the_shots_and_nothing_else():
    batch = collate([few_shot_prompt(QUERY, "3", (2, 0, 1))], TOKENIZER)
    assert written(batch) == "<BOS><image>Output: green<EOC><image>Output: red<EOC><image>Output: blue<EOC><image>Output:"
    assert torch.equal(batch.media[0], torch.stack([SUPPORT[2][0], SUPPORT[0][0], SUPPORT[1][0], QUERY.medium]))


def test_texts_may_be_empty_and_never_contain_special_tokens():
    """A query without a prompt ends with its image. The letters "<EOC>" do not end an example."""
    bare = Query([(random(1, 4, 16), "<EOC>")], random(1, 4, 16), "", "wug", between="\n")
    assert sum(piece is EOC for piece in few_shot_prompt(bare, "1").pieces) == 1
    batch = collate([few_shot_prompt(bare, "1")], TOKENIZER)
    assert written(batch) == "<BOS><image><EOC><EOC>\n<image>" and batch.ids[0].tolist().count(TOKENIZER.eoc_id) == 1


def test_wrong_shots_are_an_error():
    """Too many for the support, or not a number."""
    assert [count_shots(shots) for shots in ("0", "0_text", "1", "32")] == [0, 2, 1, 32]
    with pytest.raises(ValueError, match="8 shots need 8 support examples, but this query has 5"):
        few_shot_prompt(QUERY, "8")
    with pytest.raises(ValueError, match="0_text shots need 2 support examples, but this query has 1"):
        few_shot_prompt(replace(QUERY, support=SUPPORT[:1]), "0_text")
    for wrong in ("-1", "four", "4_text", ""):
        with pytest.raises(ValueError, match="choose a number, such as '4', or '0_text'"):
            few_shot_prompt(QUERY, wrong)


def test_orders_are_different_and_the_first_one_is_the_given_order():
    """All 3! orders of 3 shots; 6 orders of 32 shots, the same ones for a seed."""
    for n in (0, 1, 2, 3, 8, 32):
        orders = shot_orders(n, 6, 0)
        assert len(set(orders)) == len(orders) == min(6, math.factorial(n)) and orders[0] == tuple(range(n))
        assert all(sorted(order) == list(range(n)) for order in orders) and orders == shot_orders(n, 6, 0)


# ---------------------------------------------------------------------------------------------------------- the answers


@pytest.fixture(scope="module")
def flamingo():
    model = tiny_flamingo()
    with torch.no_grad():
        model.lm.head.bias[:2] = -100.0  # never <PAD> or <BOS>
    return model


@pytest.fixture(scope="module")
def queries(flamingo):
    """Seven queries of different lengths, some with videos of two frames."""

    def query(i: int) -> Query:
        support = [(features(10 * i + k, 1 + (i + k) % 2), "abcdefgh"[k : k + 1 + i % 3]) for k in range(3)]
        return Query(support, features(100 + i), "ab" * (i % 3), "c")

    def features(seed: int, frames: int = 1) -> torch.Tensor:
        return flamingo.vision(preprocess(image(seed, frames))).detach()

    return [query(i) for i in range(7)]


def log_likelihood(flamingo, prompt: list, text: str) -> float:
    """The whole sequence in one forward pass, without cache and padding."""
    batch, n = batch_of([*prompt, text]), len(text)
    log_p = flamingo(batch)[0][0, -1 - n : -1].log_softmax(-1)
    return sum(log_p[i, token].item() for i, token in enumerate(batch.ids[0, -n:].tolist()))


def greedy(flamingo, prompt: list, n: int) -> str:
    """The whole model from the start for each new token."""
    ids: list[int] = []
    while len(ids) < n:
        token = int(flamingo(batch_of([*prompt, LETTERS.decode(ids)]))[0][0, -1].argmax())
        if token == LETTERS.eoc_id:
            break
        ids.append(token)
    return LETTERS.decode(ids)


@pytest.mark.parametrize("shots", ["0", "0_text", "2"])
def test_open_ended_answers_are_greedy_and_do_not_depend_on_the_batch(flamingo, queries, shots):
    expected = [greedy(flamingo, few_shot_prompt(query, shots).pieces, 5) for query in queries]
    assert len(set(expected)) > 3
    for batch_size in (1, 3, 64):
        assert predict(flamingo, LETTERS, queries, shots, max_new_tokens=5, batch_size=batch_size) == expected


@pytest.mark.parametrize("shots", ["0", "0_text", "3"])
@pytest.mark.parametrize("scoring", ["sum", "mean"])
def test_close_ended_scores_are_log_likelihoods_and_the_best_choice_wins(flamingo, queries, shots, scoring):
    """Section 3.1: each choice after the prompt. Choices have different lengths; queries have 3 or 4 choices of their own."""
    choices = ("ab", "ch", "fg", "ba", "he", "gdc")
    asked = [replace(query, choices=choices[i % 3 :][: 4 - i % 2]) for i, query in enumerate(queries)]
    best = []
    for query, scores in zip(asked, score_choices(flamingo, LETTERS, asked, shots, scoring=scoring).tolist(), strict=True):
        prompt = few_shot_prompt(query, shots).pieces
        expected = [log_likelihood(flamingo, prompt, c) / (len(c) if scoring == "mean" else 1) for c in query.choices]
        assert scores == pytest.approx(expected + [-math.inf] * (4 - len(expected)), abs=1e-5)
        best.append(query.choices[expected.index(max(expected))])
    if scoring == "sum":
        for batch_size in (1, 4, 64):
            assert predict(flamingo, LETTERS, asked, shots, batch_size=batch_size) == best and len(set(best)) > 1


def test_wrong_scoring_and_wrong_candidates_are_errors(flamingo, queries):
    with pytest.raises(ValueError, match="scoring is 'max'; choose 'sum' or 'mean'"):
        score_choices(flamingo, LETTERS, [replace(queries[0], choices=("a", "b"))], "0", scoring="max")
    prompts = batch_of(*(few_shot_prompt(query, "0").pieces for query in queries[:2]), pad="left")
    for answers, message in (([], "candidates for 0 prompts, but the batch has 2 prompts"), ([[], []], "at least one")):
        with pytest.raises(ValueError, match=message):
            score_answers(flamingo, prompts, answers)


def test_prediction_changes_no_weight_and_leaves_no_gradient(flamingo, queries):
    """Few-shot learning is only a forward pass."""
    before = {name: value.clone() for name, value in flamingo.state_dict().items()}
    predict(flamingo, LETTERS, queries, "2", max_new_tokens=2)
    assert all(torch.equal(value, before[name]) for name, value in flamingo.state_dict().items())
    assert all(p.grad is None for p in flamingo.parameters())
    assert predict(flamingo, LETTERS, [], "2") == []


# ---------------------------------------------------------------------------------------------------------- intervals


@pytest.mark.parametrize("right, n", [(0, 1), (0, 200), (1, 4), (3, 50), (25, 50), (199, 200), (4, 4)])
def test_the_ends_of_a_wilson_interval_are_the_rates_at_a_distance_of_196_standard_deviations(right, n):
    """It is not empty and stays between 0 and 1, also if none or all are right."""
    low, high = fewshot.wilson_interval(right, n)
    assert 0 <= low < high <= 1
    for bound in (low, high):
        assert (right / n - bound) ** 2 == pytest.approx(1.96**2 * bound * (1 - bound) / n, abs=1e-12)


def test_accuracy_is_in_percent():
    assert fewshot.accuracy([True] * 190 + [False] * 10) == {"score": 95.0, "interval": [91.04, 97.26], "n": 200}
    with pytest.raises(ValueError, match="at least one case"):
        fewshot.accuracy([])
