"""Metrics against the packages that others publish with, and against numbers worked out by hand."""

from __future__ import annotations

import math
import os
import random
import shutil

import numpy as np
import pytest

from minflamingo.evaluation.caption_metrics import bleu4, bleu_counts, cider_scores, tokenize
from minflamingo.evaluation.metrics import METRICS, Outcome, interval, per_example, probability_of
from minflamingo.evaluation.task import Example
from minflamingo.evaluation.vqa_accuracy import CONTRACTIONS, normalise_answer, vqa_accuracy

CAPTIONS = """A man with a red helmet on a small moped on a dirt road.
An orange striped tabby cat laying on top of a red vehicle's wheel.
A kitchen with cabinets, a stove, microwave and refrigerator.
Two men (one in a hard-hat) talk; a third doesn't listen.
A No. 5 bus on St. Mary's Rd. at 5:30pm.
A street sign that reads, "One Way"
A giraffe is eating it's food in the zoo.
A plate of food with rice, beans, & chicken.
A Wii remote in someone's hand - the other hand's free.
a 1950's style diner w/ a jukebox
A blue-and-white striped t-shirt hangs on the line
A couple of kids' bikes, parked side-by-side.
The clock reads 3:25 p.m. on a cloudy day
A U.S. Air Force jet, an F-16, on the runway
Three zebras ,two giraffes and an ostrich .
this is a photo of a... dog?
There isn't anyone on the bench!!
A pizza with 1/2 pepperoni and ½ cheese
A baseball player (#24) swings at a pitch.
A sandwich for $4.99 at Joe's Deli, 20% off
he'll be riding the 8-ft. wave, he can't stop
A tv/vcr combo on an old stand
A Chicago White Sox vs. Red Sox game, rock 'n' roll
some kind of dessert(cake) on a plate,it's cold
add 1/2 tsp. of salt, 1 tbsp. of oil and 2 cups of flour to the bowl
cook at 350°F for 10-12 minutes — don’t stir
A dog, a cat and a mouse.Two of them asleep
A man in his late 20's/early 30's cannot eat a hot-dog
a man wearing a shirt that says ' i love pizza '
A café in São Paulo, etc. with R&B music… wanna dance?!
A man wearing a "London, U.K." shirt @ the beach -- he's gonna surf""".splitlines()


YES_NO = ("yes", "no")


def outcome(key: str = "7", said: str = "", answers=(), scores=None, choices=None, gains=None) -> Outcome:
    return Outcome(Example(key, lambda: None, tuple(answers), {}, choices, gains), said, scores)


