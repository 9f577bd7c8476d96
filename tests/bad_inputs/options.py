"""Options of the commands, and arguments of the functions behind them."""

import io
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from unittest import mock

import torch
from PIL import Image

import minflamingo
import train_tiny
from minflamingo import Flamingo, Pipeline
from minflamingo.__main__ import main
from minflamingo.evaluation.fewshot import count_shots, predict, score_choices, wilson_interval
from minflamingo.evaluation.runner import Protocol, evaluate
from minflamingo.evaluation.task import Template
from minflamingo.generate import beam_search, generate, prefill
from minflamingo.recipes.finetune import Hyperparameters, train
from minflamingo.recipes.train import TrainConfig
from tests.little_suite import suite

from . import Case

TINY = Path(minflamingo.__file__).parent.parent / "tutorials/pretrained/tiny"
COMMANDS = {  # with valid options; a case adds one that is not valid
    "complete": "--model tiny hello",
    "train": "--model tiny --out out",
    "eval": "--model tiny --task named --suite tests.little_suite --limit 2 --shots 0,2 --out out",
    "finetune": "--model tiny --task named --suite tests.little_suite --limit 2 --shots 2 --out out",
    "ablate": "--model tiny --rows mlp --out out", "bench": "--size tiny --out out", "train_tiny": "--quick --out out",
}  # fmt: skip
COUNT, FROM_0, NUMBER = ("0", "-1", "2.5", "x", "", "1e3", "1000000000000"), ("-1", "0.5", "nan"), ("nan", "inf", "-1", "one")
NUMBERS = {
    "complete": {"max-new-tokens": (*FROM_0, "1000000000"), "beams": (*COUNT, "100000"), "n": COUNT, "top-k": COUNT[:4],
                 "temperature": (*NUMBER, "1e-45", "1e300"), "top-p": (*NUMBER, "0", "5", "1.0001"),
                 "seed": (*FROM_0, "18446744073709551616"), "repetition-penalty": (*NUMBER, "0", "1e-300", "1e300"),
                 "no-repeat-ngram-size": FROM_0, "length-penalty": ("nan", "inf", "1e300", "-11")},
    "eval": {"limit": COUNT, "seed": FROM_0, "trials": COUNT, "beams": (*COUNT, "100000"), "batch-size": COUNT},
    "finetune": {"lr": (*NUMBER, "0", "1e-45"), "steps": COUNT, "batch-size": COUNT[:3], "image-size": COUNT,
                 "micro-batch": COUNT[:3], "limit": ("0",), "seed": ("-1",)},
    "train": {"lr": (*NUMBER, "0"), "pairs-lambda": (*NUMBER, "0"), "documents-lambda": ("nan",), "videos-lambda": ("inf",),
              "weight-decay": (*NUMBER, "-0.1"), "steps": COUNT, "pairs-batch": COUNT, "documents-batch": ("0",),
              "videos-batch": ("0",), "workers": (*FROM_0, "1000000"), "save-every": NUMBER, "warmup": FROM_0, "seed": FROM_0},
    "ablate": {"seeds": COUNT, "steps": COUNT}, "bench": {"rounds": COUNT}, "train_tiny": {"seed": (*FROM_0, str(2**64))},
}  # fmt: skip
WRONG_DEVICES = ("gpu", "cuda:99", "cpu:3", "meta", "", "cpu,cuda", "CPU")
LINES = [  # command and options, what the message says
    ("complete --stop=", "--stop: an empty text is not allowed"),
    ("complete --model=", "--model: an empty text"), ("complete --shots=", "--shots: an empty text"),
    ("complete --shots nowhere", "No such file .*'nowhere'"), ("complete --shots file", "file"),
    ("complete --shots empty", "empty has no examples"), ("complete --dtype int8", "--dtype: invalid choice: 'int8'"),
    *((f"complete --model {TINY} --{part} x", "parts of a published model, but .*tiny is a saved one; leave them out")
      for part in ("vision", "language", "flamingo")),
    ("complete --model file", "file is not a saved Flamingo"), ("complete --model empty", "empty is not a saved Flamingo"),
    ("complete --top-k 3 --temperature 1 --seed", "--seed: expected one argument"), ("complete run.mp4", "run.mp4 looks like"),
    ("complete --model openflamingo-5b", "openflamingo-5b is not .*choose a published model: openflamingo-3b, "),
    ("complete --top-k 3", "top_k and top_p restrict sampling: pass a temperature above 0"),
    ("complete --top-p 0.5", "top_k and top_p restrict"),
    ("complete --beams 2 --temperature 1", "beam search does not sample"), ("complete --n 3 --beams 2", "n is 3"),
    ("complete --nothing 3", "unrecognized arguments: --nothing"), ("complete --beams", "--beams: expected one argument"),
    *((f"eval --shots={shots}", message) for shots, message in (
        ("", "--shots: '': expected different names"), ("4,,8", "--shots: '4,,8': expected different names"),
        ("4,4", "'4,4': expected different names"), ("-1", "--shots: shots is '-1'; choose a number"), ("0_txt", "'0_txt'"),
        ("1e3", "'1e3'"), ("4,four", "'four'"), ("4,²", "'²'"), ("²", "'²'"), ("9" * 5000, "shots is '999"),
        ("64", "named: 64 shots need 64 support examples, but there are 16"), ("0,1000000", "1000000 shots need"),
    )),
    ("eval --task=", "--task: '': expected different names"), ("eval --task named,,chosen", "expected different names"),
    ("eval --task named,named", "expected different names"), ("eval --task vqav2 --data nowhere", "nowhere"),
    ("eval --task nothing", "unknown task 'nothing'; choose toy, named, chosen, or one of coco, "),
    ("eval --task vqav2", "vqav2 is a benchmark on disk: pass its folder with --data"),
    ("eval --task vqav2 --data empty", r"\.jsonl? is missing"), ("eval --task vqav2 --data file", "is missing"),
    ("eval --task empty", "empty has 0 images with texts"),
    ("eval --suite os", "--suite 'os': the module does not define suite; pass another module with --suite"),
    ("eval --suite unittest", "--suite 'unittest': the module does not define suite"),
    ("eval --suite ../x", r"--suite '\.\./x'"), ("eval --suite .", "--suite '.'"), ("eval --suite=", "--suite: an empty text"),
    ("eval --suite absent_suite", "No module named 'absent_suite'.*; pass another module with --suite"),
    ("eval --suite broken", "--suite 'broken': .*; pass another module"),
    ("eval --suite listed", r"--suite listed: its function suite\(\) must return a dict of tasks"),
    ("eval --template mine", "--template: invalid choice"),
    ("eval --metric mine", "--metric: invalid choice"),
    ("eval --task captions --suite data_toy.suite --split dev", "no split 'dev'; choose one of train, validation, test"),
    ("eval --split=", "--split: an empty text"), ("eval --limit 100000", "--limit is 100000; at most 10,000 queries"),
    ("eval --task photos --out photos", "--out photos is in photos, so results would be read as data"),
    ("eval --task photos --out photos/results", "would be read as data"),
    ("finetune --shots 0,2", "shots is '0,2'; choose a number"), ("finetune --shots 64", "named: 64 shots"),
    ("finetune --schedule up", "--schedule: invalid choice"), ("finetune --lr", "--lr: expected at least one argument"),
    ("finetune --image-size 9", "choose 12 or 24"), ("finetune --suite os", "--suite 'os'"),
    ("finetune --out a --model a/models/named", "--out a/models/named is the folder of --model"),
    ("ablate --rows mlp,moe", "unknown row 'moe'; choose from baseline, no-videos, .*, no-time"),
    ("ablate --rows=", "--rows: '': expected different names"), ("ablate --rows mlp,mlp", "expected different names"),
    ("ablate --recipe os", "--recipe 'os': the module does not define RECIPE"), ("ablate --recipe nowhere", "nowhere"),
    ("ablate --recipe data_toy.suite", "the module does not define RECIPE"), ("ablate --model nothing", "nothing"),
    ("eval --task toy,named", "two tasks have one name: named, chosen, named"), ("eval --out a\0b", "nor a null character"),
    ("eval --task photos,a/photos", "two tasks have one name: photos, photos"),
    ("train", "give at least one of --documents, --pairs, --videos"), ("train --pairs none.tar", "none.tar"),
    ("train --pairs=", "--pairs: an empty text"), ("complete cow.png", "cow.png looks like an image"),
    ("train --pairs photos --out photos", "--out photos is in photos, so results would be read as data"),
    ("train --pairs photos --out photos/new", "would be read as data"),
    ("bench --against file", "--against and --python belong together"), ("bench --python python", "belong together"),
    (f"bench --against nowhere --python {sys.executable}", "(?s)the peer has stopped.*nowhere"),
    ("bench --against file --python nowhere", "No such file .*nowhere"),
    (f"bench --against listed.py --python {sys.executable}", "the peer has stopped"), ("bench --parts all", "invalid choice"),
    ("bench --size huge", "--size: invalid choice"), ("train_tiny --size huge", "--size: invalid choice"),
    *((f"{command} --model model --out model", "--out model is the folder of --model") for command in [*COMMANDS][1:5]),
    *((f"{command} --device={name}", f"--device: device '{name}' is not available; this machine has: cpu")
      for command in COMMANDS for name in WRONG_DEVICES[: 7 if command == "complete" else 2]),
    *((f"{command} --out={out}", message) for command in [*COMMANDS][1:] for out, message in (
        ("", "--out: an empty text"), ("file", "--out: cannot write to 'file': .*Choose another folder"),
        ("file/a/b", "--out: cannot write to 'file/a/b': .*file is not a folder"), ("/dev/null", "cannot write to"),
        ("lost", "cannot write to"),
    )),
]  # fmt: skip
DIVERGED = [
    ("finetune --lr 1e30 --steps 1", "named: all settings were left out"),
    ("finetune --lr 1e3 --steps 8", "named: all settings were left out"),
    ("train --pairs photos --lr 1e30 --warmup 0 --steps 1", "the loss of pairs was .* at first and is nan at the end"),
    ("train --pairs photos --lr 1e3 --warmup 0 --steps 8", "the gradient is not finite|the loss of pairs is not finite"),
]  # fmt: skip
WORK = [  # options, the files that a command writes
    ("complete --max-new-tokens 4", []), ("complete --seed 5 --max-new-tokens 2 --device cpu", []),
    ("complete --temperature 0.7 --top-k 5 --top-p 0.9 --seed 0 --max-new-tokens 3", []),
    ("complete --temperature 1 --top-k 1000000000 --top-p 1 --max-new-tokens 3", []), ("complete --beams 4 --n 2", []),
    ("complete --temperature 1000 --seed 9223372036854775807 --n 2 --max-new-tokens 2", []),
    ("complete --max-new-tokens 0", []),
    ("complete --beams 256 --max-new-tokens 2 --length-penalty 10", []), ("complete --stop a --max-new-tokens 8", []),
    ("complete --shots photos --repetition-penalty 100 --no-repeat-ngram-size 1", []),
    *((f"eval {options}", ["cells", "predictions", "results.json", "shots.png"]) for options in (
        "--trials 2", "--task photos --limit 999 --metric exact_match --shots 0,0_text", "--task chosen --ensemble --rices",
    )),
    ("finetune --steps 1 --lr 1e-3 --micro-batch 1", ["cells", "grid.png", "models", "results.json", "stages"]),
    ("train --videos photos --steps 1", ["config.json", "model.pt", "stages", "tokenizer.json"]),
    ("train --pairs photos --steps 1 --lr 1e-3 --save-every 0", ["config.json", "model.pt", "stages", "tokenizer.json"]),
]  # fmt: skip
NAN, INF = float("nan"), float("inf")
ARGUMENTS = {  # of `complete`
    "beams": ("3", 2.5, True, None, 0, [3], NAN, 100_000), "n": ("2", 2.5, True, 0, -1), "seed": ("x", 1.5, -1, 2**64, True),
    "temperature": ("hot", None, NAN, INF, -1, 1e-45, True), "top_k": (0, -1, "5", 1.5), "top_p": (0, 5, "x", NAN, 1e-300),
    "max_new_tokens": (None, -5, "5", 2.5, 10**9, INF), "repetition_penalty": (0, "x", NAN, None, 1e300),
    "no_repeat_ngram_size": (-1, 1.5, None), "length_penalty": (NAN, "x", INF, 1000),
}  # fmt: skip
FIELDS = [  # class, valid fields, other values
    (TrainConfig, {}, {"steps": (0, "5", 2.5, True, None), "lr": ("x", NAN, 0, None), "seed": (-1, 0.5), "workers": (-1, 10**6),
                       "pairs_batch": (0, 10**9), "pairs_lambda": (NAN, 0), "weight_decay": (NAN, -1), "warmup": (-1, 0.5)}),
    (Hyperparameters, {"lr": 1e-3, "schedule": "linear", "steps": 1, "batch_size": 1},
     {"lr": (0, NAN, "x"), "steps": (0, 1.5), "batch_size": (0, "8"), "schedule": ("up", None)}),
    (Protocol, {}, {"seed": (-1, "x"), "beams": (0, 2.5, 10**6), "batch_size": (0, None)}),
]  # fmt: skip


