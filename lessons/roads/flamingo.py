"""Flamingo: gated cross-attention, between the blocks of a frozen decoder, looks at the pictures.

Alayrac et al. 2022, Flamingo: a Visual Language Model for Few-Shot Learning, arXiv 2204.14198, sections 2.1 to 2.3:

    pixels --frozen ViT--> features --Perceiver resampler--> Q visual tokens of each picture
                                                                      |  keys and values
    words --> embeddings --> [ gated cross-attention --> frozen block ] x layers --> logits

- **Perceiver resampler** (section 2.1, figure 5). Q learned latents look at the features and at themselves, so that any
  number of features becomes Q visual tokens: 64 in the paper.
- **Gated cross-attention** (section 2.2, figure 4). Before a block of the decoder, words look at the visual tokens:

      y = y + tanh(a) * attention(q = y, kv = x)
      y = y + tanh(b) * ffw(y)

  a and b are learned and start at 0. So at first the model computes exactly what its decoder does, and nothing has
  to be learnt twice.
- **The latest picture** (section 2.3). A word sees only the last picture before it; before all pictures it sees none.
  What earlier pictures showed reaches it through the decoder's own attention.

Trained: the resampler, the gates, the cross-attention and its feed-forward layers. Frozen: the ViT and the decoder. A
picture takes one place in the text, its <image> token; LLaVA's takes as many places as it has patches.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lessons.roads.common import CrossAttention, Road, road_task
from minillava.inputs.conversations import ConversationDataset
from minillava.model.attention import CLOSED
from minillava.model.decoder import Block, KVCache
from minillava.model.llava import Llava
from minillava.training.tasks import Task


class FeedForward(nn.Module):
    """norm, linear to four times the width, squared ReLU (appendix A.1, table 3), linear: (..., hidden) -> the same."""

    def __init__(self, size: int):
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.fc1 = nn.Linear(size, 4 * size, bias=False)
        self.fc2 = nn.Linear(4 * size, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(self.norm(x))).square())


class ResamplerLayer(nn.Module):
    """x + attention(x, [features, x]), then x + ffw(x): latents (images, Q, hidden) -> the same."""

    def __init__(self, size: int, heads: int):
        super().__init__()
        self.norm_features = nn.LayerNorm(size)
        self.norm_latents = nn.LayerNorm(size)
        self.attention = CrossAttention(size, size, heads, bias=False)
        self.ffw = FeedForward(size)

    def forward(self, latents: Tensor, features: Tensor) -> Tensor:
        x = self.norm_latents(latents)
        seen = torch.cat([self.norm_features(features), x], dim=1)  # (images, patches + Q, hidden)
        latents = latents + self.attention(x, seen)
        return latents + self.ffw(latents)


class Resampler(nn.Module):
    """Features (images, patches, vision hidden) -> visual tokens (images, Q, decoder hidden), at any number of patches.

    ``count`` is Q. The paper also adds a learned vector for the time of each video frame; a picture has no time.
    """

    def __init__(self, vision_size: int, decoder_size: int, count: int = 64, num_layers: int = 2, heads: int = 4):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(count, vision_size) * 0.02)
        self.layers = nn.ModuleList(ResamplerLayer(vision_size, heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(vision_size)
        self.out = nn.Linear(vision_size, decoder_size)

    def forward(self, features: Tensor) -> Tensor:
        x = self.latents.expand(len(features), -1, -1)  # (images, Q, vision hidden)
        for layer in self.layers:
            x = layer(x, features)
        return self.out(self.norm(x))


@dataclass
class Sight:
    """What the words of a batch can see. All gated blocks share one; ``Flamingo.embed`` fills it before each pass."""

    visual: Tensor | None = None  # (B, P, Q, hidden), rows with fewer pictures than P filled with zeros
    latest: Tensor | None = None  # (B, T): the number, from 1, of the last picture up to each token; 0 for none

    def look(self, length: int) -> tuple[Tensor, Tensor]:
        """For the last ``length`` tokens: the last picture's number (B, T), and the mask (B, 1, T, P * Q).

        A token that is generated after the prompt sees the same picture as the prompt's last token.
        """
        latest = self.latest[:, -length:]
        _, pictures, count = self.visual.shape[:3]
        number = torch.arange(1, pictures + 1, device=latest.device).repeat_interleave(count)  # (P * Q,)
        closed = latest[:, :, None] != number  # (B, T, P * Q)
        return latest, torch.zeros(closed.shape, device=closed.device).masked_fill(closed, CLOSED)[:, None]


class GatedBlock(nn.Module):
    """Gated cross-attention to the pictures, then a block of the frozen decoder: (B, T, hidden) -> (B, T, hidden)."""

    def __init__(self, block: Block, sight: Sight, size: int, heads: int):
        super().__init__()
        self.block, self.sight = block, sight
        self.norm = nn.LayerNorm(size)
        self.attention = CrossAttention(size, size, heads, bias=False)
        self.ffw = FeedForward(size)
        self.attention_gate = nn.Parameter(torch.zeros(1))  # figure 4: alpha, 0 at the start
        self.ffw_gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: KVCache | None) -> Tensor:
        latest, closed = self.sight.look(x.shape[1])
        seen = self.attention(self.norm(x), self.sight.visual.flatten(1, 2), closed)  # (B, T, hidden)
        seen = seen * (latest > 0).unsqueeze(-1)  # a softmax over closed places is not zero: say so
        x = x + self.attention_gate.tanh() * seen
        x = x + self.ffw_gate.tanh() * self.ffw(x)
        return self.block(x, rope, mask, cache)


class Flamingo(Road):
    """A Llava whose decoder looks at the pictures. A picture's only placeholder is the <image> token.

    ``count``: visual tokens of a picture; ``depth``: layers of the resampler; a gated layer stands before every
    ``every``-th block of the decoder (section 3.3: 1, 4 or 7, by size).
    """

    def __init__(self, llava: Llava, count: int = 64, depth: int = 2, every: int = 1):
        size, heads = llava.config.decoder.hidden_size, llava.config.decoder.num_attention_heads
        super().__init__(llava, Resampler(llava.config.vision.hidden_size, size, count, depth), 1)
        self.sight = Sight()
        layers = self.language_model.layers
        for index in range(0, len(layers), every):
            layers[index] = GatedBlock(layers[index], self.sight, size, heads)

    def embed(self, input_ids: Tensor, pixel_values: Tensor | None = None, visual: Tensor | None = None) -> Tensor:
        """The decoder's input (B, T, hidden), words only. The pictures go to the gated blocks, through ``sight``."""
        if pixel_values is not None:
            visual = self.encode_images(pixel_values)  # (images, Q, hidden)
        where = input_ids == self.config.image_token_id  # (B, T)
        counts = where.sum(dim=1)  # (B,): pictures of each row
        if visual is None:
            visual = self.encode_images(torch.empty(0, 3, *[self.config.vision.image_size] * 2))
        if counts.sum() != len(visual):
            raise ValueError(f"{counts.sum()} image placeholders for {len(visual)} pictures")
        there = torch.arange(max(1, counts.max()), device=counts.device) < counts[:, None]  # (B, P)
        rows = visual.new_zeros(*there.shape, *visual.shape[1:])  # (B, P, Q, hidden)
        self.sight.visual = rows.masked_scatter(there[:, :, None, None], visual)
        self.sight.latest = where.cumsum(dim=1)
        return self.language_model.embed_tokens(input_ids)


def flamingo_task(model: Flamingo, dataset: ConversationDataset) -> Task:
    """Train the resampler and the gated layers; the ViT and the decoder's own blocks are frozen."""
    model.requires_grad_(False)
    model.multi_modal_projector.requires_grad_(True)
    for layer in model.language_model.layers:
        if isinstance(layer, GatedBlock):
            layer.requires_grad_(True)
            layer.block.requires_grad_(False)
    return road_task("flamingo", model, dataset)
