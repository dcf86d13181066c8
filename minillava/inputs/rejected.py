"""The rows of a data file that are cut, left out or odd: counted, listed in a file, and limited."""

from collections import Counter
from pathlib import Path

from minillava.errors import UserError
from minillava.files import append_jsonl, read_jsonl, write_jsonl
from minillava.formats.odd_rows import EMPTY, HALF, TWICE
from minillava.inputs.image import AnyPath

# What happens to a row, and how the report says it.
CUT, TOO_LONG, NO_PICTURE = "cut", "too long", "no picture"
IN_WORDS = {
    CUT: "cut to what the model reads",
    TOO_LONG: "left out because not even one turn fits",
    NO_PICTURE: "left out because their picture cannot be read",
    TWICE: "kept though a key is there twice, of which the last one counts",
    HALF: "kept though half of a character is in them, which is read as U+FFFD",
    EMPTY: "kept though an answer is empty",
}


class Rejected:
    """The rows of ``data`` that are cut, left out or odd, as lines {"row", "what", "why"}.

    A broken picture is found when it is read, in one of several worker processes or ranks. So each of them adds to the
    same ``file``, once there is one, and counts the lines in it.
    """

    def __init__(self, data: AnyPath, most: int = 0, unit: str = "row"):
        """``most``: how many rows may be left out for their pictures. ``unit``: "row", or "line" if lines count."""
        self.data, self.most, self.unit = data, most, unit
        self.found: list[dict] = []
        self.file: Path | None = None

    def add(self, number: int, what: str, why: str) -> None:
        """Note row ``number``, unless the file has it already. ``what`` is one of IN_WORDS."""
        line = {self.unit: number, "what": what, "why": why}
        if self.file is None:
            self.found.append(line)
        elif line not in self.lines():
            append_jsonl(self.file, line)

    def check(self, named: int = 0) -> None:
        """Raise UserError if more rows lack their picture than may be left out. ``named``: 0 names the first, -1 the
        last of them."""
        without = {line[self.unit]: line for line in self.lines() if line["what"] == NO_PICTURE}
        if len(without) > self.most:
            line = list(without.values())[named]
            count = f"{self.unit}s whose picture cannot be read: {len(without):,}, --max-rejected allows {self.most:,}"
            raise UserError(f"{self.data}: {self.unit} {line[self.unit]}: {line['why']} ({count})")

    def write(self, file: Path, keep: bool) -> None:
        """Write what was found into ``file``; with ``keep``, after what a run before this one has written there."""
        every = (self.lines_of(file) if keep else []) + self.found
        lines = list({tuple(line.values()): line for line in every}.values())  # each once
        if lines or file.exists():
            write_jsonl(file, lines)

    def lines(self) -> list[dict]:
        """What all processes have found so far."""
        return self.found if self.file is None else self.lines_of(self.file)

    def report(self, since: int = 0) -> list[str]:
        """What the lines from ``since`` on say, for the user: [] if there are none."""
        counts = Counter(line["what"] for line in self.lines()[since:])
        found = [f"{self.unit}s {words}: {counts[what]:,}" for what, words in IN_WORDS.items() if counts[what]]
        return [*found, f"listed in {self.file}"] if found else []

    def lines_of(self, file: Path) -> list[dict]:
        """The whole lines of ``file``; [] if there is no such file."""
        kinds = {self.unit: int, "what": str, "why": str}
        lines = [line for line in read_jsonl(file) if {key: type(value) for key, value in line.items()} == kinds]
        return [line for line in lines if line["what"] in IN_WORDS]
