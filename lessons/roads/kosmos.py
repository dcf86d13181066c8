"""Kosmos-1: documents in which text and pictures alternate, and a model that is trained as a whole.

Huang et al. 2023, Language Is Not All You Need: Aligning Perception with Language Models, arXiv 2302.14045, sections
2.1 to 2.3 and 3.1:

    <s> text <image> picture </image> text <image> picture </image> text </s>

A picture is a piece of the sequence like a word, at any place and any number of times. So one loss, on the next token
of text, trains on plain text, on pictures with captions, and on pages with several pictures. A document of several
pictures and captions is also a few-shot prompt.

- A resampler (Flamingo's, ``flamingo.py``) makes few visual tokens of a picture (section 2.2).
- Learned vectors for <image> and </image> stand around them and say where a picture begins and ends (section 2.1).
- The loss is on tokens of text only (section 3.1).

Trained: everything. The paper's vision encoder, CLIP's ViT-L/14, is frozen but for its last layer, and its decoder is
trained from random weights; here all of the ViT is trained that is run, and the decoder may begin from a trained one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from lessons.roads.common import Road, road_task
from lessons.roads.flamingo import Resampler
from minillava.inputs.conversation import IGNORE
from minillava.inputs.conversations import ConversationDataset, naming_row, pad_rows
from minillava.inputs.image import AnyPath
from minillava.inputs.processor import Processor
from minillava.inputs.rejected import Rejected
from minillava.model.llava import Llava
from minillava.training.tasks import Task

BETWEEN = "\n"  # between a picture's caption and the next picture


class BoundedResampler(nn.Module):
    """Features (images, patches, vision hidden) -> <image>, Q visual tokens, </image>: (images, 1 + Q + 1, hidden)."""

    def __init__(self, vision_size: int, decoder_size: int, count: int, depth: int):
        super().__init__()
        self.resampler = Resampler(vision_size, decoder_size, count, depth)
        self.bounds = nn.Parameter(torch.randn(2, decoder_size) * 0.02)

    def forward(self, features: Tensor) -> Tensor:
        begin, end = self.bounds.expand(len(features), -1, -1).split(1, dim=1)  # each (images, 1, hidden)
        return torch.cat([begin, self.resampler(features), end], dim=1)


class Kosmos(Road):
    """A Llava whose rows may have any number of pictures, each of 1 + count + 1 places."""

    def __init__(self, llava: Llava, count: int = 16, depth: int = 2):
        vision_size, decoder_size = llava.config.vision.hidden_size, llava.config.decoder.hidden_size
        super().__init__(llava, BoundedResampler(vision_size, decoder_size, count, depth), count + 2)


def encode_document(pieces: list[str | None], processor: Processor) -> tuple[list[int], list[int]]:
    """Pieces of a document, None for a picture -> input_ids and labels, of equal length.

    A picture is ``num_image_tokens`` placeholders without a loss. All text has a loss, and so has the end token.
    """
    tokenizer, ids, labels = processor.tokenizer, [], []
    for piece in pieces:
        if piece is None:
            new = [tokenizer.image_id] * processor.num_image_tokens
            labels += [IGNORE] * len(new)
        else:
            new = tokenizer.encode(piece, special=False, after=ids)
            labels += new
        ids += new
    return [*ids, tokenizer.eos_id], [*labels, tokenizer.eos_id]


@dataclass(eq=False)
class Documents(Dataset):
    """Documents made of consecutive captions: the first with one picture, the next with two, up to ``most``, and again.

    ``captions`` has rows with one question and one answer; rows without a picture become text. With ``most`` = 1, each
    row is a document. A row that ``captions`` leaves out is in no document. ``dataset[seed, epoch, index]`` is an
    example, as a ConversationDataset's.
    """

    captions: ConversationDataset
    most: int = 3

    def __post_init__(self):
        self.spans, start, count = [], 0, len(self.captions.kept)
        while start < count:
            end = min(start + 1 + len(self.spans) % self.most, count)
            self.spans.append(range(start, end))
            start = end

    def __len__(self) -> int:
        return len(self.spans)

    @property
    def files(self) -> list[AnyPath]:
        return self.captions.files

    @property
    def options(self) -> dict[str, object]:
        return self.captions.options | {"most": self.most}

    @property
    def rejected(self) -> Rejected:
        return self.captions.rejected

    def where(self, index: int) -> str:
        return f"document {index}"

    def size(self, index: int) -> int:
        """About how long a document is, as ``ConversationDataset.size``."""
        return sum(self.captions.size(row) for row in self.spans[index])

    def __getitem__(self, key: tuple[int, int, int]) -> dict:
        """input_ids and labels, and pixel_values (pictures, 3, H, W) if there are pictures."""
        pieces: list[str | None] = []
        pictures: list[Tensor] = []
        for number in (self.captions.kept[index] for index in self.spans[key[2]]):
            row = self.captions.rows[number]
            pieces += [None] * ("image" in row) + [row["conversations"][1]["value"] + BETWEEN]
            if "image" in row:
                with naming_row(self.captions.path, number):
                    pictures.append(self.captions.pixels(row))
        ids, labels = encode_document(pieces, self.captions.processor)
        example = {"input_ids": ids, "labels": labels}
        if pictures:
            example["pixel_values"] = torch.stack(pictures)
        return example

    def collate(self, examples: list[dict]) -> dict[str, Tensor]:
        """input_ids and labels (B, T), padded on the right; pixel_values (images, 3, H, W), row by row."""
        rows = [(example["input_ids"], example["labels"]) for example in examples]
        batch = pad_rows(rows, self.captions.processor.tokenizer.pad_id)
        if pictures := [example["pixel_values"] for example in examples if "pixel_values" in example]:
            batch["pixel_values"] = torch.cat(pictures)
        return batch


def kosmos_task(model: Kosmos, dataset: Documents | ConversationDataset) -> Task:
    """Train everything that the loss reaches: not the ViT's blocks after the layer that is read, and its last norm."""
    model.requires_grad_(True)
    layer, blocks = model.config.vision_feature_layer, model.vision_tower.encoder.layers
    blocks[layer if layer >= 0 else len(blocks) + 1 + layer :].requires_grad_(False)
    model.vision_tower.post_layernorm.requires_grad_(False)
    return road_task("kosmos", model, dataset)
