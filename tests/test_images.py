"""Images: whatever a person has, it becomes the pixels that the eye was trained on, or an error that says what and where."""

from __future__ import annotations

import io
import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from minflamingo.data.images import LONGEST, ImagePreparation, as_frames, clip_preparation, idefics_preparation

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)
COLOURS = np.array([[RED, (0, 128, 0), BLUE], [(10, 20, 30), WHITE, (0, 0, 0)]], dtype=np.uint8)  # 2 high, 3 wide
GREY = np.array([[0, 51, 255]], dtype=np.uint8)


def pixels(medium) -> list:
    """The only frame of `medium`, as nested lists (H, W, 3)."""
    frames = as_frames(medium)
    assert frames.dtype == np.uint8 and frames.shape[0] == 1
    return frames[0].tolist()


def grey(values) -> list:
    return [[[v] * 3 for v in row] for row in values]


def png(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


# ---------------------------------------------------------------------------------------------------------- PIL images


def test_a_colour_image_keeps_every_pixel():
    """[H, W, C] of the paper's samples (§2.4): rows first, RGB last."""
    assert pixels(Image.fromarray(COLOURS)) == COLOURS.tolist()


def test_see_through_pixels_become_white():
    """Over white: alpha 0 → 255, alpha 255 → the colour, alpha 51 of red → 255, 0.8 · 255 = 204."""
    rgba = np.array([[(255, 0, 0, 0), (255, 0, 0, 255), (255, 0, 0, 51)]], dtype=np.uint8)
    expected = [[list(WHITE), list(RED), [255, 204, 204]]]
    assert pixels(Image.fromarray(rgba)) == expected
    assert pixels(rgba) == expected  # an array says the same as a PIL image
    la = np.array([[(0, 0), (0, 255), (0, 51)]], dtype=np.uint8)
    assert pixels(Image.fromarray(la)) == grey([[255, 0, 204]])


def test_a_palette_is_looked_up_and_its_transparent_colour_becomes_white():
    """A GIF's index 1 is a colour, not the grey value 1; the index marked transparent is white."""
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8)).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette([*RED, *BLUE, 7, 8, 9])
    assert pixels(image) == [[list(RED), list(BLUE), [7, 8, 9]]]
    image.info["transparency"] = 1
    assert pixels(image) == [[list(RED), list(WHITE), [7, 8, 9]]]
    read_again = Image.open(io.BytesIO(png(image, transparency=1)))
    assert read_again.mode == "P" and pixels(read_again) == [[list(RED), list(WHITE), [7, 8, 9]]]


def test_grey_and_black_and_white_images_have_three_equal_channels():
    """Modes L and 1."""
    assert pixels(Image.fromarray(GREY)) == grey(GREY)
    assert pixels(Image.fromarray(np.array([[False, True]]))) == grey([[0, 255]])


def test_printers_colours_are_converted():
    """Mode CMYK: no ink is white, full yellow and magenta are red, key alone is black."""
    cmyk = np.array([[(0, 0, 0, 0), (0, 255, 255, 0), (0, 0, 0, 255)]], dtype=np.uint8)
    image = Image.frombytes("CMYK", (3, 1), cmyk.tobytes())
    assert pixels(image) == [[list(WHITE), list(RED), [0, 0, 0]]]


def test_a_palette_whose_colours_are_see_through_is_over_white_too():
    """A palette of RGBA: blue with alpha 51 is 204, 204, 255."""
    image = Image.frombytes("P", (2, 1), bytes([0, 1]))
    image.putpalette([*RED, 255, *BLUE, 51], "RGBA")
    assert pixels(image) == [[list(RED), [204, 204, 255]]]


