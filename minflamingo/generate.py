"""From a prompt to text: read the prompt once, then one token at a time from caches.

    logits, cache = flamingo.read(batch, use_cache=True)      the prompt: every image encoded, resampled and projected ONCE
    logits, cache = flamingo.read_on(token, cache)            each new token: self-attention over the cache, cross-attention
                                                              to the R keys of the image the prompt ended with
Open-ended answers are generated, greedily or by beam search, and stop at the first `<EOC>`; close-ended ones are scored:
each given answer is appended to the prompt and its log-likelihood summed (paper §3, appendix).

Prompts of different lengths stand in one batch, padded on either side. Many queries after the same shots read these once:

    _, shots = flamingo.read(support, use_cache=True)         one row, [cat, "Output: a cat", EOC, dog, …]
    generate(flamingo, queries, eoc_id, after=shots)          any number of rows, [mouse, "Output:"], without a <BOS> each

Example, in the toy world:
    complete(flamingo, [cat, "Output: a cat", EOC, dog, "Output:"])   →   " a dog"
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .flamingo import Batch, Cache, Flamingo
from .lm import last_real


def filter_logits(logits: Tensor, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """(B, V) with −∞ everywhere but at the k most likely tokens, or the fewest that together hold top_p of the mass."""
    if top_k is not None:
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}; it must be at least 1")
        kth = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if top_p is not None:
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p is {top_p}; it must lie in (0, 1]")
        ordered, index = logits.softmax(-1).sort(descending=True)
        # A token is dropped when those before it already hold top_p: so the most likely one always stays.
        drop = ordered.cumsum(-1) - ordered >= top_p
        logits = logits.masked_fill(torch.zeros_like(drop).scatter(1, index, drop), -torch.inf)
    return logits


def read_prompt(flamingo: Flamingo, prompt: Batch, after: Cache | None = None) -> tuple[Tensor, Cache]:
    """What follows each prompt: logits (B, V) of the next token alone, and the cache behind it.

    Args:
        after: what was read before, one row for all prompts or one for each.
    Raises:
        ValueError: a prompt without any token, or with padding between its tokens.
    """
    mask = prompt.attention_mask
    last, counted = last_real(mask), mask.sum(1)
    width = last - mask.int().argmax(1) + 1
    if not torch.equal(counted, width) or not bool((counted > 0).all()):
        b = int(((counted != width) | (counted == 0)).nonzero()[0])
        raise ValueError(f"prompt {b} is empty, or has padding in its middle: pad on the left or on the right")
    if after is not None and len(after.phi) == 1:
        after = after.repeat(len(mask))
    at = torch.zeros_like(mask).scatter(1, last[:, None], True)
    return flamingo.read(prompt, True, at, after)


@torch.inference_mode()
def generate(
    flamingo: Flamingo,
    prompt: Batch,
    eoc_id: int,
    max_new_tokens: int = 32,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    on_token: Callable[[Tensor], None] | None = None,
    after: Cache | None = None,
) -> list[list[int]]:
    """Continue each prompt until `<EOC>`. temperature 0 is greedy; above it, sampled (with `generator` for a seed).

    Args:
        prompt: B prompts, padded left or right; behind a cache, right.
        max_new_tokens: stop there at the latest, or where the LM's context is full.
        on_token: called with each step's tokens (B,), as soon as they are there.
        after: the cache of what stands before all prompts (one row), or before each (B rows).
    Returns:
        Per prompt the new ids, without the `<EOC>`.
    """
    if temperature < 0:
        raise ValueError(f"temperature is {temperature}; it must be 0 (greedy) or positive")
    logits, cache = read_prompt(flamingo, prompt, after)
    room = flamingo.lm.room(cache.lm.length)
    running = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    new: list[Tensor] = []
    for step in range(min(max_new_tokens, room + 1)):
        if temperature == 0:
            token = logits.argmax(-1)
        else:
            probabilities = filter_logits(logits / temperature, top_k, top_p).softmax(-1)
            token = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
        new.append(torch.where(running, token, eoc_id))  # a finished row goes on with <EOC>, which is cut off below
        if on_token is not None:
            on_token(new[-1])
        running &= token != eoc_id
        if not bool(running.any()) or step == min(max_new_tokens, room + 1) - 1:
            break
        logits, cache = flamingo.read_on(new[-1][:, None], cache)
        logits = logits[:, -1]
    rows = torch.stack(new, dim=1).tolist() if new else [[] for _ in range(len(logits))]
    return [row[: row.index(eoc_id)] if eoc_id in row else row for row in rows]


@torch.inference_mode()
def beam_search(
    flamingo: Flamingo,
    prompt: Batch,
    eoc_id: int,
    beams: int = 3,
    max_new_tokens: int = 32,
    length_penalty: float = 0.0,
    after: Cache | None = None,
) -> list[list[int]]:
    """The most likely continuation that `beams` hypotheses kept side by side can find (the paper's open-ended setting).

    A hypothesis ends with `<EOC>`. Its score is its log-likelihood / length^length_penalty (0: no correction). The beams of a
    prompt share its caches, images too: reordering them selects rows of what they have written, and copies nothing else.
    `prompt` and `after` as in `generate`.
    """
    if beams < 1:
        raise ValueError(f"beams is {beams}; it must be at least 1")
    logits, cache = read_prompt(flamingo, prompt, after)
    B, V = logits.shape
    device = logits.device
    room = flamingo.lm.room(cache.lm.length)
    cache = cache.repeat(beams)
    log_p = logits.log_softmax(-1).repeat_interleave(beams, 0)  # (B·beams, V)
    score = torch.full((B, beams), -torch.inf, device=device)
    score[:, 0] = 0.0  # all beams start equal: only the first may branch
    tokens = torch.empty(B, beams, 0, dtype=torch.long, device=device)
    finished: list[list[tuple[float, list[int]]]] = [[] for _ in range(B)]
    steps = min(max_new_tokens, room + 1)
    for step in range(steps):
        total = score[..., None] + log_p.unflatten(0, (B, beams))  # (B, beams, V)
        # Twice as many candidates as beams: even if half of them end here, enough go on.
        top, index = total.flatten(1).topk(min(2 * beams, beams * V), dim=1)
        parent, token = index // V, index % V
        rows, next_tokens, score = [], [], torch.full((B, beams), -torch.inf, device=device)
        for b in range(B):
            kept = []
            for rank, (s, p, t) in enumerate(zip(top[b].tolist(), parent[b].tolist(), token[b].tolist())):
                if t == eoc_id:
                    if rank < beams and s > -torch.inf:
                        finished[b].append((s / (step + 1) ** length_penalty, tokens[b, p].tolist()))
                elif len(kept) < beams:
                    score[b, len(kept)] = s
                    kept.append((p, t))
            rows += [b * beams + p for p, _ in kept]
            next_tokens += [t for _, t in kept]
        rows = torch.tensor(rows, device=device)
        next_tokens = torch.tensor(next_tokens, device=device)
        tokens = torch.cat([tokens.flatten(0, 1)[rows], next_tokens[:, None]], dim=1).unflatten(0, (B, beams))
        # Scores only fall. Once the best finished one beats all that run (without a length correction), it has won.
        settled = length_penalty == 0 and all(f and max(f)[0] >= float(score[b].max()) for b, f in enumerate(finished))
        if settled or step == steps - 1:
            break
        logits, cache = flamingo.read_on(next_tokens[:, None], replace(cache, lm=cache.lm.select(rows)))
        log_p = logits[:, -1].log_softmax(-1)
    for b in range(B):  # out of room: what still runs is an answer too, if nothing has ended
        if not finished[b]:
            finished[b].append((float(score[b, 0]), tokens[b, 0].tolist()))
    return [max(f, key=lambda entry: entry[0])[1] for f in finished]


@torch.inference_mode()
def score_answers(
    flamingo: Flamingo,
    prompt: Batch,
    answers: Sequence[Sequence[Sequence[int]]],
    pad_id: int = 0,
    after: Cache | None = None,
) -> Tensor:
    """Close-ended: log-likelihood of each given answer after its prompt.

    The prompt is read once; its cache serves all its answers.

    Args:
        prompt, after: as in `generate`.
        answers: per prompt its candidates, each a list of ids; the same number of candidates for every prompt.
    Returns:
        (B, A) summed log-likelihoods.
    """
    A = len(answers[0])
    if any(len(a) != A for a in answers) or any(len(ids) == 0 for a in answers for ids in a):
        raise ValueError("score_answers: every prompt needs the same number of candidates, none of them empty")
    logits, cache = read_prompt(flamingo, prompt, after)
    rows = [list(ids) for a in answers for ids in a]
    longest = max(map(len, rows))
    ids = torch.tensor([r + [pad_id] * (longest - len(r)) for r in rows], device=logits.device)
    real = torch.tensor([[True] * len(r) + [False] * (longest - len(r)) for r in rows], device=logits.device)
    # The prompt's last token predicts the first one of each answer, each answer's tokens predict those behind them.
    log_p = logits.log_softmax(-1).repeat_interleave(A, 0).gather(1, ids[:, :1])  # (B·A, 1)
    if longest > 1:
        batch = Batch(ids[:, :-1], ids[:, :-1], real[:, :-1])
        following, _ = flamingo.read(batch, False, real[:, 1:], cache.repeat(A))  # (n, V), only where a token follows
        later = torch.zeros(ids[:, 1:].shape, dtype=logits.dtype, device=logits.device)
        later[real[:, 1:]] = following.log_softmax(-1).gather(1, ids[:, 1:][real[:, 1:]][:, None])[:, 0]
        log_p = torch.cat([log_p, later], dim=1)
    return log_p.sum(1).unflatten(0, (-1, A))


__all__ = ["Cache", "beam_search", "filter_logits", "generate", "read_prompt", "score_answers"]
