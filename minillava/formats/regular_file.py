"""The check before a file of the user's is opened: a pipe may never begin, a device such as /dev/zero never ends."""

import errno
import os
import stat

from minillava.errors import UserError


def check_regular(path: str | os.PathLike, most: int | None = None) -> None:
    """Raise UserError unless ``path`` is a regular file, or a link to one, of at most ``most`` bytes."""
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise UserError(f"{path}: {getattr(error, 'strerror', error)}") from None
    if stat.S_ISDIR(found.st_mode):
        raise UserError(f"{path}: {os.strerror(errno.EISDIR)}")
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path}: a pipe, a device or a socket, not a file")
    if most is not None and found.st_size > most:
        raise UserError(f"{path}: more than {most:,} bytes, larger than a file of this kind can be")
