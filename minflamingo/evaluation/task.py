"""What a few-shot task is: examples, a template, a metric. Nothing else; every benchmark and every toy task is one of these.

    Template("Question: {question} Answer:", " {answer}")

    shown     <image>Question: What's the cat wearing? Answer: sunglasses<EOC>
    asked     <image>Question: What is on the water? Answer:

Wordings are in `benchmarks/loading.py`: the paper's processed prompts, to the letter (§3, appendix), and OpenFlamingo's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Example:
    """One item of a benchmark.

    key: its name in the benchmark, as the predictions file wants it.
    media: makes the image (PIL, array), the video (list of frames) or the frozen eye's features (tensor) of this item; called
        when the item is needed, so that a benchmark on disk is read lazily. It may raise OSError or ValueError.
    fields: what the template's prompt names, such as {"question": …}; and the benchmark's own ids, in their own types.
    answers: references. The first is shown when this is a support example.
    choices: close-ended, the answers to choose from; None: open-ended.
    gains: with choices, how relevant each is (VisDial's NDCG).
    """

    key: str
    media: Callable[[], object]
    answers: tuple[str, ...]
    fields: Mapping[str, object] = field(default_factory=dict)
    choices: tuple[str, ...] | None = None
    gains: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Template:
    """How an example reads. `prompt` may name its fields, `answer` names {answer}; `between` stands after each `<EOC>`."""

    prompt: str
    answer: str = " {answer}"
    between: str = ""

    def asked(self, example: Example) -> str:
        return self.prompt.format(**example.fields)

    def answered(self, text: str) -> str:
        """How an answer stands behind the prompt."""
        return self.answer.format(answer=text)

    def shown(self, example: Example) -> str:
        return self.asked(example) + self.answered(example.answers[0])


@dataclass(frozen=True)
class Task:
    """A benchmark.

    support: what shots are drawn from. queries: what is asked, each example once.
    metric: a name in `metrics.METRICS`.
    clean: the benchmark's usual clean-up of a generated answer, before the metric sees it.
    scoring: how the log-likelihoods of choices compare: "mean" per token or "sum".
    problems: what could not be read when the task was loaded, and was passed over.
    """

    name: str
    support: Sequence[Example]
    queries: Sequence[Example]
    template: Template
    metric: str
    clean: Callable[[str], str] = str.strip
    max_new_tokens: int = 20
    scoring: str = "mean"
    problems: tuple[str, ...] = ()
