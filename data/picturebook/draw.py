"""Scene -> picture. Pillow draws everything at four times the size; shrinking it then gives anti-aliasing."""

import math
import random

from PIL import Image, ImageDraw

from data.picturebook.scene import COLOURS, Scene, Thing

PICTURE_SIZE = 64  # pixels
OVERSAMPLING = 4
INK = (35, 30, 40)

# setting -> (sky, ground, how far down the ground begins)
BACKGROUNDS = {
    "meadow": ((165, 215, 245), (125, 195, 95), 0.55),
    "sea": ((190, 225, 245), (55, 135, 190), 0.45),
    "desert": ((250, 225, 170), (225, 185, 120), 0.60),
    "snow": ((205, 212, 225), (238, 242, 250), 0.50),
    "night": ((25, 28, 66), (38, 48, 60), 0.70),
    "mountains": ((195, 200, 240), (120, 115, 105), 0.80),
}


def draw_scene(scene: Scene, rng: random.Random) -> Image.Image:
    """The scene as an RGB picture of 64 x 64 pixels. ``rng`` varies shades and details that no question asks about."""
    side = PICTURE_SIZE * OVERSAMPLING
    image = Image.new("RGB", (side, side))
    pen = ImageDraw.Draw(image)
    _draw_background(pen, scene.setting, side, rng)
    for thing in sorted(scene.things, key=lambda thing: -thing.area):  # smaller ones on top, so none is hidden
        _draw_thing(pen, thing, side, rng)
    return image.resize((PICTURE_SIZE, PICTURE_SIZE), Image.Resampling.BOX)


def _shade(colour: tuple[int, ...], factor: float) -> tuple[int, ...]:
    return tuple(max(0, min(255, round(channel * factor))) for channel in colour)


def _draw_background(pen: ImageDraw.ImageDraw, setting: str, side: int, rng: random.Random) -> None:
    sky, ground, horizon = BACKGROUNDS[setting]
    light = rng.uniform(0.95, 1.03)
    sky, ground = _shade(sky, light), _shade(ground, light)
    horizon = side * (horizon + rng.uniform(-0.05, 0.05))
    pen.rectangle((0, 0, side, side), fill=sky)
    if setting == "mountains":
        for _ in range(4):
            x, height, half = rng.uniform(0, side), rng.uniform(0.3, 0.6) * side, rng.uniform(0.2, 0.35) * side
            peak = horizon - height
            pen.polygon([(x - half, horizon), (x, peak), (x + half, horizon)], fill=_shade((140, 140, 160), light))
            cap = 0.25  # fraction of the height that snow covers
            pen.polygon(
                [(x - half * cap, peak + height * cap), (x, peak), (x + half * cap, peak + height * cap)],
                fill=(235, 235, 245),
            )
    if setting == "night":
        for _ in range(14):
            x, y = rng.uniform(0, side), rng.uniform(0, horizon)
            pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill=(225, 225, 200))
    pen.rectangle((0, horizon, side, side), fill=ground)
    if setting == "desert":
        for _ in range(2):
            x, half = rng.uniform(0, side), rng.uniform(0.3, 0.5) * side
            pen.ellipse((x - half, horizon - 0.08 * side, x + half, horizon + 0.4 * side), fill=ground)
    elif setting in ("sea", "meadow"):
        mark = _shade(ground, 1.25 if setting == "sea" else 0.82)
        for _ in range(16):
            x, y = rng.uniform(0, side), rng.uniform(horizon + 6, side)
            if setting == "sea":
                pen.arc((x, y, x + 20, y + 10), 180, 360, fill=mark, width=3)
            else:
                pen.line((x, y, x + rng.uniform(-3, 3), y - 9), fill=mark, width=3)


def _draw_thing(pen: ImageDraw.ImageDraw, thing: Thing, side: int, rng: random.Random) -> None:
    x1, y1, x2, y2 = (value * side for value in thing.box)
    colour = _shade(COLOURS[thing.colour], rng.uniform(0.92, 1.04))
    _DRAWERS[thing.kind](_Brush(pen, x1, y1, x2 - x1, y2 - y1), colour)


class _Brush:
    """Draws shapes in the coordinates of a unit square that covers a thing's box."""

    def __init__(self, pen: ImageDraw.ImageDraw, x: float, y: float, width: float, height: float):
        self.pen, self.x, self.y, self.width, self.height = pen, x, y, width, height

    def at(self, *points: tuple[float, float]) -> list[tuple[float, float]]:
        return [(self.x + u * self.width, self.y + v * self.height) for u, v in points]

    def polygon(self, colour, *points) -> None:
        self.pen.polygon(self.at(*points), fill=colour, outline=INK, width=4)

    def ellipse(self, colour, u1: float, v1: float, u2: float, v2: float, outline=INK) -> None:
        self.pen.ellipse(sum(self.at((u1, v1), (u2, v2)), ()), fill=colour, outline=outline, width=4 if outline else 0)

    def line(self, colour, *points, width: int = 6) -> None:
        self.pen.line(self.at(*points), fill=colour, width=width)


