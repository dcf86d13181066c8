"""A page for drawing figures with Pillow: text, boxes, arrows, pictures and tables of colours."""

import math
import re
from collections.abc import Sequence
from itertools import pairwise

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

INK, GREY, FAINT = (40, 40, 48), (105, 105, 115), (232, 232, 236)
BLUE, VIOLET, GREEN, ORANGE = (205, 222, 247), (224, 208, 243), (203, 234, 203), (253, 222, 178)
RED = (200, 60, 60)
READ, SEEN = (60, 105, 185), (130, 85, 180)  # arrows of words and of visual tokens
COLD, WARM = (35, 80, 170), (190, 40, 45)  # colours of the lowest and the highest value in a table
SCALE = 2  # figures are drawn this much larger and then reduced, which smooths lines


class Sheet:
    """A white page of ``width`` x ``height`` pixels. Coordinates are in pixels from the top left corner."""

    def __init__(self, width: int, height: int):
        self.size = width, height
        self.image = Image.new("RGB", (width * SCALE, height * SCALE), "white")
        self.pen = ImageDraw.Draw(self.image)

    def text(self, x: float, y: float, text: str, size: int = 14, colour: Colour = INK, anchor: str = "mm") -> None:
        """Write at (x, y). ``anchor`` is Pillow's: "mm" for the text's centre, "lm" for its left end, half-way up."""
        self.pen.text(self._at(x, y), text, colour, _font(size), anchor)

    def formula(self, x: float, y: float, text: str, size: int = 16, colour: Colour = INK, anchor: str = "mm") -> None:
        """Write text in which "_name" is a subscript and "^name" a superscript, as in "W_q x^T"."""
        pieces = [piece for piece in re.split(r"([_^]\w+)", text) if piece]
        widths = [text_width(*_script(piece, size)) for piece in pieces]
        x -= sum(widths) * {"l": 0, "m": 0.5, "r": 1}[anchor[0]]
        for piece, width in zip(pieces, widths):
            rise = {"_": 4, "^": -5}.get(piece[0], 0)
            self.text(x, y + rise, *_script(piece, size), colour, "lm")
            x += width

    def box(
        self, x1: float, y1: float, x2: float, y2: float, fill: Colour | None, outline: Colour | None = INK
    ) -> None:
        corners = [value * SCALE for value in (x1, y1, x2, y2)]
        self.pen.rounded_rectangle(corners, 4 * SCALE, fill, outline, SCALE)

    def bar(self, x1: float, y1: float, x2: float, y2: float, fill: Colour) -> None:
        """A box with square corners, for a chart."""
        self.pen.rectangle([round(value * SCALE) for value in (x1, y1, x2, y2)], fill, INK, SCALE)

    def line(self, *points: tuple[float, float], colour: Colour = INK, width: float = 1, dashed: bool = False) -> None:
        if dashed:
            for (x1, y1), (x2, y2) in pairwise(points):
                count = max(1, round(math.dist((x1, y1), (x2, y2)) / 10))  # dashes of about 6 pixels, gaps of 4
                dx, dy = (x2 - x1) / count, (y2 - y1) / count
                for x, y in ((x1 + dx * start, y1 + dy * start) for start in range(count)):
                    self.line((x, y), (x + 0.6 * dx, y + 0.6 * dy), colour=colour, width=width)
        else:
            self.pen.line([self._at(x, y) for x, y in points], colour, round(width * SCALE), "curve")

    def arrow(
        self, *points: tuple[float, float], colour: Colour = INK, width: float = 1.5, dashed: bool = False
    ) -> None:
        """A line through ``points`` with a head at the end. Its last segment must be horizontal or vertical."""
        (x1, y1), (x2, y2) = points[-2:]
        dx, dy = ((x2 > x1) - (x2 < x1)) * 8, ((y2 > y1) - (y2 < y1)) * 8
        self.line(*points[:-1], (x2 - dx, y2 - dy), colour=colour, width=width, dashed=dashed)
        head = (x2, y2), (x2 - dx - dy / 2, y2 - dy - dx / 2), (x2 - dx + dy / 2, y2 - dy + dx / 2)
        self.pen.polygon([(x * SCALE, y * SCALE) for x, y in head], colour)

    def picture(self, x: float, y: float, image: Image.Image, width: int, height: int) -> None:
        """``image`` enlarged to ``width`` x ``height`` without smoothing, its top left corner at (x, y)."""
        image = image.convert("RGB").resize((width * SCALE, height * SCALE), Image.Resampling.NEAREST)
        self.image.paste(image, (round(x * SCALE), round(y * SCALE)))

    def table(self, x: float, y: float, values: Sequence[Sequence[float]], width: int, height: int, top: float) -> None:
        """Rows of numbers as colours: blue for -top and below, white for 0, red for top and above."""
        image = Image.new("RGB", (len(values[0]), len(values)))
        image.putdata([shade(value / top) for row in values for value in row])
        self.picture(x, y, image, width, height)

    def _at(self, x: float, y: float) -> tuple[int, int]:
        """Whole pixels: versions of Pillow round fractions differently."""
        return round(x * SCALE), round(y * SCALE)

    def reduced(self) -> Image.Image:
        """The page in its own size."""
        return self.image.resize(self.size, Image.Resampling.LANCZOS)

    def finished(self) -> Image.Image:
        """The page with a palette of 256 colours, which makes its file a third as large."""
        return self.reduced().quantize(method=Image.Quantize.MAXCOVERAGE, kmeans=2)  # keeps rare colours


def shade(value: float) -> Colour:
    """A colour for -1 (blue) .. 0 (white) .. 1 (red)."""
    end, share = (COLD if value < 0 else WARM), min(abs(value), 1.0)
    return tuple(round(255 + (channel - 255) * share) for channel in end)


def text_width(text: str, size: int = 14) -> float:
    """The width in pixels of ``text`` as ``Sheet.text`` writes it."""
    return _font(size).getlength(text) / SCALE


def _script(piece: str, size: int) -> tuple[str, int]:
    """A piece of a formula without its mark, and its size."""
    return (piece[1:], max(13, size - 4)) if piece[0] in "_^" else (piece, size)


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size * SCALE)
