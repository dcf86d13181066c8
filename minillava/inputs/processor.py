"""Words and pictures -> what the model reads: the tokenizer, the image processor and the template of one model."""

from dataclasses import dataclass, replace

from minillava.inputs.conversation import encode_conversation
from minillava.inputs.image import ImageProcessor
from minillava.inputs.templates import TEMPLATES, Template
from minillava.inputs.tokenizer import Tokenizer


@dataclass
class Processor:
    """``processor.image(picture)`` gives pixel_values (3, H, W), ``processor.encode(turns)`` gives ids and labels.

    ``num_image_tokens`` is how many ids one picture takes in a row.
    """

    tokenizer: Tokenizer
    image: ImageProcessor
    num_image_tokens: int
    template: Template = TEMPLATES["v0"]

    def encode(self, turns: list[dict], image_first: bool = True) -> tuple[list[int], list[int]]:
        """A row's turns -> (input_ids, labels): encode_conversation()."""
        return encode_conversation(turns, self.tokenizer, self.template, self.num_image_tokens, image_first)

    def for_captions(self) -> "Processor":
        """The same, with the form in which stage 1 asks for captions."""
        return replace(self, template=TEMPLATES[self.template.for_captions])

    @property
    def stop_ids(self) -> list[int]:
        """The ids that end an answer: the end token, and the template's stop where it is one token."""
        ids = [self.tokenizer.eos_id, self.tokenizer.special.get(self.template.stop)]
        return [index for index in dict.fromkeys(ids) if index is not None]
