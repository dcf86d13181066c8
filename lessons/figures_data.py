"""The figures of lessons 9, 14, 15 and 16: a context, parameters, memory, and what each layer of the tower tells."""

import random
import textwrap

import torch
from PIL import Image

from data.contexts import Box, Context
from data.picturebook import language
from data.picturebook.draw import draw_scene
from data.picturebook.scene import sample_scene
from data.requests import DETAIL_REQUESTS
from data.teachers import Request
from data.teachers.scripted import Scripted
from lessons.sheet import BLUE, FAINT, GREEN, GREY, ORANGE, RED, VIOLET, Sheet, text_width
from lessons.small_world import drawn_scenes, features_and_words, fitted_projection
from minillava.checkpoint import load
from minillava.config import PRETRAINED, DecoderConfig, LlavaConfig, VisionConfig
from minillava.formats.tensors import Unfilled
from minillava.model.llava import Llava
from minillava.training.plan import GIB, Setting, plan
from minillava.training.recipes import CLIP_L_336, PRESETS, TINYLLAMA, VICUNA_7B


def context() -> Image.Image:
    """A picture with its boxes, its context, and a reply of each of the three kinds by the scripted teacher."""
    rng = random.Random(41)
    scene = sample_scene(rng)
    picture = draw_scene(scene, rng)
    boxes = tuple(Box(thing.kind, tuple(round(side, 3) for side in thing.box)) for thing in scene.things)
    known = Context("1", "1.png", tuple(language.captions(scene)[1:4]), boxes)
    sheet, side = Sheet(1000, 600), 280
    sheet.text(20, 20, "the picture, with its boxes", 15, anchor="lm")
    sheet.picture(20, 40, picture, side, side)
    for box in boxes:
        x1, y1, x2, y2 = (20 + side * value if at % 2 == 0 else 40 + side * value for at, value in enumerate(box.bbox))
        sheet.box(x1, y1, x2, y2, None, RED)
        sheet.box(x1 + 1, y1 + 1, x1 + 9 + text_width(box.category, 13), y1 + 19, (255, 255, 255), None)
        sheet.text(x1 + 5, y1 + 10, box.category, 13, RED, anchor="lm")
    sheet.text(360, 20, "the context: all that the teacher gets (three of its five captions)", 15, anchor="lm")
    _paragraph(sheet, 360, 40, 980, known.text(), GREY, 95)
    # The teacher gets all five captions: together they describe the whole scene, which it rebuilds from them.
    whole = Context("1", "1.png", tuple(language.captions(scene)), boxes)
    for kind, colour, x, width, request in (
        ("conversation", BLUE, 20, 350, None),
        ("detail", GREEN, 390, 290, DETAIL_REQUESTS[0]),
        ("reasoning", VIOLET, 700, 280, None),
    ):
        reply = Scripted().reply(Request(kind, whole, request, seed=4)).replace("\n===\n", "\n")
        lines = reply.splitlines()[:6]
        if request:
            lines = [f"Question: {request}", f"Answer: {lines[0]}"]
        sheet.text(x, 350, kind, 15, anchor="lm")
        _paragraph(sheet, x, 370, x + width, "\n".join(lines), colour, width // 7)
    return sheet.finished()


def _paragraph(sheet: Sheet, left: float, top: float, right: float, text: str, fill, columns: int) -> None:
    """Text, wrapped at ``columns`` characters, in a box of the height that it needs. GREY as ``fill`` draws an outline
    only."""
    lines = [line for part in text.split("\n") for line in (textwrap.wrap(part, columns) or [""])]
    sheet.box(left, top, right, top + 18 * len(lines) + 16, None if fill == GREY else fill)
    for number, line in enumerate(lines):
        sheet.text(left + 10, top + 17 + 18 * number, line, 13, anchor="lm")


def parameters() -> Image.Image:
    """Three models, each as a bar divided into vision tower, projection and decoder by their numbers of parameters."""
    sheet, left = Sheet(1000, 240), 260
    models = {
        "the picture-book's": (VisionConfig(), DecoderConfig(), "linear"),
        "CLIP-L and TinyLlama-1.1B": (CLIP_L_336, TINYLLAMA, "linear"),
        "LLaVA-1.5-7B": (CLIP_L_336, VICUNA_7B, "mlp"),
    }
    parts = (("vision tower", BLUE), ("projection", ORANGE), ("decoder", GREEN))
    for number, (part, colour) in enumerate(parts):
        sheet.box(left + 150 * number, 14, left + 150 * number + 16, 30, colour)
        sheet.text(left + 150 * number + 22, 22, part, 13, anchor="lm")
    for line, (name, sizes) in enumerate(models.items()):
        with torch.device("meta"), Unfilled():
            model = Llava(LlavaConfig(*sizes))
        counts = [sum(p.numel() for p in part.parameters()) for part in model.children()]
        x, y = float(left), 48 + 64 * line
        sheet.text(20, y + 12, name, anchor="lm")
        sheet.text(20, y + 31, " + ".join(f"{count / 1e6:,.4g}" for count in counts) + " million", 13, GREY, "lm")
        for count, (_, colour) in zip(counts, parts):
            width = 720 * count / sum(counts)
            sheet.box(x, y, x + width, y + 42, colour)
            x += width
    return sheet.finished()


def memory() -> Image.Image:
    """The memory that plan() computes for each preset and stage at the moment of the peak, by use, in GiB."""
    uses = {
        "weights": (BLUE, "weights"),
        "optimizer": (GREEN, "optimizer's state"),
        "reserve": (FAINT, "reserve"),
        "moment": (VIOLET, "gradients, activations, logits: the most at one moment"),
    }
    sheet, left, wide, x = Sheet(1000, 420), 170, 5.5, 170.0
    for colour, name in uses.values():
        sheet.box(x, 14, x + 22, 30, colour)
        sheet.text(x + 29, 22, name, 13, anchor="lm")
        x += 29 + text_width(name, 13) + 28
    for card in (24, 80):
        sheet.line((left + wide * card, 42), (left + wide * card, 388), colour=RED)
        sheet.text(left + wide * card, 402, f"a card of {card} GiB", 13, RED)
    sheet.line((left, 42), (left, 388))
    rows = [(preset, stage) for preset in ("consumer", "llava-7b", "paper") for stage in (1, 2)]
    for line, (preset, stage) in enumerate(rows):
        chosen = PRESETS[preset]
        config = LlavaConfig(chosen.vision, chosen.decoder)
        found = plan(Setting(config, stage, chosen.recipes[f"stage{stage}"], bfloat16=True, gpu=True))
        found["moment"] = found["peak"] - found["weights"] - found["optimizer"] - found["reserve"]
        x, y = float(left), 52 + 56 * line
        sheet.text(20, y + 9, f"{preset}, stage {stage}", anchor="lm")
        sheet.text(20, y + 28, f"{found['peak'] / GIB:.1f} GiB", 13, GREY, "lm")
        for use, (colour, _) in uses.items():
            width = wide * found[use] / GIB
            sheet.bar(x, y, x + width, y + 36, colour)
            x += width
    return sheet.finished()


def layers() -> Image.Image:
    """For each layer of the tower, the share of the words' variance (R^2) that the best W explains on new pictures."""
    model, shares = load(PRETRAINED / "llava"), []
    learnt, tried = drawn_scenes(48, 2), drawn_scenes(16, 3)
    for layer in range(model.config.vision.num_hidden_layers + 1):
        model.config.vision_feature_layer = layer
        projection = fitted_projection(model, *learnt)
        features, words = features_and_words(model, *tried)
        with torch.no_grad():
            missing = (projection(features) - words).square().sum()
        shares.append(1 - (missing / (words - words.mean(dim=0)).square().sum()).item())
    sheet, ground, tall = Sheet(1000, 370), 310, 390
    sheet.formula(
        20, 24, "How much of the words' embeddings the best W explains (R^2 on new pictures)", 16, anchor="lm"
    )
    for tick in (0, 0.2, 0.4, 0.6):
        sheet.line((70, ground - tall * tick), (980, ground - tall * tick), colour=GREY if tick == 0 else FAINT)
        sheet.text(60, ground - tall * tick, f"{tick:.0%}", 13, anchor="rm")
    for layer, share in enumerate(shares):
        x, top, is_read = 95 + 150 * layer, ground - tall * share, layer == len(shares) - 2
        sheet.bar(x, top, x + 90, ground, BLUE if is_read else FAINT)
        sheet.text(x + 45, top + 16, f"{share:.1%}", 15)
        sheet.text(x + 45, ground + 18, f"after block {layer}" if layer else "embeddings")
        if is_read:
            sheet.text(x + 45, ground + 40, "LLaVA reads this", 13)
    return sheet.finished()


FIGURES = (context, parameters, memory, layers)