def _ring(count: int, *radii: float, turn: float = -math.pi / 2) -> list[tuple[float, float]]:
    """``count`` points around the middle of the unit square; their distances from it cycle through ``radii``."""
    angles = [turn + 2 * math.pi * i / count for i in range(count)]
    return [
        (0.5 + radii[i % len(radii)] * math.cos(a), 0.5 + radii[i % len(radii)] * math.sin(a))
        for i, a in enumerate(angles)
    ]


def _house(brush, colour):
    brush.polygon(colour, (0.12, 0.45), (0.88, 0.45), (0.88, 1), (0.12, 1))
    brush.polygon(_shade(colour, 0.7), (0, 0.47), (0.5, 0), (1, 0.47))
    brush.polygon(INK, (0.4, 0.65), (0.6, 0.65), (0.6, 1), (0.4, 1))


def _tree(brush, colour):
    brush.polygon((120, 80, 45), (0.42, 0.75), (0.58, 0.75), (0.58, 1), (0.42, 1))
    brush.polygon(colour, (0.08, 0.8), (0.5, 0.3), (0.92, 0.8))
    brush.polygon(colour, (0.2, 0.45), (0.5, 0), (0.8, 0.45))


def _boat(brush, colour):
    brush.line(INK, (0.5, 0), (0.5, 0.7))
    brush.polygon(_shade(colour, 1.15), (0.55, 0.05), (0.95, 0.6), (0.55, 0.6))
    brush.polygon(colour, (0, 0.68), (1, 0.68), (0.8, 1), (0.2, 1))


def _fish(brush, colour):
    brush.polygon(colour, (0.65, 0.5), (1, 0.2), (1, 0.8))
    brush.ellipse(colour, 0, 0.22, 0.78, 0.78)
    brush.ellipse(INK, 0.14, 0.38, 0.24, 0.48, outline=None)


def _sun(brush, colour):
    for u, v in _ring(8, 0.5):
        brush.line(INK, (0.5, 0.5), (u, v), width=11)
        brush.line(colour, (0.5, 0.5), (u, v), width=6)
    brush.ellipse(colour, 0.22, 0.22, 0.78, 0.78)


def _moon(brush, colour):
    outer = [(0.5 + 0.5 * math.cos(a), 0.5 + 0.5 * math.sin(a)) for a in _arc(0.28, 1.72)]
    inner = [(0.664 + 0.42 * math.cos(a), 0.5 + 0.42 * math.sin(a)) for a in _arc(1.62, 0.38)]
    brush.polygon(colour, *outer, *inner)


def _arc(start: float, end: float) -> list[float]:
    """Angles from ``start`` to ``end``, both in units of pi."""
    return [math.pi * (start + (end - start) * i / 20) for i in range(21)]


def _star(brush, colour):
    brush.polygon(colour, *_ring(10, 0.5, 0.21))


def _car(brush, colour):
    brush.polygon(_shade(colour, 1.15), (0.2, 0.5), (0.32, 0.2), (0.7, 0.2), (0.82, 0.5))
    brush.polygon(colour, (0, 0.48), (1, 0.48), (1, 0.78), (0, 0.78))
    for u in (0.22, 0.78):
        brush.ellipse(INK, u - 0.14, 0.64, u + 0.14, 0.92)


def _ball(brush, colour):
    brush.ellipse(colour, 0.04, 0.04, 0.96, 0.96)
    brush.line(INK, (0.06, 0.5), (0.94, 0.5), width=5)
    brush.line(INK, (0.5, 0.06), (0.5, 0.94), width=5)


def _flower(brush, colour):
    brush.line((60, 120, 50), (0.5, 0.5), (0.5, 1), width=8)
    for u, v in _ring(5, 0.23):
        v -= 0.1
        brush.ellipse(colour, u - 0.17, v - 0.17, u + 0.17, v + 0.17)
    brush.ellipse(INK, 0.38, 0.28, 0.62, 0.52, outline=None)


def _bird(brush, colour):
    brush.polygon(_shade(colour, 0.85), (0, 0.1), (0.36, 0.3), (0.64, 0.3), (1, 0.1), (0.78, 0.7), (0.22, 0.7))
    brush.ellipse(colour, 0.3, 0.15, 0.7, 1)
    brush.polygon((240, 160, 40), (0.42, 0.45), (0.58, 0.45), (0.5, 0.65))
    for u in (0.37, 0.55):
        brush.ellipse(INK, u, 0.28, u + 0.09, 0.37, outline=None)


def _cloud(brush, colour):
    lobes = ((0, 0.4, 0.45, 0.85), (0.22, 0.15, 0.75, 0.7), (0.52, 0.35, 1, 0.85), (0.2, 0.45, 0.8, 0.88))
    for lobe in lobes:  # outlines first, then fills, for one outline around the whole
        brush.ellipse(INK, *lobe)
    for u1, v1, u2, v2 in lobes:
        brush.ellipse(colour, u1 + 0.04, v1 + 0.04, u2 - 0.04, v2 - 0.04, outline=None)


_DRAWERS = {
    "house": _house,
    "tree": _tree,
    "boat": _boat,
    "fish": _fish,
    "sun": _sun,
    "moon": _moon,
    "star": _star,
    "car": _car,
    "ball": _ball,
    "flower": _flower,
    "bird": _bird,
    "cloud": _cloud,
}
