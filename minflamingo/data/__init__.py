"""Samples, batches, image preprocessing, and readers of datasets: JSON Lines files, shards, and mixtures of datasets."""
