"""``python -m lessons.build [PAGE ...]``: bring quotes, outputs, links and notebooks of the lessons up to date.

A lesson is a Markdown page. Its author writes the text and the code; the rest is made from these marks:

- ``<!-- quote minillava/model/decoder.py RMSNorm.forward -->`` above a ```python block: the block becomes the source of
  that name, with a line above it that says where it is from. Where an exercise asks for a body of it, the quote is
  folded, below a line that asks the reader to write it first.
- All other ```python blocks are run in order, in one namespace, from the repository's folder. The ```output block below
  one holds what it printed. A block that prints nothing has none.
- ``<!-- navigation -->``: the line below it leads to the lessons before and after.
- ``<!-- time -->``: the line below it says how long the lesson takes to read.
- ``<!-- lessons -->``: the table below it lists the lessons, with their questions and times.
- ``<!-- bodies decoder attention -->``: the table below it lists the bodies of these exercises; without names, of all.

Each lesson is also written as a notebook (``notebook.py``). ``--begin zh`` makes the pages of a translation
(``translation.py``), which this program then keeps up to date too.
"""

import argparse
import ast
import contextlib
import io
import math
import re
from collections.abc import Callable
from pathlib import Path

from lessons import notebook, translation
from lessons.markdown import BLOCK, FENCED, MARK, title
from lessons.parts import HARD, MEDIUM, PARTS, PATHS
from lessons.source import definitions, text_of
from minillava.errors import UserError, run_program

ROOT = Path(__file__).parents[1]
NAVIGATION = re.compile(r"^(<!-- navigation -->\n)(\[.*\n)?", re.MULTILINE)
TIME = re.compile(r"^(<!-- time -->\n)(\*\*.*\n)?", re.MULTILINE)
LESSONS = re.compile(r"^(<!-- lessons -->\n)(\|.*\n)*", re.MULTILINE)
BODIES = re.compile(r"^(<!-- bodies(?P<parts>.*) -->\n)(\|.*\n)*", re.MULTILINE)
QUESTION = re.compile(r"^\*(.+\?)\*$", re.MULTILINE)
WORDS_A_MINUTE, LINES_A_MINUTE = 120, 20  # of text, and of code and what it prints
EASY_MINUTES, MEDIUM_MINUTES, HARD_MINUTES = 10, 30, 60  # to write a body

# What the builder writes. A translation has its own in phrases.json.
PHRASES = {
    "source": "From [{file}]({link}), `{name}`:",
    "write": "**Stop here and write it:** {bodies} in `exercises/{part}.py` ([how](README.md#rebuild-it)).",
    "theirs": "The project's <code>{name}</code>",
    "all": "All lessons",
    "list": "| lesson | question | minutes to read |",
    "bodies": "| exercise | easy | medium | hard | hours |",
    "time": "**Time:** about {minutes} minutes to read ({words:,} words and {lines} lines of code); "
    "the exercises take longer ([hours](teaching.md)).",
}


def pages() -> list[Path]:
    """The lessons, the list of them and the other pages next to them."""
    return sorted((ROOT / "lessons").glob("*.md"))


def lessons(folder: Path | None = None) -> list[Path]:
    """The lessons of a folder, in their order; by default the English ones."""
    return sorted((folder or ROOT / "lessons").glob("[0-9][0-9]-*.md"))


def in_process(page: Path) -> Callable[[str, int], str]:
    """A function that runs one block after another, in one namespace, and returns what a block printed."""
    namespace = {"__name__": "__main__"}

    def run(code: str, line: int) -> str:
        # Empty lines before the code make the line numbers in a traceback those of the lesson.
        compiled = compile("\n" * line + code, str(page), "exec")
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compiled, namespace)
        return printed.getvalue()

    return run


def built(page: Path, run: Callable[[str, int], str] | None = None) -> str:
    """A page's text with all that is made brought up to date; the file is not changed.

    ``run(code, line)`` returns what a block prints. Raises UserError, which names the page and the line, for a quoted
    name or file that does not exist and for a block that fails.
    """
    return made(page, page.read_text(encoding="utf-8"), run or in_process(page), PHRASES)


def translated(english: Path, page: Path) -> str:
    """A translated page's text with the code, the outputs and the quotes of the English page, which is up to date."""
    text = translation.with_blocks_of(english, page)
    outputs = (found["output"] or "" for found in BLOCK.finditer(text) if found["code"] is not None)
    return made(page, text, lambda code, line: next(outputs), translation.phrases_of(page, PHRASES))


def made(page: Path, text: str, run: Callable[[str, int], str], phrases: dict[str, str]) -> str:
    def block(found: re.Match) -> str:
        line = text.count("\n", 0, found.start("theirs" if found["code"] is None else "code"))
        try:
            if found["code"] is None:
                end = found["end"] or ""
                return quote(page, found["file"], found["name"], phrases) + end * ("<details>" not in found["above"])
            output = run(found["code"], line)
        except Exception as error:
            raise UserError(f"{page}, block at line {line}: {type(error).__name__}: {error}") from error
        return f"```python\n{found['code']}```\n" + (f"\n```output\n{output.rstrip()}\n```\n" if output else "")

    text = BLOCK.sub(block, text)
    text = NAVIGATION.sub(lambda found: f"{found[1]}{navigation(page, phrases)}\n", text)
    text = BODIES.sub(lambda found: f"{found[1]}{bodies(found['parts'].split(), phrases)}\n", text)
    text = LESSONS.sub(lambda found: f"{found[1]}{table(page, phrases)}\n", text)
    return TIME.sub(lambda found: f"{found[1]}{time(text, phrases)}\n", text)


