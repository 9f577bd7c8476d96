"""A model with everything needed to use it: tokenizer and image preprocessing. `load` reads one, `save` writes one.

    flamingo = minflamingo.load("runs/tiny")
    flamingo.complete([cat, "Output: a cat", EOC, dog, "Output:"])            ->   " a dog"

A prompt is a list of text (`str`), images (PIL or arrays), videos (lists of frames) and `EOC`, the end of a chunk. Shots that
are used for many queries can be processed once:

    shots = flamingo.prefill([cat, "Output: a cat", EOC])
    flamingo.complete([dog, "Output:"], cache=shots)                          ->   " a dog", as above

A saved model is a folder with `config.json` (sizes, image preprocessing), `tokenizer.json` and one file of weights:
`model.pt` or `model.safetensors`, or with the trained modules alone `trainable.pt` or `trainable.safetensors`.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from .config import FlamingoConfig
from .data.images import ImagePreprocessor, as_frames
from .data.sample import EOC, Sample, collate
from .flamingo import Batch, Cache, Flamingo
from .generate import beam_search, generate, prefill
from .pretrained.files import open_tensors
from .pretrained.loading import REPOSITORIES, load_published
from .pretrained.tables import fill
from .tokenizer import Tokenizer, ToyTokenizer
from .training.checkpoint import extra, load_json, save_json, save_tensors, write_atomically

WEIGHTS = ("model.safetensors", "model.pt", "trainable.safetensors", "trainable.pt")  # one of them is in a folder


@dataclass
class Pipeline:
    """A Flamingo with its tokenizer and image preprocessing."""

    model: Flamingo
    tokenizer: Tokenizer
    preprocess: ImagePreprocessor

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def batch(self, prompt: Sequence[object], *, bos: bool = True) -> Batch:
        """A prompt as a batch of one row.

        Args:
            bos: start with `<BOS>`. False for a prompt that continues a cache.
        Raises:
            TypeError, ValueError: a piece of the prompt is neither text nor an image; the message says which and why.
        """
        if isinstance(prompt, str) or not isinstance(prompt, Sequence):
            raise TypeError("the prompt must be a list, such as [image, 'Output: a cat', EOC, image, 'Output:']")
        if not prompt:
            raise ValueError("the prompt is empty: give at least one text or image")
        pieces = [p if isinstance(p, str) or p is EOC else as_frames(p, f"prompt, piece {i}") for i, p in enumerate(prompt)]
        return collate([Sample(pieces, bos=bos)], self.tokenizer, self.preprocess).to(self.device)

    @torch.inference_mode()
    def prefill(self, prompt: Sequence[object]) -> Cache:
        """Process a prompt once, for any number of calls `complete(query, cache=...)`. None of them changes the cache."""
        return prefill(self.model, self.batch(prompt))[1]

    def complete(
        self, prompt: Sequence[object], *, max_new_tokens: int = 32, beams: int = 1, temperature: float = 0.0,
        top_k: int | None = None, top_p: float | None = None, seed: int | None = None,
        on_text: Callable[[str], None] | None = None, cache: Cache | None = None,
    ) -> str:  # fmt: skip
        """The model's continuation of the prompt, up to `<EOC>`.

        Args:
            prompt: text, images, videos (lists of frames) and `EOC`. Text is only text, whatever it contains.
            beams: above 1: beam search, without sampling.
            temperature: 0 takes the most likely token; above 0 tokens are sampled (top_k and top_p restrict the choice).
            seed: of the sampling. None: a different result each time.
            on_text: called with each new piece of text as soon as it exists (not with beams).
            cache: from `prefill`; the prompt then continues it.
        Raises:
            TypeError, ValueError: an invalid prompt or option.
        """
        if beams < 1:
            raise ValueError(f"beams is {beams}; it must be at least 1")
        if beams > 1 and temperature > 0:
            raise ValueError("beam search does not sample: use beams=1 or temperature=0")
        batch, eoc_id = self.batch(prompt, bos=cache is None), self.tokenizer.eoc_id
        if beams > 1:
            rows = beam_search(self.model, batch, eoc_id, beams=beams, max_new_tokens=max_new_tokens, cache=cache)
        else:
            generator = None if seed is None else torch.Generator(self.device).manual_seed(seed)
            rows = generate(
                self.model, batch, eoc_id, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
                generator=generator, on_token=on_text and stream_text(self.tokenizer, on_text), cache=cache,
            )  # fmt: skip
        return self.tokenizer.decode(rows[0])

    def save(self, folder: str | Path, *, safetensors: bool = False, trainable_only: bool = False) -> None:
        """Write the folder that `load` reads. Each file is written completely or not at all, the weights last.

        Args:
            safetensors: the safetensors format (needs the package) instead of torch's own.
            trainable_only: leave out the frozen vision encoder and LM.
        """
        folder, state = Path(folder), self.model.state_dict()
        folder.mkdir(parents=True, exist_ok=True)
        save_json({"flamingo": self.model.config.to_dict(), "image": asdict(self.preprocess)}, folder / "config.json")
        write_atomically(folder / "tokenizer.json", self.tokenizer.save)
        if trainable_only:
            state = {name: state[name] for name, _ in self.model.trainable_parameters()}
        path = folder / f"{'trainable' if trainable_only else 'model'}.{'safetensors' if safetensors else 'pt'}"
        if safetensors:
            # This format stores a tensor that has two names (a tied output layer) only once.
            unique = {tensor.data_ptr(): (name, tensor.contiguous()) for name, tensor in reversed(state.items())}
            write_atomically(path, lambda temporary: extra("safetensors.torch").save_file(dict(unique.values()), temporary))
        else:
            save_tensors(state, path)
        for name in set(WEIGHTS) - {path.name}:  # weights of an earlier save to the same folder
            (folder / name).unlink(missing_ok=True)


def stream_text(tokenizer: Tokenizer, on_text: Callable[[str], None]) -> Callable[[torch.Tensor], None]:
    """Turn tokens into text one by one. A character of several bytes is passed on when it is complete."""
    ids, shown = [], 0

    def on_token(token: torch.Tensor) -> None:
        nonlocal shown
        ids.append(int(token[0]))
        text = tokenizer.decode(ids)
        if not text.endswith("\ufffd"):  # the replacement character: some bytes are still missing
            on_text(text[shown:])
            shown = len(text)

    return on_token


def load(
    folder_or_name: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None,
    vision: object = None, language: object = None, flamingo: str | Path | None = None,
) -> Pipeline:  # fmt: skip
    """A model from a folder that `save` or train_tiny.py wrote, or a published one by its name; in evaluation mode.

    Args:
        folder_or_name: a folder; "tiny", the ready model of a checkout; or a published name such as "openflamingo-3b", whose
            parts are downloaded (needs the extra [real]).
        device, dtype: where the weights go, and their type. dtype None: as they are stored.
        vision, language: if the folder has only the trained modules: the frozen modules to use. For a published model: files,
            folders or repositories that replace the defaults. flamingo: the same for its checkpoint.
    Raises:
        FileNotFoundError: the folder or one of its files is missing. ValueError: a file is damaged or does not fit.
    """
    folder = Path(folder_or_name)
    if not folder.is_dir() and str(folder_or_name) in REPOSITORIES:
        parts = {"vision": vision, "language": language, "flamingo": flamingo}
        return Pipeline(*load_published(str(folder_or_name), device=device, dtype=dtype, **parts))
    if not folder.is_dir() and str(folder_or_name) == "tiny":  # the ready model, in a checkout of the repository
        folder = Path(__file__).parent.parent / "tutorials" / "pretrained" / "tiny"
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), folder / "model.pt")
    for path in (folder / "config.json", folder / "tokenizer.json", weights):
        if not path.is_file():
            hint = f"run `python train_tiny.py`, or choose a published model: {', '.join(REPOSITORIES)}"
            raise FileNotFoundError(f"{folder} is not a saved Flamingo: {path.name} is missing; {hint}")
    content = load_json(folder / "config.json")
    try:
        config, preprocess = FlamingoConfig.from_dict(content["flamingo"]), ImagePreprocessor(**content["image"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'} is not the config of a Flamingo: {error}") from None
    if weights.stem == "trainable" and (vision is None or language is None):
        raise ValueError(f"{weights} has only the trained modules: pass their vision encoder and LM, vision=, language=")
    with torch.device("meta"):  # no memory for weights that the file replaces
        model = Flamingo(config, vision, language)
    if load_json(folder / "tokenizer.json").get("kind") == "pretrained":
        from .pretrained.tokenizers import PretrainedTokenizer as Kind  # needs a package
    else:
        Kind = ToyTokenizer
    tokenizer = Kind.load(folder / "tokenizer.json")
    if tokenizer.image_id != model.image_id:
        ids = f"{tokenizer.image_id} in tokenizer.json, but {model.image_id} in config.json"
        raise ValueError(f"{folder}: the id of <image> is {ids}; these files come from different models")
    fill(model, open_tensors(weights), {}, str(weights), dtype=dtype, device=device)
    return Pipeline(model.to(device).eval(), tokenizer, preprocess)
