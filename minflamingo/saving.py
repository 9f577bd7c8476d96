"""A Flamingo on disk: a folder with `config.json` (sizes, image preparation), `tokenizer.json` (words, or all of a published
tokenizer) and one file of weights, which are read without running code.

    save(flamingo, "runs/mine")                                   model.pt
    save(flamingo, "runs/mine", safetensors=True)                 model.safetensors
    save(flamingo, "runs/mine", bridge_only=True)                 bridge.pt: without eye and language model
    flamingo = load("runs/mine", device="cuda", dtype=torch.bfloat16)
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from .complete import LoadedFlamingo
from .config import FlamingoConfig
from .data.images import ImagePreparation
from .flamingo import Flamingo
from .pretrained.files import open_tensors
from .pretrained.named import HUB, load_named
from .pretrained.tables import as_they_are, fill, twin_names
from .pretrained.tokenizers import PretrainedTokenizer
from .tokenizer import ToyTokenizer
from .training.checkpoint import load_json, save_json, save_tensors, write_atomically

# The weights of a folder: all of them, or those alone that Flamingo trains. One of these files is in it.
WHOLE, BRIDGE = ("model.safetensors", "model.pt"), ("bridge.safetensors", "bridge.pt")


def save(flamingo: LoadedFlamingo, folder: str | Path, safetensors: bool = False, bridge_only: bool = False) -> None:
    """Write the folder that `load` reads; each file atomically, the weights last.

    Args:
        safetensors: write that format (with the package `safetensors`), not torch's own.
        bridge_only: leave out eye and language model, which are frozen and whose files there are already.
    """
    folder, model = Path(folder), flamingo.model
    folder.mkdir(parents=True, exist_ok=True)
    save_json({"flamingo": model.config.to_dict(), "image": flamingo.prepare.to_dict()}, folder / "config.json")
    write_atomically(folder / "tokenizer.json", flamingo.tokenizer.save)
    state = model.state_dict()
    if bridge_only:
        state = {name: state[name] for name, _ in model.bridge_parameters()}
    path = folder / (BRIDGE if bridge_only else WHOLE)[0 if safetensors else 1]
    if safetensors:
        unique = {n: state[n].contiguous() for n in as_they_are(model, state).values() if n in state}
        write_atomically(path, lambda temporary: _save_safetensors(unique, temporary))
    else:
        save_tensors(state, path)
    for name in {*WHOLE, *BRIDGE} - {path.name}:  # what was here before is not this model
        (folder / name).unlink(missing_ok=True)


def _save_safetensors(state: dict, path: Path) -> None:
    try:
        from safetensors.torch import save_file
    except ImportError:
        raise ImportError("to save safetensors: pip install 'minflamingo[real]'") from None
    save_file(state, path)


def load(
    folder: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    vision: object = None,
    language: object = None,
    flamingo: str | Path | None = None,
) -> LoadedFlamingo:
    """A Flamingo from the folder that `save` (or `train_tiny.py`) wrote, or a published one by name; in evaluation mode.

    Args:
        folder: a folder; or a name such as "openflamingo-3b", whose parts are `vision`, `language` and `flamingo`
            (pretrained/named.py).
        device, dtype: where the weights go; dtype None: as they are stored.
        vision, language: for a folder that holds the bridge alone: the eye and the LM that it stands between (modules).
    Raises:
        FileNotFoundError: the folder or one of its files is missing. ValueError: a file is damaged or does not fit.
    """
    if str(folder) in HUB:
        return load_named(str(folder), vision, language, flamingo, dtype, device)
    folder = Path(folder)
    weights = next((folder / name for name in (*WHOLE, *BRIDGE) if (folder / name).is_file()), folder / WHOLE[1])
    for path in (folder / "config.json", folder / "tokenizer.json", weights):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: no folder of a trained Flamingo (train_tiny.py writes one)")
    content = load_json(folder / "config.json")
    try:
        config = FlamingoConfig.from_dict(content["flamingo"])
        prepare = ImagePreparation(**content["image"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'} is not the config of a Flamingo: {error!r}") from None
    of_its_kind = {"pretrained": PretrainedTokenizer}.get(load_json(folder / "tokenizer.json").get("kind"), ToyTokenizer)
    tokenizer = of_its_kind.load(folder / "tokenizer.json")
    most = config.lm.vocab_size + (config.n_new_tokens if config.new_head else 0)
    if not config.lm.vocab_size <= tokenizer.vocab_size <= most:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the language model {config.lm.vocab_size}; "
            "these files are not of one model"
        )
    if weights.name in BRIDGE and (vision is None or language is None):
        raise ValueError(f"{weights} holds the bridge alone: give its eye and language model, load(…, vision=, language=)")
    with torch.device("meta"):  # no weight is made twice
        model = Flamingo(config, vision, language)
    tensors, table = open_tensors(weights), as_they_are(model, open_tensors(weights))
    kept = ()
    if weights.name in BRIDGE:
        kept = ("vision.", "lm.")
        table = {name: source for name, source in table.items() if not name.startswith(kept)}
    # both names of a shared tensor may be in the file
    fill(model, tensors, table, str(weights), map(re.escape, twin_names(model)), kept, dtype, device)
    return LoadedFlamingo(model.to(device).eval(), tokenizer, prepare)
