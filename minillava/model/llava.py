"""LLaVA: a picture's features become visual tokens in the decoder's input (paper, figure 1).

    X_v --vision tower g--> Z_v --projector W--> H_v --+
                                                       +--> decoder --> answer X_a
    X_q ---------------- embeddings -----------> H_q --+

The letters in shapes are in ``model/__init__.py``.
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

Picture = Image.Image | str | os.PathLike | Tensor  # a picture, its path, or the result of encode_image()
History = list[tuple[str, str]]  # earlier questions and answers


def splice(embeddings: Tensor, input_ids: Tensor, image_token_id: int, visual: Tensor) -> Tensor:
    """Replace the embeddings of the image placeholders by visual tokens. The shape (B, T, hidden) does not change.

    embeddings (B, T, hidden); input_ids (B, T); visual (images, patches, hidden), the pictures in the order in which
    their placeholders appear, row by row. Raises ValueError if there are more or fewer placeholders than visual tokens.
    """
    where = input_ids == image_token_id  # (B, T)
    if where.sum() != visual.shape[0] * visual.shape[1]:
        raise ValueError(f"{where.sum()} image placeholders for {visual.shape[0]} pictures of {visual.shape[1]} tokens")
    return embeddings.masked_scatter(where.unsqueeze(-1), visual.to(embeddings.dtype))


def next_token_loss(decoder: Decoder, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of -log p(token | all tokens before it) over the N tokens with a loss, in nats (paper, eq. 3).

    ``hidden`` is the decoder's output, (B, T, hidden); ``labels`` (B, T) are -100 where there is no loss. Returns the
    logits (N, V) at the N positions that predict a label, and the loss, a scalar. Logits for all positions, (B, T, V),
    would be the largest tensor of a training step, so they are not computed.
    """
    targets = labels[:, 1:]  # position i predicts token i + 1: (B, T - 1)
    has_loss = targets != IGNORE  # (B, T - 1)
    logits = decoder.lm_head(hidden[:, :-1][has_loss])  # (N, hidden) -> (N, V)
    return logits, F.cross_entropy(logits.float(), targets[has_loss])


class Llava(nn.Module):
    """Vision tower, projector and decoder. Attribute names are those of llava-hf's tensors.

    ``processor`` turns text and pictures into ids and pixel values. encode_image(), chat() and stream() need it.
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
        )  # Z_v (images, num_image_tokens, vision hidden)
        return self.multi_modal_projector(features)

    def embed(self, input_ids: Tensor, pixel_values: Tensor | None = None, visual: Tensor | None = None) -> Tensor:
        """The decoder's input (B, T, hidden): input_ids (B, T) embedded, with pictures in place of their placeholders.

        Pictures are given as pixel_values (images, 3, H, W), or as ``visual``, the result of encode_images().
        """
        image = self.config.image_token_id
        if pixel_values is not None:
            visual = self.encode_images(pixel_values)
        if visual is None:
            return self.language_model.embed_tokens(input_ids)
        words = input_ids.masked_fill(input_ids == image, 0)  # splice() replaces these embeddings
        return splice(self.language_model.embed_tokens(words), input_ids, image, visual)

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Without labels: logits (B, T, V) and None. With labels: logits (N, V) and the loss of next_token_loss().

        input_ids (B, T); pixel_values (images, 3, H, W); labels (B, T) with -100 where there is no loss;
        attention_mask (B, T): 0 for padding, k for the k-th of the conversations that are packed into the row.
        """
        embeddings = self.embed(input_ids, pixel_values)  # (B, T, hidden)
        hidden = self.language_model(embeddings, attention_mask)  # (B, T, hidden)
        if labels is None:
            return self.language_model.lm_head(hidden), None  # (B, T, V)
        return next_token_loss(self.language_model, hidden, labels)

    @torch.inference_mode()
    def generate(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop_ids: list[int] | None = None,
    ) -> Tensor:
        """Continue input_ids (B, T): returns only the new tokens, (B, n) with n at most ``max_new_tokens``.

        Rows padded on the left need attention_mask (B, T). A row ends after its first token in ``stop_ids`` (default:
        the processor's). Rows that end before the others are filled with the padding token, or 0 if there is none.
        """
        if stop_ids is None:
            stop_ids = self.processor.stop_ids if self.processor else []
        fill = (self.processor.tokenizer.pad_id if self.processor else None) or 0
        if max_new_tokens == 0:
            return input_ids.new_empty(len(input_ids), 0)
        embeddings = self.embed(input_ids, pixel_values)  # (B, T, hidden)
        steps = generate_ids(self.language_model, embeddings, attention_mask, max_new_tokens, temperature, top_p)
        return collect(steps, stop_ids, fill)

    @torch.inference_mode()
    def encode_image(self, image: Image.Image | str | os.PathLike) -> Tensor:
        """A picture or its path -> its visual tokens H_v (1, config.num_image_tokens, decoder hidden).

        stream() and chat() accept the result in place of the picture, so a long chat encodes its picture only once.
        """
        if not isinstance(image, Image.Image):
            image = open_image(image)
        return self.encode_images(self.processor.image(image)[None])  # [None]: a batch of one picture

    def stream(self, image: Picture | None, prompt: str, history: History | None = None, **options) -> Iterator[str]:
        """Yield the answer to ``prompt`` piece by piece. ``options`` go to talk.stream()."""
        from minillava import talk

        return talk.stream(self, image, prompt, history, **options)

    def chat(self, image: Picture | None, prompt: str, history: History | None = None, **options) -> str:
        """The whole answer of stream() as one string."""
        return "".join(self.stream(image, prompt, history, **options)).strip()
