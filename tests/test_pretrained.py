"""Published weights in our classes give the numbers of the original code. The oracles are transformers and open_flamingo."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import random
from torch import nn

from minflamingo import Batch, Flamingo, VisionConfig, load
from minflamingo.gated_xattn import media_index
from minflamingo.generate import beam_search, generate
from minflamingo.pretrained import clip, from_state_dict, openflamingo
from minflamingo.pretrained.language_models import read_lm_config

transformers = pytest.importorskip("transformers")

SIZES = dict(vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=40)
WIDE = dict(**SIZES, intermediate_size=48)  # with the width of the MLP
ROPE = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0}
CONFIGS = {
    "gpt2": lambda: transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=3, n_head=4, n_positions=40),
    "opt": lambda: transformers.OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32),
    "pythia": lambda: transformers.GPTNeoXConfig(**WIDE),
    "redpajama": lambda: transformers.GPTNeoXConfig(**WIDE, use_parallel_residual=False, rope_parameters=ROPE),
    "mpt": lambda: transformers.MptConfig(vocab_size=50, d_model=32, n_layers=3, n_heads=4, max_seq_len=60),
    "mpt, 6 heads": lambda: transformers.MptConfig(vocab_size=50, d_model=48, n_layers=2, n_heads=6, max_seq_len=60),
    "llama": lambda: transformers.LlamaConfig(**WIDE),
    "grouped": lambda: transformers.LlamaConfig(**WIDE, num_key_value_heads=2, tie_word_embeddings=True, rms_norm_eps=1e-5),
    "biased": lambda: transformers.LlamaConfig(**WIDE, attention_bias=True, mlp_bias=True),
}  # fmt: skip


@torch.no_grad()
def disturbed(model: nn.Module) -> nn.Module:
    """No weight is exactly zero or one, so that a forgotten bias, norm or gate changes the result."""
    torch.manual_seed(0)
    for p in model.parameters():
        p.add_(torch.randn_like(p) * 0.1)
    return model.eval()


def numbers(*shape: int) -> torch.Tensor:
    return torch.randint(0, 50, shape, generator=torch.Generator().manual_seed(1))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def batch_of(ids: torch.Tensor, pixels: torch.Tensor) -> Batch:
    """ids (B, L) and images (B, N, 3, H, W)."""
    return Batch(ids, ids, torch.ones_like(ids).bool(), pixels[:, :, None])


# ---------------------------------------------------------------------------------------------------- language models


@pytest.mark.parametrize("family", CONFIGS)
@torch.no_grad()
def test_a_language_model_has_the_logits_of_transformers(family):
    """At once; with padding on the left; in three portions from a cache; beyond the length of training, if it has no limit."""
    torch.manual_seed(0)
    model = disturbed(transformers.AutoModelForCausalLM.from_config(CONFIGS[family](), attn_implementation="eager"))
    ids = numbers(2, 20)
    lm = from_state_dict(model.config, model.state_dict())
    oracle = model(ids).logits
    logits = lm(lm.embed(ids))[0]
    assert relative(logits, oracle) < 1e-5
    again = from_state_dict(lm.config, model.state_dict())  # with our own config the names decide which family it is
    assert torch.equal(again(again.embed(ids))[0], logits)
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[0, :6] = False
    padded = lm(lm.embed(ids), mask)[0]
    assert relative(padded[:1, 6:], model(ids[:1, 6:]).logits) < 1e-5 and relative(padded[1:], oracle[1:]) < 1e-5
    parts, cache = [], None
    for part in ids.split([12, 7, 1], dim=1):
        part, cache = lm(lm.embed(part), cache=cache)
        parts.append(part)
    assert relative(torch.cat(parts, dim=1), oracle) < 1e-5
    long = numbers(1, 60)
    if family in ("gpt2", "opt"):
        with pytest.raises(ValueError, match=r"41 tokens, .*context is 40"):
            lm(lm.embed(long[:, :41]))
    else:
        assert relative(lm(lm.embed(long))[0], model(long).logits) < 1e-5


@torch.no_grad()
def test_a_mosaic_gpt_is_an_mpt_with_a_norm_over_all_queries_and_keys():
    """The language model of OpenFlamingo-3B, with its own names, against the equations."""
    d, h, n_layers, V = 32, 4, 2, 50
    shapes = {
        "ln_1.weight": (d,), "attn.Wqkv.weight": (3 * d, d), "attn.q_ln.weight": (d,), "attn.k_ln.weight": (d,),
        "attn.out_proj.weight": (d, d), "ln_2.weight": (d,), "mlp.mlp_up.weight": (4 * d, d), "mlp.mlp_down.weight": (d, 4 * d),
    }  # fmt: skip
    torch.manual_seed(0)
    state = {"transformer.wte.weight": torch.randn(V, d), "transformer.ln_f.weight": torch.randn(d)}
    state |= {f"transformer.blocks.{i}.{k}": torch.randn(s) * 0.3 for i in range(n_layers) for k, s in shapes.items()}
    config = dict(model_type="mosaic_gpt", vocab_size=V, d_model=d, n_layers=n_layers, n_heads=h, mlp_ratio=4, attn_qk_ln=True,
                  alibi=True, alibi_bias_max=8, attn_clip_qkv=None, no_bias=True)  # fmt: skip
    lm, ids = from_state_dict(config, state), numbers(1, 10)
    x = state["transformer.wte.weight"][ids[0]]
    distance = torch.arange(10)[None, :] - torch.arange(10)[:, None]
    slopes = 2.0 ** (-8 * torch.arange(1, h + 1) / h)
    bias = (slopes[:, None, None] * distance).masked_fill(distance > 0, -torch.inf)  # (h, L, L)
    for i in range(n_layers):
        w = {k.removesuffix(".weight"): state[f"transformer.blocks.{i}.{k}"] for k in shapes}
        q, k, v = (F.layer_norm(x, (d,), w["ln_1"]) @ w["attn.Wqkv"].T).chunk(3, dim=-1)
        q, k = F.layer_norm(q, (d,), w["attn.q_ln"]), F.layer_norm(k, (d,), w["attn.k_ln"])
        q, k, v = (t.unflatten(1, (h, -1)).transpose(0, 1) for t in (q, k, v))  # (h, L, d/h)
        weights = (q @ k.transpose(1, 2) / (d // h) ** 0.5 + bias).softmax(-1)
        x = x + (weights @ v).transpose(0, 1).flatten(1) @ w["attn.out_proj"].T
        x = x + F.gelu(F.layer_norm(x, (d,), w["ln_2"]) @ w["mlp.mlp_up"].T) @ w["mlp.mlp_down"].T
    oracle = F.layer_norm(x, (d,), state["transformer.ln_f.weight"]) @ state["transformer.wte.weight"].T
    assert relative(lm(lm.embed(ids))[0][0], oracle) < 1e-5


# ---------------------------------------------------------------------------------------------------- vision encoders


def as_open_clip(state: dict) -> dict:
    """The same weights in open_clip's layout: q, k and v in one matrix, other names."""
    names = {
        "vision_model.": "", "embeddings.class_embedding": "class_embedding", "self_attn.q_proj.": "attn.in_proj_",
        "embeddings.position_embedding.weight": "positional_embedding", "embeddings.patch_embedding.weight": "conv1.weight",
        "pre_layrnorm": "ln_pre", "post_layernorm": "ln_post", "encoder.layers": "transformer.resblocks",
        "self_attn.out_proj": "attn.out_proj", "layer_norm": "ln_", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    }  # fmt: skip
    out = {"proj": torch.zeros(32, 16)}
    for name, tensor in state.items():
        if "q_proj" in name:
            tensor = torch.cat([state[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"])
        for theirs, open_clips in names.items():
            name = name.replace(theirs, open_clips)
        if "k_proj" not in name and "v_proj" not in name:
            out[name] = tensor
    return out


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
@torch.no_grad()
def test_a_clip_vision_encoder_has_the_features_of_transformers_in_both_layouts(act):
    """All tokens before the last norm, which are its `last_hidden_state`. OpenFlamingo uses the patches alone."""
    config = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=28, patch_size=14,
        hidden_act=act,
    )  # fmt: skip
    encoder, pixels = disturbed(transformers.CLIPVisionModel(config)), random(2, 3, 28, 28)
    oracle = encoder(pixels).last_hidden_state
    config = clip.config(encoder.config.to_dict(), keep_class_token=True)
    patches = replace(config, keep_class_token=False)
    state = encoder.state_dict()
    whole = {f"visual.{name}": tensor for name, tensor in as_open_clip(state).items()}
    whole["transformer.resblocks.0.ln_1.bias"] = torch.ones(8)  # of the text encoder
    for layout in (state, as_open_clip(state), whole):
        assert relative(from_state_dict(config, layout)(pixels), oracle) < 1e-5
        assert relative(from_state_dict(patches, layout)(pixels), oracle[:, 1:]) < 1e-5


# -------------------------------------------------------------------------------------------------------------- IDEFICS


def idefics(**changes) -> nn.Module:
    """A small Idefics with all options: QK norms, resampler, two additional tokens."""
    torch.manual_seed(0)
    config = transformers.IdeficsConfig(**{
        **dict(
            vocab_size=50, additional_vocab_size=2, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
            num_attention_heads=4, cross_layer_interval=2, qk_layer_norms=True, use_resampler=True,
            vision_config=dict(embed_dim=24, image_size=28, patch_size=14, intermediate_size=40, num_hidden_layers=2,
                               num_attention_heads=4),
            perceiver_config=dict(use_resampler=True, resampler_n_latents=3, resampler_depth=2, resampler_n_heads=2,
                                  resampler_head_dim=10, qk_layer_norms_perceiver=True),
            bos_token_id=1, eos_token_id=2, pad_token_id=0,
        ),
        **changes,
    }, attn_implementation="eager")  # fmt: skip
    return disturbed(transformers.IdeficsForVisionText2Text(config))


def idefics_inputs(ids: torch.Tensor, pixels: torch.Tensor) -> dict:
    """Their arguments. Their mask is made from our phi."""
    mask = (media_index(ids == 51)[..., None] == torch.arange(1, pixels.shape[1] + 1)).long()  # (B, L, N)
    return dict(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, image_attention_mask=mask)


def example(rows: list[list[int]], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ids with the token 51, an image, at the places of `rows`, and three images per row."""
    ids = numbers(len(rows), length)
    for row, places in enumerate(rows):
        ids[row, places] = 51
    return ids, random(len(rows), 3, 3, 28, 28, seed=2)


@pytest.mark.parametrize("changes", [
    {}, {"alpha_type": "vector"}, {"cross_layer_interval": 1}, {"cross_layer_interval": 4}, {"qk_layer_norms": False}
])  # fmt: skip
@torch.no_grad()
def test_idefics_has_the_logits_of_transformers(changes):
    """Three images, text before the first, adjacent images."""
    model = idefics(**changes)
    flamingo = from_state_dict(model.config, model.state_dict())
    ids, pixels = example([[3, 7, 8], [0, 5, 9]], 14)
    ours, oracle = flamingo(batch_of(ids, pixels))[0], model(**idefics_inputs(ids, pixels)).logits
    assert ours.shape == oracle.shape == (2, 14, 52)
    assert relative(ours, oracle) < 1e-5


@pytest.mark.parametrize("beams, tokens", [(1, 10), (3, 10), (3, 3), (4, 5)])
def test_idefics_generates_the_tokens_of_transformers(beams, tokens):
    """Greedily and with beam search, all beams; the image token is excluded on both sides. Some answers end, others do not."""
    model = idefics()
    with torch.no_grad():
        model.lm_head.weight[2] *= 4
    flamingo = from_state_dict(model.config, model.state_dict())
    ids, pixels = example([[3, 7, 8], [0, 5, 9], [1, 2, 3]], 12)
    model.config.vocab_size = 52  # their beam search takes the number of logits from here, and forgets the additional tokens
    options = dict(max_new_tokens=tokens, num_beams=beams, num_return_sequences=beams, do_sample=False, suppress_tokens=[51])
    oracle = until(model.generate(**idefics_inputs(ids, pixels), length_penalty=0.0, **options)[:, 12:], 2)
    assert ours_generated(flamingo, batch_of(ids, pixels), 2, beams, tokens, n_best=beams) == oracle
    assert len({len(answer) for answer in oracle}) > 1


@torch.no_grad()
def test_an_idefics_is_loaded_by_name_from_the_folder_that_transformers_writes(tmp_path):
    """Weights, tokenizer and image preprocessing; for example of a fine-tuned model."""
    tokenizers = pytest.importorskip("tokenizers")
    model = idefics()
    model.save_pretrained(tmp_path)
    vocab = {name: i for i, name in enumerate(["<unk>", "<s>", "</s>", *map(str, range(47))])}
    tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [])).save(str(tmp_path / "tokenizer.json"))
    flamingo = load("idefics-9b", flamingo=tmp_path)
    ids, pixels = example([[3, 7, 8]], 14)
    assert relative(flamingo.model(batch_of(ids, pixels))[0], model(**idefics_inputs(ids, pixels)).logits) < 1e-5
    assert (flamingo.tokenizer.around_image_id, flamingo.tokenizer.image_id) == (50, 51)
    assert flamingo.preprocess.size == 28 and flamingo.preprocess.resize == "squash"
    with pytest.raises(ValueError, match="idefics-9b has all its parts in one place: use flamingo="):
        load("idefics-9b", vision=tmp_path, flamingo=tmp_path)


def ours_generated(flamingo: Flamingo, batch: Batch, eoc_id: int, beams: int, n: int = 10, **options) -> list[list[int]]:
    if beams == 1:
        return generate(flamingo, batch, eoc_id, max_new_tokens=n)
    return beam_search(flamingo, batch, eoc_id, beams=beams, max_new_tokens=n, **options)


def until(rows: torch.Tensor, end: int) -> list[list[int]]:
    """The tokens before the first `end`."""
    return [row[: row.index(end)] if end in row else row for row in rows.tolist()]


@pytest.mark.skipif("OPEN_FLAMINGO_PYTHON" not in os.environ, reason="needs an interpreter with open_flamingo 2.0.1")
def test_openflamingo_has_the_logits_and_tokens_of_the_package_itself(tmp_path):
    """Four families of LMs, gated layers before each, each second and each fourth block; greedily and with three beams.

    OPEN_FLAMINGO_PYTHON=ENV/bin/python; `peers/open_flamingo_peer.py` says what ENV contains.
    """
    script = Path(__file__).parent / "peers" / "open_flamingo_peer.py"
    subprocess.run([os.environ["OPEN_FLAMINGO_PYTHON"], script, tmp_path / "cases.pt"], check=True)
    vision = VisionConfig(28, 14, d=32, n_layers=2, n_heads=4, activation="quick_gelu", keep_class_token=False)
    for case in torch.load(tmp_path / "cases.pt", weights_only=True):
        lm = replace(read_lm_config(json.loads(case["lm"])), vocab_size=50)
        flamingo = from_state_dict(openflamingo.config(lm, case["every"], vision), case["state"])
        batch = batch_of(case["ids"], case["pixels"])
        with torch.no_grad():
            assert relative(flamingo(batch)[0], case["logits"]) < 1e-5, (case["family"], case["every"])
        for beams in (1, 3):
            oracle = until(case[f"tokens, {beams} beams"], 50)
            assert ours_generated(flamingo, batch, 50, beams) == oracle, (case["family"], case["every"], beams)
