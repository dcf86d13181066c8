"""Boxes -> what can surely be said of them: how many, where, which is larger.

The picture is a grid of 3 x 3 with a wider middle: a box is "on the left" if its middle lies in the left 35 % and the
box does not reach past 60 % of the width. Where that leaves doubt, no place is named.
"""

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from data.contexts import Box, Context
from data.picturebook.language import NUMBERS, with_article
from data.teachers.scripted import captions as telling
from data.teachers.scripted.grammar import ENDERS, words_of
from data.teachers.scripted.grammar import NUMBERS as TOLD_NUMBERS
from data.teachers.scripted.words import MASS, OTHER_NAMES, PAIRS, PLACES_FOR, SHORTER, plural

MOST_COUNTED = 5  # of one category; more are "several"
A_LOT = frozenset(("many", "crowd", "crowds", "lots", "lot", "dozens", "numerous", "crowded"))
SOME = frozenset(("several", "group", "bunch", "herd", "flock", "team", "row", "few", "multiple"))
EDGE, REACH = 0.35, 0.60  # of the side: see above
APART = 0.15  # of the side, between the middles of two things of which one is "on the left of" the other
PLACES = {
    ("left", "top"): "in the upper left", ("middle", "top"): "at the top", ("right", "top"): "in the upper right",
    ("left", "middle"): "on the left", ("middle", "middle"): "in the middle", ("right", "middle"): "on the right",
    ("left", "bottom"): "in the lower left", ("middle", "bottom"): "at the bottom",
    ("right", "bottom"): "in the lower right", ("left", None): "on the left", ("right", None): "on the right",
    (None, "top"): "at the top", (None, "bottom"): "at the bottom",
}  # fmt: skip


def area(box: Box) -> float:
    x1, y1, x2, y2 = box.bbox
    return (x2 - x1) * (y2 - y1)


def middle(box: Box) -> tuple[float, float]:
    x1, y1, x2, y2 = box.bbox
    return (x1 + x2) / 2, (y1 + y2) / 2


def place(box: Box) -> str | None:
    """ "on the left", or None where no one word would be right."""
    x1, y1, x2, y2 = box.bbox
    return PLACES.get((_third(x1, x2, ("left", "middle", "right")), _third(y1, y2, ("top", "middle", "bottom"))))


def _third(low: float, high: float, words: tuple[str, str, str]) -> str | None:
    centre = (low + high) / 2
    if centre < EDGE:
        return words[0] if high <= REACH else None
    if centre > 1 - EDGE:
        return words[2] if low >= 1 - REACH else None
    return words[1]


def comes_first(a: "Group", b: "Group", axis: int) -> bool | None:
    """Whether single thing ``a`` is left of ``b`` (axis 0) or above it (axis 1), by its middle and by both its edges;
    None where they are not clearly apart."""
    apart = middle(a.boxes[0])[axis] - middle(b.boxes[0])[axis]
    edges = [a.boxes[0].bbox[i] - b.boxes[0].bbox[i] for i in (axis, axis + 2)]
    return apart < 0 if abs(apart) >= APART and all(edge * apart > 0 for edge in edges) else None


@dataclass(frozen=True)
class Group:
    """All boxes of one category, from left to right.

    ``counted``: their number can be told. ``told_many``: a caption speaks of more than one.
    """

    category: str
    boxes: tuple[Box, ...]
    counted: bool
    told_many: bool

    @property
    def name(self) -> str:
        return SHORTER.get(self.category, self.category)

    @property
    def single(self) -> bool:
        """Whether "the dog" surely is one thing."""
        return self.counted and len(self.boxes) == 1

    @property
    def many(self) -> bool:
        several = len(self.boxes) > 1 or self.crowded or self.told_many or self._last in PAIRS
        return several and self._last not in MASS

    @property
    def be(self) -> str:
        return "are" if self.many else "is"

    @property
    def names(self) -> str:
        """The plural: "dogs"."""
        return plural(self.name)

    @property
    def some(self) -> str:
        """ "a dog", "two dogs", "several dogs", or "dogs" where their number is not sure."""
        if self._last in MASS:
            return f"some {self.name}"
        if self._last in PAIRS:
            return self.name
        if not self.many:
            return with_article(self.name)
        if self.counted:
            return f"{NUMBERS[len(self.boxes)]} {self.names}"
        return f"several {self.names}" if self.crowded else self.names

    @property
    def the(self) -> str:
        """ "the dog", "the two dogs", "the dogs"."""
        if self.counted and len(self.boxes) > 1:
            return f"the {self.some}"
        return f"the {self.names}" if self.many else f"the {self.name}"

    @property
    def crowded(self) -> bool:
        return len(self.boxes) > MOST_COUNTED or any(box.crowd for box in self.boxes)

    @property
    def area(self) -> float:
        return sum(map(area, self.boxes))

    @property
    def _last(self) -> str:
        return self.name.split()[-1]


