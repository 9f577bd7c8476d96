"""Run by an interpreter that has open_flamingo 2.0.1: small random models, their weights, inputs and logits, into one file.

    ENV/bin/python tests/peers/open_flamingo_logits.py OUT.pt

`minflamingo/bench/peer_open_flamingo.py` makes the models, and says what that environment holds. `tests/test_pretrained.py`
reads the file and compares.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "minflamingo" / "bench"))

from peer_open_flamingo import build


@torch.no_grad()
def case(family: str, every: int) -> dict:
    model = build(family, vocabulary=50, d=32, layers=4, heads=4, d_ff=48 if family != "mpt" else 128, length=40, d_vision=32,
                  every=every)  # fmt: skip
    for p in model.parameters():
        p.add_(torch.randn_like(p) * 0.1)
    ids = torch.randint(0, 50, (2, 14))
    ids[0, [2, 6, 7]] = 51
    ids[1, [0, 5, 9]] = 51
    pixels = torch.randn(2, 3, 1, 3, 28, 28)
    logits = model(pixels, ids, torch.ones_like(ids)).logits
    state = {k: v.clone() for k, v in model.state_dict().items()}
    return {"family": family, "every": every, "ids": ids, "pixels": pixels, "logits": logits,
            "lm": model.lang_encoder.config.to_json_string(), "state": state}  # fmt: skip


if __name__ == "__main__":
    families = ("opt", "gpt_neox", "llama", "mpt")
    torch.save([case(family, every) for family in families for every in (1, 2, 4)], sys.argv[1])
