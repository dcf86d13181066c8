"""Many cases in forks of one warm process: what each ends in, how long it takes and how much memory it adds.

A case is a number; ``work(case)`` makes something broken from it, uses it, and returns in a word what came of it. Any
exception that leaves ``work`` is a traceback. A case that takes longer than SECONDS is killed, as is one whose process
grows by more than LIMIT bytes.
"""

import gc
import json
import os
import resource
import select
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

SECONDS = 5.0
MEGABYTES = 1000  # that a case may add to the process's memory
LIMIT = 4 << 30  # bytes of address space that a fork may add; beyond that an allocation fails


@dataclass
class Result:
    """outcomes: how many cases ended in what; faults: a line for each traceback, hang, death and use of memory."""

    outcomes: Counter = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0  # of the slowest case
    megabytes: float = 0.0  # that the largest case added
    largest: int = 0

    def table(self, name: str) -> str:
        lines = [f"{name:30}{sum(self.outcomes.values()):>10,}"]
        lines += [f"  {outcome:28}{count:>10,}" for outcome, count in self.outcomes.most_common()]
        lines += [f"{'slowest':30}{self.seconds:>10.1f} s", f"{'most memory added':30}{self.megabytes:>10.0f} MB"]
        return "\n".join([*lines, f"{'faults':30}{len(self.faults):>10,}", *(f"  {fault}" for fault in self.faults)])


def run(count: int, work: Callable[[int], str]) -> Result:
    """``work`` of the cases 0 to ``count`` - 1."""
    result, case = Result(), 0
    gc.freeze()
    while case < count:
        case = _run_some(case, count, work, result)
    return result


def _run_some(first: int, count: int, work: Callable[[int], str], result: Result) -> int:
    """Run cases in one fork until all are done or one kills it. Returns the next case."""
    receive, send = os.pipe()
    if not (child := os.fork()):
        os.close(receive)
        _be_child(first, count, work, send)
    os.close(send)
    case, rest = first, b""
    try:
        while case < count:
            if not select.select([receive], [], [], SECONDS)[0]:
                os.kill(child, signal.SIGKILL)
                result.outcomes["hang"] += 1
                result.faults.append(f"case {case}: a hang of more than {SECONDS:.0f} s")
                return case + 1
            if not (data := os.read(receive, 1 << 16)):
                result.outcomes["death"] += 1
                result.faults.append(f"case {case}: the process died")
                return case + 1
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                _note(case, json.loads(line), result)
                case += 1
        return case
    finally:
        os.close(receive)
        os.waitpid(child, 0)


def _note(case: int, found: dict, result: Result) -> None:
    result.outcomes[found["outcome"]] += 1
    result.seconds = max(result.seconds, found["seconds"])
    if found["megabytes"] > result.megabytes:
        result.megabytes, result.largest = found["megabytes"], case
    if found["megabytes"] > MEGABYTES:
        result.faults.append(f"case {case}: {found['megabytes']:.0f} MB of memory")
    if found["fault"]:
        result.faults.append(f"case {case}: {found['fault']}")


def _be_child(first: int, count: int, work: Callable[[int], str], send: int) -> None:
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + LIMIT, size + LIMIT))
    for case in range(first, count):
        before, start, fault = _memory("VmRSS"), time.perf_counter(), ""
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        try:
            outcome = work(case)
        except BaseException as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            outcome, fault = "traceback", f"{type(error).__name__}: {error!s:.200} ({where})"
        added, seconds = _memory("VmHWM") - before, time.perf_counter() - start
        found = {"outcome": outcome, "fault": fault, "seconds": seconds, "megabytes": added}
        os.write(send, json.dumps(found).encode() + b"\n")
    os._exit(0)


def _memory(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1000
