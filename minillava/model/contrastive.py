"""CLIP's contrastive training of a vision tower (Radford et al. 2021): match the pictures and the texts of a batch.

The towers are trained on two kinds of pairs. A picture and its caption, as in CLIP, teach the class token what is in
the picture. A box and its phrase ("a small red fish in the top left") teach the patches under the box what is there.
CLIP has no such pairs; they are added because LLaVA reads only the patches, not the class token.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillava.config import TextConfig, VisionConfig
from minillava.model.attention import causal_mask
from minillava.model.vision import Encoder, VisionTower


class TextEmbeddings(nn.Module):
    """input_ids (B, T) -> (B, T, hidden): token embedding plus position embedding."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.token_embedding(input_ids) + self.position_embedding.weight[: input_ids.shape[1]]


class TextTower(nn.Module):
    """CLIP's text transformer with a causal mask. The output at the end token represents the whole text."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.embeddings = TextEmbeddings(config)
        self.encoder = Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, input_ids: Tensor) -> Tensor:
        """input_ids (B, T), each row ending in (and padded with) the end token -> (B, hidden)."""
        x = self.embeddings(input_ids)
        x = self.encoder(x, causal_mask(x.shape[1], device=x.device))  # (B, T, hidden)
        end = (input_ids == self.config.eos_token_id).int().argmax(dim=1)  # (B,): each row's first end token
        return self.final_layer_norm(x[torch.arange(len(x), device=x.device), end])


class Clip(nn.Module):
    """Both towers, a projection of each to the shared space, and a learned scale of the logits (1 / temperature).

    Radford et al. 2021, figure 3. The scale is stored as its logarithm.
    """

    def __init__(self, vision: VisionConfig, text: TextConfig):
        super().__init__()
        self.vision_model = VisionTower(vision)
        self.text_model = TextTower(text)
        self.visual_projection = nn.Linear(vision.hidden_size, vision.projection_dim, bias=False)
        self.text_projection = nn.Linear(text.hidden_size, text.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def image_features(self, pixel_values: Tensor, owner: Tensor, patch: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors of the B pictures, from their class tokens, and of R patches: (B, D) and (R, D).

        D is projection_dim. owner (R,) is the picture of each patch; patch (R,) its index in the grid, row by row.
        """
        x = self.vision_model.hidden_state(pixel_values)  # (B, 1 + patches, hidden)
        both = torch.cat([x[:, 0], x[owner, 1 + patch]])  # (B + R, hidden)
        both = F.normalize(self.visual_projection(self.vision_model.post_layernorm(both)).float(), dim=-1)
        return both[: len(x)], both[len(x) :]

    def text_features(self, input_ids: Tensor) -> Tensor:
        """input_ids (m, T) of m texts -> their unit vectors (m, D)."""
        return F.normalize(self.text_projection(self.text_model(input_ids)).float(), dim=-1)


def contrastive_loss(image: Tensor, text: Tensor, match: Tensor, scale: Tensor) -> Tensor:
    """CLIP's symmetric InfoNCE loss between n pictures (n, D) and m distinct texts (m, D), all unit vectors.

    match (n,) int64 is the index of each picture's text; every text has at least one picture. If several pictures share
    a text, its target is spread evenly over them. If no text is shared, this is CLIP's loss. ``scale`` is a logarithm.
    """
    logits = scale.exp() * image @ text.T  # (n, m)
    to_text = F.cross_entropy(logits, match)  # which text belongs to each picture
    target = F.one_hot(match, len(text)).T.to(logits.dtype)  # (m, n)
    to_image = F.cross_entropy(logits.T, target / target.sum(dim=1, keepdim=True))  # which pictures belong to each text
    return (to_text + to_image) / 2


def clip_loss(model: Clip, batch: dict[str, Tensor]) -> Tensor:
    """The loss of pictures and captions plus, if there are boxes, the loss of patches and phrases, for a batch of
    ``RegionDataset``."""
    pictures, regions = model.image_features(batch["pixel_values"], batch["region_owner"], batch["region_patch"])
    captions = model.text_features(batch["captions"])
    loss = contrastive_loss(pictures, captions, batch["caption_match"], model.logit_scale)
    if len(regions):
        phrases = model.text_features(batch["phrases"])
        loss = loss + contrastive_loss(regions, phrases, batch["phrase_match"], model.logit_scale)
    return loss
