"""The three parts joined: a picture's features become "words" in the decoder's prompt.

X_v --vision tower--> Z_v --W--> H_v --+
                                       +--> decoder --> answer
X_q ------------- embeddings --> H_q --+
"""

import os
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from minillava.config import LlavaConfig
from minillava.inputs.conversation import IGNORE
from minillava.inputs.image import open_image
from minillava.inputs.processor import Processor
from minillava.model.decoder import Decoder
from minillava.model.generation import collect, generate_ids
from minillava.model.projector import PROJECTORS
from minillava.model.vision import VisionTower

Picture = Image.Image | str | os.PathLike | Tensor  # a picture, its path, or what Llava.encode_image made of it
History = list[tuple[str, str]]  # earlier questions and answers


def splice(embeddings: Tensor, input_ids: Tensor, image_token_id: int, visual: Tensor) -> Tensor:
    """Put visual tokens where the placeholders stand.

    embeddings (B, T, hidden); input_ids (B, T); visual (images, patches, hidden), in the order in which the pictures
    appear in the rows. Raises ValueError where placeholders and visual tokens differ in number.
    """
    where = input_ids == image_token_id
    if where.sum() != visual.shape[0] * visual.shape[1]:
        raise ValueError(f"{where.sum()} image placeholders for {visual.shape[0]} pictures of {visual.shape[1]} tokens")
    return embeddings.masked_scatter(where.unsqueeze(-1), visual.to(embeddings.dtype))


def next_token_loss(decoder: Decoder, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 2: the mean of -log p(token | everything before it) over the N labelled tokens, in nats.

    hidden (B, T, hidden) are the decoder's states, labels (B, T) with -100 where there is no loss. Returns the logits
    (N, V) at the N positions before a label, and the loss. There are no other logits: (B, T, V) would be the largest
    tensor of a training step.
    """
    targets = labels[:, 1:]  # position i predicts token i + 1
    has_loss = targets != IGNORE  # (B, T - 1)
    logits = decoder.lm_head(hidden[:, :-1][has_loss])  # (N, V)
    return logits, F.cross_entropy(logits.float(), targets[has_loss])


class Llava(nn.Module):
    """Vision tower, projection and decoder. Attribute names are those of llava-hf's checkpoints.

    ``processor`` turns words and pictures into what the model reads; only encode_image, chat and stream need it.
    """

    def __init__(self, config: LlavaConfig, processor: Processor | None = None):
        super().__init__()
        self.config = config
        self.processor = processor
        self.vision_tower = VisionTower(config.vision)
        self.multi_modal_projector = PROJECTORS[config.projector](config.vision.hidden_size, config.decoder.hidden_size)
        self.language_model = Decoder(config.decoder)

    @property
    def device(self) -> torch.device:
        return self.language_model.embed_tokens.weight.device

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """pixel_values (images, 3, H, W) -> H_v (images, config.num_image_tokens, decoder hidden)."""
        weight, config = self.vision_tower.embeddings.patch_embedding.weight, self.config
        features = self.vision_tower(
            pixel_values.to(weight.device, weight.dtype),
            config.vision_feature_layer,
            config.vision_feature_select_strategy,
        )
        return self.multi_modal_projector(features)

    def embed(self, input_ids: Tensor, pixel_values: Tensor | None = None, visual: Tensor | None = None) -> Tensor:
        """Ids (B, T) and pictures, or what encode_images() made of them -> the decoder's input (B, T, hidden)."""
        image = self.config.image_token_id
        if pixel_values is not None:
            visual = self.encode_images(pixel_values)
        if visual is None:
            return self.language_model.embed_tokens(input_ids)
        words = input_ids.masked_fill(input_ids == image, 0)  # the placeholder need not have a row
        return splice(self.language_model.embed_tokens(words), input_ids, image, visual)

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """input_ids (B, T), pixel_values (images, 3, H, W), labels (B, T) with -100; attention_mask (B, T): 0 for
        padding, k for conversation k of the row.

        Returns (logits, loss): without labels (B, T, V) and None; with labels next_token_loss(), whose logits are those
        of the N positions before a label.
        """
        embeddings = self.embed(input_ids, pixel_values)  # (B, T, hidden)
        hidden = self.language_model(embeddings, attention_mask)  # (B, T, hidden)
        if labels is None:
            return self.language_model.lm_head(hidden), None
        return next_token_loss(self.language_model, hidden, labels)

    @torch.inference_mode()
    def generate(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        stop_ids: list[int] | None = None,
    ) -> Tensor:
        """Continue input_ids (B, T); returns the new tokens alone, (B, N), N at most ``max_new_tokens``.

        Rows padded on the left need attention_mask (B, T). A row ends at one of ``stop_ids``, by default the
        processor's; shorter rows are filled up with the padding token.
        """
        if stop_ids is None:
            stop_ids = self.processor.stop_ids if self.processor else []
        fill = (self.processor.tokenizer.pad_id if self.processor else None) or 0
        if max_new_tokens == 0:
            return input_ids.new_empty(len(input_ids), 0)
        embeddings = self.embed(input_ids, pixel_values)
        steps = generate_ids(self.language_model, embeddings, attention_mask, max_new_tokens, temperature)
        return collect(steps, stop_ids, fill)

    @torch.inference_mode()
    def encode_image(self, image: Image.Image | str | os.PathLike) -> Tensor:
        """A picture, or its path, as the decoder reads it: (1, config.num_image_tokens, decoder hidden).

        stream() and chat() take this for the picture: one that is talked about for many turns is encoded once.
        """
        if not isinstance(image, Image.Image):
            image = open_image(image)
        return self.encode_images(self.processor.image(image)[None])

    def stream(self, image: Picture | None, prompt: str, history: History | None = None, **options) -> Iterator[str]:
        """The answer to ``prompt`` piece by piece; the options are those of talk.stream()."""
        from minillava import talk

        return talk.stream(self, image, prompt, history, **options)

    def chat(self, image: Picture | None, prompt: str, history: History | None = None, **options) -> str:
        """The whole answer of stream() as one text."""
        return "".join(self.stream(image, prompt, history, **options)).strip()
