"""Published models: presets, name tables, strict loading and tokenizers. They use the same model classes as everything else."""

from .loading import from_state_dict, load_lm

__all__ = ["from_state_dict", "load_lm"]
