"""The figures of lesson 17: words near visual tokens, stage 1 from two starts, what LoRA moved. Two need SmolLM2."""

import json
from pathlib import Path

from PIL import Image

from data.picturebook.language import words_by_patch
from lessons.sheet import GREEN, GREY, RED, Sheet
from lessons.small_world import drawn_scenes
from lessons.talker import MATRICES, joined, moved, nearest, projections, word_ids
from minillava.training.least_squares import features
from minillava.training.plot import chart

DEEP_BLUE = (40, 90, 200)
SEA, PATCHES = 3, (2, 14, 41, 54)  # a scene's seed, and four of its patches: sky, flower, water, bird
CURVES = Path(__file__).parent / "results" / "smol_stage_1.json"


def visual_words() -> Image.Image:
    """Four patches of a picture, and the words nearest to their visual tokens under three projections."""
    (scene,), (picture,) = drawn_scenes(1, SEA)
    model = joined()
    ids, z, shown = word_ids(model), features(model, model.processor.image(picture)), words_by_patch(scene, 8)
    sheet, side = Sheet(1000, 470), 240
    sheet.text(20, 20, "the words nearest to four", 15, anchor="lm")
    sheet.text(20, 40, "visual tokens, for three W", 15, anchor="lm")
    sheet.picture(20, 60, picture, side, side)
    cell = side / 8
    for patch in PATCHES:
        x, y = 20 + cell * (patch % 8), 60 + cell * (patch // 8)
        sheet.box(x, y, x + cell, y + cell, None, RED)
        sheet.box(x - 24, y + 6, x - 2, y + cell - 6, (255, 255, 255), None)
        sheet.text(x - 13, y + cell / 2, str(patch), 13, RED)
    sheet.box(20, 330, 40, 346, GREEN, None)
    sheet.text(48, 338, "a word for what the patch shows", 13, anchor="lm")
    sheet.text(20, 364, "after each word: the cosine", 13, anchor="lm")
    for place, (name, projection) in enumerate(projections().items()):
        x = 290 + 240 * place
        sheet.text(x, 24, name, 16, anchor="lm")
        visual = projection(z)
        for number, patch in enumerate(PATCHES):
            y = 50 + 104 * number
            if place == 0:
                sheet.text(x, y, f"patch {patch}: {shown[patch]}", 13, RED, anchor="lm")
            for line, (word, cosine) in enumerate(nearest(model, ids, visual[patch], 4)):
                top = y + 12 + 20 * line
                if word.lower() in shown[patch].split():
                    sheet.box(x, top, x + 160, top + 19, GREEN, None)
                sheet.text(x + 6, top + 10, word, 13, anchor="lm")
                sheet.text(x + 154, top + 10, f"{cosine:.2f}", 13, GREY, anchor="rm")
    return sheet.finished()


def two_starts() -> Image.Image:
    """The loss of stage 1 with SmolLM2 from least squares and from a random W, as measured once and kept."""
    kept = json.loads(CURVES.read_text(encoding="utf-8"))
    colours = {"least squares": DEEP_BLUE, "random": RED}
    names = {"least squares": "W starts from least squares", "random": "W starts random"}
    lines = [(names[key], colours[key], kept["steps"], losses) for key, losses in kept["loss"].items()]
    title = "Stage 1 with SmolLM2: nats per token of the caption"
    sheet = Sheet(700, 360)
    sheet.picture(0, 0, chart(title, "step, 32 captions each", lines, sheet.size), *sheet.size)
    return sheet.finished()


def lora_moves() -> Image.Image:
    """|scale B A| / |W| for each matrix of each layer of SmolLM2: the darker, the more LoRA changed it."""
    shares = moved(joined().language_model).T.tolist()  # (7, layers)
    layers, top = len(shares[0]), max(map(max, shares))
    sheet, left, width = Sheet(1000, 304), 110, 26
    sheet.text(20, 22, "How much LoRA changed each matrix, relative to its size", 16, anchor="lm")
    sheet.table(left, 50, shares, width * layers, 26 * len(MATRICES), top)
    for number, (name, row) in enumerate(zip(MATRICES, shares)):
        sheet.text(left - 10, 63 + 26 * number, name, 13, anchor="rm")
        sheet.text(left + width * layers + 14, 63 + 26 * number, f"{sum(row) / layers:.1%}", 13, anchor="lm")
    sheet.text(left + width * layers + 14, 40, "mean", 13, anchor="lm")
    for layer in range(layers):
        sheet.text(left + width * (layer + 0.5), 246, str(layer), 13)
    sheet.text(left + width * layers / 2, 268, "layer", 13)
    sheet.table(20, 268, [[top * step / 20 for step in range(21)]], 150, 14, top)
    sheet.box(20, 268, 170, 282, None)
    sheet.text(20, 292, "0", 13, anchor="lm")
    sheet.text(170, 292, f"{top:.1%}", 13, anchor="rm")
    return sheet.finished()


FIGURES = (visual_words, two_starts, lora_moves)
