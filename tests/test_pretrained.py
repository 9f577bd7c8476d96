"""Published weights in our classes give the numbers of their own code (an oracle each), and wrong checkpoints are refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import minflamingo
from minflamingo.config import VisionConfig
from minflamingo.flamingo import Batch
from minflamingo.gated_xattn import media_index
from minflamingo.pretrained import clip, families, flamingo_mini, openflamingo
from minflamingo.pretrained.loading import from_state_dict

transformers = pytest.importorskip("transformers")

SIZES = dict(vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=40)
LLAMA = dict(**SIZES, intermediate_size=48)
ROPE = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0}
# family → what transformers builds
CONFIGS = {
    "gpt2": lambda: transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=3, n_head=4, n_positions=40),
    "opt": lambda: transformers.OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32),
    "pythia": lambda: transformers.GPTNeoXConfig(**SIZES, intermediate_size=48),
    "redpajama": lambda: transformers.GPTNeoXConfig(
        **SIZES, intermediate_size=48, use_parallel_residual=False, rope_parameters=ROPE
    ),
    "mpt": lambda: transformers.MptConfig(vocab_size=50, d_model=32, n_layers=3, n_heads=4, max_seq_len=40),
    "mpt, 6 heads": lambda: transformers.MptConfig(vocab_size=50, d_model=48, n_layers=2, n_heads=6, max_seq_len=40),
    "llama": lambda: transformers.LlamaConfig(**LLAMA),
    "grouped": lambda: transformers.LlamaConfig(**LLAMA, num_key_value_heads=2, tie_word_embeddings=True, rms_norm_eps=1e-5),
    "biased": lambda: transformers.LlamaConfig(**LLAMA, attention_bias=True, mlp_bias=True),
}  # fmt: skip


def awake(model: nn.Module) -> nn.Module:
    """No weight at zero or one: then a forgotten bias, norm or gate shows."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model.eval()


def theirs(family: str) -> nn.Module:
    """A small random language model of transformers."""
    torch.manual_seed(0)
    return awake(transformers.AutoModelForCausalLM.from_config(CONFIGS[family](), attn_implementation="eager"))


def numbers(*shape: int, below: int = 50, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(seed))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


# -------------------------------------------------------------------------------------------------- language models


@pytest.mark.parametrize("family", CONFIGS)
@torch.no_grad()
def test_a_language_model_has_the_logits_of_its_own_code(family):
    """Same weights, same ids: equal to 1e-5, relative."""
    model, ids = theirs(family), numbers(2, 20)
    lm = from_state_dict(model.config, model.state_dict())
    assert relative(lm(lm.embed(ids))[0], model(ids).logits) < 1e-5
    again = from_state_dict(lm.config, model.state_dict())  # our own config; the names say which family it is
    assert torch.equal(again(again.embed(ids))[0], lm(lm.embed(ids))[0])


@pytest.mark.parametrize("family", CONFIGS)
@torch.no_grad()
def test_left_padding_moves_nothing_in_a_published_language_model(family):
    """A row that stands behind padding has the logits that their code gives it alone."""
    model, ids = theirs(family), numbers(2, 20)
    lm = from_state_dict(model.config, model.state_dict())
    real = torch.ones(2, 20, dtype=torch.bool)
    real[0, :6] = False
    logits = lm(lm.embed(ids), real)[0]
    assert relative(logits[:1, 6:], model(ids[:1, 6:]).logits) < 1e-5 and relative(logits[1:], model(ids[1:]).logits) < 1e-5


@pytest.mark.parametrize("family", CONFIGS)
@torch.no_grad()
def test_a_published_language_model_reads_on_from_its_cache(family):
    """In three portions, the last of one token: the logits of the whole in their code."""
    model, ids = theirs(family), numbers(2, 20)
    lm = from_state_dict(model.config, model.state_dict())
    parts, cache = [], None
    for part in ids.split([12, 7, 1], dim=1):
        logits, cache = lm(lm.embed(part), cache=cache, use_cache=True)
        parts.append(logits)
    assert relative(torch.cat(parts, dim=1), model(ids).logits) < 1e-5