def quote(page: Path, file: str, name: str, phrases: dict[str, str]) -> str:
    """A quote with its mark, the line that says where it is from, and the fold if a reader is to write it first."""
    link = "../" * len(page.relative_to(ROOT).parent.parts) if page.is_relative_to(ROOT) else ""
    source = phrases["source"].format(file=file, link=link + file, name=name)
    shown = f"{source}\n\n```python\n{quoted(file, name)}\n```\n"
    part = next((part for part in PARTS if PATHS[part] == file), None)
    bodies = [body for body in PARTS.get(part, ()) if f"{body}.".startswith(f"{name}.")]
    if bodies:
        asked = phrases["write"].format(bodies=", ".join(f"`{body}`" for body in bodies), part=part)
        summary = phrases["theirs"].format(name=name)
        shown = f"{asked}\n\n<details><summary>{summary}</summary>\n\n{shown}\n</details>\n"
    return f"<!-- quote {file} {name} -->\n{shown}"


def quoted(file: str, name: str) -> str:
    """The source of a name in a file of the repository, with decorators and comments. Raises LookupError if the file
    does not define the name."""
    source = (ROOT / file).read_text(encoding="utf-8")
    found = definitions(ast.parse(source))
    if name not in found:
        raise LookupError(f"{file} has no {name}")
    return text_of(source, found[name])


def navigation(page: Path, phrases: dict[str, str]) -> str:
    """Links to the lesson before, to the list of all, and to the lesson after."""
    row = lessons(page.parent)
    place = row.index(page)
    before, after = row[max(place - 1, 0) : place], row[place + 1 : place + 2]
    links = [f"[← {title(one)}]({one.name})" for one in before]
    links += [f"[{phrases['all']}](README.md)", *(f"[{title(one)} →]({one.name})" for one in after)]
    return " · ".join(links)


def time(text: str, phrases: dict[str, str]) -> str:
    """How long a page takes to read, by its words and its lines of code."""
    words, lines = length(text)
    return phrases["time"].format(minutes=minutes(text), words=words, lines=lines)


def length(text: str) -> tuple[int, int]:
    """The words of a page's text, and the lines of its code and outputs."""
    text = MARK.sub("", NAVIGATION.sub("", TIME.sub("", text)))
    return len(FENCED.sub("", text).split()), sum(block.count("\n") - 1 for block in FENCED.findall(text))


def minutes(text: str) -> int:
    """How long a page takes to read, in steps of five minutes."""
    words, lines = length(text)
    return 5 * math.ceil((words / WORDS_A_MINUTE + lines / LINES_A_MINUTE) / 5)


def table(page: Path, phrases: dict[str, str]) -> str:
    """A row for each lesson in the folder of ``page``, and one for all of them."""
    texts = {lesson: lesson.read_text(encoding="utf-8") for lesson in lessons(page.parent)}
    rows = [
        f"| [{title(lesson)}]({lesson.name}) | {QUESTION.search(text)[1]} | {minutes(text)} |"
        for lesson, text in texts.items()
    ]
    return "\n".join([phrases["list"], "|---|---|---|", *rows, f"| | | {sum(map(minutes, texts.values()))} |"])


def bodies(parts: list[str], phrases: dict[str, str]) -> str:
    """A row for each of ``parts``, or of all: its bodies by difficulty, and about how long they take to write."""
    rows, total = [], 0.0
    for part in parts or PARTS:
        medium, hard = MEDIUM.get(part, ()), HARD.get(part, ())
        easy = [name for name in PARTS[part] if name not in medium + hard]
        minutes = EASY_MINUTES * len(easy) + MEDIUM_MINUTES * len(medium) + HARD_MINUTES * len(hard)
        hours = max(0.5, round(minutes / 30) / 2)
        total += hours
        cells = [", ".join(f"`{name}`" for name in names) for names in (easy, medium, hard)]
        rows.append(f"| `{part}` | {' | '.join(cells)} | {hours:g} |")
    if not parts:
        rows.append(f"| | | | | {total:g} |")
    return "\n".join([phrases["bodies"], "|---|---|---|---|---|", *rows])


def write(file: Path, text: str) -> None:
    """Write a page or a notebook, and say so, if its text is another one now."""
    if not file.exists() or text != file.read_text(encoding="utf-8"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
        print(f"{file}: brought up to date")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lessons.build", description=__doc__.split("\n")[0])
    parser.add_argument("pages", nargs="*", type=Path, metavar="PAGE", help="lessons (default: all)")
    parser.add_argument("--begin", metavar="LANGUAGE", help="make the pages of a translation, as lessons/LANGUAGE/*.md")
    arguments = parser.parse_args()
    asked = [page.resolve() for page in arguments.pages]
    if unknown := [page for page in asked if page not in pages()]:
        raise UserError(f"{unknown[0]} is no page of the lessons")
    if arguments.begin:
        translation.begin(arguments.begin, pages(), PHRASES)
    for page in asked or pages():
        write(page, built(page))
        if page in lessons():
            write(notebook.path_of(page), notebook.notebook(page))
        for other in translation.of(page):
            write(other, translated(page, other))


if __name__ == "__main__":
    run_program(main)
