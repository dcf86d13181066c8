"""Picture file -> RGB picture -> ``pixel_values``.

``ImageProcessor`` pads to a square, resizes, crops the middle, scales to 0..1 and normalises; each step can be switched
off. Its results equal those of transformers' CLIPImageProcessor, and with padding those of its LlavaImageProcessor.
"""

import math
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from minillava.errors import UserError
from minillava.formats.picture_file import broken, read_picture, upright
from minillava.formats.preprocessor_json import processor_to_json, read_processor

MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's values for red, green and blue, in 0..1
STD = (0.26862954, 0.26130258, 0.27577711)
AnyPath = str | os.PathLike
MAX_PIXELS = 52_000_000  # a larger picture is refused before it is decoded; a pixel takes 17 bytes while it becomes RGB
MAX_GROWN = 100_000_000  # pixels of a picture that is padded or resized
FITS = ("crop", "pad")  # how a picture that is no square becomes one: CLIP's way, LLaVA-1.5's way


def open_image(path: AnyPath, content: bytes | None = None) -> Image.Image:
    """Read a picture as RGB, rotated as its EXIF data says. Raises UserError if it is missing, broken or too large.

    ``content`` is the file's content, if that was read before.
    """
    image = read_picture(path, MAX_PIXELS, content)
    try:
        return to_rgb(image)
    except Exception as error:  # for example for colours that a palette lacks
        raise broken(path, error) from None


def find_picture(folder: AnyPath, name: str) -> Path:
    """The path of the picture ``name`` in ``folder``. Raises UserError if it is not there, with a likely reason."""
    if "://" in name:
        raise UserError(f"{name}: a URL; download the picture into {folder} and give its name there")
    path = safe_join(folder, name)
    if not os.path.isfile(path):
        hint = "; write / between folders, not \\" if "\\" in name else ""
        raise UserError(f"{path}: no such picture{hint}")
    return path


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode -> RGB, rotated as its EXIF data says if that is whole. Transparent parts become white."""
    image = upright(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """16-bit or float greyscale -> 8-bit. Pillow's own conversion clips at 255, which makes most pictures white."""
    values = np.nan_to_num(np.array(image, dtype=np.float32), copy=False)
    full = 65535 if image.mode != "F" else 1 if values.max() <= 1 else 255  # floats are 0..1 or 0..255
    if "transparency" in image.info:  # a PNG may declare one grey value transparent
        values[values == image.info["transparency"]] = full
    np.clip(values, 0, full, out=values)
    values *= 255 / full
    return Image.fromarray(values.round().astype(np.uint8))


