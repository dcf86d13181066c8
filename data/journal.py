"""A file that keeps every reply of a teacher as it arrives, so that nothing is asked and paid for twice.

It is a JSONL file. The first line is the setup of the build; each further line is a reply, or why there is none::

    {"contexts": "5be2...", "prompts": "91ac...", "teacher": "openai gpt-4o-mini", "mix": [58, 23, 77], "seed": 0}
    {"id": "000000391895-reasoning", "reply": "Question: ...", "tokens": [812, 140]}
    {"id": "000000391895-detail", "error": "incomplete text (finish_reason length)", "tokens": [801, 512]}
"""

import json
import os
import threading
import time
from collections import defaultdict
from pathlib import Path

from minillava.errors import UserError

MOST_TOKENS = 10**9  # of one reply
SYNC_EVERY = 1.0  # seconds. Killing the program loses nothing that was flushed; a power cut loses at most a second


class Journal:
    """``entries[row id]`` lists the entries of one row in the order of arrival. Threads may share a journal."""

    def __init__(self, path: str | os.PathLike, setup: dict):
        """Open the journal of a build, or create it. An incomplete last line is dropped.

        Raises UserError if ``path`` is the journal of a build with another ``setup``, or not a journal.
        """
        self.path, self.entries = Path(path), defaultdict(list)
        self._lock, self._synced = threading.Lock(), 0.0
        try:
            self._file = open(path, "a+b")  # noqa: SIM115 (it stays open during the build)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror or error}") from None
        self._file.seek(0)
        complete = 0  # bytes of complete lines
        for number, line in enumerate(self._file, 1):
            if number > 1 and not line.endswith(b"\n"):
                break
            try:
                entry = json.loads(line)
                if number > 1:
                    self.entries[entry["id"]].append(_checked(entry))
                elif entry != setup:
                    differ = ", ".join(key for key in setup if entry[key] != setup[key])
                    raise UserError(f"{path}: belongs to a build with other {differ}; remove it or give another --out")
            except (ValueError, KeyError, TypeError, RecursionError):
                raise UserError(f"{path}: line {number}: not a journal entry; give another --out") from None
            complete += len(line)
        self._file.truncate(complete)
        if not complete:
            self._write(setup)

    def append(self, entry: dict) -> None:
        """Write an entry: "id", "reply" or "error", and "tokens" (prompt, completion).

        Raises UserError if it cannot be written to disk.
        """
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
    """Return the entry. Raises KeyError, TypeError or ValueError if it is not valid."""
    text = entry["reply"] if "reply" in entry else entry["error"]
    if not isinstance(text, str) or [type(count) for count in entry["tokens"]] != [int, int]:
        raise TypeError("not an entry")
    if not 0 <= min(entry["tokens"]) <= max(entry["tokens"]) <= MOST_TOKENS:
        raise ValueError("no numbers of tokens")
    return entry
