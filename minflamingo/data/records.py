"""How the files of a shard become samples: image-text pairs, videos, and interleaved documents (paper section 2.4).

    pair_sample        cats/7.jpg + cats/7.txt                 (or 7.json with a "caption")                 [N=1, T=1]
    video_sample       run.mp4 + run.txt                       (needs PyAV)                                 [N=1, T>1]
                       run/0.jpg ... run/9.jpg + run.txt       one frame per second
    document_sample    7.json in one of the formats below      (images as base64, or as files 7/dog.jpg)    [N>1, T=1]

A reader is called as reader(record, rng), for example with record = {"jpg": content, "txt": content}; `functools.partial` sets
its other arguments. It raises an error for a broken record, an empty caption, or a document without images. An image of a
document that is missing (its download failed) or damaged is left out, and the document is kept.

    MMC4       text_list ["Cats purr.", "Dogs bark."], image_info [{image_name: "dog.jpg", matched_text_index: 1, ...}]
    OBELICS    texts [null, "Dogs bark."], images ["dog.jpg", null]              exactly one of each pair is not null
    ChatGPT    is_gpt true, example "Cats purr. _!_IMAGE1_!_ Dogs bark.", image_map {"_!_IMAGE1_!_": {base64_image: …}}
               (sequences that OpenFlamingo's authors let ChatGPT write)

    pieces     "Cats purr."  EOC  dog.jpg  "Dogs bark."  EOC     an image comes BEFORE the sentence that it matches

`window` takes L = 256 tokens at a random position and keeps the first N = 5 images. In half of the windows, text attends to the
next image (p_next). Images are in the order of the text. (OpenFlamingo sorts images by their index but `<image>` tokens by
sentence, so a text can get the image of another one.)

    tokens     <BOS> Cats ␣purr . <EOC> <image> Dogs ␣bark . <EOC>
    L = 6                        └─────────────────────────┘      Sample([[.], EOC, dog, [Dogs], [␣bark], [.]], bos=False)
"""

import base64
import io
import math
import random
import re
from collections import defaultdict
from collections.abc import Iterable
from itertools import groupby

import numpy as np

from ..tokenizer import Tokenizer
from .files import MOST_TEXT, parse_json
from .images import as_frames, read_pixels
from .sample import EOC, Sample
from .videos import IMAGES, VIDEOS, by_number, decode_video, spread

Record = dict[str, bytes]


def pair_sample(record: Record, rng: random.Random, **options) -> Sample:
    """`<BOS><image>text<EOC>`. `options`: those of `caption`."""
    text = caption(record, **options)  # before the image, which costs more to decode
    images = with_ending(record, IMAGES)
    if len(images) != 1:
        raise ValueError(f"a pair needs one image ({', '.join(IMAGES)}), found {', '.join(record)[:100]}")
    return Sample([read_pixels(record[images[0]], images[0]), text, EOC])


def video_sample(record: Record, rng: random.Random, *, frames: int = 8, **options) -> Sample:
    """The same with a video. Of more than `frames` frames, `frames` evenly spaced ones are used."""
    text = caption(record, **options)
    if files := with_ending(record, VIDEOS):
        images = decode_video(io.BytesIO(record[files[0]]), files[0], max_frames=frames)
    else:
        names = sorted(with_ending(record, IMAGES), key=by_number)  # 2.jpg before 10.jpg
        images = [read_pixels(record[name], name) for name in spread(names, frames)]
    return Sample([as_frames(images, "video"), text, EOC])


def document_sample(record: Record, rng: random.Random, *, tokenizer: Tokenizer, threshold: float = 0.24, **options) -> Sample:
    """A random window of an interleaved document. `options`: those of `window`. The threshold is that of OpenFlamingo."""
    try:  # only images of a window are decoded
        return window(document_pieces(record, threshold), tokenizer, rng, **options)
    except DamagedImage:  # the document without its damaged images has another window
        return window(document_pieces(record, threshold, intact_only=True), tokenizer, rng, **options)


def with_ending(record: Record, endings: tuple[str, ...]) -> list[str]:
    return [name for name in record if f".{name}".lower().endswith(endings)]


def caption(record: Record, tokenizer: Tokenizer | None = None, max_tokens: int | None = None) -> str | list[int]:
    """The text of the txt file, or "caption" in the json. `max_tokens`: a longer text is cut; this needs the tokenizer."""
    content = {"caption": record["txt"].decode("utf-8")} if "txt" in record else parse_json(record.get("json", b"{}"))
    if not isinstance(content, dict) or not isinstance(content.get("caption"), str):
        raise ValueError(f'no text: a txt file, or a json file with {{"caption": "a cat"}}; found {", ".join(record):.100}')
    text = clean(content["caption"])
    if not text:
        raise ValueError("the caption is empty")
    return text if max_tokens is None else tokenizer.encode(text)[:max_tokens]


