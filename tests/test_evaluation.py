"""The few-shot protocol: answers, intervals, random shots and RICES, broken files, resuming. Attention maps."""

import math
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import LETTERS, batch_of, close, image, log_likelihood, next_log_p, preprocess, tiny_flamingo

from minflamingo import EOC, Batch, Pipeline
from minflamingo.data.images import ImagePreprocessor
from minflamingo.evaluation import fewshot, runner
from minflamingo.evaluation.attention_maps import patch_attention
from minflamingo.evaluation.features import FeatureCache, fingerprint
from minflamingo.evaluation.fewshot import Query, few_shot_prompt, predict, score_choices, shot_orders
from minflamingo.evaluation.rices import support_features
from minflamingo.evaluation.runner import Protocol, evaluate, random_order, score_records, select_shots
from minflamingo.evaluation.task import Example, Task, Template
from minflamingo.generate import beam_search
from minflamingo.training.stage import Stage

PREPROCESS = ImagePreprocessor(8, mean=(128 / 255,) * 3, std=(64 / 255,) * 3)  # as conftest.preprocess


def example(i: int, split: str = "train", broken: bool = False) -> Example:
    def media():
        if broken:
            raise OSError(f"{split}/{i}.png is missing")
        return image(i + 1000 * (split == "test"), 1 + i % 2)

    return Example(f"{split}-{i}", media, ("abcdefgh"[i % 8],), {"given": "ab" * (i % 3)})


def logged(example: Example, opened: list[str], interrupt: bool = False) -> Example:
    """The same example; `opened` lists its key each time its file is opened."""

    def media():
        opened.append(example.key)
        if interrupt:
            raise KeyboardInterrupt
        return example.media()

    return replace(example, media=media)


def letters_task(n_support: int = 20, n: int = 7, **more) -> Task:
    support, queries = [example(i) for i in range(n_support)], [example(i, "test") for i in range(n)]
    options = {"metric": "exact_match", "max_new_tokens": 5, **more}
    return Task("letters", support, queries, Template("{given}", "{answer}"), **options)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    model = tiny_flamingo(lm={"max_length": 256})
    with torch.no_grad():
        model.lm.head.bias[:2] = -100.0  # never <PAD> or <BOS>
    return Pipeline(model, LETTERS, PREPROCESS)


def shot_keys(pipeline, task, shots: str, trial: int = 0, seed: int = 0) -> list[list[str]]:
    cache, protocol = FeatureCache(pipeline), Protocol(seed)
    return [[e.key for e in select_shots(task, query, shots, trial, protocol, cache)[0]] for query in task.queries]


# ---------------------------------------------------------------------------------------------------------- the answers


def test_orders_are_different_and_the_first_one_is_the_given_order():
    """All 3! orders of 3 shots; 6 orders of 32 shots, the same ones for a seed."""
    for n in (0, 1, 2, 3, 8, 32):
        orders = shot_orders(n, 6, 0)
        assert len(set(orders)) == len(orders) == min(6, math.factorial(n)) and orders[0] == tuple(range(n))
        assert all(sorted(order) == list(range(n)) for order in orders) and orders == shot_orders(n, 6, 0)


@pytest.fixture(scope="module")
def queries(pipeline):
    """Seven queries of different lengths, some with videos of two frames."""

    def query(i: int) -> Query:
        support = [(features(10 * i + k, 1 + (i + k) % 2), "abcdefgh"[k : k + 1 + i % 3]) for k in range(3)]
        return Query(support, features(100 + i), "ab" * (i % 3), "c")

    def features(seed: int, frames: int = 1) -> torch.Tensor:
        return pipeline.model.vision(preprocess(image(seed, frames))).detach()

    return [query(i) for i in range(7)]


def greedy(flamingo, prompt: list, n: int) -> str:
    """The whole model from the start for each new token."""
    ids: list[int] = []
    while len(ids) < n and (token := int(next_log_p(flamingo, prompt, ids).argmax())) != LETTERS.eoc_id:
        ids.append(token)
    return LETTERS.decode(ids)


