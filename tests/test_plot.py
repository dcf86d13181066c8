"""Line charts: lines are drawn where their values are, and any values can be drawn."""

import pytest
from PIL import Image, ImageChops

from minillava.training.plot import BLUE, BOTTOM, GREY, LEFT, RIGHT, ROW, SCALE, TOP, chart, draw_loss


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


@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize("values", [[1.0], [3.0, 3.0], [1e-3, 5e6], [7.0, 9.0, 8.0]])
def test_any_values_are_drawn_with_nothing_at_the_pictures_edge(values, logarithmic):
    image = chart("title", "step", [("line", BLUE, range(1, len(values) + 1), values)], logarithmic=logarithmic)
    inside = Image.new("RGB", image.size, "white")
    edge = 2 * SCALE
    inside.paste(image.crop((edge, edge, image.width - edge, image.height - edge)), (edge, edge))
    assert ImageChops.difference(image, inside).getbbox() is None


def test_a_loss_is_saved(tmp_path):
    for losses in ([0.0], [5.0, 4.0, 4.5]):
        draw_loss(tmp_path / "loss.png", "stage1: loss", losses)
        with Image.open(tmp_path / "loss.png") as saved:
            assert saved.size == (640 * SCALE, 360 * SCALE)
