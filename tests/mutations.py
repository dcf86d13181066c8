"""``python tests/mutations.py [PART ...]``: break each part on purpose, one fault at a time, and see its tests go red.

``faults/PART.txt`` lists them: what goes wrong, then the text of the part (``lessons/parts.py`` says where it is) to
take out, each line after "- ", and what to put in, each line after "+ ". The changed copy stands in for the module
while the part's own tests run, up to the first that fails. Prints a table; exit code 1 if a fault goes unnoticed.
"""

import argparse
import ast
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from forks import run_pytest  # noqa: E402
from judge import StandIn  # noqa: E402

from lessons.parts import PATHS  # noqa: E402

PARTS = sorted(path.stem for path in (ROOT / "tests" / "faults").iterdir())
# Besides those of the same name.
MORE_TESTS = {"llava": ("generation",), "templates": ("conversation",), "fast": ("talk",)}
MORE_TESTS["chat_template"] = MORE_TESTS["templates"]


def mutants(part: str) -> Iterator[tuple[str, str]]:
    """What goes wrong, and the whole source with it, fault by fault.

    Raises ValueError for a stale fault, whose text the source does not hold, or holds more than once.
    """
    source = (ROOT / PATHS[part]).read_text(encoding="utf-8")
    for block in (ROOT / "tests" / "faults" / f"{part}.txt").read_text(encoding="utf-8").strip().split("\n\n"):
        fault, *lines = block.split("\n")
        old, new = ("\n".join(line[2:] for line in lines if line[0] == sign) for sign in "-+")
        if (count := source.count(old)) != 1:
            raise ValueError(f"stale fault in {part}.txt: {fault!r}: the source holds its text {count} times, not once")
        changed = source.replace(old, new)
        ast.parse(changed)
        yield fault, changed


def caught_by(part: str, source: str) -> str | None:
    """The first of the part's tests that fails with this source; None if all pass."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{part}.py"
        file.write_text(source, encoding="utf-8")
        tests = [str(ROOT / "tests" / f"test_{name}.py") for name in (part, *MORE_TESTS.get(part, ()))]
        arguments = [*tests, "-x", "-q", "--no-header", "-rfE", "--tb=no", f"--basetemp={folder}/tests"]
        code, printed = run_pytest(arguments, partial(StandIn, {part: file}))
    if code == 0:
        return None
    if code is None:
        return "a test that does not come to an end"
    found = re.search(r"^(?:FAILED|ERROR) \S+?::(.*?)(?: - |$)", printed, re.MULTILINE)
    if code != 1 or not found:
        raise RuntimeError(f"the tests of {part} do not run: {printed[-1000:]}")
    return found[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parts = parser.parse_args().parts or PARTS
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no faults for {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}")
    work = [(part, *mutant) for part in parts for mutant in mutants(part)]
    survivors, start = 0, time.monotonic()
    print("| part | fault | caught by |\n|---|---|---|")
    for part, fault, source in work:
        test = caught_by(part, source)
        survivors += test is None
        print(f"| {part} | {fault} | {test or '**nothing**'} |", flush=True)
    print(f"\n{len(work) - survivors} of {len(work)} faults caught, in {time.monotonic() - start:.0f} s")
    sys.exit(1 if survivors else 0)


if __name__ == "__main__":
    main()
