"""Features of the frozen vision encoder, computed once per image. One support image is in the prompts of many queries."""

import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..pipeline import Pipeline
from .task import Example

MEDIA_PER_STEP, FRAMES_PER_CALL = 32, 64  # media in memory at a time; images per call of the vision encoder


class FeatureCache:
    """Features by medium: several questions about one image share them.

    Args:
        memory: bytes; then the least recently used features are dropped. 2 GB are 2,000 images of CLIP ViT-L/14.
        folder: where `rices.py` stores the features of support sets. None: nowhere.
    """

    def __init__(self, pipeline: Pipeline, *, memory: int = 2 << 30, folder: str | Path | None = None):
        self.pipeline, self.memory, self.folder = pipeline, memory, folder and Path(folder)
        self.features: OrderedDict[Callable, Tensor] = OrderedDict()  # from the least to the most recently used
        self.broken: dict[Callable, str] = {}  # medium -> error message
        self.support_features: dict[str, Tensor] = {}  # of RICES

    @torch.no_grad()
    def encode(self, examples: Iterable[Example]) -> None:
        """Compute what is missing. If a medium raises OSError or ValueError, only this medium is marked as broken."""
        vision, missing = self.pipeline.model.vision, []
        for media in dict.fromkeys(example.media for example in examples):
            if media in self.features:
                self.features.move_to_end(media)
            elif media not in self.broken:
                missing.append(media)
        for start in range(0, len(missing), MEDIA_PER_STEP):
            pixels: dict[Callable, Tensor] = {}
            for media in missing[start : start + MEDIA_PER_STEP]:
                try:
                    pixels[media] = self.pipeline.preprocess(media())  # (T, C, H, W)
                except (OSError, ValueError) as error:
                    self.broken[media] = str(error)
            if pixels:
                frames = torch.cat(list(pixels.values())).to(next(vision.parameters()).dtype)  # (all frames, C, H, W)
                features = torch.cat([vision(part.to(self.pipeline.device)).cpu() for part in frames.split(FRAMES_PER_CALL)])
                for media, of_medium in zip(pixels, features.split([len(p) for p in pixels.values()])):
                    self.features[media] = of_medium.clone()  # a view would keep the features of all media in memory
            while len(self.features) > 1 and sum(f.nbytes for f in self.features.values()) > self.memory:
                self.features.popitem(last=False)

    def get(self, example: Example) -> Tensor | None:
        """(T, S, D) on the CPU. None: the medium is broken, and `self.broken` says why."""
        self.encode([example])
        return self.features.get(example.media)


def fingerprint(module: nn.Module) -> str:
    """Eight letters that change with the weights: a checksum of each tensor's name, its shape and about 256 of its values."""
    checksum = 0
    for name, tensor in sorted(module.state_dict().items()):
        flat = tensor.detach().flatten()
        values = flat[:: max(1, len(flat) // 256)].float().cpu().numpy().tobytes()
        checksum = zlib.crc32(values, zlib.crc32(f"{name} {tuple(tensor.shape)}".encode(), checksum))
    return f"{checksum:08x}"
