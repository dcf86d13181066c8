"""A folder of one's own pictures -> the files that the trainings from scratch read, in the form of the picture-book's.

The folder holds pictures, and what is said of them in at least one of

captions.csv     columns image and caption; any number of lines about a picture
contexts.jsonl   a line {"image", "captions", "instances"} about a picture, as the picture-book has them
instruct.json    conversations in LLaVA JSON; it may have another name if it is the only .json or .jsonl file left

Where a picture has conversations but no caption, each question with its answer is its caption. What is written:

images           a link to the folder
contexts.jsonl   each picture's captions, and boxes if there are any; trains the vision tower
text.txt         a line a conversation: the picture's captions, questions and answers; trains tokenizer and decoder
words.json       the conversations with the words of the captions in place of the picture; trains the decoder
captions.json    stage 1: a brief request and a caption
instruct.json    stage 2: the conversations or, if there are none, captions
"""

import filecmp
import json
import os
import random
import shutil
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path

from data.captions import caption_row, read_captions
from data.requests import BRIEF_REQUESTS, DETAIL_REQUESTS
from data.rows import conversation, write_rows
from minillava.errors import UserError
from minillava.formats.llava_json import Rows
from minillava.formats.text_file import read_lines
from minillava.inputs.conversations import check_row, naming_row
from minillava.inputs.image import find_picture, open_image
from minillava.inputs.processor import Processor
from minillava.inputs.regions import parse_line
from minillava.inputs.tokenizer import IMAGE
from minillava.progress import progress

CAPTIONS, CONTEXTS, INSTRUCT = "captions.csv", "contexts.jsonl", "instruct.json"
WRITTEN = (CONTEXTS, "text.txt", "words.json", "captions.json", INSTRUCT)
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")  # of files that are taken for pictures
REQUESTS = {*BRIEF_REQUESTS, *DETAIL_REQUESTS}


def write_own(folder: Path, out: Path, patches: int, heldout: Path | None = None, seed: int = 0) -> None:
    """Write the files for ``folder`` into ``out``. If ``out`` exists, they must be the same.

    In words.json a picture is given as words for ``patches`` patches. The file ``heldout``, which may be in ``folder``,
    is not read. Raises UserError, naming file and row, if a row is malformed or a picture cannot be read.
    """
    own = Own(folder, patches, heldout, look=not out.exists())
    new, rng = out.with_name(f"{out.name}.new"), random.Random(f"{seed} own")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    (new / "images").symlink_to(folder.resolve())
    with open(new / CONTEXTS, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(context) + "\n" for context in own.contexts())
    (new / "text.txt").write_text("".join(f"{line}\n" for line in own.lines(rng)), encoding="utf-8")
    write_rows(new / "words.json", own.told(patches, rng))
    write_rows(new / "captions.json", own.described(rng))
    write_rows(new / INSTRUCT, own.conversations(rng))
    if not out.exists():
        print(f"data: {own.summary()}", flush=True)
        os.replace(new, out)
        return
    same = filecmp.cmpfiles(new, out, WRITTEN, shallow=False)[0] == list(WRITTEN)
    same &= os.path.realpath(out / "images") == os.path.realpath(folder)
    shutil.rmtree(new)
    if not same:
        raise UserError(f"{out}: has been made from something else than {folder} as it is now; choose another --out")


