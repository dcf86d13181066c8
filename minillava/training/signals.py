"""An interrupted training first ends its step and saves: Ctrl-C (SIGINT) and SIGTERM wait until then."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


@contextmanager
def held_signals(repeatable: bool) -> Iterator[list[int]]:
    """Collect the signals that arrive in this context, in place of what they do otherwise.

    With ``repeatable``, a second Ctrl-C still raises KeyboardInterrupt. torchrun passes its own Ctrl-C on to processes
    that have had it already, so there it must not. Outside the main thread, signals do as usual.
    """
    caught: list[int] = []

    def hold(number: int, _) -> None:
        if repeatable and number == signal.SIGINT and number in caught:
            raise KeyboardInterrupt
        caught.append(number)
        os.write(2, b"\nstopping after this step\n")  # print() fails if the signal interrupts another print()

    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {number: signal.signal(number, hold) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals(worker: int) -> None:
    """In a process that prepares batches. Terminals and job schedulers send signals to it too, but the training still
    needs it to end a step, and ends it afterwards."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def stop(caught: list[int]) -> NoReturn:
    """End as the first signal would have ended the process: KeyboardInterrupt, or the exit code of SIGTERM, 143."""
    if signal.SIGINT in caught[:1]:
        raise KeyboardInterrupt
    sys.exit(128 + signal.SIGTERM)
