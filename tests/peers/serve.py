"""The side of the bench that runs in another interpreter: it times another implementation of Flamingo, one request at a time.

`python -m minflamingo bench --against NAME_peer.py --python ENV/bin/python` starts `ENV/bin/python NAME_peer.py FOLDER`.
FOLDER/case.json holds the sizes of the model. The peer makes a random model and prints one line {"changes": {"lm": {...}}}: the
fields in which the model differs from `bench_config` of minFlamingo. Each request is one line on stdin:

    {"do": "prompt" | "generate" | "step", "input": FILE, "output": FILE, "tokens": 32, "update": true}

The input file holds ids (B, L), labels (B, L) and media (B, N, 1, S, D). The answer is one line {"seconds": 0.5, "bytes": 1}.
The output file holds the last logits (B, V), the new tokens (B, tokens) or the loss. {"do": "weights", "output": FILE} writes
the weights of the model. Nothing of minFlamingo is imported here.
"""

import json
import sys
import time
from pathlib import Path

import torch
from torch import nn


def peak_memory() -> int:
    """The most memory of this process since the last reset, in bytes; 0 on systems without /proc."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def answer(peer, model: nn.Module, optimizer: torch.optim.Optimizer, request: dict) -> dict:
    if request["do"] == "weights":
        torch.save(model.state_dict(), request["output"])
        return {"seconds": 0.0, "bytes": 0}
    given = torch.load(request["input"], weights_only=True)
    if (reset := Path("/proc/self/clear_refs")).exists():
        reset.write_text("5")
    start = time.perf_counter()
    if request["do"] == "step":
        optimizer.zero_grad()
        result = peer.loss(model, **given)
        result.backward()
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        if request.get("update", True):
            optimizer.step()
        result = result.detach()
    else:
        with torch.no_grad():
            if request["do"] == "prompt":
                result = peer.logits(model, given["ids"], given["media"])[:, -1]
            else:
                result = peer.generate(model, given["ids"], given["media"], request["tokens"])[:, given["ids"].shape[1] :]
    taken = {"seconds": time.perf_counter() - start, "bytes": peak_memory()}
    torch.save(result, request["output"])
    return taken


def serve(peer, folder: Path) -> None:
    """`peer` is a module with changes(**sizes), build(**sizes), trained(model), logits, generate and loss."""
    case = json.loads((folder / "case.json").read_text())
    torch.set_num_threads(case.pop("threads"))
    model = peer.build(**case)
    model.requires_grad_(False)
    for part in peer.trained(model):
        part.requires_grad_(True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    print(json.dumps({"changes": peer.changes(**case)}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(peer, model, optimizer, json.loads(line))), flush=True)
