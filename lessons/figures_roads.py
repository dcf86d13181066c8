"""The diagrams of lesson 18: LLaVA and the four other roads, all in one frame."""

import inspect
from dataclasses import dataclass
from itertools import pairwise

from PIL import Image

from lessons.diagram import Diagram, Part, Shape, shape
from lessons.figures_diagrams import decoder_sizes, vision_sizes
from lessons.figures_sight import drawn
from lessons.roads.blip2 import QFormerConfig
from lessons.roads.flamingo import Flamingo
from lessons.roads.frozen import PREFIX
from lessons.roads.kosmos import Kosmos
from lessons.sheet import READ, RED, SEEN
from minillava.config import LlavaConfig

CONFIG = LlavaConfig()
VISION, DECODER = vision_sizes(CONFIG.vision), decoder_sizes(CONFIG.decoder)
FEATURES = shape(VISION, "images", "patches", "hidden")
EYE, TEXT, FIRST, CELL = 120, 730, 330, 34  # x: the vision tower, the embeddings, the row's first cell; a cell's width
ROW, MODEL, LOSS, GROUND = 310, 200, 62, 720  # y: the row, the language model, the loss, the picture


@dataclass
class Road:
    """What differs. ``parts``: the vision tower and what follows it; ``row``: the decoder's input by kinds."""

    title: str
    parts: list[Part]
    tokens: str  # how many visual tokens
    decoder: str
    row: list[str]
    text: str
    backward: int  # how many of the parts the gradient reaches, from the last


def visual(count: int, letters: str = "Q") -> Shape:
    return shape(DECODER | {letters: count}, "images", letters, "hidden")


def diagram_llava() -> Image.Image:
    """Every patch becomes a token; stage 2 trains the projection and the language model."""
    tower = Part("vision tower f_v", "frozen", "frozen", FEATURES)
    w = Part("W", "trained", "trained in both stages", visual(CONFIG.num_image_tokens, "patches"))
    row = ["words"] * 3 + ["visual"] * 6 + ["words"] * 2 + ["loss"] * 3
    title = "LLaVA: every patch becomes a token"
    return _draw(
        Road(title, [tower, w], f"{CONFIG.num_image_tokens} visual tokens", "trained", row, "question, answer", 1)
    )


def diagram_frozen() -> Image.Image:
    """The vision encoder learns through the frozen language model."""
    tower = Part("vision encoder", "trained", "trained", FEATURES)
    prefix = Part("mean, linear", "trained", "trained", visual(PREFIX))
    row = ["visual"] * 2 + ["loss"] * 11
    return _draw(
        Road("Frozen: a prefix of two vectors", [tower, prefix], f"{PREFIX} visual tokens", "frozen", row, "caption", 2)
    )


def diagram_flamingo() -> Image.Image:
    """Gated cross-attention between the frozen blocks."""
    count = default(Flamingo, "count")
    tower = Part("vision tower", "frozen", "frozen", FEATURES)
    sampler = Part("Perceiver resampler", "trained", f"trained, {count} latents", visual(count))
    row = ["words"] * 6 + ["loss"] * 7
    title = "Flamingo: words look at the picture between the blocks"
    return _draw(Road(title, [tower, sampler], f"{count} visual tokens", "gated", row, "<image> question, answer", 1))


def diagram_blip2() -> Image.Image:
    """A Q-Former between two frozen models."""
    config = QFormerConfig()
    queries = shape({"Q": config.num_queries, "hidden": config.hidden_size}, "images", "Q", "hidden")
    parts = [
        Part("vision tower", "frozen", "frozen", FEATURES),
        Part("Q-Former", "trained", f"trained, {config.num_queries} queries", queries),
        Part("linear", "trained", "trained", visual(config.num_queries)),
    ]
    row = ["visual"] * 4 + ["words"] * 3 + ["loss"] * 6
    title = "BLIP-2: queries between two frozen models"
    return _draw(Road(title, parts, f"{config.num_queries} visual tokens", "frozen", row, "question, answer", 2))


def diagram_kosmos() -> Image.Image:
    """Documents of text and pictures; everything is trained."""
    count = default(Kosmos, "count")
    parts = [
        Part("vision tower", "trained", "trained", FEATURES),
        Part("resampler", "trained", f"trained, {count} latents", visual(count)),
        Part("<image>, </image>", "trained", "two trained vectors", visual(count + 2, "1 + Q + 1")),
    ]
    row = ["loss"] * 2 + ["visual"] * 3 + ["loss"] * 3 + ["visual"] * 3 + ["loss"] * 3
    title = "Kosmos-1: text and pictures alternate"
    return _draw(Road(title, parts, f"{count} visual tokens and two marks", "trained", row, "a document", 3))


