"""Picture -> ``pixel_values``: shrink or grow to the tower's size, cut out the middle square, normalise."""

import os
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from minillava.errors import UserError

MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, of red, green and blue in 0..1
STD = (0.26862954, 0.26130258, 0.27577711)
MAX_PIXELS = 100_000_000  # a picture that claims more is refused before it is decoded


def open_image(path: str | os.PathLike) -> Image.Image:
    """Read a picture as RGB, turned upright. Raises UserError where there is none, or it is broken or too large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the check below is the limit
            image = Image.open(path)
        if image.width * image.height > MAX_PIXELS:
            raise UserError(f"{path}: {image.width} x {image.height} pixels is more than {MAX_PIXELS:,}")
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:  # what shines through is white, as on a page
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such picture") from None
    except Exception as error:  # Pillow's decoders fail in many ways on bytes that are no picture
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a readable picture ({reason})") from None


def to_pixel_values(image: Image.Image, size: int) -> torch.Tensor:
    """An RGB picture -> (3, size, size) float32, normalised as CLIP does.

    The shorter side becomes ``size`` (bicubic), then the middle square is cut out.
    """
    if image.mode != "RGB":
        image = image.convert("RGB")
    if image.size != (size, size):
        image = image.resize([size * side // min(image.size) for side in image.size], Image.Resampling.BICUBIC)
        left, top = (image.width - size) // 2, (image.height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    pixels = np.asarray(image, dtype=np.float32) / 255
    return torch.from_numpy((pixels - np.float32(MEAN)) / np.float32(STD)).permute(2, 0, 1).contiguous()


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
