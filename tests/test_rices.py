"""RICES and the cache of features: shots whose frozen image features are most similar to the query's."""

from dataclasses import replace

import pytest
import torch
from conftest import LETTERS, close, image, preprocess, random, tiny_flamingo
from test_evaluation import PREPROCESS, example
from torch.nn.functional import normalize

from minflamingo.evaluation.features import FeatureCache, fingerprint
from minflamingo.evaluation.rices import most_similar, pool_features, support_features
from minflamingo.evaluation.runner import Protocol, select_shots
from minflamingo.evaluation.task import Example, Task, Template
from minflamingo.pipeline import Pipeline


@pytest.fixture
def pipeline() -> Pipeline:
    return Pipeline(tiny_flamingo(), LETTERS, PREPROCESS)


def counted(i: int, opened: list[int]) -> Example:
    def media():
        opened.append(i)
        return image(i, frames=1 + i % 3)

    return Example(f"train-{i}", media, ("a",))


def by_definition(pipeline, example: Example) -> torch.Tensor:
    """The mean over all patches of all frames, of length 1."""
    patches = torch.cat([pipeline.model.vision(frame[None])[0] for frame in preprocess(example.media())])
    return patches.mean(0) / patches.mean(0).norm()


def test_the_most_similar_rows_are_those_of_a_plain_sort():
    """Ties: the earlier row first. Rows of NaN, broken images, come last."""
    support, queries = normalize(random(50, 6, seed=1), dim=1), normalize(random(7, 6, seed=2), dim=1)
    support[31] = queries[0] = support[4]
    expected = [sorted(range(50), key=lambda i: (-float(q @ support[i]), i))[:5] for q in queries]
    assert expected[0][:2] == [4, 31] and most_similar(queries, support, 5) == expected
    support[4] = torch.nan
    assert most_similar(queries, support, 5)[0][0] == 31 and {row[-1] for row in most_similar(queries, support, 50)} == {4}


@torch.no_grad()
def test_shots_are_the_most_similar_examples_and_the_most_similar_one_is_last(pipeline):
    """The query itself is in the support, and one example is broken: neither is a shot."""
    support = [example(i, broken=i == 3) for i in range(12)]
    queries = [example(100, "test"), example(4)]
    task, cache = Task("t", support, queries, Template(""), "exact_match"), FeatureCache(pipeline)
    for query, (row, _) in zip(queries, select_shots(task, queries, "3", 0, Protocol(rices=True), cache)):
        others = [e for e in support if e.key not in (query.key, "train-3")]
        similarity = {e.key: float(by_definition(pipeline, query) @ by_definition(pipeline, e)) for e in others}
        assert [e.key for e in row] == sorted(similarity, key=similarity.get)[-3:]
        assert close(pool_features(cache.get(query)), by_definition(pipeline, query))
    broken = replace(task, support=[example(0, broken=True)])
    with pytest.raises(ValueError, match=r"t: RICES cannot open any of the 1 support examples \(train/0.png is missing\)"):
        support_features(cache, broken)


def test_support_features_are_stored_for_one_encoder_and_one_support(pipeline, tmp_path):
    opened: list[int] = []
    task = Task("t", [counted(i, opened) for i in range(3)], [], Template(""), "exact_match")
    first = support_features(FeatureCache(pipeline, folder=tmp_path), task)
    assert torch.equal(support_features(FeatureCache(pipeline, folder=tmp_path), task), first) and opened == [0, 1, 2]
    support_features(FeatureCache(pipeline, folder=tmp_path), replace(task, support=[*task.support, counted(3, opened)]))
    other = Pipeline(tiny_flamingo(seed=1), LETTERS, PREPROCESS)
    support_features(FeatureCache(other, folder=tmp_path), task)
    assert opened[3:] == [0, 1, 2, 3, 0, 1, 2]


@torch.no_grad()
def test_each_image_is_encoded_once_and_the_least_recently_used_features_are_dropped(pipeline):
    opened: list[int] = []
    examples = [counted(i, opened) for i in range(40)]
    cache = FeatureCache(pipeline)
    cache.encode(examples)
    for i, e in enumerate(examples):
        assert close(cache.get(e), pipeline.model.vision(preprocess(image(i, frames=1 + i % 3))))
    assert opened == list(range(40))
    small = FeatureCache(pipeline, memory=3 * cache.get(examples[0]).nbytes)
    for i in (0, 3, 0, 6, 9):  # images of one frame
        small.encode([examples[i]])
    assert list(small.features) == [examples[i].media for i in (0, 6, 9)]


def test_a_fingerprint_changes_with_the_weights():
    model = tiny_flamingo()
    before = fingerprint(model)
    assert before == fingerprint(tiny_flamingo()) and len(before) == 8
    with torch.no_grad():
        model.resampler.latents[0, 0] += 1e-3
    assert fingerprint(model) != before
