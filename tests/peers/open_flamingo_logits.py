"""Small random models of open_flamingo 2.0.1: their weights, inputs, logits and generated tokens, in one file.

    ENV/bin/python tests/peers/open_flamingo_logits.py OUT.pt

`open_flamingo_peer.py` makes the models, and says what ENV contains. `tests/test_pretrained.py` compares with ours.
"""

import sys

import torch
from open_flamingo_peer import build


@torch.no_grad()
def case(family: str, every: int) -> dict:
    d_ff = 128 if family == "mpt" else 48
    model = build(50, d=32, layers=4, heads=4, length=40, d_vision=32, d_ff=d_ff, every=every, family=family)
    for p in model.parameters():
        p.add_(torch.randn_like(p) * 0.25)  # so that not always the same token is the most likely one
    ids = torch.randint(0, 50, (2, 14))
    ids[0, [2, 6, 7]] = 51  # <image>
    ids[1, [0, 5, 9]] = 51
    pixels = torch.randn(2, 3, 3, 28, 28)  # (B, N, C, H, W)
    inputs = (pixels[:, :, None], ids, torch.ones_like(ids))
    result = {"family": family, "every": every, "ids": ids, "pixels": pixels, "logits": model(*inputs).logits,
              "lm": model.lang_encoder.config.to_json_string(),
              "state": {k: v.clone() for k, v in model.state_dict().items()}}  # fmt: skip
    how = {"max_new_tokens": 10, "do_sample": False, "suppress_tokens": [51], "eos_token_id": 50, "pad_token_id": 52}
    for beams in (1, 3):
        tokens = model.generate(*inputs, num_beams=beams, length_penalty=0.0, **how)
        result[f"tokens, {beams} beams"] = tokens[:, ids.shape[1] :]
    return result


if __name__ == "__main__":
    families = ("opt", "gpt_neox", "llama", "mpt")
    torch.save([case(family, every) for family in families for every in (1, 2, 4)], sys.argv[1])
