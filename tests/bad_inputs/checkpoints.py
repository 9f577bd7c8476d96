"""Checkpoints that are cut, have wrong bits, are missing or of another format; full disks; losses that are not finite."""

import contextlib
import io
import os
import pickle
import random
import re
import resource
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import nn

from minflamingo.plots import Figure
from minflamingo.plots import save as save_figure
from minflamingo.pretrained.files import open_tensors
from minflamingo.training import optim
from minflamingo.training.checkpoint import load_json, load_tensors, save_json, save_tensors
from minflamingo.training.stage import Stage

from . import Case

TOTAL, STOP = 12, 5  # steps of the training; where it was killed
LAST, PREVIOUS = "vision.pt", "vision.pt.previous"
KILLED = f".{LAST}.{2**22 + 1}.partial"  # the temporary file of a process that does not exist
WEIGHTS = {"w": torch.arange(50.0), "half": torch.arange(9).half(), "zeros": torch.zeros(20), "ids": torch.arange(3)}


class CreatesFolder:
    def __reduce__(self):
        return os.mkdir, ("created",)


def train(folder: Path, stop: int = TOTAL, infinite=(), by: float = torch.nan, seed: int = 0, **options) -> tuple:
    """Train a small model up to step `stop` -> its weights and rows. In the steps `infinite` the loss is not finite."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(optim.parameter_groups(model.named_parameters(), lr=0.05))
    state = {"model": model, "optimizer": optimizer}
    stage = Stage("vision", folder, TOTAL, state=state, settings={"seed": seed}, save_every=0.0, **options)
    for step in stage.steps():
        if step == stop:
            break
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean() * (by if step in infinite else 1)
        optimizer.zero_grad()
        loss.backward()
        stage.skip_if(optim.clip_gradients(model.parameters(), {"text": loss}), step, {"x": x})
        optimizer.step()
        stage.log(step, loss=loss)
    return torch.cat([p.flatten() for p in model.parameters()]).tolist(), stage.rows


def resume(files: dict[str, object], folder: Path, said: str = "", **options) -> object:
    """Resume a training from these files -> its end. `said` must be printed."""
    for name, content in files.items():
        content(folder / name) if callable(content) else (folder / name).write_bytes(content)
    with contextlib.redirect_stderr(io.StringIO()) as output:
        end = train(folder, **options)
    return end if re.search(said, output.getvalue()) else output.getvalue()


def read(load: Callable[[Path], dict], content: object, folder: Path) -> dict:
    content(folder / "a.pt") if callable(content) else (folder / "a.pt").write_bytes(content)
    return {name: tensor.tolist() for name, tensor in load(folder / "a.pt").items()}


def equal_or_refused(use: Callable[[Path], object], expected: object, folder: Path) -> bool:
    """A wrong bit may be at a place without meaning. Otherwise it must be noticed."""
    try:
        return use(folder) == expected
    except ValueError as error:
        return re.search(r"\.pt: not a (valid )?checkpoint", str(error)) is not None


def skipped(steps: list[int], by: float, killed: bool, folder: Path) -> list[int]:
    if killed:
        train(folder, STOP, steps, by)
    return [row["step"] for row in train(folder, infinite=steps, by=by)[1] if "skipped" in row]


def diverge(first: int, killed: bool, folder: Path) -> None:
    """The loss is NaN from one step on. The batch must be saved, and the weights before it."""
    if killed:
        train(folder, first + 2, range(first, TOTAL))
    try:
        train(folder, infinite=range(first, TOTAL))
    finally:
        assert torch.load(folder / f"vision-step-{first + 4}.batch", weights_only=True)["x"].shape == (5, 3)
        assert torch.load(folder / LAST)["step"] == first + 4


def write_without_space(write: Callable[[Path], object], name: str, folder: Path) -> None:
    """A file may have at most 100 bytes. The old file must be intact, and no other file be there."""
    (folder / name).write_bytes(b"old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    try:
        write(folder / name)
    finally:
        assert os.listdir(folder) == [name] and (folder / name).read_bytes() == b"old"


def train_without_space(folder: Path) -> object:
    """The disk is full in step 5. With space again, the training resumes."""
    files, limit = {}, resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    for stop, most in ((STOP, limit), (TOTAL, 1000), (TOTAL, limit)):
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, limit))
        with contextlib.suppress(OSError):
            end = train(folder, stop)
        found = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert most == limit or found == files
        files = found
    return end


def leftovers(folder: Path) -> list[str]:
    """The temporary file of a process that was killed is removed, but not of one that lives, nor files with other names."""
    names = [KILLED, f".{LAST}.{os.getppid()}.partial", ".mine.partial", ".a.b.partial", f".x.{10**30}.partial", "a.1.partial"]
    for name in names:
        (folder / name).touch()
    train(folder, 0)
    return [name for name in names if not (folder / name).exists()]


def saved(content: object, **options) -> bytes:
    torch.save(content, file := io.BytesIO(), **options)
    return file.getvalue()


def compressed(content: bytes) -> bytes:
    new, old = io.BytesIO(), zipfile.ZipFile(io.BytesIO(content))
    with zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED) as archive:
        for part in old.infolist():
            archive.writestr(part.filename, old.read(part))
    return new.getvalue()


def flips(content: bytes, n: int) -> Iterator[tuple[int, bytes]]:
    """Single wrong bits, half of them in the last kilobyte: the offsets, lengths and names of the archive's parts."""
    for i in range(n):
        bit = random.Random(i).randrange(0 if i % 2 else 8 * (len(content) - 1024), 8 * len(content))
        yield bit, content[: bit // 8] + bytes([content[bit // 8] ^ 1 << bit % 8]) + content[bit // 8 + 1 :]


def cases() -> Iterator[Case]:
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(io.StringIO()):
        train(Path(name), STOP)
        last, previous = (Path(name, file).read_bytes() for file in (LAST, PREVIOUS))
        end = train(Path(name))
    content = torch.load(io.BytesIO(last), weights_only=True)
    code = {**content, "code": CreatesFolder()}
    damaged = {f"cut at {k}0%": last[: len(last) * k // 10] for k in range(10)} | {
        "a pointer of git": b"version https://git-lfs.github.com/spec/v1\n", "JSON": b"{}", "pickle": pickle.dumps({"step": 3}),
        "code": saved(code), "code, old torch": saved(code, _use_new_zipfile_serialization=False),
        "compressed": compressed(last), "zeros": bytes(len(last)), "a gap": last[:2048] + bytes(256) + last[2304:],
        "a FIFO": os.mkfifo,
    }  # fmt: skip
    wrong = r"vision\.pt: not a (valid )?checkpoint"
    for name, bad in damaged.items():
        yield Case(f"load_tensors: {name}", partial(read, load_tensors, bad), r"a\.pt: not a valid checkpoint")
        yield Case(f"open_tensors: {name}", partial(read, open_tensors, bad), r"a\.pt: (not|is not) a")
    for bad, pattern in ((b"", "not valid JSON"), (last, "not valid JSON"), (b"[1, 2]", "expected a JSON object, found list")):
        yield Case(f"load_json: {pattern}, {len(bad)}", partial(read, load_json, bad), rf"a\.pt: {pattern}")
    for name, bad in {**damaged, "a tensor": saved(torch.ones(2)), "other keys": saved({"step": 3})}.items():
        yield Case(f"last: {name}", partial(resume, {LAST: bad, PREVIOUS: previous}, said=wrong), gives=end)
        yield Case(f"before the last: {name}", partial(resume, {LAST: last, PREVIOUS: bad}), gives=end)
        yield Case(f"both: {name}", partial(resume, {LAST: bad, PREVIOUS: bad}), rf"{wrong}.*previous: .*remove \S+vision")
        yield Case(f"alone: {name}", partial(resume, {LAST: bad}), rf"{wrong}.*To start again, remove")
        yield Case(f"restart: {name}", partial(resume, {LAST: bad}, said=f"{wrong}.*Starting again", restart=True), gives=end)
    said = r"vision\.pt: the file is missing\. The checkpoint before it is used, from step 4"
    yield Case("last: missing", partial(resume, {PREVIOUS: previous}, said=said), gives=end)
    yield Case("before the last: missing", partial(resume, {LAST: last}), gives=end)
    for bit, bad in flips(last, 40):
        yield Case(f"last: bit {bit}", partial(resume, {LAST: bad, PREVIOUS: previous}), gives=end)
    for bit, bad in flips(last, 40):
        yield Case(f"alone: bit {bit}", partial(equal_or_refused, partial(resume, {LAST: bad}), end), gives=True)
    other = saved({**content, "state": {"model": nn.Linear(2, 2).state_dict(), "optimizer": {}}})
    yield Case("another model", partial(resume, {LAST: other}), r"vision\.pt: not a valid checkpoint of this model")
    content["state"]["model"]["0.bias"] *= torch.inf
    yield Case("infinite weights", partial(resume, {LAST: saved(content)}), "vision: after step 4, a weight is not finite")
    yield Case("other settings", partial(resume, {LAST: last}, seed=1), r"vision\.pt was made with other settings: seed 0, now")

    model, lists = saved(WEIGHTS), {name: tensor.tolist() for name, tensor in WEIGHTS.items()}
    for bit, bad in flips(model, 80):
        yield Case(f"model: bit {bit}", partial(equal_or_refused, partial(read, open_tensors, bad), lists), gives=True)
    torch.serialization.set_crc32_options(False)
    without = saved(WEIGHTS)
    torch.serialization.set_crc32_options(True)
    yield Case("model: no checksums", partial(read, open_tensors, without), gives=lists)

    writers = {
        "model.pt": partial(save_tensors, {"w": torch.randn(1000)}), "results.json": partial(save_json, {"a": "b" * 1000}),
        "loss.png": partial(save_figure, Figure()),
    }  # fmt: skip
    for name, write in writers.items():
        pattern = rf"cannot write: File too large: '\S+{name}'"
        yield Case(f"full disk: {name}", partial(write_without_space, write, name), pattern)
    yield Case("full disk: a stage", train_without_space, gives=end)
    yield Case("temporary files", leftovers, gives=[KILLED])

    few = [[0], [11], [3, 4, 5, 6], [1, 3, 5, 7, 9], [0, 1, 2, 3, 5, 6, 7, 8]]
    for steps, by, killed in product(few, (torch.nan, torch.inf), (False, True)):
        yield Case(f"loss {by} in {steps}, killed {killed}", partial(skipped, steps, by, killed), gives=steps)
    for first, killed in product((0, 3, 7), (False, True)):
        pattern = rf"vision, step {first + 4}: the loss of text is not finite, 5 times.*-{first + 4}\.batch: torch\.load"
        yield Case(f"NaN from step {first}, killed {killed}", partial(diverge, first, killed), pattern)
