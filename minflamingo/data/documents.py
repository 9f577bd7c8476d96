"""Interleaved documents in the formats MMC4 and OBELICS -> the pieces of a sample, and the paper's random window (section 2.4).

    MMC4       text_list ["Cats purr.", "Dogs bark."], image_info [{image_name: "dog.jpg", matched_text_index: 1}, ...]
    OBELICS    texts [null, "Dogs bark."], images ["dog.jpg", null]              exactly one of each pair is not null

    pieces     "Cats purr."  EOC  dog.jpg  "Dogs bark."  EOC     an image comes BEFORE the sentence that it matches

`window` takes L = 256 tokens at a random position and keeps the first N = 5 images. In half of the windows, text attends to the
next image (p_next):

    tokens     <BOS> Cats ␣purr . <EOC> <image> Dogs ␣bark . <EOC>
    L = 6                        └─────────────────────────┘           Sample([".", EOC, dog, "Dogs bark."], bos=False)

Images are in the order of the text. (OpenFlamingo sorts images by their index but `<image>` tokens by sentence, so a text can
get the image of another one.)
"""

import base64
import random
from collections.abc import Callable, Iterable

import numpy as np

from ..tokenizer import Tokenizer
from .images import LazyImage
from .sample import EOC, Sample

THRESHOLD = 0.24  # minimum similarity of an image and its sentence in MMC4 (OpenFlamingo's recipe)
Find = Callable[[str], bytes]  # name of an image file -> its content


def lazy_image(entry: object, find: Find, where: str) -> LazyImage | None:
    """An image of a document: a file name, or {"image_name": name} or {"image_base64": content}. None: the download failed."""
    name, code = (entry.get("image_name"), entry.get("image_base64")) if isinstance(entry, dict) else (entry, None)
    if isinstance(code, str):
        return LazyImage(where, lambda: base64.b64decode(code))
    if code is not None or not isinstance(name, str | None):
        raise ValueError(f"{where}: expected the name of an image or {{image_base64: ...}}, found {entry!r:.60}")
    return None if name is None else LazyImage(name, lambda: find(name))


def valid_text(text: object, where: str) -> str:
    """The text, if it is a string. Half a character ("\\ud83d"), possible in JSON but not in UTF-8, becomes U+FFFD."""
    if not isinstance(text, str):
        raise ValueError(f"{where} must be a string, not {text!r:.60}")
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def chunks(items: Iterable[str | LazyImage | np.ndarray], separator: str) -> list:
    """Join neighbouring texts to chunks, each followed by EOC: ["Cats.", "Dogs."] -> ["Cats. Dogs.", EOC]."""
    pieces, chunk = [], []
    for item in (*items, None):
        if isinstance(item, str):
            chunk += [item.strip()] if item.strip() else []
            continue
        if chunk:
            pieces += [separator.join(chunk), EOC]
            chunk = []
        pieces += [] if item is None else [item]
    return pieces


def document_pieces(document: dict, find: Find, threshold: float = THRESHOLD) -> list:
    """A document in one of the two formats -> text, EOC and `LazyImage`s. Raises ValueError, which names the invalid part."""
    names = ("text_list", "image_info") if "text_list" in document else ("texts", "images")
    texts, images = map(document.get, names)
    if not isinstance(texts, list) or not isinstance(images, list):
        raise ValueError(f"need the lists text_list and image_info (MMC4) or texts and images (OBELICS), got {document!r:.80}")
    if "text_list" in document:
        return chunks(_mmc4(document, texts, images, find, threshold), separator=" ")
    return chunks(_obelics(texts, images, find), separator="\n\n")


