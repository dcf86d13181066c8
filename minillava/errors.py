"""The exception for everything that a user can fix. Its message, one line, names the file, row, tensor or argument."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Something that the user gave is wrong. Programs print the message, one line, and end with exit code 2."""


def run_program(main: Callable[[], None]) -> None:
    """Run ``main``; a UserError becomes one line and exit code 2, an interrupt ends quietly with exit code 130."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
