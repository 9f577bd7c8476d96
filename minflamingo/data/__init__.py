"""Samples, batches, image preparation and the readers of datasets on disk."""

from .images import ImagePreparation, as_frames, clip_preparation, idefics_preparation
from .readers import JsonlDataset, write_jsonl
from .sample import EOC, Batch, Sample, Unscored, collate

__all__ = [
    "EOC", "Batch", "ImagePreparation", "JsonlDataset", "Sample", "Unscored", "as_frames", "clip_preparation", "collate",
    "idefics_preparation", "write_jsonl",
]  # fmt: skip
