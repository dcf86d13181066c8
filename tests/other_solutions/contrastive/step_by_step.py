"""Towers and losses row by row."""

import torch
import torch.nn.functional as F
from torch import Tensor

from minillava.model.attention import causal_mask


class TextEmbeddings:
    def forward(self, input_ids: Tensor) -> Tensor:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        return self.token_embedding(input_ids) + self.position_embedding(places)


class TextTower:
    def forward(self, input_ids: Tensor) -> Tensor:
        mask = causal_mask(input_ids.shape[1], device=input_ids.device)
        x = self.final_layer_norm(self.encoder(self.embeddings(input_ids), mask))
        return torch.stack([row[ids.tolist().index(self.config.eos_token_id)] for row, ids in zip(x, input_ids)])


class Clip:
    def image_features(self, pixel_values: Tensor, owner: Tensor, patch: Tensor) -> tuple[Tensor, Tensor]:
        x = self.vision_model.post_layernorm(self.vision_model.hidden_state(pixel_values, -1))
        x = F.normalize((x @ self.visual_projection.weight.T).float(), dim=-1)
        return x[:, 0], x[:, 1:][owner, patch]

    def text_features(self, input_ids: Tensor) -> Tensor:
        x = self.text_model(input_ids).float() @ self.text_projection.weight.float().T
        return x / x.norm(dim=-1, keepdim=True)


def contrastive_loss(image: Tensor, text: Tensor, match: Tensor, scale: Tensor) -> Tensor:
    logits = image @ text.T * scale.exp()
    to_text = -logits.log_softmax(dim=1).gather(1, match[:, None]).mean()
    columns = logits.log_softmax(dim=0)
    to_image = -torch.stack([columns[match == index, index].mean() for index in range(len(text))]).mean()
    return 0.5 * to_text + 0.5 * to_image


def clip_loss(model: Clip, batch: dict[str, Tensor]) -> Tensor:
    names = ("pixel_values", "region_owner", "region_patch")
    pictures, regions = model.image_features(*(batch[name] for name in names))
    pairs = [(pictures, batch["captions"], batch["caption_match"])]
    if batch["region_owner"].numel():
        pairs.append((regions, batch["phrases"], batch["phrase_match"]))
    return sum(contrastive_loss(x, model.text_features(ids), match, model.logit_scale) for x, ids, match in pairs)
