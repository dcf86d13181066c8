"""The lock that keeps two programs from writing into one folder."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from minillava.errors import UserError
from minillava.lock import locked


def hold(path: Path, ready) -> None:
    """Hold the lock and fork a process, as a training with workers does."""
    with locked(path, "busy"):
        child = os.fork()
        if child == 0:
            time.sleep(60)
        ready.send(child)
        time.sleep(60)


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path):
    path = tmp_path / "new" / "train.lock"
    mine, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=hold, args=(path, theirs))
    process.start()
    worker = mine.recv()
    try:
        with pytest.raises(UserError, match=r"^busy$"), locked(path, "busy"):
            pass
        process.kill()
        process.join()
        os.kill(worker, 0)  # it lives on
        for _ in range(2):  # the lock is free again each time
            with locked(path, "busy"):
                assert path.exists()
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_folder_that_cannot_be_made_is_an_error_of_the_system(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError), locked(tmp_path / "file" / "train.lock", "busy"):
        pass
