"""``python tests/benchmarks/rows.py``: what it costs to read a gigabyte of LLaVA JSON by offset.

Writes a synthetic file of the size of LLaVA-1.5's 665,000 rows, opens it, and lets forked workers read random rows.
Prints the seconds and memory to open it, rows per second, and how much memory each worker adds: its private pages,
which it does not share with the process that it was forked from.
"""

import argparse
import json
import multiprocessing
import random
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from data.rows import write_rows  # noqa: E402
from minillava.formats.llava_json import Rows  # noqa: E402
from minillava.inputs.conversation import check_turns  # noqa: E402
from minillava.inputs.templates import TEMPLATES  # noqa: E402


def synthetic(count: int, length: int):
    """``count`` different rows of about ``length`` characters, with one to five questions; some words are not ASCII."""
    rng = random.Random(0)
    words = [f"word{index}" if index % 8 else f"mot\u00e9{index}" for index in range(5000)]
    pool = [" ".join(rng.choices(words, k=30)) for _ in range(2000)]
    for index in range(count):
        turns = []
        for turn in range(rng.randint(1, 5)):
            turns.append({"from": "human", "value": f"{'' if turn else '<image>' + chr(10)}What of {rng.random()}?"})
            turns.append({"from": "gpt", "value": rng.choice(pool)})
        while sum(len(turn["value"]) for turn in turns) < length - 200:
            turns[-1]["value"] += " " + rng.choice(pool)
        yield {"id": str(index), "image": f"coco/train2017/{index:012d}.jpg", "conversations": turns}


def memory(pid: int | str = "self") -> dict[str, float]:
    """A process's memory in MB: resident, proportional (shared pages divided by the number of sharers), private."""
    pairs = (line.split(":") for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    kilobytes = {name: int(value.split()[0]) for name, value in pairs}
    private = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    return {"resident": kilobytes["Rss"] / 1e3, "proportional": kilobytes["Pss"] / 1e3, "private": private / 1e3}


def work(rows: Rows, seed: int, count: int, done, leave) -> None:
    rng = random.Random(seed)
    start = time.perf_counter()
    for index in (rng.randrange(len(rows)) for _ in range(count)):
        assert rows[index]["id"] == str(index)
    done.put({"rows_per_second": count / (time.perf_counter() - start), **memory()})
    leave.wait()  # all are measured while all are alive: a page becomes private when its other sharers end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=665_000)
    parser.add_argument("--length", type=int, default=1500, help="characters per row (default %(default)s)")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--reads", type=int, default=20_000, help="rows that each worker reads (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print a line of JSON too")
    a = parser.parse_args()
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        write_rows(path, synthetic(a.rows, a.length))
        size = path.stat().st_size
        before, start, busy = memory(), time.perf_counter(), time.process_time()
        rows = Rows(path, lambda index, row: check_turns(row["conversations"], TEMPLATES["v0"]))
        seconds, busy, after = time.perf_counter() - start, time.process_time() - busy, memory()
        print(f"{size / 1e9:.2f} GB, {len(rows):,} rows, opened in {seconds:.1f} s with {busy:.1f} s of CPU time,")
        print(f"{size / busy / 1e6:.0f} MB per second of CPU time")
        print(f"this process: {before['resident']:.0f} MB resident before, {after['resident']:.0f} MB after")
        done, leave = context.Queue(), context.Event()
        workers = [context.Process(target=work, args=(rows, seed, a.reads, done, leave)) for seed in range(a.workers)]
        for worker in workers:
            worker.start()
        results = [done.get() for _ in workers]
        leave.set()
        for worker in workers:
            worker.join()
    for name, unit in (("private", "MB"), ("proportional", "MB"), ("resident", "MB"), ("rows_per_second", "")):
        found = [result[name] for result in results]
        print(f"a worker, after {a.reads:,} rows: {name} {min(found):,.1f} to {max(found):,.1f} {unit}".rstrip())
    if a.json:
        worst = max(result["private"] for result in results)
        print(
            json.dumps(
                {
                    "bytes": size,
                    "rows": len(rows),
                    "seconds": seconds,
                    "processor_seconds": busy,
                    "worker_megabytes": worst,
                }
            )
        )


if __name__ == "__main__":
    main()
