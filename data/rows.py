"""Writing LLaVA JSON, one row at a time."""

import json
import os
from collections.abc import Iterable
from pathlib import Path


def write_rows(path: str | os.PathLike, rows: Iterable[dict]) -> int:
    """Write a JSON list with one row a line, and return how many rows it has.

    The file appears when it is complete: until then it is ``path``.new, which the next run overwrites.
    """
    path = Path(path)
    new = path.with_name(f"{path.name}.new")
    count = 0
    with open(new, "w", encoding="utf-8") as file:
        file.write("[")
        for count, row in enumerate(rows, 1):
            file.write(("\n" if count == 1 else ",\n") + json.dumps(row))
        file.write("\n]\n")
    os.replace(new, path)
    return count
