"""The short forms of hard/kills.py and hard/disk.py: a few kills, and a few writes that fail."""

import errno
import importlib
import random
from functools import partial
from pathlib import Path

import pytest

HARD = Path(__file__).parent / "hard"


@pytest.fixture
def hard(monkeypatch):
    monkeypatch.syspath_prepend(str(HARD))
    return importlib.import_module


@pytest.fixture(scope="module")
def rows(tmp_path_factory, draw_world) -> Path:
    world = tmp_path_factory.mktemp("hard") / "world"
    draw_world(world, 12)
    return world / "instruct.json"


def test_a_training_that_is_killed_in_its_saves_ends_like_an_undisturbed_one(hard, rows, tmp_path):
    kills = hard("kills")
    done, lost = kills.chain(partial(kills.training, rows, 1), tmp_path, 4, random.Random(1))
    assert done >= 2 and lost == []


def test_a_save_that_fails_at_a_write_loses_nothing(hard, rows, tmp_path):
    disk = hard("disk")
    work = partial(disk.training, rows)
    assert disk.in_child(partial(work, tmp_path / "whole", False), tmp_path / "log.txt") == 0
    start, whole = partial(work, tmp_path / "out", False), disk.result(tmp_path / "whole")
    largest = (tmp_path / "whole" / "stage2" / disk.resume.STATE).stat().st_size
    spoilt = [partial(disk.failing, start, n, errno.ENOSPC) for n in (6, 12)]
    spoilt.append(partial(disk.limited, start, largest - largest // 170))  # torch fails once more as it ends the file
    for one in spoilt:
        assert disk.attempt(one, work, tmp_path, whole) == (2, None)
