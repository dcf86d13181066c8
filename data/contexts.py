"""A picture as text: its captions and boxes, which are all that a text-only teacher gets (paper, section 3).

Every source of captions or boxes (the picture-book, COCO's annotations, a detector) is read into the same class,
:class:`Context`. :func:`read_contexts` reads all of them.
"""

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from minillava.errors import UserError
from minillava.files import check_regular
from minillava.formats.text_file import begin_of

LINE_BYTES = 1_000_000  # maximum length of a line of JSONL
FILE_BYTES = 2_000_000_000  # maximum size of a COCO file; instances_train2017.json has 470 MB
MOST_BOXES = 1000  # of one picture
MOST_CHARACTERS = 2000  # of one caption, category, id or path
OVERSHOOT = 0.02  # fraction of a side: a box that exceeds the picture by less is clipped, others are refused


@dataclass(frozen=True)
class Box:
    """One thing: its category and its box, ``x1, y1, x2, y2`` as fractions of the width and height.

    ``crowd``: the box contains many things of the category (COCO's ``iscrowd``).
    """

    category: str
    bbox: tuple[float, float, float, float]
    crowd: bool = False


@dataclass(frozen=True)
class Context:
    """What is known of one picture. ``image`` is its path inside the image folder."""

    id: str
    image: str
    captions: tuple[str, ...]
    boxes: tuple[Box, ...]

    def text(self) -> str:
        """The context as the teacher reads it (paper, appendix).

        One caption per line, an empty line, then one ``category: [x1, y1, x2, y2]`` per line, with three decimals. A
        crowd's category is "crowd of person".
        """
        boxes = [
            f"{'crowd of ' if b.crowd else ''}{b.category}: [{', '.join(f'{value:.3f}' for value in b.bbox)}]"
            for b in self.boxes
        ]
        return "\n".join([*self.captions, "", *boxes]).strip()


def read_contexts(path: str | os.PathLike) -> Iterator[Context]:
    """Yield the pictures of a file or folder, one at a time, in its order.

    - ``NAME.jsonl``: one line ``{"id", "image", "captions": [...], "instances": [{"category", "bbox"}]}`` per picture,
      bbox as in :class:`Box`. ``captions`` may be empty, as in a detector's output. An instance may have ``"iscrowd"``;
      other keys are ignored.
    - ``captions_NAME.json``: COCO's captions, with the boxes of ``instances_NAME.json`` in the same folder.
    - a folder: its ``contexts.jsonl`` (a picture-book world), or else its only ``captions_*.json``.

    Empty captions are left out, and white space is reduced to single spaces. Raises UserError, naming file and row, for
    anything else.
    """
    path = Path(path)
    if path.is_dir():
        path = _inside(path)
    if path.suffix == ".jsonl":
        contexts = _read_jsonl(path)
    elif path.suffix == ".json" and path.name.startswith("captions_"):
        contexts = _read_coco(path)
    else:
        raise UserError(f"{path}: neither a folder, nor a .jsonl, nor COCO's captions_NAME.json")
    seen: set[str] = set()
    for where, context in contexts:
        if context.id in seen:
            raise UserError(f"{where}: id {context.id!r} occurs twice")
        seen.add(context.id)
        yield context
    if not seen:
        raise UserError(f"{path}: no picture in it")