@pytest.mark.parametrize("shots", ["0", "0_text", "2"])
def test_open_ended_answers_are_greedy_and_do_not_depend_on_the_batch(pipeline, queries, shots):
    expected = [greedy(pipeline.model, few_shot_prompt(query, shots).pieces, 5) for query in queries]
    assert len(set(expected)) > 3
    for batch_size in (1, 3, 64):
        assert predict(pipeline.model, LETTERS, queries, shots, max_new_tokens=5, batch_size=batch_size) == expected


@pytest.mark.parametrize("shots", ["0", "0_text", "3"])
@pytest.mark.parametrize("scoring", ["sum", "mean"])
def test_close_ended_scores_are_log_likelihoods_and_the_best_choice_wins(pipeline, queries, shots, scoring):
    """Section 3.1: each choice after the prompt. Choices have different lengths; queries have 3 or 4 choices of their own."""
    choices = ("ab", "ch", "fg", "ba", "he", "gdc")
    asked, best = [replace(query, choices=choices[i % 3 :][: 4 - i % 2]) for i, query in enumerate(queries)], []
    found = score_choices(pipeline.model, LETTERS, asked, shots, scoring=scoring).tolist()
    for query, scores in zip(asked, found, strict=True):
        prompt, mean = few_shot_prompt(query, shots).pieces, scoring == "mean"
        expected = [log_likelihood(pipeline.model, prompt, LETTERS.encode(c)) / (len(c) if mean else 1) for c in query.choices]
        assert scores == pytest.approx(expected + [-math.inf] * (4 - len(expected)), abs=1e-5)
        best.append(query.choices[expected.index(max(expected))])
    if scoring == "sum":
        for batch_size in (1, 4, 64):
            assert predict(pipeline.model, LETTERS, asked, shots, batch_size=batch_size) == best and len(set(best)) > 1


def test_a_prediction_is_the_choice_with_the_highest_sum_and_not_mean(pipeline, queries):
    """The greedy text of four tokens against single letters: its mean is higher for some queries."""
    means = 0
    for query in queries:
        pieces = few_shot_prompt(query, "0").pieces
        text = greedy(pipeline.model, pieces, 4)
        choices = (text, *(letter for letter in "abcdefgh" if letter != text[0]))
        sums = [log_likelihood(pipeline.model, pieces, LETTERS.encode(choice)) for choice in choices]
        assert predict(pipeline.model, LETTERS, [replace(query, choices=choices)], "0") == [choices[sums.index(max(sums))]]
        means += sums[0] / len(text) > max(sums[1:]) > sums[0]
    assert means > 0
    with pytest.raises(ValueError, match="scoring is 'max'; choose 'sum' or 'mean'"):
        score_choices(pipeline.model, LETTERS, [replace(queries[0], choices=("a", "b"))], "0", scoring="max")


def test_prediction_changes_no_weight_and_leaves_no_gradient(pipeline, queries):
    """Few-shot learning is only a forward pass."""
    before = {name: value.clone() for name, value in pipeline.model.state_dict().items()}
    predict(pipeline.model, LETTERS, queries, "2", max_new_tokens=2)
    assert all(torch.equal(value, before[name]) for name, value in pipeline.model.state_dict().items())
    assert all(p.grad is None for p in pipeline.model.parameters())
    assert predict(pipeline.model, LETTERS, [], "2") == []


# ---------------------------------------------------------------------------------------------------------- intervals


@pytest.mark.parametrize("right, n", [(0, 1), (0, 200), (1, 4), (3, 50), (25, 50), (199, 200), (4, 4)])
def test_the_ends_of_a_wilson_interval_are_the_rates_at_a_distance_of_196_standard_deviations(right, n):
    """It is not empty and stays between 0 and 1, also if none or all are right."""
    low, high = fewshot.wilson_interval(right, n)
    assert 0 <= low < high <= 1
    for bound in (low, high):
        assert (right / n - bound) ** 2 == pytest.approx(1.96**2 * bound * (1 - bound) / n, abs=1e-12)


