"""Published checkpoints, their weights and their tokenizers."""
