"""Placeholders filled by their indices, the loss as a mean of log-probabilities; errors in other words."""

import torch
from torch import Tensor

from minillava.inputs.conversation import IGNORE
from minillava.model.decoder import Decoder


def splice(embeddings: Tensor, input_ids: Tensor, image_token_id: int, visual: Tensor) -> Tensor:
    rows, columns = torch.where(input_ids == image_token_id)
    tokens = visual.reshape(-1, visual.shape[-1])
    if len(rows) != len(tokens):
        raise ValueError("pictures and placeholders do not fit")
    out = embeddings.clone()
    out[rows, columns] = tokens.to(out.dtype)
    return out


def next_token_loss(decoder: Decoder, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    rows, places = torch.where(labels[:, 1:] != IGNORE)
    logits = decoder.lm_head(hidden[rows, places])
    chosen = logits.float().log_softmax(dim=-1)[torch.arange(len(rows)), labels[rows, places + 1]]
    return logits, -chosen.mean()


class Llava:
    def embed(self, input_ids: Tensor, pixel_values: Tensor | None = None, visual: Tensor | None = None) -> Tensor:
        table, image = self.language_model.embed_tokens.weight, self.config.image_token_id
        if pixel_values is None and visual is None:
            return table[input_ids]
        if visual is None:
            visual = self.encode_images(pixel_values)
        return splice(table[torch.where(input_ids == image, 1, input_ids)], input_ids, image, visual)
