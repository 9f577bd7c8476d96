"""Commands built from the package: train, finetune, ablate, benchmarks (eval), bench. Only `__main__` imports them."""
