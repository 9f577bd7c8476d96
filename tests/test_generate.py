"""From a prompt to text: every shortcut (caches, shared beams, shared prompts) against recomputing everything."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch
from conftest import EOC, LETTERS, batch_of, close, enliven, picture, random, tiny_flamingo

from minflamingo.flamingo import Batch, Flamingo
from minflamingo.generate import beam_search, filter_logits, generate, score_answers

END = LETTERS.eoc_id
PROMPTS = [
    ["a", picture(1), "bcd", EOC, picture(2), "e"],
    [picture(3), "f"],
    ["gh"],
    [picture(4, frames=6), picture(5), "abab", EOC, picture(6), "ab", EOC],
]


def talker(seed: int = 0, end: float = 1.0, flat: float = 1.0, **lm) -> Flamingo:
    """A model that ends some of its texts: the bias of <EOC> is `end`. `flat` below 1 makes it undecided."""
    flamingo = tiny_flamingo(seed, lm=lm)
    with torch.no_grad():
        for p in flamingo.lm.final_norm.parameters():
            p.mul_(flat)
        flamingo.lm.head.bias[END] = end
    return flamingo


def extended(batch: Batch, new: list[int]) -> Batch:
    """A batch of one row with text behind it."""
    ids = torch.cat([batch.ids, torch.tensor([new], dtype=torch.long)], dim=1)
    return replace(batch, ids=ids, labels=ids, attention_mask=torch.ones_like(ids, dtype=torch.bool))


@torch.no_grad()
def next_log_p(flamingo: Flamingo, batch: Batch, new: list[int]) -> torch.Tensor:
    """(V,) after a prompt and some new text, everything computed from scratch."""
    return flamingo.read(extended(batch, new))[0][0, -1].log_softmax(-1)


def slow_greedy(flamingo: Flamingo, batch: Batch, steps: int) -> list[int]:
    new: list[int] = []
    while len(new) < steps:
        token = int(next_log_p(flamingo, batch, new).argmax())
        if token == END:
            break
        new.append(token)
    return new


def slow_beam(flamingo: Flamingo, batch: Batch, beams: int, steps: int, length_penalty: float = 0.0) -> list[int]:
    """Beam search of one prompt, every hypothesis recomputed from the pixels on."""
    alive: list[tuple[float, list[int]]] = [(0.0, [])]
    finished: list[tuple[float, list[int]]] = []
    for length in range(1, steps + 1):
        candidates = []
        for score, ids in alive:
            log_p = next_log_p(flamingo, batch, ids).tolist()
            candidates += [(score + p, [*ids, token]) for token, p in enumerate(log_p)]
        candidates.sort(key=lambda c: -c[0])
        finished += [(s / length**length_penalty, ids[:-1]) for s, ids in candidates[:beams] if ids[-1] == END]
        alive = [c for c in candidates if c[1][-1] != END][:beams]
        if length_penalty == 0 and finished and max(finished)[0] >= alive[0][0]:
            break
    return max(finished or alive[:1])[1]


# ------------------------------------------------------------------------------------------------------------- greedy


@pytest.mark.parametrize("seed", range(4))
def test_greedy_with_caches_is_recomputing_everything_at_each_step(seed):
    """Prompts of different lengths and numbers of images in one batch, each against a loop of `read` on it alone."""
    flamingo = talker(seed)
    answers = generate(flamingo, batch_of(*PROMPTS, pad="left"), END, max_new_tokens=12)
    assert answers == [slow_greedy(flamingo, batch_of(row), 12) for row in PROMPTS]


def test_the_seeds_of_these_tests_end_some_texts_early_and_let_others_run():
    """Greedy and beam search would be tested blindly if no text ever met its <EOC>, or all did at once."""
    prompt = batch_of(*PROMPTS, pad="left")
    lengths = [len(a) for seed in range(4) for a in generate(talker(seed), prompt, END, 12)]
    assert 12 in lengths and any(0 < n < 12 for n in lengths)
    lengths = [len(a) for seed in range(3) for a in beam_search(talker(seed, end=0.5, flat=0.3), prompt, END, 3, 6)]
    assert 0 in lengths and 6 in lengths and any(0 < n < 6 for n in lengths)


def test_a_text_stops_at_its_end_of_chunk_and_does_not_contain_it():
    """§3: the answer is what stands before the first <EOC>; an answer may be empty."""
    batch = batch_of(*PROMPTS, pad="left")
    assert generate(talker(end=50.0), batch, END) == [[]] * 4
    assert beam_search(talker(end=50.0), batch, END) == [[]] * 4
    never = generate(talker(end=-50.0), batch, END, max_new_tokens=7)
    assert [len(a) for a in never] == [7] * 4 and not any(END in a for a in never)


def test_no_more_than_max_new_tokens_and_none_if_zero():
    """The limit is exact."""
    for answer in (generate, beam_search):
        for n in (0, 1, 3):
            answers = answer(talker(end=-50.0), batch_of(*PROMPTS[:2], pad="left"), END, max_new_tokens=n)
            assert [len(a) for a in answers] == [n] * 2


def test_generation_stops_where_the_context_is_full():
    """A context of 8 and a prompt of 5: three more are read, and the last of them still predicts a fourth."""
    flamingo, prompt = talker(end=-50.0, max_length=8), batch_of([picture(1), "abc"])
    assert prompt.ids.shape[1] == 5
    assert [len(a) for a in generate(flamingo, prompt, END, max_new_tokens=50)] == [4]
    assert [len(a) for a in beam_search(flamingo, prompt, END, max_new_tokens=50)] == [4]
    with pytest.raises(ValueError, match="context is 8"):
        generate(flamingo, batch_of([picture(1), "abcdefgh"]), END)


# --------------------------------------------------------------------------------------------------------------- beams


@pytest.mark.parametrize("beams, length_penalty", [(2, 0.0), (3, 0.0), (5, 0.0), (3, 1.0)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_beam_search_is_the_slow_beam_search_that_recomputes_every_hypothesis(seed, beams, length_penalty):
    """The paper's setting is beam 3 (§3); caches are reordered, never recomputed."""
    flamingo = talker(seed, end=0.5, flat=0.3)
    answers = beam_search(flamingo, batch_of(*PROMPTS, pad="left"), END, beams, 6, length_penalty)
    assert answers == [slow_beam(flamingo, batch_of(row), beams, 6, length_penalty) for row in PROMPTS]


