"""The figures of lessons 1 to 5 and 7: from a picture and a text to the vectors that the decoder reads."""

import json
import random
import re
import textwrap
from dataclasses import replace

import torch
import torch.nn.functional as F
from PIL import Image

from data.picturebook.language import captions, region
from data.picturebook.scene import Scene
from data.picturebook.talk import ask
from data.requests import BRIEF_REQUESTS
from lessons.sheet import BLUE, FAINT, GREEN, GREY, ORANGE, READ, RED, SEEN, VIOLET, Sheet, shade, text_width
from lessons.small_world import drawn_scenes, wide_picture
from minillava.checkpoint import load, load_clip
from minillava.config import PRETRAINED
from minillava.formats.byte_characters import to_bytes
from minillava.inputs.conversation import encode_conversation
from minillava.inputs.conversations import pad
from minillava.inputs.image import ImageProcessor
from minillava.inputs.tokenizer import _join
from minillava.model.contrastive import Clip
from minillava.training.tasks import initialise

SEVERAL = 41  # the seed of a scene with several things
KINDS = {"words": BLUE, "picture": VIOLET, "answer": GREEN}  # colours of the cells in the decoder's input


def drawn(seed: int) -> tuple[Scene, Image.Image]:
    """A scene and its picture; the seed decides both."""
    (scene,), (picture,) = drawn_scenes(1, seed)
    return scene, picture


def cut(picture: Image.Image) -> list[Image.Image]:
    """The 64 patches of 8 x 8 pixels, in reading order."""
    return [picture.crop((x, y, x + 8, y + 8)) for y in range(0, 64, 8) for x in range(0, 64, 8)]


def whole() -> Image.Image:
    """Both stages: which parts are frozen, which learn, and the shapes of what goes from part to part."""
    scene, picture = drawn(3)
    question, answer = ask("colour", scene, random.Random(0))
    sheet = Sheet(1000, 640)
    first = [
        ("words", BRIEF_REQUESTS[0]),
        ("picture", "<image>"),
        ("words", "### Assistant:"),
        ("answer", captions(scene)[3] + "###"),
    ]
    second = [
        ("words", "A chat between ... ### Human:"),
        ("picture", "<image>"),
        ("words", question + "### Assistant:"),
        ("answer", answer + "###"),
    ]
    _stage(sheet, 0, "Stage 1: W learns to tell the decoder what the tower sees", picture, first, False)
    _stage(sheet, 320, "Stage 2: W and the decoder learn to answer", picture, second, True)
    return sheet.finished()


def _stage(
    sheet: Sheet, top: int, title: str, picture: Image.Image, row: list[tuple[str, str]], decoder_learns: bool
) -> None:
    """One panel, ``top`` pixels from the top. ``row`` is the decoder's input in order: (a key of KINDS, text)."""
    see, read, middle = top + 125, top + 245, top + 180  # y of the picture's arrows, the words', the decoder's
    sheet.text(20, top + 24, title, 17, anchor="lm")
    sheet.picture(20, see - 40, picture, 80, 80)
    for line, text in enumerate(textwrap.wrap(" ".join(text for _, text in row), 32)):
        sheet.text(20, read - 26 + 17 * line, text, 13, anchor="lm")
    _part(sheet, (185, see - 26, 275, see + 26), "vision tower", learns=False)
    _part(sheet, (345, see - 26, 435, see + 26), "W", learns=True)
    _part(sheet, (345, read - 26, 435, read + 26), "embedding", learns=decoder_learns)
    _part(sheet, (620, top + 80, 745, top + 280), "decoder", learns=decoder_learns)
    _flow(sheet, 104, 185, see, "X_v", "3 x 64 x 64")
    _flow(sheet, 275, 345, see, "Z_v", "64 x 128")
    _flow(sheet, 240, 345, read, "ids", "T")
    sheet.formula(454, see - 14, "H_v")
    sheet.formula(454, read - 14, "H_q")

    cells = [kind for kind, text in row for _ in range(_cells(kind, text))]
    height, start = 12, middle - 6 * len(cells)
    for place, (kind, follows) in enumerate(zip(cells, [*cells[1:], "words"])):
        y = start + height * place
        sheet.box(530, y, 550, y + height, KINDS[kind])
        sheet.box(800, y, 820, y + height, GREEN if follows == "answer" else None)  # the target is the next token
    y = start
    for kind, text in row:
        half = height * _cells(kind, text) / 2
        come, x, line = (see, 495, SEEN) if kind == "picture" else (read, 475, READ)
        sheet.arrow((435, come), (x, come), (x, y + half), (526, y + half), colour=line)
        y += 2 * half
    answer = y - height - half
    _flow(sheet, 556, 620, middle, "", "T x 160")
    _flow(sheet, 745, 798, middle, "", "T x V")
    _flow(sheet, 824, 865, answer)
    sheet.text(872, answer - 9, "-log p(answer),", 13, anchor="lm")
    sheet.text(872, answer + 9, "the only loss", 13, anchor="lm")
    sheet.arrow((920, answer - 20), (920, top + 56), (390, top + 56), (390, see - 28), colour=RED)
    if decoder_learns:
        sheet.arrow((682, top + 56), (682, top + 78), colour=RED)
    through = "gradient" if decoder_learns else "gradient, through the decoder, which stays as it is"
    sheet.text(645, top + 46, through, 13, RED)


