"""IDEFICS of a current transformers, run by an interpreter that has it; requests and answers as in `peer_open_flamingo.py`.

    ENV/bin/python peer_idefics.py FOLDER      (FOLDER/case.json says the sizes)

A new token's cross-attention reads the keys of all images, and the resampler and their projections run again for each.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from torch import nn
from transformers import IdeficsConfig, IdeficsForVisionText2Text


def build(vocabulary: int, d: int, layers: int, heads: int, d_ff: int, length: int, d_vision: int, every: int, latents: int):
    """A random model whose gates are open. Token `vocabulary` is <fake_token_around_image>, + 1 is <image>."""
    torch.manual_seed(0)
    config = IdeficsConfig(
        vocab_size=vocabulary, additional_vocab_size=2, hidden_size=d, intermediate_size=d_ff, num_hidden_layers=layers,
        num_attention_heads=heads, cross_layer_interval=every, max_position_embeddings=length, use_resampler=True, dropout=0.0,
        alpha_initializer="ones", pad_token_id=0, bos_token_id=1, eos_token_id=2,
        vision_config=dict(embed_dim=d_vision, image_size=28, patch_size=14, intermediate_size=64, num_hidden_layers=1,
                           num_attention_heads=4),
        perceiver_config=dict(use_resampler=True, resampler_n_latents=latents, resampler_depth=6, resampler_n_heads=8,
                              resampler_head_dim=64),
    )  # fmt: skip
    return IdeficsForVisionText2Text(config).eval()


def last_image(ids: torch.Tensor, image_id: int, n_media: int) -> torch.Tensor:
    """(B, L, N): which image a token may look at, as their processor lays it out."""
    return nn.functional.one_hot((ids == image_id).cumsum(1), n_media + 1)[..., 1:]


def answer(model, optimizer, request: dict) -> dict:
    """Do what is asked, once."""
    given = torch.load(request["input"], weights_only=True)
    ids, features = given["ids"], given["media"][:, :, 0].flatten(0, 1)  # (B·N, S, d)
    mask, image_id = torch.ones_like(ids), model.config.vocab_size + 1
    looks = last_image(ids, image_id, given["media"].shape[1])
    if request.get("count_memory"):
        Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    if request["do"] == "generate":
        n, length = request["tokens"], ids.shape[1]
        with torch.no_grad():
            out = model.generate(ids, attention_mask=mask, image_hidden_states=features, image_attention_mask=looks,
                                 max_new_tokens=n, min_new_tokens=n, do_sample=False)[:, length:]  # fmt: skip
    else:
        with torch.set_grad_enabled(request["do"] == "step"):
            out = model(ids, attention_mask=mask, image_encoder_embeddings=features, image_attention_mask=looks).logits
        if request["do"] == "read":
            out = out[:, -1]
        else:  # their own loss fails where there are additional tokens
            optimizer.zero_grad()
            targets = given["labels"][:, 1:].flatten()
            out = nn.functional.cross_entropy(out[:, :-1].flatten(0, 1).float(), targets)
            out.backward()
            nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
            if request.get("update", True):
                optimizer.step()
            out = out.detach()
    taken = time.perf_counter() - start
    torch.save(out, request["output"])
    peak = None
    if request.get("count_memory"):
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
        peak = int(line.split()[1]) * 1024
    return {"seconds": taken, "peak": peak}


def main(folder: Path) -> None:
    case = json.loads((folder / "case.json").read_text())
    torch.set_num_threads(case.pop("threads"))
    model = build(**case)
    model.requires_grad_(False)
    inside = model.model
    for part in (inside.perceiver_resampler, inside.gated_cross_attn_layers, inside.embed_tokens.additional_embedding):
        part.requires_grad_(True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    torch.save({k: v.clone() for k, v in model.state_dict().items()}, folder / "weights.pt")
    print(json.dumps({"ready": True, "config": json.loads(model.config.to_json_string(use_diff=False))}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(model, optimizer, json.loads(line))), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
