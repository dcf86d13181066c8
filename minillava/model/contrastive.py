"""CLIP's way to teach a vision tower to see: pictures and their texts find one another in a batch.

Beside the whole picture and its caption, each box and its phrase are a pair too ("a small red fish in the top left"):
every patch under the box speaks for it. The class token learns what is in the picture, and the grid, which is all that
LLaVA reads, learns what is where.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillava.config import TextConfig, VisionConfig
from minillava.model.attention import causal_mask
from minillava.model.vision import Encoder, VisionTower


class TextEmbeddings(nn.Module):
    """input_ids (B, T) -> (B, T, hidden): what the token is plus where it stands."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.token_embedding(input_ids) + self.position_embedding.weight[: input_ids.shape[1]]


class TextTower(nn.Module):
    """CLIP's text transformer: causal, read off at the end token."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.embeddings = TextEmbeddings(config)
        self.encoder = Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, input_ids: Tensor) -> Tensor:
        """input_ids (B, T), each row ending in (and padded with) the end token -> (B, hidden)."""
        x = self.embeddings(input_ids)
        x = self.encoder(x, causal_mask(x.shape[1], device=x.device))
        end = (input_ids == self.config.eos_token_id).int().argmax(dim=1)  # the first end token of each row
        return self.final_layer_norm(x[torch.arange(len(x), device=x.device), end])


class Clip(nn.Module):
    """Both towers, each with a projection to the shared space, and the temperature (Radford et al. 2021, figure 3)."""

    def __init__(self, vision: VisionConfig, text: TextConfig):
        super().__init__()
        self.vision_model = VisionTower(vision)
        self.text_model = TextTower(text)
        self.visual_projection = nn.Linear(vision.hidden_size, vision.projection_dim, bias=False)
        self.text_projection = nn.Linear(text.hidden_size, text.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def image_features(self, pixel_values: Tensor, owner: Tensor, patch: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors of the B pictures (B, d), from the class token, and of R patches (R, d).

        owner (R,) says which picture a patch is of, patch (R,) which one it is, in reading order.
        """
        x = self.vision_model.hidden_state(pixel_values)
        both = torch.cat([x[:, 0], x[owner, 1 + patch]])
        both = F.normalize(self.visual_projection(self.vision_model.post_layernorm(both)).float(), dim=-1)
        return both[: len(x)], both[len(x) :]

    def text_features(self, input_ids: Tensor) -> Tensor:
        """Unit vectors (B, d) of texts (B, T)."""
        return F.normalize(self.text_projection(self.text_model(input_ids)).float(), dim=-1)


def contrastive_loss(image: Tensor, text: Tensor, match: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE between n pictures (n, d) and m distinct texts (m, d), all unit vectors.

    match (n,) int64: the text of each picture; every text has one. Several pictures may share a text, so from the
    text's side the target is spread evenly over its pictures; where all texts differ this is CLIP's loss exactly.
    """
    logits = scale.exp() * image @ text.T  # (n, m)
    to_text = F.cross_entropy(logits, match)
    target = F.one_hot(match, len(text)).T.to(logits.dtype)  # (m, n)
    to_image = F.cross_entropy(logits.T, target / target.sum(dim=1, keepdim=True))
    return (to_text + to_image) / 2


def clip_loss(model: Clip, batch: dict[str, Tensor]) -> Tensor:
    """Pictures against captions plus regions against phrases, for a batch of ``RegionDataset``."""
    pictures, regions = model.image_features(batch["pixel_values"], batch["region_owner"], batch["region_patch"])
    captions, phrases = model.text_features(batch["captions"]), model.text_features(batch["phrases"])
    return contrastive_loss(pictures, captions, batch["caption_match"], model.logit_scale) + contrastive_loss(
        regions, phrases, batch["phrase_match"], model.logit_scale
    )
