"""A picture as text: its captions and its boxes, which is all that a text-only teacher sees (paper, section 3).

An image-folder and a language model meet only here: whatever can say what is in a picture (the picture-book world,
COCO's annotators, a detector) becomes a :class:`Context`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Box:
    """One thing: its category and where it is, ``x1, y1, x2, y2`` as fractions of the width and height."""

    category: str
    bbox: tuple[float, float, float, float]


@dataclass(frozen=True)
class Context:
    """What is known of one picture. ``image`` is its path inside the image folder."""

    id: str
    image: str
    captions: tuple[str, ...]
    boxes: tuple[Box, ...]

    def text(self) -> str:
        """The context as the teacher reads it: a caption a line, an empty line, then ``category: [x1, y1, x2, y2]``
        a line with three decimals (paper, appendix)."""
        boxes = [f"{b.category}: [{', '.join(f'{value:.3f}' for value in b.bbox)}]" for b in self.boxes]
        return "\n".join([*self.captions, "", *boxes]).strip()
