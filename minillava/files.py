"""Files: what is checked before one is opened, and how our own programs write theirs, whole or not at all.

What writes raises OSErrors that name the file.
"""

import errno
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from minillava.errors import UserError

MOST_BYTES = 1 << 30  # of a log; a million steps have 200 MB


def check_regular(path: str | os.PathLike, most: int | None = None) -> None:
    """Raise UserError unless ``path`` is a regular file, or a link to one, of at most ``most`` bytes.

    A pipe may never begin, and a device such as /dev/zero never ends.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise UserError(f"{path}: {getattr(error, 'strerror', error)}") from None
    if stat.S_ISDIR(found.st_mode):
        raise UserError(f"{path}: {os.strerror(errno.EISDIR)}")
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path}: a pipe, a device or a socket, not a file")
    if most is not None and found.st_size > most:
        raise UserError(f"{path}: more than {most:,} bytes, larger than a file of this kind can be")


@contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Inside this context, an OSError that names no file, such as that of a full disk, names ``path``."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None


def write_whole(path: str | os.PathLike, write: Callable[[BinaryIO], None]) -> None:
    """Let ``write`` write ``path``.new, which is renamed when it is complete. So an error, such as a full disk, leaves
    what was there. The next run overwrites a ``path``.new left by an interrupted one."""
    path = Path(path)
    new = path.with_name(f"{path.name}.new")
    with naming(path):
        with open(new, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    """Write a log, with one row per line."""
    write_whole(path, lambda file: file.writelines(json.dumps(row).encode() + b"\n" for row in rows))


def append_jsonl(path: Path, row: dict) -> None:
    """Add a line to a log, at once."""
    with naming(path), open(path, "ab", buffering=0) as file:
        file.write(json.dumps(row).encode() + b"\n")


def read_jsonl(path: Path) -> list[dict]:
    """The whole lines of a log; none if there is no such file. A kill, or a full disk, may have torn some."""
    if not path.exists():
        return []
    check_regular(path, MOST_BYTES)
    rows = []
    for line in path.read_bytes().split(b"\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def read_steps(path: Path, done: int, whole: dict[str, type]) -> list[dict]:
    """The lines of a training's log up to step ``done``, in order, one for each step that has a whole line: with values
    of these types at the keys of ``whole``."""
    rows = {row["step"]: row for row in read_jsonl(path) if type(row.get("step")) is int and 0 <= row["step"] <= done}
    return [row for _, row in sorted(rows.items()) if all(type(row.get(key)) is kind for key, kind in whole.items())]


def standing(folder: str | os.PathLike) -> Path:
    """``folder``, or if it is not there the folder.old that saving.replace_folder() leaves if it is killed between its
    two renames."""
    folder = Path(folder)
    old = folder.with_name(f"{folder.name}.old") if folder.name else folder
    return old if not os.path.exists(folder) and os.path.isdir(old) else folder