@pytest.mark.parametrize("seed", range(4))
def test_one_beam_is_greedy(seed):
    """The narrowest search."""
    flamingo, batch = talker(seed), batch_of(*PROMPTS, pad="left")
    assert beam_search(flamingo, batch, END, 1, 9) == generate(flamingo, batch, END, 9)


def test_a_beam_as_wide_as_all_continuations_finds_the_most_likely_one():
    """Exhaustive search by hand: the best of all texts of at most three tokens that end with <EOC>."""
    for seed in range(3):
        flamingo = talker(seed, end=-1.0, vocab_size=5)
        prompt = Batch(torch.tensor([[1, 3, 4]]), torch.tensor([[1, 3, 4]]), torch.ones(1, 3, dtype=torch.bool))
        words = [w for w in range(5) if w != END]
        texts = [list(t) for n in range(3) for t in itertools.product(words, repeat=n)]
        scores = []
        for text in texts:
            log_p = [next_log_p(flamingo, prompt, text[:i])[t] for i, t in enumerate([*text, END])]
            scores.append(float(sum(log_p)))
        best = texts[scores.index(max(scores))]
        assert beam_search(flamingo, prompt, END, beams=125, max_new_tokens=3) == [best]


def test_beam_search_finds_more_likely_answers_than_greedy():
    """What it is for: where the two end differently, the beam's answer is the more likely one."""
    better = []
    for seed in range(6):
        flamingo, batch = talker(seed, end=2.0), batch_of(*PROMPTS, pad="left")
        both = zip(PROMPTS, beam_search(flamingo, batch, END, 4, 5), generate(flamingo, batch, END, 5))
        for row, beam, greedy in both:
            if beam != greedy and len(beam) < 5 and len(greedy) < 5:
                first, second = score_answers(flamingo, batch_of(row), [[[*beam, END], [*greedy, END]]])[0].tolist()
                better.append(first > second)
    assert better and all(better)


