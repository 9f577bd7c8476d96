"""A model sits a benchmark (paper §3 and appendix): shots are chosen, prompts made, answers collected and marked.

    result = evaluate(flamingo, task, "8")         # {"score": 98.1, "interval": [96.2, 100.0], "n": 160, …}

    per query     choose the shots   at random, by a seed, or by RICES; never the query itself
                  ask                open-ended: beam 3, up to <EOC>, then the task's clean-up
                                     close-ended: the log-likelihood of every choice
    per task      the benchmark's own metric, with a 95% interval

Shots "0_text" is the zero-shot of the paper, two examples without their images; "0" is the query alone (`fewshot.py`).

**Which shots** depends on the seed, the task, the trial and the query, and on nothing else: not on the batch, nor on what was
asked before. The 8 shots of a query begin with its 4. So a run can stop anywhere, and what it goes on with is the same.

**Prompt ensembling.** The order of the shots moves the answer of a language model. Log-likelihoods of choices are averaged
over min(6, n!) orders:  score(choice) = 1/P · Σ_p log p(choice | shots in order p).  Example: 2 shots are read in 2 orders.

**What is broken.** A query whose file cannot be opened is counted, named and left out; a shot is replaced by the next one.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from ..complete import LoadedFlamingo
from .eye import Eye
from .fewshot import N_TEXT_ONLY, Query, choice_scores, few_shot_prompt, generated
from .metrics import METRICS, Outcome, interval
from .rices import Rices, pooled, rices
from .task import Example, Task

SPARE = 8  # more candidates than shots, in case some cannot be opened


@dataclass(frozen=True)
class Protocol:
    """How a benchmark is run.

    rices: the shots most like the query, not random ones. ensemble: average close-ended scores over `orders` of the shots.
    beams: 3 in the paper; 1 is greedy.
    """

    seed: int = 0
    rices: bool = False
    ensemble: bool = False
    orders: int = 6
    beams: int = 3


def random_order(n: int, *words: object) -> Iterator[int]:
    """0 … n−1 in an order that depends on the `words` alone; drawn as far as it is asked for, n may be half a million."""
    rng, seen = random.Random(" ".join(map(str, words))), set()
    while len(seen) < n:
        i = rng.randrange(n)
        if i not in seen:
            seen.add(i)
            yield i


def orders_of(n: int, most: int, seed: int) -> list[tuple[int, ...]]:
    """min(most, n!) different orders of n shots. The first is as they come."""
    wanted, rng = min(most, math.factorial(n)), random.Random(f"orders {seed} {n}")
    orders = {tuple(range(n)): None}
    while len(orders) < wanted:
        orders[tuple(rng.sample(range(n), n))] = None
    return list(orders)


def count_of(shots: str) -> int:
    """How many examples the prompt shows: "8" → 8, "0_text" → 2."""
    if shots == "0_text":
        return N_TEXT_ONLY
    if not shots.isdecimal():
        raise ValueError(f"shots are a number, or 0_text for the paper's zero-shot; not {shots!r}")
    return int(shots)


class Shots:
    """Chooses the support examples of queries, in the order in which they stand in the prompt."""

    def __init__(self, task: Task, shots: str, trial: int, protocol: Protocol, eye: Eye, index: Rices | None = None):
        self.task, self.shots, self.trial, self.protocol, self.eye = task, shots, trial, protocol, eye
        self.n, self.text_only = count_of(shots), shots == "0_text"
        self.replaced: dict[str, list[str]] = {}  # of the last queries: the shots that could not be opened
        self.index = index if protocol.rices and not self.text_only and self.n else None
        if protocol.rices and index is None and not self.text_only and self.n:
            self.index = rices(eye, task.support)

    def candidates(self, queries: Sequence[Example]) -> list[Iterator[Example]]:
        """Support examples from the first choice on, without the query itself."""
        if self.index is None:
            words = self.protocol.seed, self.task.name, self.trial
            numbers = [random_order(len(self.task.support), *words, query.key) for query in queries]
        else:
            features = torch.stack([pooled(self.eye.features(query)) for query in queries])
            numbers = self.index.nearest(features, [query.key for query in queries], self.n + SPARE)
        return [self._without(query, of_query) for query, of_query in zip(queries, numbers)]

    def _without(self, query: Example, numbers: Iterable[int]) -> Iterator[Example]:
        return (example for i in numbers if (example := self.task.support[i]).key != query.key)

    def choose(self, queries: Sequence[Example]) -> list[list[Example]]:
        """`n` examples for each query, all of which can be opened.

        Raises:
            ValueError: the support set has fewer.
        """
        candidates = self.candidates(queries)
        chosen = [list(itertools.islice(c, self.n)) for c in candidates]
        self.replaced = {}
        while not self.text_only:
            self.eye.look(itertools.chain(*chosen))
            if all(self.eye.why_broken(e) is None for row in chosen for e in row):
                break
            for query, row, more in zip(queries, chosen, candidates):
                if lost := [e.key for e in row if self.eye.why_broken(e) is not None]:
                    self.replaced.setdefault(query.key, []).extend(lost)
                    row[:] = [e for e in row if self.eye.why_broken(e) is None]
                    row += itertools.islice(more, self.n - len(row))
        for query, row in zip(queries, chosen):
            if len(row) < self.n:
                raise ValueError(
                    f"{self.task.name}: {self.shots} shots asked for, but the support has {len(row)} examples "
                    f"for query {query.key} that are not itself and can be opened"
                )
        return [row[::-1] for row in chosen] if self.index is not None else chosen  # the most alike last


def as_query(task: Task, example: Example, shots: Sequence[Example], eye: Eye, text_only: bool = False) -> Query:
    """The case that `fewshot.few_shot_prompt` lays out. Without images, those of the shots need not be opened."""
    template = task.template
    shown = tuple((None if text_only else eye.features(shot), template.shown(shot)) for shot in shots)
    choices = None if example.choices is None else tuple(map(template.answered, example.choices))
    answer = template.answered(example.answers[0]) if example.answers else ""
    return Query(shown, eye.features(example), template.asked(example), answer, choices, template.between)


def answers(
    flamingo: LoadedFlamingo,
    task: Task,
    shots: str,
    trial: int = 0,
    protocol: Protocol = Protocol(),
    eye: Eye | None = None,
    index: Rices | None = None,
    start: int = 0,
    batch_size: int = 16,
) -> Iterator[list[dict]]:
    """Batch after batch, one record per query from number `start` on, plain enough for a line of JSON:

        {"key": "262148", "prediction": "down"}    {"key": "8", "scores": [-0.1, -2.3]}    {"key": "9", "broken": "no such …"}

    "replaced", where there is any, names support examples that were chosen for this query and could not be opened.
    """
    eye, queries_of_task = Eye(flamingo) if eye is None else eye, list(task.queries)
    chooser = Shots(task, shots, trial, protocol, eye, index)
    model, tokenizer, prepare = flamingo.model, flamingo.tokenizer, flamingo.prepare
    for at in range(start, len(queries_of_task), batch_size):
        part = whole = queries_of_task[at : at + batch_size]
        eye.look(part)
        records = {e.key: {"key": e.key, "broken": why} for e in part if (why := eye.why_broken(e)) is not None}
        part = [e for e in part if e.key not in records]
        chosen = chooser.choose(part) if part else []
        queries = [as_query(task, e, row, eye, chooser.text_only) for e, row in zip(part, chosen)]
        for close_ended in (False, True):
            which = [i for i, query in enumerate(queries) if (query.choices is not None) == close_ended]
            if not which:
                continue
            asked = [queries[i] for i in which]
            if not close_ended:
                prompts = [few_shot_prompt(query, shots) for query in asked]
                for i, text in zip(which, generated(model, tokenizer, prompts, prepare, task.max_new_tokens, protocol.beams)):
                    records[part[i].key] = {"key": part[i].key, "prediction": task.clean(text)}
                continue
            orders = orders_of(chooser.n, protocol.orders if protocol.ensemble else 1, protocol.seed)
            total = [[0.0] * len(query.choices) for query in asked]
            for order in orders:
                prompts = [few_shot_prompt(replace(q, support=tuple(q.support[i] for i in order)), shots) for q in asked]
                rows = choice_scores(model, tokenizer, prompts, [q.choices for q in asked], prepare, task.scoring)
                total = [[a + b for a, b in zip(sums, row)] for sums, row in zip(total, rows)]
            for i, sums in zip(which, total):
                records[part[i].key] = {"key": part[i].key, "scores": [s / len(orders) for s in sums]}
        for key, names in chooser.replaced.items():
            records[key]["replaced"] = names
        yield [records[e.key] for e in whole]


def outcomes_of(task: Task, records: Sequence[dict]) -> list[Outcome]:
    """What the metrics take: records with their examples, the broken ones left out."""
    pairs = [(example, record) for example, record in zip(task.queries, records) if "broken" not in record]
    return [
        Outcome(example, r["prediction"]) if "prediction" in r else
        Outcome(example, example.choices[r["scores"].index(max(r["scores"]))], tuple(r["scores"]))
        for example, r in pairs
    ]  # fmt: skip


def perfect(task: Task, outcomes: Sequence[Outcome]) -> float:
    """What the right answers would score: 100, but for CIDEr, where it depends on the references.

    The first reference of each example in the place of the prediction; so a score / perfect is a share in 0…1.
    """
    if task.metric not in ("cider", "bleu4"):
        return 100.0
    return METRICS[task.metric]([Outcome(o.example, o.example.answers[0]) for o in outcomes])


def mark(task: Task, records: Sequence[dict], seed: int = 0) -> dict:
    """Records → {"score", "interval", "share", "n", "broken", "replaced"}: the metric as it is published, its 95% interval by
    bootstrap over examples, the score as a share of what right answers would get, how many were asked; which queries could not
    be opened, and why; which support examples.

    Where there can be no score (references are hidden, an AUC of one class), "problem" says why.
    """
    outcomes = outcomes_of(task, records)
    result: dict = {"n": len(outcomes)}
    try:
        score = METRICS[task.metric](outcomes)
        low, high = interval(task.metric, outcomes, seed)
        share = score / (perfect(task, outcomes) or 1.0)
        result |= {"score": round(score, 2), "interval": [round(low, 2), round(high, 2)], "share": round(share, 4)}
    except ValueError as error:
        result["problem"] = str(error)
    broken = {r["key"]: r["broken"] for r in records if "broken" in r}
    return result | {"broken": broken, "replaced": sorted({key for r in records for key in r.get("replaced", ())})}


def evaluate(flamingo: LoadedFlamingo, task: Task, shots: str, trial: int = 0, protocol: Protocol = Protocol(), **how) -> dict:
    """All of it at once; `how` as in `answers`. The records are in the result too."""
    records = list(itertools.chain(*answers(flamingo, task, shots, trial, protocol, **how)))
    return mark(task, records, protocol.seed) | {"records": records}
