"""RICES, retrieval-based in-context example selection (paper section 3.1 and appendix; Yang et al. 2022).

From a large support set, take the examples whose images are most similar to the query's image:

    f = mean over frames and patches of the frozen vision encoder's features, divided by its length      similarity = f_q . f_e

The most similar example is the last one in the prompt, directly before the query. Example: f_q = (1, 0) and support features
(0.6, 0.8), (1, 0), (0, 1) have the similarities 0.6, 1, 0. With two shots the prompt shows example 0, then example 1.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..training.checkpoint import ProgressBar
from .features import FeatureCache
from .task import Example, Task


def pool_features(features: Tensor) -> Tensor:
    """(T, S, D) -> (D,) of length 1."""
    ### BEGIN SOLUTION rices
    return normalize(features.float().mean((0, 1)), dim=0)
    ### END SOLUTION


def most_similar(query: Tensor, support: Tensor) -> list[int]:
    """The numbers of the rows of `support` (n, D), the most similar to the query (D,) FIRST. All rows have length 1.

    Of equally similar rows the earlier one comes first.
    """
    ### BEGIN SOLUTION rices
    similarity = support @ query  # (n,) cosines
    return similarity.sort(descending=True, stable=True).indices.tolist()
    ### END SOLUTION


def support_features(cache: FeatureCache, task: Task) -> tuple[list[Example], Tensor]:
    """The support examples that can be opened, and their pooled features (n, D). Computed once; the cache stores them."""
    if cache.rices is None or cache.rices[0] is not task.support:
        usable, rows, n = [], [], len(task.support)
        for example in ProgressBar(task.support, desc="RICES: encoding", disable=n < 2000, leave=False):
            if (features := cache.get(example)) is not None:
                usable.append(example)
                rows.append(pool_features(features))
        if not usable:
            why = next((cache.broken[example.media] for example in task.support), "it is empty")
            raise ValueError(f"{task.name}: RICES cannot open any of the {n} support examples ({why})")
        cache.rices = (task.support, usable, torch.stack(rows))
    return cache.rices[1:]
