"""``python tests/cards.py --out DIR``: pictures of two playing cards on a table, captions, questions and answers.

A second world, to show that a model learns from any folder of pictures. It shares no code with the picture-book and
imports nothing of this repository. It writes

DIR/0000.png ...   pictures of several sizes, with two cards of a pack of 24 side by side
DIR/captions.csv   image, caption: five captions of each training picture
DIR/instruct.json  LLaVA JSON: four conversations of two questions about each training picture
DIR/heldout.json   LLaVA JSON: one question a row, about pictures of pairs of cards that no training picture shows
"""

import argparse
import csv
import json
import math
import random
from itertools import combinations
from pathlib import Path

from PIL import Image, ImageDraw

RANKS = ("nine", "ten", "jack", "queen", "king", "ace")  # from the lowest to the highest
SUITS = ("hearts", "diamonds", "spades", "clubs")
RED, BLACK = (205, 20, 35), (20, 20, 25)
TABLES = ((30, 95, 60), (95, 60, 35), (60, 70, 105), (120, 120, 110), (85, 35, 45))
MOST = 2000  # pictures
HELDOUT = 8  # one pair in so many
# Conversations about a picture, and questions in each. In a long conversation about two cards the later answers follow
# from the earlier ones, so nobody would have to look at the picture.
TALKS, TURNS = 4, 2

Card = tuple[str, str]  # rank, suit
Turn = tuple[str, str, str]  # type, question, answer

# Strokes of each rank's sign, as corners of lines in a unit square; y points down.
STROKES = {
    "nine": [[(0.9, 0.32), (0.7, 0.05), (0.3, 0.05), (0.1, 0.32), (0.3, 0.58), (0.9, 0.5)],
             [(0.9, 0.2), (0.9, 0.6), (0.65, 1), (0.2, 1)]],
    "ten": [[(0.1, 0), (0.1, 1)], [(0.45, 0), (0.95, 0), (0.95, 1), (0.45, 1), (0.45, 0)]],
    "jack": [[(0.35, 0), (0.95, 0)], [(0.7, 0), (0.7, 0.75), (0.5, 1), (0.2, 1), (0.05, 0.7)]],
    "queen": [[(0.3, 0), (0.7, 0), (0.95, 0.3), (0.95, 0.65), (0.7, 0.95), (0.3, 0.95), (0.05, 0.65), (0.05, 0.3),
               (0.3, 0)], [(0.55, 0.6), (1, 1.05)]],
    "king": [[(0.1, 0), (0.1, 1)], [(0.9, 0), (0.1, 0.55)], [(0.35, 0.4), (0.95, 1)]],
    "ace": [[(0, 1), (0.5, 0), (1, 1)], [(0.2, 0.65), (0.8, 0.65)]],
}  # fmt: skip


def circle(x: float, y: float, radius: float) -> list[tuple[float, float]]:
    turns = [2 * math.pi * k / 24 for k in range(24)]
    return [(x + radius * math.cos(turn), y + radius * math.sin(turn)) for turn in turns]


# Polygons of each suit's sign, in the same square.
STEM = [(0.5, 0.2), (0.7, 1), (0.3, 1)]
SHAPES = {
    "hearts": [circle(0.27, 0.3, 0.27), circle(0.73, 0.3, 0.27), [(0.05, 0.45), (0.95, 0.45), (0.5, 1)]],
    "diamonds": [[(0.5, 0), (0.9, 0.5), (0.5, 1), (0.1, 0.5)]],
    "spades": [[(0.5, 0), (1, 0.6), (0.85, 0.8), (0.15, 0.8), (0, 0.6)], STEM],
    "clubs": [circle(0.5, 0.2, 0.2), circle(0.2, 0.6, 0.2), circle(0.8, 0.6, 0.2), STEM],
}


def draw(cards: list[Card], rng: random.Random) -> Image.Image:
    """A table with two cards, the first on the left. A tower of 64 pixels sees it at less than half its size."""
    width, height = rng.randrange(136, 193), rng.randrange(112, 153)
    table = tuple(shade + rng.randrange(-15, 16) for shade in rng.choice(TABLES))
    cloth = Image.frombytes("RGB", (24, 18), rng.randbytes(24 * 18 * 3)).resize((width, height), Image.Resampling.BOX)
    picture = Image.blend(Image.new("RGB", (width, height), table), cloth, 0.1)
    tall = round(0.5 * max(width, height) * rng.uniform(0.95, 1.1))
    for place, card in enumerate(cards):
        face = draw_card(card, round(0.74 * tall), tall)
        face = face.rotate(rng.uniform(-7, 7), Image.Resampling.BICUBIC, expand=True)
        x = (0.27 + 0.46 * place) * width - face.width / 2 + rng.uniform(-0.02, 0.02) * width
        free = (height - face.height) / 2
        picture.paste(face, (round(x), round(free + rng.uniform(-0.8, 0.8) * free)), face)
    return picture


