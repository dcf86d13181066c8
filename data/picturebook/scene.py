"""What can be in a picture (settings, kinds, colours, sizes and places), and a function that draws random scenes.

A scene is the ground truth of a picture. The drawing, the captions, the boxes and every question are made from it, so
they all agree. Each thing has a cell of a 3 x 3 grid to itself, so "where is it?" has a definite answer, and no two
things have the same colour and kind, so "the red fish" always means one thing.
"""

import random
from dataclasses import dataclass

COLOURS = {
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (250, 220, 50),
    "green": (50, 170, 70),
    "blue": (50, 95, 220),
    "purple": (145, 65, 185),
    "white": (248, 248, 248),
}
KINDS = ("house", "tree", "boat", "fish", "sun", "moon", "star", "car", "ball", "flower", "bird", "cloud")
SETTINGS = ("meadow", "sea", "desert", "snow", "night", "mountains")
SIZES = {"small": (0.26, 0.29), "large": (0.40, 0.44)}  # side of the box, as a fraction of the picture's side
PLACES = (  # no name is part of another: if one were just "top", a model could take it for the start of "top left"
    ("top left", "top middle", "top right"),
    ("middle left", "centre", "middle right"),
    ("bottom left", "bottom middle", "bottom right"),
)
MOST_THINGS = 5

# Pairs in no stage-2 row: `unseen.json` tests whether the model can combine a colour and a kind that it knows.
UNSEEN_PAIRS = frozenset(
    {"red fish", "orange car", "yellow bird", "green house", "blue star", "purple tree", "white ball"}
)


@dataclass(frozen=True)
class Thing:
    """One thing in a picture. ``box`` is (x1, y1, x2, y2) as fractions of the picture's side, y downwards."""

    kind: str
    colour: str
    size: str
    row: int
    column: int
    box: tuple[float, float, float, float]

    @property
    def area(self) -> float:
        """The area of the box. If two things overlap, the one with the smaller area is on top."""
        x1, y1, x2, y2 = self.box
        return (x2 - x1) * (y2 - y1)

    @property
    def pair(self) -> str:
        return f"{self.colour} {self.kind}"

    @property
    def place(self) -> str:
        """The cell, in words: "top left"."""
        return PLACES[self.row][self.column]


@dataclass(frozen=True)
class Scene:
    """A setting and its 1 to 5 things, in reading order (top row first, left to right)."""

    setting: str
    things: tuple[Thing, ...]


def sample_scene(rng: random.Random, unseen: str = "allowed") -> Scene:
    """Draw a random scene. ``unseen``: whether pairs in UNSEEN_PAIRS are "allowed", "never" used, or "required"."""
    count = rng.randint(1, MOST_THINGS)
    cells = sorted(rng.sample(range(9), count))
    first = tuple(rng.choice(sorted(UNSEEN_PAIRS)).split()) if unseen == "required" else None
    pairs: list[tuple[str, str]] = []  # (colour, kind)
    while len(pairs) < count:
        colour, kind = rng.choice(list(COLOURS)), rng.choice(KINDS)
        if pairs and rng.random() < 0.4:  # things that share a colour or a kind make counting questions interesting
            colour = rng.choice(pairs)[0]
        elif pairs and rng.random() < 0.4:
            kind = rng.choice(pairs)[1]
        if first and not pairs:
            colour, kind = first
        if (colour, kind) not in pairs and not (unseen == "never" and f"{colour} {kind}" in UNSEEN_PAIRS):
            pairs.append((colour, kind))
    rng.shuffle(pairs)
    things = tuple(_place(rng, *pair, *divmod(cell, 3)) for pair, cell in zip(pairs, cells))
    return Scene(rng.choice(SETTINGS), things)


def _place(rng: random.Random, colour: str, kind: str, row: int, column: int) -> Thing:
    """Place a thing near the middle of its cell and completely inside the picture."""
    size = rng.choice(list(SIZES))
    side = rng.uniform(*SIZES[size])
    centre = [(index + 0.5) / 3 + rng.uniform(-0.05, 0.05) for index in (column, row)]
    x, y = (min(max(value - side / 2, 0.01), 0.99 - side) for value in centre)
    return Thing(kind, colour, size, row, column, tuple(round(v, 3) for v in (x, y, x + side, y + side)))