def captioned(seed: int = 0, n: int = 60) -> list[Outcome]:
    """Predictions and one to five references each, made by shuffling words of real-looking captions about."""
    rng = random.Random(seed)

    def mutated(caption: str) -> str:
        words = caption.split()
        for _ in range(rng.randint(0, 3)):
            words[rng.randrange(len(words))] = rng.choice(rng.choice(CAPTIONS).split())
        return " ".join(words[: rng.randint(1, len(words))])

    made = []
    for i in range(n):
        caption = CAPTIONS[i % len(CAPTIONS)]
        said = ["", "dog", caption][i // 20 % 3] if i % 20 == 7 else mutated(caption)
        made.append(outcome(str(i), said, [caption, *(mutated(caption) for _ in range(rng.randint(0, 4)))]))
    return made


# --------------------------------------------------------------------------------------------------------------- words

WORDS = {
    "A man's dog isn't here; it's \"big\", he said.": "a man 's dog is n't here it 's big he said",
    "They can't wait... won't cannot gonna": "they ca n't wait wo n't can not gon na",
    "A black-and-white t-shirt, 24/7 (new)": "a black-and-white t-shirt 24/7 -lrb- new -rrb-",
    "$5.50 at 5:30pm, 50% off #1 & more!!": "$ 5.50 at 5:30 pm 50 % off # 1 & more !!",
    "Mr. Smith of St. Mary's Ave. in the U.S. No. 5": "mr. smith of st. mary 's ave. in the u.s. no. 5",
    "“curly” it’s — ½ … café": "curly it 's 1/2 café",
    "the dogs' toys, O'Brien's 'sign'.": "the dogs toys o'brien 's sign",
    "": "",
    " \n?": "",
}


@pytest.mark.parametrize("caption", WORDS)
def test_captions_are_cut_into_the_words_of_the_penn_treebank(caption):
    """What Stanford's tokenizer makes of them, punctuation dropped as pycocoevalcap does (brackets are not, there)."""
    assert " ".join(tokenize(caption)) == WORDS[caption]


def test_words_are_those_of_stanfords_own_tokenizer():
    """The Java program that comes with pycocoevalcap, on real-looking captions; needs `java`."""
    oracle = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    if shutil.which("java") is None or not os.access(os.path.dirname(oracle.__file__), os.W_OK):
        pytest.skip("needs java, and to write beside the package, as it does")
    captions = CAPTIONS + [c for c in WORDS if c.strip()]
    expected = oracle.PTBTokenizer().tokenize({i: [{"caption": c}] for i, c in enumerate(captions)})
    assert [" ".join(tokenize(c)) for c in captions] == [expected[i][0] for i in range(len(captions))]


# ------------------------------------------------------------------------------------------------------ CIDEr and BLEU


def as_their_input(outcomes: list[Outcome]) -> tuple[dict, dict]:
    references = {o.example.key: [" ".join(tokenize(r)) for r in o.example.answers] for o in outcomes}
    return references, {o.example.key: [" ".join(tokenize(o.prediction))] for o in outcomes}


@pytest.mark.parametrize("seed", [0, 1])
def test_cider_is_that_of_pycocoevalcap(seed):
    """CIDEr-D of each caption and of all, ×100; empty captions and single words among them."""
    oracle = pytest.importorskip("pycocoevalcap.cider.cider").Cider()
    outcomes = captioned(seed)
    mean, each = oracle.compute_score(*as_their_input(outcomes))
    assert METRICS["cider"](outcomes) == pytest.approx(100 * mean, abs=1e-6)
    assert per_example("cider", outcomes) == pytest.approx(100 * each, abs=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_bleu_is_that_of_pycocoevalcap(seed, capsys):
    """BLEU-4 of all captions, and of each one alone (option "closest")."""
    oracle = pytest.importorskip("pycocoevalcap.bleu.bleu").Bleu(4)
    outcomes = captioned(seed)
    total, each = oracle.compute_score(*as_their_input(outcomes), verbose=0)
    assert METRICS["bleu4"](outcomes) == pytest.approx(100 * total[3], abs=1e-6)
    counts = bleu_counts([o.prediction for o in outcomes], [o.example.answers for o in outcomes])
    assert [bleu4(row[None]) for row in counts] == pytest.approx(each[3], abs=1e-9)


def test_cider_by_hand():
    """Beside an image of other words each n-gram weighs ln 2: three cosines of four are 1. Alone, nothing weighs anything."""
    assert cider_scores(["a cat sat", "x"], [["a cat sat"], ["two dogs run"]]) == pytest.approx([7.5, 0])
    assert cider_scores(["a cat sat"], [["a cat sat"]]) == pytest.approx([0])
    # One word too many, "now", weighs ln 2 as it is in no image: cosines √3/2, √2/√3 …; lengths differ by one pair of words
    cosines = [3 / math.sqrt(3 * 4), 2 / math.sqrt(2 * 3), 1 / math.sqrt(1 * 2), 0]
    expected = 10 * sum(cosines) / 4 * math.exp(-1 / 72)
    assert cider_scores(["a cat sat now", "x"], [["a cat sat"], ["two dogs run"]])[0] == pytest.approx(expected)


def test_repeating_a_rare_word_gains_nothing_in_cider():
    """The D of CIDEr-D: counts are clipped at the reference's, and the length is minded."""
    refs = [["a flamingo in the lake"], ["a dog"], ["a cat"]]
    once, often = (cider_scores([said, "", ""], refs)[0] for said in ("a flamingo", "flamingo " * 9))
    assert often < once


def test_bleu_by_hand():
    """Found are 6 of 6, 4 of 5, 1 of 4, 0 of 3 n-grams, some in one reference, some in the other."""
    counts = bleu_counts(["the cat sat on the mat"], [["the cat is on the mat", "a cat sat"]])
    assert counts.tolist() == [[6, 4, 1, 0, 6, 5, 4, 3, 6, 6]]
    short = bleu_counts(["the cat sat on"], [["the cat sat on the mat"]])
    assert bleu4(short) == pytest.approx(math.exp(1 - 6 / 4), abs=1e-6)  # all is found: only brevity is punished
    long = bleu_counts(["the cat sat on the mat now"], [["the cat sat on the mat"]])
    assert bleu4(long) == pytest.approx((6 / 7 * 5 / 6 * 4 / 5 * 3 / 4) ** 0.25, abs=1e-6)


def test_intervals_of_cider_and_bleu_hold_their_value():
    """Bootstrap over examples: around the value, the same for the same seed, narrower with more examples."""
    few, many = captioned(0, 60), captioned(0, 600)
    for metric in ("cider", "bleu4"):
        low, high = interval(metric, few, seed=3)
        assert low < METRICS[metric](few) < high and interval(metric, few, seed=3) == (low, high)
        assert interval(metric, few, seed=4) != (low, high)
        narrow = interval(metric, many)
        assert narrow[1] - narrow[0] < 0.6 * (high - low)


# ---------------------------------------------------------------------------------------------------------------- VQA

# The official evaluation's own cases: what vqaEval.py's processPunctuation and processDigitArticle make of an answer.
NORMALISED = {
    "A Dog": "dog",
    "the two cats": "2 cats",
    "none": "0",
    "ten": "10",
    "eleven": "eleven",
    "dont": "don't",
    "DONT know": "don't know",
    "couldnt've": "couldn't've",
    "it's": "it's",
    "on/off": "on off",
    "on/off, now": "on off now",
    "yes.": "yes",
    "2.5": "2.5",
    "3.": "3",
    "u.s.a.": "usa",
    "1,000": "1000",
    "1,000 km/h": "1000 kmh",
    "red, white": "red white",
    "t-shirt": "t shirt",
    "black & white": "black & white",
    "5:30": "5:30",
    "what?!": "what",
    "left-hand side (top)": "left hand side top",
    "  an  apple ": "apple",
    "$5": "$5",
    "shes": "shes",
    "somebody'd": "somebodyd",
    "Im": "im",
}


@pytest.mark.parametrize("answer", NORMALISED)
def test_answers_are_compared_as_the_official_evaluation_does(answer):
    """Articles, number words, contractions, punctuation, periods, and its peculiarities."""
    assert normalise_answer(answer) == NORMALISED[answer]


def test_the_table_of_contractions_is_the_official_one():
    """120 entries there, of which two (let's, she's) map a word to itself."""
    assert len(CONTRACTIONS) == 118
    assert CONTRACTIONS["hadnt've"] == CONTRACTIONS["hadn'tve"] == "hadn't've" and "hadntve" not in CONTRACTIONS
    assert CONTRACTIONS["'ows'at"] == CONTRACTIONS["ow's'at"] == CONTRACTIONS["'ow'sat"] == "'ow's'at"
    assert "shed" not in CONTRACTIONS and "well" not in CONTRACTIONS and "its" not in CONTRACTIONS  # words of their own


@pytest.mark.parametrize("people, expected", [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_an_answer_is_right_if_three_people_gave_it(people, expected):
    """Over the ten ways to leave one of ten out, min(1, matches / 3) is averaged."""
    references = ["sunglasses"] * people + [f"other {i}" for i in range(10 - people)]
    assert vqa_accuracy("Sunglasses" if people < 10 else "sunglasses", references) == pytest.approx(expected)
    by_hand = [min(1, (references[:i] + references[i + 1 :]).count("sunglasses") / 3) for i in range(10)]
    assert vqa_accuracy("sunglasses", references) == pytest.approx(sum(by_hand) / 10)


def test_where_all_people_agree_the_answer_must_be_theirs_to_the_letter():
    """The official evaluation normalises only where answers differ."""
    assert vqa_accuracy("Red", ["red"] * 10) == 0 and vqa_accuracy(" red\n", ["red"] * 10) == 1
    assert vqa_accuracy("Red", ["red"] * 9 + ["dark red"]) == 1


def test_vqa_accuracy_serves_all_four_benchmarks():
    """VQAv2, OK-VQA, VizWiz, TextVQA: ten answers each, in percent, with a value for each question."""
    outcomes = [
        outcome("1", "unanswerable", ["unanswerable"] * 6 + ["unsuitable"] * 4),  # VizWiz
        outcome("2", "race", ["race"] * 2 + ["fly"] * 8),  # OK-VQA
        outcome("3", "nous les gosses", ["nous les gosses"] * 9 + ["gosses"]),  # TextVQA
        outcome("4", "three", ["3"] * 3 + ["4"] * 7),  # VQAv2
    ]
    assert per_example("vqa", outcomes) == pytest.approx([100, 60, 100, 90])
    assert METRICS["vqa"](outcomes) == pytest.approx(87.5)


# -------------------------------------------------------------------------------------------------- top-1, AUC and NDCG


def test_top1_is_right_to_the_letter_and_takes_the_likeliest_choice():
    """Spaces around do not count; close-ended, the scores speak, not the text."""
    outcomes = [
        outcome("1", " green ", ["green"]),
        outcome("2", "Green", ["green"]),
        outcome("3", "b", ["a", "b"]),
        outcome("4", "", [" taxi"], (-3.0, -1.0), (" bus", " taxi")),
        outcome("5", " taxi", [" taxi"], (-1.0, -1.0), (" bus", " taxi")),  # of equal ones the first
    ]
    assert per_example("top1", outcomes) == [100, 0, 100, 100, 0] and METRICS["top1"](outcomes) == 60


def memes(n: int, seed: int, grid: float) -> list[Outcome]:
    """Yes and no with scores on a grid, so that many are equal."""
    rng = np.random.default_rng(seed)
    scores = np.round(rng.normal(size=(n, 2)) / grid) * grid
    labels = (scores[:, 0] - scores[:, 1] + rng.normal(size=n) > 0).tolist()
    return [outcome(str(i), "", ["yes" if y else "no"], tuple(s), YES_NO) for i, (s, y) in enumerate(zip(scores, labels))]


@pytest.mark.parametrize("grid", [1e-9, 0.5, 4.0])
def test_auc_is_that_of_scikit_learn(grid):
    """The score is the softmax over choices of "yes"; equal scores count half."""
    oracle = pytest.importorskip("sklearn.metrics").roc_auc_score
    outcomes = memes(300, 1, grid)
    scores = [probability_of("yes", o) for o in outcomes]
    assert METRICS["auc"](outcomes) == pytest.approx(100 * oracle([o.example.answers[0] == "yes" for o in outcomes], scores))


def test_auc_by_hand():
    """Of the four pairs three are in order and one is a tie: 3.5 / 4. Which choice is "yes" is found by its name."""
    scores = {"yes": (0.9, 0.4), "no": (0.4, 0.1)}
    outcomes = [outcome(f"{a}{p}", "", [a], (math.log(1 - p), math.log(p)), ("No", " yes")) for a in scores for p in scores[a]]
    assert METRICS["auc"](outcomes) == pytest.approx(87.5)
    assert probability_of("yes", outcomes[0]) == pytest.approx(0.9)
    assert per_example("auc", outcomes) is None
    sure = [outcome(str(s), "", [a], (s, 0.0), ("yes", "no")) for s, a in ((900.0, "yes"), (800.0, "no"))]
    assert METRICS["auc"](sure) == 100  # both probabilities round to 1; their order is still known


def test_the_interval_of_an_auc_needs_both_classes_in_a_draw():
    """Draws of one class have no AUC and do not count."""
    few = [outcome(str(i), "", [a], (float(i), 0.0), YES_NO) for i, a in enumerate(["no", "yes", "no", "yes"])]
    low, high = interval("auc", few)
    assert METRICS["auc"](few) == 75 and 0 <= low < 75 < high <= 100


def test_ndcg_by_hand():
    """VisDial: k = 2 of 4 candidates are relevant. Ours come 1st and 4th, of which the 4th does not count."""
    scored = outcome("1/3", "", ["a"], (-1.0, -5.0, -2.0, -3.0), tuple("abcd"), (0.5, 1.0, 0.0, 0.0))
    best = 1.0 + 0.5 / math.log2(3)
    assert METRICS["ndcg"]([scored]) == pytest.approx(100 * 0.5 / best)
    perfect = outcome("2/3", "", ["a"], (-2.0, -1.0, -7.0, -8.0), tuple("abcd"), (0.5, 1.0, 0.0, 0.0))
    assert per_example("ndcg", [scored, perfect]) == pytest.approx([100 * 0.5 / best, 100])
    tied = outcome("4/1", "", ["a"], (0.0, 0.0, 0.0), tuple("abc"), (0.0, 0.0, 1.0))
    assert METRICS["ndcg"]([tied]) == 0  # of equal scores the earlier candidate is first
    assert METRICS["ndcg"]([outcome("3/1", "", ["a"], (0.0, 1.0), ("a", "b"), (0.0, 0.0))]) == 0


def test_ndcg_is_that_of_scikit_learn_where_no_scores_are_equal():
    """A hundred candidates as in VisDial; its k is the number of relevant ones."""
    oracle = pytest.importorskip("sklearn.metrics").ndcg_score
    rng = np.random.default_rng(0)
    for i in range(30):
        gains = np.where(rng.random(100) < 0.1, rng.choice([0.2, 0.4, 0.6, 1.0], 100), 0.0)
        gains[int(rng.integers(100))] = 1.0
        scores = rng.normal(size=100)
        ours = METRICS["ndcg"]([outcome(str(i), "", ["x"], tuple(scores), ("x",) * 100, tuple(gains))])
        assert ours == pytest.approx(100 * oracle([gains], [scores], k=int((gains != 0).sum())), abs=1e-6)


# ----------------------------------------------------------------------------------------------------------- bad input

REFUSED = {
    "no outcomes": ("vqa", [], "at least one outcome"),
    "a hidden answer": ("cider", [outcome("9", "a cat")], "example 9 has no references"),
    "no scores": ("auc", [outcome("9", "yes", ["yes"], None, YES_NO)], "example 9: .* needs choices and their scores"),
    "a score too few": ("auc", [outcome("9", "", ["yes"], (0.1,), YES_NO)], "example 9: 1 scores for 2 choices"),
    "a NaN": ("ndcg", [outcome("9", "", ["a"], (0.1, float("nan")), YES_NO, (1.0, 0.0))], "example 9: a score is NaN"),
    "no gains": ("ndcg", [outcome("9", "", ["a"], (0.1, 0.2), YES_NO)], "example 9: NDCG needs the relevance"),
    "no yes": ("auc", [outcome("9", "", ["yes"], (0.1, 0.2), ("1", "0"))], "example 9: 'yes' and another must be among"),
    "another label": ("auc", [outcome("9", "", ["hateful"], (0.1, 0.2), YES_NO)], "'yes' or 'no' as its first answer"),
    "one class": ("auc", [outcome("9", "", ["yes"], (0.1, 0.2), YES_NO)], "examples of both classes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_outcomes_that_lack_something_are_named(case):
    """Which example, what is missing."""
    metric, outcomes, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        METRICS[metric](outcomes)


def test_a_metric_that_is_not_there_is_named():
    """With those that are."""
    for ask in (per_example, interval):
        with pytest.raises(ValueError, match="no metric 'meteor'; choose one of cider, bleu4, vqa, top1, auc, ndcg"):
            ask("meteor", [outcome()])
    with pytest.raises(ValueError, match="there are none"):
        vqa_accuracy("x", [])
