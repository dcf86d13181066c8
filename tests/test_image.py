"""Picture -> pixel values, step by step, against NumPy. test_pictures.py compares the whole with transformers."""

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from expect import same
from PIL import Image

from minillava.errors import UserError
from minillava.inputs import image as image_module
from minillava.inputs.image import MEAN, STD, ImageProcessor, to_rgb

SHAPES = [(8, 8), (9, 8), (8, 9), (21, 8), (8, 21), (5, 3), (3, 5), (40, 31)]


def picture(width: int, height: int) -> Image.Image:
    """Red grows from left to right, green from top to bottom, blue goes up and down: no two rows or columns agree."""
    y, x = np.mgrid[0:height, 0:width]
    blue = 127 + 120 * np.sin(x / 3 + y / 5)
    return Image.fromarray(np.stack([255 * x / width, 255 * y / height, blue], -1).astype(np.uint8))


def compare(got: Image.Image, want: np.ndarray, sentence: str) -> None:
    assert isinstance(got, Image.Image), f"{sentence} (yours is a {type(got).__name__}, not a picture)"
    assert got.mode == "RGB", f"the result has the mode RGB (yours has {got.mode})"
    height, width = want.shape[:2]
    assert got.size == (width, height), f"{sentence} (yours has {got.size} pixels, it should have {(width, height)})"
    same(torch.from_numpy(np.array(got)), torch.from_numpy(want), sentence)


def pixels(image: Image.Image) -> np.ndarray:
    return np.array(image)


# ---- to_rgb ---------------------------------------------------------------------------------------------------------


def test_a_picture_in_rgb_stays_as_it_is():
    compare(to_rgb(picture(9, 7)), pixels(picture(9, 7)), "a picture in RGB keeps its pixels")


def test_grey_becomes_three_equal_channels():
    grey = picture(9, 7).convert("L")
    compare(to_rgb(grey), np.stack([pixels(grey)] * 3, -1), "a grey picture gets three equal channels")


@pytest.mark.parametrize("alpha", [0, 255, 102])
def test_what_is_transparent_becomes_white(alpha):
    image = picture(9, 7)
    image.putalpha(alpha)
    shown = to_rgb(image)
    want = 255 + (pixels(picture(9, 7)).astype(float) - 255) * alpha / 255
    assert shown.mode == "RGB", "the result has the mode RGB"
    off = np.abs(pixels(shown) - want).max()
    assert off <= 1, "a transparent picture lies on white: convert() would only drop the alpha channel"


def test_a_palette_with_a_transparent_colour():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.putdata([0, 1])
    image.info["transparency"] = 0
    want = np.array([[[255, 255, 255], [200, 0, 0]]], np.uint8)
    compare(to_rgb(image), want, "a palette's transparent colour is white too (has_transparency_data)")


@pytest.mark.parametrize("mode, full", [("I;16", 65535), ("I", 65535), ("F", 1)])
def test_grey_of_many_bits_keeps_its_shades(mode, full):
    shades = np.array([[0, 51, 102, 255]], np.uint8)
    values = shades / 255 * full
    kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    image = Image.fromarray(values.astype(kind))
    assert image.mode == mode
    sentence = "grey of 16 bits or in floats is scaled to 8 bits (_to_8_bits) before convert(), which would clip it"
    compare(to_rgb(image), np.stack([shades] * 3, -1), sentence)


def test_a_picture_is_turned_upright():
    """As a phone stores it: EXIF data say how to turn it."""
    exif, file = Image.Exif(), BytesIO()
    exif[0x0112] = 6
    picture(9, 7).save(file, "PNG", exif=exif)
    want = np.rot90(pixels(picture(9, 7)), -1).copy()
    compare(to_rgb(Image.open(file)), want, "upright() turns a picture as its EXIF data say")


# ---- the size -------------------------------------------------------------------------------------------------------

# width, height, shortest edge -> the size; 64 * 196 / 49 and 64 / 49 * 196 round down to different numbers
SIZES = [
    ((100, 50, 20), (40, 20)), ((50, 100, 20), (20, 40)), ((30, 30, 20), (20, 20)), ((10, 25, 20), (20, 50)),
    ((7, 3, 10), (23, 10)), ((3, 8, 10), (10, 26)), ((196, 49, 64), (256, 64)), ((49, 343, 64), (64, 448)),
]  # fmt: skip


@pytest.mark.parametrize("given, want", SIZES)
def test_the_shorter_side_gets_the_size(given, want):
    width, height, shortest = given
    got = ImageProcessor(size={"shortest_edge": shortest})._resized(width, height)
    assert tuple(got) == want, (
        f"the shorter side becomes {shortest}, the longer one {shortest} * longer // shorter, as (width, height)"
    )


