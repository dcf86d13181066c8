"""The lessons: quotes match the source, code blocks run and print what the page shows, and no link is dead."""

from pathlib import Path

import pytest

from lessons import build
from minillava.errors import UserError

PAGES = [build.ROOT / "README.md", *build.lessons()]
NEED_SMOLLM2 = {"17-a-real-language-model"}


@pytest.mark.parametrize("lesson", build.lessons(), ids=lambda path: path.stem)
def test_quotes_and_outputs_are_up_to_date(lesson, monkeypatch, request):
    if lesson.stem in NEED_SMOLLM2:
        request.getfixturevalue("smollm2")
    monkeypatch.chdir(build.ROOT)
    assert build.built(lesson) == lesson.read_text(encoding="utf-8"), "out of date: run python -m lessons.build"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_link_leads_somewhere(page):
    assert build.dead_links(page) == []


LESSON = """# The norm

<!-- quote minillava/model/decoder.py RMSNorm.forward -->
```python
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
QUOTE = """\
    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)"""
OUTPUT = "\n```output\n42\ndone\n```\n"


@pytest.fixture
def lesson(tmp_path) -> Path:
    return tmp_path / "lesson.md"


@pytest.mark.parametrize("quote", [QUOTE, QUOTE.replace("eps", "epsilon"), ""], ids=["current", "stale", "empty"])
@pytest.mark.parametrize("output", [OUTPUT, OUTPUT.replace("42", "41"), ""], ids=["right", "wrong", "none"])
def test_stale_quotes_and_outputs_are_mended(lesson, quote, output):
    lesson.write_text(LESSON.format(quote=quote, output=output))
    assert build.built(lesson) == LESSON.format(quote=QUOTE, output=OUTPUT)


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
        "```text\n[f](gone.md)\n```\n[g](gone/) [h](.) [e](https://x.org/)\n"
    )
    assert build.dead_links(lesson) == ["gone.png", "lesson.md#four", "gone/"]


def test_build_rewrites_the_lessons_that_are_stale(lesson, monkeypatch, capsys):
    stale, current = LESSON.format(quote="", output=""), LESSON.format(quote=QUOTE, output=OUTPUT)
    lesson.write_text(stale)
    monkeypatch.setattr(build, "lessons", lambda: [lesson])
    for printed in (f"{lesson}: brought up to date\n", ""):
        build.main()
        assert lesson.read_text() == current and capsys.readouterr().out == printed
