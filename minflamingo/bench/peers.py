"""Another implementation in a process of its own, with the same weights and inputs as ours.

    with Peer("open_flamingo", python, folder) as peer:
        ours = peer.flamingo                             our Flamingo with the peer's weights
        seconds, logits = peer.read(batch)               what it took there, and what came out

Its interpreter needs nothing of ours: a request is a line of JSON, tensors go through files.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..config import FlamingoConfig, VisionConfig
from ..flamingo import Batch, Flamingo
from ..pretrained import from_state_dict, openflamingo
from ..pretrained.families import config as family_config
from .cases import NoEye

PEERS = ("open_flamingo", "idefics")


class Peer:
    """A running peer. Leave it with `close` (or `with`)."""

    def __init__(self, name: str, python: str | Path, folder: Path, c: FlamingoConfig, lm_family: str = "opt"):
        if name not in PEERS:
            raise ValueError(f"there is no peer {name!r}; choose one of {', '.join(PEERS)}")
        self.folder = Path(folder)
        lm = c.lm
        case = dict(vocabulary=lm.vocab_size, d=lm.d, layers=lm.layers, heads=lm.heads, d_ff=lm.d_ff or 4 * lm.d,
                    length=lm.max_length, d_vision=c.resampler.d, every=c.xattn_every)  # fmt: skip
        if name == "open_flamingo":
            case["family"] = lm_family
        else:
            case["latents"] = c.resampler.n_latents
        (self.folder / "case.json").write_text(json.dumps({**case, "threads": torch.get_num_threads()}))
        script = Path(__file__).with_name(f"peer_{name}.py")
        self.errors = open(self.folder / "peer.log", "w")  # noqa: SIM115 (closed with the process)
        self.process = subprocess.Popen(
            [str(python), str(script), str(self.folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
        )  # fmt: skip
        ready = self._answer()
        state = torch.load(self.folder / "weights.pt", weights_only=True, mmap=True)
        if name == "open_flamingo":
            theirs = replace(family_config(lm_family, ready["lm"]), vocab_size=lm.vocab_size)
            eye = VisionConfig(28, 14, d=c.resampler.d, layers=2, heads=4, activation="quick_gelu", keep_class_token=False)
            self.flamingo = from_state_dict(openflamingo.config(theirs, c.xattn_every, eye), state, "openflamingo")
        else:
            self.flamingo = from_state_dict(ready["config"], state, "idefics")
        self.flamingo.vision = NoEye()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        while line and not line.startswith("{"):  # what libraries print on their own
            line = self.process.stdout.readline()
        if not line:
            self.errors.flush()
            told = (self.folder / "peer.log").read_text().strip().splitlines()
            raise RuntimeError(f"the peer ended: {told[-1] if told else 'it said nothing'} (see {self.folder / 'peer.log'})")
        return json.loads(line)

    def ask(self, do: str, batch: Batch, **how) -> tuple[dict, Tensor]:
        """One call there: {"seconds", "peak"}, and its result."""
        given, made = self.folder / "input.pt", self.folder / "output.pt"
        torch.save({"ids": batch.ids, "labels": batch.labels, "media": batch.media}, given)
        request = {"do": do, "input": str(given), "output": str(made), **how}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        told = self._answer()
        return told, torch.load(made, weights_only=True)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.errors.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def trainable(flamingo: Flamingo) -> list[torch.nn.Parameter]:
    return [p for _, p in flamingo.bridge_parameters()]
