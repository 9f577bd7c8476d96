"""Features of the frozen vision encoder, computed once per image: one support image is in the prompts of many queries.

RICES, retrieval-based in-context example selection (paper section 3.1 and appendix; Yang et al. 2022), compares them. From a
large support set, take the examples whose images are most similar to the query's image:

    f = mean over frames and patches of the frozen vision encoder's features, divided by its length      similarity = f_q . f_e

The most similar example is the last one in the prompt, directly before the query. Example: f_q = (1, 0) and support features
(0.6, 0.8), (1, 0), (0, 1) have the similarities 0.6, 1, 0. With two shots the prompt shows example 0, then example 1.
"""

import zlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from tqdm import tqdm

from ..pipeline import Pipeline
from .task import Example, Task


class FeatureCache:
    """Features by medium: several questions about one image share them.

    memory: bytes; then the least recently used features are dropped. 2 GB are 2,000 images of CLIP ViT-L/14.
    """

    def __init__(self, pipeline: Pipeline, *, memory: int = 2 << 30):
        self.pipeline, self.memory = pipeline, memory
        self.features: dict[Callable, Tensor] = {}  # from the least to the most recently used
        self.broken: dict[Callable, str] = {}  # medium -> error message
        self.rices: tuple | None = None  # (support, its usable examples, their pooled features): see `support_features`

    @torch.no_grad()
    def get(self, example: Example) -> Tensor | None:
        """(T, S, D) on the CPU. None: `media()` raised OSError or ValueError, and `self.broken` has the message."""
        media, vision = example.media, self.pipeline.model.vision
        if media in self.broken:
            return None
        if media in self.features:
            features = self.features.pop(media)
        else:
            try:
                pixels = self.pipeline.preprocess(media())  # (T, C, H, W)
            except (OSError, ValueError) as error:
                self.broken[media] = str(error)
                return None
            features = vision(pixels.to(self.pipeline.device, next(vision.parameters()).dtype)).cpu()
        self.features[media] = features  # a dict keeps the order of insertion, so the last entry is the newest one
        while len(self.features) > 1 and sum(f.nbytes for f in self.features.values()) > self.memory:
            del self.features[next(iter(self.features))]
        return features


def pool_features(features: Tensor) -> Tensor:
    """(T, S, D) -> (D,) of length 1."""
    return normalize(features.float().mean((0, 1)), dim=0)


def most_similar(query: Tensor, support: Tensor) -> list[int]:
    """The numbers of the rows of `support` (n, D), the most similar to the query (D,) FIRST. All rows have length 1.

    Of equally similar rows the earlier one comes first.
    """
    similarity = support @ query  # (n,) cosines
    return similarity.sort(descending=True, stable=True).indices.tolist()


def support_features(cache: FeatureCache, task: Task) -> tuple[list[Example], Tensor]:
    """The support examples that can be opened, and their pooled features (n, D). Computed once; the cache stores them."""
    if cache.rices is None or cache.rices[0] is not task.support:
        usable, rows, n = [], [], len(task.support)
        for example in tqdm(task.support, desc="RICES: encoding", disable=n < 2000, leave=False):
            if (features := cache.get(example)) is not None:
                usable.append(example)
                rows.append(pool_features(features))
        if not usable:
            why = next((cache.broken[example.media] for example in task.support), "it is empty")
            raise ValueError(f"{task.name}: RICES cannot open any of the {n} support examples ({why})")
        cache.rices = (task.support, usable, torch.stack(rows))
    return cache.rices[1:]


def fingerprint(module: nn.Module) -> str:
    """Eight letters that change with the weights: a checksum of each tensor's name, its shape and about 256 of its values."""
    checksum = 0
    for name, tensor in sorted(module.state_dict().items()):
        flat = tensor.detach().flatten()
        values = flat[:: max(1, len(flat) // 256)].float().cpu().numpy().tobytes()
        checksum = zlib.crc32(values, zlib.crc32(f"{name} {tuple(tensor.shape)}".encode(), checksum))
    return f"{checksum:08x}"
