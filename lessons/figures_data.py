"""The figures of lessons 2, 12, 13 and 14: contexts, sizes, memory, and scores by type of question."""

import random
import textwrap

from PIL import Image

from data.contexts import Box, Context
from data.picturebook import language
from data.picturebook.draw import draw_scene
from data.picturebook.scene import sample_scene
from data.teachers import Request
from data.teachers.scripted import Scripted
from lessons.sheet import BLUE, GREEN, GREY, INK, ORANGE, VIOLET, Sheet

RED = (200, 60, 60)


def context() -> Image.Image:
    """A picture with its boxes, its context, and the scripted teacher's three kinds of reply."""
    rng = random.Random(41)
    scene = sample_scene(rng)
    picture = draw_scene(scene, rng)
    boxes = tuple(Box(thing.kind, tuple(round(side, 3) for side in thing.box)) for thing in scene.things)
    known = Context("1", "1.png", tuple(language.captions(scene)[2:4]), boxes)
    sheet, side = Sheet(1000, 560), 280
    sheet.text(20, 20, "the picture, with its boxes", 15, anchor="lm")
    sheet.picture(20, 40, picture, side, side)
    for box in boxes:
        x1, y1, x2, y2 = (20 + side * value if at % 2 == 0 else 40 + side * value for at, value in enumerate(box.bbox))
        sheet.box(x1, y1, x2, y2, None, RED)
        sheet.text(x1 + 4, y1 + 10, box.category, 12, RED, anchor="lm")
    sheet.text(360, 20, "the context: all that the teacher gets (two of its five captions)", 15, anchor="lm")
    _paragraph(sheet, 360, 40, 980, known.text(), GREY, 82)
    # All five captions tell the scene in full; the teacher rebuilds it from them.
    whole = Context("1", "1.png", tuple(language.captions(scene)), boxes)
    for kind, colour, x, width, request in (
        ("conversation", BLUE, 20, 350, None),
        ("detail", GREEN, 390, 290, language.DETAIL_REQUESTS[0]),
        ("reasoning", VIOLET, 700, 280, None),
    ):
        reply = Scripted().reply(Request(kind, whole, request, seed=4)).replace("\n===\n", "\n")
        lines = reply.splitlines()[:4]
        if request:
            lines = [f"Question: {request}", f"Answer: {lines[0]}"]
        sheet.text(x, 350, kind, 15, anchor="lm")
        _paragraph(sheet, x, 370, x + width, "\n".join(lines), colour, width // 7)
    return sheet.finished()


def _paragraph(sheet: Sheet, left: float, top: float, right: float, text: str, fill, columns: int) -> None:
    """Text in a box that is as high as it needs; ``fill`` grey is an outline alone."""
    lines = [line for part in text.split("\n") for line in (textwrap.wrap(part, columns) or [""])]
    sheet.box(left, top, right, top + 18 * len(lines) + 16, None if fill == GREY else fill)
    for number, line in enumerate(lines):
        sheet.text(left + 10, top + 17 + 18 * number, line, 13, anchor="lm")


FIGURES = (context,)