def test_a_size_of_both_sides_is_taken_as_it_is():
    got = ImageProcessor(size={"height": 30, "width": 51})._resized(7, 3)
    assert tuple(got) == (51, 30), "a size with height and width is the result, as (width, height)"


@pytest.mark.parametrize("size", [{"shortest_edge": 50}, {"height": 50, "width": 50}])
def test_a_size_that_is_too_large_is_refused(monkeypatch, size):
    monkeypatch.setattr(image_module, "MAX_GROWN", 5000)
    ours = ImageProcessor(size=size)
    assert tuple(ours._resized(50, 100)) in {(50, 100), (50, 50)}, "5,000 pixels are allowed if MAX_GROWN is 5,000"
    try:
        ours._resized(50, 101 if "height" in size else 102)
    except UserError:
        return
    raise AssertionError("_allowed() refuses what is too large: the result, or on the way there (width, old height)")


# ---- what the tower sees --------------------------------------------------------------------------------------------

PLAIN = ImageProcessor(do_resize=False, do_center_crop=False)


def in_the_middle(image: np.ndarray, width: int, height: int, colour: tuple[int, ...] = (0, 0, 0)) -> np.ndarray:
    """``width`` x ``height`` pixels around the middle of a picture, with ``colour`` where there is none."""
    result = np.empty((height, width, 3), np.uint8)
    result[:] = colour
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    for y in range(height):
        for x in range(width):
            if 0 <= top + y < image.shape[0] and 0 <= left + x < image.shape[1]:
                result[y, x] = image[top + y, left + x]
    return result


@pytest.mark.parametrize("width, height", SHAPES)
def test_with_no_step_the_picture_stays(width, height):
    image = picture(width, height)
    compare(PLAIN.view(image), pixels(image), "without do_pad, do_resize and do_center_crop nothing changes")
    compare(PLAIN.view(image.convert("L")), np.stack([pixels(image.convert("L"))] * 3, -1), "to_rgb() comes first")


@pytest.mark.parametrize("width, height", SHAPES)
def test_padding_makes_a_square_of_the_mean_colour(width, height):
    side, image = max(width, height), pixels(picture(width, height))
    got = replace(PLAIN, do_pad=True, image_mean=(0.3, 0.5, 0.7)).view(picture(width, height))
    left, top = (side - width) // 2, (side - height) // 2
    want = np.empty((side, side, 3), np.uint8)
    want[:] = (76, 127, 178)
    want[top : top + height, left : left + width] = image
    compare(got, want, "do_pad: the picture is in the middle of a square of the colour int(mean * 255)")