# -------------------------------------------------------------------------------------------------------------- scores


def test_scores_of_given_answers_are_their_log_likelihoods():
    """Close-ended (§3): answers of different lengths from one cache, against reading prompt + answer from scratch."""
    flamingo = talker()
    answers = [[[3, END], [4, 5, 6, END], [7], [8, 8, 3]] for _ in PROMPTS]
    answers[1] = [[9], [10, 3, 3, 3, END], [3], [4, 4]]
    scores = score_answers(flamingo, batch_of(*PROMPTS, pad="left"), answers, LETTERS.pad_id)
    for b, row in enumerate(PROMPTS):
        for a, ids in enumerate(answers[b]):
            by_hand = sum(next_log_p(flamingo, batch_of(row), ids[:i])[token] for i, token in enumerate(ids))
            assert abs(float(scores[b, a] - by_hand)) < 1e-4 and close(scores[b, a], by_hand, 2e-5)


def test_answers_of_one_token_are_scored_by_the_prompt_alone():
    """Nothing has to be read behind the prompt then; over the whole vocabulary the probabilities sum to one."""
    flamingo, prompt = talker(), batch_of(*PROMPTS, pad="left")
    scores = score_answers(flamingo, prompt, [[[t] for t in range(LETTERS.vocab_size)]] * 4)
    assert close(scores.exp().sum(1), torch.ones(4))
    for b, row in enumerate(PROMPTS):
        assert close(scores[b], next_log_p(flamingo, batch_of(row), []))


def test_a_score_depends_neither_on_the_padding_of_the_prompt_nor_on_the_other_answers():
    """(OpenFlamingo's cached scoring drops the mask of left-padded prompts and lets the cache grow by class.)"""
    flamingo = talker()
    answers = [[3, END], [4, 5, 6, 7, 8]]
    together = score_answers(flamingo, batch_of(*PROMPTS, pad="left"), [answers] * 4)
    for b, row in enumerate(PROMPTS):
        for a in range(2):
            assert close(score_answers(flamingo, batch_of(row), [[answers[a]]])[0, 0], together[b, a], 2e-5)


def test_answers_that_do_not_fit_a_table_are_refused():
    """Every prompt has the same number of candidates, none of them empty."""
    flamingo, prompt = talker(), batch_of(*PROMPTS[:2], pad="left")
    for answers in ([[[3], [4]], [[3]]], [[[3], []], [[3], [4]]]):
        with pytest.raises(ValueError, match="same number of candidates, none of them empty"):
            score_answers(flamingo, prompt, answers)


# --------------------------------------------------------------------------------------------------------- the caches


@pytest.mark.parametrize(
    "how",
    [
        lambda f, p: generate(f, p, END, 6),
        lambda f, p: beam_search(f, p, END, 3, 6),
        lambda f, p: score_answers(f, p, [[[3, 4, END], [5, 6]]] * len(p.ids)),
    ],
    ids=["generate", "beam_search", "score_answers"],
)
def test_each_image_is_encoded_resampled_and_projected_once(how):
    """(Elsewhere images are projected again for each new token, and encoded again for each beam.) Empty places never are."""
    flamingo, calls = talker(end=-50.0), Counter()
    watched = {"eye": flamingo.vision, "resampler": flamingo.resampler}
    watched |= {f"to_kv {i}": layer.xattn.to_kv for i, layer in flamingo.xattn_layers.items()}
    for name, module in watched.items():
        module.register_forward_hook(lambda _m, x, _y, name=name: calls.update({name: 1, f"{name} rows": len(x[0])}))
    how(flamingo, batch_of(*PROMPTS[:2], pad="left"))
    assert calls == Counter(
        {"eye": 1, "eye rows": 3, "resampler": 1, "resampler rows": 3}
        | {name: n for i in (0, 2) for name, n in ((f"to_kv {i}", 1), (f"to_kv {i} rows", 2))}
    )


