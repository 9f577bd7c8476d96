"""The few-shot protocol and its metrics (paper section 3.1). Read task, fewshot, rices, runner, metrics, benchmarks."""
