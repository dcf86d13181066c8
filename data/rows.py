"""LLaVA JSON as the programs in ``data/`` write it: a list with one row per line."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO


def conversation(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    """(question, answer) pairs -> ``conversations`` of a row, with <image> before the first question."""
    said = []
    for question, answer in turns:
        said += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    said[0]["value"] = f"<image>\n{said[0]['value']}"
    return said


def write_rows(path: str | os.PathLike, rows: Iterable[dict]) -> int:
    """Write a JSON list with one row per line, and return the number of rows. The file is complete or not there."""
    count = 0

    def write(file: BinaryIO) -> None:
        nonlocal count
        file.write(b"[")
        for count, row in enumerate(rows, 1):
            file.write(("\n" if count == 1 else ",\n").encode() + json.dumps(row).encode())
        file.write(b"\n]\n")

    write_whole(path, write)
    return count


def write_whole(path: str | os.PathLike, write: Callable[[BinaryIO], None]) -> None:
    """Let ``write`` write ``path``.new, which is renamed when it is complete. So an error, such as a full disk, leaves
    what was there. The next run overwrites a ``path``.new left by an interrupted one."""
    path = Path(path)
    new = path.with_name(f"{path.name}.new")
    with open(new, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
