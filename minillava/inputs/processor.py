"""One model's tokenizer, image processor and chat template in one object."""

from dataclasses import dataclass, replace

from minillava.inputs.conversation import encode_conversation
from minillava.inputs.image import ImageProcessor
from minillava.inputs.templates import TEMPLATES, Template
from minillava.inputs.tokenizer import Tokenizer


@dataclass
class Processor:
    """Text and pictures -> the model's input: ``processor.image(picture)`` returns pixel_values (3, H, W), and
    ``processor.encode(turns)`` returns ids and labels.

    ``num_image_tokens`` is the number of placeholder ids for one picture. ``end_ids`` are end tokens in addition to
    the tokenizer's own; Llama 3 has three in all.
    """

    tokenizer: Tokenizer
    image: ImageProcessor | None  # None for a language model without pictures
    num_image_tokens: int
    template: Template = TEMPLATES["v0"]
    end_ids: tuple[int, ...] = ()

    def encode(self, turns: list[dict], image_first: bool = True) -> tuple[list[int], list[int]]:
        """A row's turns -> (input_ids, labels), by encode_conversation()."""
        return encode_conversation(turns, self.tokenizer, self.template, self.num_image_tokens, image_first)

    def for_captions(self) -> "Processor":
        """The same processor with the template for captions. Stage 1 trains only the projector, on captions."""
        return replace(self, template=TEMPLATES[self.template.for_captions])

    @property
    def stop_ids(self) -> list[int]:
        """The ids that end an answer: the end tokens and, if it is a special token, the template's stop."""
        ids = [self.tokenizer.eos_id, *self.end_ids, self.tokenizer.special.get(self.template.stop)]
        return [index for index in dict.fromkeys(ids) if index is not None]
