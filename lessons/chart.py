"""A line chart on a Sheet."""

import math
from collections.abc import Sequence

from lessons.sheet import GREY, Colour, Sheet

Line = tuple[str, Colour, Sequence[float], Sequence[float]]  # what the legend says of it, colour, x values, y values


def draw_chart(
    sheet: Sheet, left: float, top: float, width: float, height: float, title: str, x_name: str, lines: list[Line]
) -> None:
    """``lines`` over axes that hold all of them and zero, in the box given; a legend below the title."""
    x_step, (x_low, _) = _ticks([x for line in lines for x in line[2]])
    y_step, (y_low, y_high) = _ticks([y for line in lines for y in line[3]])
    x_high = max(x for line in lines for x in line[2])

    def at(x: float, y: float) -> tuple[float, float]:
        return left + width * (x - x_low) / (x_high - x_low), top + height * (y_high - y) / (y_high - y_low)

    for tick in range(round((y_high - y_low) / y_step) + 1):
        value = y_low + tick * y_step
        sheet.line(at(x_low, value), at(x_high, value), colour=(225, 225, 230))
        sheet.text(left - 8, at(0, value)[1], f"{value:g}", 11, anchor="rm")
    for tick in range(math.floor((x_high - x_low) / x_step) + 1):
        sheet.text(at(x_low + tick * x_step, 0)[0], top + height + 12, f"{x_low + tick * x_step:g}", 11)
    sheet.text(left + width / 2, top + height + 30, x_name, 12)
    sheet.text(left, top - 16 - 18 * len(lines), title, 14, anchor="lm")
    for index, (name, colour, xs, ys) in enumerate(lines):
        sheet.line(*(at(x, y) for x, y in zip(xs, ys)), colour=colour, width=2)
        y = top + 4 - 18 * (len(lines) - index)
        sheet.line((left, y), (left + 18, y), colour=colour, width=3)
        sheet.text(left + 24, y, name, 12, anchor="lm")
    sheet.line((left, top), (left, top + height), (left + width, top + height), colour=GREY)


def _ticks(values: list[float]) -> tuple[float, tuple[float, float]]:
    """A step of 1, 2 or 5 times a power of ten that cuts the range of values and zero into about five; its ends."""
    low, high = min(0.0, *values), max(0.0, *values)
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return step, (math.floor(low / step) * step, math.ceil(high / step) * step)
