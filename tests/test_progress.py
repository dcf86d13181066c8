"""Progress where the output is no terminal: lines, and none of work that is soon done."""

import io
import sys

import pytest

from minillava import progress as module
from minillava.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def stderr(monkeypatch):
    """``stderr(stream)`` replaces sys.stderr by the stream, and returns it."""

    def put(stream: io.StringIO) -> io.StringIO:
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return put


def test_without_a_terminal_each_state_is_a_line(stderr, monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 1e-9)
    out = stderr(io.StringIO())
    with progress(total=3, desc="stage2", unit="step") as bar:
        for loss in (3.0, 2.0, 1.0):
            bar.set_postfix(loss=loss, refresh=False)
            bar.update()
    lines = out.getvalue().splitlines()
    assert "\r" not in out.getvalue() and all(line.startswith("stage2: ") for line in lines)
    assert [f" {done}/3 " in line for done, line in zip((1, 2, 3), lines)] == [True] * 3
    assert "loss=2" in lines[1]


def test_without_a_terminal_short_work_says_nothing(stderr):
    out = stderr(io.StringIO())
    assert list(progress(range(1000), desc="opening")) == list(range(1000))
    assert out.getvalue() == ""


def test_a_terminal_gets_a_bar_that_moves_in_place(stderr):
    out = stderr(Terminal())
    list(progress(range(10), desc="opening"))
    assert "\ropening: " in out.getvalue() and "10/10" in out.getvalue()


def test_a_bar_may_be_switched_off(stderr):
    for stream in (io.StringIO(), Terminal()):
        stderr(stream)
        list(progress(range(10), disable=True))
        assert stream.getvalue() == ""
