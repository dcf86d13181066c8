"""The figures of lessons 6, 8 and 10 to 13: RoPE, the KV cache, loss and causal mask, padding and packing, the stages'
losses, attention."""

import itertools
import random
import time
from dataclasses import replace

import torch
from PIL import Image

from data.picturebook import language
from data.picturebook.talk import LENGTH, ask, conversation
from data.requests import BRIEF_REQUESTS
from data.rows import conversation as as_turns
from lessons.sheet import BLUE, GREEN, GREY, INK, VIOLET, Colour, Sheet, text_width
from lessons.small_world import (
    captions,
    conversations,
    drawn_scenes,
    fitted_projection,
    joined_towers,
    short_training,
)
from minillava.checkpoint import load
from minillava.config import PRETRAINED, DecoderConfig
from minillava.inputs.conversation import IGNORE, encode_conversation
from minillava.inputs.conversations import share_rows
from minillava.inputs.templates import TEMPLATES
from minillava.inputs.tokenizer import Tokenizer
from minillava.look import run_model, still
from minillava.model.attention import CLOSED, causal_mask
from minillava.model.decoder import Decoder, KVCache, rope_frequencies, rope_tables, rotate
from minillava.training.plot import Line, chart
from minillava.training.recipes import TOY

DEEP_BLUE, DEEP_GREEN, RED = (40, 90, 200), (30, 140, 70), (200, 60, 60)
TALK = [
    {"from": "human", "value": "<image>\nWhat colour is the fish?"},
    {"from": "gpt", "value": "The fish is red."},
    {"from": "human", "value": "Is there a boat?"},
    {"from": "gpt", "value": "No, there is no boat in the picture."},
]


def rope_rotations() -> Image.Image:
    """Three pairs of a query at positions 0 to 7, and the product of a query with an equal key against the distance."""
    config = DecoderConfig()
    frequencies = rope_frequencies(config)
    sheet = Sheet(1000, 300)
    for place, pair in enumerate((0, 3, 6)):
        x, y, radius = 110 + 200 * place, 165, 70
        sheet.text(x, 30, f"pair {pair}", 14)
        sheet.text(x, 50, f"{frequencies[pair]:.2g} rad a step", 12)
        query = torch.zeros(1, 1, 8, config.head_dim)
        query[..., pair] = 1.0
        turned = rotate(query, *rope_tables(torch.arange(8)[None], frequencies))[0, 0]
        for position in range(8):
            a, b = turned[position, pair].item(), turned[position, pair + config.head_dim // 2].item()
            colour = tuple(round(225 + (c - 225) * (position + 2) / 9) for c in DEEP_BLUE)
            sheet.line((x, y), (x + radius * a, y - radius * b), colour=colour, width=2)
            if position in (0, 7) or frequencies[pair] > 0.1:  # else the numbers would overlap
                sheet.text(x + (radius + 12) * a, y - (radius + 12) * b, str(position), 11)
    query, distances = torch.ones(1, 1, 1, config.head_dim), torch.arange(201)
    moved = rotate(query.expand(1, 1, 201, -1), *rope_tables(distances[None], frequencies))
    products = (moved * query).sum(dim=-1)[0, 0]
    line = ("every pair is (1, 1)", DEEP_BLUE, distances.tolist(), products.tolist())
    sheet.picture(640, 15, chart("A query times a key like it", "distance in tokens", [line], (350, 275)), 350, 275)
    return sheet.finished()


@torch.no_grad()
def kv_cache() -> Image.Image:
    """What one more token costs: milliseconds with the cache and without, measured here, and the cache's memory."""
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig()).eval()
    lengths = list(range(64, 1025, 96))
    embeddings = torch.randn(1, lengths[-1], decoder.config.hidden_size)
    cache = KVCache(decoder.config, 1, lengths[-1], torch.float32, torch.device("cpu"))

    def milliseconds(length: int, kept: KVCache | None) -> float:
        """The time of the token after ``length - 1`` others: the shortest of five measurements."""
        took = []
        for _ in range(5):
            start = time.perf_counter()
            if kept is None:
                decoder(embeddings[:, :length])
            else:
                kept.length = length - 1
                decoder(embeddings[:, length - 1 : length], cache=kept)
            took.append(time.perf_counter() - start)
        return min(took) * 1000

    size, sheet = (490, 340), Sheet(1000, 340)
    times = [
        ("without the cache: all tokens again", RED, lengths, [milliseconds(n, None) for n in lengths]),
        ("with it: the new token only", DEEP_BLUE, lengths, [milliseconds(n, cache) for n in lengths]),
    ]
    took = chart("Milliseconds for one more token, the shipped sizes", "tokens so far", times, size)
    sheet.picture(0, 0, took, *size)
    sizes, tokens = [], [0, 8192]
    for heads, colour in ((32, RED), (8, DEEP_BLUE), (1, DEEP_GREEN)):
        config = DecoderConfig(num_hidden_layers=32, num_key_value_heads=heads, head_dim=128)
        one = KVCache(config, 1, 1, torch.float16, torch.device("meta")).store.nbytes
        name = f"{heads} key head{'s' if heads > 1 else ''}"
        sizes.append((name, colour, tokens, [n * one / 2**30 for n in tokens]))
    held = chart("GiB of cache: 32 layers, heads of 128, float16", "tokens so far", sizes, size)
    sheet.picture(500, 0, held, *size)
    return sheet.finished()


