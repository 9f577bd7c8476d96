"""A trained Flamingo in use: complete an interleaved prompt, save it, load it, and be told what is wrong."""

from __future__ import annotations

import json
import os
from itertools import product

import numpy as np
import pytest
import torch
from conftest import close, picture, tiny_config, tiny_flamingo
from PIL import Image

import minflamingo
from minflamingo import EOC, LoadedFlamingo, Sample, beam_search, collate, complete, load, preset, remember, save
from minflamingo.data.images import ImagePreparation
from minflamingo.flamingo import Batch
from minflamingo.tokenizer import ToyTokenizer

TOKENIZER = ToyTokenizer([" a", " cat", " dog", "Output"])
PREPARE = ImagePreparation(8, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3))
CAT, DOG, FILM = picture(1), picture(2), [Image.fromarray(f) for f in picture(3, frames=3)]


def make(seed: int = 0, words: tuple[str, ...] = (), **lm) -> LoadedFlamingo:
    """A tiny Flamingo, alive, that speaks words and printable letters: the ids of other bytes are talked out of it."""
    tokenizer = ToyTokenizer([*TOKENIZER.words, *words])
    model = tiny_flamingo(seed, lm={"vocab_size": tokenizer.vocab_size, **lm})
    with torch.no_grad():
        quiet = torch.ones(tokenizer.vocab_size, dtype=torch.bool)
        quiet[[tokenizer.eoc_id, *range(259, tokenizer.vocab_size), *tokenizer.encode("abcdefghijkl .,")]] = False
        model.lm.head.bias[quiet] = -100.0
    return LoadedFlamingo(model, tokenizer, PREPARE)


@pytest.fixture(scope="module")
def flamingo() -> LoadedFlamingo:
    return make()


def by_hand(ids: list[int], *media: np.ndarray) -> Batch:
    """A prompt of ready ids and its media (T, 8, 8, 3), built without `collate`."""
    T = max((len(m) for m in media), default=0)
    stacked, frames = None, None
    if media:
        stacked = torch.zeros(1, len(media), T, 3, 8, 8)
        for n, m in enumerate(media):
            mean, std = (torch.tensor(v)[:, None, None] for v in (PREPARE.mean, PREPARE.std))
            stacked[0, n, : len(m)] = (torch.as_tensor(m).permute(0, 3, 1, 2) / 255 - mean) / std
        frames = torch.tensor([[len(m) for m in media]])
    ids = torch.tensor([ids])
    return Batch(ids, torch.full_like(ids, -100), torch.ones_like(ids, dtype=torch.bool), stacked, frames)


@torch.no_grad()
def greedy(flamingo: LoadedFlamingo, ids: list[int], *media: np.ndarray, n: int = 6) -> str:
    """The likeliest token, again and again, from the whole sequence each time."""
    new: list[int] = []
    while len(new) < n:
        token = int(flamingo.model(by_hand(ids + new, *media))[0][0, -1].argmax())
        if token == TOKENIZER.eoc_id:
            break
        new.append(token)
    return TOKENIZER.decode(new)


BOS, END, IMG = TOKENIZER.bos_id, TOKENIZER.eoc_id, TOKENIZER.image_id
A_CAT = [259, 260]  # " a", " cat": the first words behind 3 special ids and 256 bytes
COLON = 3 + ord(":")


# ----------------------------------------------------------------------------------------------------------- completing


def test_images_and_videos_stand_where_they_are_put(flamingo):
    """<BOS><image>Output: a cat<EOC><video>Output: against a loop over the whole model, with ids written by hand."""
    prompt = [Image.fromarray(CAT[0]), "Output: a cat", EOC, FILM, "Output:"]
    output = [TOKENIZER.word_id["Output"], COLON]
    ids = [BOS, IMG, *output, *A_CAT, END, IMG, *output]
    film = np.stack([np.asarray(f) for f in FILM])
    answer = complete(flamingo, prompt, max_new_tokens=6)
    assert answer == greedy(flamingo, ids, CAT, film) != ""
    others = {complete(flamingo, [*prompt[:3], other, "Output:"], max_new_tokens=6) for other in (CAT, DOG, FILM[::-1])}
    assert len(others | {answer}) > 2  # what is shown matters, and in which order


