"""Image preprocessing: every form of image gives the pixels that the vision encoder was trained on, or a clear error."""

import io
import warnings
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image

from minflamingo.data.images import ImagePreprocessor, as_frames, clip_preprocessor, read_image
from minflamingo.data.videos import read_video

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)
COLOURS = np.array([[RED, (0, 128, 0), BLUE], [(10, 20, 30), WHITE, (0, 0, 0)]], dtype=np.uint8)  # 2 high, 3 wide
GREY = np.array([[0, 51, 255]], dtype=np.uint8)
PLAIN = dict(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))  # values are x / 255


def pixels(media) -> list:
    """The only frame of `media`, as nested lists (H, W, 3)."""
    frames = as_frames(media)
    assert frames.dtype == np.uint8 and frames.shape[0] == 1
    return frames[0].tolist()


def grey(values) -> list:
    return [[[v] * 3 for v in row] for row in values]


def encoded(image: Image.Image, form: str = "PNG", **options) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


RGBA = np.array([[(255, 0, 0, 0), (255, 0, 0, 255), (255, 0, 0, 51)]], dtype=np.uint8)
ON_WHITE = [[list(WHITE), list(RED), [255, 204, 204]]]  # alpha 0 -> 255, alpha 255 -> the colour, alpha 51 of red -> 0.8 * 255
PALETTE = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
PALETTE.putpalette([*RED, *BLUE, 7, 8, 9])
CMYK = np.array([[(0, 0, 0, 0), (0, 255, 255, 0), (0, 0, 0, 255)]], dtype=np.uint8)
EXIF = Image.Exif()
EXIF[0x0112] = 6  # the stored image must be rotated by 90 degrees clockwise
BITS_16 = Image.fromarray(np.array([[0, 257, 32768, 65535]], dtype=np.uint16))  # PIL's own conversion clips it at 255
MODES = {
    "RGB": (Image.fromarray(COLOURS), COLOURS.tolist()),
    "rotated": (Image.open(encoded(Image.fromarray(COLOURS), exif=EXIF)), np.rot90(COLOURS, -1).tolist()),
    "RGBA": (Image.fromarray(RGBA), ON_WHITE),
    "an array with alpha": (RGBA, ON_WHITE),
    "LA": (Image.fromarray(np.array([[(0, 0), (0, 255), (0, 51)]], dtype=np.uint8)), grey([[255, 0, 204]])),
    "palette": (PALETTE, [[list(RED), list(BLUE), [7, 8, 9]]]),
    "palette with a transparent colour": (Image.open(encoded(PALETTE, transparency=1)), [[list(RED), list(WHITE), [7, 8, 9]]]),
    "grey": (Image.fromarray(GREY), grey(GREY)),
    "black and white": (Image.fromarray(np.array([[False, True]])), grey([[0, 255]])),
    "CMYK": (Image.frombytes("CMYK", (3, 1), CMYK.tobytes()), [[list(WHITE), list(RED), [0, 0, 0]]]),
    "16 bit": (BITS_16, grey([[0, 1, 128, 255]])),
    "16 bit in a file": (Image.open(encoded(BITS_16)), grey([[0, 1, 128, 255]])),
    "float": (Image.fromarray(np.array([[0.0, 0.2, 1.0]], dtype=np.float32)), grey(GREY)),
}


@pytest.mark.parametrize("media, expected", MODES.values(), ids=MODES)
def test_images_of_all_modes_become_rgb(media, expected):
    """Transparent pixels become white, 16 bit grey is scaled and not clipped, the EXIF orientation is applied."""
    assert pixels(media) == expected


ZERO = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + bytes.fromhex("12010300 01000000 06000000 9a820500 01000000 26000000") + bytes(12)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif, rotated", [(ZERO, True), (ZERO[:20], False), (b"Exif\0\0garbage", False)])
def test_a_photo_with_damaged_exif_data_is_read(form, exif, rotated):
    """ZERO: orientation 6 (a quarter turn clockwise), and an exposure time of 0/0. A cut entry: the photo as it is stored."""
    photo = read_image(encoded(Image.fromarray(COLOURS), form, exif=exif).getvalue(), "photo")
    assert as_frames(photo).shape == ((1, 3, 2, 3) if rotated else (1, 2, 3, 3))


