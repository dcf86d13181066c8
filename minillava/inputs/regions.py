"""Pictures with captions and boxes -> batches for the contrastive training of the vision tower."""

import json
import math
import random

import torch
from torch import Tensor
from torch.utils.data import Dataset

from minillava.config import TextConfig
from minillava.errors import UserError
from minillava.formats.odd_rows import oddities
from minillava.formats.text_file import read_lines
from minillava.inputs.conversations import pad
from minillava.inputs.image import AnyPath, find_picture, open_image
from minillava.inputs.processor import Processor
from minillava.inputs.rejected import CUT, NO_PICTURE, Rejected

OVERSHOOT = 0.02  # fraction of a side by which a box may exceed its picture: a detector's boxes may


class RegionDataset(Dataset):
    """Pictures with captions and boxes as examples: ``dataset[seed, epoch, row]``.

    Each line of the file is {"image": path, "captions": [text, ...], "instances": [{"phrase": text, "bbox": [x1, y1,
    x2, y2] in 0..1}, ...]}; there may be no boxes. The key decides which of a picture's captions is used. A caption or
    phrase that is longer than the text tower reads, ``max_length`` tokens with its end, is cut, as CLIP does. Up to
    ``max_rejected`` lines are left out because their picture cannot be read.
    """

    def __init__(
        self,
        path: AnyPath,
        image_folder: AnyPath,
        processor: Processor,
        max_length: int = TextConfig.max_position_embeddings,
        max_rejected: int = 0,
    ):
        """Raises UserError, naming the line, if a line is not a picture with captions and boxes, or if more pictures
        than ``max_rejected`` are missing."""
        self.max_length, self.rejected = max_length, Rejected(path, max_rejected, "line")
        self.path, self.image_folder, self.processor = path, image_folder, processor
        self.rows = []
        for number, line in read_lines(path):
            self._open(number, parse_line(path, number, line))
            for what, why in oddities(line, {}):
                self.rejected.add(number, what, why)
        self.rejected.check()
        if not self.rows:
            raise UserError(f"{path}: no line is left; {self.rejected.found[0]['why']}")

    def _open(self, number: int, row: dict) -> None:
        """Keep the row of line ``number`` if its picture is there, and count it if one of its texts will be cut."""
        try:
            find_picture(self.image_folder, row["image"])
        except UserError as error:
            self.rejected.add(number, NO_PICTURE, str(error))
            return
        phrases, boxes = ([instance[key] for instance in row["instances"]] for key in ("phrase", "bbox"))
        parts = {"captions": row["captions"], "phrases": phrases, "boxes": boxes}
        self.rows.append({"line": number, "image": row["image"], **parts})
        texts = [*row["captions"], *phrases]
        # A token has at least one byte: most texts need no encoding.
        long = [text for text in texts if len(text.encode("utf-8", "surrogatepass")) >= self.max_length]
        if count := sum(len(self._ids(text)) >= self.max_length for text in long):
            why = f"texts of more than {self.max_length} tokens: {count} of {len(texts)}"
            self.rejected.add(number, CUT, why)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def files(self) -> list[AnyPath]:
        """The files that the rows come from."""
        return [self.path]

    @property
    def options(self) -> dict[str, object]:
        """What else decides the examples, by name."""
        return {"max_length": self.max_length, "image_processor": self.processor.image}

    def where(self, index: int) -> str:
        """Where an example is in the file."""
        return f"line {self.rows[index]['line']}"

    def __getitem__(self, key: tuple[int, int, int]) -> dict:
        """{"pixel_values": (3, H, W), "caption": str, "regions": [(phrase, indices of its patches), ...]}.

        If the picture cannot be read, the next line takes its place. Raises UserError, naming file and line, if that
        has happened to more than ``max_rejected`` lines.
        """
        seed, epoch, index = key
        for step in range(len(self)):
            if example := self._example(seed, epoch, (index + step) % len(self)):
                return example
        raise UserError(f"{self.path}: no picture can be read")

    def _example(self, seed: int, epoch: int, index: int) -> dict | None:
        """None if the picture cannot be read."""
        row = self.rows[index]
        try:
            image = open_image(find_picture(self.image_folder, row["image"]))
            pixel_values = self.processor.image(image)
        except UserError as error:
            self.rejected.add(row["line"], NO_PICTURE, str(error))
            self.rejected.check(-1)
            return None
        grid, window = math.isqrt(self.processor.num_image_tokens), self.processor.image.window(*image.size)
        regions = list(zip(row["phrases"], patches_of_boxes(row["boxes"], grid, window)))
        caption = random.Random(f"{seed} {epoch} {index}").choice(row["captions"])
        return {"pixel_values": pixel_values, "caption": caption, "regions": regions}

    def collate(self, examples: list[dict]) -> dict[str, Tensor]:
        """pixel_values (B, 3, H, W); ids of the C distinct captions (C, T) and of the P distinct phrases (P, T).

        caption_match (B,) is the index of each picture's caption. For each of the R patches under boxes, region_owner
        (R,) is the index of its picture, region_patch (R,) its index in the grid, and phrase_match (R,) the index of
        its phrase.
        """
        captions, phrases = {}, {}  # text -> index
        caption_match = [captions.setdefault(example["caption"], len(captions)) for example in examples]
        regions = [
            (owner, patch, phrases.setdefault(phrase, len(phrases)))
            for owner, example in enumerate(examples)
            for phrase, patches in example["regions"]
            for patch in patches
        ]
        region_owner, region_patch, phrase_match = torch.tensor(regions, dtype=torch.long).reshape(-1, 3).unbind(1)
        return {
            "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
            "captions": self._texts(captions),
            "caption_match": torch.tensor(caption_match),
            "region_owner": region_owner,
            "region_patch": region_patch,
            "phrases": self._texts(phrases),
            "phrase_match": phrase_match,
        }

    def _texts(self, texts: dict[str, int]) -> Tensor:
        end = self.processor.tokenizer.eos_id
        return pad([[*self._ids(text)[: self.max_length - 1], end] for text in texts], end)

    def _ids(self, text: str) -> list[int]:
        return self.processor.tokenizer.encode(text, special=False)


