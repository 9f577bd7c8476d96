"""Files of published models: each format gives the same weights, errors name what is wrong, and no code in a file runs."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import enliven, equal, gpt2_state, image
from torch import nn

from minflamingo import EOC, LM, Flamingo, LMConfig, VisionConfig, load
from minflamingo.pretrained import from_state_dict, load_lm, openflamingo
from minflamingo.pretrained.files import fetch
from minflamingo.pretrained.language_models import FAMILIES
from minflamingo.pretrained.loading import CLIP_L14, REPOSITORIES
from minflamingo.pretrained.presets import PRESETS

GPT2_CONFIG = dict(model_type="gpt2", vocab_size=50, n_embd=32, n_layer=3, n_head=4, n_positions=40)


def same(model: nn.Module, other: nn.Module) -> bool:
    return equal(model.state_dict(), other.state_dict())


@pytest.fixture(params=["model.safetensors", "pytorch_model.bin", "sharded safetensors", "sharded bin", "old.bin"])
def folder(request, tmp_path):
    """A model as it is published: config.json, and the weights in one of five forms."""
    state, kind = gpt2_state(3, "transformer."), request.param
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


def weight_files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")]


def test_every_format_gives_the_same_weights(folder):
    """The files are mapped into memory while they are read. The weights are copies, so a file may be overwritten afterwards."""
    lm, half = load_lm(folder), load_lm(folder, dtype=torch.bfloat16)
    for path in weight_files(folder):
        with path.open("r+b") as file:
            file.write(bytes(path.stat().st_size))
    assert same(lm, from_state_dict(GPT2_CONFIG, gpt2_state(3, "transformer."))) and lm.head.weight is lm.embed.weight
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert torch.equal(half.embed.weight, lm.embed.weight.bfloat16())


def test_a_damaged_or_missing_file_is_named(folder):
    """Truncated anywhere, also before the last byte; and an index of which one file is missing."""
    for path in weight_files(folder):
        content = path.read_bytes()
        for length in (len(content) // 2, len(content) - 1, 10, 0):
            path.write_bytes(content[:length])
            with pytest.raises(ValueError, match=path.name):
                load_lm(folder)
        path.write_bytes(content)
    load_lm(folder)
    for path in folder.glob("part-1*"):
        path.unlink()
        with pytest.raises(FileNotFoundError, match=path.name):
            load_lm(folder)


def test_a_gguf_file_gives_the_weights_that_were_written(tmp_path):
    """Its rows of queries and keys are in another order, as llama.cpp writes them."""
    gguf = pytest.importorskip("gguf")
    sizes = dict(vocab_size=50, d=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=48, norm_eps=2.0**-17)
    lm = enliven(LM(LMConfig(**sizes, max_length=None, norm="rmsnorm", activation="silu", gated_mlp=True, tied_head=False)))
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
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
    loaded = load_lm(path)
    assert same(loaded, lm) and loaded.config == lm.config
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"model\.gguf: not a valid checkpoint"):
        load_lm(tmp_path)


# ------------------------------------------------------------------------------------------------------ published models

VISION = VisionConfig(28, 14, d=32, n_layers=2, n_heads=4, d_ff=128, activation="quick_gelu", keep_class_token=False)
MPT = LMConfig(50, 32, 3, 4, d_ff=128, max_length=None, norm_bias=False, position="alibi")


def published_names(model: Flamingo, family: str) -> dict:
    """Our weights under OpenFlamingo's names. q, k and v, which the file has as one matrix, are joined again."""
    table = openflamingo.layout(model.config, {f"lang_encoder.{FAMILIES[family].sign}": None})[2]
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