def test_text_alone_is_completed_too(flamingo):
    """N = 0: the tongue, with the bridge giving nothing."""
    ids = [BOS, TOKENIZER.word_id["Output"], COLON, *A_CAT]
    assert complete(flamingo, ["Output:", " a cat"], max_new_tokens=6) == greedy(flamingo, ids) != ""


@pytest.mark.parametrize("text", ["<image>", "<EOC>", "<BOS><PAD><image>Output: a cat<EOC>"])
def test_text_that_looks_like_a_special_token_stays_text(flamingo, text):
    """No image is consumed and no chunk ended by letters: they are bytes. (flamingo-mini counts every "<" as an image.)"""
    spelled = TOKENIZER.encode(text)
    assert not {BOS, END, IMG, 0} & set(spelled) and TOKENIZER.decode(spelled) == text
    assert complete(flamingo, [text], max_new_tokens=6) == greedy(flamingo, [BOS, *spelled])
    with_image = complete(flamingo, [CAT, text], max_new_tokens=6)
    assert with_image == greedy(flamingo, [BOS, IMG, *spelled], CAT)


def test_an_image_may_come_in_any_form_and_size(flamingo):
    """PIL or array or tensor, uint8 or float: the same answer; another size is resized as the eye wants it."""
    forms = [Image.fromarray(CAT[0]), CAT[0], CAT, torch.as_tensor(CAT[0]), CAT[0] / 255, [CAT[0]]]
    assert len({complete(flamingo, [form, " a"], max_new_tokens=8) for form in forms}) == 1
    large = Image.fromarray(CAT[0]).resize((64, 48))
    small = large.resize((8, 8), Image.Resampling.BICUBIC)
    assert complete(flamingo, [large, " a"]) == complete(flamingo, [small, " a"])


def test_greedy_completion_is_the_same_each_time_and_changes_nothing(flamingo):
    """No chance, no state, and no training mode left on."""
    before = {k: v.clone() for k, v in flamingo.model.state_dict().items()}
    state = torch.get_rng_state()
    prompt = [CAT, "Output:", DOG, " a"]
    assert complete(flamingo, prompt) == complete(flamingo, prompt)
    assert torch.equal(state, torch.get_rng_state()) and len(prompt) == 4
    assert all(torch.equal(v, before[k]) for k, v in flamingo.model.state_dict().items())


def test_a_seed_makes_sampling_repeatable(flamingo):
    """The seed of the call, not the global one; among one candidate, sampling is greedy."""
    prompt = [CAT, "Output:"]
    options = dict(temperature=1.5, max_new_tokens=12)
    drawn = []
    for seed in range(4):
        torch.manual_seed(100 + seed)
        drawn.append(complete(flamingo, prompt, seed=seed, **options))
    again = [complete(flamingo, prompt, seed=seed, **options) for seed in range(4)]
    assert drawn == again and len(set(drawn)) > 1
    assert complete(flamingo, prompt, seed=5, top_k=1, **options) == complete(flamingo, prompt, max_new_tokens=12)
    assert complete(flamingo, prompt, seed=5, top_p=1e-6, **options) == complete(flamingo, prompt, max_new_tokens=12)


def test_beams_search_for_the_likeliest_answer(flamingo):
    """The paper's open-ended setting, beam 3: the same as `beam_search` on ids written by hand."""
    ids = [BOS, IMG, *A_CAT, END, IMG, A_CAT[0]]
    answer = complete(flamingo, [CAT, " a cat", EOC, DOG, " a"], beams=3, max_new_tokens=5)
    assert answer == TOKENIZER.decode(beam_search(flamingo.model, by_hand(ids, CAT, DOG), END, 3, 5)[0])


