"""RICES, retrieval-based in-context example selection (paper section 3.1 and appendix; Yang et al. 2022).

From a large support set, take the examples whose images are most similar to the query's image:

    f = mean over frames and patches of the frozen vision encoder's features, divided by its length      similarity = f_q . f_e

The most similar example is the last one in the prompt, directly before the query. Example: f_q = (1, 0) and support features
(0.6, 0.8), (1, 0), (0, 1) have the similarities 0.6, 1, 0. With two shots the prompt shows example 0, then example 1.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from ..training.checkpoint import load_tensors, save_tensors
from .features import FeatureCache, fingerprint
from .task import Task, task_fingerprint


def pool_features(features: Tensor) -> Tensor:
    """(T, S, D) -> (D,) of length 1."""
    return normalize(features.float().mean((0, 1)), dim=0)


def most_similar(queries: Tensor, support: Tensor, k: int) -> list[list[int]]:
    """For each query (Q, D) the numbers of its k most similar support rows (n, D), the most similar FIRST.

    All rows have length 1. Of equally similar rows the earlier one comes first. Rows of NaN, broken images, come last.
    """
    similarity = (queries @ support.T).nan_to_num(nan=-torch.inf)  # (Q, n) cosines
    return similarity.sort(dim=1, descending=True, stable=True).indices[:, :k].tolist()


def support_features(cache: FeatureCache, task: Task) -> Tensor:
    """(n, D), a row for each support example. Stored in memory, and in `cache.folder` for later runs."""
    vision, size, support = cache.pipeline.model.vision, cache.pipeline.preprocess.size, task.support
    name = f"rices-{task.name}-{task_fingerprint(task)['support']:08x}-{fingerprint(vision)}-{size}"
    path = cache.folder and cache.folder / f"{name}.pt"
    if name not in cache.support_features and path and path.is_file():
        cache.support_features[name] = load_tensors(path)["features"]
    if name in cache.support_features:
        return cache.support_features[name]
    pooled: dict[int, Tensor] = {}
    for start in tqdm(range(0, len(support), 256), desc="RICES: encoding", disable=len(support) < 2000, leave=False):
        numbers = range(start, min(start + 256, len(support)))
        cache.encode(support[i] for i in numbers)  # one call: large batches are faster
        pooled |= {i: pool_features(f) for i in numbers if (f := cache.get(support[i])) is not None}
    if not pooled:
        why = next((cache.broken[example.media] for example in support), "it is empty")
        raise ValueError(f"{task.name}: RICES cannot open any of the {len(support)} support examples ({why})")
    broken = torch.full_like(next(iter(pooled.values())), torch.nan)
    cache.support_features[name] = torch.stack([pooled.get(i, broken) for i in range(len(support))])
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors({"features": cache.support_features[name]}, path)
    return cache.support_features[name]
