"""Features of the frozen vision encoder, computed once per image. One support image is in the prompts of many queries."""

import zlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..pipeline import Pipeline
from .task import Example


class FeatureCache:
    """Features by medium: several questions about one image share them.

    memory: bytes; then the least recently used features are dropped. 2 GB are 2,000 images of CLIP ViT-L/14.
    """

    def __init__(self, pipeline: Pipeline, *, memory: int = 2 << 30):
        self.pipeline, self.memory = pipeline, memory
        self.features: dict[Callable, Tensor] = {}  # from the least to the most recently used
        self.broken: dict[Callable, str] = {}  # medium -> error message
        self.rices: tuple | None = None  # (support, its usable examples, their pooled features): see rices.py

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


def fingerprint(module: nn.Module) -> str:
    """Eight letters that change with the weights: a checksum of each tensor's name, its shape and about 256 of its values."""
    checksum = 0
    for name, tensor in sorted(module.state_dict().items()):
        flat = tensor.detach().flatten()
        values = flat[:: max(1, len(flat) // 256)].float().cpu().numpy().tobytes()
        checksum = zlib.crc32(values, zlib.crc32(f"{name} {tuple(tensor.shape)}".encode(), checksum))
    return f"{checksum:08x}"
