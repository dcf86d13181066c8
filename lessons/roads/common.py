"""What several roads need: attention to another sequence, a Llava with another projector, a ``Task`` for the loop."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from minillava.model.attention import attend
from minillava.model.llava import Llava
from minillava.training.tasks import Task


class CrossAttention(nn.Module):
    """Queries from x (B, T, hidden), keys and values from another sequence (B, S, source) -> (B, T, hidden)."""

    def __init__(self, hidden: int, source: int, heads: int, bias: bool = True):
        super().__init__()
        self.num_heads = heads
        self.q_proj = nn.Linear(hidden, hidden, bias)
        self.k_proj = nn.Linear(source, hidden, bias)
        self.v_proj = nn.Linear(source, hidden, bias)
        self.out_proj = nn.Linear(hidden, hidden, bias)

    def forward(self, x: Tensor, source: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask, 0 or CLOSED, broadcasts to (B, heads, T, S)."""

        def heads(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, T or S, d)

        out = attend(heads(self.q_proj(x)), heads(self.k_proj(source)), heads(self.v_proj(source)), mask)
        return self.out_proj(out.transpose(1, 2).flatten(2))  # (B, heads, T, d) -> (B, T, hidden)


class Road(Llava):
    """A Llava with another projector, from copies of a trained Llava's vision tower and decoder.

    ``count``: the placeholders of one picture in the text, which the road's processor writes.
    """

    def __init__(self, llava: Llava, projector: nn.Module, count: int):
        nn.Module.__init__(self)
        self.config = llava.config
        self.processor = replace(llava.processor, num_image_tokens=count) if llava.processor else None
        self.vision_tower = deepcopy(llava.vision_tower)
        self.multi_modal_projector = projector
        self.language_model = deepcopy(llava.language_model)


def road_task(
    name: str, model: nn.Module, dataset: Dataset, loss: Callable[[dict[str, Tensor]], Tensor] | None = None
) -> Task:
    """Train the parameters of ``model`` that require gradients. The default loss is a Llava's own, on the next token.

    What is learnt is written to one file of tensors; what is frozen is not.
    """

    def next_token(batch: dict[str, Tensor]) -> Tensor:
        # Zero pictures go through the model too, so that in a batch of text all that learns has a gradient, of zero.
        no_pictures = torch.empty(0, 3, *[model.config.vision.image_size] * 2)
        return model(batch["input_ids"], batch.get("pixel_values", no_pictures), None, batch["labels"])[1]

    def write(tensors: dict[str, Tensor], folder: Path) -> None:
        learnt = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        folder.mkdir(parents=True, exist_ok=True)
        kept = {name: tensor.contiguous() for name, tensor in tensors.items() if name in learnt}
        save_file(kept, folder / "model.safetensors")

    return Task(name, model, dataset, dataset.collate, loss or next_token, write, size=dataset.size)
