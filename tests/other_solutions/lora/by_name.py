"""Layers found by their names; the sum written in another order."""

import torch
from torch import Tensor, nn

from minillava.model.decoder import Decoder


class LoraLinear:
    def forward(self, x: Tensor) -> Tensor:
        update = x @ self.lora_A.weight.T @ self.lora_B.weight.T
        return update * self.scale + torch.nn.functional.linear(x, self.weight, self.bias)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, dtype=self.weight.dtype)
        update = self.lora_B.weight.double() @ self.lora_A.weight.double() * self.scale
        plain.weight.copy_(self.weight.double() + update)
        if self.bias is not None:
            plain.bias = self.bias
        return plain


def add_lora(decoder: Decoder, rank: int, alpha: float) -> None:
    for parameter in decoder.parameters():
        parameter.requires_grad = False
    found = {name: part for name, part in decoder.layers.named_modules() if isinstance(part, nn.Linear)}
    for name, linear in found.items():
        parent, _, last = name.rpartition(".")
        setattr(decoder.layers.get_submodule(parent), last, LoraLinear(linear, rank, alpha))


def merge_lora(decoder: Decoder) -> None:
    found = {name: part for name, part in decoder.named_modules() if isinstance(part, LoraLinear)}
    for name, linear in found.items():
        parent, _, last = name.rpartition(".")
        setattr(decoder.get_submodule(parent), last, linear.merged())
