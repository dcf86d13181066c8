"""``python tests/benchmarks/first_token.py``: how long ``python chat.py`` takes to its first word.

Each round starts two programs, one after the other: ``python -c "import torch"``, until it ends, and ``chat.py`` with
the shipped model, a scene and a question, until it prints the first piece of its answer. Prints the medians, and the
median of the differences.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[2]
QUESTION = "Describe the image concisely."


def seconds_to_output(*arguments: str) -> float:
    """Seconds from the start of ``python ARGUMENTS`` to the first byte that it prints, or to its end."""
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, bufsize=0) as program:
        program.stdout.read(1)
        seconds = time.perf_counter() - start
        program.stdout.read()  # the rest of the answer
    if program.returncode:
        sys.exit(f"python {' '.join(arguments)} ended with exit code {program.returncode}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="(default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print a line of JSON too")
    a = parser.parse_args()
    torch, chat = [], []
    for _ in range(a.rounds):
        torch.append(seconds_to_output("-c", "import torch"))
        chat.append(seconds_to_output("chat.py", "--seed", "1", "--prompt", QUESTION))
    result = {
        "import_torch_seconds": median(torch),
        "first_word_seconds": median(chat),
        "difference": median(second - first for first, second in zip(torch, chat)),
    }
    print("import torch {:.2f} s, first word {:.2f} s, difference {:.2f} s".format(*result.values()))
    if a.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
