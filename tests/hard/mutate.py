"""Broken versions of bytes, of JSON values and of files."""

import os
import random
from pathlib import Path

# What a JSON file may hold in place of any value.
EVIL = (
    10**400, -(10**400), 10**30, 2**63, 2**31, 10**9, 10**6, 0, -1, -7, 1, 1.5, 1e308, -1e308, 5e-324, float("nan"),
    float("inf"), float("-inf"), True, False, None, "", "x", "\0", "\ud800", "a/../../b", "y" * 5000, "NaN", [], {},
    [[]], [None], ["x"], [10**400], [0, 0, 0], {"x": 1}, {"type": "x"}, [[[[[[[[]]]]]]]],
)  # fmt: skip


def bytes_of(data: bytes, rng: random.Random, header: int = 200, other: bytes = b"") -> bytes:
    """``data`` with flipped bits, other numbers in its header, cut off, or spliced with ``other``."""
    broken = bytearray(data)
    for _ in range(rng.randint(1, 2)):
        how, size = rng.randrange(5), max(1, len(broken))
        at = rng.randrange(rng.choice((size, min(size, header))))
        if how == 0:
            for _ in range(rng.randint(1, 8)):
                if broken:
                    broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        elif how == 1:
            width = rng.choice((1, 2, 4, 8))
            top = 256**width
            value = rng.choice((0, 1, 2, 255, 256, 10_000, 50_000, 65_535, top // 2 - 1, top // 2, top - 1)) % top
            broken[at : at + width] = value.to_bytes(width, rng.choice(("little", "big")))
        elif how == 2:
            del broken[rng.randrange(size) :]
        elif how == 3:
            start = rng.randrange(len(other) + 1)
            broken[at : at + rng.randrange(64)] = other[start : start + rng.randrange(200)]
        else:
            del broken[at : at + rng.randrange(1, 40)]
    return bytes(broken)


def value_of(value: object, rng: random.Random) -> object:
    """A JSON value with one part, at any depth, replaced by one of EVIL, left out, or there under another key."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.05:
        return rng.choice(EVIL)
    if isinstance(value, dict):
        key, changed = rng.choice(list(value)), dict(value)
    else:
        key, changed = rng.randrange(len(value)), list(value)
    if rng.random() < 0.1:
        del changed[key]
    else:
        changed[key] = value_of(value[key], rng)
        if isinstance(changed, dict) and len(changed) > 1 and rng.random() < 0.05:
            changed[rng.choice(list(changed))] = changed.pop(key)
    return changed


def no_file(path: Path, rng: random.Random) -> None:
    """Put a pipe, a folder, a link to a device or to nothing, an empty file or nothing in the place of ``path``."""
    path.unlink(missing_ok=True)
    how = rng.randrange(7)
    if how == 0:
        os.mkfifo(path)
    elif how == 1:
        path.mkdir()
    elif how < 5:
        path.symlink_to(("/dev/zero", path.with_name("nowhere"), path.name)[how - 2])
    elif how == 5:
        path.write_bytes(b"")