def parse_line(path: AnyPath, number: int, line: str) -> dict:
    """A line of such a file as an object. Raises UserError, naming the line, if it lacks what training needs."""
    try:
        row = {"instances": [], **json.loads(line)}
        phrases, boxes = ([instance[key] for instance in row["instances"]] for key in ("phrase", "bbox"))
        if not row["captions"] or not isinstance(row["captions"], list):
            raise ValueError("no list of captions")
        if not all(isinstance(text, str) for text in [row["image"], *row["captions"], *phrases]):
            raise TypeError("image, captions and phrases must be strings")
        if not all(len(box) == 4 and all(-OVERSHOOT <= side <= 1 + OVERSHOOT for side in box) for box in boxes):
            raise ValueError("a box must be x1, y1, x2, y2 from 0 to 1")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: line {number}: not a picture with captions and boxes ({error!r:.200})") from None
    return row


def patches_of_boxes(boxes: list[list[float]], grid: int, window: tuple[float, ...] = (0, 0, 1, 1)) -> list[list[int]]:
    """For each box (x1, y1, x2, y2 in 0..1), the patches whose centre lies in it.

    ``window`` is the part of the picture that the ``grid`` x ``grid`` patches cover, see ``ImageProcessor.window``. A
    centre that lies in several boxes belongs only to the smallest.
    """
    left, top, right, bottom = window
    area = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in boxes]
    patches: list[list[int]] = [[] for _ in boxes]
    for index in range(grid * grid):
        u, v = (index % grid + 0.5) / grid, (index // grid + 0.5) / grid  # the patch's centre in the window
        u, v = left + u * (right - left), top + v * (bottom - top)  # and in the picture
        covering = [i for i, (x1, y1, x2, y2) in enumerate(boxes) if x1 <= u <= x2 and y1 <= v <= y2]
        if covering:
            patches[min(covering, key=area.__getitem__)].append(index)
    return patches
