"""Micro-batches: the samples of one step as several batches, each of samples of similar length, so there is little padding.

    lengths 2 2 3 9 9 in one batch: 5 * 9 = 45 tokens;  as 2 2 3 | 9 9: 3 * 3 + 2 * 9 = 27 tokens
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

from ..data.sample import Sample, collate, tokenize_sample
from ..flamingo import Batch
from ..tokenizer import Tokenizer


def least_padding(lengths: Sequence[int], parts: int, max_samples: int) -> list[int]:
    """Where to cut samples of ascending lengths into at most `parts` batches, so that they have the fewest tokens with padding.

    >>> least_padding([2, 2, 3, 9, 9], parts=2, max_samples=5)
    [0, 3, 5]
    """
    # Dynamic programming. best[b]: the fewest tokens for the first b samples, and the cuts that give them.
    best = [(0, [0]), *[(float("inf"), [])] * len(lengths)]
    for _ in range(parts):
        # The last batch is samples a ... b - 1, as wide as its longest sample.
        best = best[:1] + [
            min((best[a][0] + lengths[b - 1] * (b - a), [*best[a][1], b]) for a in range(max(0, b - max_samples), b))
            for b in range(1, len(lengths) + 1)
        ]
    return best[-1][1]


def micro_batches(
    samples: Sequence[Sample], parts: int, tokenizer: Tokenizer, preprocess: Callable | None = None, *,
    max_samples: int | None = None,
) -> list[tuple[float, Batch]]:  # fmt: skip
    """At most `parts` batches (more if one would have over `max_samples`), each with its share of all labels.

    The mean loss over all labels is sum(share * loss), so the gradient is that of one large batch.
    """
    rows = [tokenize_sample(sample, tokenizer, preprocess, f"sample {i}") for i, sample in enumerate(samples)]
    rows.sort(key=lambda row: len(row.ids))
    most = max_samples or len(rows)
    cuts = least_padding([len(row.ids) for row in rows], max(parts, -(-len(rows) // most)), most)
    batches = [collate(rows[a:b], tokenizer) for a, b in pairwise(cuts)]
    n_labels = [int((batch.labels[:, 1:] >= 0).sum()) for batch in batches]  # nothing predicts the first token
    return [(n / max(sum(n_labels), 1), batch) for n, batch in zip(n_labels, batches)]
