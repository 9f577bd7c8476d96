"""The few-shot protocol (paper §3.1): show k examples, ask for one more, change no weight.

    <BOS> <image>Output: red<EOC> <image>Output: blue<EOC> <image>Output:  →  " green"<EOC>

    shots "8"       eight support examples, each with its image, then the query
    shots "0_text"  zero-shot as in the paper: two examples WITHOUT their images, so that the form of an answer is known
    shots "0"       the query alone

Open-ended answers are generated greedily up to `<EOC>` and must be right to the letter; close-ended ones are chosen from
given answers by log-likelihood. Intervals are Wilson's, 95%: they stay inside 0…1 and are honest near both ends.

Example: 190 right of 200 → accuracy 0.95, ci95 [0.910, 0.973].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..data.sample import EOC, Sample, collate
from ..flamingo import Flamingo
from ..generate import generate, score_answers
from ..tokenizer import Tokenizer

SHOTS = ("0", "0_text", "1", "2", "4", "8", "16", "32")
N_TEXT_ONLY = 2  # examples of the text-only zero-shot prompt


@dataclass(frozen=True)
class Query:
    """One case: what may be shown, what is asked, what is right. Media as in `Sample`."""

    support: tuple[tuple[object, str], ...]  # (medium, whole text) of each example
    medium: object
    prompt: str
    answer: str
    choices: tuple[str, ...] | None = None  # close-ended: the answers to choose from


def few_shot_prompt(query: Query, shots: str) -> Sample:
    """The prompt of `query` with that many `shots`: "0", "0_text", "1", …

    Raises:
        ValueError: the query's support has fewer examples.
    """
    n = N_TEXT_ONLY if shots == "0_text" else int(shots)
    if n < 0:
        raise ValueError(f"{shots} shots asked for; there are none below 0")
    if n > len(query.support):
        raise ValueError(f"{shots} shots asked for, but this query has {len(query.support)} support examples")
    pieces: list = []
    for medium, text in query.support[:n]:
        pieces += [text, EOC] if shots == "0_text" else [medium, text, EOC]
    return Sample([*pieces, query.medium, *([query.prompt] if query.prompt else [])])


def predict(
    flamingo: Flamingo,
    tokenizer: Tokenizer,
    queries: Sequence[Query],
    shots: str,
    prepare: Callable | None = None,
    max_new_tokens: int = 24,
    batch_size: int = 64,
) -> list[str]:
    """The model's answer to each query, in the order given. A task is open-ended, or close-ended in all its queries."""
    device = next(flamingo.parameters()).device
    answers: list[str] = []
    for start in range(0, len(queries), batch_size):
        part = queries[start : start + batch_size]
        batch = collate([few_shot_prompt(q, shots) for q in part], tokenizer, prepare, pad="left").to(device)
        if part[0].choices is None:
            new_ids = generate(flamingo, batch, tokenizer.eoc_id, max_new_tokens)
            answers += [tokenizer.decode(ids) for ids in new_ids]
        else:
            candidates = [[tokenizer.encode(c) for c in q.choices] for q in part]
            best = score_answers(flamingo, batch, candidates).argmax(1).tolist()
            answers += [q.choices[i] for q, i in zip(part, best)]
    return answers


def wilson_interval(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95% interval of a rate of which `right` of `n` were seen."""
    if n < 1:
        raise ValueError("an interval needs at least one case")
    p, zz = right / n, z * z
    centre = (p + zz / (2 * n)) / (1 + zz / n)
    half = z / (1 + zz / n) * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def accuracy(correct: Sequence[bool]) -> dict:
    """{"accuracy", "ci95", "n"} as results.json holds them."""
    low, high = wilson_interval(sum(correct), len(correct))
    return {"accuracy": round(sum(correct) / len(correct), 4), "ci95": [round(low, 4), round(high, 4)], "n": len(correct)}
