"""Checkpoints as files: every format gives the same weights, and whatever is wrong with one is said by name. Nothing runs."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import minflamingo
from minflamingo import EOC, complete
from minflamingo.pretrained.files import open_tensors
from minflamingo.pretrained.loading import from_state_dict, load_lm

pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")
tokenizers = pytest.importorskip("tokenizers")

from test_pretrained import WrittenOut, relative, theirs  # noqa: E402


def same(model: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = model.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def weights(model: torch.nn.Module) -> dict:
    return {name: t.contiguous() for name, t in model.state_dict().items() if name != "lm_head.weight"}


@pytest.fixture(scope="module")
def gpt2():
    return theirs("gpt2")


@pytest.fixture(params=["model.safetensors", "pytorch_model.bin", "sharded safetensors", "sharded bin", "old.bin"])
def folder(request, tmp_path, gpt2):
    """A model as it is published: config.json, and the weights in one of five ways."""
    state, kind = weights(gpt2), request.param
    (tmp_path / "config.json").write_text(gpt2.config.to_json_string())
    write = safetensors.save_file if "safetensors" in kind else torch.save
    if kind.startswith("sharded"):
        suffix, index = ("safetensors", "model.safetensors") if "safetensors" in kind else ("bin", "pytorch_model.bin")
        names, map_ = sorted(state), {}
        for i, part in enumerate((names[::2], names[1::2])):
            write({n: state[n] for n in part}, tmp_path / f"part-{i}.{suffix}")
            map_ |= {n: f"part-{i}.{suffix}" for n in part}
        (tmp_path / f"{index}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": map_}))
    elif kind == "old.bin":
        torch.save(state, tmp_path / kind, _use_new_zipfile_serialization=False)
    else:
        write(state, tmp_path / kind)
    return tmp_path


def test_every_format_gives_the_same_weights(folder, gpt2):
    """One file or several, safetensors or torch's own, new or old."""
    assert same(load_lm(folder), from_state_dict(gpt2.config, gpt2.state_dict()))


def test_weights_are_converted_on_the_way(folder, gpt2):
    """Each tensor alone, into the wanted dtype; a gradient is nowhere asked of the data type of the file."""
    lm = load_lm(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in lm.parameters()} == {torch.bfloat16}
    assert torch.equal(lm.embed.weight, gpt2.transformer.wte.weight.bfloat16())


