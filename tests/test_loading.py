"""Files of published models: each format gives the same weights, errors name what is wrong, and no code in a file runs."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import close, enliven, image, random
from torch import nn

import minflamingo
from minflamingo import EOC
from minflamingo.config import LMConfig, VisionConfig
from minflamingo.flamingo import Flamingo
from minflamingo.lm import LM
from minflamingo.pretrained import from_state_dict, load_lm, openflamingo
from minflamingo.pretrained.files import fetch, open_tensors
from minflamingo.pretrained.published import NAMES, REPOSITORIES, load_published
from minflamingo.vision import ViT

GPT2_CONFIG = dict(model_type="gpt2", vocab_size=50, n_embd=32, n_layer=3, n_head=4, n_positions=40)


def gpt2_state() -> dict:
    """Random weights with the names and shapes of GPT-2."""
    linears = {"attn.c_attn": (32, 96), "attn.c_proj": (32, 32), "mlp.c_fc": (32, 128), "mlp.c_proj": (128, 32)}
    shapes = {"wte.weight": (50, 32), "wpe.weight": (40, 32), "ln_f.weight": (32,), "ln_f.bias": (32,)}
    for i in range(3):
        shapes |= {f"h.{i}.{name}.{kind}": (32,) for name in ("ln_1", "ln_2") for kind in ("weight", "bias")}
        shapes |= {f"h.{i}.{name}.weight": shape for name, shape in linears.items()}
        shapes |= {f"h.{i}.{name}.bias": shape[1:] for name, shape in linears.items()}
    return {f"transformer.{name}": random(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}


def equal(model: nn.Module, other: nn.Module) -> bool:
    a, b = model.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(params=["model.safetensors", "pytorch_model.bin", "sharded safetensors", "sharded bin", "old.bin"])
def folder(request, tmp_path):
    """A model as it is published: config.json, and the weights in one of five forms."""
    state, kind = gpt2_state(), request.param
    (tmp_path / "config.json").write_text(json.dumps(GPT2_CONFIG))
    write = torch.save
    if "safetensors" in kind:
        write = pytest.importorskip("safetensors.torch").save_file
    if kind.startswith("sharded"):
        suffix, index = ("safetensors", "model.safetensors") if "safetensors" in kind else ("bin", "pytorch_model.bin")
        file_of = {name: f"part-{i % 2}.{suffix}" for i, name in enumerate(sorted(state))}
        for file in set(file_of.values()):
            write({n: t for n, t in state.items() if file_of[n] == file}, tmp_path / file)
        (tmp_path / f"{index}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": file_of}))
    elif kind == "old.bin":
        torch.save(state, tmp_path / kind, _use_new_zipfile_serialization=False)
    else:
        write(state, tmp_path / kind)
    return tmp_path


def test_every_format_gives_the_same_weights(folder):
    lm = load_lm(folder)
    assert equal(lm, from_state_dict(GPT2_CONFIG, gpt2_state())) and lm.head.weight is lm.embed.weight
    half = load_lm(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert torch.equal(half.embed.weight, lm.embed.weight.bfloat16())


def test_a_damaged_or_missing_file_is_named(folder):
    """Truncated anywhere, also before the last byte; and an index of which one file is missing."""
    for path in [path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")]:
        content = path.read_bytes()
        for length in (len(content) // 2, len(content) - 1, 10, 0):
            path.write_bytes(content[:length])
            with pytest.raises(ValueError, match=path.name):
                load_lm(folder)
        path.write_bytes(content)
    load_lm(folder)
    for path in folder.glob("part-1*"):
        path.unlink()
        with pytest.raises(FileNotFoundError, match=r"part-1\.\w+: this file does not exist"):
            load_lm(folder)


def test_missing_extra_and_misshapen_tensors_are_named():
    state = gpt2_state()
    with pytest.raises(ValueError, match=r"the state dict does not fit this model\. missing: h\.1\.ln_1\.bias"):
        from_state_dict(GPT2_CONFIG, {k: v for k, v in state.items() if k != "transformer.h.1.ln_1.bias"})
    with pytest.raises(ValueError, match=r"left over: h\.3\.ln_1\.bias"):
        from_state_dict(GPT2_CONFIG, {**state, "transformer.h.3.ln_1.bias": torch.zeros(32)})
    with pytest.raises(ValueError, match=r"wrong shape: wpe\.weight \(39, 32\) instead of \(40, 32\)"):
        from_state_dict(GPT2_CONFIG, {**state, "transformer.wpe.weight": torch.zeros(39, 32)})
    with pytest.raises(ValueError, match="epoch is not a tensor but int"):
        from_state_dict(GPT2_CONFIG, {**state, "epoch": 3})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True; only False is implemented"),
        ({"activation_function": "mish"}, "activation_function='mish'"),
        ({"model_type": "rwkv"}, "unknown family of language models 'rwkv'; choose one of gpt2, opt"),
        ({"n_positions": None}, "the config of this gpt2 has no field 'n_positions'"),
    ],
)
def test_a_config_with_a_setting_that_is_not_implemented_is_refused(change, message):
    config = {k: v for k, v in {**GPT2_CONFIG, **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        from_state_dict(config, gpt2_state())


class Trap:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_pickle_with_code_in_it_is_refused_and_does_not_run(tmp_path):
    torch.save({**gpt2_state(), "trap": Trap(tmp_path / "sprung")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: not a valid checkpoint"):
        open_tensors(tmp_path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_a_loaded_model_does_not_depend_on_its_file(tmp_path, suffix):
    """The file is mapped into memory while it is read. The weights are copies, so it may be overwritten afterwards."""
    save = torch.save if suffix == "bin" else pytest.importorskip("safetensors.torch").save_file
    path = tmp_path / f"model.{suffix}"
    save(gpt2_state(), path)
    lm = from_state_dict(GPT2_CONFIG, open_tensors(path))
    with open(path, "r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert equal(lm, from_state_dict(GPT2_CONFIG, gpt2_state()))


def test_a_gguf_file_gives_the_weights_that_were_written(tmp_path):
    """Its rows of queries and keys are in another order, as llama.cpp writes them."""
    gguf = pytest.importorskip("gguf")
    sizes = dict(vocab_size=50, d=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=48, norm_eps=2.0**-17)
    lm = enliven(LM(LMConfig(**sizes, max_length=None, norm="rmsnorm", activation="silu", gated_mlp=True, tied_head=False)))
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    keys = {"embedding_length": 32, "block_count": 2, "head_count": 4, "head_count_kv": 2, "feed_forward_length": 48}
    for key, value in (*keys.items(), ("layer_norm_rms_eps", 2.0**-17)):
        getattr(writer, f"add_{key}")(value)
    names = {"embed": "token_embd", "final_norm": "output_norm", "head": "output", "attn.to_": "attn_", "mlp_norm": "ffn_norm",
             "attn_out": "attn_output", "mlp.out": "ffn_down", "mlp.": "ffn_", "blocks": "blk"}  # fmt: skip
    for name, tensor in lm.state_dict().items():
        array = tensor.numpy()
        if ".to_q." in name or ".to_k." in name:
            array = array.reshape(-1, 2, 4, 32).swapaxes(1, 2).reshape(array.shape)
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name, np.ascontiguousarray(array))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        write()
    loaded = load_lm(tmp_path / "model.gguf")
    assert equal(loaded, lm) and loaded.config == lm.config
    (tmp_path / "model.gguf").write_bytes((tmp_path / "model.gguf").read_bytes()[:300])
    with pytest.raises(ValueError, match=r"model\.gguf: not a valid checkpoint"):
        load_lm(tmp_path)


# ------------------------------------------------------------------------------------------------------ published models

VISION = VisionConfig(28, 14, d=32, n_layers=2, n_heads=4, d_ff=128, activation="quick_gelu", keep_class_token=False)
MPT = LMConfig(50, 32, 3, 4, d_ff=128, max_length=None, norm_bias=False, position="alibi")


def published_names(model: nn.Module, table: dict) -> dict:
    """Our weights under their names. q, k and v, which the file has as one matrix, are joined again."""
    state, fused = {}, {}
    for name, tensor in model.state_dict().items():
        number = "".join(part for part in name.split(".") if part.isdigit())
        module, _, kind = name.replace(f".{number}.", ".*.").rpartition(".")
        entry = table.get(f"{module}.{kind}", table.get(module))
        if isinstance(entry, str):
            suffix = f".{kind}" if module in table else ""
            state[entry.replace("*", number) + suffix] = tensor
        elif ".to_" in name:
            fused.setdefault(entry[0].replace("*", number) + f".{kind}", []).append(tensor)
    return state | {name: torch.cat(parts) for name, parts in fused.items()}


def write_parts(folder: Path) -> Flamingo:
    """A small OpenFlamingo-3B in the three parts and formats in which it is published."""
    safetensors, tokenizers = pytest.importorskip("safetensors.torch"), pytest.importorskip("tokenizers")
    model = enliven(Flamingo(openflamingo.config(MPT, 1, VISION)))
    state = published_names(model, openflamingo.table(model.config, {}, "mpt"))
    for name in ("vision", "language", "flamingo"):
        (folder / name).mkdir(parents=True)
    vision = {n.replace("vision_encoder.", "vision_model."): t for n, t in state.items() if n.startswith("vision_")}
    safetensors.save_file(vision, folder / "vision/model.safetensors")
    sizes = dict(image_size=28, patch_size=14, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    sizes["intermediate_size"] = 128
    (folder / "vision/config.json").write_text(json.dumps({"model_type": "clip", "vision_config": sizes}))
    gated = {n: t for n, t in state.items() if "gated_cross" in n or "perceiver" in n}
    embed = model.lm.embed.weight.detach()
    lm = {n.replace("lang_encoder", "transformer"): t for n, t in state.items() if "lang" in n and n not in gated}
    lm["transformer.wte.weight"] = torch.cat([embed, embed[:14]])  # 64 rows, more than the tokenizer has tokens
    torch.save({n: t for n, t in lm.items() if "lm_head" not in n}, folder / "language/pytorch_model.bin")
    config = dict(model_type="mpt", vocab_size=64, d_model=32, n_layers=3, n_heads=4)
    (folder / "language/config.json").write_text(json.dumps(config))
    checkpoint = {f"module.{n}": t for n, t in gated.items()}
    checkpoint["module.lang_encoder.transformer.wte.weight"] = torch.cat([embed, model.added_embed.weight.detach()])
    torch.save({"model_state_dict": checkpoint, "epoch": 3}, folder / "flamingo/checkpoint.pt")
    letters = ["<unk>", *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())[:49]]
    base = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate(letters)}, [], unk_token="<unk>"))
    base.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = tokenizers.decoders.ByteLevel()
    base.save(str(folder / "language/tokenizer.json"))
    return model


@pytest.mark.parametrize("lm", [MPT, replace(MPT, norm="rmsnorm", activation="silu", gated_mlp=True, position="rotary")])
@pytest.mark.parametrize("alias", ["separate", "inside", "both"])
def test_every_name_that_openflamingos_weights_have_had_is_known(alias, lm):
    """Gated layers in a list of their own, or inside the blocks of the LM, which are then called decoder_layer; or both."""
    model = enliven(Flamingo(openflamingo.config(lm, 2, VISION)))
    family, blocks, embed = ("mpt", "blocks", "wte") if lm is MPT else ("llama", "layers", "embed_tokens")
    inner = "lang_encoder.transformer." if lm is MPT else "lang_encoder.model."
    state = {f"{inner}{embed}.weight": torch.cat([model.lm.embed.weight, model.added_embed.weight])}
    for name, tensor in published_names(model, openflamingo.table(model.config, {}, family)).items():
        gated = "gated_cross_attn_layers" in name
        in_lm = name.startswith("lang_encoder.") and not gated
        name = name.replace("lang_encoder.", inner) if in_lm else name
        if alias == "separate" or not (gated or (in_lm and f".{blocks}." in name)):
            state[name] = tensor
            continue
        number, rest = name.split(f".{blocks}." if in_lm else "_layers.")[1].split(".", 1)
        state[f"{inner}{blocks}.{number}.{'decoder_layer' if in_lm else 'gated_cross_attn_layer'}.{rest}"] = tensor
        if alias == "both":
            state[f"lang_encoder.old_decoder_blocks.{number}.{rest}" if in_lm else name] = tensor
    assert equal(from_state_dict(model.config, {f"module.{n}": t for n, t in state.items()}), model)


@pytest.fixture
def parts(tmp_path):
    model = write_parts(tmp_path)
    return model, {name: tmp_path / name for name in ("vision", "language", "flamingo")}


PROMPT = [image(0)[0], "!#", EOC, image(1)[0], "#"]


def test_a_published_openflamingo_is_assembled_from_its_parts(parts):
    """Weights, tokenizer and image preprocessing. The embedding table of the checkpoint replaces that of the LM."""
    model, paths = parts
    flamingo = minflamingo.load("openflamingo-3b", **paths)
    assert equal(flamingo.model, model) and flamingo.model.config == model.config
    assert flamingo.tokenizer.image_id == flamingo.model.image_id == 51 and flamingo.tokenizer.eoc_id == 50
    assert flamingo.preprocess.size == 28 and flamingo.preprocess.resize == "crop"
    assert not any(m.training for m in flamingo.model.modules())
    paths["flamingo"] /= "checkpoint.pt"
    for loaded in (flamingo, minflamingo.load("openflamingo-3b", **paths, dtype=torch.bfloat16)):
        assert isinstance(loaded.complete(PROMPT, max_new_tokens=3, beams=2), str)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Repositories in a folder instead of huggingface.co. The calls are recorded."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    root, calls = tmp_path / "hub", []

    def snapshot_download(repo, allow_patterns=None, local_files_only=False):
        calls.append((repo, allow_patterns))
        if local_files_only and not (root / repo / "cached").exists():
            raise FileNotFoundError("no copy")
        return str(root / repo)

    def list_repo_files(repo):
        if not (root / repo).is_dir() or (root / repo / "cached").exists():
            raise ConnectionError(f"{repo} not found")
        return [path.name for path in (root / repo).iterdir()]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", list_repo_files)
    return root, calls


def test_a_published_name_downloads_its_own_parts(parts, hub):
    """Local paths replace single parts. Of a repository with several formats only one is downloaded."""
    (model, paths), (root, calls) = parts, hub
    for path, repo in zip(paths.values(), REPOSITORIES["openflamingo-3b"]):
        shutil.copytree(path, root / repo)
        (root / repo / "pytorch_model.bin.copy").touch()
    (root / "openai/clip-vit-large-patch14/pytorch_model.bin").touch()
    assert equal(minflamingo.load("openflamingo-3b").model, model)
    assert [repo for repo, _ in calls] == list(REPOSITORIES["openflamingo-3b"])
    weights = [[p for p in patterns if p in ("*.safetensors", "*.bin", "*.pt")] for _, patterns in calls]
    assert weights == [["*.safetensors"], ["*.bin"], ["*.pt"]]
    calls.clear()
    assert equal(minflamingo.load("openflamingo-3b", language=paths["language"], flamingo=paths["flamingo"]).model, model)
    assert [repo for repo, _ in calls] == ["openai/clip-vit-large-patch14"]


def test_a_repository_without_connection_is_read_from_the_cache_or_refused(hub, monkeypatch):
    root, _ = hub
    (root / "org/name").mkdir(parents=True)
    (root / "org/name/cached").touch()
    assert fetch("org/name") == root / "org/name"
    with pytest.raises(FileNotFoundError, match="other/name: no local copy, and the download failed: other/name not found"):
        fetch("other/name")
    with pytest.raises(FileNotFoundError, match="not an existing file or folder, and not the name of a hub repository"):
        fetch("no/such/place")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'minflamingo\[real\]'"):
        fetch("org/name")


def test_every_published_name_has_a_preset_and_repositories():
    pytest.importorskip("tokenizers")
    for name in NAMES:
        assert minflamingo.pretrained.presets.published(name).n_added_tokens in (2, 3)
        assert (REPOSITORIES[name][0] is None) == name.startswith("idefics") and "/" in REPOSITORIES[name][2]
    with pytest.raises(ValueError, match="unknown model 'openflamingo-5b'; choose one of openflamingo-3b"):
        load_published("openflamingo-5b")
    with pytest.raises(ValueError, match="unknown preset 'x'; choose one of flamingo-3b"):
        minflamingo.pretrained.presets.published("x")


def test_a_checkpoint_without_one_gated_layer_is_refused_by_its_name(parts):
    """OpenFlamingo's own loader would leave this layer at its random initial values."""
    path = parts[1]["flamingo"] / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    del content["model_state_dict"]["module.lang_encoder.gated_cross_attn_layers.1.attn.to_q.weight"]
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"missing: lang_encoder\.gated_cross_attn_layers\.1\.attn\.to_q\.weight"):
        minflamingo.load("openflamingo-3b", **parts[1])


