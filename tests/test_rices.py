"""RICES and the cache of features: shots whose frozen image features are most similar to the query's."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from conftest import LETTERS, close, preprocess, tiny_flamingo
from test_evaluation import PREPROCESS, example, logged

from minflamingo.evaluation.features import FeatureCache, fingerprint
from minflamingo.evaluation.rices import most_similar, pool_features, support_features
from minflamingo.evaluation.runner import Protocol, select_shots
from minflamingo.evaluation.task import Example, Task, Template
from minflamingo.pipeline import Pipeline


@pytest.fixture
def pipeline() -> Pipeline:
    return Pipeline(tiny_flamingo(), LETTERS, PREPROCESS)


def by_definition(pipeline, example: Example) -> torch.Tensor:
    """The mean over all patches of all frames, of length 1."""
    patches = torch.cat([pipeline.model.vision(frame[None])[0] for frame in preprocess(example.media())])
    return patches.mean(0) / patches.mean(0).norm()


def test_the_most_similar_row_is_first_and_of_equal_rows_the_earlier_one():
    """Cosines by hand: 0.6, 1, 0, 1."""
    support = torch.tensor([[0.6, 0.8], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert most_similar(torch.tensor([1.0, 0.0]), support) == [1, 3, 0, 2]


@torch.no_grad()
def test_shots_are_the_most_similar_examples_and_the_most_similar_one_is_last(pipeline):
    """The query itself is in the support, and one example is broken: neither is a shot."""
    support = [example(i, broken=i == 3) for i in range(12)]
    queries = [example(100, "test"), example(4)]
    task, cache = Task("t", support, queries, Template(""), "exact_match"), FeatureCache(pipeline)
    for query in queries:
        row, _ = select_shots(task, query, "3", 0, Protocol(rices=True), cache)
        others = [e for e in support if e.key not in (query.key, "train-3")]
        similarity = {e.key: float(by_definition(pipeline, query) @ by_definition(pipeline, e)) for e in others}
        assert [e.key for e in row] == sorted(similarity, key=similarity.get)[-3:]
        assert close(pool_features(cache.get(query)), by_definition(pipeline, query))
    broken = replace(task, support=[example(0, broken=True)])
    with pytest.raises(ValueError, match=r"t: RICES cannot open any of the 1 support examples \(train/0.png is missing\)"):
        support_features(cache, broken)


def test_each_support_is_encoded_once(pipeline):
    opened: list[str] = []
    examples, cache = [logged(example(i), opened) for i in range(4)], FeatureCache(pipeline)
    task = Task("t", examples[:3], [], Template(""), "exact_match")
    first = support_features(cache, task)
    assert support_features(cache, replace(task, queries=examples)) == first and opened == [e.key for e in examples[:3]]
    assert support_features(cache, replace(task, support=examples))[0] == examples and opened == [e.key for e in examples]


@torch.no_grad()
def test_each_image_is_encoded_once_and_the_least_recently_used_features_are_dropped(pipeline):
    opened: list[str] = []
    examples, cache = [logged(example(i), opened) for i in range(8)], FeatureCache(pipeline)
    for e in examples * 2:
        assert close(cache.get(e), pipeline.model.vision(preprocess(e.media())))
    assert Counter(opened) == dict.fromkeys((e.key for e in examples), 3)  # once by the cache, twice by this test
    small = FeatureCache(pipeline, memory=3 * cache.get(examples[0]).nbytes)
    for i in (0, 2, 0, 4, 6):  # images of one frame
        small.get(examples[i])
    assert list(small.features) == [examples[i].media for i in (0, 4, 6)]


def test_a_fingerprint_changes_with_the_weights():
    model = tiny_flamingo()
    before = fingerprint(model)
    assert before == fingerprint(tiny_flamingo()) and len(before) == 8
    with torch.no_grad():
        model.resampler.latents[0, 0] += 1e-3
    assert fingerprint(model) != before
