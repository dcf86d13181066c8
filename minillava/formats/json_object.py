"""A file that holds one JSON object."""

import json
from pathlib import Path

from minillava.errors import UserError

JSON_BYTES = 1_000_000  # a larger configuration, or index of shards, is refused


def read_json_object(path: Path) -> dict:
    """Raises UserError where there is no file, or it is too large, or holds no JSON object."""
    try:
        if path.stat().st_size > JSON_BYTES:
            raise UserError(f"{path}: larger than {JSON_BYTES} bytes")
        return parse_json_object(path, path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


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
