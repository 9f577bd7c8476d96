"""RICES, retrieval-based in-context example selection (paper §3 and appendix; Yang et al. 2022): show what is like the query.

    feature of a medium   f = mean over frames and patches of the frozen eye's features, divided by its length
    likeness              f_query · f_example          cosine, 1 for the same direction
    prompt                the k most alike, the MOST alike last: next to the query, where a language model looks first

Example: f_query = (1, 0), support (0.6, 0.8), (1, 0), (0, 1): likeness 0.6, 1, 0; two shots are number 0, then number 1.

It needs a large support set, and sees each of its media once; so the features are kept on disk, under a name that changes
with the eye, the image preparation and the support set. Likeness is computed in tiles, never queries × support at once:
VQAv2's 443,757 training questions and 2,048 queries would be 3.6 GB.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from ..training.checkpoint import load_tensors, save_tensors
from .eye import Eye, fingerprint
from .task import Example


def pooled(features: Tensor) -> Tensor:
    """(T, S, D) → (D,), of length 1."""
    return normalize(features.float().mean((0, 1)), dim=0)


class Rices:
    """A support set that can be searched.

    Args:
        features: (n, D), rows of length 1; a row of NaN is a broken medium and is never found.
        keys: the support examples' keys, in the same order.
    """

    def __init__(self, features: Tensor, keys: Sequence[str]):
        if len(features) != len(keys):
            raise ValueError(f"RICES: {len(features)} features for {len(keys)} examples")
        self.broken = features.isnan().any(1)
        self.features, self.keys = features.nan_to_num(), list(keys)
        self.places: dict[str, list[int]] = {}
        for i, key in enumerate(self.keys):
            self.places.setdefault(key, []).append(i)

    def nearest(self, queries: Tensor, keys: Sequence[str], k: int, tile: int = 8192) -> list[list[int]]:
        """For each of the queries (Q, D) the `k` most alike support examples, the most alike FIRST.

        `keys`: the queries' own, none of which is found for itself. Fewer than k come back where there are no more.
        """
        found = []
        for at in range(0, len(queries), 256):
            rows, names = queries[at : at + 256], keys[at : at + 256]
            best = torch.full((len(rows), 0), 0.0)
            index = torch.zeros(len(rows), 0, dtype=torch.long)
            for start in range(0, len(self.keys), tile):
                likeness = rows @ self.features[start : start + tile].T
                likeness[:, self.broken[start : start + tile]] = -torch.inf
                for row, name in enumerate(names):
                    for i in self.places.get(name, ()):
                        if start <= i < start + tile:
                            likeness[row, i - start] = -torch.inf
                # Best first; of equals, the earlier example.
                both = torch.cat([best, likeness], 1)
                numbers = torch.cat([index, torch.arange(start, start + likeness.shape[1]).expand(len(rows), -1)], 1)
                order = both.sort(dim=1, descending=True, stable=True).indices[:, :k]
                best, index = both.gather(1, order), numbers.gather(1, order)
            for values, numbers in zip(best.tolist(), index.tolist()):
                found.append([i for v, i in zip(values, numbers) if v > -float("inf")])
        return found


def rices(eye: Eye, support: Sequence[Example], folder: str | Path | None = None) -> Rices:
    """Look at all of the support set, or read what an earlier call with the same eye and support has left in `folder`."""
    keys = [example.key for example in support]
    name = hashlib.sha1(
        "\n".join([fingerprint(eye.flamingo.model.vision), repr(eye.flamingo.prepare), *keys]).encode()
    ).hexdigest()[:16]
    path = None if folder is None else Path(folder) / f"rices-{name}.pt"
    if path is not None and path.is_file():
        kept = load_tensors(path)
        eye.broken.update({support[i].media: why for i, why in kept["broken"].items()})
        return Rices(kept["features"], keys)
    rows: list[Tensor | None] = []
    with tqdm(total=len(keys), desc="RICES: looking at the support", disable=len(keys) < 2000, leave=False) as bar:
        for start in range(0, len(keys), 256):
            part = [support[i] for i in range(start, min(start + 256, len(keys)))]
            eye.look(part)
            for example in part:
                features = eye.features(example)
                rows.append(None if features is None else pooled(features))
            bar.update(len(part))
    whole = next((row for row in rows if row is not None), None)
    if whole is None:
        why = next((eye.why_broken(example) for example in support), "there is none")
        raise ValueError(f"RICES: none of the {len(keys)} support examples can be opened ({why})")
    features = torch.stack([torch.full_like(whole, torch.nan) if row is None else row for row in rows])
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        lost = torch.where(features.isnan().any(1))[0].tolist()
        save_tensors({"features": features, "broken": {i: eye.why_broken(support[i]) for i in lost}}, path)
    return Rices(features, keys)
