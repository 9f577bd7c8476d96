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
from torch import Tensor

from .config import FlamingoConfig, build
from .data.images import ImagePreprocessor, as_frames
from .data.options import BEAMS, COUNT, FEW, SEED, Number, check, known_device
from .data.sample import EOC, Sample, collate, input_only
from .flamingo import Batch, Cache, Flamingo
from .generate import beam_search, generate, prefill, score_answers
from .pretrained.files import checksum, open_tensors
from .pretrained.loading import REPOSITORIES, load_published
from .pretrained.tables import fill
from .tokenizer import Tokenizer, ToyTokenizer
from .training.checkpoint import extra, load_json, save_json, save_tensors, write_atomically

OPTIONS = {  # of `complete`, also on the command line
    "max_new_tokens": Number(0, 10**6, whole=True), "beams": BEAMS, "temperature": Number(0.001, 1000, or_zero=True),
    "length_penalty": Number(-10, 10), "repetition_penalty": Number(0.01, 100),
    "no_repeat_ngram_size": Number(0, 10**6, whole=True), "top_k": COUNT, "top_p": Number(1e-6, 1), "seed": SEED, "n": FEW,
}  # fmt: skip
WEIGHTS = ("model.safetensors", "model.pt", "trainable.safetensors", "trainable.pt")  # one of them is in a folder


@dataclass(frozen=True)
class PromptCache(Cache):
    """The cache of a prompt, which belongs to one model."""

    model: Flamingo


@dataclass
class SavedConfig:
    """The content of `config.json`."""

    flamingo: FlamingoConfig
    image: ImagePreprocessor


