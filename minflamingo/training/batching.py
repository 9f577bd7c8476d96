"""Micro-batches: the samples of one step in several small batches of samples with similar length, so there is little padding.

    lengths 2 2 3 9 9 in one batch: 5 * 9 = 45 tokens;  in two, 2 2 3 | 9 9: 3 * 3 + 2 * 9 = 27 tokens
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from ..data.sample import Sample, collate, tokenize_sample
from ..flamingo import Batch
from ..tokenizer import Tokenizer


def least_padding(lengths: Sequence[int], parts: int, max_samples: int | None = None) -> list[int]:
    """Where to cut samples of ascending lengths into `parts` batches with the fewest tokens, padding included.

    Dynamic programming: best[b] is the smallest number of tokens for the first b samples.

    >>> least_padding([2, 2, 3, 9, 9], parts=2)
    [0, 3, 5]
    """
    most = max_samples or len(lengths)
    best = [(0, [0]), *[(float("inf"), [])] * len(lengths)]  # (tokens, cuts)
    for _ in range(parts):
        found = best[:1]
        for b in range(1, len(lengths) + 1):
            sizes = {a: best[a][0] + lengths[b - 1] * (b - a) for a in range(max(0, b - most), b)}
            least = min(sizes.values())
            found.append((least, min([*best[a][1], b] for a in sizes if sizes[a] == least)))
        best = found
    return best[-1][1]


def micro_batches(
    samples: Sequence[Sample], parts: int, tokenizer: Tokenizer, preprocess: Callable | None = None, *,
    max_samples: int | None = None,
) -> list[tuple[float, Batch]]:  # fmt: skip
    """At most `parts` batches, each with its share of the labels (more parts if `max_samples` per batch need it).

    The mean loss over all samples is sum(share * loss), so the gradient is that of one large batch.
    """
    rows = [tokenize_sample(sample, tokenizer, preprocess, f"sample {i}") for i, sample in enumerate(samples)]
    rows = sorted(rows, key=lambda row: len(row.ids))
    if max_samples:
        parts = max(parts, -(-len(rows) // max_samples))
    cuts = least_padding([len(row.ids) for row in rows], parts, max_samples)
    batches = [collate(rows[a:b], tokenizer) for a, b in pairwise(cuts)]
    labels = [int((batch.labels >= 0).sum()) for batch in batches]
    return [(n / max(sum(labels), 1), batch) for n, batch in zip(labels, batches)]