def draw_card(card: Card, width: int, height: int) -> Image.Image:
    """A card with a large sign of its rank above a large one of its suit, on a transparent ground."""
    face = Image.new("RGBA", (width, height))
    pen, (rank, suit) = ImageDraw.Draw(face), card
    ink = RED if is_red(card) else BLACK
    pen.rounded_rectangle((0, 0, width - 1, height - 1), width // 10, (250, 248, 240), (70, 70, 70))

    def inside(points: list[tuple[float, float]], top: float, size: float) -> list[tuple[float, float]]:
        return [((width - size) / 2 + x * size, top + y * size) for x, y in points]

    for stroke in STROKES[rank]:
        pen.line(inside(stroke, 0.09 * height, 0.36 * height), ink, round(0.07 * height), "curve")
    for shape in SHAPES[suit]:
        pen.polygon(inside(shape, 0.53 * height, 0.4 * height), ink)
    return face


def is_red(card: Card) -> bool:
    return card[1] in ("hearts", "diamonds")


def name(card: Card) -> str:
    return f"the {card[0]} of {card[1]}"


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def captions(cards: list[Card]) -> list[str]:
    left, right = map(name, cards)
    return [
        f"{left} on the left and {right} on the right",
        f"{right} beside {left}",
        f"two cards: {left} and {right}",
        f"{left} lies on the left",
        f"{right} lies on the right",
    ]


def questions(cards: list[Card], rng: random.Random) -> list[Turn]:
    """One question of each type that the cards allow, in random order. All but "place" need both cards.

    An answer that compares names the cards before its verdict: then each of its words needs one look or one step.
    """
    left, right = cards
    chosen, other = rng.sample(cards, 2)
    rank, both = chosen[0], f"{name(left)} and {name(right)}"
    asked = [
        ("beside", f"Which card lies beside {name(chosen)}?", name(other)),
        ("colour", "How many of the cards are red?", ("none", "one", "two")[sum(map(is_red, cards))]),
        ("place", f"Which card lies on the {'left' if chosen == left else 'right'}?", name(chosen)),
        ("row", "What lies on the table, from left to right?", both),
        ("suit", "Do the cards have the same suit?", "yes" if left[1] == right[1] else "no"),
        (
            "which",
            f"Which card is {'an' if rank == 'ace' else 'a'} {rank}?",
            both if left[0] == right[0] else name(chosen),
        ),
    ]
    if left[0] != right[0]:
        highest = max(cards, key=lambda card: RANKS.index(card[0]))
        asked.append(("higher", "Which card is higher?", f"{both}, so {name(highest)}"))
    rng.shuffle(asked)
    return [(kind, question, sentence(answer)) for kind, question, answer in asked]


PACK = [(rank, suit) for rank in RANKS for suit in SUITS]


def deal(pairs: list[tuple[Card, Card]], rng: random.Random) -> list[Card]:
    """One of ``pairs``, in any order. Half of the deals are of one suit: then none, one and two red are as likely."""
    alike = rng.random() < 0.5
    pair = rng.choice([pair for pair in pairs if (pair[0][1] == pair[1][1]) == alike])
    return rng.sample(pair, 2)


def row(identity: str, image: str, turns: list[Turn]) -> dict:
    said = []
    for kind, question, answer in turns:
        said += [{"from": "human", "value": question}, {"from": "gpt", "value": answer, "type": kind}]
    said[0]["value"] = f"<image>\n{said[0]['value']}"
    return {"id": identity, "image": image, "conversations": said}


def write(out: Path, count: int, seed: int) -> None:
    """Write a folder of ``count`` pictures, of which one in seven is held out."""
    out.mkdir(parents=True)
    rng = random.Random(seed)
    pairs = list(combinations(PACK, 2))
    rng.shuffle(pairs)
    unseen = len(pairs) // HELDOUT
    told, train, heldout = [], [], []
    for number in range(count):
        image, held = f"{number:04}.png", number % 7 == 6
        cards = deal(pairs[:unseen] if held else pairs[unseen:], rng)
        draw(cards, rng).save(out / image)
        if held:
            heldout += [row(f"{number:04}-{turn[0]}", image, [turn]) for turn in questions(cards, rng)]
        else:
            told += [(image, caption) for caption in captions(cards)]
            talks = [questions(cards, rng)[:TURNS] for _ in range(TALKS)]
            train += [row(f"{number:04}-{index}", image, turns) for index, turns in enumerate(talks)]
    with open(out / "captions.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *told])
    for split, rows in (("instruct", train), ("heldout", heldout)):
        (out / f"{split}.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--pictures", type=int, default=MOST, choices=range(14, MOST + 1), metavar=f"14..{MOST}")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.out.exists():
        parser.error(f"{arguments.out}: already exists")
    write(arguments.out, arguments.pictures, arguments.seed)


if __name__ == "__main__":
    main()