@dataclass
class Pipeline:
    """A Flamingo with its tokenizer and image preprocessing."""

    model: Flamingo
    tokenizer: Tokenizer
    preprocess: ImagePreprocessor

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def check_end_of_answers(self) -> None:
        """Before training. Raises ValueError: the model has no output for `<EOC>`, so it cannot learn to end its answers."""
        if self.model.config.added_head is None and self.tokenizer.eoc_id >= self.model.config.lm.vocab_size:
            raise ValueError("no output for <EOC>, so the model cannot learn to end its answers: its config needs added_head")

    def batch(self, prompt: Sequence[object], *, bos: bool = True) -> Batch:
        """A prompt as a batch of one row. bos: start with `<BOS>`; False for a prompt that continues a cache.

        Raises TypeError, ValueError: a piece of the prompt is neither text nor an image; the message says which and why.
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
        return PromptCache(**vars(prefill(self.model, self.batch(prompt))[1]), model=self.model)

    def complete(
        self, prompt: Sequence[object], *, max_new_tokens: int = 32, beams: int = 1, temperature: float = 0.0,
        top_k: int | None = None, top_p: float | None = None, seed: int | None = None, stop: str | Sequence[str] = (),
        repetition_penalty: float = 1.0, no_repeat_ngram_size: int = 0, length_penalty: float = 0.0, n: int | None = None,
        on_text: Callable[[str], None] | None = None, cache: Cache | None = None,
    ) -> str | list[tuple[str, float]]:  # fmt: skip
        """The model's continuation of the prompt, up to `<EOC>`.

        Args:
            prompt: text, images, videos (lists of frames) and `EOC`. Text is only text, whatever it contains.
            beams: above 1: beam search, without sampling.
            temperature: 0 takes the most likely token; above 0 tokens are sampled (top_k and top_p restrict the choice).
            seed: of the sampling. None: a different result each time. Without sampling it changes nothing.
            stop: one text or several; the answer ends before the first of them.
            repetition_penalty, no_repeat_ngram_size: see `controls`.
            length_penalty: of beam search (else it changes nothing), see `beam_search`. Above 0 long answers are preferred.
            n: return a list of n answers with their scores: the n best of the beams, or n samples; the best one first.
            on_text: called with each new piece of text as soon as it exists (not with beams or n).
            cache: from `prefill`; the prompt then continues it.
        Returns:
            The answer. With n, a list of (answer, score). The score is the log-likelihood of the answer's tokens, including the
            `<EOC>` that ends it, divided by their number ** length_penalty. It does not contain penalties against repetitions.
        Raises TypeError, ValueError: an invalid prompt or option.
        """
        may_be_none = dict(top_k=top_k, top_p=top_p, seed=seed, n=n)
        check(OPTIONS, max_new_tokens=max_new_tokens, beams=beams, temperature=temperature, length_penalty=length_penalty)
        check(OPTIONS, **{name: value for name, value in may_be_none.items() if value is not None})
        if beams > 1 and temperature > 0:
            raise ValueError("beam search does not sample: use beams=1 or temperature=0")
        if temperature == 0 and (top_k, top_p) != (None, None):
            raise ValueError("top_k and top_p restrict sampling: pass a temperature above 0 too")
        if n is not None and (max_new_tokens == 0 or (temperature == 0 and n > beams)):
            raise ValueError(f"n is {n}: answers need max_new_tokens of 1 or above, and n beams or a temperature above 0")
        if cache is not None and (not isinstance(cache, PromptCache) or cache.model is not self.model):
            raise ValueError("cache: expected the result of `prefill` of this model")
        batch, eoc_id = self.batch(prompt, bos=cache is None), self.tokenizer.eoc_id
        stop = [stop] if isinstance(stop, str) else stop
        adjust = controls(self.tokenizer, batch, repetition_penalty, no_repeat_ngram_size, stop)
        options = dict(max_new_tokens=max_new_tokens, banned=input_only(self.tokenizer), adjust=adjust, cache=cache)
        stream = TextStream(self.tokenizer, on_text, stop)
        if beams != 1:
            options |= dict(beams=beams, length_penalty=length_penalty, n_best=n or 1)
            rows = beam_search(self.model, batch, eoc_id, **options)
        else:
            options |= dict(temperature=temperature, top_k=top_k, top_p=top_p, on_token=stream if on_text and not n else None)
            options["generator"] = None if seed is None else torch.Generator(self.device).manual_seed(seed)
            rows = [generate(self.model, batch, eoc_id, **options)[0] for _ in range(n or 1)]
        texts = [before(self.tokenizer.decode(row), stop) for row in rows]
        if n is None:
            stream.show(texts[0])
            return texts[0]
        # All answers end with <EOC>, except those that reached the token limit.
        length = batch.ids.shape[1] + (0 if cache is None else cache.lm.mask.shape[1])
        limit = min(max_new_tokens, self.model.lm.remaining_context(length) + 1)
        rows = [row if len(row) == limit else [*row, eoc_id] for row in rows]
        scores = score_answers(self.model, batch, [rows], cache=cache)[0].tolist()
        scores = [score / len(row) ** length_penalty for score, row in zip(scores, rows)]
        answers = list(zip(texts, scores))  # of beam search already in its order
        return answers if beams != 1 else sorted(answers, key=lambda answer: -answer[1])

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
            tensors, save_file = dict(unique.values()), extra("safetensors.torch").save_file
            write_atomically(path, lambda temporary: save_file(tensors, temporary, {"crc32": checksum(tensors)}))
        else:
            save_tensors(state, path)
        for name in set(WEIGHTS) - {path.name}:  # weights of an earlier save to the same folder
            (folder / name).unlink(missing_ok=True)


def controls(
    tokenizer: Tokenizer, prompt: Batch, repetition_penalty: float, no_repeat_ngram_size: int, stop: Sequence[str]
) -> Callable[[list[list[int]], Tensor], Tensor] | None:
    """The argument `adjust` of generate.py for a prompt of one row. None: nothing to adjust.

    Args:
        repetition_penalty: above 1, tokens that occurred before are less likely (Keskar et al. 2019): a logit above 0 is
            divided by it, one below 0 multiplied.
        no_repeat_ngram_size: n: the same n tokens in a row never occur twice. 0: off.
        stop: after one of these texts, only `<EOC>` is possible.
    As in transformers, the tokens of the prompt count too (but not those of a cache before it). `<EOC>` stays possible:
    the shots of a prompt contain it.
    """
    check(OPTIONS, repetition_penalty=repetition_penalty, no_repeat_ngram_size=no_repeat_ngram_size)
    if not isinstance(stop, Sequence) or not all(isinstance(end, str) and end for end in stop):
        raise TypeError(f"stop is {stop!r:.100}; it must be one text or several, and none of them empty")
    if repetition_penalty == 1 and no_repeat_ngram_size == 0 and not stop:
        return None
    before_answer, n = prompt.ids[prompt.attention_mask].tolist(), no_repeat_ngram_size

    def adjust(rows: list[list[int]], logits: Tensor) -> Tensor:
        logits = logits.clone()
        for row, new in zip(logits, rows):  # row (V,)
            ids = before_answer + new
            seen = [i for i in set(ids) if i < len(row) and i != tokenizer.eoc_id]
            row[seen] = torch.where(row[seen] > 0, row[seen] / repetition_penalty, row[seen] * repetition_penalty)
            # if the last n - 1 tokens occurred before, forbid the token that followed them then
            for i in range(len(ids) - n + 1) if n else ():
                if ids[i : i + n - 1] == ids[len(ids) - n + 1 :] and ids[i + n - 1] in seen:
                    row[ids[i + n - 1]] = -torch.inf
            text = tokenizer.decode(new)
            if before(text, stop) != text:
                row[:] = -torch.inf
                row[tokenizer.eoc_id] = 0.0
        return logits

    return adjust


def before(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stop texts, or all of it."""
    return text[: min((text.find(end) for end in stop if end in text), default=len(text))]


