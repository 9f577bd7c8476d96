"""The few-shot protocol: the prompt as the paper writes it, answers open and close-ended, honest intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import LETTERS, batch_of, picture, prepare, tiny_flamingo

from minflamingo.data.sample import EOC, collate
from minflamingo.evaluation.fewshot import SHOTS, Query, accuracy, few_shot_prompt, predict, wilson_interval
from minflamingo.tokenizer import ToyTokenizer

TOKENIZER = ToyTokenizer(["Output", " red", " blue", " green"])
COLOURS = ("red", "blue", "green", "red", "green")
SUPPORT = tuple((picture(i), f"Output: {colour}") for i, colour in enumerate(COLOURS))
QUERY = Query(SUPPORT, picture(9), "Output:", " blue")


def written(batch, row: int = 0) -> str:
    """The real tokens of a row as the paper writes them, with the special ones in brackets."""
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
def test_the_prompt_is_the_papers_token_by_token(shots):
    """§3.1 and appendix; zero-shot ("0_text") shows two examples without their images. Images come in that order."""
    batch = collate([few_shot_prompt(QUERY, shots)], TOKENIZER, prepare, pad="left")
    assert written(batch) == PROMPTS[shots]
    shown = [m for m, _ in SUPPORT[: 0 if shots == "0_text" else int(shots)]] + [QUERY.medium]
    assert batch.media.shape[1] == len(shown)
    assert torch.equal(batch.media[0], torch.stack([prepare(m) for m in shown]))


def test_the_answer_of_the_query_is_not_in_its_prompt():
    """Another answer, another answer's choices: the same prompt."""
    other = Query(SUPPORT, QUERY.medium, QUERY.prompt, " taxi", (" taxi", " bus"))
    for shots in PROMPTS:
        one, two = few_shot_prompt(QUERY, shots).pieces, few_shot_prompt(other, shots).pieces
        assert len(one) == len(two) and all(a is b or a == b for a, b in zip(one, two))


def test_a_bare_prompt_ends_with_its_image():
    """`binding` without a sentence around the name: nothing stands behind the image."""
    bare = Query(((picture(1), "dax"),), picture(2), "", "wug")
    assert written(collate([few_shot_prompt(bare, "1")], TOKENIZER, prepare)) == "<BOS><image>dax<EOC><image>"


def test_a_video_is_one_example_with_one_image_token():
    """T > 1 changes the medium, not the layout."""
    query = Query(((picture(1, frames=3), "Output: red"),), picture(2, frames=2), "Output:", " blue")
    batch = collate([few_shot_prompt(query, "1")], TOKENIZER, prepare)
    assert written(batch) == PROMPTS["1"] and batch.frames.tolist() == [[3, 2]]


def test_more_shots_than_examples_are_refused():
    """Repeating some would be another protocol. The two of "0_text" are needed as well."""
    with pytest.raises(ValueError, match="8 shots asked for, but this query has 5 support examples"):
        few_shot_prompt(QUERY, "8")
    with pytest.raises(ValueError, match="0_text shots asked for, but this query has 1 support examples"):
        few_shot_prompt(Query(SUPPORT[:1], QUERY.medium, "Output:", " blue"), "0_text")
    with pytest.raises(ValueError, match="-1 shots asked for"):
        few_shot_prompt(QUERY, "-1")


def test_the_numbers_of_shots_are_the_papers_and_those_between():
    """0, 4, 8, 16, 32 (§3.1), both kinds of zero, and 1 and 2, where a toy's curve is steep."""
    assert SHOTS == ("0", "0_text", "1", "2", "4", "8", "16", "32")


# ---------------------------------------------------------------------------------------------------------- the answers


def letter_queries(choices=None) -> list[Query]:
    """Seven cases of different lengths, some with videos."""
    cases = []
    for i in range(7):
        support = tuple((picture(10 * i + k, frames=1 + (i + k) % 2), "abcdefgh"[k : k + 1 + i % 3]) for k in range(3))
        cases.append(Query(support, picture(100 + i), "ab" * (i % 3), "c", choices))
    return cases


def greedy(flamingo, query: Query, shots: str, n: int) -> str:
    """The whole model, from the beginning, for each new token; no cache, no padding."""
    batch, text = batch_of(few_shot_prompt(query, shots).pieces), []
    for _ in range(n):
        logits, _ = flamingo(batch)
        token = int(logits[0, -1].argmax())
        if token == LETTERS.eoc_id:
            break
        text.append(token)
        batch = batch_of([*few_shot_prompt(query, shots).pieces, LETTERS.decode(text)])
    return LETTERS.decode(text)


@pytest.fixture(scope="module")
def flamingo():
    """Alive, and its head a little in favour of letters over <PAD> and <BOS>."""
    model = tiny_flamingo()
    with torch.no_grad():
        model.lm.head.bias[:2] = -100.0
    return model


