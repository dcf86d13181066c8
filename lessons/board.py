"""How far the exercises are: the bodies of each part that pass, that are only written, and that are to be written.

``pytest tests/test_PART.py --exercise`` stores which bodies passed next to the file's hash, so no test is run here.
"""

import hashlib
import json
from pathlib import Path

from lessons.parts import FOLDER, PARTS
from lessons.stand_in import BadFile, to_write

VERDICTS = ".verdicts.json"  # in the folder of the reader's files


def record(part: str, file: Path, passed: list[str]) -> None:
    """Store which bodies of a reader's file pass, for the file as it is now."""
    stored = _stored(file.parent) | {part: {"sha256": _hash(file), "passed": passed}}
    (file.parent / VERDICTS).write_text(json.dumps(stored), encoding="utf-8")


def board(folder: Path = FOLDER) -> list[str]:
    """Lines of text: how many of all bodies pass, then a row for each part.

    A body passes if it did so when the file, as it is now, was last tested.
    """
    stored, rows, passing = _stored(folder), [], 0
    for part, bodies in PARTS.items():
        file = folder / f"{part}.py"
        if not file.exists():
            rows.append(f"{part:<18}{0:>5}{0:>9}{len(bodies):>10}   python -m lessons.exercise {part}")
            continue
        try:
            left = len(to_write(part, file))
        except BadFile as error:
            rows.append(f"{part:<18}{error}")
            continue
        verdict = stored.get(part, {})
        passed = len(bodies.keys() & set(verdict["passed"])) if verdict.get("sha256") == _hash(file) else 0
        passing += passed
        written = len(bodies) - left - passed
        row = f"{part:<18}{passed:>5}{written:>9}{left:>10}"
        rows.append(f"{row}   pytest tests/test_{part}.py --exercise" if written else row)
    head = f"{passing} of {sum(map(len, PARTS.values()))} bodies pass"
    return [head, f"{'':<18} pass  written  to write", *rows]


def _stored(folder: Path) -> dict:
    try:
        return json.loads((folder / VERDICTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not tested yet, or written by something else
        return {}


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