def test_an_answer_ends_before_the_first_eoc(monkeypatch):
    """Appendix of the paper: what would come behind <EOC> is another chunk. It is not even read: one reading a token."""
    flamingo, lengths, readings = make(), set(), []
    read_on = flamingo.model.read_on
    monkeypatch.setattr(flamingo.model, "read_on", lambda *given: readings.append(given) or read_on(*given))
    for seed, push in product(range(3), (0.0, 1.0, 2.0, 100.0)):
        with torch.no_grad():
            flamingo.model.lm.head.bias[END] = push
        readings.clear()
        answer = complete(flamingo, [picture(seed), "Output:"], max_new_tokens=8)
        assert answer == greedy(flamingo, [BOS, IMG, TOKENIZER.word_id["Output"], COLON], picture(seed), n=8)
        n = len(TOKENIZER.encode(answer))
        assert len(readings) == min(n, 7)
        lengths.add(n)
    assert 0 in lengths and lengths & {1, 2, 3, 4, 5, 6, 7}


def test_max_new_tokens_and_the_context_bound_the_answer():
    """At most so many tokens; and the context of 64 tokens may be filled to the brim, not beyond."""
    flamingo = make()
    with torch.no_grad():
        flamingo.model.lm.head.bias[END] = -100.0  # it never stops by itself
    for n in (0, 1, 5):
        assert len(TOKENIZER.encode(complete(flamingo, [CAT, " a"], max_new_tokens=n))) <= n
    full = collate([Sample([CAT, "x" * 50])], TOKENIZER, PREPARE).ids.shape[1]
    with torch.no_grad():
        flamingo.model.lm.head.bias[:] = -100.0
        flamingo.model.lm.head.bias[A_CAT[1]] = 100.0  # now it says " cat" and nothing else
    assert complete(flamingo, [CAT, "x" * 50], max_new_tokens=100) == " cat" * (64 - full + 1)
    assert complete(flamingo, [CAT, "x" * 50], max_new_tokens=3) == " cat" * 3


# --------------------------------------------------------------------------------------------------- what may go wrong

WRONG_PROMPTS = {
    "a string": ("Output:", TypeError, "the prompt is a list"),
    "an image": (CAT, TypeError, "the prompt is a list"),
    "nothing": (None, TypeError, "the prompt is a list"),
    "empty": ([], ValueError, "the prompt is empty"),
    "a number": ([CAT, "Output:", 7], TypeError, "prompt, piece 2: expected an image .* got int"),
    "a path": ([CAT, {"image": "cat.png"}], TypeError, "prompt, piece 1: .* got dict"),
    "the class of EOC": ([CAT, type(EOC)], TypeError, "prompt, piece 1: .* got type"),
    "NaN": ([CAT, "a", np.full((8, 8, 3), np.nan)], ValueError, "prompt, piece 2: pixels are not finite"),
    "an empty video": (["a", []], ValueError, "prompt, piece 1: a video of no frames"),
    "a bad frame": ([[CAT[0], None]], TypeError, "prompt, piece 0, frame 1: .* got NoneType"),
    "features": ([torch.zeros(1, 5, 16)], ValueError, "prompt, piece 0: expected shape"),
    "too long": ([CAT, "x" * 63], ValueError, "65 tokens, but the language model's context is 64"),
}


@pytest.mark.parametrize("prompt, error, said", WRONG_PROMPTS.values(), ids=WRONG_PROMPTS)
@pytest.mark.parametrize("beams", [1, 2])
def test_a_prompt_that_cannot_be_read_is_refused_by_its_piece(flamingo, prompt, error, said, beams):
    """What was wrong, and in which piece."""
    with pytest.raises(error, match=said):
        complete(flamingo, prompt, beams=beams)


def test_settings_that_contradict_each_other_are_refused(flamingo):
    """Beams do not sample; there is no colder than 0 and no beam number 0."""
    for options, said in (
        (dict(beams=3, temperature=1.0), "beam search does not sample"),
        (dict(temperature=-1.0), "temperature is -1.0"),
        (dict(beams=0), "beams is 0"),
        (dict(temperature=1.0, top_k=0), "top_k is 0"),
        (dict(temperature=1.0, top_p=1.5), "top_p is 1.5"),
    ):
        with pytest.raises(ValueError, match=said):
            complete(flamingo, ["a"], **options)


def test_an_unknown_preset_is_answered_with_those_there_are():
    """Nobody has to look them up."""
    with pytest.raises(ValueError, match="unknown preset 'huge'; there are: tiny, small"):
        preset("huge")


# ----------------------------------------------------------------------------------------------------- saving, loading


