"""A line chart in a PNG with Pillow alone: what every training leaves behind."""

import os

from PIL import Image, ImageDraw

WIDTH, HEIGHT, MARGIN = 640, 360, 48


def draw_loss(path: str | os.PathLike, title: str, steps: list[int], losses: list[float]) -> None:
    """Loss against step: every value in grey, their running mean in blue. ``steps`` must not be empty."""
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen = ImageDraw.Draw(image)
    low, high = min(losses), max(losses)
    span = (high - low) or 1.0
    last = max(steps[-1], 1)

    def at(step: float, loss: float) -> tuple[float, float]:
        x = MARGIN + (WIDTH - 2 * MARGIN) * step / last
        return x, HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (loss - low) / span

    for tick in range(5):
        loss, step = low + span * tick / 4, last * tick / 4
        y, x = at(0, loss)[1], at(step, low)[0]
        pen.line((MARGIN, y, WIDTH - MARGIN, y), fill=(225, 225, 225))
        pen.text((MARGIN - 6, y), f"{loss:.2f}", fill="black", anchor="rm")
        pen.text((x, HEIGHT - MARGIN + 8), f"{step:.0f}", fill="black", anchor="mt")
    pen.text((WIDTH / 2, MARGIN / 2), title, fill="black", anchor="mm")
    pen.text((WIDTH / 2, HEIGHT - 12), "step", fill="black", anchor="mm")
    mean, smooth = losses[0], []
    for loss in losses:
        mean += 0.05 * (loss - mean)
        smooth.append(mean)
    for values, colour, width in ((losses, (190, 190, 190), 1), (smooth, (40, 90, 200), 2)):
        pen.line([at(step, value) for step, value in zip(steps, values)], fill=colour, width=width)
    image.save(path)
