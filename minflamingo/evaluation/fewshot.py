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

import torch
from torch import Tensor

from .. import EOC, Batch, Flamingo, Sample, Tokenizer, collate
from ..data.options import BATCH, FEW, InvalidOption, check
from ..data.sample import input_only
from ..generate import beam_search, generate, score_answers

N_TEXT_ONLY = 2  # examples in the prompt "0_text"


@dataclass(frozen=True)
class Query:
    """One question, and examples that may be shown before it. A medium is a tensor of features (T, S, D)."""

    support: Sequence[tuple[object, str]]  # (medium, prompt + answer) of each example, in the order of the prompt
    medium: object
    prompt: str
    answer: str
    choices: Sequence[str] | None = None  # close-ended: the possible answers. None: open-ended
    between: str = ""  # text after each <EOC>; OpenFlamingo's prompts have a line break there


# ---------------------------------------------------------------------------------------------------------- the prompt


def count_shots(shots: str) -> int:
    """How many examples the prompt shows: "8" -> 8, "0_text" -> 2."""
    if shots != "0_text" and not (isinstance(shots, str) and shots.isascii() and shots.isdecimal() and len(shots) < 10):
        raise InvalidOption(f"shots is {shots!r:.60}; choose a number, such as '4', or '0_text' for the paper's zero-shot")
    return N_TEXT_ONLY if shots == "0_text" else int(shots)


def few_shot_prompt(query: Query, shots: str, order: Sequence[int] | None = None) -> Sample:
    """The prompt of a query (section 3.1 and appendix). order: a permutation of the shots. None: as in `query.support`.

    Raises ValueError: the query has fewer support examples.
    """
    ### BEGIN SOLUTION few_shot_prompt
    n, pieces = count_shots(shots), []
    if n > len(query.support):
        raise ValueError(f"{shots} shots need {n} support examples, but this query has {len(query.support)}")
    for i in order or range(n):
        medium, text = query.support[i]
        # The image is before its text, because text attends to the last image before it.
        image = [] if shots == "0_text" else [medium]
        # <EOC> ends each example, as in training. So the model also ends its own answer with <EOC>.
        pieces += [*image, text, EOC, query.between]
    # The query has the same form as an example, but its answer and <EOC> are left to the model.
    pieces += [query.medium, query.prompt]
    return Sample([piece for piece in pieces if not isinstance(piece, str) or piece])  # without empty texts
    ### END SOLUTION


def shot_orders(n: int, most: int, seed: int) -> list[tuple[int, ...]]:
    """min(most, n!) different orders of n shots, for prompt ensembling. The first is 0, 1, ..., n - 1."""
    rng, orders = random.Random(f"orders {seed} {n}"), [tuple(range(n))]
    while len(orders) < min(most, math.factorial(n)):  # 2 shots have only 2 orders
        order = tuple(rng.sample(range(n), n))  # a random permutation
        if order not in orders:
            orders.append(order)
    return orders


# ---------------------------------------------------------------------------------------------------------- the answers


def prompt_batch(
    flamingo: Flamingo, tokenizer: Tokenizer, queries: Sequence[Query], shots: str, order: Sequence[int] | None = None
) -> Batch:
    """The prompts of B queries as one batch, on the model's device."""
    prompts = [few_shot_prompt(query, shots, order) for query in queries]
    # Padding on the left: all prompts end at the same position, where the answers start.
    return collate(prompts, tokenizer, pad="left").to(next(flamingo.parameters()).device)


def generate_answers(
    flamingo: Flamingo, tokenizer: Tokenizer, queries: Sequence[Query], shots: str, *, beams: int = 1, max_new_tokens: int = 24
) -> list[str]:
    """Open-ended: the text that the model generates after each prompt. beams: 3 in the paper, 1 is greedy."""
    batch = prompt_batch(flamingo, tokenizer, queries, shots)
    search = generate if beams == 1 else partial(beam_search, beams=beams)
    # Both stop at the first <EOC>, which is not part of the answer. <PAD>, <BOS> and <image> cannot be generated.
    options = {"max_new_tokens": max_new_tokens, "banned": input_only(tokenizer)}
    answers = search(flamingo, batch, tokenizer.eoc_id, **options)  # B lists of token ids
    return [tokenizer.decode(ids) for ids in answers]


