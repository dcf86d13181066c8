"""LoRA: fine-tuning a large decoder through small matrices (Hu et al. 2021, arXiv 2106.09685).

A linear layer W (out, in) is frozen, and what it learns is kept apart, as a product of low rank r:

    y = x W^T + (alpha / r) x A^T B^T        A (r, in), B (out, r)

- A starts random and B at zero, so the model begins as it was;
- gradients and the optimiser's state exist for A and B alone: r (in + out) numbers where W has in x out;
- afterwards (alpha / r) B A is added to W, and nothing of LoRA remains.

What is learnt is saved in an adapter folder, in the form of the peft library.
"""

import torch
from torch import Tensor, nn

from minillava.model.decoder import Decoder

ALPHA = 2  # alpha / r in training: 256 / 128 in the authors' scripts/v1_5/finetune_lora.sh


class LoraLinear(nn.Linear):
    """A linear layer with a product of low rank beside it, (..., in) -> (..., out)."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float):
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)  # PyTorch's own start is Kaiming's, uniform
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)
        self.alpha, self.scale = alpha, alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.scale * self.lora_B(self.lora_A(x))

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The plain layer that computes the same: W + scale B A, in W's dtype."""
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        product = self.lora_B.weight.float() @ self.lora_A.weight.float()
        plain.weight = nn.Parameter((self.weight.float() + self.scale * product).to(self.weight.dtype))
        plain.bias = self.bias
        return plain


def add_lora(decoder: Decoder, rank: int, alpha: float) -> None:
    """Freeze ``decoder`` and put low-rank matrices beside every linear layer in its blocks; they alone learn."""
    decoder.requires_grad_(False)
    for layer in decoder.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, linear in list(part.named_children()):
                setattr(part, name, LoraLinear(linear, rank, alpha))


def merge_lora(decoder: Decoder) -> None:
    """Add what was learnt to the weights, and take the low-rank matrices away."""
    for part in list(decoder.modules()):
        for name, linear in list(part.named_children()):
            if isinstance(linear, LoraLinear):
                setattr(part, name, linear.merged())


def is_learnt(name: str) -> bool:
    """Whether a tensor of this name is one of LoRA's matrices."""
    return ".lora_A." in name or ".lora_B." in name
