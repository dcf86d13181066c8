"""The lessons: quotes match the source, code blocks run and print what the page shows, and no link is dead."""

import json
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from lessons import build, notebook, translation
from lessons.markdown import dead_links
from minillava.errors import UserError

PAGES = [build.ROOT / "README.md", *build.pages()]
NEED_SMOLLM2 = {"17-a-real-language-model"}


def printed_by_cells(file: Path) -> list[str]:
    """Run a notebook in a fresh kernel, in its own folder as JupyterLab does; what each code cell prints."""
    cells = nbformat.read(file, 4)
    nbformat.validate(cells)
    place = {"metadata": {"path": str(file.parent)}}
    NotebookClient(cells, timeout=300, kernel_name="python3", resources=place).execute()
    code = [cell for cell in cells.cells if cell.cell_type == "code"]
    return ["".join(out["text"] for out in cell.outputs if out.get("name") == "stdout") for cell in code]


@pytest.mark.parametrize("lesson", build.lessons(), ids=lambda path: path.stem)
def test_a_lesson_and_its_notebook_are_up_to_date_and_run(lesson, monkeypatch, request):
    if lesson.stem in NEED_SMOLLM2:
        request.getfixturevalue("smollm2")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert notebook.path_of(lesson).read_text(encoding="utf-8") == notebook.notebook(lesson), (
        "run python -m lessons.build"
    )
    setup, *printed = printed_by_cells(notebook.path_of(lesson))
    assert setup == ""
    blocks = iter(printed)
    now = build.built(lesson, lambda code, line: next(blocks))
    assert now == lesson.read_text(encoding="utf-8"), "out of date: run python -m lessons.build"
    assert not list(blocks)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_link_leads_somewhere(page):
    assert dead_links(page) == []


@pytest.mark.parametrize("lesson", build.lessons(), ids=lambda path: path.stem)
def test_a_lesson_opens_with_its_goal_and_ends_with_three_questions(lesson):
    text = lesson.read_text(encoding="utf-8")
    opening = text[: text.index("\n## ")]
    marks = (
        "<!-- navigation -->",
        "**After this lesson you can**",
        "**You need**",
        "<!-- time -->",
        "**Code:**",
        "**Tests:**",
    )
    places = [opening.index(mark) for mark in marks]
    assert places == sorted(places)
    questions = text[text.rindex("\n## ") :]
    assert questions.startswith("\n## Three questions\n") and questions.count("<details><summary>Answer</summary>") == 3
    assert re.search(r"<!-- navigation -->\n\[.*\n$", questions)


def test_no_body_that_a_reader_writes_is_shown_before_it_is_folded():
    folded = 0
    for lesson in build.lessons():
        text = lesson.read_text(encoding="utf-8")
        for part, bodies in build.PARTS.items():
            for name in bodies:
                *_, last_line = build.quoted(build.PATHS[part], name).splitlines()
                for found in re.finditer(rf"^{re.escape(last_line)}$", text, re.MULTILINE):
                    before = text[: found.start()]
                    opened = before.count("<details>") - before.count("</details>")
                    if opened == 0 and f"quote {build.PATHS[part]} " in before[before.rindex("```python") - 400 :]:
                        raise AssertionError(f"{lesson.name} shows {name}")
                    folded += opened
    assert folded > 20


LESSON = """# The norm

<!-- quote lessons/source.py first_line -->
{above}```python
{quote}
```

```python
x = 2
```

Then:

```python
print(x * 21)
print("done")
```
{output}
The end.
"""
ABOVE = "From [lessons/source.py](lessons/source.py), `first_line`:\n\n"
QUOTE = '''\
def first_line(statement: ast.stmt) -> int:
    """The number of a statement's first line, which may be a decorator's."""
    return min([statement.lineno, *(decorator.lineno for decorator in getattr(statement, "decorator_list", ()))])'''
OUTPUT = "\n```output\n42\ndone\n```\n"


@pytest.fixture
def lesson(tmp_path) -> Path:
    return tmp_path / "lesson.md"