def test_accuracy_is_in_percent():
    assert fewshot.accuracy([True] * 190 + [False] * 10) == {"score": 95.0, "interval": [91.04, 97.26], "n": 200}
    with pytest.raises(ValueError, match="at least one case"):
        fewshot.accuracy([])


# ------------------------------------------------------------------------------------------------------------- the shots


def test_random_shots_depend_on_seed_task_trial_and_query_alone(pipeline):
    """The shots of "8" begin with those of "4"."""
    task = letters_task()
    keys = shot_keys(pipeline, task, "4")
    assert shot_keys(pipeline, replace(task, queries=task.queries[3:5]), "4") == keys[3:5]
    others = [shot_keys(pipeline, task, "4", seed=1), shot_keys(pipeline, task, "4", trial=1)]
    others.append(shot_keys(pipeline, replace(task, name="other"), "4"))
    assert all(other != keys for other in others) and len({tuple(row) for row in keys}) == len(keys)
    assert [row[:4] for row in shot_keys(pipeline, task, "8")] == keys


def test_the_query_is_never_one_of_its_shots_and_no_shot_is_repeated(pipeline):
    task = letters_task(n_support=9)
    task = replace(task, queries=task.support[:5])
    for query, row in zip(task.queries, shot_keys(pipeline, task, "8")):
        assert len(set(row)) == 8 and query.key not in row
    with pytest.raises(ValueError, match="letters: 16 shots need 16 support examples, but query train-0 can use only 8"):
        shot_keys(pipeline, task, "16")


def test_every_example_is_drawn_equally_often():
    """Chi-squared of the first of 20 examples in 4000 draws: below 43.8, the 99.9% quantile with 19 degrees of freedom."""
    first = Counter(next(random_order(20, "seed", q)) for q in range(4000))
    assert sum((first[i] - 200) ** 2 / 200 for i in range(20)) < 43.8
    assert sorted(random_order(20, "a")) == list(range(20))


def test_a_broken_shot_is_replaced_by_the_next_candidate(pipeline):
    """Every prompt has its full number of shots. Without images ("0_text") no support file is opened."""
    task = letters_task()
    task = replace(task, support=[example(i, broken=i % 3 == 0) for i in range(20)])
    for query, row in zip(task.queries, shot_keys(pipeline, task, "8")):
        usable = [i for i in random_order(20, 0, "letters", 0, query.key) if i % 3]
        assert row == [f"train-{i}" for i in usable[:8]]
    result = evaluate(pipeline, task, "8")
    assert result["n"] == 7 and result["replaced"] and {int(key[6:]) % 3 for key in result["replaced"]} == {0}
    with pytest.raises(ValueError, match="can use only 13; 7 are broken"):
        evaluate(pipeline, task, "16")
    task = replace(task, support=[example(i, broken=True) for i in range(5)])
    assert evaluate(pipeline, task, "0_text")["n"] == 7


# --------------------------------------------------------------------------------------------- RICES, cache of features


def by_definition(pipeline, example: Example) -> torch.Tensor:
    """The mean over all patches of all frames, of length 1."""
    patches = torch.cat([pipeline.model.vision(frame[None])[0] for frame in preprocess(example.media())])
    return patches.mean(0) / patches.mean(0).norm()


@torch.no_grad()
def test_shots_are_the_most_similar_examples_and_the_most_similar_one_is_last(pipeline):
    """The query itself is in the support, and one example is broken: neither is a shot."""
    support = [example(i, broken=i == 3) for i in range(12)]
    queries = [example(100, "test"), example(4)]
    task, cache = Task("t", support, queries, Template("", "{answer}"), "exact_match"), FeatureCache(pipeline)
    for query in queries:
        row, _ = select_shots(task, query, "3", 0, Protocol(rices=True), cache)
        others = [e for e in support if e.key not in (query.key, "train-3")]
        similarity = {e.key: float(by_definition(pipeline, query) @ by_definition(pipeline, e)) for e in others}
        assert [e.key for e in row] == sorted(similarity, key=similarity.get)[-3:]
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


# ---------------------------------------------------------------------------------------------------------- the runner