@pytest.fixture
def folder(tmp_path, flamingo):
    save(flamingo, tmp_path / "runs/one")
    return tmp_path / "runs/one"


def test_a_loaded_flamingo_is_the_saved_one_bit_for_bit(folder, flamingo):
    """Weights, sizes, words and preparation; so logits and answers are identical."""
    loaded = load(folder)
    assert sorted(os.listdir(folder)) == ["config.json", "model.pt", "tokenizer.json"]
    assert loaded.model.config == flamingo.model.config and loaded.tokenizer.words == flamingo.tokenizer.words
    large = picture(7).repeat(3, axis=1)
    assert torch.equal(loaded.prepare(large), flamingo.prepare(large))
    batch = by_hand([BOS, IMG, *A_CAT, END, IMG, A_CAT[0]], CAT, np.stack([np.asarray(f) for f in FILM]))
    with torch.no_grad():
        assert torch.equal(loaded.model(batch)[0], flamingo.model(batch)[0])
    for beams in (1, 3):
        assert complete(loaded, [CAT, " a", EOC, FILM], beams=beams) == complete(flamingo, [CAT, " a", EOC, FILM], beams=beams)


def test_a_loaded_flamingo_is_ready_for_use_and_frozen_where_it_should_be(folder):
    """Evaluation mode everywhere; eye and tongue without gradient."""
    loaded = load(str(folder))  # a string is a path too
    assert not any(module.training for module in loaded.model.modules())
    trainable = {n.split(".")[0] for n, p in loaded.model.named_parameters() if p.requires_grad}
    assert trainable == {"resampler", "new_embed", "xattn_layers"} and loaded.device.type == "cpu"


def test_saving_again_replaces_the_model(folder):
    """In the same folder; the later one counts."""
    other = make(seed=1)
    save(other, folder)
    assert all(torch.equal(v, other.model.state_dict()[k]) for k, v in load(folder).model.state_dict().items())


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.pt"])
def test_a_missing_file_is_named_and_a_missing_folder_too(folder, name):
    """With a hint where such folders come from."""
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing.*train_tiny.py writes one"):
        load(folder)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load(folder / "nowhere")


def edited(**changes) -> dict:
    return {"flamingo": {**tiny_config().to_dict(), **changes}, "image": PREPARE.to_dict()}


FOREIGN = {
    "another library's": {"model_type": "llama", "hidden_size": 4096},
    "half of it": {"flamingo": tiny_config().to_dict()},
    "other fields": edited(colour="pink"),
    "no tongue": {"flamingo": {k: v for k, v in tiny_config().to_dict().items() if k != "lm"}, "image": PREPARE.to_dict()},
    "impossible sizes": edited(vision={**tiny_config().to_dict()["vision"], "heads": 3}),
    "a list": {"flamingo": [1, 2], "image": PREPARE.to_dict()},
    "another preparation": {**edited(), "image": {"resolution": 8}},
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_config_is_refused_by_name(folder, content):
    """Whatever else is called config.json."""
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"config\.json is not the config of a Flamingo"):
        load(folder)


def test_damaged_files_are_refused_by_name(folder):
    """Each of the three, cut in half."""
    for name in ("model.pt", "tokenizer.json", "config.json"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=name):
            load(folder)
        (folder / name).write_bytes(content)
    load(folder)


def test_files_of_two_models_do_not_mix(folder, tmp_path):
    """A tokenizer with more words; weights of another width: said with both numbers."""
    save(make(words=(" taxi", " bus")), tmp_path / "words")
    wide = LoadedFlamingo(tiny_flamingo(lm={"vocab_size": TOKENIZER.vocab_size, "d": 48}), TOKENIZER, PREPARE)
    save(wide, tmp_path / "wide")
    tokenizer = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes((tmp_path / "words/tokenizer.json").read_bytes())
    with pytest.raises(ValueError, match=f"tokenizer has {259 + 6} tokens, the language model {259 + 4}"):
        load(folder)
    (folder / "tokenizer.json").write_bytes(tokenizer)
    (folder / "model.pt").write_bytes((tmp_path / "wide/model.pt").read_bytes())
    with pytest.raises(ValueError, match=r"model\.pt does not fit this model\. wrong shape: .* instead of"):
        load(folder)


