"""Documents of the web → the pieces of a sample: MMC4, OBELICS, and the paper's random window (M3W, §2.4 and appendix).

    MMC4       text_list ["Cats purr.", "Dogs bark."], image_info [{image_name: "dog.jpg", matched_text_index: 1}, …]
    OBELICS    texts [null, "Dogs bark."], images ["dog.jpg", null]              exactly one of each pair is not null

    pieces     "Cats purr."  EOC  dog.jpg  "Dogs bark."  EOC     an image stands BEFORE the sentence it belongs to

`<EOC>` ends each chunk of text: before the next image, and where the document ends. `window` cuts L = 256 tokens out of the
pieces at random, keeps the first N = 5 images of these, and lays half of the windows out so that text looks at the next image:

    tokens     <BOS> Cats ␣purr . <EOC> <image> Dogs ␣bark . <EOC>
    L = 6                        └─────────────────────────┘           Sample([".", EOC, dog, "Dogs bark."], bos=False)

Images follow the order of the text, never that of the list of images (OpenFlamingo's are ordered by their own number while
its tags follow the sentences: where the matching is not monotonic, each text meets the wrong image). An image is read only
when a window shows it. The letters "<image>" in a text are text.
"""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..tokenizer import Tokenizer
from .images import as_frames
from .readers import FORMATS
from .sample import EOC, Sample

THRESHOLD = 0.24  # of the similarity of an image and its sentence in MMC4 (OpenFlamingo's recipe)


@dataclass(frozen=True)
class Picture:
    """An image that has not been read yet. A document may have hundreds; its window shows five."""

    name: str
    read: Callable[[], bytes]

    def pixels(self) -> np.ndarray:
        """uint8 (1, H, W, 3). Raises ValueError, with the name, if the file is missing, damaged or no image."""
        try:
            content = self.read()
        except ValueError as error:
            raise ValueError(f"{self.name!r:.200}: {error}") from None
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                return as_frames(image)
        except Exception as error:  # damaged files end in OSError, SyntaxError, struct.error, "decompression bomb" …
            raise ValueError(f"{self.name!r:.200} is no image ({', '.join(FORMATS)}), or damaged: {error}") from None


def picture(entry: object, find: Callable[[str], bytes], where: str) -> Picture | np.ndarray | None:
    """An image as documents give it: a file's name, its bytes, base64, pixels, or an object with one of these.

    None: the document says itself that it has no such image (a name that is null: the download failed).
    """
    if isinstance(entry, dict):
        if entry.get("image_base64") is not None:
            code = entry["image_base64"]
            if not isinstance(code, str):
                raise ValueError(f"{where}: image_base64 must be a string, not {code!r:.60}")
            return Picture(where, lambda: base64.b64decode(code))
        entry = entry.get("image_name")
    if entry is None:
        return None
    if isinstance(entry, bytes):
        return Picture(where, lambda: entry)
    if isinstance(entry, str):
        return Picture(entry, lambda: find(entry))
    if isinstance(entry, np.ndarray | Image.Image):
        return as_frames(entry, where)
    raise ValueError(f"{where}: expected the name of an image, its bytes or {{image_base64: …}}, found {entry!r:.60}")


def text_of(content: object, where: str) -> str:
    """A text that every tokenizer can read. JSON may hold half a letter ("\\ud83d"), which no UTF-8 can."""
    if not isinstance(content, str):
        raise ValueError(f"{where} must be a string, not {content!r:.60}")
    return content.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def in_chunks(items: Iterable[str | Picture | np.ndarray], between: str) -> list:
    """Neighbouring texts become one chunk, and EOC follows each.

    >>> in_chunks(["Cats purr.", "Dogs bark.", "", "Cows moo."], between=" ")
    ['Cats purr. Dogs bark. Cows moo.', EOC]
    """
    pieces, chunk = [], []
    for item in (*items, None):
        if isinstance(item, str):
            chunk += [item.strip()] if item.strip() else []
            continue
        if chunk:
            pieces += [between.join(chunk), EOC]
            chunk = []
        if item is not None:
            pieces.append(item)
    return pieces


