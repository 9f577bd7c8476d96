"""The bench: all versions do the same work, in turns, and the table holds what was measured. No test asserts a time."""

import json
import mmap
import os
import sys
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import close
from PIL import Image

from minflamingo import fast
from minflamingo.__main__ import main
from minflamingo.generate import generate, prefill
from minflamingo.pretrained import from_state_dict
from minflamingo.recipes import bench
from minflamingo.recipes.bench import Bench, Peer

PEERS = Path(__file__).parent / "peers"


def test_versions_take_turns_and_the_first_round_is_left_out(monkeypatch):
    calls = []
    monkeypatch.setattr(bench, "measure", lambda call, device: (call(), 10 * call()))
    seconds, _ = Bench("tiny", "cpu", rounds=2).in_turns({"work": (lambda: calls.append(fast._enabled) or len(calls), None)})
    assert calls == [True, True, False, False] * 3
    assert seconds == {"work": {"fast": [5, 9], "plain": [7, 11]}}


def test_a_ratio_is_the_median_of_the_ratios_of_each_round():
    b = Bench("tiny", "cpu", rounds=3)
    b.add("work", {"fast": [1.0, 2.0, 4.0], "plain": [2.0, 6.0, 16.0]}, "ms", scale=1000)
    assert b.rows["work"] == {"unit": "ms", "fast": 2000.0, "plain": 6000.0, "plain / fast": 3.0}


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="peak memory is read from Linux's /proc")
def test_peak_memory_includes_memory_that_is_freed_during_the_call():
    _, low = bench.measure(lambda: None)
    _, high = bench.measure(lambda: mmap.mmap(-1, 180_000_000).write(bytes(180_000_000)))  # not what other tests have freed
    assert 150e6 < high - low < 400e6


def test_a_batch_has_images_at_equal_distances_which_carry_no_loss():
    b = Bench("tiny", "cpu", rounds=1)
    batch = b.batch(1, 5, 80)
    assert batch.media.shape == (1, 5, 1, 6, 32)
    assert (batch.ids[0] == b.flamingo.image_id).nonzero()[:, 0].tolist() == [0, 16, 32, 48, 64]
    assert (batch.labels == -100).equal(batch.ids == b.flamingo.image_id)


def test_the_command_writes_a_table_and_a_figure(tmp_path, capsys):
    main(["bench", "--size", "tiny", "--rounds", "1", "--out", str(tmp_path), "--device", "cpu"])
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    expected = {"prompt, 32 shots", "prompt and 32 tokens, 32 shots", "one token after 32 shots",
                "training step, B 2, N 2, L 32", "1,000 queries after the same 32 shots"}  # fmt: skip
    assert expected <= set(rows)
    printed = capsys.readouterr()
    for label, row in rows.items():
        assert row["plain / fast"] == pytest.approx(row["plain"] / row["fast"])  # one round: its ratio is that of the medians
        assert label in printed.out + printed.err
    assert Image.open(tmp_path / "bench.png").width >= 600


def test_the_error_of_a_peer_that_cannot_start_is_shown(tmp_path):
    (tmp_path / "peer.py").write_text("import a_missing_library")
    with pytest.raises(OSError, match="No module named 'a_missing_library'"):
        Peer(str(tmp_path / "peer.py"), sys.executable, "tiny", tmp_path)


@pytest.mark.parametrize("name", ["idefics", "open_flamingo"])
def test_a_peer_with_the_same_weights_gives_the_same_results(name, tmp_path):
    """Logits and loss up to 1e-4, and equal tokens. OPEN_FLAMINGO_PYTHON is an interpreter with open_flamingo 2.0.1."""
    python = os.environ.get("OPEN_FLAMINGO_PYTHON") if name == "open_flamingo" else sys.executable
    if python is None or (name == "idefics" and not find_spec("transformers")):
        pytest.skip(f"{name} is not installed")
    peer = Peer(str(PEERS / f"{name}_peer.py"), python, "tiny", tmp_path)
    b = Bench("tiny", "cpu", rounds=1, peer=peer)
    batch = b.batch(1, 6, 96)
    b.flamingo = from_state_dict(b.flamingo.config, peer.ask("weights", batch)[2])
    logits, tokens, loss = (peer.ask(do, batch, tokens=8, update=False)[2] for do in ("prompt", "generate", "step"))
    for version in (fast.disabled(), nullcontext()):
        with version, torch.no_grad():
            assert close(prefill(b.flamingo, batch)[0], logits, 1e-4)
            assert close(b.flamingo.loss(batch), loss, 1e-4)
            assert generate(b.flamingo, batch, -1, max_new_tokens=8) == tokens.tolist()
    peer.process.communicate(timeout=60)