def default(model: type, name: str) -> int:
    """The default of one of a model's options."""
    return inspect.signature(model).parameters[name].default


def _draw(road: Road) -> Image.Image:
    sheet, gated, end = Diagram(1000, 840), road.decoder == "gated", FIRST + CELL * len(road.row)
    middle, back = (FIRST + end) / 2, EYE - 26
    trained = "trained" if road.decoder == "trained" else "frozen"
    inputs = shape(DECODER, "B", "T", "hidden")
    sheet.text(20, 24, road.title, 17, anchor="lm")

    # From the picture and the text to the row.
    sheet.picture(EYE - 40, GROUND, drawn(3)[1], 80, 80)
    *middles, top = sheet.stack(EYE, GROUND, shape(VISION, "images", "3", "H", "W"), *road.parts, width=170)
    sheet.box(TEXT - 110, GROUND + 20, TEXT + 110, GROUND + 60, None)
    sheet.text(TEXT, GROUND + 40, road.text)
    stages = road.parts[-1].name == "W"
    embeddings = Part("E", trained, "trained in stage 2" if stages else trained)
    *_, table = sheet.stack(TEXT, GROUND + 20, shape(DECODER, "B", "T"), embeddings, width=170)
    sheet.label(TEXT, (table + ROW + 64) / 2, inputs)
    for x in _groups(road.row, "words", "loss"):
        sheet.arrow((TEXT, table), (TEXT, ROW + 64), (x, ROW + 64), (x, ROW + 17), colour=READ)
    for place, kind in enumerate(road.row):
        sheet.block(FIRST + CELL * (place + 0.5), ROW, "", kind, width=CELL - 4, height=CELL)
    level = MODEL + 25 if gated else ROW + 44
    sheet.label(EYE, (top + level) / 2, road.parts[-1].shape)
    sheet.text(EYE + 8, level + 16, road.tokens, 14, SEEN, "lm")
    if gated:
        sheet.arrow((EYE, top), (EYE, level), (FIRST, level), colour=SEEN)
    for x in _groups(road.row, "visual"):
        sheet.arrow((EYE, top), (EYE, level), (x, level), (x, ROW + 17), colour=SEEN)

    # From the row to the loss.
    sheet.flow((middle, ROW - 17), (middle, MODEL + 45), shape=inputs)
    if gated:
        sheet.block(middle, MODEL + 25, "gated cross-attention", "trained", width=end - FIRST, height=40)
        sheet.arrow((middle, MODEL + 5), (middle, MODEL - 5))
        sheet.block(middle, MODEL - 25, "block of the language model", "frozen", width=end - FIRST, height=40)
        sheet.text(end + 14, MODEL, f"{CONFIG.decoder.num_hidden_layers} times", anchor="lm")
    else:
        note = "trained in stage 2, frozen in stage 1" if stages else trained
        sheet.block(middle, MODEL, "language model", trained, note, end - FIRST, 90)
    sheet.flow((middle, MODEL - 45), (middle, LOSS + 22), shape=shape(DECODER, "B", "T", "V"))
    sheet.block(middle, LOSS, "L = mean of -log p", "plain", "of the tokens with a loss", 220, 44)

    # The gradient.
    first = FIRST + CELL / 2
    down = [(middle - 110, LOSS), (first, LOSS)]
    if gated:
        sheet.arrow(*down, (first, MODEL + 5), colour=RED, dashed=True)
        path = [(FIRST, level - 12), (back, level - 12)]
    else:
        path = [*down, (first, ROW + 24), (back, ROW + 24)]
    sheet.arrow(*path, (back, top), colour=RED, dashed=True)
    reached = list(zip(middles, road.parts))[-road.backward :]
    for (below, part), (above, other) in pairwise(reached):
        start, stop = above + other.height / 2, below - part.height / 2
        sheet.arrow((back, start), (back, stop), colour=RED, dashed=True)
    if trained == "trained":
        sheet.arrow((TEXT - 26, ROW + 17), (TEXT - 26, table), colour=RED, dashed=True)
    sheet.legend(20, 818, "trained", "frozen", "words", "visual", "loss")
    sheet.line((700, 818), (740, 818), colour=RED, width=1.5, dashed=True)
    sheet.text(750, 818, "gradient", 13, anchor="lm")
    return sheet.finished()


def _groups(row: list[str], *kinds: str) -> list[float]:
    """The x of the middle of each run of cells of these kinds."""
    places = [place for place, kind in enumerate(row) if kind in kinds]
    starts = [place for place in places if place - 1 not in places]
    ends = [place for place in places if place + 1 not in places]
    return [FIRST + CELL * (start + stop + 1) / 2 for start, stop in zip(starts, ends)]


FIGURES = (diagram_llava, diagram_frozen, diagram_flamingo, diagram_blip2, diagram_kosmos)
