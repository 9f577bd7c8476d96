"""Published checkpoints: name maps and configurations, one file a family. The model classes are those of the lesson."""

from .loading import from_state_dict, load_lm

__all__ = ["from_state_dict", "load_lm"]
