"""The diagrams of lessons 5 and 15: CLIP's two towers and their loss, and LoRA."""

import textwrap

from PIL import Image

from data.picturebook.language import captions
from lessons.diagram import GAP, RADIUS, Diagram, Part, Shape, shape
from lessons.figures_diagrams import vision_sizes
from lessons.figures_sight import drawn
from lessons.sheet import BLUE, GREEN
from minillava.config import PRETRAINED, TextConfig, VisionConfig
from minillava.outline import read_adapter
from minillava.training.recipes import SMOLLM2


def diagram_clip() -> Image.Image:
    """Two towers, the matrix of logits of all pairs, and the cross-entropy of its rows and of its columns."""
    vision, text, (scene, picture) = VisionConfig(), TextConfig(), drawn(3)
    sheet = Diagram(1000, 720)
    sheet.picture(85, 584, picture, 80, 80)
    sheet.box(775, 600, 965, 650, BLUE)
    for line, words in enumerate(textwrap.wrap(captions(scene)[3], 25)):
        sheet.text(870, 616 + 18 * line, words, 14)
    sheet.text(125, 680, "n pictures")
    sheet.text(870, 680, "m captions")
    entering = shape(vision_sizes(vision), "n", "3", "H", "W")
    u = _tower(sheet, 125, 584, entering, "n", "vision tower", "class token", "W_image", vision)
    w = _tower(sheet, 870, 600, ("(m, T)",), "m", "text tower", "end token", "W_text", text)

    x, y, cell, count = 360, 90, 56, 4
    middle = cell * count / 2
    for row in range(count):
        at = cell * (row + 0.5)
        sheet.block(x - 26, y + at, f"u_{row + 1}", "visual", width=40, height=40)
        sheet.block(x + at, y - 26, f"w_{row + 1}", "words", width=40, height=40)
        for column in range(count):
            sheet.box(x + cell * column, y + cell * row, x + cell * (column + 1), y + cell * (row + 1), None)
    for row in range(count):
        left, top = x + cell * row, y + cell * row
        sheet.box(left, top, left + cell, top + cell, GREEN)
        for column in range(count):
            sheet.formula(x + cell * (column + 0.5), y + cell * (row + 0.5), f"s u_{row + 1} w_{column + 1}", 14)
    sheet.flow((125, u), (125, y + middle), (x - 52, y + middle))
    sheet.label(125, (u + y + middle) / 2, shape({"D": vision.projection_dim}, "n", "D"))
    sheet.flow((870, w), (870, 20), (x + middle, 20), (x + middle, y - 50))
    sheet.label(870, (w + 20) / 2, shape({"D": text.projection_dim}, "m", "D"))
    sheet.block(700, y + middle, "s", "trained", "exp(logit_scale)", width=130, height=46)
    sheet.arrow((635, y + middle), (x + cell * count + 4, y + middle))

    bottom, center = y + cell * count, x + middle
    sheet.line((center, bottom), (center, bottom + 40), width=1.5)
    sheet.label(center, bottom + 20, ("(n, m)",))
    for at, lines, question in ((362, "rows", "which caption?"), (582, "columns", "which picture?")):
        sheet.arrow((center, bottom + 40), (at, bottom + 40), (at, bottom + 70))
        sheet.block(at, bottom + 95, f"cross-entropy of {lines}", "plain", question, 200, 50)
        sheet.arrow((at, bottom + 120), (at, bottom + 170), (center + (25 if at > center else -25), bottom + 170))
    sheet.block(center, bottom + 170, "mean", width=50)
    sheet.arrow((center, bottom + 189), (center, bottom + 230))
    sheet.text(center, bottom + 244, "L", 16)
    sheet.box(250, 672, 272, 688, GREEN)
    sheet.text(279, 680, "a picture and its caption", 13, anchor="lm")
    sheet.legend(460, 680, "trained", "norm", "plain")
    return sheet.finished()


def _tower(
    sheet: Diagram,
    x: float,
    y: float,
    entering: Shape,
    count: str,
    name: str,
    token: str,
    matrix: str,
    config: VisionConfig | TextConfig,
) -> float:
    """One of CLIP's towers from (x, y) upwards, to vectors of length 1. Returns the y of its top edge."""
    sizes = {"hidden": config.hidden_size, "D": config.projection_dim}
    row = shape(sizes, count, "hidden")
    *_, top = sheet.stack(
        x,
        y,
        entering,
        Part(name, "trained", token, row),
        Part("LayerNorm", "norm", shape=row),
        Part(matrix, "trained", shape=shape(sizes, count, "D")),
        Part("to length 1"),
    )
    return top


def diagram_lora() -> Image.Image:
    """A frozen matrix and, next to it, LoRA's two small ones; after training, the one matrix that they make."""
    config = read_adapter(PRETRAINED / "smol")
    sizes = {"in": SMOLLM2.hidden_size, "out": SMOLLM2.intermediate_size, "r": config.rank}
    x, inside, y = shape(sizes, "B", "T", "in"), shape(sizes, "B", "T", "r"), shape(sizes, "B", "T", "out")
    sheet, left, right, bottom = Diagram(900, 520), 130, 330, 450
    middle = (left + right) / 2
    sheet.text(20, 24, "in training", 16, anchor="lm")
    sheet.text(middle, bottom + 12, "x", 16)
    sheet.line((middle, bottom), (middle, bottom - 42), width=1.5)
    sheet.label(middle, bottom - 19, x)
    sheet.line((left, bottom - 42), (right, bottom - 42), width=1.5)
    matrix = f"{sizes['out']} x {sizes['in']}"
    *_, top = sheet.stack(left, bottom - 42, (), Part("W_0", "frozen", matrix))
    *_, last = sheet.stack(
        right,
        bottom - 42,
        (),
        Part("A_lora", "trained", f"{sizes['r']} x {sizes['in']}", inside),
        Part("B_lora", "trained", f"{sizes['out']} x {sizes['r']}", y),
        Part("times alpha / r", "plain", f"{config.alpha:g} / {config.rank}"),
    )
    plus = last - GAP
    sheet.flow((left, top), (left, plus + RADIUS), shape=y)
    sheet.flow((right, last), (right, plus), (left + RADIUS, plus))
    sheet.label(right, (last + plus) / 2, y)
    sheet.operation(left, plus, "+")
    sheet.flow((left, plus - RADIUS), (left, plus - RADIUS - GAP), shape=y)

    sheet.text(560, 24, "after training, merged", 16, anchor="lm")
    sheet.text(700, bottom + 12, "x", 16)
    sheet.flow((700, bottom), (700, 278), shape=x)
    sheet.block(700, 255, "W_0 + (alpha / r) B_lora A_lora", "trained", matrix, 240, 46)
    sheet.flow((700, 232), (700, plus - RADIUS - GAP), shape=y)
    sheet.legend(560, 496, "trained", "frozen", "plain")
    return sheet.finished()


FIGURES = (diagram_clip, diagram_lora)