class View:
    """A context made ready for questions: captions that can be told again, and groups of boxes, largest first."""

    def __init__(self, context: Context):
        self.captions = telling.read(context.captions)
        self.pretended = any(telling.PRETENDED.search(text) for text in context.captions)
        self.repeated = any(telling.REPEATED.search(text) for text in context.captions)
        self._words = [words_of(text.lower()) for text in context.captions]
        self.told = frozenset(word for words in self._words for word in words)
        boxes = defaultdict(list)
        for box in sorted(context.boxes, key=lambda box: (middle(box), box.bbox)):
            boxes[" ".join(box.category.lower().replace("_", " ").split())].append(box)
        groups = [Group(name, tuple(found), *self._number(name, found)) for name, found in boxes.items()]
        self.groups = sorted(groups, key=lambda group: (-group.area, group.category))

    @cached_property
    def people(self) -> Group | None:
        return next((group for group in self.groups if group.category == "person"), None)

    @cached_property
    def setting(self) -> str | None:
        """The kind of place, "kitchen", where the captions name only one that has a known purpose."""
        found = {name for caption in self.captions for _, _, name in caption.places} & PLACES_FOR.keys()
        return found.pop() if len(found) == 1 else None

    @cached_property
    def singles(self) -> list[Group]:
        return [group for group in self.groups if group.single]

    def tells(self, *nouns: str, before: frozenset[str] = frozenset()) -> bool:
        """Whether a caption has one of the nouns where it ends its phrase, as "rain" does not in "a rain coat", or
        stands before a word of ``before``."""
        after = ENDERS | before
        return any(word in nouns and next_ in after for line in self._words for word, next_ in pairwise([*line, "."]))

    def mentions(self, group: Group) -> int:
        """How many of the captions that are told have a word for it."""
        names = _names(group.category)
        names |= {plural(name) for name in names}
        return sum(not names.isdisjoint(caption.words) for caption in self.captions)

    def _number(self, category: str, boxes: list[Box]) -> tuple[bool, bool]:
        """Whether the boxes' number can be told (they are few, and no caption says otherwise), and whether a caption
        speaks of more than one."""
        number = len(boxes)
        counted = number <= MOST_COUNTED and not any(box.crowd for box in boxes)
        counted = counted and not (self.repeated and number > 1) and category.split()[-1] not in MASS | PAIRS
        names = _names(category)
        several = {plural(name) for name in names}
        told_many = False
        for words in self._words:
            named = [i for i, word in enumerate(words) if word in names | several]
            told = [i for i in named if i + 1 not in named]  # "male surfer" is one
            least = 0  # that the caption speaks of: "a woman and two children" are three
            for i in told:
                before = words[max(0, i - 4) : i]
                numbers = [TOLD_NUMBERS.index(w) + 2 for w in before if w in TOLD_NUMBERS]
                least += max(numbers, default=2 if words[i] in several - names else 1)
                counted = counted and not any(told_number != number for told_number in numbers)
                large = A_LOT if number > 2 else A_LOT | SOME
                counted = counted and (words[i] not in several or large.isdisjoint(before))
            told_many |= any(words[i] in several or words[i] in ("couple", "family") for i in told)
            counted = counted and least <= number
        return counted and (number > 1 or not told_many), told_many


def _names(category: str) -> frozenset[str]:
    """The single words by which captions call a category."""
    return frozenset((category.split()[-1], *OTHER_NAMES.get(category, ())))