@pytest.mark.parametrize("family", [f for f in CONFIGS if f not in ("gpt2", "opt")])
@torch.no_grad()
def test_relative_positions_go_on_beyond_the_trained_length(family):
    """Rotary and ALiBi have no last position: 60 tokens, where the config says 40."""
    model, ids = theirs(family), numbers(1, 60)
    lm = from_state_dict(model.config, model.state_dict())
    if family.startswith("mpt"):  # their code has no ALiBi ready for more than max_seq_len
        longer = type(model)(transformers.MptConfig(**{**model.config.to_dict(), "max_seq_len": 60})).eval()
        longer.load_state_dict(model.state_dict())
        model = longer
    assert relative(lm(lm.embed(ids))[0], model(ids).logits) < 1e-5


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_learned_positions_end_where_their_table_ends(family):
    """40 positions: 41 tokens are refused, with a sentence."""
    model = theirs(family)
    lm = from_state_dict(model.config, model.state_dict())
    lm(lm.embed(numbers(1, 40)))
    with pytest.raises(ValueError, match="41 tokens, but the language model's context is 40"):
        lm(lm.embed(numbers(1, 41)))


@torch.no_grad()
def test_a_mosaic_gpt_is_an_mpt_with_a_norm_over_all_queries_and_keys():
    """OpenFlamingo-3B's language model (its own names), against the equations written out."""
    d, h, layers, V = 32, 4, 2, 50
    torch.manual_seed(0)
    state = {"transformer.wte.weight": torch.randn(V, d), "transformer.ln_f.weight": torch.randn(d)}
    shapes = {
        "ln_1.weight": (d,), "attn.Wqkv.weight": (3 * d, d), "attn.q_ln.weight": (d,), "attn.k_ln.weight": (d,),
        "attn.out_proj.weight": (d, d), "ln_2.weight": (d,), "mlp.mlp_up.weight": (4 * d, d), "mlp.mlp_down.weight": (d, 4 * d),
    }  # fmt: skip
    state |= {f"transformer.blocks.{i}.{k}": torch.randn(s) * 0.3 for i in range(layers) for k, s in shapes.items()}
    config = dict(model_type="mosaic_gpt", vocab_size=V, d_model=d, n_layers=layers, n_heads=h, mlp_ratio=4, attn_qk_ln=True,
                  alibi=True, alibi_bias_max=8, attn_clip_qkv=None, no_bias=True)  # fmt: skip
    lm, ids = from_state_dict(config, state), numbers(1, 10)
    logits = lm(lm.embed(ids))[0]

    x = state["transformer.wte.weight"][ids[0]]
    distance = torch.arange(10)[None, :] - torch.arange(10)[:, None]
    for i in range(layers):
        w = {k: state[f"transformer.blocks.{i}.{k}"] for k in shapes}
        norm = lambda t, weight: F.layer_norm(t, (d,), weight)  # noqa: E731
        q, k, v = (norm(x, w["ln_1.weight"]) @ w["attn.Wqkv.weight"].T).chunk(3, dim=-1)
        q, k = norm(q, w["attn.q_ln.weight"]), norm(k, w["attn.k_ln.weight"])
        heads = []
        for n in range(h):
            at = slice(n * d // h, (n + 1) * d // h)
            scores = q[:, at] @ k[:, at].T / (d // h) ** 0.5 + 2 ** (-8 * (n + 1) / h) * distance
            heads.append(scores.masked_fill(distance > 0, -torch.inf).softmax(-1) @ v[:, at])
        x = x + torch.cat(heads, dim=1) @ w["attn.out_proj.weight"].T
        x = x + F.gelu(norm(x, w["ln_2.weight"]) @ w["mlp.mlp_up.weight"].T) @ w["mlp.mlp_down.weight"].T
    oracle = F.layer_norm(x, (d,), state["transformer.ln_f.weight"]) @ state["transformer.wte.weight"].T
    assert relative(logits[0], oracle) < 1e-5


# ----------------------------------------------------------------------------------------------------------- the eye

EYE = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=28, patch_size=14)


def clip_tower(act: str = "quick_gelu") -> nn.Module:
    torch.manual_seed(0)
    return awake(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**EYE, hidden_act=act)))