@dataclass(frozen=True)
class ImageProcessor:
    """Picture -> pixel values. The fields are those of ``preprocessor_config.json``; the defaults are CLIP's.

    ``size`` is {"shortest_edge": pixels}, which keeps the aspect ratio, or {"height": pixels, "width": pixels}.
    ``crop_size`` is {"height": pixels, "width": pixels}; a smaller picture gets a black border. ``do_pad`` first pads
    the picture to a square with the mean colour, as LLaVA-1.5 does (``image_aspect_ratio: "pad"``), so that cropping
    removes nothing. ``resample`` is the number of a Pillow filter.
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

    @classmethod
    def for_size(cls, size: int) -> "ImageProcessor":
        """CLIP's processing, with results of ``size`` x ``size`` pixels."""
        return cls(size={"shortest_edge": size}, crop_size={"height": size, "width": size})

    @classmethod
    def from_pretrained(cls, folder: AnyPath) -> "ImageProcessor":
        """Read the folder's processor_config.json or preprocessor_config.json. Raises UserError, naming the file."""
        return cls(**read_processor(folder))

    def fitting(self, fit: str, size: int) -> "ImageProcessor":
        """The same processing with results of ``size`` x ``size`` pixels: the middle of the picture ("crop"), or all of
        it on a square of the mean colour ("pad")."""
        own = ImageProcessor.for_size(size)
        return replace(
            self, do_pad=fit == "pad", do_resize=True, size=own.size, do_center_crop=True, crop_size=own.crop_size
        )

    def to_dict(self) -> dict:
        """The configuration in the form that transformers reads."""
        return processor_to_json(asdict(self))

    @property
    def output_size(self) -> tuple[int, int] | None:
        """(height, width) of the results; None if it depends on the picture."""
        sides = self.crop_size if self.do_center_crop else self.size if self.do_resize else {}
        if "height" in sides:
            return sides["height"], sides["width"]
        return (sides["shortest_edge"],) * 2 if sides and self.do_pad else None

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """A picture of any mode -> (3, H, W) float32. Raises UserError if it would grow beyond MAX_GROWN."""
        scale = float(self.rescale_factor) if self.do_rescale else 1
        pixels = (np.asarray(self.view(image)) * scale).astype(np.float32)  # (H, W, 3)
        if self.do_normalize:
            pixels = (pixels - np.float32(self.image_mean)) / np.float32(self.image_std)
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    def view(self, image: Image.Image) -> Image.Image:
        """The picture as the tower sees it: in RGB, padded, resized and cropped. Raises UserError like a call."""
        image = to_rgb(image)
        if self.do_pad:
            colour = tuple(int(mean * 255) for mean in self.image_mean)
            square = Image.new("RGB", self._padded(*image.size), colour)
            square.paste(image, ((square.width - image.width) // 2, (square.height - image.height) // 2))
            image = square
        if self.do_resize:
            image = image.resize(self._resized(*image.size), self.resample)
        if self.do_center_crop:
            width, height = self.crop_size["width"], self.crop_size["height"]
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))  # black outside the picture
        return image

    def window(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The part of a picture of ``width`` x ``height`` pixels that the result shows: x1, y1, x2, y2.

        They are fractions of the picture's width and height: below 0 and above 1 is the border around the picture.
        Raises UserError like a call.
        """
        padded = self._padded(width, height) if self.do_pad else (width, height)
        resized = self._resized(*padded) if self.do_resize else padded
        cropped = (self.crop_size["width"], self.crop_size["height"]) if self.do_center_crop else resized
        starts, ends = [], []
        for own, whole, scaled, kept in zip((width, height), padded, resized, cropped):
            start = (scaled - kept) // 2 * whole / scaled - (whole - own) // 2  # in pixels of the picture
            starts.append(start / own)
            ends.append((start + kept * whole / scaled) / own)
        return *starts, *ends

    def cut(self, width: int, height: int) -> float:
        """The fraction of such a picture's area that the result does not show. Raises UserError like a call."""
        x1, y1, x2, y2 = self.window(width, height)
        return 1 - (min(x2, 1) - max(x1, 0)) * (min(y2, 1) - max(y1, 0))

    def _padded(self, width: int, height: int) -> tuple[int, int]:
        return _allowed((width, height), (max(width, height),) * 2)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        if shortest := self.size.get("shortest_edge"):
            short = min(width, height)
            return _allowed((width, height), (shortest * width // short, shortest * height // short))
        _allowed((width, height), (self.size["width"], max(height, self.size["height"])))  # Pillow resizes rows first
        return self.size["width"], self.size["height"]


def _allowed(old: tuple[int, int], new: tuple[int, int]) -> tuple[int, int]:
    if math.prod(new) > MAX_GROWN:
        raise UserError(f"{old[0]} x {old[1]} pixels would become {new[0]} x {new[1]}: too large")
    return new


def safe_join(folder: AnyPath, name: str) -> Path:
    """``folder/name``, where each ``..`` of the name removes the part before it.

    Raises UserError if the name is absolute or climbs out of the folder. Links in the folder are followed wherever they
    lead: a name comes from a file that anyone wrote, a link from the folder's owner.
    """
    parts: list[str] = []
    for part in Path(name).parts:
        if part == Path(name).anchor or (part == ".." and not parts):
            raise UserError(f"image path {name!r} leads out of {folder}")
        if part == "..":
            parts.pop()
        else:
            parts.append(part)
    return Path(folder, *parts)