def prompts(pipeline, task: Task, shots: str) -> list[list]:
    """The pieces of each query's prompt, with pixels, written out by hand."""
    made = []
    for query, keys in zip(task.queries, shot_keys(pipeline, task, shots)):
        pieces: list = []
        for shot in (e for key in keys for e in task.support if e.key == key):
            pieces += [*([] if shots == "0_text" else [shot.media()]), shot.fields["given"] + shot.answers[0], EOC]
        made.append([*pieces, query.media(), query.fields["given"]])
    return made


@pytest.mark.parametrize("shots", ["0", "0_text", "4"])
def test_open_ended_answers_are_found_by_beam_search_and_cleaned(pipeline, shots):
    """Section 3.1: 3 beams. Cached features give the same answers as pixels, in batches of any size."""
    task, expected = letters_task(clean=str.upper), []
    for pieces in prompts(pipeline, task, shots):
        ids = beam_search(pipeline.model, batch_of(pieces), LETTERS.eoc_id, beams=3, max_new_tokens=5)[0]
        expected.append(LETTERS.decode(ids).upper())
    assert len(set(expected)) > 1
    for size in (1, 3, 16):
        records = evaluate(pipeline, task, shots, protocol=Protocol(batch_size=size))["records"]
        assert records == [{"key": q.key, "prediction": text} for q, text in zip(task.queries, expected)]


@pytest.mark.parametrize("ensemble", [False, True])
def test_a_close_ended_prediction_is_the_choice_with_the_best_score(pipeline, ensemble):
    """Mean log-likelihood per token. Ensembling (appendix): averaged over both orders of the two shots."""
    task, choices, said = letters_task(), ("ab", "ch", "fgd"), []
    task = replace(task, metric="accuracy", queries=[replace(q, choices=choices) for q in task.queries])
    result = evaluate(pipeline, task, "2", protocol=Protocol(ensemble=ensemble))

    for pieces, record in zip(prompts(pipeline, task, "2"), result["records"], strict=True):
        orders = [pieces, [*pieces[3:6], *pieces[:3], *pieces[6:]]][: 1 + ensemble]
        rows = [[log_likelihood(pipeline.model, order, LETTERS.encode(c)) / len(c) for c in choices] for order in orders]
        assert not ensemble or rows[0] != pytest.approx(rows[1], abs=1e-4)  # the order matters
        scores = [sum(column) / len(orders) for column in zip(*rows)]
        assert record["scores"] == pytest.approx(scores, abs=1e-5)
        said.append(choices[scores.index(max(scores))])
    assert [record["prediction"] for record in result["records"]] == said
    assert result["score"] == pytest.approx(100 * sum(s == q.answers[0] for s, q in zip(said, task.queries)) / 7, abs=0.01)
    assert result["interval"][0] <= result["score"] <= result["interval"][1]


def test_a_broken_query_is_reported_and_left_out(pipeline):
    task = letters_task()
    with_broken = replace(task, queries=[*task.queries[:2], example(50, "test", broken=True), *task.queries[2:]])
    whole, rest = (evaluate(pipeline, t, "2") for t in (task, with_broken))
    assert rest["broken"] == {"test-50": "test/50.png is missing"} and rest["n"] == whole["n"] == 7
    assert [r for r in rest["records"] if "broken" not in r] == whole["records"] and rest["score"] == whole["score"]


