"""Prompts, samples and batches made by hand."""

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from minflamingo import EOC, Batch, Flamingo, Sample, collate
from minflamingo.data.images import ImagePreprocessor
from minflamingo.data.sample import NoLoss, TokenizedSample
from minflamingo.evaluation.fewshot import Query, generate_answers, predict
from minflamingo.generate import beam_search, generate, score_answers
from minflamingo.pipeline import Pipeline
from minflamingo.tokenizer import ToyTokenizer
from tests.conftest import image, tiny_config

from . import Case

TOKENIZER = ToyTokenizer([" a", " cat"])
V, T_MAX = TOKENIZER.vocab_size, 2
NAN, INF = float("nan"), float("inf")


def model() -> Flamingo:
    torch.manual_seed(0)
    return Flamingo(tiny_config(lm=dict(vocab_size=V))).eval()


def pipeline() -> Pipeline:
    return Pipeline(model(), TOKENIZER, ImagePreprocessor(8))


def good_batch() -> Batch:
    """Two rows: an image, a video of two frames; an image, and padding."""
    rows = [[image(1), " a cat", image(2, frames=2), "b"], [image(3), " a"]]
    return collate([Sample(row) for row in rows], TOKENIZER, ImagePreprocessor(8))


def changed(x: torch.Tensor, *index: int, to: float) -> torch.Tensor:
    x = x.clone()
    x[index] = to
    return x