def _inside(folder: Path) -> Path:
    world = folder / "contexts.jsonl"
    found = [world] if world.is_file() else sorted(folder.glob("captions_*.json"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise UserError(f"{folder}: must contain contexts.jsonl or one captions_NAME.json, found {names}")
    return found[0]


def _read_jsonl(path: Path) -> Iterator[tuple[str, Context]]:
    begin_of(path)
    try:
        with open(path, "rb") as file:
            number = 0
            while line := file.readline(LINE_BYTES + 1):
                number += 1
                where = f"{path}: line {number}"
                if len(line) > LINE_BYTES:
                    raise UserError(f"{where}: longer than {LINE_BYTES} bytes")
                if line.strip():
                    yield where, _context(_parsed(line, where), where)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def _read_coco(path: Path) -> Iterator[tuple[str, Context]]:
    boxes_path = path.with_name(path.name.replace("captions_", "instances_", 1))
    told, drawn = _load(path), _load(boxes_path)
    categories = {}
    for where, row in _rows(drawn, boxes_path, "categories"):
        categories[_id(row, "id", where)] = _text(row, "name", where)
    images = {}
    for where, row in [*_rows(told, path, "images"), *_rows(drawn, boxes_path, "images")]:
        images.setdefault(_id(row, "id", where), (where, row))
    captions, instances = defaultdict(list), defaultdict(list)
    for where, row in _rows(told, path, "annotations"):
        captions[_known(row, "image_id", images, where)].append(row.get("caption"))
    for where, row in _rows(drawn, boxes_path, "annotations"):
        image = _known(row, "image_id", images, where)
        sides = [images[image][1].get(key) for key in ("width", "height")]
        if not all(_is_number(side) and side > 0 for side in sides):
            raise UserError(f"{images[image][0]}: no 'width' and 'height' in pixels")
        x, y, width, height = _numbers(row.get("bbox"), where)
        corners = [x / sides[0], y / sides[1], (x + width) / sides[0], (y + height) / sides[1]]
        name = categories[_known(row, "category_id", categories, where)]
        instances[image].append({"category": name, "bbox": corners, "iscrowd": row.get("iscrowd", 0)})
    for image, (where, row) in images.items():
        parts = {"id": image, "image": row.get("file_name"), "captions": captions[image], "instances": instances[image]}
        yield where, _context(parts, where)


def _load(path: Path) -> dict:
    check_regular(path, FILE_BYTES)
    try:
        return _parsed(path.read_bytes(), str(path), object_hook=_without_outline)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def _without_outline(value: dict) -> dict:
    """Drop COCO's outlines, which are most of its 470 MB and are not used here."""
    value.pop("segmentation", None)
    return value


def _parsed(text: bytes, where: str, **options) -> dict:
    try:
        value = json.loads(text, **options)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: not a JSON object")
    return value


def _rows(value: dict, path: Path, key: str) -> Iterator[tuple[str, dict]]:
    rows = value.get(key)
    if not isinstance(rows, list):
        raise UserError(f"{path}: no list '{key}'")
    for index, row in enumerate(rows):
        where = f"{path}: {key}[{index}]"
        if not isinstance(row, dict):
            raise UserError(f"{where}: not a JSON object")
        yield where, row


def _context(row: dict, where: str) -> Context:
    captions, instances = row.get("captions"), row.get("instances")
    if not isinstance(captions, list) or not isinstance(instances, list):
        raise UserError(f"{where}: 'captions' and 'instances' must be lists")
    if len(instances) > MOST_BOXES:
        raise UserError(f"{where}: more than {MOST_BOXES} boxes")
    told = [_clean(caption, f"{where}: captions[{i}]") for i, caption in enumerate(captions)]
    boxes = [_box(instance, f"{where}: instances[{i}]") for i, instance in enumerate(instances)]
    image = _text(row, "image", where)
    parts = (PurePosixPath(image), PureWindowsPath(image))
    if "\0" in image or any(part.is_absolute() or part.drive or ".." in part.parts for part in parts):
        raise UserError(f"{where}: image path {image!r} leads out of the image folder")
    return Context(str(_id(row, "id", where)), image, tuple(filter(None, told)), tuple(boxes))


def _box(instance, where: str) -> Box:
    if not isinstance(instance, dict):
        raise UserError(f"{where}: not a JSON object")
    x1, y1, x2, y2 = corners = _numbers(instance.get("bbox"), where)
    if not (-OVERSHOOT <= x1 <= x2 <= 1 + OVERSHOOT and -OVERSHOOT <= y1 <= y2 <= 1 + OVERSHOOT):
        shown = ", ".join(f"{value:.3f}" for value in corners)
        raise UserError(f"{where}: bbox [{shown}] is not x1, y1, x2, y2 inside the picture, from 0 to 1")
    crowd = instance.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise UserError(f"{where}: 'iscrowd' must be 0 or 1")
    category = _text(instance, "category", where)
    return Box(category, tuple(round(min(max(value, 0.0), 1.0), 3) for value in corners), bool(crowd))


def _numbers(value, where: str) -> list[float]:
    if not isinstance(value, list) or len(value) != 4 or not all(map(_is_number, value)):
        raise UserError(f"{where}: 'bbox' must be four numbers")
    return value


def _is_number(value) -> bool:
    """Whether ``value`` is a number. False for NaN and for numbers too large for a picture."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def _id(row: dict, key: str, where: str) -> int | str:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str) or not 0 < len(str(value)) <= MOST_CHARACTERS:
        raise UserError(f"{where}: '{key}' must be a whole number or a string")
    return value


def _known(row: dict, key: str, known: dict, where: str) -> int | str:
    value = _id(row, key, where)
    if value not in known:
        raise UserError(f"{where}: '{key}' {value!r} is not listed in the file")
    return value


def _text(row: dict, key: str, where: str) -> str:
    text = _clean(row.get(key), f"{where}: '{key}'")
    if not text:
        raise UserError(f"{where}: '{key}' is empty")
    return text


def _clean(text, where: str) -> str:
    """``text`` with white space reduced to single spaces, because line ends separate the parts of a context."""
    if not isinstance(text, str):
        raise UserError(f"{where} is not a string")
    if len(text) > MOST_CHARACTERS:
        raise UserError(f"{where} is longer than {MOST_CHARACTERS} characters")
    if re.search("[\ud800-\udfff]", text):
        raise UserError(f"{where} has half a character (a lone surrogate), which no file or request may have")
    return " ".join(text.split())
