"""The three parts joined: a picture's features become "words" in the decoder's prompt.

X_v --vision tower--> Z_v --W--> H_v --+
                                       +--> decoder --> answer
X_q ------------- embeddings --> H_q --+
"""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from minillava.config import LlavaConfig
from minillava.conversation import IGNORE, TEMPLATES, encode_conversation
from minillava.decoder import Decoder
from minillava.errors import UserError
from minillava.generation import collect, generate_ids, stream_text
from minillava.image import ImageProcessor, open_image
from minillava.projector import PROJECTORS
from minillava.tokenizer import IMAGE, PAD, Tokenizer
from minillava.vision import VisionTower


def splice(embeddings: Tensor, input_ids: Tensor, image_token_id: int, visual: Tensor) -> Tensor:
    """Put visual tokens where the placeholders stand.

    embeddings (B, T, hidden); input_ids (B, T); visual (images, patches, hidden), in the order in which the pictures
    appear in the rows. Raises ValueError where placeholders and visual tokens differ in number.
    """
    where = input_ids == image_token_id
    if where.sum() != visual.shape[0] * visual.shape[1]:
        raise ValueError(f"{where.sum()} image placeholders for {visual.shape[0]} pictures of {visual.shape[1]} tokens")
    return embeddings.masked_scatter(where.unsqueeze(-1), visual.to(embeddings.dtype))


def add_image_token(decoder: Decoder, tokenizer: Tokenizer) -> None:
    """Give a LLaMA that knows text alone an <image> and a padding token, where its tokenizer has none, and their rows.

    The rows are filled up to a multiple of 64, as in llava-hf's folders. An embedding with rows enough stays as it is.
    """
    missing = [name for name, index in ((IMAGE, tokenizer.image_id), (PAD, tokenizer.pad_id)) if index is None]
    if missing:
        tokenizer.add_special_tokens(missing)
    if tokenizer.vocab_size > decoder.config.vocab_size:
        decoder.grow(math.ceil(tokenizer.vocab_size / 64) * 64)


def before_labels(labels: Tensor) -> Tensor:
    """labels (B, T), -100 where no loss is borne -> (B, T), true where the next token bears loss: i predicts i + 1."""
    return F.pad(labels[:, 1:] != IGNORE, (0, 1))


def answer_loss(decoder: Decoder, hidden: Tensor, labels: Tensor) -> Tensor:
    """Eq. 2: the mean of -log p(token | everything before it) over the N labelled tokens, in nats.

    hidden (N, hidden) is what the decoder makes at before_labels() of labels (B, T): nowhere else are there logits.
    """
    targets = labels[:, 1:]
    return F.cross_entropy(decoder.lm_head(hidden).float(), targets[targets != IGNORE])


@dataclass
class Output:
    """What a forward pass gives. ``loss`` is None without labels; ``logits`` (B, T, V) are computed when asked for.

    With labels these take another pass: for the loss, the last block works at the places before labels alone.
    """

    loss: Tensor | None
    make_logits: Callable[[], Tensor]

    @property
    def logits(self) -> Tensor:
        return self.make_logits()


