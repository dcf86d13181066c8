"""Lessons in a second language: ``lessons/zh/06-the-decoder.md`` has its own text, and the English page's code.

``python -m lessons.build --begin zh`` copies the pages into ``lessons/zh``, with links that fit the folder, and writes
``phrases.json``, the phrases that the builder writes. Translate the text between the blocks, and the phrases. From then
on ``python -m lessons.build`` keeps code, outputs, quotes and navigation equal to those of the English page. Figures
and notebooks are shared.
"""

import json
import re
from pathlib import Path

from lessons.markdown import BLOCK, one_folder_down
from minillava.errors import UserError


def begin(language: str, pages: list[Path], phrases: dict[str, str]) -> None:
    """Copy what is to be translated into the folder of ``language``, next to ``pages``. Raises UserError if it exists
    or is not named as a language is."""
    if not re.fullmatch(r"[a-z]{2}(-[A-Za-z]+)?", language):
        raise UserError(f"{language!r} is no language: write zh, or pt-BR")
    folder = pages[0].parent / language
    if folder.exists():
        raise UserError(f"{folder} exists, with a translation in it")
    folder.mkdir()
    names = "|".join(re.escape(page.name) for page in pages)
    for page in pages:
        text = one_folder_down(page.read_text(encoding="utf-8"), names, ".md")
        (folder / page.name).write_text(text, encoding="utf-8")
    text = json.dumps(phrases, ensure_ascii=False, indent=1)
    (folder / "phrases.json").write_text(text + "\n", encoding="utf-8")


def of(page: Path) -> list[Path]:
    """The translations of a page that exist."""
    return sorted(file.parent / page.name for file in page.parent.glob("*/phrases.json")
                  if (file.parent / page.name).exists())  # fmt: skip


def phrases_of(page: Path, english: dict[str, str]) -> dict[str, str]:
    """The phrases of a translated page's folder. Raises UserError if one is missing or has other {fields}."""
    file = page.parent / "phrases.json"
    try:
        phrases = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: {error}") from None
    for key, phrase in english.items():
        fields, theirs = (sorted(re.findall(r"{(\w+)", text)) for text in (phrase, str(phrases.get(key, ""))))
        if key not in phrases or not set(theirs) <= set(fields):
            raise UserError(
                f"{file}: the phrase {key!r} must be there, with no fields but {', '.join(fields) or 'none'}"
            )
    return phrases


def with_blocks_of(english: Path, page: Path) -> str:
    """The text of a translated page in which each block is the English page's block of the same number."""
    theirs = [found[0] for found in BLOCK.finditer(english.read_text(encoding="utf-8"))]
    text = page.read_text(encoding="utf-8")
    count = len(BLOCK.findall(text))
    if count != len(theirs):
        raise UserError(f"{page} has {count} blocks of code, {english} has {len(theirs)}")
    blocks = iter(theirs)
    return BLOCK.sub(lambda _: next(blocks), text)
