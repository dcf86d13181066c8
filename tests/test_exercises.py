"""The exercises: skeletons are the current source without bodies, bodies are judged one by one, faults are caught."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import mutations
import pytest

from lessons import exercise
from lessons.parts import PARTS, PATHS
from lessons.source import definitions
from lessons.stand_in import fill

ROOT = Path(__file__).parents[1]
# Functions that differ from the project's and are right too: other_solutions/PART/*.py.
OTHERS = sorted(ROOT.glob("tests/other_solutions/*/*.py"))
# One process for all runs: it imports the slow modules once.
WORKER = """
import json, sys
from pathlib import Path
import forks, judge
from mutations import caught_by, judged as judged_mistake

def judged(part, folder, seconds, options=()):
    def prepare():
        judge.FOLDER, judge.SECONDS = Path(folder), seconds

    arguments = ["--exercise", f"tests/test_{part}.py", f"--basetemp={folder}/tests", *options]
    return forks.run_pytest(arguments, prepare)

for line in sys.stdin:
    name, *arguments = json.loads(line)
    print(json.dumps(globals()[name](*arguments)), flush=True)
"""


@pytest.fixture(scope="module")
def work() -> Iterator[Callable]:
    """Calls a function in the worker: work("judged", part, folder, seconds) or work("caught_by", part, source)."""
    paths, pipe = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}, subprocess.PIPE
    command = [sys.executable, "-c", WORKER]
    with subprocess.Popen(command, cwd=ROOT, env=paths, stdin=pipe, stdout=pipe, text=True) as process:

        def call(*arguments: str | int):
            print(json.dumps(arguments), file=process.stdin, flush=True)
            return json.loads(process.stdout.readline())

        yield call


@pytest.fixture
def judged(work) -> Callable[..., tuple[int, str]]:
    """``judged(folder, part)``: exit code and output of ``pytest tests/test_PART.py --exercise`` on folder/PART.py."""
    return lambda folder, part, seconds=60: work("judged", part, str(folder), seconds)


def verdicts(printed: str, part: str) -> dict[str, str]:
    """What the last section of the output says of each body."""
    found = dict(re.findall(rf"^{part} (\S+) +(.+)$", printed, re.MULTILINE))
    assert found.keys() == PARTS[part].keys()
    return found


def source(part: str) -> str:
    return (ROOT / PATHS[part]).read_text(encoding="utf-8")


@pytest.mark.parametrize("part", PARTS)
def test_a_skeleton_is_the_source_except_for_the_bodies_in_the_table(part):
    theirs, ours = ast.parse(exercise.skeleton(part)), ast.parse(source(part))
    for tree in (theirs, ours):
        for name in PARTS[part]:
            function = definitions(tree)[name]
            docstring = function.body[: ast.get_docstring(function) is not None]
            left = function.body[len(docstring) :]
            if tree is theirs:
                assert ast.unparse(left) == f"raise NotImplementedError('{name} is yet to be written')"
            function.body = docstring
    assert ast.unparse(theirs) == ast.unparse(ours)


@pytest.mark.parametrize("part", PARTS)
def test_a_filled_skeleton_is_the_source_again(part):
    tree = ast.parse(exercise.skeleton(part))
    fill(part, tree)
    compile(tree, part, "exec")
    assert ast.unparse(tree) == ast.unparse(ast.parse(source(part)))


@pytest.fixture(scope="module")
def untouched(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exercises")
    for part in PARTS:
        (folder / f"{part}.py").write_text(exercise.skeleton(part), encoding="utf-8")
    return folder


@pytest.mark.parametrize("part", PARTS)
def test_no_test_that_reaches_a_body_passes_on_an_untouched_skeleton(judged, untouched, part):
    code, printed = judged(untouched, part)
    told = verdicts(printed, part).values()
    counts = [re.fullmatch(r"is yet to be written \((\d+) of (\d+) tests fail\)", text) for text in told]
    assert code == 1 and any(counts)
    assert all(text == "is yet to be written" or count[1] == count[2] for text, count in zip(told, counts)), told


@pytest.mark.parametrize("part", PARTS)
def test_every_body_of_the_solution_is_judged_and_passes(judged, tmp_path, part):
    (tmp_path / f"{part}.py").write_text(source(part), encoding="utf-8")
    code, printed = judged(tmp_path, part)
    assert code == 0, printed
    assert all(re.fullmatch(r"passes \(tests: [1-9]\d*\)", text) for text in verdicts(printed, part).values()), printed


def written(untouched: Path, folder: Path, part: str, **bodies: str) -> Path:
    """A folder with the skeleton of a part in which some bodies are written."""
    text = (untouched / f"{part}.py").read_text(encoding="utf-8")
    for name, body in bodies.items():
        text = text.replace(f'raise NotImplementedError("{name} is yet to be written")', body)
    folder.mkdir()
    (folder / f"{part}.py").write_text(text, encoding="utf-8")
    return folder


NORM = "y = x.float()\n        return (y * (y.square().mean(-1, True) + self.eps).rsqrt() * self.weight).to(x.dtype)"


def test_a_body_passes_as_soon_as_it_is_written(judged, untouched, tmp_path):
    for name, body, verdict in (
        ("right", NORM, r"passes \(tests: 3\)"),
        ("wrong", NORM.replace("* self.weight", "+ self.weight"), r"does not pass: with weight 1 the norm is .*"),
    ):
        code, printed = judged(written(untouched, tmp_path / name, "decoder", **{"RMSNorm.forward": body}), "decoder")
        told = verdicts(printed, "decoder")
        assert code == 1 and re.fullmatch(verdict, told.pop("RMSNorm.forward"))
        assert all(text.startswith("is yet to be written") for text in told.values())
        counts = printed.splitlines()[-1]
        assert re.search(r" \d\d to be written in ", counts) and ("3 failed, " in counts) == (name == "wrong")


def test_a_failure_is_a_sentence_or_the_readers_line_and_never_a_dump(judged, untouched, tmp_path):
    folder = tmp_path / "decoder"
    bodies = {"RMSNorm.forward": "return {}[x.shape]", "rope_tables": "return 0", "rotate": "raise StopIteration"}
    printed = judged(written(untouched, folder, "decoder", **bodies), "decoder")[1]
    told, lines = verdicts(printed, "decoder"), (folder / "decoder.py").read_text(encoding="utf-8").splitlines()
    line = lines.index("        return {}[x.shape]") + 1
    assert told["RMSNorm.forward"] == f"does not pass: KeyError: torch.Size([2, 3, 6]) ({folder}/decoder.py:{line})"
    words = "rope tables are cosine and sine of position times frequency"
    assert told["rope_tables"] == f"does not pass: {words} (TypeError: cannot unpack non-iterable int object)"
    assert not re.search(r"Traceback|Error\b.*\n.*Error|tensor\(|^E ", printed, re.MULTILINE)


def test_a_body_that_never_returns_ends_the_run(judged, tmp_path):
    loop = source("projector").replace("return self.linear_2", "while True:\n            self.linear_2")
    (tmp_path / "projector.py").write_text(loop, encoding="utf-8")
    code, printed = judged(tmp_path, "projector", seconds=1)
    assert code != 0 and re.search(r"test_\S+ did not finish in 1 s", printed)
    told = verdicts(printed, "projector")["MLPProjector.forward"]
    assert re.fullmatch(r"does not pass: TimeoutError: not finished in 1 s \(.*/projector\.py:\d+\)", told)


FAULTS = {
    "is missing: python -m lessons.exercise projector writes it": None,
    "line 2: ": "import torch\nclass MLPProjector(:\n",
    "cannot be read: 'utf-8' codec": "\xff",
    "lacks LinearProjector, MLPProjector.__init__, MLPProjector.forward": "PROJECTORS = {}\nclass MLPProjector: pass\n",
    "does not run: NameError: name 'nothing' is not defined": "nothing()\n",
}


def test_a_file_that_cannot_be_judged_gets_one_line(judged, tmp_path):
    for words, text in FAULTS.items():
        if text is not None:
            text = source("projector") + text if "nothing" in text else text
            (tmp_path / "projector.py").write_text(text, encoding="latin-1")
        code, printed = judged(tmp_path, "projector")
        assert code == 4 and words in printed, printed
        assert len(printed.strip().splitlines()) == 1 and str(tmp_path / "projector.py") in printed


@pytest.mark.parametrize("file", OTHERS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_another_right_solution_passes_too(judged, tmp_path, file):
    part = file.parent.name
    ours, theirs = (definitions(ast.parse(text)) for text in (source(part), file.read_text(encoding="utf-8")))
    own, other = source(part).splitlines(), file.read_text(encoding="utf-8").splitlines()
    written = [name for name in PARTS[part] if name in theirs]
    assert written
    for name in sorted(written, key=lambda name: -ours[name].lineno):  # from the last, so line numbers stay valid
        own[ours[name].lineno - 1 : ours[name].end_lineno] = other[theirs[name].lineno - 1 : theirs[name].end_lineno]
    (tmp_path / f"{part}.py").write_text("\n".join(own) + "\n", encoding="utf-8")
    code, printed = judged(tmp_path, part)
    assert code == 0, printed


def run_exercise(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["exercise", *arguments])
    exercise.run_program(exercise.main)


def test_a_readers_work_is_not_overwritten(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = Path("exercises/decoder.py")
    run_exercise(monkeypatch, "decoder")
    assert file.read_text(encoding="utf-8") == exercise.skeleton("decoder")
    file.write_text("my work")
    with pytest.raises(SystemExit) as end:
        run_exercise(monkeypatch, "decoder")
    assert end.value.code == 2 and file.read_text() == "my work"
    [line] = capsys.readouterr().err.splitlines()
    assert line == f"error: {file} exists, with your work in it; --force overwrites it"
    run_exercise(monkeypatch, "decoder", "--force")
    assert file.read_text(encoding="utf-8") == exercise.skeleton("decoder")


def test_status_counts_what_passes_for_the_file_as_it_is_now(judged, untouched, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    bodies = {"RMSNorm.forward": NORM, "rotate": "return x"}
    folder = written(untouched, tmp_path / "exercises", "decoder", **bodies)

    def rows() -> dict[str, str]:
        run_exercise(monkeypatch, "--status")
        head, _, *lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines] == list(PARTS)
        return {"": head} | {line.split()[0]: " ".join(line.split()[1:]) for line in lines}

    total, test_it = sum(map(len, PARTS.values())), "pytest tests/test_decoder.py --exercise"
    assert rows()["decoder"] == f"0 2 8 {test_it}"  # not tested yet
    judged(folder, "decoder")
    told = rows()
    assert told["decoder"] == f"1 1 8 {test_it}"
    assert told[""] == f"1 of {total} bodies pass"
    assert told["vision"] == f"0 0 {len(PARTS['vision'])} python -m lessons.exercise vision"
    with (folder / "decoder.py").open("a") as file:
        file.write("\n")
    assert rows()["decoder"] == f"0 2 8 {test_it}"  # what was tested is another file
    (folder / "decoder.py").write_text("def (")
    assert rows()["decoder"] == "exercises/decoder.py, line 1: invalid syntax"


def test_a_run_of_some_tests_is_not_stored(work, tmp_path):
    (tmp_path / "projector.py").write_text(source("projector"), encoding="utf-8")
    for options, stored in ((["-k", "linear"], False), (["--collect-only"], False), ([], True)):
        work("judged", "projector", str(tmp_path), 60, options)
        assert (tmp_path / ".verdicts.json").exists() == stored


def test_status_takes_no_part(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for arguments, words in ((("--status", "lora"), "takes no part"), ((), "name a part to write, one of attention")):
        with pytest.raises(SystemExit) as end:
            run_exercise(monkeypatch, *arguments)
        assert end.value.code == 2 and words in capsys.readouterr().err


def test_an_unknown_part_and_a_folder_that_cannot_be_written_get_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("exercises").write_text("a file")
    for part, words in (("optimiser", "no part 'optimiser'; the parts are attention, "), ("lora", "lora.py cannot be")):
        with pytest.raises(SystemExit) as end:
            run_exercise(monkeypatch, part)
        [line] = capsys.readouterr().err.splitlines()
        assert end.value.code == 2 and words in line


def test_solution_shows_every_body_as_it_is_in_the_source(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for part in PARTS:
        run_exercise(monkeypatch, "--solution", part)
        shown, found = ast.parse(capsys.readouterr().out).body, definitions(ast.parse(source(part)))
        shown, ours = ([ast.unparse(f).split() for f in fs] for fs in (shown, (found[name] for name in PARTS[part])))
        assert shown == ours  # except for the docstrings' indentation
    assert not list(tmp_path.iterdir())


def test_an_exercise_has_ten_faults_another_part_a_few_and_all_fit_the_source():
    assert PARTS.keys() <= set(mutations.PARTS)
    for part in mutations.PARTS:
        faults, ours = list(mutations.mutants(part)), ast.dump(ast.parse(source(part)))
        assert len(dict(faults)) == len(faults) >= (10 if part in PARTS else 3)  # no name twice
        assert all(ast.dump(ast.parse(text)) != ours for _, text in faults)


@pytest.mark.parametrize("part", ["attention", "vision", "decoder", "contrastive", "llava", "generation", "lora"])
def test_twenty_faults_are_mistakes_in_bodies_that_a_reader_writes(part):
    assert sum(mutations.body_of(part, text) is not None for _, text in mutations.mutants(part)) >= 20


def test_a_fault_that_does_not_fit_the_source_is_stale(tmp_path, monkeypatch):
    (tmp_path / "minillava" / "model").mkdir(parents=True)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "faults").symlink_to(ROOT / "tests" / "faults")
    monkeypatch.setattr(mutations, "ROOT", tmp_path)
    ours = source("projector")
    for text in (ours.replace("F.gelu", "F.silu"), ours + ours):
        (tmp_path / PATHS["projector"]).write_text(text)
        with pytest.raises(ValueError, match=r"stale fault in projector\.txt: 'ReLU for GELU'"):
            list(mutations.mutants("projector"))


def test_mutations_fails_where_no_test_catches_a_fault(work, monkeypatch, capsys):
    ours = source("projector")
    assert work("caught_by", "projector", ours) is None
    wrong = ours.replace("F.gelu", "F.relu")
    assert work("caught_by", "projector", wrong) == "test_mlp_projector_is_two_layers_with_a_gelu_between"

    monkeypatch.setattr(sys, "argv", ["mutations.py", "projector"])
    for test, code in ((None, 1), ("test_x", 0)):
        monkeypatch.setattr(mutations, "caught_by", lambda part, text, test=test: "test_y" if text != wrong else test)
        with pytest.raises(SystemExit) as end:
            mutations.main()
        assert end.value.code == code
        assert f"| projector | ReLU for GELU | {test or '**nothing**'} |" in capsys.readouterr().out


def test_a_mistake_is_named_with_its_body(work, monkeypatch, capsys):
    ours = source("lora")
    assert work("judged_mistake", "lora", ours) == [None, ""]
    wrong = ours.replace("self.scale * self.lora_B(", "self.lora_B(")
    assert mutations.body_of("lora", ours) is None and mutations.body_of("lora", wrong) == "LoraLinear.forward"
    body, why = work("judged_mistake", "lora", wrong)
    assert body == "LoraLinear.forward" and why.startswith("the result is W x + bias + (alpha / r) B A x (")

    monkeypatch.setattr(sys, "argv", ["mutations.py", "--exercise", "lora", "page"])
    right = {text: mutations.body_of("lora", text) for _, text in mutations.mutants("lora")}
    bodies = [body for body in right.values() if body]
    for named, code, totals in (
        (right.get, 0, f"{len(bodies)} caught, {len(bodies)} named right first"),
        (lambda text: "add_lora", 1, f"{len(bodies)} caught, {bodies.count('add_lora')} named right first"),
        (lambda text: None, 1, "0 caught, 0 named right first"),
    ):
        monkeypatch.setattr(mutations, "judged", lambda part, text, named=named: (named(text), "a sentence"))
        with pytest.raises(SystemExit) as end:
            mutations.main()
        assert end.value.code == code
        assert capsys.readouterr().out.endswith(f"\n\nlora: {len(bodies)} mistakes, {totals}\n")