@pytest.mark.parametrize("width, height", SHAPES)
def test_resizing_gives_the_size_of_resized(width, height):
    ours = replace(PLAIN, do_resize=True, size={"shortest_edge": 10}, resample=Image.Resampling.BICUBIC.value)
    size = (10, 10 * height // width) if width < height else (10 * width // height, 10)
    want = picture(width, height).resize(size, Image.Resampling.BICUBIC)
    compare(
        ours.view(picture(width, height)), pixels(want), "do_resize: Image.resize to _resized(), with self.resample"
    )


def test_the_filter_is_the_processors():
    ours = replace(PLAIN, do_resize=True, size={"height": 5, "width": 5}, resample=Image.Resampling.NEAREST.value)
    want = pixels(picture(40, 31).resize((5, 5), Image.Resampling.NEAREST))
    compare(ours.view(picture(40, 31)), want, "resize() takes the filter self.resample")


@pytest.mark.parametrize("width, height", SHAPES)
@pytest.mark.parametrize("crop", [(8, 8), (5, 7), (12, 3)])
def test_the_crop_is_the_middle(width, height, crop):
    ours = replace(PLAIN, do_center_crop=True, crop_size={"width": crop[0], "height": crop[1]})
    want = in_the_middle(pixels(picture(width, height)), *crop)
    sentence = "do_center_crop: as much goes from the left as from the right, and black is where there is no picture"
    compare(ours.view(picture(width, height)), want, sentence)


@pytest.mark.parametrize("width, height", SHAPES)
def test_the_steps_are_pad_resize_crop(width, height):
    ours = replace(ImageProcessor.for_size(6), do_pad=True, size={"shortest_edge": 10}, image_mean=(0.3, 0.5, 0.7))
    side = max(width, height)
    square = Image.new("RGB", (side, side), (76, 127, 178))
    square.paste(picture(width, height), ((side - width) // 2, (side - height) // 2))
    resized = square.resize((10, 10), Image.Resampling.BICUBIC)
    want = in_the_middle(pixels(resized), 6, 6)
    compare(ours.view(picture(width, height)), want, "first the padding, then the size, last the crop")


# ---- where the result is on the picture -----------------------------------------------------------------------------

TEN, BIG = ImageProcessor.for_size(10), {"shortest_edge": 20}
PADDED = replace(TEN, do_pad=True)
SQUASHED = replace(PLAIN, do_resize=True, size={"height": 7, "width": 9})
CROPPED = replace(PLAIN, do_center_crop=True, crop_size={"height": 20, "width": 10})
WINDOWS = {
    "a square is seen whole": ((50, 50), TEN, (0, 0, 1, 1)),
    "of a wide picture the middle is seen": ((400, 100), TEN, (0.375, 0, 0.625, 1)),
    "of a high picture the middle is seen": ((100, 200), TEN, (0, 0.25, 1, 0.75)),
    "with padding the square around it is seen": ((400, 100), PADDED, (0, -1.5, 1, 2.5)),
    "a crop takes the same from all sides": ((50, 50), replace(TEN, size=BIG), (0.25, 0.25, 0.75, 0.75)),
    "padding, then a crop": ((40, 20), replace(PADDED, size=BIG), (0.25, 0, 0.75, 1)),
    "a large crop sees a border": ((50, 50), replace(TEN, size={"shortest_edge": 5}), (-0.6, -0.6, 1.4, 1.4)),
    "without a crop all is seen": ((50, 20), SQUASHED, (0, 0, 1, 1)),
    "without a size a crop counts own pixels": ((40, 80), CROPPED, (0.375, 0.375, 0.625, 0.625)),
}


@pytest.mark.parametrize("case", WINDOWS)
def test_the_window_is_what_the_result_shows(case):
    (width, height), ours, want = WINDOWS[case]
    got = tuple(ours.window(width, height))
    assert got == pytest.approx(want, abs=1e-9), f"{case}: (x1, y1, x2, y2) is {want}"


# ---- pixel values ---------------------------------------------------------------------------------------------------


def test_the_result_is_a_tensor_with_the_channels_first():
    got = replace(PLAIN, do_normalize=False)(picture(5, 3))
    assert isinstance(got, torch.Tensor), "the result is a tensor"
    assert got.shape == (3, 3, 5), f"the result is (3, H, W), here (3, 3, 5); yours is {tuple(got.shape)}"
    assert got.dtype == torch.float32, f"the result is float32; yours is {got.dtype}"
    assert got.is_contiguous(), "the result is contiguous"
    want = torch.from_numpy(pixels(picture(5, 3))).permute(2, 0, 1) / 255
    same(got, want, "0..255 becomes 0..1: times rescale_factor; channel, row and column stay what they are", 1e-6, 1e-6)


@pytest.mark.parametrize("level", [0, 255])
def test_white_and_black_are_normalised_by_clips_numbers(level):
    got = PLAIN(Image.new("RGB", (2, 2), (level,) * 3))
    for channel, (mean, std) in enumerate(zip(MEAN, STD)):
        want = torch.full((2, 2), (level / 255 - mean) / std)
        same(got[channel], want, "each channel is (value - its own mean) / its own std, after 0..1", 1e-5, 1e-5)


def test_mean_and_std_are_the_processors_own():
    ours = replace(PLAIN, image_mean=(0.1, 0.2, 0.3), image_std=(1.0, 2.0, 3.0), rescale_factor=1 / 127)
    values = pixels(picture(5, 3)).astype(np.float64) / 127
    want = (values - [0.1, 0.2, 0.3]) / [1.0, 2.0, 3.0]
    got = ours(picture(5, 3))
    want = torch.from_numpy(want.astype(np.float32)).permute(2, 0, 1)
    same(got, want, "rescale_factor, image_mean and image_std are the processor's fields")


def test_steps_that_are_switched_off_do_nothing():
    image = pixels(picture(5, 3)).astype(np.float32)
    got = replace(PLAIN, do_rescale=False, do_normalize=False)(picture(5, 3))
    same(got, torch.from_numpy(image).permute(2, 0, 1), "without do_rescale and do_normalize the values are 0..255")
    got = replace(PLAIN, do_rescale=False, image_mean=(99.0, 120.0, 130.0), image_std=(1.0, 1.0, 1.0))(picture(5, 3))
    want = torch.from_numpy(image - np.float32([99, 120, 130])).permute(2, 0, 1)
    same(got, want, "without do_rescale the mean is taken from 0..255")


def test_a_picture_is_seen_as_view_shows_it():
    ours = replace(ImageProcessor.for_size(6), do_pad=True)
    got = ours(picture(9, 4))
    same(got, replace(PLAIN)(ours.view(picture(9, 4))), "the pixel values are those of view()")
    assert got.shape == (3, 6, 6), "the result has the size of the crop"
