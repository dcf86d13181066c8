"""``python -m lessons.build``: bring what the lessons quote and print up to date.

A lesson is Markdown. In it

- ``<!-- quote minillava/model/decoder.py RMSNorm.forward -->`` over a ```python block makes it the source of that name;
- every other ```python block is run, in order, in one namespace, from the folder of the repository;
- the ```output block behind a ```python block holds what it printed. There is one where it printed anything.
"""

import ast
import contextlib
import io
import re
from pathlib import Path

from lessons.source import definitions, text_of
from minillava.errors import UserError, run_program

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(
    r"(?P<marker>^<!-- quote (?P<file>\S+) (?P<name>\S+) -->\n)?^```python\n(?P<code>.*?)^```\n"
    r"(\n```output\n.*?^```\n)?",
    re.MULTILINE | re.DOTALL,
)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!\w+:)(?P<file>[^()#\s]*)(#(?P<heading>[^()\s]*))?\)")


def lessons() -> list[Path]:
    return sorted((ROOT / "lessons").glob("*.md"))


def built(lesson: Path) -> str:
    """A lesson's text with its quotes as the sources are now, and with what its blocks print now.

    Raises UserError, which names lesson and line, for a quote of what is not there and for a block that fails.
    """
    text, namespace = lesson.read_text(encoding="utf-8"), {"__name__": "__main__"}

    def block(found: re.Match) -> str:
        line = text.count("\n", 0, found.start("code"))
        try:
            if found["marker"]:
                return f"{found['marker']}```python\n{quoted(found['file'], found['name'])}\n```\n"
            # Empty lines before the code: a traceback gives the lesson's own lines.
            code = compile("\n" * line + found["code"], str(lesson), "exec")
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(code, namespace)
        except Exception as error:
            raise UserError(f"{lesson}, block at line {line}: {type(error).__name__}: {error}") from error
        output = printed.getvalue()
        return f"```python\n{found['code']}```\n" + (f"\n```output\n{output.rstrip()}\n```\n" if output else "")

    return BLOCK.sub(block, text)


def quoted(file: str, name: str) -> str:
    """The source of a name in a file of the repository, decorators and comments included. Raises LookupError."""
    source = (ROOT / file).read_text(encoding="utf-8")
    found = definitions(ast.parse(source))
    if name not in found:
        raise LookupError(f"{file} has no {name}")
    return text_of(source, found[name])


def dead_links(page: Path) -> list[str]:
    """Relative links and pictures of a Markdown file that lead nowhere, headings within a page included."""
    dead = []
    for link in LINK.finditer(FENCED.sub("", page.read_text(encoding="utf-8"))):
        target = page.parent / link["file"] if link["file"] else page
        if not target.exists() or (link["heading"] and link["heading"] not in headings(target)):
            dead.append(link[0][2:-1])
    return dead


def headings(page: Path) -> set[str]:
    """The names by which links know a page's headings: as on GitHub, small letters, hyphens for spaces, no signs."""
    found = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def main() -> None:
    for lesson in lessons():
        text = built(lesson)
        if text != lesson.read_text(encoding="utf-8"):
            lesson.write_text(text, encoding="utf-8")
            print(f"{lesson}: brought up to date")


if __name__ == "__main__":
    run_program(main)
