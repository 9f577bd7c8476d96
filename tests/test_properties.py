"""Properties that hold for every input (Hypothesis). `pytest -m slow tests/test_properties.py` searches for five minutes."""

import io
import tarfile
import tempfile
import time
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import EOC, batch_of, close, equal, image, tiny_flamingo

from minflamingo.data.images import as_frames, read_pixels
from minflamingo.data.readers import JsonlDataset, write_jsonl
from minflamingo.data.sample import NoLoss, Sample, input_only, is_medium, tokenize_sample
from minflamingo.data.shards import read_files, read_index
from minflamingo.gated_xattn import media_index
from minflamingo.tokenizer import ToyTokenizer
from minflamingo.training.batching import least_padding

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies
WORDS, BYTES, FLAMINGO = ToyTokenizer([" a", " cat", "7"]), ToyTokenizer([]), tiny_flamingo()
CHARACTERS = st.characters()  # with halves of characters
TEXT = st.text(CHARACTERS | st.sampled_from([" a", " cat", "7", "<image>", "<EOC>"]).map(lambda text: text[0]))
MEDIUM = st.builds(image, st.integers(0, 9), st.integers(1, 3))
PIECE = st.one_of(TEXT, TEXT.map(NoLoss), st.just(EOC), st.just(NoLoss(EOC)), MEDIUM)
LETTER_PIECE = st.one_of(st.text("abcdefgh", max_size=5), st.just(EOC), st.builds(image, st.integers(0, 9)))


def media_index_is_an_explicit_loop(data) -> None:
    B, L, cut = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 12)), data.draw(st.integers(0, 12))
    rows = data.draw(st.lists(st.lists(st.booleans(), min_size=L, max_size=L), min_size=B, max_size=B))
    following = data.draw(st.lists(st.booleans(), min_size=B, max_size=B))
    phi = media_index(torch.tensor(rows), torch.tensor(following))
    for b, row in enumerate(rows):
        for i, is_image in enumerate(row):
            own = sum(row[: i + 1]) + (following[b] and not is_image)
            assert phi[b, i] == (own if own <= sum(row) else 0)
    left, right = media_index(torch.tensor(rows)[:, :cut]), media_index(torch.tensor(rows)[:, cut:])
    last = left[:, -1:] if cut else torch.zeros(B, 1, dtype=torch.long)
    assert torch.equal(media_index(torch.tensor(rows)), torch.cat([left, right + last], dim=1))


def text_survives_and_never_becomes_a_special_token(data) -> None:
    text, tokenizer = data.draw(TEXT), data.draw(st.sampled_from([WORDS, BYTES]))
    ids = tokenizer.encode(text)
    assert not set(ids) & {*input_only(tokenizer), tokenizer.eoc_id}
    # two halves of a character, next to each other, are the same bytes as before
    assert tokenizer.decode(ids).encode("utf-8", "surrogatepass") == text.encode("utf-8", "surrogatepass")
    tokenizer.decode(data.draw(st.lists(st.integers(0, tokenizer.image_id))))


def tokens_and_media_correspond(data) -> None:
    pieces = data.draw(st.lists(PIECE, max_size=6))
    row = tokenize_sample(Sample(pieces), WORDS, lambda pixels: torch.from_numpy(pixels).permute(0, 3, 1, 2).float())
    media = [piece for piece in pieces if is_medium(piece)]
    assert row.ids.count(WORDS.image_id) == len(row.media) == len(media)
    assert [len(medium) for medium in row.media] == [len(medium) for medium in media]
    assert row.ids.count(WORDS.eoc_id) == sum(p is EOC or (isinstance(p, NoLoss) and p.text is EOC) for p in pieces)
    assert all(label in (-100, i) for i, label in zip(row.ids, row.labels, strict=True))


