"""The few-shot protocol (paper §3.1): show k examples, ask for one more, change no weight.

    <BOS> <image>Output: red<EOC> <image>Output: blue<EOC> <image>Output:  →  " green"<EOC>

    shots "8"       eight support examples, each with its image, then the query
    shots "0_text"  zero-shot as in the paper: two examples WITHOUT their images, so that the form of an answer is known
    shots "0"       the query alone

Open-ended answers are generated up to `<EOC>`, greedily or by beam search; close-ended ones are chosen from given answers by
log-likelihood. `predict` and `accuracy` are the toy world's examination: right to the letter, with Wilson's 95% intervals, that
stay inside 0…1 and are honest near both ends. `runner.py` runs whole benchmarks on the same prompts, with their own metrics.

Example: 190 right of 200 → accuracy 0.95, ci95 [0.910, 0.973].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..data.sample import EOC, Sample, collate
from ..flamingo import Flamingo
from ..generate import beam_search, generate, score_answers
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
    between: str = ""  # stands after each <EOC> (OpenFlamingo's prompts have a line break there)


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
        pieces += [*([] if shots == "0_text" else [medium]), text, EOC, *([query.between] if query.between else [])]
    return Sample([*pieces, query.medium, *([query.prompt] if query.prompt else [])])


def generated(
    flamingo: Flamingo,
    tokenizer: Tokenizer,
    prompts: Sequence[Sample],
    prepare: Callable | None = None,
    max_new_tokens: int = 24,
    beams: int = 1,
) -> list[str]:
    """Open-ended: what the model says behind each prompt, up to `<EOC>`; greedily, or by beam search (the paper's 3)."""
    batch = collate(prompts, tokenizer, prepare, pad="left").to(next(flamingo.parameters()).device)
    if beams == 1:
        new_ids = generate(flamingo, batch, tokenizer.eoc_id, max_new_tokens)
    else:
        new_ids = beam_search(flamingo, batch, tokenizer.eoc_id, beams, max_new_tokens)
    return [tokenizer.decode(ids) for ids in new_ids]


def choice_scores(
    flamingo: Flamingo,
    tokenizer: Tokenizer,
    prompts: Sequence[Sample],
    choices: Sequence[Sequence[str]],
    prepare: Callable | None = None,
    scoring: str = "sum",
) -> list[tuple[float, ...]]:
    """Close-ended: log-likelihood of each choice behind its prompt, which is read once; prompts may differ in choices.

    scoring: "sum" over a choice's tokens, or their "mean", with which a long choice is not unlikely for its length.
    """
    if scoring not in ("sum", "mean"):
        raise ValueError(f"scoring is {scoring!r}; choose 'sum' or 'mean'")
    batch = collate(prompts, tokenizer, prepare, pad="left").to(next(flamingo.parameters()).device)
    ids = [[tokenizer.encode(choice) for choice in several] for several in choices]
    most = max(map(len, ids))
    filled = [[*several, *[several[0]] * (most - len(several))] for several in ids]  # as many for each; the rest is cut off
    rows = score_answers(flamingo, batch, filled).tolist()
    return [
        tuple(s / (len(i) if scoring == "mean" else 1) for s, i in zip(row, several)) for row, several in zip(rows, ids)
    ]


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
    answers: list[str] = []
    for start in range(0, len(queries), batch_size):
        part = queries[start : start + batch_size]
        prompts = [few_shot_prompt(q, shots) for q in part]
        if part[0].choices is None:
            answers += generated(flamingo, tokenizer, prompts, prepare, max_new_tokens)
        else:
            scores = choice_scores(flamingo, tokenizer, prompts, [q.choices for q in part], prepare)
            answers += [q.choices[row.index(max(row))] for q, row in zip(part, scores)]
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
