"""The figures of lessons 6, 8 and 10 to 13: RoPE, the KV cache, loss and causal mask, padding and packing, the stages'
losses, attention."""

import itertools
import random
from dataclasses import replace

import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from data.picturebook import language
from data.picturebook.talk import LENGTH, ask, conversation
from data.requests import BRIEF_REQUESTS
from data.rows import conversation as as_turns
from lessons.sheet import BLUE, GREEN, INK, RED, VIOLET, WARM, Colour, Sheet, text_width
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
from minillava.look import occlusion, paint, regions, relevancy, run_model
from minillava.model.attention import CLOSED, causal_mask
from minillava.model.decoder import Decoder, KVCache, rope_frequencies, rope_tables, rotate
from minillava.training.plot import Line, chart, running_mean
from minillava.training.recipes import TOY

DEEP_BLUE, AMBER = (40, 90, 200), (225, 155, 20)
PADDING = (165, 165, 172)
ASKED = (29, 35)  # of forty scenes in looking(): of a house and of a car, which the model finds
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
        sheet.text(x, 28, f"pair {pair}", 15)
        sheet.formula(x, 52, f"omega_{pair} = {frequencies[pair]:.2g}", 15)
        query = torch.zeros(1, 1, 8, config.head_dim)
        query[..., pair] = 1.0
        turned = rotate(query, *rope_tables(torch.arange(8)[None], frequencies))[0, 0]
        for position in range(8):
            a, b = turned[position, pair].item(), turned[position, pair + config.head_dim // 2].item()
            colour = tuple(round(225 + (c - 225) * (position + 2) / 9) for c in DEEP_BLUE)
            sheet.line((x, y), (x + radius * a, y - radius * b), colour=colour, width=2)
            if position in (0, 7) or frequencies[pair] > 0.1:  # else the numbers would overlap
                sheet.text(x + (radius + 12) * a, y - (radius + 12) * b, str(position), 13)
    query, distances = torch.ones(1, 1, 1, config.head_dim), torch.arange(201)
    moved = rotate(query.expand(1, 1, 201, -1), *rope_tables(distances[None], frequencies))
    products = (moved * query).sum(dim=-1)[0, 0]
    line = ("every pair is (1, 1)", DEEP_BLUE, distances.tolist(), products.tolist())
    sheet.picture(640, 15, chart("A query times a key like it", "distance in tokens", [line], (350, 275)), 350, 275)
    return sheet.finished()


@torch.no_grad()
def kv_cache() -> Image.Image:
    """What one more token costs: the operations with the cache and without, and the cache's memory."""
    meta = torch.device("meta")
    decoder = Decoder(DecoderConfig()).to(meta)

    def operations(length: int, past: int) -> float:
        """Millions of multiplications and additions in matrix products, for the logits of token number ``length``."""
        cache = KVCache(decoder.config, 1, length, torch.float32, meta)
        cache.length = past
        embeddings = torch.empty(1, length - past, decoder.config.hidden_size, device=meta)
        with FlopCounterMode(display=False) as counter:
            decoder.lm_head(decoder(embeddings, cache=cache)[:, -1])
        return counter.get_total_flops() / 1e6

    size, sheet, lengths = (490, 340), Sheet(1000, 340), [16, 64, 128, 256, 512, 768, 1024]
    costs = [
        ("without the cache: all tokens again", RED, lengths, [operations(n, 0) for n in lengths]),
        ("with it: the new token only", DEEP_BLUE, lengths, [operations(n, n - 1) for n in lengths]),
    ]
    title = "Million operations for one more token, shipped sizes"
    sheet.picture(0, 0, chart(title, "tokens so far", costs, size, logarithmic="y"), *size)
    sizes, tokens = [], [0, 8192]
    for heads, colour in ((32, RED), (8, DEEP_BLUE), (1, AMBER)):
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
    sheet, x, y = Sheet(1000, 290), 20.0, 20.0
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
    _legend(sheet, 20, 266)
    return sheet.finished()


def _legend(sheet: Sheet, x: float, y: float) -> None:
    for colour, name in ((VIOLET, "visual token"), (BLUE, "is read only"), (GREEN, "has a loss")):
        sheet.box(x, y - 9, x + 24, y + 9, colour, None)
        sheet.text(x + 32, y, name, anchor="lm")
        x += 150


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
    sheet = Sheet(side + 300, side + 90)
    left, top = 150, 40
    sheet.text(left + side / 2, 20, "is seen", 13)
    sheet.text(left - 10, 20, "sees", 13, anchor="rm")
    sheet.text(left + side + 20, 20, "and predicts", 13, anchor="lm")
    for row, index in enumerate(ids):
        y = top + cell * row
        sheet.text(left - 10, y + cell / 2, _shown(tokenizer, index), 13, anchor="rm")
        for column in range(len(ids)):
            colour = _colour(ids[column], labels[column], tokenizer) if is_open[row][column] else (247, 247, 249)
            x = left + cell * column
            sheet.box(x + 1, y + 1, x + cell - 1, y + cell - 1, colour, None)
        if row + 1 < len(ids) and labels[row + 1] != IGNORE:
            shown = _shown(tokenizer, ids[row + 1])
            sheet.box(left + side + 16, y + 1, left + side + 28 + text_width(shown, 13), y + cell - 1, GREEN, None)
            sheet.text(left + side + 22, y + cell / 2, shown, 13, anchor="lm")
    _legend(sheet, left, top + side + 26)
    return sheet.finished()


def padding_and_packing() -> Image.Image:
    """Captions and conversations as bars: all in one tensor, in two of similar lengths, and packed."""
    processor, scenes, rows = load(PRETRAINED / "llava").processor, drawn_scenes(8, seed=10)[0], []
    for scene in scenes:
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
                sheet.line((left, y), (left + width, y), colour=PADDING, width=12)
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
    _legend(sheet, 16, 321)
    sheet.box(466, 312, 490, 330, PADDING, None)
    sheet.text(498, 321, "padding", anchor="lm")
    return sheet.finished()


def stage_1() -> Image.Image:
    """The loss of stage 1, in which only W learns, over sixty steps at three learning rates."""
    towers = joined_towers()
    batches = [captions(towers, 16, seed) for seed in range(60)]
    lines = []
    for rate, colour in ((5e-3, DEEP_BLUE), (5e-4, AMBER), (2e-5, RED)):
        model = joined_towers()
        recipe = replace(TOY["stage1"], learning_rate=rate)
        losses = short_training(model, [model.multi_modal_projector], batches, recipe, len(batches))
        lines.append((f"rate {rate:.0e}".replace("e-0", "e-"), colour, range(1, 61), losses))
    return _chart_alone("Stage 1: nats per token of the caption", "step, 16 captions each", lines)


def stage_2() -> Image.Image:
    """The loss of stage 2, in which W and the decoder learn, over forty steps from a fitted W and from a random one."""
    towers = joined_towers()
    batches = [conversations(towers, 32, seed) for seed in range(40)]
    lines = []
    for name, colour in (("from a fitted W", DEEP_BLUE), ("from a random W", RED)):
        model = joined_towers()
        if colour == DEEP_BLUE:
            model.multi_modal_projector = fitted_projection(model, *drawn_scenes(300, seed=2000))
        parts = [model.multi_modal_projector, model.language_model]
        losses = short_training(model, parts, batches, TOY["stage2"], len(batches))
        lines.append((name, colour, range(1, 41), running_mean(losses, 4)))
    title = "Stage 2: nats per token of the answers, running mean of nine steps"
    return _chart_alone(title, "step, 32 conversations each", lines)


def _chart_alone(title: str, across: str, lines: list[Line]) -> Image.Image:
    sheet = Sheet(700, 360)
    sheet.picture(0, 0, chart(title, across, lines, sheet.size), *sheet.size)
    return sheet.finished()


def looking() -> Image.Image:
    """Two questions that the model answers; for each token of the answer where it looked, and what mattered."""
    model, (scenes, pictures) = load(PRETRAINED / "llava"), drawn_scenes(40, seed=5)
    sheet, side = Sheet(1000, 560), 8
    for number, index in enumerate(ASKED):
        question, top = ask("position", scenes[index], random.Random(0))[0], 250 * number
        run, picture = run_model(model, pictures[index], question), pictures[index]
        looks = relevancy(run)[:, run.ids == model.config.image_token_id].view(-1, side, side)
        falls = occlusion(run, paint(run, regions(side, side))).clamp(min=0).T.reshape(-1, side, side)
        sheet.text(20, top + 24, question, 16, anchor="lm")
        sheet.picture(20, top + 74, picture, 128, 128)
        for line, name in enumerate(("looked", "mattered")):
            sheet.text(238, top + 98 + 80 * line, name, 14, anchor="rm")
        for place, (token, *maps) in enumerate(zip(run.answer.tolist(), looks, falls)):
            x = 250 + 80 * place
            sheet.text(x + 36, top + 48, model.processor.tokenizer.decode([token]).strip(), 14)
            for line, values in enumerate(maps):
                sheet.picture(x, top + 62 + 80 * line, _heat(picture, values), 72, 72)
    sheet.text(20, 514, "looked: attention times its gradient", 14, anchor="lm")
    sheet.text(20, 536, "mattered: how far log p of the token falls when the patch is covered", 14, anchor="lm")
    sheet.table(620, 506, [[step / 20 for step in range(21)]], 160, 16, 1.0)
    sheet.text(612, 514, "0", 14, anchor="rm")
    sheet.text(788, 514, "the map's highest value", 14, anchor="lm")
    return sheet.finished()


def _heat(picture: Image.Image, values: torch.Tensor) -> Image.Image:
    """The picture in pale grey, and red over it where ``values`` (side, side) are high."""
    pale = Image.blend(picture.convert("L").convert("RGB"), Image.new("RGB", picture.size, "white"), 0.6)
    share = (230 * values / values.max()).byte().numpy()
    mask = Image.fromarray(share).resize(picture.size, Image.Resampling.NEAREST)
    return Image.composite(Image.new("RGB", picture.size, WARM), pale, mask)


def _shown(tokenizer: Tokenizer, index: int) -> str:
    """A token's text with visible spaces and new lines."""
    return tokenizer.decode([index]).replace(" ", "·").replace("\n", "\\n")


FIGURES = (rope_rotations, kv_cache, loss_tokens, mask_of_a_row, padding_and_packing, stage_1, stage_2, looking)
