"""Line charts drawn with Pillow: the loss of every training, and the charts of the data programs and lessons."""

import math
import os
from collections.abc import Sequence
from statistics import fmean
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

from minillava.files import write_whole

Colour = tuple[int, int, int]
Line = tuple[str, Colour, Sequence[float], Sequence[float]]  # name, colour, x values, y values

INK, GREY, FAINT, BLUE, RED = (40, 40, 48), (190, 190, 190), (225, 225, 230), (40, 90, 200), (200, 60, 40)
SCALE = 2  # pixels of the picture per unit of ``size``, for fine lines and letters
LEFT, TOP, RIGHT, BOTTOM, ROW = 84, 38, 28, 46, 18  # margins; each line's name adds one ROW to the top


def draw_loss(
    path: str | os.PathLike, title: str, losses: dict[int, float], heldout: dict[int, float] | None = None
) -> None:
    """Write a chart of loss against step: every value in grey, the running mean in blue, held-out losses in red.

    Both dicts map steps, from 1, to losses; ``losses`` must not be empty. If the running mean changes tenfold, the
    losses are on a logarithmic axis.
    """
    mean = running_mean(list(losses.values()))
    lines: list[Line] = [("each step", GREY, list(losses), list(losses.values()))]
    lines.append(("running mean", BLUE, list(losses), mean))
    if heldout:
        lines.append(("held-out rows", RED, list(heldout), list(heldout.values())))
    logarithmic = "y" if falls_far(mean, [*losses.values(), *(heldout or {}).values()]) else ""
    image = chart(title, "step", lines, logarithmic=logarithmic)
    write_whole(path, lambda file: image.save(file, "PNG"))


def falls_far(mean: list[float], values: list[float]) -> bool:
    """Whether ``values`` belong on a logarithmic axis: their running mean changes tenfold, and all are above zero."""
    return min(values) > 0 and max(mean) >= 10 * min(mean)


def running_mean(values: list[float], reach: int = 10) -> list[float]:
    """The mean of each value and of up to ``reach`` values on either side, as many before it as after it.

    So the mean is never behind the values, not even at the start, where it is the value itself.
    """
    means = []
    for index in range(len(values)):
        near = min(reach, index, len(values) - 1 - index)
        means.append(fmean(values[index - near : index + near + 1]))
    return means


def chart(
    title: str,
    across: str,
    lines: list[Line],
    size: tuple[int, int] = (640, 360),
    logarithmic: Literal["", "y", "xy"] = "",
) -> Image.Image:
    """A chart of ``lines`` on axes that include all values and zero; ``across`` labels the x axis.

    No line may be empty. The axes in ``logarithmic`` do not begin at zero; their values must all be above it.
    """
    log_x, log_y = "x" in logarithmic, "y" in logarithmic
    scale_x, scale_y = (math.log10 if log else float for log in (log_x, log_y))
    paths = [[(scale_x(x), scale_y(y)) for x, y in zip(xs, ys)] for _, _, xs, ys in lines]
    xs, ys = zip(*(point for path in paths for point in path))
    x_ticks, y_ticks = ticks(xs, log_x), ticks(ys, log_y)
    x_low, x_high, y_low, y_high = x_ticks[0], max(xs), y_ticks[0], y_ticks[-1]
    right, top, bottom = size[0] - RIGHT, TOP + ROW * len(lines), size[1] - BOTTOM
    image = Image.new("RGB", (size[0] * SCALE, size[1] * SCALE), "white")
    pen = ImageDraw.Draw(image)

    def at(x: float, y: float) -> tuple[float, float]:
        u, v = (x - x_low) / ((x_high - x_low) or 1), (y - y_low) / ((y_high - y_low) or 1)
        return LEFT + (right - LEFT) * u, bottom + (top - bottom) * v

    def draw(points: list[tuple[float, float]], colour: Colour, width: int = 1) -> None:
        pen.line([(x * SCALE, y * SCALE) for x, y in points], colour, width * SCALE)

    def write(x: float, y: float, text: str, height: int, anchor: str) -> None:
        pen.text((x * SCALE, y * SCALE), text, INK, ImageFont.load_default(height * SCALE), anchor)

    for tick in y_ticks:
        draw([at(x_low, tick), at(x_high, tick)], FAINT)
        write(LEFT - 8, at(x_low, tick)[1], in_figures(tick, log_y), 13, "rm")
    for tick in x_ticks:
        if tick <= x_high:
            write(at(tick, y_low)[0], bottom + 12, in_figures(tick, log_x), 13, "mm")
    draw([(LEFT, top), (LEFT, bottom), (right, bottom)], GREY)
    write((LEFT + right) / 2, bottom + 32, across, 13, "mm")
    write(LEFT, 16, title, 15, "lm")
    for index, ((name, colour, _, _), path) in enumerate(zip(lines, paths)):
        y = TOP + ROW * index
        draw([(LEFT, y), (LEFT + 18, y)], colour, 3)
        write(LEFT + 24, y, name, 13, "lm")
        draw([at(*point) for point in path], colour, 2)
    return image


def in_figures(tick: float, logarithmic: bool = False) -> str:
    return f"{10**tick if logarithmic else tick:,.10g}"


def ticks(values: Sequence[float], logarithmic: bool = False) -> list[float]:
    """About five ticks at multiples of 1, 2 or 5 times a power of ten that enclose the values and zero; for logarithms,
    the powers of ten that enclose the values, and among few of them also 2 and 5 times them."""
    low, high = min(values), max(values)
    if logarithmic:
        powers = range(math.floor(low), math.ceil(high) + 1)
        if len(powers) > 4:
            return [float(power) for power in powers]
        fine = [power + math.log10(factor) for power in powers for factor in (1, 2, 5)]
        first = max(index for index, tick in enumerate(fine) if tick <= low)
        last = min(index for index, tick in enumerate(fine) if tick >= high)
        return fine[first : last + 1]
    low, high = min(low, 0.0), max(high, 0.0)
    rough = (high - low) / 5 or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [number * step for number in range(math.floor(low / step), math.ceil(high / step) + 1)]
