"""The frozen eye, looking at each item of a benchmark once.

    eye = Eye(flamingo)
    eye.look(examples)              pixels → features, many frames at a time; what is looked at already costs nothing
    eye.features(example)           (T, S, D), as a prompt takes them in the place of pixels; None: the file is broken
    eye.why_broken(example)         "no such file: …"; None: it is sound

A support picture stands in the prompts of many queries, and the eye is frozen: so it is encoded once and kept. What is kept is
bounded: 2 GB are 330,000 pictures of the toy world (16 patches of 96 numbers), and 2,000 of CLIP ViT-L/14 (256 of 1024, fp32).
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ..complete import LoadedFlamingo
from .task import Example


class Eye:
    """Features of examples, by their medium: several questions about one picture on disk look at it once.

    Args:
        memory: bytes; of more than that, the least recently used are forgotten.
        at_once: frames that go through the eye together.
    """

    def __init__(self, flamingo: LoadedFlamingo, memory: int = 2 << 30, at_once: int = 64):
        self.flamingo, self.memory, self.at_once = flamingo, memory, at_once
        self.kept: OrderedDict[Callable, Tensor] = OrderedDict()
        self.bytes = 0
        self.broken: dict[Callable, str] = {}

    def look(self, examples: Iterable[Example]) -> None:
        """Encode what is not known yet. An OSError or ValueError of a medium makes it broken, and nothing else."""
        waiting: dict[Callable, Tensor] = {}
        frames = 0
        for media in dict.fromkeys(example.media for example in examples):
            if media in self.broken:
                continue
            if media in self.kept:
                self.kept.move_to_end(media)
                continue
            try:
                medium = media()
                if isinstance(medium, Tensor) and medium.is_floating_point():  # features already
                    self._keep(media, medium)
                    continue
                waiting[media] = self.flamingo.prepare(medium)  # (T, C, H, W)
            except (OSError, ValueError) as error:
                self.broken[media] = str(error)
                continue
            frames += len(waiting[media])
            if frames >= self.at_once:
                self._encode(waiting)
                waiting, frames = {}, 0
        if waiting:
            self._encode(waiting)

    @torch.no_grad()
    def _encode(self, waiting: dict[Callable, Tensor]) -> None:
        model, pixels = self.flamingo.model, torch.cat(list(waiting.values()))
        dtype = next(model.vision.parameters()).dtype
        parts = [model.vision(part.to(self.flamingo.device, dtype)).cpu() for part in pixels.split(self.at_once)]
        for media, features in zip(waiting, torch.cat(parts).split([len(p) for p in waiting.values()])):
            self._keep(media, features.clone())  # a view would hold all of them

    def _keep(self, media: Callable, features: Tensor) -> None:
        self.kept[media] = features
        self.bytes += features.nbytes
        while self.bytes > self.memory and len(self.kept) > 1:
            _, forgotten = self.kept.popitem(last=False)
            self.bytes -= forgotten.nbytes

    def features(self, example: Example) -> Tensor | None:
        """(T, S, D) on the CPU, or None for a broken medium."""
        self.look([example])
        return self.kept.get(example.media)

    def why_broken(self, example: Example) -> str | None:
        """What was wrong when it was looked at."""
        return self.broken.get(example.media)


def fingerprint(module: nn.Module) -> str:
    """Eight letters that change when weights do: of every tensor its name, its shape and up to 256 of its numbers."""
    sum_ = 0
    for name, tensor in sorted(module.state_dict().items()):
        flat = tensor.detach().flatten()
        some = flat[:: max(1, len(flat) // 256)].float().cpu().numpy().tobytes()
        sum_ = zlib.crc32(some, zlib.crc32(f"{name} {tuple(tensor.shape)}".encode(), sum_))
    return f"{sum_:08x}"
