"""What the pages of the lessons are made of: code blocks with their outputs, quotes of source code, and links."""

import re
from pathlib import Path

# A quote (file, name, what is between its mark and its code, and the end of a fold), or a block that is run (code).
BLOCK = re.compile(
    r"^<!-- quote (?P<file>\S+) (?P<name>\S+) -->\n(?P<above>(?:(?!```).*\n)*?)(?P<theirs>```python\n(?:.*\n)*?```\n)"
    r"(?P<end>\n</details>\n)?"
    r"|^```python\n(?P<code>(?:.*\n)*?)```\n(?:\n```output\n(?P<output>(?:.*\n)*?)```\n)?",
    re.MULTILINE,
)
MARK = re.compile(r"^<!-- .* -->\n", re.MULTILINE)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!\w+:)(?P<file>[^()#\s]*)(#(?P<heading>[^()\s]*))?\)")
BROKEN_LINK = re.compile(r"\]\([^()\s]+\n")


def dead_links(page: Path) -> list[str]:
    """The relative links and pictures of a Markdown file whose target, or heading in the target, does not exist, and
    those whose target is broken over two lines."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    dead = [broken[0][2:-1] for broken in BROKEN_LINK.finditer(text)]
    for link in LINK.finditer(text):
        target = page.parent / link["file"] if link["file"] else page
        if not target.exists() or (link["heading"] and link["heading"] not in headings(target)):
            dead.append(link[0][2:-1])
    return dead


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, made as GitHub does: lower case, hyphens for spaces, no punctuation."""
    found = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def title(page: Path) -> str:
    return page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def one_folder_down(text: str, stays: str, suffix: str) -> str:
    """``text`` with links for a page in a folder below. Links whose file matches ``stays`` lead to the page of that
    name, with ``suffix``, in the same folder."""

    def moved(found: re.Match) -> str:
        file, heading = found["file"], found[2] or ""
        if file and re.match(stays, file):
            return f"]({Path(file).with_suffix(suffix)}{heading})"
        return f"](../{file}{heading})" if file else found[0]

    return LINK.sub(moved, text)
