"""A file that holds one JSON object."""

import json
from pathlib import Path

from minillava.errors import UserError

JSON_BYTES = 1_000_000  # a larger configuration, or index of shards, is refused


def read_bytes(path: Path, most: int) -> bytes:
    """A file's contents. Raises UserError where it cannot be read or has more than ``most`` bytes."""
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    if len(content) > most:
        raise UserError(f"{path}: more than {most} bytes, larger than any such file")
    return content


def read_json_object(path: Path) -> dict:
    """Raises UserError where there is no file, or it is too large, or holds no JSON object."""
    return parse_json_object(path, read_bytes(path, JSON_BYTES))


def parse_json_object(path: Path, content: bytes) -> dict:
    """``content`` is that of ``path``. Raises UserError where it is no JSON object."""
    try:
        value = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__}, not a JSON object")
    return value
