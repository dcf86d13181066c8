"""Logs of our own programs: a JSON object on each line. A kill, or a full disk, may tear a line.

Errors are OSErrors that name the file.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Inside this context, an OSError names ``path``. That of a full disk names no file by itself."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def read_jsonl(path: Path) -> list[dict]:
    """The lines of a log that are whole; none if there is no such file."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    """Write a log as a whole, or not at all."""
    new = path.with_name(f"{path.name}.new")
    with naming(path):
        new.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        os.replace(new, path)


def append_jsonl(path: Path, row: dict) -> None:
    """Add a line to a log, at once."""
    with naming(path), open(path, "ab", buffering=0) as file:
        file.write(json.dumps(row).encode() + b"\n")
