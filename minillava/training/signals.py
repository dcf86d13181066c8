"""An interrupted training first ends its step and saves: Ctrl-C (SIGINT), SIGTERM and SIGHUP wait until then."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

HANGUP = getattr(signal, "SIGHUP", None)  # when a terminal is closed; Windows has no such signal
ENDING = tuple(number for number in (signal.SIGINT, signal.SIGTERM, HANGUP) if number)
PAUSE = 1.0  # seconds


@contextmanager
def held_signals() -> Iterator[list[int]]:
    """Collect the signals that arrive in this context, in place of what they do otherwise.

    A second one, from a person who does not want to wait, ends the training at once. One is often sent twice in a
    moment: by a shell and by the system as a terminal is closed, by torchrun to processes that have had it already. So
    it counts only PAUSE seconds after the first, SIGHUP and under torchrun not at all. Signals that are ignored, as
    nohup does with SIGHUP, stay ignored. Outside the main thread, signals do as usual.
    """
    caught: list[int] = []
    times: list[float] = []

    def hold(number: int, _) -> None:
        caught.append(number)
        times.append(time.monotonic())
        repeats = times[-1] - times[0] >= PAUSE and number != HANGUP and "LOCAL_RANK" not in os.environ
        if len(caught) > 1 and repeats:
            stop(caught[-1:])
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
