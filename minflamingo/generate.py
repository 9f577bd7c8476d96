"""From a prompt to text: process the prompt once, then one token at a time, with caches.

    logits, cache = prefill(flamingo, prompt)                 the prompt: each image is encoded, resampled and projected once
    logits, cache = decode_step(flamingo, token, cache)       each new token: self-attention to the cache, cross-attention to
                                                              the R visual tokens of the prompt's last image
Open-ended answers are generated, greedily, by sampling or by beam search, up to the first `<EOC>`. Close-ended answers are
scored: each given answer is appended to the prompt, and its log-likelihood is summed (paper section 3 and appendix).

Several queries can share the same examples ("shots", paper section 3). Then the shots are processed once:

    _, cache = prefill(flamingo, support)                     one row: [cat, "Output: a cat", EOC, dog, ...]
    generate(flamingo, queries, eoc_id, cache=cache)          any number of rows: Sample([mouse, "Output:"], bos=False)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .flamingo import Batch, Cache, Flamingo
from .shapes import check_batch


def prefill(flamingo: Flamingo, prompt: Batch, cache: Cache | None = None) -> tuple[Tensor, Cache]:
    """Process whole prompts: logits (B, V) of the token after each prompt, and the cache for its continuation.

    Args:
        prompt: padded on the left or on the right. After a cache only on the right.
        cache: what comes before the prompts: one row for all of them, or one row each.
    Raises ValueError: the batch is invalid (`check_batch`), too long or unlike the cache; a prompt is empty or has a gap.
    """
    check_batch(prompt, flamingo.image_id, flamingo.lm.embed.num_embeddings + flamingo.config.n_added_tokens)
    if prompt.attend_next is not None and bool(prompt.attend_next.any()):
        raise ValueError("attend_next is for training only: a prompt attends to the last image before each token")
    mask, (B, L) = prompt.attention_mask, prompt.ids.shape
    if cache is not None:
        if len(cache.phi) == 1:
            cache = cache.repeat(B)  # the same shots for all prompts
        if len(cache.phi) != B:
            raise ValueError(f"{B} prompts, but the cache has {len(cache.phi)} rows: it needs 1 or {B}")
    end = (mask * torch.arange(1, L + 1, device=mask.device)).amax(1)  # (B,) the index after the last real token
    start = mask.int().argmax(1)  # (B,) the index of the first real token: argmax returns the first maximum
    wrong = (end == 0) | (mask.sum(1) != end - start) | (start > 0 if cache is not None else False)
    for b in wrong.nonzero().flatten().tolist():
        # after a cache, padding on the left would be between the cached tokens and the prompt
        side = "on the right" if cache is not None else "on the left or on the right"
        raise ValueError(f"prompt {b} is empty or has padding inside: pad {side}")
    # Of the final hidden states only the last real one is needed: the output layer is large with a real vocabulary.
    return flamingo(prompt, cache, head=lambda hidden: flamingo.head(hidden[torch.arange(B, device=mask.device), end - 1]))


def decode_step(flamingo: Flamingo, token: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
    """One more text token per row, (B,), not `<image>` -> logits (B, V) of the next token, and the new cache."""
    ids = token[:, None]  # (B, 1); the labels of a batch are not used here, so any will do
    logits, cache = flamingo(Batch(ids, ids, torch.ones_like(ids, dtype=torch.bool)), cache)
    return logits[:, -1], cache


def forbid(flamingo: Flamingo, logits: Tensor, banned: Sequence[int] = ()) -> Tensor:
    """Make `<image>` and the ids in `banned` impossible in logits or log-probabilities (..., V).

    A generated `<image>` would have no image. banned: other ids that are only input (`input_only` in data/sample.py).
    """
    # many models have no output for <image>: its id is V or above
    ids = [i for i in (flamingo.image_id, *banned) if 0 <= i < logits.shape[-1]]
    return logits.index_fill(-1, torch.tensor(ids, dtype=torch.long, device=logits.device), -torch.inf)


def filter_logits(logits: Tensor, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Restrict sampling: (B, V) with -inf except at the top_k most likely tokens and, of these, at the fewest that together
    have at least the probability top_p (nucleus sampling)."""
    if (top_k is not None and top_k < 1) or (top_p is not None and not 0 < top_p <= 1):
        raise ValueError(f"top_k is {top_k}, top_p is {top_p}; top_k must be at least 1 and top_p in (0, 1]")
    if top_k is not None:
        kth = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]  # (B, 1) the smallest logit that stays
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if top_p is not None and top_p < 1:
        ordered, index = logits.softmax(-1).sort(descending=True)
        # Drop a token if the more likely ones already have the probability top_p. So the most likely token always stays.
        drop = ordered.cumsum(-1) - ordered >= top_p
        logits = logits.masked_fill(torch.zeros_like(drop).scatter(1, index, drop), -torch.inf)
    return logits


