"""A lock, so that two programs do not write into the same place at once."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minillava.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: there, nothing is locked
    fcntl = None


@contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Hold a lock on the file ``path``, which is made if it is missing and stays. Raises UserError(``busy``) if another
    process holds it.

    The system frees the lock when the process ends, however it ends. It is a record lock: a process that is forked, to
    prepare batches, does not inherit it, and so does not keep it after the program is killed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        if fcntl:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise UserError(busy) from None
            except OSError as error:
                print(f"{path}: not locked ({error.strerror}); no other program must write there", file=sys.stderr)
        yield
