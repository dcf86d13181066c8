"""Pictures: the same numbers as transformers' CLIPImageProcessor; what is broken or leads astray is refused."""

import random
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor

from minillava import image as image_module
from minillava.errors import UserError
from minillava.image import open_image, safe_join, to_pixel_values


def pattern(width: int, height: int, channels: int = 3) -> np.ndarray:
    """Waves and a little noise, (height, width, channels) in 0..255."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 110 * np.sin(x / (3 + k) + y / (5 + 2 * k)) for k in range(channels)]
    noise = np.random.default_rng(0).normal(0, 8, (height, width, channels))
    return (np.stack(waves, -1) + noise).clip(0, 255).astype(np.uint8)


def picture(width: int = 90, height: int = 70, mode: str = "RGB") -> Image.Image:
    if mode in ("RGBA", "LA"):
        return Image.fromarray(pattern(width, height, 4)).convert(mode)
    if mode == "I;16":
        return Image.fromarray(pattern(width, height, 1)[..., 0].astype(np.uint16))
    if mode == "P with a transparent colour":
        image = Image.fromarray(pattern(width, height)).quantize(20)
        image.info["transparency"] = 3
        return image
    return Image.fromarray(pattern(width, height)).convert(mode)


def by_transformers(image: Image.Image, size: int) -> np.ndarray:
    processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    return np.asarray(processor(image, return_tensors="np")["pixel_values"][0])


def check(path: Path, reference: Image.Image, size: int) -> None:
    ours = to_pixel_values(open_image(path), size)
    theirs = by_transformers(reference, size)
    assert ours.shape == theirs.shape == (3, size, size) and ours.dtype == torch.float32
    off = np.abs(ours.numpy() - theirs)
    assert off.max() < 1e-5 and off.mean() < 1e-6
    assert theirs.std() > 0.1  # not a blank picture, which would prove little


# In the last four, size * (long / short) and (size / short) * long round to different whole numbers.
SIZES = [
    (64, 64), (65, 64), (64, 65), (37, 91), (200, 101), (1, 50), (3, 7), (501, 333),
    (49, 196), (196, 49), (98, 49), (343, 49),
]  # fmt: skip


@pytest.mark.parametrize("width, height", SIZES)
def test_any_shape_gives_transformers_numbers(tmp_path, width, height):
    picture(width, height).save(tmp_path / "picture.png")
    for size in (64, 224):
        check(tmp_path / "picture.png", Image.open(tmp_path / "picture.png"), size)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "P with a transparent colour", "L", "LA", "1", "I;16"])
def test_any_mode_of_png_gives_transformers_numbers(tmp_path, mode):
    picture(mode=mode).save(tmp_path / "picture.png")
    stored = Image.open(tmp_path / "picture.png")
    assert stored.mode == mode.split(" ")[0]
    check(tmp_path / "picture.png", stored, 64)


def test_cmyk_jpeg_gives_transformers_numbers(tmp_path):
    picture(mode="CMYK").save(tmp_path / "picture.jpg", quality=95)
    assert Image.open(tmp_path / "picture.jpg").mode == "CMYK"
    check(tmp_path / "picture.jpg", Image.open(tmp_path / "picture.jpg"), 64)


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


def test_pictures_of_other_modes_need_no_conversion_first():
    grey = picture(mode="L")
    assert torch.equal(to_pixel_values(grey, 32), to_pixel_values(grey.convert("RGB"), 32))


def encoded(form: str) -> bytes:
    file = BytesIO()
    picture(40, 30).save(file, form)
    return file.getvalue()


# A DDS header with no pixel format: Pillow answers with NotImplementedError.
DDS = b"DDS " + bytes([124, 0, 0, 0]) + bytes(4) + bytes([4, 0, 0, 0]) * 2 + bytes(108)

BROKEN = {
    "empty": b"",
    "text": b"this is no picture\n" * 10,
    "cut-off PNG": encoded("PNG")[:-200],
    "cut-off JPEG": encoded("JPEG")[:-200],
    "PNG with a flipped byte": encoded("PNG")[:60] + bytes([encoded("PNG")[60] ^ 255]) + encoded("PNG")[61:],
    "PNG header alone": encoded("PNG")[:33],
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
            outcomes.add(tuple(to_pixel_values(open_image(tmp_path / "picture"), 16).shape))
        except UserError as error:
            outcomes.add("refused")
            assert "\n" not in str(error)
    assert outcomes == {(3, 16, 16), "refused"}


def test_missing_picture_and_folder_are_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.png: no such picture"):
        open_image(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        open_image(tmp_path)


def test_too_large_picture_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    path.write_bytes(encoded("PNG")[:60])  # cut off in the pixels: decoding it would fail another way
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
    """A folder beside secret files, with ways out of it."""
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


def test_folder_may_itself_be_a_link(house, tmp_path):
    (tmp_path / "elsewhere").symlink_to(house)
    assert open_image(safe_join(tmp_path / "elsewhere", "a.png")).size == (8, 8)


@pytest.mark.parametrize(
    "name",
    [
        "../x.png", "deep/../../x.png", "..", "../images secret/x.png", "/etc/passwd", "ABSOLUTE/x.png",
        "link out/x.png", "link.png", "link in/../../x.png", "loop/x.png", "a\0.png",
    ],
)  # fmt: skip
def test_names_that_lead_out_of_the_folder_are_refused(house, tmp_path, name):
    with pytest.raises(UserError) as error:
        open_image(safe_join(house, name.replace("ABSOLUTE", str(tmp_path))))
    assert "\n" not in str(error.value)
    if "x.png" in name and "loop" not in name:
        with pytest.raises(UserError, match="leads out of"):
            safe_join(house, name.replace("ABSOLUTE", str(tmp_path)))