@cache
def tiny() -> Pipeline:
    return minflamingo.load(TINY)


def fill(folder: Path) -> None:
    for name in ("photos", "empty", "model", "a/models/named"):
        (folder / name).mkdir(parents=True)
    for i in range(8):
        Image.new("RGB", (8, 8), (30 * i, 0, 0)).save(folder / f"photos/{i}.png")
        (folder / f"photos/{i}.txt").write_text("a shape", encoding="utf-8")
    shutil.copytree(folder / "photos", folder / "a/photos")
    for name, content in (("file", ""), ("broken.py", "suite ="), ("listed.py", "def suite(split, queries): return []")):
        (folder / name).write_text(content, encoding="utf-8")
    (folder / "lost").symlink_to("nowhere")
    sys.path.insert(0, str(folder))


def command(line: str, folder: Path, *, diverges: bool = False) -> list[str]:
    """Run a command -> the names in the folder `out`. A command that refuses an option makes no file."""
    fill(folder)
    name, *words = line.split(" ")
    before, errors = set(folder.iterdir()), io.StringIO()
    run = train_tiny.main if name == "train_tiny" else lambda words: main([name, *words])
    load = mock.patch("minflamingo.__main__.load", lambda name, **o: tiny() if name == "tiny" else minflamingo.load(name, **o))
    try:
        with redirect_stderr(errors), load:
            run([*COMMANDS[name].split(), *words])
    except SystemExit as end:
        if set(folder.iterdir()) != before and not diverges:
            return ["files were made"]
        raise SystemExit(end.code if isinstance(end.code, str) else errors.getvalue().split("error: ")[-1]) from None
    return sorted(set(os.listdir("out")) - {".lock"}) if os.path.exists("out") else []