def _cells(kind: str, text: str) -> int:
    """How many cells of the drawn row represent a part."""
    return 8 if kind == "picture" else 2 + len(text) // 14


def _part(sheet: Sheet, corners: tuple[float, float, float, float], name: str, learns: bool) -> None:
    x1, y1, x2, y2 = corners
    sheet.box(*corners, ORANGE if learns else FAINT)
    sheet.text((x1 + x2) / 2, (y1 + y2) / 2 - 9, name)
    sheet.text((x1 + x2) / 2, (y1 + y2) / 2 + 9, "learns" if learns else "frozen", 13)


def _flow(sheet: Sheet, x1: float, x2: float, y: float, name: str = "", shape: str = "") -> None:
    sheet.arrow((x1, y), (x2, y))
    sheet.formula((x1 + x2) / 2 - 4, y - 14, name)
    sheet.text((x1 + x2) / 2 - 4, y + 13, shape, 13)


def merges() -> Image.Image:
    """One sentence cut into tokens after 0, 20, 60, 150 and all merges of the shipped tokenizer."""
    text = "Is the small orange bird on the left of the boat? No, above it."
    stored = json.loads((PRETRAINED / "decoder" / "tokenizer.json").read_text(encoding="utf-8"))["model"]["merges"]
    learnt = [(to_bytes(left), to_bytes(right)) for left, right in stored]
    counts = [0, 20, 60, 150, len(learnt)]
    sheet, done = Sheet(1000, 30 + 44 * len(counts)), 0
    sheet.text(20, 18, "merges", 13, GREY, anchor="lm")
    sheet.text(980, 18, "tokens", 13, GREY, anchor="rm")
    pieces = [bytes([byte]) for byte in text.encode()]
    for line, count in enumerate(counts):
        for pair in learnt[done:count]:
            _join(pieces, pair)
        done, x, y = count, 75.0, 34 + 44 * line
        sheet.text(20, y + 14, str(count), anchor="lm")
        sheet.text(980, y + 14, str(len(pieces)), anchor="rm")
        for place, piece in enumerate(pieces):
            shown = piece.decode()
            width = text_width(shown, 15) + 5
            sheet.box(x, y, x + width, y + 28, (BLUE, GREEN, ORANGE, VIOLET)[place % 4], None)
            sheet.text(x + width / 2, y + 14, shown, 15)
            x += width + 1
    return sheet.finished()


def fitted() -> Image.Image:
    """A wide picture, and what the tower gets of it: its middle, all of it on a square, or all of it squeezed."""
    picture, clip = wide_picture(), ImageProcessor.for_size(64)
    x1, _, x2, _ = clip.window(*picture.size)  # what the crop keeps
    sheet = Sheet(1000, 216)
    sheet.picture(20, 33, picture, 390, 130)
    sheet.box(20 + 390 * x1, 33, 20 + 390 * x2, 163, None, RED)
    sheet.text(215, 197, "960 x 320")
    stretch = replace(clip, size={"height": 64, "width": 64})
    for place, (name, processor) in enumerate(
        {"crop": clip, "pad": clip.fitting("pad", 64), "stretch": stretch}.items()
    ):
        sheet.picture(450 + 185 * place, 15, processor.view(picture), 165, 165)
        sheet.text(532 + 185 * place, 197, f"{name}: 64 x 64")
    sheet.arrow((415, 98), (442, 98))
    return sheet.finished()


