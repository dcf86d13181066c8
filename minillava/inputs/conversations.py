"""Rows of a file -> examples -> batches. A file holds LLaVA JSON or lines of plain text.

A row of LLaVA JSON may have a picture ("image"), or words in place of a picture ("patch_words": for each patch, a
string that says what is there). Rows with words train a decoder before it sees real pictures. In a batch, a row holds
one conversation, or several ("packed"), and padding.

A row that is longer than the model reads is cut at the end of its last whole turn (a question and its answer) that
fits, or left out if none does. A row whose picture cannot be read is left out too. ``Rejected`` counts them.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from minillava.errors import UserError
from minillava.formats.llava_json import Rows
from minillava.formats.text_file import read_lines
from minillava.inputs.conversation import IGNORE, check_turns, image_goes_first
from minillava.inputs.image import AnyPath, find_picture, open_image
from minillava.inputs.processor import Processor
from minillava.inputs.rejected import CUT, NO_PICTURE, TOO_LONG, Rejected
from minillava.inputs.tokenizer import IMAGE, Tokenizer
from minillava.progress import progress

IdsAndLabels = tuple[list[int], list[int]]
MARGIN = 8  # tokens a turn, see _most_tokens()
LONG = 40  # characters; a word that is longer is not kept
LONGEST = 2000  # characters of the words for a patch: all patches of a batch take as much memory as the longest


@contextmanager
def naming_row(path: AnyPath, index: int, row: str = "row") -> Iterator[None]:
    """Inside this context, a UserError gets the file and the row before its message."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {row} {index}: {error}") from None


def check_row(row: dict, processor: Processor) -> None:
    """The check of each row when its file is opened: everything but its picture. Raises UserError."""
    if "conversations" not in row:
        firsts = [(key, value[0]) for key, value in row.items() if isinstance(value, list) and value]
        inside = [key for key, first in firsts if isinstance(first, dict) and "conversations" in first]
        hint = f"; the file must be a list of rows, not one object around {inside[0]!r}" if inside else ""
        raise UserError(f"no 'conversations' among its keys ({', '.join(map(repr, row))[:100]}){hint}")
    turns = row["conversations"]
    check_turns(turns, _processor_of(row, processor).template)
    if len(turns) == 1:
        raise UserError("the row has no answer, so there is nothing to learn")
    if not isinstance(row.get("image", ""), str):
        raise UserError("'image' is not a string")
    patches = processor.num_image_tokens
    words = row.get("patch_words", [""] * patches)
    strings = isinstance(words, list) and list(map(type, words)) == [str] * patches
    if not strings or any(len(text) > LONGEST for text in words):
        raise UserError(f"'patch_words' must be a list of {patches} strings of at most {LONGEST:,} characters")
    pictures, mark = [key for key in ("image", "patch_words") if key in row], IMAGE in turns[0]["value"]
    if len(pictures) > 1:
        raise UserError("the row has both 'image' and 'patch_words'")
    if pictures and not mark:
        raise UserError(f"the row has '{pictures[0]}', but no {IMAGE} in turn 0")
    if mark and not pictures:
        raise UserError(f"the row has {IMAGE} in turn 0, but no 'image'")


def encode_row(row: dict, processor: Processor, image_first: bool = True, turns: int | None = None) -> IdsAndLabels:
    """A row that passed ``check_row`` -> (input_ids, labels).

    With ``turns``, only so many of its first questions and answers are encoded: 1 is a question, 2 also its answer.
    After a question the ids end where the answer should begin.
    """
    return _processor_of(row, processor).encode(row["conversations"][:turns], image_first)


def text_of(row: dict, processor: Processor, image_first: bool = True, turns: int | None = None) -> dict:
    """A row's example without its picture: "input_ids", "labels" and, with words in place of a picture, "word_ids"."""
    ids, labels = encode_row(row, processor, image_first, turns)
    if "patch_words" not in row:
        return {"input_ids": ids, "labels": labels}
    # Most patches have the same words, so each distinct string is encoded once.
    ids_of = {text: processor.tokenizer.encode(f" {text}", special=False) for text in set(row["patch_words"])}
    return {"input_ids": ids, "labels": labels, "word_ids": [ids_of[text] for text in row["patch_words"]]}


def _processor_of(row: dict, processor: Processor) -> Processor:
    """``processor``, or the one with stage 1's template for a caption, which always gets that."""
    if row.get("type") == "caption" and not processor.template.picture_only:
        return processor.for_captions()
    return processor


