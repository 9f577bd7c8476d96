"""RICES: the support examples whose frozen features are nearest to the query's, the most alike next to the query."""

from __future__ import annotations

import pytest
import torch
from conftest import LETTERS, picture, prepare, random, tiny_flamingo
from torch.nn.functional import normalize

from minflamingo.complete import LoadedFlamingo
from minflamingo.evaluation.eye import Eye, fingerprint
from minflamingo.evaluation.rices import Rices, pooled, rices
from minflamingo.evaluation.runner import Protocol, Shots
from minflamingo.evaluation.task import Example, Task, Template


def example(i: int, split: str = "train", frames: int = 1) -> Example:
    return Example(f"{split}-{i}", lambda: picture(i, frames), ("abcdefgh"[i % 8],))


def broken(i: int) -> Example:
    def media():
        raise OSError(f"{i}.png is no image")

    return Example(f"train-{i}", media, ("a",))


@pytest.fixture(scope="module")
def flamingo() -> LoadedFlamingo:
    return LoadedFlamingo(tiny_flamingo(), LETTERS, prepare_any)


def prepare_any(medium):
    return prepare(medium)


def feature(flamingo, example) -> torch.Tensor:
    """By the definition: the mean of all patches of all frames, of length 1."""
    pixels = prepare(example.media())
    patches = [flamingo.model.vision(frame[None])[0] for frame in pixels]
    mean = sum(p.sum(0) for p in patches) / sum(len(p) for p in patches)
    return mean / mean.norm()


def test_a_feature_is_the_mean_of_patches_and_frames_of_length_one(flamingo):
    """§ on RICES: similarity of frozen vision features; a video is the mean of its frames."""
    for frames in (1, 3):
        e = example(5, frames=frames)
        found = pooled(Eye(flamingo).features(e))
        assert torch.allclose(found, feature(flamingo, e), atol=1e-5) and abs(float(found.norm()) - 1) < 1e-6


def test_the_nearest_are_those_of_a_plain_sort_whatever_the_tile():
    """Against all cosines at once; ties go to the earlier example. Tiles bound the memory and change nothing."""
    support, queries = normalize(random(50, 6, seed=1), dim=1), normalize(random(7, 6, seed=2), dim=1)
    support[31] = support[4]
    queries[0] = support[4]
    index = Rices(support, [f"s{i}" for i in range(50)])
    expected = [sorted(range(50), key=lambda i: (-float(q @ support[i]), i))[:5] for q in queries]
    assert expected[0][:2] == [4, 31]
    for tile in (3, 8, 50, 8192):
        assert index.nearest(queries, [f"q{i}" for i in range(7)], 5, tile=tile) == expected


def test_the_query_itself_is_never_found():
    """Its own picture would be the most alike, with its own answer beside it. By key, however often it stands there."""
    support = normalize(random(20, 6, seed=1), dim=1)
    keys = [f"s{i}" for i in range(20)]
    keys[12] = "s3"
    index = Rices(support, keys)
    for tile in (2, 100):
        found = index.nearest(support[[3, 5]], ["s3", "s5"], 20, tile=tile)
        assert not {3, 12} & set(found[0]) and len(found[0]) == 18
        assert 5 not in found[1] and len(found[1]) == 19


def test_shots_are_the_most_alike_and_the_most_alike_stands_last(flamingo):
    """"Most similar last": right before the query."""
    support = [example(i) for i in range(12)]
    queries = [example(100, "test"), example(4)]  # the second is in the support too
    task = Task("t", support, queries, Template(""), "top1")
    eye = Eye(flamingo)
    chosen = Shots(task, "3", 0, Protocol(rices=True), eye).choose(queries)
    for query, row in zip(queries, chosen):
        others = [e for e in support if e.key != query.key]
        likeness = {e.key: float(feature(flamingo, query) @ feature(flamingo, e)) for e in others}
        assert [e.key for e in row] == sorted(likeness, key=likeness.get)[-3:]


def test_an_example_that_cannot_be_opened_is_named_and_never_found(flamingo):
    """It has no features. The rest of the support set is searched as before."""
    eye = Eye(flamingo)
    support = [example(0), broken(1), example(2), example(3)]
    index = rices(eye, support)
    assert [eye.why_broken(e) for e in support] == [None, "1.png is no image", None, None]
    assert sorted(index.nearest(pooled(eye.features(example(9)))[None], ["q"], 4)[0]) == [0, 2, 3]
    with pytest.raises(ValueError, match=r"RICES: none of the 2 support examples can be opened \(1.png is no image\)"):
        rices(Eye(flamingo), [broken(1), broken(2)])


def test_features_on_disk_are_read_again_for_the_same_eye_and_support_and_for_nothing_else(flamingo, tmp_path):
    """Half a million pictures are looked at once. Another example, or other weights of the eye, is another file."""
    looked: list[str] = []

    def noted(i: int) -> Example:
        def media():
            looked.append(f"train-{i}")
            return picture(i)

        return Example(f"train-{i}", media, ("a",))

    support = [noted(0), noted(1), broken(2)]
    first = rices(Eye(flamingo), support, tmp_path)
    eye = Eye(flamingo)
    again = rices(eye, support, tmp_path)
    assert looked == ["train-0", "train-1"] and torch.equal(first.features, again.features)
    assert again.broken.tolist() == [False, False, True] and eye.why_broken(support[2]) == "2.png is no image"
    rices(Eye(flamingo), [*support, noted(3)], tmp_path)
    other = LoadedFlamingo(tiny_flamingo(seed=1), LETTERS, prepare_any)
    rices(Eye(other), support, tmp_path)
    assert len(looked) == 2 + 3 + 2 and len(list(tmp_path.glob("rices-*.pt"))) == 3


def test_the_eye_looks_at_each_item_once_and_forgets_what_was_used_longest_ago(flamingo):
    """Features are those of the eye on the single picture, whatever shares its batch; memory is bounded."""
    looked: list[int] = []

    def noted(i: int) -> Example:
        def media():
            looked.append(i)
            return picture(i, frames=1 + i % 3)

        return Example(str(i), media, ("a",))

    examples = [noted(i) for i in range(8)]
    eye = Eye(flamingo, at_once=4)
    eye.look(examples)
    eye.look(examples[::-1])
    for i, e in enumerate(examples):
        alone = flamingo.model.vision(prepare(picture(i, frames=1 + i % 3)))
        assert torch.allclose(eye.features(e), alone, atol=1e-5)
    assert looked == list(range(8))
    small = Eye(flamingo, memory=eye.features(examples[0]).nbytes * 3)
    small.look(examples[:1] + examples[3:4] + examples[:1] + examples[6:7])
    assert list(small.kept) == [examples[i].media for i in (0, 3, 6)] and small.bytes <= small.memory
    small.features(examples[0])
    small.look([nine := noted(9)])
    assert list(small.kept) == [e.media for e in (examples[6], examples[0], nine)]


def test_a_fingerprint_changes_with_the_weights(flamingo):
    """One number of one tensor, or the name of it."""
    model = tiny_flamingo()
    before = fingerprint(model)
    assert before == fingerprint(tiny_flamingo()) and len(before) == 8
    with torch.no_grad():
        model.resampler.latents[0, 0] += 1e-3
    assert fingerprint(model) != before