def test_a_printers_jpeg_is_read_like_any_other():
    """CMYK on disk; its values are stored upside down there."""
    file = io.BytesIO()
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(file, "JPEG", quality=100)
    image = Image.open(file)
    assert image.mode == "CMYK" and np.abs(as_frames(image)[0].astype(int) - RED).max() <= 2


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    """Mode I;16: 65535 is white and 32768 half of it. PIL's own conversion makes everything above 255 white."""
    deep = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    image = Image.fromarray(deep)
    assert image.mode == "I;16" and pixels(image) == grey([[0, 1, 128, 255]])
    assert pixels(Image.open(io.BytesIO(png(image)))) == grey([[0, 1, 128, 255]])
    assert pixels(Image.fromarray(np.array([[0.0, 0.2, 1.0]], dtype=np.float32))) == grey(GREY)  # mode F


def test_a_camera_held_upright_is_believed():
    """EXIF orientation 6: the stored picture must be turned a quarter clockwise. Its left column becomes the top row."""
    image = Image.fromarray(COLOURS)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.open(io.BytesIO(png(image, exif=exif)))
    assert turned.size == (3, 2) and pixels(turned) == np.rot90(COLOURS, -1).tolist()


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_an_animation_given_as_one_image_is_the_frame_it_stands_at(form):
    """A sample's image has T = 1 (§2.4). A file just opened stands at its first frame."""
    frames = [Image.new("RGB", (4, 3), colour) for colour in (RED, BLUE)]
    file = io.BytesIO()
    frames[0].save(file, form, save_all=True, append_images=frames[1:], duration=100, lossless=True)
    image = Image.open(file)
    assert image.n_frames == 2
    image.seek(0)
    assert pixels(image) == [[list(RED)] * 4] * 3
    image.seek(1)
    assert pixels(image) == [[list(BLUE)] * 4] * 3
    assert pixels(Image.open(file)) == [[list(RED)] * 4] * 3


# ------------------------------------------------------------------------------------------------- arrays and tensors


@pytest.mark.parametrize("wrap", [np.asarray, torch.as_tensor], ids=["array", "tensor"])
def test_arrays_and_tensors_are_read_like_images(wrap):
    """uint8 0…255 or float 0…1, (H, W), (H, W, 1), (H, W, 3), (H, W, 4) or with frames in front."""
    assert pixels(wrap(COLOURS)) == COLOURS.tolist()
    assert pixels(wrap(COLOURS[None])) == COLOURS.tolist()
    assert pixels(wrap(GREY)) == pixels(wrap(GREY[..., None])) == grey(GREY)
    for precision in (np.float16, np.float32, np.float64):
        assert pixels(wrap((COLOURS / 255).astype(precision))) == COLOURS.tolist()
    half_red = np.array([[(1.0, 0.0, 0.0, 0.2)]])
    assert pixels(wrap(half_red)) == [[[255, 204, 204]]]


def test_a_bfloat16_tensor_is_a_float_tensor():
    """numpy has no such type; 0, 0.5 and 1 are exact in it."""
    assert pixels(torch.tensor([[0.0, 0.5, 1.0]], dtype=torch.bfloat16)) == grey([[0, 128, 255]])


def test_a_list_of_frames_is_a_video_in_that_order():
    """Videos have T > 1 (§2.4); their frames may be of different sorts."""
    frames = [Image.fromarray(COLOURS), COLOURS[::-1].copy(), torch.as_tensor(COLOURS / 255)]
    for video in (frames, tuple(frames)):
        assert as_frames(video).tolist() == [COLOURS.tolist(), COLOURS[::-1].tolist(), COLOURS.tolist()]


