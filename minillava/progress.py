"""A progress bar in a terminal. Where there is none, as in a log file, a line every half minute."""

import sys

from tqdm import tqdm

SECONDS = 30


class _Lines:
    """A stream for tqdm on which each state of a bar is a line of stderr."""

    def write(self, text: str) -> None:
        if line := text.strip():
            print(line, file=sys.stderr, flush=True)

    def flush(self) -> None:
        pass  # each line is


def progress(iterable=None, **options) -> tqdm:
    """``tqdm(iterable, **options)``. Without a terminal, nothing is shown of work that takes less than SECONDS."""
    if not sys.stderr.isatty():
        options |= {"file": _Lines(), "ascii": True, "delay": SECONDS}
        options |= {"mininterval": SECONDS, "maxinterval": 2 * SECONDS}
    return tqdm(iterable, **options)
