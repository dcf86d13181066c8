"""Every reply of a teacher, written down as it arrives: what was asked and paid for once is never asked for again.

A JSONL file: the first line is the set-up of the build, each further one a reply, or why there is none::

    {"contexts": "5be2...", "prompts": "91ac...", "teacher": "openai gpt-4o-mini", "mix": [58, 23, 77], "seed": 0}
    {"id": "000000391895-reasoning", "reply": "Question: ...", "tokens": [812, 140]}
    {"id": "000000391895-detail", "error": "no whole text (finish_reason length)", "tokens": [801, 512]}
"""

import json
import os
import threading
import time
from collections import defaultdict
from pathlib import Path

from minillava.errors import UserError

SYNC_EVERY = 1.0  # seconds. A killed program loses nothing that was flushed; only a power cut could, and a second's


class Journal:
    """``entries[row id]`` lists what is written about one row, in the order of arrival. Threads may share it."""

    def __init__(self, path: str | os.PathLike, setup: dict):
        """Open the journal of a build, or begin it. A last line that was cut off in mid-write is dropped.

        Raises UserError where ``path`` is the journal of another set-up, or no journal.
        """
        self.path, self.entries = Path(path), defaultdict(list)
        self._lock, self._synced = threading.Lock(), 0.0
        try:
            self._file = open(path, "a+b")  # noqa: SIM115 (it is open as long as the build runs)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        self._file.seek(0)
        complete = 0  # bytes of lines that are whole
        for number, line in enumerate(self._file, 1):
            if number > 1 and not line.endswith(b"\n"):
                break
            try:
                entry = json.loads(line)
                if number > 1:
                    self.entries[entry["id"]].append(_checked(entry))
                elif entry != setup:
                    differ = ", ".join(key for key in setup if entry[key] != setup[key])
                    raise UserError(f"{path}: of a build with other {differ}; remove it, or give another --out")
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{path}: line {number}: not what a build writes; give another --out") from None
            complete += len(line)
        self._file.truncate(complete)
        if not complete:
            self._write(setup)

    def append(self, entry: dict) -> None:
        """Write an entry down: "id", "reply" or "error", and "tokens" (prompt, completion). Raises UserError where the
        disk does not take it."""
        with self._lock:
            self._write(entry)
            self.entries[entry["id"]].append(entry)

    def _write(self, entry: dict) -> None:
        try:
            self._file.write(json.dumps(entry).encode() + b"\n")
            self._file.flush()
            if time.monotonic() - self._synced > SYNC_EVERY:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror}") from None


def _checked(entry: dict) -> dict:
    """The entry itself. Raises KeyError or TypeError where it is none."""
    text = entry["reply"] if "reply" in entry else entry["error"]
    if not isinstance(text, str) or [type(count) for count in entry["tokens"]] != [int, int]:
        raise TypeError("not an entry")
    return entry
