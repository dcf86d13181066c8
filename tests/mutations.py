"""``python tests/mutations.py [PART ...]``: break each part on purpose, one fault at a time; its tests should fail.

``faults/PART.txt`` lists the faults of a part, whose source file is in ``lessons/parts.py``. Each fault has a name, the
text to remove from the source (lines after "- ") and the text to insert there (lines after "+ "). The changed copy
replaces the module while the part's tests run, up to the first failure. Prints a table; the exit code is 1 if the
tests miss a fault.
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
# Tests that run in addition to tests/test_PART.py, or in its place if there is none.
MORE_TESTS = {
    "llava": ("generation",),
    "templates": ("conversation", "chat_template"),
    "chat_template": ("conversation",),
    "fast": ("talk",),
    "dataset": ("rejected", "pack"),
    "gguf": ("gguf_llama",),
    "tokenizer": ("tokenizer_files", "sentencepiece_bpe"),
    "adapter": ("lora",),
    "web_server": ("web",),
    "training": ("resume", "heldout", "report"),
    "heldout": ("report",),
    "answers": ("heldout", "report"),
    "page": ("look", "report"),
    "comparisons": ("experiments",),
    **dict.fromkeys(("frozen", "flamingo", "blip2", "kosmos"), ("roads",)),
}


def mutants(part: str) -> Iterator[tuple[str, str]]:
    """Yields (name of the fault, the part's whole source with that fault).

    Raises ValueError for a stale fault: the text to remove must be in the source exactly once.
    """
    source = (ROOT / PATHS[part]).read_text(encoding="utf-8")
    for block in (ROOT / "tests" / "faults" / f"{part}.txt").read_text(encoding="utf-8").strip().split("\n\n"):
        fault, *lines = block.split("\n")
        old, new = ("\n".join(line[2:] for line in lines if line[0] == sign) for sign in "-+")
        if (count := source.count(old)) != 1:
            raise ValueError(f"stale fault in {part}.txt: {fault!r}: its text is in the source {count} times, not once")
        changed = source.replace(old, new)
        ast.parse(changed)
        yield fault, changed


def caught_by(part: str, source: str) -> str | None:
    """The name of the first of the part's tests that fails with this source; None if all pass."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{part}.py"
        file.write_text(source, encoding="utf-8")
        tests = [ROOT / "tests" / f"test_{name}.py" for name in (part, *MORE_TESTS.get(part, ()))]
        options = ["-x", "-q", "--no-header", "-rfE", "--tb=no", f"--basetemp={folder}/tests"]
        arguments = [*(str(test) for test in tests if test.exists()), *options]
        code, printed = run_pytest(arguments, partial(StandIn, {part: file}))
    if code == 0:
        return None
    if code is None:
        return "a test that does not end"
    found = re.search(r"^(?:FAILED|ERROR) \S+?::(.*?)(?: - |$)", printed, re.MULTILINE)
    if code != 1 or not found:
        raise RuntimeError(f"the tests of {part} do not run: {printed[-1000:]}")
    return found[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one or more of {', '.join(PARTS)} (default: all)")
    parts = parser.parse_args().parts or PARTS
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no faults for {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
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