def test_too_long_queries_and_shots_are_named_and_the_others_are_unchanged(pipeline):
    """The context is 256. A prompt of 256 tokens has room for an answer of one token; one of 257 is left out."""
    task = letters_task()
    whole = evaluate(pipeline, task, "2")["records"]
    long, exact = (replace(example(40 + n, "test"), fields={"given": "a" * n}) for n in (255, 254))  # and <BOS>, <image>
    found = evaluate(pipeline, replace(task, queries=[*task.queries[:3], long, *task.queries[3:]]), "2")
    assert found["broken"] == {"test-295": found["broken"]["test-295"]} and "256" in found["broken"]["test-295"]
    assert [r for r in found["records"] if "broken" not in r] == whole and found["n"] == 7
    reason = evaluate(pipeline, replace(task, queries=[*task.queries, long]), "0")["broken"]["test-295"]
    assert reason == "too long: 257 tokens in the prompt and 1 in the answer, but the LM's context is 256"
    near = evaluate(pipeline, replace(task, queries=[*task.queries, exact]), "0")["records"]
    assert near[:7] == evaluate(pipeline, task, "0")["records"] and len(near[7]["prediction"]) <= 1
    support = [replace(e, answers=("a" * 300,)) if i == 5 else e for i, e in enumerate(task.support)]
    found = evaluate(pipeline, replace(task, support=support), "16")
    assert found["n"] == 7 and found["replaced"] == ["train-5"]


def test_queries_with_fewer_choices_have_as_many_scores(pipeline):
    task = letters_task(metric="accuracy")
    queries = [replace(q, choices=("ab", "c", "d")[: 2 + i % 2], answers=("c",)) for i, q in enumerate(task.queries)]
    records = evaluate(pipeline, replace(task, queries=queries), "2")["records"]
    assert [len(record["scores"]) for record in records] == [2, 3, 2, 3, 2, 3, 2]


def test_without_references_there_are_predictions_and_a_reason_but_no_score(pipeline):
    task = letters_task()
    hidden = evaluate(pipeline, replace(task, queries=[replace(q, answers=()) for q in task.queries]), "2")
    assert "score" not in hidden and "no references" in hidden["problem"] and len(hidden["records"]) == 7
    assert "problem" in score_records(task, [])


def test_an_interrupted_evaluation_resumes_at_the_next_batch(pipeline, tmp_path, capsys, monkeypatch):
    """The records are those of an uninterrupted run. Another protocol starts again."""
    monkeypatch.setattr(runner, "Stage", partial(Stage, save_every=0.0))
    opened: list[str] = []
    task, protocol = letters_task(), Protocol(beams=1, batch_size=2)
    whole = evaluate(pipeline, task, "2", protocol=protocol)
    stopped = replace(task, queries=[logged(q, opened, interrupt=i == 5) for i, q in enumerate(task.queries)])
    with pytest.raises(KeyboardInterrupt):
        evaluate(pipeline, stopped, "2", protocol=protocol, folder=tmp_path)
    opened.clear()
    complete = replace(task, queries=[logged(q, opened) for q in task.queries])
    for expected in (["test-4", "test-5", "test-6"], []):
        assert evaluate(pipeline, complete, "2", protocol=protocol, folder=tmp_path) == whole and opened == expected
        opened.clear()
    evaluate(pipeline, complete, "2", protocol=replace(protocol, seed=1), folder=tmp_path)
    assert len(opened) == 7 and "seed" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------ attention maps

ROWS = (["ab", image(1), "cd", EOC, image(2), "e", EOC], ["a", image(3), "bcdef", EOC])
S = 5  # 8 x 8 pixels: 4 patches and the class token


@torch.no_grad()
def loop(flamingo, batch: Batch, layer: str = "0") -> torch.Tensor:
    """(B, L, N, S) by explicit loops over images, heads and tokens, for one gated layer and its real input."""
    c, xattn, texts = flamingo.config, flamingo.xattn_layers[layer].xattn, []
    handle = xattn.register_forward_pre_hook(lambda _, inputs: texts.append(inputs[0]))
    flamingo(batch)
    handle.remove()
    out = torch.zeros(*batch.ids.shape, batch.media.shape[1], S)

    def weights(q: torch.Tensor, kv: torch.Tensor, n_heads: int) -> torch.Tensor:
        """Mean over the heads. The keys are the first half of kv."""
        heads = zip(q.chunk(n_heads, -1), kv.chunk(2, -1)[0].chunk(n_heads, -1))
        return sum((q_h @ k_h.T / math.sqrt(q_h.shape[1])).softmax(-1) for q_h, k_h in heads) / n_heads

    for b in range(len(batch.ids)):
        to_patches, visual = [], []
        for n in range(batch.media.shape[1]):
            features = flamingo.vision(batch.media[b, n]) + flamingo.resampler.time_embeddings[0]  # (1, S, D)
            latents, of_layers = flamingo.resampler.latents[None], []
            for block in flamingo.resampler.layers:
                x = block.norm_latents(latents)[0]
                context = torch.cat([block.norm_features(features)[0], x])
                of_layers.append(weights(block.to_q(x), block.to_kv(context), c.resampler.n_heads)[:, :S])
                latents = block(latents, features)
            to_patches.append(sum(of_layers) / len(of_layers))
            visual.append(flamingo.resampler.final_norm(latents)[0])
        q, phi = xattn.to_q(xattn.norm(texts[0]))[b], 0
        for l in range(len(q)):
            phi += int(batch.ids[b, l] == flamingo.image_id)
            if phi:
                to_latents = weights(q[l : l + 1], xattn.to_kv(visual[phi - 1]), c.xattn_n_heads)
                out[b, l, phi - 1] = (to_latents @ to_patches[phi - 1])[0]
    return out


