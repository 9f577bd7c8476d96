"""python -m minflamingo complete | train | eval | finetune | ablate | bench      (each explains its options with --help)

    python -m minflamingo complete --model runs/tiny cat.png "Output: a cat" dog.png "Output:"
    python -m minflamingo train --model openflamingo-3b --documents "mmc4/{000..099}.tar" --out runs/mine
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

from .data.sample import EOC
from .pipeline import Pipeline, load
from .recipes import ablate, bench, benchmarks, finetune, train

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def read_piece(word: str) -> object:
    """A word of the command line: an image file, a video (a folder of frames in the order of their names), or text."""
    path = Path(word)
    if path.suffix.lower() in IMAGES:
        if not path.is_file():
            raise FileNotFoundError(f"{word} looks like an image, but this file does not exist")
        return Image.open(path)
    if len(word) < 256 and path.is_dir():
        frames = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGES)
        if not frames:
            raise FileNotFoundError(f"{word} is a folder without frames ({', '.join(IMAGES)})")
        return [Image.open(frame) for frame in frames]
    return word


def read_shots(folder: Path) -> list[object]:
    """A folder of examples, in the order of their names: cat.png with cat.txt, or a folder of frames run/ with run.txt."""
    pieces: list[object] = []
    for path in sorted(folder.iterdir()):
        text = path.with_suffix(".txt") if path.is_file() else path.parent / f"{path.name}.txt"
        if path.is_dir() or path.suffix.lower() in IMAGES:
            if not text.is_file():
                raise FileNotFoundError(f"{path} is an example without a text: write the text into {text}")
            pieces += [read_piece(str(path)), text.read_text(encoding="utf-8").strip()]
    if not pieces:
        raise FileNotFoundError(f"{folder} has no examples; an example is an image and a text: cat.png with cat.txt")
    return pieces


def with_chunk_ends(pieces: list[object]) -> list[object]:
    """Add EOC before each image or video that follows a text: <image>Output: a cat<EOC><image>Output:"""
    out: list[object] = []
    for piece in pieces:
        if not isinstance(piece, str) and out and isinstance(out[-1], str):
            out.append(EOC)
        out.append(piece)
    return out


def complete(args: argparse.Namespace, load_model) -> None:
    shots = read_shots(args.shots) if args.shots else []
    prompt = with_chunk_ends([*shots, *map(read_piece, args.prompt)])
    # The text appears while it is generated. Beam search knows its answer only at the end.
    show = None if args.beams > 1 else lambda text: print(text, end="", flush=True)
    text = load_model().complete(
        prompt, max_new_tokens=args.max_new_tokens, beams=args.beams, temperature=args.temperature, top_k=args.top_k,
        top_p=args.top_p, seed=args.seed, on_text=show,
    )  # fmt: skip
    print(text if show is None else "")


def add_complete_parser(commands, add_model_options) -> None:
    parser = commands.add_parser("complete", help="continue a prompt of images and text")
    parser.add_argument("prompt", nargs="+", help="image files, folders of frames, and text, in order")
    parser.add_argument("--shots", type=Path, help="a folder of examples that come before the prompt")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-k", type=int, default=None)
    parser.add_argument("--top-p", type=float, default=None)
    parser.add_argument("--seed", type=int, default=None)
    add_model_options(parser)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="a folder, the name of a published model, or tiny (the ready model)")
    parser.add_argument("--vision", help="vision encoder of a published model, if not the default: file, folder, repository")
    parser.add_argument("--language", help="its language model, if not the default")
    parser.add_argument("--flamingo", help="its checkpoint, if not the default")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default=None, help="default: as stored")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m minflamingo")
    commands = parser.add_subparsers(dest="command", required=True)
    add_complete_parser(commands, add_model_options)
    recipes = {"train": train, "eval": benchmarks, "finetune": finetune, "ablate": ablate, "bench": bench}
    for recipe in recipes.values():
        recipe.add_parser(commands, add_model_options)
    args = parser.parse_args(arguments)

    def load_model() -> Pipeline:
        dtype = None if args.dtype is None else getattr(torch, args.dtype)
        parts = {"vision": args.vision, "language": args.language, "flamingo": args.flamingo}
        return load(args.model, device=args.device, dtype=dtype, **parts)

    try:
        if args.command == "complete":
            complete(args, load_model)
        else:
            recipes[args.command].run(args, load_model)
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise SystemExit(f"{error}") from None
    except KeyboardInterrupt:
        raise SystemExit("\nstopped; the same command resumes here") from None


if __name__ == "__main__":
    main(sys.argv[1:])