class Trap:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_loading_a_strangers_model_runs_no_code(folder, tmp_path):
    """A model.pt with a trap among right weights is refused, and the trap does not spring."""
    state = torch.load(folder / "model.pt", weights_only=True)
    torch.save({**state, "trap": Trap(tmp_path / "sprung")}, folder / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt is no checkpoint of tensors"):
        load(folder)
    assert not (tmp_path / "sprung").exists()


def test_a_save_that_fails_leaves_the_model_that_was_there(folder, flamingo, monkeypatch):
    """The weights are written last and renamed at the end."""
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def half(content, path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        save(flamingo, folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_the_names_of_the_package_are_there():
    """`import minflamingo` gives what `__all__` promises; loading and completing among it."""
    assert all(hasattr(minflamingo, name) for name in minflamingo.__all__)
    assert {"load", "save", "complete", "preset", "Flamingo", "EOC"} <= set(minflamingo.__all__)


def test_a_batch_of_one_is_what_collate_makes_of_it():
    """The hand-written batches of this file are those of the package."""
    ours = by_hand([BOS, IMG, *A_CAT, END, IMG], CAT, picture(3, frames=3))
    theirs = collate([Sample([CAT, " a cat", EOC, picture(3, frames=3)])], TOKENIZER, PREPARE, pad="left")
    assert torch.equal(ours.ids, theirs.ids) and torch.equal(ours.frames, theirs.frames) and close(ours.media, theirs.media)


# ------------------------------------------------------------------------------------------------------ shots read once

SHOTS = [Image.fromarray(CAT[0]), "Output: a cat", EOC, FILM, "Output: a dog", EOC]


@pytest.mark.parametrize("how", [dict(), dict(beams=3), dict(temperature=1.5, seed=3)], ids=["greedy", "beams", "sampled"])
@pytest.mark.parametrize("n", [2, 3, 4, 6], ids=["text last", "EOC last", "a film last", "two shots"])
def test_a_query_after_remembered_shots_is_answered_as_behind_the_shots(flamingo, n, how):
    """Read once, answer many: images, films, text and nothing but text, each as if shots and query were one prompt."""
    shots = remember(flamingo, SHOTS[:n])
    queries = [[DOG, "Output:"], [" a"], [FILM[:2], CAT], [EOC, picture(9), "Output: a"], ["a", DOG]]
    answers = [complete(flamingo, query, max_new_tokens=7, after=shots, **how) for query in queries]
    assert answers == [complete(flamingo, SHOTS[:n] + query, max_new_tokens=7, **how) for query in queries]
    assert len(set(answers)) > 2


def test_the_images_of_remembered_shots_are_not_looked_at_again(flamingo):
    """Two images in the shots, one in each of three queries."""
    seen = []
    handle = flamingo.model.vision.register_forward_hook(lambda _m, x, _y: seen.append(len(x[0])))
    shots = remember(flamingo, [CAT, " a cat", EOC, DOG, " a dog", EOC])
    for seed in (1, 2, 3):
        complete(flamingo, [picture(seed), " a"], after=shots)
    handle.remove()
    assert seen == [2, 1, 1, 1]


def test_the_text_of_an_answer_after_shots_comes_piece_by_piece_too(flamingo):
    """`on_text` and the limits are those of every completion; shots and query share the context of 64 tokens."""
    shots, said = remember(flamingo, SHOTS[:3]), []
    answer = complete(flamingo, [DOG, "Output:"], max_new_tokens=6, on_text=said.append, after=shots)
    assert "".join(said) == answer != ""
    with pytest.raises(ValueError, match="the language model's context is 64"):
        complete(flamingo, ["x" * 60], after=shots)


@pytest.mark.parametrize("shots, error, said", WRONG_PROMPTS.values(), ids=WRONG_PROMPTS)
def test_shots_that_cannot_be_read_are_refused_by_their_piece(flamingo, shots, error, said):
    """The same words as for a prompt, and who says them."""
    with pytest.raises(error, match=said):
        remember(flamingo, shots)
    with pytest.raises(ValueError, match="remember: the prompt is empty"):
        remember(flamingo, [])
