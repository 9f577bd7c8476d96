"""python -m minflamingo complete | train | eval | finetune | ablate | bench      (each explains its options with --help)

    python -m minflamingo complete --model runs/tiny cat.png "Output: a cat" dog.png "Output:"
    python -m minflamingo train --model openflamingo-3b --documents "mmc4/{000..099}.tar" --out runs/mine
    python -m minflamingo eval --model runs/tiny --task toy
    python -m minflamingo finetune --model runs/tiny --task toy
    python -m minflamingo ablate --model runs/tiny
    python -m minflamingo bench
"""

import argparse
import os
import re
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

from . import EOC, Pipeline, load
from .data.images import IMAGES, OTHER_IMAGES, read_image
from .data.options import filled, known_device
from .data.videos import VIDEOS, by_number, read_video
from .pipeline import OPTIONS
from .recipes import ablate, bench, benchmarks, finetune, train
from .training.checkpoint import errors_of
from .training.command import errors_as_messages, only_run_in

MEDIA = (*IMAGES, *OTHER_IMAGES, *VIDEOS)
OTHER_FILES = (".txt", ".md", ".json", ".jsonl", ".csv", ".html", ".tar", ".zip", ".mp3", ".wav", ".npy", ".pt")
PATH = re.compile(r"(~|\.\.?)?/\S+|[A-Za-z]:[\\/]\S*|\w+://\S+")  # ./cat, ~/cat, /tmp/cat, C:\cat, https://...


def read_piece(word: str) -> object:
    """A word of the command line: an image file, a video (a file, or a folder with its frames), or text.

    A word that looks like a file must exist: "cat.heic", "./cat", or "photos/cat" if there is a folder photos.
    "Output: a cat.", "3.5", "and/or" and "www.example.com" are texts.
    """
    name = os.path.expanduser(word)
    ending, folder = Path(name).suffix.lower(), os.path.dirname(name)
    if os.path.exists(name):
        return (read_video if ending in VIDEOS or os.path.isdir(name) else read_image)(Path(name))
    if ending in (*MEDIA, *OTHER_FILES) or PATH.fullmatch(word) or (" " not in word and os.path.isdir(folder)):
        what = "looks like an image or a video, or another file, but it does not exist"
        raise FileNotFoundError(f"{word} {what}. If it is a text, put a space after it.")
    # If the system's encoding is not UTF-8, Python turns bytes that it cannot decode into surrogates. Make them characters.
    return word.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def read_shots(folder: Path) -> list[object]:
    """A folder of examples, in the order of their names: cat.png with cat.txt, or a folder of frames run/ with run.txt."""
    pieces: list[object] = []
    for path in sorted(folder.iterdir(), key=lambda path: by_number(path.name)):
        text = path.with_suffix(".txt") if path.is_file() else path.parent / f"{path.name}.txt"
        hidden = path.name.startswith(".")  # macOS writes "._cat.png" next to "cat.png"
        if not hidden and (path.is_dir() or path.suffix.lower() in MEDIA):
            if not text.is_file():
                raise FileNotFoundError(f"{path} is an example without a text: write the text into {text}")
            with errors_of(text, "text in UTF-8"):
                pieces += [read_piece(str(path)), text.read_text(encoding="utf-8-sig").strip()]
    if not pieces:
        raise FileNotFoundError(f"{folder} has no examples; an example is an image and a text: cat.png with cat.txt")
    return pieces


def with_chunk_ends(pieces: list[object]) -> list[object]:
    """Add EOC before each image or video that follows a text: <image>Output: a cat<EOC><image>Output:"""
    prompt: list[object] = []
    for piece in pieces:
        if not isinstance(piece, str) and prompt and isinstance(prompt[-1], str):
            prompt.append(EOC)
        prompt.append(piece)
    return prompt


