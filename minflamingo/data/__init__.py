"""Samples, batches, image preparation, and the readers of datasets: lists on disk, shards, and mixtures of these."""

from .images import ImagePreparation, as_frames, clip_preparation, idefics_preparation
from .mixture import Mixture, Part
from .readers import JsonlDataset, write_jsonl
from .records import Documents, Pairs, Videos
from .sample import EOC, Batch, Sample, Unscored, collate
from .shards import ShardStream

__all__ = [
    "EOC", "Batch", "Documents", "ImagePreparation", "JsonlDataset", "Mixture", "Pairs", "Part", "Sample", "ShardStream",
    "Unscored", "Videos", "as_frames", "clip_preparation", "collate", "idefics_preparation", "write_jsonl",
]  # fmt: skip