@torch.no_grad()
def padding_changes_no_logits(data) -> None:
    rows = data.draw(st.lists(st.lists(LETTER_PIECE, max_size=5), min_size=1, max_size=3))
    batch = batch_of(*rows, pad=data.draw(st.sampled_from(["left", "right"])))
    logits = FLAMINGO(batch)[0]
    for b, row in enumerate(rows):
        assert close(logits[b, batch.attention_mask[b]], FLAMINGO(batch_of(row))[0][0], 1e-4)


def micro_batches_have_the_least_padding(data) -> None:
    lengths = sorted(data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=7)))
    n, parts = len(lengths), data.draw(st.integers(1, 4))
    cost = {k: [sum(lengths[b - 1] * (b - a) for a, b in pairwise([0, *cuts, n])) for cuts in combinations(range(1, n), k)]
            for k in range(min(parts, n))}  # fmt: skip
    cuts = least_padding(lengths, parts, n)
    assert len(cuts) - 1 <= parts and cuts[0] == 0 and cuts[-1] == n
    assert sum(lengths[b - 1] * (b - a) for a, b in pairwise(cuts)) == min(min(c) for c in cost.values() if c)


def readers_give_samples_or_named_errors(data) -> None:
    starts = [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0\x00\x10JFIF\0", b'{"pieces": [', b"II*\0"]
    content = data.draw(st.sampled_from(starts)) + data.draw(st.binary(max_size=600))
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        info = tarfile.TarInfo("a.jpg")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    cut, (place, byte) = data.draw(st.integers(0, 2048)), data.draw(st.tuples(st.integers(0, 600), st.integers(0, 255)))
    damaged = bytearray(tar.getvalue()[:cut])
    damaged[place : place + 1] = bytes([byte])
    with tempfile.TemporaryDirectory() as folder:
        lines, shard = Path(folder) / "cats.jsonl", Path(folder) / "cats.tar"
        lines.write_bytes(content)
        shard.write_bytes(damaged)
        for read in (lambda: list(JsonlDataset(lines)), lambda: as_frames(read_pixels(lines, "cats")),
                     lambda: [read_files(files) for files in read_index(str(shard))[0].values()]):  # fmt: skip
            try:
                read()
            except (ValueError, OSError) as error:
                assert str(error)


def what_is_written_is_read(data) -> None:
    samples = data.draw(st.lists(st.builds(Sample, st.lists(PIECE, max_size=4), st.booleans(), st.booleans()), max_size=3))
    with tempfile.TemporaryDirectory() as folder:
        write_jsonl(samples, Path(folder) / "cats.jsonl")
        read = list(JsonlDataset(Path(folder) / "cats.jsonl"))
    # JSON joins two halves of a character to one
    assert equal([without_halves(sample) for sample in samples], [without_halves(sample) for sample in read])


def without_halves(sample: Sample) -> list:
    text = [str(p.text if isinstance(p, NoLoss) else p) for p in sample.pieces if not isinstance(p, np.ndarray)]
    return [[t.encode("utf-16", "surrogatepass") for t in text], sample.media, sample.attend_next, sample.bos]


PROPERTIES = [media_index_is_an_explicit_loop, text_survives_and_never_becomes_a_special_token, tokens_and_media_correspond,
              padding_changes_no_logits, micro_batches_have_the_least_padding, readers_give_samples_or_named_errors,
              what_is_written_is_read]  # fmt: skip


def search(check, seed: int) -> None:
    """20 inputs that depend on the seed alone. If one fails, Hypothesis reports the smallest that does."""
    settings = {"max_examples": 20, "deadline": None, "database": None, "suppress_health_check": list(hypothesis.HealthCheck)}
    hypothesis.seed(seed)(hypothesis.settings(**settings)(hypothesis.given(st.data())(check)))()


@pytest.mark.parametrize("check", PROPERTIES)
def test_it_holds_for_every_input(check):
    search(check, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("check", PROPERTIES)
def test_it_holds_for_every_input_of_a_long_search(check):
    end, seed = time.monotonic() + 300 / len(PROPERTIES), 1
    while time.monotonic() < end:
        search(check, seed)
        seed += 1
