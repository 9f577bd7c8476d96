"""The few-shot protocol and its metrics (paper section 3.1). Read task, fewshot, features, runner, metrics, benchmarks."""