def calls() -> Iterator[tuple[str, Callable[[], object], str]]:
    """Name, call and message of functions with wrong arguments."""
    def complete(prompt: object = ("hello",), **options: object) -> str:
        return tiny().complete(list(prompt) if isinstance(prompt, tuple) else prompt, **options)

    for name, values in ARGUMENTS.items():
        for value in values:
            yield f"complete({name}={value!r})", partial(complete, **{name: value}), f"^{name} is .*; it must be .* from"
    for value in (5, [5], "", ["a", ""], None, b"ab", [None], {}.keys):
        yield f"complete(stop={value!r})", partial(complete, stop=value), "^stop is .*; it must be one text or several"
    for value in (None, 5, "text", [], [None], {}, [5], [["a"]]):
        yield f"complete({value!r})", partial(complete, value), "prompt"
    other = Pipeline(Flamingo(tiny().model.config).eval(), tiny().tokenizer, tiny().preprocess)
    for value in ("x", 5, other.prefill(["a"]), prefill(tiny().model, tiny().batch(["a"]))[1], [None]):
        yield f"complete(cache={type(value)})", partial(complete, cache=value), "^cache: expected the result of `prefill`"
    for value in ("gpu", "cuda:99", "meta", "", None, 0, torch.device("meta"), ["cpu"], "cpu\n"):
        yield f"load(device={value!r})", partial(minflamingo.load, TINY, device=value), "^device .* this machine has: cpu"
    for make, valid, wrong in FIELDS:
        for name, values in wrong.items():
            for value in values:
                call = partial(make, **{**valid, name: value})
                yield f"{make.__name__}({name}={value!r})", call, f"^{name} is .*; (it must be|choose one of)"
    for value in (8, None, "", "-1", "1e3", "4 ", "0_txt", ["4"], 4.0):
        yield f"count_shots({value!r})", partial(count_shots, value), "^shots is .*; choose a number, such as '4', or '0_text'"
    named = suite("test", 2)["named"]
    for task, shots, message in (
        (named, "64", "named: 64 shots need 64"), (named, 4, "shots is 4"), (replace(named, metric="f1"), "0", "metric 'f1'"),
        (replace(named, name="../a"), "0", r"task '\.\./a': the name must be a plain file name"),
        *((replace(named, template=Template(text)), "0", "test-0: the template .* does not") for text in ("{a}", "{", "{}")),
    ):
        yield f"evaluate({task.metric}, {shots!r})", partial(evaluate, tiny(), task, shots), message


    for value in (0, -1, 2.5, "8"):
        yield f"predict({value!r})", partial(predict, None, None, [], "0", batch_size=value), "^batch_size is"
        yield f"score_choices({value!r})", partial(score_choices, None, None, [], "0", n_orders=value), "^n_orders is"
        call = partial(train, tiny(), named, Hyperparameters(1e-3, "linear", 1, 1), name="a", folder="out", micro_batch=value)
        yield f"finetune.train({value!r})", call, "^micro_batch is"
    for search, message in ((generate, "max_new_tokens -1"), (beam_search, "max_new_tokens -1")):
        prompt = tiny().batch(["a"])
        yield f"{search.__name__}(-1)", partial(search, tiny().model, prompt, 0, max_new_tokens=-1), message
    for right, n in ((0, 0), (3, 2), (-1, 2)):
        yield f"wilson_interval({right}, {n})", partial(wilson_interval, right, n), "an interval needs at least one case"


def cases() -> Iterator[Case]:
    tiny()
    for name, options in NUMBERS.items():
        for option, values in options.items():
            message = rf"argument --{option}: .* is not (0 or )?a (whole )?number from"
            for value in values:
                yield Case(f"{name} --{option}={value}", partial(command, f"{name} --{option}={value}"), refused=message)
    for line, message in LINES:
        yield Case(line[:80], partial(command, line), refused=message)
    for line, message in DIVERGED:
        yield Case(line, partial(command, line, diverges=True), refused=message)
    for line, files in WORK:
        yield Case(line, partial(command, line), gives=files)
    for name, call, message in calls():
        yield Case(name, lambda folder, call=call: call(), refused=message)
