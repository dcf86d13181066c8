"""Picture file -> RGB picture -> ``pixel_values``.

- ``open_image`` reads any picture as RGB and turns it upright.
- ``ImageProcessor`` makes the tower's input of it, as ``preprocessor_config.json`` says: pad to a square, resize, cut
  out the middle, scale to 0..1, normalise. The numbers are those of transformers' CLIPImageProcessor.
"""

import os
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from minillava.config import read_json_object
from minillava.errors import UserError

MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, of red, green and blue in 0..1
STD = (0.26862954, 0.26130258, 0.27577711)
MAX_PIXELS = 100_000_000  # a picture that claims more is refused before it is decoded, and none grows larger on its way
PROCESSORS = ("CLIPImageProcessor", "CLIPFeatureExtractor", "LlavaImageProcessor")
# Keys that change no number: who wrote the file, what transformers' own calls take, and the conversion to RGB, which
# happens here whatever the file says, since the tower reads three channels.
OTHER_KEYS = {
    "_valid_processor_keys",
    "data_format",
    "default_to_square",
    "device",
    "disable_grouping",
    "do_convert_rgb",
    "feature_extractor_type",
    "image_processor_type",
    "image_seq_length",
    "input_data_format",
    "processor_class",
    "return_tensors",
}


def open_image(path: str | os.PathLike) -> Image.Image:
    """Read a picture as RGB, turned upright. Raises UserError where there is none, or it is broken or too large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the check below is the limit
            image = Image.open(path)
        if image.width * image.height > MAX_PIXELS:
            raise UserError(f"{path}: {image.width} x {image.height} pixels is more than {MAX_PIXELS:,}")
        image.load()
        return to_rgb(image)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such picture") from None
    except Exception as error:  # Pillow's decoders fail in many ways on bytes that are no picture
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a readable picture ({reason})") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode -> RGB, turned upright. What shines through is white, as on a page."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits or of floats -> grey of 8 bits. Pillow alone would cut off at 255, which leaves mostly white."""
    values = np.nan_to_num(np.array(image, dtype=np.float32), copy=False)
    full = 65535
    if image.mode == "F":  # as a rule 0..1; larger values can only mean 0..255
        full = 1 if values.max() <= 1 else 255
    if "transparency" in image.info:  # a PNG may name one grey that is transparent
        values[values == image.info["transparency"]] = full
    np.clip(values, 0, full, out=values)
    values *= 255 / full
    return Image.fromarray(values.round().astype(np.uint8))


