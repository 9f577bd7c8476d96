"""Metrics against the libraries of the [eval] extra, the official VQA evaluation's cases, and numbers worked out by hand."""

import math
import os
import shutil
import sys

import pytest

from minflamingo.evaluation import metrics
from minflamingo.evaluation.metrics import CONTRACTIONS, METRICS, Outcome, interval, vqa_accuracy
from minflamingo.evaluation.task import Example

YES_NO = ("yes", "no")
CAPTIONS = """A man with a red helmet on a small moped on a dirt road.
An orange striped tabby cat laying on top of a red vehicle's wheel.
Two men (one in a hard-hat) talk; a third doesn't listen.
A street sign that reads, "One Way"
A plate of food with rice, beans, & chicken.
a 1950's style diner w/ a jukebox
A couple of kids' bikes, parked side-by-side.
A U.S. Air Force jet, an F-16, at 3:25 p.m. on the runway
A pizza with 1/2 pepperoni and ½ cheese for $4.99
he'll be riding the 8-ft. wave, he can't stop
cook at 350°F for 10-12 minutes — don’t stir
A man in his late 20's/early 30's cannot eat a hot-dog""".splitlines()


def outcome(key: str = "7", prediction: str = "", answers=(), scores=None, choices=None) -> Outcome:
    return Outcome(Example(key, lambda: None, tuple(answers), {}, choices), prediction, scores)


def test_cider_by_hand_and_without_java(monkeypatch):
    """Each n-gram of two images with different words has the weight ln 2: three of four cosines are 1: CIDEr-D is 7.5 of 10."""
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setenv("PATH", "/nowhere")
    pair = [outcome("1", "a cat sat", ["A cat sat!"]), outcome("2", "x", ["two dogs run"])]
    assert METRICS["cider"](pair) == pytest.approx(100 * (7.5 + 0) / 2)


def test_cider_is_close_to_the_official_one_with_the_java_tokenizer():
    """Same words for plain captions; less than 1% difference in CIDEr."""
    tokenizer = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    if shutil.which("java") is None or not os.access(os.path.dirname(tokenizer.__file__), os.W_OK):
        pytest.skip("needs java, and write access to the folder of the package")
    official = tokenizer.PTBTokenizer()
    words = official.tokenize({i: [{"caption": c}] for i, c in enumerate(CAPTIONS)})
    theirs = [words[i][0].replace("-lrb-", "(").replace("-rrb-", ")") for i in range(len(CAPTIONS))]
    assert [metrics.caption_words(c) for c in CAPTIONS] == theirs
    shortened = [" ".join(caption.split()[: 1 + 3 * i]) for i, caption in enumerate(CAPTIONS)]
    outcomes = [outcome(str(i), text, [CAPTIONS[i], CAPTIONS[i - 1]]) for i, text in enumerate(shortened)]
    references = official.tokenize({o.example.key: [{"caption": r} for r in o.example.answers] for o in outcomes})
    predictions = official.tokenize({o.example.key: [{"caption": o.prediction}] for o in outcomes})
    from pycocoevalcap.cider.cider import Cider

    assert METRICS["cider"](outcomes) == pytest.approx(100 * Cider().compute_score(references, predictions)[0], rel=0.01)


def test_intervals_contain_the_score_and_shrink_with_more_examples():
    few, many = ([outcome(str(i), "abc"[i % 3], ["a"] * 3 + ["b"] * 2) for i in range(n)] for n in (60, 600))
    low, high = interval("vqa", few, seed=3)
    assert low < METRICS["vqa"](few) < high and interval("vqa", few, seed=3) == (low, high) != interval("vqa", few, seed=4)
    narrow_low, narrow_high = interval("vqa", many)
    assert narrow_high - narrow_low < 0.6 * (high - low)


# What vqaEval.py's processPunctuation and processDigitArticle make of an answer.
NORMALISED = {
    "A Dog": "dog", "the two cats": "2 cats", "none": "0", "ten": "10", "eleven": "eleven", "dont": "don't",
    "DONT know": "don't know", "couldnt've": "couldn't've", "it's": "it's", "on/off": "on off", "on/off, now": "on off now",
    "yes.": "yes", "2.5": "2.5", "3.": "3", "u.s.a.": "usa", "1,000": "1000", "1,000 km/h": "1000 kmh", "t-shirt": "t shirt",
    "red, white": "red white", "black & white": "black & white", "5:30": "5:30", "what?!": "what", "  an  apple ": "apple",
    "left-hand side (top)": "left hand side top", "$5": "$5", "shes": "shes", "some" "body'd": "some" "bodyd", "Im": "im",
    "hadnt've": "hadn't've", "hadn'tve": "hadn't've", "hadntve": "hadntve", "ow's'at": "'ow's'at", "'ow'sat": "'ow's'at",
    "shed": "shed", "well": "well", "its": "its",  # words of their own
}  # fmt: skip


@pytest.mark.parametrize("answer", NORMALISED)
def test_vqa_answers_are_normalised_as_in_the_official_evaluation(answer):
    """The official table of contractions has 120 entries. Two of them (let's, she's) map a word to itself."""
    assert metrics.normalise_answer(answer) == NORMALISED[answer] and len(CONTRACTIONS) == 118