def test_the_map_is_that_of_an_explicit_loop():
    """A token attends to its own image only (section 2.3). Its weights sum to less than 1: latents also attend to latents."""
    flamingo, batch = tiny_flamingo(xattn_every=3), batch_of(*ROWS)  # one gated layer
    maps = patch_attention(flamingo, batch)
    assert maps.shape == (2, batch.ids.shape[1], 2, S) and close(maps, loop(flamingo, batch))
    assert maps[0, 4].std() > 1e-3  # not a flat map
    for l, phi in enumerate([0, 0, 0, 1, 1, 1, 1, 2, 2, 2]):  # <BOS> a b <image> c d <EOC> <image> e <EOC>
        for n in (1, 2):
            assert (maps[0, l, n - 1] > 0).all() if n == phi else (maps[0, l, n - 1] == 0).all(), (l, n)
    total = maps.sum((2, 3))
    assert (total < 1).all() and (total[0, 3:] > 0.1).all()


def test_gated_layers_are_averaged_with_the_weights_of_their_gates():
    """(t0 * map0 + t2 * map2) / (t0 + t2) with t = |tanh alpha|, also for a negative alpha. Closed gates give zero."""
    flamingo, batch = tiny_flamingo(), batch_of(*ROWS)  # gated layers before LM blocks 0 and 2
    with torch.no_grad():
        flamingo.xattn_layers["2"].alpha_xattn.neg_()
    one, two = (loop(flamingo, batch, layer) for layer in ("0", "2"))
    t0, t2 = (math.tanh(abs(flamingo.xattn_layers[layer].alpha_xattn.item())) for layer in ("0", "2"))
    assert (one - two).abs().max() > 1e-3
    assert close(patch_attention(flamingo, batch), (t0 * one + t2 * two) / (t0 + t2))
    with torch.no_grad():
        flamingo.xattn_layers["2"].alpha_xattn.zero_()
        assert close(patch_attention(flamingo, batch), loop(flamingo, batch, "0"))
        flamingo.xattn_layers["0"].alpha_xattn.zero_()
    assert (patch_attention(flamingo, batch) == 0).all()


def test_features_give_the_same_map_as_pixels_and_no_state_is_left():
    flamingo, batch = tiny_flamingo(), batch_of(*ROWS)
    with torch.no_grad():
        features = flamingo.vision(batch.media.flatten(0, 2)).unflatten(0, batch.media.shape[:3])
    maps = patch_attention(flamingo, batch)
    assert close(patch_attention(flamingo, replace(batch, media=features)), maps)
    alone = patch_attention(flamingo, batch_of(ROWS[1]))
    assert close(maps[1, : alone.shape[1], :1], alone[0]) and not maps.requires_grad
    assert not any(module._forward_hooks for module in flamingo.modules())


def test_a_batch_without_images_or_with_a_video_is_an_error():
    for row in (["ab"], [image(1, frames=2), "ab"]):
        with pytest.raises(ValueError, match="a batch of still images"):
            patch_attention(tiny_flamingo(), batch_of(row))
