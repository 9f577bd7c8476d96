"""Checkpoints: a file is complete or does not exist, and reading a file never runs code from it."""

import os

import pytest
import torch

from minflamingo.training.checkpoint import load_json, load_tensors, raise_if_any, save_json, save_tensors, write_atomically


def test_readers_see_the_old_file_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("old")
    seen = []

    def write(temporary):
        temporary.write_text("ne")
        seen.append(path.read_text())
        temporary.write_text("new")

    write_atomically(path, write)
    assert seen == ["old"] and path.read_text() == "new" and os.listdir(tmp_path) == ["notes.txt"]


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
    assert torch.equal(load_tensors(path)["w"], torch.ones(2)) and os.listdir(tmp_path) == ["model.pt"]


def test_json_and_tensors_are_read_as_they_were_written(tmp_path):
    """Bit for bit, with their dtypes."""
    content = {"settings": {"seed": 3}, "rows": [{"stage": "vision", "loss": 0.1 + 0.2}], "name": "é ü"}
    tensors = {"w": torch.randn(3, 4), "half": torch.tensor([1.0, 2.5], dtype=torch.bfloat16)}
    save_json(content, tmp_path / "a.json")
    save_tensors({**content, **tensors}, tmp_path / "a.pt")
    found = load_tensors(tmp_path / "a.pt")
    assert load_json(tmp_path / "a.json") == content == {key: found[key] for key in content}
    assert all(found[k].dtype == t.dtype and torch.equal(found[k], t) for k, t in tensors.items())


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", None])
def test_a_damaged_or_foreign_file_is_named(tmp_path, content):
    path = tmp_path / "model.pt"
    save_tensors({"w": torch.randn(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000] if content is None else content)
    with pytest.raises(ValueError, match=r"model\.pt: not a valid checkpoint"):
        load_tensors(path)
    with pytest.raises(ValueError, match=r"model\.pt: not valid JSON"):
        load_json(path)
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"model\.pt: expected a JSON object, found list"):
        load_json(path)


class CreatesFile:
    """Unpickling this object creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("zipped", [True, False], ids=["torch", "old torch"])
def test_a_pickle_with_code_is_refused_and_none_of_it_runs(tmp_path, zipped):
    """The same file does run its code without `weights_only`, so the test is not empty."""
    created, path = tmp_path / "created", tmp_path / "model.pt"
    torch.save({"w": torch.ones(2), "code": CreatesFile(created)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"model\.pt: not a valid checkpoint .*unsafe pickle"):
        load_tensors(path)
    assert not created.exists()
    torch.load(path, weights_only=False)
    assert created.exists()


def test_up_to_five_names_of_each_problem_are_listed():
    message = r"^model\.pt does not fit this model\. missing: b\.weight; unknown: c0, c1, c2, c3, c4 \.\.\.$"
    with pytest.raises(ValueError, match=message):
        raise_if_any("model.pt", {"missing": ["b.weight"], "unknown": {f"c{i}" for i in range(6)}, "wrong shape": []})
    raise_if_any("model.pt", {"missing": []})
