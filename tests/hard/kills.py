"""``python tests/hard/kills.py [--kills 200] [--seed 0]``: SIGKILL at random moments, and what is left.

Four kinds of work are killed, resumed and killed again, each until it has had its share of the kills; then it is left
to end. What it has made must be equal, byte for byte, to what the same work makes undisturbed:

training  stage 2 of the shipped model, with a save at every fourth step
saving    the same with a save at every step, so that most of the time goes into saves
drawing   a small picture-book
building  conversations by the scripted teacher

Half of the trainings are killed at random times, half at a random call that opens, renames or removes a file. Prints a
table; the exit code is 1 if anything was lost.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import train  # noqa: E402
from data import instruct  # noqa: E402
from data.picturebook.write import write_world  # noqa: E402
from minillava.checkpoint import load  # noqa: E402
from minillava.config import PRETRAINED  # noqa: E402
from minillava.errors import run_program  # noqa: E402

STEPS = 8
CALLS = {"open", "os.rename", "os.mkdir", "os.remove", "shutil.rmtree"}  # audit events
Work = Callable[[Path], None]


def in_child(work: Callable[[], None], log: Path, seconds: float | None = None, call: int | None = None) -> int:
    """The exit code of ``work`` in a fork of this process, whose output goes to ``log``: -9 if it is killed, after
    ``seconds`` or at the ``call``-th of CALLS."""
    if not (child := os.fork()):
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(out, number)
            setattr(sys, name, os.fdopen(number, "w", buffering=1, closefd=False))
        seen = []

        def die(event: str, arguments: tuple) -> None:
            if event in CALLS:
                seen.append(event)
                if len(seen) == call:
                    os.kill(os.getpid(), signal.SIGKILL)

        if call:
            sys.addaudithook(die)
        code = 70
        try:
            run_program(work)
            code = 0
        except SystemExit as end:
            code = end.code
        finally:
            os._exit(code)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # the processes that it has started
    return code


def call(program: Callable[[], None], *arguments: object) -> None:
    sys.argv = ["program", *map(str, arguments)]
    program()


def training(rows: Path, save_every: int, out: Path) -> None:
    """Train as a user does: with --resume if there is something to resume."""
    begun = (out / "stage2").exists() or (out / "stage2.old").exists()
    options = ["--model", PRETRAINED / "llava", "--data", rows, "--batch-size", 2, "--max-steps", STEPS]
    options += ["--save-every", save_every, "--device", "cpu", "--no-compile", "--out", out]
    call(train.main, "--stage", 2, *options, *(["--resume"] if begun else []))


def drawing(out: Path) -> None:
    if not out.exists():
        write_world(out, 30, 0)


def building(contexts: Path, out: Path) -> None:
    out.mkdir(exist_ok=True)
    call(instruct.main, "--contexts", contexts, "--teacher", "scripted", "--out", out / "rows.json")


def result(out: Path) -> dict[str, str]:
    """A digest of each file that is a result. Logs with times are left out, and so is the training's state, in which
    the same numbers may be in another order."""
    if (out / "stage2").exists():
        out = out / "stage2"
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.suffix in (".safetensors", ".json", ".png", ".jsonl", ".txt", ".jinja")
    }


def chain(work: Work, folder: Path, kills: int, rng: random.Random) -> tuple[int, list[str]]:
    """Kill ``work`` so often. Returns how many kills it took that came before its end, and what was lost."""
    start = time.perf_counter()
    assert in_child(partial(work, folder / "whole"), folder / "log.txt") == 0, (folder / "log.txt").read_text()
    took, whole = time.perf_counter() - start, result(folder / "whole")
    out, done, lost = folder / "out", 0, []
    for kill in range(kills):
        at = {"call": rng.randrange(1, 150)} if kill % 2 else {"seconds": rng.uniform(0, took)}
        code = in_child(partial(work, out), folder / "log.txt", **at)
        done += code == -signal.SIGKILL
        if code not in (0, -signal.SIGKILL):
            lost.append(f"exit code {code}: {(folder / 'log.txt').read_text().splitlines()[-1:]}")
        for stage in (out / "stage2", out / "stage2.old"):
            if stage.exists():  # every reader finds a whole checkpoint
                load(out / "stage2")
                break
        if code == 0:
            lost += [] if result(out) == whole else ["another result"]
            shutil.rmtree(out)
    code = in_child(partial(work, out), folder / "log.txt")
    if code or result(out) != whole:
        lost.append(f"at the end: exit code {code}, another result")
    return done, lost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="of all four kinds together (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        found = table(Path(name), arguments.kills, arguments.seed)
    for kind, (kills, lost) in found.items():
        print(f"{kind:<10}{kills:>5} kills  {len(lost)} lost", *lost, sep="\n  ")
    print(json.dumps({kind: [kills, len(lost)] for kind, (kills, lost) in found.items()}))
    sys.exit(any(lost for _, lost in found.values()))


def table(folder: Path, kills: int, seed: int) -> dict[str, tuple[int, list[str]]]:
    """What chain() says of each kind of work."""
    world = folder / "world"
    assert in_child(lambda: write_world(world, 30, 1), folder / "log.txt") == 0
    kinds: dict[str, Work] = {
        "training": partial(training, world / "instruct.json", 4),
        "saving": partial(training, world / "instruct.json", 1),
        "drawing": drawing,
        "building": partial(building, world / "contexts.jsonl"),
    }
    shares = {"training": 35, "saving": 35, "drawing": 10, "building": 20}  # per cent; drawing takes longest
    found = {}
    for kind, work in kinds.items():
        (folder / kind).mkdir()
        count = max(1, round(kills * shares[kind] / 100))
        found[kind] = chain(work, folder / kind, count, random.Random(f"{seed} {kind}"))
    return found


if __name__ == "__main__":
    main()