def complete(args: argparse.Namespace, load_model) -> None:
    """Continue a prompt of images and text. An <EOC> is added between a text and the next image."""
    shots = read_shots(Path(args.shots)) if args.shots else []
    prompt = with_chunk_ends([*shots, *map(read_piece, args.prompt)])
    # The text appears while it is generated. Beam search knows its answer only at the end.
    show = None if args.beams > 1 or args.n else lambda text: print(text, end="", flush=True)
    answer = load_model().complete(prompt, on_text=show, stop=args.stop, **{name: getattr(args, name) for name in OPTIONS})
    if args.n:
        print("\n".join(f"{score:.3f}\t{text}" for text, score in answer))
    else:
        print(answer if show is None else "")


def add_complete_parser(commands, add_model_options) -> None:
    parser = commands.add_parser("complete", help="continue a prompt of images and text", description=complete.__doc__)
    add = parser.add_argument

    def number(name: str, help: str, default: float | None = None) -> None:
        add(f"--{name.replace('_', '-')}", type=OPTIONS[name], default=default, help=help)

    add("prompt", nargs="+", help="images, videos (files, or folders with one frame per second) and texts, in this order")
    add("--shots", type=filled, help="folder with examples that come before the prompt: cat.png with its text in cat.txt")
    number("max_new_tokens", "the most tokens to generate; default: 32", 32)
    number("beams", "above 1: beam search; default: 1", 1)
    number("temperature", "above 0: sample; a higher value is more random; default: 0, greedy", 0.0)
    number("top_k", "sample only from the k most likely tokens; default: all")
    number("top_p", "sample only from the most likely tokens with this total probability; default: all")
    number("seed", "seed of the sampling; default: another result each time")
    add("--stop", type=filled, action="append", default=[], metavar="TEXT", help="end before this text; can be repeated")
    number("repetition_penalty", "above 1: repeated tokens are less likely; default: 1", 1.0)
    number("no_repeat_ngram_size", "N: no N tokens in a row occur twice; default: 0, off", 0)
    number("length_penalty", "for beam search: above 0 prefers long answers; default: 0", 0.0)
    number("n", "print N answers with their scores: the best of the beams, or N samples; default: one answer")
    add_model_options(parser)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    add, default = parser.add_argument, "cuda" if torch.cuda.is_available() else "cpu"
    add("--model", type=filled, required=True, help="a folder with a saved model, a published name, or tiny (the ready model)")
    add("--vision", type=filled, help="vision encoder of a published model: a file, folder or repository")
    add("--language", type=filled, help="its language model, likewise")
    add("--flamingo", type=filled, help="its resampler and gated cross-attention layers, likewise")
    add("--device", type=known_device, default=default, help="cpu, cuda, cuda:1, mps, ...; default here: %(default)s")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="number format of the weights; default: as stored")


def main(arguments: list[str] | None = None) -> None:
    with errors_as_messages(), ExitStack() as stack:
        style = partial(argparse.ArgumentParser, formatter_class=argparse.RawDescriptionHelpFormatter)  # keeps line breaks
        parser = style(prog="python -m minflamingo", description=__doc__)
        commands = parser.add_subparsers(dest="command", required=True, parser_class=style)
        add_complete_parser(commands, add_model_options)
        recipes = {"train": train, "eval": benchmarks, "finetune": finetune, "ablate": ablate, "bench": bench}
        for recipe in recipes.values():
            recipe.add_parser(commands, add_model_options)
        args = parser.parse_args(arguments)

        def load_model() -> Pipeline:
            # Commands call this after all options are checked, before they write. Of several processes (torchrun), one writes.
            if "out" in args and os.environ.get("RANK", "0") == "0":
                stack.enter_context(only_run_in(args.out))
            parts = {"vision": args.vision, "language": args.language, "flamingo": args.flamingo}
            return load(args.model, device=args.device, dtype=args.dtype and getattr(torch, args.dtype), **parts)

        run = complete if args.command == "complete" else recipes[args.command].run
        try:
            run(args, load_model)
        except KeyboardInterrupt:
            resumes = args.command not in ("complete", "bench")
            raise SystemExit("\nstopped" + ("; the same command resumes here" if resumes else "")) from None


if __name__ == "__main__":
    main()
