"""How far a training is: a bar on a terminal, elsewhere a line a minute, and an estimate from its first steps."""

import math
import sys
import time

from tqdm import tqdm

from minillava.errors import printable

FIRST, EVERY = 5, 60  # seconds of measured steps before the first line, and between lines without a terminal


class Progress:
    """The progress of a training of ``total`` steps, of which ``done`` are done. Only the first rank shows it.

    The first line says how long the training will take, from the steps measured so far. The very first step is not
    measured, because it also allocates memory and starts workers.
    """

    def __init__(self, name: str, done: int, total: int, is_first: bool):
        self.name, self.total = name, total
        self.bar = tqdm(total=total, initial=done, desc=name, unit="step", disable=None if is_first else True)
        self.start: tuple[int, float] | None = None  # steps done and time at the end of the first step
        self.due = 0.0  # time of the next line

    def update(self, done: int, loss: float) -> None:
        """A step has ended, and ``done`` are done."""
        self.bar.update()
        self.bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        now = time.perf_counter()
        if self.start is None:
            self.start, self.due = (done, now), now + FIRST
        elif now >= self.due and done < self.total:
            self.due = now + EVERY if self.bar.disable else math.inf
            pace = (now - self.start[1]) / (done - self.start[0])
            left = in_words(pace * (self.total - done))
            self.say(f"step {done:,} of {self.total:,}, loss {loss:.3f}, {pace:.2g} s a step, about {left} left")

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.bar.write(printable(f"{self.name}: {text}", keep="\n"))
        sys.stdout.flush()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()


def in_words(seconds: float) -> str:
    """A time as text, such as 40 seconds, 8 minutes or 3.5 hours."""
    if seconds < 90:
        return f"{math.ceil(seconds)} second{'s' * (seconds > 1)}"
    return f"{seconds / 60:.0f} minutes" if seconds < 90 * 60 else f"{seconds / 3600:.1f} hours"