def test_what_comes_out_may_be_written_to_and_is_nobody_elses():
    """A PIL image's own memory is read-only, and torch warns of that."""
    image = Image.fromarray(COLOURS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_frames(image)[:] = 0
        ImagePreparation(2)(Image.fromarray(COLOURS[:, :2]))
    assert pixels(image) == COLOURS.tolist()


# -------------------------------------------------------------------------------------------------------------- errors

IMAGE = np.zeros((4, 5, 3), dtype=np.uint8)
WRONG = {
    "a string": ("cat.png", TypeError, "got str"),
    "nothing": (None, TypeError, "got NoneType"),
    "a dict": ({"image": IMAGE}, TypeError, "got dict"),
    "no frames": ([], ValueError, "a video of no frames"),
    "numbers in a list": ([[0, 1], [2, 3]], TypeError, "frame 0, frame 0: .* got int"),
    "an empty array": (IMAGE[:0], ValueError, r"not empty; got \(1, 0, 5, 3\)"),
    "an empty image": (Image.new("RGB", (0, 5)), ValueError, "an empty image of 0×5 pixels"),
    "an empty float image": (Image.new("F", (3, 0)), ValueError, "an empty image of 3×0 pixels"),
    "NaN": (np.array([[0.5, np.nan]]), ValueError, "not finite"),
    "infinite": (torch.tensor([[0.5, torch.inf]]), ValueError, "not finite"),
    "NaN in a float image": (Image.fromarray(np.array([[np.nan, 0.5]], dtype=np.float32)), ValueError, "not finite"),
    "too bright": (np.array([[0.0, 1.5]]), ValueError, "must lie in 0…1, these lie in 0…1.5"),
    "negative": (np.array([[-0.25, 1.0]]), ValueError, "must lie in 0…1, these lie in -0.25…1"),
    "0…255 as floats": (IMAGE + 200.0, ValueError, "must lie in 0…1, these lie in 200…200"),
    "one axis": (np.zeros(7, dtype=np.uint8), ValueError, r"expected shape \(H, W\).* got \(7,\)"),
    "five axes": (IMAGE[None, None], ValueError, r"expected shape .* got \(1, 1, 4, 5, 3\)"),
    "channels first": (np.zeros((3, 8, 9), dtype=np.uint8), ValueError, r"expected shape .* got \(1, 3, 8, 9\)"),
    "two channels": (IMAGE[..., :2], ValueError, r"expected shape .* got \(1, 4, 5, 2\)"),
    "int64": (IMAGE.astype(np.int64), ValueError, "must be uint8 .* or float .*, got int64"),
    "bool": (torch.zeros(4, 5, dtype=torch.bool), ValueError, "must be uint8 .* or float .*, got bool"),
    "frames of two sizes": ([IMAGE, IMAGE[:3]], ValueError, r"frames of different sizes \[\(3, 5\), \(4, 5\)\]"),
    "a bad frame": ([IMAGE, IMAGE, "x"], TypeError, "frame 2: expected an image .* got str"),
    "a video as a frame": ([IMAGE, np.stack([IMAGE, IMAGE])], ValueError, "frame 1: .* a video of 2 frames"),
}


@pytest.mark.parametrize("medium, error, said", WRONG.values(), ids=WRONG)
def test_what_is_no_image_is_refused_with_its_place_and_the_reason(medium, error, said):
    """Errors say what was wrong and where: `where` stands first."""
    of_a_frame = said.startswith("frame ")  # then the frame's number belongs to the place
    for read in (as_frames, ImagePreparation(4)):
        with pytest.raises(error, match=f"^prompt, piece 3{', ' if of_a_frame else ': .*'}{said}"):
            read(medium, "prompt, piece 3")


def test_a_truncated_file_is_refused_with_its_place():
    """Pillow opens it without complaint and fails when the pixels are asked for."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    image = Image.open(io.BytesIO(png(Image.fromarray(noise))[:1500]))
    with pytest.raises(ValueError, match="^prompt, piece 3: the image file is damaged"):
        as_frames(image, "prompt, piece 3")


# ------------------------------------------------------------------------------------------------------ the preparation


def test_the_numbers_of_the_preparation_by_hand():
    """(x / 255 − mean) / std per channel, channels first: of (255, 0, 51) with different means and deviations."""
    one_pixel = np.array([[(255, 0, 51)]], dtype=np.uint8)
    assert ImagePreparation(1)(one_pixel).flatten().tolist() == pytest.approx([1.0, -1.0, -0.6])
    prepare = ImagePreparation(1, mean=(0.5, 0.25, 0.2), std=(0.25, 0.5, 0.1))
    assert prepare(one_pixel).shape == (1, 3, 1, 1)
    assert prepare(one_pixel).flatten().tolist() == pytest.approx([2.0, -0.5, 0.0], abs=1e-6)


def test_every_pixel_keeps_its_place():
    """(T, H, W, C) → (T, C, H, W), an explicit loop."""
    video = np.random.default_rng(0).integers(0, 256, (2, 3, 3, 3), dtype=np.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    prepared = ImagePreparation(3, mean, std)(video)
    assert prepared.dtype == torch.float32
    for t, y, x, c in np.ndindex(*video.shape):
        assert prepared[t, c, y, x].item() == pytest.approx((video[t, y, x, c] / 255 - mean[c]) / std[c], abs=1e-5)


def test_another_size_is_resized_like_pillows_bicubic_and_the_right_size_is_left_alone():
    """Each frame by itself, to size × size."""
    video = np.random.default_rng(1).integers(0, 256, (2, 6, 9, 3), dtype=np.uint8)
    prepared = ImagePreparation(4)(list(video))
    for frame, ours in zip(video, prepared, strict=True):
        resized = np.asarray(Image.fromarray(frame).resize((4, 4), Image.Resampling.BICUBIC))
        assert torch.allclose(ours, torch.tensor(resized).permute(2, 0, 1) / 127.5 - 1, atol=1e-6)
    square = video[:, :, :6].copy()
    assert torch.allclose(ImagePreparation(6)(square), torch.tensor(square).permute(0, 3, 1, 2) / 127.5 - 1, atol=1e-6)


def test_a_preparation_is_data_and_comes_back_from_json():
    """`config.json` holds it; one written before there was a choice of `resize` means "squash"."""
    prepare = ImagePreparation(4, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), resize="crop")
    assert prepare.to_dict() == {"size": 4, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "resize": "crop"}
    read = ImagePreparation(**json.loads(json.dumps(prepare.to_dict())))
    assert read == prepare and torch.equal(read(COLOURS), prepare(COLOURS))
    old = ImagePreparation(**json.loads('{"size": 4, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}'))
    assert old == ImagePreparation(4, prepare.mean, prepare.std, resize="squash")


@pytest.mark.parametrize("wrong, said", [({"resize": "fit"}, "resize is 'fit'; choose 'squash'"), ({"size": 0}, "size is 0")])
def test_a_preparation_that_cannot_be_is_refused(wrong, said):
    """When it is made, not at the first image."""
    with pytest.raises(ValueError, match=said):
        ImagePreparation(**{"size": 4, **wrong})


# ----------------------------------------------------------------------------------------- as published eyes were trained

PLAIN = dict(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))  # values stay x / 255


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def as_pixels(prepared: torch.Tensor) -> list:
    """The only frame of a preparation with `PLAIN`, as bytes again."""
    return (prepared[0].permute(1, 2, 0) * 255).round().int().tolist()


@pytest.mark.parametrize("extra, top", [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 2), (6, 3), (7, 4)])
def test_what_is_cut_off_is_half_the_rest_rounded_to_even(extra, top):
    """Images whose shorter side is right already: the crop alone. By hand: half of 3 is 1.5 → 2, half of 5 is 2.5 → 2."""
    tall = noise(4 + extra, 4)
    crop = ImagePreparation(4, **PLAIN, resize="crop")
    assert as_pixels(crop(tall)) == tall[top : top + 4].tolist()
    wide = tall.transpose(1, 0, 2).copy()
    assert as_pixels(crop(wide)) == wide[:, top : top + 4].tolist()


@pytest.mark.parametrize(
    "width, height, resized", [(3, 5, (4, 6)), (5, 3, (6, 4)), (2, 3, (4, 6)), (9, 9, (4, 4)), (7, 40, (4, 22))]
)
def test_the_shorter_side_fits_and_the_longer_is_cut_to_whole_pixels(width, height, resized):
    """By hand, at size 4: 4 · 5/3 = 6.7 → 6; 4 · 40/7 = 22.9 → 22. A smaller image grows; no border is ever added."""
    image = Image.fromarray(noise(height, width))
    left, top = (resized[0] - 4) // 2, (resized[1] - 4) // 2  # all these margins are even
    expected = image.resize(resized, Image.Resampling.BICUBIC).crop((left, top, left + 4, top + 4))
    assert as_pixels(ImagePreparation(4, **PLAIN, resize="crop")(image)) == np.asarray(expected).tolist()


def test_a_strip_costs_no_more_memory_than_its_middle(monkeypatch):
    """1 × 60000 at size 8 would be resized to 8 × 480000, to keep 8 × 8 of it: only the middle 1 × 100 is resized."""
    sizes = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, size, *rest: sizes.append(tuple(size)) or resize(self, size, *rest))
    strip = noise(60000, 1)
    crop = ImagePreparation(8, resize="crop")
    prepared = crop(strip)
    assert sizes == [(8, 8 * LONGEST)]
    assert torch.equal(prepared, crop(strip[29950:30050])) and torch.equal(crop(strip.transpose(1, 0, 2)).mT, prepared)


def test_each_frame_of_a_video_is_cropped_alike():
    """As if it were an image of its own."""
    crop = clip_preparation(4)
    video = [noise(9, 6, seed) for seed in (0, 1, 2)]
    assert torch.equal(crop(video), torch.cat([crop(frame) for frame in video]))


def test_the_published_colours_by_hand():
    """CLIP's mean and deviation, of red (255, 0, 0): (1 − 0.48145466) / 0.26862954 = 1.9303…, and so on."""
    for prepare in (clip_preparation(1), idefics_preparation(1)):
        values = prepare(np.array([[RED]], dtype=np.uint8)).flatten().tolist()
        assert values == pytest.approx([1.9303361, -1.7520971, -1.4802198], abs=1e-6)
    assert (clip_preparation().size, clip_preparation().resize) == (224, "crop")
    assert (idefics_preparation().size, idefics_preparation().resize) == (224, "squash")


SIZES = [(333, 500), (500, 333), (224, 224), (17, 900), (900, 17), (225, 224), (224, 226), (640, 480), (31, 7), (1, 1)]


def theirs(name: str, image: object) -> torch.Tensor:
    """The pixels of transformers' image processor `name`, the one that works with Pillow."""
    transformers = pytest.importorskip("transformers")
    processor = getattr(transformers, name + "Pil", None) or getattr(transformers, name)
    out = processor()(image, return_tensors="pt")
    return torch.as_tensor(out if isinstance(out, torch.Tensor) else out["pixel_values"])


@pytest.mark.parametrize("width, height", SIZES)
def test_clips_preparation_is_that_of_transformers(width, height):
    """Oracle: CLIPImageProcessor."""
    image = Image.fromarray(noise(height, width))
    assert torch.allclose(clip_preparation()(image), theirs("CLIPImageProcessor", image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("width, height", SIZES)
def test_idefics_preparation_is_that_of_transformers(width, height):
    """Oracle: IdeficsImageProcessor."""
    image = Image.fromarray(noise(height, width))
    assert torch.allclose(idefics_preparation()(image), theirs("IdeficsImageProcessor", image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK"])
def test_other_modes_are_prepared_as_by_transformers(mode):
    """Grey, a palette, see-through pixels over white, printers' colours."""
    image = Image.fromarray(noise(40, 30)).convert(mode)
    if "A" in mode:
        image.putalpha(Image.fromarray(noise(40, 30, seed=1)[..., 0]))
    assert torch.allclose(idefics_preparation()(image), theirs("IdeficsImageProcessor", image), rtol=0, atol=1e-6)


def test_where_transformers_cuts_a_pixel_further_up_we_follow_the_eyes_training():
    """Margin 3: round(1.5) = 2 in torchvision, 3 // 2 = 1 in transformers, which agrees with a first row less."""
    tall = noise(227, 224)
    assert torch.allclose(clip_preparation()(tall), theirs("CLIPImageProcessor", Image.fromarray(tall[1:])), rtol=0, atol=1e-6)
