"""Samples, batches, image preparation, and the readers of datasets: lists on disk, shards, and mixtures of these."""

from .images import ImagePreprocessor, as_frames, clip_preprocessor, idefics_preprocessor
from .mixture import Mixture, Part
from .readers import JsonlDataset, write_jsonl
from .records import Documents, Pairs, Videos
from .sample import EOC, Batch, Sample, NoLoss, collate
from .shards import ShardStream

__all__ = [
    "EOC", "Batch", "Documents", "ImagePreprocessor", "JsonlDataset", "Mixture", "Pairs", "Part", "Sample", "ShardStream",
    "NoLoss", "Videos", "as_frames", "clip_preprocessor", "collate", "idefics_preprocessor", "write_jsonl",
]  # fmt: skip
