"""Checkpoints: a file is whole or not there, and reading one never runs what is in it."""

from __future__ import annotations

import os
import pickle
import zipfile

import pytest
import torch
from torch import nn

from minflamingo.pretrained.files import _Mapped
from minflamingo.training.checkpoint import (
    load_json,
    load_tensors,
    load_weights,
    save_json,
    save_tensors,
    write_atomically,
)


def names(folder) -> list[str]:
    """All that lies in the folder, hidden files too."""
    return sorted(os.listdir(folder))


# ------------------------------------------------------------------------------------------------------ atomic writing


def test_who_reads_while_a_file_is_written_sees_the_old_one(tmp_path):
    """The new one is written beside it and renamed at the end."""
    path = tmp_path / "notes.txt"
    path.write_text("old")
    seen = []

    def write(temporary):
        temporary.write_text("ne")
        seen.append(path.read_text())
        temporary.write_text("new")

    write_atomically(path, write)
    assert seen == ["old"] and path.read_text() == "new" and names(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["disk full", "Ctrl-C"])
def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    """Half a checkpoint is worse than an old one. The error itself comes through."""
    path = tmp_path / "model.pt"
    save_tensors({"w": torch.ones(2)}, path)

    def write(temporary):
        temporary.write_bytes(b"half of")
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, write)
    assert torch.equal(load_tensors(path)["w"], torch.ones(2)) and names(tmp_path) == ["model.pt"]
    with pytest.raises(type(error)):
        write_atomically(tmp_path / "other.pt", write)
    assert names(tmp_path) == ["model.pt"]


def test_what_cannot_be_saved_does_not_harm_what_was(tmp_path):
    """JSON knows no tensors; the file is as it was."""
    path = tmp_path / "results.json"
    save_json({"accuracy": 0.5, "name": "é ü"}, path)
    with pytest.raises(TypeError):
        save_json({"accuracy": torch.ones(1)}, path)
    assert load_json(path) == {"accuracy": 0.5, "name": "é ü"} and names(tmp_path) == ["results.json"]


# ----------------------------------------------------------------------------------------------------- checked reading


def test_tensors_come_back_bit_for_bit(tmp_path):
    """With their dtypes, and the numbers, words and lists around them."""
    content = {
        "settings": {"seed": 3, "config": "Config(d=8)"},
        "rows": [{"stage": "eye", "step": 0, "loss": 0.1 + 0.2}],
        "w": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
        "half": torch.tensor([1.0, 2.5], dtype=torch.bfloat16),
    }
    save_tensors(content, tmp_path / "a.pt")
    back = load_tensors(tmp_path / "a.pt")
    assert back["settings"] == content["settings"] and back["rows"] == content["rows"]
    for key in ("w", "half"):
        assert back[key].dtype == content[key].dtype and torch.equal(back[key], content[key])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99], ids=["empty", "a third", "all but the end"])
def test_a_truncated_file_is_refused_by_name(tmp_path, share):
    """As a full disk or a broken download leaves it."""
    path = tmp_path / "vision.pt"
    save_tensors({"w": torch.randn(1000)}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"vision\.pt is no checkpoint of tensors"):
        load_tensors(path)


def test_a_foreign_file_is_refused_by_name(tmp_path):
    """A text, a zip of something else, a tensor that is alone."""
    path = tmp_path / "model.pt"
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"model\.pt is no checkpoint"):
        load_tensors(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photo.txt", "a cat")
    with pytest.raises(ValueError, match=r"model\.pt is no checkpoint"):
        load_tensors(path)
    torch.save(torch.ones(3), path)
    with pytest.raises(ValueError, match=r"model\.pt: expected a dict of tensors, found Tensor"):
        load_tensors(path)
    for missing in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no such file"):
            load_tensors(missing)


class Trap:
    """An object whose unpickling creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("format", ["torch", "old torch", "pickle"])
def test_a_pickle_that_would_run_code_is_refused_and_nothing_of_it_runs(tmp_path, format):
    """Weights from strangers are data: the trap springs with `pickle`, so it works, and does not spring with us."""
    sprung, path = tmp_path / "sprung", tmp_path / "model.pt"
    content = {"w": torch.ones(2), "trap": Trap(sprung)}
    if format == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=format == "torch")
    with pytest.raises(ValueError, match=r"model\.pt is no checkpoint of tensors"):
        load_tensors(path)
    assert not sprung.exists()
    torch.load(path, weights_only=False) if format != "pickle" else pickle.loads(path.read_bytes())
    assert sprung.exists()


def test_json_that_is_none_is_refused_by_name(tmp_path):
    """Broken off, binary, or a list where an object should be."""
    path = tmp_path / "config.json"
    wrong = {b'{"d": 9': "is not JSON", b"\xff\xfe\x00": "is not JSON", b"[1, 2]": "expected a JSON object, found list"}
    for content, said in wrong.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"config\.json.*{said}"):
            load_json(path)


# ------------------------------------------------------------------------------------------------------------- weights


def small(width: int = 3) -> nn.Module:
    return nn.ModuleDict({"a": nn.Linear(2, width), "b": nn.Linear(width, 1, bias=False)})


def test_weights_that_do_not_fit_are_named():
    """What is missing, what is left over, and what has another shape, all at once; the model stays as it was."""
    model = small()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = small(4).state_dict()
    del state["b.weight"]
    state["c.weight"] = torch.ones(1)
    state["a.bias"] = "no tensor"
    with pytest.raises(ValueError) as error:
        load_weights(model, state, "runs/model.pt")
    assert str(error.value) == (
        "runs/model.pt does not fit this model. missing: b.weight; left over: c.weight; "
        "wrong shape: a.bias () instead of (3,), a.weight (4, 2) instead of (3, 2)"
    )
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_of_many_names_five_are_said():
    """A foreign checkpoint has hundreds."""
    with pytest.raises(ValueError, match=r"left over: x0, x1, x2, x3, x4 …$"):
        load_weights(nn.Identity(), {f"x{i}": torch.ones(1) for i in range(6)}, "here")


def test_weights_that_fit_are_loaded_bit_for_bit():
    """Two models, one set of weights, one result."""
    one, other = small(), small()
    load_weights(other, one.state_dict(), "here")
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())


def test_a_file_is_mapped_once_for_so_many_bytes():
    """And not for each tensor: to map it is to read its table of contents, of a thousand tensors a thousand times."""
    times, state = [], {f"t{i}": torch.full((10,), float(i)) for i in range(9)}  # 40 bytes each
    mapped = _Mapped(lambda: times.append(1) or state, most=100)
    assert all(torch.equal(mapped(name), t) and mapped.read <= 160 for name, t in state.items()) and len(times) == 3
