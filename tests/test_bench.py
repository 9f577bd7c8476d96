"""The bench: what it times does the same work as its twin, and what it reports adds up. No time is asserted."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest
import torch
from conftest import close
from PIL import Image

from minflamingo.__main__ import main
from minflamingo.bench import cases, measure
from minflamingo.bench.peers import Peer
from minflamingo.generate import generate, read_prompt


def tiny():
    return cases.model(cases.config("tiny"), "cpu", torch.float32, with_eye=False)


def test_calls_are_made_in_turns_and_the_first_round_does_not_count():
    """f g f g f g: a machine that is busy for a while is busy for both."""
    made = []
    calls = {name: lambda name=name: made.append(name) or float(len(made)) for name in "fg"}
    assert measure.in_turns(calls, rounds=2) == {"f": [3.0, 5.0], "g": [4.0, 6.0]}
    assert made == list("fgfgfg")


def test_a_summary_holds_median_and_extremes():
    """Of an even number of runs the median is the mean of the middle two."""
    assert measure.summary([3.0, 1.0, 2.0, 9.0]) == {"median": 2.5, "min": 1.0, "max": 9.0}


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="peak memory is read from Linux's /proc")
def test_peak_memory_sees_what_a_call_held_and_gave_back():
    """200 MB, held for a moment."""
    low = measure.peak_memory(lambda: None)
    high = measure.peak_memory(lambda: torch.ones(50_000_000).sum())
    assert 150e6 < high - low < 400e6


def test_the_limits_of_the_machine_are_rates():
    """A laptop multiplies more than 1 GFLOP and reads more than 100 MB a second."""
    limits = measure.limits()
    assert limits["flops"] > 1e9 and limits["bytes"] > 1e8


def test_inside_plainly_the_twins_do_the_work_and_give_the_same():
    """Masks instead of segments, `nn.Linear` as it is; outside, all is as before."""
    flamingo, batch = tiny(), cases.prompt(tiny(), 3, patches=6)
    with torch.no_grad():
        ours = flamingo(batch)[0]
        with cases.plainly(flamingo):
            plain = flamingo(batch)[0]
        assert close(ours, plain) and not torch.equal(ours, plain)
        assert torch.equal(ours, flamingo(batch)[0])


def test_a_prompt_of_n_shots_has_n_plus_one_pictures_and_16_tokens_each():
    """The last ones are the query's."""
    batch = cases.prompt(tiny(), 4, patches=6)
    assert batch.ids.shape == (1, 80) and batch.media.shape[:3] == (1, 5, 1)
    assert (batch.ids[0] == tiny().image_id).nonzero()[:, 0].tolist() == [0, 16, 32, 48, 64]
    assert (batch.labels[batch.ids == tiny().image_id] == -100).all()


def test_what_a_token_must_read_is_counted_by_hand():
    """Per layer of width d: 12 d² of the LM, q, out and 8 d² of the bridge; norms, biases, gates; the head once."""
    flamingo, c = tiny(), cases.config("tiny")
    d, inner, V = c.lm.d, c.xattn_heads * c.xattn_d_head, c.lm.vocab_size
    lm = 4 * (d * d + d * c.lm.attention_bias) + 8 * d * d + 5 * d * c.lm.mlp_bias + 4 * d
    lm += (c.lm.output_bias - c.lm.attention_bias) * d
    bridge = 2 * d * inner + 8 * d * d + 4 * d + 2
    assert cases.read_per_token(flamingo) == 4 * (c.lm.layers * (lm + bridge) + V * d + 2 * d)


def test_the_command_writes_a_table_and_a_figure(tmp_path, capsys):
    """`python -m minflamingo bench --size tiny`: each part is there, ratios are those of the medians beside them."""
    main(["bench", "--size", "tiny", "--rounds", "1", "--out", str(tmp_path / "bench"), "--device", "cpu"])
    result = json.loads((tmp_path / "bench" / "bench.json").read_text())
    assert set(result) >= {"device", "torch", "limits", "prompt", "generate", "token", "queries", "step", "cache", "pipeline"}
    ten = result["candidates"]
    assert ten["n"] == 10 and ten["ratio"] == pytest.approx(ten["scored"]["median"] / ten["prefill"]["median"], rel=0.02)
    for row in result["prompt"].values():
        assert row["plain_ratio"] == pytest.approx(row["plain"]["median"] / row["ours"]["median"], rel=0.02, abs=0.02)
    held = [row["bytes"] for row in result["cache"].values()]
    assert held == sorted(held) and all(row["bytes_for_50_queries"] < 50 * row["bytes"] for row in result["cache"].values())
    with Image.open(tmp_path / "bench" / "bench.png") as figure:
        assert np.asarray(figure.convert("L")).std() > 5
    assert "prompt and 32 tokens, 32 shots" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, said",
    [(["--against", "open_flamingo"], "--against needs --python"), (["--rounds", "0"], "--rounds is 0")],
)
def test_a_bench_that_cannot_be_run_says_why(words, said, tmp_path):
    """Before anything is timed."""
    with pytest.raises(SystemExit, match=said):
        main(["bench", "--size", "tiny", "--out", str(tmp_path), *words])


def test_a_peer_that_cannot_start_says_what_it_said(tmp_path):
    """This interpreter has no open_flamingo: the message is its own last line."""
    with pytest.raises(RuntimeError, match=r"the peer ended: ModuleNotFoundError: No module named 'open_flamingo'"):
        Peer("open_flamingo", sys.executable, tmp_path, cases.config("tiny"))


def agrees(peer: Peer) -> bool:
    """Logits and loss to 1e-4, and the very same tokens?"""
    batch = cases.prompt(peer.flamingo, 5, patches=6)
    with torch.no_grad():
        logits, _ = read_prompt(peer.flamingo, batch)
        loss = peer.flamingo.loss(batch)
    same_logits = close(logits, peer.ask("read", batch)[1], 1e-4)
    same_tokens = generate(peer.flamingo, batch, -1, 8) == peer.ask("generate", batch, tokens=8)[1].tolist()
    return same_logits and same_tokens and close(loss, peer.ask("step", batch)[1], 1e-4)


def test_idefics_of_transformers_on_the_same_weights_gives_the_same(tmp_path):
    """In a process of its own, as `--against idefics` runs it."""
    pytest.importorskip("transformers")
    with Peer("idefics", sys.executable, tmp_path, cases.config("tiny")) as peer:
        assert agrees(peer)


@pytest.mark.skipif("OPEN_FLAMINGO_PYTHON" not in os.environ, reason="needs an interpreter with open_flamingo 2.0.1")
def test_open_flamingo_on_the_same_weights_gives_the_same(tmp_path):
    """OPEN_FLAMINGO_PYTHON=ENV/bin/python pytest -k same_weights."""
    with Peer("open_flamingo", os.environ["OPEN_FLAMINGO_PYTHON"], tmp_path, cases.config("tiny")) as peer:
        assert agrees(peer)
