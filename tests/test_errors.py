"""How every program ends: one line and exit code 2, whatever the user or the system has done."""

import errno
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minillava.errors import UserError, in_words, printable, run_program

ROOT = Path(__file__).parent.parent


def fail(error: BaseException):
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("rows.json: row 3: no answer"), 2, "error: rows.json: row 3: no answer\n"),
        (UserError("two\nlines \x1b[2J"), 2, "error: two\\nlines \\x1b[2J\n"),
        (OSError(errno.ENOSPC, "No space left on device", "out/x"), 2, "error: out/x: No space left on device\n"),
        (OSError(errno.EISDIR, "Is a directory", b"a\xff"), 2, "error: a\\udcff: Is a directory\n"),
        (OSError("half written"), 2, "error: half written\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_each_error_is_one_line(capsys, error, code, line):
    with pytest.raises(SystemExit) as end:
        run_program(fail(error))
    assert end.value.code == code and capsys.readouterr().err == line


def test_an_error_in_the_program_itself_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run_program(lambda: 1 / 0)


def test_in_words():
    assert in_words(OSError()) == "OSError"
    assert in_words(FileNotFoundError(errno.ENOENT, "No such file or directory", Path("a b"))) == (
        "a b: No such file or directory"
    )


def test_printable_keeps_what_it_is_told_to():
    text = "é 中 😀\n\ta\x1b[31m\x00\u202e\ud800\u2028"
    assert printable(text) == r"é 中 😀\n\ta\x1b[31m\x00\u202e\ud800\u2028"
    spaces = "Bonjour\xa0! これは\u3000本 👩\u200d🍳 \u200cها"
    assert printable(spaces) == spaces
    assert printable(text, keep="\n\t") == "é 中 😀\n\ta" + r"\x1b[31m\x00\u202e\ud800\u2028"


def test_characters_that_the_terminal_lacks_are_escapes(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", terminal)
    run_program(lambda: print("▀ é"))
    assert terminal.buffer.getvalue() == b"\\u2580 \xe9\n"


def test_a_pipe_that_nobody_reads_ends_the_program_quietly():
    """As in ``python chat.py | head -c 0``."""
    reader, writer = os.pipe()
    errors, their_errors = os.pipe()
    if not os.fork():
        os.close(reader)
        os.dup2(writer, 1)
        os.dup2(their_errors, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        time.sleep(0.2)
        code = 0
        try:
            run_program(lambda: print("x" * 100_000))
        except SystemExit as end:
            code = end.code
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    os.close(reader)
    os.close(their_errors)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 141
    assert os.read(errors, 1000) == b""
    os.close(writer)
    os.close(errors)


@pytest.mark.parametrize("program", [["train.py", "--help"], ["-m", "minillava.evaluate"], ["-m", "data.check"]])
def test_ctrl_c_while_modules_are_imported_is_quiet(program):
    process = subprocess.Popen([sys.executable, *program], cwd=ROOT, stdout=-1, stderr=-1)
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.communicate() == (b"", b"") and process.returncode == -signal.SIGINT