def as_open_clip(state: dict, prefix: str = "") -> dict:
    """The same weights in open_clip's layout: q, k and v in one, other names."""
    state = {name.removeprefix("vision_model."): tensor for name, tensor in state.items() if "position_ids" not in name}
    names = {
        "embeddings.class_embedding": "class_embedding", "embeddings.position_embedding.weight": "positional_embedding",
        "embeddings.patch_embedding.weight": "conv1.weight", "pre_layrnorm": "ln_pre", "post_layernorm": "ln_post",
        "encoder.layers": "transformer.resblocks", "self_attn.out_proj": "attn.out_proj", "layer_norm": "ln_",
        "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    }  # fmt: skip
    out = {}
    for name, tensor in state.items():
        if "k_proj" in name or "v_proj" in name:
            continue
        if "q_proj" in name:
            tensor = torch.cat([state[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"])
            name = name.replace("self_attn.q_proj.", "attn.in_proj_")
        for a, b in names.items():
            name = name.replace(a, b)
        out[prefix + name] = tensor
    return out | {f"{prefix}proj": torch.zeros(32, 16)}


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
@torch.no_grad()
def test_a_clip_tower_has_the_features_of_its_own_code_in_both_layouts(act):
    """All tokens before the last norm, which is `last_hidden_state`; OpenFlamingo reads the patches alone."""
    tower, pixels = clip_tower(act), torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    oracle = tower(pixels).last_hidden_state
    config = clip.config(tower.config.to_dict(), keep_class_token=True)
    patches = replace(config, keep_class_token=False)
    state = tower.state_dict()
    for layout in (state, as_open_clip(state), as_open_clip(state, "visual.") | {"logit_scale": torch.zeros(())}):
        assert relative(from_state_dict(config, layout)(pixels), oracle) < 1e-5
        assert relative(from_state_dict(patches, layout)(pixels), oracle[:, 1:]) < 1e-5


def test_the_towers_have_the_parameter_counts_of_their_tables():
    """ViT-B/32, B/16, L/14, L/14-336 and H/14, as published, without projection and last norm (on the meta device)."""
    from minflamingo.vision import ViT

    counts = {"ViT-B-32": 87.4, "ViT-B-16": 85.8, "ViT-L-14": 303.2, "ViT-L-14-336": 303.5, "ViT-H-14": 630.8}
    for name, millions in counts.items():
        with torch.device("meta"):
            eye = ViT(clip.named_config(name))
        assert sum(p.numel() for p in eye.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


# ---------------------------------------------------------------------------------------------------------- Flamingos


def idefics(**changes) -> nn.Module:
    """A small Idefics with everything on: QK norms, resampler, two additional tokens."""
    torch.manual_seed(0)
    config = transformers.IdeficsConfig(**{
        **dict(
            vocab_size=50, additional_vocab_size=2, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
            num_attention_heads=4, cross_layer_interval=2, qk_layer_norms=True, use_resampler=True,
            vision_config=dict(embed_dim=24, image_size=28, patch_size=14, intermediate_size=40, num_hidden_layers=2,
                               num_attention_heads=4),
            perceiver_config=dict(use_resampler=True, resampler_n_latents=3, resampler_depth=2, resampler_n_heads=2,
                                  resampler_head_dim=10, qk_layer_norms_perceiver=True),
        ),
        **changes,
    }, attn_implementation="eager")  # fmt: skip
    return awake(transformers.IdeficsForVisionText2Text(config))


@pytest.mark.parametrize(
    "changes",
    [{}, {"alpha_type": "vector"}, {"cross_layer_interval": 1}, {"cross_layer_interval": 4}, {"qk_layer_norms": False}],
)
@torch.no_grad()
def test_idefics_has_the_logits_of_its_own_code(changes):
    """Three images, text before the first, adjacent images; their mask is made from our phi."""
    model = idefics(**changes)
    flamingo = from_state_dict(model.config, model.state_dict())
    ids = numbers(2, 14)
    ids[0, [3, 7, 8]] = 51
    ids[1, [0, 5, 9]] = 51
    pixels = torch.randn(2, 3, 3, 28, 28, generator=torch.Generator().manual_seed(2))
    ours = flamingo(Batch(ids, ids, torch.ones_like(ids).bool(), pixels[:, :, None]))[0]
    phi = media_index(ids == 51)
    sees = (phi[..., None] == torch.arange(1, 4)).long()  # (B, L, N)
    oracle = model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, image_attention_mask=sees).logits
    assert ours.shape == oracle.shape == (2, 14, 52)
    assert relative(ours, oracle) < 1e-5


# OpenFlamingo: which class of transformers stands inside, and where its blocks are
INSIDE = {
    "gpt2": "transformer.h", "mpt": "transformer.blocks", "redpajama": "gpt_neox.layers", "opt": "model.decoder.layers",
    "llama": "model.layers",
}  # fmt: skip


class WrittenOut:
    """OpenFlamingo from the facts: a language model of transformers, with the bridge written out in front of its layers."""

    def __init__(self, family: str, every: int, n_new: int = 3, first: int | None = None):
        self.lm, self.every, self.eye = theirs(family), every, clip_tower()
        self.base = self.lm.config.vocab_size
        torch.manual_seed(1)
        self.lm.resize_token_embeddings(self.base + n_new, mean_resizing=False)
        d, dv, inner = 32, 32, 512
        shapes = {"perceiver.latents": (64, dv), "perceiver.norm.weight": (dv,), "perceiver.norm.bias": (dv,)}
        for i in range(6):
            shapes |= {f"perceiver.layers.{i}.0.{k}": s for k, s in {
                "norm_media.weight": (dv,), "norm_media.bias": (dv,), "norm_latents.weight": (dv,), "norm_latents.bias": (dv,),
                "to_q.weight": (inner, dv), "to_kv.weight": (2 * inner, dv), "to_out.weight": (dv, inner)}.items()}  # fmt: skip
            shapes |= {f"perceiver.layers.{i}.1.{k}": s for k, s in {
                "0.weight": (dv,), "0.bias": (dv,), "1.weight": (4 * dv, dv), "3.weight": (dv, 4 * dv)}.items()}  # fmt: skip
        self.first = every - 1 if first is None else first
        for i in range(self.first, 3, every):
            shapes |= {f"lang_encoder.gated_cross_attn_layers.{i}.{k}": s for k, s in {
                "attn_gate": (1,), "ff_gate": (1,), "attn.norm.weight": (d,), "attn.norm.bias": (d,),
                "attn.to_q.weight": (inner, d),
                "attn.to_kv.weight": (2 * inner, dv), "attn.to_out.weight": (d, inner), "ff.0.weight": (d,), "ff.0.bias": (d,),
                "ff.1.weight": (4 * d, d), "ff.3.weight": (d, 4 * d)}.items()}  # fmt: skip
        self.w = {name: torch.randn(shape) * 0.2 for name, shape in shapes.items()}
        self.blocks, self.act = INSIDE[family], F.gelu
        self.patches = lambda tokens: tokens[1:]

    def state_dict(self, alias: str = "separate") -> dict:
        """All of it, under one of the names it has had; "both" has every bridge and block twice."""
        state = {f"vision_encoder.{k}": v for k, v in as_open_clip(self.eye.state_dict()).items()}
        for name, tensor in self.lm.state_dict().items():
            wrapped = f"{self.blocks}."
            inside = name.startswith(wrapped) and int(name.removeprefix(wrapped).split(".")[0])
            if alias != "separate" and name.startswith(wrapped):
                rest = name.removeprefix(f"{wrapped}{inside}.")
                state[f"lang_encoder.{wrapped}{inside}.decoder_layer.{rest}"] = tensor
                if alias == "both":
                    state[f"lang_encoder.old_decoder_blocks.{inside}.{rest}"] = tensor
            else:
                state[f"lang_encoder.{name}"] = tensor
        for name, tensor in self.w.items():
            if alias != "separate" and "gated_cross_attn_layers" in name:
                i, rest = name.removeprefix("lang_encoder.gated_cross_attn_layers.").split(".", 1)
                state[f"lang_encoder.{self.blocks}.{i}.gated_cross_attn_layer.{rest}"] = tensor
            if alias != "inside" or "gated_cross_attn_layers" not in name:
                state[name] = tensor
        return state

    def see(self, pixels: torch.Tensor) -> torch.Tensor:
        """One image (3, H, W) → (64, dv)."""
        features, w = self.patches(self.eye(pixels[None]).last_hidden_state[0]), self.w
        norm = lambda t, name: F.layer_norm(t, t.shape[-1:], w[name + ".weight"], w[name + ".bias"])  # noqa: E731
        x = w["perceiver.latents"]
        for i in range(6):
            p = f"perceiver.layers.{i}."
            latents = norm(x, p + "0.norm_latents")
            kv = torch.cat([norm(features, p + "0.norm_media"), latents])
            x = x + self.attend(latents @ w[p + "0.to_q.weight"].T, kv @ w[p + "0.to_kv.weight"].T) @ w[p + "0.to_out.weight"].T
            x = x + self.act(norm(x, p + "1.0") @ w[p + "1.1.weight"].T) @ w[p + "1.3.weight"].T
        return norm(x, "perceiver.norm")

    @staticmethod
    def attend(q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        k, v = kv.chunk(2, dim=-1)
        heads = [
            (q[:, s] @ k[:, s].T * 64**-0.5).softmax(-1) @ v[:, s] for s in (slice(64 * h, 64 * h + 64) for h in range(8))
        ]  # fmt: skip
        return torch.cat(heads, dim=-1)

    def logits(self, ids: torch.Tensor, pixels: torch.Tensor, image: int) -> torch.Tensor:
        """One row of ids (L,), its images (N, 3, H, W) → (L, V)."""
        seen, phi, w = [self.see(p) for p in pixels], (ids == image).cumsum(0).tolist(), self.w

        def bridge(i):
            def before(module, args, kwargs):
                y = args[0] if args else kwargs["hidden_states"]
                p, out = f"lang_encoder.gated_cross_attn_layers.{i}.", y[0].clone()
                norm = lambda t, name: F.layer_norm(t, t.shape[-1:], w[p + name + ".weight"], w[p + name + ".bias"])  # noqa: E731
                for l, n in enumerate(phi):
                    if n:
                        q = norm(y[0, l], "attn.norm") @ w[p + "attn.to_q.weight"].T
                        seen_here = self.attend(q[None], seen[n - 1] @ w[p + "attn.to_kv.weight"].T)[0]
                        out[l] += w[p + "attn_gate"].tanh() * (seen_here @ w[p + "attn.to_out.weight"].T)
                out += w[p + "ff_gate"].tanh() * (self.act(norm(out, "ff.0") @ w[p + "ff.1.weight"].T) @ w[p + "ff.3.weight"].T)
                if args:
                    return (out[None], *args[1:]), kwargs
                return args, kwargs | {"hidden_states": out[None]}

            return before

        blocks = self.lm.get_submodule(self.blocks)
        hooks = [
            blocks[i].register_forward_pre_hook(bridge(i), with_kwargs=True) for i in range(self.first, 3, self.every)
        ]  # fmt: skip
        logits = self.lm(ids[None]).logits[0]
        for hook in hooks:
            hook.remove()
        return logits


@pytest.mark.parametrize("alias", ["separate", "inside", "both"])
@pytest.mark.parametrize("family, every", [("mpt", 1), ("mpt", 2), ("redpajama", 2), ("opt", 3), ("llama", 1)])
@torch.no_grad()
def test_openflamingo_has_the_logits_of_its_equations(family, every, alias):
    """Several images, text before the first, a row without any; every name that the weights have had."""
    model = WrittenOut(family, every)
    lm = replace(from_state_dict(model.lm.config, model.lm.state_dict()).config, vocab_size=50)
    config = openflamingo.config(lm, every, clip.config(model.eye.config.to_dict()))
    state = model.state_dict(alias)
    if alias == "both":
        state = {f"module.{name}": tensor for name, tensor in state.items()}
    flamingo = from_state_dict(config, state)
    image, ids = 51, numbers(2, 12)
    ids[0, [2, 6, 7]] = image
    ids[1, :4] = ids[1, 4:8]
    pixels = torch.randn(2, 3, 3, 28, 28, generator=torch.Generator().manual_seed(3))
    frames = torch.tensor([[1, 1, 1], [0, 0, 0]])
    logits = flamingo(Batch(ids, ids, torch.ones_like(ids).bool(), pixels[:, :, None], frames))[0]
    assert logits.shape == (2, 12, 53)
    for row in range(2):
        assert relative(logits[row], model.logits(ids[row], pixels[row], image)) < 1e-5


@pytest.mark.parametrize("family, every", [("gpt2", 1), ("gpt2", 2), ("opt", 2)])
@torch.no_grad()
def test_flamingo_mini_has_the_logits_of_its_equations(family, every):
    """The same equations with a class token, time embeddings and squared ReLU; an image stands at the "<" of "<image>"."""
    model, less_than = WrittenOut(family, every, n_new=1, first=0), 27
    start, blocks = {"gpt2": ("transformer.", "h"), "opt": ("model.decoder.", "layers")}[family]
    theirs = dict(
        dim_visual=32, xattn_every=every, xattn_heads=8, xattn_dim_head=64, xattn_ff_mult=4, xattn_act="sqrelu",
        resampler_depth=6, resampler_dim_head=64, resampler_heads=8, resampler_num_latents=64, resampler_num_time_embeds=4,
        resampler_ff_mult=4, resampler_act="sqrelu",
    )  # fmt: skip
    times = torch.randn(4, 1, 32)
    model.patches, model.act = (lambda tokens: tokens + times[0]), lambda x: F.relu(x) ** 2
    state = {f"flamingo.vision_encoder.{k}": v for k, v in model.eye.state_dict().items()}
    state["flamingo.resampler.time_pos_emb"] = times
    for name, tensor in model.w.items():
        if name.startswith("perceiver."):
            name = name.replace("perceiver.", "flamingo.resampler.")
            if "to_kv" in name:
                state[name.replace("to_kv", "to_k")], state[name.replace("to_kv", "to_v")] = tensor.chunk(2)
                continue
        else:
            name = name.replace("lang_encoder.gated_cross_attn_layers.", f"flamingo.lm.{start.partition('.')[2]}{blocks}.")
            i = name.removeprefix(f"flamingo.lm.{start.partition('.')[2]}{blocks}.").split(".")[0]
            name = name.replace(f"{blocks}.{i}.", f"{blocks}.{i}.xattn_block.").replace("xattn_block.ff.", "xattn_block.ffw.")
            name = name.replace("attn_gate", "alpha_attn").replace("ff_gate", "alpha_ffw")
        state[name] = tensor
    for name, tensor in model.lm.state_dict().items():
        if name == "lm_head.weight":
            state["flamingo.lm_head.weight"] = tensor
            continue
        name = "flamingo.lm." + name.removeprefix(start.split(".")[0] + ".")
        inside = re.match(rf"flamingo\.lm\.(decoder\.)?{blocks}\.(\d+)\.", name)
        if inside and int(inside[2]) % every == 0:
            name = name.replace(inside[0], inside[0] + "lm_block.")
        state[name] = tensor
    lm = replace(from_state_dict(model.lm.config, model.lm.state_dict()).config, vocab_size=50, tied_head=False)
    config = flamingo_mini.config(theirs, lm, clip.config(model.eye.config.to_dict(), keep_class_token=True))
    flamingo = from_state_dict(config, state)
    ids = numbers(1, 12)
    ids[ids == less_than] = 1
    ids[0, [2, 6, 7]] = less_than
    pixels = torch.randn(1, 3, 1, 3, 28, 28, generator=torch.Generator().manual_seed(3))
    logits = flamingo(Batch(ids.where(ids != less_than, 51), ids, torch.ones_like(ids).bool(), pixels))[0]
    assert relative(logits[0, :, :51], model.logits(ids[0], pixels[0, :, 0], less_than)) < 1e-5


@pytest.mark.skipif("OPEN_FLAMINGO_PYTHON" not in os.environ, reason="needs an interpreter with open_flamingo 2.0.1")
@torch.no_grad()
def test_openflamingo_has_the_logits_of_the_package_itself(tmp_path):
    """OPEN_FLAMINGO_PYTHON=ENV/bin/python pytest -k package_itself; `peers/open_flamingo_logits.py` says what ENV holds."""
    script, out = Path(__file__).parent / "peers" / "open_flamingo_logits.py", tmp_path / "cases.pt"
    subprocess.run([os.environ["OPEN_FLAMINGO_PYTHON"], script, out], check=True)
    for case in torch.load(out, weights_only=True):
        lm = replace(families.config(case["family"], json.loads(case["lm"])), vocab_size=50)
        eye = VisionConfig(28, 14, d=32, layers=2, heads=4, activation="quick_gelu", keep_class_token=False)
        flamingo = from_state_dict(openflamingo.config(lm, case["every"], eye), case["state"], "openflamingo")
        ids = case["ids"]
        logits = flamingo(Batch(ids, ids, torch.ones_like(ids).bool(), case["pixels"]))[0]
        assert relative(logits, case["logits"]) < 1e-5, (case["family"], case["every"])


def counts(name: str) -> dict[str, float]:
    """Billions of parameters of a preset, by part, on the meta device: nothing is allocated."""
    with torch.device("meta"):
        flamingo = minflamingo.Flamingo(minflamingo.preset(name))
    of = lambda *parts: sum(p.numel() for n, p in flamingo.named_parameters() if n.startswith(parts)) / 1e9  # noqa: E731
    return {"bridge": of("xattn_layers."), "resampler": of("resampler."), "lm": of("lm."), "all": of("")}


@pytest.mark.parametrize("name, bridge, lm", [("flamingo-3b", 1.2, 1.4), ("flamingo-9b", 1.6, None), ("flamingo-80b", 10, 70)])
def test_the_papers_models_have_the_trained_parameters_of_table_1(name, bridge, lm):
    """GATED XATTN-DENSE 1.2B, 1.6B and 10B, resampler 194M; language models to a tenth (theirs had relative positions too)."""
    n = counts(name)
    assert n["bridge"] == pytest.approx(bridge, rel=0.04) and n["resampler"] == pytest.approx(0.194, rel=0.04)
    assert lm is None or n["lm"] == pytest.approx(lm, rel=0.1)


@pytest.mark.parametrize("name, layers, d, d_ff, heads", [("9b", 32, 4096, 11008, 32), ("80b", 80, 8192, 22016, 64)])
def test_idefics_has_as_many_parameters_as_its_own_code(name, layers, d, d_ff, heads):
    """Trained and frozen apart, at the published sizes; 8.9 and 80.0 billion."""
    config = transformers.IdeficsConfig(
        additional_vocab_size=2, hidden_size=d, intermediate_size=d_ff, num_hidden_layers=layers, num_attention_heads=heads,
        cross_layer_interval=4, qk_layer_norms=True, use_resampler=True,
        vision_config=dict(embed_dim=1280, image_size=224, patch_size=14, intermediate_size=5120, num_hidden_layers=32,
                           num_attention_heads=16),
        perceiver_config=dict(use_resampler=True, qk_layer_norms_perceiver=True),
    )  # fmt: skip
    with torch.device("meta"):
        theirs = transformers.IdeficsForVisionText2Text(config)
    used = {n: p.numel() for n, p in theirs.named_parameters() if "post_layernorm" not in n}
    of = lambda part: sum(p for n, p in used.items() if part in n) / 1e9  # noqa: E731
    n = counts(f"idefics-{name}")
    assert n["bridge"] == pytest.approx(of("gated_cross_attn_layers"), rel=1e-9)
    assert n["resampler"] == pytest.approx(of("perceiver_resampler"), rel=1e-9)
    assert n["all"] == pytest.approx(of(""), rel=1e-9) == pytest.approx({"9b": 8.93, "80b": 79.97}[name], abs=0.01)


@pytest.mark.parametrize(
    "name, trained, lm",
    [("openflamingo-3b", 0.944, 1.311), ("openflamingo-4b", 0.961, 2.775), ("openflamingo-9b", 1.179, 6.649)],
)
def test_openflamingos_language_models_have_the_parameters_of_their_cards(name, trained, lm):
    """MPT-1B 1.3B, RedPajama-INCITE-3B 2.8B, MPT-7B 6.7B; resampler and bridge as the layout in `openflamingo.py` adds up."""
    n = counts(name)
    assert n["lm"] == pytest.approx(lm, abs=0.001) and n["bridge"] + n["resampler"] == pytest.approx(trained, abs=0.001)
