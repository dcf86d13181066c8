"""LoRA: fine-tuning a large decoder through small matrices (Hu et al. 2021, arXiv 2106.09685).

A linear layer's matrix W (out, in) is frozen. Its update is learned as a product of two small matrices of rank r:

    y = x W^T + (alpha / r) x A^T B^T        A (r, in), B (out, r)

- A starts random and B starts at zero, so at first the model computes what it did without LoRA.
- Only A and B have gradients and optimizer state: r (in + out) numbers instead of in x out.
- After training, (alpha / r) B A can be added to W; the result is a plain linear layer again.

A and B are saved in an adapter folder, in the format of the peft library.
"""

import torch
from torch import Tensor, nn

from minillava.model.decoder import Decoder

ALPHA_PER_RANK = 2  # alpha / r in training: 256 / 128 in the authors' scripts/v1_5/finetune_lora.sh


class LoraLinear(nn.Linear):
    """A frozen linear layer plus its low-rank update, (..., in) -> (..., out)."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float):
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)  # initialised like any nn.Linear (Kaiming uniform)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)
        self.alpha, self.scale = alpha, alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.scale * self.lora_B(self.lora_A(x))

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain layer that computes the same: its matrix is W + scale B A, in W's dtype."""
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        product = self.lora_B.weight.float() @ self.lora_A.weight.float()
        plain.weight = nn.Parameter((self.weight.float() + self.scale * product).to(self.weight.dtype))
        plain.bias = self.bias
        return plain


def add_lora(decoder: Decoder, rank: int, alpha: float) -> None:
    """Freeze ``decoder`` and replace every linear layer in its blocks by a LoraLinear, whose A and B are trained."""
    decoder.requires_grad_(False)
    for layer in decoder.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, linear in list(part.named_children()):
                setattr(part, name, LoraLinear(linear, rank, alpha))


def merge_lora(decoder: Decoder) -> None:
    """Replace every LoraLinear by its merged() layer."""
    for part in list(decoder.modules()):
        for name, linear in list(part.named_children()):
            if isinstance(linear, LoraLinear):
                setattr(part, name, linear.merged())


def has_lora(decoder: Decoder) -> bool:
    return any(isinstance(part, LoraLinear) for part in decoder.modules())


def is_learnt(name: str) -> bool:
    """Whether a tensor of this name is one of LoRA's A and B."""
    return ".lora_A." in name or ".lora_B." in name
