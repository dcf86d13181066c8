"""LLaVA JSON of any size: one pass finds where its rows lie, and each is read from disk when it is asked for.

``json.load`` makes objects of a whole file, several times its size in memory, and every worker process comes to hold a
copy. Here a row costs sixteen bytes, in arrays that forked workers share.
"""

import json
import os
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from minillava.errors import UserError

CHUNK = 1 << 20  # characters read at a time
MAX_ROW = 1 << 19  # characters; no file may fill the memory, and tiktoken breaks on a million spaces in a row
SPACE = re.compile(r"[ \t\r\n]*")  # what JSON calls white space
DECODER = json.JSONDecoder()


class Rows(Sequence):
    """The rows of a JSON list of objects, as a sequence: ``rows[5]`` reads the sixth from disk.

    ``check`` is called with each row as the file is opened, and raises UserError where it does not like one.
    Raises UserError, naming the row, for what ``scan`` and ``check`` refuse, and for a file that changes afterwards.
    """

    def __init__(self, path: str | os.PathLike, check: Callable[[dict], None] = lambda row: None):
        self.path = Path(path)
        self._starts, self._ends = array("q"), array("q")  # bytes of the file
        for index, (start, end, row) in enumerate(scan(path)):
            try:
                check(row)
            except UserError as error:
                raise UserError(f"{path}: row {index}: {error}") from None
            self._starts.append(start)
            self._ends.append(end)
        self._state = _state_of(self.path.stat())

    def __len__(self) -> int:
        return len(self._starts)

    def size(self, index: int) -> int:
        """The bytes of a row in its file, known without parsing it."""
        return self._ends[index] - self._starts[index]

    def __getitem__(self, index: int) -> dict:
        start, end = self._starts[index], self._ends[index]
        try:
            with open(self.path, "rb") as file:  # anew each time: a reader left open would be shared by forked workers
                changed = _state_of(os.fstat(file.fileno())) != self._state
                file.seek(start)
                data = file.read(end - start)
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror}") from None
        if changed:
            raise UserError(f"{self.path}: has changed since it was opened")
        return json.loads(data)


def _state_of(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_size, stat.st_mtime_ns


def scan(path: str | os.PathLike) -> Iterator[tuple[int, int, dict]]:
    """The rows of a JSON list of objects, in one pass: each with the bytes it lies at, (start, end, row).

    Raises UserError for a file that is missing or no list, or an empty one; and, naming row and line, for what is no
    JSON or no UTF-8, for a row that is no object, and for one longer than MAX_ROW characters.
    """
    try:
        # Bytes that are no UTF-8 become lone surrogates, and are found out when the row is measured
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield from _scan(path, _Window(file))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


class _Window:
    """The part of a file that is being looked at: ``text``, of which what is before ``at`` is done with.

    ``offset`` and ``line`` are the byte and the line that ``at`` is on.
    """

    def __init__(self, file: TextIO):
        self.file, self.text, self.at = file, "", 0
        self.offset, self.line = 0, 1

    def grow(self) -> bool:
        """Read on, by at least as much as is still to be done. False at the end of the file."""
        rest = self.text[self.at :]
        more = self.file.read(max(CHUNK, len(rest)))
        self.text, self.at = rest + more, 0
        return bool(more)

    def advance(self, to: int, size: int) -> None:
        """Be done with the text up to ``to``, ``size`` bytes."""
        self.line += self.text.count("\n", self.at, to)
        self.offset += size
        self.at = to

    def next_character(self) -> str:
        """Step over white space. The character that follows, which stays; "" at the end of the file."""
        while True:
            end = SPACE.match(self.text, self.at).end()
            self.advance(end, end - self.at)
            if end < len(self.text):
                return self.text[end]
            if not self.grow():
                return ""


def _scan(path: str | os.PathLike, window: _Window) -> Iterator[tuple[int, int, dict]]:
    index = 0

    def fault(what: str, line: int) -> UserError:
        return UserError(f"{path}: not JSON at row {index}, line {line}: {what}")

    if window.next_character() != "[":
        raise UserError(f"{path}: not a list of rows")
    window.advance(window.at + 1, 1)
    if window.next_character() == "]":
        raise UserError(f"{path}: not a list of rows, but an empty one")
    while True:
        window.next_character()
        try:
            row, end = DECODER.raw_decode(window.text, window.at)
        except json.JSONDecodeError as error:
            length = len(window.text) - window.at
            if length <= MAX_ROW and window.grow():  # it may be that the row goes on
                continue
            what = error.msg if length <= MAX_ROW else f"no end within {MAX_ROW:,} characters ({error.msg})"
            raise fault(what, window.line + window.text.count("\n", window.at, error.pos)) from None
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
            raise fault(str(error), window.line) from None
        try:
            size = len(window.text[window.at : end].encode())
        except UnicodeEncodeError:
            raise fault("bytes that are no UTF-8", window.line) from None
        if not isinstance(row, dict):
            raise UserError(f"{path}: row {index}: not an object")
        if end - window.at > MAX_ROW:
            raise UserError(f"{path}: row {index}: longer than {MAX_ROW:,} characters")
        start = window.offset
        window.advance(end, size)
        yield start, start + size, row
        mark = window.next_character()
        if mark not in (",", "]"):
            raise fault("after it, a comma or the list's end is wanted", window.line)
        window.advance(window.at + 1, 1)
        if mark == "]":
            break
        index += 1
    if window.next_character():
        raise fault("something follows the list", window.line)