def turns_that_fit(row: dict, processor: Processor, max_length: int) -> int | None:
    """How many turns (a question and its answer) of a row fit into ``max_length`` tokens, wherever its picture goes.

    None if the whole row fits.
    """
    if _most_tokens(row, processor) <= max_length:
        return None

    def tokens(turns: int | None) -> int:
        return max(len(encode_row(row, processor, first, turns and 2 * turns)[0]) for first in (True, False))

    if tokens(None) <= max_length:
        return None
    return bisect_right(range(1, len(row["conversations"]) // 2 + 1), max_length, key=tokens)


def _most_tokens(row: dict, processor: Processor) -> int:
    """A number of tokens that a row does not exceed: the sum over its words, most of which have been met before.

    Tokenizers begin a new token at a space between words, and a token has at least one byte. The margin is for the
    places where the parts of a conversation meet.
    """
    t, turns = _processor_of(row, processor).template, row["conversations"]
    around = t.human + t.after_question + t.assistant + t.before_answer + t.after_answer + t.stop + t.after_stop
    parts = [t.opening, *[around] * (len(turns) // 2 + 1), *(turn["value"] for turn in turns)]
    words = [f" {word}" for part in parts for word in part.split(" ")]
    count = sum(
        _count_tokens(processor.tokenizer, word) if len(word) < LONG else len(word.encode("utf-8", "surrogatepass"))
        for word in words
    )
    return processor.num_image_tokens + count + MARGIN * len(turns)


@lru_cache(maxsize=1 << 17)
def _count_tokens(tokenizer: Tokenizer, word: str) -> int:
    return len(tokenizer.encode(word, special=False))


@dataclass(eq=False)
class ConversationDataset(Dataset):
    """Rows of LLaVA JSON as examples: ``dataset[seed, epoch, index]``.

    The key also decides whether the picture goes before or after the question, so every process makes the same example.
    The lines of ``text_path`` are further rows, in which every token but the first has a loss.

    Opening the file checks every row, and that its picture is there. Rows of more than ``max_length`` tokens are cut or
    left out. Up to ``max_rejected`` rows are left out because their picture cannot be read; None: one in a thousand,
    so none of fewer than a thousand. Raises UserError, naming file and row, for any other fault.
    """

    path: AnyPath
    image_folder: AnyPath
    processor: Processor
    image_place: Literal["random", "first", "last"] = "random"  # place in the first turn; random: paper, eq. 2
    text_path: AnyPath | None = None
    max_length: int | None = None
    max_rejected: int | None = 0

    def __post_init__(self):
        self.rejected = Rejected(self.path)
        self.kept = array("q")  # the numbers of the rows that are not left out
        self.turns: dict[int, int] = {}  # how many turns each row keeps that is cut
        with progress(desc=f"opening {Path(self.path).name}", unit="row") as bar:
            self.rows = Rows(self.path, lambda n, row: (self._open(n, row), bar.update()), self.rejected.add)
        self.rejected.most = len(self.rows) // 1000 if self.max_rejected is None else self.max_rejected
        self.rejected.check()
        self.lines: list[str] = []
        for number, line in [] if self.text_path is None else read_lines(self.text_path):
            if len(line.encode()) >= (self.max_length or inf) and len(self._line_ids(line)) > self.max_length:
                why = f"line {number} of {self.text_path} has more than {self.max_length:,} tokens"
                self.rejected.add(len(self.rows) + len(self.lines), CUT, why)
            self.lines.append(line)
        if not len(self):
            raise UserError(f"{self.path}: no row is left; row 0: {self.rejected.found[0]['why']}")

    def _open(self, number: int, row: dict) -> None:
        """Check a row, and decide whether it is kept, cut or left out."""
        check_row(row, self.processor)
        fits = None if self.max_length is None else turns_that_fit(row, self.processor, self.max_length)
        if "image" in row and fits != 0:
            try:
                find_picture(self.image_folder, row["image"])
            except UserError as error:
                self.rejected.add(number, NO_PICTURE, str(error))
                return
        if fits is not None:
            of = f"{len(row['conversations']) // 2} turns fit into {self.max_length:,} tokens"
            self.rejected.add(number, CUT if fits else TOO_LONG, f"{fits} of {of}")
            self.turns[number] = fits
        if fits != 0:
            self.kept.append(number)

    def __len__(self) -> int:
        return len(self.kept) + len(self.lines)

    @property
    def files(self) -> list[AnyPath]:
        """The files that the rows come from."""
        return [path for path in (self.path, self.text_path) if path is not None]

    @property
    def options(self) -> dict[str, object]:
        """What else decides the examples, by name."""
        template, image = self.processor.template, self.processor.image
        options = {"image_place": self.image_place, "max_length": self.max_length}
        return options | {"template": template, "image_processor": image}

    def size(self, index: int) -> int:
        """About how long a row is, known without parsing it. It is used to batch rows of similar length."""
        if index >= len(self.kept):
            return len(self.lines[index - len(self.kept)])
        return self.rows.size(self.kept[index])

    def where(self, index: int) -> str:
        """Where an example is in the files."""
        return f"row {self.kept[index]}" if index < len(self.kept) else f"text {index - len(self.kept)}"

    def __getitem__(self, key: tuple[int, int, int]) -> dict:
        """A dict of "input_ids" and "labels", lists of equal length; "pixel_values" (3, H, W) if the row has a picture;
        "word_ids", a list of ids for each patch, if it has a picture given as words.

        If the picture cannot be read, the next row takes the row's place. Raises UserError, naming file and row, if
        that has happened to more than ``max_rejected`` rows.
        """
        seed, epoch, index = key
        for step in range(len(self)):
            if example := self._example(seed, epoch, (index + step) % len(self)):
                return example
        raise UserError(f"{self.path}: no picture can be read")

    def _example(self, seed: int, epoch: int, index: int) -> dict | None:
        """None if the row's picture cannot be read."""
        if index >= len(self.kept):
            ids = self._line_ids(self.lines[index - len(self.kept)])[: self.max_length]
            return {"input_ids": ids, "labels": ids}
        number = self.kept[index]
        row, example = self.rows[number], {}
        if "image" in row:
            example["pixel_values"] = self.picture(number, row)
            if example["pixel_values"] is None:
                return None
        first = image_goes_first(seed, epoch, index) if self.image_place == "random" else self.image_place == "first"
        turns = 2 * self.turns[number] if number in self.turns else None
        with naming_row(self.path, number):
            return example | text_of(row, self.processor, first, turns)

    def _line_ids(self, line: str) -> list[int]:
        return [*self.processor.tokenizer.encode(line, special=False), self.processor.tokenizer.eos_id]

    def picture(self, number: int, row: dict) -> Tensor | None:
        """The picture of row ``number``, (3, H, W); None if it cannot be read and the row may be left out."""
        try:
            return self.pixels(row)
        except UserError as error:
            self.rejected.add(number, NO_PICTURE, str(error))
            self.rejected.check(-1)

    def pixels(self, row: dict) -> Tensor:
        """The picture of a row, (3, H, W). Raises UserError if it cannot be read."""
        return self.processor.image(open_image(find_picture(self.image_folder, row["image"])))

    def collate(self, examples: list[dict]) -> dict[str, Tensor]:
        """input_ids (B, T) and labels (B, T), padded on the right; lengths (B,), the number of tokens without padding.

        With pictures also pixel_values (images, 3, H, W). With pictures given as words also word_ids (images, patches,
        n), where n is the largest number of ids that a patch has; shorter lists are padded with -1.
        """
        batch = self._padded([(example["input_ids"], example["labels"]) for example in examples])
        if pictures := [example["pixel_values"] for example in examples if "pixel_values" in example]:
            batch["pixel_values"] = torch.stack(pictures)
        if told := [example["word_ids"] for example in examples if "word_ids" in example]:
            batch["word_ids"] = pad([cell for cells in told for cell in cells], -1).unflatten(0, (len(told), -1))
        return batch

    def collate_packed(self, examples: list[dict]) -> dict[str, Tensor]:
        """Like collate(), but a row of the batch may hold several conversations. attention_mask (B, T) is k for the
        tokens of the row's k-th conversation and 0 for padding. The first token of a conversation has no loss, since
        the position before it belongs to another conversation."""
        groups = [[examples[i] for i in group] for group in share_rows([len(e["input_ids"]) for e in examples])]
        batch = self.collate([example for group in groups for example in group])
        ids = [[index for example in group for index in example["input_ids"]] for group in groups]
        labels = [[label for e in group for label in (IGNORE, *e["labels"][1:])] for group in groups]
        numbers = [[k for k, example in enumerate(group, 1) for _ in example["input_ids"]] for group in groups]
        return batch | self._padded(list(zip(ids, labels))) | {"attention_mask": pad(numbers, 0)}

    def _padded(self, rows: list[IdsAndLabels]) -> dict[str, Tensor]:
        lengths = torch.tensor([len(ids) for ids, _ in rows])
        return pad_rows(rows, self.processor.tokenizer.pad_id) | {"lengths": lengths}


def pad_rows(rows: Iterable[IdsAndLabels], pad_id: int) -> dict[str, Tensor]:
    """(ids, labels) of each row -> input_ids and labels, each (B, T). Padding is on the right, where the causal mask
    hides it from all other tokens, so no attention mask is needed."""
    ids, labels = zip(*rows)
    return {"input_ids": pad(ids, pad_id), "labels": pad(labels, IGNORE)}


def share_rows(lengths: list[int]) -> list[list[int]]:
    """Packing: the lengths of conversations -> groups of their indices; each group shares a row.

    A row is as long as the longest conversation. From the longest to the shortest, each conversation goes to the first
    row with enough room (first-fit decreasing).
    """
    rows: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        row = next((row for row in rows if sum(lengths[i] for i in [*row, index]) <= max(lengths)), [])
        if not row:
            rows.append(row)
        row.append(index)
    return rows


def pad(rows: Sequence[list[int]], value: int) -> Tensor:
    """Lists of ids -> (B, longest) int64, filled with ``value`` on the right; (0, 1) if there are no lists."""
    out = torch.full((len(rows), max(map(len, rows), default=1)), value, dtype=torch.long)
    for row, ids in zip(out, rows):
        row[: len(ids)] = torch.tensor(ids)
    return out