def score_choices(
    flamingo: Flamingo, tokenizer: Tokenizer, queries: Sequence[Query], shots: str, *,
    scoring: str = "sum", n_orders: int = 1, seed: int = 0,
) -> Tensor:  # fmt: skip
    """Close-ended: (B, A), the log-likelihood of each choice after its prompt. Rows with fewer than A choices end with -inf.

    Example: the log-likelihoods of the tokens are -1.2 for " bus", and -0.7, -0.9 for " red taxi".
    "sum" -> -1.2 and -1.6: " bus" is the best choice. "mean" -> -1.2 and -0.8: " red taxi" is the best one.

    Args:
        scoring: "sum" over the tokens of a choice, or "mean". A long choice has a low sum because it is long.
        n_orders: above 1 for prompt ensembling (appendix). The order of the shots changes a language model's answer, so the
            score is the mean over P <= n_orders orders: 1/P * sum_p log p(choice | shots in order p, query).
    """
    check({"n_orders": FEW}, n_orders=n_orders)
    if scoring not in ("sum", "mean"):
        raise ValueError(f"scoring is {scoring!r}; choose 'sum' or 'mean'")
    ids = [[tokenizer.encode(choice) for choice in query.choices] for query in queries]  # lists of token ids
    n_choices = torch.tensor([[len(choices)] for choices in ids])  # (B, 1)
    A = int(n_choices.max())
    ids = [choices + choices[:1] * (A - len(choices)) for choices in ids]  # equally many: repeat the first choice
    orders = shot_orders(count_shots(shots), n_orders, seed)  # without ensembling only the given order
    total = 0
    for order in orders:
        batch = prompt_batch(flamingo, tokenizer, queries, shots, order)
        # The prompt is processed once for all its choices. float64, because averages are compared.
        total = total + score_answers(flamingo, batch, ids, banned=input_only(tokenizer)).cpu().double()  # (B, A)
    scores = total / len(orders)
    if scoring == "mean":
        scores = scores / torch.tensor([[len(choice) for choice in of_query] for of_query in ids])  # (B, A) numbers of tokens
    return scores.masked_fill(torch.arange(A) >= n_choices, -math.inf)


def predict(
    flamingo: Flamingo, tokenizer: Tokenizer, queries: Sequence[Query], shots: str, *, max_new_tokens: int = 24,
    batch_size: int = 64,
) -> list[str]:  # fmt: skip
    """The model's answer to each query: greedy, or the choice with the highest summed log-likelihood.

    The queries are all open-ended, or all close-ended.
    """
    check({"batch_size": BATCH}, batch_size=batch_size)
    predictions = []
    for start in range(0, len(queries), batch_size):
        part = queries[start : start + batch_size]  # B queries
        if part[0].choices is None:
            predictions += generate_answers(flamingo, tokenizer, part, shots, max_new_tokens=max_new_tokens)
        else:
            best = score_choices(flamingo, tokenizer, part, shots).argmax(1)  # (B,) of equal scores the first
            predictions += [query.choices[i] for query, i in zip(part, best.tolist())]
    return predictions


# ------------------------------------------------------------------------------------------------------------ the score


def wilson_interval(right: int, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of a rate, when `right` of `n` cases are right. It stays inside 0 ... 1, also for 0 of n.

    Its ends are the solutions q of |right / n - q| = z * sqrt(q * (1 - q) / n), with z = 1.96.
    """
    if not 0 <= right <= n or n < 1:
        raise ValueError(f"{right} of {n} cases are right: an interval needs at least one case, and at most n right ones")
    p, z = right / n, 1.96  # 95% of a normal distribution are within 1.96 standard deviations of its mean
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)  # between p and 1/2
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)  # without rounding errors below 0 or above 1


def accuracy(correct: Sequence[bool]) -> dict:
    """In percent: 190 right of 200 -> {"score": 95.0, "interval": [91.04, 97.26], "n": 200}."""
    interval = [round(100 * bound, 2) for bound in wilson_interval(sum(correct), len(correct))]
    return {"score": round(100 * sum(correct) / len(correct), 2), "interval": interval, "n": len(correct)}