def mmc4(document: dict, find: Callable[[str], bytes], threshold: float = THRESHOLD) -> list:
    """`text_list` and `image_info` → text, EOC and `Picture`s in the order of the sentences.

    Each image stands before the sentence it matches, if they are similar enough (`matched_sim`, or its place in the
    `similarity_matrix`). Images of the same sentence keep the order of `image_info`. `find` reads an image by its name.
    """
    texts, images = _list(document, "text_list"), _list(document, "image_info")
    before: dict[int, list] = {}
    for i, info in enumerate(images):
        where = f"image_info[{i}]"
        at = info.get("matched_text_index") if isinstance(info, dict) else None
        if type(at) is not int or not 0 <= at < len(texts):
            raise ValueError(f"{where}: matched_text_index must be one of 0 … {len(texts) - 1}, found {info!r:.80}")
        image = picture(info, find, where)
        if image is not None and _similarity(document, info, i, at, where) >= threshold:
            before.setdefault(at, []).append(image)
    items: list = []
    for s, sentence in enumerate(texts):
        items += [*before.get(s, ()), text_of(sentence, f"text_list[{s}]")]
    return in_chunks(items, between=" ")


def _similarity(document: dict, info: dict, i: int, at: int, where: str) -> float:
    try:
        found = info["matched_sim"] if "matched_sim" in info else document["similarity_matrix"][i][at]
        return float(found)
    except (KeyError, IndexError, TypeError, ValueError):
        raise ValueError(f"{where}: neither matched_sim nor similarity_matrix[{i}][{at}] is a number") from None


def obelics(document: dict, find: Callable[[str], bytes]) -> list:
    """The parallel lists `texts` and `images` → text, EOC and `Picture`s in their order."""
    texts, images = _list(document, "texts"), _list(document, "images")
    if len(texts) != len(images):
        raise ValueError(f"{len(texts)} texts but {len(images)} images: the lists are parallel, with null in the other's place")
    items: list = []
    for i, (text, image) in enumerate(zip(texts, images)):
        if (text is None) == (image is None):
            raise ValueError(f"texts[{i}] and images[{i}]: exactly one of them is null; found {text!r:.40} and {image!r:.40}")
        item = text_of(text, f"texts[{i}]") if image is None else picture(image, find, f"images[{i}]")
        items += [] if item is None else [item]
    return in_chunks(items, between="\n\n")


def _list(document: dict, key: str) -> list:
    if not isinstance(document.get(key), list):
        raise ValueError(f"{key} must be a list, found {document.get(key)!r:.60}")
    return document[key]


def window(
    pieces: list, tokenizer: Tokenizer, rng: random.Random, length: int = 256, max_images: int = 5, p_next: float = 0.5
) -> Sample:
    """A random stretch of a document, `length` tokens at most, and in it the first `max_images` images (paper, appendix).

    Every start is equally likely, of those whose window shows an image: others would teach the bridge nothing. Text before
    the first image is kept. `<BOS>` is the document's first token, so a window from its middle has none (`bos=False`), and
    one that ends in its middle has no EOC there. Half a word at the edge, which could not be written as text, falls away.
    """
    ids = [tokenizer.encode(piece) if isinstance(piece, str) else [0] for piece in pieces]  # EOC or an image: one token
    is_image = np.concatenate(
        [[False], *([not isinstance(p, str) and p is not EOC] * len(i) for p, i in zip(pieces, ids))]
    )  # of each token; the first is <BOS>
    total = len(is_image)
    images_before = np.concatenate([[0], is_image.cumsum()])
    starts = np.arange(max(total - length, 0) + 1)
    shown = images_before[np.minimum(starts + length, total)] - images_before[starts]
    start = int(rng.choice(starts[shown > 0] if shown.any() else starts))

    kept, images, at = [], 0, 1
    for piece, piece_ids in zip(pieces, ids):
        n = len(piece_ids)
        a, b = max(start - at, 0), min(start + length - at, n)
        at += n
        if a >= b:
            continue
        if isinstance(piece, str):
            kept.append(piece if (a, b) == (0, n) else cut(piece_ids, a, b, tokenizer))
        elif piece is EOC:
            kept.append(EOC)
        elif images < max_images:
            kept.append(piece.pixels() if isinstance(piece, Picture) else piece)
            images += 1
    kept = [piece for piece in kept if not isinstance(piece, str) or piece]
    return Sample(kept, attend_next=rng.random() < p_next, bos=start == 0)


def cut(ids: list[int], a: int, b: int, tokenizer: Tokenizer) -> str:
    """The text of ids[a:b], without the tokens at the cut edges that text cannot express.

    A sample holds text, and a cut can fall within a word or within a letter's bytes: "kät|zchen" may be read anew as other
    tokens. So tokens fall away at the edges, as few as possible, until the text gives just the ids that are left.
    """
    front, back = a > 0, b < len(ids)
    for fewer in range(min(b - a, 16) + 1):
        for less in range(fewer + 1) if front and back else [fewer if front else 0]:
            left = ids[a + less : b - (fewer - less)]
            text = tokenizer.decode(left)
            if tokenizer.encode(text) == left:
                return text
    return tokenizer.decode(ids[a:b])  # a tokenizer that does not read its own writing: near enough
