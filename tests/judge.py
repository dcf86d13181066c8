"""``pytest tests/test_decoder.py --exercise``: run a part's tests on the reader's file and say which bodies pass.

Every import of the part finds the reader's file, in the tests and in the rest of minillava. Each test counts for one
body: of the bodies in the table (lessons/parts.py) that it calls, the last one. So a body is judged by tests that need
only it and the bodies above it.

A test that fails because it calls a body that is yet to be written is counted separately: only the failures of written
bodies are shown in full.
"""

import ast
import functools
import importlib
import signal
import sys
from collections.abc import Callable, Iterator
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from lessons.parts import FOLDER, PARTS, PATHS, TO_WRITE
from lessons.source import definitions

ROOT = Path(__file__).parents[1]
SECONDS = 60  # of CPU time, after which a test is taken to run forever; the slowest takes two


def module_of(part: str) -> str:
    """The module name of a part."""
    return PATHS[part].removesuffix(".py").replace("/", ".")


class StandIn(MetaPathFinder):
    """Makes every import of a part find another file. ``loaded(part, module)`` is called once such a module has run."""

    def __init__(self, files: dict[str, Path], loaded: Callable[[str, ModuleType], None] | None = None):
        assert "minillava" not in sys.modules, "minillava is imported already: install StandIn before that"
        self.files, self.loaded = {module_of(part): file for part, file in files.items()}, loaded
        sys.meta_path.insert(0, self)

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name not in self.files:
            return None
        file = str(self.files[name])
        return spec_from_file_location(name, file, loader=_Loader(name, file, self.loaded))


class _Loader(SourceFileLoader):
    def __init__(self, name: str, file: str, loaded: Callable[[str, ModuleType], None] | None):
        super().__init__(name, file)
        self.loaded = loaded

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        if self.loaded:
            self.loaded(self.name.rpartition(".")[2], module)


class Judge:
    """A pytest plugin: puts the reader's files in place of the project's and records which tests of each body pass."""

    def __init__(self, parts: list[str]):
        """Raises pytest.UsageError for a file that is missing, is not Python, lacks a name or does not run."""
        self.files = {part: FOLDER / f"{part}.py" for part in parts}
        self.to_write = {(part, name) for part, file in self.files.items() for name in _check(part, file)}
        signal.signal(signal.SIGPROF, _ring)
        self.bodies = [(part, name) for part in PARTS if part in parts for name in PARTS[part]]
        self.verdicts: dict[tuple[str, str], dict[str, bool]] = {body: {} for body in self.bodies}
        self.reached: set[tuple[str, str]] = set()
        self.failed = False
        StandIn(self.files, self.watch)
        for part, file in self.files.items():
            try:
                importlib.import_module(module_of(part))
            except Exception as error:
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                raise pytest.UsageError(f"{file} does not run: {reason}") from None

    def watch(self, part: str, module: ModuleType) -> None:
        """Make each body of a freshly loaded part record its calls in ``reached``."""
        for name in PARTS[part]:
            *path, last = name.split(".")
            owner = functools.reduce(getattr, path, module)
            body = vars(owner)[last]
            noting = self._noting((part, name), body)
            setattr(owner, last, staticmethod(noting) if isinstance(body, staticmethod) else noting)

    def _noting(self, body: tuple[str, str], function: Callable) -> Callable:
        @functools.wraps(function)
        def noting(*arguments, **options):
            __tracebackhide__ = True
            self.reached.add(body)
            return function(*arguments, **options)

        return noting

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator:
        self.reached, self.failed = set(), False
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        result = yield
        signal.setitimer(signal.ITIMER_PROF, 0)
        if self.reached:
            self.verdicts[max(self.reached, key=self.bodies.index)][item.nodeid] = not self.failed
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo) -> Iterator:
        report = yield
        self.failed = self.failed or report.failed
        error = call.excinfo and call.excinfo.value
        report.to_write = isinstance(error, NotImplementedError) and str(error).endswith(TO_WRITE)
        if isinstance(error, TimeoutError):
            item.session.shouldstop = f"{item.name} did not finish in {SECONDS} s"
        return report

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        return ("to be written", "-", "TO BE WRITTEN") if report.to_write else None

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section(", ".join(map(str, self.files.values())))
        for (part, name), tests in self.verdicts.items():
            failures = list(tests.values()).count(False)
            counts = f" ({failures} of {len(tests)} tests fail)" if tests else ""
            if (part, name) in self.to_write:
                verdict = TO_WRITE + counts
            elif not tests:
                verdict = "no test reaches it yet"
            elif failures:
                verdict = "does not pass" + counts
            else:
                verdict = f"passes (tests: {len(tests)})"
            terminalreporter.write_line(f"{part} {name}".ljust(50) + verdict)


def named_parts(arguments: list[str]) -> list[str]:
    """The parts whose tests the command line names. Raises pytest.UsageError if there are none."""
    files = [Path(argument.split("::")[0]).stem for argument in arguments]
    parts = [part for part in PARTS if f"test_{part}" in files]
    if not parts:
        raise pytest.UsageError(f"--exercise needs tests/test_PART.py; PART is one of {', '.join(PARTS)}")
    return parts


def _ring(*_: object) -> None:
    raise TimeoutError(f"not finished in {SECONDS} s")


def _check(part: str, file: Path) -> set[str]:
    """The names of bodies in the table that are yet to be written."""
    if not file.exists():
        raise pytest.UsageError(f"{file} is missing: python -m lessons.exercise {part} writes it")
    try:
        theirs = definitions(ast.parse(file.read_text(encoding="utf-8")))
    except SyntaxError as error:
        raise pytest.UsageError(f"{file}, line {error.lineno}: {error.msg}") from None
    except (OSError, ValueError) as error:
        raise pytest.UsageError(f"{file} cannot be read: {error}") from None
    ours = definitions(ast.parse((ROOT / PATHS[part]).read_text(encoding="utf-8")))
    if missing := ours.keys() - theirs.keys():
        raise pytest.UsageError(f"{file} lacks {', '.join(sorted(missing))}, which {PATHS[part]} has")
    return {name for name in PARTS[part] if TO_WRITE in ast.unparse(theirs[name])}
