"""``python -m lessons.exercise decoder``: write ``exercises/decoder.py``, the decoder's source without some bodies.

Write these bodies in the order given at the top of the file and test them: ``pytest tests/test_decoder.py --exercise``.
``--solution`` prints the project's bodies, ``--status`` what you have written and what of it passes.
"""

import argparse
import ast
import textwrap
from pathlib import Path

from lessons.board import board
from lessons.parts import FOLDER, PARTS, PATHS, TO_WRITE
from lessons.source import definitions, first_line, text_of
from minillava.errors import UserError, run_program

ROOT = Path(__file__).parents[1]


def skeleton(part: str) -> str:
    """The source of a part, in which each function in PARTS has only its docstring, a hint and NotImplementedError."""
    source = (ROOT / PATHS[part]).read_text(encoding="utf-8")
    found, lines = definitions(ast.parse(source)), source.splitlines()
    for name in sorted(PARTS[part], key=lambda name: -found[name].lineno):  # from the last, so line numbers stay valid
        function = found[name]
        body = function.body if ast.get_docstring(function) is None else function.body[1:]
        indent = " " * function.body[0].col_offset
        start = body[0].lineno - 1
        while not lines[start - 1].strip() or lines[start - 1].lstrip().startswith("#"):  # comments belong to the body
            start -= 1
        hint = textwrap.wrap(PARTS[part][name], 118 - len(indent))
        lines[start : function.end_lineno] = [
            *(f"{indent}# {line}" for line in hint),
            f'{indent}raise NotImplementedError("{name} {TO_WRITE}")',
        ]
    head = textwrap.wrap(f"Write them in this order: {', '.join(PARTS[part])}.", 118, break_long_words=False)
    return "\n".join(
        [
            f"# Your own {PATHS[part]}: write the bodies that raise NotImplementedError, and test them:",
            f"#     pytest tests/test_{part}.py --exercise",
            *(f"# {line}" for line in head),
            *lines,
            "",
        ]
    )


def solution(part: str) -> str:
    """The project's functions that the exercise asks for, each after a comment that says where it is."""
    source = (ROOT / PATHS[part]).read_text(encoding="utf-8")
    found = definitions(ast.parse(source))
    return "\n\n".join(
        f"# {name}, {PATHS[part]}:{first_line(found[name])}\n{textwrap.dedent(text_of(source, found[name]))}"
        for name in PARTS[part]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", metavar="PART", help=f"one of {', '.join(PARTS)}")
    parser.add_argument("--solution", action="store_true", help="print the project's bodies and write no file")
    parser.add_argument("--force", action="store_true", help="overwrite the file and what you wrote in it")
    parser.add_argument("--status", action="store_true", help="print how many bodies of each part pass")
    arguments = parser.parse_args()
    if arguments.status:
        if arguments.part or arguments.solution or arguments.force:
            parser.error("--status takes no part and no other option")
        print(*board(), sep="\n")
        return
    if arguments.part is None:
        parser.error(f"name a part to write, one of {', '.join(PARTS)}; --status shows how far you are")
    if arguments.part not in PARTS:
        raise UserError(f"no part {arguments.part!r}; the parts are {', '.join(PARTS)}")
    if arguments.solution:
        print(solution(arguments.part))
        return
    path = FOLDER / f"{arguments.part}.py"
    if path.exists() and not arguments.force:
        raise UserError(f"{path} exists, with your work in it; --force overwrites it")
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_text(skeleton(arguments.part), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    print(f"{path}: {len(PARTS[arguments.part])} bodies to write. Test them: pytest tests/test_{path.name} --exercise")


if __name__ == "__main__":
    run_program(main)
