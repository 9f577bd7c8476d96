"""Specification of `generate.py`: caches, beams and shared prompts against recomputing everything (section 3)."""

import itertools
from dataclasses import replace

import pytest
import torch
from conftest import EOC, LETTERS, batch_of, close, image, log_likelihood, next_log_p, tiny_flamingo

from minflamingo.flamingo import Batch, Flamingo
from minflamingo.generate import beam_search, decode_step, filter_logits, generate, prefill, score_answers

END = LETTERS.eoc_id
PROMPTS = [
    ["a", image(1), "bcd", EOC, image(2), "e"], [image(3), "f"], ["gh"],
    [image(4, frames=6), image(5), "abab", EOC, image(6), "ab", EOC],
]  # fmt: skip
SHOTS = ["a", image(1), "bcd", EOC, image(2), "e", EOC]
QUERIES = [[image(3), "f"], ["gh"], ["a", image(4, frames=3), "b", image(5), "cde"], [image(6)]]


def talker(seed: int = 0, end: float = 0.5, flat: float = 0.3, lm: dict | None = None, **changes) -> Flamingo:
    """A model of which some answers end early: the bias of <EOC> is `end`. `flat` below 1 brings all logits together."""
    flamingo = tiny_flamingo(seed, lm, **changes)
    with torch.no_grad():
        for p in flamingo.lm.final_norm.parameters():
            p.mul_(flat)
        flamingo.lm.head.bias[END] = end
    return flamingo


def slow_beam_search(flamingo: Flamingo, pieces: list, beams: int, steps: int, length_penalty=0.0, n_best=1) -> list[list[int]]:
    """Beam search of one prompt in which every hypothesis is recomputed from its pixels. One beam: greedy search."""
    running, finished = [(0.0, [])], []
    for length in range(1, steps + 1):
        candidates = []
        rows = next_log_p(flamingo, pieces, *(ids for _, ids in running)).view(len(running), -1).tolist()
        for (score, ids), log_p in zip(running, rows):
            candidates += [(score + p, [*ids, token]) for token, p in enumerate(log_p) if token != LETTERS.image_id]
        candidates.sort(key=lambda c: -c[0])
        finished += [(s / length**length_penalty, ids[:-1]) for s, ids in candidates[:beams] if ids[-1] == END]
        running = [c for c in candidates if c[1][-1] != END][:beams]
        if length_penalty == 0 and sum(score >= running[0][0] for score, _ in finished) >= n_best:
            break
    finished += [(score / steps**length_penalty, ids) for score, ids in running]
    return [ids for _, ids in sorted(finished, key=lambda c: -c[0])[:n_best]]


@pytest.mark.parametrize("pad", ["left", "right"])
def test_prefill_and_decode_steps_give_the_logits_of_the_whole_sequence(pad):
    """Section 3: each image and each token is encoded once; prompts of different lengths and numbers of images in one batch."""
    flamingo, new = talker(), torch.tensor([[3, 9, 4], [5, 5, 5], [10, 3, 6], [7, 8, 3]])
    logits, cache = prefill(flamingo, batch_of(*PROMPTS, pad=pad))
    for step in range(4):
        for b, row in enumerate(PROMPTS):
            assert close(logits[b].log_softmax(-1), next_log_p(flamingo, row, new[b, :step].tolist()))
        if step < 3:
            logits, cache = decode_step(flamingo, new[:, step], cache)


@pytest.mark.generate(points=3)
@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("seed", range(2))
def test_greedy_search_takes_the_most_likely_token_at_every_step(seed, pad):
    """Section 3, against a loop without any cache. Some answers end early and some reach the limit."""
    flamingo = talker(seed, end=1.0, flat=1.0)
    answers = generate(flamingo, batch_of(*PROMPTS, pad=pad), END, max_new_tokens=9)
    assert answers == [slow_beam_search(flamingo, row, 1, 9)[0] for row in PROMPTS]
    assert 9 in map(len, answers) and min(map(len, answers)) < 9


