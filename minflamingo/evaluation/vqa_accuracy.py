"""VQA accuracy (paper §3: VQAv2, OK-VQA, VizWiz, TextVQA): an answer is right if three of ten people gave it.

Each question has ten answers of people. Averaged over the ten ways to leave one of them out:

    accuracy(answer) = mean over leave-one-out of   min(1, matches among the other nine / 3)

Worked example: 3 of 10 people said "sunglasses". Leaving out one of the three (3 ways) leaves 2 matches, else (7 ways) 3:
(3 · 2/3 + 7 · 1) / 10 = 0.9. Four people make 1.0, two 0.6, one 0.3.

Answers are compared after `normalise_answer`: lower case, no articles, number words as digits, apostrophes put into
contractions, punctuation taken out. As in the standard, this happens only where the people's answers differ: if all said the
same, it must be given to the letter.

    normalise_answer("The two cats, dont")     "2 cats don't"

The rule and its tables are those of the official evaluation, https://github.com/GT-Vision-Lab/VQA (vqaEval.py), peculiarities
included: a mark between two letters becomes a space, one beside a space disappears ("on/off, now" → "on off now"), and in an
answer with a number such as 1,000 all marks disappear ("1,000 km/h" → "1000 kmh").

VizWiz, TextVQA and OK-VQA have ten answers too and are counted in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

NUMBER_WORDS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
NUMBER_WORDS |= {"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}
ARTICLES = {"a", "an", "the"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'

# The official table maps each of these without one of its apostrophes to itself: hadnt've and hadn'tve to hadn't've, …
CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd
how'll how's I'd've I'm I've isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's they'd
they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's
where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've
you'd you'd've you'll you're you've
"""
CONTRACTIONS = {word[:i] + word[i + 1 :]: word for word in CONTRACTED.split() for i in range(len(word)) if word[i] == "'"}
CONTRACTIONS |= {"somebody'd": "somebodyd"}  # so it stands in the table

_PERIOD = re.compile(r"\.(?!\d)")  # but not the one in 2.5
_COMMA_IN_NUMBER = re.compile(r"\d,\d")


def normalise_answer(answer: str) -> str:
    """An answer as the official evaluation compares it."""
    bare = answer
    for mark in PUNCTUATION:
        beside_space = mark + " " in answer or " " + mark in answer
        bare = bare.replace(mark, "" if beside_space or _COMMA_IN_NUMBER.search(answer) else " ")
    bare = _PERIOD.sub("", bare, count=32)  # 32 at most: the standard passes re.UNICODE where a count is expected
    words = [NUMBER_WORDS.get(word, word) for word in bare.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """How right `answer` is, 0…1, by the answers of several people (ten, in all benchmarks).

    Raises:
        ValueError: there is no reference.
    """
    if not references:
        raise ValueError("VQA accuracy needs the answers that people gave; there are none")
    answer, given = _one_line(answer), [_one_line(r) for r in references]
    if len(set(given)) > 1:
        answer, given = normalise_answer(answer), [normalise_answer(r) for r in given]
    matches = [r == answer for r in given]
    return sum(min(1.0, (sum(matches) - left_out) / 3) for left_out in matches) / len(matches)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
