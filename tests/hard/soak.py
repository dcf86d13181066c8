"""``python tests/hard/soak.py [--turns 1000] [--generations 10000] [--minutes 60]``: does anything grow?

A chat of many turns with the shipped model, many answers to single questions, and a long training: memory (resident
set) and open files are looked at after the first tenth and at the end. Neither may have grown, memory by more than
5 % and 10 MB. Prints a table; the exit code is 1 if something has grown.
"""

import argparse
import io
import json
import os
import sys
import tempfile
import time
from contextlib import redirect_stdout
from itertools import cycle, islice
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from kills import call  # noqa: E402

import chat  # noqa: E402
import train  # noqa: E402
from data.picturebook.write import write_world  # noqa: E402
from minillava.checkpoint import load  # noqa: E402
from minillava.config import PRETRAINED  # noqa: E402
from minillava.training.progress import Progress  # noqa: E402

QUESTIONS = ("What is in the centre?", "How many things are there?", "Describe the image.", "Is there a dog?", "Why?")
Look = tuple[float, int]  # MB of memory, open files


def look() -> Look:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(os.listdir("/proc/self/fd"))


def chatting(turns: int) -> list[Look]:
    """One chat, with a new talk whenever the model can read no more."""
    looks = []

    class Asked(io.StringIO):
        lines = islice(cycle(QUESTIONS), turns)

        def readline(self, *_) -> str:
            if said.getvalue().endswith("; /new begins a new talk)\nHuman: "):
                return "/new\n"
            looks.append(look())
            line = next(self.lines, None)
            return f"{line}\n" if line else ""  # the end of the input

    before, sys.stdin = sys.stdin, Asked()
    try:
        with redirect_stdout(io.StringIO()) as said:
            call(chat.main, "--seed", 1, "--max-new-tokens", 24)
    finally:
        sys.stdin = before
    assert said.getvalue().count("Assistant: ") == turns and "(a new talk)" in said.getvalue()
    return looks


def answering(generations: int) -> list[Look]:
    model, looks = load(PRETRAINED / "llava"), []
    picture = model.encode_image(chat.fresh_scene(1))
    for question in islice(cycle(QUESTIONS), generations):
        model.chat(picture, question, max_new_tokens=12)
        looks.append(look())
    return looks


def training(minutes: float, folder: Path) -> list[Look]:
    """A training that saves every minute. It ends with a step after ``minutes``, by Ctrl-C."""
    looks, update, end = [], Progress.update, time.monotonic() + 60 * minutes

    def looked(self, done: int, loss: float) -> None:
        update(self, done, loss)
        looks.append(look())
        if time.monotonic() > end:
            raise KeyboardInterrupt

    Progress.update = looked
    options = ["--data", folder / "world" / "instruct.json", "--model", PRETRAINED / "llava", "--epochs", 10_000]
    options += ["--save-every", "1m", "--out", folder / "out", "--device", "cpu", "--no-compile"]
    try:
        call(train.main, "--stage", 2, *options)
    except KeyboardInterrupt:
        pass
    finally:
        Progress.update = update
    return looks


def grown(looks: list[Look]) -> dict[str, float | bool]:
    (early, files), (late, more) = looks[len(looks) // 10], looks[-1]
    return {
        "looks": len(looks), "MB early": round(early), "MB late": round(late), "files early": files, "files late": more,
        "grown": late > 1.05 * early + 10 or more > files,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=1000)
    parser.add_argument("--generations", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=60, help="of training (default %(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        write_world(Path(name) / "world", 100, 0)
        torch.set_num_threads(1)
        found = {
            "chat": grown(chatting(arguments.turns)),
            "answers": grown(answering(arguments.generations)),
            "training": grown(training(arguments.minutes, Path(name))),
        }
    for kind, values in found.items():
        print(kind, values)
    print(json.dumps(found))
    sys.exit(any(values["grown"] for values in found.values()))


if __name__ == "__main__":
    main()
