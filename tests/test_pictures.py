"""Pictures: the pixels are those of transformers' image processors; broken files and unsafe paths are refused."""

import json
import random
import re
import struct
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from transformers import AutoTokenizer, CLIPImageProcessorPil, LlavaImageProcessorPil, LlavaProcessor

from minillava.errors import UserError
from minillava.formats.preprocessor_json import processor_from_json
from minillava.inputs import image as image_module
from minillava.inputs.image import ImageProcessor, open_image, safe_join, to_rgb


def from_dict(config: dict) -> ImageProcessor:
    return ImageProcessor(**processor_from_json(config))


def pattern(width: int, height: int, channels: int = 3) -> np.ndarray:
    """Waves and a little noise, (height, width, channels) in 0..255."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 110 * np.sin(x / (3 + k) + y / (5 + 2 * k)) for k in range(channels)]
    noise = np.random.default_rng(0).normal(0, 8, (height, width, channels))
    return (np.stack(waves, -1) + noise).clip(0, 255).astype(np.uint8)


def picture(width: int = 90, height: int = 70, mode: str = "RGB") -> Image.Image:
    if mode in ("RGBA", "LA"):
        return Image.fromarray(pattern(width, height, 4)).convert(mode)
    if mode == "P with a transparent colour":
        image = Image.fromarray(pattern(width, height)).quantize(20)
        image.info["transparency"] = 3
        return image
    return Image.fromarray(pattern(width, height)).convert(mode)


def same(ours: torch.Tensor, theirs: np.ndarray) -> bool:
    return ours.dtype == torch.float32 and ours.shape == theirs.shape and np.abs(ours.numpy() - theirs).max() < 1e-5


def by_transformers(image: Image.Image, **config) -> np.ndarray:
    make = LlavaImageProcessorPil if config.get("do_pad") else CLIPImageProcessorPil
    return np.asarray(make(**config)(image, return_tensors="np")["pixel_values"][0])


def check(path: Path, reference: Image.Image, size: int) -> None:
    theirs = by_transformers(reference, size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    assert same(ImageProcessor.for_size(size)(open_image(path)), theirs) and theirs.shape == (3, size, size)
    assert theirs.std() > 0.1  # a blank picture would prove little


# In the last four, size * (long / short) and (size / short) * long truncate to different integers for size 64.
SIZES = [
    (64, 64), (65, 64), (64, 65), (37, 91), (200, 101), (1, 50), (3, 7), (501, 333),
    (49, 196), (196, 49), (98, 49), (343, 49),
]  # fmt: skip


@pytest.mark.parametrize("width, height", SIZES)
def test_any_shape_gives_transformers_numbers(tmp_path, width, height):
    picture(width, height).save(tmp_path / "picture.png")
    for size in (64, 224):
        check(tmp_path / "picture.png", Image.open(tmp_path / "picture.png"), size)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "P with a transparent colour", "L", "LA", "1"])
def test_any_mode_of_png_gives_transformers_numbers(tmp_path, mode):
    picture(mode=mode).save(tmp_path / "picture.png")
    stored = Image.open(tmp_path / "picture.png")
    assert stored.mode == mode.split(" ")[0]
    check(tmp_path / "picture.png", stored, 64)


def test_cmyk_jpeg_gives_transformers_numbers(tmp_path):
    picture(mode="CMYK").save(tmp_path / "picture.jpg", quality=95)
    assert Image.open(tmp_path / "picture.jpg").mode == "CMYK"
    check(tmp_path / "picture.jpg", Image.open(tmp_path / "picture.jpg"), 64)
    off = np.abs(np.int32(open_image(tmp_path / "picture.jpg")) - np.int32(picture()))
    assert off.mean() < 10  # and its colours are the original ones, not inverted


GREYS = pattern(90, 70, 1)[..., 0]  # 0..255; each of the files below holds this picture
DEEP = {
    "16-bit PNG": ("I;16", "png", GREYS.astype(np.uint16) * 257),
    "16-bit PNG, greys between": ("I;16", "png", (GREYS * 257.0 + np.where(GREYS % 2, 120, -120)).clip(0, 65535)),
    "16-bit TIFF of the other byte order": ("I;16B", "tif", GREYS.astype(">u2") * 257),
    "16-bit PGM": ("I", "pgm", GREYS.astype(np.int32) * 257),
    "floats from 0 to 1": ("F", "tif", np.float32(GREYS / 255)),
    "floats from 0 to 255": ("F", "tif", np.float32(GREYS)),
    "floats with NaN": ("F", "tif", np.where(GREYS == 0, np.nan, np.float32(GREYS / 255))),
}


@pytest.mark.parametrize("kind", DEEP)
def test_grey_of_many_bits_looks_like_grey_of_8_bits(tmp_path, kind):
    mode, ending, values = DEEP[kind]
    path = tmp_path / f"picture.{ending}"
    if mode == "I;16B":
        Image.frombytes(mode, (90, 70), values.astype(">u2").tobytes()).save(path)
    else:
        Image.fromarray(values.astype({"F": "f4", "I": "i4", "I;16": "u2"}[mode])).save(path)
    assert Image.open(path).mode == mode
    assert np.array_equal(np.asarray(open_image(path)), np.stack([GREYS] * 3, -1))
    check(path, Image.fromarray(GREYS), 64)


def test_transparent_grey_of_a_16_bit_png_is_white(tmp_path):
    grey = int(GREYS[30, 40])
    hole = grey == GREYS
    Image.fromarray(GREYS.astype(np.uint16) * 257).save(tmp_path / "picture.png", transparency=grey * 257)
    shown = np.asarray(open_image(tmp_path / "picture.png"))
    assert np.array_equal(shown[..., 0], np.where(hole, 255, GREYS))


# EXIF orientation -> what turns the stored picture upright
TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@pytest.mark.parametrize("orientation", TURNS)
def test_rotated_jpeg_is_turned_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture(120, 70).save(tmp_path / "picture.jpg", exif=exif, quality=95)
    upright = Image.open(tmp_path / "picture.jpg").convert("RGB")
    if TURNS[orientation] is not None:
        upright = upright.transpose(TURNS[orientation])
    assert open_image(tmp_path / "picture.jpg").size == upright.size
    check(tmp_path / "picture.jpg", upright, 64)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(("place", "value"), [(6, 0), (17, 0)], ids=["SyntaxError", "struct.error"])
def test_a_picture_with_broken_exif_data_is_read_as_it_is(tmp_path, form, place, value):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    broken = bytearray(exif.tobytes())
    broken[place] = value
    image = picture(120, 70)
    with pytest.raises((SyntaxError, struct.error)):
        image.info["exif"] = bytes(broken)
        ImageOps.exif_transpose(image)
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}, "PNG": {}}[form]
    picture(120, 70).save(tmp_path / "whole", form, **options)
    picture(120, 70).save(tmp_path / "broken", form, exif=bytes(broken), **options)
    whole, opened = open_image(tmp_path / "whole"), open_image(tmp_path / "broken")
    assert np.array_equal(opened, whole) and "exif" in opened.info
    assert torch.equal(ImageProcessor.for_size(16)(opened), ImageProcessor.for_size(16)(whole))


def test_a_picture_that_ghostscript_would_run_is_refused(tmp_path):
    picture(40, 30).save(tmp_path / "picture.png", "EPS")
    with pytest.raises(UserError, match=r"not a readable picture \(EPS"):
        open_image(tmp_path / "picture.png")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about the size
def test_an_icon_that_is_decoded_at_once_is_limited(tmp_path, monkeypatch):
    picture(200, 100).save(tmp_path / "picture.png")
    large = (tmp_path / "picture.png").read_bytes()
    header = struct.pack("<3H4B2H2I", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(large), 22)  # says 16 x 16
    (tmp_path / "picture.ico").write_bytes(header + large)
    assert open_image(tmp_path / "picture.ico").size == (200, 100)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200 * 50 - 1)
    with pytest.raises(UserError, match="decompression bomb"):
        open_image(tmp_path / "picture.ico")


def test_no_side_may_make_the_picture_large_on_the_way(monkeypatch):
    monkeypatch.setattr(image_module, "MAX_GROWN", 1000)
    square = from_dict({"size": {"height": 20, "width": 20}, "do_center_crop": False})
    assert square(picture(20, 50)).shape == (3, 20, 20)
    with pytest.raises(UserError, match="1 x 999 pixels would become 20 x 999: too large"):
        square(picture(1, 999))  # Pillow makes the rows wider first


@pytest.mark.parametrize("mode", ["L", "RGBA", "P with a transparent colour", "CMYK"])
def test_a_picture_in_memory_is_treated_like_its_file(tmp_path, mode):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / ("picture.jpg" if mode == "CMYK" else "picture.png")
    picture(mode=mode).save(path, exif=exif)
    image = Image.open(path)
    assert image.size == (90, 70) and to_rgb(image).size == (70, 90)
    assert torch.equal(ImageProcessor.for_size(32)(image), ImageProcessor.for_size(32)(open_image(path)))


SQUARE = {"height": 40, "width": 40}
CONFIGS = {
    "integer sizes": {"size": 40, "crop_size": 40},
    "integer size for a square": {"size": 40, "crop_size": 30, "default_to_square": True},
    "both sides given": {"size": {"height": 30, "width": 51}, "do_center_crop": False},
    "both sides given, then a crop": {"size": {"height": 30, "width": 51}, "crop_size": {"height": 21, "width": 40}},
    "crop larger than the picture": {"size": {"shortest_edge": 20}, "crop_size": {"height": 65, "width": 47}},
    "crop larger than one side": {"size": {"shortest_edge": 20}, "crop_size": {"height": 33, "width": 10}},
    "no resize": {"do_resize": False, "crop_size": SQUARE},
    "neither resize nor crop": {"do_resize": False, "do_center_crop": False},
    "no crop": {"size": {"shortest_edge": 33}, "do_center_crop": False},
    "0..255": {"size": 40, "crop_size": 40, "do_rescale": False, "do_normalize": False},
    "0..255 minus a mean": {"size": 40, "crop_size": 40, "do_rescale": False, "image_mean": [99, 120.5, 130]},
    "0..1": {"size": 40, "crop_size": 40, "do_normalize": False},
    "-1..1": {"size": 40, "crop_size": 40, "image_mean": 0.5, "image_std": 0.5},
    "other numbers": {
        "size": 40,
        "crop_size": 40,
        "rescale_factor": 1 / 127,
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [1, 2, 3],
    },
    "padded": {"do_pad": True, "size": {"shortest_edge": 40}, "crop_size": SQUARE},
    "padded, no crop": {"do_pad": True, "size": 40, "do_center_crop": False},
    "padded with another colour": {"do_pad": True, "size": 40, "crop_size": 40, "image_mean": [0.9, 0.1, 0.5]},
    "no crop, by null": {"size": {"shortest_edge": 33}, "do_center_crop": None, "crop_size": None, "do_pad": None},
    "no normalisation, by null": {"size": 40, "crop_size": 40, "do_normalize": None},
    **{f"filter {k}": {"size": {"shortest_edge": 40}, "crop_size": SQUARE, "resample": k} for k in range(6)},
}


def processor(config: dict) -> ImageProcessor:
    kind = "LlavaImageProcessor" if config.get("do_pad") else "CLIPImageProcessor"
    return from_dict({**config, "image_processor_type": kind})


@pytest.mark.parametrize("config", CONFIGS)
def test_any_configuration_gives_transformers_numbers(config):
    shapes = set()
    for width, height in ((64, 64), (37, 91), (92, 38), (27, 28)):
        image = picture(width, height)
        ours = processor(CONFIGS[config])(image)
        assert same(ours, by_transformers(image, **CONFIGS[config])), (width, height)
        shapes.add(tuple(ours.shape[1:]))
    assert processor(CONFIGS[config]).output_size == (shapes.pop() if len(shapes) == 1 else None)


def test_the_filter_makes_a_difference():
    """Otherwise the test above could not tell the filters apart."""
    results = [processor(CONFIGS[f"filter {k}"])(picture(64, 64)) for k in range(6)]
    assert all((one - other).abs().max() > 0.01 for i, one in enumerate(results) for other in results[:i])


def test_padding_is_what_the_llava_authors_do():
    """LLaVA-1.5 puts the picture in the middle of a square of the mean colour."""
    image = picture(37, 60)
    square = Image.new("RGB", (60, 60), (122, 116, 104))
    square.paste(image, (11, 0))
    plain = ImageProcessor.for_size(40)
    assert torch.equal(replace(plain, do_pad=True)(image), plain(square))


def test_padding_is_not_clips():
    """CLIPImageProcessor's do_pad only makes the pictures of a batch equal in size, which they are after the crop."""
    config = {"do_pad": True, "size": 40, "crop_size": 40}
    theirs = CLIPImageProcessorPil(**config)(picture(37, 60), return_tensors="np")["pixel_values"][0]
    ours = from_dict({**config, "image_processor_type": "CLIPImageProcessor"})
    assert same(ours(picture(37, 60)), theirs)