@pytest.mark.parametrize("above", [ABOVE, ABOVE.replace("source", "build"), ""], ids=["right", "wrong", "none"])
@pytest.mark.parametrize("quote", [QUOTE, QUOTE.replace("min", "max"), ""], ids=["current", "stale", "empty"])
@pytest.mark.parametrize("output", [OUTPUT, OUTPUT.replace("42", "41"), ""], ids=["right", "wrong", "none"])
def test_stale_quotes_and_outputs_are_mended(lesson, above, quote, output):
    lesson.write_text(LESSON.format(above=above, quote=quote, output=output))
    assert build.built(lesson) == LESSON.format(above=ABOVE, quote=QUOTE, output=OUTPUT)


FOLDED = """<!-- quote minillava/model/projector.py MLPProjector.forward -->
**Stop here and write it:** `MLPProjector.forward` in `exercises/projector.py` ([how](README.md#rebuild-it)).

<details><summary>The project's <code>MLPProjector.forward</code></summary>

From [minillava/model/projector.py](minillava/model/projector.py), `MLPProjector.forward`:

```python
    def forward(self, features: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(features)))
```

</details>

After it.

</details>
"""


@pytest.mark.parametrize("stale", ["", "From somewhere:\n\n", FOLDED.partition("\n")[2].partition("```")[0]])
def test_a_quote_of_a_body_that_a_reader_writes_is_folded(lesson, stale):
    end = "\n</details>\n" if "<details>" in stale else ""
    mark, after = FOLDED.partition("\n")[0], FOLDED.partition("</details>\n")[2]
    lesson.write_text(f"{mark}\n{stale}```python\nold\n```\n{end}{after}")
    assert build.built(lesson) == FOLDED
    lesson.write_text(FOLDED)
    assert build.built(lesson) == FOLDED


def test_an_output_of_a_block_that_prints_nothing_goes(lesson):
    lesson.write_text("```python\nx = 1\n```\n\n```output\n1\n```\n")
    assert build.built(lesson) == "```python\nx = 1\n```\n"


@pytest.mark.parametrize(
    "text, words",
    [
        ("\nText.\n\n```python\nx = 1\nx.y\n```\n", "block at line 4: AttributeError"),
        ("```python\nx = = 1\n```\n", "block at line 1: SyntaxError"),
        ("<!-- quote minillava/model/decoder.py LayerNorm -->\n```python\n```\n", "decoder.py has no LayerNorm"),
        ("<!-- quote minillava/encoder.py RMSNorm -->\n```python\n```\n", "No such file"),
    ],
)
def test_a_block_that_fails_is_named(lesson, text, words):
    lesson.write_text(text)
    with pytest.raises(UserError, match=words):
        build.built(lesson)


def test_dead_links_are_found(lesson):
    lesson.write_text(
        "# One: two, three!\n[a](lesson.md) [b](#one-two-three) ![c](gone.png) [d](lesson.md#four)\n"
        "```text\n[f](gone.md)\n```\n[g](gone/) [h](.) [e](https://x.org/) [i](les-\nson.md)\n"
    )
    assert dead_links(lesson) == ["les-", "gone.png", "lesson.md#four", "gone/"]


@pytest.fixture
def course(tmp_path, monkeypatch) -> Path:
    """Three lessons, a page next to them and a figure, in a repository of their own."""
    folder = tmp_path / "lessons"
    (folder / "figures").mkdir(parents=True)
    (folder / "figures" / "one.png").touch()
    for name in ("minillava", "lessons/source.py"):
        target = tmp_path / name
        shutil.copy(build.ROOT / name, target) if "." in name else target.mkdir()
    (folder / "teaching.md").write_text("# Teaching\n")
    (folder / "README.md").write_text("# Lessons\n\n## Rebuild it\n\n<!-- lessons -->\n| old | old |\n\nEnd.\n")
    (folder / "01-one.md").write_text(
        "# 1. One\n\n<!-- navigation -->\n\n*What is one?*\n\n<!-- time -->\n\n"
        "See [two](02-two.md#the-norm), [file](source.py), "
        "[up](../minillava/).\n\n![One](figures/one.png)\n\n<!-- quote lessons/source.py first_line -->\n"
        "```python\n```\n\n```python\nprint(6 * 7)\n```\n\nThe end.\n\n<!-- navigation -->\n"
    )
    (folder / "02-two.md").write_text(
        "# 2. Two\n\n<!-- navigation -->\n\n*What is two?*\n\n## The norm\n" + "word " * 700
    )
    (folder / "03-three.md").write_text(
        "# 3. Three\n\n<!-- navigation -->\n\n*What is three?*\n\n<!-- time -->\n\n" + "word " * 700
    )
    monkeypatch.setattr(build, "ROOT", tmp_path)
    return folder