class Own:
    """What a folder says of its pictures: ``rows`` of LLaVA JSON, ``captions`` and ``boxes`` by picture."""

    def __init__(self, folder: Path, patches: int, heldout: Path | None, look: bool):
        """``look``: open each picture, as training does."""
        self.folder, self.rows = folder, ()
        self.captions: dict[str, list[str]] = {}
        self.boxes: dict[str, list[dict]] = {}
        self.source = instructions(folder, heldout)
        if not self.source and not any((folder / name).exists() for name in (CAPTIONS, CONTEXTS)):
            raise UserError(f"{folder}: has none of {CAPTIONS}, {CONTEXTS} and {INSTRUCT}")
        processor = Processor(None, None, patches)
        with progress(desc=f"reading {folder.name}", unit="picture") as bar:

            @cache
            def check(name: str) -> None:
                path = find_picture(folder, name)
                if look:
                    open_image(path)
                bar.update()

            def check_conversation(_: int, row: dict) -> None:
                check_row(row, processor)
                if "image" in row:
                    check(row["image"])

            if (folder / CAPTIONS).exists():
                for image, caption in read_captions(folder / CAPTIONS, check):
                    self.captions.setdefault(image, []).append(on_one_line(caption))
            if (folder / CONTEXTS).exists():
                for number, line in read_lines(folder / CONTEXTS):
                    row = parse_line(folder / CONTEXTS, number, line)
                    with naming_row(folder / CONTEXTS, number, "line"):
                        check(row["image"])
                    self.captions.setdefault(row["image"], []).extend(map(on_one_line, row["captions"]))
                    self.boxes.setdefault(row["image"], []).extend(row["instances"])
            if self.source:
                self.rows = Rows(self.source, check_conversation)
        self.without: dict[str, list[tuple[str, str]]] = {}  # the turns about each picture that has no caption
        for row in self.rows:
            if "image" in row and row["image"] not in self.captions:
                self.without.setdefault(row["image"], []).extend(turns_of(row))
        if not self.captions and not self.without:
            raise UserError(f"{self.source}: no row has a picture ('image')")

    def texts(self, image: str) -> list[str]:
        """The captions of a picture or, if it has none, its questions with their answers."""
        return self.captions.get(image) or [as_text(turn) for turn in self.without[image]]

    def contexts(self) -> Iterator[dict]:
        for image in chain(self.captions, self.without):
            yield {"image": f"images/{image}", "captions": self.texts(image), "instances": self.boxes.get(image, [])}

    def described(self, rng: random.Random) -> Iterator[dict]:
        """Stage 1's rows."""
        for image, captions in self.captions.items():
            for number, caption in enumerate(captions):
                yield caption_row(f"{image}-{number}", f"images/{image}", caption, rng)
        for image, turns in self.without.items():
            for number, turn in enumerate(turns):
                yield {"id": f"{image}-{number}", "image": f"images/{image}", "conversations": conversation([turn])}

    def conversations(self, rng: random.Random) -> Iterator[dict]:
        """Stage 2's rows."""
        for row in self.rows:
            yield row | {"image": f"images/{row['image']}"} if "image" in row else row
        if not self.rows:
            for row in self.described(rng):
                del row["type"]  # so that it has the form of a conversation
                yield row

    def told(self, patches: int, rng: random.Random) -> Iterator[dict]:
        """Stage 2's rows with the words of the picture's texts in its place."""
        for row in self.conversations(rng):
            if image := row.pop("image", None):
                row["patch_words"] = spread(self.shuffled(image.removeprefix("images/"), rng), patches)
            yield row

    def lines(self, rng: random.Random) -> Iterator[str]:
        """For each conversation, the captions of its picture and the turns; then the captions of the other pictures."""
        asked = set()
        for row in self.rows:
            image, turns = row.get("image"), [as_text(turn) for turn in turns_of(row)]
            asked.add(image)
            yield " ".join([self.shuffled(image, rng), *turns] if image in self.captions else turns)
        for image in self.captions:
            if image not in asked:
                yield self.shuffled(image, rng)

    def shuffled(self, image: str, rng: random.Random) -> str:
        """The texts of a picture in random order."""
        texts = self.texts(image)
        return " ".join(rng.sample(texts, len(texts)))

    def summary(self) -> str:
        parts = [f"{len(self.captions) + len(self.without):,} pictures of {self.folder}"]
        if self.captions:
            parts.append(f"{sum(map(len, self.captions.values())):,} captions of {len(self.captions):,} pictures")
        if self.rows:
            parts.append(f"{len(self.rows):,} conversations in {self.source.name}")
        known = {*self.captions, *self.without}
        found = (Path(path, name) for path, _, names in os.walk(self.folder) for name in names)
        names = (path.relative_to(self.folder).as_posix() for path in found if path.suffix.lower() in SUFFIXES)
        if others := sum(name not in known for name in names):
            parts.append(f"{others:,} other pictures there are not trained on: nothing is said of them")
        return "; ".join(parts)


def instructions(folder: Path, heldout: Path | None) -> Path | None:
    """The file of conversations in ``folder``, if there is one. Raises UserError if it may be one of several."""
    if (folder / INSTRUCT).exists():
        return folder / INSTRUCT
    found = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".jsonl") and path.name != CONTEXTS)
    found = [path for path in found if not (heldout and heldout.exists() and path.samefile(heldout))]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UserError(f"{folder}: which file is trained on? Call it {INSTRUCT}; there are {names}")
    return found[0] if found else None


def turns_of(row: dict) -> list[tuple[str, str]]:
    """The questions of a row, without <image>, and their answers."""
    said = [on_one_line(turn["value"].replace(IMAGE, " ")) for turn in row["conversations"]]
    return list(zip(said[::2], said[1::2]))


def as_text(turn: tuple[str, str]) -> str:
    """A question and its answer; of a request for a description, only the description."""
    return turn[1] if turn[0] in REQUESTS else " ".join(turn)


def on_one_line(text: str) -> str:
    return " ".join(text.split())


def spread(text: str, patches: int) -> list[str]:
    """The words of a text for so many patches, in reading order. Few words are repeated, many share a patch."""
    words = text.split() or [""]
    size = -(-len(words) // patches)
    parts = [" ".join(words[start : start + size]) for start in range(0, len(words), size)]
    return [parts[patch % len(parts)] for patch in range(patches)]
