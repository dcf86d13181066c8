"""``python tests/hard/disk.py``: a disk that is full, or read-only, at each write of a save.

A training saves after each of two steps. In the second save, the n-th call that opens, makes or renames a file fails,
for n from 1 to the last. Then files may not grow beyond a limit, for limits up to the size of the largest file, so that
writes fail in the middle of a file. Each time, the program must end with one line and exit code 2, the first save must
be whole, and the run that resumes from it must end with the weights of an undisturbed one. Prints a table; the exit
code is 1 if anything else was seen.
"""

import argparse
import errno
import json
import random
import resource
import shutil
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from kills import PRETRAINED, call, in_child, result  # noqa: E402

import train  # noqa: E402
from data.picturebook.write import write_world  # noqa: E402
from minillava.checkpoint import load  # noqa: E402
from minillava.training import resume  # noqa: E402

CHANGES = {"os.rename", "os.mkdir"}  # audit events; "open" is one where it writes
REASONS = (errno.ENOSPC, errno.EROFS, errno.EIO)
STEPS = 2
NEVER = 3  # exit code: there were fewer than n calls
LOG = 2000  # bytes; more than the program prints into its log, to which the limit applies too


def training(rows: Path, out: Path, resume_it: bool) -> None:
    options = ["--model", PRETRAINED / "llava", "--data", rows, "--batch-size", 1, "--max-steps", STEPS]
    options += ["--save-every", 1, "--device", "cpu", "--no-compile", "--out", out]
    call(train.main, "--stage", 2, *options, *(["--resume"] if resume_it else []))


def second_save(begin) -> None:
    """Call ``begin()`` before the second save, in this process."""
    save, saves = resume.save, []

    def counted(*arguments) -> None:
        saves.append(1)
        if len(saves) == 2:
            begin()
        save(*arguments)

    train.train.__globals__["save"] = counted


def failing(work, n: int, reason: int) -> None:
    """Run ``work``; the ``n``-th change of a file from the second save on fails."""
    seen, begun = [], []

    def fail(event: str, arguments: tuple) -> None:
        writes = event == "open" and (set(str(arguments[1])) & set("wax+") or (arguments[2] or 0) & 3)
        if begun and (event in CHANGES or writes):
            seen.append(event)
            if len(seen) == n:
                raise OSError(reason, "made to fail", str(arguments[0]))

    sys.addaudithook(fail)
    second_save(lambda: begun.append(1))
    work()
    if len(seen) < n:
        sys.exit(NEVER)


def limited(work, size: int) -> None:
    """Run ``work``; from the second save on no file may be larger than ``size`` bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    second_save(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))
    work()


def attempt(spoilt, work, folder: Path, whole: dict[str, str]) -> tuple[int, str | None]:
    """The exit code of ``spoilt``, and what is wrong after it, if anything."""
    out, log = folder / "out", folder / "log.txt"
    log.unlink(missing_ok=True)
    code = in_child(spoilt, log)
    said = log.read_text(errors="replace")
    wrong = None
    if "Traceback" in said or code not in (0, 2, NEVER):
        wrong = f"exit code {code}: {said.splitlines()[-3:]}"
    elif code == 2 and said.count("\nerror: ") != 1:
        wrong = f"not one line: {said[-300:]}"
    elif code == 2:
        load(out / "stage2")
        if in_child(partial(work, out, True), folder / "resumed.txt"):
            wrong = f"cannot be resumed: {(folder / 'resumed.txt').read_text()[-300:]}"
    if not wrong and result(out) != whole:
        wrong = "another result"
    shutil.rmtree(out)
    return code, wrong


def table(folder: Path, every: int, sizes: int) -> dict[str, list[tuple[int, str | None]]]:
    """What attempt() says of each n-th call, for every ``every``-th n, and of ``sizes`` limits."""
    world = folder / "world"
    assert in_child(lambda: write_world(world, 10, 1), folder / "log.txt") == 0
    work = partial(training, world / "instruct.json")
    assert in_child(partial(work, folder / "whole", False), folder / "log.txt") == 0, (folder / "log.txt").read_text()
    whole = result(folder / "whole")
    found = {"calls": [], "sizes": []}
    start = partial(work, folder / "out", False)
    for n in range(1, 1000, every):
        found["calls"].append(attempt(partial(failing, start, n, REASONS[n % 3]), work, folder, whole))
        if found["calls"][-1][0] == NEVER:
            break
    largest = max(path.stat().st_size for path in (folder / "whole" / "stage2").iterdir())
    rng = random.Random(0)
    for index in range(sizes):
        size = [LOG, largest - 1][index] if index < 2 else rng.randrange(LOG, largest)
        found["sizes"].append(attempt(partial(limited, start, size), work, folder, whole))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="try every N-th call (default %(default)s)")
    parser.add_argument("--sizes", type=int, default=20, help="limits of a file's size (default %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        found = table(Path(name), arguments.every, arguments.sizes)
    counts = {}
    for kind, cases in found.items():
        wrong = [one for _, one in cases if one]
        counts[kind] = {"tried": len(cases), "refused": sum(code == 2 for code, _ in cases), "wrong": len(wrong)}
        print(f"{kind}: {counts[kind]}", *wrong, sep="\n  ")
    print(json.dumps(counts))
    sys.exit(any(count["wrong"] for count in counts.values()))


if __name__ == "__main__":
    main()
