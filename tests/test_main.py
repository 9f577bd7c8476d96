"""The command line: `complete` a prompt of files and text, and `train` a bridge on shards."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from conftest import picture, stopped_at, tiny_flamingo
from PIL import Image

import minflamingo
from minflamingo import EOC, LoadedFlamingo, ToyTokenizer, complete, save
from minflamingo.__main__ import chunks, main, shots_of
from minflamingo.data.images import ImagePreparation
from minflamingo.training.checkpoint import load_tensors

TOKENIZER = ToyTokenizer([" a", " cat", " dog", "Output", ":"])


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a small Flamingo in it, two pictures and a film."""
    model = tiny_flamingo(lm={"vocab_size": TOKENIZER.vocab_size, "max_length": 512})
    save(LoadedFlamingo(model, TOKENIZER, ImagePreparation(8)), tmp_path / "model")
    for i, name in enumerate(("cat.png", "dog.png")):
        Image.fromarray(picture(i)[0]).save(tmp_path / name)
    (tmp_path / "film").mkdir()
    for t, frame in enumerate(picture(5, frames=3)):
        Image.fromarray(frame).save(tmp_path / f"film/{t}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pixels(name: str) -> np.ndarray:
    return np.asarray(Image.open(name))


def test_files_and_text_on_the_command_line_are_a_prompt(place, capsys):
    """cat.png "Output: a cat" dog.png "Output:" is <image>Output: a cat<EOC><image>Output: and its continuation is printed."""
    words = ["cat.png", "Output: a cat", "dog.png", "Output:"]
    main(["complete", "--model", "model", *words, "--max-new-tokens", "5", "--device", "cpu"])
    flamingo = minflamingo.load("model")
    prompt = [pixels("cat.png"), "Output: a cat", EOC, pixels("dog.png"), "Output:"]
    assert capsys.readouterr().out == complete(flamingo, prompt, max_new_tokens=5) + "\n"


def test_a_folder_of_frames_is_a_video_and_beams_print_at_the_end(place, capsys):
    """In the order of their names."""
    main(["complete", "--model", "model", "film", "Output:", "--max-new-tokens", "4", "--beams", "3", "--device", "cpu"])
    film = [pixels(f"film/{t}.png") for t in range(3)]
    assert capsys.readouterr().out == complete(minflamingo.load("model"), [film, "Output:"], max_new_tokens=4, beams=3) + "\n"


def test_a_folder_of_shots_stands_before_the_prompt(place):
    """cat.png with cat.txt, a folder of frames with its text beside it; each chunk ends before the next image."""
    (place / "cat.txt").write_text("Output: a cat\n")
    (place / "film.txt").write_text("Output: a dog")
    (place / "dog.png").unlink()
    (place / "shots").mkdir()
    for name in ("cat.png", "cat.txt", "film", "film.txt"):
        (place / name).rename(place / "shots" / name)
    cat, one, film, two = shots_of(place / "shots")
    assert (one, two) == ("Output: a cat", "Output: a dog") and len(film) == 3 and cat.size == (8, 8)
    assert [type(p) for p in chunks([cat, one, film, two, cat])][2::3] == [type(EOC)] * 2
    (place / "shots/film.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"film is an example without its text: write it into .*film\.txt"):
        shots_of(place / "shots")


def test_what_streams_is_what_is_returned(place):
    """Piece by piece, letters of several bytes whole."""
    flamingo = minflamingo.load("model")
    for seed in range(5):
        said: list[str] = []
        text = complete(flamingo, [pixels("cat.png")], max_new_tokens=30, temperature=2.0, seed=seed, on_text=said.append)
        assert text.startswith("".join(said)) and set(text[len("".join(said)) :]) <= {"\ufffd"} and len(said) > 1


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["complete", "--model", "nowhere", "cat.png"], "nowhere/config.json is missing"),
        (["complete", "--model", "model", "cow.png"], "cow.png looks like an image, but there is no such file"),
        (["complete", "--model", "openflamingo-3b", "cat.png"], "openflamingo-3b: say where its parts are: vision="),
        (["train", "--config", "model", "--out", "out"], "nothing to train on: give at least one of --pages, --pairs"),
        (["train", "--config", "model", "--out", "out", "--pairs", "no.tar"], "no.tar: there is no such shard"),
    ],
)
def test_bad_input_on_the_command_line_ends_with_one_sentence(place, arguments, said):
    """What, where, and what to do; no traceback."""
    with pytest.raises(SystemExit, match=said):
        main(arguments)


def shard(path, n: int) -> None:
    """Pairs, as WebDataset writes them; one picture is broken."""
    with tarfile.open(path, "w") as tar:
        for i in range(n):
            buffer = io.BytesIO()
            Image.fromarray(picture(i)[0]).save(buffer, "PNG")
            content = {"png": buffer.getvalue() if i != 3 else b"broken", "txt": (" a cat" if i % 2 else " a dog").encode()}
            for ending, data in content.items():
                info = tarfile.TarInfo(f"{i:04}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def trained(place, out: str, steps: int, *more: str) -> dict:
    how = f"--steps {steps} --pairs-batch 4 --warmup 1 --lr 0.01 --save-every 0 --device cpu"
    main(["train", "--config", "model", "--out", out, "--pairs", "pairs.tar", *how.split(), *more])
    return load_tensors(place / out / "model.pt")


def test_a_bridge_is_trained_on_shards_and_the_rest_stays_frozen(place, capsys):
    """`python -m minflamingo train`: the same step as train_tiny's. Broken samples are passed over and counted."""
    shard(place / "pairs.tar", 20)
    before, after = load_tensors(place / "model/model.pt"), trained(place, "out", 12)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"resampler", "xattn_layers", "new_embed"}
    assert "pairs: passed over" in capsys.readouterr().out
    losses = [row["loss"] for row in load_tensors(place / "out/stages/flamingo.pt")["rows"]]
    assert losses[-1] < losses[0]
    assert json.loads((place / "out/config.json").read_text())["image"]["size"] == 8


def test_training_that_stopped_goes_on_at_the_exact_sample(place):
    """Stopped in the middle and begun again: the weights of a run without a stop, bit for bit."""
    shard(place / "pairs.tar", 20)
    whole = trained(place, "whole", 8)
    with stopped_at(5), pytest.raises(SystemExit, match="the same command goes on from here"):
        trained(place, "parts", 8)
    # Who reads the data, and whether activations are kept or computed again, changes nothing
    parts = trained(place, "parts", 8, "--workers", "1", "--recompute")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_bridge_in_half_precision_is_trained_in_fp32_and_can_be_used_afterwards(place):
    """Steps of 1e-4 would be lost in bf16. What is saved is of one dtype, as it came."""
    shard(place / "pairs.tar", 20)
    assert {t.dtype for t in trained(place, "out", 3, "--dtype", "bfloat16").values()} == {torch.bfloat16}
    kept = load_tensors(place / "out/stages/flamingo.pt")["modules"]["bridge"]
    assert {t.dtype for t in kept.values()} == {torch.float32}
    assert isinstance(complete(minflamingo.load("out"), [pixels("cat.png"), " a"], max_new_tokens=3), str)
