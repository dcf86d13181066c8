"""Some servers of hard/hostile.py, in this process; ``python tests/hard/servers.py`` tries all with the program."""

import importlib
import resource
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from data import instruct
from data.teachers.openai import OpenAITeacher
from minillava.errors import run_program


@pytest.fixture
def ask(tmp_path, monkeypatch, capsys):
    """``ask(name)`` builds rows with a hostile server as the teacher: (what is printed, exit code)."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.syspath_prepend(str(Path(__file__).with_name("hard")))
    servers, hostile = importlib.import_module("servers"), importlib.import_module("hostile")
    monkeypatch.setattr(instruct, "OpenAITeacher", partial(OpenAITeacher, pause=0.0))

    def run(name: str, timeout: float = 60.0, asked: list[float] | None = None) -> tuple[str, int]:
        code = 0
        with hostile.serve(hostile.SERVERS[name], [] if asked is None else asked) as url:
            monkeypatch.setattr(sys, "argv", ["instruct", *servers.arguments(tmp_path, url, timeout)])
            try:
                run_program(instruct.main)
            except SystemExit as ended:
                code = ended.code
        said = "".join(capsys.readouterr())
        assert servers.faults(said, code if code != 130 else 2, tmp_path) == []
        return said, code

    return run


@pytest.mark.parametrize(
    "name, code, line",
    [
        ("good_gzip", 0, "72 tokens of prompts, 72 tokens of replies"),
        ("gzip_bomb", 2, "p0, reasoning: a response of more than 1,048,576 bytes"),
        ("gzip_bomb_401", 2, "Error code: 401 - a response of more than 1,048,576 bytes"),
        ("gzip_in_gzip", 2, "its replies are not chat completions"),
        ("charset_that_unpacks", 2, "Error code: 401"),
        ("brackets", 2, "its replies are not chat completions"),
        ("infinite_usage", 0, "0 tokens of prompts, 0 tokens of replies"),
        ("usage_of_300_digits", 0, "0 tokens of prompts, 0 tokens of replies"),
        ("longer_than_a_row", 2, "p0, reasoning: too long: a row may have 524,288 characters"),
        (
            "redirect_to_another_host",
            2,
            r"redirects to http://\x1b[31m.invalid/v1; if that is right, change --base-url",
        ),
        ("escapes_400", 2, r"p0, reasoning: Error code: 400 - \x1b]0;title\x07\x1b[2Jtoo long\x9b31m"),
        ("escapes_in_the_end", 2, "p0, reasoning: incomplete text (finish_reason " + 10 * r"\x1b[2J" + ")\n"),
    ],
)
def test_a_hostile_server_gets_a_line(name, code, line, ask):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said, ended = ask(name)
    assert ended == code and line in said
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # KiB; a bomb has 5 GB


@pytest.mark.parametrize("name", ["headers_by_the_byte", "body_by_the_byte"])
def test_timeout_bounds_a_reply_that_arrives_byte_by_byte(name, ask):
    begin = time.monotonic()
    said, code = ask(name, timeout=0.7)
    assert code == 2 and "no whole reply within 0.7 s (--timeout)" in said
    assert time.monotonic() - begin < 5


def test_an_interrupt_waits_no_longer_than_the_timeout(ask):
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    asked: list[float] = []

    def interrupt_after_a_request() -> None:
        while not asked:
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=interrupt_after_a_request, daemon=True).start()
    try:
        said, code = ask("body_by_the_byte", timeout=1, asked=asked)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert code == 130 and "stopping" in said and 0.9 <= time.monotonic() - asked[0] < 6
