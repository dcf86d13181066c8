"""Line charts drawn with Pillow: the loss of every training, and the charts of the data programs and lessons."""

import math
import os
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Line = tuple[str, Colour, Sequence[float], Sequence[float]]  # name, colour, x values, y values

INK, GREY, FAINT, BLUE = (40, 40, 48), (190, 190, 190), (225, 225, 230), (40, 90, 200)
SCALE = 2  # pixels of the picture per unit of ``size``, for fine lines and letters
LEFT, TOP, RIGHT, BOTTOM, ROW = 72, 38, 28, 46, 18  # margins; each line's name adds one ROW to the top


def draw_loss(path: str | os.PathLike, title: str, losses: list[float]) -> None:
    """Write a chart of loss against step, from 1: every value in grey, the running mean in blue. Needs at least one."""
    steps, mean, smooth = range(1, len(losses) + 1), losses[0], []
    for loss in losses:
        mean += 0.05 * (loss - mean)
        smooth.append(mean)
    chart(title, "step", [("each step", GREY, steps, losses), ("running mean", BLUE, steps, smooth)]).save(path)


def chart(
    title: str, across: str, lines: list[Line], size: tuple[int, int] = (640, 360), logarithmic: bool = False
) -> Image.Image:
    """A chart of ``lines`` on axes that include all values and zero; ``across`` labels the x axis.

    No line may be empty. With ``logarithmic`` both axes are logarithmic and begin at a power of ten; all values must
    then be above zero.
    """
    scale = math.log10 if logarithmic else float
    paths = [[(scale(x), scale(y)) for x, y in zip(xs, ys)] for _, _, xs, ys in lines]
    xs, ys = zip(*(point for path in paths for point in path))
    x_ticks, y_ticks = _ticks(xs, logarithmic), _ticks(ys, logarithmic)
    x_low, x_high, y_low, y_high = x_ticks[0], max(xs), y_ticks[0], y_ticks[-1]
    right, top, bottom = size[0] - RIGHT, TOP + ROW * len(lines), size[1] - BOTTOM
    image = Image.new("RGB", (size[0] * SCALE, size[1] * SCALE), "white")
    pen = ImageDraw.Draw(image)

    def at(x: float, y: float) -> tuple[float, float]:
        u, v = (x - x_low) / ((x_high - x_low) or 1), (y - y_low) / ((y_high - y_low) or 1)
        return LEFT + (right - LEFT) * u, bottom + (top - bottom) * v

    def draw(points: list[tuple[float, float]], colour: Colour, width: int = 1) -> None:
        pen.line([(x * SCALE, y * SCALE) for x, y in points], colour, width * SCALE)

    def write(x: float, y: float, text: str | float, height: int, anchor: str) -> None:
        shown = text if isinstance(text, str) else f"{10**text if logarithmic else text:,.10g}"
        pen.text((x * SCALE, y * SCALE), shown, INK, ImageFont.load_default(height * SCALE), anchor)

    for tick in y_ticks:
        draw([at(x_low, tick), at(x_high, tick)], FAINT)
        write(LEFT - 8, at(x_low, tick)[1], tick, 11, "rm")
    for tick in x_ticks:
        if tick <= x_high:
            write(at(tick, y_low)[0], bottom + 12, tick, 11, "mm")
    draw([(LEFT, top), (LEFT, bottom), (right, bottom)], GREY)
    write((LEFT + right) / 2, bottom + 32, across, 12, "mm")
    write(LEFT, 16, title, 14, "lm")
    for number, ((name, colour, _, _), path) in enumerate(zip(lines, paths)):
        y = TOP + ROW * number
        draw([(LEFT, y), (LEFT + 18, y)], colour, 3)
        write(LEFT + 24, y, name, 12, "lm")
        draw([at(*point) for point in path], colour, 2)
    return image


def _ticks(values: Sequence[float], logarithmic: bool) -> list[float]:
    """About five ticks at multiples of 1, 2 or 5 times a power of ten that enclose the values and zero; for logarithms,
    the whole numbers that enclose the values."""
    low, high = min(values), max(values)
    step = 1.0
    if not logarithmic:
        low, high = min(low, 0.0), max(high, 0.0)
        rough = (high - low) / 5 or 1.0
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [number * step for number in range(math.floor(low / step), math.ceil(high / step) + 1)]
