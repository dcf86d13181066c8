"""``pytest tests/test_decoder.py --exercise``: run a part's tests on the reader's file and say which bodies pass.

Every import of the part finds the reader's file, in the tests and in the rest of minillava. Each test counts for one
body: of the bodies in the table (lessons/parts.py) that it calls, the last one. So a body is judged by tests that need
only it and the bodies above it.

Of a body that does not pass, one sentence says why: the message of the assertion that failed, or the exception and the
line of the reader's file that raised it. pytest's own output (``--tb=short``) is left out unless it is asked for.
"""

import functools
import importlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from lessons.board import record
from lessons.parts import FOLDER, PARTS, TO_WRITE
from lessons.stand_in import BadFile, StandIn, module_of, to_write

TESTS = Path(__file__).parent
SECONDS = 20  # of CPU time, after which a test is taken to run forever; the slowest takes two


class Judge:
    """A pytest plugin: puts the reader's files in place of the project's and records which tests of each body pass."""

    def __init__(self, parts: list[str]):
        """Raises pytest.UsageError for a file that is missing, is not Python, lacks a name or does not run."""
        self.files = {part: FOLDER / f"{part}.py" for part in parts}
        try:
            self.to_write = {(part, name) for part, file in self.files.items() for name in to_write(part, file)}
        except BadFile as error:
            raise pytest.UsageError(str(error)) from None
        signal.signal(signal.SIGPROF, _ring)
        self.bodies = [(part, name) for part in PARTS if part in parts for name in PARTS[part]]
        # Of each body the tests that count for it, and why they fail; None: they pass. The rest call no body.
        self.verdicts: dict[tuple[str, str], dict[str, str | None]] = {body: {} for body in self.bodies}
        self.rest: dict[str, str] = {}
        self.reached: set[tuple[str, str]] = set()
        self.failure: str | None = None
        self.ran, self.deselected = 0, False
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
        self.reached, self.failure = set(), None
        self.ran += 1
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        result = yield
        signal.setitimer(signal.ITIMER_PROF, 0)
        if self.reached:
            self.verdicts[max(self.reached, key=self.bodies.index)][item.name] = self.failure
        elif self.failure is not None:
            self.rest[item.name] = self.failure
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo) -> Iterator:
        report = yield
        error = call.excinfo and call.excinfo.value
        report.to_write = isinstance(error, NotImplementedError) and str(error).endswith(TO_WRITE)
        if report.failed and self.failure is None:
            self.failure = self.reason(item, call.excinfo)
        if isinstance(error, TimeoutError):
            item.session.shouldstop = f"{item.name} did not finish in {SECONDS} s"
        return report

    def reason(self, item: pytest.Item, failure: pytest.ExceptionInfo) -> str:
        """Why a test failed, in one line: the assertion's sentence, or the exception and the last line of the reader's
        file that led to it. Where an assertion has no sentence, the words of the test's name are one."""
        places = {file.resolve(): file for file in self.files.values()}
        theirs = [f"{places[step.path]}:{step.lineno + 1}" for step in failure.traceback if step.path in places]
        last = failure.traceback[-1].path
        message = (str(failure.value).splitlines() or [""])[0]
        in_words = item.originalname.removeprefix("test_").replace("_", " ")
        if last not in places and isinstance(failure.value, AssertionError | pytest.fail.Exception):
            own = last.parent == TESTS and isinstance(failure.value, AssertionError)
            return message if own and message and not message.startswith("assert ") else in_words
        error = f"{failure.typename}: {message}" if message else failure.typename
        return f"{error} ({theirs[-1]})" if theirs else f"{in_words} ({error})"

    def pytest_deselected(self) -> None:
        self.deselected = True

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Store the bodies that pass, unless some tests have not run."""
        some_tests = self.deselected or any("::" in argument for argument in session.config.args)
        if some_tests or self.ran < session.testscollected:
            return
        for part, file in self.files.items():
            told = {name: tests for (its_part, name), tests in self.verdicts.items() if its_part == part}
            record(part, file, [name for name, tests in told.items() if {*tests.values()} == {None}])

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        return ("to be written", "-", "TO BE WRITTEN") if report.to_write else None

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section(", ".join(map(str, self.files.values())))
        for (part, name), tests in self.verdicts.items():
            failed = {test: reason for test, reason in tests.items() if reason is not None}
            counts = f"{len(failed)} of {len(tests)} tests fail"
            if (part, name) in self.to_write:
                verdict = TO_WRITE + (f" ({counts})" if tests else "")
            elif not tests:
                verdict = "no test reaches it yet"
            elif failed:
                test, reason = next(iter(failed.items()))
                verdict = f"does not pass: {reason}\n    {test} ({counts})"
            else:
                verdict = f"passes (tests: {len(tests)})"
            terminalreporter.write_line(f"{part} {name}".ljust(36) + f" {verdict}")
        for test, reason in self.rest.items():
            terminalreporter.write_line(f"in no body: {reason}\n    {test}")


def named_parts(arguments: list[str]) -> list[str]:
    """The parts whose tests the command line names. Raises pytest.UsageError if there are none."""
    files = [Path(argument.split("::")[0]).stem for argument in arguments]
    parts = [part for part in PARTS if f"test_{part}" in files]
    if not parts:
        raise pytest.UsageError(f"--exercise needs tests/test_PART.py; PART is one of {', '.join(PARTS)}")
    return parts


def _ring(*_: object) -> None:
    raise TimeoutError(f"not finished in {SECONDS} s")
