"""An interrupted training first ends its step and saves: Ctrl-C (SIGINT), SIGTERM and SIGHUP wait until then."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

# SIGHUP comes when a terminal is closed. Windows has no such signal.
ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def held_signals(repeatable: bool) -> Iterator[list[int]]:
    """Collect the signals that arrive in this context, in place of what they do otherwise.

    With ``repeatable``, a second one ends the training at once. torchrun passes its own signals on to processes that
    have had them already, so there it must not. Signals that are ignored, as nohup does with SIGHUP, stay ignored.
    Outside the main thread, signals do as usual.
    """
    caught: list[int] = []

    def hold(number: int, _) -> None:
        caught.append(number)
        if repeatable and len(caught) > 1:
            stop(caught[1:])
        with suppress(OSError):  # the terminal may be gone; print() fails if the signal interrupts another print()
            os.write(2, b"\nstopping after this step\n")

    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    held = [number for number in ENDING if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, hold) for number in held}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals(worker: int) -> None:
    """In a process that prepares batches. Terminals and job schedulers send signals to it too, but the training still
    needs it to end a step, and ends it afterwards."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


def stop(caught: list[int]) -> NoReturn:
    """End as the first signal would have ended the process: KeyboardInterrupt, or the exit code 128 + its number."""
    if signal.SIGINT in caught[:1]:
        raise KeyboardInterrupt
    sys.exit(128 + caught[0])