def test_only_the_new_token_is_read_in_each_step():
    """After the prompt the language model sees one token at a time."""
    flamingo, lengths = talker(end=-50.0), []
    flamingo.lm.blocks[0].register_forward_hook(lambda _m, x, _y: lengths.append(x[0].shape[1]))
    prompt = batch_of(*PROMPTS, pad="left")
    generate(flamingo, prompt, END, max_new_tokens=4)
    assert lengths == [prompt.ids.shape[1], 1, 1, 1]


@pytest.mark.parametrize("how", ["greedy", "beams", "scores"])
def test_padding_stands_on_either_side(how):
    """What follows a prompt is predicted at its last token, wherever that is."""
    flamingo, answers = talker(), [[[3, 4, END], [5, 6]]] * 4
    left, right = (
        {"greedy": lambda p: generate(flamingo, p, END, 6), "beams": lambda p: beam_search(flamingo, p, END, 3, 6),
         "scores": lambda p: score_answers(flamingo, p, answers)}[how](batch_of(*PROMPTS, pad=pad))
        for pad in ("left", "right")
    )  # fmt: skip
    assert close(left, right) if how == "scores" else left == right


def test_a_prompt_with_padding_in_its_middle_or_without_a_token_is_refused():
    """There is no telling where it ends."""
    prompt = batch_of(*PROMPTS, pad="left")
    mask = prompt.attention_mask.clone()
    mask[1, -2] = False
    for wrong in (mask, mask & (torch.arange(4) != 1)[:, None]):
        for how in (generate, beam_search):
            with pytest.raises(ValueError, match="prompt 1 is empty, or has padding in its middle"):
                how(talker(), replace(prompt, attention_mask=wrong), END)
        with pytest.raises(ValueError, match="prompt 1 is empty"):
            score_answers(talker(), replace(prompt, attention_mask=wrong), [[[3]]] * 4)


def test_a_generation_that_fails_midway_leaves_no_trace():
    """(OpenFlamingo keeps a flag on the model, and its next forward pass asserts.)"""
    flamingo, prompt, steps = talker(end=-50.0), batch_of(*PROMPTS, pad="left"), itertools.count()
    expected = generate(flamingo, prompt, END, 5)
    handle = flamingo.lm.final_norm.register_forward_hook(lambda *_: 1 / 0 if next(steps) == 2 else None)
    with pytest.raises(ZeroDivisionError):
        generate(flamingo, prompt, END, 5)
    handle.remove()
    assert generate(flamingo, prompt, END, 5) == expected


# ------------------------------------------------------------------------------------------------------------ sampling


def test_the_most_likely_token_alone_is_greedy():
    """top_k = 1, or a top_p that the first token already holds, leaves no choice to the dice."""
    flamingo, prompt = talker(), batch_of(*PROMPTS, pad="left")
    greedy = generate(flamingo, prompt, END, 8)
    dice = torch.Generator().manual_seed(0)
    assert generate(flamingo, prompt, END, 8, temperature=2.0, top_k=1, generator=dice) == greedy
    assert generate(flamingo, prompt, END, 8, temperature=2.0, top_p=1e-6, generator=dice) == greedy


@pytest.mark.parametrize(
    "top_p, kept", [(0.4, [2]), (0.79, [2, 0]), (0.81, [2, 0, 3]), (0.96, [2, 0, 3, 1]), (1.0, [2, 0, 3, 1])]
)
def test_top_p_keeps_the_fewest_tokens_that_hold_p_of_the_mass(top_p, kept):
    """Probabilities .3 .05 .5 .15: by hand. What stays keeps its logit, the rest is −∞."""
    logits = torch.tensor([[0.3, 0.05, 0.5, 0.15], [0.25, 0.25, 0.25, 0.25]]).log()
    out = filter_logits(logits, top_p=top_p)[0]
    assert sorted(kept) == [t for t in range(4) if out[t] > -torch.inf]
    assert torch.equal(out[kept], logits[0][kept])