@dataclass(frozen=True)
class ImageProcessor:
    """RGB picture -> pixel values, by the keys of ``preprocessor_config.json``. The defaults are CLIP's.

    ``size`` is {"shortest_edge": pixels}, the longer side in proportion, or {"height": pixels, "width": pixels};
    ``crop_size`` the latter, and a picture that is smaller gets a black border. ``do_pad`` first makes the picture a
    square by bars of the mean colour, as LLaVA-1.5 does (``image_aspect_ratio: "pad"``), so that nothing is cut off.
    ``resample`` is Pillow's number of a filter. Raises UserError for values that are none of these.
    """

    do_pad: bool = False
    do_resize: bool = True
    size: dict[str, int] = field(default_factory=lambda: {"shortest_edge": 224})
    resample: int = Image.Resampling.BICUBIC.value
    do_center_crop: bool = True
    crop_size: dict[str, int] = field(default_factory=lambda: {"height": 224, "width": 224})
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, ...] = MEAN
    image_std: tuple[float, ...] = STD

    def __post_init__(self) -> None:
        def check(name: str, is_right: Callable[[Any], bool], wanted: str) -> None:
            if not is_right(getattr(self, name)):
                raise UserError(f"{name} is {getattr(self, name)!r}, not {wanted}")

        for name in ("do_pad", "do_resize", "do_center_crop", "do_rescale", "do_normalize"):
            check(name, lambda value: isinstance(value, bool), "true or false")
        both = {"height", "width"}
        check("size", lambda value: _is_size(value, both, {"shortest_edge"}), "a size in pixels")
        check("crop_size", lambda value: _is_size(value, both), "a size in pixels")
        check("resample", lambda value: type(value) is int and 0 <= value <= 5, "the number of a filter, 0 to 5")
        check("rescale_factor", _is_number, "a number")
        check("image_mean", _are_three, "three numbers")
        check("image_std", lambda value: _are_three(value) and min(value) > 0, "three numbers above 0")

    @classmethod
    def for_size(cls, size: int) -> "ImageProcessor":
        """CLIP's way to pictures of ``size`` x ``size``."""
        return cls(size={"shortest_edge": size}, crop_size={"height": size, "width": size})

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike) -> "ImageProcessor":
        """Read the folder's processor_config.json, if it has an image processor in it, or preprocessor_config.json.

        Raises UserError, naming the file, where there is neither, or what it asks for is unknown.
        """
        path = Path(folder, "processor_config.json")
        values = read_json_object(path).get("image_processor") if path.exists() else None
        if values is None:
            path = path.with_name("preprocessor_config.json")
            values = read_json_object(path)
        try:
            return cls.from_dict(values)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    @classmethod
    def from_dict(cls, values: dict) -> "ImageProcessor":
        """Take a configuration of transformers' form, old or new. A step that is null is left out, as there.

        Raises UserError for another kind of processor, and for a key that is unknown here and so may change the result.
        """
        if not isinstance(values, dict):
            raise UserError("the image processor must be a JSON object")
        given = {name: value for name, value in values.items() if value is not None}
        kind = given.get("image_processor_type", given.get("feature_extractor_type", PROCESSORS[0]))
        family = str(kind).removesuffix("Fast").removesuffix("Pil")  # the same numbers by other means
        if family not in PROCESSORS:
            raise UserError(f"image processor {kind!r} is not known, only {', '.join(PROCESSORS)}")
        names = {field.name for field in fields(cls)}
        for name in sorted(given.keys() - names - OTHER_KEYS):
            raise UserError(f"{name}: {given[name]!r} is not known in an image processor")
        known = {name: given[name] for name in names & given.keys()}
        known |= {name: False for name in names & values.keys() if values[name] is None and name.startswith("do_")}
        if family != "LlavaImageProcessor":
            known.pop("do_pad", None)  # CLIP's pads a batch to its largest picture, and all come out alike
        if _is_number(known.get("size")):
            square = given.get("default_to_square", False)
            known["size"] = _square(known["size"]) if square else {"shortest_edge": known["size"]}
        if _is_number(known.get("crop_size")):
            known["crop_size"] = _square(known["crop_size"])
        for name in ("image_mean", "image_std"):
            if _is_number(known.get(name)):
                known[name] = (known[name],) * 3
            elif isinstance(known.get(name), list):
                known[name] = tuple(known[name])
        return cls(**known)

    def to_dict(self) -> dict:
        """The configuration as transformers reads it."""
        kind = "LlavaImageProcessor" if self.do_pad else "CLIPImageProcessor"
        return {"image_processor_type": kind, **asdict(self), "do_convert_rgb": True}

    @property
    def output_size(self) -> tuple[int, int] | None:
        """(height, width) of every result; None if it depends on the picture."""
        if self.do_center_crop:
            return self.crop_size["height"], self.crop_size["width"]
        if self.do_resize and "height" in self.size:
            return self.size["height"], self.size["width"]
        if self.do_resize and self.do_pad:
            return (self.size["shortest_edge"],) * 2
        return None

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """A picture of any mode -> (3, height, width) float32.

        Raises UserError for a picture so long and thin that it would grow beyond MAX_PIXELS.
        """
        image = to_rgb(image)
        if self.do_pad:
            image = self._padded(image)
        if self.do_resize:
            image = image.resize(self._resized(image), self.resample)
        if self.do_center_crop:
            width, height = self.crop_size["width"], self.crop_size["height"]
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))  # black where it reaches beyond the picture
        pixels = np.asarray(image)
        if self.do_rescale:
            pixels = pixels * float(self.rescale_factor)
        pixels = pixels.astype(np.float32)
        if self.do_normalize:
            pixels = (pixels - np.float32(self.image_mean)) / np.float32(self.image_std)
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    def _padded(self, image: Image.Image) -> Image.Image:
        side = max(image.size)
        _check_growth(image, side, side)
        square = Image.new("RGB", (side, side), tuple(int(mean * 255) for mean in self.image_mean))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return square

    def _resized(self, image: Image.Image) -> tuple[int, int]:
        """(width, height) of the picture after resizing."""
        if "shortest_edge" in self.size:
            width, height = (self.size["shortest_edge"] * side // min(image.size) for side in image.size)
        else:
            width, height = self.size["width"], self.size["height"]
        _check_growth(image, width, height)
        return width, height


def _check_growth(image: Image.Image, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UserError(f"{image.width} x {image.height} pixels would grow to {width} x {height}: too many")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6


def _are_three(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 3 and all(map(_is_number, value))


def _is_size(value: Any, *names: set[str]) -> bool:
    """Whether ``value`` gives one of these sets of names numbers of pixels that a picture may have."""
    if not isinstance(value, dict) or value.keys() not in names:
        return False
    return all(type(side) is int and 1 <= side <= MAX_PIXELS**0.5 for side in value.values())


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def safe_join(folder: str | os.PathLike, name: str) -> Path:
    """``folder/name``, refused where ``name`` leads out of the folder."""
    path = Path(folder, name)
    try:
        inside = path.resolve().is_relative_to(Path(folder).resolve())
    except (OSError, ValueError, RuntimeError):  # a loop of links, or a name that no file can have
        raise UserError(f"image path {name!r} is no path") from None
    if not inside:
        raise UserError(f"image path {name!r} leads out of {folder}")
    return path
