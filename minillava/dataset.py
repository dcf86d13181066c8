"""Data on disk -> batches, in an order that (seed, epoch) alone decide.

- ``ConversationDataset``: LLaVA JSON beside an image folder; also rows whose picture is told in words, and plain text.
- ``RegionDataset``: pictures with captions and boxes, for the contrastive training.

Each gives ``dataset.batch(indices, epoch)``, a dict of tensors, and has a length. ``batch_order`` says which rows, and
``dataset.arrange(indices, epoch)`` in which order a batch is cut into micro-batches.
"""

import json
import os
import random
from pathlib import Path

import torch
from torch import Tensor

from minillava.conversation import IGNORE, encode_conversation, image_goes_first
from minillava.errors import UserError
from minillava.formats.llava_json import Rows
from minillava.image import ImageProcessor, open_image, safe_join
from minillava.tokenizer import IMAGE, Tokenizer


def batch_order(length: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The batches of one epoch: every row once, shuffled; a last short batch is kept."""
    rng = random.Random(f"{seed} {epoch}")
    order = list(range(length))
    rng.shuffle(order)
    return [order[start : start + batch_size] for start in range(0, length, batch_size)]


def check_row(row: dict) -> None:
    """What is asked of every row before any is used. Raises UserError."""
    if not isinstance(row.get("conversations"), list):
        raise UserError("no 'conversations'")
    if not isinstance(row.get("image", ""), str):
        raise UserError("'image' is not a text")


def encode_row(
    row: dict,
    tokenizer: Tokenizer,
    num_image_tokens: int,
    template: str = "v0",
    image_first: bool = True,
    turns: int | None = None,
) -> tuple[list[int], list[int]]:
    """A row that ``check_row`` lets pass -> its ids and labels; with ``turns`` odd, those of its first turns, ready for
    the next answer. Raises UserError where the row is malformed."""
    # The paper asks for a caption in a form of its own; LLaVA-1.5 and others as for anything else.
    template = "brief" if template == "v0" and row.get("type") == "caption" else template
    ids, labels = encode_conversation(row["conversations"][:turns], tokenizer, template, num_image_tokens, image_first)
    words = row.get("words", [""] * num_image_tokens)
    if not isinstance(words, list) or list(map(type, words)) != [str] * num_image_tokens:
        raise UserError(f"'words' must be {num_image_tokens} texts")
    pictures = ("image" in row) + ("words" in row)
    if ids.count(tokenizer.image_id) != pictures * num_image_tokens:
        raise UserError(f"{pictures} pictures and as many {IMAGE} marks are wanted")
    if turns is None and all(label == IGNORE for label in labels):
        raise UserError("no answer to learn from")
    return ids, labels


def read_lines(path: str | os.PathLike) -> list[tuple[int, str]]:
    """The lines of a text file that are not empty, each with its number from 1.

    Raises UserError where the file is missing, no UTF-8, or empty.
    """
    try:
        lines = [(n, line) for n, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), 1) if line]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error.strerror if isinstance(error, OSError) else error}") from None
    if not lines:
        raise UserError(f"{path}: empty")
    return lines


def pad(rows: list[list[int]], value: int, length: int | None = None) -> Tensor:
    """Lists of ids -> (B, longest or ``length``) int64, filled up on the right."""
    out = torch.full((len(rows), length or max(map(len, rows))), value, dtype=torch.long)
    for row, ids in zip(out, rows):
        row[: len(ids)] = torch.tensor(ids)
    return out


def pad_rows(rows: list[tuple[list[int], list[int]]], tokenizer: Tokenizer) -> dict[str, Tensor]:
    """(ids, labels) of each row -> input_ids and labels, (B, T) each.

    No attention mask is needed: padding stands on the right, where the causal mask hides it from every token.
    """
    ids, labels = zip(*rows)
    return {"input_ids": pad(ids, tokenizer.pad_id), "labels": pad(labels, IGNORE)}


def share_rows(lengths: list[int]) -> list[list[int]]:
    """Which conversations share a row as long as the longest: each, the longest first, in the first with room."""
    rows: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        for row in rows:
            if sum(lengths[other] for other in row) + lengths[index] <= max(lengths):
                row.append(index)
                break
        else:
            rows.append([index])
    return rows


class ConversationDataset:
    """Rows of LLaVA JSON, as ``input_ids``, ``labels`` and ``pixel_values`` (or ``word_ids``).

    With ``pack`` several conversations stand in one row of a batch, and ``segments`` tells them apart.
    ``image_first`` None draws eq. 1's coin for each row and epoch; True and False fix the picture's place. The lines of
    ``text_path`` become further rows, where every token bears loss.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        image_folder: str | os.PathLike,
        tokenizer: Tokenizer,
        image_processor: ImageProcessor,
        num_image_tokens: int,
        template: str = "v0",
        seed: int = 0,
        image_first: bool | None = None,
        text_path: str | os.PathLike | None = None,
        pack: bool = False,
    ):
        self.path, self.image_folder, self.tokenizer = Path(path), image_folder, tokenizer
        self.image_processor, self.num_image_tokens = image_processor, num_image_tokens
        self.template, self.seed, self.image_first, self.pack = template, seed, image_first, pack
        self.rows = Rows(path, check_row)
        self.lines = [] if text_path is None else [line for _, line in read_lines(text_path)]

    def __len__(self) -> int:
        return len(self.rows) + len(self.lines)

    def encode(self, index: int, epoch: int, turns: int | None = None) -> tuple[list[int], list[int]]:
        """One row's ids and labels; with ``turns`` odd, those of its first turns, ready for the next answer.

        Raises UserError, naming file and row, where the row is malformed.
        """
        if index >= len(self.rows):
            ids = [*self.tokenizer.encode(self.lines[index - len(self.rows)], special=False), self.tokenizer.eos_id]
            return ids, ids
        row = self.rows[index]
        first = image_goes_first(self.seed, epoch, index) if self.image_first is None else self.image_first
        try:
            return encode_row(row, self.tokenizer, self.num_image_tokens, self.template, first, turns)
        except UserError as error:
            raise UserError(f"{self.path}: row {index}: {error}") from None

    def pixels(self, index: int) -> Tensor:
        """The picture of one row, (3, height, width)."""
        row = self.rows[index]
        try:
            return self.image_processor(open_image(safe_join(self.image_folder, row["image"])))
        except UserError as error:
            raise UserError(f"{self.path}: row {index}: {error}") from None

    def arrange(self, indices: list[int], epoch: int) -> list[int]:
        """The rows of a batch with like lengths side by side, so that micro-batches hold little padding; packed ones
        stay mixed, for short ones to fill up what long ones leave."""
        return indices if self.pack else sorted(indices, key=lambda index: len(self.encode(index, epoch)[0]))

    def batch(self, indices: list[int], epoch: int) -> dict[str, Tensor]:
        """input_ids (B, T) and labels (B, T), padded on the right; lengths (B,), the tokens that are no padding;
        pixel_values (images, 3, H, W) where rows have pictures; word_ids (pictures, patches, words) where they are told
        in words, -1 for no word. If packed, segments (B, T): the conversation of each token from 1, 0 for padding."""
        encoded = [self.encode(index, epoch) for index in indices]
        if self.pack:
            groups = share_rows([len(ids) for ids, _ in encoded])
            indices = [indices[i] for group in groups for i in group]
            batch = self._packed([[encoded[i] for i in group] for group in groups])
        else:
            batch = pad_rows(encoded, self.tokenizer)
            batch["lengths"] = torch.tensor([len(ids) for ids, _ in encoded])
        rows = [(index, self.rows[index]) for index in indices if index < len(self.rows)]
        pictures = [self.pixels(index) for index, row in rows if "image" in row]
        if pictures:
            batch["pixel_values"] = torch.stack(pictures)
        told = [self.word_ids(row["words"]) for _, row in rows if "words" in row]
        if told:
            longest = max(len(cell) for cells in told for cell in cells)
            batch["word_ids"] = torch.stack([pad(cells, -1, longest) for cells in told])
        return batch

    def _packed(self, rows: list[list[tuple[list[int], list[int]]]]) -> dict[str, Tensor]:
        """Rows of several conversations each, all as (ids, labels). A conversation's first token bears no loss: what
        stands before it is another."""
        ids = [[index for ids, _ in row for index in ids] for row in rows]
        labels = [[label for _, labels in row for label in (IGNORE, *labels[1:])] for row in rows]
        segments = [[number for number, (ids, _) in enumerate(row, 1) for _ in ids] for row in rows]
        batch = pad_rows(list(zip(ids, labels)), self.tokenizer)
        return batch | {"lengths": torch.tensor([len(row) for row in ids]), "segments": pad(segments, 0)}

    def word_ids(self, words: list[str]) -> list[list[int]]:
        """The ids of each cell's words, in a picture told in words."""
        ids = {cell: self.tokenizer.encode(f" {cell}", special=False) for cell in set(words)}  # most are alike
        return [ids[cell] for cell in words]


