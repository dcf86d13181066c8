"""Rows that are kept as they are, though something in them is odd: probably a mistake of whoever wrote the file."""

import json
import re
from contextlib import suppress

TWICE, HALF, EMPTY = "key twice", "half a character", "empty answer"
KEY = re.compile(r'"[ \t\r\n]*:')  # the end of each key, and sometimes a part of a text
HALVES = re.compile(r"\\u[dD][89a-fA-F]")
# What begins with a backslash: a character of two surrogates; one surrogate, half of a character; anything else.
ESCAPE = re.compile(r"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(u[dD][89a-fA-F]..)|.)")


def oddities(text: str, row: dict) -> list[tuple[str, str]]:
    """What is odd in ``row``, whose JSON is ``text``: pairs of what (TWICE, HALF or EMPTY) and why."""
    odd = []
    lists = [value for value in row.values() if type(value) is list]
    keys = len(row) + sum([len(part) for value in lists for part in value if type(part) is dict])
    # The text of few rows has more: those with deeper objects, or texts that look like keys. Only they are read again.
    if len(KEY.findall(text)) != keys and (key := _key_twice(text)) is not None:
        odd.append((TWICE, f"{key!r} is there twice in one object"))
    if HALVES.search(text) and (half := next((found[0] for found in ESCAPE.finditer(text) if found[1]), None)):
        odd.append((HALF, f"{half} is half of a character"))
    turns = row.get("conversations")
    for number, turn in enumerate(turns if type(turns) is list else ()):
        if number % 2 and type(turn) is dict and not str(turn.get("value", "none")).strip():
            odd.append((EMPTY, f"turn {number}, an answer, is empty"))
            break
    return odd


def _key_twice(text: str) -> str | None:
    """The first key that an object in ``text`` has twice."""
    twice = []

    def look(pairs: list[tuple[str, object]]) -> dict:
        known = {}
        for name, value in pairs:
            if name in known:
                twice.append(name)
            known[name] = value
        return known

    with suppress(RecursionError):  # of a row that is about as deep as can be read at all
        json.loads(text, object_pairs_hook=look)
    return twice[0] if twice else None