def test_large_photos_are_reduced_and_strips_need_little_memory():
    size = (13_400, 13_500)  # 181 million pixels: above Pillow's own limit
    photo = read_image(encoded(Image.new("1", size, 1)).getvalue(), "photo")
    assert max(photo.size) == 9000 and ImagePreprocessor(2, **PLAIN)(photo).min() == 1
    assert ImagePreprocessor(4, resize="crop")(Image.new("L", (1, 60_000))).shape == (1, 3, 4, 4)


def test_a_cmyk_jpeg_is_not_inverted():
    jpeg = Image.open(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100))  # inverted in the file
    assert jpeg.mode == "CMYK" and np.abs(as_frames(jpeg)[0].astype(int) - RED).max() <= 2


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_an_animation_is_its_current_frame(form):
    frames = [Image.new("RGB", (4, 3), colour) for colour in (RED, BLUE)]
    image = Image.open(encoded(frames[0], form, save_all=True, append_images=frames[1:], duration=100, lossless=True))
    for t, colour in enumerate((RED, BLUE)):
        image.seek(t)
        assert pixels(image) == [[list(colour)] * 4] * 3


@pytest.mark.parametrize("wrap", [np.asarray, torch.as_tensor], ids=["array", "tensor"])
def test_arrays_and_tensors_are_images(wrap):
    """uint8 0...255 or float 0...1, (H, W), (H, W, 1), (H, W, 3), (H, W, 4), or with T in front."""
    assert pixels(wrap(COLOURS)) == pixels(wrap(COLOURS[None])) == COLOURS.tolist()
    assert pixels(wrap(GREY)) == pixels(wrap(GREY[..., None])) == grey(GREY)
    for precision in (np.float16, np.float32, np.float64):
        assert pixels(wrap((COLOURS / 255).astype(precision))) == COLOURS.tolist()
    assert pixels(wrap(np.array([[(1.0, 0.0, 0.0, 0.2)]]))) == [[[255, 204, 204]]]
    assert pixels(torch.tensor([[0.0, 0.5, 1.0]], dtype=torch.bfloat16)) == grey([[0, 128, 255]])


def test_a_list_of_frames_is_a_video_and_the_result_can_be_changed():
    frames = (Image.fromarray(COLOURS), COLOURS[::-1].copy(), torch.as_tensor(COLOURS / 255))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns about read-only arrays
        video = as_frames(frames)
        assert video.tolist() == [COLOURS.tolist(), COLOURS[::-1].tolist(), COLOURS.tolist()]
        as_frames(frames[0])[:] = 0
        assert pixels(frames[0]) == COLOURS.tolist()
        ImagePreprocessor(2)(Image.fromarray(COLOURS[:, :2]))


