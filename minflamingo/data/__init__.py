"""Samples, batches, image preparation and the readers of datasets on disk."""

from .images import ImagePreparation, as_frames
from .readers import JsonlDataset, write_jsonl
from .sample import EOC, Batch, Sample, Unscored, collate

__all__ = [
    "EOC", "Batch", "ImagePreparation", "JsonlDataset", "Sample", "Unscored", "as_frames", "collate", "write_jsonl",
]  # fmt: skip
