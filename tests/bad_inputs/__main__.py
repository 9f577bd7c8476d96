"""`python -m tests.bad_inputs [AREA ...]`: run the cases and print those with another outcome than the expected one."""

import importlib
import sys

import torch
from tqdm import tqdm

from . import problems

AREAS = ("images", "records", "prompts", "configs", "weights", "options", "checkpoints")

if __name__ == "__main__":
    torch.set_num_threads(1)  # threads do not survive a fork
    failed = 0
    for area in sys.argv[1:] or AREAS:
        cases = list(importlib.import_module(f"tests.bad_inputs.{area}").cases())
        found = problems(tqdm(cases, desc=area, file=sys.stderr))
        print(f"{area}: {len(cases)} cases, {len(found)} with another outcome", *found, sep="\n    ")
        failed += len(found)
    raise SystemExit(min(failed, 1))