def test_read_image_and_read_video_read_files(tmp_path):
    """One image reader for prompts, datasets and benchmarks. A folder of frames has one frame per second, sorted by number."""
    for t in range(12):
        Image.new("RGB", (8, 8), (20 * t, 0, 0)).save(tmp_path / f"{t}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    assert pixels(read_image(tmp_path / "3.png")) == pixels(read_image((tmp_path / "3.png").read_bytes()))
    assert [i.getpixel((0, 0))[0] // 20 for i in read_video(tmp_path)] == list(range(12))
    assert [i.getpixel((0, 0))[0] // 20 for i in read_video(tmp_path, start=2, end=11, max_frames=3)] == [3, 6, 9]
    assert [i.getpixel((0, 0))[0] // 20 for i in read_video(tmp_path, start=99)] == [11]


def test_every_pixel_is_normalised_and_keeps_its_place():
    """(T, H, W, C) -> (T, C, H, W) and (x / 255 - mean) / std per channel, against an explicit loop and by hand."""
    video = np.random.default_rng(0).integers(0, 256, (2, 3, 3, 3), dtype=np.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    result = ImagePreprocessor(3, mean, std)(video)
    assert result.dtype == torch.float32
    for t, y, x, c in np.ndindex(*video.shape):
        assert result[t, c, y, x].item() == pytest.approx((video[t, y, x, c] / 255 - mean[c]) / std[c], abs=1e-5)
    assert ImagePreprocessor(1)(np.array([[(255, 0, 51)]], np.uint8)).flatten().tolist() == pytest.approx([1.0, -1.0, -0.6])
    for clip in (clip_preprocessor(1), clip_preprocessor(1, "squash")):  # (1 - 0.48145466) / 0.26862954 = 1.9303...
        values = clip(np.array([[RED]], dtype=np.uint8)).flatten().tolist()
        assert values == pytest.approx([1.9303361, -1.7520971, -1.4802198], abs=1e-6)


def test_squash_resizes_each_frame_with_pillows_bicubic_filter():
    video = np.random.default_rng(1).integers(0, 256, (2, 6, 9, 3), dtype=np.uint8)
    for frame, ours in zip(video, ImagePreprocessor(4)(list(video)), strict=True):
        resized = np.asarray(Image.fromarray(frame).resize((4, 4), Image.Resampling.BICUBIC))
        assert torch.allclose(ours, torch.tensor(resized).permute(2, 0, 1) / 127.5 - 1, atol=1e-6)


def test_a_preprocessor_rejects_invalid_settings():
    for wrong in ({"resize": "fit"}, {"size": 0}):
        with pytest.raises(ValueError, match="resize must be 'squash' or 'crop', and size at least 1"):
            ImagePreprocessor(**{"size": 4, **wrong})


@pytest.mark.parametrize("size, resized, margin", [  # (width, height) -> resized at size 4 -> left and top margin
    ((4, 5), (4, 5), (0, 0)), ((4, 6), (4, 6), (0, 1)), ((4, 7), (4, 7), (0, 2)), ((9, 4), (9, 4), (2, 0)),
    ((10, 4), (10, 4), (3, 0)), ((4, 11), (4, 11), (0, 4)), ((3, 5), (4, 6), (0, 1)), ((5, 3), (6, 4), (1, 0)),
    ((9, 9), (4, 4), (0, 0)), ((7, 40), (4, 22), (0, 9)),
])  # fmt: skip
def test_crop_rounds_the_longer_side_down_and_half_of_the_margin_to_even(size, resized, margin):
    """By hand: 4 * 5/3 = 6.7 -> 6; 4 * 40/7 = 22.9 -> 22; half of 3 is 1.5 -> 2, half of 5 is 2.5 -> 2."""
    image, (left, top) = Image.fromarray(noise(*size[::-1])), margin
    expected = np.asarray(image.resize(resized, Image.Resampling.BICUBIC))[top : top + 4, left : left + 4]
    result = ImagePreprocessor(4, **PLAIN, resize="crop")(image)
    assert (result[0].permute(1, 2, 0) * 255).round().int().tolist() == expected.tolist()


def theirs(name: str, image: object) -> torch.Tensor:
    """The pixels of the image processor `name` of transformers."""
    transformers = pytest.importorskip("transformers")
    processor = getattr(transformers, name + "Pil", None) or getattr(transformers, name)
    out = processor()(image, return_tensors="pt")
    return torch.as_tensor(out if isinstance(out, torch.Tensor) else out["pixel_values"])


SIZES = [(333, 500), (500, 333), (224, 224), (17, 900), (900, 17), (225, 224), (224, 226), (640, 480), (31, 7), (2, 2)]


@pytest.mark.parametrize("size, mode", [*product(SIZES, ["RGB"]), *product([(30, 40)], ["L", "P", "RGBA", "LA", "CMYK"])])
def test_preprocessing_of_clip_and_idefics_equals_transformers(size, mode):
    """Size: width and height."""
    image = Image.fromarray(noise(*size[::-1])).convert(mode)
    if "A" in mode:
        image.putalpha(Image.fromarray(noise(*size[::-1], seed=1)[..., 0]))
    assert torch.allclose(clip_preprocessor(resize="squash")(image), theirs("IdeficsImageProcessor", image), rtol=0, atol=1e-6)
    if "A" not in mode:
        assert torch.allclose(clip_preprocessor()(image), theirs("CLIPImageProcessor", image), rtol=0, atol=1e-6)


def test_the_crop_margin_follows_torchvision_where_transformers_differs():
    """Margin 3: round(1.5) = 2 in torchvision, 3 // 2 = 1 in transformers."""
    tall = noise(227, 224)
    assert torch.allclose(clip_preprocessor()(tall), theirs("CLIPImageProcessor", Image.fromarray(tall[1:])), rtol=0, atol=1e-6)