def loss_tokens() -> Image.Image:
    """A conversation as tokens: those that are targets of the loss in green, the picture violet, the others blue."""
    tokenizer = Tokenizer.from_pretrained(PRETRAINED / "llava")
    ids, labels = encode_conversation(TALK, tokenizer, num_image_tokens=6)
    sheet, x, y = Sheet(1000, 330), 20.0, 20.0
    for index, label in zip(ids, labels):
        text = tokenizer.decode([index])
        shown = _shown(tokenizer, index)
        width = text_width(shown) + 10
        if x + width > 980:
            x, y = 20.0, y + 30
        sheet.box(x, y, x + width, y + 24, _colour(index, label, tokenizer), None)
        sheet.text(x + width / 2, y + 12, shown)
        x += width + 4
        if text.endswith("\n"):
            x, y = 20.0, y + 30
    for place, (colour, name) in enumerate(((GREEN, "has loss"), (VIOLET, "picture"), (BLUE, "read only"))):
        sheet.box(20 + 150 * place, 295, 44 + 150 * place, 315, colour, None)
        sheet.text(52 + 150 * place, 305, name, anchor="lm")
    return sheet.finished()


def _colour(index: int, label: int, tokenizer: Tokenizer) -> Colour:
    if label != IGNORE:
        return GREEN
    return VIOLET if index == tokenizer.image_id else BLUE


def mask_of_a_row() -> Image.Image:
    """The causal mask of a row with a picture, and the targets of the positions that have loss."""
    tokenizer = Tokenizer.from_pretrained(PRETRAINED / "llava")
    ids, labels = encode_conversation(TALK[:2], tokenizer, TEMPLATES["brief"], num_image_tokens=9)
    is_open = (causal_mask(len(ids)) > CLOSED).tolist()
    cell = 18
    side = cell * len(ids)
    sheet = Sheet(side + 400, side + 60)
    left, top = 150, 40
    sheet.text(left + side / 2, 20, "is seen", 13)
    sheet.text(left - 10, 20, "sees", 13, anchor="rm")
    sheet.text(left + side + 20, 20, "and predicts", 13, anchor="lm")
    for row, index in enumerate(ids):
        y = top + cell * row
        sheet.text(left - 10, y + cell / 2, _shown(tokenizer, index), 12, anchor="rm")
        for column in range(len(ids)):
            colour = _colour(ids[column], labels[column], tokenizer) if is_open[row][column] else (247, 247, 249)
            x = left + cell * column
            sheet.box(x + 1, y + 1, x + cell - 1, y + cell - 1, colour, None)
        if row + 1 < len(ids) and labels[row + 1] != IGNORE:
            shown = _shown(tokenizer, ids[row + 1])
            sheet.box(left + side + 16, y + 1, left + side + 28 + text_width(shown, 12), y + cell - 1, GREEN, None)
            sheet.text(left + side + 22, y + cell / 2, shown, 12, anchor="lm")
    return sheet.finished()


