"""Run by an interpreter that has open_flamingo 2.0.1: small random models, their weights, inputs and logits, into one file.

    ENV/bin/python tests/peers/open_flamingo_logits.py OUT.pt

That environment: torch, open_flamingo 2.0.1 without its pinned dependencies, transformers 4.33.3, einops, einops-exts.
`tests/test_pretrained.py` reads the file and compares.
"""

from __future__ import annotations

import sys
import types

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

SIZES = dict(vocab_size=50, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, max_position_embeddings=40)
LMS = {
    "opt": lambda: OPTForCausalLM(OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32, dropout=0.0)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(
        GPTNeoXConfig(**SIZES, intermediate_size=48, rotary_pct=1.0, use_parallel_residual=False)
    ),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=48)),
    "mpt": lambda: MptForCausalLM(MptConfig(vocab_size=50, d_model=32, n_layers=4, n_heads=4, max_seq_len=40)),
}  # fmt: skip


class Block(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        self.ln_1, self.ln_2, self.attn = nn.LayerNorm(d), nn.LayerNorm(d), nn.MultiheadAttention(d, 4, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(d, 4 * d), "c_proj": nn.Linear(4 * d, d)})

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        y = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](y * torch.sigmoid(1.702 * y))


class Tower(nn.Module):
    """A vision tower with open_clip's names, which returns what open_clip up to 2.22 did: (pooled, patches)."""

    def __init__(self, d: int = 32):
        super().__init__()
        self.conv1 = nn.Conv2d(3, d, 14, 14, bias=False)
        self.class_embedding, self.positional_embedding = nn.Parameter(torch.zeros(d)), nn.Parameter(torch.zeros(5, d))
        self.ln_pre, self.ln_post, self.proj = nn.LayerNorm(d), nn.LayerNorm(d), nn.Parameter(torch.zeros(d, 16))
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(Block(d) for _ in range(2))})

    def forward(self, pixels):
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        x = self.ln_pre(x)
        for block in self.transformer["resblocks"]:
            x = block(x)
        return self.ln_post(x[:, 0]) @ self.proj, x[:, 1:]


@torch.no_grad()
def case(name: str, every: int) -> dict:
    torch.manual_seed(0)
    lm = LMS[name]()
    lm.resize_token_embeddings(53)
    extend_instance(lm, FlamingoLMMixin)
    lm.set_decoder_layers_attr_name(_infer_decoder_layers_attr_name(lm))
    model = Flamingo(types.SimpleNamespace(visual=Tower()), lm, 50, 51, vis_dim=32, cross_attn_every_n_layers=every)
    for p in model.parameters():
        p.add_(torch.randn_like(p) * 0.1)
    model.eval()
    ids = torch.randint(0, 50, (2, 14))
    ids[0, [2, 6, 7]] = 51
    ids[1, [0, 5, 9]] = 51
    pixels = torch.randn(2, 3, 1, 3, 28, 28)
    logits = model(pixels, ids, torch.ones_like(ids)).logits
    return {"family": name, "every": every, "ids": ids, "pixels": pixels, "logits": logits, "lm": lm.config.to_json_string(),
            "state": {k: v.clone() for k, v in model.state_dict().items()}}  # fmt: skip


if __name__ == "__main__":
    torch.save([case(name, every) for name in LMS for every in (1, 2, 4)], sys.argv[1])