@pytest.mark.parametrize("people, expected", [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)])
def test_vqa_accuracy_is_the_mean_over_leaving_one_person_out(people, expected):
    references = ["sunglasses"] * people + [f"other {i}" for i in range(10 - people)]
    by_hand = [min(1, (references[:i] + references[i + 1 :]).count("sunglasses") / 3) for i in range(10)]
    assert vqa_accuracy("Sunglasses", references) == pytest.approx(expected) == sum(by_hand) / 10


def test_vqa_accuracy_compares_raw_texts_where_all_people_agree():
    """The official evaluation normalises answers only if people's answers differ."""
    assert vqa_accuracy("Red", ["red"] * 10) == 0 and vqa_accuracy(" red\n", ["red"] * 10) == 1
    assert vqa_accuracy("Red", ["red"] * 9 + ["dark red"]) == 1
    both = [outcome("1", "Red", ["red"] * 10), outcome("2", "three", ["3"] * 3 + ["4"] * 7)]
    assert METRICS["vqa"](both) == pytest.approx((0 + 90) / 2)


OTHERS = [f"other {i}" for i in range(6)]


@pytest.mark.parametrize("metric, answer, people, expected", [
    ("textvqa", "Nokia", ["nokia"] * 10, 100), ("vqa", "Nokia", ["nokia"] * 10, 0), ("vizwiz", "Nokia.", ["nokia"] * 10, 100),
    ("textvqa", "nokia", [*["nokia"] * 3, "", *OTHERS], 90), ("textvqa", "Bob's", ["bob s", *["bob 's"] * 9], 100),
    ("vqa", "Coke", ["Coke!"] * 9 + ["tea"], 100), ("vizwiz", "Coke", ["Coke!"] * 9 + ["tea"], 0),
])  # fmt: skip
def test_each_benchmark_normalises_what_its_own_evaluation_does(metric, answer, people, expected):
    """TextVQA everything, always; VQAv2 everything, but nothing if all people agree; VizWiz only the model's answer."""
    assert METRICS[metric]([outcome("1", answer, people)]) == pytest.approx(expected)


def test_exact_match_ignores_only_surrounding_spaces():
    said = [(" green ", ["green"]), ("Green", ["green"]), ("b", ["a", "b"]), ("green tea", ["green"])]
    assert METRICS["exact_match"]([outcome(text, text, answers) for text, answers in said]) == 50


def test_accuracy_takes_the_choice_with_the_best_score_and_the_first_of_equal_ones():
    outcomes = [
        outcome("1", "", [" taxi"], (-3.0, -1.0), (" bus", " taxi")),
        outcome("2", "", [" taxi"], (-1.0, -1.0), (" bus", " taxi")),
        outcome("3", "", ["bus", "taxi"], (-1.0, -2.0, -3.0), ("taxi", "bus", "car")),  # two choices are right
    ]
    assert METRICS["accuracy"](outcomes) == pytest.approx(200 / 3)


def test_roc_auc_is_the_share_of_ordered_pairs():
    """Positives .9 and .4, negatives .4 and .1: three of four pairs are in order, one is a tie and counts half."""
    pytest.importorskip("sklearn")
    probabilities = {"yes": (0.9, 0.4), "no": (0.4, 0.1)}
    outcomes = [
        outcome(f"{label} {p}", "", [label], (math.log(1 - p), math.log(p)), ("No", " yes"))  # "yes" is found by its name
        for label, several in probabilities.items() for p in several
    ]  # fmt: skip
    assert METRICS["roc_auc"](outcomes) == pytest.approx(87.5)
    confident = [outcome(answer, "", [answer], (score, 0.0), YES_NO) for score, answer in ((900.0, "yes"), (800.0, "no"))]
    assert METRICS["roc_auc"](confident) == 100  # both probabilities round to 1


def test_the_interval_of_roc_auc_skips_draws_with_one_class():
    pytest.importorskip("sklearn")
    few = [outcome(str(i), "", [a], (float(i), 0.0), YES_NO) for i, a in enumerate(["no", "yes", "no", "yes"])]
    low, high = interval("roc_auc", few)
    assert METRICS["roc_auc"](few) == 75 and 0 <= low < 75 < high <= 100


REFUSED = {
    "no outcomes": ("vqa", [], "at least one outcome"),
    "hidden answer": ("exact_match", [outcome("9", "a cat")], "example 9 has no references"),
    "no scores": ("accuracy", [outcome("9", "yes", ["yes"], None, YES_NO)], "example 9: expected one score per choice"),
    "missing score": ("roc_auc", [outcome("9", "", ["yes"], (0.1,), YES_NO)], "example 9: expected one score per choice"),
    "NaN": ("accuracy", [outcome("9", "", ["a"], (0.1, float("nan")), YES_NO)], "example 9: expected .* no NaN"),
    "other choices": ("roc_auc", [outcome("9", "", ["yes"], (0.1, 0.2), ("1", "0"))], "the choices must be 'yes' and 'no'"),
    "one class": ("roc_auc", [outcome("9", "", ["yes"], (0.1, 0.2), YES_NO)], "examples of both classes"),
}


@pytest.mark.parametrize("metric, outcomes, message", REFUSED.values(), ids=REFUSED)
def test_an_outcome_without_what_the_metric_needs_is_named(metric, outcomes, message):
    with pytest.raises(ValueError, match=message):
        METRICS[metric](outcomes)


def test_a_missing_library_is_named_with_its_installation(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap.cider.cider", None)
    with pytest.raises(ImportError, match=r"needs pycocoevalcap: pip install 'minflamingo\[eval\]'"):
        METRICS["cider"]([outcome("1", "a", ["a"])])