def padding_and_packing() -> Image.Image:
    """Captions and conversations as bars: all in one tensor, in two of similar lengths, and packed."""
    processor, scenes, rows = load(PRETRAINED / "llava").processor, drawn_scenes(16, seed=10)[0], []
    for scene in scenes[:8]:
        caption = [(BRIEF_REQUESTS[0], language.captions(scene)[0])]
        rows += [processor.for_captions().encode(as_turns(caption))]
        rows += [processor.encode(as_turns(conversation(scene, random.Random(0), LENGTH)))]
    lengths = [len(ids) for ids, _ in rows]
    places, ordered = range(len(rows)), sorted(range(len(rows)), key=lengths.__getitem__)
    panels = {
        "one tensor": [[[place] for place in places]],
        "two tensors, sorted": [[[place] for place in half] for half in (ordered[:8], ordered[8:])],
        "one tensor, packed": [share_rows(lengths)],
    }
    sheet, left = Sheet(870, 340), 16
    for name, tensors in panels.items():
        y, positions = 48, 0
        for tensor in tensors:
            width = max(sum(lengths[place] for place in row) for row in tensor)
            positions += width * len(tensor)
            for row in tensor:
                sheet.line((left, y), (left + width, y), colour=GREY, width=12)
                x, ends = left, []
                for place in row:
                    colours = [_colour(index, label, processor.tokenizer) for index, label in zip(*rows[place])]
                    for colour, run in itertools.groupby(colours):
                        end = x + len(list(run))
                        sheet.line((x, y), (end, y), colour=colour, width=12)
                        x = end
                    ends.append(x)
                for end in ends:
                    sheet.line((end, y - 6), (end, y + 6), colour=INK, width=2)
                y += 15
            y += 10
        sheet.text(left, 22, f"{name}: {1 - sum(lengths) / positions:.0%} padding", anchor="lm")
        left += max(lengths) + 30
    for place, (colour, name) in enumerate(
        ((VIOLET, "picture"), (BLUE, "read only"), (GREEN, "has loss"), (GREY, "padding"))
    ):
        sheet.box(16 + 150 * place, 312, 40 + 150 * place, 330, colour, None)
        sheet.text(48 + 150 * place, 321, name, anchor="lm")
    return sheet.finished()


def stage_1() -> Image.Image:
    """The loss of stage 1, in which only W learns, over sixty steps at three learning rates."""
    towers = joined_towers()
    batches = [captions(towers, 16, seed) for seed in range(60)]
    lines = []
    for rate, colour in ((5e-3, DEEP_BLUE), (5e-4, DEEP_GREEN), (2e-5, RED)):
        model = joined_towers()
        recipe = replace(TOY["stage1"], learning_rate=rate)
        losses = short_training(model, [model.multi_modal_projector], batches, recipe, len(batches))
        lines.append((f"rate {rate:g}", colour, range(1, 61), losses))
    return _chart_alone("Stage 1: nats per token of the caption", "step, 16 captions each", lines)


def stage_2() -> Image.Image:
    """The loss of stage 2, in which W and the decoder learn, over forty steps from a fitted W and from a random one."""
    towers = joined_towers()
    batches = [conversations(towers, 8, seed) for seed in range(40)]
    lines = []
    for name, colour in (("after a fitted W", DEEP_BLUE), ("from a fresh W", RED)):
        model = joined_towers()
        if colour == DEEP_BLUE:
            model.multi_modal_projector = fitted_projection(model, *drawn_scenes(300, seed=2000))
        parts = [model.multi_modal_projector, model.language_model]
        lines.append((name, colour, range(1, 41), short_training(model, parts, batches, TOY["stage2"], len(batches))))
    return _chart_alone("Stage 2: nats per token of the answers", "step, 8 conversations each", lines)


def _chart_alone(title: str, across: str, lines: list[Line]) -> Image.Image:
    sheet = Sheet(700, 360)
    sheet.picture(0, 0, chart(title, across, lines, sheet.size), *sheet.size)
    return sheet.finished()


def looking() -> Image.Image:
    """Two pictures, a question about each; for each token of the answer where the model looked, and what mattered."""
    model = load(PRETRAINED / "llava")
    bright = [(s, p) for s, p in zip(*drawn_scenes(40, seed=5)) if s.setting == "meadow" and len(s.things) > 2]
    questions = [ask("position", scene, random.Random(0))[0] for scene, _ in bright[:2]]
    stills = [still(run_model(model, picture, question)) for (_, picture), question in zip(bright, questions)]
    sheet, y = Sheet(8 + max(shown.width for shown in stills), sum(40 + shown.height for shown in stills)), 0
    for question, shown in zip(questions, stills):
        sheet.text(12, y + 20, question, 16, anchor="lm")
        sheet.picture(4, y + 36, shown, *shown.size)
        y += 40 + shown.height
    return sheet.finished()


def _shown(tokenizer: Tokenizer, index: int) -> str:
    """A token's text with visible spaces and new lines."""
    return tokenizer.decode([index]).replace(" ", "·").replace("\n", "\\n")


FIGURES = (rope_rotations, kv_cache, loss_tokens, mask_of_a_row, padding_and_packing, stage_1, stage_2, looking)
