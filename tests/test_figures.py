"""Each picture in lessons/figures is drawn by the function of the same name, is small, and is shown on a page."""

import pytest
from PIL import Image

from lessons import build, figures, figures_words

PAGES = [build.ROOT / "README.md", *build.lessons()]


def test_every_figure_is_stored_and_shown():
    names = {f"{figure.__name__}.png" for figure in figures.DRAWN}
    assert names == {path.name for path in figures.FIGURES.iterdir()}
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for name in names:
        assert f"figures/{name})" in pages, name
        assert (figures.FIGURES / name).stat().st_size < 100_000, name


@pytest.mark.parametrize("figure", figures.DRAWN, ids=lambda figure: figure.__name__)
def test_a_figure_is_drawn_as_large_as_it_is_stored(figure, monkeypatch):
    """Two figures show one-minute trainings, which are stubbed here; lessons 9 and 10 run such trainings."""
    monkeypatch.setattr(figures_words, "short_training", lambda model, parts, batches, recipe, steps: [1.0] * steps)
    monkeypatch.setattr(figures_words, "captions", lambda model, count, seed: seed)
    monkeypatch.setattr(figures_words, "conversations", lambda model, count, seed: seed)
    with Image.open(figures.FIGURES / f"{figure.__name__}.png") as stored:
        assert figure().size == stored.size
