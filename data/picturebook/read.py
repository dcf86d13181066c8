"""Captions and boxes -> scene, the inverse of language.py, for a teacher that only gets a picture's context."""

import re

from data.contexts import Context
from data.picturebook.language import SETTING_NAMES, WHERE, captions
from data.picturebook.scene import COLOURS, KINDS, PLACES, SIZES, Scene, Thing

_PLACES = {place: (row, column) for row, places in enumerate(PLACES) for column, place in enumerate(places)}
_REGION = re.compile(
    rf"an? ({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(KINDS)}) in the ({'|'.join(_PLACES)})", re.IGNORECASE
)


def scene_of(context: Context) -> Scene | None:
    """The scene that a context describes completely; None if its captions are not the picture-book's."""
    if not context.captions:
        return None
    found = _REGION.findall(context.captions[0])
    if [kind.lower() for _, _, kind, _ in found] != [box.category for box in context.boxes]:
        return None
    things = tuple(
        Thing(kind, colour, size, *_PLACES[place], box.bbox)
        for (size, colour, kind, place), box in zip([map(str.lower, words) for words in found], context.boxes)
    )
    for setting in SETTING_NAMES:
        scene = Scene(setting, things)
        if context.captions[0].endswith(f", {WHERE[setting]}.") and tuple(captions(scene)) == context.captions:
            return scene
    return None
