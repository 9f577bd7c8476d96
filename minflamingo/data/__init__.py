"""Samples, batches, image preparation and the readers of datasets on disk."""

from .sample import EOC, Batch, Sample, Unscored, collate

__all__ = ["EOC", "Batch", "Sample", "Unscored", "collate"]