@pytest.mark.parametrize("shots", ["0", "0_text", "2"])
def test_open_ended_answers_are_greedy_and_in_the_order_of_the_queries(flamingo, shots):
    """Against a plain loop, case by case; however many cases share a batch (padded on the left)."""
    cases = letter_queries()
    expected = [greedy(flamingo, q, shots, 5) for q in cases]
    assert len(set(expected)) > 3  # the cases can be told apart
    for batch_size in (1, 3, 64):
        assert predict(flamingo, LETTERS, cases, shots, prepare, max_new_tokens=5, batch_size=batch_size) == expected


@pytest.mark.parametrize("shots", ["0", "0_text", "3"])
def test_a_close_ended_answer_is_the_choice_of_the_highest_likelihood(flamingo, shots):
    """§3.1: each answer appended to the prompt and scored. Brute force: read it all, sum the log-probabilities."""
    choices = ("ab", "ch", "fg", "ba", "he", "gdc")
    cases = letter_queries(choices)
    expected = []
    for query in cases:
        prompt = few_shot_prompt(query, shots).pieces
        scores = []
        for choice in choices:
            batch = batch_of([*prompt, choice])
            log_p = flamingo(batch)[0][0].log_softmax(-1)
            n = len(choice)
            scores.append(sum(log_p[-1 - n + i, token].item() for i, token in enumerate(batch.ids[0, -n:].tolist())))
        expected.append(choices[int(np.argmax(scores))])
    assert len(set(expected)) > 1
    for batch_size in (1, 4, 64):
        assert predict(flamingo, LETTERS, cases, shots, prepare, batch_size=batch_size) == expected


def test_prediction_changes_no_weight_and_leaves_no_gradient(flamingo):
    """Few-shot learning is a forward pass."""
    before = {k: v.clone() for k, v in flamingo.state_dict().items()}
    predict(flamingo, LETTERS, letter_queries(), "2", prepare, max_new_tokens=2)
    assert all(torch.equal(v, before[k]) for k, v in flamingo.state_dict().items())
    assert all(p.grad is None for p in flamingo.parameters())
    assert predict(flamingo, LETTERS, [], "2", prepare) == []


# ---------------------------------------------------------------------------------------------------------- the numbers


def test_intervals_agree_with_numbers_worked_out_by_hand():
    """Wilson 1927, z = 1.96: 190 of 200 is the docstring's example."""
    assert wilson_interval(190, 200) == pytest.approx((0.910, 0.973), abs=5e-4)
    assert wilson_interval(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson_interval(1, 4) == pytest.approx((0.0456, 0.6994), abs=1e-4)


@pytest.mark.parametrize("right, n", [(1, 4), (3, 50), (25, 50), (199, 200)])
def test_both_ends_of_an_interval_are_the_rates_that_lie_just_196_deviations_off(right, n):
    """What the interval means: (p̂ − p)² = z² p (1 − p) / n, solved by bisection."""

    def root(inside: float, outside: float) -> float:
        for _ in range(60):
            p = (inside + outside) / 2
            if abs(right / n - p) <= 1.96 * math.sqrt(p * (1 - p) / n):
                inside = p
            else:
                outside = p
        return inside

    assert wilson_interval(right, n) == pytest.approx((root(right / n, 0.0), root(right / n, 1.0)), abs=1e-6)


def test_none_right_and_all_right_have_an_interval_too():
    """0 of n: from 0 to z² / (n + z²), not "0 ± 0"; all of n is its mirror image; nothing leaves 0…1."""
    for n in (1, 4, 200):
        edge = 1.96**2 / (n + 1.96**2)
        assert wilson_interval(0, n) == pytest.approx((0.0, edge), abs=1e-12)
        assert wilson_interval(n, n) == pytest.approx((1.0 - edge, 1.0), abs=1e-12)
        for right in range(n + 1):
            low, high = wilson_interval(right, n)
            assert 0.0 <= low <= right / n <= high <= 1.0
    with pytest.raises(ValueError, match="at least one case"):
        wilson_interval(0, 0)


def test_accuracy_is_what_results_json_holds():
    """Share, interval, number of cases; plain numbers."""
    assert accuracy([True] * 190 + [False] * 10) == {"accuracy": 0.95, "ci95": [0.9104, 0.9726], "n": 200}
    assert accuracy([False, True, False]) == {"accuracy": 0.3333, "ci95": [0.0615, 0.7923], "n": 3}


def test_the_end_of_chunk_is_a_token_and_not_a_text():
    """In the prompt stands the one object EOC, so the letters "<EOC>" in an example end nothing."""
    query = Query(((picture(1), "Output: <EOC>"),), picture(2), "Output:", " red")
    sample = few_shot_prompt(query, "1")
    assert sum(p is EOC for p in sample.pieces) == 1
    assert collate([sample], TOKENIZER, prepare).ids[0].tolist().count(TOKENIZER.eoc_id) == 1