def bad_batches() -> Iterator[tuple[str, Callable[[Batch], Batch], str]]:
    """Name, change of the good batch, pattern of the error."""
    names = ("ids", "labels", "attention_mask", "media", "frames", "attend_next")
    for name in names:
        values = {"a list": [[1]], "a number": 3, "a text": "a", "an array": np.zeros((2, 7))}
        for kind, value in values.items():
            yield f"{name} is {kind}", lambda b, n=name, v=value: replace(b, **{n: v}), f"{name}: expected a dense tensor"
        yield f"{name} is complex", lambda b, n=name: replace(b, **{n: getattr(b, n) + 1j}), f"{name}: expected .*complex"
        yield f"{name} is sparse", lambda b, n=name: replace(b, **{n: getattr(b, n).to_sparse()}), f"{name}: expected a dense"
        yield f"{name} on meta", lambda b, n=name: replace(b, **{n: getattr(b, n).to("meta")}), "all must be on one device"
        yield f"{name} has an axis more", lambda b, n=name: replace(b, **{n: getattr(b, n)[None]}), f"{name}: expected shape"
        yield f"{name} has no rows", lambda b, n=name: replace(b, **{n: getattr(b, n)[:0]}), "expected shape|may be empty"
        if name != "ids":  # the other fields are compared with ids
            yield f"{name} has fewer rows", lambda b, n=name: replace(b, **{n: getattr(b, n)[:1]}), f"{name}: .*B=2"
            yield f"{name} has more rows", lambda b, n=name: replace(b, **{n: getattr(b, n).repeat_interleave(2, 0)}), "B=2"
    for name in ("ids", "labels", "attention_mask"):
        yield f"{name} is None", lambda b, n=name: replace(b, **{n: None}), f"{name}: expected .*NoneType"
        yield f"{name} is shorter", lambda b, n=name: replace(b, **{n: getattr(b, n)[:, :-1]}), "L=.*got"
        yield f"{name} is float", lambda b, n=name: replace(b, **{n: getattr(b, n).float()}), f"{name}: expected .*float32"
        yield f"{name} is int32", lambda b, n=name: replace(b, **{n: getattr(b, n).int()}), f"{name}: expected .*int32"
    for name, kind in (("frames", torch.float), ("frames", torch.int), ("attend_next", torch.long), ("media", torch.uint8)):
        yield f"{name} is {kind}", lambda b, n=name, k=kind: replace(b, **{n: getattr(b, n).to(k)}), f"{name}: .*{kind}"
    empty = torch.zeros(2, 0, dtype=torch.long)
    yield "no tokens", lambda b: Batch(empty, empty, empty.bool()), "no axis may be empty"
    nothing = torch.zeros(0, 3, dtype=torch.long)
    yield "no samples", lambda b: Batch(nothing, nothing, nothing.bool()), "no axis may be empty"
    for value in (-1, -(2**40), V + 1, V + 100, 2**40):
        for row in (0, 1):
            yield f"id {value} in row {row}", lambda b, v=value, r=row: replace(b, ids=changed(b.ids, r, 2, to=v)), (
                rf"sample {row}: ids\[2\] is {value}; it must be 0 \.\.\. {V}")
    yield "an id at padding", lambda b: replace(b, ids=changed(b.ids, 1, -1, to=-7)), r"sample 1: ids\[\d\] is -7"
    for value in (-1, -99, V, V + 5, 5, 2**40):
        yield f"label {value}", lambda b, v=value: replace(b, labels=changed(b.labels, 0, 2, to=v)), (
            rf"sample 0: labels\[2\] is {value}; it must be the id of the same token, or -100")
    for value in (-1, -5, T_MAX + 1, 100):
        yield f"{value} frames", lambda b, v=value: replace(b, frames=changed(b.frames, 0, 0, to=v)), (
            rf"sample 0: (frames\[0\] is {value}|2 <image> tokens)")
    yield "a hole in frames", lambda b: replace(b, frames=torch.tensor([[1, 2], [0, 1]])), r"frames\[0\] is 0; .* only after"
    yield "no image in a row", lambda b: replace(b, frames=changed(b.frames, 1, 0, to=0)), "sample 1: 1 <image> tokens but 0"
    yield "an image too many", lambda b: replace(b, frames=changed(b.frames, 1, 1, to=1)), "sample 1: 1 <image> tokens but 2"
    yield "frames without media", lambda b: replace(b, media=None), "frames need media"
    yield "no media", lambda b: replace(b, media=None, frames=None), "sample 0: 2 <image> tokens but 0 images"
    yield "media without frames", lambda b: replace(b, frames=None), "sample 1: 1 <image> tokens but 2 images"
    for value in (NAN, INF, -INF):
        yield f"{value} in pixels", lambda b, v=value: replace(b, media=changed(b.media, 0, 1, 1, 2, 3, 4, to=v)), (
            r"sample 0: .* media\[1\] is \S+; it must be finite")
        features = torch.zeros(2, 2, 2, 5, 16)
        yield f"{value} in features", lambda b, f=features, v=value: replace(b, media=changed(f, 1, 0, 0, 4, 15, to=v)), (
            r"sample 1: .* media\[0\] is \S+; it must be finite")
    shapes = {"another size": (2, 2, 2, 3, 8, 12), "larger": (2, 2, 2, 3, 16, 16), "grey": (2, 2, 2, 1, 8, 8),
              "channels last": (2, 2, 2, 8, 8, 3), "wide features": (2, 2, 2, 5, 17), "four axes": (2, 2, 5, 16),
              "two axes": (2, 2), "seven axes": (2, 2, 2, 1, 3, 8, 8), "three media": (2, 3, 2, 3, 8, 8)}  # fmt: skip
    for name, shape in shapes.items():
        yield f"media: {name}", lambda b, s=shape: replace(b, media=torch.zeros(s)), "expected|images|image"
    long = torch.ones(2, 65, dtype=torch.long)
    yield "longer than the context", lambda b: Batch(long, long, long.bool()), "65 tokens, but the LM's context is 64"


def use(name: str, batch: Batch) -> object:
    """What a batch is for."""
    flamingo = model()
    if name == "forward":
        return tuple(flamingo(batch)[0].shape)
    if name == "loss":
        return round(flamingo.loss(batch).item(), 4)
    return {
        "generate": lambda: len(generate(flamingo, batch, 2, max_new_tokens=2)),
        "beam_search": lambda: len(beam_search(flamingo, batch, 2, max_new_tokens=2)),
        "score_answers": lambda: tuple(score_answers(flamingo, batch, [[[5]], [[6]]]).shape),
    }[name]()


PNG = io.BytesIO()
Image.fromarray(image(1)[0]).save(PNG, "PNG")


def lazy(content: bytes, close: bool = False) -> Image.Image:
    picture = Image.open(io.BytesIO(content))
    if close:
        picture.close()
    return picture


CAT = image(1)[0]
DEEP: list = []
for _ in range(5000):
    DEEP = [DEEP]
