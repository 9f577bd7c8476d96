"""Published checkpoints: name maps and configurations, one file a family. The model classes are those of the lesson."""