@pytest.mark.parametrize("kind, told", [("CLIPImageProcessor", True), (None, True), ("LlavaImageProcessor", False)])
def test_a_line_says_that_clip_does_not_pad(tmp_path, capsys, kind, told):
    path = tmp_path / "preprocessor_config.json"
    for pad in (True, False, None):
        path.write_text(json.dumps({"do_pad": pad, "image_processor_type": kind}))
        ImageProcessor.from_pretrained(tmp_path)
        line = f"{path}: do_pad does nothing in CLIP's processor, as in transformers\n"
        assert capsys.readouterr().err == (line if pad and told else "")


def expand2square(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """LLaVA-1.5's padding, as its paper and transformers' LlavaImageProcessor describe it, with numpy."""
    values = np.asarray(image)
    missing = [max(image.size) - side for side in values.shape[:2]]
    ends = [(rest // 2, rest - rest // 2) for rest in missing]
    bands = [np.pad(values[..., c], ends, constant_values=colour[c]) for c in range(3)]
    return Image.fromarray(np.stack(bands, -1))


CHANGED = {"CLIP's": {}, "a squash": {"size": {"height": 30, "width": 30}, "crop_size": 30},
           "only its edges": {"size": 50, "crop_size": 30}, "nothing but pixels": {"do_resize": False}}  # fmt: skip


@pytest.mark.parametrize("old", CHANGED)
@pytest.mark.parametrize("width, height", [(400, 100), (37, 91), (30, 30), (5, 4), (64, 63)])
def test_fitting_shows_all_of_a_picture_or_its_middle(old, width, height):
    """By hand: pad() to a square, or cut the middle out, and let transformers do the rest."""
    image, mean = picture(width, height), {"image_mean": [0.3, 0.5, 0.7]}
    old = from_dict({**CHANGED[old], **mean})
    sizes = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}, **mean}
    padded, cropped = old.fitting("pad", 24), old.fitting("crop", 24)
    assert padded.output_size == cropped.output_size == (24, 24)
    assert same(padded(image), by_transformers(expand2square(image, (76, 127, 178)), **sizes))
    assert same(cropped(image), by_transformers(image, **sizes))
    assert torch.equal(padded(image), cropped(image)) == (width == height)


def slopes(width: int, height: int) -> Image.Image:
    """Red grows from left to right, green from top to bottom, and blue is full: each pixel says where it is."""
    y, x = np.mgrid[0:height, 0:width] + 0.5
    return Image.fromarray(np.stack([255 * x / width, 255 * y / height, 0 * x + 255], -1).astype(np.uint8))


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("width, height", [(300, 300), (150, 370), (380, 155)])
def test_the_window_is_where_the_result_lies_on_the_picture(config, width, height):
    ours = replace(processor(CONFIGS[config]), image_mean=(0, 0, 0))  # borders are black
    shown = np.asarray(ours.view(slopes(width, height))) / 255
    x1, y1, x2, y2 = ours.window(width, height)
    y, x = (np.mgrid[0 : shown.shape[0], 0 : shown.shape[1]] + 0.5) / np.array(shown.shape[:2])[:, None, None]
    x, y = x1 + x * (x2 - x1), y1 + y * (y2 - y1)
    depth = np.minimum(np.minimum(x, 1 - x) * width, np.minimum(y, 1 - y) * height)  # pixels from the picture's edge
    inside, outside = depth > 0.1 * width, depth < -0.1 * width
    assert inside.any() and (shown[inside, 2] > 0.98).all() and (shown[outside] < 0.02).all()
    assert np.abs(shown[inside, :2] - np.stack([x, y], -1)[inside]).max() < 0.02


@pytest.mark.parametrize(
    "width, height, cut", [(64, 64, 0), (400, 100, 0.75), (100, 400, 0.75), (300, 200, 1 / 3), (16, 20, 0.2)]
)
def test_what_is_cut_is_the_part_of_the_area_beyond_a_square(width, height, cut):
    assert ImageProcessor.for_size(16).cut(width, height) == pytest.approx(cut, abs=0.02)
    assert (ImageProcessor.for_size(16).cut(width, height) == 0) == (cut == 0)
    assert ImageProcessor.for_size(16).fitting("pad", 16).cut(width, height) == 0
    assert ImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE).cut(64, 64) == 0  # with a border
    edges = ImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 48, "width": 32})
    assert edges.cut(64, 64) == pytest.approx(1 - 48 * 32 / 64**2)


