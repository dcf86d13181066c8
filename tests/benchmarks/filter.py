"""``python tests/benchmarks/filter.py``: how fast the caption filter is, and how much memory it takes.

Writes synthetic captions, as many as CC3M has unless told otherwise, filters them in a process of its own, and prints
captions per second and that process's peak of resident memory. A caption holds one to three noun phrases; as in real
ones, the k-th commonest is about k times rarer than the commonest, and most are seen once or twice.
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
    """A made-up word for each number, none of which is English or ends like a verb."""
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
            noun = int(10_000 ** rng.random()) - 1  # each decade of ranks is drawn alike: frequency is 1 / rank
            adjective = f"{word(20_000 + int(3000 ** rng.random()))} " if rng.random() < 0.3 else ""
            phrases.append(f"{adjective}{word(noun)}")
        caption = "a " + phrases[0] + "".join(rng.choice(links) + phrase for phrase in phrases[1:])
        yield f"GCC_train_{index:09d}.jpg\t{caption} .\n"


def peak() -> int:
    """Bytes of memory that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--captions", type=int, default=3_000_000)
    parser.add_argument("--json", action="store_true", help="print a line of JSON too")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # what the process of its own is told
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
    print(f"{a.captions:,} captions, read twice, chunked, selected and written: {a.captions / seconds:,.0f} a second")
    print(f"in {seconds:.1f} s, in {busy:.1f} s of which the processor was at work on it")
    before, most = result["before_bytes"] / 1e6, result["peak_bytes"] / 1e6
    print(f"peak memory {most:,.0f} MB, of which {before:,.0f} MB before the first caption, the imports")
    if a.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
