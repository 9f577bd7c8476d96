"""The few-shot protocol (paper section 3.1): show solved examples in the prompt, ask about one more image, change no weight.

    <BOS><image>Output: red<EOC><image>Output: blue<EOC><image>Output:   ->   " green" <EOC>

    shots "8"       eight support examples, each with its image, then the query
    shots "0_text"  the paper's zero-shot prompt: two examples WITHOUT their images, which only show the form of an answer
    shots "0"       the query alone

Open-ended tasks: the model generates text up to `<EOC>`. Close-ended tasks: the model scores each possible answer, and the one
with the highest log-likelihood is the prediction. `runner.py` uses these functions for benchmarks, `train_tiny.py` directly.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from ..data.sample import EOC, Sample, collate
from ..flamingo import Flamingo
from ..generate import beam_search, generate, score_answers
from ..tokenizer import Tokenizer

SHOTS = ("0", "0_text", "1", "2", "4", "8", "16", "32")  # 0_text, 4, 8, 16 and 32 are in the paper
N_TEXT_ONLY = 2  # examples in the prompt "0_text"


@dataclass(frozen=True)
class Query:
    """One question, and examples that may be shown before it. A medium is a tensor of features (T, S, D), as in `Sample`."""

    support: Sequence[tuple[object, str]]  # (medium, prompt + answer) of each example, in the order of the prompt
    medium: object
    prompt: str
    answer: str
    choices: Sequence[str] | None = None  # close-ended: the possible answers. None: open-ended
    between: str = ""  # text after each <EOC>; OpenFlamingo's prompts have a line break there


def count_shots(shots: str) -> int:
    """How many examples the prompt shows: "8" -> 8, "0_text" -> 2."""
    if shots != "0_text" and not shots.isdecimal():
        raise ValueError(f"shots is {shots!r}; choose a number, such as '4', or '0_text' for the paper's zero-shot prompt")
    return N_TEXT_ONLY if shots == "0_text" else int(shots)


def few_shot_prompt(query: Query, shots: str, order: Sequence[int] | None = None) -> Sample:
    """The prompt of a query (section 3.1 and appendix). order: a permutation of the shots. None: as in `query.support`.

    Raises:
        ValueError: the query has fewer support examples.
    """
    n, pieces = count_shots(shots), []
    if n > len(query.support):
        raise ValueError(f"{shots} shots need {n} support examples, but this query has {len(query.support)}")
    for i in range(n) if order is None else order:
        medium, text = query.support[i]
        image = [] if shots == "0_text" else [medium]
        pieces += [*image, text, EOC, query.between]
    # The query has the same form as an example, but its answer and <EOC> are left to the model.
    pieces += [query.medium, query.prompt]
    return Sample([piece for piece in pieces if not isinstance(piece, str) or piece])  # without empty texts


def shot_orders(n: int, most: int, seed: int) -> list[tuple[int, ...]]:
    """min(most, n!) different orders of n shots, for prompt ensembling. The first is 0, 1, ..., n - 1."""
    rng, orders = random.Random(f"orders {seed} {n}"), [tuple(range(n))]
    while len(orders) < min(most, math.factorial(n)):
        order = tuple(rng.sample(range(n), n))
        orders += [order] if order not in orders else []
    return orders


def generate_answers(
    flamingo: Flamingo, tokenizer: Tokenizer, prompts: Sequence[Sample], *, beams: int = 1, max_new_tokens: int = 24
) -> list[str]:
    """Open-ended: the text that the model generates after each prompt. beams: 3 in the paper, 1 is greedy."""
    # Padding on the left: all prompts end at the same position, where the answers start.
    batch = collate(prompts, tokenizer, pad="left").to(next(flamingo.parameters()).device)
    search = generate if beams == 1 else partial(beam_search, beams=beams)
    return [tokenizer.decode(ids) for ids in search(flamingo, batch, tokenizer.eoc_id, max_new_tokens=max_new_tokens)]


def score_choices(
    flamingo: Flamingo, tokenizer: Tokenizer, prompts: Sequence[Sample], choices: Sequence[Sequence[str]], scoring: str = "sum"
) -> list[list[float]]:
    """Close-ended: the log-likelihood of each choice after its prompt. Prompts may have different numbers of choices.

    scoring: "sum" over the tokens of a choice, or "mean". A long choice has a low sum because it is long.
    """
    if scoring not in ("sum", "mean"):
        raise ValueError(f"scoring is {scoring!r}; choose 'sum' or 'mean'")
    batch = collate(prompts, tokenizer, pad="left").to(next(flamingo.parameters()).device)
    ids = [[tokenizer.encode(choice) for choice in of_prompt] for of_prompt in choices]
    # score_answers needs equally many choices per prompt: repeat the first one. zip() below drops the repetitions.
    most = max(map(len, ids))
    rows = score_answers(flamingo, batch, [of_prompt + of_prompt[:1] * (most - len(of_prompt)) for of_prompt in ids]).tolist()
    return [[s / (len(c) if scoring == "mean" else 1) for s, c in zip(row, of_prompt)] for row, of_prompt in zip(rows, ids)]


def answer_queries(
    flamingo: Flamingo, tokenizer: Tokenizer, queries: Sequence[Query], shots: str, *,
    beams: int = 1, max_new_tokens: int = 24, scoring: str = "sum", orders: Sequence[Sequence[int] | None] = (None,),
) -> list[dict]:  # fmt: skip
    """One batch of queries, all open-ended or all close-ended -> {"prediction": text} each; close-ended also "scores".

    orders: for prompt ensembling (appendix). The order of the shots changes a language model's answer, so the score of a choice
        is its mean log-likelihood over several orders: 1/P * sum_p log p(choice | shots in order p, query).
    """
    if queries[0].choices is None:
        prompts = [few_shot_prompt(query, shots) for query in queries]
        texts = generate_answers(flamingo, tokenizer, prompts, beams=beams, max_new_tokens=max_new_tokens)
        return [{"prediction": text} for text in texts]
    per_order, answers, choices = [], [], [query.choices for query in queries]
    for order in orders:
        prompts = [few_shot_prompt(query, shots, order) for query in queries]
        per_order.append(score_choices(flamingo, tokenizer, prompts, choices, scoring))
    for query, rows in zip(queries, zip(*per_order)):  # rows: the scores of one query, a row per order
        scores = [sum(column) / len(orders) for column in zip(*rows)]
        answers.append({"prediction": query.choices[scores.index(max(scores))], "scores": scores})
    return answers


def predict(
    flamingo: Flamingo, tokenizer: Tokenizer, queries: Sequence[Query], shots: str, *, max_new_tokens: int = 24,
    batch_size: int = 64,
) -> list[str]:  # fmt: skip
    """The model's answer to each query: greedy, or the choice with the highest summed log-likelihood."""
    parts = [queries[start : start + batch_size] for start in range(0, len(queries), batch_size)]
    answers = [answer_queries(flamingo, tokenizer, part, shots, max_new_tokens=max_new_tokens) for part in parts]
    return [answer["prediction"] for of_part in answers for answer in of_part]


def wilson_interval(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95% interval of a rate, when `right` of `n` cases are right. It stays inside 0 ... 1, also for 0 of n."""
    if n < 1:
        raise ValueError("an interval needs at least one case")
    p, zz = right / n, z * z
    centre = (p + zz / (2 * n)) / (1 + zz / n)
    half = z / (1 + zz / n) * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def accuracy(correct: Sequence[bool]) -> dict:
    """In percent: 190 right of 200 -> {"score": 95.0, "interval": [91.04, 97.26], "n": 200}."""
    interval = [round(100 * bound, 2) for bound in wilson_interval(sum(correct), len(correct))]
    return {"score": round(100 * sum(correct) / len(correct), 2), "interval": interval, "n": len(correct)}
