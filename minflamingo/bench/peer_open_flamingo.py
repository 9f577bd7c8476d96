"""open_flamingo 2.0.1, run by an interpreter that has it: a random model, and on demand its logits, new tokens and steps.

    ENV/bin/python peer_open_flamingo.py FOLDER      (FOLDER/case.json says the sizes)

ENV: torch, open_flamingo 2.0.1 without its pinned dependencies, transformers 4.33.3, einops, einops-exts. `peers.py` talks to
it, a line of JSON a request: {"do": "read" | "generate" | "step", "input": FILE, …} → {"seconds": …, "peak": …}.
"""

from __future__ import annotations

import json
import sys
import time
import types
from pathlib import Path

import torch
from torch import nn

sys.modules.setdefault("open_clip", types.ModuleType("open_clip"))  # only its factory wants it, which is not used here

from open_flamingo.src.factory import _infer_decoder_layers_attr_name  # noqa: E402
from open_flamingo.src.flamingo import Flamingo  # noqa: E402
from open_flamingo.src.flamingo_lm import FlamingoLMMixin  # noqa: E402
from open_flamingo.src.utils import extend_instance  # noqa: E402
from transformers import (  # noqa: E402
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MptConfig,
    MptForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)


def language_model(family: str, vocabulary: int, d: int, layers: int, heads: int, d_ff: int, length: int) -> nn.Module:
    sizes = dict(vocab_size=vocabulary, hidden_size=d, num_hidden_layers=layers, num_attention_heads=heads,
                 max_position_embeddings=length)  # fmt: skip
    if family == "opt":
        return OPTForCausalLM(OPTConfig(**sizes, ffn_dim=d_ff, word_embed_proj_dim=d, dropout=0.0))
    if family == "gpt_neox":
        config = GPTNeoXConfig(**sizes, intermediate_size=d_ff, rotary_pct=1.0, use_parallel_residual=False)
        return GPTNeoXForCausalLM(config)
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=d_ff))
    return MptForCausalLM(MptConfig(vocab_size=vocabulary, d_model=d, n_layers=layers, n_heads=heads, max_seq_len=length))


class Block(nn.Module):
    def __init__(self, d: int, heads: int):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attn = nn.MultiheadAttention(d, heads, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(d, 4 * d), "c_proj": nn.Linear(4 * d, d)})

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        y = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](y * torch.sigmoid(1.702 * y))


class Tower(nn.Module):
    """A vision tower with open_clip's names, which returns what open_clip up to 2.22 did: (pooled, patches).

    Given features (M, d, S, 1) in the place of pixels it hands them on: then the eye is not part of what is timed.
    """

    def __init__(self, d: int, heads: int, layers: int = 2, patches: int = 4):
        super().__init__()
        self.conv1 = nn.Conv2d(3, d, 14, 14, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(d))
        self.positional_embedding = nn.Parameter(torch.zeros(patches + 1, d))
        self.ln_pre, self.ln_post, self.proj = nn.LayerNorm(d), nn.LayerNorm(d), nn.Parameter(torch.zeros(d, 16))
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(Block(d, heads) for _ in range(layers))})

    def forward(self, pixels):
        if pixels.shape[1] != 3:
            return None, pixels.flatten(2).transpose(1, 2)
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        x = self.ln_pre(x)
        for block in self.transformer["resblocks"]:
            x = block(x)
        return self.ln_post(x[:, 0]) @ self.proj, x[:, 1:]


def build(family: str, vocabulary: int, d: int, layers: int, heads: int, d_ff: int, length: int, d_vision: int, every: int):
    """A random model whose gates are open. Tokens `vocabulary` and + 1 are <|endofchunk|> and <image>, + 2 is <PAD>."""
    torch.manual_seed(0)
    lm = language_model(family, vocabulary, d, layers, heads, d_ff, length)
    lm.resize_token_embeddings(vocabulary + 3)
    extend_instance(lm, FlamingoLMMixin)
    lm.set_decoder_layers_attr_name(_infer_decoder_layers_attr_name(lm))
    eye = types.SimpleNamespace(visual=Tower(d_vision, 4))
    model = Flamingo(eye, lm, vocabulary, vocabulary + 1, vis_dim=d_vision, cross_attn_every_n_layers=every)
    return model.eval()


def answer(model, optimizer, request: dict) -> dict:
    """Do what is asked, once."""
    given = torch.load(request["input"], weights_only=True)
    ids, features = given["ids"], given["media"]  # (B, L), (B, N, 1, S, d)
    vision = features.transpose(-1, -2)[..., None]  # (B, N, 1, d, S, 1)
    mask = torch.ones_like(ids)
    if request.get("count_memory"):
        Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    if request["do"] == "read":
        with torch.no_grad():
            out = model(vision, ids, mask).logits[:, -1]
    elif request["do"] == "generate":
        n, length = request["tokens"], ids.shape[1]
        with torch.no_grad():
            out = model.generate(vision, ids, mask, max_new_tokens=n, min_new_tokens=n, num_beams=request.get("beams", 1),
                                 do_sample=False, pad_token_id=0)[:, length:]  # fmt: skip
    else:
        optimizer.zero_grad()
        loss = model(vision, ids, mask, labels=given["labels"]).loss
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        if request.get("update", True):
            optimizer.step()
        out = loss.detach()
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
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.02)
        for layer in model.lang_encoder.gated_cross_attn_layers:
            if layer is not None:
                layer.attn_gate.fill_(0.5), layer.ff_gate.fill_(0.5)
    model.requires_grad_(False)
    model.perceiver.requires_grad_(True)
    model.lang_encoder.gated_cross_attn_layers.requires_grad_(True)
    model.lang_encoder.get_input_embeddings().requires_grad_(True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    torch.save({k: v.clone() for k, v in model.state_dict().items()}, folder / "weights.pt")
    print(json.dumps({"ready": True, "lm": json.loads(model.lang_encoder.config.to_json_string())}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(model, optimizer, json.loads(line))), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
