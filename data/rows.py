"""LLaVA JSON as the programs in ``data/`` write it: a list with one row per line."""

import json
import os
from collections.abc import Iterable
from pathlib import Path


def conversation(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    """(question, answer) pairs -> ``conversations`` of a row, with <image> before the first question."""
    said = []
    for question, answer in turns:
        said += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    said[0]["value"] = f"<image>\n{said[0]['value']}"
    return said


def write_rows(path: str | os.PathLike, rows: Iterable[dict]) -> int:
    """Write a JSON list with one row per line, and return the number of rows.

    The rows are written to ``path``.new, which is renamed when it is complete. The next run overwrites a ``path``.new
    left by an interrupted one.
    """
    path = Path(path)
    new = path.with_name(f"{path.name}.new")
    count = 0
    with open(new, "w", encoding="utf-8") as file:
        file.write("[")
        for count, row in enumerate(rows, 1):
            file.write(("\n" if count == 1 else ",\n") + json.dumps(row))
        file.write("\n]\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
    return count
