"""``python -m lessons.build``: bring the quotes and outputs in the lessons up to date.

A lesson is a Markdown page:

- ``<!-- quote minillava/model/decoder.py RMSNorm.forward -->`` above a ```python block: the block is the source of that
  name.
- All other ```python blocks are run in order, in one namespace, from the repository's folder.
- The ```output block after a ```python block holds what the block printed. A block that prints nothing has none.
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
    """The lesson's text with current quotes and outputs; the file is not changed.

    Raises UserError, which names the lesson and the line, for a quoted name or file that does not exist and for a block
    that fails.
    """
    text, namespace = lesson.read_text(encoding="utf-8"), {"__name__": "__main__"}

    def block(found: re.Match) -> str:
        line = text.count("\n", 0, found.start("code"))
        try:
            if found["marker"]:
                return f"{found['marker']}```python\n{quoted(found['file'], found['name'])}\n```\n"
            # Empty lines before the code make the line numbers in a traceback those of the lesson.
            code = compile("\n" * line + found["code"], str(lesson), "exec")
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(code, namespace)
        except Exception as error:
            raise UserError(f"{lesson}, block at line {line}: {type(error).__name__}: {error}") from error
        output = printed.getvalue()
        return f"```python\n{found['code']}```\n" + (f"\n```output\n{output.rstrip()}\n```\n" if output else "")

    return BLOCK.sub(block, text)


def quoted(file: str, name: str) -> str:
    """The source of a name in a file of the repository, with decorators and comments. Raises LookupError if the file
    does not define the name."""
    source = (ROOT / file).read_text(encoding="utf-8")
    found = definitions(ast.parse(source))
    if name not in found:
        raise LookupError(f"{file} has no {name}")
    return text_of(source, found[name])


def dead_links(page: Path) -> list[str]:
    """The relative links and pictures of a Markdown file whose target, or heading in the target, does not exist."""
    dead = []
    for link in LINK.finditer(FENCED.sub("", page.read_text(encoding="utf-8"))):
        target = page.parent / link["file"] if link["file"] else page
        if not target.exists() or (link["heading"] and link["heading"] not in headings(target)):
            dead.append(link[0][2:-1])
    return dead


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, made as GitHub does: lower case, hyphens for spaces, no punctuation."""
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
