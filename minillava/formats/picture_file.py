"""Picture files, decoded by Pillow."""

import io
import os
import warnings

from PIL import Image, ImageOps, UnidentifiedImageError

from minillava.errors import UserError
from minillava.files import check_regular

MAX_BYTES = 1 << 30  # maximum size of a file: 16-bit TIFF without compression has 8 bytes a pixel
# Pillow reports damaged EXIF data and large pictures; what cannot be read, and what is too large, is decided here.
warnings.filterwarnings("ignore", module=r"PIL\.")


def read_picture(path: str | os.PathLike, most: int, content: bytes | None = None) -> Image.Image:
    """Decode a picture of at most ``most`` pixels. Raises UserError if it is missing, broken or too large.

    With ``content``, that is the picture's file, and ``path`` is only its name in errors.
    """
    if content is None:
        if not os.path.exists(path):
            raise UserError(f"{path}: no such picture")
        check_regular(path, MAX_BYTES)
    try:
        image = Image.open(path if content is None else io.BytesIO(content))
        if image.format == "EPS":
            raise ValueError("EPS, a program that Ghostscript would run")
        if image.width * image.height > most:
            raise ValueError(f"{image.width} x {image.height} pixels is more than {most:,}")
        image.load()
        return image
    except Exception as error:  # Pillow raises errors of many types for broken files
        raise broken(path, error) from None


def upright(image: Image.Image) -> Image.Image:
    """The picture, rotated as its EXIF data says; if that data is damaged, the picture as it is."""
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # as above; what is wrong with the pixels shows when they are converted
        return image


def broken(path: str | os.PathLike, error: Exception) -> UserError:
    """The UserError for a picture of which Pillow says ``error``."""
    reason = "no known format" if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())
    return UserError(f"{path}: not a readable picture ({reason})")
