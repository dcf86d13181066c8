"""The layers of minillava: a module imports only from its own package and from layers below it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "minillava"
# From the top down. A room is a package or a top-level module; it imports from itself and from the floors below.
FLOORS = (
    ("training", "merge", "terminal", "web"),
    ("evaluate", "look"),
    ("talk",),
    ("checkpoint",),
    ("language_model",),
    ("outline",),
    ("saving", "hub"),
    ("model",),
    ("inputs",),
    ("config",),
    ("formats",),
    ("files", "page", "progress", "lock"),
    ("errors",),
)
LEVEL = {name: level for level, names in enumerate(reversed(FLOORS)) for name in names}
DOORS = {("model", "talk")}  # Llava.chat and Llava.stream


def imports(file: Path) -> set[str]:
    """The packages and top-level modules of minillava that a file imports from."""
    rooms = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "minillava":
            path = node.module.split(".")[1:]
            rooms |= {path[0]} if path else {alias.name for alias in node.names}
    return rooms


@pytest.mark.parametrize("room", LEVEL)
def test_imports_point_downwards(room):
    files = [ROOT / f"{room}.py"] if (ROOT / f"{room}.py").exists() else sorted((ROOT / room).glob("*.py"))
    assert files
    for file in files:
        for other in imports(file) - {room}:
            assert LEVEL[other] < LEVEL[room] or (room, other) in DOORS, f"{file.name} imports {other}"


def test_every_file_has_a_room():
    places = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in ROOT.rglob("*.py")}
    assert places == {*LEVEL, "__init__"}


def test_nothing_in_minillava_imports_the_programs_that_write_data():
    for file in ROOT.rglob("*.py"):
        assert not any(
            (node.module or "").split(".")[0] in ("data", "lessons")
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom)
        ), file


def test_only_talking_and_evaluating_use_the_fast_pass():
    users = [file.name for file in ROOT.rglob("*.py") if "import fast" in file.read_text(encoding="utf-8")]
    assert sorted(users) == ["evaluate.py", "talk.py"]
