"""open_flamingo 2.0.1 for the bench (the protocol is in `serve.py`), or for `tests/test_pretrained.py`:

    ENV/bin/python tests/peers/open_flamingo_peer.py OUT.pt      small random models: weights, inputs, logits, generated tokens

ENV needs: torch, open_flamingo 2.0.1 without its pinned dependencies, transformers 4.33.3, einops, einops-exts:

    python -m venv ENV && ENV/bin/pip install torch einops transformers==4.33.3
    ENV/bin/pip install --no-deps open_flamingo==2.0.1 einops-exts
"""

from __future__ import annotations

import sys
import types
from pathlib import Path

import torch
import transformers
from serve import serve
from torch import nn

# open_flamingo's factory imports it, but we do not use it.
sys.modules.setdefault("open_clip", types.ModuleType("open_clip"))

from open_flamingo.src.factory import _infer_decoder_layers_attr_name  # noqa: E402
from open_flamingo.src.flamingo import Flamingo  # noqa: E402
from open_flamingo.src.flamingo_lm import FlamingoLMMixin  # noqa: E402
from open_flamingo.src.utils import extend_instance  # noqa: E402


def changes(**sizes) -> dict:
    """The number of latents is fixed. The vision encoder is the small one below."""
    vision = {"image_size": 28, "patch_size": 14, "n_layers": 2, "n_heads": 4, "activation": "quick_gelu"}
    return {"vision": {**vision, "keep_class_token": False}, "resampler": {"n_latents": 64}}


def language_model(family: str, vocabulary: int, d: int, layers: int, heads: int, d_ff: int, length: int) -> nn.Module:
    sizes = {"vocab_size": vocabulary, "hidden_size": d, "num_hidden_layers": layers, "num_attention_heads": heads}
    sizes["max_position_embeddings"] = length
    if family == "opt":
        return transformers.OPTForCausalLM(transformers.OPTConfig(**sizes, ffn_dim=d_ff, word_embed_proj_dim=d, dropout=0.0))
    if family == "gpt_neox":
        config = transformers.GPTNeoXConfig(**sizes, intermediate_size=d_ff, rotary_pct=1.0, use_parallel_residual=False)
        return transformers.GPTNeoXForCausalLM(config)
    if family == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, intermediate_size=d_ff))
    config = transformers.MptConfig(vocab_size=vocabulary, d_model=d, n_layers=layers, n_heads=heads, max_seq_len=length)
    return transformers.MptForCausalLM(config)


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


class VisionEncoder(nn.Module):
    """A ViT with the parameter names of open_clip. Like open_clip up to 2.22 it returns (pooled, patches).

    Features (M, D, S, 1) in the place of pixels are returned as they are. The bench then times everything else.
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


def build(
    vocabulary: int, d: int, layers: int, heads: int, length: int, d_vision: int, d_ff: int | None = None, every: int = 1,
    latents: int = 64, family: str = "opt",
) -> Flamingo:  # fmt: skip
    """A random model with open gates. Tokens V, V + 1, V + 2: <|endofchunk|>, <image>, <PAD>. It always has 64 latents."""
    torch.manual_seed(0)
    lm = language_model(family, vocabulary, d, layers, heads, d_ff or 4 * d, length)
    lm.resize_token_embeddings(vocabulary + 3)
    extend_instance(lm, FlamingoLMMixin)
    lm.set_decoder_layers_attr_name(_infer_decoder_layers_attr_name(lm))
    vision = types.SimpleNamespace(visual=VisionEncoder(d_vision, 4))
    model = Flamingo(vision, lm, vocabulary, vocabulary + 1, vis_dim=d_vision, cross_attn_every_n_layers=every)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.02)
        for layer in model.lang_encoder.gated_cross_attn_layers:
            if layer is not None:
                layer.attn_gate.fill_(0.5)
                layer.ff_gate.fill_(0.5)
    return model.eval()


def trained(model: Flamingo) -> list[nn.Module]:
    lm = model.lang_encoder
    return [model.perceiver, lm.gated_cross_attn_layers, lm.get_input_embeddings()]


def pixels(media: torch.Tensor) -> torch.Tensor:
    """Features (B, N, 1, S, D) -> (B, N, 1, D, S, 1), which `VisionEncoder` returns as (S, D) again."""
    return media.transpose(-1, -2)[..., None]


def logits(model: Flamingo, ids: torch.Tensor, media: torch.Tensor) -> torch.Tensor:
    return model(pixels(media), ids, torch.ones_like(ids)).logits


def generate(model: Flamingo, ids: torch.Tensor, media: torch.Tensor, n: int) -> torch.Tensor:
    how = {"max_new_tokens": n, "min_new_tokens": n, "num_beams": 1, "do_sample": False, "pad_token_id": 0}
    return model.generate(pixels(media), ids, torch.ones_like(ids), **how)


def loss(model: Flamingo, ids: torch.Tensor, labels: torch.Tensor, media: torch.Tensor) -> torch.Tensor:
    return model(pixels(media), ids, torch.ones_like(ids), labels=labels).loss


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


if __name__ == "__main__" and sys.argv[1].endswith(".pt"):
    families = ("opt", "gpt_neox", "llama", "mpt")
    torch.save([case(family, every) for family in families for every in (1, 2, 4)], sys.argv[1])
elif __name__ == "__main__":
    serve(sys.modules[__name__], Path(sys.argv[1]))
