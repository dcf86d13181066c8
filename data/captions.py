"""Pictures with one caption each: reading them from files, and making stage-1 rows of them."""

import codecs
import csv
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from data.requests import BRIEF_REQUESTS
from data.rows import conversation
from minillava.errors import UserError
from minillava.formats.llava_json import scan
from minillava.formats.text_file import begin_of
from minillava.inputs.tokenizer import IMAGE

LONGEST_LINE = 1 << 20  # bytes


def read_captions(
    path: str | os.PathLike, check: Callable[[str], None] = lambda image: None
) -> Iterator[tuple[str, str]]:
    """Yield (image, caption) pairs, with one in memory at a time, from either of

    - NAME.json or NAME.jsonl: objects with "image" and "caption", or with "image" and "conversations", where the
      caption is the first answer (LLaVA-CC3M-Pretrain-595K's metadata.json and chat.json);
    - NAME.tsv: lines of image, tab, caption;
    - NAME.csv: a table with the columns "image" and "caption"; others are passed over.

    ``check`` is called with each image, and raises UserError for a bad one. Raises UserError, naming the row or line,
    for another kind of file, a file without captions, and a caption that is empty or contains <image>.
    """
    path = Path(path)
    readers = {".json": _of_json, ".jsonl": _of_json, ".tsv": _of_tsv, ".csv": _of_csv}
    if path.suffix not in readers:
        raise UserError(f"{path}: not a .json, .jsonl, .tsv or .csv file")
    place = None
    for place, image, caption in readers[path.suffix](path):
        if not isinstance(image, str) or not isinstance(caption, str) or not image or not caption.strip():
            raise UserError(f"{path}: {place}: no image with a caption")
        if IMAGE in caption:
            raise UserError(f"{path}: {place}: the caption contains {IMAGE}, the placeholder of the picture")
        try:
            check(image)
        except UserError as error:
            raise UserError(f"{path}: {place}: {error}") from None
        yield image, caption.strip()
    if place is None:
        raise UserError(f"{path}: empty, no captions")


def caption_row(name: str, image: str, caption: str, rng: random.Random) -> dict:
    """A stage-1 row: one of the paper's eleven requests, drawn by ``rng``, with the caption as the answer."""
    turns = conversation([(rng.choice(BRIEF_REQUESTS), caption)])
    return {"id": name, "image": image, "type": "caption", "conversations": turns}


def _of_json(path: Path) -> Iterator[tuple[str, object, object]]:
    for index, (_, _, row) in enumerate(scan(path)):
        caption = row.get("caption")
        if caption is None:
            try:
                caption = row["conversations"][1]["value"]
            except (KeyError, IndexError, TypeError):
                caption = None
        yield f"row {index}", row.get("image"), caption


def _of_tsv(path: Path) -> Iterator[tuple[str, str, str]]:
    for number, line in enumerate(_lines(path), 1):
        fields = line.rstrip("\r\n").split("\t")
        if len(fields) != 2:
            raise UserError(f"{path}: line {number}: not image, tab, caption")
        yield f"line {number}", *fields


def _of_csv(path: Path) -> Iterator[tuple[str, str, str]]:
    rows = csv.DictReader(_lines(path), strict=True)
    try:
        columns = rows.fieldnames or []
        if not {"image", "caption"} <= set(columns):
            raise UserError(f"{path}: line 1: needs the columns image and caption, has {', '.join(columns)[:100]!r}")
        for row in rows:
            if None in row or None in row.values():  # too many fields, or too few
                raise UserError(f"{path}: line {rows.line_num}: not {len(columns)} fields; quote text with commas")
            yield f"line {rows.line_num}", row["image"], row["caption"]
    except csv.Error as error:
        raise UserError(f"{path}: line {rows.reader.line_num}: {error}") from None


def _lines(path: Path) -> Iterator[str]:
    begin = begin_of(path)
    try:
        with open(path, "rb") as file:
            file.seek(len(codecs.BOM_UTF8) if begin.startswith(codecs.BOM_UTF8) else 0)
            for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), 1):
                if len(line) == LONGEST_LINE:
                    raise UserError(f"{path}: line {number}: longer than {LONGEST_LINE:,} bytes")
                yield line.decode()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: line {number}: not UTF-8") from None