@pytest.mark.beam_search(points=4)
@pytest.mark.parametrize("beams, length_penalty, n_best", [(1, 0.0, 1), (3, 0.0, 1), (5, 0.0, 3), (3, 1.0, 2)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_beam_search_keeps_the_most_likely_hypotheses(seed, beams, length_penalty, n_best):
    """Appendix: beam 3. Caches are reordered with their hypotheses; the oracle recomputes everything."""
    flamingo, prompts = talker(seed, end=0.5 + length_penalty / 2), batch_of(*PROMPTS, pad="left")
    answers = beam_search(flamingo, prompts, END, beams=beams, max_new_tokens=5, length_penalty=length_penalty, n_best=n_best)
    expected = (slow_beam_search(flamingo, row, beams, 5, length_penalty, n_best) for row in PROMPTS)
    assert answers == list(itertools.chain.from_iterable(expected))


@pytest.mark.beam_search(points=3)
@pytest.mark.parametrize("seed", range(2))
def test_a_beam_as_wide_as_all_continuations_finds_the_most_likely_one(seed):
    """Section 3: exhaustive search over all answers of at most three tokens, <EOC> included, with a vocabulary of 5."""
    flamingo, prompt = talker(seed, end=-1.0, lm=dict(vocab_size=5)), torch.tensor([[1, 3, 4]])
    answers = [[*t, END] for n in range(3) for t in itertools.product([0, 1, 3, 4], repeat=n)]
    answers += [list(t) for t in itertools.product([0, 1, 3, 4], repeat=3)]  # the token limit ends these
    scores = []
    for answer in answers:
        ids = torch.cat([prompt, torch.tensor([answer])], dim=1)
        log_p = flamingo(Batch(ids, ids, torch.ones_like(ids, dtype=torch.bool)))[0][0, 2:-1].log_softmax(-1)
        scores.append(float(log_p.gather(1, ids[0, 3:, None]).sum().detach()))
    best = [token for token in answers[scores.index(max(scores))] if token != END]
    batch = Batch(prompt, prompt, torch.ones_like(prompt, dtype=torch.bool))
    assert beam_search(flamingo, batch, END, beams=125, max_new_tokens=3) == [best]


@pytest.mark.generate(points=2)
@pytest.mark.beam_search(points=1)
@pytest.mark.parametrize("search", [generate, beam_search])
def test_an_answer_ends_before_the_first_eoc_or_at_a_limit(search):
    """Section 3: <EOC> is not part of the answer. Limits: `max_new_tokens`, and the LM's context."""
    prompt = batch_of(*PROMPTS[:2], pad="left")
    assert search(talker(end=50.0), prompt, END) == [[], []], "<EOC> is the first token"
    for n in (0, 1, 3):
        assert [len(a) for a in search(talker(end=-50.0), prompt, END, max_new_tokens=n)] == [n, n], "no <EOC>"
    short, five_tokens = talker(end=-50.0, lm=dict(max_length=8)), batch_of([image(1), "abc"])
    assert [len(a) for a in search(short, five_tokens, END, max_new_tokens=50)] == [4]
    with pytest.raises(ValueError, match="context is 8"):
        search(short, batch_of([image(1), "abcdefgh"]), END)


@pytest.mark.generate(points=1)
@pytest.mark.beam_search(points=1)
@pytest.mark.score_answers(points=1)
def test_tokens_that_are_only_input_are_never_generated():
    """Section 3: a generated <image> would have no image, also if the model has an output row for it. <PAD> and <BOS> too."""
    flamingo, prompt, (pad, bos) = talker(end=-50.0, added_head="own"), batch_of(*PROMPTS, pad="left"), (0, 1)
    with torch.no_grad():
        flamingo.added_head.weight.mul_(30)
        flamingo.lm.head.bias[:2] = 3.0
    assert {int(i) for row in PROMPTS for i in next_log_p(flamingo, row).topk(3).indices} >= {pad, bos, LETTERS.image_id}
    for search, options in ((generate, dict(temperature=9.0)), (generate, {}), (beam_search, dict(max_new_tokens=6))):
        for answer in search(flamingo, prompt, END, banned=[pad, bos], **options):
            assert answer and set(answer) <= set(range(END + 1, LETTERS.image_id))
    scores = score_answers(flamingo, prompt, [[[3, END], [bos], [3, pad], [LETTERS.image_id, 3]]] * 4, banned=[pad, bos])
    assert scores[:, 0].isfinite().all() and (scores[:, 1:] == -torch.inf).all()


@pytest.mark.parametrize("search", [generate, beam_search])
def test_logits_can_be_adjusted_to_the_tokens_so_far(search):
    """Here no token may occur twice in an answer, and after three tokens only <EOC> is possible."""

    def adjust(rows: list[list[int]], logits: torch.Tensor) -> torch.Tensor:
        for ids, row in zip(rows, logits, strict=True):
            row[ids if len(ids) < 3 else [i for i in range(len(row)) if i != END]] = -torch.inf
        return logits

    free, adjusted = (search(talker(2, end=-50.0), batch_of(*PROMPTS, pad="left"), END, adjust=a) for a in (None, adjust))
    assert any(len(set(a)) < len(a) for a in free) and all(len(set(a)) == len(a) == 3 for a in adjusted)


@pytest.mark.generate(points=2)
def test_tokens_are_sampled_from_the_softmax_of_logits_divided_by_the_temperature():
    """Section 3: 4,000 samples, each frequency within four standard errors. top_k = 1 is greedy; the generator decides."""
    flamingo, n, one = talker(), 4000, batch_of(["ab"])
    expected = (next_log_p(flamingo, ["ab"]) / 0.5).softmax(-1)

    def sample(rows: int = 50, **options) -> list[list[int]]:
        many = Batch(*(t.expand(rows, -1) for t in (one.ids, one.labels, one.attention_mask)))
        return generate(flamingo, many, END, max_new_tokens=1, generator=torch.Generator().manual_seed(0), **options)

    tokens = torch.tensor([a[0] if a else END for a in sample(n, temperature=0.5)])
    frequencies = tokens.bincount(minlength=len(expected)) / n
    assert ((frequencies - expected).abs() <= 4 * (expected * (1 - expected) / n).sqrt()).all()
    assert sample(temperature=0.5) == sample(temperature=0.5)
    assert sample(temperature=2.0, top_k=1) == sample(temperature=2.0, top_p=1e-6) == sample(temperature=1e-40) == sample()


@pytest.mark.parametrize("options, kept", [
    (dict(top_p=0.4), [2]), (dict(top_p=0.79), [0, 2]), (dict(top_p=0.81), [0, 2, 3]), (dict(top_p=1.0), [0, 1, 2, 3]),
    (dict(top_k=1), [2]), (dict(top_k=3), [0, 2, 3]), (dict(top_k=9), [0, 1, 2, 3]),
    (dict(top_k=2, top_p=0.6), [2]), ({}, [0, 1, 2, 3]),
], ids=str)  # fmt: skip
def test_top_k_and_top_p_keep_the_most_likely_tokens(options, kept):
    """Probabilities 0.3, 0.05, 0.5, 0.15 by hand. top_p: the fewest tokens with this probability, measured among the top_k."""
    logits = torch.tensor([[0.3, 0.05, 0.5, 0.15], [0.25, 0.25, 0.25, 0.25]]).log()
    out = filter_logits(logits, **options)[0]
    assert [t for t in range(4) if out[t] > -torch.inf] == kept and torch.equal(out[kept], logits[0, kept])


@pytest.mark.score_answers(points=3)
def test_the_score_of_an_answer_is_the_sum_of_its_token_log_likelihoods():
    """Section 3: answers of different lengths, prompts of different lengths, against computing each from scratch."""
    flamingo = talker()
    answers = [[[3, END], [4, 5, 6, END], [7]], [[9], [10, 3, 3, 3, END], [3]], [[8, 8, 3], [4], [END]], [[3], [4], [5, 5]]]
    for pad in ("left", "right"):
        scores = score_answers(flamingo, batch_of(*PROMPTS, pad=pad), answers)
        expected = torch.tensor([[log_likelihood(flamingo, p, a) for a in several] for p, several in zip(PROMPTS, answers)])
        assert close(scores, expected, 2e-5) and not scores.requires_grad


@pytest.mark.score_answers(points=2)
def test_the_probabilities_of_all_answers_with_two_tokens_sum_to_one():
    """Section 3: the likelihood of an answer given the prompt, without the prompt's own likelihood and without a mean."""
    every_answer = [[list(pair) for pair in itertools.product(range(LETTERS.vocab_size), repeat=2)]]
    assert close(score_answers(talker(), batch_of(PROMPTS[0]), every_answer).exp().sum(1), torch.ones(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_in_half_precision_scores_are_not_rounded_and_a_low_temperature_is_greedy(dtype):
    """Softmax and sums are in fp32: in half precision many candidates would have the same score."""
    flamingo, prompt = talker().to(dtype), batch_of(["ab"], ["gh"])
    scores = score_answers(flamingo, prompt, [[[t] for t in range(LETTERS.vocab_size)]] * 2)
    assert close(scores, prefill(flamingo, prompt)[0].float().log_softmax(-1)) and scores.dtype == torch.float32
    assert generate(flamingo, prompt, END, temperature=1e-4) == generate(flamingo, prompt, END)


METHODS = {
    "greedy": lambda f, p, cache=None: generate(f, p, END, max_new_tokens=8, cache=cache),
    "beam search": lambda f, p, cache=None: beam_search(f, p, END, max_new_tokens=5, cache=cache),
    "scores": lambda f, p, cache=None: score_answers(f, p, [[[3, 4, END], [5], [6, 7, 8, 9]]] * len(p.ids), cache=cache),
}


@pytest.mark.generate(points=2)
@pytest.mark.beam_search(points=2)
@pytest.mark.score_answers(points=2)
@pytest.mark.parametrize("own_shots", [False, True], ids=["the same shots for all", "shots of its own for each query"])
@pytest.mark.parametrize("method", METHODS)
def test_queries_after_cached_shots_have_the_answers_of_the_whole_prompts(method, own_shots):
    """Section 3, few-shot prompts: the shots are processed once, and the cache can be used again."""
    flamingo = talker(1)
    shots = PROMPTS if own_shots else [SHOTS] * 4
    expected = METHODS[method](flamingo, batch_of(*[s + q for s, q in zip(shots, QUERIES)], pad="left"))
    with torch.inference_mode():
        _, cache = prefill(flamingo, batch_of(*(shots if own_shots else [SHOTS]), pad="left"))
    for _ in range(2):
        answers = METHODS[method](flamingo, batch_of(*QUERIES, bos=False), cache)
        assert close(answers, expected, 2e-5) if method == "scores" else answers == expected, "after cached shots"


def test_wrong_prompts_and_options_are_errors():
    """Each message says what is wrong and where."""
    flamingo, prompt, queries = talker(), batch_of(*PROMPTS, pad="left"), batch_of(*QUERIES, bos=False)
    _, cache = prefill(flamingo, batch_of(*PROMPTS[:2], pad="left"))
    empty = prompt.attention_mask & (torch.arange(4) != 2)[:, None]
    later = replace(queries, attend_next=torch.tensor([True] * 4))
    for message, call in {
        "prompt 2 is empty or has padding inside": lambda: prefill(flamingo, replace(prompt, attention_mask=empty)),
        "prompt 1 is empty or has padding inside": lambda: prefill(
            flamingo, replace(batch_of(["ab"], ["cd"]), attention_mask=torch.tensor([[1, 1, 1], [1, 0, 1]]).bool())),
        "0 images": lambda: prefill(flamingo, replace(prompt, media=None, frames=None)),
        "pad on the right": lambda: prefill(flamingo, batch_of(["a"], ["bc"], bos=False, pad="left"), cache),
        "4 prompts, but the cache has 2 rows": lambda: prefill(flamingo, queries, cache),
        "attend_next is for training only": lambda: prefill(flamingo, later, cache),
        "top_k is 0": lambda: filter_logits(torch.zeros(1, 5), top_k=0),
        "top_p is 0.0": lambda: filter_logits(torch.zeros(1, 5), top_p=0.0),
        "top_p is 1.5": lambda: filter_logits(torch.zeros(1, 5), top_p=1.5),
        "temperature is -1": lambda: generate(flamingo, prompt, END, temperature=-1),
        "temperature is nan": lambda: generate(flamingo, prompt, END, temperature=float("nan")),
        "beams is 0": lambda: beam_search(flamingo, prompt, END, beams=0),
        "n_best 4": lambda: beam_search(flamingo, prompt, END, n_best=4),
        "same number of candidates": lambda: score_answers(flamingo, prompt, [[[3]], [[3], [4]], [[3]], [[3]]]),
        "no candidate may be empty": lambda: score_answers(flamingo, prompt, [[[]]] * 4),
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call()