@pytest.mark.parametrize("config", CONFIGS)
def test_configuration_survives_writing_in_both_directions(tmp_path, config):
    ours = processor(CONFIGS[config])
    assert from_dict(json.loads(json.dumps(ours.to_dict()))) == ours
    make = LlavaImageProcessorPil if ours.do_pad else CLIPImageProcessorPil
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(ours.to_dict()))
    image = picture(37, 60)
    assert same(ours(image), make.from_pretrained(tmp_path)(image, return_tensors="np")["pixel_values"][0])
    make(**CONFIGS[config]).save_pretrained(tmp_path)
    assert ImageProcessor.from_pretrained(tmp_path) == ours


def test_newer_file_of_transformers_goes_before_the_older(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    padding = LlavaImageProcessorPil(do_pad=True, size=40, crop_size=40, resample=2)
    LlavaProcessor(padding, AutoTokenizer.from_pretrained(tmp_path), patch_size=8).save_pretrained(tmp_path)
    assert "image_processor" in json.loads((tmp_path / "processor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(ImageProcessor.for_size(20).to_dict()))
    assert ImageProcessor.from_pretrained(tmp_path) == replace(ImageProcessor.for_size(40), do_pad=True, resample=2)
    (tmp_path / "processor_config.json").write_text('{"processor_class": "LlavaProcessor", "patch_size": 14}')
    assert ImageProcessor.from_pretrained(tmp_path) == ImageProcessor.for_size(20)


def test_clip_file_of_the_first_years_is_read():
    """The keys of openai/clip-vit-large-patch14."""
    ours = from_dict(
        {
            "crop_size": 224,
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "CLIPFeatureExtractor",
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "resample": 3,
            "size": 224,
        }
    )
    assert ours == ImageProcessor.for_size(224) == ImageProcessor()


REFUSED = [
    ({"image_processor_type": "SiglipImageProcessor"}, "SiglipImageProcessor"),
    ({"image_processor_type": 5}, "image processor 5"),
    ({"do_thumbnail": True}, "do_thumbnail"),
    ({"pad_size": {"height": 3, "width": 3}}, "pad_size"),
    ({"size": {"shortest_edge": 20, "longest_edge": 40}}, "size"),
    ({"size": {"height": 20}}, "size"),
    ({"size": {"max_height": 20, "max_width": 20}}, "size"),
    ({"size": [20, 20]}, "size"),
    ({"size": "20"}, "size"),
    ({"size": 20.5}, "size"),
    ({"size": True}, "size"),
    ({"size": 0}, "size"),
    ({"size": -20}, "size"),
    ({"size": 10**30}, "size"),
    ({"crop_size": {"height": 20, "width": 200_000}}, "crop_size"),
    ({"crop_size": {"shortest_edge": 20}}, "crop_size"),
    ({"resample": 6}, "resample"),
    ({"resample": -1}, "resample"),
    ({"resample": "bicubic"}, "resample"),
    ({"do_resize": 1}, "do_resize"),
    ({"do_normalize": "yes"}, "do_normalize"),
    ({"rescale_factor": "1/255"}, "rescale_factor"),
    ({"rescale_factor": True}, "rescale_factor"),
    ({"rescale_factor": float("nan")}, "rescale_factor"),
    ({"rescale_factor": float("inf")}, "rescale_factor"),
    ({"image_mean": [0.5, 0.5]}, "image_mean"),
    ({"image_mean": [0.5, 0.5, None]}, "image_mean"),
    ({"image_mean": [1e300, 0, 0]}, "image_mean"),
    ({"image_std": [0.5, 0, 0.5]}, "image_std"),
    ({"image_std": 0}, "image_std"),
    ({"image_std": 1e-300}, "image_std"),
]


@pytest.mark.parametrize("config, word", REFUSED, ids=str)
def test_what_is_not_understood_is_refused_by_name(tmp_path, config, word):
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: (image processor )?'?{word}") as error:
        ImageProcessor.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"x"', b"\xff", b"[" * 100_000, b"{}" + b" " * 1_000_000])
@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_file_that_is_no_configuration_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(tmp_path / name))) as error:
        ImageProcessor.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_folder_without_a_configuration_is_named(tmp_path):
    with pytest.raises(UserError, match=r"preprocessor_config\.json: No such file"):
        ImageProcessor.from_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text('{"image_processor": 5}')
    with pytest.raises(UserError, match=r"processor_config\.json: .* JSON object"):
        ImageProcessor.from_pretrained(tmp_path)


def test_any_values_give_pixels_or_a_user_error():
    rng = random.Random(0)
    values = [None, True, False, 0, 1, 3, 20, -1, 0.5, 1e300, 10**400, float("nan"), "x", "CLIPImageProcessor", []]
    values += [{}, [1, 2, 3], [0.1] * 3, ["x"] * 3, {"height": 9, "width": 9}, {"shortest_edge": 9}, {"height": None}]
    names = [*ImageProcessor().to_dict(), "default_to_square", "feature_extractor_type", "image_seq_length"]
    outcomes = []
    for _ in range(2000):
        config = {name: rng.choice(values) for name in rng.sample(names, rng.randint(1, 3))}
        try:
            outcomes.append(from_dict({"crop_size": 9, "size": 9, **config})(picture(12, 10)).shape[0])
        except UserError as error:
            outcomes.append("refused")
            assert "\n" not in str(error)
    assert set(outcomes) == {3, "refused"} and 200 < outcomes.count(3) < 1800


def test_picture_that_would_grow_too_large_is_refused(monkeypatch):
    """With a small MAX_GROWN, so that small pictures exceed it. 1 x 100,000 pixels at size 224 would take 15 GB."""
    small, padding = ImageProcessor.for_size(64), ImageProcessor(do_pad=True, size={"shortest_edge": 8})
    monkeypatch.setattr(image_module, "MAX_GROWN", 64 * 128)
    assert small(picture(10, 20)).shape == (3, 64, 64) and padding(picture(1, 90)).shape == (3, 224, 224)
    with pytest.raises(UserError, match="10 x 21 pixels would become 64 x 134"):
        small(picture(10, 21))
    with pytest.raises(UserError, match="1 x 91 pixels would become 91 x 91"):
        padding(picture(1, 91))


def encoded(form: str) -> bytes:
    file = BytesIO()
    picture(40, 30).save(file, form)
    return file.getvalue()


# A DDS header with no pixel format: Pillow raises NotImplementedError.
DDS = b"DDS " + bytes([124, 0, 0, 0]) + bytes(4) + bytes([4, 0, 0, 0]) * 2 + bytes(108)

BROKEN = {
    "empty": b"",
    "text": b"this is no picture\n" * 10,
    "cut-off PNG": encoded("PNG")[:-200],
    "cut-off JPEG": encoded("JPEG")[:-200],
    "PNG with a flipped byte": encoded("PNG")[:60] + bytes([encoded("PNG")[60] ^ 255]) + encoded("PNG")[61:],
    "only a PNG header": encoded("PNG")[:33],
    "unknown kind of DDS": DDS,
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_picture_is_named_in_one_line(tmp_path, fault):
    path = tmp_path / "picture.png"
    path.write_bytes(BROKEN[fault])
    with pytest.raises(UserError, match=re.escape(str(path))) as error:
        open_image(path)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about damaged TIFF tags
@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA"])
def test_damaged_bytes_give_a_picture_or_a_user_error(tmp_path, form):
    rng = random.Random(form)
    whole = encoded(form)
    outcomes = set()
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(rng.choice((len(data), min(len(data), 100))))] = rng.randrange(256)
        (tmp_path / "picture").write_bytes(data[: rng.choice((len(data), rng.randrange(len(data))))])
        try:
            outcomes.add(tuple(ImageProcessor.for_size(16)(open_image(tmp_path / "picture")).shape))
        except UserError as error:
            outcomes.add("refused")
            assert "\n" not in str(error)
    assert outcomes == {(3, 16, 16), "refused"}


def test_missing_picture_and_folder_are_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.png: no such picture"):
        open_image(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        open_image(tmp_path)


def test_bytes_at_hand_are_read_as_a_file_is(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(encoded("PNG"))
    assert open_image("it.png", encoded("PNG")).tobytes() == open_image(path).tobytes()
    path.write_text("no picture")
    messages = []
    for arguments in ((path,), (path, b"no picture")):
        with pytest.raises(UserError) as error:
            open_image(*arguments)
        messages.append(str(error.value))
    assert messages == [f"{path}: not a readable picture (no known format)"] * 2


def test_too_large_picture_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    path.write_bytes(encoded("PNG")[:60])  # cut off in the pixel data: decoding it would raise another error
    monkeypatch.setattr(image_module, "MAX_PIXELS", 40 * 30 - 1)
    with pytest.raises(UserError, match="40 x 30 pixels is more than 1,199"):
        open_image(path)
    path.write_bytes(encoded("PNG"))
    monkeypatch.setattr(image_module, "MAX_PIXELS", 40 * 30)
    assert open_image(path).size == (40, 30)


def test_picture_that_claims_billions_of_pixels_is_refused(tmp_path):
    data = bytearray(encoded("BMP"))
    data[18:26] = (60_000).to_bytes(4, "little") * 2
    (tmp_path / "bomb.bmp").write_bytes(data)
    with pytest.raises(UserError, match=r"bomb\.bmp"):
        open_image(tmp_path / "bomb.bmp")


@pytest.fixture
def house(tmp_path) -> Path:
    """A folder next to secret files, with links, of which two lead out of it."""
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    (tmp_path / "images secret").mkdir()
    for path in (folder / "a.png", folder / "deep" / "b.png", tmp_path / "x.png", tmp_path / "images secret" / "x.png"):
        picture(8, 8).save(path)
    (folder / "link in").symlink_to(folder / "deep")
    (folder / "link out").symlink_to(tmp_path)
    (folder / "link.png").symlink_to(tmp_path / "x.png")
    (folder / "loop").symlink_to(folder / "loop")
    return folder


@pytest.mark.parametrize("name", ["a.png", "deep/b.png", "./a.png", "deep/../a.png", "link in/b.png"])
def test_names_inside_the_folder_are_joined(house, name):
    assert safe_join(house, name).resolve() in (house / "a.png", house / "deep" / "b.png")
    assert open_image(safe_join(house, name)).size == (8, 8)


@pytest.mark.parametrize("name", ["link.png", "link out/x.png", "link out/images/a.png", "deep/../link.png"])
def test_links_in_the_folder_are_followed(house, name):
    """They are the owner's, who links to pictures elsewhere instead of copying them."""
    assert open_image(safe_join(house, name)).size == (8, 8)


def test_a_name_cannot_climb_from_where_a_link_leads(house, tmp_path):
    """The name link far/.. is the folder itself, and not what lies above the link's target."""
    (tmp_path / "far" / "away").mkdir(parents=True)
    for folder in (tmp_path / "far", house):
        picture(*((9, 9) if folder == house else (8, 8))).save(folder / "y.png")
    (house / "link far").symlink_to(tmp_path / "far" / "away")
    assert open_image(safe_join(house, "link far/../y.png")).size == (9, 9)
    with pytest.raises(UserError, match="leads out of"):
        safe_join(house, "link far/../../x.png")


def test_folder_may_itself_be_a_link(house, tmp_path):
    (tmp_path / "elsewhere").symlink_to(house)
    assert open_image(safe_join(tmp_path / "elsewhere", "a.png")).size == (8, 8)


@pytest.mark.parametrize(
    "name",
    [
        "../x.png", "deep/../../x.png", "..", "../images secret/x.png", "/etc/passwd", "ABSOLUTE/x.png",
        "a.png/../../x.png", "link in/../../x.png", "link out/../../x.png", "loop/x.png", "a\0.png",
    ],
)  # fmt: skip
def test_names_that_lead_out_of_the_folder_are_refused(house, tmp_path, name):
    with pytest.raises(UserError) as error:
        open_image(safe_join(house, name.replace("ABSOLUTE", str(tmp_path))))
    assert "\n" not in str(error.value)
    if "x.png" in name and "loop" not in name:
        with pytest.raises(UserError, match="leads out of"):
            safe_join(house, name.replace("ABSOLUTE", str(tmp_path)))
