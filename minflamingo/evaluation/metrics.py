"""Metrics of the paper's benchmarks (§3, table of benchmarks), from outcomes to the number that people publish.

    METRICS["cider"](outcomes)       113.8          interval("cider", outcomes)        (109.2, 118.1)

    cider    CIDEr-D × 100                        COCO, Flickr30K, VATEX, YouCook2          caption_metrics.py
    bleu4    BLEU-4 × 100                                                                   caption_metrics.py
    vqa      VQA accuracy, percent                VQAv2, OK-VQA, VizWiz, TextVQA            vqa_accuracy.py
    top1     answers given to the letter, percent MSRVTTQA, toy tasks
    auc      area under the ROC curve, percent    HatefulMemes
    ndcg     normalised discounted cumulative gain, percent      VisDial

An `Outcome` is what the model said to one `Example`: an open-ended `prediction`, or the log-likelihood of each choice.

Every metric is a table of one row an example, and a total of its rows. Most totals are means; BLEU divides sums, the AUC ranks
everything. So one bootstrap serves all: draw the rows anew, with replacement, and take the total again.

Worked example, AUC: positives scored 0.9 and 0.4, negatives 0.4 and 0.1. Of the 4 pairs of a positive and a negative 3 are in
the right order and one is a tie, which counts half: AUC = 3.5 / 4 = 87.5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .caption_metrics import bleu4, bleu_counts, cider_scores
from .task import Example
from .vqa_accuracy import vqa_accuracy


@dataclass(frozen=True)
class Outcome:
    """What came of one example. `scores`: the log-likelihood of each of `example.choices`, when close-ended."""

    example: Example
    prediction: str = ""
    scores: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Metric:
    """rows: outcomes → one row an example, (n, k). total: rows → the number, published scale. mean: the total is the mean."""

    rows: Callable[[Sequence[Outcome]], np.ndarray]
    total: Callable[[np.ndarray], float] = lambda rows: 100 * float(rows.mean())
    mean: bool = True

    def __call__(self, outcomes: Sequence[Outcome]) -> float:
        """The metric of these outcomes.

        Raises:
            ValueError: no outcomes, or one lacks what the metric needs (references, scores …); names the example.
        """
        return self.total(_table(self, outcomes))


def _table(metric: Metric, outcomes: Sequence[Outcome]) -> np.ndarray:
    if not outcomes:
        raise ValueError("a metric needs at least one outcome")
    return metric.rows(outcomes)


def per_example(metric: str, outcomes: Sequence[Outcome]) -> list[float] | None:
    """Each example's value, of which the metric is the mean, on the same scale; None if it is no such mean (bleu4, auc).

    A caption's CIDEr depends on the set, by which the rareness of words is counted.
    """
    if not _named(metric).mean:
        return None
    return (100 * _table(METRICS[metric], outcomes)[:, 0]).tolist()


def interval(metric: str, outcomes: Sequence[Outcome], seed: int = 0, draws: int = 1000) -> tuple[float, float]:
    """95% interval by the percentile bootstrap over examples: the metric of as many examples, drawn with replacement.

    The rareness of words in CIDEr stays that of all examples. Draws without a metric (an AUC of one class) do not count.
    """
    chosen = _named(metric)
    rows, rng = _table(chosen, outcomes), np.random.default_rng(seed)
    totals = [chosen.total(rows[rng.integers(len(rows), size=len(rows))]) for _ in range(draws)]
    low, high = np.nanpercentile(totals, [2.5, 97.5])
    return float(low), float(high)


def _named(metric: str) -> Metric:
    if metric not in METRICS:
        raise ValueError(f"there is no metric {metric!r}; choose one of {', '.join(METRICS)}")
    return METRICS[metric]


# ------------------------------------------------------------------------------------------------------------- to rows


def _references(outcome: Outcome) -> tuple[str, ...]:
    if not outcome.example.answers:
        raise ValueError(f"example {outcome.example.key} has no references (a hidden test set?); write its submission instead")
    return outcome.example.answers


def _scores(outcome: Outcome) -> np.ndarray:
    """The log-likelihoods of the choices, checked."""
    example = outcome.example
    if example.choices is None or outcome.scores is None:
        raise ValueError(f"example {example.key}: a close-ended metric needs choices and their scores")
    if len(outcome.scores) != len(example.choices):
        raise ValueError(f"example {example.key}: {len(outcome.scores)} scores for {len(example.choices)} choices")
    scores = np.asarray(outcome.scores, dtype=float)
    if np.isnan(scores).any():
        raise ValueError(f"example {example.key}: a score is NaN")
    return scores


def _column(values: Sequence[float]) -> np.ndarray:
    return np.asarray(values, dtype=float)[:, None]


def _cider(outcomes: Sequence[Outcome]) -> np.ndarray:
    return _column(cider_scores([o.prediction for o in outcomes], [_references(o) for o in outcomes]))


def _bleu(outcomes: Sequence[Outcome]) -> np.ndarray:
    return bleu_counts([o.prediction for o in outcomes], [_references(o) for o in outcomes])


def _vqa(outcomes: Sequence[Outcome]) -> np.ndarray:
    return _column([vqa_accuracy(o.prediction, _references(o)) for o in outcomes])


def _top1(outcomes: Sequence[Outcome]) -> np.ndarray:
    """1 where the prediction is one of the references, but for spaces around it; close-ended, where the likeliest choice is."""

    def said(o: Outcome) -> str:
        return o.prediction if o.scores is None else o.example.choices[int(_scores(o).argmax())]

    return _column([said(o).strip() in {r.strip() for r in _references(o)} for o in outcomes])


def probability_of(choice: str, outcome: Outcome) -> float:
    """The softmax over the choices, at the one of that name."""
    odds = _log_odds(choice, outcome)
    return float(np.exp(-np.logaddexp(0.0, -odds)))


def _log_odds(choice: str, outcome: Outcome) -> float:
    scores = _scores(outcome)
    names = [c.strip().lower() for c in outcome.example.choices]
    if choice not in names or len(names) < 2:
        raise ValueError(f"example {outcome.example.key}: {choice!r} and another must be among its choices, found {names}")
    at = names.index(choice)
    return float(scores[at] - np.logaddexp.reduce(np.delete(scores, at)))


def _auc(outcomes: Sequence[Outcome]) -> np.ndarray:
    """Label and score. The log-odds are in the order of the softmax, and do not run together near 0 and 1."""
    rows = []
    for o in outcomes:
        truth = _references(o)[0].strip().lower()
        if truth not in ("yes", "no"):
            raise ValueError(f"example {o.example.key}: the AUC needs 'yes' or 'no' as its first answer, found {truth!r}")
        rows.append([truth == "yes", _log_odds("yes", o)])
    rows = np.asarray(rows, dtype=float)
    if len(set(rows[:, 0])) < 2:
        raise ValueError("the AUC needs examples of both classes, 'yes' and 'no'; here all are of one")
    return rows


def _area(rows: np.ndarray) -> float:
    """Share of pairs of a positive and a negative that are in order, ties half (Mann and Whitney's U). NaN for one class."""
    positive = rows[:, 0] == 1
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return float("nan")
    _, which, counts = np.unique(rows[:, 1], return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[which]  # from 1; equal scores share the mean of their ranks
    u = ranks[positive].sum() - n_positive * (n_positive + 1) / 2
    return 100 * float(u) / (n_positive * n_negative)


def _ndcg(outcomes: Sequence[Outcome]) -> np.ndarray:
    """VisDial's: over the first k candidates, k the number of relevant ones; of equal scores the earlier candidate is first.

        DCG = Σ_i gain of the i-th / log2(i + 1)        NDCG = DCG / DCG of the best order

    scikit-learn's ndcg_score(k=k) is the same number where no scores are equal. Nothing relevant at all: 0, as there.
    Source: visdialch/metrics.py of https://github.com/batra-mlp-lab/visdial-challenge-starter-pytorch
    """
    values = []
    for o in outcomes:
        scores, gains = _scores(o), o.example.gains
        if gains is None or len(gains) != len(scores):
            raise ValueError(f"example {o.example.key}: NDCG needs the relevance (gains) of each of its {len(scores)} choices")
        gains = np.asarray(gains, dtype=float)
        k = int((gains != 0).sum())
        discounts = 1 / np.log2(np.arange(k) + 2)
        best = np.sort(gains)[::-1][:k] @ discounts
        values.append(gains[np.argsort(-scores, kind="stable")[:k]] @ discounts / best if k else 0.0)
    return _column(values)


METRICS: dict[str, Metric] = {
    "cider": Metric(_cider),
    "bleu4": Metric(_bleu, lambda counts: 100 * bleu4(counts), mean=False),
    "vqa": Metric(_vqa),
    "top1": Metric(_top1),
    "auc": Metric(_auc, _area, mean=False),
    "ndcg": Metric(_ndcg),
}