def test_top_k_keeps_the_k_most_likely_and_may_exceed_the_vocabulary():
    """By hand, each row its own."""
    logits = torch.tensor([[1.0, 4.0, 2.0, 3.0], [9.0, 1.0, 2.0, 3.0]])
    assert (filter_logits(logits, top_k=2) > -torch.inf).int().tolist() == [[0, 1, 0, 1], [1, 0, 0, 1]]
    assert torch.equal(filter_logits(logits, top_k=9), logits)
    assert torch.equal(filter_logits(logits), logits)


def test_both_filters_together_choose_within_the_k():
    """top_p is measured among the k that are left: of .5/.8 and .3/.8, p = 0.6 needs the first alone."""
    logits = torch.tensor([[0.3, 0.05, 0.5, 0.15]]).log()
    assert (filter_logits(logits, top_k=2, top_p=0.6) > -torch.inf).tolist() == [[False, False, True, False]]


@pytest.mark.parametrize("wrong", [dict(top_k=0), dict(top_p=0.0), dict(top_p=1.5)])
def test_filters_that_keep_nothing_or_more_than_all_are_refused(wrong):
    """The message names the value."""
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is {next(iter(wrong.values()))}"):
        filter_logits(random(1, 5), **wrong)
    with pytest.raises(ValueError, match="temperature is -1"):
        generate(talker(), batch_of(["a"]), END, temperature=-1)


def test_the_same_seed_says_the_same_and_another_seed_something_else():
    """All randomness comes from the generator."""
    flamingo, prompt = talker(end=-50.0), batch_of(*PROMPTS, pad="left")

    def say(seed: int) -> list[list[int]]:
        return generate(flamingo, prompt, END, 8, 1.0, generator=torch.Generator().manual_seed(seed))

    assert say(1) == say(1) and say(1) != say(2)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_tokens_are_drawn_with_the_probabilities_of_the_tempered_softmax(temperature):
    """softmax(logits / temperature), from 4,000 draws: each frequency within four standard errors."""
    flamingo, draws = talker(), 4000
    prompt = batch_of(["ab"])
    expected = (next_log_p(flamingo, prompt, []) / temperature).softmax(-1)
    many = Batch(*(t.expand(draws, -1) for t in (prompt.ids, prompt.labels, prompt.attention_mask)))
    dice = torch.Generator().manual_seed(0)
    drawn = Counter(a[0] if a else END for a in generate(flamingo, many, END, 1, temperature, generator=dice))
    for token, p in enumerate(expected.tolist()):
        assert abs(drawn[token] / draws - p) <= 4 * (p * (1 - p) / draws) ** 0.5 + 1e-9


def test_no_image_token_is_ever_generated():
    """<image> has no logit: every id is of the language model's vocabulary, however hot the dice."""
    flamingo, prompt = talker(end=-50.0), batch_of(*PROMPTS * 8, pad="left")
    answers = generate(flamingo, prompt, END, 20, temperature=50.0, generator=torch.Generator().manual_seed(0))
    assert {token for a in answers for token in a} == set(range(LETTERS.vocab_size)) - {END}


def test_no_gradient_is_kept():
    """Generation is not training."""
    flamingo = enliven(talker()).requires_grad_(True)
    assert not score_answers(flamingo, batch_of(PROMPTS[0]), [[[3, 4]]]).requires_grad


# --------------------------------------------------------------------------------------------- many after one prompt

SHOTS = ["a", picture(1), "bcd", EOC, picture(2), "e", EOC]
QUERIES = [[picture(3), "f"], ["gh"], ["a", picture(4, frames=3), "b", picture(5), "cde"], [picture(6)]]
ANSWERS = {
    "greedy": lambda f, p, after=None: generate(f, p, END, 10, after=after),
    "sampled": lambda f, p, after=None: generate(f, p, END, 10, 1.0, generator=torch.Generator().manual_seed(1), after=after),
    "beams": lambda f, p, after=None: beam_search(f, p, END, 3, 6, after=after),
    "scores": lambda f, p, after=None: score_answers(f, p, [[[3, 4, END], [5], [6, 7, 8, 9]]] * len(p.ids), after=after),
}


