"""Files that hold one JSON object."""

import json
from pathlib import Path

from minillava.errors import UserError
from minillava.files import check_regular

JSON_BYTES = 1_000_000  # maximum size of a config or an index of shards
MOST_LEVELS = 30  # of lists and objects inside each other
POINTER = b"version https://git-lfs.github.com/spec/"  # how a Git-LFS pointer begins


def read_bytes(path: Path, most: int) -> bytes:
    """A file's contents. Raises UserError if it is unreadable, has more than ``most`` bytes or is a Git-LFS pointer."""
    check_regular(path, most)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    refuse_pointer(path, content)
    return content


def refuse_pointer(path: Path, begin: bytes) -> None:
    """Raise UserError if ``begin``, the first bytes of a file, is a Git-LFS pointer: git cloned it without git-lfs."""
    if begin.startswith(POINTER):
        raise UserError(f"{path}: a Git-LFS pointer, not the file itself; run 'git lfs pull' there, or download it")


def read_json_object(path: Path) -> dict:
    """Read a JSON object. Raises UserError if the file is missing, too large (JSON_BYTES), not a JSON object, or nested
    more than MOST_LEVELS deep."""
    value = parse_json_object(path, read_bytes(path, JSON_BYTES))
    if _is_deeper(value, MOST_LEVELS):
        raise UserError(f"{path}: nested more than {MOST_LEVELS} deep")
    return value


def _is_deeper(value: object, levels: int) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels == 0 or any(_is_deeper(part, levels - 1) for part in parts)


def parse_json_object(path: Path, content: bytes) -> dict:
    """Parse ``content``, the bytes of the file ``path``. Raises UserError if it is not a JSON object."""
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__}, not a JSON object")
    return value