def test_the_table_of_bodies_has_each_body_once_with_its_hours(lesson):
    lesson.write_text("<!-- bodies projector adamw -->\n| old |\n\n<!-- bodies -->\n")
    some, every = build.built(lesson).split("\n\n")
    *_, projector, adamw = some.splitlines()
    assert projector == "| `projector` | `MLPProjector.__init__`, `MLPProjector.forward` |  |  | 0.5 |"
    assert adamw == "| `adamw` | `AdamW.__init__`, `AdamW.zero_grad` | `AdamW.step` |  | 1 |"  # 10 + 10 + 30 minutes
    names = [name for bodies in build.PARTS.values() for name in bodies]
    assert sorted(re.findall(r"`([^`]+)`", every)) == sorted([*build.PARTS, *names])
    for table in (build.MEDIUM, build.HARD):
        assert all(set(names) <= build.PARTS[part].keys() for part, names in table.items())
    hours = [float(row.rsplit("|", 2)[1]) for row in every.splitlines()[3:]]
    assert hours[-1] == sum(hours[:-1])


def run_build(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["build", *arguments])
    build.main()


def test_build_writes_what_is_stale_and_links_the_lessons(course, monkeypatch, capsys):
    run_build(monkeypatch)
    one, two, three = ((course / name).read_text() for name in ("01-one.md", "02-two.md", "03-three.md"))
    assert one.count("<!-- navigation -->\n[All lessons](README.md) · [2. Two →](02-two.md)\n") == 2
    assert "\n[← 1. One](01-one.md) · [All lessons](README.md) · [3. Three →](03-three.md)\n" in two
    assert "\n[← 2. Two](02-two.md) · [All lessons](README.md)\n" in three
    assert "about 10 minutes to read (706 words and 0 lines of code)" in three  # 706 / 120 = 5.9
    assert "about 5 minutes to read (16 words and 5 lines of code)" in one  # three lines quoted, one run, one printed
    assert one.index("```output\n42\n") > one.index("print(6 * 7)")
    assert [dead_links(course / name) for name in ("01-one.md", "03-three.md")] == [[], []]
    rows = ["| lesson | question | minutes to read |", "|---|---|---|", "| [1. One](01-one.md) | What is one? | 5 |"]
    rows += ["| [2. Two](02-two.md) | What is two? | 10 |", "| [3. Three](03-three.md) | What is three? | 10 |"]
    rows = "\n".join([*rows, "| | | 25 |"])
    assert (course / "README.md").read_text().endswith(f"<!-- lessons -->\n{rows}\n\nEnd.\n")
    assert capsys.readouterr().out.count("brought up to date") == 7  # three lessons, three notebooks, the list
    run_build(monkeypatch)
    assert capsys.readouterr().out == ""
    (course / "03-three.md").write_text(three.replace("10 minutes", "90 minutes"))
    (course / "02-two.md").write_text(two.replace("← 1", "← 7"))
    run_build(monkeypatch, str(course / "03-three.md"))
    assert (course / "03-three.md").read_text() == three and (course / "02-two.md").read_text() != two
    with pytest.raises(UserError, match=r"source\.py is no page of the lessons"):
        run_build(monkeypatch, str(course / "source.py"))