def test_a_truncated_file_is_refused_by_name(folder):
    """Cut anywhere, also in the last byte of the weights."""
    for path in folder.iterdir():
        if path.suffix in (".safetensors", ".bin"):
            content = path.read_bytes()
            for length in (len(content) // 2, len(content) - 1, 10, 0):
                path.write_bytes(content[:length])
                with pytest.raises(ValueError, match=path.name):
                    load_lm(folder)
            path.write_bytes(content)
    load_lm(folder)


def test_an_index_that_names_a_missing_part_says_which(folder):
    """A download that stopped half way."""
    parts = sorted(folder.glob("part-*"))
    if not parts:
        pytest.skip("one file")
    parts[1].unlink()
    with pytest.raises(FileNotFoundError, match=r"part-1\.\w+: there is no such file"):
        load_lm(folder)


def test_names_that_are_missing_left_over_or_of_another_shape_are_said(gpt2):
    """All at once, before anything is filled (a `strict=False` hides them)."""
    state = weights(gpt2)
    with pytest.raises(ValueError, match=r"the state dict does not fit this model\. missing: transformer\.h\.1\.ln_1\.bias"):
        from_state_dict(gpt2.config, {k: v for k, v in state.items() if k != "transformer.h.1.ln_1.bias"})
    with pytest.raises(ValueError, match=r"left over: transformer\.h\.3\.ln_1\.bias"):
        from_state_dict(gpt2.config, {**state, "transformer.h.3.ln_1.bias": torch.zeros(32)})
    with pytest.raises(ValueError, match=r"wrong shape: transformer\.wpe\.weight \(39, 32\) instead of \(40, 32\)"):
        from_state_dict(gpt2.config, {**state, "transformer.wpe.weight": torch.zeros(39, 32)})


def test_a_config_that_asks_for_what_we_do_not_have_is_refused(gpt2):
    """Rather a sentence now than wrong numbers later."""
    config = gpt2.config.to_dict()
    for change, said in (
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True; only False is implemented"),
        ({"activation_function": "mish"}, "activation_function='mish'"),
        ({"model_type": "rwkv"}, "unknown family of language models 'rwkv'; there are gpt2, opt"),
    ):
        with pytest.raises(ValueError, match=said):
            from_state_dict({**config, **change}, gpt2.state_dict())
    del config["n_head"]
    with pytest.raises(ValueError, match="the config of this gpt2 has no field 'n_head'"):
        from_state_dict(config, gpt2.state_dict())


class Trap:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_pickle_with_code_in_it_is_refused_and_does_not_run(tmp_path, gpt2):
    """`weights_only`, everywhere."""
    torch.save({**weights(gpt2), "trap": Trap(tmp_path / "sprung")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is no checkpoint of tensors"):
        open_tensors(tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_a_file_is_read_one_tensor_at_a_time(tmp_path, gpt2):
    """Opening reads names and shapes alone: so a model need not be in memory twice."""
    torch.save(weights(gpt2), tmp_path / "model.bin")
    tensors = open_tensors(tmp_path / "model.bin")
    assert tensors.meta("transformer.wte.weight").shape == (50, 32) and tensors.meta("transformer.wte.weight").is_meta
    assert tensors["transformer.wte.weight"].data_ptr() != tensors["transformer.wte.weight"].data_ptr()


# ------------------------------------------------------------------------------------------------ published Flamingos


def byte_tokenizer(path, rows: int) -> None:
    """A byte-level tokenizer of `rows` tokens."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())[: rows - 1]
    vocab = {letter: i for i, letter in enumerate(["<unk>", *alphabet])}
    base = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [], unk_token="<unk>"))
    base.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = tokenizers.decoders.ByteLevel()
    base.save(str(path))


@pytest.fixture
def parts(tmp_path):
    """OpenFlamingo-3B in small, as its authors publish it: three parts, the checkpoint with a table of tokens of its own."""
    model = WrittenOut("mpt", every=1)
    for name in ("eye", "tongue"):
        (tmp_path / name).mkdir()
    (tmp_path / "eye/config.json").write_text(model.eye.config.to_json_string())
    safetensors.save_file(model.eye.state_dict(), tmp_path / "eye/model.safetensors")
    lm = theirs("mpt")
    (tmp_path / "tongue/config.json").write_text(lm.config.to_json_string())
    short = {"transformer.wte.weight": lm.transformer.wte.weight.detach()}
    torch.save(weights(model.lm) | short, tmp_path / "tongue/pytorch_model.bin")
    byte_tokenizer(tmp_path / "tongue/tokenizer.json", 50)
    state = {f"module.{n}": t for n, t in model.w.items()}
    state["module.lang_encoder.transformer.wte.weight"] = model.lm.transformer.wte.weight.detach()
    torch.save({"model_state_dict": state, "epoch": 3}, tmp_path / "checkpoint.pt")
    return model, dict(vision=tmp_path / "eye", language=tmp_path / "tongue", flamingo=tmp_path / "checkpoint.pt")


@torch.no_grad()
def test_a_published_openflamingo_is_put_together_from_its_parts(parts):
    """By name: weights, tokenizer and image preparation; the logits are those of the equations."""
    model, paths = parts
    flamingo = minflamingo.load("openflamingo-3b", **paths)
    assert flamingo.tokenizer.image_id == flamingo.model.image_id == 51 and flamingo.tokenizer.eoc_id == 50
    assert flamingo.prepare.size == 28 and flamingo.prepare.resize == "crop"
    cat = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    sample = minflamingo.Sample([cat[None], "!#", EOC, cat[None, ::-1], "#"])
    batch = minflamingo.collate([sample], flamingo.tokenizer, flamingo.prepare)
    logits = flamingo.model(batch)[0]
    assert relative(logits[0], model.logits(batch.ids[0], batch.media[0, :, 0], 51)) < 1e-5
    assert isinstance(complete(flamingo, [cat, "!#", EOC, cat, "#"], max_new_tokens=3), str)


def test_a_published_flamingo_says_which_parts_it_needs(parts):
    """Nothing is fetched that nobody has named."""
    with pytest.raises(ValueError, match="language= .published as anas-awadalla/mpt-1b-redpajama-200b."):
        minflamingo.load("openflamingo-3b", **{**parts[1], "language": None})
    with pytest.raises(FileNotFoundError, match="there is no such file or folder, and it is no name of a hub repository"):
        minflamingo.load("openflamingo-3b", **{**parts[1], "vision": "no/such/place"})


def test_a_checkpoint_without_one_bridge_is_refused_by_its_name(parts):
    """OpenFlamingo's own loader would leave it at its random start."""
    path = parts[1]["flamingo"]
    content = torch.load(path, weights_only=True)
    del content["model_state_dict"]["module.lang_encoder.gated_cross_attn_layers.1.attn.to_q.weight"]
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"missing: lang_encoder\.gated_cross_attn_layers\.1\.attn\.to_q\.weight"):
        minflamingo.load("openflamingo-3b", **parts[1])


@pytest.mark.parametrize("kind", [{}, {"safetensors": True}])
def test_what_was_published_is_saved_and_read_back_bit_for_bit(parts, tmp_path, kind):
    """In our own format, whole; and the bridge alone, around the same eye and language model."""
    flamingo = minflamingo.load("openflamingo-3b", **parts[1])
    minflamingo.save(flamingo, tmp_path / "own", **kind)
    again = minflamingo.load(tmp_path / "own")
    assert same(again.model, flamingo.model) and again.model.config == flamingo.model.config
    assert again.prepare == flamingo.prepare and again.tokenizer.to_dict() == flamingo.tokenizer.to_dict()
    minflamingo.save(flamingo, tmp_path / "own", bridge_only=True, **kind)
    with pytest.raises(ValueError, match=r"bridge\.\w+ holds the bridge alone"):
        minflamingo.load(tmp_path / "own")
    bridge = minflamingo.load(tmp_path / "own", vision=flamingo.model.vision, language=flamingo.model.lm)
    assert same(bridge.model, flamingo.model)
    assert len(list((tmp_path / "own").iterdir())) == 3


def test_a_flamingo_in_half_precision_completes(parts):
    """Pictures are prepared in fp32 and meet weights in bf16."""
    flamingo = minflamingo.load("openflamingo-3b", **parts[1], dtype=torch.bfloat16)
    cat = np.zeros((30, 30, 3), np.uint8)
    assert isinstance(complete(flamingo, [cat, "!#", EOC, cat, "#"], max_new_tokens=3, beams=2), str)
    assert replace(flamingo.prepare, size=14).size == 14
