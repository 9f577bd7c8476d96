"""The paper's benchmarks, read from disk in their official formats, and their results files written (§3).

    captions.py     COCO, Flickr30K, VATEX, YouCook2
    questions.py    VQAv2, OK-VQA, VizWiz, TextVQA, MSRVTTQA
    choices.py      HatefulMemes, VisDial
    loading.py      which files each needs, the prompts, `load_benchmark`
"""

from .loading import BENCHMARKS, OPENFLAMINGO, PAPER, TEMPLATES, files_expected, load_benchmark
from .published import PUBLISHED, Published
from .submission import write_submission

__all__ = [
    "BENCHMARKS", "OPENFLAMINGO", "PAPER", "PUBLISHED", "TEMPLATES", "Published", "files_expected", "load_benchmark",
    "write_submission",
]  # fmt: skip
