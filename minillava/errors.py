"""What every program does with errors, signals and the text of others that it prints.

The exception for everything that a user can fix is UserError. Its message, one line, names the file, row, tensor or
argument.
"""

import os
import signal
import sys
import unicodedata
from collections.abc import Callable


class UserError(Exception):
    """Something that the user gave is wrong. Programs print the message, one line, and end with exit code 2."""


def run_program(main: Callable[[], None]) -> None:
    """Run ``main`` as a program.

    A UserError becomes one line and exit code 2, and so does an error of the operating system, such as a full disk. An
    interrupt ends quietly with exit code 130, a pipe that nobody reads any more with 141, as a shell's programs do.
    Characters that the terminal's encoding lacks are printed as escapes, and bytes that are not text are read as �.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # set while modules were imported, see minillava/__init__.py
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream, errors in (
        (sys.stdin, "replace"),
        (sys.stdout, "backslashreplace"),
        (sys.stderr, "backslashreplace"),
    ):
        if hasattr(stream, "reconfigure"):  # not if a test has replaced it
            stream.reconfigure(errors=errors)
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes stdout once more when it ends
        sys.exit(141)
    except OSError as error:
        print(f"error: {printable(in_words(error))}", file=sys.stderr)
        sys.exit(2)


def in_words(error: OSError) -> str:
    """What went wrong, after the file if the error names one: "data/x.json: Is a directory"."""
    reason = error.strerror or str(error) or type(error).__name__
    return reason if error.filename is None else f"{os.fsdecode(error.filename)}: {reason}"


# Categories of characters that are not shown: controls, halves of a character, and ends of lines and paragraphs; and
# the controls of the direction of writing, with which a text can be made to look like another.
HIDDEN = {"Cc", "Cs", "Zl", "Zp"}
DIRECTIONS = {*"\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"}


def printable(text: str, keep: str = "") -> str:
    """Text that others wrote (a file, a model, a server), made safe for a terminal: characters that command it, line
    ends among them, become escapes, except those in ``keep``."""
    hidden = {c for c in set(text) - set(keep) if c in DIRECTIONS or unicodedata.category(c) in HIDDEN}
    return "".join(ascii(c)[1:-1] if c in hidden else c for c in text)
