"""CIDEr-D and BLEU-4, as the COCO caption evaluation counts them (paper §3: COCO, Flickr30K, VATEX, YouCook2 are in CIDEr).

Both compare n-grams, n = 1…4. CIDEr (Vedantam et al. 2015) weighs each n-gram g of a caption c by how rare it is:

    w_g(c) = count_g(c) · ln(images / images whose references have g)
    CIDEr-D(c, refs) = 10 · mean over n and refs of exp(−(|c| − |r|)² / 2·6²) · Σ_g min(w_g(c), w_g(r)) · w_g(r) / ‖w(c)‖ ‖w(r)‖

The minimum and the Gaussian of the difference in length are the D: repeating a rare word, or saying nothing else, gains little.
"Images" are those of the evaluated set, so a caption's score depends on what else is evaluated. BLEU (Papineni et al. 2002):

    BLEU-4 = min(1, exp(1 − reference length / length)) · (p_1 p_2 p_3 p_4)^¼       p_n: share of n-grams found in a reference

of which the counts are summed over all captions before dividing; "reference length" is that of the reference closest in length.

Worked example: of "a cat sat" against "a cat sat" everything is found, but there is no 4-gram, so BLEU-4 is 0. If it is the
only image evaluated, each n-gram is in 1 of 1 images, its weight is ln 1 = 0, and CIDEr-D is 0: both are measures of sets.
Beside a second image with other words each weight is ln 2, the cosines for n = 1, 2, 3 are 1, and CIDEr-D is 10 · 3/4 = 7.5.

**Words.** The standard splits captions with Stanford's PTBTokenizer (Java), lower case, and drops punctuation. `tokenize` does
that in Python, and knows the same peculiarities: brackets stay, as "-lrb-" (the standard drops "-LRB-" after lowering the case,
so never), and so do "!!" and "?!".

    tokenize("A man's dog isn't here; it can't wait...")     a man 's dog is n't here it ca n't wait

Known to differ, all rare in captions: HTML entities but for four, other smileys than :) ;) :( :D :P, telephone numbers in
brackets, "US$5", "$1.50/lb", "M&Ms", "gonna's", version numbers, lists without spaces that have a hyphen ("a,b,c-d").
Source of the definitions: https://github.com/salaniz/pycocoevalcap (cider, bleu with option "closest", tokenizer).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

N = 4  # the longest n-gram
SIGMA = 6.0  # words: how much a caption may differ in length

# --------------------------------------------------------------------------------------------------------------- words

# Words that keep their period (tried out on Stanford's tokenizer). Some do with a capital only, some before a number only.
ABBREVIATIONS = """
mr mrs ms messrs dr drs mlle mme st ste ave rd blvd mt ft lt sgt gov pres prof rev sen rep gen capt col cpl maj adm cmdr hon
jr sr bros inc ltd corp co cos dept univ assn mfg plc pty etc vs al cf est ext tel jan feb mar apr jun jul aug sep sept oct
nov dec mon tue tues wed thu thurs fri ala ariz calif colo conn fla ga ind kan ky md mich minn mo mont neb nev okla penn tenn
va vt wis wyo esq ct sq bldg intl natl atty ph\\.d
"""
WITH_CAPITAL = "Ark Del Ill La Mass Miss Ore Pa Tex Wash"
BEFORE_NUMBER = "no nos op fig figs pp ca"

DROPPED = {'"', "''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"}
REPLACED = {"“": '"', "”": '"', "‘": "'", "’": "'", "–": " -- ", "—": " -- ", "…": " ... "}
REPLACED |= {"£": " # ", "€": " $ ", "¢": " cents "}
REPLACED |= {"¼": " 1/4 ", "½": " 1/2 ", "¾": " 3/4 ", "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"'}
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
SPLIT_AT = {"cannot": 3, "gonna": 3, "gotta": 3, "wanna": 3, "lemme": 3, "gimme": 3, "'tis": 2, "'twas": 2}


def _any(words: str) -> str:
    return "|".join(words.split())


_WORD = r"[^\W_]+(?:_[^\W_]+)*"
_NUMBER = r"(?:\d+(?:[.,:/]\d+)+|\.\d+|\d+)"
# In this order, the first that fits is taken: what is longer or more special stands before what is general.
TOKEN = re.compile(
    "|".join(
        [
            r"https?://[^\s]*[\w/]|www\.[^\s]*[\w/]|[\w.-]+@[\w-]+(?:\.[\w-]+)+",  # addresses
            r"</?\w[^<>\s]*>",  # tags
            r"[:;]-?(?:[()]|[DPp](?!\w))|-[lr][rsc]b-",  # smileys, and brackets as they come out
            rf"(?<!\w)(?i:{_any(ABBREVIATIONS)})\.(?!\w)|(?<!\w)(?:{_any(WITH_CAPITAL)})\.(?!\w)",
            rf"(?<!\w)(?i:{_any(BEFORE_NUMBER)})\.(?=\s*\d)",
            rf"(?<!\w)[^\W\d_]\.(?:[^\W\d_]\.)*(?:[^\W\d_](?!\w))?(?:-{_WORD})*(?!\w)",  # u.s. p.m. d.c. u.s.-based, plan b.
            r"(?<=\d)[ap]\.m\.|(?i:c\+\+|c\#)",  # 5:30p.m. after its number
            r"(?<!\w)[A-Z]+(?:&[A-Z]+)+(?!\w)",  # R&B
            r"'[nN]'|(?<!\w)'(?:em|cause|[ntNT](?!\w)|tis|twas|\d\ds?)(?!\w)|'(?:[nN])(?!\w)",  # rock 'n' roll, 'em, the '80s
            r"(?i:'s|'m|'d|'re|'ve|'ll|n't)(?!\w)",  # the second half of a contraction
            r"(?i:c'mon|somethin'|ol'|d'ye|y'(?=all(?!\w)))",  # these keep their apostrophe
            rf"(?<![\w)$])[-+]{_NUMBER}(?![\w])",  # −5
            rf"{_NUMBER}(?=[ap]\.?m\b)(?<=[:.]\d\d)",  # 3:00pm is 3:00 pm, while 5pm is one word
            # Numbers, and what begins with one: 24-hour, 1/2
            rf"(?:{_NUMBER})(?:[-/](?:{_NUMBER}|{_WORD}))*(?![\w])",
            # Words joined by - / or a single point; an apostrophe may stand after a first letter (O'Brien) or in ma'am
            rf"(?:[^\W\d_]'[^\W\d_]{{3,}}|(?i:[ldj]'[^\W\d_]{{2}}|ma'am|hawaii?'i)|{_WORD}?(?=(?i:n't)(?!\w))|{_WORD})"
            rf"(?:[-/](?:[^\W\d_]'[^\W\d_]{{3,}}|{_WORD})|(?<=[^\W\d_])\.(?=[^\W\d_]){_WORD})*",
            # Marks that come in rows are one token; and a # or @ with a name behind it
            r"\.\.\.|--+|[?!]+|''|``|_+|\*+|[#@](?=[^\W\d_])\w+",
            r"\S",
        ]
    )
)


def tokenize(caption: str) -> list[str]:
    """Words as CIDEr and BLEU count them: lower case, contractions split, punctuation dropped."""
    for sign, instead in REPLACED.items():
        caption = caption.replace(sign, instead)
    words: list[str] = []
    for token in TOKEN.findall(caption):
        token = token.lower()
        if token in SPLIT_AT:
            words += [token[: SPLIT_AT[token]], token[SPLIT_AT[token] :]]
        elif token not in DROPPED and not token.startswith("--"):
            words.append("".join(BRACKETS.get(letter, letter) for letter in token))
    return words


# ------------------------------------------------------------------------------------------------------------- n-grams


def ngrams(words: Sequence[str]) -> Counter[tuple[str, ...]]:
    """How often each run of 1…4 words occurs."""
    return Counter(tuple(words[i : i + n]) for n in range(1, N + 1) for i in range(len(words) - n + 1))


def cider_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """CIDEr-D of each caption against its references, in the set of all of them.

    Args:
        captions: one for each image. references: one or more for each image, of which how rare a word is is counted.
    Returns:
        (images,) from 0 to 10; their mean × 100 is what is published (113.8 for the paper's COCO at 32 shots).
    """
    refs = [[ngrams(tokenize(r)) for r in rs] for rs in references]
    seen_in = Counter(gram for image in refs for gram in set().union(*image))
    log_images = math.log(len(refs)) if refs else 0.0

    def weighted(counts: Counter) -> tuple[dict, list[float], int]:
        """Weights of the n-grams; the norm of the vector of each n; the number of words."""
        weights = {gram: count * (log_images - math.log(max(1, seen_in[gram]))) for gram, count in counts.items()}
        squares = [0.0] * N
        for gram, w in weights.items():
            squares[len(gram) - 1] += w * w
        return weights, [math.sqrt(s) for s in squares], sum(count for gram, count in counts.items() if len(gram) == 1)

    scores = []
    for caption, image in zip(captions, refs):
        own, own_norm, own_length = weighted(ngrams(tokenize(caption)))
        total = 0.0
        for ref, ref_norm, ref_length in map(weighted, image):
            dots = [0.0] * N
            for gram, w in own.items():
                if gram in ref:
                    dots[len(gram) - 1] += min(w, ref[gram]) * ref[gram]
            cosines = [dot / (a * b) if a * b else 0.0 for dot, a, b in zip(dots, own_norm, ref_norm)]
            total += sum(cosines) / N * math.exp(-((own_length - ref_length) ** 2) / (2 * SIGMA**2))
        scores.append(10 * total / len(image))
    return np.array(scores)


def bleu_counts(captions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """What BLEU sums up: (images, 10), n-grams found and n-grams there are for n = 1…4, the length, the closest reference's."""
    rows = []
    for caption, image in zip(captions, references):
        words, refs = tokenize(caption), [tokenize(r) for r in image]
        most = Counter()  # an n-gram is found no more often than in the reference that has it most often
        for ref in refs:
            most |= ngrams(ref)
        found = [0] * N
        for gram, count in ngrams(words).items():
            found[len(gram) - 1] += min(count, most[gram])
        closest = min((abs(len(ref) - len(words)), len(ref)) for ref in refs)[1]  # of two equally close ones the shorter
        rows.append([*found, *(max(0, len(words) - n) for n in range(N)), len(words), closest])
    return np.array(rows, dtype=float)


def bleu4(counts: np.ndarray) -> float:
    """Rows of `bleu_counts` → BLEU-4, 0…1. Nothing found gives 0, but for the standard's tiny numbers against dividing by 0."""
    total = counts.sum(0)
    precisions = (total[:N] + 1e-15) / (total[N : 2 * N] + 1e-9)
    ratio = (total[-2] + 1e-15) / (total[-1] + 1e-9)
    return float(precisions.prod() ** (1 / N) * math.exp(min(0.0, 1 - 1 / ratio)))
