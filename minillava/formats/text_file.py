"""Text files that people write: UTF-8, with or without a byte order mark. Files of other kinds are refused by name."""

import os
import re
from pathlib import Path

from minillava.errors import UserError
from minillava.files import check_regular
from minillava.formats.json_object import refuse_pointer

TEXT_BYTES = 1 << 30  # maximum size of a text that is read whole
# How a file of another kind begins (a pattern), and what is said of it.
KINDS = {
    rb"\xff\xfe|\xfe\xff|[\[{]\0|\0[\[{]": "UTF-16; save it as UTF-8",
    rb"\x1f\x8b": "compressed with gzip; unpack it first",
    rb"BZh[1-9]1AY&SY": "compressed with bzip2; unpack it first",
    rb"\xfd7zXZ\0": "compressed with xz; unpack it first",
    rb"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it first",
    rb"PK\x03\x04": "a zip archive; unpack it first",
    rb"PAR1\x15": "a Parquet file; write its rows as JSON first",
}


def begin_of(path: str | os.PathLike, most: int | None = None) -> bytes:
    """The first bytes of a file. Raises UserError if it is missing, no regular file, larger than ``most`` bytes, or not
    text in UTF-8 but of another known kind."""
    check_regular(path, most)
    try:
        with open(path, "rb") as file:
            begin = file.read(100)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    refuse_pointer(Path(path), begin)
    for pattern, what in KINDS.items():
        if re.match(pattern, begin):
            raise UserError(f"{path}: {what}")
    return begin


def read_lines(path: str | os.PathLike) -> list[tuple[int, str]]:
    """The non-empty lines of a text file, each with its number from 1. Raises UserError if there are none, or if the
    file is missing or not UTF-8."""
    begin_of(path, TEXT_BYTES)
    try:
        lines = [(n, line) for n, line in enumerate(Path(path).read_text(encoding="utf-8-sig").split("\n"), 1) if line]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error.strerror if isinstance(error, OSError) else error}") from None
    if not lines:
        raise UserError(f"{path}: an empty file")
    return lines
