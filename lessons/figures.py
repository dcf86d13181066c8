"""``python -m lessons.figures``: draw all figures of the README and the lessons into ``lessons/figures/``."""

import random
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw

from data.picturebook.draw import PICTURE_SIZE, draw_scene
from data.picturebook.language import captions
from data.picturebook.scene import sample_scene
from lessons import figures_data, figures_sight, figures_talker, figures_words

FIGURES = Path(__file__).parent / "figures"
ZOOM, COLUMNS, ROWS, GAP = 3, 4, 2, 12


def world() -> Image.Image:
    """Eight scenes of the picture-book, each with one of its captions."""
    rng = random.Random(11)
    side = PICTURE_SIZE * ZOOM
    text_height = 66
    width, height = COLUMNS * (side + GAP) + GAP, ROWS * (side + text_height + GAP) + GAP
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    for index in range(COLUMNS * ROWS):
        scene = sample_scene(rng)
        x = GAP + index % COLUMNS * (side + GAP)
        y = GAP + index // COLUMNS * (side + text_height + GAP)
        sheet.paste(draw_scene(scene, rng).resize((side, side), Image.Resampling.NEAREST), (x, y))
        pen.multiline_text((x, y + side + 4), "\n".join(textwrap.wrap(captions(scene)[3], 32)), fill="black")
    return sheet


DRAWN = (world, *figures_sight.FIGURES, *figures_words.FIGURES, *figures_data.FIGURES, *figures_talker.FIGURES)


def main() -> None:
    FIGURES.mkdir(exist_ok=True)
    for figure in DRAWN:
        figure().save(FIGURES / f"{figure.__name__}.png", optimize=True)
        print(FIGURES / f"{figure.__name__}.png")


if __name__ == "__main__":
    main()
