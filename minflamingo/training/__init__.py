"""The lessons: contrastive, language and Flamingo objectives, the optimiser, checkpoints."""
