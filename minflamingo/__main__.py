"""python -m minflamingo complete | train | eval | finetune | ablate | bench      (each says more with --help)

    python -m minflamingo complete --model runs/tiny cat.png "Output: a cat" dog.png "Output:"
    python -m minflamingo train --config openflamingo-3b --vision … --language … --pages "mmc4/{000..099}.tar" --out runs/mine
    python -m minflamingo eval --model runs/tiny --task toy
    python -m minflamingo finetune --model runs/tiny --task toy
    python -m minflamingo ablate --model runs/tiny
    python -m minflamingo bench
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from PIL import Image

from . import load
from .bench import command as benchmark
from .complete import LoadedFlamingo, complete
from .data.sample import EOC
from .evaluation import ablate
from .evaluation import command as evaluation
from .evaluation import finetune_command as finetuning
from .train import Settings, train
from .training.ranks import ranks_of_environment

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def image_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGES)


def piece(word: str) -> object:
    """A word of the command line: an image file, a video (a folder of frames, in the order of their names), or text."""
    path = Path(word)
    if path.suffix.lower() in IMAGES:
        if not path.is_file():
            raise FileNotFoundError(f"{word} looks like an image, but there is no such file")
        return Image.open(path)
    if len(word) < 256 and path.is_dir():
        frames = image_files(path)
        if not frames:
            raise FileNotFoundError(f"{word} is a folder without frames ({', '.join(IMAGES)})")
        return [Image.open(frame) for frame in frames]
    return word


def chunks(pieces: list[object]) -> list[object]:
    """An end of chunk before each image or video that follows text: <image>Output: a cat<EOC><image>Output:"""
    out: list[object] = []
    for p in pieces:
        if not isinstance(p, str) and out and isinstance(out[-1], str):
            out.append(EOC)
        out.append(p)
    return out


def shots_of(folder: Path) -> list[object]:
    """A folder of examples: cat.png with cat.txt, or a folder of frames run/ with run.txt; in the order of their names."""
    pieces: list[object] = []
    for path in sorted(folder.iterdir()):
        text = path.with_suffix(".txt") if path.is_file() else path.parent / f"{path.name}.txt"
        if path.is_dir() or path.suffix.lower() in IMAGES:
            if not text.is_file():
                raise FileNotFoundError(f"{path} is an example without its text: write it into {text}")
            pieces += [piece(str(path)), text.read_text(encoding="utf-8").strip()]
    if not pieces:
        raise FileNotFoundError(f"{folder} holds no examples: cat.png with cat.txt, and so on")
    return pieces


def add_parts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--vision", help="the eye of a published model: file, folder or hub repository")
    parser.add_argument("--language", help="its language model")
    parser.add_argument("--flamingo", help="its checkpoint")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default=None, help="default: as stored")


def loaded(name: str, given: argparse.Namespace) -> LoadedFlamingo:
    dtype = None if given.dtype is None else getattr(torch, given.dtype)
    return load(name, given.device, dtype, given.vision, given.language, given.flamingo)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m minflamingo")
    commands = parser.add_subparsers(dest="command", required=True)

    one = commands.add_parser("complete", help="continue a prompt of images and text")
    one.add_argument("prompt", nargs="+", help="image files, folders of frames, and text, in order")
    one.add_argument("--model", required=True, help="a folder, or the name of a published model with its parts")
    one.add_argument("--shots", type=Path, help="a folder of examples to stand before the prompt")
    one.add_argument("--max-new-tokens", type=int, default=32)
    one.add_argument("--beams", type=int, default=1)
    one.add_argument("--temperature", type=float, default=0.0)
    one.add_argument("--top-p", type=float, default=None)
    one.add_argument("--seed", type=int, default=None)
    add_parts(one)

    two = commands.add_parser("train", help="train the bridge on shards of pages, pairs and films")
    two.add_argument("--config", required=True, help="a folder, or the name of a published model with its parts")
    two.add_argument("--out", type=Path, required=True)
    two.add_argument("--pages", help="shards of interleaved documents: a pattern such as 'mmc4/{000..099}.tar'")
    two.add_argument("--pairs", help="shards of images with captions")
    two.add_argument("--videos", help="shards of films with captions")
    add_parts(two)
    defaults = Settings()
    for name, value in vars(defaults).items():
        how = {"action": "store_true"} if value is False else {"type": type(value), "default": value}
        two.add_argument(f"--{name.replace('_', '-')}", **how)

    evaluation.add_parser(commands, add_parts)
    finetuning.add_parser(commands, add_parts)
    ablate.add_parser(commands)
    benchmark.add_parser(commands)

    given = parser.parse_args(arguments)
    try:
        if given.command == "complete":
            before = shots_of(given.shots) if given.shots else []
            prompt = chunks([*before, *map(piece, given.prompt)])
            flamingo = loaded(given.model, given)
            how = dict(max_new_tokens=given.max_new_tokens, beams=given.beams, temperature=given.temperature, top_p=given.top_p,
                       seed=given.seed)  # fmt: skip
            show = None if given.beams > 1 else lambda text: print(text, end="", flush=True)
            text = complete(flamingo, prompt, **how, on_text=show)
            print(text if show is None else "")
        elif given.command == "bench":
            benchmark.command(given)
        elif given.command == "eval":
            evaluation.run(given, lambda: loaded(given.model, given))
        elif given.command == "finetune":
            finetuning.run(given, lambda: loaded(given.model, given))
        elif given.command == "ablate":
            ablate.run(given)
        else:
            settings = Settings(**{name: getattr(given, name) for name in vars(defaults)})
            shards = {m: getattr(given, m) for m in ("pages", "pairs", "videos")}
            with ranks_of_environment(given.device) as ranks:
                train(loaded(given.config, given), shards, given.out, settings, ranks)
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise SystemExit(f"{error}") from None
    except KeyboardInterrupt:
        raise SystemExit("\nstopped; the same command goes on from here") from None


if __name__ == "__main__":
    main(sys.argv[1:])
