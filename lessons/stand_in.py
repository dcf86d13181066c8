"""The reader's files in place of the project's: every import of a part finds ``exercises/PART.py``."""

import ast
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType

from lessons.parts import PARTS, PATHS, TO_WRITE
from lessons.source import definitions

ROOT = Path(__file__).parents[1]


class BadFile(Exception):
    """A reader's file that cannot take the place of the project's. The message is one line that names the file."""


def module_of(part: str) -> str:
    """The module name of a part."""
    return PATHS[part].removesuffix(".py").replace("/", ".")


class StandIn(MetaPathFinder):
    """Makes every import of a part find another file. ``loaded(part, module)`` is called once such a module has run.

    With ``fill``, bodies that are yet to be written are those of the project.
    """

    def __init__(
        self,
        files: dict[str, Path],
        loaded: Callable[[str, ModuleType], None] = lambda part, module: None,
        fill: bool = False,
    ):
        assert "minillava" not in sys.modules, "minillava is imported already: install StandIn before that"
        self.files, self.loaded, self.fill = (
            {module_of(part): (part, file) for part, file in files.items()},
            loaded,
            fill,
        )
        sys.meta_path.insert(0, self)

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name not in self.files:
            return None
        part, file = self.files[name]
        return spec_from_file_location(name, str(file), loader=_Loader(name, str(file), part, self))


class _Loader(SourceFileLoader):
    def __init__(self, name: str, file: str, part: str, finder: StandIn):
        super().__init__(name, file)
        self.part, self.finder = part, finder

    def get_code(self, name: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)  # never from a .pyc: it may be filled or not

    def source_to_code(self, data: bytes, path: str) -> CodeType:
        tree = ast.parse(data)
        if self.finder.fill:
            fill(self.part, tree)
        return compile(tree, path, "exec")

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        self.finder.loaded(self.part, module)


def fill(part: str, tree: ast.Module) -> None:
    """Put the project's bodies where ``tree``, a reader's module, has bodies that are yet to be written."""
    theirs, ours = definitions(tree), definitions(ast.parse((ROOT / PATHS[part]).read_text(encoding="utf-8")))
    for name in PARTS[part]:
        if is_to_write(theirs[name]):
            for statement in (body := ours[name].body):
                for node in ast.walk(statement):
                    if hasattr(node, "lineno"):  # lines stay those of the reader's file
                        node.lineno = node.end_lineno = theirs[name].lineno
                        node.col_offset = node.end_col_offset = 0
            theirs[name].body = body


def is_to_write(function: ast.stmt) -> bool:
    return TO_WRITE in ast.unparse(function)


def to_write(part: str, file: Path) -> set[str]:
    """The bodies of a part that are yet to be written in the reader's file.

    Raises BadFile for a file that is missing, is not Python or lacks a name that the project's file has.
    """
    if not file.exists():
        raise BadFile(f"{file} is missing: python -m lessons.exercise {part} writes it")
    try:
        theirs = definitions(ast.parse(file.read_text(encoding="utf-8")))
    except SyntaxError as error:
        raise BadFile(f"{file}, line {error.lineno}: {error.msg}") from None
    except (OSError, ValueError) as error:
        raise BadFile(f"{file} cannot be read: {error}") from None
    ours = definitions(ast.parse((ROOT / PATHS[part]).read_text(encoding="utf-8")))
    if missing := ours.keys() - theirs.keys():
        raise BadFile(f"{file} lacks {', '.join(sorted(missing))}, which {PATHS[part]} has")
    return {name for name in PARTS[part] if is_to_write(theirs[name])}
