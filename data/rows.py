"""LLaVA JSON as the programs in ``data/`` write it: a list with one row per line."""

import json
import os
from collections.abc import Iterable
from typing import BinaryIO

from minillava.files import write_whole


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
