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
MARK = re.compile(r"[ \t\r\n]*([\[,\]]?)[ \t\r\n]*")  # what stands before a row, and what JSON calls white space
DECODER = json.JSONDecoder()


class Rows(Sequence):
    """A file's rows as a sequence: ``rows[5]`` reads the sixth from disk.

    The file is a JSON list of objects, or JSONL, with an object a line.
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
        """How many bytes of the file a row is. Nothing is read."""
        return self._ends[index] - self._starts[index]

    def __getitem__(self, index: int) -> dict:
        try:
            with open(self.path, "rb") as file:  # anew each time: a reader left open would be shared by forked workers
                changed = _state_of(os.fstat(file.fileno())) != self._state
                file.seek(self._starts[index])
                data = file.read(self.size(index))
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror}") from None
        if changed:
            raise UserError(f"{self.path}: has changed since it was opened")
        return json.loads(data)


def _state_of(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_size, stat.st_mtime_ns


def scan(path: str | os.PathLike) -> Iterator[tuple[int, int, dict]]:
    """The rows of a file in one pass, each with the bytes it lies at: (start, end, row).

    Raises UserError for a file that is missing, empty or neither a list nor lines of objects; and, naming row and line,
    for what is no JSON or no UTF-8, for a row that is no object, and for one longer than MAX_ROW characters.
    """
    try:
        # Bytes that are no UTF-8 become lone surrogates, and are found out when the row is measured
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield from _scan(path, file)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def _scan(path: str | os.PathLike, file: TextIO) -> Iterator[tuple[int, int, dict]]:
    text, line = "", 1  # a part of the file, and the line that it begins on
    at, offset, index = 0, 0, 0  # how much of the text is done with, the byte there, and the row that comes next
    between, last, wanted = ",", "]", "a comma or the list's end"  # what stands between rows, and behind the last

    def fault(index: int, place: int, what: str) -> UserError:
        return UserError(f"{path}: not JSON at row {index}, line {line + text.count(chr(10), 0, place)}: {what}")

    while True:
        found = MARK.match(text, at)
        mark, begin, problem = found[1], found.end(), None
        try:
            row, end = DECODER.raw_decode(text, begin)
        except (ValueError, RecursionError) as error:
            rest = text[begin:]
            if len(rest) <= MAX_ROW and (more := file.read(max(CHUNK, len(rest)))):  # it may be that the row goes on
                offset, line = offset + begin - at - len(mark), line + text.count("\n", 0, begin)
                text, at = mark + rest + more, 0
                continue
            problem = error
        if index == 0:
            if text.startswith("{", begin) and not mark:  # no list
                between, last, wanted = "", "", "a row or the file's end"
            elif mark != "[" or text.startswith("]", begin):
                raise UserError(f"{path}: not a list of rows{', but an empty one' if mark == '[' else ''}")
        elif mark == last and begin == len(text):
            return
        elif mark != between:
            raise fault(index - 1, begin, f"after it, {wanted} is wanted")
        if problem:  # also a number of thousands of digits, or thousands of brackets
            what = getattr(problem, "msg", str(problem))
            if len(text) - begin > MAX_ROW:
                what = f"no end within {MAX_ROW:,} characters ({what})"
            raise fault(index, getattr(problem, "pos", begin), what)
        if not isinstance(row, dict):
            raise UserError(f"{path}: row {index}: not an object")
        if end - begin > MAX_ROW:
            raise UserError(f"{path}: row {index}: longer than {MAX_ROW:,} characters")
        try:
            start, size = offset + begin - at, len(text[begin:end].encode())
        except UnicodeEncodeError:
            raise fault(index, begin, "bytes that are no UTF-8") from None
        yield start, start + size, row
        at, offset, index = end, start + size, index + 1