def clean(text: str) -> str:
    """Without a byte-order mark, and without space around it. Half a character ("\\ud83d") of JSON becomes U+FFFD."""
    if "\0" in text or len(text) > MOST_TEXT:
        raise ValueError(f"a text with NUL characters (save UTF-16 as UTF-8), or with more than {MOST_TEXT:,} characters")
    return text.removeprefix("\ufeff").strip().encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def document_pieces(record: Record, threshold: float, intact_only: bool = False) -> list:
    """A document in one of the formats -> `str`, EOC and images (content of a PNG, JPEG or WebP file).

    In MMC4, an image is left out if its similarity to its sentence is below the threshold.
    """
    document = parse_json(record.get("json", b""))
    try:
        items = _items(document, record, threshold)
        pieces = chunks([i for i in items if not intact_only or _is_intact(i)], "\n\n" if "texts" in document else " ")
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"not a document of MMC4, OBELICS or ChatGPT: {type(error).__name__}: {error}"[:400]) from None
    if EOC not in pieces or not any(isinstance(piece, bytes) for piece in pieces):
        raise ValueError("the document has no text or no image")
    return pieces


def _items(document: dict, record: Record, threshold: float) -> list[str | bytes | None]:
    """Texts and images in the order of the document. None: a missing image."""
    items = []
    if not all(isinstance(document.get(name, []), list) for name in ("text_list", "image_info", "texts", "images")):
        raise ValueError("text_list, image_info, texts and images must be lists")
    if "text_list" in document:  # MMC4
        images_before = defaultdict(list)
        for info in document["image_info"]:
            if info["matched_text_index"] not in range(len(document["text_list"])) or not math.isfinite(info["matched_sim"]):
                raise ValueError(f"an image matches no sentence, or its similarity is no number: {info!r:.100}")
            if info["matched_sim"] >= threshold:
                images_before[info["matched_text_index"]].append(_image(info, record))
        for s, sentence in enumerate(document["text_list"]):
            items += [*images_before[s], sentence]
    elif "is_gpt" in document:  # ChatGPT: texts and names of images in turns
        for i, part in enumerate(re.split(r"(_!_IMAGE\d+_!_)", document["example"])):
            items.append(part if i % 2 == 0 else _image(document["image_map"].get(part), record))
    else:  # OBELICS
        for text, image in zip(document["texts"], document["images"], strict=True):
            if text is not None and image is not None:
                raise ValueError(f"a text and an image have the same place: {text!r:.50}, {image!r:.50}")
            items.append(text if image is None else _image(image, record))
    return items


def _is_intact(item: object) -> bool:
    """False: an image that cannot be decoded."""
    try:
        return not isinstance(item, bytes) or read_pixels(item, "image") is not None
    except ValueError:
        return False


def _image(entry: str | dict | None, record: Record) -> bytes | None:
    """A file name, {"image_name": name}, {"image_base64": content} or {"base64_image": content} -> the image.

    None: the name is null or has no file, because the download failed, or the base64 is not valid.
    """
    entry = entry if isinstance(entry, dict) else {"image_name": entry}
    code = entry.get("image_base64") or entry.get("base64_image")
    try:
        return base64.b64decode(code) if code else record.get(entry.get("image_name"))
    except ValueError:
        return None


class DamagedImage(ValueError):
    """An image of a document cannot be decoded."""


def chunks(items: Iterable[str | bytes | None], separator: str) -> list:
    """Join neighbouring texts to chunks, each followed by EOC: ["Cats.", "Dogs."] -> ["Cats. Dogs.", EOC]."""
    pieces = []
    items = (item if isinstance(item, bytes) else clean(item) for item in items if item is not None)
    for kind, run in groupby(filter(None, items), key=type):
        pieces += [separator.join(run), EOC] if kind is str else run  # noqa: B031
    return pieces


def window(
    pieces: list, tokenizer: Tokenizer, rng: random.Random, *, length: int = 256, max_images: int = 5, p_next: float = 0.5
) -> Sample:
    """`length` tokens of a document at a random position, with at most `max_images` images (paper, appendix).

    All windows that contain an image are equally likely. `<BOS>` is the document's first token, so a window from its middle has
    none (`bos=False`), and a window that ends in the middle of a chunk has no EOC there. Each token of a text is one piece,
    because a cut can be inside a word or a character.
    """
    tokens = ["<BOS>"]  # followed by token ids, EOCs and images
    for piece in pieces:
        tokens += tokenizer.encode(piece) if isinstance(piece, str) else [piece]
    images_before = np.cumsum([0] + [isinstance(token, bytes) for token in tokens])
    starts = np.arange(max(len(tokens) - length, 0) + 1)
    has_image = images_before[np.minimum(starts + length, len(tokens))] > images_before[starts]
    start = int(rng.choice(starts[has_image]))
    kept, n_images = [], 0
    for token in tokens[max(start, 1) : start + length]:
        if isinstance(token, bytes):
            n_images += 1
            if n_images <= max_images:
                try:
                    kept.append(read_pixels(token, f"image {n_images}"))
                except ValueError as error:
                    raise DamagedImage(error) from None
        else:
            kept.append(EOC if token is EOC else [token])
    return Sample(kept, attend_next=rng.random() < p_next, bos=start == 0)
