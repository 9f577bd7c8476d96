"""Optimizer and schedule, micro-batches, resumable stages, several cores and several GPUs."""
