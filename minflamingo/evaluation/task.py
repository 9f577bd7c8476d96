"""What a few-shot task is: examples, a template and a metric. For example, Template("{question} Answer:"):

    shown   <image>How many animals? Answer: 3<EOC>       an example of the support
    asked   <image>What is on the water? Answer:          the query
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Example:
    """One item of a benchmark. Its file is read when `media()` is called, which may raise OSError or ValueError."""

    key: str  # its name in the benchmark
    media: Callable[[], object]  # returns the image (PIL, array) or the video (list of frames)
    answers: tuple[str, ...]  # references. The first one is shown when the example is in the support
    fields: Mapping[str, object] = field(default_factory=dict)  # for the template, {"question": ...}
    choices: tuple[str, ...] | None = None  # close-ended: the possible answers


@dataclass(frozen=True)
class Template:
    """The text of an example. `prompt` may name its fields, `answer` names {answer}; `between` comes after each `<EOC>`."""

    prompt: str
    answer: str = " {answer}"
    between: str = ""

    def asked(self, example: Example) -> str:
        try:
            return self.prompt.format(**example.fields)
        except (LookupError, ValueError) as error:
            raise ValueError(f"{example.key}: the template {self.prompt!r} does not fit its fields: {error!r}") from None

    def answered(self, text: str) -> str:
        return self.answer.format(answer=text)

    def shown(self, example: Example) -> str:
        return self.asked(example) + self.answered(example.answers[0])


@dataclass(frozen=True)
class Task:
    """A benchmark. Shots are drawn from `support`; each of `queries` is asked once."""

    name: str
    support: Sequence[Example]
    queries: Sequence[Example]
    template: Template
    metric: str  # a name in `metrics.METRICS`
    clean: Callable[[str], str] = str.strip  # the benchmark's usual clean-up of a generated answer
    max_new_tokens: int = 20
    scoring: str = "mean"  # of choices: log-likelihood per token, or "sum"


def task_fingerprint(task: Task) -> str:
    """Changes with the texts, examples and options of a task. An interrupted evaluation resumes if it is equal."""
    options = (task.name, task.metric, task.max_new_tokens, task.scoring, task.template, len(task.support))
    examples = [(e.key, e.answers, sorted(e.fields.items()), e.choices) for e in (*task.support, *task.queries)]
    return f"{zlib.crc32(repr((options, examples)).encode()):08x}"
