"""``python tests/hard/servers.py [NAME ...]``: ``data.instruct`` asks servers that are broken or mean harm.

Each server is a function in hostile.py. The real program asks it eight things at once, in a process of its own. Prints
how each run ended, its seconds after the first request, its peak memory, its faults and its last line. Faults are a
traceback, an escape on the terminal, a journal that cannot be read, an exit code other than 0 and 2, a run of five
seconds more than --timeout, and a gigabyte of memory. The exit code is 1 if there is a fault.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hostile import SERVERS, serve

ROOT = Path(__file__).parents[2]
ASKED = 8  # pictures, and requests at once
GRACE = 5.0  # seconds that a run may take longer than --timeout
MOST_MEMORY = 1e9  # bytes
ESCAPE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e]")


def arguments(folder: Path, url: str, timeout: float) -> list[str]:
    """Those of ``data.instruct`` for a build of ASKED rows in ``folder``."""
    lines = [{"id": f"p{n}", "image": f"{n}.jpg", "captions": ["A dog."], "instances": []} for n in range(ASKED)]
    (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = {"contexts": folder / "in.jsonl", "out": folder / "out.json", "teacher": "openai", "model": "m"}
    more = {"base-url": url, "timeout": timeout, "mix": "0:0:1", "attempts": 1, "concurrency": ASKED}
    return [text for name, value in {**given, **more}.items() for text in (f"--{name}", str(value))]


def faults(said: str, code: int, folder: Path) -> list[str]:
    """What is wrong with a run that printed ``said``."""
    found = [] if code in (0, 2) else [f"exit code {code}"]
    found += ["traceback"] * ("Traceback" in said) + ["escape"] * bool(ESCAPE.search(said))
    try:
        lines = (folder / "out.json.journal.jsonl").read_text().splitlines()
        assert all(isinstance(json.loads(line), dict) for line in lines) and len(lines) <= 1 + ASKED
        assert code or json.loads((folder / "out.json").read_text())
    except (OSError, ValueError, AssertionError):
        found.append("journal or rows")
    return found


def run(name: str, timeout: float) -> dict:
    asked: list[float] = []
    server = serve(SERVERS[name], asked)
    with tempfile.TemporaryDirectory() as folder, server as url, open(f"{folder}/said", "w+") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "data.instruct", *arguments(Path(folder), url, timeout)],
            cwd=ROOT,
            stdout=said,
            stderr=said,
            env={**os.environ, "NO_PROXY": "*", "OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30)),  # PyTorch maps gigabytes
        )
        killer = threading.Timer(timeout + 100, process.kill)
        killer.start()
        _, status, usage = os.wait4(process.pid, 0)
        killer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - asked[0]
        said.seek(0)
        text = said.read()
        found = faults(text, process.returncode, Path(folder))
    memory = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    found += ["hang"] * (seconds > timeout + GRACE) + ["memory"] * (memory > MOST_MEMORY)
    last = re.split(r"[\r\n]", text.strip())[-1]
    return {"name": name, "exit": process.returncode, "s": seconds, "MB": memory / 1e6, "faults": found, "last": last}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[1])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SERVERS)} (default: all)")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds for one reply (default %(default)g)")
    parser.add_argument("--at-once", type=int, default=2, help="runs at once (default %(default)s)")
    a = parser.parse_args()
    failed = 0
    with ThreadPoolExecutor(a.at_once) as pool:
        for row in pool.map(lambda name: run(name, a.timeout), a.names or SERVERS):
            failed += bool(row["faults"])
            print("{name:26} {exit:3} {s:6.1f} s {MB:5.0f} MB ".format(**row), end="")
            print(", ".join(row["faults"]) or "ok", row["last"][:150], sep="  ", flush=True)
    print(f"{failed} of {len(a.names or SERVERS)} servers find a fault")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