def patches() -> Image.Image:
    """A picture, its 64 patches, and the tower's 65 embeddings: the class token and one for each patch."""
    _, picture = drawn(3)
    model = load(PRETRAINED / "llava")
    with torch.no_grad():
        vectors = model.vision_tower.embeddings(model.processor.image(picture)[None])[0]  # (65, hidden)
    sheet = Sheet(1000, 340)
    sheet.picture(20, 40, picture, 256, 256)
    for index, patch in enumerate(cut(picture)):
        row, column = divmod(index, 8)
        sheet.picture(320 + 34 * column, 33 + 34 * row, patch, 30, 30)
    sheet.arrow((282, 168), (312, 168))
    sheet.arrow((596, 168), (626, 168))
    sheet.table(640, 40, vectors.T.tolist(), 325, 256, vectors.abs().max().item() / 2)
    for x, words in ((148, "X_v: 3 x 64 x 64"), (454, "64 patches of 8 x 8 pixels"), (802, "65 vectors of 128")):
        sheet.text(x, 316, words)
    sheet.text(640, 26, "class token", 13, anchor="lm")
    sheet.text(965, 26, "patch 64", 13, anchor="rm")
    return sheet.finished()


def positions() -> Image.Image:
    """For each of the 64 patches, the cosine similarity of its position embedding with those of all patches."""
    clip, _ = load_clip(PRETRAINED / "vision")
    places = F.normalize(clip.vision_model.embeddings.position_embedding.weight[1:], dim=-1)  # without the class token
    like = places @ places.T
    sheet = Sheet(640, 660)
    for index in range(64):
        row, column = divmod(index, 8)
        sheet.table(16 + 77 * column, 16 + 77 * row, like[index].view(8, 8).tolist(), 69, 69, 1.0)
    _scale(sheet, 200, 640, "cosine")
    return sheet.finished()


def contrast() -> Image.Image:
    """Cosine similarities of eight pictures and eight captions, with untrained towers and with trained ones."""
    pairs = [drawn(seed) for seed in range(8)]
    trained, processor = load_clip(PRETRAINED / "vision")
    torch.manual_seed(0)
    fresh = Clip(trained.vision_model.config, trained.text_model.config)
    initialise(fresh)
    pictures = torch.stack([processor.image(picture) for _, picture in pairs])
    texts = [captions(scene)[3] for scene, _ in pairs]
    end = processor.tokenizer.eos_id
    ids = pad([[*processor.tokenizer.encode(text), end] for text in texts], end)
    sheet = Sheet(1000, 390)
    for x, cell, title, clip in ((45, 24, "before training", fresh), (310, 38, "after training", trained)):
        none = torch.empty(0, dtype=torch.long)
        with torch.no_grad():
            like = clip.image_features(pictures, none, none)[0] @ clip.text_features(ids).T  # (8 pictures, 8 texts)
        sheet.text(x + 4 * cell, 20, title, 16)
        sheet.table(x, 56, like.tolist(), 8 * cell, 8 * cell, 1.0)
        for place, (_, picture) in enumerate(pairs):
            sheet.picture(x - cell - 2, 58 + cell * place, picture, cell - 4, cell - 4)
            sheet.text(x + cell * (place + 0.5), 44, "abcdefgh"[place], 13)
    for place, text in enumerate(texts):
        lines = textwrap.wrap(f"{'abcdefgh'[place]}: {text}", 50)
        for line, words in enumerate(lines):
            sheet.text(635, 75 + 38 * place + 16 * (line - (len(lines) - 1) / 2), words, 13, anchor="lm")
    _scale(sheet, 382, 376, "cosine")
    return sheet.finished()


def _scale(sheet: Sheet, x: float, y: float, name: str) -> None:
    """A bar with the colours of a table's values from -1 to 1."""
    sheet.table(x, y - 6, [[step / 20 for step in range(-20, 21)]], 160, 12, 1.0)
    sheet.text(x - 8, y, f"{name}  -1", 13, anchor="rm")
    sheet.text(x + 168, y, "1", 13, anchor="lm")


