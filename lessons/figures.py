"""``python -m lessons.figures``: draw all figures of the README and the lessons into ``lessons/figures/``."""

import random
import textwrap
from pathlib import Path

from PIL import Image

from data.picturebook.draw import PICTURE_SIZE, draw_scene
from data.picturebook.language import captions
from data.picturebook.scene import sample_scene
from lessons import (
    figures_clip_lora,
    figures_data,
    figures_diagrams,
    figures_roads,
    figures_sight,
    figures_talker,
    figures_words,
)
from lessons.sheet import Sheet

FIGURES = Path(__file__).parent / "figures"


def world() -> Image.Image:
    """Eight scenes of the picture-book, each with one of its captions."""
    rng, side = random.Random(11), 3 * PICTURE_SIZE
    sheet = Sheet(880, 580)
    for index in range(8):
        scene = sample_scene(rng)
        x, y = 20 + 216 * (index % 4), 16 + 288 * (index // 4)
        sheet.picture(x, y, draw_scene(scene, rng), side, side)
        for line, words in enumerate(textwrap.wrap(captions(scene)[3], 29)):
            sheet.text(x, y + side + 16 + 18 * line, words, 14, anchor="lm")
    return sheet.finished()


DRAWN = (
    world,
    *figures_sight.FIGURES,
    *figures_words.FIGURES,
    *figures_data.FIGURES,
    *figures_talker.FIGURES,
    *figures_diagrams.FIGURES,
    *figures_clip_lora.FIGURES,
    *figures_roads.FIGURES,
)


def main() -> None:
    FIGURES.mkdir(exist_ok=True)
    for figure in DRAWN:
        figure().save(FIGURES / f"{figure.__name__}.png", optimize=True)
        print(FIGURES / f"{figure.__name__}.png")


if __name__ == "__main__":
    main()
