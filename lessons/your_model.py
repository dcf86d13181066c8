"""``python chat.py --exercise``: the shipped model runs on the reader's files, exercises/PART.py.

Bodies that are yet to be written are the project's. This module imports minillava only after the reader's files are in
place, so chat.py calls install() before its own imports.
"""

import ast
import functools
import importlib
import sys
import traceback
from pathlib import Path
from types import TracebackType

from lessons.board import board
from lessons.parts import FOLDER, PARTS
from lessons.source import definitions
from lessons.stand_in import BadFile, StandIn, is_to_write, module_of, to_write


def install() -> None:
    """Put the reader's files in place of the project's, and print how many of their bodies pass.

    From here on an exception that nobody expects, such as one that a reader's body raises, ends the program with one
    line and exit code 2.
    """
    files = {part: FOLDER / f"{part}.py" for part in PARTS if (FOLDER / f"{part}.py").exists()}
    sys.excepthook = functools.partial(_end, files)
    if not files:
        raise BadFile(f"{FOLDER}/ has no exercise yet: python -m lessons.exercise {next(iter(PARTS))} writes one")
    for part, file in files.items():
        to_write(part, file)  # raises BadFile if it cannot take the place of the project's
    StandIn(files, fill=True)
    for part in files:
        importlib.import_module(module_of(part))
    from minillava.model import fast, generation

    fast.generate_ids = generation.generate_ids  # the fast pass has its own arithmetic, without the reader's bodies
    head, columns, *rows = board()
    print(head, columns, *(row for row in rows if row.split()[0] in files), sep="\n", end="\n\n", file=sys.stderr)


def _end(files: dict[str, Path], kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print in one line what was raised, and the reader's file, line and body that led to it."""
    message = (str(error).splitlines() or [""])[0]
    if not isinstance(error, BadFile):
        message = f"{kind.__name__}: {message}"
        frames = traceback.extract_tb(trace)
        theirs = [place for frame in frames if (place := _place(files, frame.filename, frame.lineno or 0))]
        if theirs:
            message = f"{theirs[-1]}: {message}"
        elif frames:
            message += f", in the project's {frames[-1].name}() of {Path(frames[-1].filename).name}"
            message += "; one of your bodies may have returned what led to it"
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _place(files: dict[str, Path], filename: str, line: int) -> str | None:
    """A place in a reader's file, "exercises/decoder.py:33 (rotate)"; None if it is elsewhere or in a filled body."""
    for file in files.values():
        if Path(filename).resolve() == file.resolve():
            found = definitions(ast.parse(file.read_text(encoding="utf-8")))
            inside = [name for name, node in found.items() if node.lineno <= line <= (node.end_lineno or node.lineno)]
            if inside and is_to_write(found[inside[-1]]):
                return None
            return f"{file}:{line}" + (f" ({inside[-1]})" if inside else "")
    return None
