"""Pictures with captions and boxes -> batches for the contrastive training of the vision tower."""

import json
import random

import torch
from torch import Tensor
from torch.utils.data import Dataset

from minillava.config import VisionConfig
from minillava.errors import UserError
from minillava.inputs.conversations import naming_row, pad, read_lines
from minillava.inputs.image import AnyPath, ImageProcessor, open_image, safe_join
from minillava.inputs.tokenizer import Tokenizer


class RegionDataset(Dataset):
    """Pictures with captions and boxes as examples: ``dataset[seed, epoch, row]``.

    Each line of the file is {"image": path, "captions": [text, ...], "instances": [{"phrase": text, "bbox": [x1, y1,
    x2, y2] in 0..1}, ...]}. The key decides which of a picture's captions is used.
    """

    def __init__(self, path: AnyPath, image_folder: AnyPath, tokenizer: Tokenizer, vision: VisionConfig):
        """Raises UserError, naming the line, if a line is not a picture with captions and boxes."""
        self.path, self.image_folder, self.tokenizer = path, image_folder, tokenizer
        self.image_processor = ImageProcessor.for_size(vision.image_size)
        self.grid = vision.image_size // vision.patch_size
        self.rows = []
        for number, line in read_lines(path):
            try:
                self.rows.append({"line": number, **self._parsed(json.loads(line))})
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}: line {number}: not a picture with captions and boxes ({error!r})") from None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def files(self) -> list[AnyPath]:
        """The files that the rows come from."""
        return [self.path]

    @property
    def options(self) -> dict[str, object]:
        """What else decides the examples: nothing."""
        return {}

    def __getitem__(self, key: tuple[int, int, int]) -> dict:
        """{"pixel_values": (3, H, W), "caption": str, "regions": [(phrase, indices of its patches), ...]}."""
        seed, epoch, index = key
        row = self.rows[index]
        with naming_row(self.path, row["line"], "line"):
            pixel_values = self.image_processor(open_image(safe_join(self.image_folder, row["image"])))
        caption = random.Random(f"{seed} {epoch} {index}").choice(row["captions"])
        return {"pixel_values": pixel_values, "caption": caption, "regions": row["regions"]}

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

    def _parsed(self, row: dict) -> dict:
        """The parts of a line that training needs. Raises ValueError, KeyError or TypeError if they are not there."""
        phrases = [instance["phrase"] for instance in row["instances"]]
        if not row["captions"] or not isinstance(row["captions"], list):
            raise ValueError("no list of captions")
        if not all(isinstance(text, str) for text in [row["image"], *row["captions"], *phrases]):
            raise TypeError("image, captions and phrases must be strings")
        patches = patches_of_boxes([instance["bbox"] for instance in row["instances"]], self.grid)
        return {"image": row["image"], "captions": row["captions"], "regions": list(zip(phrases, patches))}

    def _texts(self, texts: dict[str, int]) -> Tensor:
        end = self.tokenizer.eos_id
        return pad([[*self.tokenizer.encode(text, special=False), end] for text in texts], end)


def patches_of_boxes(boxes: list[list[float]], grid: int) -> list[list[int]]:
    """For each box (x1, y1, x2, y2 in 0..1), the patches whose centre lies in it.

    A centre that lies in several boxes belongs only to the smallest.
    """
    area = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in boxes]
    patches: list[list[int]] = [[] for _ in boxes]
    for index in range(grid * grid):
        u, v = (index % grid + 0.5) / grid, (index // grid + 0.5) / grid  # the patch's centre
        covering = [i for i, (x1, y1, x2, y2) in enumerate(boxes) if x1 <= u <= x2 and y1 <= v <= y2]
        if covering:
            patches[min(covering, key=area.__getitem__)].append(index)
    return patches
