"""A line chart in a PNG with Pillow alone: the loss that every training leaves behind, and what data programs draw."""

import math
import os
from collections.abc import Sequence

from PIL import Image, ImageDraw

WIDTH, HEIGHT, MARGIN = 640, 360, 48
GREY, BLUE = (190, 190, 190), (40, 90, 200)


def draw_loss(path: str | os.PathLike, title: str, steps: list[int], losses: list[float]) -> None:
    """Loss against step: every value in grey, their running mean in blue. ``steps`` must not be empty."""
    mean, smooth = losses[0], []
    for loss in losses:
        mean += 0.05 * (loss - mean)
        smooth.append(mean)
    draw_lines(path, title, "step", [("", steps, losses, GREY), ("running mean", steps, smooth, BLUE)])


def draw_lines(
    path: str | os.PathLike,
    title: str,
    across: str,
    lines: list[tuple[str, Sequence[float], Sequence[float], tuple[int, int, int]]],
    logarithmic: bool = False,
) -> None:
    """Lines of (name, values across, values up, colour) in one frame, with their names; ``across`` is written below it.

    No line may be empty. Logarithmic scales, of which both are then, want values above zero.
    """
    scale = math.log10 if logarithmic else float
    paths = [[(scale(x), scale(y)) for x, y in zip(xs, ys)] for _, xs, ys, _ in lines]
    (left, right), (low, high) = ((min(values), max(values)) for values in zip(*(at for path in paths for at in path)))
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen = ImageDraw.Draw(image)

    def place(x: float, y: float) -> tuple[float, float]:
        u, v = (x - left) / ((right - left) or 1), (y - low) / ((high - low) or 1)
        return MARGIN + (WIDTH - 2 * MARGIN) * u, HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * v

    for tick in range(5):
        x, y = left + (right - left) * tick / 4, low + (high - low) * tick / 4
        u, v = place(x, y)
        pen.line((MARGIN, v, WIDTH - MARGIN, v), fill=(225, 225, 225))
        pen.text((MARGIN - 6, v), f"{10**y:,.0f}" if logarithmic else f"{y:.2f}", fill="black", anchor="rm")
        pen.text((u, HEIGHT - MARGIN + 8), f"{10**x if logarithmic else x:,.0f}", fill="black", anchor="mt")
    pen.text((WIDTH / 2, MARGIN / 2), title, fill="black", anchor="mm")
    pen.text((WIDTH / 2, HEIGHT - 12), across, fill="black", anchor="mm")
    for index, ((name, _, _, colour), points) in enumerate(zip(lines, paths)):
        pen.line([place(*point) for point in points], fill=colour, width=index + 1)
        pen.text((WIDTH - MARGIN, MARGIN + 14 * index), name, fill=colour, anchor="rm")
    image.save(path)
