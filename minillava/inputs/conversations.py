"""Rows of a file -> examples -> batches. A file holds LLaVA JSON or lines of plain text.

A row of LLaVA JSON may have a picture ("image"), or words in place of a picture ("words": for each patch, a string that
says what is there). Rows with words train a decoder before it sees real pictures. In a batch, a row holds one
conversation, or several ("packed"), and padding.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from minillava.errors import UserError
from minillava.formats.llava_json import Rows
from minillava.inputs.conversation import IGNORE, image_goes_first
from minillava.inputs.image import AnyPath, open_image, safe_join
from minillava.inputs.processor import Processor
from minillava.inputs.tokenizer import IMAGE

IdsAndLabels = tuple[list[int], list[int]]


@contextmanager
def naming_row(path: AnyPath, index: int, row: str = "row") -> Iterator[None]:
    """Inside this context, a UserError gets the file and the row before its message."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {row} {index}: {error}") from None


def check_row(row: dict) -> None:
    """The check of each row when its file is opened. Raises UserError."""
    if not isinstance(row.get("conversations"), list):
        raise UserError("no 'conversations'")
    if not isinstance(row.get("image", ""), str):
        raise UserError("'image' is not a string")


def encode_row(row: dict, processor: Processor, image_first: bool = True, turns: int | None = None) -> IdsAndLabels:
    """A row that passed ``check_row`` -> (input_ids, labels). Raises UserError if it is malformed.

    With ``turns``, only that many turns are encoded; if it is odd, the ids end where the next answer should begin.
    """
    if row.get("type") == "caption" and not processor.for_captions().template.picture_only:
        processor = processor.for_captions()  # a caption always gets stage 1's template
    ids, labels = processor.encode(row["conversations"][:turns], image_first)
    patches = processor.num_image_tokens
    words = row.get("words", [""] * patches)
    if not isinstance(words, list) or list(map(type, words)) != [str] * patches:
        raise UserError(f"'words' must be a list of {patches} strings")
    pictures = ("image" in row) + ("words" in row)
    if (marks := ids.count(processor.tokenizer.image_id) // patches) != pictures:
        raise UserError(f"pictures in the row: {pictures}, {IMAGE} in its text: {marks}")
    if turns is None and all(label == IGNORE for label in labels):
        raise UserError("the row has no answer, so there is nothing to learn")
    return ids, labels


@dataclass(eq=False)
class ConversationDataset(Dataset):
    """Rows of LLaVA JSON as examples: ``dataset[seed, epoch, row]``.

    The key also decides whether the picture goes before or after the question, so every process makes the same example.
    The lines of ``text_path`` are further rows, in which every token but the first has a loss.
    """

    path: AnyPath
    image_folder: AnyPath
    processor: Processor
    image_place: Literal["random", "first", "last"] = "random"  # place in the first turn; random: paper, eq. 2
    text_path: AnyPath | None = None

    def __post_init__(self):
        self.rows = Rows(self.path, check_row)
        self.lines = [] if self.text_path is None else [line for _, line in read_lines(self.text_path)]

    def __len__(self) -> int:
        return len(self.rows) + len(self.lines)

    @property
    def files(self) -> list[AnyPath]:
        """The files that the rows come from."""
        return [path for path in (self.path, self.text_path) if path is not None]

    @property
    def options(self) -> dict[str, object]:
        """What else decides the examples, by name."""
        processor = self.processor
        return {"image_place": self.image_place, "template": processor.template, "image_processor": processor.image}

    def size(self, index: int) -> int:
        """About how long a row is, known without parsing it. It is used to batch rows of similar length."""
        return self.rows.size(index) if index < len(self.rows) else len(self.lines[index - len(self.rows)])

    def __getitem__(self, key: tuple[int, int, int]) -> dict:
        """A dict of "input_ids" and "labels", lists of equal length; "pixel_values" (3, H, W) if the row has a picture;
        "word_ids", a list of ids for each patch, if it has a picture given as words.

        Raises UserError, naming file and row.
        """
        seed, epoch, index = key
        tokenizer = self.processor.tokenizer
        if index >= len(self.rows):
            ids = [*tokenizer.encode(self.lines[index - len(self.rows)], special=False), tokenizer.eos_id]
            return {"input_ids": ids, "labels": ids}
        row = self.rows[index]
        first = image_goes_first(seed, epoch, index) if self.image_place == "random" else self.image_place == "first"
        with naming_row(self.path, index):
            ids, labels = encode_row(row, self.processor, first)
            example = {"input_ids": ids, "labels": labels}
            if "image" in row:
                example["pixel_values"] = self.pixels(row)
        if "words" in row:
            # Most patches have the same words, so each distinct string is encoded once.
            ids_of = {words: tokenizer.encode(f" {words}", special=False) for words in set(row["words"])}
            example["word_ids"] = [ids_of[words] for words in row["words"]]
        return example

    def pixels(self, row: dict) -> Tensor:
        """The picture of a row, (3, H, W). Raises UserError if it cannot be read."""
        return self.processor.image(open_image(safe_join(self.image_folder, row["image"])))

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


def read_lines(path: AnyPath) -> list[tuple[int, str]]:
    """The non-empty lines of a text file, each with its number from 1. Raises UserError if there are none, or if the
    file is missing or not UTF-8."""
    try:
        lines = [(n, line) for n, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), 1) if line]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error.strerror if isinstance(error, OSError) else error}") from None
    if not lines:
        raise UserError(f"{path}: empty")
    return lines


def pad(rows: Sequence[list[int]], value: int) -> Tensor:
    """Lists of ids -> (B, longest) int64, filled with ``value`` on the right; (0, 1) if there are no lists."""
    out = torch.full((len(rows), max(map(len, rows), default=1)), value, dtype=torch.long)
    for row, ids in zip(out, rows):
        row[: len(ids)] = torch.tensor(ids)
    return out