def remembered(flamingo: Flamingo, *rows: list, pad: str = "left"):
    with torch.inference_mode():
        return flamingo.read(batch_of(*rows, pad=pad), use_cache=True)[1]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("how", ANSWERS)
def test_shots_read_once_give_the_answers_of_shots_read_with_each_query(how, seed):
    """§3: the same shots before several queries; in one row for all, and in a row for each."""
    flamingo = talker(seed, end=0.5, flat=0.3)
    expected = ANSWERS[how](flamingo, batch_of(*[SHOTS + q for q in QUERIES], pad="left"))
    queries = batch_of(*QUERIES, bos=False)
    for after in (remembered(flamingo, SHOTS), remembered(flamingo, *[SHOTS] * len(QUERIES))):
        answers = ANSWERS[how](flamingo, queries, after)
        assert close(answers, expected, 2e-5) if how == "scores" else answers == expected


@pytest.mark.parametrize("how", ANSWERS)
def test_each_query_may_have_shots_of_its_own(how):
    """As RICES chooses them: prompts of different lengths, read once for several answers or rounds."""
    flamingo = talker(1, end=0.5, flat=0.3)
    expected = ANSWERS[how](flamingo, batch_of(*[p + q for p, q in zip(PROMPTS, QUERIES)], pad="left"))
    after = remembered(flamingo, *PROMPTS)
    for _ in range(2):  # the cache is as it was
        answers = ANSWERS[how](flamingo, batch_of(*QUERIES, bos=False), after)
        assert close(answers, expected, 2e-5) if how == "scores" else answers == expected


def test_each_image_is_encoded_once_for_twenty_queries():
    """Two shots and twenty queries with an image each: 22 images pass the eye, the resampler and each projection."""
    flamingo, seen = talker(end=-50.0), Counter()
    after_all = [[picture(10 + i), "ab"[: i % 3]] if i % 3 else [picture(10 + i)] for i in range(20)]
    for name, module in {"eye": flamingo.vision, "resampler": flamingo.resampler}.items():
        module.register_forward_hook(lambda _m, x, _y, name=name: seen.update({name: len(x[0])}))
    to_kv = flamingo.xattn_layers["2"].xattn.to_kv
    to_kv.register_forward_hook(lambda _m, x, _y: seen.update({"to_kv": x[0].shape[0] * x[0].shape[1] // 3}))
    after = remembered(flamingo, SHOTS)
    queries = batch_of(*after_all, bos=False)
    assert [len(a) for a in generate(flamingo, queries, END, 4, after=after)] == [4] * 20
    assert seen == {"eye": 22, "resampler": 22, "to_kv": 22}


def test_a_prompt_is_kept_once_under_all_queries_and_beams(monkeypatch):
    """The shots' keys stay where they are while 4 queries with 3 beams each write; and so do the images of the beams."""
    flamingo, places = talker(end=-50.0), []
    after = remembered(flamingo, SHOTS)
    read_on = flamingo.read_on

    def spy(ids, cache):
        prompt = cache.lm.shared[0].k
        places.append((prompt.data_ptr(), cache.media[0][0].data_ptr(), len(prompt)))
        return read_on(ids, cache)

    monkeypatch.setattr(flamingo, "read_on", spy)
    beam_search(flamingo, batch_of(*QUERIES, bos=False), END, 3, 5, after=after)
    assert len(places) == 4 and len(set(places)) == 1
    assert places[0][0] == after.lm.own[0].k.data_ptr() and places[0][2] == 1


def test_a_cache_of_neither_one_row_nor_as_many_as_prompts_is_refused():
    """Two prompts cannot be dealt out to four queries by guessing."""
    flamingo = talker()
    for how in ANSWERS.values():
        with pytest.raises(ValueError, match="4 rows cannot go on from a cache of 2"):
            how(flamingo, batch_of(*QUERIES, bos=False), remembered(flamingo, *PROMPTS[:2]))