@torch.inference_mode()
def generate(
    flamingo: Flamingo, prompt: Batch, eoc_id: int, *, max_new_tokens: int = 32, temperature: float = 0.0,
    top_k: int | None = None, top_p: float | None = None, generator: torch.Generator | None = None,
    on_token: Callable[[Tensor], None] | None = None, banned: Sequence[int] = (),
    adjust: Callable[[list[list[int]], Tensor], Tensor] | None = None, cache: Cache | None = None,
) -> list[list[int]]:  # fmt: skip
    """Continue each prompt up to `<EOC>`, which is not returned.

    Args:
        prompt, cache: as in `prefill`. banned: as in `forbid`.
        temperature: 0 takes the most likely token (greedy). Above 0 tokens are sampled: logits / temperature, then softmax.
        top_k, top_p: see `filter_logits`. generator: the random state for sampling.
        on_token: called with each new token (B,) as soon as it exists.
        adjust: called with the new tokens of each row so far and the next logits; returns other logits (see `pipeline.py`).
    """
    ### BEGIN SOLUTION generate
    if not 0 <= temperature < torch.inf or max_new_tokens < 0:  # the first is also false for NaN
        raise ValueError(f"temperature is {temperature} and max_new_tokens {max_new_tokens}; both must be 0 or above")
    logits, cache = prefill(flamingo, prompt, cache)
    # + 1: the last generated token is never fed back, so it needs no place in the context.
    steps = min(max_new_tokens, flamingo.lm.remaining_context(cache.lm.mask.shape[1]) + 1)
    running = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    new: list[Tensor] = []
    while len(new) < steps:
        # in fp32: half precision makes many probabilities equal
        logits = forbid(flamingo, logits.float(), banned)
        if adjust is not None:
            logits = adjust(torch.stack(new, dim=1).tolist() if new else [[]] * len(logits), logits)
        if temperature == 0:
            token = logits.argmax(-1)  # (B,)
        else:
            # the largest logit becomes 0: so a tiny temperature gives minus infinity for the others, and never infinity
            logits = ((logits - logits.amax(-1, keepdim=True)).double() / temperature).float()
            token = torch.multinomial(filter_logits(logits, top_k, top_p).softmax(-1), 1, generator=generator)[:, 0]
        new.append(torch.where(running, token, eoc_id))  # a finished row continues with <EOC>, which is cut off below
        if on_token is not None:
            on_token(new[-1])
        # a row stops at its first <EOC>; the loop stops when all rows have
        running &= token != eoc_id
        if not bool(running.any()) or len(new) == steps:
            break
        logits, cache = decode_step(flamingo, new[-1], cache)
    # (steps, B) -> (B, steps), then cut each row before its <EOC>
    rows = torch.stack(new, dim=1).tolist() if new else [[] for _ in logits]
    return [row[: row.index(eoc_id)] if eoc_id in row else row for row in rows]
    ### END SOLUTION


@torch.inference_mode()
def beam_search(
    flamingo: Flamingo, prompt: Batch, eoc_id: int, *, beams: int = 3, max_new_tokens: int = 32, length_penalty: float = 0.0,
    n_best: int = 1, banned: Sequence[int] = (), adjust: Callable[[list[list[int]], Tensor], Tensor] | None = None,
    cache: Cache | None = None,
) -> list[list[int]]:  # fmt: skip
    """The most likely continuations found with `beams` hypotheses per prompt, the paper's setting for open-ended tasks.

    Greedy search cannot take back a token. Beam search keeps the best few hypotheses, extends each by every token, and keeps
    the best few again. A hypothesis ends with `<EOC>`; its score is its log-likelihood / length ** length_penalty (0: no
    correction). The length counts the generated tokens, with `<EOC>`.

    Args:
        prompt, cache: as in `prefill`. All beams of a prompt share its cache. banned, adjust: as in `generate`.
        n_best: how many continuations of each prompt are returned, the best one first.
    """
    ### BEGIN SOLUTION beam_search
    if not 1 <= n_best <= beams or max_new_tokens < 0:
        raise ValueError(f"beams is {beams}, n_best {n_best}, max_new_tokens {max_new_tokens}; needs beams >= n_best >= 1")
    logits, cache = prefill(flamingo, prompt, cache)
    (B, V), device = logits.shape, logits.device
    steps = min(max_new_tokens, flamingo.lm.remaining_context(cache.lm.mask.shape[1]) + 1)
    cache = cache.repeat(beams)
    # from here on each prompt has `beams` rows, one after the other
    log_p = logits.float().log_softmax(-1).repeat_interleave(beams, 0)  # (B*beams, V)
    # The beams of a prompt start as copies of each other. Only the first may branch, or all would stay equal.
    # score[b, i]: the log-likelihood of hypothesis i of prompt b so far. -inf: does not exist.
    score = torch.full((B, beams), -torch.inf, device=device)
    score[:, 0] = 0.0
    tokens: list[list[list[int]]] = [[[] for _ in range(beams)] for _ in range(B)]
    finished: list[list[tuple[float, list[int]]]] = [[] for _ in range(B)]  # (score, tokens)
    for step in range(steps):
        log_p = forbid(flamingo, log_p, banned)
        if adjust is not None:
            log_p = adjust([ids for of_prompt in tokens for ids in of_prompt], log_p)
        total = score[..., None] + log_p.unflatten(0, (B, beams))  # (B, beams, V)
        # Each beam has one candidate that ends with <EOC>. So of 2 * beams candidates at least `beams` continue.
        top, index = total.flatten(1).topk(min(2 * beams, beams * V), dim=1)
        rows, next_tokens, score = [], [], torch.full((B, beams), -torch.inf, device=device)
        for b in range(B):
            # Candidates, best first. <EOC> among the best `beams` ends a hypothesis (as in transformers); the others continue.
            kept = []  # (parent beam, token)
            for rank, (s, i) in enumerate(zip(top[b].tolist(), index[b].tolist())):
                parent, token = divmod(i, V)  # index of (beam, token) in the flattened (beams * V)
                if token == eoc_id:
                    if rank < beams and s > -torch.inf:
                        finished[b].append((s / (step + 1) ** length_penalty, tokens[b][parent]))
                elif len(kept) < beams:
                    score[b, len(kept)] = s
                    kept.append((parent, token))
            # copy the parent's tokens: two hypotheses may have the same parent
            tokens[b] = [[*tokens[b][parent], token] for parent, token in kept]
            rows += [b * beams + parent for parent, _ in kept]
            next_tokens += [token for _, token in kept]
        # A longer hypothesis never has a higher log-likelihood. So stop when the (n_best) best finished scores are at least as
        # good as the best running one (not with a length penalty, which can raise the score of longer hypotheses).
        best = [sorted(f, reverse=True)[:n_best] for f in finished]
        settled = length_penalty == 0 and all(len(f) == n_best and f[-1][0] >= float(s.max()) for f, s in zip(best, score))
        if settled or step == steps - 1:
            break
        # beam i now continues the hypothesis of its parent, so it needs the parent's keys and values
        cache = cache.reorder(torch.tensor(rows, device=device))
        logits, cache = decode_step(flamingo, torch.tensor(next_tokens, device=device), cache)
        log_p = logits.float().log_softmax(-1)
    # At the token limit, the running hypotheses are answers too. (If all prompts were settled before it, none of them wins.)
    for b in range(B):
        finished[b] += [(s / max(steps, 1) ** length_penalty, ids) for s, ids in zip(score[b].tolist(), tokens[b])]
    return [ids for f in finished for _, ids in sorted(f, key=lambda entry: -entry[0])[:n_best]]
    ### END SOLUTION


