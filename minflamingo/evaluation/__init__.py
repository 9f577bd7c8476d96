"""The few-shot protocol and its metrics."""