def test_a_notebook_has_the_code_as_cells_and_the_text_between_them(course, monkeypatch):
    run_build(monkeypatch)
    cells = json.loads(notebook.path_of(course / "01-one.md").read_text())["cells"]
    assert [cell["cell_type"] for cell in cells] == ["markdown", "code", "code", "markdown"]
    first, setup, code, last = ("".join(cell["source"]) for cell in cells)
    assert first.startswith("# 1. One\n\n[All lessons](../README.md) · [2. Two →](02-two.ipynb)\n")
    for link in (
        "[two](02-two.ipynb#the-norm)",
        "[file](../source.py)",
        "[up](../../minillava/)",
        "(../figures/one.png)",
    ):
        assert link in first
    assert QUOTE in first and "<!--" not in first and setup == notebook.SETUP.rstrip("\n")
    assert code == "print(6 * 7)" and cells[2]["outputs"][0]["text"] == ["42\n"]
    assert last.startswith("The end.")
    assert printed_by_cells(notebook.path_of(course / "01-one.md")) == ["", "42\n"]


def test_a_notebook_without_the_repository_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="needs the whole repository"):
        exec(notebook.SETUP, {})


def test_a_translation_keeps_its_text_and_gets_the_code(course, monkeypatch, capsys):
    run_build(monkeypatch, "--begin", "zh")
    page = course / "zh" / "01-one.md"
    assert dead_links(page) == dead_links(course / "zh" / "02-two.md") == []
    assert "(../figures/one.png)" in page.read_text() and "[two](02-two.md#the-norm)" in page.read_text()
    phrases = json.loads((course / "zh" / "phrases.json").read_text())
    phrases |= {"source": "摘自 [{file}]({link})，`{name}`：", "all": "全部课程"}
    (course / "zh" / "phrases.json").write_text(json.dumps(phrases))
    text = page.read_text().replace("The end.", "完。").replace("# 1. One", "# 1. 一")
    page.write_text(text.replace("print(6 * 7)", "print(8)").replace("decorator_list", "list"))
    english = course / "01-one.md"
    english.write_text(english.read_text().replace("6 * 7", "6 * 8"))
    run_build(monkeypatch)
    now = page.read_text()
    assert "完。" in now and now.startswith("# 1. 一\n") and "The end." not in now
    assert "print(6 * 8)\n```\n\n```output\n48\n" in now and QUOTE in now
    assert "摘自 [lessons/source.py](../../lessons/source.py)，`first_line`：\n\n```python" in now
    assert "[全部课程](README.md) · [2. Two →](02-two.md)" in now
    assert "[← 1. 一](01-one.md)" in (course / "zh" / "02-two.md").read_text()
    capsys.readouterr()
    run_build(monkeypatch)
    assert capsys.readouterr().out == ""


def test_a_translation_that_does_not_fit_is_named(course, monkeypatch):
    for name, words in (("../en", "no language"), ("figures", "no language")):
        with pytest.raises(UserError, match=words):
            run_build(monkeypatch, "--begin", name)
    run_build(monkeypatch, "--begin", "zh")
    with pytest.raises(UserError, match="zh exists, with a translation in it"):
        run_build(monkeypatch, "--begin", "zh")
    page, phrases = course / "zh" / "01-one.md", course / "zh" / "phrases.json"
    whole, told = page.read_text(), phrases.read_text()
    page.write_text(whole.replace("```python\nprint(6 * 7)\n```\n", ""))
    with pytest.raises(UserError, match=r"zh/01-one.md has 1 blocks of code, .*01-one.md has 2"):
        run_build(monkeypatch)
    page.write_text(whole)
    for broken, words in (
        (told.replace('"all"', '"none"'), "'all' must be there, with no fields but none"),
        (told.replace("{words:,}", "{word}"), "'time' must be there, with no fields but lines, minutes, words"),
        ("{", "phrases.json: "),
    ):
        phrases.write_text(broken)
        with pytest.raises(UserError, match=words):
            run_build(monkeypatch)
    assert translation.of(course / "01-one.md") == [page]
