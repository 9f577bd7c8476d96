"""Checkpoints: a file is complete or does not exist, and reading a file never runs code from it."""

import os
import pickle
import zipfile

import pytest
import torch
from torch import nn

from minflamingo.training.checkpoint import load_json, load_tensors, load_weights, save_json, save_tensors, write_atomically


def files(folder) -> list[str]:
    """All files of the folder, hidden ones too."""
    return sorted(os.listdir(folder))


def test_readers_see_the_old_file_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("old")
    seen = []

    def write(temporary):
        temporary.write_text("ne")
        seen.append(path.read_text())
        temporary.write_text("new")

    write_atomically(path, write)
    assert seen == ["old"] and path.read_text() == "new" and files(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["disk full", "Ctrl-C"])
def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, error):
    path = tmp_path / "model.pt"
    save_tensors({"w": torch.ones(2)}, path)

    def write(temporary):
        temporary.write_bytes(b"half of")
        raise error

    for name in ("model.pt", "other.pt"):
        with pytest.raises(type(error)):
            write_atomically(tmp_path / name, write)
    with pytest.raises(TypeError):
        save_json({"accuracy": torch.ones(1)}, path)  # JSON has no tensors
    assert torch.equal(load_tensors(path)["w"], torch.ones(2)) and files(tmp_path) == ["model.pt"]


def test_json_and_tensors_are_read_as_they_were_written(tmp_path):
    """Bit for bit, with their dtypes."""
    content = {"settings": {"seed": 3}, "rows": [{"stage": "vision", "loss": 0.1 + 0.2}], "name": "é ü"}
    tensors = {"w": torch.randn(3, 4), "half": torch.tensor([1.0, 2.5], dtype=torch.bfloat16)}
    save_json(content, tmp_path / "a.json")
    save_tensors({**content, **tensors}, tmp_path / "a.pt")
    found = load_tensors(tmp_path / "a.pt")
    assert load_json(tmp_path / "a.json") == content == {key: found[key] for key in content}
    assert all(found[k].dtype == t.dtype and torch.equal(found[k], t) for k, t in tensors.items())


@pytest.mark.parametrize("case", ["empty", "a third", "all but the end", "git-lfs", "zip"])
def test_a_damaged_or_foreign_file_is_named(tmp_path, case):
    path = tmp_path / "model.pt"
    save_tensors({"w": torch.randn(1000)}, path)
    content = path.read_bytes()
    share = {"empty": 0.0, "a third": 0.3, "all but the end": 0.99}.get(case)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n" if share is None else content[: int(share * len(content))])
    if case == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("photo.txt", "a cat")
    with pytest.raises(ValueError, match=r"model\.pt: not a valid checkpoint"):
        load_tensors(path)


def test_a_missing_file_or_other_content_is_named(tmp_path):
    torch.save(torch.ones(3), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt: expected a dict of tensors, found Tensor"):
        load_tensors(tmp_path / "model.pt")
    for missing in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"{missing}: this file does not exist"):
            load_tensors(missing)
    path = tmp_path / "config.json"
    wrong = {b'{"d": 9': "not valid JSON", b"\xff\xfe\x00": "not valid JSON", b"[1, 2]": "expected a JSON object, found list"}
    for content, message in wrong.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"config\.json: {message}"):
            load_json(path)


class CreatesFile:
    """Unpickling this object creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("format", ["torch", "old torch", "pickle"])
def test_a_pickle_with_code_is_refused_and_none_of_it_runs(tmp_path, format):
    """The same file does run its code with plain `pickle`, so the test is not empty."""
    created, path = tmp_path / "created", tmp_path / "model.pt"
    content = {"w": torch.ones(2), "code": CreatesFile(created)}
    if format == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=format == "torch")
    with pytest.raises(ValueError, match=r"model\.pt: not a valid checkpoint .*unsafe pickle"):
        load_tensors(path)
    assert not created.exists()
    torch.load(path, weights_only=False) if format != "pickle" else pickle.loads(path.read_bytes())
    assert created.exists()


def small(width: int = 3) -> nn.Module:
    return nn.ModuleDict({"a": nn.Linear(2, width), "b": nn.Linear(width, 1, bias=False)})


def test_weights_of_another_model_are_listed_and_none_is_loaded():
    model, state = small(), small(4).state_dict()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    del state["b.weight"]
    state |= {"a.bias": "not a tensor", **{f"c{i}": torch.ones(1) for i in range(6)}}
    with pytest.raises(ValueError) as error:
        load_weights(model, state, "runs/model.pt")
    assert str(error.value) == (
        "runs/model.pt does not fit this model. missing: b.weight; unknown: c0, c1, c2, c3, c4 ...; "
        "wrong shape: a.bias () instead of (3,), a.weight (4, 2) instead of (3, 2)"
    )
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    other = small()
    load_weights(other, model.state_dict(), "here")
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())