@pytest.fixture
def parts(tmp_path) -> tuple[Flamingo, dict[str, Path]]:
    """A small OpenFlamingo-3B, and the three parts and formats in which it is published."""
    safetensors, tokenizers = pytest.importorskip("safetensors.torch"), pytest.importorskip("tokenizers")
    model = enliven(Flamingo(openflamingo.config(MPT, 1, VISION)))
    state, embed = published_names(model, "mpt"), model.lm.embed.weight.detach()
    paths = {name: tmp_path / name for name in ("vision", "language", "flamingo")}
    for path in paths.values():
        path.mkdir()
    vision = {n.replace("vision_encoder.", "vision_model."): t for n, t in state.items() if n.startswith("vision_")}
    safetensors.save_file(vision, paths["vision"] / "model.safetensors")
    config = dict(hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, image_size=28)
    config = {"model_type": "clip", "vision_config": {**config, "patch_size": 14}}
    (paths["vision"] / "config.json").write_text(json.dumps(config))
    gated = {n: t for n, t in state.items() if "gated_cross" in n or "perceiver" in n}
    lm = {n.replace("lang_encoder", "transformer"): t for n, t in state.items() if "lang" in n and n not in gated}
    lm["transformer.wte.weight"] = torch.cat([embed, embed[:14]])  # 64 rows, more than the tokenizer has tokens
    torch.save({n: t for n, t in lm.items() if "lm_head" not in n}, paths["language"] / "pytorch_model.bin")
    config = dict(model_type="mpt", vocab_size=64, d_model=32, n_layers=3, n_heads=4)
    (paths["language"] / "config.json").write_text(json.dumps(config))
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())[:50]
    base = tokenizers.ByteLevelBPETokenizer({letter: i for i, letter in enumerate(letters)}, [])
    base.save(str(paths["language"] / "tokenizer.json"))
    checkpoint = {f"module.{n}": t for n, t in gated.items()}
    checkpoint["module.lang_encoder.transformer.wte.weight"] = torch.cat([embed, model.added_embed.weight.detach()])
    torch.save({"model_state_dict": checkpoint, "epoch": 3}, paths["flamingo"] / "checkpoint.pt")
    return model, paths


@pytest.mark.parametrize("alias", ["separate", "inside", "both"])
def test_every_name_that_openflamingos_weights_have_had_is_known(alias):
    """Gated layers in a list of their own, or inside the blocks of the LM, which are then called decoder_layer; or both."""
    model, inner = enliven(Flamingo(openflamingo.config(MPT, 2, VISION))), "lang_encoder.transformer."
    state = {f"{inner}wte.weight": torch.cat([model.lm.embed.weight, model.added_embed.weight])}
    for name, tensor in published_names(model, "mpt").items():
        gated = "gated_cross_attn_layers" in name
        name = name if gated else name.replace("lang_encoder.", inner)
        if alias == "separate" or not (gated or ".blocks." in name):
            state[name] = tensor
            continue
        number, rest = name.split("_layers." if gated else ".blocks.")[1].split(".", 1)
        state[f"{inner}blocks.{number}.{'gated_cross_attn_layer' if gated else 'decoder_layer'}.{rest}"] = tensor
        if alias == "both":
            state[name if gated else f"lang_encoder.old_decoder_blocks.{number}.{rest}"] = tensor
    assert same(from_state_dict(model.config, {f"module.{n}": t for n, t in state.items()}), model)


def test_a_published_openflamingo_is_assembled_from_its_parts(parts):
    """Weights, tokenizer and image preprocessing. The embedding table of the checkpoint replaces that of the LM."""
    model, paths = parts
    flamingo = load("openflamingo-3b", **paths)
    assert same(flamingo.model, model) and flamingo.model.config == model.config
    assert flamingo.tokenizer.image_id == flamingo.model.image_id == 51 and flamingo.tokenizer.eoc_id == 50
    assert flamingo.preprocess.size == 28 and flamingo.preprocess.resize == "crop"
    assert not any(m.training for m in flamingo.model.modules())
    paths["flamingo"] /= "checkpoint.pt"
    for loaded in (flamingo, load("openflamingo-3b", **paths, dtype=torch.bfloat16)):
        assert isinstance(loaded.complete([image(0)[0], "!#", EOC, image(1)[0], "#"], max_new_tokens=3, beams=2), str)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Repositories in a folder instead of huggingface.co; without a connection if this is set. The downloads are recorded."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    hub = SimpleNamespace(root=tmp_path / "hub", downloads={}, connected=True)

    def snapshot_download(repo, allow_patterns):
        if not (hub.root / repo).is_dir():
            raise FileNotFoundError(f"{repo} not found")
        hub.downloads[repo] = [p for p in allow_patterns if p in ("*.safetensors", "*.bin", "*.pt")]
        return str(hub.root / repo)

    def list_repo_files(repo):
        if not hub.connected:
            raise ConnectionError("no connection")
        return [path.name for path in (hub.root / repo).iterdir()]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", list_repo_files)
    return hub