MEDIUM = "prompt, piece 1"
PROMPTS = {
    "a string": ("Output:", "the prompt must be a list"),
    "None": (None, "the prompt must be a list"),
    "a number": (7, "the prompt must be a list"),
    "a dict": ({"a": 1}, "the prompt must be a list"),
    "a generator": ((text for text in "ab"), "the prompt must be a list"),
    "an array": (CAT, "the prompt must be a list"),
    "bytes": (b"ab", "prompt, piece 0: .*got int"),
    "empty": ([], "the prompt is empty"),
    "a frame that is None": (["a", [CAT, None]], f"{MEDIUM}, frame 1: expected an image"),
    "frames of two sizes": (["a", [CAT, CAT[:4]]], f"{MEDIUM}: a video needs one or more frames of equal size"),
    "a video without frames": (["a", []], f"{MEDIUM}: a video needs one or more frames"),
    "nested lists": (["a", [[CAT, CAT], CAT]], f"{MEDIUM}: a video is a list of images"),
    "deeply nested lists": (["a", DEEP], f"{MEDIUM}: a video is a list of images"),
    "a damaged image": (["a", lazy(PNG.getvalue()[:-30])], f"{MEDIUM}: the image is damaged"),
    "a closed image": (["a", lazy(PNG.getvalue(), close=True)], f"{MEDIUM}: "),
    "a token too many": ([CAT, "x" * 63], "65 tokens, but the LM's context is 64"),
    "a long text": (["a" * 1_000_000], "1000001 tokens, but the LM's context is 64"),
    "100 images": ([CAT] * 100, "101 tokens, but the LM's context is 64"),
}
for wrong in (None, 7, 1.5, True, {"image": CAT}, {1}, b"a", object(), int, Path("cat.png"), print, NoLoss("a"), iter("a")):
    PROMPTS[f"piece {wrong!r:.20}"] = (["a", wrong], f"{MEDIUM}: expected an image .*, got {type(wrong).__name__}")
ARRAYS = {
    "object": CAT.astype(object), "int64": CAT.astype(int), "bool": CAT > 9, "complex": CAT + 1j, "text": np.array([["a"]]),
    "NaN": CAT / np.float64(NAN), "infinite": CAT / 0.5 * INF, "negative": CAT / -255.0, "0 to 255": CAT.astype(float),
    "two channels": CAT[..., :2], "five channels": np.zeros((8, 8, 5), np.uint8), "channels first": CAT.transpose(2, 0, 1),
    "one axis": CAT[0, :, 0], "five axes": CAT[None, None], "empty": CAT[:0], "a scalar": np.array(1.0),
}  # fmt: skip
for name, array in ARRAYS.items():
    PROMPTS[f"array: {name}"] = (["a", array], f"{MEDIUM}: ")
    if name not in ("object", "text"):
        PROMPTS[f"tensor: {name}"] = (["a", torch.from_numpy(array.copy())], f"{MEDIUM}: ")
GOOD_PROMPTS = {
    "text": ["a"], "an image": [CAT], "<EOC> first": [EOC, "a"], "<EOC> last": ["a", EOC], "<EOC> twice": [CAT, EOC, EOC],
    "only <EOC>": [EOC], "an empty text": [""], "special tokens as text": ["<image><EOC><BOS><PAD>"], "a tuple": ("a", CAT),
    "half a character": ["\ud83d"], "a NUL": ["a\0b"], "a numpy string": [np.str_("a")], "a PIL image": [lazy(PNG.getvalue())],
    "50 images": [CAT] * 50, "floats": [CAT / 255], "grey": [CAT[..., 0]], "a video": [[CAT, CAT]], "RGBA": [CAT[..., [0] * 4]],
}  # fmt: skip