def _mmc4(document: dict, texts: list, images: list, find: Find, threshold: float) -> Iterable:
    """Each image comes before its sentence, if `matched_sim` (or its value in `similarity_matrix`) reaches the threshold."""
    images_before: dict[int, list] = {}
    for i, info in enumerate(images):
        where = f"image_info[{i}]"
        match = info.get("matched_text_index") if isinstance(info, dict) else None
        if type(match) is not int or not 0 <= match < len(texts):
            raise ValueError(f"{where}: matched_text_index must be in 0...{len(texts) - 1}, found {info!r:.80}")
        try:
            similarity = float(info["matched_sim"] if "matched_sim" in info else document["similarity_matrix"][i][match])
        except (LookupError, TypeError, ValueError):
            raise ValueError(f"{where}: neither matched_sim nor similarity_matrix[{i}][{match}] is a number") from None
        image = lazy_image(info, find, where)
        if image is not None and similarity >= threshold:
            images_before.setdefault(match, []).append(image)
    for s, sentence in enumerate(texts):
        yield from images_before.get(s, ())
        yield valid_text(sentence, f"text_list[{s}]")


def _obelics(texts: list, images: list, find: Find) -> Iterable:
    if len(texts) != len(images):
        raise ValueError(f"{len(texts)} texts but {len(images)} images; the lists must have equal length, with null as filler")
    for i, (text, image) in enumerate(zip(texts, images)):
        if (text is None) == (image is None):
            raise ValueError(f"texts[{i}] and images[{i}]: exactly one must be null; found {text!r:.40} and {image!r:.40}")
        item = valid_text(text, f"texts[{i}]") if image is None else lazy_image(image, find, f"images[{i}]")
        if item is not None:
            yield item


def window(
    pieces: list, tokenizer: Tokenizer, rng: random.Random, *, length: int = 256, max_images: int = 5, p_next: float = 0.5
) -> Sample:
    """`length` tokens of a document at a random position, with at most `max_images` images (paper, appendix).

    All windows that contain an image are equally likely. `<BOS>` is the document's first token, so a window from its middle has
    none (`bos=False`), and a window that ends in the middle of a chunk has no EOC there.
    """
    ids = [tokenizer.encode(piece) if isinstance(piece, str) else [0] for piece in pieces]  # EOC or an image: one token
    # For each token, is it an image? The first token is <BOS>.
    is_image = np.array([False] + [not isinstance(p, str) and p is not EOC for p, i in zip(pieces, ids) for _ in i])
    images_before = np.concatenate([[0], is_image.cumsum()])
    starts = np.arange(max(len(is_image) - length, 0) + 1)
    n_images = images_before[np.minimum(starts + length, len(is_image))] - images_before[starts]
    start = int(rng.choice(starts[n_images > 0] if n_images.any() else starts))

    kept, position = [], 1
    for piece, piece_ids in zip(pieces, ids):
        n = len(piece_ids)
        a, b = max(start - position, 0), min(start + length - position, n)  # the window contains piece_ids[a:b]
        position += n
        if a >= b:
            continue
        if isinstance(piece, str):
            kept.append(piece if (a, b) == (0, n) else cut_text(piece_ids, a, b, tokenizer))
        elif piece is EOC:
            kept.append(EOC)
        elif sum(isinstance(p, np.ndarray) for p in kept) < max_images:
            kept.append(piece.pixels() if isinstance(piece, LazyImage) else piece)
    return Sample([piece for piece in kept if not isinstance(piece, str) or piece], rng.random() < p_next, bos=start == 0)


def cut_text(ids: list[int], a: int, b: int, tokenizer: Tokenizer) -> str:
    """The text of ids[a:b], without the tokens at the cut ends that text cannot express.

    A cut can be inside a word or inside the bytes of a character, and a part of a word may have other tokens than in the whole
    word. So as few tokens as possible are removed at the cut ends, until encoding the text gives exactly its tokens.
    """
    cut_front, cut_back = a > 0, b < len(ids)
    for removed in range(min(b - a, 16) + 1):
        for front in range(removed + 1) if cut_front and cut_back else [removed if cut_front else 0]:
            rest = ids[a + front : b - (removed - front)]
            text = tokenizer.decode(rest)
            if tokenizer.encode(text) == rest:
                return text
    return tokenizer.decode(ids[a:b])  # a tokenizer that does not reproduce its own text: an approximation
