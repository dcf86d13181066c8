"""Line charts: lines are drawn where their values are, and any values can be drawn."""

import math

import pytest
from PIL import Image, ImageChops

from minillava.training.plot import (
    BLUE,
    BOTTOM,
    GREY,
    LEFT,
    RED,
    RIGHT,
    ROW,
    SCALE,
    TOP,
    chart,
    draw_loss,
    running_mean,
)


def test_a_line_goes_from_its_first_value_to_its_last():
    lines = [("up", BLUE, [0, 10], [0.0, 1.0]), ("level", GREY, [0, 10], [0.1, 0.1])]
    image = chart("title", "step", lines, (400, 300))
    assert image.size == (400 * SCALE, 300 * SCALE)
    right, top, bottom = 400 - RIGHT, TOP + 2 * ROW, 300 - BOTTOM
    for share in (0.25, 0.5, 0.95):
        column = round((LEFT + (right - LEFT) * share) * SCALE)
        found = [row for row in range(top * SCALE, image.height) if image.getpixel((column, row)) == BLUE]
        wanted = (bottom + (top - bottom) * share) * SCALE
        assert sum(found) / len(found) == pytest.approx(wanted, abs=SCALE)


@pytest.mark.parametrize("logarithmic", ["", "y", "xy"])
@pytest.mark.parametrize("values", [[1.0], [3.0, 3.0], [1e-3, 5e6], [7.0, 9.0, 8.0]])
def test_any_values_are_drawn_with_nothing_at_the_pictures_edge(values, logarithmic):
    image = chart("title", "step", [("line", BLUE, range(1, len(values) + 1), values)], logarithmic=logarithmic)
    inside = Image.new("RGB", image.size, "white")
    edge = 2 * SCALE
    inside.paste(image.crop((edge, edge, image.width - edge, image.height - edge)), (edge, edge))
    assert ImageChops.difference(image, inside).getbbox() is None


def rows_of(image: Image.Image, colour, share: float) -> list[int]:
    """The rows of the picture that have ``colour``, at ``share`` of the width of the axes."""
    column = round((LEFT + (640 - RIGHT - LEFT) * share) * SCALE)
    return [row for row in range((TOP + 3 * ROW) * SCALE, image.height) if image.getpixel((column, row)) == colour]


def test_a_loss_is_saved(tmp_path):
    for losses in ({1: 0.0}, {1: 5.0, 2: 4.0, 3: 4.5}):
        draw_loss(tmp_path / "loss.png", "stage1: loss", losses)
        with Image.open(tmp_path / "loss.png") as saved:
            assert saved.size == (640 * SCALE, 360 * SCALE)


@pytest.mark.parametrize("end", [0.15, 10.0])
def test_a_loss_that_falls_tenfold_is_on_a_logarithmic_axis(tmp_path, end):
    """From 15 to 0.15 the axis goes from 0.1 to 20; from 15 to 10 it is linear, from 0 to 15."""
    losses = {step: 15 * (end / 15) ** ((step - 1) / 400) for step in range(1, 402)}
    draw_loss(tmp_path / "loss.png", "loss", losses, {step: losses[step] for step in (1, 201, 401)})
    with Image.open(tmp_path / "loss.png") as image:
        found = rows_of(image.convert("RGB"), RED, 0.5)
    top, bottom = (TOP + 3 * ROW) * SCALE, (360 - BOTTOM) * SCALE
    height = (bottom - sum(found) / len(found)) / (bottom - top)
    expected = math.log10(losses[201] / 0.1) / math.log10(20 / 0.1) if end < 1 else losses[201] / 15
    assert height == pytest.approx(expected, abs=0.02)


def test_the_running_mean_is_not_behind_at_either_end():
    """A straight line is its own mean, everywhere; a jump is met half-way in the middle of it."""
    line = [15 - 0.1 * step for step in range(100)]
    assert running_mean(line) == pytest.approx(line)
    noisy = [value + (-1) ** step for step, value in enumerate(line)]
    assert max(abs(a - b) for a, b in list(zip(running_mean(noisy), line))[10:-10]) < 0.06
    assert running_mean([0.0] * 20 + [1.0] * 20)[19:21] == pytest.approx([10 / 21, 11 / 21])
    assert running_mean([3.0]) == [3.0]
