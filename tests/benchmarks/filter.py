"""``python tests/benchmarks/filter.py``: how fast the caption filter is, and how much memory it takes.

Writes synthetic captions (by default 3 million, as in CC3M), filters them in a separate process, and prints captions
per second and that process's peak resident memory. A caption has one to three noun phrases. As in real captions, the
k-th most frequent phrase is about k times rarer than the most frequent, and most occur once or twice.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from data.filter_captions import filter_captions  # noqa: E402

LETTERS = "bcdfghjklmnpqrstvwz"


def word(number: int) -> str:
    """A made-up word for each number. None is English or ends like a verb."""
    text = ""
    while number or not text:
        number, digit = divmod(number, len(LETTERS))
        text += LETTERS[digit] + "aiou"[digit % 4]
    return f"{text}x"


def synthetic(count: int, seed: int = 0) -> Iterator[str]:
    rng = random.Random(seed)
    links = (" on the ", " with a ", " and the ", " is near a ", " of an ", ", ")
    for index in range(count):
        phrases = []
        for _ in range(rng.randint(1, 3)):
            noun = int(10_000 ** rng.random()) - 1  # log-uniform: frequency is proportional to 1 / rank
            adjective = f"{word(20_000 + int(3000 ** rng.random()))} " if rng.random() < 0.3 else ""
            phrases.append(f"{adjective}{word(noun)}")
        caption = "a " + phrases[0] + "".join(rng.choice(links) + phrase for phrase in phrases[1:])
        yield f"GCC_train_{index:09d}.jpg\t{caption} .\n"


def peak() -> int:
    """The peak of this process's resident memory, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--captions", type=int, default=3_000_000)
    parser.add_argument("--json", action="store_true", help="print a line of JSON too")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # for the separate process
    a = parser.parse_args()
    if a.measure:
        before, start, busy = peak(), time.perf_counter(), time.process_time()
        print(filter_captions(a.measure, a.measure.with_name("out.json")))
        seconds = {"seconds": time.perf_counter() - start, "processor_seconds": time.process_time() - busy}
        print(json.dumps({**seconds, "before_bytes": before, "peak_bytes": peak()}))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "captions.tsv"
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(synthetic(a.captions))
        command = [sys.executable, __file__, "--measure", path]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    *table, last = output.splitlines()
    result = {"captions": a.captions, **json.loads(last)}
    print("\n".join(table))
    seconds, busy = result["seconds"], result["processor_seconds"]
    print(f"{a.captions:,} captions, read twice, chunked, selected and written: {a.captions / seconds:,.0f} per second")
    print(f"in {seconds:.1f} s, with {busy:.1f} s of CPU time")
    before, most = result["before_bytes"] / 1e6, result["peak_bytes"] / 1e6
    print(f"peak memory {most:,.0f} MB, of which {before:,.0f} MB before the first caption, from imports")
    if a.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