def test_a_published_name_downloads_its_own_parts(parts, hub):
    """Local paths replace single parts. Of a repository with several formats only one is downloaded."""
    model, paths = parts
    repositories = (CLIP_L14, *REPOSITORIES["openflamingo-3b"])
    for path, repo in zip(paths.values(), repositories):
        shutil.copytree(path, hub.root / repo)
        (hub.root / repo / "pytorch_model.bin.copy").touch()
    (hub.root / CLIP_L14 / "pytorch_model.bin").touch()
    assert same(load("openflamingo-3b").model, model)
    assert hub.downloads == dict(zip(repositories, (["*.safetensors"], ["*.bin"], ["*.pt"])))
    hub.downloads.clear()
    assert same(load("openflamingo-3b", language=paths["language"], flamingo=paths["flamingo"]).model, model)
    assert list(hub.downloads) == [CLIP_L14]


def test_a_repository_without_connection_is_read_from_the_cache_or_refused(hub, monkeypatch):
    (hub.root / "org/name").mkdir(parents=True)
    hub.connected = False
    assert fetch("org/name") == hub.root / "org/name"
    with pytest.raises(FileNotFoundError, match="other/name: not a local file or folder, and the download failed: other/name"):
        fetch("other/name")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'minflamingo\[real\]'"):
        fetch("org/name")


@pytest.mark.parametrize("options", [{}, {"safetensors": True}])
def test_a_published_model_can_be_saved_and_loaded_again(parts, tmp_path, options):
    """In our own format: the whole, or the trained modules alone around the same vision encoder and LM."""
    flamingo = load("openflamingo-3b", **parts[1])
    flamingo.save(tmp_path / "own", **options)
    again = load(tmp_path / "own")
    assert same(again.model, flamingo.model) and again.model.config == flamingo.model.config
    assert again.preprocess == flamingo.preprocess and again.tokenizer.to_dict() == flamingo.tokenizer.to_dict()
    flamingo.save(tmp_path / "own", trainable_only=True, **options)
    frozen = {"vision": again.model.vision, "language": again.model.lm}
    assert same(load(tmp_path / "own", **frozen).model, flamingo.model)
    assert len(list((tmp_path / "own").iterdir())) == 3


def test_the_output_layer_of_the_added_tokens_is_as_stored():
    """Around an LM whose output layer is not tied: with rows for the added tokens they can be generated, without them not."""
    lm = replace(MPT, norm="rmsnorm", activation="silu", gated_mlp=True, position="rotary", tied_head=False)
    model = enliven(Flamingo(openflamingo.config(lm, 2, VISION)))
    state = published_names(model, "llama")
    state["lang_encoder.embed_tokens.weight"] = torch.cat([model.lm.embed.weight, model.added_embed.weight])
    state["lang_encoder.lm_head.weight"] = torch.cat([model.lm.head.weight, model.added_head.weight])
    assert model.config.added_head == "own" and same(from_state_dict(model.config, state), model)
    state["lang_encoder.lm_head.weight"] = model.lm.head.weight
    without = from_state_dict(model.config, state)
    assert without.config.added_head is None and torch.equal(without.lm.head.weight, model.lm.head.weight)


# ------------------------------------------------------------------------------------------------ numbers of parameters

PAPER = {"flamingo-3b": (1.2, 1.4), "flamingo-9b": (1.6, None), "flamingo-80b": (10, 70)}
CARDS = {"openflamingo-3b": (0.944, 1.311), "openflamingo-4b": (0.961, 2.775), "openflamingo-9b": (1.179, 6.649)}


@pytest.mark.parametrize("name", [*PAPER, *(name for name in REPOSITORIES if name.startswith("openflamingo"))])
def test_presets_have_the_numbers_of_parameters_of_table_1_and_of_the_model_cards(name):
    """In billions. Table 1: GATED XATTN-DENSE, resampler 194M; LMs to a tenth (theirs also had relative positions).

    OpenFlamingo: MPT-1B 1.3B, RedPajama-INCITE-3B 2.8B, MPT-7B 6.7B; resampler and gated layers as the layout adds up.
    """
    name = name.removesuffix("-instruct")
    with torch.device("meta"):  # nothing is allocated
        flamingo = Flamingo(PRESETS[name])
    parts = flamingo.xattn_layers, flamingo.resampler, flamingo.lm
    assert name in PAPER or PRESETS[name].n_added_tokens == 3
    xattn, resampler, lm = (sum(p.numel() for p in part.parameters()) / 1e9 for part in parts)
    if name in CARDS:
        assert (xattn + resampler, lm) == pytest.approx(CARDS[name], abs=0.001)
    else:
        assert (xattn, resampler) == pytest.approx((PAPER[name][0], 0.194), rel=0.04)
        assert PAPER[name][1] is None or lm == pytest.approx(PAPER[name][1], rel=0.1)
