"""A model in use, from Python and from the command line: complete a prompt, save, load, and report what is wrong."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CreatesFile, equal, image, tiny_flamingo
from PIL import Image

from minflamingo import EOC, Batch, Pipeline, ToyTokenizer, load
from minflamingo.__main__ import main, read_piece, read_shots, with_chunk_ends
from minflamingo.data.images import ImagePreprocessor
from minflamingo.data.sample import stack_media
from minflamingo.generate import beam_search
from minflamingo.pipeline import controls

ROOT = Path(__file__).parent.parent
TOKENIZER = ToyTokenizer([" a", " cat", " dog", "Output"])
PREPROCESS = ImagePreprocessor(8, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3))
CAT, DOG, VIDEO = image(1), image(2), [Image.fromarray(frame) for frame in image(3, frames=3)]
BOS, END, IMG = TOKENIZER.bos_id, TOKENIZER.eoc_id, TOKENIZER.image_id
A_CAT = [259, 260]  # " a", " cat": the first words come after 3 special ids and 256 bytes
OUTPUT = [TOKENIZER.word_id["Output"], 3 + ord(":")]


def make(seed: int = 0) -> Pipeline:
    """A tiny Flamingo that generates only words and printable letters."""
    model = tiny_flamingo(seed, lm={"vocab_size": TOKENIZER.vocab_size})
    with torch.no_grad():
        unwanted = torch.ones(TOKENIZER.vocab_size, dtype=torch.bool)
        unwanted[[END, *range(259, TOKENIZER.vocab_size), *TOKENIZER.encode("abcdefghijkl .,")]] = False
        model.lm.head.bias[unwanted] = -100.0
    return Pipeline(model, TOKENIZER, PREPROCESS)


@pytest.fixture(scope="module")
def flamingo() -> Pipeline:
    return make()


def by_hand(ids: list[int], *media: np.ndarray) -> Batch:
    """A prompt of given ids and media (T, 8, 8, 3), built without `collate`."""
    stacked, frames = stack_media([[PREPROCESS(m) for m in media]])
    ids = torch.tensor([ids])
    return Batch(ids, torch.full_like(ids, -100), torch.ones_like(ids, dtype=torch.bool), stacked, frames)


@torch.no_grad()
def greedy(flamingo: Pipeline, ids: list[int], *media: np.ndarray, n: int = 6) -> str:
    """The most likely token, again and again, from the whole sequence each time."""
    new: list[int] = []
    while len(new) < n:
        token = int(flamingo.model(by_hand(ids + new, *media))[0][0, -1].argmax())
        if token == END:
            break
        new.append(token)
    return TOKENIZER.decode(new)


# ------------------------------------------------------------------------------------------------------------ complete


def test_images_and_videos_take_their_places_in_the_prompt(flamingo):
    """<BOS><image>Output: a cat<EOC><video>Output: compared with a loop over the whole model, with ids written by hand."""
    prompt = [Image.fromarray(CAT[0]), "Output: a cat", EOC, VIDEO, "Output:"]
    ids = [BOS, IMG, *OUTPUT, *A_CAT, END, IMG, *OUTPUT]
    video = np.stack([np.asarray(frame) for frame in VIDEO])
    answer = flamingo.complete(prompt, max_new_tokens=6)
    assert answer == greedy(flamingo, ids, CAT, video) != ""
    others = {flamingo.complete([*prompt[:3], other, "Output:"], max_new_tokens=6) for other in (CAT, DOG, VIDEO[::-1])}
    assert len(others | {answer}) > 2  # the content of images and the order of frames matter
    assert flamingo.complete(["Output:", " a cat"], max_new_tokens=6) == greedy(flamingo, [BOS, *OUTPUT, *A_CAT]) != ""
    spelled = TOKENIZER.encode("<BOS><PAD><image>Output: a cat<EOC>")  # text that looks like special tokens stays text
    assert flamingo.complete([CAT, TOKENIZER.decode(spelled)], max_new_tokens=6) == greedy(flamingo, [BOS, IMG, *spelled], CAT)


def test_sampling_with_a_seed_is_repeatable(flamingo):
    """The seed of the call decides, not the global one. With a single candidate, sampling is greedy."""
    prompt, options = [CAT, "Output:"], dict(temperature=1.5, max_new_tokens=12)
    drawn = []
    for seed in range(4):
        torch.manual_seed(100 + seed)
        drawn.append(flamingo.complete(prompt, seed=seed, **options))
    assert drawn == [flamingo.complete(prompt, seed=seed, **options) for seed in range(4)] and len(set(drawn)) > 1
    for only_one in (dict(top_k=1), dict(top_p=1e-6)):
        assert flamingo.complete(prompt, seed=5, **only_one, **options) == flamingo.complete(prompt, max_new_tokens=12)


def test_beams_give_the_answer_of_beam_search(flamingo):
    ids = [BOS, IMG, *A_CAT, END, IMG, A_CAT[0]]
    answer = flamingo.complete([CAT, " a cat", EOC, DOG, " a"], beams=3, max_new_tokens=5)
    expected = beam_search(flamingo.model, by_hand(ids, CAT, DOG), END, beams=3, max_new_tokens=5)[0]
    assert answer == TOKENIZER.decode(expected)


def test_streamed_text_is_the_returned_text(flamingo):
    """Piece by piece; a character of several bytes appears when it is complete. An answer ends before a stop text."""
    for seed in (0, 1, 3):
        options = dict(max_new_tokens=30, temperature=2.0, seed=seed)
        parts: list[str] = []
        text = flamingo.complete([CAT], on_text=parts.append, **options)
        assert "".join(parts) == text and len(parts) > 9
        for stop in (text[5:8], [text[9:12], text[4:6]], text[-1], "never", [text[3:5] + "never", text[8:9]]):
            expected = min((text.split(end)[0] for end in ([stop] if isinstance(stop, str) else stop)), key=len)
            parts.clear()
            assert flamingo.complete([CAT], stop=stop, on_text=parts.append, **options) == expected == "".join(parts)


def test_repetitions_are_penalised_or_impossible(flamingo):
    """By hand: prompt 5 6 7 5 and the new token 6. Positive logits are divided, negative ones multiplied, once per token."""
    prompt, logits = by_hand([5, 6, 7, 5]), torch.arange(9.0)[None] - 6
    for penalty, n, expected in (
        (2.0, 0, [-6, -5, -4, -3, -2, -2, 0, 0.5, 2]), (1.0, 2, [-6, -5, -4, -3, -2, -1, 0, -np.inf, 2]),
        (1.0, 3, [-6, -5, -4, -3, -2, -1, 0, -np.inf, 2]), (1.0, 4, logits[0].tolist()),
        (0.5, 1, [-6, -5, -4, -3, -2, -np.inf, -np.inf, -np.inf, 2]),
    ):  # fmt: skip
        assert controls(TOKENIZER, prompt, penalty, n, [])([[6]], logits)[0].tolist() == expected
    assert controls(TOKENIZER, prompt, 1.0, 0, []) is None
    ends = controls(TOKENIZER, by_hand([END, 5]), 2.0, 1, [])([[]], logits)[0].tolist()
    assert ends == [-6, -5, -4, -3, -2, -np.inf, 0, 1, 2]  # <EOC> (2) is not penalised
    text = flamingo.complete([CAT, "a"], max_new_tokens=20, no_repeat_ngram_size=1)
    assert len(set(text.split())) == len(text.split()) and "a" not in text


@pytest.mark.parametrize("options", [dict(beams=4), dict(beams=4, length_penalty=1.0), dict(temperature=1.5, seed=2)], ids=str)
def test_several_answers_have_their_log_likelihoods_as_scores(flamingo, options):
    answers = flamingo.complete([CAT, " a"], n=3, max_new_tokens=4, **options)
    scores = [score for _, score in answers]
    assert len({text for text, _ in answers}) > 1 and len(answers) == 3 and scores == sorted(scores, reverse=True)
    assert flamingo.complete([CAT, " a"], n=1, max_new_tokens=4, **options | dict(beams=1))[0][1] <= 0
    for text, score in answers:
        ids = TOKENIZER.encode(text)
        ids = ids if len(ids) == 4 else [*ids, END]
        with torch.no_grad():
            log_p = flamingo.model(by_hand([BOS, IMG, A_CAT[0], *ids], CAT))[0][0, 2:-1].log_softmax(-1)
        expected = float(log_p.gather(1, torch.tensor(ids)[:, None]).sum())
        assert score == pytest.approx(expected / len(ids) ** options.get("length_penalty", 0), abs=1e-5)


# ------------------------------------------------------------------------------------------------------ shared prefixes

SHOTS = [Image.fromarray(CAT[0]), "Output: a cat", EOC, VIDEO, "Output: a dog", EOC]


@pytest.mark.parametrize("options", [dict(), dict(beams=3), dict(temperature=1.5, seed=3)], ids=["greedy", "beams", "sampled"])
@pytest.mark.parametrize("n", [2, 3, 4, 6], ids=["text last", "EOC last", "video last", "two shots"])
def test_a_query_after_prefilled_shots_has_the_answer_of_the_whole_prompt(flamingo, n, options):
    shots = flamingo.prefill(SHOTS[:n])
    queries = [[DOG, "Output:"], [" a"], [VIDEO[:2], CAT], [EOC, image(9), "Output: a"], ["a", DOG]]
    answers = [flamingo.complete(query, max_new_tokens=7, cache=shots, **options) for query in queries]
    assert answers == [flamingo.complete(SHOTS[:n] + query, max_new_tokens=7, **options) for query in queries]
    assert len(set(answers)) > 2


# ------------------------------------------------------------------------------------------------------------- bad input


# ---------------------------------------------------------------------------------------------------------- save, load


@pytest.fixture
def folder(tmp_path, flamingo):
    flamingo.save(tmp_path / "runs/one")
    return tmp_path / "runs/one"


def test_a_loaded_model_is_the_saved_one_bit_for_bit(folder, flamingo):
    loaded = load(str(folder))
    assert sorted(os.listdir(folder)) == ["config.json", "model.pt", "tokenizer.json"]
    assert loaded.model.config == flamingo.model.config and loaded.tokenizer.words == flamingo.tokenizer.words
    assert equal(loaded.model.state_dict(), flamingo.model.state_dict()) and loaded.preprocess == flamingo.preprocess
    # Ready for use: evaluation mode, frozen where it should be.
    assert not any(module.training for module in loaded.model.modules())
    trainable = {n.split(".")[0] for n, p in loaded.model.named_parameters() if p.requires_grad}
    assert trainable == {"resampler", "added_embed", "xattn_layers"} and loaded.device.type == "cpu"


def test_saving_to_the_same_folder_replaces_the_model(folder):
    """Also by the trained modules alone. Then the frozen ones are given at loading."""
    other = make(seed=1)
    other.save(folder)
    assert equal(load(folder).model.state_dict(), other.model.state_dict())
    other.save(folder, trainable_only=True)
    assert sorted(os.listdir(folder)) == ["config.json", "tokenizer.json", "trainable.pt"]
    assert equal(load(folder, vision=other.model.vision, language=other.model.lm).model.state_dict(), other.model.state_dict())
    with pytest.raises(ValueError, match="vision=, language="):
        load(folder)


def test_loading_runs_no_code(folder, tmp_path):
    state = torch.load(folder / "model.pt", weights_only=True)
    torch.save({**state, "code": CreatesFile(tmp_path / "created")}, folder / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt"):
        load(folder)
    assert not (tmp_path / "created").exists()


def test_a_save_that_fails_keeps_the_earlier_model(folder, flamingo, monkeypatch):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def half(content, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        flamingo.save(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


# ------------------------------------------------------------------------------------------------------ command line


@pytest.fixture
def place(tmp_path, monkeypatch, flamingo):
    """A folder with a model, two images and a video."""
    flamingo.save(tmp_path / "model")
    for name, pixels in (("cat.png", CAT), ("dog.png", DOG)):
        Image.fromarray(pixels[0]).save(tmp_path / name)
    (tmp_path / "video").mkdir()
    for t, frame in enumerate(VIDEO):
        frame.save(tmp_path / f"video/{t}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_files_and_text_on_the_command_line_are_a_prompt(place, capsys, flamingo):
    words = ["cat.png", "Output: a cat", "video", "Output:"]
    main(["complete", "--model", "model", *words, "--max-new-tokens", "5", "--device", "cpu"])
    prompt = [CAT, "Output: a cat", EOC, VIDEO, "Output:"]
    assert capsys.readouterr().out == flamingo.complete(prompt, max_new_tokens=5) + "\n"
    main(["complete", "--model", "model", *words, "--max-new-tokens", "5", "--beams", "3", "--device", "cpu"])
    assert capsys.readouterr().out == flamingo.complete(prompt, max_new_tokens=5, beams=3) + "\n"


def test_a_folder_of_shots_comes_before_the_prompt(place):
    (place / "shots").mkdir()
    for name, text in (("cat.png", "Output: a cat\n"), ("video", "Output: a dog")):
        (place / name).rename(place / "shots" / name)
        (place / "shots" / name).with_suffix(".txt").write_text(text)
    assert read_piece("") == "" and read_piece("a cat.") == "a cat."
    cat, one, video, two = read_shots(place / "shots")
    assert (one, two) == ("Output: a cat", "Output: a dog") and len(video) == 3 and cat.size == (8, 8)
    assert [type(p) for p in with_chunk_ends([cat, one, video, two, cat])][2::3] == [type(EOC)] * 2
    (place / "shots/video.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"video is an example without a text: write the text into .*video\.txt"):
        read_shots(place / "shots")


WORDS = ["", "e.g.", "Output: a cat.", "3.5", "and/or", "www.example.com", "café 猫", "x.png ", "./x ", "/ or"]


@pytest.mark.parametrize("word", WORDS)
def test_texts_are_texts(word, place):
    assert read_piece(word) == word


@pytest.mark.parametrize("word", ["a.mp4", "a.JFIF", "a.avif", "a.jp2", "a.jpe", "a.ppm", "a.heic", "a.svg", "a.txt", "./a",
                                  "~/a", "video/a", "/nowhere/a", "http://a/b", "my cat.png"])  # fmt: skip
def test_a_word_that_looks_like_a_missing_file_is_refused(word, place):
    with pytest.raises(FileNotFoundError, match=f"^{word} looks like .* does not exist"):
        read_piece(word)


def test_what_exists_is_opened_or_refused_by_name_and_frames_are_in_numeric_order(place):
    (place / "photo").write_bytes((place / "cat.png").read_bytes())
    for name in ("notes", "a.heic", "a.svg"):
        (place / name).write_text("not an image")
        with pytest.raises(ValueError, match=f"{name}.*: not an image, or damaged: .*; convert it to PNG or JPEG"):
            read_piece(name)
    assert np.array_equal(np.asarray(read_piece("photo")), CAT[0])
    (place / "frames").mkdir()
    for i in range(1, 12):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(place / f"frames/{i}.png")
    (place / "frames/._1.png").write_text("hidden, as macOS writes it")
    assert [frame.getpixel((0, 0))[0] for frame in read_piece("frames")] == list(range(1, 12))


def test_commands_work_where_the_system_is_not_utf8(place):
    """Text and file names of other characters arrive, and the output is escaped."""
    (place / "cat.png").rename(place / "café.png")
    arguments = ["complete", "--model", "model", "--device", "cpu", "café.png", "Output: é", "--max-new-tokens", "2"]
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    for words in (arguments, ["eval", "--help"]):
        run = [sys.executable, "-m", "minflamingo", *words]
        done = subprocess.run(run, env=environment, cwd=place, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["complete", "train", "eval", "finetune", "ablate", "bench"])
def test_every_command_explains_its_options(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0 and "usage" in capsys.readouterr().out