@pytest.mark.parametrize("options", [{}, {"safetensors": True}])
def test_a_published_model_can_be_saved_and_loaded_again(parts, tmp_path, options):
    """In our own format: the whole, or the trained modules alone around the same vision encoder and LM."""
    flamingo = minflamingo.load("openflamingo-3b", **parts[1])
    flamingo.save(tmp_path / "own", **options)
    again = minflamingo.load(tmp_path / "own")
    assert equal(again.model, flamingo.model) and again.model.config == flamingo.model.config
    assert again.preprocess == flamingo.preprocess and again.tokenizer.to_dict() == flamingo.tokenizer.to_dict()
    flamingo.save(tmp_path / "own", trainable_only=True, **options)
    with pytest.raises(ValueError, match=r"trainable\.\w+ has only the trained modules"):
        minflamingo.load(tmp_path / "own")
    vision, language = ViT(VISION), flamingo.model.lm
    vision.load_state_dict(flamingo.model.vision.state_dict())
    assert equal(minflamingo.load(tmp_path / "own", vision=vision, language=language).model, flamingo.model)
    assert len(list((tmp_path / "own").iterdir())) == 3


def test_the_output_layer_of_the_added_tokens_is_as_stored():
    """Around an LM whose output layer is not tied: with rows for the added tokens they can be generated, without them not."""
    lm = replace(MPT, norm_bias=True, attention_bias=True, output_bias=True, mlp_bias=True, position="rotary", tied_head=False)
    model = enliven(Flamingo(openflamingo.config(lm, 2, VISION)))
    assert model.config.added_head == "own"
    state = published_names(model, openflamingo.table(model.config, {}, "gpt_neox"))
    for kind in ("weight", "bias"):  # GPT-NeoX has q, k and v of each head together
        for i in range(3):
            name = f"lang_encoder.layers.{i}.attention.query_key_value.{kind}"
            state[name] = state[name].unflatten(0, (3, 4, 8)).transpose(0, 1).flatten(0, 2)
    state["lang_encoder.embed_in.weight"] = torch.cat([model.lm.embed.weight, model.added_embed.weight])
    state["lang_encoder.embed_out.weight"] = torch.cat([model.lm.head.weight, model.added_head.weight])
    assert equal(from_state_dict(model.config, state), model)
    state["lang_encoder.embed_out.weight"] = model.lm.head.weight
    without = from_state_dict(model.config, state)
    assert without.config.added_head is None and close(without.lm.head.weight, model.lm.head.weight)
