"""Frozen: a picture becomes a prefix of two vectors, and only the vision encoder is trained.

Tsimpoukelli et al. 2021, Multimodal Few-Shot Learning with Frozen Language Models, arXiv 2106.13884, sections 3.1, 3.2:

    pixels --vision encoder v--> pooled feature --linear map--> n vectors --> in front of the words --> frozen decoder

A decoder continues a text that begins with word embeddings. Frozen writes such embeddings itself: n = 2 vectors, like
two more words, a "visual prefix". The gradient of the captions' loss runs back through all blocks of the decoder, which
do not change, into the vision encoder. So the encoder learns the decoder's language, and the decoder forgets nothing.

- Trained: the vision encoder and the linear map. Frozen: the decoder, with its embeddings.
- The paper trains an NF-ResNet-50 from random weights; here it is the project's ViT, which begins trained, and its
  pooled feature is the mean over the patches, as the ResNet's is over places.
- LLaVA does the opposite: the encoder is frozen, all its patches are visual tokens, and the decoder is trained.
"""

from torch import Tensor, nn

from lessons.roads.common import Road, road_task
from minillava.inputs.conversations import ConversationDataset
from minillava.model.llava import Llava
from minillava.training.tasks import Task

PREFIX = 2  # vectors for one picture; section 3.1: n = 2


class VisualPrefix(nn.Module):
    """Features (images, patches, vision hidden) -> prefix (images, count, decoder hidden)."""

    def __init__(self, vision_size: int, decoder_size: int, count: int = PREFIX):
        super().__init__()
        self.count = count
        self.linear = nn.Linear(vision_size, count * decoder_size)

    def forward(self, features: Tensor) -> Tensor:
        pooled = features.mean(dim=1)  # (images, vision hidden)
        return self.linear(pooled).unflatten(-1, (self.count, -1))  # one long vector, cut into count vectors


class Frozen(Road):
    """A Llava whose projector is a visual prefix."""

    def __init__(self, llava: Llava, count: int = PREFIX):
        vision_size, decoder_size = llava.config.vision.hidden_size, llava.config.decoder.hidden_size
        super().__init__(llava, VisualPrefix(vision_size, decoder_size, count), count)

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """pixel_values (images, 3, H, W) -> prefix (images, count, decoder hidden). All blocks of the ViT are run."""
        tower, weight = self.vision_tower, self.vision_tower.embeddings.patch_embedding.weight
        x = tower.hidden_state(pixel_values.to(weight.device, weight.dtype))  # (images, 1 + patches, vision hidden)
        return self.multi_modal_projector(tower.post_layernorm(x)[:, 1:])


def frozen_task(model: Frozen, dataset: ConversationDataset) -> Task:
    """Train the vision encoder and the linear map, on captions or on answers."""
    model.requires_grad_(True)
    model.language_model.requires_grad_(False)  # its gradients are still computed for its input: the prefix
    return road_task("frozen", model, dataset)