def samples() -> Iterator[tuple[str, Callable[[], object], str]]:
    """Name, what makes a batch, pattern."""
    def batch_of(*rows: object, **options) -> Callable[[], Batch]:
        return partial(collate, rows, TOKENIZER, ImagePreprocessor(8), **options)

    pieces = {"None": None, "a number": 5, "a dict": {}, "bytes": b"a", "a PIL image": lazy(PNG.getvalue()),
              "NoLoss(None)": NoLoss(None), "NoLoss(image)": NoLoss(image(1)), "NoLoss(NoLoss)": NoLoss(NoLoss("a")),
              "a list of texts": ["a"], "a list of floats": [1.0]}  # fmt: skip
    for name, piece in pieces.items():
        yield name, batch_of(Sample(["a"]), Sample(["a", piece])), "sample 1, piece 1: expected text"
    for token in (-1, V + 1, 2**70, True):
        yield f"token {token}", batch_of(Sample(["a", [5, token]])), f"sample 0, piece 1: {token} is not a token id"
    yield "<image> as a token", batch_of(Sample([[TOKENIZER.image_id]])), "1 <image> tokens but 0 images"
    media = {"float pixels": image(1) / 255, "pixels of one frame": image(1)[0], "object": image(1).astype(object),
             "integer features": torch.zeros(1, 5, 16).long()}  # fmt: skip
    for name, medium in media.items():
        yield name, batch_of(Sample(["b", "c", medium])), "sample 0, piece 2: media must be uint8 pixels .* got"
    for value in (NAN, INF):
        features = torch.full((1, 5, 16), value)
        bad = Sample([torch.zeros(1, 5, 16), features])
        yield f"{value} features", batch_of(Sample(["a"]), bad), r"sample 1: .* media\[1\] is \S+; it must be finite"
    two = (Sample([image(1)]), Sample([torch.zeros(1, 5, 16)]))
    yield "pixels and features", batch_of(*two), r"sample 1, image 0: shape \(1, 5, 16\)"
    sizes = Sample([torch.zeros(1, 5, 16), torch.zeros(1, 5, 8)])
    yield "two sizes", batch_of(sizes), r"sample 0, image 1: shape \(1, 5, 8\)"
    wide = (Sample([image(1)]), Sample([image(2), np.zeros((1, 8, 12, 3), np.uint8)]))
    pixels = partial(collate, wide, TOKENIZER, lambda x: torch.tensor(x).permute(0, 3, 1, 2) / 255)
    yield "two sizes of pixels", pixels, r"sample 1, image 1: shape \(1, 3, 8, 12\)"
    yield "no frames", batch_of(Sample([image(1)[:0]])), "sample 0, piece 0: media must be .* got uint8 of shape"
    for sample in ("a", None, [CAT], Sample("abc"), Sample(None), Sample({"a": 1}), Sample(image(1))):
        yield f"sample {sample!r:.30}", batch_of(sample), "sample 0: expected a Sample: a list of pieces"
    for flag in (1, "yes", None):
        yield f"attend_next {flag!r}", batch_of(Sample(["a"], attend_next=flag)), "attend_next"
    yield "no samples", batch_of(), "0 samples"
    yield "pad", batch_of(Sample(["a"]), pad="middle"), "pad 'middle'"
    yield "no preprocessing", lambda: collate([Sample([image(1)])], TOKENIZER), "sample 0, piece 0: pixels need image preproc"
    yield "an <image> without an image", batch_of(TokenizedSample([V], [-100])), "1 <image> tokens but 0 images"
    yield "labels of another length", batch_of(TokenizedSample([5, 6], [5])), "sample 0: 2 ids, but 1 labels"
    yield "nothing", batch_of(Sample([], bos=False)), "no axis may be empty"


def answers() -> Iterator[tuple[str, object, str]]:
    """Candidates of `score_answers` for two prompts."""
    yield "no prompts", [], "2 prompts, candidates for 0"
    yield "one prompt", [[[5]]], "2 prompts, candidates for 1"
    yield "no candidates", [[], []], "at least one"
    yield "unequal", [[[5]], [[5], [6]]], "the same number of candidates"
    yield "an empty candidate", [[[5]], [[]]], "no candidate may be empty"
    for token in (-1, V, TOKENIZER.image_id, 2**70, True, 1.5, "a", None):
        yield f"token {token!r}", [[[5]], [[5, token]]], f"candidate 0 of prompt 1: {token!r} is not an id in 0 ... {V - 1}"