def regions() -> Image.Image:
    """The cosine similarity of each patch of a picture with the phrase for each thing in it."""
    scene, picture = drawn(SEVERAL)
    clip, processor = load_clip(PRETRAINED / "vision")
    pixel_values = processor.image(picture)[None]
    phrases = [region(thing) for thing in scene.things]
    end = processor.tokenizer.eos_id
    ids = pad([[*processor.tokenizer.encode(phrase), end] for phrase in phrases], end)
    with torch.no_grad():
        _, seen = clip.image_features(pixel_values, torch.zeros(64, dtype=torch.long), torch.arange(64))
        like = clip.text_features(ids) @ seen.T  # (phrases, 64)
    side = 180
    sheet = Sheet((side + 16) * (1 + len(phrases)) + 16, side + 100)
    sheet.picture(16, 16, picture, side, side)
    for place, phrase in enumerate(phrases):
        x = 16 + (side + 16) * (place + 1)
        sheet.table(x, 16, like[place].view(8, 8).tolist(), side, side, 1.0)
        for line, words in enumerate(textwrap.wrap(phrase, 26)):
            sheet.text(x + side / 2, side + 30 + 16 * line, words, 13)
    _scale(sheet, 420, side + 80, "cosine")
    return sheet.finished()


def splice() -> Image.Image:
    """The decoder's input for a question, token by token; each of the 64 visual tokens is shown as its patch."""
    scene, picture = drawn(3)
    question, _ = ask("colour", scene, random.Random(0))
    model = load(PRETRAINED / "llava")
    ids, _ = encode_conversation([{"from": "human", "value": f"<image>\n{question}"}], model.processor.tokenizer)
    sheet = Sheet(1000, 206)
    x, y, seen = 20.0, 20, cut(picture)
    for index in ids:
        is_picture = index == model.config.image_token_id
        shown = model.processor.tokenizer.decode([index]).replace("\n", "\\n")
        width = 28 if is_picture else text_width(shown) + 8
        if x + width > 980:
            x, y = 20.0, y + 36
        sheet.box(x, y, x + width, y + 30, VIOLET if is_picture else BLUE)
        if is_picture:
            sheet.picture(x + 3, y + 4, seen.pop(0), 22, 22)
        else:
            sheet.text(x + width / 2, y + 15, shown)
        x += width + 2
    for x, colour, name in ((20, BLUE, "a token of text"), (170, VIOLET, "a visual token, shown as its patch")):
        sheet.box(x, 178, x + 22, 194, colour)
        sheet.text(x + 29, 186, name, 13, anchor="lm")
    return sheet.finished()


def nearest_words() -> Image.Image:
    """A picture, and for each of its visual tokens H_v the word whose embedding has the highest cosine with it."""
    _, picture = drawn(SEVERAL)
    model = load(PRETRAINED / "llava")
    texts = [model.processor.tokenizer.decode([index]) for index in range(model.processor.tokenizer.vocab_size)]
    words = [index for index, text in enumerate(texts) if re.fullmatch(" [a-z]+", text)]
    table = F.normalize(model.language_model.embed_tokens.weight[words], dim=-1)
    with torch.no_grad():
        visual = model.encode_images(model.processor.image(picture)[None])[0]  # (64, hidden)
        like = F.normalize(visual, dim=-1) @ table.T  # (64, words)
    sheet = Sheet(1000, 480)
    sheet.text(20, 22, "the picture", 15, anchor="lm")
    sheet.text(420, 22, "for the visual token of each patch: the word whose row of E is nearest to it", 15, anchor="lm")
    sheet.picture(20, 44, picture, 380, 380)
    _scale(sheet, 620, 456, "cosine")
    for index, (value, nearest) in enumerate(zip(*like.max(dim=-1))):
        row, column = divmod(index, 8)
        x, y = 420 + 70 * column, 44 + 47.5 * row
        sheet.box(x, y, x + 68, y + 45, shade(value.item()), None)
        sheet.text(x + 34, y + 22, texts[words[nearest]].strip(), 13)
    return sheet.finished()


FIGURES = (whole, merges, fitted, patches, positions, contrast, regions, splice, nearest_words)
