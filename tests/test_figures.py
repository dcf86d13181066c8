"""Each picture in lessons/figures is drawn by the function of its name, small, shown on a page and up to date."""

import numpy as np
import pytest
from PIL import Image

from lessons import build, figures, figures_data, figures_words
from lessons.sheet import Sheet

PAGES = [build.ROOT / "README.md", *build.lessons()]
# Figures, or parts of them, that another drawing does not repeat: (left, top, right, bottom) of what to leave out.
NOT_REPEATED = {
    "stage_1": (0, 0, 700, 360),  # the losses of trainings that take a minute; lesson 11 makes such a training
    "stage_2": (0, 0, 700, 360),  # and lesson 12
}
NEED_SMOLLM2 = {"visual_words", "lora_moves"}


LIMIT = 8  # pixels that may differ; another number in small grey text makes ten or more


def differing(one: Image.Image, other: Image.Image, leave_out: tuple[int, int, int, int] = (0, 0, 0, 0)) -> int:
    """How many pixels of two pictures of one size clearly differ: in one of the three colours by more than 80 of 255.

    Other versions of Pillow smooth text and lines a little differently: 10.4 and 11.0 differ from 13.0 by up to 76.
    """
    colours, others = (np.array(image.convert("RGB"), dtype=int) for image in (one, other))
    differs = np.abs(colours - others).max(axis=-1) > 80
    left, top, right, bottom = leave_out
    differs[top:bottom, left:right] = False
    return int(differs.sum())


def test_every_figure_is_stored_and_shown():
    names = {f"{figure.__name__}.png" for figure in figures.DRAWN}
    assert names == {path.name for path in figures.FIGURES.iterdir()}
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for name in names:
        assert f"figures/{name})" in pages, name
        assert (figures.FIGURES / name).stat().st_size < 100_000, name


@pytest.mark.parametrize("figure", figures.DRAWN, ids=lambda figure: figure.__name__)
def test_a_figure_is_stored_as_it_is_drawn_now(figure, monkeypatch, request):
    if figure.__name__ in NEED_SMOLLM2:
        request.getfixturevalue("smollm2")
    monkeypatch.setattr(Sheet, "finished", Sheet.reduced)  # the search for 256 colours takes longer than to draw
    monkeypatch.setattr(figures_words, "short_training", lambda model, parts, batches, recipe, steps: [1.0] * steps)
    monkeypatch.setattr(figures_words, "fitted_projection", lambda model, *scenes: model.multi_modal_projector)
    monkeypatch.setattr(figures_words, "captions", lambda model, count, seed: seed)
    monkeypatch.setattr(figures_words, "conversations", lambda model, count, seed: seed)
    drawn = figure()
    with Image.open(figures.FIGURES / f"{figure.__name__}.png") as stored:
        assert drawn.size == stored.size
        count = differing(drawn, stored, NOT_REPEATED.get(figure.__name__, (0, 0, 0, 0)))
    assert count <= LIMIT, "the stored figure is out of date: python -m lessons.figures draws all of them again"


def test_a_changed_number_in_a_figure_is_noticed(monkeypatch):
    write = Sheet.text

    def changed(sheet: Sheet, x: float, y: float, text: str, *options, **named) -> None:
        write(sheet, x, y, text.replace("5.9 GiB", "7.1 GiB"), *options, **named)

    monkeypatch.setattr(Sheet, "text", changed)
    with Image.open(figures.FIGURES / "memory.png") as stored:
        assert differing(figures_data.memory(), stored) > LIMIT
