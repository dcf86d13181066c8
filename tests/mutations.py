"""``python tests/mutations.py [PART ...]``: break each part on purpose, one fault at a time; its tests should fail.

``faults/PART.txt`` lists the faults of a part, whose source file is in ``lessons/parts.py``. Each fault has a name, the
text to remove from the source (lines after "- ") and the text to insert there (lines after "+ "). The changed copy
replaces the module while the part's tests run, up to the first failure. Prints a table; the exit code is 1 if the
tests miss a fault.

With ``--exercise`` each fault that lies in a body of an exercise is a reader's mistake: the changed copy is judged as
``pytest --exercise`` judges it, and the first body that does not pass should be the one with the mistake. The exit code
is 1 if a mistake is missed, or if another body is named first for more than a tenth of the mistakes of a part.
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

import judge  # noqa: E402
from forks import run_pytest  # noqa: E402

from lessons.parts import PARTS as EXERCISES  # noqa: E402
from lessons.parts import PATHS  # noqa: E402
from lessons.source import definitions  # noqa: E402
from lessons.stand_in import StandIn  # noqa: E402

PARTS = sorted(path.stem for path in (ROOT / "tests" / "faults").iterdir())
# Tests that run in addition to tests/test_PART.py, or in its place if there is none.
MORE_TESTS = {
    "llava": ("generation",),
    "templates": ("conversation", "chat_template"),
    "chat_template": ("conversation",),
    "fast": ("talk",),
    "dataset": ("conversations", "rejected", "pack"),
    "gguf": ("gguf_llama",),
    "tokenizer": ("tokenizer_files", "sentencepiece_bpe"),
    "adapter": ("lora_training",),
    "web_server": ("web",),
    "image": ("pictures",),
    "tensors": ("weights",),
    "sentencepiece_bpe": ("sentencepiece_files",),
    "loop": ("resume", "heldout", "report"),
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


def body_of(part: str, source: str) -> str | None:
    """The body of the exercise that differs from the project's in ``source``; None if the change lies elsewhere."""
    ours = definitions(ast.parse((ROOT / PATHS[part]).read_text(encoding="utf-8")))
    theirs = definitions(ast.parse(source))
    return next((name for name in EXERCISES[part] if ast.dump(ours[name]) != ast.dump(theirs[name])), None)


def judged(part: str, source: str) -> tuple[str | None, str]:
    """The first body that does not pass if a reader's file is ``source``, and why; None if all pass."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"{part}.py").write_text(source, encoding="utf-8")

        def prepare() -> None:
            judge.FOLDER = Path(folder)

        arguments = ["--exercise", f"--basetemp={folder}/tests", str(ROOT / "tests" / f"test_{part}.py")]
        code, printed = run_pytest(arguments, prepare)
        if found := re.search(rf"^{part} (\S+) +does not pass: (.*)", printed, re.MULTILINE):
            return found[1], found[2].replace(f"{folder}/", "")
    if code != 0:
        raise RuntimeError(f"the exercise {part} is not judged: {printed[-1000:]}")
    return None, ""


def measure_exercises(parts: list[str]) -> bool:
    """Print a table of the mistakes, and for each part how many are caught and how many are named right first. Returns
    whether that is enough."""
    enough, totals = True, []
    print("| part | body | mistake | first named | why |\n|---|---|---|---|---|")
    for part in parts:
        count = caught = right = 0
        for fault, source in mutants(part):
            if body := body_of(part, source):
                named, why = judged(part, source)
                count, caught, right = count + 1, caught + (named is not None), right + (named == body)
                first = "the same" if named == body else named or "**nothing**"
                print(f"| {part} | {body} | {fault} | {first} | {why} |", flush=True)
        enough = enough and caught == count and right >= 0.9 * count
        totals.append(f"{part}: {count} mistakes, {caught} caught, {right} named right first")
    print("", *totals, sep="\n")
    return enough


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one or more of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--exercise", action="store_true", help="judge the mistakes as those of a reader's file")
    arguments = parser.parse_args()
    parts = arguments.parts or (list(EXERCISES) if arguments.exercise else PARTS)
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no faults for {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    if arguments.exercise:
        sys.exit(0 if measure_exercises([part for part in parts if part in EXERCISES]) else 1)
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
