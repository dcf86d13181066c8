"""LLaVA's JSON, as the programs of ``data/`` write it: a list with one row a line."""

import json
import os
from collections.abc import Iterable
from pathlib import Path


def conversation(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    """(question, answer) pairs -> ``conversations`` of a row; the picture's mark stands before the first question."""
    said = []
    for question, answer in turns:
        said += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    said[0]["value"] = f"<image>\n{said[0]['value']}"
    return said


def write_rows(path: str | os.PathLike, rows: Iterable[dict]) -> None:
    """Write the rows, one a line.

    The file appears when it is complete: what an interrupted run leaves is ``path``.new, which the next overwrites.
    """
    unfinished = Path(f"{os.fspath(path)}.new")
    with open(unfinished, "w", encoding="utf-8") as file:
        file.write("[")
        for index, row in enumerate(rows):
            file.write((",\n" if index else "\n") + json.dumps(row))
        file.write("\n]\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
