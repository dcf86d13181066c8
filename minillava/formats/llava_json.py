"""LLaVA JSON of any size: one pass finds the position of each row, and a row is read from disk when it is asked for.

``json.load`` builds objects for the whole file, which take several times its size in memory, and each worker process
ends up with its own copy. Here a row costs sixteen bytes, in arrays that forked workers share.
"""

import codecs
import json
import os
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from minillava.errors import UserError
from minillava.formats.odd_rows import oddities
from minillava.formats.pope import from_pope, is_pope
from minillava.formats.text_file import begin_of

CHUNK = 1 << 20  # characters read at a time
MAX_ROW = 1 << 19  # characters; bounds the memory used, and tiktoken fails on a million consecutive spaces
MARK = re.compile(r"[ \t\r\n]*([\[,\]]?)[ \t\r\n]*")  # the bracket or comma before a row, with JSON's white space
DECODER = json.JSONDecoder()
Tell = Callable[[int, str, str], None]


class Rows(Sequence):
    """A file's rows as a sequence: ``rows[5]`` reads the sixth row from disk.

    The file is a JSON list of objects, or JSONL with one object per line. Rows of POPE become rows of LLaVA JSON.
    ``check`` is called with each row's index and the row when the file is opened, and raises UserError for a bad one.
    After that ``tell`` is called as scan() does.
    Raises UserError for whatever ``scan`` or ``check`` refuses, naming the row, and if the file changes afterwards.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        check: Callable[[int, dict], None] = lambda index, row: None,
        tell: Tell | None = None,
    ):
        self.path = Path(path)
        self._starts, self._ends = array("q"), array("q")  # byte offsets in the file
        for index, (start, end, row) in enumerate(scan(path, tell)):
            try:
                check(index, row)
            except UserError as error:
                raise UserError(f"{path}: row {index}: {error}") from None
            self._starts.append(start)
            self._ends.append(end)
        self._state = _state_of(self.path.stat())

    def __len__(self) -> int:
        return len(self._starts)

    def size(self, index: int) -> int:
        """The length of a row in bytes. Reads nothing from disk."""
        return self._ends[index] - self._starts[index]

    def __getitem__(self, index: int) -> dict:
        try:
            with open(self.path, "rb") as file:  # opened for each row: forked workers would share a file left open
                changed = _state_of(os.fstat(file.fileno())) != self._state
                file.seek(self._starts[index])
                data = file.read(self.size(index))
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror}") from None
        if changed:
            raise UserError(f"{self.path}: has changed since it was opened")
        try:
            row = json.loads(data)
        except (ValueError, RecursionError) as error:  # the stack may be deeper here than when the file was opened
            raise UserError(f"{self.path}: row {index}: not JSON ({error})") from None
        return from_pope(row) if is_pope(row) else row


def _state_of(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_size, stat.st_mtime_ns


def scan(path: str | os.PathLike, tell: Tell | None = None) -> Iterator[tuple[int, int, dict]]:
    """Yield each row of a file in one pass, with its byte offsets: (start, end, row).

    ``tell`` is called with the index of each odd row, after it was yielded, what is odd, and why (odd_rows.py).
    A byte order mark at the beginning is passed over. Raises UserError for a file that is missing, empty or neither a
    list of objects nor JSONL; naming the row and the line, for invalid JSON or UTF-8; naming the row, if it is not an
    object or longer than MAX_ROW characters.
    """
    offset = len(codecs.BOM_UTF8) if begin_of(path).startswith(codecs.BOM_UTF8) else 0
    try:
        # Invalid UTF-8 becomes lone surrogates, which cannot be encoded when the row's bytes are counted.
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            yield from _scan(path, file, offset, tell)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def _scan(path: str | os.PathLike, file: TextIO, offset: int, tell: Tell | None) -> Iterator[tuple[int, int, dict]]:
    """``offset``: the number of bytes before the file's text."""
    text, line = "", 1  # a part of the file, and the number of its first line
    at, index = 0, 0  # position in text, whose byte offset in the file is ``offset``, and the index of the next row
    between, last, wanted = ",", "]", "a comma or the end of the list"  # the marks between rows and after the last

    def fault(index: int, place: int, what: str) -> UserError:
        return UserError(f"{path}: not JSON at row {index}, line {line + text.count(chr(10), 0, place)}: {what}")

    while True:
        found = MARK.match(text, at)
        mark, begin, problem = found[1], found.end(), None
        try:
            row, end = DECODER.raw_decode(text, begin)
        except (ValueError, RecursionError) as error:
            rest = text[begin:]
            if len(rest) <= MAX_ROW and (more := file.read(max(CHUNK, len(rest)))):  # the row may continue
                offset, line = offset + begin - at - len(mark), line + text.count("\n", 0, begin)
                text, at = mark + rest + more, 0
                continue
            problem = error
        if index == 0:
            if text.startswith("{", begin) and not mark:  # JSONL
                between, last, wanted = "", "", "a row or the end of the file"
            elif mark == "[" and text.startswith("]", begin):
                raise UserError(f"{path}: an empty list")
            elif mark != "[":
                raise UserError(f"{path}: {_unlike_rows(text[at:])}")
        elif mark == last and begin == len(text):
            return
        elif mark != between:
            raise fault(index - 1, begin, f"expected {wanted} after it")
        hint = "; the file must be a list of rows, not one object" if index == 0 and not mark else ""
        if problem:  # bad JSON; also a number of thousands of digits, or thousands of nested brackets
            what = getattr(problem, "msg", str(problem))
            if len(text) - begin > MAX_ROW:
                what = f"no end within {MAX_ROW:,} characters ({what}){hint}"
            raise fault(index, getattr(problem, "pos", begin), what)
        if not isinstance(row, dict):
            raise UserError(f"{path}: row {index}: not an object")
        if end - begin > MAX_ROW:
            raise UserError(f"{path}: row {index}: longer than {MAX_ROW:,} characters{hint}")
        odd = oddities(text[begin:end], row) if tell else ()
        if is_pope(row):
            try:
                row = from_pope(row)
            except UserError as error:
                raise UserError(f"{path}: row {index}: {error}") from None
        try:
            start, size = offset + begin - at, len(text[begin:end].encode())
        except UnicodeEncodeError:
            raise fault(index, begin, "bytes that are not UTF-8") from None
        yield start, start + size, row
        for what, why in odd:
            tell(index, what, why)
        at, offset, index = end, start + size, index + 1


def _unlike_rows(text: str) -> str:
    """What is wrong with a file that begins with ``text``, neither a list nor an object."""
    if not text.strip():
        return "an empty file"
    first = text.lstrip().split("\n", 1)[0].rstrip()
    kind = ", but a table (CSV or TSV)" if re.match(r"[^\[{]+[,;\t]", first) else ""
    return f"not a list of rows{kind}: it begins with {first[:40]!r}"