def queries() -> Iterator[tuple[str, object, str, str | None]]:
    """Changes of a few-shot query, shots, and pattern (None: it works)."""
    medium = torch.zeros(1, 5, 16)
    query = Query([(medium, "Output: a"), (medium, "Output: cat")], medium, "Output:", " a", choices=[" a", " cat"])
    yield "a good query", query, "2", None
    yield "too few shots", query, "3", "3 shots need 3 support examples"
    for shots in ("", "two", "-1", "1.5"):
        yield f"shots {shots!r}", query, shots, "choose a number"
    for wrong in (None, 5, [1.5]):
        yield f"medium {wrong}", replace(query, medium=wrong), "1", "sample 0, piece 3: expected text, EOC or media"
        yield f"support {wrong}", replace(query, support=[(wrong, "a")]), "1", "sample 0, piece 0: expected text"
    yield "NaN support", replace(query, support=[(medium / 0, "a")]), "1", r"sample 0: .* media\[0\] is \S+; it must be finite"
    yield "a prompt that is a number", replace(query, prompt=5), "0", "sample 0, piece 1: expected text"
    yield "an empty choice", replace(query, choices=[" a", ""]), "0", "no candidate may be empty"
    yield "no choices", replace(query, choices=[]), "0", "at least one"


def cases() -> Iterator[Case]:
    uses = {"forward": (2, 10, V), "loss": None, "generate": 2, "beam_search": 2, "score_answers": (2, 1)}
    good = {**uses, "forward": (*good_batch().ids.shape, V), "loss": use("loss", good_batch())}
    for i, (name, change, pattern) in enumerate(bad_batches()):
        # Each change with one of the uses: all have the same check. Only a loss needs the label of a real token.
        kind = "loss" if "label" in name else list(uses)[i % len(uses)]
        yield Case(f"batch, {kind}: {name}", lambda _, c=change, k=kind: use(k, c(good_batch())), refused=pattern)
    for kind, value in good.items():
        yield Case(f"a good batch, {kind}", lambda _, k=kind: use(k, good_batch()), gives=value)
        yield Case(f"no batch, {kind}", lambda _, k=kind: use(k, "a"), refused="Batch|attention_mask")
    for name, (prompt, pattern) in PROMPTS.items():
        yield Case(f"prompt: {name}", lambda _, p=prompt: pipeline().complete(p, max_new_tokens=2), refused=pattern)
    for name, prompt in GOOD_PROMPTS.items():
        run = lambda _, p=prompt: type(pipeline().complete(p, max_new_tokens=2))  # noqa: E731
        yield Case(f"prompt: {name}", run, gives=str)
    for name, make, pattern in samples():
        yield Case(f"sample: {name}", lambda _, m=make: m(), refused=pattern)
    for name, value, pattern in answers():
        yield Case(f"answers: {name}", lambda _, v=value: score_answers(model(), good_batch(), v), refused=pattern)
    for name, query, shots, pattern in queries():
        run = lambda _, q=query, s=shots: len(predict(model(), TOKENIZER, [q], s))  # noqa: E731
        yield Case(f"query: {name}", run, refused=pattern, gives=1)
    padded = replace(good_batch(), labels=changed(good_batch().labels, 1, -1, to=0))
    yield Case("batch, loss: a label at padding is not counted", lambda _: use("loss", padded), gives=good["loss"])
    yield Case("open-ended", lambda _: len(generate_answers(model(), TOKENIZER, [Query([], torch.zeros(1, 5, 16), "", "")], "0",
                                                             max_new_tokens=2)), gives=1)  # fmt: skip
    ids, same = f"ids must be 0 ... {V - 1}", "labels equal or -100"
    losses = {"another length": ([[5, 6]], [[5]], "L=2"), "an id too large": ([[5, V]], [[5, 5]], ids),
              "a negative id": ([[-1]], [[5]], ids), "a label too large": ([[5]], [[V]], same),
              "a negative label": ([[5]], [[-7]], same), "floats": ([[5.0]], [[5]], "ids: expected"),
              "float labels": ([[5]], [[5.0]], "labels: expected"), "one axis": ([5], [5], "expected shape")}  # fmt: skip
    for name, (ids, labels, pattern) in losses.items():
        run = lambda _, i=ids, t=labels: model().lm.loss(torch.tensor(i), torch.tensor(t)).item()  # noqa: E731
        yield Case(f"lm.loss: {name}", run, refused=pattern)
    yield Case("lm.loss: lists", lambda _: model().lm.loss([[5]], [[5]]), refused="ids: expected .* torch.int64, got list")