@torch.inference_mode()
def score_answers(
    flamingo: Flamingo, prompt: Batch, answers: Sequence[Sequence[Sequence[int]]], *, pad_id: int = 0,
    banned: Sequence[int] = (), cache: Cache | None = None,
) -> Tensor:  # fmt: skip
    """Close-ended tasks: the log-likelihood of each given answer after its prompt.

    Args:
        prompt, cache: as in `prefill`. The prompt is processed once for all its answers.
        answers: for each prompt its candidates, each a list of ids. All prompts have the same number of candidates.
    Returns (B, A): sums of log-likelihoods; minus infinity for an answer with a token that `forbid` makes impossible.
    """
    ### BEGIN SOLUTION score_answers
    logits, cache = prefill(flamingo, prompt, cache)
    if len(answers) != len(logits) or any(len(a) != len(answers[0]) or not a or not all(map(len, a)) for a in answers):
        needs = "every prompt needs the same number of candidates, at least one, and no candidate may be empty"
        raise ValueError(f"score_answers: {len(logits)} prompts, candidates for {len(answers)}; {needs}")
    A, V = len(answers[0]), logits.shape[-1]
    # all candidates of all prompts become rows of one batch, padded on the right
    rows = [list(ids) for several in answers for ids in several]  # B*A answers
    for n, i in ((n, i) for n, row in enumerate(rows) for i in row if type(i) is not int or not 0 <= i < V):
        raise ValueError(f"score_answers: candidate {n % A} of prompt {n // A}: {i!r:.60} is not an id in 0 ... {V - 1}")
    longest = max(map(len, rows))
    ids = torch.tensor([row + [pad_id] * (longest - len(row)) for row in rows], device=logits.device)  # (B*A, longest)
    real = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in rows], device=logits.device)
    # The prompt's last token predicts the first token of every answer; each answer token predicts the next one.
    first = forbid(flamingo, logits.float().log_softmax(-1), banned).repeat_interleave(A, 0)[:, None]  # (B*A, 1, V)
    log_p = first.gather(2, ids[:, :1, None])[..., 0]  # (B*A, 1)
    if longest > 1:
        # the last token of an answer predicts nothing that we score, so it is not an input
        later, _ = flamingo(Batch(ids[:, :-1], ids[:, :-1], real[:, :-1]), cache.repeat(A))  # (B*A, longest - 1, V)
        later = forbid(flamingo, later.float().log_softmax(-1), banned).gather(2, ids[:, 1:, None])[..., 0]
        log_p = torch.cat([log_p, later.masked_fill(~real[:, 1:], 0.0)], dim=1)  # padding adds nothing
    return log_p.sum(1).unflatten(0, (-1, A))
    ### END SOLUTION
