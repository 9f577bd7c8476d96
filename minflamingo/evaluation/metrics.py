"""Metrics of the paper's benchmarks (section 3): from the model's answers to the number that is published.

    METRICS["vqa"](outcomes)  ->  67.6              interval("vqa", outcomes)  ->  (65.6, 69.4)

    exact_match   open-ended: the prediction is one of the answers, percent          MSRVTTQA, toy tasks
    accuracy      close-ended: the choice with the best score is an answer, percent  toy tasks
    vqa           VQA accuracy, percent                                              VQAv2, OK-VQA, toy tasks
    vizwiz, textvqa   the same with the rules of the benchmark's own evaluation
    cider         CIDEr-D times 100; pycocoevalcap                                   COCO, Flickr30K, VATEX, YouCook2
    roc_auc       area under the ROC curve, percent; scikit-learn                    Hateful Memes

The two libraries are in the [eval] extra. The toy tasks do not need it.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..training.checkpoint import extra
from .task import Example


@dataclass(frozen=True)
class Outcome:
    """The model's answer to one example. `scores`: the log-likelihood of each of `example.choices` (close-ended tasks)."""

    example: Example
    prediction: str = ""
    scores: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Metric:
    """rows: outcomes -> one row per example. total: rows -> the published number, usually the mean in percent. unit: label."""

    unit: str
    rows: Callable[[Sequence[Outcome]], Sequence]
    total: Callable[[np.ndarray], float] = lambda rows: 100 * float(rows.mean())

    def __call__(self, outcomes: Sequence[Outcome]) -> float:
        """Raises ValueError if there are no outcomes, or if an outcome lacks references or scores."""
        check_outcomes(outcomes)
        return self.total(np.asarray(self.rows(outcomes)))


def interval(metric: str, outcomes: Sequence[Outcome], seed: int = 0, draws: int = 1000) -> tuple[float, float]:
    """95% interval by the percentile bootstrap: the metric of as many examples, drawn with replacement, `draws` times."""
    rows, total, rng = np.asarray(METRICS[metric].rows(outcomes)), METRICS[metric].total, np.random.default_rng(seed)
    totals = [total(rows[rng.integers(len(rows), size=len(rows))]) for _ in range(draws)]
    low, high = np.nanpercentile(totals, [2.5, 97.5])  # NaN: the ROC AUC of a draw with one class
    return float(low), float(high)


def check_outcomes(outcomes: Sequence[Outcome]) -> None:
    if not outcomes:
        raise ValueError("a metric needs at least one outcome")
    for o in outcomes:
        n, scores = len(o.example.choices or ()), o.scores or ()
        if not o.example.answers:
            raise ValueError(f"example {o.example.key} has no references (a hidden test set?)")
        if len(scores) != n or np.isnan(scores).any():
            raise ValueError(f"example {o.example.key}: expected one score per choice and no NaN; {n} choices, scores {scores}")


def exact_match(outcomes: Sequence[Outcome]) -> list[bool]:
    return [o.prediction.strip() in {r.strip() for r in o.example.answers} for o in outcomes]


def accuracy(outcomes: Sequence[Outcome]) -> list[bool]:
    return exact_match([Outcome(o.example, o.example.choices[np.argmax(o.scores)]) for o in outcomes])


# VQA accuracy. Rules and tables of the official evaluation, https://github.com/GT-Vision-Lab/VQA (vqaEval.py), errors included.

NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7"}
NUMBERS |= {"eight": "8", "nine": "9", "ten": "10"}
CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd
how'll how's I'd've I'm I've isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've SB'd've SB'll SB's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's they'd
they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's
where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've
you'd you'd've you'll you're you've
""".replace("SB", "some" "body")
# A contraction without one of its apostrophes gets it back: "dont" -> "don't", "couldnt've" -> "couldn't've".
CONTRACTIONS = {word[:i] + word[i + 1 :]: word for word in CONTRACTED.split() for i in range(len(word)) if word[i] == "'"}
CONTRACTIONS["some" "body'd"] = "some" "bodyd"


def normalise_answer(answer: str) -> str:
    """Lower case, no articles, digits for number words, no punctuation: "The two cats, dont" -> "2 cats don't"."""
    text = answer
    for mark in ';/[]"{}()=+\\_-><@`,?!':
        # A mark next to a space is deleted, and every mark in an answer with a number like 1,000. Others become a space.
        deleted = f"{mark} " in answer or f" {mark}" in answer or re.search(r"\d,\d", answer)
        text = text.replace(mark, "" if deleted else " ")
    text = re.sub(r"\.(?!\d)", "", text, count=32)
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ("a", "an", "the"))


def vqa_accuracy(answer: str, people: Sequence[str], rules: str = "vqa") -> float:
    """Mean over leaving out one person of min(1, matches among the others / 3). 3 of 10 people: (3 * 2/3 + 7) / 10 = 0.9.

    rules: of VQAv2's own code ("vqa"). "vizwiz" (https://vizwiz.org) normalises only the model's answer. "textvqa" (in MMF,
    TextVQAAccuracyEvaluator) always normalises everything, after a first step of its own: "1,000 Bob's" -> "1000 bob 's".
    """
    answer, *people = (re.sub(r"[\n\t]", " ", text).strip() for text in (answer, *people))
    if rules == "textvqa":
        answer, *people = (re.sub("[,?]", "", text.lower()).replace("'s", " 's").strip() for text in (answer, *people))
    if rules == "vizwiz":
        answer = normalise_answer(answer)
    elif rules == "textvqa" or len(set(people)) > 1:  # VQAv2: where all people agree, the official code compares the raw texts
        answer, *people = map(normalise_answer, (answer, *people))
    matches = [given == answer for given in people]
    return sum(min(1.0, (sum(matches) - left_out) / 3) for left_out in matches) / len(matches)


def vqa_scores(outcomes: Sequence[Outcome], rules: str) -> list[float]:
    return [vqa_accuracy(o.prediction, o.example.answers, rules) for o in outcomes]


# CIDEr. The scorer of pycocoevalcap is plain Python; its tokenizer needs Java. `caption_words` has that tokenizer's main rules.
# Rare cases differ, such as abbreviations ("St.") and "!!", but captions and references are treated alike.

WORD = re.compile(r"\.\.\.|(?:[a-z]\.){2,}|\d+(?:[.,:/]\d+)+|n't\b|'(?:s|m|d|re|ve|ll)\b|\w+?(?=n't\b)|\w+(?:[-/]\w+)*|\S")
PUNCTUATION = {*".?!,:;-'\"`", "..."}


def caption_words(caption: str) -> str:
    """Lower case, contractions split, punctuation dropped: "A man's dog isn't here." -> "a man 's dog is n't here"."""
    text = unicodedata.normalize("NFKC", caption.lower()).translate(str.maketrans("‘’“”–—⁄", "''\"\"--/"))
    return " ".join(word for word in WORD.findall(text.replace("cannot", "can not")) if word not in PUNCTUATION)


def cider(outcomes: Sequence[Outcome]) -> np.ndarray:
    """CIDEr-D of each caption. It weights n-grams by their rarity in all references of the evaluated set."""
    scorer = extra("pycocoevalcap.cider.cider", "eval").Cider()
    answers = {i: [caption_words(r) for r in o.example.answers] for i, o in enumerate(outcomes)}
    return scorer.compute_score(answers, {i: [caption_words(o.prediction)] for i, o in enumerate(outcomes)})[1]


def labels_and_odds(outcomes: Sequence[Outcome]) -> list[tuple[bool, float]]:
    """Label and log-odds of "yes" against "no". The odds rank as the probability does, but do not saturate at 0 and 1."""
    rows = []
    for o in outcomes:
        scores = dict(zip((c.strip().lower() for c in o.example.choices or ()), o.scores or ()))
        if set(scores) != {"yes", "no"}:
            raise ValueError(f"example {o.example.key}: the choices must be 'yes' and 'no', found {sorted(scores)}")
        rows.append((o.example.answers[0].strip().lower() == "yes", scores["yes"] - scores["no"]))
    if len({label for label, _ in rows}) < 2:
        raise ValueError("ROC AUC needs examples of both classes, 'yes' and 'no'; all examples are of one class")
    return rows


def roc_auc(rows: np.ndarray) -> float:
    labels, odds = rows.T
    return 100 * extra("sklearn.metrics", "eval").roc_auc_score(labels, odds) if len(set(labels)) == 2 else np.nan


METRICS: dict[str, Metric] = {
    "exact_match": Metric("exact match (%)", exact_match),
    "accuracy": Metric("accuracy (%)", accuracy),
    **{name: Metric("VQA accuracy (%)", partial(vqa_scores, rules=name)) for name in ("vqa", "vizwiz", "textvqa")},
    "cider": Metric("CIDEr", cider),
    "roc_auc": Metric("ROC AUC (%)", labels_and_odds, roc_auc),
}
