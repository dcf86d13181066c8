"""Architecture diagrams in one style: blocks coloured by kind, arrows with shapes, residual paths, a legend.

Arrows lead upwards, from the input at the bottom to the output at the top.
"""

from dataclasses import dataclass

from lessons.sheet import BLUE, FAINT, GREEN, GREY, INK, ORANGE, SCALE, VIOLET, Colour, Sheet, text_width

# What a block or a cell is -> its colour, and its name in the legend.
KINDS: dict[str, tuple[Colour, str]] = {
    "trained": (ORANGE, "trained"),
    "frozen": (FAINT, "frozen"),
    "norm": ((150, 212, 204), "norm, trained"),
    "plain": ((255, 255, 255), "no weights"),
    "words": (BLUE, "tokens of text"),
    "visual": (VIOLET, "visual tokens"),
    "loss": (GREEN, "tokens with a loss"),
}
GAP, RADIUS = 44, 11  # an arrow's length in a stack; the radius of an operation's circle
Shape = tuple[str, ...]  # lines: the shape in letters, and in numbers
Point = tuple[float, float]


def shape(sizes: dict[str, int], *axes: str) -> Shape:
    """A shape in letters and, where it has axes of known size, in numbers: "(B, T, hidden)", "(B, T, 160)"."""
    letters = f"({', '.join(axes)})"
    numbers = f"({', '.join(str(sizes.get(axis, axis)) for axis in axes)})"
    return (letters,) if letters == numbers else (letters, numbers)


@dataclass
class Part:
    """A block of a stack. A ``name`` of "+" is an operation; ``shape`` is that of the arrow to the next part."""

    name: str
    kind: str = "plain"
    note: str = ""
    shape: Shape = ()

    @property
    def height(self) -> float:
        return 2 * RADIUS if self.name == "+" else 38 + 8 * bool(self.note)


class Diagram(Sheet):
    def block(
        self, x: float, y: float, name: str, kind: str = "plain", note: str = "", width: float = 130, height: float = 38
    ) -> None:
        """A box around (x, y). ``note`` is a second line."""
        self.box(x - width / 2, y - height / 2, x + width / 2, y + height / 2, KINDS[kind][0])
        self.formula(x, y - 9 * bool(note), name)
        if note:
            self.text(x, y + 11, note, 13)

    def operation(self, x: float, y: float, sign: str) -> None:
        """A circle with "+" (a sum) or "x" (a product of numbers) in it."""
        self.ring(x, y, RADIUS)
        long, slant = (6, 0) if sign == "+" else (4, 4)
        self.line((x - long, y - slant), (x + long, y + slant), width=1.5)
        self.line((x - slant, y + long), (x + slant, y - long), width=1.5)

    def ring(self, x: float, y: float, radius: float) -> None:
        corners = [value * SCALE for value in (x - radius, y - radius, x + radius, y + radius)]
        self.pen.ellipse(corners, "white", INK, round(1.5 * SCALE))

    def flow(self, *points: Point, shape: Shape = (), side: str = "r") -> None:
        """An arrow, with a shape at the middle of its last segment."""
        self.arrow(*points)
        (x1, y1), (x2, y2) = points[-2:]
        self.label((x1 + x2) / 2, (y1 + y2) / 2, shape, side)

    def label(self, x: float, y: float, lines: Shape, side: str = "r") -> None:
        """The lines of a shape to the right ("r") or left ("l") of (x, y)."""
        away, anchor = (8, "lm") if side == "r" else (-8, "rm")
        for number, line in enumerate(lines):
            down = 16 * number - 8 * (len(lines) - 1)
            self.text(x + away, y + down, line, 13, GREY if number else INK, anchor)

    def stack(self, x: float, y: float, entering: Shape, *parts: Part, width: float = 130) -> list[float]:
        """Parts one above the other, each after an arrow, from (x, y) upwards. Returns the y of each part's middle, and
        last that of the top edge."""
        middles = []
        for part in parts:
            self.flow((x, y), (x, y - GAP), shape=entering)
            middle = y - GAP - part.height / 2
            if part.name == "+":
                self.operation(x, middle, "+")
            else:
                self.block(x, middle, part.name, part.kind, part.note, width, part.height)
            middles.append(middle)
            y, entering = middle - part.height / 2, part.shape
        return [*middles, y]

    def residual(self, x: float, start: float, end: float) -> None:
        """The path past some parts: from the stack's arrow at height ``start`` to the "+" at ``end``."""
        self.arrow((x, start), (x - 100, start), (x - 100, end), (x - RADIUS, end))

    def frame(self, x1: float, y1: float, x2: float, y2: float, title: str) -> None:
        """A dashed border with a title inside its top left corner."""
        self.line((x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1), colour=GREY, dashed=True)
        self.text(x1 + 10, y1 + 16, title, 14, GREY, "lm")

    def legend(self, x: float, y: float, *kinds: str) -> None:
        for kind in kinds:
            colour, name = KINDS[kind]
            self.box(x, y - 8, x + 22, y + 8, colour)
            self.text(x + 29, y, name, 13, anchor="lm")
            x += 29 + text_width(name, 13) + 26
