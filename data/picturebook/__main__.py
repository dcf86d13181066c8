"""``python -m data.picturebook --out DIR --count N --seed S``: draw a world; ``write.py`` lists its files."""

import argparse
from pathlib import Path

from data.picturebook.write import write_world
from minillava.errors import run_program
from minillava.files import naming


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data.picturebook", description="Draw a picture-book world.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--count", type=int, default=20000, help="training pictures (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.count < 1:
        parser.error("--count must be at least 1")
    with naming(arguments.out):
        write_world(arguments.out, arguments.count, arguments.seed)


if __name__ == "__main__":
    run_program(main)