class Llava(nn.Module):
    """Vision tower, projection and decoder. Attribute names are those of llava-hf's checkpoints."""

    def __init__(self, config: LlavaConfig, tokenizer: Tokenizer | None = None):
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.template = "v0"
        self.image_processor = ImageProcessor.for_size(config.vision.image_size)
        self.vision_tower = VisionTower(config.vision)
        self.multi_modal_projector = PROJECTORS[config.projector](config.vision.hidden_size, config.decoder.hidden_size)
        self.language_model = Decoder(config.decoder)

    @property
    def device(self) -> torch.device:
        return self.language_model.embed_tokens.weight.device

    @property
    def stop_ids(self) -> list[int]:
        """The ids that end an answer: the end token, and the template's stop where it is one token."""
        ids = [self.tokenizer.eos_id, self.tokenizer.special.get(TEMPLATES[self.template].stop)]
        return [index for index in dict.fromkeys(ids) if index is not None]

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
        segments: Tensor | None = None,
    ) -> Output:
        """input_ids (B, T), pixel_values (images, 3, H, W), attention_mask (B, T), labels (B, T) with -100; segments
        (B, T), a number for each of the conversations that share a row."""
        decoder, embeddings = self.language_model, self.embed(input_ids, pixel_values)

        def read(where: Tensor | None = None) -> Tensor:
            return decoder(embeddings, attention_mask, segments=segments, where=where)

        if labels is None:
            hidden = read()
            return Output(None, lambda: decoder.lm_head(hidden))
        loss = answer_loss(decoder, read(before_labels(labels)), labels)
        return Output(loss, lambda: decoder.lm_head(read()))

    @torch.inference_mode()
    def generate(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        stop_ids: list[int] | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Continue input_ids (B, T); returns the new tokens alone, (B, N), N at most ``max_new_tokens``.

        Rows padded on the left need attention_mask (B, T). A row ends at one of ``stop_ids`` (default: the model's);
        shorter rows are filled up with the padding token.
        """
        if stop_ids is None:
            stop_ids = self.stop_ids if self.tokenizer else []
        fill = (self.tokenizer.pad_id if self.tokenizer else None) or 0
        if max_new_tokens == 0:
            return input_ids.new_empty(len(input_ids), 0)
        embeddings = self.embed(input_ids, pixel_values)
        steps = generate_ids(self.language_model, embeddings, attention_mask, max_new_tokens, temperature)
        return collect(steps, stop_ids, fill)

    @torch.inference_mode()
    def look(self, image: Image.Image | str | os.PathLike) -> Tensor:
        """A picture, or its path, as the decoder reads it: (1, config.num_image_tokens, decoder hidden).

        stream() and chat() take this for the picture: one that is talked about for many turns is encoded once.
        """
        if not isinstance(image, Image.Image):
            image = open_image(image)
        return self.encode_images(self.image_processor(image)[None])

    def stream(
        self,
        image: Image.Image | str | os.PathLike | Tensor | None,
        prompt: str,
        history: list[tuple[str, str]] | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
    ) -> Iterator[str]:
        """Answer ``prompt`` about a picture (a path, what look() saw, or none), piece by piece.

        ``history`` holds the earlier (question, answer) pairs about the same picture, oldest first.
        """
        if self.tokenizer is None:
            raise ValueError("a model without a tokenizer cannot chat: load() one that has its tokenizer beside it")
        pairs = [*(history or []), (prompt, None)]
        turns = []
        for question, answer in pairs:
            if IMAGE in question:
                raise UserError(f"a question must not hold {IMAGE}: the picture's place is chosen for you")
            turns.append({"from": "human", "value": question})
            if answer is not None:
                turns.append({"from": "gpt", "value": answer})
        if image is not None:
            turns[0]["value"] = f"{IMAGE}\n{turns[0]['value']}"
            if not isinstance(image, Tensor):
                image = self.look(image)
        ids, _ = encode_conversation(turns, self.tokenizer, self.template, self.config.num_image_tokens)
        limit = self.config.decoder.max_position_embeddings
        if len(ids) + max_new_tokens > limit:
            raise UserError(f"the conversation has grown to {len(ids)} tokens; the model reads {limit} at most")
        with torch.inference_mode():
            embeddings = self.embed(torch.tensor([ids], device=self.device), visual=image)
        steps = generate_ids(self.language_model, embeddings, None, max_new_tokens, temperature)
        first = True
        for piece in stream_text(steps, self.tokenizer, TEMPLATES[self.template].stop):
            piece = piece.lstrip() if first else piece
            first = first and not piece
            if piece:
                yield piece

    def chat(
        self,
        image: Image.Image | str | os.PathLike | Tensor | None,
        prompt: str,
        history: list[tuple[str, str]] | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
    ) -> str:
        """The whole answer of ``stream`` as one text."""
        return "".join(self.stream(image, prompt, history, max_new_tokens, temperature)).strip()