class RegionDataset:
    """Pictures with captions and boxes, one a line of ``contexts.jsonl``, as the contrastive training wants them."""

    def __init__(
        self,
        path: str | os.PathLike,
        image_folder: str | os.PathLike,
        tokenizer: Tokenizer,
        image_size: int,
        patch_size: int,
        seed: int = 0,
    ):
        self.path, self.image_folder, self.tokenizer = Path(path), image_folder, tokenizer
        self.image_processor, self.grid = ImageProcessor.for_size(image_size), image_size // patch_size
        self.seed = seed
        self.rows = []
        for number, line in read_lines(path):
            try:
                self.rows.append({"line": number, **self._parsed(json.loads(line))})
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}: line {number}: no picture with captions and boxes ({error!r})") from None

    def __len__(self) -> int:
        return len(self.rows)

    def arrange(self, indices: list[int], epoch: int) -> list[int]:
        """As they are: a picture is as large as another."""
        return indices

    def batch(self, indices: list[int], epoch: int) -> dict[str, Tensor]:
        """pixel_values (B, 3, H, W); captions (C, T), the batch's distinct ones, and caption_match (B,) into them;
        region_owner (R,) and region_patch (R,): the pictures' positions and patches that boxes cover; phrases (P, T),
        distinct, and phrase_match (R,)."""
        captions: dict[str, int] = {}
        phrases: dict[str, int] = {}
        caption_match, phrase_match, owner, patch = [], [], [], []
        pictures = []
        for position, index in enumerate(indices):
            row = self.rows[index]
            rng = random.Random(f"{self.seed} {epoch} {index}")
            caption_match.append(captions.setdefault(rng.choice(row["captions"]), len(captions)))
            for phrase, patches in zip(row["phrases"], row["patches"]):
                if patches:
                    phrase_match += [phrases.setdefault(phrase, len(phrases))] * len(patches)
                    owner += [position] * len(patches)
                    patch += patches
            try:
                pictures.append(self.image_processor(open_image(safe_join(self.image_folder, row["image"]))))
            except UserError as error:
                raise UserError(f"{self.path}: line {row['line']}: {error}") from None
        return {
            "pixel_values": torch.stack(pictures),
            "captions": self._texts(captions),
            "caption_match": torch.tensor(caption_match, dtype=torch.long),
            "region_owner": torch.tensor(owner, dtype=torch.long),
            "region_patch": torch.tensor(patch, dtype=torch.long),
            "phrases": self._texts(phrases),
            "phrase_match": torch.tensor(phrase_match, dtype=torch.long),
        }

    def _parsed(self, row: dict) -> dict:
        """What training reads of a line. Raises ValueError, KeyError or TypeError where it is not there."""
        phrases = [instance["phrase"] for instance in row["instances"]]
        if not row["captions"] or not isinstance(row["captions"], list):
            raise ValueError("no list of captions")
        if not all(isinstance(text, str) for text in [row["image"], *row["captions"], *phrases]):
            raise TypeError("image, captions and phrases must be texts")
        boxes = [instance["bbox"] for instance in row["instances"]]
        patches = patches_of_boxes(boxes, self.grid)
        return {"image": row["image"], "captions": row["captions"], "phrases": phrases, "patches": patches}

    def _texts(self, texts: dict[str, int]) -> Tensor:
        end = self.tokenizer.eos_id
        if not texts:
            return torch.empty(0, 1, dtype=torch.long)
        return pad([[*self.tokenizer.encode(text, special=False), end] for text in texts], end)


def patches_of_boxes(boxes: list[list[float]], grid: int) -> list[list[int]]:
    """For each box (x1, y1, x2, y2 in 0..1), the patches whose middle it covers and no smaller box does."""
    area = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in boxes]
    patches: list[list[int]] = [[] for _ in boxes]
    for index in range(grid * grid):
        u, v = (index % grid + 0.5) / grid, (index // grid + 0.5) / grid
        covering = [i for i, (x1, y1, x2, y2) in enumerate(boxes) if x1 <= u <= x2 and y1 <= v <= y2]
        if covering:
            patches[min(covering, key=area.__getitem__)].append(index)
    return patches
