"""Evaluate a model on a task (paper section 3.1 and appendix).

    result = evaluate(pipeline, task, "8")      # {"score": 98.1, "interval": [96.2, 100.0], "n": 160, "broken": {}, ...}

For each query: select shots at random or by RICES, build the prompt, collect the answer. Then compute the task's metric.
**Random shots** depend only on the seed, the task, the trial and the query, not on the batch. So a run that resumes has the
same shots. The 8 shots of a query begin with its 4 shots.
**Broken files and long texts.** A query with a broken file, or with a prompt that is longer than the LM's context, is reported
and left out. A broken shot is replaced by the next candidate, and so is a shot whose text alone fills the context.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .. import Pipeline, __version__
from ..data.options import BATCH, BEAMS, SEED, check
from ..data.sample import tokenize_sample
from ..training.stage import Stage
from .features import FeatureCache, fingerprint
from .fewshot import Query, count_shots, few_shot_prompt, generate_answers, score_choices
from .metrics import METRICS, Outcome, interval
from .rices import most_similar, pool_features, support_features
from .task import Example, Task, task_fingerprint

N_ORDERS = 6  # of the shots, in prompt ensembling


@dataclass(frozen=True)
class Protocol:
    seed: int = 0
    rices: bool = False  # the most similar shots instead of random ones
    ensemble: bool = False  # average the scores of choices over orders of the shots
    beams: int = 3  # as in the paper; 1: greedy
    batch_size: int = 16

    def __post_init__(self):
        check({"seed": SEED, "beams": BEAMS, "batch_size": BATCH}, **vars(self))


def check_task(task: Task, *shots: str) -> None:
    """Raises ValueError for a name that cannot be that of a file, an unknown metric, or fewer support examples than shots."""
    if task.metric not in METRICS or Path(task.name).name != task.name:
        allowed = f"the name must be a plain file name, and the metric {task.metric!r} one of {', '.join(METRICS)}"
        raise ValueError(f"task {task.name!r}: {allowed}")
    if (most := max(map(count_shots, shots))) > (n := len(task.support)):
        raise ValueError(f"{task.name}: {most} shots need {most} support examples, but there are {n}")


def random_order(n: int, *words: object) -> Iterator[int]:
    """0 ... n - 1 in a random order that depends only on `words`. Drawn one by one, because n may be half a million."""
    rng, drawn = random.Random(" ".join(map(str, words))), set()
    while len(drawn) < n:
        i = rng.randrange(n)
        if i not in drawn:
            drawn.add(i)
            yield i


def select_shots(
    task: Task, query: Example, shots: str, trial: int, protocol: Protocol, features: FeatureCache
) -> tuple[list[Example], list[str]]:
    """The shots of a query in the order of the prompt, and the keys of broken examples that were replaced."""
    n, with_images, pipeline = count_shots(shots), shots != "0_text", features.pipeline
    rices = protocol.rices and with_images and n > 0
    if rices:
        support, pooled = support_features(features, task)
        order = most_similar(pool_features(features.get(query)), pooled)
    else:
        support, order = task.support, random_order(len(task.support), protocol.seed, task.name, trial, query.key)
    chosen, broken = [], []
    for i in order:  # the preferred examples first
        if len(chosen) == n:
            break
        if support[i].key != query.key:  # the query is never one of its shots
            usable = not with_images or features.get(support[i]) is not None
            n_tokens = len(pipeline.tokenizer.encode(task.template.shown(support[i])))
            usable = usable and pipeline.model.lm.remaining_context(n_tokens) > 0
            (chosen if usable else broken).append(support[i])
    if len(chosen) < n:
        counts = f"query {query.key} can use only {len(chosen)}; {len(broken)} are broken or too long"
        raise ValueError(f"{task.name}: {shots} shots need {n} support examples, but {counts}")
    # RICES prefers the most similar example. In the prompt it is last, next to the query.
    return (chosen[::-1] if rices else chosen), [example.key for example in broken]


def make_query(
    task: Task, example: Example, shots: Sequence[Example], features: FeatureCache, *, text_only: bool = False
) -> Query:
    """Apply the template. text_only: the images of the shots are not needed, so they are not opened."""
    t = task.template
    support = [(None if text_only else features.get(shot), t.shown(shot)) for shot in shots]
    answer = t.answered(example.answers[0]) if example.answers else ""  # test sets may hide it
    choices = None if example.choices is None else [t.answered(choice) for choice in example.choices]
    return Query(support, features.get(example), t.asked(example), answer, choices, t.between)


def too_long(pipeline: Pipeline, query: Query, shots: str, n_answer: int) -> str:
    """Why the LM has no room for the prompt and an answer of n_answer tokens. Empty: there is room."""
    n, lm = len(tokenize_sample(few_shot_prompt(query, shots), pipeline.tokenizer).ids), pipeline.model.lm
    if lm.remaining_context(n + n_answer - 1) >= 0:  # the last token of an answer is never an input
        return ""
    return f"too long: {n} tokens in the prompt and {n_answer} in the answer, but the LM's context is {lm.config.max_length}"


def answer_examples(
    task: Task, examples: Sequence[Example], shots: str, trial: int, protocol: Protocol, features: FeatureCache
) -> list[dict]:
    """A JSON-able record for each example: {"key": "8", "prediction": "yes", "scores": [-0.1, -2.3]}, scores if close-ended.

    A broken or too long example has {"key", "broken": error message}. "replaced", if any, are keys of such shots.
    """
    pipeline, records, asked, room = features.pipeline, [], [], 1  # asked: (record, example, query) without broken examples
    for example in examples:
        record = {"key": example.key}
        records.append(record)
        if features.get(example) is None:
            record["broken"] = features.broken[example.media]
            continue
        chosen, replaced = select_shots(task, example, shots, trial, protocol, features)
        if replaced:
            record["replaced"] = replaced
        query = make_query(task, example, chosen, features, text_only=shots == "0_text")
        longest = max((len(pipeline.tokenizer.encode(choice)) for choice in query.choices or ()), default=1)
        if problem := too_long(pipeline, query, shots, longest):
            record["broken"] = problem
            continue
        room = max(room, task.max_new_tokens if query.choices is None else longest)
        asked.append((record, example, query))
    # A batch is padded to its longest prompt. If this leaves too little room for an answer, the queries are asked one by one.
    one_by_one = any(too_long(pipeline, query, shots, room) for _, _, query in asked)
    for batch in [[a] for a in asked] if one_by_one else [asked] * bool(asked):
        queries = [query for _, _, query in batch]
        if queries[0].choices is None:
            how = {"beams": protocol.beams, "max_new_tokens": task.max_new_tokens}
            texts = generate_answers(pipeline.model, pipeline.tokenizer, queries, shots, **how)
            for (record, _, _), text in zip(batch, texts):
                record["prediction"] = task.clean(text)
            continue
        how = {"scoring": task.scoring, "n_orders": N_ORDERS if protocol.ensemble else 1, "seed": protocol.seed}
        rows = score_choices(pipeline.model, pipeline.tokenizer, queries, shots, **how).tolist()
        for (record, example, _), scores in zip(batch, rows):
            scores = scores[: len(example.choices)]
            record.update(prediction=example.choices[scores.index(max(scores))], scores=scores)
    return records


def score_records(task: Task, records: Sequence[dict], seed: int = 0) -> dict:
    """{"n", "score", "interval", "broken", "replaced"}: the published metric and its 95% bootstrap interval over examples.

    If there can be no score (hidden references, ROC AUC of one class), "problem" says why.
    """
    pairs = [(example, record) for example, record in zip(task.queries, records) if "broken" not in record]
    outcomes = [Outcome(example, record["prediction"], record.get("scores")) for example, record in pairs]
    broken = {record["key"]: record["broken"] for record in records if "broken" in record}
    replaced = sorted({key for record in records for key in record.get("replaced", ())})
    result: dict = {"n": len(outcomes), "broken": broken, "replaced": replaced}
    try:
        score, bounds = METRICS[task.metric](outcomes), interval(task.metric, outcomes, seed)
    except ValueError as error:
        return result | {"problem": str(error)}
    return result | {"score": round(score, 2), "interval": [round(bound, 2) for bound in bounds]}


def evaluate(
    pipeline: Pipeline, task: Task, shots: str, *, trial: int = 0, protocol: Protocol | None = None,
    features: FeatureCache | None = None, folder: str | Path | None = None,
) -> dict:  # fmt: skip
    """Answer all queries -> the result of `score_records`, and "records".

    Args:
        trial: another trial draws other random shots.
        features: a cache to share between calls with one pipeline.
        folder: for the answers so far: a later call with the same model, task and protocol resumes there.
    """
    check_task(task, shots)
    features, protocol = features or FeatureCache(pipeline), protocol or Protocol()
    records, queries = [], list(task.queries)
    starts = range(0, len(queries), protocol.batch_size)
    if folder is not None:
        settings = {
            "version": __version__, "model": fingerprint(pipeline.model), "image": repr(pipeline.preprocess),
            "task": task_fingerprint(task), "shots": shots, "trial": trial, **asdict(protocol), "batch_size": None,
        }  # fmt: skip
        stage = Stage(f"{task.name}-{shots}-{trial}", folder, len(queries), settings=settings, restart=True)
        records, starts = stage.rows, stage.steps(by=protocol.batch_size)
    for start in starts:
        records += answer_examples(task, queries[start : start + protocol.batch_size], shots, trial, protocol, features)
    return score_records(task, records, protocol.seed) | {"records": records}