class TextStream:
    """Passes on text while tokens are generated: each piece as soon as it is certain.

    A character of several bytes waits until it is complete. Text that may begin a stop text waits until it is clear that it
    does not.
    """

    def __init__(self, tokenizer: Tokenizer, on_text: Callable[[str], None] | None, stop: Sequence[str]):
        self.tokenizer, self.on_text, self.stop = tokenizer, on_text, stop
        self.ids, self.n_shown = [], 0

    def __call__(self, token: Tensor) -> None:
        self.ids.append(int(token[0]))
        text = before(self.tokenizer.decode(self.ids), self.stop).rstrip("\ufffd")  # this character stands for missing bytes
        waiting = [k for end in self.stop for k in range(1, len(end)) if text.endswith(end[:k])]
        self.show(text[: len(text) - max(waiting, default=0)])

    def show(self, text: str) -> None:
        """Pass on the part of `text` that is new."""
        if self.on_text is not None and len(text) > self.n_shown:
            self.on_text(text[self.n_shown :])
            self.n_shown = len(text)


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
    Raises FileNotFoundError: the folder or one of its files is missing. ValueError: a file is damaged or does not fit.
    """
    folder, device = Path(folder_or_name), known_device(device)
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
    if flamingo is not None or any(not isinstance(part, torch.nn.Module | None) for part in (vision, language)):
        raise TypeError(f"vision, language, flamingo: parts of a published model, but {folder} is a saved one; leave them out")
    try:
        saved = build(SavedConfig, load_json(folder / "config.json"))
        own, fits = saved.flamingo.vision, (saved.image.size, saved.flamingo.resampler.d)
        if vision is None and (own.image_size, own.d) != fits:
            is_not = f"the vision encoder has image_size {own.image_size} and d={own.d}"
            raise ValueError(f"image.size is {fits[0]} and resampler.d is {fits[1]}, but {is_not}")
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'} is not the config of a Flamingo: {error}") from None
    if weights.stem == "trainable" and (vision is None or language is None):
        raise ValueError(f"{weights} has only the trained modules: pass their vision encoder and LM, vision=, language=")
    with torch.device("meta"):  # no memory for weights that the file replaces
        model = Flamingo(saved.flamingo, vision, language)
    if load_json(folder / "tokenizer.json").get("kind") == "pretrained":
        from .pretrained.tokenizers import PretrainedTokenizer as Kind  # needs a package
    else:
        Kind = ToyTokenizer
    tokenizer = Kind.load(folder / "tokenizer.json")
    if tokenizer.image_id != model.image_id:
        ids = f"{tokenizer.image_id} in tokenizer.json, but {model.image_id} in config.json"
        raise ValueError(f"{folder}: the id of <image> is {ids}; these files come from different models")
    n_ids = saved.flamingo.lm.vocab_size + saved.flamingo.n_added_tokens
    if not all(0 <= i < n_ids for i in (tokenizer.pad_id, tokenizer.eoc_id, tokenizer.bos_id or 0)):
        raise ValueError(f"{folder / 'tokenizer.json'}: ids of special tokens must be below {n_ids}")
    fill(model, open_tensors(weights), {}, str(weights), dtype=dtype, device=device)
    return Pipeline(model.to(device).eval(), tokenizer, saved.image)
